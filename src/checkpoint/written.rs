//! Which files of state the commits name that a run makes: what may go when commits do.
//!
//! The idea: a file is named by all commits from one to another, without a gap, so two numbers say by which. No earlier
//! run's commit can name what this run has written, so of these files everything is known without reading a commit.
//!
//! Guarantee: a file that the newest commit names stays, and so does one that any kept commit names. Not promised: files of
//! earlier runs, and those that were on their way out when the run ended. `Log::sweep` finds them.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::time::Duration;

use object_store::path::Path;

use super::records::Commit;
use super::state_store::Origin;
use crate::state::StateFile;

/// How long a file is left alone that no kept commit names any more: somebody may be reading that state.
const READING: Duration = Duration::from_secs(5 * 60);

/// The files of state that one run has written.
#[derive(Debug, Default)]
pub(super) struct Written {
    /// The newest commit.
    newest: u64,
    /// By name, which holds the run and is its own among all operators.
    files: HashMap<String, Named>,
    /// Since when files are not named any more, µs, oldest first.
    leaving: VecDeque<(u64, Path)>,
}

#[derive(Debug)]
struct Named {
    path: Path,
    /// The first commit that names it.
    first: u64,
    /// The last one.
    last: u64,
}

impl Written {
    /// Notes what `run` has written of the state that its commit names; files are below `root`.
    pub(super) fn note(&mut self, commit: &Commit, run: u64, root: &Path) {
        self.newest = self.newest.max(commit.epoch);
        let is_ours = |file: &&StateFile| Origin::of(&file.name).is_some_and(|origin| origin.run == run);
        for (operator, state) in &commit.state {
            for file in state.files.iter().filter(is_ours) {
                if let Some(named) = self.files.get_mut(&file.name) {
                    named.last = named.last.max(commit.epoch);
                    continue;
                }
                let path = root.clone().join(operator.as_str()).join(file.name.as_str());
                self.files.insert(file.name.clone(), Named { path, first: commit.epoch, last: commit.epoch });
            }
        }
    }

    /// The newest commit that was noted, 0 without one.
    pub(super) fn newest(&self) -> u64 {
        self.newest
    }

    /// The files that no kept commit has named for long enough; each is said once. `kept` was listed when `newest` was the
    /// newest commit, or later.
    pub(super) fn superseded(&mut self, kept: &BTreeSet<u64>, newest: u64, now_us: u64) -> Vec<Path> {
        let is_superseded =
            |named: &Named| named.last < newest && kept.range(named.first..=named.last).next().is_none();
        let superseded = self.files.extract_if(|_, named| is_superseded(named));
        self.leaving.extend(superseded.map(|(_, named)| (now_us, named.path)));
        let has_waited = |since_us: u64| u128::from(now_us.saturating_sub(since_us)) >= READING.as_micros();
        let count = self.leaving.partition_point(|(since_us, _)| has_waited(*since_us));
        self.leaving.drain(..count).map(|(_, path)| path).collect()
    }

    /// The files that no kept commit names any more, but not for long enough.
    pub(super) fn leaving(&self) -> impl Iterator<Item = &Path> {
        self.leaving.iter().map(|(_, path)| path)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::state::StateCommit;

    const RUN: u64 = 3;

    fn name(epoch: u64, run: u64) -> String {
        format!("{epoch:020}-{run:020}-0-delta-0.arrow.zst")
    }

    /// A commit that names files of these epochs, which this run wrote.
    fn commit(epoch: u64, files: &[u64]) -> Commit {
        let file = |of: &u64| StateFile { name: name(*of, RUN), epoch: *of, rows: 1, bytes: 1, latest: None };
        let state = StateCommit { files: files.iter().map(file).collect(), ..StateCommit::default() };
        Commit { epoch, state: BTreeMap::from([("a".to_owned(), state)]), ..Commit::default() }
    }

    /// Files by their epochs.
    fn superseded(written: &mut Written, kept: &[u64], seconds: u64) -> Vec<u64> {
        let gone = written.superseded(&kept.iter().copied().collect(), written.newest(), seconds * 1_000_000);
        let epoch = |path: &Path| path.as_ref().strip_prefix("root/a/").unwrap()[..20].parse().unwrap();
        let mut gone: Vec<u64> = gone.iter().map(epoch).collect();
        gone.sort_unstable();
        gone
    }

    #[test]
    fn a_file_goes_a_while_after_the_last_kept_commit_that_names_it() {
        let (mut written, root) = (Written::default(), Path::from("root"));
        // Each epoch has a file of its own; epoch 4 has one in the place of the first two.
        let commits =
            [commit(1, &[1]), commit(2, &[1, 2]), commit(3, &[1, 2, 3]), commit(4, &[4, 3]), commit(5, &[4, 3])];
        commits.iter().for_each(|commit| written.note(commit, RUN, &root));
        assert_eq!(superseded(&mut written, &[1, 2, 3, 4, 5], 0), [0; 0]);
        assert_eq!(superseded(&mut written, &[2, 5], 600), [0; 0], "commit 2 names the files of epochs 1 and 2");
        assert_eq!(superseded(&mut written, &[5], 700), [0; 0], "no commit names them, but not for long");
        assert_eq!(superseded(&mut written, &[5], 999), [0; 0]);
        assert_eq!(superseded(&mut written, &[5], 1000), [1, 2]);
        assert_eq!(superseded(&mut written, &[5], 9000), [0; 0], "each is said once");
    }

    #[test]
    fn what_the_newest_commit_names_stays_even_where_a_newer_run_has_many_more() {
        let (mut written, root) = (Written::default(), Path::from("root"));
        [commit(1, &[1]), commit(2, &[2])].iter().for_each(|commit| written.note(commit, RUN, &root));
        assert_eq!(superseded(&mut written, &[201, 202], 0), [0; 0]);
        assert_eq!(superseded(&mut written, &[201, 202], 301), [1]);
    }

    #[test]
    fn a_commit_that_came_after_the_listing_keeps_its_files() {
        let (mut written, root) = (Written::default(), Path::from("root"));
        [commit(1, &[1]), commit(2, &[2])].iter().for_each(|commit| written.note(commit, RUN, &root));
        let (kept, newest) = (BTreeSet::from([2]), written.newest());
        // Two more while older records are deleted; the file of epoch 3 is in the second no more.
        [commit(3, &[3]), commit(4, &[4])].iter().for_each(|commit| written.note(commit, RUN, &root));
        assert_eq!(written.superseded(&kept, newest, 0), []);
        assert_eq!(superseded(&mut written, &[2, 3, 4], 301), [1]);
        assert_eq!(superseded(&mut written, &[2, 3, 4], 999), [0; 0]);
    }

    #[test]
    fn files_of_other_runs_are_left_alone() {
        let (mut written, root) = (Written::default(), Path::from("root"));
        let mut first = commit(7, &[6, 7]);
        first.state.values_mut().for_each(|state| state.files[0].name = name(6, RUN - 1));
        [first, commit(8, &[8])].iter().for_each(|commit| written.note(commit, RUN, &root));
        assert_eq!(superseded(&mut written, &[8], 0), [0; 0]);
        assert_eq!(superseded(&mut written, &[8], 301), [7]);
    }
}
