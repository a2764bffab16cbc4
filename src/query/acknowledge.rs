//! Telling the brokers' own tools where a query stands.
//!
//! The idea: behind the commits, and beside the epochs, once a second at most, and once more at the end. So lag shows where
//! people look for it.
//!
//! Not promised: that the brokers know the newest commit. The checkpoint alone says where a query goes on.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;

use super::Query;

/// How far apart, in ms.
const APART_MS: f64 = 1000.0;
/// How long a query that ends waits for it.
const LAST: Duration = Duration::from_secs(5);

/// What was told last.
#[derive(Debug, Default)]
pub(super) struct Acknowledged {
    epoch: u64,
    /// When, by the monotonic clock.
    at_us: u64,
    running: Option<JoinHandle<()>>,
}

impl Query {
    /// Tells, if there is something new and it is time.
    pub(super) fn acknowledge(&mut self) {
        let Acknowledged { epoch, at_us, running } = &self.acknowledged;
        let is_running = running.as_ref().is_some_and(|running| !running.is_finished());
        if *epoch == self.position.epoch || is_running || self.ms_since(*at_us) < APART_MS {
            return;
        }
        let running = Some(tokio::spawn(self.telling()));
        self.acknowledged = Acknowledged { epoch: self.position.epoch, at_us: self.start_us(), running };
    }

    /// Another run has taken over, and tells more than this one knows.
    pub(super) fn acknowledge_no_more(&mut self) {
        self.acknowledged.epoch = self.position.epoch;
    }

    /// Tells what was not told yet, and waits for it, but not for long.
    pub(super) async fn acknowledge_all(&mut self) {
        let running = self.acknowledged.running.take();
        let rest = (self.acknowledged.epoch != self.position.epoch).then(|| self.telling());
        let all = async {
            if let Some(running) = running {
                let _ = running.await;
            }
            if let Some(rest) = rest {
                rest.await;
            }
        };
        if tokio::time::timeout(LAST, all).await.is_err() {
            tracing::warn!(
                query = self.spec.name,
                "the brokers do not answer, so their tools may show an older position"
            );
        }
    }

    fn telling(&self) -> impl Future<Output = ()> + Send + 'static {
        let opener = Arc::clone(&self.opened.opener);
        let tables = self.opened.planned.tables().into_values().filter(|_| self.spec.acknowledges);
        let positions: Vec<_> = tables.map(|table| (self.offsets(&table.name), table)).collect();
        async move {
            for (offsets, table) in positions {
                // One that cannot be opened says so when it is read.
                if let Ok(source) = opener.source(&table).await {
                    source.acknowledge(&offsets).await;
                }
            }
        }
    }
}
