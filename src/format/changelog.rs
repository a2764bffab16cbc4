//! Changelogs: what the formats share whose payloads say what happened to rows.
//!
//! The idea: a payload is an *envelope*, a JSON object around rows. All envelopes of a chunk are decoded at once, into
//! columns of rows, as json has them; then rows are picked out of these columns by their places. So what is done for a
//! message is to name places, whatever the rows hold.
//!
//! Guarantee: an envelope gives all its rows, or it is bad and gives none. Rows of one envelope stay together.
//!
//! Not promised: that the changes fit together. A row that is taken back without having been there is passed on.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BinaryArray, BooleanArray, Int8Array, RecordBatch, RecordBatchOptions, StructArray,
    UInt64Array,
};
use arrow::buffer::{BooleanBuffer, NullBuffer};
use arrow::compute::{concat_batches, take};
use arrow::datatypes::{DataType, Field, Fields, Schema, SchemaRef};

use super::json::{JsonEncoder, JsonOptions, Objects, settle, wire};
use super::{Decoded, Encoder, nullable};
use crate::error::Result;
use crate::plan::changes::RowKind;

/// The rows of some envelopes, in order.
#[derive(Debug)]
pub(super) struct Changes {
    rows: RecordBatch,
    kinds: Vec<i8>,
    /// For each row: the index of its envelope.
    origins: Vec<usize>,
}

/// Where the rows of some envelopes are: in which of two arrays, and at which place in it.
#[derive(Debug, Default)]
pub(super) struct Places {
    places: Vec<(usize, usize)>,
    kinds: Vec<i8>,
    origins: Vec<usize>,
}

impl Places {
    /// Adds a row of the envelope `origin`.
    pub(super) fn push(&mut self, origin: usize, kind: RowKind, place: (usize, usize)) {
        self.places.push(place);
        self.kinds.push(kind as i8);
        self.origins.push(origin);
    }

    /// How many rows there are.
    pub(super) fn len(&self) -> usize {
        self.places.len()
    }

    /// The rows. `column` makes the column of this index, of what is at these places.
    pub(super) fn rows(
        self,
        fields: &Fields,
        column: impl Fn(usize, &[(usize, usize)]) -> Result<ArrayRef>,
    ) -> Result<Changes> {
        let columns = (0..fields.len()).map(|index| column(index, &self.places)).collect::<Result<Vec<_>>>()?;
        let options = RecordBatchOptions::new().with_row_count(Some(self.places.len()));
        let rows = RecordBatch::try_new_with_options(Arc::new(Schema::new(fields.clone())), columns, &options)?;
        Ok(Changes { rows, kinds: self.kinds, origins: self.origins })
    }
}

/// Reads envelopes, and rows in them.
#[derive(Debug)]
pub(super) struct Envelopes {
    objects: Objects,
    schema: SchemaRef,
}

impl Envelopes {
    /// Reads rows of `schema`. `fields` are those of an envelope, with rows of the type that it is given.
    pub(super) fn try_new(schema: &SchemaRef, fields: impl FnOnce(DataType) -> Vec<Field>) -> Result<Self> {
        let row = DataType::Struct(wire(schema).fields().clone());
        Ok(Self { objects: Objects::try_new(Arc::new(Schema::new(fields(row))))?, schema: nullable(schema) })
    }

    /// Reads the payloads at `wanted`; the others have no rows, and are not bad. `open` gets some envelopes, with their
    /// payloads, and gives the rows in them, or says what is wrong with one of them.
    pub(super) fn decode(
        &mut self,
        payloads: &BinaryArray,
        wanted: &[usize],
        mut open: impl FnMut(&RecordBatch, &BinaryArray) -> Result<std::result::Result<Changes, String>>,
    ) -> Result<Decoded> {
        let mut bad = vec![];
        let schema = &self.schema;
        let parts = self.objects.read(&at(payloads, wanted)?, &mut bad, |envelopes, payloads| {
            match open(&envelopes, payloads)? {
                Ok(Changes { rows, kinds, origins }) => {
                    Ok(settle(schema, rows)?.map(|rows| Changes { rows, kinds, origins }))
                }
                Err(reason) => Ok(Err(reason)),
            }
        })?;
        let (mut kinds, mut origins) = (vec![], vec![]);
        for (first, changes) in &parts {
            kinds.extend_from_slice(&changes.kinds);
            origins.extend(changes.origins.iter().map(|origin| wanted[first + origin]));
        }
        let rows = concat_batches(schema, parts.iter().map(|(_, changes)| &changes.rows))?;
        bad.iter_mut().for_each(|bad| bad.index = wanted[bad.index]);
        Ok(Decoded { rows, origins: Some(origins), kinds: Some(Int8Array::from(kinds)), bad })
    }
}

/// The payloads that are there. Behind the message that a row is gone there may be one without payload (a *tombstone*),
/// for compacted topics; it says no more.
pub(super) fn present(payloads: &BinaryArray) -> Vec<usize> {
    (0..payloads.len()).filter(|index| payloads.is_valid(*index) && !payloads.value(*index).is_empty()).collect()
}

/// The payloads at these places.
pub(super) fn at(payloads: &BinaryArray, places: &[usize]) -> Result<BinaryArray> {
    if places.len() == payloads.len() {
        return Ok(payloads.clone());
    }
    let places = UInt64Array::from_iter_values(places.iter().map(|place| *place as u64));
    Ok(take(payloads, &places, None)?.as_binary::<i32>().clone())
}

/// Rows as one column, NULL where they are not valid.
pub(super) fn structs(rows: &RecordBatch, valid: Option<BooleanBuffer>) -> Result<StructArray> {
    let fields = nullable(&rows.schema()).fields().clone();
    let nulls = valid.map(NullBuffer::new);
    Ok(StructArray::try_new_with_length(fields, rows.columns().to_vec(), nulls, rows.num_rows())?)
}

/// Makes envelopes of rows, of which these are there afterwards; the others are gone.
pub(super) type Wrap = fn(&RecordBatch, &BooleanBuffer) -> Result<RecordBatch>;

/// Writes each row in an envelope of its own.
#[derive(Debug)]
pub(super) struct ChangelogEncoder {
    wrap: Wrap,
    envelopes: JsonEncoder,
}

impl ChangelogEncoder {
    /// An encoder of rows of `schema`.
    pub(super) fn try_new(schema: SchemaRef, options: &JsonOptions, wrap: Wrap) -> Result<Self> {
        let envelope = wrap(&RecordBatch::new_empty(schema), &BooleanBuffer::new_unset(0))?;
        Ok(Self { wrap, envelopes: JsonEncoder::try_new(envelope.schema(), options)? })
    }
}

impl Encoder for ChangelogEncoder {
    fn encode(&mut self, rows: &RecordBatch) -> Result<BinaryArray> {
        let envelopes = (self.wrap)(rows, &BooleanBuffer::new_set(rows.num_rows()))?;
        self.envelopes.encode(&envelopes)
    }

    fn encode_changes(&mut self, rows: &RecordBatch, kinds: &Int8Array) -> Result<BinaryArray> {
        let is_there = |kind| RowKind::of(kind).is_there();
        let envelopes = (self.wrap)(rows, BooleanArray::from_unary(kinds, is_there).values())?;
        self.envelopes.encode(&envelopes)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use arrow::util::pretty::pretty_format_batches;

    use super::*;
    use crate::format::Decoder;

    /// What a decoder makes of payloads: `payload symbol | columns` of each row, and `payload: reason` of each bad one.
    pub(in crate::format) fn decoded(
        decoder: &mut dyn Decoder,
        payloads: &[Option<&str>],
    ) -> (Vec<String>, Vec<String>) {
        let payloads: BinaryArray = payloads.iter().map(|payload| payload.map(str::as_bytes)).collect();
        let Decoded { rows, origins, kinds, bad } = decoder.decode(&payloads).unwrap();
        let (origins, kinds) = (origins.unwrap(), kinds.unwrap());
        assert_eq!((origins.len(), kinds.len()), (rows.num_rows(), rows.num_rows()));
        assert_eq!(kinds.null_count(), 0);
        let table = pretty_format_batches(&[rows]).unwrap().to_string();
        let lines = table.lines().skip(3).map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "));
        let kinds = kinds.values().iter().map(|kind| RowKind::of(*kind).symbol());
        let rows = origins.iter().zip(kinds).zip(lines).map(|((origin, kind), line)| format!("{origin} {kind} {line}"));
        (rows.collect(), bad.iter().map(|bad| format!("{}: {}", bad.index, bad.reason)).collect())
    }

    #[test]
    fn only_payloads_that_are_there_are_read() {
        let payloads = BinaryArray::from(vec![Some(&b"a"[..]), None, Some(&b""[..]), Some(&b"b"[..])]);
        assert_eq!(present(&payloads), [0, 3]);
        assert_eq!(at(&payloads, &[0, 3]).unwrap(), BinaryArray::from(vec![Some(&b"a"[..]), Some(&b"b"[..])]));
        assert_eq!(at(&payloads, &[0, 1, 2, 3]).unwrap(), payloads);
    }
}
