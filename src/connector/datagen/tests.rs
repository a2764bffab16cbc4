use std::collections::BTreeMap;

use arrow::array::{Array, AsArray};
use arrow::compute::concat_batches;
use arrow::datatypes::{DataType, Field, Float64Type, Int64Type, Schema, TimeUnit};
use futures::TryStreamExt;

use super::*;
use crate::clock::Clock;
use crate::connector::contract::fixture::{environment, table_of};
use crate::connector::contract::{self, SourceCase, lines};
use crate::connector::entry::assert_described;
use crate::error::Kind;
use crate::sql::options::{Words, asked_for};

/// A table with one column of this type, and these options.
fn one(data_type: DataType, options: &[(&str, &str)]) -> Arc<TableDefinition> {
    table_of("t", &Schema::new(vec![Field::new("x", data_type, true)]), options)
}

/// Whatever the type and the kind of a column; that of `*` has the names that are described.
#[test]
fn all_options_are_described() {
    let mut asked = Words::new();
    for data_type in all_types() {
        for kind in ["random", "sequence"] {
            let schema = Schema::new(vec![Field::new("*", data_type.clone(), true)]);
            let table = table_of("t", &schema, &[("fields.*.kind", kind)]);
            for (key, words) in asked_for(|| drop(DatagenConnector.check(&table, Role::Source))) {
                let known = asked.entry(key).or_default();
                if words.len() > known.len() {
                    *known = words;
                }
            }
        }
    }
    assert_described(&DatagenConnector.options(), &asked);
}

async fn open(table: &Arc<TableDefinition>) -> Arc<dyn Source> {
    DatagenConnector.source(Arc::clone(table), &environment(), None).await.unwrap()
}

async fn read(table: &Arc<TableDefinition>, from: u64, to: u64) -> RecordBatch {
    let source = open(table).await;
    let all: Vec<usize> = (0..table.columns.len()).collect();
    let span = Span::new(Partition::new("datagen", 0), from, to);
    let stream = source.read(&span, &all, &ReadReport::default()).unwrap();
    let batches: Vec<RecordBatch> = stream.try_collect().await.unwrap();
    concat_batches(&table.stored_schema(), &batches).unwrap()
}

async fn values(data_type: DataType, options: &[(&str, &str)], rows: u64) -> Vec<String> {
    lines(&read(&one(data_type, options), 0, rows).await)
}

fn refusal(data_type: DataType, options: &[(&str, &str)]) -> String {
    DatagenConnector.check(&one(data_type, options), Role::Source).unwrap_err().to_string()
}

fn all_types() -> Vec<DataType> {
    use DataType::*;
    let mut types = vec![Int8, Int16, Int32, Int64, UInt8, UInt16, UInt32, UInt64, Float32, Float64, Boolean];
    types.extend([Utf8View, Utf8, LargeUtf8, Binary, Date32, Decimal128(10, 2), Decimal128(38, 0)]);
    for unit in [TimeUnit::Second, TimeUnit::Millisecond, TimeUnit::Microsecond, TimeUnit::Nanosecond] {
        types.extend([Timestamp(unit, None), Timestamp(unit, Some("UTC".into()))]);
    }
    types
}

fn table_of_all_types(options: &[(&str, &str)]) -> Arc<TableDefinition> {
    let field = |(i, data_type)| Field::new(format!("c{i}"), data_type, true);
    table_of("t", &Schema::new(all_types().into_iter().enumerate().map(field).collect::<Vec<_>>()), options)
}

#[tokio::test]
async fn datagen_keeps_the_contract_of_a_source() {
    let options = [("rows-per-second", "1000000000"), ("number-of-rows", "70"), ("fields.c3.null-rate", "0.3")];
    let table = table_of_all_types(&options);
    let rows = BTreeMap::from([(Partition::new("datagen", 0), read(&table, 0, 70).await)]);
    let case = SourceCase { table: table.clone(), rows, bounded: false };
    contract::source(&case, async || open(&table).await).await;
}

/// Another hash would be another stream: a query that resumes would go on with rows of a world it has never seen.
#[tokio::test]
async fn the_rows_are_pinned() {
    let table = table_of(
        "t",
        &Schema::new(vec![
            Field::new("id", DataType::Int64, false),
            Field::new("item", DataType::Utf8View, false),
            Field::new("code", DataType::Utf8View, false),
            Field::new("price", DataType::Decimal128(10, 2), true),
            Field::new("ts", DataType::Timestamp(TimeUnit::Millisecond, None), false),
        ]),
        &[
            ("fields.id.kind", "sequence"),
            ("fields.item.values", "apple, banana, pear"),
            ("fields.code.length", "5"),
            ("fields.price.min", "0.50"),
            ("fields.price.max", "9.99"),
            ("fields.price.null-rate", "0.25"),
            ("fields.ts.kind", "sequence"),
            ("fields.ts.step", "100 ms"),
        ],
    );
    let expected = [
        "0, pear, svdua, 5.22, 2026-01-01T00:00:00",
        "1, banana, ckfjt, 0.63, 2026-01-01T00:00:00.100",
        "2, apple, utloe, 8.04, 2026-01-01T00:00:00.200",
        "3, banana, tnexz, null, 2026-01-01T00:00:00.300",
    ];
    assert_eq!(lines(&read(&table, 0, 4).await), expected);
}

#[tokio::test]
async fn every_type_is_made_within_its_bounds_and_spreads() {
    let table = table_of_all_types(&[]);
    let rows = read(&table, 0, 20_000).await;
    for (column, field) in rows.columns().iter().zip(rows.schema().fields()) {
        assert_eq!((column.len(), column.null_count()), (20_000, 0));
        let text = lines(&RecordBatch::try_from_iter([("x", Arc::clone(column))]).unwrap());
        let distinct = text.iter().collect::<std::collections::BTreeSet<_>>().len();
        let least = match field.data_type() {
            DataType::Boolean => 2,
            DataType::Int8 | DataType::UInt8 => 256,
            DataType::Date32 => 365,
            _ => 15_000,
        };
        assert!(distinct >= least, "{field}: {distinct} distinct values");
    }
    assert_eq!(rows.column(11).as_string_view().value(7).len(), 100);
}

#[tokio::test]
async fn ranges_are_inclusive_and_nulls_come_at_their_rate() {
    let options = [("fields.x.min", "-1"), ("fields.x.max", "2"), ("fields.x.null-rate", "0.2")];
    let rows = read(&one(DataType::Int64, &options), 0, 50_000).await;
    let column = rows.column(0).as_primitive::<Int64Type>();
    for value in -1..=2 {
        let count = column.iter().filter(|found| *found == Some(value)).count();
        assert!((9_500..10_500).contains(&count), "{value} came {count} times in 50000");
    }
    assert!((9_500..10_500).contains(&column.null_count()));

    let rows = read(&one(DataType::Float64, &[("fields.x.min", "0"), ("fields.x.max", "2")]), 0, 50_000).await;
    let mean = rows.column(0).as_primitive::<Float64Type>().values().iter().sum::<f64>() / 50_000.0;
    assert!((0.98..1.02).contains(&mean), "the mean of 0..2 is {mean}");

    let options = [("fields.x.max", "2026-03-01 00:00:00"), ("fields.x.max-past", "1 s")];
    let times = values(DataType::Timestamp(TimeUnit::Second, None), &options, 100).await;
    assert!(times.iter().all(|time| time == "2026-02-28T23:59:59" || time == "2026-03-01T00:00:00"), "{times:?}");
}

#[tokio::test]
async fn sequences_rise_in_the_units_of_their_type() {
    let kind = ("fields.x.kind", "sequence");
    let start = |start| ("fields.x.start", start);
    let step = |step| ("fields.x.step", step);
    let ms = DataType::Timestamp(TimeUnit::Millisecond, None);
    assert_eq!(values(DataType::Int32, &[kind, start("5"), step("3")], 3).await, ["5", "8", "11"]);
    assert_eq!(values(DataType::Float64, &[kind], 2).await, ["0.0", "1.0"]);
    assert_eq!(values(DataType::Utf8View, &[kind, start("7")], 2).await, ["7", "8"]);
    assert_eq!(values(DataType::Decimal128(5, 2), &[kind, step("0.25")], 3).await, ["0.00", "0.25", "0.50"]);
    assert_eq!(values(DataType::Date32, &[kind], 2).await, ["2026-01-01", "2026-01-02"]);
    assert_eq!(values(ms.clone(), &[kind], 2).await, ["2026-01-01T00:00:00", "2026-01-01T00:00:01"]);
    let times = values(ms, &[kind, start("2026-05-01 12:00:00"), step("100 ms")], 2).await;
    assert_eq!(times, ["2026-05-01T12:00:00", "2026-05-01T12:00:00.100"]);
}

#[tokio::test]
async fn the_shortest_end_ends_the_stream() {
    let sequence = [("rows-per-second", "1000000000"), ("fields.x.kind", "sequence")];
    let rows_in = async |data_type, more: &[(&str, &str)]| {
        let source = open(&one(data_type, &[&sequence[..], more].concat())).await;
        loop {
            let extent = source.extent().await.unwrap();
            if extent.complete {
                return extent.partitions[&Partition::new("datagen", 0)].latest;
            }
            tokio::task::yield_now().await;
        }
    };
    assert_eq!(rows_in(DataType::Int64, &[("fields.x.start", "10"), ("fields.x.end", "19")]).await, 10);
    assert_eq!(rows_in(DataType::Int64, &[("fields.x.end", "19"), ("number-of-rows", "5")]).await, 5);
    assert_eq!(rows_in(DataType::Int8, &[]).await, 128);
    assert_eq!(rows_in(DataType::Int64, &[("number-of-rows", "0")]).await, 0);

    let table = one(DataType::Int64, &[("number-of-rows", "5")]);
    let span = Span::new(Partition::new("datagen", 0), 4, 6);
    let Err(error) = open(&table).await.read(&span, &[0], &ReadReport::default()) else { panic!("it was read") };
    assert_eq!(error.kind(), Kind::DataLoss);
}

#[tokio::test]
async fn a_query_that_resumes_goes_on_from_its_offset() {
    // A seeded clock's monotonic time is the number of looks at it: a row each, at this rate.
    let environment = Environment { clock: Clock::seeded(1, 0), ..environment() };
    let table = one(DataType::Int64, &[("rows-per-second", "1000000"), ("number-of-rows", "1003")]);
    let source = DatagenConnector.source(table, &environment, None).await.unwrap();
    let datagen = Partition::new("datagen", 0);
    source.forget(&[(datagen.clone(), 1000)].into()).await;
    let mut looks = Vec::new();
    for _ in 0..4 {
        let extent = source.extent().await.unwrap();
        looks.push((extent.partitions[&datagen].latest, extent.complete));
    }
    assert_eq!(looks, [(1001, false), (1002, false), (1003, true), (1003, true)]);
}

#[test]
fn the_identity_is_what_decides_the_rows() {
    let identity = |options: &[(&str, &str)]| DatagenConnector.identity(&one(DataType::Int64, options)).unwrap();
    assert_eq!(identity(&[]), "datagen seed=1");
    assert_eq!(identity(&[("rows-per-second", "5"), ("number-of-rows", "7")]), "datagen seed=1");
    assert_eq!(identity(&[("seed", "2"), ("fields.x.min", "0")]), "datagen seed=2 fields.x.min=0");
}

#[test]
fn what_makes_no_sense_is_refused_by_name() {
    let list = DataType::new_list(DataType::Int64, true);
    let second = DataType::Timestamp(TimeUnit::Second, None);
    assert_eq!(refusal(list, &[]), "table t: column x: datagen makes no ARRAY; leave it out");
    assert_eq!(
        refusal(DataType::Boolean, &[("fields.x.kind", "sequence")]),
        "table t: option 'fields.x.kind': 'sequence' is no choice; known are random"
    );
    assert_eq!(
        refusal(DataType::Int64, &[("fields.x.mim", "1")]),
        "table t: there is no option 'fields.x.mim'; did you mean 'fields.x.min'?"
    );
    assert_eq!(
        refusal(DataType::Int8, &[("fields.x.max", "128")]),
        "table t: option 'fields.x.max': '128' is not a value of Int8"
    );
    assert_eq!(
        refusal(DataType::Int64, &[("fields.x.min", "2"), ("fields.x.max", "1")]),
        "table t: column x: its min is above its max"
    );
    assert_eq!(
        refusal(second.clone(), &[("fields.x.kind", "sequence"), ("fields.x.step", "100 ms")]),
        "table t: option 'fields.x.step': '100 ms' is not a duration such as '1 d' or '100 ms', of whole units of \
         TIMESTAMP(0)"
    );
    assert_eq!(
        refusal(second, &[("fields.x.min", "2026-01-01 00:00:00"), ("fields.x.max-past", "1 d")]),
        "table t: column x: min and max-past exclude each other; leave one out"
    );
    assert_eq!(
        refusal(DataType::Int64, &[("rows-per-second", "0")]),
        "table t: option 'rows-per-second': '0' is not a number above 0"
    );
    let error = DatagenConnector.check(&one(DataType::Int64, &[]), Role::Sink).unwrap_err();
    assert_eq!(error.to_string(), "table t: datagen only makes rows; write into a table of another connector");
}
