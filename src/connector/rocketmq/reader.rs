//! The messages of exactly one span, the same every time, in batches.
//!
//! A queue is pulled in stretches, several at once, which are taken in order: see `stretches`, and `pull` for what is held
//! against the broker's answers.
//!
//! With a filter messages that retention removes meanwhile look to the broker like such that do not pass: so when all is
//! read, the first message of the span must still be there, whether it passes or not, and all others with it, as the
//! oldest go first.

use std::sync::Arc;

use datafusion::common::runtime::SpawnedTask;
use futures::{Stream, StreamExt, stream};
use tokio::sync::mpsc;

use super::pull::Puller;
use super::stretches::{Ahead, joined};
use crate::connector::messages::MessageBatch;
use crate::error::Result;

/// Batches that wait for decoding.
const BATCHES: usize = 4;

/// Reads one span.
#[derive(Debug)]
pub(super) struct SpanReader {
    /// Asks for its messages.
    pub(super) puller: Arc<Puller>,
    /// What was pulled of the table beyond other spans.
    pub(super) ahead: Arc<Ahead>,
}

impl SpanReader {
    /// The messages, in offset order, by a task of its own that is a little ahead.
    pub(super) fn messages(self) -> impl Stream<Item = Result<MessageBatch>> + Send {
        let start = async move {
            let (sender, receiver) = mpsc::channel(BATCHES);
            let name = self.puller.place(self.puller.span.from);
            let task = SpawnedTask::spawn(self.send(sender));
            stream::unfold((receiver, Some(task), name), |(mut receiver, mut task, name)| async move {
                let next = match receiver.recv().await {
                    Some(batch) => Ok(batch),
                    // The end of the channel is the end of the task, which says how it went.
                    None => match joined(task.take()?, &name).await {
                        Ok(()) => return None,
                        Err(error) => Err(error),
                    },
                };
                Some((next, (receiver, task, name)))
            })
        };
        stream::once(start).flatten()
    }

    async fn send(self, sender: mpsc::Sender<MessageBatch>) -> Result<()> {
        let mut stretches = self.ahead.stretches(&self.puller);
        while let Some(batch) = stretches.next().await? {
            if sender.send(batch).await.is_err() {
                return Ok(());
            }
        }
        stretches.keep();
        if self.puller.filter.is_some() && !self.puller.span.is_empty() {
            self.puller.first().await?;
        }
        Ok(())
    }
}
