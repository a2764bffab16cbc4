//! Both contracts, and what is particular to files.

use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringViewArray};
use arrow::compute::concat_batches;
use datafusion::execution::SendableRecordBatchStream;
use futures::TryStreamExt;
use object_store::{ObjectStoreExt, PutPayload};
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use super::*;
use crate::connector::contract::fixture::{environment, owner, stream, stream_of, table_of};
use crate::connector::contract::{self, SinkCase, SourceCase, lines};
use crate::connector::entry::assert_described;
use crate::connector::{Offsets, Partition, Pin, ReadReport, Span};
use crate::error::Kind;
use crate::sql::options::{Words, asked_for};
use crate::storage::Location;

fn rows(ids: std::ops::Range<i64>) -> RecordBatch {
    let text = StringViewArray::from_iter(ids.clone().map(|id| (id % 3 > 0).then(|| format!("row {id}"))));
    let columns: [(&str, ArrayRef, bool); 2] =
        [("id", Arc::new(Int64Array::from_iter_values(ids)), true), ("text", Arc::new(text), true)];
    RecordBatch::try_from_iter_with_nullable(columns).unwrap()
}

fn table(path: &str, format: &str, more: &[(&str, &str)]) -> Arc<TableDefinition> {
    let options = [&[("connector", "filesystem"), ("path", path), ("format", format)], more].concat();
    table_of("t", &rows(0..1).schema(), &options)
}

fn at(path: &str, environment: &Environment) -> Location {
    environment.stores.open(path, &environment.settings).unwrap()
}

/// The files that a reader sees below `path`, in the order of their names, and their rows.
async fn files(path: &str, environment: &Environment) -> Vec<(String, RecordBatch)> {
    let location = at(path, environment);
    let listed: Vec<_> = location.store.list(Some(&location.prefix)).try_collect().await.unwrap();
    let mut files = vec![];
    for meta in listed.iter().filter(|meta| !meta.location.as_ref().contains("/.staged/")) {
        let bytes = location.store.get(&meta.location).await.unwrap().bytes().await.unwrap();
        let reader = ParquetRecordBatchReaderBuilder::try_new(bytes).unwrap().build().unwrap();
        let batches: Vec<RecordBatch> = reader.map(Result::unwrap).collect();
        let name = meta.location.to_string().replacen(&format!("{}/", location.prefix), "", 1);
        files.push((name, concat_batches(&batches[0].schema(), &batches).unwrap()));
    }
    files.sort_by(|a, b| a.0.cmp(&b.0));
    files
}

#[tokio::test]
async fn the_sink_keeps_its_contract_in_memory_and_on_disk() {
    let dir = tempfile::tempdir().unwrap();
    for path in ["memory://lake/out", dir.path().to_str().unwrap()] {
        let environment = environment();
        let table = table(path, "parquet", &[]);
        let make = async || FilesConnector.sink(table.clone(), &environment, &owner("0123456789abcdef")).await.unwrap();
        let visible = async || Some(files(path, &environment).await.iter().flat_map(|(_, rows)| lines(rows)).collect());
        contract::sink(&SinkCase { rows: rows(0..20), ordered: true, fences: false }, make, visible).await;
    }
}

/// One row a file: an offset is a file.
async fn put(location: &Location, name: &str, id: i64) {
    let body = if name.ends_with("json") {
        match id % 3 > 0 {
            true => format!("{{\"id\":{id},\"text\":\"row {id}\"}}\n").into_bytes(),
            false => format!("{{\"id\":{id}}}\r\n\n").into_bytes(),
        }
    } else {
        let mut writer = ArrowWriter::try_new(vec![], rows(0..1).schema(), None).unwrap();
        writer.write(&rows(id..id + 1)).unwrap();
        writer.into_inner().unwrap()
    };
    location.store.put(&location.join(name).prefix, PutPayload::from(body)).await.unwrap();
}

#[tokio::test]
async fn the_source_keeps_its_contract_for_json_and_parquet() {
    for format in ["json", "parquet"] {
        let environment = environment();
        let location = at("memory://in/dir", &environment);
        for id in 0..12 {
            // The order of names is the order of numbers, where the times are the same.
            put(&location, &format!("part-{id:03}.{format}"), id).await;
        }
        put(&location, &format!("_hidden.{format}"), 100).await;
        put(&location, &format!(".hidden/x.{format}"), 100).await;
        let case = SourceCase {
            table: table("memory://in/dir", format, &[]),
            rows: [(Partition::new("files", 0), rows(0..12))].into(),
            bounded: false,
        };
        let owner = owner("0123456789abcdef");
        let open = async || FilesConnector.source(case.table.clone(), &environment, Some(&owner)).await.unwrap();
        contract::source(&case, open).await;
    }
}

async fn read(source: &Arc<dyn Source>, from: u64, to: u64) -> Result<Vec<String>> {
    let span = Span::new(Partition::new("files", 0), from, to);
    let batches: Vec<RecordBatch> = source.read(&span, &[0, 1], &ReadReport::default())?.try_collect().await?;
    Ok(batches.iter().flat_map(lines).collect())
}

#[tokio::test]
async fn a_numbered_file_keeps_its_number_and_must_not_change() {
    let environment = environment();
    let location = at("memory://in/dir", &environment);
    let owner = owner("0123456789abcdef");
    let table = table("memory://in/dir", "json", &[("source.monitor-interval", "0 ms")]);
    let open = async || FilesConnector.source(table.clone(), &environment, Some(&owner)).await.unwrap();
    put(&location, "b.json", 1).await;
    let first = open().await;
    assert_eq!(first.extent().await.unwrap().partitions[&Partition::new("files", 0)].latest, 1);
    put(&location, "a.json", 2).await;
    assert_eq!(first.extent().await.unwrap().partitions[&Partition::new("files", 0)].latest, 2);
    let second = open().await;
    second.extent().await.unwrap();
    assert_eq!(read(&second, 0, 2).await.unwrap(), ["1, row 1", "2, row 2"]);
    put(&location, "b.json", 30).await;
    let error = read(&second, 0, 1).await.unwrap_err();
    assert_eq!(error.kind(), Kind::DataLoss, "{error}");
    location.store.delete(&location.join("a.json").prefix).await.unwrap();
    let error = read(&second, 1, 2).await.unwrap_err();
    assert!(error.to_string().contains("dir/a.json (number 1) is gone"), "{error}");
}

#[tokio::test]
async fn a_question_sees_what_was_written_a_moment_ago() {
    let environment = environment();
    let location = at("memory://in/dir", &environment);
    let table = table("memory://in/dir", "json", &[("source.monitor-interval", "1 h")]);
    let source = FilesConnector.source(table, &environment, None).await.unwrap();
    let files = Partition::new("files", 0);
    for count in 1..=2 {
        put(&location, &format!("{count}.json"), 1).await;
        assert_eq!(source.horizon().await.unwrap(), Offsets::from([(files.clone(), count)]));
    }
    put(&location, "3.json", 1).await;
    assert_eq!(source.extent().await.unwrap().partitions[&files].latest, 2, "a query waits");
}

/// A rewind removes files while the query, which was opened meanwhile, does the same.
#[tokio::test]
async fn two_who_take_back_do_not_disturb_each_other() {
    let dir = tempfile::tempdir().unwrap();
    let environment = environment();
    let table = table(dir.path().to_str().unwrap(), "parquet", &[]);
    let make = async || FilesConnector.sink(table.clone(), &environment, &owner("id")).await.unwrap();
    let (one, other) = (make().await, make().await);
    for epoch in 1..=9 {
        one.stage(epoch, 0, &Pin::Null, stream(&rows(0..3))).await.unwrap();
        one.publish(epoch, &Pin::Null).await.unwrap();
    }
    std::fs::write(dir.path().join(".staged/id-9-0-0.parquet.00000000000000aa.0"), "a run that died").unwrap();
    let (first, second) = tokio::join!(one.take_back(2), other.take_back(2));
    assert_eq!(first.unwrap() + second.unwrap(), 7, "each file is counted once, and what nobody could see is not");
    let left: Vec<String> =
        files(dir.path().to_str().unwrap(), &environment).await.into_iter().map(|(name, _)| name).collect();
    assert_eq!(left, ["id-1-0-0.parquet", "id-2-0-0.parquet"]);
    assert_eq!(std::fs::read_dir(dir.path().join(".staged")).unwrap().count(), 0);
}

/// Stages and publishes rows that arrive in batches of this size.
async fn write(
    path: &str,
    table: &TableDefinition,
    batch: usize,
    environment: &Environment,
) -> Vec<(String, RecordBatch)> {
    let sink = FilesConnector.sink(Arc::new(table.clone()), environment, &owner("id")).await.unwrap();
    let all = rows(0..20_000);
    let batches = (0..all.num_rows()).step_by(batch).map(|at| Ok(all.slice(at, batch.min(all.num_rows() - at))));
    let rows: SendableRecordBatchStream = stream_of(&all.schema(), batches.collect());
    sink.stage(1, 0, &Pin::Null, rows).await.unwrap();
    sink.publish(1, &Pin::Null).await.unwrap();
    files(path, environment).await
}

#[tokio::test]
async fn which_row_lies_in_which_file_does_not_follow_from_how_rows_arrive() {
    for more in [("sink.rolling-policy.rows", "3000"), ("sink.rolling-policy.file-size", "100 kb")] {
        let table = table("memory://lake/out", "parquet", &[more]);
        let (one, other) = (environment(), environment());
        let once = write("memory://lake/out", &table, 20_000, &one).await;
        assert!(once.len() > 2, "{} files", once.len());
        assert_eq!(once, write("memory://lake/out", &table, 777, &other).await);
    }
}

#[tokio::test]
async fn directories_are_hives() {
    let environment = environment();
    let schema = rows(0..1).schema();
    let mut table =
        table_of("t", &schema, &[("connector", "filesystem"), ("path", "memory://lake/out"), ("format", "parquet")])
            .as_ref()
            .clone();
    table.partitioned_by = vec!["text".into()];
    let sink = FilesConnector.sink(Arc::new(table), &environment, &owner("id")).await.unwrap();
    let text = StringViewArray::from(vec![Some("a/b"), None, Some("a/b"), Some("x=1")]);
    let columns: Vec<ArrayRef> = vec![Arc::new(Int64Array::from(vec![1, 2, 3, 4])), Arc::new(text)];
    let rows = RecordBatch::try_new(schema, columns).unwrap();
    sink.stage(7, 3, &Pin::Null, stream(&rows)).await.unwrap();
    let published = sink.publish(7, &Pin::Null).await.unwrap();
    assert_eq!(published.rows, 4);
    let seen: Vec<(String, Vec<String>)> =
        files("memory://lake/out", &environment).await.into_iter().map(|(name, rows)| (name, lines(&rows))).collect();
    let file = |name: &str, ids: &[&str]| (name.to_string(), ids.iter().map(|id| id.to_string()).collect::<Vec<_>>());
    assert_eq!(
        seen,
        [
            file("text=__HIVE_DEFAULT_PARTITION__/id-7-3-1.parquet", &["2"]),
            file("text=a%2Fb/id-7-3-0.parquet", &["1", "3"]),
            file("text=x%3D1/id-7-3-2.parquet", &["4"]),
        ]
    );
}

#[tokio::test]
async fn what_an_upload_left_is_swept_behind_the_commit() {
    let dir = tempfile::tempdir().unwrap();
    let environment = environment();
    // Noise does not compress: 3 M numbers are more than is held.
    let noise = |seed: i64| {
        Int64Array::from_iter_values(
            (0..3_000_000i64).map(|i| (i + seed).wrapping_mul(0x9E37_79B9_7F4A_7C15u64 as i64)),
        )
    };
    let table = table_of(
        "t",
        &arrow::datatypes::Schema::new(vec![arrow::datatypes::Field::new("id", DataType::Int64, true)]),
        &[
            ("connector", "filesystem"),
            ("path", dir.path().to_str().unwrap()),
            ("format", "parquet"),
            ("parquet.compression", "none"),
        ],
    );
    let owner = owner("id");
    let make = async || FilesConnector.sink(table.clone(), &environment, &owner).await.unwrap();
    let rows = RecordBatch::try_from_iter_with_nullable([("id", Arc::new(noise(1)) as ArrayRef, true)]).unwrap();
    let staged = || std::fs::read_dir(dir.path().join(".staged")).map_or(0, Iterator::count);
    let dead = make().await;
    dead.stage(1, 0, &Pin::Null, stream(&rows)).await.unwrap();
    assert_eq!(staged(), 1);
    drop(dead);
    let sink = make().await;
    sink.stage(1, 0, &Pin::Null, stream(&rows)).await.unwrap();
    sink.publish(1, &Pin::Null).await.unwrap();
    assert_eq!(staged(), 1);
    sink.forget(0).await.unwrap();
    assert_eq!(staged(), 1, "epoch 1 was not committed");
    sink.forget(1).await.unwrap();
    assert_eq!(staged(), 0);
    assert_eq!(files(dir.path().to_str().unwrap(), &environment).await[0].1.num_rows(), 3_000_000);
}

#[tokio::test]
async fn what_a_put_left_is_swept_when_it_is_old() {
    let dir = tempfile::tempdir().unwrap();
    let (staged, environment) = (dir.path().join(".staged"), environment());
    std::fs::create_dir(&staged).unwrap();
    let hours_ago = |name: &str, hours: u64| {
        let file = std::fs::File::create(staged.join(name)).unwrap();
        let now = std::fs::metadata(dir.path()).unwrap().modified().unwrap();
        file.set_modified(now - std::time::Duration::from_secs(hours * 3600)).unwrap();
    };
    hours_ago("id-1-0-0.parquet.00000000000000aa.0", 2);
    hours_ago("id-1-0-1.parquet.00000000000000aa.1", 0);
    hours_ago("id-2-0-0.parquet.00000000000000aa.2", 2);
    hours_ago("other-1-0-0.parquet.00000000000000aa.3", 2);
    let table = table(dir.path().to_str().unwrap(), "parquet", &[]);
    let sink = FilesConnector.sink(table, &environment, &owner("id")).await.unwrap();
    sink.sweep(1).await.unwrap();
    let mut left: Vec<String> =
        std::fs::read_dir(&staged).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    left.sort();
    let expected = ["id-1-0-1.parquet", "id-2-0-0.parquet", "other-1-0-0.parquet"];
    assert_eq!(left.iter().map(|name| name.split(".0000").next().unwrap()).collect::<Vec<_>>(), expected);
}

#[test]
fn all_options_are_described() {
    let mut asked = Words::new();
    for format in FORMATS {
        asked.extend(asked_for(|| FilesConnector.check(&table("/t", format, &[]), Role::Source).unwrap()));
    }
    assert_described(&[&FilesConnector.options()[..], format::options("json")].concat(), &asked);
}
