//! The messages of exactly one span, the same every time, in batches.
//!
//! A queue is pulled in stretches, several at once, and gathered in order: see `stretches`, and `pull` for what is held
//! against the broker's answers.
//!
//! With a filter messages that retention removes meanwhile look to the broker like such that do not pass: so when all is
//! read, the first message of the span must still be there, whether it passes or not, and all others with it, as the
//! oldest go first.

use std::sync::Arc;

use arrow::array::{BinaryArray, BinaryBuilder};
use datafusion::common::runtime::SpawnedTask;
use futures::{Stream, StreamExt, stream};
use rocketmq_model::common::message::message_ext::MessageExt;
use tokio::sync::mpsc;

use super::compression::append_body;
use super::message::is_tombstone;
use super::metadata::Column;
use super::pull::{Puller, fingerprint};
use super::stretches::{Ahead, joined};
use crate::connector::Fingerprint;
use crate::connector::messages::MessageBatch;
use crate::error::{Error, Result};
use crate::format::BadPayload;

/// What is gathered into one batch: stock brokers give 32 messages a pull, decoding likes thousands.
const BATCH_MESSAGES: usize = 8192;
const BATCH_BYTES: usize = 4 << 20;

/// Batches that wait for decoding while the next one is gathered.
const BATCHES: usize = 2;

/// Reads one span.
#[derive(Debug)]
pub(super) struct SpanReader {
    /// Asks for its messages.
    pub(super) puller: Arc<Puller>,
    /// The metadata to bring, in order.
    pub(super) metadata: Vec<String>,
    /// What was pulled of the table beyond other spans.
    pub(super) ahead: Arc<Ahead>,
}

impl SpanReader {
    /// The messages, in offset order, by a task of its own that is a little ahead.
    pub(super) fn messages(self) -> impl Stream<Item = Result<MessageBatch>> + Send {
        let start = async move {
            let (sender, receiver) = mpsc::channel(BATCHES);
            let name = self.puller.place(self.puller.span.from);
            let task = SpawnedTask::spawn(self.gather(sender));
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

    /// Sends the messages.
    async fn gather(self, sender: mpsc::Sender<MessageBatch>) -> Result<()> {
        let Puller { span, filter, .. } = &*self.puller;
        let mut gathered = Gathered::new(&self)?;
        let mut stretches = self.ahead.stretches(&self.puller);
        while let Some(pulled) = stretches.next().await? {
            for message in pulled.messages() {
                if filter.as_ref().is_none_or(|filter| filter.passes(message)) {
                    gathered.append(message)?;
                }
            }
            if gathered.is_full()
                && let Some(batch) = gathered.finish()
                && sender.send(batch).await.is_err()
            {
                return Ok(());
            }
        }
        if let Some(batch) = gathered.finish()
            && sender.send(batch).await.is_err()
        {
            return Ok(());
        }
        stretches.keep();
        if filter.is_some() && !span.is_empty() {
            self.puller.first().await?;
        }
        Ok(())
    }
}

/// Messages on their way into a batch.
#[derive(Debug, Default)]
struct Gathered {
    payloads: BinaryBuilder,
    broken: Vec<BadPayload>,
    offsets: Vec<u64>,
    metadata: Vec<Column>,
    last: Option<Fingerprint>,
    body: Vec<u8>,
    bytes: usize,
}

impl Gathered {
    fn new(reader: &SpanReader) -> Result<Self> {
        let queue = reader.puller.topics.queue(&reader.puller.span.partition);
        let column = |key: &String| {
            Column::new(key, queue)
                .ok_or_else(|| Error::internal(format!("table {}: there is no metadata '{key}'", reader.puller.table)))
        };
        let metadata = reader.metadata.iter().map(column).collect::<Result<_>>()?;
        Ok(Self { metadata, ..Self::default() })
    }

    fn append(&mut self, message: &MessageExt) -> Result<()> {
        self.body.clear();
        match message.body() {
            None => self.payloads.append_null(),
            Some(body) if is_tombstone(&body, &message.message) => self.payloads.append_null(),
            Some(body) => match append_body(message.sys_flag, &body, &mut self.body) {
                Ok(()) => self.payloads.append_value(&self.body),
                Err(reason) => {
                    self.broken.push(BadPayload { index: self.offsets.len(), reason: reason.to_string() });
                    self.payloads.append_value(&body);
                }
            },
        }
        self.bytes += self.body.len();
        for column in &mut self.metadata {
            column.append(message)?;
        }
        self.offsets.push(message.queue_offset as u64);
        self.last = Some(fingerprint(message));
        Ok(())
    }

    fn is_full(&self) -> bool {
        self.offsets.len() >= BATCH_MESSAGES || self.bytes >= BATCH_BYTES
    }

    fn finish(&mut self) -> Option<MessageBatch> {
        let last = self.last.take()?;
        let offsets = std::mem::take(&mut self.offsets);
        let metadata = self.metadata.iter_mut().map(|column| column.finish(&offsets)).collect();
        let payloads: BinaryArray = self.payloads.finish();
        self.bytes = 0;
        Some(MessageBatch { payloads, broken: std::mem::take(&mut self.broken), offsets, metadata, last })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_that_cannot_be_decompressed_is_handed_on_as_it_came() {
        let mut message = MessageExt::default();
        message.set_sys_flag(1);
        message.message.set_body(Some(bytes::Bytes::from_static(b"garbage")));
        let mut gathered = Gathered::default();
        gathered.append(&message).unwrap();
        let batch = gathered.finish().unwrap();
        assert_eq!((batch.payloads.value(0), batch.broken.len(), batch.broken[0].index), (&b"garbage"[..], 1, 0));
    }
}
