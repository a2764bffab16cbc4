//! What the next epoch reads: pure functions from what sources hold to spans and tasks.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use super::pace::{LimitedBy, Limits};
use crate::checkpoint::Cut;
use crate::connector::{Extent, Offsets, Partition, Span};

/// What of `extent` is unread after `position`, none of it at or past `until`.
///
/// A partition without a position (it appeared later) is read from its earliest offset. A position below the earliest
/// offset is kept: the read will say what is lost.
pub fn unread(extent: &Extent, position: &Offsets, until: Option<&Offsets>) -> Vec<Span> {
    extent
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
        .collect()
}

/// What the next epoch takes of a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Share {
    /// The spans.
    pub spans: Vec<Span>,
    /// Why there are no more.
    pub limited_by: Option<LimitedBy>,
    /// Whether there is enough to be had to begin an epoch.
    pub is_enough: bool,
}

/// As much of what is unread as the limits allow, shared out among the partitions by backlog.
pub fn next_spans(unread: Vec<Span>, limits: &Limits) -> Share {
    let backlog: Vec<u64> = unread.iter().map(|span| span.len().min(limits.rows_per_partition)).collect();
    let ready = backlog.iter().copied().fold(0, u64::saturating_add);
    let is_rated = unread.iter().any(|span| span.len() > limits.rows_per_partition);
    let limited_by = if ready > limits.rows { Some(limits.by) } else { is_rated.then_some(LimitedBy::Rate) };
    let shares = share_out(&backlog, limits.rows);
    let cut_short = |(span, share): (Span, u64)| Span { to: span.from + share, ..span };
    let spans = unread.into_iter().zip(shares).map(cut_short).filter(|span| !span.is_empty()).collect();
    Share { spans, limited_by, is_enough: ready >= limits.enough }
}

/// Shares `limit` out in proportion to `backlog`; nobody gets more than it has, and what rounding leaves goes to those
/// who would get nothing, the longest backlog first, then to the first that can take it.
pub fn share_out(backlog: &[u64], limit: u64) -> Vec<u64> {
    let total: u128 = backlog.iter().map(|&b| u128::from(b)).sum();
    if total <= u128::from(limit) {
        return backlog.to_vec();
    }
    let share = |b: &u64| (u128::from(*b) * u128::from(limit) / total) as u64;
    let mut shares: Vec<u64> = backlog.iter().map(share).collect();
    let mut left = limit - shares.iter().sum::<u64>();
    // Nobody starves behind a larger backlog, or behind its equals, where there are more of them than the limit.
    let mut starving: Vec<usize> = (0..backlog.len()).filter(|i| shares[*i] == 0 && backlog[*i] > 0).collect();
    starving.sort_by_key(|i| Reverse(backlog[*i]));
    for i in starving {
        shares[i] = left.min(1);
        left -= shares[i];
    }
    for (share, backlog) in shares.iter_mut().zip(backlog) {
        let more = left.min(backlog - *share);
        *share += more;
        left -= more;
    }
    shares
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
    use crate::connector::contract::fixture::{extent, partition};

    #[test]
    fn a_limit_is_shared_by_backlog_and_used_up() {
        assert_eq!(share_out(&[10, 20, 70], 1000), vec![10, 20, 70]);
        assert_eq!(share_out(&[10, 20, 70], 10), vec![1, 2, 7]);
        assert_eq!(share_out(&[1, 1, 1], 2), vec![1, 1, 0]);
        assert_eq!(share_out(&[7, 8, 8], 2), vec![0, 1, 1]);
        assert_eq!(share_out(&[u64::MAX, u64::MAX], 3).iter().sum::<u64>(), 3);
        assert_eq!(share_out(&[], 3), Vec::<u64>::new());
    }

    #[test]
    fn spans_follow_positions_limits_and_ends() {
        let position = Offsets::from([(partition(0), 5), (partition(1), 7)]);
        let spans = |until: Option<&Offsets>, rows| {
            let unread = unread(&extent(&[(0, 9), (0, 7), (3, 4)]), &position, until);
            format!("{:?}", next_spans(unread, &limits(rows, u64::MAX)).spans)
        };
        assert_eq!(spans(None, 100), "[t:0 5..9, t:2 3..4]");
        assert_eq!(spans(None, 3), "[t:0 5..7, t:2 3..4]");
        assert_eq!(spans(Some(&Offsets::from([(partition(0), 6)])), 100), "[t:0 5..6]");
    }

    fn limits(rows: u64, rows_per_partition: u64) -> Limits {
        Limits { rows, by: LimitedBy::Bytes, rows_per_partition, enough: 5 }
    }

    #[test]
    fn a_partition_has_a_limit_of_its_own() {
        let share = |rows, rows_per_partition| {
            let unread = vec![Span::new(partition(0), 0, 3), Span::new(partition(1), 10, 90)];
            let Share { spans, limited_by, is_enough } = next_spans(unread, &limits(rows, rows_per_partition));
            format!("{spans:?} {limited_by:?} {is_enough}")
        };
        assert_eq!(share(100, 80), "[t:0 0..3, t:1 10..90] None true");
        assert_eq!(share(100, 4), "[t:0 0..3, t:1 10..14] Some(Rate) true");
        assert_eq!(share(100, 2), "[t:0 0..2, t:1 10..12] Some(Rate) false");
        assert_eq!(share(100, 0), "[] Some(Rate) false");
        assert_eq!(share(4, 5), "[t:0 0..2, t:1 10..12] Some(Bytes) true");
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
}
