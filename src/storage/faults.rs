//! Stops at the k-th call: how the crash tests interrupt the engine between any two writes.
//!
//! A [`Gate`] counts calls. At the chosen one it trips: that call either never happens or happens and never answers, and
//! every later call hangs, as in a process that is gone. Whoever drives the test waits for [`Gate::tripped`], drops what
//! hangs, and starts anew. A gate can also hold a call back until it is told to go on, which is a pause.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::BoxStream;
use object_store::multipart::{MultipartStore, PartId};
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartId, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use tokio::sync::{Notify, Semaphore};

use super::{Location, Wrap};

/// Where in a call it stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// The call does not happen.
    Before,
    /// It happens, and its answer is lost.
    After,
}

/// Counts calls and stops at one of them.
#[derive(Debug)]
pub struct Gate {
    calls: AtomicU64,
    stop_at: u64,
    moment: Moment,
    stopped: AtomicBool,
    tripped: Notify,
    released: Semaphore,
}

impl Gate {
    /// Stops at call number `stop_at`, from 1; 0 never stops.
    pub fn new(stop_at: u64, moment: Moment) -> Arc<Self> {
        let (calls, stopped, tripped) = Default::default();
        Arc::new(Self { calls, stop_at, moment, stopped, tripped, released: Semaphore::new(0) })
    }

    /// Calls so far.
    pub fn calls(&self) -> u64 {
        self.calls.load(Ordering::SeqCst)
    }

    /// Returns once it has stopped a call.
    pub async fn tripped(&self) {
        self.tripped.notified().await;
    }

    /// Lets everything that hangs go on, and all later calls pass.
    pub fn release(&self) {
        self.released.add_permits(Semaphore::MAX_PERMITS / 2);
    }

    /// Makes a call through the gate.
    pub async fn pass<T>(&self, call: impl Future<Output = T>) -> T {
        let number = self.calls.fetch_add(1, Ordering::SeqCst) + 1;
        let is_the_one = number == self.stop_at;
        if is_the_one && self.moment == Moment::After {
            // Calls within this one still pass.
            let answer = call.await;
            self.stop();
            self.hang().await;
            return answer;
        }
        if is_the_one {
            self.stop();
        }
        if self.stopped.load(Ordering::SeqCst) {
            self.hang().await;
        }
        call.await
    }

    fn stop(&self) {
        self.stopped.store(true, Ordering::SeqCst);
        self.tripped.notify_one();
    }

    async fn hang(&self) {
        // The semaphore is never closed, so this is an answer or no answer at all.
        drop(self.released.acquire().await);
    }
}

impl Wrap for Arc<Gate> {
    fn wrap(&self, location: Location) -> Location {
        let gated = Gated { gate: Arc::clone(self), inner: location.clone() };
        Location { store: Arc::new(gated.clone()), uploads: Arc::new(gated), ..location }
    }
}

/// A store behind a gate.
#[derive(Debug, Clone)]
struct Gated {
    gate: Arc<Gate>,
    inner: Location,
}

impl fmt::Display for Gated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "gated {}", self.inner.store)
    }
}

#[async_trait]
impl ObjectStore for Gated {
    async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        self.gate.pass(self.inner.store.put_opts(location, payload, options)).await
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.inner.store.put_multipart_opts(location, options).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.gate.pass(self.inner.store.get_opts(location, options)).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let (gate, inner) = (Arc::clone(&self.gate), Arc::clone(&self.inner.store));
        let deleted = locations.then(move |location| {
            let (gate, inner) = (Arc::clone(&gate), Arc::clone(&inner));
            async move {
                let one = futures::stream::iter([location]).boxed();
                let mut answers = gate.pass(async move { inner.delete_stream(one).collect::<Vec<_>>().await }).await;
                answers.pop().unwrap_or_else(|| {
                    Err(object_store::Error::Generic { store: "gated", source: "no answer to a delete".into() })
                })
            }
        });
        deleted.boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let (gate, listed) = (Arc::clone(&self.gate), self.inner.store.list(prefix));
        futures::stream::once(async move { gate.pass(async move { listed }).await }).flatten().boxed()
    }

    fn list_with_offset(&self, prefix: Option<&Path>, offset: &Path) -> BoxStream<'static, Result<ObjectMeta>> {
        let (gate, listed) = (Arc::clone(&self.gate), self.inner.store.list_with_offset(prefix, offset));
        futures::stream::once(async move { gate.pass(async move { listed }).await }).flatten().boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.gate.pass(self.inner.store.list_with_delimiter(prefix)).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.gate.pass(self.inner.store.copy_opts(from, to, options)).await
    }
}

#[async_trait]
impl MultipartStore for Gated {
    async fn create_multipart(&self, path: &Path) -> Result<MultipartId> {
        self.gate.pass(self.inner.uploads.create_multipart(path)).await
    }

    async fn put_part(&self, path: &Path, id: &MultipartId, part_idx: usize, data: PutPayload) -> Result<PartId> {
        self.gate.pass(self.inner.uploads.put_part(path, id, part_idx, data)).await
    }

    async fn complete_multipart(&self, path: &Path, id: &MultipartId, parts: Vec<PartId>) -> Result<PutResult> {
        self.gate.pass(self.inner.uploads.complete_multipart(path, id, parts)).await
    }

    async fn abort_multipart(&self, path: &Path, id: &MultipartId) -> Result<()> {
        self.gate.pass(self.inner.uploads.abort_multipart(path, id)).await
    }
}
