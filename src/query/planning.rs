//! What the next epoch reads: pure functions from what sources hold to spans and tasks.

use std::collections::BTreeMap;

use crate::checkpoint::Cut;
use crate::connector::{Extent, Offsets, Partition, Span};

/// Spans of `extent` after `position`, at most `limit` offsets in all, none at or past `until`.
///
/// A partition without a position (it appeared later) is read from its earliest offset. A position below the earliest
/// offset is kept: the read will say what is lost.
pub fn next_spans(extent: &Extent, position: &Offsets, until: Option<&Offsets>, limit: u64) -> Vec<Span> {
    let mut spans: Vec<Span> = extent
        .partitions
        .iter()
        .map(|(partition, bounds)| {
            let from = position.get(partition).copied().unwrap_or(bounds.earliest);
            let end = match until {
                Some(until) => bounds.latest.min(until.get(partition).copied().unwrap_or(0)),
                None => bounds.latest,
            };
            Span::new(partition.clone(), from, end.max(from))
        })
        .filter(|span| !span.is_empty())
        .collect();
    let backlog: Vec<u64> = spans.iter().map(Span::len).collect();
    for (span, share) in spans.iter_mut().zip(share_out(&backlog, limit)) {
        span.to = span.from + share;
    }
    spans.retain(|span| !span.is_empty());
    spans
}

/// Shares `limit` out in proportion to `backlog`; nobody gets more than it has, and what rounding leaves goes to those
/// who would get nothing, then to the first that can take it.
pub fn share_out(backlog: &[u64], limit: u64) -> Vec<u64> {
    let total: u128 = backlog.iter().map(|&b| u128::from(b)).sum();
    if total <= u128::from(limit) {
        return backlog.to_vec();
    }
    let share = |b: &u64| (u128::from(*b) * u128::from(limit) / total) as u64;
    let mut shares: Vec<u64> = backlog.iter().map(share).collect();
    let mut left = limit - shares.iter().sum::<u64>();
    // Nobody starves behind a larger backlog.
    for (share, _) in shares.iter_mut().zip(backlog).filter(|(share, backlog)| **share == 0 && **backlog > 0) {
        *share = left.min(1);
        left -= *share;
    }
    for (share, backlog) in shares.iter_mut().zip(backlog) {
        let more = left.min(backlog - *share);
        *share += more;
        left -= more;
    }
    shares
}

/// How many offsets of a table the next epoch may have, of which the last one could have `most`: it had `rows`, and took
/// `took_ms` where it should take `bound_ms`. Less in proportion, if it was too slow; more by and by, once it is not.
pub fn next_most(most: u64, rows: u64, took_ms: f64, bound_ms: f64) -> u64 {
    if took_ms > bound_ms {
        // A number that is too large for u64 becomes its maximum.
        ((rows as f64 * bound_ms / took_ms) as u64).clamp(1, most)
    } else if took_ms < bound_ms / 2.0 && rows >= most / 2 {
        most.saturating_mul(2)
    } else {
        most
    }
}

/// Cuts spans into at most `tasks` tasks. A partition stays with its task from epoch to epoch, so that a reader that is
/// open goes on where it is.
pub fn cut(spans: Vec<Span>, all: &[Partition], tasks: usize) -> Cut {
    let mut cut: BTreeMap<usize, Vec<Span>> = BTreeMap::new();
    for span in spans {
        let place = all.binary_search(&span.partition).unwrap_or_default();
        cut.entry(place % tasks.max(1)).or_default().push(span);
    }
    cut.into_values().collect()
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
    fn a_limit_is_shared_by_backlog_and_used_up() {
        assert_eq!(share_out(&[10, 20, 70], 1000), vec![10, 20, 70]);
        assert_eq!(share_out(&[10, 20, 70], 10), vec![1, 2, 7]);
        assert_eq!(share_out(&[1, 1, 1], 2), vec![1, 1, 0]);
        assert_eq!(share_out(&[u64::MAX, u64::MAX], 3).iter().sum::<u64>(), 3);
        assert_eq!(share_out(&[], 3), Vec::<u64>::new());
    }

    #[test]
    fn spans_follow_positions_limits_and_ends() {
        let position = Offsets::from([(partition(0), 5), (partition(1), 7)]);
        let spans = |until: Option<&Offsets>, limit| {
            format!("{:?}", next_spans(&extent(&[(0, 9), (0, 7), (3, 4)]), &position, until, limit))
        };
        assert_eq!(spans(None, 100), "[t:0 5..9, t:2 3..4]");
        assert_eq!(spans(None, 3), "[t:0 5..7, t:2 3..4]");
        assert_eq!(spans(Some(&Offsets::from([(partition(0), 6)])), 100), "[t:0 5..6]");
    }

    #[test]
    fn a_partition_keeps_its_task() {
        let all: Vec<Partition> = (0..4).map(partition).collect();
        let span = |n| Span::new(partition(n), 0, 1);
        assert_eq!(
            format!("{:?}", cut(vec![span(0), span(1), span(2)], &all, 2)),
            "[[t:0 0..1, t:2 0..1], [t:1 0..1]]"
        );
        assert_eq!(format!("{:?}", cut(vec![span(3)], &all, 2)), "[[t:3 0..1]]");
    }

    #[test]
    fn an_epoch_that_is_too_slow_makes_the_next_one_smaller() {
        assert_eq!(next_most(u64::MAX, 2_000_000, 10_000.0, 30_000.0), u64::MAX);
        let most = next_most(u64::MAX, 2_000_000, 60_000.0, 30_000.0);
        assert_eq!(most, 1_000_000);
        assert_eq!(next_most(most, 1_000_000, 20_000.0, 30_000.0), most, "between half and whole it stays");
        assert_eq!(next_most(most, 1_000_000, 14_000.0, 30_000.0), 2_000_000);
        assert_eq!(next_most(most, 10, 20.0, 30_000.0), most, "a small one says nothing");
        assert_eq!(next_most(1, 1, 90_000.0, 30_000.0), 1);
    }
}
