//! What the tests share: sessions over stores that can be stopped, gated connectors, reading results back.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arrow::array::{AsArray, Int64Array, RecordBatch};
use arrow::datatypes::{DataType, Field, Int64Type, Schema};
use async_trait::async_trait;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use futures::TryStreamExt;
use millstream::catalog::TableDefinition;
use millstream::checkpoint::inspect;
use millstream::clock::Clock;
use millstream::connector::memory::{Memory, MemoryConnector};
use millstream::connector::{
    Connector, Connectors, Environment, Extent, Guarantee, Meaning, MetadataKey, Offsets, Owner, Partition, Pin,
    Progress, Published, ReadReport, Role, Sink, Source, Span, Staged,
};
use millstream::error::{Kind, Result};
use millstream::query::progress::Reporter;
use millstream::query::{Query, QuerySpec, Step};
use millstream::session::{Outcome, Session};
use millstream::storage::Stores;
use millstream::storage::faults::{Gate, Moment};
use object_store::ObjectStoreExt;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

/// A variable that `make test` sets.
pub fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set: run the tests by `make test`"))
}

/// Everything that outlives a crash: stores in memory, topics in memory.
#[derive(Clone)]
pub struct World {
    pub stores: Stores,
    pub memory: Memory,
    pub pins: Pins,
}

/// By table and epoch, the pin that it was first published with.
pub type Pins = Arc<Mutex<BTreeMap<(String, u64), Pin>>>;

impl World {
    pub fn new() -> Self {
        Self { stores: Stores::new(Clock::system()), memory: Memory::new(), pins: Pins::default() }
    }

    /// Appends rows `n` = from..to to partition `partition` of `topic`.
    pub fn append(&self, topic: &str, partition: u32, numbers: std::ops::Range<i64>) {
        let schema = Arc::new(Schema::new(vec![Field::new("n", DataType::Int64, true)]));
        let column = Arc::new(Int64Array::from_iter_values(numbers));
        self.memory.append(topic, partition, RecordBatch::try_new(schema, vec![column]).unwrap());
    }

    /// The first query of a script, in a process of its own, every store and sink call of which goes through `gate`.
    pub async fn plan(&self, script: &str, gate: Option<&Arc<Gate>>) -> QuerySpec {
        self.try_plan(script, gate).await.unwrap()
    }

    pub async fn try_plan(&self, script: &str, gate: Option<&Arc<Gate>>) -> Result<QuerySpec> {
        let memory = MemoryConnector::new(self.memory.clone());
        let (stores, connectors) = match gate {
            None => (self.stores.clone(), Connectors::standard().with(Arc::new(memory))),
            Some(gate) => {
                let gated = |inner: Arc<dyn Connector>| {
                    Arc::new(Gated { inner, gate: Arc::clone(gate), jitter: None, pins: Arc::clone(&self.pins) })
                };
                let files = gated(Arc::new(millstream::connector::files::FilesConnector));
                let connectors = Connectors::standard().with(gated(Arc::new(memory))).with(files);
                (self.stores.wrapped(Arc::new(Arc::clone(gate))), connectors)
            }
        };
        self.plan_with(script, stores, connectors).await
    }

    /// The first query of a script; its rows arrive after delays and in batches of chance.
    pub async fn plan_jittery(&self, script: &str, seed: u64) -> QuerySpec {
        let inner: Arc<dyn Connector> = Arc::new(MemoryConnector::new(self.memory.clone()));
        let jittery = Gated { inner, gate: Gate::new(0, Moment::Before), jitter: Some(seed), pins: Pins::default() };
        let connectors = Connectors::standard().with(Arc::new(jittery));
        self.plan_with(script, self.stores.clone(), connectors).await.unwrap()
    }

    /// The first query of a script, whose time is this clock's.
    pub async fn plan_by(&self, script: &str, clock: &Clock) -> QuerySpec {
        let connectors = Connectors::standard().with(Arc::new(MemoryConnector::new(self.memory.clone())));
        let session = Session::with("test", connectors, self.stores.clone(), clock.clone()).unwrap();
        Self::first_query(session, script).await.unwrap()
    }

    pub async fn plan_with(&self, script: &str, stores: Stores, connectors: Connectors) -> Result<QuerySpec> {
        Self::first_query(Session::with("test", connectors, stores, Clock::system())?, script).await
    }

    async fn first_query(mut session: Session, script: &str) -> Result<QuerySpec> {
        for outcome in session.execute_script(script).await? {
            if let Outcome::Query(spec) = outcome {
                return Ok(*spec);
            }
        }
        panic!("the script has no query")
    }

    /// The files below `memory://NAME/…`, their rows' first columns in order.
    pub async fn parquet(&self, location: &str) -> Vec<(String, Vec<i64>)> {
        let numbers = |batch: &RecordBatch| batch.column(0).as_primitive::<Int64Type>().values().to_vec();
        let files = self.files(location).await.into_iter();
        files.map(|(name, batches)| (name, batches.iter().flat_map(numbers).collect())).collect()
    }

    /// The first columns of all rows that queries wrote into a topic.
    pub fn numbers(&self, topic: &str) -> Vec<i64> {
        let numbers = |batch: &RecordBatch| batch.column(0).as_primitive::<Int64Type>().values().to_vec();
        self.memory.rows(topic).iter().flat_map(numbers).collect()
    }

    /// How many offsets a query has skipped, as its commits say.
    pub async fn lost(&self, checkpoint: &str, query: &str) -> u64 {
        let checkpoint = self.stores.open(checkpoint, &Default::default()).unwrap();
        let commits = inspect::commits(&checkpoint, query, usize::MAX).await.unwrap();
        commits.iter().flat_map(|commit| commit.lost.values().flat_map(BTreeMap::values)).sum()
    }

    /// All rows of the files below `memory://NAME/…`.
    pub async fn batches(&self, location: &str) -> Vec<RecordBatch> {
        self.files(location).await.into_iter().flat_map(|(_, batches)| batches).collect()
    }

    async fn files(&self, location: &str) -> Vec<(String, Vec<RecordBatch>)> {
        let location = self.stores.open(location, &Default::default()).unwrap();
        let mut files = vec![];
        let listed: Vec<_> = location.store.list(Some(&location.prefix)).try_collect().await.unwrap();
        for meta in listed {
            let bytes = location.store.get(&meta.location).await.unwrap().bytes().await.unwrap();
            let reader = ParquetRecordBatchReaderBuilder::try_new(bytes).unwrap().build().unwrap();
            files.push((meta.location.to_string(), reader.map(Result::unwrap).collect()));
        }
        files.sort_by(|(one, _), (other, _)| one.cmp(other));
        files
    }
}

/// Steps a query until it has nothing more to do.
pub async fn finish(query: &mut Query) -> Result<()> {
    while let Step::Committed(_) = query.step().await? {}
    Ok(())
}

/// Opens and runs to the end, starting over after transient trouble as the engine does.
pub async fn run_to_end(spec: QuerySpec) -> Result<()> {
    let (_stop, stopped) = tokio::sync::watch::channel(false);
    // Opening belongs to the run: a process that fails there is started again by its supervisor.
    let query = loop {
        match Query::open(spec.clone(), Reporter::silent()).await {
            Err(e) if e.kind() == Kind::Transient => {
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
            opened => break opened?,
        }
    };
    query.run_until(stopped).await.map(drop)
}

/// The connector, whose sinks' calls go through the gate.
pub fn gated(inner: Arc<dyn Connector>, gate: &Arc<Gate>) -> Arc<dyn Connector> {
    Arc::new(Gated { inner, gate: Arc::clone(gate), jitter: None, pins: Pins::default() })
}

/// A connector whose sinks' calls go through a gate, which pin something else whenever they are asked and must be published
/// with the same pin always, and whose rows arrive after delays and in batches of chance.
#[derive(Debug)]
struct Gated {
    inner: Arc<dyn Connector>,
    gate: Arc<Gate>,
    jitter: Option<u64>,
    pins: Pins,
}

#[async_trait]
impl Connector for Gated {
    fn name(&self) -> &'static str {
        self.inner.name()
    }
    fn metadata(&self) -> Vec<MetadataKey> {
        self.inner.metadata()
    }
    fn meaning(&self, key: &str) -> Option<Meaning> {
        self.inner.meaning(key)
    }
    fn check(&self, table: &TableDefinition, role: Role) -> Result<()> {
        self.inner.check(table, role)
    }
    fn identity(&self, table: &TableDefinition) -> Result<String> {
        self.inner.identity(table)
    }
    fn guarantee(&self, table: &TableDefinition) -> Result<Guarantee> {
        self.inner.guarantee(table)
    }
    fn is_operational(&self, option: &str) -> bool {
        self.inner.is_operational(option)
    }
    fn takes_updates(&self, table: &TableDefinition) -> bool {
        self.inner.takes_updates(table)
    }
    fn prefers_continuous(&self) -> bool {
        self.inner.prefers_continuous()
    }
    fn takes_back(&self, table: &TableDefinition) -> bool {
        self.inner.takes_back(table)
    }
    async fn source(
        &self,
        table: Arc<TableDefinition>,
        environment: &Environment,
        owner: Option<&Owner>,
    ) -> Result<Arc<dyn Source>> {
        let inner = self.inner.source(table, environment, owner).await?;
        Ok(match self.jitter {
            Some(seed) => Arc::new(JitterySource { inner, seed: AtomicU64::new(seed) }),
            None => inner,
        })
    }
    async fn sink(
        &self,
        table: Arc<TableDefinition>,
        environment: &Environment,
        owner: &Owner,
    ) -> Result<Arc<dyn Sink>> {
        let name = table.name.clone();
        let inner = self.inner.sink(table, environment, owner).await?;
        Ok(Arc::new(GatedSink { inner, gate: Arc::clone(&self.gate), name, pins: Arc::clone(&self.pins) }))
    }
}

#[derive(Debug)]
struct JitterySource {
    inner: Arc<dyn Source>,
    seed: AtomicU64,
}

#[async_trait]
impl Source for JitterySource {
    async fn start(&self) -> Result<Offsets> {
        self.inner.start().await
    }
    async fn end(&self) -> Result<Option<Offsets>> {
        self.inner.end().await
    }
    async fn extent(&self) -> Result<Extent> {
        self.inner.extent().await
    }
    async fn horizon(&self) -> Result<Offsets> {
        self.inner.horizon().await
    }
    async fn offsets_at(&self, partitions: &[Partition], ms: i64) -> Result<Option<Offsets>> {
        self.inner.offsets_at(partitions, ms).await
    }
    fn read(&self, span: &Span, projection: &[usize], report: &ReadReport) -> Result<SendableRecordBatchStream> {
        let rows = self.inner.read(span, projection, report)?;
        let mut state = self.seed.fetch_add(0x9E37_79B9, Ordering::SeqCst);
        let mut chance = move |below: u64| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) % below
        };
        let schema = rows.schema();
        let pieces = rows.map_ok(move |batch| {
            let (mut pieces, mut at) = (vec![], 0);
            while at < batch.num_rows() {
                let rows = (1 + chance(4) as usize).min(batch.num_rows() - at);
                pieces.push((batch.slice(at, rows), Duration::from_micros(chance(1500))));
                at += rows;
            }
            futures::stream::iter(pieces.into_iter().map(Ok))
        });
        let delayed = pieces.try_flatten().and_then(async |(piece, delay)| {
            tokio::time::sleep(delay).await;
            Ok(piece)
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(schema, delayed)))
    }
}

#[derive(Debug)]
struct GatedSink {
    inner: Arc<dyn Sink>,
    gate: Arc<Gate>,
    name: String,
    pins: Pins,
}

#[async_trait]
impl Sink for GatedSink {
    fn guarantee(&self) -> Guarantee {
        self.inner.guarantee()
    }
    async fn open(&self, run: u64) -> Result<()> {
        self.gate.pass(self.inner.open(run)).await
    }
    async fn progress(&self, epoch: u64, position: &serde_json::Value) -> Result<Progress> {
        self.gate.pass(self.inner.progress(epoch, position)).await
    }
    async fn prepare(&self, epoch: u64) -> Result<Pin> {
        let pin = self.gate.pass(self.inner.prepare(epoch)).await?;
        Ok(serde_json::json!([Clock::system().random_id(), pin]))
    }
    async fn stage(&self, epoch: u64, task: u32, pin: &Pin, rows: SendableRecordBatchStream) -> Result<Staged> {
        self.gate.pass(self.inner.stage(epoch, task, &pin[1], rows)).await
    }
    async fn publish(&self, epoch: u64, pin: &Pin) -> Result<Published> {
        let first = self.pins.lock().unwrap().entry((self.name.clone(), epoch)).or_insert_with(|| pin.clone()).clone();
        assert_eq!(&first, pin, "{} was published with another pin in epoch {epoch}", self.name);
        self.gate.pass(self.inner.publish(epoch, &pin[1])).await
    }
    async fn discard(&self, epoch: u64) {
        self.inner.discard(epoch).await
    }
    async fn forget(&self, committed: u64) -> Result<()> {
        self.inner.forget(committed).await
    }
    async fn sweep(&self, committed: u64) -> Result<()> {
        self.inner.sweep(committed).await
    }
    async fn retract(&self, epoch: u64) -> Result<()> {
        self.gate.pass(self.inner.retract(epoch)).await
    }
    async fn take_back(&self, epoch: u64) -> Result<u64> {
        self.gate.pass(self.inner.take_back(epoch)).await
    }
    async fn close(&self) {
        self.inner.close().await
    }
}
