//! Patterns, regular expressions and paths are compiled once.
//!
//! A [`Memo`] keeps what it compiled for the life of the process, so a literal is compiled when its call is planned and
//! never again. Limit: [`MOST`] texts; a column with more different ones is compiled again and again, but never held.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::function::Text;
use crate::error::Result;

/// How many compiled texts one memo keeps before it starts anew.
const MOST: usize = 256;

/// A compiler that remembers.
pub(super) struct Memo<T> {
    compile: fn(&str) -> Result<T>,
    known: Mutex<BTreeMap<String, Arc<T>>>,
}

impl<T> Memo<T> {
    /// An empty memo of this compiler.
    pub(super) const fn new(compile: fn(&str) -> Result<T>) -> Self {
        Self { compile, known: Mutex::new(BTreeMap::new()) }
    }

    /// The text, compiled; an error is not remembered.
    pub(super) fn get(&self, text: &str) -> Result<Arc<T>> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(compiled) = known.get(text) {
            return Ok(Arc::clone(compiled));
        }
        let compiled = Arc::new((self.compile)(text)?);
        if known.len() >= MOST {
            known.clear();
        }
        known.insert(text.to_string(), Arc::clone(&compiled));
        Ok(compiled)
    }
}

/// A string argument, compiled row by row: neighbouring rows with the same text do not even ask the memo.
pub(super) struct Compiled<'a, T: 'static> {
    memo: &'static Memo<T>,
    text: Text<'a>,
    last: Option<(&'a str, Arc<T>)>,
}

impl<'a, T> Compiled<'a, T> {
    /// This argument, compiled by this memo.
    pub(super) fn new(memo: &'static Memo<T>, text: Text<'a>) -> Self {
        Self { memo, text, last: None }
    }

    /// The row's compiled text; none if it is NULL.
    pub(super) fn at(&mut self, row: usize) -> Result<Option<&T>> {
        let Some(text) = self.text.at(row) else { return Ok(None) };
        if self.last.as_ref().is_none_or(|(last, _)| *last != text) {
            self.last = Some((text, self.memo.get(text)?));
        }
        Ok(self.last.as_ref().map(|(_, compiled)| &**compiled))
    }
}
