//! Local checkpoints: at every commit nothing it depends on is unsynced.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use millstream::clock::Clock;
use millstream::connector::Connectors;
use millstream::connector::memory::{Memory, MemoryConnector};
use millstream::storage::Stores;
use millstream::storage::local::{FileLayer, SystemFiles};
use object_store::PutPayload;

use crate::harness::{World, run_to_end};

/// Passes everything on, and keeps what a power loss could still take away.
#[derive(Debug, Default)]
struct Recorder {
    unsynced: Mutex<BTreeSet<PathBuf>>,
    commits: Mutex<u32>,
}

impl Recorder {
    fn unsynced(&self, path: &Path) {
        self.unsynced.lock().unwrap().insert(path.to_owned());
    }

    fn named(&self, from: &Path, to: &Path) {
        if to.parent().is_some_and(|p| p.ends_with("commits")) && to.extension().is_some_and(|e| e == "json") {
            let unsynced = self.unsynced.lock().unwrap();
            // Staged names are scratch; what counts is every name outside and the data that it leads to.
            let open: Vec<_> = unsynced.iter().filter(|path| !path.ends_with(".staged")).collect();
            assert!(open.is_empty(), "a commit is named while these are not synced: {open:?}");
            *self.commits.lock().unwrap() += 1;
        }
        assert!(!self.unsynced.lock().unwrap().contains(from), "{to:?} is named before its data is synced");
        self.unsynced(to.parent().unwrap());
    }
}

impl FileLayer for Recorder {
    fn append(&self, path: &Path, payload: &PutPayload) -> io::Result<()> {
        self.unsynced(path);
        SystemFiles.append(path, payload)
    }
    fn sync(&self, path: &Path) -> io::Result<()> {
        self.unsynced.lock().unwrap().remove(path);
        SystemFiles.sync(path)
    }
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        SystemFiles.create_dir(path)?;
        self.unsynced(path.parent().unwrap());
        Ok(())
    }
    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.unsynced.lock().unwrap().remove(path);
        SystemFiles.sync_dir(path)
    }
    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        SystemFiles.link(from, to)?;
        self.named(from, to);
        Ok(())
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        SystemFiles.rename(from, to)?;
        self.named(from, to);
        Ok(())
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        self.unsynced.lock().unwrap().remove(path);
        SystemFiles.remove(path)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_every_commit_no_unsynced_write_is_outstanding() {
    let dir = tempfile::tempdir().unwrap();
    let recorder = Arc::new(Recorder::default());
    let memory = Memory::new();
    let world = World { memory: memory.clone(), ..World::new() };
    (0..3).for_each(|partition| world.append("input", partition, 0..50));
    let files: Arc<dyn FileLayer> = Arc::<Recorder>::clone(&recorder);
    let stores = Stores::over(Clock::system(), files);
    let connectors = Connectors::standard().with(Arc::new(MemoryConnector::new(memory)));
    let path = dir.path().display();
    let script = format!(
        "SET 'checkpoint.location' = '{path}/ck'; SET 'epoch.trigger' = 'available-now';
         CREATE TABLE input (n BIGINT)
           WITH ('connector' = 'memory', 'topic' = 'input', 'scan.max-rows-per-epoch' = '30');
         CREATE TABLE output (n BIGINT, day STRING) PARTITIONED BY (day)
           WITH ('connector' = 'filesystem', 'path' = '{path}/out', 'format' = 'parquet');
         INSERT INTO output SELECT n, CAST(n % 3 AS STRING) FROM input;"
    );
    run_to_end(world.plan_with(&script, stores, connectors).await.unwrap()).await.unwrap();
    assert_eq!(*recorder.commits.lock().unwrap(), 5);
}
