//! What the options of a datagen table say, checked against the types of its columns.
//!
//! An option that makes no sense for a column's type and kind is refused as unknown.

use std::fmt::Display;

use arrow::datatypes::{DataType, TimeUnit};
use datafusion::common::ScalarValue;

use super::values::{Column, Values};
use crate::catalog::{self, TableDefinition};
use crate::connector::{OptionEntry, ScanOptions};
use crate::error::{Error, Result};
use crate::sql::options::{OptionReader, parse_duration};

const DAY_NS: i128 = 86_400_000_000_000;
/// 2026-01-01, in days since 1970.
const FIRST_DAY: i128 = 20_454;
/// 2026-12-31.
const LAST_DAY: i128 = 20_818;

/// The longest text and byte string.
const MAX_LENGTH: usize = 1 << 20;

/// What the options say that are about rows; for `*` there is the name of a column.
const OPTIONS: &[OptionEntry] = &[
    OptionEntry::reading("rows-per-second", "a number above 0", "10000", "how fast rows fall due"),
    OptionEntry::reading("number-of-rows", "a number", "", "the stream ends after so many"),
    OptionEntry::reading("seed", "a whole number from 0", "1", "other seeds, other rows"),
    OptionEntry::reading("fields.*.kind", "`random`, `sequence`", "`random`", "how the values of a column are made"),
    OptionEntry::reading(
        "fields.*.min",
        "a value of the type",
        "the type's own; of dates and timestamps the year 2026",
        "the least random value",
    ),
    OptionEntry::reading("fields.*.max", "a value of the type", "as for `min`", "the greatest"),
    OptionEntry::reading(
        "fields.*.max-past",
        "a duration",
        "",
        "of dates and timestamps, in the place of `min`: so long before `max` at most",
    ),
    OptionEntry::reading("fields.*.start", "a value of the type", "0, or 2026-01-01", "where a sequence begins"),
    OptionEntry::reading(
        "fields.*.step",
        "a number above 0; of dates and timestamps a duration",
        "1; one second; one day",
        "by how much it rises",
    ),
    OptionEntry::reading(
        "fields.*.end",
        "a value of the type",
        "the type's own",
        "its last value: the stream ends with the shortest sequence",
    ),
    OptionEntry::reading(
        "fields.*.length",
        "a number up to 1048576",
        "100",
        "letters of a random text, bytes of a byte string",
    ),
    OptionEntry::reading("fields.*.values", "texts, `a,b,c`", "", "those that a random text is chosen from"),
    OptionEntry::reading(
        "fields.*.null-rate",
        "a number between 0 and 1",
        "0",
        "how many values are NULL; not with NOT NULL",
    ),
];

/// What all options say.
pub(super) fn described() -> Vec<OptionEntry> {
    [OPTIONS, ScanOptions::OPTIONS].concat()
}

/// All options of a table.
#[derive(Debug)]
pub(super) struct Options {
    pub(super) rows_per_second: u64,
    /// How many rows there will be; none for a stream that never ends.
    pub(super) rows: Option<u64>,
    pub(super) seed: u64,
    /// For each stored column, how it is made.
    pub(super) columns: Vec<Column>,
}

impl Options {
    /// Those of `table`.
    pub(super) fn of(table: &TableDefinition) -> Result<Self> {
        let mut reader = OptionReader::new(table);
        let rows_per_second =
            reader.with("rows-per-second", "a number above 0", |text| text.parse().ok().filter(|rate| *rate > 0))?;
        let mut rows = reader.parsed::<u64>("number-of-rows", "a number of rows")?;
        let seed = reader.parsed("seed", "a whole number from 0")?.unwrap_or(1);
        ScanOptions::take_strict(&mut reader)?;
        let mut columns = Vec::new();
        for column in table.stored_columns() {
            let (made, length) = ColumnOptions { reader: &mut reader, column }.read(seed)?;
            rows = rows.into_iter().chain(length).min();
            columns.push(made);
        }
        reader.finish()?;
        Ok(Self { rows_per_second: rows_per_second.unwrap_or(10_000), rows, seed, columns })
    }
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    Random,
    Sequence,
}

/// The options `fields.<column>.*`.
struct ColumnOptions<'a, 'b> {
    reader: &'a mut OptionReader<'b>,
    column: &'a catalog::Column,
}

impl ColumnOptions<'_, '_> {
    /// How the column is made, and after how many rows it ends.
    fn read(mut self, seed: u64) -> Result<(Column, Option<u64>)> {
        let data_type = &self.column.data_type;
        if !is_possible(data_type) {
            return Err(self.wrong(format_args!("datagen makes no {}; leave it out", type_name(data_type))));
        }
        let (kind, null_rate) = (self.key("kind"), self.key("null-rate"));
        let kinds = [("random", Kind::Random), ("sequence", Kind::Sequence)];
        let kinds = if counts(data_type) { &kinds[..] } else { &kinds[..1] };
        let kind = self.reader.choice(&kind, kinds)?.unwrap_or(Kind::Random);
        let is_rate = |rate: &f64| (0.0..=1.0).contains(rate);
        let null_rate = self
            .reader
            .with(&null_rate, "a number between 0 and 1", |text| text.trim().parse().ok().filter(is_rate))?
            .unwrap_or(0.0);
        if null_rate > 0.0 && !self.column.nullable {
            return Err(self.wrong("it is NOT NULL; leave its null-rate out"));
        }
        let (values, length) = match kind {
            Kind::Random => (self.random()?, None),
            Kind::Sequence => {
                let (values, length) = self.sequence()?;
                (values, Some(length))
            }
        };
        Ok((Column::new(seed, &self.column.name, data_type.clone(), values, null_rate), length))
    }

    fn random(&mut self) -> Result<Values> {
        match &self.column.data_type {
            DataType::Boolean => Ok(Values::Booleans),
            data_type if is_text(data_type) => {
                let key = self.key("values");
                let words = self.reader.text(&key)?;
                match words {
                    Some(words) => Ok(Values::Words(words.split(',').map(|word| word.trim().to_string()).collect())),
                    None => Ok(Values::Letters(self.length()?)),
                }
            }
            DataType::Binary | DataType::LargeBinary | DataType::BinaryView => Ok(Values::Bytes(self.length()?)),
            DataType::Float32 => self.floats(f64::from(f32::MIN), f64::from(f32::MAX)),
            DataType::Float64 => self.floats(f64::MIN, f64::MAX),
            data_type => {
                let data_type = data_type.clone();
                let limits = limits(&data_type);
                let (least, greatest) = match unit_ns(&data_type) {
                    Some(unit) => (FIRST_DAY * DAY_NS / unit, LAST_DAY * DAY_NS / unit),
                    None => limits,
                };
                let max = self.units("max", &data_type)?.unwrap_or(greatest);
                let min = match (self.units("min", &data_type)?, self.past(&data_type)?) {
                    (Some(_), Some(_)) => return Err(self.wrong("min and max-past exclude each other; leave one out")),
                    (Some(min), None) => min,
                    (None, Some(past)) => (max - past).max(limits.0),
                    (None, None) => least,
                };
                self.ordered("min", &min, "max", &max)?;
                Ok(Values::Within { min, max })
            }
        }
    }

    fn floats(&mut self, least: f64, greatest: f64) -> Result<Values> {
        let is_float = |value: &f64| (least..=greatest).contains(value);
        let mut bound = |name| {
            let key = self.key(name);
            self.reader.with(&key, "a number of this type", |text| text.trim().parse().ok().filter(is_float))
        };
        let (min, max) = (bound("min")?.unwrap_or(least), bound("max")?.unwrap_or(greatest));
        self.ordered("min", &min, "max", &max)?;
        Ok(Values::Floats { min, max })
    }

    /// The sequence and its length. Sequences of floats and texts count in whole numbers.
    fn sequence(&mut self) -> Result<(Values, u64)> {
        let data_type = match &self.column.data_type {
            other if is_text(other) => DataType::Int64,
            DataType::Float32 | DataType::Float64 => DataType::Int64,
            other => other.clone(),
        };
        let base = unit_ns(&data_type).map_or(0, |unit| FIRST_DAY * DAY_NS / unit);
        let start = self.units("start", &data_type)?.unwrap_or(base);
        let end = self.units("end", &data_type)?.unwrap_or(limits(&data_type).1);
        let step = self.step(&data_type)?;
        self.ordered("start", &start, "end", &end)?;
        let rows = (end.wrapping_sub(start) as u128) / (step as u128) + 1;
        Ok((Values::Rising { start, step }, u64::try_from(rows).unwrap_or(u64::MAX)))
    }

    fn step(&mut self, data_type: &DataType) -> Result<i128> {
        let Some(unit) = unit_ns(data_type) else {
            let step = self.units("step", data_type)?.unwrap_or_else(|| one(data_type));
            return if step > 0 { Ok(step) } else { Err(self.wrong("its step must be above 0")) };
        };
        let key = self.key("step");
        let expected = format!("a duration such as '1 d' or '100 ms', of whole units of {}", type_name(data_type));
        let step = self.reader.with(&key, &expected, |text| whole(text, unit).filter(|step| *step > 0))?;
        Ok(step.unwrap_or((1_000_000_000 / unit).max(1)))
    }

    fn past(&mut self, data_type: &DataType) -> Result<Option<i128>> {
        let Some(unit) = unit_ns(data_type) else { return Ok(None) };
        let key = self.key("max-past");
        let expected = format!("a duration such as '10 d' or '500 ms', of whole units of {}", type_name(data_type));
        self.reader.with(&key, &expected, |text| whole(text, unit))
    }

    fn length(&mut self) -> Result<usize> {
        let key = self.key("length");
        let length = self.reader.with(&key, "a length up to 1048576", |text| {
            text.trim().parse().ok().filter(|length| *length <= MAX_LENGTH)
        })?;
        Ok(length.unwrap_or(100))
    }

    /// A value of the column's type, in its units.
    fn units(&mut self, name: &str, data_type: &DataType) -> Result<Option<i128>> {
        let key = self.key(name);
        self.reader.with(&key, &format!("a value of {}", type_name(data_type)), |text| units(text, data_type))
    }

    fn ordered<T: PartialOrd + Display>(&self, low: &str, least: &T, high: &str, greatest: &T) -> Result<()> {
        if least <= greatest { Ok(()) } else { Err(self.wrong(format_args!("its {low} is above its {high}"))) }
    }

    fn key(&self, name: &str) -> String {
        format!("fields.{}.{name}", self.column.name)
    }

    fn wrong(&self, what: impl Display) -> Error {
        self.reader.blame(Error::usage(format!("column {}: {what}", self.column.name)))
    }
}

fn is_text(data_type: &DataType) -> bool {
    matches!(data_type, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View)
}

/// Whether a sequence can be made of it.
fn counts(data_type: &DataType) -> bool {
    use DataType as D;
    is_possible(data_type) && !matches!(data_type, D::Boolean | D::Binary | D::LargeBinary | D::BinaryView)
}

fn is_possible(data_type: &DataType) -> bool {
    use DataType as D;
    data_type.is_integer()
        || is_text(data_type)
        || matches!(data_type, D::Boolean | D::Binary | D::LargeBinary | D::BinaryView)
        || matches!(data_type, D::Float32 | D::Float64 | D::Decimal128(..) | D::Date32 | D::Timestamp(..))
}

fn type_name(data_type: &DataType) -> String {
    match data_type {
        DataType::List(_) | DataType::LargeList(_) | DataType::ListView(_) => "ARRAY".into(),
        DataType::Map(..) => "MAP".into(),
        DataType::Struct(_) => "ROW".into(),
        DataType::Date32 => "DATE".into(),
        DataType::Timestamp(unit, zone) => {
            let digits = match unit {
                TimeUnit::Second => 0,
                TimeUnit::Millisecond => 3,
                TimeUnit::Microsecond => 6,
                TimeUnit::Nanosecond => 9,
            };
            format!("TIMESTAMP{}({digits})", if zone.is_some() { "_LTZ" } else { "" })
        }
        other => other.to_string(),
    }
}

/// The least and the greatest value, in units.
fn limits(data_type: &DataType) -> (i128, i128) {
    match data_type {
        DataType::Int8 => (i8::MIN.into(), i8::MAX.into()),
        DataType::Int16 => (i16::MIN.into(), i16::MAX.into()),
        DataType::Int32 | DataType::Date32 => (i32::MIN.into(), i32::MAX.into()),
        DataType::UInt8 => (0, u8::MAX.into()),
        DataType::UInt16 => (0, u16::MAX.into()),
        DataType::UInt32 => (0, u32::MAX.into()),
        DataType::UInt64 => (0, u64::MAX.into()),
        DataType::Decimal128(precision, _) => {
            let beyond = 10i128.pow(u32::from(*precision));
            (1 - beyond, beyond - 1)
        }
        _ => (i64::MIN.into(), i64::MAX.into()),
    }
}

/// The number 1, in units.
fn one(data_type: &DataType) -> i128 {
    match data_type {
        DataType::Decimal128(_, scale) => 10i128.pow(u32::try_from(*scale).unwrap_or(0)),
        _ => 1,
    }
}

/// How many nanoseconds a unit of a date or timestamp lasts.
fn unit_ns(data_type: &DataType) -> Option<i128> {
    match data_type {
        DataType::Date32 => Some(DAY_NS),
        DataType::Timestamp(TimeUnit::Second, _) => Some(1_000_000_000),
        DataType::Timestamp(TimeUnit::Millisecond, _) => Some(1_000_000),
        DataType::Timestamp(TimeUnit::Microsecond, _) => Some(1_000),
        DataType::Timestamp(TimeUnit::Nanosecond, _) => Some(1),
        _ => None,
    }
}

/// A duration as whole units.
fn whole(text: &str, unit_ns: i128) -> Option<i128> {
    let length_ns = i128::try_from(parse_duration(text)?.as_nanos()).ok()?;
    (length_ns % unit_ns == 0).then_some(length_ns / unit_ns)
}

/// A literal of the type, in its units.
fn units(text: &str, data_type: &DataType) -> Option<i128> {
    let value = ScalarValue::Utf8(Some(text.trim().to_string())).cast_to(data_type).ok()?;
    match value {
        ScalarValue::Decimal128(units, ..) => units,
        ScalarValue::UInt64(units) => units.map(i128::from),
        other => match other.cast_to(&DataType::Int64).ok()? {
            ScalarValue::Int64(units) => units.map(i128::from),
            _ => None,
        },
    }
}
