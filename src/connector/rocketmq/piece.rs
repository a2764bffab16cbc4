//! Messages of a queue as columns, made as soon as they are there.
//!
//! The idea: of each message the library makes a dozen small allocations. They are given back at once, by the task that
//! got them: what lies ahead, or waits for decoding, is a few arrays. It also takes less memory that way.

use arrow::array::{Array, ArrayRef, BinaryArray, BinaryBuilder, StringArray, StringBuilder};
use rocketmq_model::common::message::message_ext::MessageExt;

use super::compression::plain;
use super::message::is_tombstone;
use super::metadata::Column;
use crate::connector::Fingerprint;
use crate::connector::messages::MessageBatch;
use crate::error::Result;
use crate::format::BadPayload;

/// What a message is known by.
pub(super) fn fingerprint(message: &MessageExt) -> Fingerprint {
    known_by(message.queue_offset as u64, message.store_timestamp, message.msg_id())
}

fn known_by(offset: u64, stored: i64, id: &str) -> Fingerprint {
    Fingerprint { offset, timestamp: Some(stored), id: Some(id.to_owned()) }
}

/// Messages on their way into columns.
#[derive(Debug, Default)]
pub(super) struct Gathered {
    payloads: BinaryBuilder,
    broken: Vec<BadPayload>,
    offsets: Vec<u64>,
    stored: Vec<i64>,
    ids: StringBuilder,
    metadata: Vec<Column>,
    /// A body that had to be decompressed.
    body: Vec<u8>,
}

impl Gathered {
    /// With these metadata columns.
    pub(super) fn new(metadata: Vec<Column>) -> Self {
        Self { metadata, ..Self::default() }
    }

    /// Takes a message, which comes behind those that were taken.
    pub(super) fn append(&mut self, message: &MessageExt) -> Result<()> {
        match message.body() {
            None => self.payloads.append_null(),
            Some(body) if is_tombstone(&body, &message.message) => self.payloads.append_null(),
            Some(body) => match plain(message.sys_flag, &body, &mut self.body) {
                Ok(body) => self.payloads.append_value(body),
                Err(reason) => {
                    self.broken.push(BadPayload { index: self.offsets.len(), reason });
                    self.payloads.append_value(&body);
                }
            },
        }
        for column in &mut self.metadata {
            column.append(message)?;
        }
        self.offsets.push(message.queue_offset as u64);
        self.stored.push(message.store_timestamp);
        self.ids.append_value(message.msg_id());
        Ok(())
    }

    /// What was taken.
    pub(super) fn finish(mut self) -> Piece {
        let metadata = self.metadata.iter_mut().map(|column| column.finish(&self.offsets)).collect();
        let (payloads, ids) = (self.payloads.finish(), self.ids.finish());
        Piece { payloads, broken: self.broken, offsets: self.offsets, stored: self.stored, ids, metadata }
    }
}

/// Consecutive messages of a queue, as columns of equal length.
#[derive(Debug)]
pub(super) struct Piece {
    payloads: BinaryArray,
    broken: Vec<BadPayload>,
    offsets: Vec<u64>,
    stored: Vec<i64>,
    ids: StringArray,
    metadata: Vec<ArrayRef>,
}

impl Piece {
    /// Takes out what lies at `offset` and behind.
    pub(super) fn split_off(&mut self, offset: u64) -> Piece {
        let at = self.offsets.partition_point(|before| *before < offset);
        let rest = self.offsets.len() - at;
        let mut broken = self.broken.split_off(self.broken.partition_point(|bad| bad.index < at));
        broken.iter_mut().for_each(|bad| bad.index -= at);
        let behind = Piece {
            payloads: self.payloads.slice(at, rest),
            broken,
            offsets: self.offsets.split_off(at),
            stored: self.stored.split_off(at),
            ids: self.ids.slice(at, rest),
            metadata: self.metadata.iter().map(|column| column.slice(at, rest)).collect(),
        };
        self.payloads = self.payloads.slice(0, at);
        self.ids = self.ids.slice(0, at);
        self.metadata.iter_mut().for_each(|column| *column = column.slice(0, at));
        behind
    }

    /// As it is decoded; none, if there are no messages.
    pub(super) fn into_batch(self) -> Option<MessageBatch> {
        let last = self.offsets.len().checked_sub(1)?;
        let last = known_by(self.offsets[last], self.stored[last], self.ids.value(last));
        let Piece { payloads, broken, offsets, metadata, .. } = self;
        Some(MessageBatch { payloads, broken, offsets, metadata, last })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(bodies: &[&'static [u8]], sys_flag: i32) -> Piece {
        let mut gathered = Gathered::default();
        for (offset, body) in (10..).zip(bodies) {
            let mut message = MessageExt::default();
            message.set_queue_offset(offset);
            message.set_store_timestamp(offset * 100);
            message.set_sys_flag(sys_flag);
            message.message.set_body(Some(bytes::Bytes::from_static(body)));
            gathered.append(&message).unwrap();
        }
        gathered.finish()
    }

    #[test]
    fn a_body_that_cannot_be_decompressed_is_handed_on_as_it_came() {
        let batch = piece(&[b"garbage"], 1).into_batch().unwrap();
        assert_eq!((batch.payloads.value(0), batch.broken.len(), batch.broken[0].index), (&b"garbage"[..], 1, 0));
    }

    #[test]
    fn each_part_of_a_piece_has_its_own() {
        let mut front = piece(&[b"a", b"b", b"c"], 1);
        let mut behind = front.split_off(12);
        assert!(behind.split_off(13).into_batch().is_none());
        let (front, behind) = (front.into_batch().unwrap(), behind.into_batch().unwrap());
        assert_eq!((front.offsets, front.broken.len(), front.last.timestamp), (vec![10, 11], 2, Some(1100)));
        assert_eq!((behind.offsets, behind.broken[0].index, behind.last.timestamp), (vec![12], 0, Some(1200)));
        assert_eq!((front.payloads.len(), behind.payloads.value(0)), (2, &b"c"[..]));
        assert!(piece(&[], 0).into_batch().is_none());
    }
}
