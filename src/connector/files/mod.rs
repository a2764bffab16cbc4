//! `'connector' = 'filesystem'`: a directory or an object-store prefix.
//!
//! Written to, it is a directory of Parquet files, each epoch exactly once for any reader ([`sink`]). Read from, it is the
//! stream of files that appear in it ([`source`]). For a bounded look at files use `CREATE EXTERNAL TABLE`.

use std::sync::Arc;

use arrow::datatypes::{DataType, TimeUnit};
use async_trait::async_trait;
use parquet::basic::{Compression, GzipLevel, ZstdLevel};

use super::entry::REQUIRED;
use super::messages::check_metadata;
use super::{
    Connector, Delivery, Environment, Guarantee, Journal, MetadataKey, OptionEntry, Owner, Role, ScanOptions, Sink,
    Source,
};
use crate::catalog::{ColumnKind, TableDefinition};
use crate::error::{Error, Result};
use crate::format::{self, FormatOptions};
use crate::sql::options::{OptionReader, did_you_mean};

pub mod partitions;
pub mod sink;
pub mod source;

#[cfg(test)]
mod tests;

/// The formats of files.
const FORMATS: [&str; 2] = ["parquet", "json"];

/// What the options say that only files have.
const OPTIONS: &[OptionEntry] = &[
    OptionEntry::new("path", "a path, `file://…` or `s3://bucket/prefix`", REQUIRED, "the directory"),
    OptionEntry::new(
        "format",
        "`parquet`, `json`",
        REQUIRED,
        "what files are. `json` is only for reading, one object a line, and has [options](#json) of its own",
    ),
    OptionEntry::writing(
        "parquet.compression",
        "`zstd`, `snappy`, `gzip`, `lz4`, `none`",
        "`zstd`",
        "how columns are compressed",
    ),
    OptionEntry::writing("parquet.row-group.rows", "a number, at least 1", "1048576", "rows in a row group at most"),
    OptionEntry::writing("sink.rolling-policy.rows", "a number, at least 1", "", "rows in a file at most"),
    OptionEntry::writing(
        "sink.rolling-policy.file-size",
        "a size such as `128 mb`",
        "`1 gb`",
        "a file ends near this size, counted in Arrow's bytes, before compression",
    ),
    OptionEntry::reading("source.monitor-interval", "a duration", "`1 s`", "how often it looks for new files"),
];

/// What a table's files are.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum FileFormat {
    Parquet,
    /// One message a line.
    Lines(FormatOptions),
}

/// The options of a `filesystem` table.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct FileOptions {
    pub path: String,
    pub format: FileFormat,
    pub compression: Compression,
    pub row_group_rows: usize,
    pub roll_rows: u64,
    pub roll_bytes: u64,
    pub look_every: std::time::Duration,
}

impl FileOptions {
    pub fn take(table: &TableDefinition) -> Result<Self> {
        let mut options = OptionReader::new(table);
        let path = options.required("path")?;
        options.suggest("format", FORMATS);
        let format = match options.required("format")?.as_str() {
            "parquet" => FileFormat::Parquet,
            "json" => FileFormat::Lines(FormatOptions::take(&mut options)?),
            other => {
                let hint = did_you_mean(other, FORMATS.into_iter());
                return Err(options.blame(Error::usage(format!("there is no file format '{other}'{hint}"))));
            }
        };
        let zstd = ZstdLevel::try_new(1).map(Compression::ZSTD).unwrap_or(Compression::SNAPPY);
        let compressions = [
            ("zstd", zstd),
            ("snappy", Compression::SNAPPY),
            ("gzip", Compression::GZIP(GzipLevel::default())),
            ("lz4", Compression::LZ4_RAW),
            ("none", Compression::UNCOMPRESSED),
        ];
        let at_least_one = |text: &str| text.trim().parse().ok().filter(|n: &u64| *n > 0);
        let taken = Self {
            path,
            format,
            compression: options.choice("parquet.compression", &compressions)?.unwrap_or(zstd),
            row_group_rows: options
                .with("parquet.row-group.rows", "a number of rows, at least 1", at_least_one)?
                .map_or(1 << 20, |n| n as usize),
            roll_rows: options
                .with("sink.rolling-policy.rows", "a number of rows, at least 1", at_least_one)?
                .unwrap_or(u64::MAX),
            roll_bytes: options.bytes("sink.rolling-policy.file-size")?.unwrap_or(1 << 30).max(1),
            look_every: options.duration("source.monitor-interval")?.unwrap_or(std::time::Duration::from_secs(1)),
        };
        ScanOptions::take_strict(&mut options)?;
        options.finish()?;
        Ok(taken)
    }
}

/// The connector `filesystem`.
#[derive(Debug, Clone, Copy, Default)]
pub struct FilesConnector;

#[async_trait]
impl Connector for FilesConnector {
    fn name(&self) -> &'static str {
        "filesystem"
    }

    /// An offset is a file.
    fn options(&self) -> Vec<OptionEntry> {
        [OPTIONS, format::TROUBLE, ScanOptions::OPTIONS].concat()
    }

    fn metadata(&self) -> Vec<MetadataKey> {
        let key = |key, data_type, meaning| MetadataKey { key, data_type, writable: false, meaning };
        let time = DataType::Timestamp(TimeUnit::Millisecond, Some("UTC".into()));
        vec![
            key("file.path", DataType::Utf8, "within the bucket or from the root, without a leading `/`"),
            key("file.name", DataType::Utf8, ""),
            key("file.size", DataType::Int64, "bytes"),
            key("file.modification-time", time, ""),
        ]
    }

    fn check(&self, table: &TableDefinition, role: Role) -> Result<()> {
        let options = FileOptions::take(table)?;
        check_metadata(table, &self.metadata(), role == Role::Sink)?;
        let refuse = |text: String| Err(Error::usage(format!("table {}: {text}", table.name)));
        match (role, &options.format) {
            (Role::Sink, FileFormat::Lines(_)) => {
                return refuse("json files can only be read; write 'format' = 'parquet'".into());
            }
            (Role::Source, FileFormat::Lines(format)) => format.check(table)?,
            _ => {}
        }
        if role == Role::Source && !table.partitioned_by.is_empty() {
            return refuse("a partitioned directory cannot be read as a stream yet; use CREATE EXTERNAL TABLE".into());
        }
        if !table.primary_key.is_empty() {
            return refuse("Parquet files only grow, so they keep no PRIMARY KEY; leave it out".into());
        }
        for name in &table.partitioned_by {
            let column = table.writable_columns().find(|c| &c.name == name);
            let data_type = column.map(|c| &c.data_type);
            if data_type.is_none_or(|t| t.is_nested() || t.is_floating() || *t == DataType::Binary) {
                return refuse(format!(
                    "PARTITIONED BY ({name}): only columns of integers, text, dates, timestamps and booleans"
                ));
            }
        }
        let left = table.writable_columns().filter(|c| !table.partitioned_by.contains(&c.name)).count();
        if role == Role::Sink && left == 0 {
            return refuse("at least one column must not be in PARTITIONED BY".into());
        }
        Ok(())
    }

    fn identity(&self, table: &TableDefinition) -> Result<String> {
        let options = FileOptions::take(table)?;
        let format = if options.format == FileFormat::Parquet { "parquet" } else { "json" };
        Ok(format!("{format} files under {}", options.path.trim_end_matches('/')))
    }

    /// Whatever the format: a directory is read at any depth.
    fn place(&self, table: &TableDefinition) -> Result<String> {
        Ok(format!("files under {}", FileOptions::take(table)?.path.trim_end_matches('/')))
    }

    fn guarantee(&self, _: &TableDefinition) -> Result<Guarantee> {
        Ok(Guarantee {
            delivery: Delivery::ExactlyOnce,
            reason:
                "file names follow from query, epoch and task; an epoch that is run again writes the same names with \
                     the same rows, and a file is seen whole or not at all"
                    .into(),
        })
    }

    fn is_operational(&self, option: &str) -> bool {
        let of_files = option == "source.monitor-interval";
        of_files || ScanOptions::KEYS.contains(&option) || FormatOptions::OPERATIONAL.contains(&option)
    }

    fn prefers_continuous(&self) -> bool {
        false
    }

    fn takes_back(&self, _: &TableDefinition) -> bool {
        true
    }

    async fn source(
        &self,
        table: Arc<TableDefinition>,
        environment: &Environment,
        owner: Option<&Owner>,
    ) -> Result<Arc<dyn Source>> {
        let options = FileOptions::take(&table)?;
        let location = environment.stores.open(&options.path, &environment.settings)?;
        let journal = owner.map_or_else(Journal::detached, |owner| owner.journal.clone());
        Ok(Arc::new(source::FilesSource::new(table, options, location, journal, environment.clock.clone())))
    }

    async fn sink(
        &self,
        table: Arc<TableDefinition>,
        environment: &Environment,
        owner: &Owner,
    ) -> Result<Arc<dyn Sink>> {
        let options = FileOptions::take(&table)?;
        let location = environment.stores.open(&options.path, &environment.settings)?;
        let is_partition = |c: &&crate::catalog::Column| table.partitioned_by.contains(&c.name);
        debug_assert!(table.writable_columns().filter(is_partition).all(|c| c.kind == ColumnKind::Physical));
        let guarantee = self.guarantee(&table)?;
        Ok(Arc::new(sink::ParquetSink::try_new(&table, options, location, owner.clone(), guarantee)?))
    }
}
