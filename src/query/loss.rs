//! What of a stream is gone, and what is left of it: pure functions.
//!
//! The idea: messages are lost in two ways. Retention takes the first ones of a partition, so that it begins behind what
//! was to be read next. Or a topic was deleted and created anew, so that its offsets are those of other messages; then
//! the last message that was read is not where it was. Under `scan.on-data-loss` = fail both end the query. Under
//! continue it goes on with what is left: at the first offset that is there. What is gone of an epoch that was intended
//! before is left out of it.
//!
//! Guarantee: an epoch leaves out nothing that is there, and what it leaves out is counted.
//!
//! Not promised: to notice a topic that was created anew where the message that was read last is gone for other reasons,
//! or where a source does not tell messages apart; to count what nobody had planned to read of a topic that is another now.

use std::collections::{BTreeMap, BTreeSet};

use crate::checkpoint::{Cut, SourceCommit};
use crate::connector::{Extent, Offsets, Partition, Span};

/// By table, partitions whose messages are others than those that were read before.
pub type Anew = BTreeMap<String, BTreeSet<Partition>>;

/// Moves what lies before the first offset that is there up to it, but not past where the stream ends. Gives the empty
/// spans of those partitions that have nothing left to read then: an epoch has to count what they lost.
pub fn skip_lost(position: &mut Offsets, extent: &Extent, until: Option<&Offsets>) -> Vec<Span> {
    let mut empty = vec![];
    for (partition, next) in position {
        let Some(bounds) = extent.partitions.get(partition) else { continue };
        let end = match until {
            Some(until) => until.get(partition).copied().unwrap_or(*next),
            None => u64::MAX,
        };
        if *next < bounds.earliest.min(end) {
            *next = bounds.earliest.min(end);
            if *next >= bounds.latest.min(end) {
                empty.push(Span::new(partition.clone(), *next, *next));
            }
        }
    }
    empty
}

/// What is known of a pending epoch's input.
#[derive(Debug)]
pub struct Known<'a> {
    /// What the tables hold that go on without what is lost.
    pub extents: &'a BTreeMap<String, Extent>,
    /// Their partitions that are others now.
    pub anew: &'a Anew,
    /// By table, what is committed.
    pub committed: &'a BTreeMap<String, SourceCommit>,
    /// Whether ends that are gone are believed to be.
    pub is_sure: bool,
}

/// What is left of intended spans. A partition that is another now has nothing of them, unless they were planned when that
/// was known: only then do they begin before what is committed.
pub fn left(cuts: &BTreeMap<String, Cut>, known: &Known<'_>) -> BTreeMap<String, Cut> {
    let left = |(table, cut): (&String, &Cut)| {
        let Some(extent) = known.extents.get(table) else { return (table.clone(), cut.clone()) };
        let is_kept = |span: &&Span| {
            let committed = known.committed.get(table).and_then(|commits| commits.get(&span.partition));
            let is_new = committed.is_some_and(|commit| span.from < commit.next);
            is_new || !known.anew.get(table).is_some_and(|anew| anew.contains(&span.partition))
        };
        let rest = |span: &Span| {
            let Some(bounds) = extent.partitions.get(&span.partition) else { return span.clone() };
            let from = span.from.max(bounds.earliest).min(span.to);
            let to = if known.is_sure { span.to.min(bounds.latest).max(from) } else { span.to };
            Span { from, to, ..span.clone() }
        };
        let tasks = cut.iter().map(|spans| spans.iter().filter(is_kept).map(rest).collect());
        (table.clone(), tasks.collect())
    };
    cuts.iter().map(left).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::PartitionCommit;
    use crate::connector::contract::fixture::{extent, partition};

    #[test]
    fn a_position_moves_up_to_what_is_there() {
        let skipped = |until: Option<&Offsets>| {
            let mut position: Offsets = (0..4).map(|number| (partition(number), 5)).collect();
            let empty = skip_lost(&mut position, &extent(&[(3, 9), (7, 9), (9, 9)]), until);
            format!("{:?} {empty:?}", position.into_values().collect::<Vec<_>>())
        };
        assert_eq!(skipped(None), "[5, 7, 9, 5] [t:2 9..9]", "one that is not there stays where it is");
        let until: Offsets = [(0, 6), (1, 6), (3, 6)].map(|(number, end)| (partition(number), end)).into();
        assert_eq!(skipped(Some(&until)), "[5, 6, 5, 5] [t:1 6..6]");
    }

    #[test]
    fn of_what_was_intended_the_rest_is_left() {
        let cut = vec![
            vec![Span::new(partition(0), 0, 4), Span::new(partition(1), 0, 4)],
            vec![Span::new(partition(2), 0, 4), Span::new(partition(3), 0, 4), Span::new(partition(4), 0, 4)],
        ];
        let cuts = BTreeMap::from([("a".to_string(), cut.clone()), ("b".to_string(), cut)]);
        let extents = BTreeMap::from([("a".to_string(), extent(&[(0, 2), (3, 9), (7, 9), (0, 9), (0, 9)]))]);
        let anew = Anew::from([("a".to_string(), BTreeSet::from([partition(3), partition(4)]))]);
        // Of the last one the new messages were planned already.
        let commit = |next| PartitionCommit { next, ..PartitionCommit::default() };
        let commits = SourceCommit::from([(partition(3), commit(0)), (partition(4), commit(7))]);
        let committed = BTreeMap::from([("a".to_string(), commits)]);
        let left = |is_sure| {
            let left = left(&cuts, &Known { extents: &extents, anew: &anew, committed: &committed, is_sure });
            assert_eq!(left["b"], cuts["b"], "a table that ends with its query at a loss reads what was intended");
            format!("{:?}", left["a"])
        };
        assert_eq!(left(false), "[[t:0 0..4, t:1 3..4], [t:2 4..4, t:4 0..4]]");
        assert_eq!(left(true), "[[t:0 0..2, t:1 3..4], [t:2 4..4, t:4 0..4]]");
    }
}
