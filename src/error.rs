//! Errors, named by what their reader should do next.
//!
//! An [`Error`] has a [`Kind`] (what to do), a message (what is wrong, where, and the fix), where the SQL is at fault a
//! [`Location`], and the error that caused it. Messages are lower case, without a full stop.
//!
//! The kind decides what the engine does: [`Kind::Transient`] is tried again in process, all others end the query.

use std::fmt;

use datafusion::error::DataFusionError;

/// What went wrong, by what its reader should do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The SQL, an option or an argument is wrong: correct it.
    Usage,
    /// A row cannot be used or written: correct the data, or say what to do with such rows.
    Data,
    /// The source no longer has what the query was to read: choose to go on, or start anew.
    DataLoss,
    /// The query and its checkpoint, or a setting of the destination, do not fit: read the message.
    Refused,
    /// A newer run has taken over: do nothing, and above all do not restart this one.
    Fenced,
    /// Something outside did not answer as it should: wait, or look at that system.
    Transient,
    /// Millstream is wrong: report it.
    Internal,
}

/// A place in SQL text; both count from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Location {
    /// Line, from 1.
    pub line: u64,
    /// Column, in characters, from 1; 0 where only the line is known.
    pub column: u64,
}

/// An error of Millstream: see the module's text.
#[derive(Debug, thiserror::Error)]
#[error("{}{message}", Prefix(*location))]
pub struct Error {
    kind: Kind,
    message: String,
    location: Option<Location>,
    #[source]
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

struct Prefix(Option<Location>);

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(Location { line, column: 0 }) => write!(f, "line {line}: "),
            Some(Location { line, column }) => write!(f, "line {line}, column {column}: "),
            None => Ok(()),
        }
    }
}

/// The result of everything that may fail here.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error of this kind.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), location: None, source: None }
    }

    /// Shorthand for [`Kind::Usage`].
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(Kind::Usage, message)
    }

    /// Shorthand for [`Kind::Data`].
    pub fn data(message: impl Into<String>) -> Self {
        Self::new(Kind::Data, message)
    }

    /// Shorthand for [`Kind::DataLoss`].
    pub fn data_loss(message: impl Into<String>) -> Self {
        Self::new(Kind::DataLoss, message)
    }

    /// Shorthand for [`Kind::Refused`].
    pub fn refused(message: impl Into<String>) -> Self {
        Self::new(Kind::Refused, message)
    }

    /// Shorthand for [`Kind::Fenced`].
    pub fn fenced(message: impl Into<String>) -> Self {
        Self::new(Kind::Fenced, message)
    }

    /// Shorthand for [`Kind::Transient`].
    pub fn transient(message: impl Into<String>) -> Self {
        Self::new(Kind::Transient, message)
    }

    /// Shorthand for [`Kind::Internal`].
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(Kind::Internal, message)
    }

    /// The same error, with the error that caused it.
    pub fn caused_by(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// The same error, at this place of the SQL; a place that is known already is kept.
    pub fn at(mut self, location: Location) -> Self {
        self.location.get_or_insert(location);
        self
    }

    /// The same error with `what: ` before its message.
    pub fn context(mut self, what: impl fmt::Display) -> Self {
        self.message = format!("{what}: {}", self.message);
        self
    }

    /// What its reader should do next.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// What is wrong, without its place and its causes.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// Where in the SQL it is, if that is known.
    pub fn location(&self) -> Option<Location> {
        self.location
    }

    /// The message and those of all causes, as `a: b: c`, without repeating what a message already says.
    pub fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut next = std::error::Error::source(self);
        while let Some(error) = next {
            let message = error.to_string();
            if !text.contains(&message) {
                text = format!("{text}: {message}");
            }
            next = error.source();
        }
        text
    }
}

impl From<object_store::Error> for Error {
    fn from(error: object_store::Error) -> Self {
        use object_store::Error as E;
        let kind = match &error {
            E::NotImplemented { .. } | E::NotSupported { .. } | E::UnknownConfigurationKey { .. } => Kind::Refused,
            E::InvalidPath { .. } => Kind::Usage,
            E::PermissionDenied { .. } | E::Unauthenticated { .. } => Kind::Refused,
            _ => Kind::Transient,
        };
        Error::new(kind, "the object store refused or did not answer").caused_by(error)
    }
}

impl From<std::io::Error> for Error {
    fn from(error: std::io::Error) -> Self {
        let kind = match error.kind() {
            std::io::ErrorKind::PermissionDenied => Kind::Refused,
            _ => Kind::Transient,
        };
        Error::new(kind, "input or output failed").caused_by(error)
    }
}

impl From<arrow::error::ArrowError> for Error {
    fn from(error: arrow::error::ArrowError) -> Self {
        DataFusionError::from(error).into()
    }
}

impl From<parquet::errors::ParquetError> for Error {
    fn from(error: parquet::errors::ParquetError) -> Self {
        match error {
            parquet::errors::ParquetError::External(inner) => {
                let kind = kind_of(inner.as_ref()).unwrap_or(Kind::Internal);
                Error::new(kind, "reading or writing Parquet failed").caused_by(inner)
            }
            other => Error::internal("parquet failed").caused_by(other),
        }
    }
}

impl From<DataFusionError> for Error {
    /// Finds our own error inside DataFusion's wrapping; else judges by DataFusion's variant.
    fn from(error: DataFusionError) -> Self {
        match error {
            DataFusionError::External(inner) => match inner.downcast::<Error>() {
                Ok(ours) => *ours,
                Err(inner) => match inner.downcast::<DataFusionError>() {
                    Ok(nested) => (*nested).into(),
                    Err(inner) => {
                        let kind = kind_of(inner.as_ref()).unwrap_or(Kind::Internal);
                        Error::new(kind, "an operator failed").caused_by(inner)
                    }
                },
            },
            DataFusionError::ArrowError(arrow, trace) => match *arrow {
                arrow::error::ArrowError::ExternalError(inner) => DataFusionError::External(inner).into(),
                other => Error::data("a row could not be computed")
                    .caused_by(DataFusionError::ArrowError(Box::new(other), trace)),
            },
            DataFusionError::Context(text, inner) => Error::from(*inner).context(text),
            DataFusionError::Diagnostic(diagnostic, inner) => {
                let place = diagnostic.span.map(|s| Location { line: s.start.line, column: s.start.column });
                let error = Error::from(*inner);
                match place {
                    Some(place) => error.at(place),
                    None => error,
                }
            }
            DataFusionError::Collection(mut errors) if !errors.is_empty() => errors.swap_remove(0).into(),
            DataFusionError::Shared(shared) => {
                Error::new(kind_of(shared.as_ref()).unwrap_or(Kind::Internal), plain(&shared.strip_backtrace()))
            }
            DataFusionError::ObjectStore(error) => (*error).into(),
            DataFusionError::IoError(error) => error.into(),
            DataFusionError::ParquetError(error) => (*error).into(),
            DataFusionError::Execution(_) => Error::data(error.strip_backtrace()),
            DataFusionError::SQL(..)
            | DataFusionError::Plan(_)
            | DataFusionError::SchemaError(..)
            | DataFusionError::NotImplemented(_)
            | DataFusionError::Configuration(_) => Error::usage(plain(&error.strip_backtrace())),
            other => Error::internal(other.strip_backtrace()),
        }
    }
}

/// The kind of an error that is wrapped in others: of the first among its causes that has one.
fn kind_of(error: &(dyn std::error::Error + 'static)) -> Option<Kind> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(ours) = error.downcast_ref::<Error>() {
            return Some(ours.kind);
        }
        if error.is::<object_store::Error>() || error.is::<std::io::Error>() {
            return Some(Kind::Transient);
        }
        if let Some(DataFusionError::External(inner)) = error.downcast_ref::<DataFusionError>() {
            return kind_of(inner.as_ref());
        }
        if let Some(DataFusionError::Execution(_)) = error.downcast_ref::<DataFusionError>() {
            return Some(Kind::Data);
        }
        next = error.source();
    }
    None
}

/// DataFusion's message without its own prefixes and without advice that does not apply here.
fn plain(text: &str) -> String {
    let mut text = text;
    for prefix in ["Error during planning: ", "Schema error: ", "SQL error: ", "This feature is not implemented: "] {
        text = text.strip_prefix(prefix).unwrap_or(text);
    }
    match text.find("Column names are case sensitive") {
        Some(at) => text[..at].trim_end_matches(['.', ' ', '\n']).to_string(),
        None => text.trim_end().to_string(),
    }
}

impl From<Error> for DataFusionError {
    fn from(error: Error) -> Self {
        DataFusionError::External(Box::new(error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_error_survives_datafusions_wrapping() {
        let inner = Error::data_loss("orders 3: offsets 5..9 are gone");
        let wrapped = DataFusionError::Context("scan".into(), Box::new(DataFusionError::from(inner)));
        let error = Error::from(wrapped);
        assert_eq!(error.kind(), Kind::DataLoss);
        assert_eq!(error.to_string(), "scan: orders 3: offsets 5..9 are gone");
    }

    #[test]
    fn a_place_comes_first_and_causes_last() {
        let error = Error::usage("unknown column x").at(Location { line: 3, column: 7 }).caused_by("inner");
        assert_eq!(error.chain(), "line 3, column 7: unknown column x: inner");
    }
}
