//! The rows of one shard in memory: a hash table of places over immutable chunks.
//!
//! The idea: every epoch's merged rows are a chunk, shared with the file that is written from them. A new row marks the one
//! it replaces as dead. Small chunks are merged and half-dead ones rewritten as epochs go by, a bounded part at a time, so
//! no epoch pays for all of the state.
//!
//! Memory for a group: the bytes of its key and values, 8 for the key's end, 8 to 16 for its place in the table, and at
//! most as much again for rows that are dead.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Int64Array};
use arrow::compute::interleave;
use arrow::datatypes::Int64Type;
use arrow::row::Rows;
use hashbrown::HashTable;

use super::Layout;
use super::keys::{KeyCodec, TIMELESS, hash};
use crate::error::Result;

/// Chunks up to this many rows are merged.
const SMALL: usize = 64 * 1024;

/// Rows by key, immutable: keys and value columns of the same length.
#[derive(Debug)]
pub struct StateRows {
    /// The keys.
    pub keys: Rows,
    /// The value columns.
    pub values: Vec<ArrayRef>,
}

/// Where a row lies: the chunk of its bucket, and the row in the chunk's [`StateRows`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Place {
    chunk: u32,
    row: u32,
}

/// What an epoch does to a shard.
#[derive(Debug)]
pub struct Delta {
    /// New rows, sorted by bucket; one for each key.
    pub rows: Arc<StateRows>,
    /// The bucket of each.
    pub buckets: Vec<i64>,
    /// The row that each replaces.
    pub replaces: Vec<Option<Place>>,
    /// Rows before this one went as they came: their buckets are closed.
    pub first: usize,
    /// Buckets before this one go; without a rising key, rows that were last touched at or before it.
    pub closes: Option<i64>,
}

/// Rows `first..first + dead.len()` of shared rows.
#[derive(Debug)]
struct Chunk {
    rows: Arc<StateRows>,
    first: usize,
    dead: Vec<bool>,
    dead_rows: usize,
    /// When a row of it was last touched, where that is kept.
    newest: Option<i64>,
}

#[derive(Debug, Default)]
struct Bucket {
    index: HashTable<Place>,
    chunks: Vec<Chunk>,
}

/// The rows of one shard: see the module's text.
#[derive(Debug, Default)]
pub struct Shard {
    buckets: BTreeMap<i64, Bucket>,
}

/// Live rows of a shard, for whoever reads them while the shard goes on.
#[derive(Debug, Clone)]
pub struct Live {
    rows: Arc<StateRows>,
    places: Vec<u32>,
}

impl Live {
    /// The shared rows and which of them are meant.
    pub fn parts(&self) -> (&StateRows, &[u32]) {
        (&self.rows, &self.places)
    }
}

/// When rows were last touched: the last value column, where it is kept.
fn touched(rows: &StateRows) -> Option<&Int64Array> {
    rows.values.last()?.as_primitive_opt::<Int64Type>()
}

impl Chunk {
    /// Rows `first..first + len`; `ages` says whether they are forgotten when nothing touches them.
    fn new(rows: Arc<StateRows>, first: usize, len: usize, ages: bool) -> Self {
        let newest = match touched(&rows) {
            Some(touched) if ages => touched.values()[first..first + len].iter().max().copied(),
            _ => None,
        };
        Self { rows, first, dead: vec![false; len], dead_rows: 0, newest }
    }

    fn len(&self) -> usize {
        self.dead.len()
    }

    fn live_rows(&self) -> usize {
        self.len() - self.dead_rows
    }

    fn live(&self) -> impl Iterator<Item = usize> {
        let first = self.first;
        self.dead.iter().enumerate().filter(|(_, dead)| !**dead).map(move |(index, _)| first + index)
    }

    fn bury(&mut self, row: usize) {
        self.dead[row - self.first] = true;
        self.dead_rows += 1;
    }
}

impl Bucket {
    fn key(chunks: &[Chunk], place: Place) -> &[u8] {
        chunks[place.chunk as usize].rows.keys.row(place.row as usize).data()
    }

    fn find(&self, hash: u64, key: &[u8]) -> Option<Place> {
        self.index.find(hash, |place| Self::key(&self.chunks, *place) == key).copied()
    }

    fn add(&mut self, rows: &Arc<StateRows>, first: usize, replaces: &[Option<Place>], ages: bool) {
        let chunk = self.chunks.len();
        self.chunks.push(Chunk::new(Arc::clone(rows), first, replaces.len(), ages));
        self.index.reserve(replaces.iter().filter(|old| old.is_none()).count(), |place| {
            hash(Self::key(&self.chunks, *place))
        });
        for (row, old) in (first..).zip(replaces) {
            let place = Place { chunk: chunk as u32, row: row as u32 };
            let hashed = hash(rows.keys.row(row).data());
            match old {
                Some(old) => {
                    self.chunks[old.chunk as usize].bury(old.row as usize);
                    self.move_to(hashed, *old, place);
                }
                None => {
                    self.index.insert_unique(hashed, place, |place| hash(Self::key(&self.chunks, *place)));
                }
            }
        }
    }

    fn move_to(&mut self, hash: u64, old: Place, new: Place) {
        if let Some(place) = self.index.find_mut(hash, |place| *place == old) {
            *place = new;
        }
    }

    /// Forgets the rows of chunks that were last touched at or before `horizon`.
    fn expire(&mut self, horizon: i64) {
        for (number, chunk) in self.chunks.iter_mut().enumerate() {
            if chunk.newest.is_none_or(|newest| newest > horizon) || chunk.live_rows() == 0 {
                continue;
            }
            for row in chunk.live() {
                let place = Place { chunk: number as u32, row: row as u32 };
                if let Ok(entry) = self.index.find_entry(hash(chunk.rows.keys.row(row).data()), |p| *p == place) {
                    entry.remove();
                }
            }
            // Its number stays taken, so that places in later chunks stay right.
            chunk.dead.fill(true);
            chunk.dead_rows = chunk.dead.len();
        }
    }

    /// Merges the newest chunks while they are small and alike, and rewrites one that is half dead.
    fn tidy(&mut self, codec: &KeyCodec) -> Result<()> {
        while let [.., before, last] = self.chunks.as_slice()
            && before.len() + last.len() <= SMALL
            && before.live_rows() <= 2 * last.live_rows()
        {
            self.rewrite(self.chunks.len() - 2, 2, codec)?;
        }
        let is_half_dead = |chunk: &Chunk| chunk.len() > 1024 && chunk.dead_rows * 2 > chunk.len();
        if let Some(index) = self.chunks.iter().position(is_half_dead) {
            self.rewrite(index, 1, codec)?;
        }
        Ok(())
    }

    /// Puts the live rows of `count` chunks from `first` on into one in the place of the first; more than one must be the
    /// last ones.
    fn rewrite(&mut self, first: usize, count: usize, codec: &KeyCodec) -> Result<()> {
        let old = &self.chunks[first..first + count];
        let places: Vec<(usize, usize)> =
            old.iter().enumerate().flat_map(|(chunk, c)| c.live().map(move |row| (chunk, row))).collect();
        let mut keys = codec.empty(places.len());
        for &(chunk, row) in &places {
            keys.push(old[chunk].rows.keys.row(row));
        }
        let sources: Vec<&StateRows> = old.iter().map(|chunk| chunk.rows.as_ref()).collect();
        let values = gather(&sources, &places)?;
        let rows = Arc::new(StateRows { keys, values });
        let moved = Chunk::new(Arc::clone(&rows), 0, places.len(), old[0].newest.is_some());
        for (row, (chunk, old_row)) in places.into_iter().enumerate() {
            let old = Place { chunk: (first + chunk) as u32, row: old_row as u32 };
            self.move_to(hash(rows.keys.row(row).data()), old, Place { chunk: first as u32, row: row as u32 });
        }
        self.chunks[first] = moved;
        self.chunks.truncate(if count > 1 { first + 1 } else { self.chunks.len() });
        Ok(())
    }
}

/// The value columns of rows at these places: (which of the sources, which row).
pub fn gather(sources: &[&StateRows], places: &[(usize, usize)]) -> Result<Vec<ArrayRef>> {
    let columns = sources.first().map_or(0, |rows| rows.values.len());
    let column = |index: usize| {
        let arrays: Vec<&dyn Array> = sources.iter().map(|rows| &rows.values[index] as &dyn Array).collect();
        Ok(interleave(&arrays, places)?)
    };
    (0..columns).map(column).collect()
}

impl Shard {
    /// The row of a key, if there is one.
    pub fn find(&self, bucket: i64, hash: u64, key: &[u8]) -> Option<Place> {
        self.buckets.get(&bucket)?.find(hash, key)
    }

    /// When a row without a rising key was last touched.
    pub fn touched(&self, place: Place) -> i64 {
        let chunk = self.buckets.get(&TIMELESS).map(|bucket| &bucket.chunks[place.chunk as usize]);
        chunk.and_then(|chunk| touched(&chunk.rows)).map_or(i64::MIN, |touched| touched.value(place.row as usize))
    }

    /// The value columns of rows that [`Self::find`] found.
    pub fn values(&self, found: &[(i64, Place)]) -> Result<Vec<ArrayRef>> {
        let mut sources = vec![];
        let mut starts = BTreeMap::new();
        for &(bucket, _) in found {
            starts.entry(bucket).or_insert_with(|| {
                let start = sources.len();
                sources.extend(self.buckets[&bucket].chunks.iter().map(|chunk| chunk.rows.as_ref()));
                start
            });
        }
        let place = |&(bucket, place): &(i64, Place)| (starts[&bucket] + place.chunk as usize, place.row as usize);
        gather(&sources, &found.iter().map(place).collect::<Vec<_>>())
    }

    /// Takes over what an epoch did.
    pub fn apply(&mut self, delta: &Delta, layout: &Layout, codec: &KeyCodec) -> Result<()> {
        match delta.closes {
            Some(bound) if layout.rising.is_some() => self.buckets = self.buckets.split_off(&bound),
            _ => {}
        }
        let mut first = delta.first;
        for alike in delta.buckets[first..].chunk_by(|a, b| a == b) {
            let rows = first..first + alike.len();
            let bucket = self.buckets.entry(alike[0]).or_default();
            bucket.add(&delta.rows, first, &delta.replaces[rows.clone()], layout.is_touched);
            bucket.tidy(codec)?;
            first = rows.end;
        }
        if let (Some(horizon), true) = (delta.closes, layout.is_touched) {
            self.buckets.values_mut().for_each(|bucket| bucket.expire(horizon));
        }
        Ok(())
    }

    /// Takes over rows read from a file: as [`Self::apply`], whatever they replace.
    pub fn restore(&mut self, rows: StateRows, buckets: &[i64], layout: &Layout, codec: &KeyCodec) -> Result<()> {
        let replaces = (0..buckets.len())
            .map(|row| {
                let key = rows.keys.row(row).data();
                self.find(buckets[row], hash(key), key)
            })
            .collect();
        let delta = Delta { rows: Arc::new(rows), buckets: buckets.to_vec(), replaces, first: 0, closes: None };
        self.apply(&delta, layout, codec)
    }

    /// The first bucket that has rows.
    pub fn earliest(&self) -> Option<i64> {
        self.buckets.keys().next().copied()
    }

    /// All rows.
    pub fn live(&self) -> Vec<Live> {
        self.select(self.buckets.iter(), |_, _| true)
    }

    /// The rows of all buckets before `bound` but these.
    pub fn closing(&self, bound: i64, but: &HashSet<(i64, Place)>) -> Vec<Live> {
        self.select(self.buckets.range(..bound), |bucket, place| but.is_empty() || !but.contains(&(bucket, place)))
    }

    fn select<'a>(
        &'a self,
        buckets: impl Iterator<Item = (&'a i64, &'a Bucket)>,
        is_meant: impl Fn(i64, Place) -> bool,
    ) -> Vec<Live> {
        let mut live = vec![];
        for (key, bucket) in buckets {
            for (number, chunk) in bucket.chunks.iter().enumerate() {
                let place = |row: u32| Place { chunk: number as u32, row };
                let rows = chunk.live().map(|row| row as u32).filter(|row| is_meant(*key, place(*row)));
                live.push(Live { rows: Arc::clone(&chunk.rows), places: rows.collect() });
            }
        }
        live
    }

    /// How many rows there are.
    pub fn rows(&self) -> usize {
        self.buckets.values().map(|bucket| bucket.index.len()).sum()
    }

    /// Bytes in memory, about.
    pub fn memory(&self) -> usize {
        let mut seen = std::collections::BTreeSet::new();
        let mut bytes = 0;
        for bucket in self.buckets.values() {
            bytes += bucket.index.capacity() * (size_of::<Place>() + 1);
            for chunk in &bucket.chunks {
                bytes += chunk.dead.len();
                if seen.insert(Arc::as_ptr(&chunk.rows)) {
                    bytes += chunk.rows.keys.size();
                    bytes += chunk.rows.values.iter().map(|column| column.get_array_memory_size()).sum::<usize>();
                }
            }
        }
        bytes
    }
}
