//! Rows waiting to be published: in memory up to 8 MB, beyond that in an unnamed temporary file.
//!
//! A topic sink without transactions stages here, so that nothing is readable before all tasks have staged, and memory
//! does not grow with the epoch. What is in a spool is gone with the process; the epoch is then run again.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{Seek, SeekFrom};
use std::sync::{Mutex, MutexGuard, PoisonError};

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use arrow::ipc::reader::StreamReader;
use arrow::ipc::writer::StreamWriter;
use datafusion::execution::SendableRecordBatchStream;
use futures::StreamExt;
use tempfile::SpooledTempFile;

use super::Staged;
use crate::error::Result;

/// What stays in memory.
const IN_MEMORY: usize = 8 << 20;

/// A spool that is being written.
pub struct Spool {
    writer: StreamWriter<SpooledTempFile>,
}

impl fmt::Debug for Spool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Spool")
    }
}

impl Spool {
    /// An empty one for batches of `schema`.
    pub fn try_new(schema: &SchemaRef) -> Result<Self> {
        Ok(Self { writer: StreamWriter::try_new(SpooledTempFile::new(IN_MEMORY), schema)? })
    }

    /// Appends a batch.
    pub fn write(&mut self, batch: &RecordBatch) -> Result<()> {
        Ok(self.writer.write(batch)?)
    }

    /// Ends it; what comes back can be read from its start, any number of times.
    pub fn finish(self) -> Result<Spooled> {
        Ok(Spooled { file: self.writer.into_inner()? })
    }
}

/// A spool that is complete.
#[derive(Debug)]
pub struct Spooled {
    file: SpooledTempFile,
}

impl Spooled {
    /// Its batches, from the first, which end with it.
    pub fn into_batches(mut self) -> Result<impl Iterator<Item = Result<RecordBatch>> + Send> {
        self.file.seek(SeekFrom::Start(0))?;
        Ok(StreamReader::try_new(self.file, None)?.map(|batch| Ok(batch?)))
    }

    /// Its batches, from the first.
    pub fn read(&mut self) -> Result<impl Iterator<Item = Result<RecordBatch>> + '_> {
        self.file.seek(SeekFrom::Start(0))?;
        let reader = StreamReader::try_new(&mut self.file, None)?;
        Ok(reader.map(|batch| Ok(batch?)))
    }
}

/// What the tasks of epochs have staged.
#[derive(Debug, Default)]
pub struct Waiting(Mutex<BTreeMap<u64, BTreeMap<u32, Spooled>>>);

impl Waiting {
    fn epochs(&self) -> MutexGuard<'_, BTreeMap<u64, BTreeMap<u32, Spooled>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the rows of one task.
    pub async fn stage(&self, epoch: u64, task: u32, mut rows: SendableRecordBatchStream) -> Result<Staged> {
        let mut spool = Spool::try_new(&rows.schema())?;
        let mut staged = Staged::default();
        while let Some(batch) = rows.next().await {
            let batch = batch?;
            spool.write(&batch)?;
            staged.rows += batch.num_rows() as u64;
        }
        self.epochs().entry(epoch).or_default().insert(task, spool.finish()?);
        Ok(staged)
    }

    /// What was staged for an epoch, by task; it waits no longer.
    pub fn take(&self, epoch: u64) -> BTreeMap<u32, Spooled> {
        self.epochs().remove(&epoch).unwrap_or_default()
    }
}
