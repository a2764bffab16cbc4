//! Golden files: what each version of each record looks like, for as long as checkpoints of it may exist.
//!
//! A record that is written differently needs a new version, and the old file stays as a test of reading.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringViewArray, TimestampMillisecondArray};
use arrow::datatypes::{DataType, Field, Schema, TimeUnit};
use futures::TryStreamExt;
use millstream::checkpoint::{
    Commit, DefinitionRecord, Intent, PartitionCommit, QueryRecord, Rewound, RunRecord, VERSION,
};
use millstream::connector::{Fingerprint, Offsets, Partition, Published, Span};
use millstream::query::definition::{Definition, OtherInsert};
use millstream::query::progress::Reporter;
use millstream::query::{Query, Step};
use millstream::sql::{Statement, parse};
use millstream::state::files::{Encoder, columns, decode};
use millstream::state::{StateCommit, StateFile};
use object_store::ObjectStoreExt;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::harness::World;

/// The record is written as the golden file has it, and read back from it.
fn check<T: Serialize + DeserializeOwned + PartialEq + Debug>(name: &str, record: T) {
    let path = path(name, VERSION);
    let written = serde_json::to_string_pretty(&record).unwrap() + "\n";
    if std::env::var_os("MILLSTREAM_WRITE_GOLDEN").is_some() {
        std::fs::write(&path, &written).unwrap();
    }
    let golden = std::fs::read_to_string(&path).unwrap();
    assert_eq!(written, golden, "{name}: a change of a record needs a new version");
    check_read(name, VERSION, record);
}

/// The golden file of this version is read as this record.
fn check_read<T: DeserializeOwned + PartialEq + Debug>(name: &str, version: u32, record: T) {
    let golden = std::fs::read_to_string(path(name, version)).unwrap();
    assert_eq!(serde_json::from_str::<T>(&golden).unwrap(), record, "{name}, version {version}");
}

fn path(name: &str, version: u32) -> String {
    format!("{}/tests/golden/{name}.v{version}.json", env!("CARGO_MANIFEST_DIR"))
}

fn table(sql: &str) -> millstream::catalog::TableDefinition {
    match parse(sql).unwrap().pop().unwrap().statement {
        Statement::CreateTable(create) => create.definition,
        other => panic!("{other:?}"),
    }
}

#[test]
fn records_are_written_and_read_as_ever() {
    let (version, run, epoch, batch_time_ms) = (VERSION, 3, 17, 1_767_225_600_123);
    let partition = |number| Partition::new("broker-a", number);
    let start = BTreeMap::from([("orders".to_string(), Offsets::from([(partition(0), 0), (partition(1), 42)]))]);
    let (id, name) = ("00c0ffee00c0ffee".to_string(), "job/big".to_string());
    let end = BTreeMap::new();
    let query = QueryRecord { version: 2, id, name, created_ms: batch_time_ms, start, end, rewound: None };
    check_read("query", 2, query.clone());
    check_read("query", 4, QueryRecord { version: 4, ..query.clone() });
    let end = BTreeMap::from([("orders".to_string(), Offsets::from([(partition(1), 4200)]))]);
    let query = QueryRecord { version: 5, end, ..query };
    check_read("query", 5, query.clone());
    let rewound = Rewound { generation: 1, id: "0badcafe0badcafe".into(), epoch: Some(12), deletes: true };
    check("query", QueryRecord { version, rewound: Some(rewound), ..query });
    let (host, token) = ("host".to_string(), "0123456789abcdef".to_string());
    let ran = RunRecord { version: 2, number: run, host, pid: 4711, started_ms: batch_time_ms, token };
    check_read("run", 2, ran.clone());
    check_read("run", 5, RunRecord { version: 5, ..ran.clone() });
    check("run", RunRecord { version, ..ran });
    let cut = vec![
        vec![Span::new(partition(0), 100, 250), Span::new(partition(2), 5, 6)],
        vec![Span::new(partition(1), 90, 240)],
    ];
    let sources = BTreeMap::from([("orders".to_string(), cut)]);
    let pins = vec![serde_json::Value::Null];
    let intent = Intent { version: 1, epoch, run, definition: 2, batch_time_ms, sources, pins, ..Intent::default() };
    check_read("intent", 1, intent.clone());
    let (watermark_ms, late_before_ms) = (Some(batch_time_ms - 5_000), Some(batch_time_ms - 9_000));
    let intent = Intent { version: 2, watermark_ms, late_before_ms, shards: 2, ..intent };
    check_read("intent", 2, intent.clone());
    // A second sink, for late rows.
    let pins = vec![serde_json::Value::Null; 2];
    let intent = Intent { version: 3, pins, ..intent };
    check_read("intent", 3, intent.clone());
    check_read("intent", 4, Intent { version: 4, ..intent.clone() });
    check_read("intent", 5, Intent { version: 5, ..intent.clone() });
    check("intent", Intent { version, ..intent });

    let last = Fingerprint { offset: 249, timestamp: Some(batch_time_ms), id: Some("7F00".into()) };
    let stands = PartitionCommit { next: 250, last_row_ms: Some(batch_time_ms), last: Some(last), watermark_ms: None };
    let commits = BTreeMap::from([(partition(0), stands.clone()), (partition(3), PartitionCommit::default())]);
    let published = Published { rows: 7, bytes: 512, position: serde_json::json!({"files": ["x-17-0-0.parquet"]}) };
    let sources = BTreeMap::from([("orders".to_string(), commits)]);
    let sinks = vec![published];
    let commit = Commit { version: 1, epoch, run, batch_time_ms, sources, sinks, ..Commit::default() };
    check_read("commit", 1, commit.clone());
    let commits = BTreeMap::from([(partition(0), PartitionCommit { watermark_ms, ..stands })]);
    let sources = BTreeMap::from([("orders".to_string(), commits)]);
    let name = "00000000000000000017-00000000000000000003-delta.arrow.zst".to_string();
    let file = StateFile { name, epoch, rows: 5, bytes: 321, latest: Some(1_767_225_600_000) };
    let aged_by = Some("date_bin(10 s, watermark)".into());
    let state = StateCommit { closed: Some(1_767_225_590_000), aged_by, files: vec![file] };
    let state = BTreeMap::from([("aggregate-1".to_string(), state)]);
    let commit = Commit { version: 2, sources, watermark_ms, state, ..commit };
    check_read("commit", 2, commit.clone());
    let sinks = vec![commit.sinks[0].clone(), Published::default()];
    let commit = Commit { version: 3, sinks, ..commit };
    check_read("commit", 3, commit.clone());
    check_read("commit", 4, Commit { version: 4, ..commit.clone() });
    let lost = BTreeMap::from([("orders".to_string(), Offsets::from([(partition(0), 100)]))]);
    let commit = Commit { version: 5, lost, ..commit };
    check_read("commit", 5, commit.clone());
    check("commit", Commit { version, ..commit });

    let orders = table(
        "CREATE TABLE orders (id BIGINT NOT NULL, amount DECIMAL(10, 2), ts TIMESTAMP(3), tags MAP<STRING, ARRAY<INT>>,
           at ROW<city STRING, zip BYTES>, pos BIGINT METADATA FROM 'offset' VIRTUAL, cents AS CAST(amount * 100 AS BIGINT),
           WATERMARK FOR ts AS ts - INTERVAL '5' SECOND)
         WITH ('connector' = 'kafka', 'topic' = 'orders', 'format' = 'json', 'properties.sasl.password' = '${env:PW}')",
    );
    let target = table(
        "CREATE TABLE big (id BIGINT, day STRING) PARTITIONED BY (day)
         WITH ('connector' = 'filesystem', 'path' = 's3://lake/big', 'format' = 'parquet')",
    );
    let identity = |name: &str, text: &str| (name.to_string(), text.to_string());
    let definition = Definition {
        others: vec![],
        late: None,
        query: "SELECT id, tag FROM orders".into(),
        columns: vec!["id".into(), "day".into()],
        target,
        sources: BTreeMap::from([("orders".to_string(), orders)]),
        views: vec![],
        statics: vec!["CREATE EXTERNAL TABLE s STORED AS CSV LOCATION 's.csv'".into()],
        settings: BTreeMap::from([identity("datafusion.execution.batch_size", "4096")]),
        static_files: Some("0123456789abcdef".into()),
        identities: BTreeMap::from([
            identity("", "parquet files under s3://lake/big"),
            identity("orders", "kafka topic orders"),
        ]),
    };
    let record = DefinitionRecord { version: 2, number: 2, definition };
    check_read("definition", 2, record.clone());
    let late = Some(table("CREATE TABLE late (id BIGINT, late_row STRING) WITH ('connector' = 'print')"));
    let definition = Definition { late, ..record.definition };
    let record = DefinitionRecord { version: 3, number: 2, definition };
    check_read("definition", 3, record.clone());
    let other = OtherInsert {
        query: "SELECT id FROM orders".into(),
        columns: vec![],
        target: table("CREATE TABLE ids (id BIGINT) WITH ('connector' = 'print')"),
        identity: "print".into(),
    };
    let definition = Definition { others: vec![other], ..record.definition };
    check_read("definition", 4, DefinitionRecord { version: 4, number: 2, definition: definition.clone() });
    check_read("definition", 5, DefinitionRecord { version: 5, number: 2, definition: definition.clone() });
    check("definition", DefinitionRecord { version, number: 2, definition });
}

/// A file of state of any version is read for as long as checkpoints may name one, and refused where the query needs other
/// columns.
#[test]
fn state_files_are_read_as_ever() {
    let fields = |total: &str| {
        let time = DataType::Timestamp(TimeUnit::Millisecond, None);
        let columns = [("start", time), ("item", DataType::Utf8View), (total, DataType::Int64)];
        let fields: Vec<Field> = columns.into_iter().map(|(name, t)| Field::new(name, t, true)).collect();
        Arc::new(Schema::new(fields))
    };
    let schema = fields("sum(v)[sum]");
    let columns: Vec<ArrayRef> = vec![
        Arc::new(TimestampMillisecondArray::from(vec![0, 10_000])),
        Arc::new(StringViewArray::from(vec![Some("an item with a name of some length"), None])),
        Arc::new(Int64Array::from(vec![Some(7), None])),
    ];
    let batch = RecordBatch::try_new(Arc::clone(&schema), columns).unwrap();
    let path = |version: u32| format!("{}/tests/golden/state.v{version}.arrow.zst", env!("CARGO_MANIFEST_DIR"));
    let mut encoder = Encoder::try_new(&schema).unwrap();
    encoder.write(&batch).unwrap();
    let written = encoder.finish().unwrap();
    if std::env::var_os("MILLSTREAM_WRITE_GOLDEN").is_some() {
        std::fs::write(path(2), &written).unwrap();
    }
    for body in [written.to_vec(), std::fs::read(path(1)).unwrap(), std::fs::read(path(2)).unwrap()] {
        assert_eq!(decode("golden", &body, &schema).unwrap(), vec![batch.clone()]);
    }
    let error = decode("golden", &written, &fields("max(v)[value]")).unwrap_err().to_string();
    assert!(error.contains("golden has sum(v)[sum] Int64, and the query now needs max(v)[value] Int64"), "{error}");
}

/// The one file of state that the first epoch of a query writes.
async fn state_of(settings: &str, select: &str) -> Vec<u8> {
    let world = World::new();
    world.append("input", 0, 0..5);
    let script = format!(
        "SET 'checkpoint.location' = 'memory://ck'; SET 'parallelism' = '1'; {settings}
         CREATE TABLE input (n BIGINT, item AS CAST(n % 3 AS STRING), ts AS to_timestamp_millis(n * 1000),
           WATERMARK FOR ts AS ts) WITH ('connector' = 'memory', 'topic' = 'input');
         CREATE TABLE output (n BIGINT) WITH ('connector' = 'memory', 'topic' = 'output');
         INSERT INTO output SELECT {select};"
    );
    let mut query = Query::open(world.plan(&script, None).await, Reporter::silent()).await.unwrap();
    assert_eq!(query.step().await.unwrap(), Step::Committed(1));
    query.close().await;
    let checkpoint = world.stores.open("memory://ck", &Default::default()).unwrap();
    let mut files: Vec<_> = checkpoint.store.list(Some(&checkpoint.prefix)).try_collect().await.unwrap();
    files.retain(|file| file.location.as_ref().contains("/state/"));
    assert_eq!(files.len(), 1, "{select}: {files:?}");
    checkpoint.store.get(&files[0].location).await.unwrap().bytes().await.unwrap().to_vec()
}

/// Each kind of operator writes the columns and rows that it ever wrote: other ones, or other names, would refuse the
/// state of every query that runs.
#[tokio::test]
async fn state_is_written_and_read_as_ever() {
    let window = "FROM TABLE(TUMBLE(TABLE input, DESCRIPTOR(ts), INTERVAL '3' SECOND))
                  GROUP BY window_start, window_end";
    let session = "FROM TABLE(SESSION(TABLE input PARTITION BY item, DESCRIPTOR(ts), INTERVAL '2' SECOND))
                   GROUP BY window_start, window_end, item";
    for (kind, settings, select) in [
        ("groups", "", format!("count(*) + sum(n) {window}, item")),
        ("members", "", format!("count(DISTINCT item) + CAST(median(n) AS BIGINT) {window}")),
        ("sessions", "", format!("count(*) + sum(n) {session}")),
        ("touched", "SET 'state.ttl' = '1 d';", "sum(n) FROM input GROUP BY item".to_owned()),
        ("first", "", "n FROM input QUALIFY ROW_NUMBER() OVER (PARTITION BY item ORDER BY ts) = 1".to_owned()),
    ] {
        let path =
            |version: u32| format!("{}/tests/golden/state.{kind}.v{version}.arrow.zst", env!("CARGO_MANIFEST_DIR"));
        let written = state_of(settings, &select).await;
        if std::env::var_os("MILLSTREAM_WRITE_GOLDEN").is_some() {
            std::fs::write(path(2), &written).unwrap();
        }
        let (schema, written_keys) = columns(kind, &written).unwrap();
        // When a row was last touched is another time in each run.
        let is_same = |index: &usize| schema.field(*index).name() != "$touched";
        let same: Vec<usize> = (0..schema.fields().len()).filter(is_same).collect();
        let rows = |body: &[u8]| -> Vec<RecordBatch> {
            let batches = decode(kind, body, &schema).unwrap();
            batches.iter().map(|batch| batch.project(&same).unwrap()).collect()
        };
        for version in [1, 2] {
            let golden = std::fs::read(path(version)).unwrap();
            let (golden_schema, keys) = columns(kind, &golden).unwrap();
            assert_eq!((golden_schema.fields(), keys), (schema.fields(), written_keys), "{kind}, version {version}");
            assert_eq!(rows(&written), rows(&golden), "{kind}, version {version}");
        }
    }
}
