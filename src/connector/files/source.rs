//! A stream of files: each that appears under a path is read once.
//!
//! The idea: files get numbers, in the order of (modification time, path) in which a look finds them, and the numbers are
//! noted under the checkpoint before an intent can use them. An offset is a file's number; there is one partition.
//!
//! Guarantee: a span gives the same rows every time; a file that is gone or changed since it was numbered is data loss,
//! and says so. Names that begin with `.` or `_` are ignored.
//!
//! Not promised: that a file which is still being written is read whole. Move files in when they are complete.

use std::collections::HashSet;
use std::sync::Arc;

use arrow::array::{
    ArrayRef, BinaryArray, Int64Array, RecordBatch, RecordBatchOptions, StringArray, TimestampMillisecondArray,
    new_null_array,
};
use arrow::compute::cast;
use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use bytes::Bytes;
use datafusion::common::DataFusionError;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use futures::stream::{self, BoxStream, StreamExt, TryStreamExt};
use object_store::{ObjectMeta, ObjectStoreExt};
use parquet::arrow::ProjectionMask;
#[expect(deprecated, reason = "its successor is an example to copy, not an API")]
use parquet::arrow::async_reader::ParquetObjectReader;
use parquet::arrow::async_reader::ParquetRecordBatchStreamBuilder;
use parquet::errors::ParquetError;
use serde::{Deserialize, Serialize};

use super::{FileFormat, FileOptions};
use crate::catalog::{Column, ColumnKind, TableDefinition};
use crate::checkpoint::{Journal, SOURCES};
use crate::clock::Clock;
use crate::connector::messages::{Decoding, MessageBatch};
use crate::connector::{Bounds, Extent, Fingerprint, Offsets, Partition, PartitionReport, ReadReport, Source, Span};
use crate::error::{Error, Result};
use crate::format::FormatOptions;
use crate::storage::Location;

/// Reads files as they appear: see the module's text.
#[derive(Debug)]
pub struct FilesSource {
    table: Arc<TableDefinition>,
    options: FileOptions,
    numbers: Arc<Numbers>,
    clock: Clock,
}

/// Which file has which number.
#[derive(Debug)]
struct Numbers {
    table: String,
    location: Location,
    journal: Journal,
    known: tokio::sync::Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    /// Whether the notes of earlier runs were read.
    is_loaded: bool,
    looked_at_us: Option<u64>,
    files: Vec<File>,
    paths: HashSet<String>,
}

/// A numbered file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct File {
    path: String,
    size: u64,
    modified_ms: i64,
    e_tag: Option<String>,
}

impl File {
    fn of(meta: &ObjectMeta) -> Self {
        Self {
            path: meta.location.to_string(),
            size: meta.size,
            modified_ms: meta.last_modified.timestamp_millis(),
            e_tag: meta.e_tag.clone(),
        }
    }
}

impl Known {
    fn count(&self) -> u64 {
        self.files.len() as u64
    }

    fn extend(&mut self, files: Vec<File>) {
        self.paths.extend(files.iter().map(|file| file.path.clone()));
        self.files.extend(files);
    }
}

impl Numbers {
    fn folder(&self) -> String {
        format!("{SOURCES}{}", self.table)
    }

    /// Reads the notes that are not known yet.
    async fn load(&self, known: &mut Known) -> Result<()> {
        for name in self.journal.list(&self.folder()).await? {
            let first: Option<u64> = name.parse().ok();
            if first.is_none_or(|first| first < known.count()) {
                continue;
            }
            let body = self.journal.get(&self.folder(), &name).await?.unwrap_or_default();
            let files = serde_json::from_slice(&body)
                .map_err(|e| Error::refused(format!("the note {name} of numbered files is no JSON")).caused_by(e))?;
            known.extend(files);
        }
        known.is_loaded = true;
        Ok(())
    }

    /// Numbers the files that are new.
    async fn look(&self, known: &mut Known) -> Result<()> {
        let listed: Vec<ObjectMeta> = self.location.store.list(Some(&self.location.prefix)).try_collect().await?;
        let below = self.location.prefix.parts_count();
        let is_hidden =
            |meta: &ObjectMeta| meta.location.parts().skip(below).any(|part| part.as_ref().starts_with(['.', '_']));
        let mut new: Vec<File> = listed
            .iter()
            .filter(|meta| !is_hidden(meta) && meta.size > 0 && !known.paths.contains(meta.location.as_ref()))
            .map(File::of)
            .collect();
        new.sort_by(|a, b| (a.modified_ms, &a.path).cmp(&(b.modified_ms, &b.path)));
        if new.is_empty() {
            return Ok(());
        }
        let body = serde_json::to_vec_pretty(&new).map_err(|e| Error::internal("a note is no JSON").caused_by(e))?;
        let name = format!("{:020}", known.count());
        if self.journal.create(&self.folder(), &name, body.into()).await? {
            known.extend(new);
            Ok(())
        } else {
            // Another run numbered files first; its numbers count.
            self.load(known).await
        }
    }

    /// The files of a span. An epoch that is run again asks for them before anybody asked for the extent.
    async fn files(&self, span: &Span) -> Result<Vec<File>> {
        let mut known = self.known.lock().await;
        if !known.is_loaded {
            self.load(&mut known).await?;
        }
        let files = known.files.get(span.from as usize..span.to as usize).map(<[File]>::to_vec);
        files.ok_or_else(|| {
            Error::data_loss(format!(
                "table {}: files {span} are not numbered in the checkpoint; its notes are gone",
                self.table
            ))
        })
    }
}

impl FilesSource {
    pub(super) fn new(
        table: Arc<TableDefinition>,
        options: FileOptions,
        location: Location,
        journal: Journal,
        clock: Clock,
    ) -> Self {
        let numbers = Numbers { table: table.name.clone(), location, journal, known: Default::default() };
        Self { table, options, numbers: Arc::new(numbers), clock }
    }

    fn partition() -> Partition {
        Partition::new("files", 0)
    }

    fn columns(&self, projection: &[usize]) -> (SchemaRef, Vec<Column>) {
        let stored: Vec<&Column> = self.table.stored_columns().collect();
        let columns: Vec<Column> = projection.iter().map(|index| stored[*index].clone()).collect();
        let fields: Vec<_> = columns.iter().map(Column::field).collect();
        (Arc::new(arrow::datatypes::Schema::new(fields)), columns)
    }
}

#[async_trait]
impl Source for FilesSource {
    async fn start(&self) -> Result<Offsets> {
        Ok(Offsets::from([(Self::partition(), 0)]))
    }

    async fn extent(&self) -> Result<Extent> {
        let mut known = self.numbers.known.lock().await;
        if !known.is_loaded {
            self.numbers.load(&mut known).await?;
        }
        let now = self.clock.monotonic_us();
        let rested = |at: u64| now.saturating_sub(at) >= self.options.look_every.as_micros() as u64;
        if known.looked_at_us.is_none_or(rested) {
            known.looked_at_us = Some(now);
            self.numbers.look(&mut known).await?;
        }
        let bounds = Bounds { earliest: 0, latest: known.count() };
        Ok(Extent { partitions: [(Self::partition(), bounds)].into(), ..Extent::default() })
    }

    /// A question is about this moment, however seldom a query looks.
    async fn horizon(&self) -> Result<Offsets> {
        self.numbers.known.lock().await.looked_at_us = None;
        let extent = self.extent().await?;
        Ok(extent.partitions.into_iter().map(|(partition, bounds)| (partition, bounds.latest)).collect())
    }

    fn read(&self, span: &Span, projection: &[usize], report: &ReadReport) -> Result<SendableRecordBatchStream> {
        let (schema, columns) = self.columns(projection);
        let (numbers, span) = (Arc::clone(&self.numbers), span.clone());
        let numbered = async move {
            let files = numbers.files(&span).await?;
            Ok::<_, Error>(stream::iter((span.from..).zip(files).map(Ok)))
        };
        let (table, location, report) = (Arc::clone(&self.table), self.numbers.location.clone(), report.clone());
        let (format, projection, out) = (self.options.format.clone(), projection.to_vec(), Arc::clone(&schema));
        let rows = stream::once(numbered).try_flatten().and_then(move |(number, file)| {
            let (table, location, report) = (Arc::clone(&table), location.clone(), report.clone());
            let one = One { location, table, number, file, report };
            let (format, columns, schema) = (format.clone(), columns.clone(), Arc::clone(&schema));
            let projection = projection.clone();
            async move {
                one.check().await?;
                match format {
                    FileFormat::Lines(format) => one.lines(&format, &projection).await,
                    FileFormat::Parquet => one.parquet(columns, schema).await,
                }
            }
        });
        let rows = rows.try_flatten().map_err(DataFusionError::from);
        Ok(Box::pin(RecordBatchStreamAdapter::new(out, rows)))
    }
}

/// One file that is read.
struct One {
    location: Location,
    table: Arc<TableDefinition>,
    number: u64,
    file: File,
    report: ReadReport,
}

impl One {
    fn path(&self) -> Result<object_store::path::Path> {
        object_store::path::Path::parse(&self.file.path)
            .map_err(|e| Error::internal("a numbered path is none").caused_by(e))
    }

    /// The file must be what was numbered.
    async fn check(&self) -> Result<()> {
        let lost = |what: &str| {
            Err(Error::data_loss(format!(
                "table {}: the file {} (number {}) {what} since it was numbered; put it back as it was",
                self.table.name, self.file.path, self.number
            )))
        };
        match self.location.store.head(&self.path()?).await {
            Ok(meta) if File::of(&meta) == self.file => Ok(()),
            Ok(_) => lost("was changed"),
            Err(object_store::Error::NotFound { .. }) => lost("is gone"),
            Err(e) => Err(e.into()),
        }
    }

    fn seen(&self, messages: u64, bytes: u64) -> PartitionReport {
        let last = Fingerprint {
            offset: self.number,
            timestamp: Some(self.file.modified_ms),
            id: Some(self.file.path.clone()),
        };
        PartitionReport { messages, bytes, last: Some(last), ..PartitionReport::default() }
    }

    /// A metadata column's value for every row.
    fn constant(&self, key: &str, rows: usize) -> ArrayRef {
        let file = &self.file;
        match key {
            "file.size" => Arc::new(Int64Array::from(vec![file.size as i64; rows])),
            "file.modification-time" => {
                Arc::new(TimestampMillisecondArray::from(vec![file.modified_ms; rows]).with_timezone("UTC"))
            }
            "file.name" => {
                let name = file.path.rsplit('/').next().unwrap_or_default();
                Arc::new(StringArray::from_iter_values(std::iter::repeat_n(name, rows)))
            }
            _ => Arc::new(StringArray::from_iter_values(std::iter::repeat_n(&file.path, rows))),
        }
    }

    async fn lines(
        self,
        format: &FormatOptions,
        projection: &[usize],
    ) -> Result<BoxStream<'static, Result<RecordBatch>>> {
        let mut decoding = Decoding::try_new(&self.table, format, projection, &self.report)?;
        let bytes = self.location.store.get(&self.path()?).await?.into_stream();
        let partition = FilesSource::partition();
        let rows = whole_lines(bytes.map_err(Error::from).boxed()).map(move |chunk| {
            let chunk = chunk?;
            let lines: Vec<&[u8]> = chunk
                .split(|byte| *byte == b'\n')
                .map(|line| line.strip_suffix(b"\r").unwrap_or(line))
                .filter(|line| !line.is_empty())
                .collect();
            let metadata = decoding.metadata().iter().map(|key| self.constant(key, lines.len())).collect();
            let last = self.seen(0, 0).last;
            let offsets = vec![self.number; lines.len()];
            let payloads = BinaryArray::from_iter_values(&lines);
            let last = last.unwrap_or(Fingerprint { offset: self.number, timestamp: None, id: None });
            let batch = MessageBatch { payloads, broken: vec![], offsets, metadata, last };
            decoding.decode(&partition, batch).map_err(|e| e.context(&self.file.path))
        });
        Ok(rows.boxed())
    }

    async fn parquet(self, columns: Vec<Column>, schema: SchemaRef) -> Result<BoxStream<'static, Result<RecordBatch>>> {
        #[expect(deprecated, reason = "see the import")]
        let reader =
            ParquetObjectReader::new(Arc::clone(&self.location.store), self.path()?).with_file_size(self.file.size);
        let unreadable = |e| match e {
            external @ ParquetError::External(_) => Error::from(external),
            e => Error::data(format!("table {}: {} is not readable as Parquet", self.table.name, self.file.path))
                .caused_by(e),
        };
        let builder = ParquetRecordBatchStreamBuilder::new(reader).await.map_err(unreadable)?;
        let names: Vec<&str> = columns
            .iter()
            .filter(|column| column.kind == ColumnKind::Physical)
            .map(|column| column.name.as_str())
            .collect();
        let roots = builder.schema().fields().iter().enumerate();
        let roots: Vec<usize> = roots.filter(|(_, f)| names.contains(&f.name().as_str())).map(|(i, _)| i).collect();
        let mask = ProjectionMask::roots(builder.parquet_schema(), roots);
        let batches = builder.with_projection(mask).build().map_err(unreadable)?;
        let rows = batches.map_err(Error::from).map(move |batch| {
            let batch = batch?;
            let rows = batch.num_rows();
            self.report.add(&FilesSource::partition(), self.seen(rows as u64, batch.get_array_memory_size() as u64));
            let mut found = Vec::with_capacity(columns.len());
            for column in &columns {
                let values = match (&column.kind, batch.column_by_name(&column.name)) {
                    (ColumnKind::Metadata { key, .. }, _) => self.constant(key, rows),
                    (_, Some(values)) => Arc::clone(values),
                    (_, None) => new_null_array(&column.data_type, rows),
                };
                found.push(cast(&values, &column.data_type)?);
            }
            let options = RecordBatchOptions::new().with_row_count(Some(rows));
            Ok(RecordBatch::try_new_with_options(Arc::clone(&schema), found, &options)?)
        });
        Ok(rows.boxed())
    }
}

/// The same bytes, in chunks that end at the end of a line. Whatever stands in a line, it cannot swallow the next one.
fn whole_lines(chunks: BoxStream<'static, Result<Bytes>>) -> BoxStream<'static, Result<Bytes>> {
    let lines = stream::try_unfold((chunks, Vec::new(), false), |(mut chunks, mut rest, is_done)| async move {
        if is_done {
            return Ok(None);
        }
        loop {
            match chunks.try_next().await? {
                None => return Ok(Some((Bytes::from(rest), (chunks, Vec::new(), true)))),
                Some(chunk) => {
                    let end = chunk.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
                    let tail = chunk[end..].to_vec();
                    rest.extend_from_slice(&chunk[..end]);
                    if end > 0 {
                        return Ok(Some((Bytes::from(rest), (chunks, tail, false))));
                    }
                    rest.extend_from_slice(&tail);
                }
            }
        }
    });
    lines.boxed()
}
