//! Rows into Parquet files: exactly once, for any reader of the directory.
//!
//! The idea: a file's name is `<id>-<epoch>-<task>-<n>.parquet`, and its rows follow from the intent, so an epoch that is
//! run again writes the same names with the same rows. Nothing is readable before publish: up to 8 MB are held and put
//! then (64 MB of all files together); what is larger goes into an upload that publish completes. An upload's id is noted under the checkpoint, so
//! that it can be aborted after a crash.
//!
//! Which row lies in which file must not depend on how the rows arrived, so they are first cut into blocks of exactly
//! 8,192 rows, and a file ends after a block, by its rows or its Arrow bytes, never by its encoded size.
//!
//! Not promised: that the files of one epoch appear together.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::compute::BatchCoalescer;
use arrow::datatypes::{DataType, FieldRef, SchemaRef};
use async_trait::async_trait;
use bytes::Bytes;
use datafusion::execution::SendableRecordBatchStream;
use futures::stream::{self, StreamExt, TryStreamExt};
use object_store::multipart::PartId;
use object_store::path::Path;
use object_store::{ObjectMeta, ObjectStoreExt, PutPayload};
use parquet::arrow::ArrowWriter;
use parquet::file::properties::WriterProperties;
use serde::{Deserialize, Serialize};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::FileOptions;
use super::partitions::Splitter;
use crate::catalog::TableDefinition;
use crate::connector::{Guarantee, Owner, Pin, Published, Sink, Staged};
use crate::error::{Error, Result};
use crate::storage::Location;

/// Rows in a block.
const BLOCK: usize = 8192;
/// What is held in memory until publish; also the size of an upload's parts.
const HELD: usize = 8 << 20;
/// What all files of an epoch hold so, together; what comes after goes into uploads, however small.
const HELD_IN_ALL: usize = 64 << 20;
/// How many directories one task writes side by side.
const OPEN_DIRECTORIES: usize = 64;
/// How many files are put or completed side by side.
const PUBLISHING: usize = 16;

/// Writes Parquet: see the module's text.
#[derive(Debug)]
pub struct ParquetSink {
    /// The journal's folder for uploads; another sink of the query has its own.
    uploads: String,
    schema: SchemaRef,
    partitioned_by: Vec<String>,
    options: FileOptions,
    location: Location,
    owner: Owner,
    guarantee: Guarantee,
    staged: Mutex<BTreeMap<(u64, u32), Vec<StagedFile>>>,
    /// A permit for each byte that may be held.
    holding: Arc<Semaphore>,
}

/// A file that is complete, and that nobody can read yet.
#[derive(Debug)]
struct StagedFile {
    name: String,
    rows: u64,
    bytes: u64,
    body: Body,
}

#[derive(Debug)]
enum Body {
    Held(Vec<u8>, OwnedSemaphorePermit),
    Upload { id: String, parts: Vec<PartId> },
}

/// A note of an upload.
#[derive(Debug, Serialize, Deserialize)]
struct UploadNote {
    path: String,
    id: String,
}

impl ParquetSink {
    pub(super) fn try_new(
        table: &TableDefinition,
        options: FileOptions,
        location: Location,
        owner: Owner,
        guarantee: Guarantee,
    ) -> Result<Self> {
        let schema = table.writable_schema();
        let partitioned_by = table.partitioned_by.clone();
        Ok(Self {
            uploads: format!("uploads-{}", table.name),
            schema,
            partitioned_by,
            options,
            location,
            owner,
            guarantee,
            staged: Mutex::default(),
            holding: Arc::new(Semaphore::new(HELD_IN_ALL)),
        })
    }

    /// The epoch of a file of this query.
    fn epoch_of(&self, name: &str) -> Option<u64> {
        name.strip_prefix(&*self.owner.id)?.strip_prefix('-')?.split('-').next()?.parse().ok()
    }

    /// Removes the files of these epochs, and what was staged of them; how many files a reader could see. Another may be
    /// removing them, too.
    async fn remove(&self, is_meant: impl Fn(u64) -> bool) -> Result<u64> {
        let is_mine =
            |meta: &ObjectMeta| meta.location.filename().and_then(|name| self.epoch_of(name)).is_some_and(&is_meant);
        let files = self.location.store.list(Some(&self.location.prefix));
        let mine: Vec<ObjectMeta> = files.try_filter(|meta| std::future::ready(is_mine(meta))).try_collect().await?;
        let paths = stream::iter(mine.into_iter().map(|meta| Ok(meta.location)));
        let (mut answers, mut count) = (self.location.store.delete_stream(paths.boxed()), 0);
        while let Some(answer) = answers.next().await {
            match answer {
                Ok(path) => count += u64::from(path.extension() == Some("parquet")),
                Err(object_store::Error::NotFound { .. }) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(count)
    }

    /// The path of a file; a directory's name is escaped already, and must not be a second time.
    fn path(&self, name: &str) -> Result<Path> {
        let path = format!("{}/{name}", self.location.prefix);
        Path::parse(&path).map_err(|e| Error::data(format!("'{path}' cannot be a path")).caused_by(e))
    }

    fn take(&self, epoch: u64) -> Vec<StagedFile> {
        let mut staged = self.staged.lock().unwrap_or_else(PoisonError::into_inner);
        let later = staged.split_off(&(epoch + 1, 0));
        let taken = std::mem::replace(&mut *staged, later);
        taken.into_values().flatten().collect()
    }

    /// The permit to hold so many bytes more, if they may be held.
    fn hold(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        let wanted = u32::try_from(bytes).ok().filter(|_| bytes <= HELD)?;
        Arc::clone(&self.holding).try_acquire_many_owned(wanted).ok()
    }

    async fn publish_file(&self, file: StagedFile) -> Result<()> {
        let path = self.path(&file.name)?;
        match file.body {
            Body::Held(bytes, _permit) => {
                drop(self.location.store.put(&path, PutPayload::from(Bytes::from(bytes))).await?)
            }
            Body::Upload { id, parts } => {
                drop(self.location.uploads.complete_multipart(&path, &id, parts).await?);
            }
        }
        Ok(())
    }

    async fn abort(&self, name: &str, id: &String) {
        let aborted = match self.path(name) {
            Ok(path) => self.location.uploads.abort_multipart(&path, id).await.map_err(Error::from),
            Err(error) => Err(error),
        };
        if let Err(error) = aborted {
            // An upload that was completed cannot be aborted; nothing is left of it either.
            tracing::debug!(name, %error, "an upload was not aborted");
        }
    }
}

#[async_trait]
impl Sink for ParquetSink {
    fn guarantee(&self) -> Guarantee {
        self.guarantee.clone()
    }

    async fn open(&self, _run: u64) -> Result<()> {
        Ok(())
    }

    async fn stage(&self, epoch: u64, task: u32, _: &Pin, mut rows: SendableRecordBatchStream) -> Result<Staged> {
        let mut writer = TaskWriter::try_new(self, epoch, task)?;
        let mut blocks = BatchCoalescer::new(Arc::clone(&self.schema), BLOCK);
        while let Some(batch) = rows.next().await {
            blocks.push_batch(batch?)?;
            while let Some(block) = blocks.next_completed_batch() {
                writer.write(block).await?;
            }
        }
        blocks.finish_buffered_batch()?;
        while let Some(block) = blocks.next_completed_batch() {
            writer.write(block).await?;
        }
        let files = writer.finish().await?;
        let staged =
            Staged { rows: files.iter().map(|file| file.rows).sum(), bytes: files.iter().map(|file| file.bytes).sum() };
        self.staged.lock().unwrap_or_else(PoisonError::into_inner).insert((epoch, task), files);
        Ok(staged)
    }

    async fn publish(&self, epoch: u64, _: &Pin) -> Result<Published> {
        let files = self.take(epoch);
        let mut published = Published::default();
        let mut names = vec![];
        for file in &files {
            published.rows += file.rows;
            published.bytes += file.bytes;
            names.push(file.name.clone());
        }
        let puts = files.into_iter().map(|file| Ok(self.publish_file(file)));
        stream::iter(puts).try_buffer_unordered(PUBLISHING).try_collect::<()>().await?;
        published.position = serde_json::json!({ "files": names });
        Ok(published)
    }

    async fn discard(&self, epoch: u64) {
        for file in self.take(epoch) {
            if let Body::Upload { id, .. } = &file.body {
                self.abort(&file.name, id).await;
            }
        }
    }

    /// Removes the epoch's files. Whoever reads the directory meanwhile may have seen them.
    async fn retract(&self, epoch: u64) -> Result<()> {
        self.remove(|other| other == epoch).await.map(drop)
    }

    async fn take_back(&self, epoch: u64) -> Result<u64> {
        self.remove(|other| other > epoch).await
    }

    /// Aborts what uploads of committed epochs were left by runs that died. No grace is needed: of a committed epoch
    /// every file is published, so an upload that is still open can only be a dead run's, or that of one which will be
    /// fenced before it publishes.
    async fn forget(&self, committed: u64) -> Result<()> {
        let names = self.owner.journal.list_up_to(&self.uploads, committed).await?;
        for name in &names {
            if let Some(body) = self.owner.journal.get(&self.uploads, name).await?
                && let Ok(note) = serde_json::from_slice::<UploadNote>(&body)
            {
                self.abort(&note.path, &note.id).await;
            }
        }
        self.owner.journal.remove(&self.uploads, names).await
    }

    async fn sweep(&self, committed: u64) -> Result<()> {
        self.location.sweep_staged(|name| self.epoch_of(name).is_some_and(|epoch| epoch <= committed)).await
    }
}

/// One task's files.
struct TaskWriter<'a> {
    sink: &'a ParquetSink,
    epoch: u64,
    task: u32,
    splitter: Option<Splitter>,
    schema: SchemaRef,
    properties: WriterProperties,
    /// Open files by directory, and the order in which they were opened.
    open: BTreeMap<String, (u32, OpenFile)>,
    files: u32,
    done: Vec<StagedFile>,
}

struct OpenFile {
    name: String,
    writer: ArrowWriter<Vec<u8>>,
    rows: u64,
    arrow_bytes: u64,
    sent: u64,
    upload: Option<(String, Vec<PartId>)>,
}

impl<'a> TaskWriter<'a> {
    fn try_new(sink: &'a ParquetSink, epoch: u64, task: u32) -> Result<Self> {
        let splitter = match sink.partitioned_by.as_slice() {
            [] => None,
            columns => Some(Splitter::try_new(&sink.schema, columns)?),
        };
        let schema = match &splitter {
            Some(splitter) => Arc::new(sink.schema.project(splitter.rest())?),
            None => Arc::clone(&sink.schema),
        };
        let properties = WriterProperties::builder()
            .set_compression(sink.options.compression)
            .set_max_row_group_row_count(Some(sink.options.row_group_rows))
            .build();
        Ok(Self { sink, epoch, task, splitter, schema, properties, open: BTreeMap::new(), files: 0, done: vec![] })
    }

    async fn write(&mut self, block: RecordBatch) -> Result<()> {
        // Parquet would take a NULL for some value.
        let is_wrong = |(field, column): &(&FieldRef, &ArrayRef)| !field.is_nullable() && column.null_count() > 0;
        let schema = Arc::clone(&self.sink.schema);
        if let Some((field, _)) = schema.fields().iter().zip(block.columns()).find(is_wrong) {
            return Err(Error::data(format!(
                "a row for {} has NULL in {}, which is NOT NULL; filter such rows out, or COALESCE the column",
                self.sink.location,
                field.name()
            )));
        }
        match &mut self.splitter {
            None => self.write_part(String::new(), &block).await,
            Some(splitter) => {
                for (directory, part) in splitter.split(&block)? {
                    self.write_part(directory, &part).await?;
                }
                Ok(())
            }
        }
    }

    /// Writes rows into the open file of a directory; a file that is full is ended within, so that its end depends on
    /// rows alone.
    async fn write_part(&mut self, directory: String, part: &RecordBatch) -> Result<()> {
        let mut from = 0;
        while from < part.num_rows() {
            let room = self.room(&directory).await?;
            let rows = usize::try_from(room).unwrap_or(usize::MAX).min(part.num_rows() - from);
            let is_full = self.append(&directory, &part.slice(from, rows)).await?;
            from += rows;
            if is_full && let Some((_, file)) = self.open.remove(&directory) {
                self.end(file).await?;
            }
        }
        Ok(())
    }

    /// Makes sure that `directory` has an open file; how many rows it can still take.
    async fn room(&mut self, directory: &str) -> Result<u64> {
        if !self.open.contains_key(directory) {
            if self.open.len() >= OPEN_DIRECTORIES {
                let oldest = self.open.iter().min_by_key(|(_, (order, _))| *order).map(|(key, _)| key.clone());
                if let Some((_, file)) = oldest.and_then(|key| self.open.remove(&key)) {
                    self.end(file).await?;
                }
            }
            let slash = if directory.is_empty() { "" } else { "/" };
            let (id, n) = (&self.sink.owner.id, self.files);
            let name = format!("{directory}{slash}{id}-{}-{}-{n}.parquet", self.epoch, self.task);
            let writer = ArrowWriter::try_new(Vec::new(), Arc::clone(&self.schema), Some(self.properties.clone()))?;
            let file = OpenFile { name, writer, rows: 0, arrow_bytes: 0, sent: 0, upload: None };
            self.open.insert(directory.to_owned(), (n, file));
            self.files += 1;
        }
        let rows = self.open.get(directory).map_or(0, |(_, file)| file.rows);
        Ok(self.sink.options.roll_rows - rows)
    }

    /// Appends rows to the open file; whether it is full now.
    async fn append(&mut self, directory: &str, rows: &RecordBatch) -> Result<bool> {
        let Some((_, file)) = self.open.get_mut(directory) else {
            return Err(Error::internal("a file was ended while it was written"));
        };
        file.writer.write(rows)?;
        file.rows += rows.num_rows() as u64;
        file.arrow_bytes += rows.columns().iter().map(data_size).sum::<u64>();
        let options = &self.sink.options;
        let is_full = file.rows >= options.roll_rows || file.arrow_bytes >= options.roll_bytes;
        if file.writer.inner().len() >= HELD {
            let bytes = std::mem::take(file.writer.inner_mut());
            upload_part(self.sink, self.epoch, file, bytes).await?;
        }
        Ok(is_full)
    }

    async fn end(&mut self, mut file: OpenFile) -> Result<()> {
        file.writer.finish()?;
        let bytes = std::mem::take(file.writer.inner_mut());
        let size = file.sent + bytes.len() as u64;
        let permit = if file.upload.is_none() { self.sink.hold(bytes.len()) } else { None };
        let body = match permit {
            Some(permit) => Body::Held(bytes, permit),
            None => {
                upload_part(self.sink, self.epoch, &mut file, bytes).await?;
                let (id, parts) = file.upload.take().unwrap_or_default();
                Body::Upload { id, parts }
            }
        };
        self.done.push(StagedFile { name: file.name, rows: file.rows, bytes: size, body });
        Ok(())
    }

    async fn finish(mut self) -> Result<Vec<StagedFile>> {
        let mut open: Vec<(u32, OpenFile)> = std::mem::take(&mut self.open).into_values().collect();
        open.sort_by_key(|(order, _)| *order);
        for (_, file) in open {
            self.end(file).await?;
        }
        Ok(self.done)
    }
}

/// Sends bytes into the file's upload, which is made and noted first if there is none.
async fn upload_part(sink: &ParquetSink, epoch: u64, file: &mut OpenFile, bytes: Vec<u8>) -> Result<()> {
    let path = sink.path(&file.name)?;
    if file.upload.is_none() {
        let id = sink.location.uploads.create_multipart(&path).await?;
        let note = UploadNote { path: file.name.clone(), id: id.clone() };
        let body = serde_json::to_vec(&note).map_err(|e| Error::internal("a note is no JSON").caused_by(e))?;
        let name = format!("{epoch:020}-{:016x}", digest(&file.name, &id));
        sink.owner.journal.create(&sink.uploads, &name, body.into()).await?;
        file.upload = Some((id, vec![]));
    }
    let Some((id, parts)) = &mut file.upload else { return Ok(()) };
    file.sent += bytes.len() as u64;
    parts.push(sink.location.uploads.put_part(&path, id, parts.len(), PutPayload::from(Bytes::from(bytes))).await?);
    Ok(())
}

fn digest(name: &str, id: &str) -> u64 {
    twox_hash::XxHash64::oneshot(0, format!("{name} {id}").as_bytes())
}

/// The bytes of a column's values, whatever buffers they lie in: the same for the same rows.
fn data_size(column: &ArrayRef) -> u64 {
    let rows = column.len() as u64;
    let nulls = rows / 8;
    nulls
        + match column.data_type() {
            DataType::Utf8View => column.as_string_view().lengths().map(u64::from).sum::<u64>() + rows * 4,
            DataType::Utf8 => spanned(column.as_string::<i32>().value_offsets()) + rows * 4,
            DataType::Binary => spanned(column.as_binary::<i32>().value_offsets()) + rows * 4,
            DataType::List(_) => {
                let list = column.as_list::<i32>();
                let offsets = list.value_offsets();
                let (first, last) = (offsets[0] as usize, offsets[list.len()] as usize);
                data_size(&list.values().slice(first, last - first)) + rows * 4
            }
            DataType::Map(..) => {
                let map = column.as_map();
                let offsets = map.value_offsets();
                let (first, last) = (offsets[0] as usize, offsets[map.len()] as usize);
                let entries: ArrayRef = Arc::new(map.entries().slice(first, last - first));
                data_size(&entries) + rows * 4
            }
            DataType::Struct(_) => column.as_struct().columns().iter().map(data_size).sum(),
            other => rows * other.primitive_width().unwrap_or(1) as u64,
        }
}

fn spanned(offsets: &[i32]) -> u64 {
    match (offsets.first(), offsets.last()) {
        (Some(first), Some(last)) => (last - first) as u64,
        _ => 0,
    }
}
