use std::collections::BTreeMap;

use arrow::array::{Int64Array, RecordBatch, StringViewArray};
use futures::TryStreamExt;

use super::*;
use crate::connector::contract::fixture::{environment, owner, stream, table_of};
use crate::connector::contract::{self, SinkCase, SourceCase, lines};
use crate::connector::{Partition, Pin, ReadReport, Span};
use crate::error::Kind;

fn rows(ids: std::ops::Range<i64>) -> RecordBatch {
    let text = StringViewArray::from_iter(ids.clone().map(|id| (id % 3 > 0).then(|| format!("row {id}"))));
    RecordBatch::try_from_iter_with_nullable([
        ("id", Arc::new(Int64Array::from_iter_values(ids)) as _, true),
        ("text", Arc::new(text) as _, true),
    ])
    .unwrap()
}

fn table() -> Arc<TableDefinition> {
    table_with(&[])
}

fn table_with(more: &[(&str, &str)]) -> Arc<TableDefinition> {
    table_of("t", &rows(0..1).schema(), &[&[("connector", "memory"), ("topic", "orders")], more].concat())
}

async fn source(memory: &Memory) -> Arc<dyn Source> {
    open(memory, table()).await
}

async fn open(memory: &Memory, table: Arc<TableDefinition>) -> Arc<dyn Source> {
    MemoryConnector::new(memory.clone()).source(table, &environment(), None).await.unwrap()
}

async fn sink(memory: &Memory, query: &str) -> Arc<dyn Sink> {
    MemoryConnector::new(memory.clone()).sink(table(), &environment(), &owner(query)).await.unwrap()
}

fn seen(memory: &Memory) -> Vec<String> {
    memory.rows("orders").iter().flat_map(lines).collect()
}

#[tokio::test]
async fn memory_keeps_the_contract_of_a_source() {
    let memory = Memory::new();
    for ids in [0..4, 4..4, 4..5, 5..17] {
        memory.append("orders", 0, rows(ids));
    }
    memory.append("orders", 7, rows(100..120));
    memory.append("orders", 8, rows(0..0));
    memory.append("others", 0, rows(0..3));
    let expected = [(0, rows(0..17)), (7, rows(100..120))];
    let rows: BTreeMap<_, _> = expected.map(|(number, rows)| (Partition::new("orders", number), rows)).into();
    for (end, bounded) in [("unbounded", false), ("latest-offset", true)] {
        let case = SourceCase { table: table_with(&[("scan.bounded.mode", end)]), rows: rows.clone(), bounded };
        contract::source(&case, async || open(&memory, case.table.clone()).await).await;
    }
}

#[tokio::test]
async fn memory_keeps_the_contract_of_a_sink() {
    let memory = Memory::new();
    let make = async || sink(&memory, "q").await;
    contract::sink(&SinkCase { rows: rows(0..20), ordered: true, fences: true }, make, async || Some(seen(&memory)))
        .await;
}

#[tokio::test]
async fn a_topic_grows_loses_rows_and_ends() {
    let memory = Memory::new();
    let source = source(&memory).await;
    assert_eq!(source.extent().await.unwrap(), Default::default());
    memory.append("orders", 0, rows(0..10));
    memory.trim("orders", 0, 4);
    memory.complete("orders");
    let extent = source.extent().await.unwrap();
    let partition = Partition::new("orders", 0);
    assert!(extent.complete);
    assert_eq!((extent.partitions[&partition].earliest, extent.partitions[&partition].latest), (4, 10));
    assert_eq!(source.start().await.unwrap(), BTreeMap::from([(partition.clone(), 4)]));

    let read = |from, to| source.read(&Span::new(partition.clone(), from, to), &[0], &ReadReport::default());
    let found: Vec<RecordBatch> = read(4, 6).unwrap().try_collect().await.unwrap();
    assert_eq!(found.iter().flat_map(lines).collect::<Vec<_>>(), ["4", "5"]);
    for (from, to) in [(3, 6), (9, 11)] {
        let Err(error) = read(from, to) else { panic!("{from}..{to} was read") };
        assert_eq!(error.kind(), Kind::DataLoss);
        assert!(error.to_string().contains("the topic holds 4..10 there"), "{error}");
    }
}

#[tokio::test]
async fn rows_of_other_columns_are_refused() {
    let memory = Memory::new();
    memory.append("orders", 0, rows(0..1).project(&[0]).unwrap());
    let span = Span::new(Partition::new("orders", 0), 0, 1);
    let Err(error) = source(&memory).await.read(&span, &[0], &ReadReport::default()) else { panic!("it was read") };
    assert_eq!(error.kind(), Kind::Data);
}

#[tokio::test]
async fn queries_do_not_shut_each_other_out() {
    let memory = Memory::new();
    let (a, b) = (sink(&memory, "a").await, sink(&memory, "b").await);
    a.open(5).await.unwrap();
    b.open(1).await.unwrap();
    for (sink, ids) in [(&b, 1..2), (&a, 0..1)] {
        sink.stage(1, 0, &Pin::Null, stream(&rows(ids))).await.unwrap();
        sink.publish(1, &Pin::Null).await.unwrap();
    }
    assert_eq!(seen(&memory), ["0, null", "1, row 1"]);
    let error = sink(&memory, "a").await.open(4).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Fenced);
}
