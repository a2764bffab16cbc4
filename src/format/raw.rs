//! Raw: a payload is one value, and the table has one column.
//!
//! STRING is its text in UTF-8, BYTES are the bytes themselves, a number is as many bytes as its type has. Nothing is
//! around it, so an empty payload is the empty text, and NULL is a message without payload, in both directions.
//!
//! Not promised: other character sets, and types that have no one form in bytes.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BinaryArray, BooleanArray, PrimitiveArray, RecordBatch};
use arrow::compute::{cast, filter_record_batch};
use arrow::datatypes::{
    ArrowPrimitiveType, DataType, FieldRef, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type,
    Schema, SchemaRef,
};

use super::{BadPayload, Decoded, Decoder, Encoder, Wanted, joined, nullable};
use crate::connector::OptionEntry;
use crate::error::{Error, Result};
use crate::sql::options::OptionReader;
use crate::sql::types::sql_type;

/// The options `raw.*`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RawOptions {
    order: Order,
}

/// Where the bytes of a number begin.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Order {
    #[default]
    BigEndian,
    LittleEndian,
}

impl Order {
    /// The bytes from the biggest to the smallest, or back.
    fn arrange<const N: usize>(self, mut bytes: [u8; N]) -> [u8; N] {
        if self == Self::LittleEndian {
            bytes.reverse();
        }
        bytes
    }
}

/// What its options say.
pub(super) const OPTIONS: &[OptionEntry] = &[
    OptionEntry::new("raw.endianness", "`big-endian`, `little-endian`", "`big-endian`", "how numbers are laid out"),
    OptionEntry::new("raw.charset", "`UTF-8`", "`UTF-8`", "what texts are"),
];

impl RawOptions {
    /// Takes, behind this name, `endianness` (big-endian, little-endian) and `charset` (UTF-8).
    pub fn take(name: &str, options: &mut OptionReader<'_>) -> Result<Self> {
        let utf8 = |text: &str| text.eq_ignore_ascii_case("UTF-8").then_some(());
        options.with(&format!("{name}.charset"), "UTF-8, which is the only one that is supported", utf8)?;
        let orders = [("big-endian", Order::BigEndian), ("little-endian", Order::LittleEndian)];
        Ok(Self { order: options.choice(&format!("{name}.endianness"), &orders)?.unwrap_or_default() })
    }
}

/// How many bytes a value has, if all have the same.
fn width(data_type: &DataType) -> Option<usize> {
    match data_type {
        DataType::Boolean | DataType::Int8 => Some(1),
        DataType::Int16 => Some(2),
        DataType::Int32 | DataType::Float32 => Some(4),
        DataType::Int64 | DataType::Float64 => Some(8),
        _ => None,
    }
}

/// The only column, of a type that can be a payload.
fn only(schema: &Schema) -> Result<FieldRef> {
    let [field] = &schema.fields()[..] else {
        return Err(Error::usage(format!(
            "a payload of format 'raw' is one value, and the table has {} columns beside its metadata; keep one, or \
             take another format",
            schema.fields().len()
        )));
    };
    match field.data_type() {
        DataType::Utf8View | DataType::Binary => Ok(Arc::clone(field)),
        fixed if width(fixed).is_some() => Ok(Arc::clone(field)),
        other => Err(Error::usage(format!(
            "column {}: raw has no bytes for {}; use STRING, BYTES, BOOLEAN, TINYINT, SMALLINT, INT, BIGINT, FLOAT or \
             DOUBLE",
            field.name(),
            sql_type(other)
        ))),
    }
}

/// Payloads to rows.
#[derive(Debug)]
pub struct RawDecoder {
    field: FieldRef,
    schema: SchemaRef,
    projection: Vec<usize>,
    order: Order,
}

impl RawDecoder {
    /// A decoder of the only column, which is looked at also where it is not asked for.
    pub fn try_new(wanted: &Wanted, options: &RawOptions) -> Result<Self> {
        Ok(Self {
            field: only(&wanted.all)?,
            schema: nullable(&wanted.all),
            projection: wanted.projection.clone(),
            order: options.order,
        })
    }

    fn reason(&self, payload: &[u8]) -> String {
        match width(self.field.data_type()) {
            Some(width) => {
                let name = sql_type(self.field.data_type());
                format!("it has {} bytes, and {name} has {width}", payload.len())
            }
            None => "it is not UTF-8".into(),
        }
    }
}

impl Decoder for RawDecoder {
    fn decode(&mut self, payloads: &BinaryArray) -> Result<Decoded> {
        let column = read(payloads, self.field.data_type(), self.order)?;
        let mut bad = vec![];
        if column.null_count() > payloads.null_count() {
            let is_bad = |index: &usize| payloads.is_valid(*index) && column.is_null(*index);
            bad.extend(
                (0..payloads.len())
                    .filter(is_bad)
                    .map(|index| BadPayload { index, reason: self.reason(payloads.value(index)) }),
            );
        }
        let mut rows = RecordBatch::try_new(Arc::clone(&self.schema), vec![column])?;
        if !bad.is_empty() {
            let mut is_good = vec![true; payloads.len()];
            bad.iter().for_each(|bad| is_good[bad.index] = false);
            rows = filter_record_batch(&rows, &BooleanArray::from(is_good))?;
        }
        Ok(Decoded { rows: rows.project(&self.projection)?, origins: None, kinds: None, bad })
    }
}

/// The values; NULL also for those that are not of this type.
fn read(payloads: &BinaryArray, data_type: &DataType, order: Order) -> Result<ArrayRef> {
    let column: ArrayRef = match data_type {
        DataType::Boolean => {
            let flags = payloads.iter().map(|payload| match payload {
                Some([flag]) => Some(*flag != 0),
                _ => None,
            });
            Arc::new(flags.collect::<BooleanArray>())
        }
        DataType::Int8 => numbers::<Int8Type, 1>(payloads, order, i8::from_be_bytes),
        DataType::Int16 => numbers::<Int16Type, 2>(payloads, order, i16::from_be_bytes),
        DataType::Int32 => numbers::<Int32Type, 4>(payloads, order, i32::from_be_bytes),
        DataType::Int64 => numbers::<Int64Type, 8>(payloads, order, i64::from_be_bytes),
        DataType::Float32 => numbers::<Float32Type, 4>(payloads, order, f32::from_be_bytes),
        DataType::Float64 => numbers::<Float64Type, 8>(payloads, order, f64::from_be_bytes),
        bytes_or_text => cast(payloads, bytes_or_text)?,
    };
    Ok(column)
}

fn numbers<T: ArrowPrimitiveType, const N: usize>(
    payloads: &BinaryArray,
    order: Order,
    number: fn([u8; N]) -> T::Native,
) -> ArrayRef {
    let values = payloads.iter().map(|payload| {
        let bytes: [u8; N] = payload?.try_into().ok()?;
        Some(number(order.arrange(bytes)))
    });
    Arc::new(values.collect::<PrimitiveArray<T>>())
}

/// Rows to payloads.
#[derive(Debug)]
pub struct RawEncoder {
    field: FieldRef,
    order: Order,
}

impl RawEncoder {
    /// An encoder of rows of one column.
    pub fn try_new(schema: SchemaRef, options: &RawOptions) -> Result<Self> {
        Ok(Self { field: only(&schema)?, order: options.order })
    }
}

impl Encoder for RawEncoder {
    fn encode(&mut self, rows: &RecordBatch) -> Result<BinaryArray> {
        let column = cast(rows.column(0), self.field.data_type())?;
        Ok(match self.field.data_type() {
            DataType::Boolean => column.as_boolean().iter().map(|flag| flag.map(|flag| [u8::from(flag)])).collect(),
            DataType::Int8 => bytes::<Int8Type, 1>(&column, self.order, i8::to_be_bytes),
            DataType::Int16 => bytes::<Int16Type, 2>(&column, self.order, i16::to_be_bytes),
            DataType::Int32 => bytes::<Int32Type, 4>(&column, self.order, i32::to_be_bytes),
            DataType::Int64 => bytes::<Int64Type, 8>(&column, self.order, i64::to_be_bytes),
            DataType::Float32 => bytes::<Float32Type, 4>(&column, self.order, f32::to_be_bytes),
            DataType::Float64 => bytes::<Float64Type, 8>(&column, self.order, f64::to_be_bytes),
            DataType::Binary => column.as_binary::<i32>().clone(),
            _ => texts(&column)?,
        })
    }
}

fn bytes<T: ArrowPrimitiveType, const N: usize>(
    column: &ArrayRef,
    order: Order,
    bytes: fn(T::Native) -> [u8; N],
) -> BinaryArray {
    column.as_primitive::<T>().iter().map(|value| value.map(|value| order.arrange(bytes(value)))).collect()
}

fn texts(column: &ArrayRef) -> Result<BinaryArray> {
    let texts = column.as_string_view();
    let (mut values, mut lengths) = (vec![], Vec::with_capacity(texts.len()));
    for text in texts {
        let text = text.unwrap_or_default();
        values.extend_from_slice(text.as_bytes());
        lengths.push(text.len());
    }
    joined(values, lengths, texts.nulls().cloned(), "raw")
}

#[cfg(test)]
mod tests {
    use arrow::array::{Float64Array, Int32Array, Int64Array, StringViewArray};
    use arrow::datatypes::Field;

    use super::*;
    use crate::connector::contract::fixture;

    const BIG: RawOptions = RawOptions { order: Order::BigEndian };
    const LITTLE: RawOptions = RawOptions { order: Order::LittleEndian };

    fn schema(data_type: DataType) -> SchemaRef {
        Arc::new(Schema::new(vec![Field::new("value", data_type, true)]))
    }

    fn decode(data_type: DataType, options: &RawOptions, payloads: &[Option<&[u8]>]) -> Decoded {
        let mut decoder = RawDecoder::try_new(&Wanted::all(schema(data_type)), options).unwrap();
        decoder.decode(&payloads.iter().copied().collect()).unwrap()
    }

    /// The column written, compared with these payloads, and read again.
    fn check(column: ArrayRef, options: &RawOptions, payloads: &[Option<&[u8]>]) {
        let schema = schema(column.data_type().clone());
        let rows = RecordBatch::try_new(Arc::clone(&schema), vec![Arc::clone(&column)]).unwrap();
        let written = RawEncoder::try_new(schema, options).unwrap().encode(&rows).unwrap();
        assert_eq!(written.iter().collect::<Vec<_>>(), payloads);
        let decoded = decode(column.data_type().clone(), options, payloads);
        assert_eq!((decoded.rows, decoded.bad), (rows, vec![]));
    }

    #[test]
    fn a_payload_is_the_value_and_null_has_none() {
        let texts = StringViewArray::from(vec![Some("ü"), None, Some(""), Some("more than twelve bytes")]);
        let payloads: [Option<&[u8]>; 4] = [Some("ü".as_bytes()), None, Some(b""), Some(b"more than twelve bytes")];
        check(Arc::new(texts), &BIG, &payloads);
        check(Arc::new(BinaryArray::from(vec![Some(&b"\xff"[..]), None])), &BIG, &[Some(b"\xff"), None]);
        check(Arc::new(BooleanArray::from(vec![Some(true), Some(false), None])), &BIG, &[Some(&[1]), Some(&[0]), None]);
    }

    #[test]
    fn numbers_begin_with_the_biggest_byte_unless_told_otherwise() {
        let number = || Arc::new(Int32Array::from(vec![Some(258), None])) as ArrayRef;
        check(number(), &BIG, &[Some(&[0, 0, 1, 2]), None]);
        check(number(), &LITTLE, &[Some(&[2, 1, 0, 0]), None]);
        check(Arc::new(Int64Array::from(vec![-1])), &BIG, &[Some(&[255; 8])]);
        check(Arc::new(Float64Array::from(vec![1.5])), &LITTLE, &[Some(&1.5f64.to_le_bytes())]);
    }

    #[test]
    fn one_bad_payload_never_costs_its_neighbours() {
        let decoded = decode(DataType::Int64, &BIG, &[Some(&[0; 8]), Some(b"12"), None, Some(&[0; 9])]);
        assert_eq!((decoded.rows.num_rows(), decoded.rows.column(0).null_count()), (2, 1));
        let reasons: Vec<_> = decoded.bad.iter().map(|bad| (bad.index, bad.reason.as_str())).collect();
        assert_eq!(reasons, [(1, "it has 2 bytes, and BIGINT has 8"), (3, "it has 9 bytes, and BIGINT has 8")]);
        let decoded = decode(DataType::Utf8View, &BIG, &[Some(b"a"), Some(b"\xff"), Some(b"b")]);
        assert_eq!(decoded.rows.column(0).as_string_view(), &StringViewArray::from(vec!["a", "b"]));
        assert_eq!(decoded.bad, [BadPayload { index: 1, reason: "it is not UTF-8".into() }]);
    }

    #[test]
    fn without_columns_the_rows_are_still_counted_and_checked() {
        let wanted = Wanted { all: schema(DataType::Utf8View), projection: vec![] };
        let payloads = BinaryArray::from(vec![Some(&b"a"[..]), Some(&b"\xff"[..]), None]);
        let decoded = RawDecoder::try_new(&wanted, &BIG).unwrap().decode(&payloads).unwrap();
        assert_eq!((decoded.rows.num_columns(), decoded.rows.num_rows(), decoded.bad.len()), (0, 2, 1));
    }

    #[test]
    fn one_column_of_a_known_type_is_needed() {
        let refused = |schema: Schema| RawEncoder::try_new(Arc::new(schema), &BIG).unwrap_err().to_string();
        let error = refused(Schema::new(["a", "b"].map(|name| Field::new(name, DataType::Int64, true)).to_vec()));
        assert!(error.starts_with("a payload of format 'raw' is one value, and the table has 2 columns"), "{error}");
        let error = refused(Schema::new(vec![Field::new("day", DataType::Date32, true)]));
        assert!(error.starts_with("column day: raw has no bytes for DATE; use STRING"), "{error}");
    }

    #[test]
    fn other_character_sets_are_refused() {
        let take = |charset| {
            let table = fixture::with_options(&[("raw.charset", charset)]);
            RawOptions::take("raw", &mut OptionReader::new(&table))
        };
        assert_eq!(take("utf-8").unwrap(), BIG);
        let error = take("UTF-16").unwrap_err().to_string();
        assert!(error.starts_with("table t: option 'raw.charset': 'UTF-16' is not UTF-8"), "{error}");
    }
}
