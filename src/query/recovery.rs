//! What a run does first: a pure function from what the log and the destinations say.
//!
//! Rule 4 of the log: after fencing, each destination's own progress decides whether a pending epoch is published again.

use crate::checkpoint::{Intent, Tail};
use crate::connector::Progress;
use crate::error::{Error, Result};

/// What to do first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Nothing is pending: plan the epoch after the newest commit.
    Plan,
    /// Run this intent again; `published` says which sinks have it already.
    Redo {
        /// The intent without a commit.
        intent: Box<Intent>,
        /// By sink: whether it holds the epoch.
        published: Vec<bool>,
    },
}

/// Decides, by what each sink holds; the first `targets` of them are those of the query's own rows.
///
/// Errors: a log with holes, a destination that is behind the log or ahead of it.
pub fn decide(tail: &Tail, targets: usize, progress: &[Progress]) -> Result<Decision> {
    let committed = tail.commit.as_ref().map_or(0, |commit| commit.epoch);
    let intended = tail.pending.as_ref().map_or(committed, |intent| intent.epoch);
    if tail.newest_intent > intended {
        return Err(Error::refused(format!(
            "the checkpoint has an intent of epoch {} but its newest commit is of epoch {committed}; records are \
             missing, restore them from a copy",
            tail.newest_intent
        )));
    }
    for (index, progress) in progress.iter().enumerate() {
        // Late rows may go to another table now, which holds nothing of what was committed.
        let is_target = index < targets;
        match *progress {
            Progress::UpTo(epoch) if epoch < committed && is_target => {
                return Err(Error::refused(format!(
                    "the destination holds everything up to epoch {epoch}, and the checkpoint has committed epoch \
                     {committed}; the destination was replaced or lost data"
                )));
            }
            Progress::UpTo(epoch) if epoch > intended => {
                return Err(Error::refused(format!(
                    "the destination holds epoch {epoch}, and the checkpoint has not intended it; the checkpoint was \
                     replaced by an older copy"
                )));
            }
            _ => {}
        }
    }
    Ok(match &tail.pending {
        None => Decision::Plan,
        Some(intent) => {
            let holds = |progress: &Progress| matches!(progress, Progress::UpTo(epoch) if *epoch == intent.epoch);
            Decision::Redo { intent: Box::new(intent.clone()), published: progress.iter().map(holds).collect() }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::{Commit, VERSION};

    fn tail(committed: u64, pending: bool) -> Tail {
        let commit = Commit { version: VERSION, epoch: committed, run: 1, ..Commit::default() };
        let intent = Intent { version: VERSION, epoch: committed + 1, run: 1, definition: 1, ..Intent::default() };
        Tail {
            commit: (committed > 0).then_some(commit),
            pending: pending.then_some(intent),
            newest_intent: committed + u64::from(pending),
        }
    }

    fn check(tail: Tail, progress: Progress, expected: &str) {
        let decided = match decide(&tail, 1, &[progress]) {
            Ok(Decision::Plan) => "plan".into(),
            Ok(Decision::Redo { intent, published }) => format!("redo {} {published:?}", intent.epoch),
            Err(e) => e.to_string().split(';').next().unwrap_or_default().to_string(),
        };
        assert_eq!(decided, expected);
    }

    #[test]
    fn every_case() {
        check(tail(0, false), Progress::Unrecorded, "plan");
        check(tail(0, true), Progress::Unrecorded, "redo 1 [false]");
        check(tail(5, false), Progress::UpTo(5), "plan");
        check(tail(5, true), Progress::UpTo(5), "redo 6 [false]");
        check(tail(5, true), Progress::UpTo(6), "redo 6 [true]");
        check(
            tail(5, false),
            Progress::UpTo(4),
            "the destination holds everything up to epoch 4, and the checkpoint has committed epoch 5",
        );
        check(
            tail(5, false),
            Progress::UpTo(6),
            "the destination holds epoch 6, and the checkpoint has not intended it",
        );
        let hole = Tail { newest_intent: 9, ..tail(5, false) };
        check(
            hole,
            Progress::Unrecorded,
            "the checkpoint has an intent of epoch 9 but its newest commit is of epoch 5",
        );
    }
}
