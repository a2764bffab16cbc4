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
//! or where a source does not tell messages apart.

use std::collections::{BTreeMap, BTreeSet};

use crate::checkpoint::Cut;
use crate::connector::{Extent, Offsets, Partition, Span};

/// By table, partitions whose messages are others than those that were read before.
pub type Anew = BTreeMap<String, BTreeSet<Partition>>;

/// Moves what lies before the first offset that is there up to it.
pub fn skip_lost(position: &mut Offsets, extent: &Extent) {
    for (partition, next) in position {
        if let Some(bounds) = extent.partitions.get(partition) {
            *next = bounds.earliest.max(*next);
        }
    }
}

/// What is left of intended spans, by what the tables that go on without what is lost hold now. A partition that is
/// another now has nothing of them.
pub fn left(cuts: &BTreeMap<String, Cut>, extents: &BTreeMap<String, Extent>, anew: &Anew) -> BTreeMap<String, Cut> {
    let left = |(table, cut): (&String, &Cut)| {
        let Some(extent) = extents.get(table) else { return (table.clone(), cut.clone()) };
        let is_old = |span: &&Span| !anew.get(table).is_some_and(|anew| anew.contains(&span.partition));
        let rest = |span: &Span| {
            let earliest = extent.partitions.get(&span.partition).map_or(span.from, |bounds| bounds.earliest);
            Span { from: span.from.max(earliest).min(span.to), ..span.clone() }
        };
        let tasks = cut.iter().map(|spans| spans.iter().filter(is_old).map(rest).collect());
        (table.clone(), tasks.collect())
    };
    cuts.iter().map(left).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::connector::Bounds;

    fn partition(number: u32) -> Partition {
        Partition::new("t", number)
    }

    fn extent(bounds: &[(u64, u64)]) -> Extent {
        let bounds = bounds.iter().map(|&(earliest, latest)| Bounds { earliest, latest });
        Extent { partitions: (0..).map(partition).zip(bounds).collect(), ..Extent::default() }
    }

    #[test]
    fn a_position_moves_up_to_what_is_there() {
        let mut position = Offsets::from([(partition(0), 5), (partition(1), 5), (partition(2), 5)]);
        skip_lost(&mut position, &extent(&[(3, 9), (7, 9)]));
        assert_eq!(position.into_values().collect::<Vec<_>>(), [5, 7, 5]);
    }

    #[test]
    fn of_what_was_intended_the_rest_is_left() {
        let cut = vec![
            vec![Span::new(partition(0), 0, 4), Span::new(partition(1), 0, 4)],
            vec![Span::new(partition(2), 0, 4), Span::new(partition(3), 0, 4)],
        ];
        let cuts = BTreeMap::from([("a".to_string(), cut.clone()), ("b".to_string(), cut)]);
        let extents = BTreeMap::from([("a".to_string(), extent(&[(0, 9), (3, 9), (7, 9), (0, 9)]))]);
        let anew = Anew::from([("a".to_string(), BTreeSet::from([partition(3)]))]);
        let left = left(&cuts, &extents, &anew);
        assert_eq!(format!("{:?}", left["a"]), "[[t:0 0..4, t:1 3..4], [t:2 4..4]]");
        assert_eq!(left["b"], cuts["b"], "a table that ends with its query at a loss reads what was intended");
    }
}
