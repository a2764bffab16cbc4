//! One partition's queue in librdkafka, read many messages at a time. **The only `unsafe` code of the library.**
//!
//! The idea: rdkafka's safe interface hands over one message per call, which costs half as much again in CPU, and hides
//! the offset of an end-of-partition event, without which an old event cannot be told from a new one. So this module
//! uses librdkafka's *simple consumer* (`rd_kafka_consume_start`, `_batch`, `_stop`): one queue per partition, no
//! consumer group, no coordinator, no permission on a group.
//!
//! What it guarantees: messages come in offset order, beginning at the offset given to [`PartitionQueue::start`], each
//! once; what was fetched for an earlier start never shows up. A message is borrowed from its queue, and a queue keeps
//! its topic handle and client alive, so nothing outlives what it points into.
//!
//! What it does not promise: that a message exists at an offset. Markers, aborted and compacted messages are absent.

#![allow(unsafe_code)]

use std::collections::{VecDeque, vec_deque};
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::time::Duration;

use rdkafka::bindings as native;
use rdkafka::bindings::rd_kafka_resp_err_t as Code;
use rdkafka::consumer::Consumer;
use rdkafka::error::RDKafkaErrorCode;

use super::client::Client;

/// A topic, as one client knows it.
pub(super) struct Topic {
    handle: NonNull<native::rd_kafka_topic_t>,
    client: Arc<Client>,
}

// SAFETY: librdkafka's handles may be used from any thread at any time; the handle is counted, and destroyed once.
unsafe impl Send for Topic {}
// SAFETY: as above.
unsafe impl Sync for Topic {}

impl Topic {
    /// The topic `name` of this client; no I/O. `None` if the name cannot be one.
    pub(super) fn new(client: Arc<Client>, name: &str) -> Option<Self> {
        let name = CString::new(name).ok()?;
        // SAFETY: the client lives in `client`; the name is copied; no configuration means the client's own.
        let handle = unsafe {
            native::rd_kafka_topic_new(client.consumer().client().native_ptr(), name.as_ptr(), ptr::null_mut())
        };
        Some(Self { handle: NonNull::new(handle)?, client })
    }

    /// The client behind it.
    pub(super) fn client(&self) -> &Client {
        &self.client
    }
}

impl Drop for Topic {
    fn drop(&mut self) {
        // SAFETY: made by `rd_kafka_topic_new`, not used after this; the client is dropped later, being a field.
        unsafe { native::rd_kafka_topic_destroy(self.handle.as_ptr()) }
    }
}

/// A fetched message, destroyed when dropped.
pub(super) struct Message(NonNull<native::rd_kafka_message_t>);

// SAFETY: a message may be read and destroyed on any thread, by one at a time.
unsafe impl Send for Message {}

impl Message {
    fn raw(&self) -> &native::rd_kafka_message_t {
        // SAFETY: librdkafka gave us this message, and it is valid until it is destroyed, in `drop`.
        unsafe { self.0.as_ref() }
    }

    /// Its offset.
    pub(super) fn offset(&self) -> u64 {
        u64::try_from(self.raw().offset).unwrap_or_default()
    }

    /// Its value, if it has one.
    pub(super) fn payload(&self) -> Option<&[u8]> {
        // SAFETY: `payload` and `len` describe memory that the message keeps alive.
        unsafe { bytes(self.raw().payload, self.raw().len) }
    }

    /// Its key, if it has one.
    pub(super) fn key(&self) -> Option<&[u8]> {
        // SAFETY: as for the payload.
        unsafe { bytes(self.raw().key, self.raw().key_len) }
    }

    /// Its timestamp in ms since 1970, and whether the broker's clock set it; absent in very old logs.
    pub(super) fn timestamp(&self) -> Option<(i64, bool)> {
        let mut kind = native::rd_kafka_timestamp_type_t::RD_KAFKA_TIMESTAMP_NOT_AVAILABLE;
        // SAFETY: the message is valid; `kind` is only written.
        let timestamp = unsafe { native::rd_kafka_message_timestamp(self.0.as_ptr(), &mut kind) };
        match kind {
            native::rd_kafka_timestamp_type_t::RD_KAFKA_TIMESTAMP_NOT_AVAILABLE => None,
            native::rd_kafka_timestamp_type_t::RD_KAFKA_TIMESTAMP_CREATE_TIME => Some((timestamp, false)),
            native::rd_kafka_timestamp_type_t::RD_KAFKA_TIMESTAMP_LOG_APPEND_TIME => Some((timestamp, true)),
        }
    }

    /// The epoch of the leader that it was fetched from; absent where the broker does not tell.
    pub(super) fn leader_epoch(&self) -> Option<i32> {
        // SAFETY: the message is valid.
        Some(unsafe { native::rd_kafka_message_leader_epoch(self.0.as_ptr()) }).filter(|epoch| *epoch >= 0)
    }

    /// Calls `each` with every header's name and value, in order.
    pub(super) fn headers(&self, mut each: impl FnMut(&str, Option<&[u8]>)) {
        let mut headers = ptr::null_mut();
        // SAFETY: the message is valid; the headers belong to it.
        if unsafe { native::rd_kafka_message_headers(self.0.as_ptr(), &mut headers) }
            != Code::RD_KAFKA_RESP_ERR_NO_ERROR
        {
            return;
        }
        for index in 0.. {
            let (mut name, mut value, mut size): (*const c_char, *const c_void, usize) = (ptr::null(), ptr::null(), 0);
            // SAFETY: the headers are valid; the three results point into them and are used before the message ends.
            unsafe {
                let code = native::rd_kafka_header_get_all(headers, index, &mut name, &mut value, &mut size);
                if code != Code::RD_KAFKA_RESP_ERR_NO_ERROR {
                    return;
                }
                each(&CStr::from_ptr(name).to_string_lossy(), bytes(value, size));
            }
        }
    }
}

impl Drop for Message {
    fn drop(&mut self) {
        // SAFETY: owned by this value alone, and not used after this.
        unsafe { native::rd_kafka_message_destroy(self.0.as_ptr()) }
    }
}

/// The bytes at `start`, if there are any to speak of.
///
/// # Safety
/// `start` is null, or points to `length` bytes that live as long as `'a`.
unsafe fn bytes<'a>(start: *const c_void, length: usize) -> Option<&'a [u8]> {
    // SAFETY: the caller's promise.
    (!start.is_null()).then(|| unsafe { std::slice::from_raw_parts(start.cast(), length) })
}

/// Something other than a message or an end: the partition delivers nothing more until it is started again.
#[derive(Debug)]
pub(super) struct Trouble {
    /// What librdkafka calls it.
    pub(super) code: RDKafkaErrorCode,
    /// What it says.
    pub(super) text: String,
}

/// The messages of one partition: fetched ahead by librdkafka, and those taken from it but not yet given away.
pub(super) struct PartitionQueue {
    taken: VecDeque<Message>,
    buffer: Vec<*mut native::rd_kafka_message_t>,
    reached: u64,
    partition: i32,
    started: bool,
    topic: Arc<Topic>,
}

// SAFETY: `buffer` is scratch space for a call and empty between calls; everything else is `Send`.
unsafe impl Send for PartitionQueue {}

impl PartitionQueue {
    /// A queue that is not yet started. There is one for each partition and client.
    pub(super) fn new(topic: Arc<Topic>, partition: i32) -> Self {
        Self { taken: VecDeque::new(), buffer: Vec::new(), reached: 0, partition, started: false, topic }
    }

    /// The client it belongs to.
    pub(super) fn client(&self) -> &Client {
        self.topic.client()
    }

    /// Begins at `offset`, whatever it did before.
    pub(super) fn start(&mut self, offset: u64) -> Result<(), RDKafkaErrorCode> {
        self.stop();
        self.reached = offset;
        let offset = i64::try_from(offset).unwrap_or(i64::MAX);
        // SAFETY: the handle is valid as long as `topic`; the offset is not negative, hence not a magic one.
        match unsafe { native::rd_kafka_consume_start(self.topic.handle.as_ptr(), self.partition, offset) } {
            0 => {
                self.started = true;
                Ok(())
            }
            // SAFETY: reads a variable of this thread.
            _ => Err(unsafe { native::rd_kafka_last_error() }.into()),
        }
    }

    /// Forgets all messages and fetches no more.
    pub(super) fn stop(&mut self) {
        self.taken.clear();
        if std::mem::take(&mut self.started) {
            // SAFETY: the handle is valid as long as `topic`.
            unsafe { native::rd_kafka_consume_stop(self.topic.handle.as_ptr(), self.partition) };
        }
    }

    /// Whether it fetches.
    #[cfg(test)]
    pub(super) fn is_started(&self) -> bool {
        self.started
    }

    /// Takes up to `limit` messages, waiting up to `wait` for the first. An end of the partition moves
    /// [`reached`](Self::reached) and is otherwise silent. Whether there was any progress, and what stopped it if
    /// something did.
    pub(super) fn poll(&mut self, limit: usize, wait: Duration) -> (bool, Option<Trouble>) {
        let before = self.reached;
        let mut trouble = self.take(limit, Duration::ZERO);
        if self.reached == before && trouble.is_none() && !wait.is_zero() {
            trouble = self.take(1, wait);
            if self.reached > before && trouble.is_none() && limit > 1 {
                trouble = self.take(limit - 1, Duration::ZERO);
            }
        }
        (self.reached > before, trouble)
    }

    /// One call of librdkafka, which returns when it has `limit` entries or `wait` is over.
    fn take(&mut self, limit: usize, wait: Duration) -> Option<Trouble> {
        self.buffer.clear();
        self.buffer.resize(limit, ptr::null_mut());
        let wait = c_int::try_from(wait.as_millis()).unwrap_or(c_int::MAX);
        let (topic, into) = (self.topic.handle.as_ptr(), self.buffer.as_mut_ptr());
        // SAFETY: `into` has room for `limit` pointers; those filled in are ours to destroy.
        let filled = unsafe { native::rd_kafka_consume_batch(topic, self.partition, wait, into, limit) };
        let mut trouble = None;
        for raw in self.buffer.drain(..).take(usize::try_from(filled).unwrap_or(0)) {
            let Some(message) = NonNull::new(raw).map(Message) else { continue };
            match message.raw().err {
                _ if trouble.is_some() => {}
                Code::RD_KAFKA_RESP_ERR_NO_ERROR if message.offset() < self.reached => {}
                Code::RD_KAFKA_RESP_ERR_NO_ERROR => {
                    self.reached = message.offset() + 1;
                    self.taken.push_back(message);
                }
                Code::RD_KAFKA_RESP_ERR__PARTITION_EOF => self.reached = self.reached.max(message.offset()),
                code => {
                    // SAFETY: the message is valid, and its text is copied before it ends.
                    let text = unsafe { CStr::from_ptr(native::rd_kafka_message_errstr(raw)) };
                    trouble = Some(Trouble { code: code.into(), text: text.to_string_lossy().into_owned() });
                }
            }
        }
        trouble
    }

    /// Every message below this offset, and not below the start, has been taken.
    pub(super) fn reached(&self) -> u64 {
        self.reached
    }

    /// Messages taken and not yet dropped, in order.
    pub(super) fn taken(&self) -> vec_deque::Iter<'_, Message> {
        self.taken.iter()
    }

    /// Drops the first `count` taken messages.
    pub(super) fn drop_first(&mut self, count: usize) {
        self.taken.drain(..count);
    }

    /// Drops taken messages below `offset`.
    pub(super) fn drop_before(&mut self, offset: u64) {
        while self.taken.front().is_some_and(|message| message.offset() < offset) {
            self.taken.pop_front();
        }
    }
}

impl Drop for PartitionQueue {
    fn drop(&mut self) {
        self.stop();
    }
}

impl std::fmt::Debug for PartitionQueue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PartitionQueue").field("partition", &self.partition).field("reached", &self.reached).finish()
    }
}
