//! The client library's own runtime: one per process, started by the first user, stopped behind the last.
//!
//! The library runs its connections on threads of its own and insists on an order of farewell: every consumer, producer
//! and admin first, then the client runtime, then, on a thread that belongs to no runtime, the threads themselves. Whoever
//! uses the library holds an [`Arc<Runtime>`]; the last one to let go starts that farewell in the background.
//!
//! What it does not promise: that a process which ends without [`shutdown`] says goodbye to the brokers. Nothing hangs
//! and nothing is lost by that; they notice the closed sockets.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use rocketmq_client_rust::{ClientRuntime, ClientRuntimeConfig, TelemetryHandle};
use rocketmq_runtime::{RuntimeConfig, RuntimeOwner, ShutdownDeadline};
use tokio::sync::oneshot;

use crate::error::{Error, Result};

/// How long clients may take to leave before their connections are cut.
const FAREWELL: Duration = Duration::from_secs(1);

/// Threads of the library: its work is small next to decoding.
const THREADS: usize = 2;

static SHARED: Mutex<Weak<Runtime>> = Mutex::new(Weak::new());

/// The library's threads and connections, shared by every table of the process.
pub struct Runtime {
    clients: Arc<ClientRuntime>,
    owner: Mutex<Option<RuntimeOwner>>,
}

impl fmt::Debug for Runtime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Runtime").field("stopped", &self.clients.is_shutdown()).finish()
    }
}

impl Runtime {
    /// The process's runtime; the first call starts it.
    pub fn shared() -> Result<Arc<Self>> {
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(running) = shared.upgrade().filter(|runtime| !runtime.clients.is_shutdown()) {
            return Ok(running);
        }
        let failed = |cause: Box<dyn std::error::Error + Send + Sync>| {
            Error::internal("the runtime of the RocketMQ client did not start").caused_by(cause)
        };
        let plan = RuntimeOwner::plan(RuntimeConfig::for_parallelism("rocketmq", THREADS));
        let owner = plan.map_err(|e| failed(e.into()))?.build().map_err(|e| failed(e.into()))?;
        let context = owner.root_context().component("client");
        let clients = ClientRuntime::try_new(context, ClientRuntimeConfig::default(), TelemetryHandle::noop())
            .map_err(|e| failed(e.into()))?;
        let runtime = Arc::new(Self { clients, owner: Mutex::new(Some(owner)) });
        *shared = Arc::downgrade(&runtime);
        Ok(runtime)
    }

    /// What the library's builders ask for.
    pub fn clients(&self) -> Arc<ClientRuntime> {
        Arc::clone(&self.clients)
    }

    fn take_owner(&self) -> Option<RuntimeOwner> {
        self.owner.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        if let Some(owner) = self.take_owner() {
            stop(Arc::clone(&self.clients), owner);
        }
    }
}

/// Stops the library, if it runs, and waits until its threads are gone: for the end of the process.
///
/// Tables that are still open find their connections closed.
pub async fn shutdown() {
    let shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner).upgrade();
    let Some(runtime) = shared else { return };
    if let Some(owner) = runtime.take_owner() {
        stop(runtime.clients(), owner).await.ok();
    }
}

/// Says goodbye in the library's order, on a thread of its own; the receiver hears when it is done.
fn stop(clients: Arc<ClientRuntime>, owner: RuntimeOwner) -> oneshot::Receiver<()> {
    let (done, heard) = oneshot::channel();
    let farewell = async move { clients.shutdown_until(ShutdownDeadline::after(FAREWELL)).await };
    alone(move || {
        block_on(farewell);
        if let Err(error) = owner.shutdown_runtime_blocking_with_timeout(FAREWELL) {
            tracing::debug!(%error, "the RocketMQ client's threads did not stop in time");
        }
        done.send(()).ok();
    });
    heard
}

/// Finishes `work` in the background: how a client that was dropped unclosed still leaves in order.
pub(super) fn detach(work: impl Future<Output = ()> + Send + 'static) {
    alone(move || {
        block_on(async { tokio::time::timeout(FAREWELL, work).await.ok() });
    });
}

/// Runs `work` on a thread that belongs to no runtime.
fn alone(work: impl FnOnce() + Send + 'static) {
    if let Err(error) = std::thread::Builder::new().name("rocketmq-close".into()).spawn(work) {
        tracing::warn!(%error, "no thread to close a RocketMQ client on; its connections are cut instead");
    }
}

fn block_on<T>(work: impl Future<Output = T>) {
    match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => drop(runtime.block_on(work)),
        Err(error) => tracing::warn!(%error, "a RocketMQ client was not closed in order"),
    }
}
