//! `typeof(x)`: the names of types as Flink's SQL writes them, for messages too.

use std::fmt::Write;

use arrow::datatypes::{DataType, IntervalUnit, TimeUnit};

use super::function::{Function, Param};

/// `typeof`.
pub(super) fn functions() -> Vec<Function> {
    vec![Function::new("typeof", &[Param::Any], DataType::Utf8, |call| {
        let name = type_name(call.array(0).data_type());
        call.strings(|_, out| {
            out.push_str(&name);
            Ok(Some(()))
        })
    })]
}

/// The type's name in SQL; a type that SQL has no name for keeps Arrow's.
pub(super) fn type_name(data_type: &DataType) -> String {
    let mut name = String::new();
    write_name(data_type, &mut name);
    name
}

fn write_name(data_type: &DataType, out: &mut String) {
    use DataType as T;
    let plain = match data_type {
        T::Null => "NULL",
        T::Boolean => "BOOLEAN",
        T::Int8 => "TINYINT",
        T::Int16 => "SMALLINT",
        T::Int32 => "INT",
        T::Int64 => "BIGINT",
        T::Float32 => "FLOAT",
        T::Float64 => "DOUBLE",
        T::Utf8 | T::LargeUtf8 | T::Utf8View => "STRING",
        T::Binary | T::LargeBinary | T::BinaryView => "BYTES",
        T::Date32 | T::Date64 => "DATE",
        T::Interval(IntervalUnit::YearMonth) => "INTERVAL YEAR TO MONTH",
        T::Interval(_) | T::Duration(_) => "INTERVAL DAY TO SECOND",
        _ => return write_nested(data_type, out),
    };
    out.push_str(plain);
}

fn write_nested(data_type: &DataType, out: &mut String) {
    use DataType as T;
    // Writing to a String cannot fail.
    let _ = match data_type {
        T::Decimal32(p, s) | T::Decimal64(p, s) | T::Decimal128(p, s) | T::Decimal256(p, s) => {
            write!(out, "DECIMAL({p}, {s})")
        }
        T::FixedSizeBinary(size) => write!(out, "BINARY({size})"),
        T::Time32(unit) | T::Time64(unit) => write!(out, "TIME({})", digits(*unit)),
        T::Timestamp(unit, None) => write!(out, "TIMESTAMP({})", digits(*unit)),
        T::Timestamp(unit, Some(_)) => write!(out, "TIMESTAMP_LTZ({})", digits(*unit)),
        T::Dictionary(_, values) => {
            write_name(values, out);
            Ok(())
        }
        T::List(item) | T::LargeList(item) | T::ListView(item) | T::LargeListView(item) | T::FixedSizeList(item, _) => {
            out.push_str("ARRAY<");
            write_name(item.data_type(), out);
            out.write_char('>')
        }
        T::Map(entries, _) => match entries.data_type() {
            T::Struct(fields) if fields.len() == 2 => {
                out.push_str("MAP<");
                write_name(fields[0].data_type(), out);
                out.push_str(", ");
                write_name(fields[1].data_type(), out);
                out.write_char('>')
            }
            other => write!(out, "MAP<{other}>"),
        },
        T::Struct(fields) => {
            out.push_str("ROW<");
            for (index, field) in fields.iter().enumerate() {
                let comma = if index == 0 { "" } else { ", " };
                let _ = write!(out, "{comma}`{}` ", field.name());
                write_name(field.data_type(), out);
            }
            out.write_char('>')
        }
        other => write!(out, "{other}"),
    };
}

fn digits(unit: TimeUnit) -> u8 {
    match unit {
        TimeUnit::Second => 0,
        TimeUnit::Millisecond => 3,
        TimeUnit::Microsecond => 6,
        TimeUnit::Nanosecond => 9,
    }
}
