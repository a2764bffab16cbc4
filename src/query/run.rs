//! The life of a query around its epochs: opening it, waiting for the trigger, starting over after trouble, the end.
//!
//! Guarantee: a stop that is asked for never cuts an epoch short, and an error is final only where another try is no use
//! or enough of them were made in a row (`restart.max-attempts`). Opening is not tried again: a wrong address should
//! show soon, and a supervisor starts the process anew.

use std::time::Duration;

use tokio::sync::watch;

use super::progress::{Event, Reporter};
use super::trigger::Trigger;
use super::{Position, Query, QuerySpec, Step};
use crate::error::{Error, Kind, Result};

/// How often in a row an epoch is started over in process, unless `restart.max-attempts` says otherwise: the waits
/// between come to six minutes, and connectors wait as well.
const MAX_ATTEMPTS: u32 = 40;
/// The waits between: doubling from the first to the last.
const FIRST_WAIT: Duration = Duration::from_millis(200);
const LONGEST_WAIT: Duration = Duration::from_secs(10);
/// How long an idle query waits before it asks its sources again: doubling from the first to the last.
const FIRST_LOOK: Duration = Duration::from_millis(2);
const LONGEST_LOOK: Duration = Duration::from_millis(150);

impl Query {
    /// Opens a query and runs it to its end; a stop while it is being opened ends it where it is.
    pub async fn drive(spec: QuerySpec, reporter: Reporter, mut stop: watch::Receiver<bool>) -> Result<Position> {
        let opened = tokio::select! {
            opened = Query::open(spec, reporter) => opened?,
            () = told_to_stop(&mut stop) => return Ok(Position::default()),
        };
        opened.run_until(stop).await
    }

    /// Runs until all streams end, `stop` becomes true (the epoch under way is finished first), or an error is final.
    pub async fn run_until(mut self, mut stop: watch::Receiver<bool>) -> Result<Position> {
        let mut look = FIRST_LOOK;
        let outcome = loop {
            if *stop.borrow() {
                break Ok(());
            }
            let started = self.start_us();
            match self.step().await {
                Ok(Step::Finished) => break Ok(()),
                Ok(Step::Committed(_)) => {
                    look = FIRST_LOOK;
                    self.acknowledge();
                    if let Trigger::Every(interval) = self.spec.trigger
                        && !self.is_behind
                    {
                        let spent = Duration::from_millis(self.ms_since(started) as u64);
                        wait(interval.saturating_sub(spent), &mut stop).await;
                    }
                }
                Ok(Step::Idle) => {
                    self.acknowledge();
                    wait(look, &mut stop).await;
                    look = (look * 2).min(LONGEST_LOOK);
                }
                Err(error) => {
                    if let Err(error) = self.start_over(error, &mut stop).await {
                        break Err(error);
                    }
                }
            }
        };
        if outcome.as_ref().is_err_and(|error: &Error| error.kind() == Kind::Fenced) {
            self.acknowledge_no_more();
        }
        self.close().await;
        outcome.map(|()| self.position)
    }

    /// After trouble: waits and recovers, until that succeeds; gives the error back where another try is no use.
    async fn start_over(&mut self, mut error: Error, stop: &mut watch::Receiver<bool>) -> Result<()> {
        let limit = self.spec.environment.number("restart.max-attempts").unwrap_or(MAX_ATTEMPTS);
        if self.can_go_on_without(&error) {
            self.begin_doubt();
            error = Error::transient("messages are gone, and the epoch is run again without them").caused_by(error);
        }
        loop {
            self.retries += 1;
            if error.kind() != Kind::Transient || *stop.borrow() {
                return Err(error);
            }
            if self.retries > limit {
                return Err(error.context(format_args!("given up after {limit} tries")));
            }
            let wait_for = FIRST_WAIT.saturating_mul(1 << (self.retries - 1).min(16)).min(LONGEST_WAIT);
            self.reporter.report(Event::Retry {
                query: self.spec.name.clone(),
                attempt: self.retries,
                error: error.chain(),
                wait_ms: wait_for.as_millis() as u64,
            });
            wait(wait_for, stop).await;
            match self.recover().await {
                Ok(()) => return Ok(()),
                Err(again) => error = again,
            }
        }
    }
}

/// Waits, but not longer than until `stop` changes.
async fn wait(duration: Duration, stop: &mut watch::Receiver<bool>) {
    tokio::select! {
        () = tokio::time::sleep(duration) => {}
        () = told_to_stop(stop) => {}
    }
}

/// Returns when `stop` is true; never, if nobody is left to say so.
async fn told_to_stop(stop: &mut watch::Receiver<bool>) {
    if stop.wait_for(|is_told| *is_told).await.is_err() {
        std::future::pending::<()>().await;
    }
}
