//! The rows of one shard in memory: a hash table of places over immutable chunks.
//!
//! The idea: every epoch's merged rows are a chunk, shared with the file that is written from them. A new row marks the one
//! it replaces as dead. Small chunks of one size class are merged, and the chunk with the most dead rows is rewritten, as
//! epochs go by: each pays for a bounded part of the state, whatever its size and age.
//!
//! Memory for a group: the bytes of its key and values, 8 for the key's end where keys differ in length, 18 to 24 for its
//! place in the table, and at most as much of key and values again for rows that are dead.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ops::Range;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, BooleanBufferBuilder, Int64Array};
use arrow::buffer::BooleanBuffer;
use arrow::compute::interleave;
use arrow::datatypes::Int64Type;
use slab::Slab;

use super::Layout;
use super::files::trimmed;
use super::keys::{KeyBytes, TIMELESS, hash};
use super::piece::Piece;
use super::table::{AHEAD, Place, Places, fetched};
use crate::error::Result;

/// Chunks are merged within classes of size: up to so many live rows each…
const CLASSES: [usize; 2] = [256, 8 * 1024];
/// … when a class has this many.
const ALIKE: usize = 8;
/// Rows in a chunk that is read from files.
const LARGE: usize = 128 * 1024;

/// Rows by key, immutable: keys and value columns of the same length.
#[derive(Debug)]
pub struct StateRows {
    /// The keys.
    pub keys: KeyBytes,
    /// The value columns.
    pub values: Vec<ArrayRef>,
}

impl StateRows {
    fn bytes(&self) -> usize {
        self.keys.bytes() + self.values.iter().map(|column| column.get_array_memory_size()).sum::<usize>()
    }
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
    /// Rows that go and are replaced by none.
    pub gone: Vec<Place>,
}

impl Delta {
    /// The rows that stay.
    pub fn changed(&self) -> Live {
        let alive = BooleanBuffer::new_set(self.buckets.len() - self.first);
        Live { rows: Arc::clone(&self.rows), first: self.first, alive }
    }
}

/// Rows `first..first + alive.len()` of shared rows.
#[derive(Debug)]
struct Chunk {
    rows: Arc<StateRows>,
    first: usize,
    alive: BooleanBufferBuilder,
    live_rows: usize,
    /// When a row of it was last touched, where that is kept.
    newest: Option<i64>,
    /// In memory, about.
    bytes: usize,
}

#[derive(Debug, Default)]
struct Bucket {
    index: Places,
    chunks: Slab<Chunk>,
}

/// The rows of one shard: see the module's text.
#[derive(Debug, Default)]
pub struct Shard {
    buckets: BTreeMap<i64, Bucket>,
    /// Where rows say when they are due: keys by a time at or before that. A row that became due later is put there when
    /// the earlier time comes.
    due: BTreeSet<(i64, Box<[u8]>)>,
    due_bytes: usize,
    rows: usize,
    bytes: usize,
}

/// Live rows of a shard, for whoever reads them while the shard goes on.
#[derive(Debug, Clone)]
pub struct Live {
    rows: Arc<StateRows>,
    first: usize,
    alive: BooleanBuffer,
}

impl Live {
    /// The same rows, so many at a time.
    pub fn parts(self, most: usize) -> impl Iterator<Item = Live> {
        (0..self.alive.len()).step_by(most).map(move |from| {
            let alive = self.alive.slice(from, most.min(self.alive.len() - from));
            Live { rows: Arc::clone(&self.rows), first: self.first + from, alive }
        })
    }

    /// The shared rows.
    pub fn rows(&self) -> &StateRows {
        &self.rows
    }

    /// How many of them are meant.
    pub fn count(&self) -> usize {
        self.alive.count_set_bits()
    }

    /// Which of them are meant.
    pub fn places(&self) -> impl Iterator<Item = usize> {
        self.alive.set_indices().map(|index| self.first + index)
    }

    /// The same: among which of them they are, and which of these.
    pub fn among(&self) -> (Range<usize>, BooleanArray) {
        (self.first..self.first + self.alive.len(), self.alive.clone().into())
    }
}

/// When rows were last touched: the last value column, where it is kept.
fn touched(rows: &StateRows) -> Option<&Int64Array> {
    rows.values.last()?.as_primitive_opt::<Int64Type>()
}

/// When rows are due: the last value column but one, where it is kept.
fn due(rows: &StateRows, row: usize) -> i64 {
    let column = rows.values.len().checked_sub(2).and_then(|index| rows.values[index].as_primitive_opt::<Int64Type>());
    column.map_or(i64::MIN, |due| due.value(row))
}

impl Chunk {
    /// Rows `first..first + len`; `ages` says whether they are forgotten when nothing touches them.
    fn new(rows: Arc<StateRows>, first: usize, len: usize, ages: bool) -> Self {
        let newest = match touched(&rows) {
            Some(touched) if ages => touched.values()[first..first + len].iter().max().copied(),
            _ => None,
        };
        // Of rows that several buckets share, each counts its part.
        let mut alive = BooleanBufferBuilder::new(len);
        alive.append_n(len, true);
        let bytes = alive.capacity() / 8 + rows.bytes() * len / rows.keys.rows().max(1);
        Self { rows, first, alive, live_rows: len, newest, bytes }
    }

    fn len(&self) -> usize {
        self.alive.len()
    }

    fn live(&self) -> Live {
        Live { rows: Arc::clone(&self.rows), first: self.first, alive: self.alive.finish_cloned() }
    }

    fn bury(&mut self, row: usize) {
        self.alive.set_bit(row - self.first, false);
        self.live_rows -= 1;
    }

    fn bury_all(&mut self) {
        self.alive.as_slice_mut().fill(0);
        self.live_rows = 0;
    }
}

impl Bucket {
    fn key(chunks: &Slab<Chunk>, place: Place) -> &[u8] {
        chunks[place.chunk as usize].rows.keys.row(place.row as usize)
    }

    /// Something of the key at a place: see [`fetched`].
    fn peek(&self, place: Place) -> u32 {
        Self::key(&self.chunks, place).first().copied().unwrap_or(0).into()
    }

    /// The chunks that have rows.
    fn living(&self) -> impl Iterator<Item = (usize, &Chunk)> {
        self.chunks.iter().filter(|(_, chunk)| chunk.live_rows > 0)
    }

    fn find(&self, hash: u64, key: &[u8]) -> Option<Place> {
        self.index.find(hash as u32, |place| Self::key(&self.chunks, *place) == key)
    }

    /// Where a key lies, if it is there and no other one has its hash.
    fn likely(&self, hash: u64) -> Option<Place> {
        self.index.find(hash as u32, |_| true)
    }

    fn add(&mut self, rows: &Arc<StateRows>, first: usize, replaces: &[Option<Place>], ages: bool) {
        let chunk = self.chunks.insert(Chunk::new(Arc::clone(rows), first, replaces.len(), ages)) as u32;
        self.index.reserve(replaces.iter().filter(|old| old.is_none()).count());
        for old in replaces.iter().flatten() {
            self.chunks[old.chunk as usize].bury(old.row as usize);
        }
        let moved = |(row, old): (usize, &Option<Place>)| {
            let hash = old.map_or_else(|| hash(rows.keys.row(row)) as u32, |old| old.hash);
            (*old, Place::new(chunk, row, hash))
        };
        self.index.set((first..).zip(replaces).map(moved));
    }

    /// Puts rows of pieces into it, of each key the first, unless it has one: (which piece, which row).
    fn fill(&mut self, pieces: &[Piece], rows: &[(u32, u32)], ages: bool) -> Result<()> {
        let mut filling: Vec<(usize, usize)> = Vec::with_capacity(rows.len().min(LARGE));
        let place_of = |(piece, row): &(u32, u32)| (*piece as usize, *row as usize);
        for rows in rows.chunks(AHEAD) {
            let places = rows.iter().map(place_of);
            fetched(places.clone().map(|(piece, row)| self.index.peek(pieces[piece].hashes[row] as u32)));
            for (piece, row) in places {
                let chunk = self.chunks.vacant_key() as u32;
                let key = pieces[piece].key(row);
                let is_same = |place: &Place| match place.chunk == chunk {
                    true => {
                        let (piece, row) = filling[place.row as usize];
                        pieces[piece].key(row) == key
                    }
                    false => Self::key(&self.chunks, *place) == key,
                };
                let place = Place::new(chunk, filling.len(), pieces[piece].hashes[row] as u32);
                if self.index.find(place.hash, is_same).is_some() {
                    continue;
                }
                self.index.insert(place);
                filling.push((piece, row));
                if filling.len() == LARGE {
                    self.chunks.insert(filled(pieces, &filling, ages)?);
                    filling.clear();
                }
            }
        }
        if !filling.is_empty() {
            self.chunks.insert(filled(pieces, &filling, ages)?);
        }
        Ok(())
    }

    /// Forgets the rows of chunks that were last touched at or before `horizon`.
    fn expire(&mut self, horizon: i64) {
        for (number, chunk) in &mut self.chunks {
            if chunk.newest.is_none_or(|newest| newest > horizon) {
                continue;
            }
            for row in chunk.live().places() {
                self.index.remove(Place::new(number as u32, row, hash(chunk.rows.keys.row(row)) as u32));
            }
            chunk.bury_all();
        }
    }

    /// Forgets a row.
    fn forget(&mut self, place: Place) {
        if self.index.remove(place) {
            self.chunks[place.chunk as usize].bury(place.row as usize);
        }
    }

    /// Gives back memory: frees empty chunks, merges a class of small ones, and rewrites those with the most dead rows,
    /// until about as many rows are moved as came.
    fn tidy(&mut self, came: usize) -> Result<()> {
        self.index.shrink();
        self.chunks.retain(|_, chunk| chunk.live_rows > 0);
        let mut least = 1;
        for most in CLASSES {
            let is_alike = |(_, chunk): &(usize, &Chunk)| (least..=most).contains(&chunk.live_rows);
            let alike: Vec<usize> = self.chunks.iter().filter(is_alike).map(|(number, _)| number).collect();
            if alike.len() >= ALIKE {
                self.rewrite(&alike)?;
            }
            least = most + 1;
        }
        let mut moved = 0;
        while moved < came.max(1)
            && let half_dead = self.chunks.iter().filter(|(_, chunk)| chunk.live_rows * 2 < chunk.len())
            && let Some((number, worst)) = half_dead.max_by_key(|(_, chunk)| chunk.len() - chunk.live_rows)
        {
            moved += worst.live_rows;
            self.rewrite(&[number])?;
        }
        Ok(())
    }

    /// Puts the live rows of these chunks into one.
    fn rewrite(&mut self, numbers: &[usize]) -> Result<()> {
        let old = |chunk: usize| &self.chunks[numbers[chunk]];
        let mut places: Vec<(usize, usize)> = vec![];
        for chunk in 0..numbers.len() {
            places.extend(old(chunk).live().places().map(|row| (chunk, row)));
        }
        let sources: Vec<&StateRows> = (0..numbers.len()).map(|chunk| old(chunk).rows.as_ref()).collect();
        let rows = collected(&sources, &places)?;
        let moved = Chunk::new(Arc::clone(&rows), 0, places.len(), old(0).newest.is_some());
        let to = self.chunks.insert(moved) as u32;
        let moved = |(row, (chunk, old_row)): (usize, &(usize, usize))| {
            let hash = hash(rows.keys.row(row)) as u32;
            (Some(Place::new(numbers[*chunk] as u32, *old_row, hash)), Place::new(to, row, hash))
        };
        self.index.set(places.iter().enumerate().map(moved));
        for number in numbers {
            self.chunks.remove(*number);
        }
        Ok(())
    }

    fn bytes(&self) -> usize {
        self.index.bytes() + self.chunks.iter().map(|(_, chunk)| chunk.bytes).sum::<usize>()
    }
}

/// A chunk of rows of pieces.
fn filled(pieces: &[Piece], places: &[(usize, usize)], ages: bool) -> Result<Chunk> {
    let sources: Vec<&StateRows> = pieces.iter().map(|piece| &piece.rows).collect();
    Ok(Chunk::new(collected(&sources, places)?, 0, places.len(), ages))
}

/// The rows at these places, sharing no buffer with where they were: (which of the sources, which row).
fn collected(sources: &[&StateRows], places: &[(usize, usize)]) -> Result<Arc<StateRows>> {
    let keys = KeyBytes::of(places.iter().map(|(source, row)| sources[*source].keys.row(*row)));
    let values = gather(sources, places)?.iter().map(trimmed).collect();
    Ok(Arc::new(StateRows { keys, values }))
}

/// The value columns of rows at these places: (which of the sources, which row); those that all of the sources have.
pub fn gather(sources: &[&StateRows], places: &[(usize, usize)]) -> Result<Vec<ArrayRef>> {
    let columns = sources.iter().map(|rows| rows.values.len()).min().unwrap_or(0);
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

    /// The same for many keys: each is a bucket, a hash and the key.
    pub fn find_all<'a>(&self, mut keys: impl Iterator<Item = (i64, u64, &'a [u8])>) -> Vec<Option<Place>> {
        let mut found = Vec::with_capacity(keys.size_hint().0);
        let mut ahead = vec![];
        loop {
            let asked = |(bucket, hash, key)| (self.buckets.get(&bucket), hash, key);
            ahead.extend(keys.by_ref().take(AHEAD).map(asked));
            if ahead.is_empty() {
                return found;
            }
            fetched(ahead.iter().filter_map(|(bucket, hash, _)| Some(bucket.as_ref()?.index.peek(*hash as u32))));
            let likely: Vec<Option<Place>> =
                ahead.iter().map(|(bucket, hash, _)| bucket.as_ref()?.likely(*hash)).collect();
            let peek = |((bucket, ..), likely): (&(Option<&Bucket>, _, _), &Option<Place>)| {
                Some(bucket.as_ref()?.peek((*likely)?))
            };
            fetched(ahead.iter().zip(&likely).filter_map(peek));
            found.extend(ahead.drain(..).zip(likely).map(|((bucket, hash, key), likely)| {
                let (bucket, likely) = (bucket?, likely?);
                match Bucket::key(&bucket.chunks, likely) == key {
                    true => Some(likely),
                    false => bucket.find(hash, key),
                }
            }));
        }
    }

    /// The rows among which a row without a rising key lies.
    fn rows_at(&self, place: Place) -> Option<&StateRows> {
        self.buckets.get(&TIMELESS).map(|bucket| bucket.chunks[place.chunk as usize].rows.as_ref())
    }

    /// When a row without a rising key was last touched.
    pub fn touched(&self, place: Place) -> i64 {
        self.rows_at(place).and_then(touched).map_or(i64::MIN, |touched| touched.value(place.row as usize))
    }

    fn due_at(&self, place: Place) -> i64 {
        self.rows_at(place).map_or(i64::MIN, |rows| due(rows, place.row as usize))
    }

    /// The rows that are due before `bound`; one may be there twice.
    fn due_before(&self, bound: i64) -> impl Iterator<Item = Place> {
        let keys = self.due.range(..(bound, Box::default())).map(|(_, key)| key);
        keys.filter_map(|key| self.find(TIMELESS, hash(key), key)).filter(move |place| self.due_at(*place) < bound)
    }

    /// The rows that are due before `bound` but these, each once.
    pub fn due(&self, bound: i64, but: impl Iterator<Item = Place>) -> Vec<Place> {
        let mut seen: HashSet<Place> = but.collect();
        self.due_before(bound).filter(|place| seen.insert(*place)).collect()
    }

    fn remind_of(&mut self, due: i64, key: Box<[u8]>) {
        let bytes = key.len() + size_of::<(i64, Box<[u8]>)>();
        self.due_bytes += if self.due.insert((due, key)) { bytes } else { 0 };
    }

    /// Puts down when rows are due: new ones, and those whose time has come but who are due later by now.
    fn remind(&mut self, delta: &Delta, was_due: &[Option<i64>]) {
        for (row, was_due) in was_due.iter().enumerate() {
            let due = due(&delta.rows, row);
            if was_due.is_none_or(|was_due| due < was_due) {
                self.remind_of(due, delta.rows.keys.row(row).into());
            }
        }
        let Some(bound) = delta.closes else { return };
        let later = self.due.split_off(&(bound, Box::default()));
        for (_, key) in std::mem::replace(&mut self.due, later) {
            self.due_bytes -= key.len() + size_of::<(i64, Box<[u8]>)>();
            if let Some(place) = self.find(TIMELESS, hash(&key), &key) {
                self.remind_of(self.due_at(place), key);
            }
        }
    }

    /// Where rows that [`Self::find`] found lie: in which of these rows, and which of them.
    pub fn places(&self, found: impl Iterator<Item = (i64, Place)>) -> (Vec<&StateRows>, Vec<(usize, usize)>) {
        let mut sources = vec![];
        let mut starts = hashbrown::HashMap::new();
        let places = found.map(|(bucket, place)| {
            let source = *starts.entry((bucket, place.chunk)).or_insert_with(|| {
                sources.push(self.buckets[&bucket].chunks[place.chunk as usize].rows.as_ref());
                sources.len() - 1
            });
            (source, place.row as usize)
        });
        let places = places.collect();
        (sources, places)
    }

    /// Takes over what an epoch did.
    pub fn apply(&mut self, delta: &Delta, layout: &Layout) -> Result<()> {
        let was_due: Vec<Option<i64>> = match layout.is_due {
            true => delta.replaces.iter().map(|place| place.map(|place| self.due_at(place))).collect(),
            false => vec![],
        };
        if let (Some(bound), true) = (delta.closes, layout.rising.is_some()) {
            let open = self.buckets.split_off(&bound);
            for gone in std::mem::replace(&mut self.buckets, open).into_values() {
                self.rows -= gone.index.taken();
                self.bytes -= gone.bytes();
            }
        }
        // Before anything is moved: their places, and those of rows that are replaced, hold until then.
        if let Some(bucket) = self.buckets.get_mut(&TIMELESS).filter(|_| !delta.gone.is_empty()) {
            let rows = bucket.index.taken();
            delta.gone.iter().for_each(|place| bucket.forget(*place));
            self.rows -= rows - bucket.index.taken();
        }
        let mut first = delta.first;
        for alike in delta.buckets[first..].chunk_by(|a, b| a == b) {
            let replaces = &delta.replaces[first..first + alike.len()];
            let add = |bucket: &mut Bucket| bucket.add(&delta.rows, first, replaces, layout.is_touched);
            self.change(alike[0], alike.len(), add)?;
            first += alike.len();
        }
        if let (Some(horizon), true) = (delta.closes, layout.is_touched) {
            self.change(TIMELESS, 0, |bucket| bucket.expire(horizon))?;
        }
        if layout.is_due {
            self.remind(delta, &was_due);
        }
        Ok(())
    }

    /// Changes one bucket, where so many rows come, and counts what that changes.
    fn change(&mut self, bucket: i64, came: usize, act: impl FnOnce(&mut Bucket)) -> Result<()> {
        let bucket = self.buckets.entry(bucket).or_default();
        let (rows, bytes) = (bucket.index.taken(), bucket.bytes());
        act(bucket);
        bucket.tidy(came)?;
        self.rows = self.rows + bucket.index.taken() - rows;
        self.bytes = self.bytes + bucket.bytes() - bytes;
        Ok(())
    }

    /// One that is to be filled with the rows of files that have so many for it.
    pub fn of_files(rows: usize, layout: &Layout) -> Self {
        let mut shard = Self::default();
        if layout.rising.is_none() && rows > 0 {
            // Since a snapshot, about as many rows were changed as it has.
            shard.buckets.entry(TIMELESS).or_default().index.reserve(rows / 2);
        }
        shard
    }

    /// Takes over rows of files, some files after the other, the newest first: of each key the first row counts. `number`
    /// is the shard's own.
    pub fn fill(&mut self, pieces: &[Piece], number: usize, layout: &Layout) -> Result<()> {
        let mut rows: Vec<(u32, u32)> = Vec::with_capacity(pieces.iter().map(|part| part.by_shard[number].len()).sum());
        for (piece, part) in pieces.iter().enumerate() {
            rows.extend(part.by_shard[number].iter().map(|row| (piece as u32, *row)));
        }
        let bucket_of = |(piece, row): &(u32, u32)| pieces[*piece as usize].buckets[*row as usize];
        if layout.rising.is_some() {
            rows.sort_by_key(bucket_of);
        }
        rows.chunk_by(|a, b| bucket_of(a) == bucket_of(b)).try_for_each(|alike| {
            self.buckets.entry(bucket_of(&alike[0])).or_default().fill(pieces, alike, layout.is_touched)
        })
    }

    /// All of them have been taken over.
    pub fn settle(&mut self, layout: &Layout) {
        self.buckets.retain(|_, bucket| bucket.index.taken() > 0);
        for bucket in self.buckets.values_mut() {
            bucket.index.shrink();
            self.rows += bucket.index.taken();
            self.bytes += bucket.bytes();
        }
        if layout.is_due {
            for live in self.live() {
                for row in live.places() {
                    let key = live.rows().keys.row(row).into();
                    self.remind_of(due(live.rows(), row), key);
                }
            }
        }
    }

    /// Whether any row is complete at this bound.
    pub fn would_close(&self, bound: i64, layout: &Layout) -> bool {
        match layout.is_due {
            true => self.due_before(bound).next().is_some(),
            false => self.buckets.first_key_value().is_some_and(|(first, _)| *first < bound),
        }
    }

    /// All rows.
    pub fn live(&self) -> Vec<Live> {
        self.buckets.values().flat_map(|bucket| bucket.living().map(|(_, chunk)| chunk.live())).collect()
    }

    /// The rows of all buckets before `bound` but these.
    pub fn closing(&self, bound: i64, but: impl Iterator<Item = (i64, Place)>) -> Vec<Live> {
        let mut left_out: HashMap<(i64, u32), Vec<usize>> = HashMap::new();
        but.for_each(|(bucket, place)| left_out.entry((bucket, place.chunk)).or_default().push(place.row as usize));
        let mut closing = vec![];
        for (key, bucket) in self.buckets.range(..bound) {
            for (number, chunk) in bucket.living() {
                let mut live = chunk.live();
                if let Some(rows) = left_out.get(&(*key, number as u32)) {
                    let mut alive = BooleanBufferBuilder::new(chunk.len());
                    alive.append_buffer(&live.alive);
                    rows.iter().for_each(|row| alive.set_bit(row - chunk.first, false));
                    live.alive = alive.build();
                }
                closing.push(live);
            }
        }
        closing
    }

    /// How many rows there are.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Bytes in memory, about.
    pub fn memory(&self) -> usize {
        self.bytes + self.due_bytes
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::RecordBatch;
    use arrow::datatypes::{DataType, Field};
    use proptest::prelude::*;

    use super::super::keys::KeyCodec;
    use super::*;

    type Key = (i64, i64);

    /// A shard, and what it should hold: of each key the epoch that changed it last.
    struct Beside {
        shard: Shard,
        layout: Layout,
        codec: KeyCodec,
        epoch: i64,
        expected: BTreeMap<Key, i64>,
        /// What each epoch changed, as files would have it.
        written: Vec<BTreeSet<Key>>,
    }

    impl Beside {
        /// By keys (minute, number), the first of which may rise; if it does not, rows are forgotten some time after they
        /// were touched.
        fn new(rises: bool) -> Self {
            let field = |name: &str| Arc::new(Field::new(name, DataType::Int64, false));
            let mut layout = Layout { keys: vec![field("minute"), field("number")], ..Layout::named("test-1") };
            match rises {
                true => (layout.values, layout.rising) = (vec![field("epoch")], Some(0)),
                false => layout.touch(),
            }
            let codec = KeyCodec::try_new(&layout.keys, layout.rising).unwrap();
            let (expected, written) = Default::default();
            Self { shard: Shard::default(), layout, codec, epoch: 0, expected, written }
        }

        fn rises(&self) -> bool {
            self.layout.rising.is_some()
        }

        /// The keys, which bucket each is in, and where each is found.
        fn found<'a>(&self, keys: impl Iterator<Item = &'a Key> + Clone) -> (KeyBytes, Vec<i64>, Vec<Option<Place>>) {
            let minutes: ArrayRef = Arc::new(Int64Array::from_iter_values(keys.clone().map(|key| key.0)));
            let numbers: ArrayRef = Arc::new(Int64Array::from_iter_values(keys.map(|key| key.1)));
            let encoded = self.codec.encode(&[minutes, numbers]).unwrap();
            let asked = |row: usize| {
                let key = encoded.rows.row(row);
                (encoded.buckets[row], hash(key), key)
            };
            let found = self.shard.find_all((0..encoded.buckets.len()).map(asked));
            (encoded.rows, encoded.buckets, found)
        }

        /// An epoch that changes these keys, forgets some, and closes what lies before a bound.
        fn epoch(&mut self, changed: &BTreeSet<Key>, gone: &BTreeSet<Key>, closes: Option<i64>) {
            self.epoch += 1;
            let (keys, buckets, replaces) = self.found(changed.iter());
            let values: Vec<ArrayRef> = vec![Arc::new(Int64Array::from_value(self.epoch, changed.len()))];
            let first = match (self.rises(), closes) {
                (true, Some(bound)) => changed.iter().take_while(|key| key.0 < bound).count(),
                _ => 0,
            };
            let is_gone = |key: &&Key| !self.rises() && !changed.contains(key);
            let (_, _, places) = self.found(gone.iter().filter(is_gone));
            let gone_now: Vec<Key> = gone.iter().filter(is_gone).copied().collect();
            let gone = places.into_iter().flatten().collect();
            let rows = Arc::new(StateRows { keys, values });
            let delta = Delta { rows, buckets, replaces, first, closes, gone };
            self.shard.apply(&delta, &self.layout).unwrap();

            self.written.iter_mut().for_each(|epoch| epoch.retain(|key| !gone_now.contains(key)));
            self.written.push(changed.clone());
            self.expected.retain(|key, _| !gone_now.contains(key));
            self.expected.extend(changed.iter().map(|key| (*key, self.epoch)));
            let (rises, bound) = (self.rises(), closes.unwrap_or(i64::MIN));
            self.expected.retain(|key, epoch| if rises { key.0 >= bound } else { *epoch > bound });
        }

        /// What so many shards hold that are filled from what was written, but for rows whose time has passed.
        fn restored(&self, shards: usize, horizon: i64) -> Vec<(Key, i64)> {
            let column = |values: Vec<i64>| -> ArrayRef { Arc::new(Int64Array::from(values)) };
            let piece = |(before, changed): (usize, &BTreeSet<Key>)| {
                let epoch = before as i64 + 1;
                let minutes: Vec<i64> = changed.iter().map(|key| key.0).collect();
                let numbers: Vec<i64> = changed.iter().map(|key| key.1).collect();
                let is_wanted = |row: usize| if self.rises() { minutes[row] >= horizon } else { epoch > horizon };
                let columns = [column(minutes.clone()), column(numbers), column(vec![epoch; changed.len()])];
                let rows = RecordBatch::try_new(self.layout.schema(), columns.into()).unwrap();
                Piece::try_new(&self.codec, &rows, shards, is_wanted).unwrap()
            };
            let pieces: Vec<Piece> = self.written.iter().enumerate().rev().map(piece).collect();
            let filled = |number: usize| {
                let mut shard = Shard::of_files(pieces.iter().map(|piece| piece.hashes.len()).sum(), &self.layout);
                for pieces in pieces.chunks(2) {
                    shard.fill(pieces, number, &self.layout).unwrap();
                }
                shard.settle(&self.layout);
                let rows: Vec<_> = shard.live().iter().flat_map(|live| self.rows_of(live)).collect();
                assert_eq!(rows.len(), shard.rows());
                rows
            };
            let mut rows: Vec<_> = (0..shards).flat_map(filled).collect();
            rows.sort();
            rows
        }

        fn rows_of(&self, live: &Live) -> Vec<(Key, i64)> {
            let keys = self.codec.decode(live.places().map(|row| live.rows().keys.row(row))).unwrap();
            let (minutes, numbers) = (keys[0].as_primitive::<Int64Type>(), keys[1].as_primitive::<Int64Type>());
            let values = live.rows().values[0].as_primitive::<Int64Type>();
            let row = |(index, place)| ((minutes.value(index), numbers.value(index)), values.value(place));
            live.places().enumerate().map(row).collect()
        }

        /// Rows are as expected, however they are looked at. Those whose time has passed may yet be there, if they do not
        /// go by their key.
        fn check(&self, horizon: i64) {
            let is_due = |(_, epoch): &(Key, i64)| self.rises() || *epoch > horizon;
            let expected: Vec<(Key, i64)> = self.expected.iter().map(|(key, epoch)| (*key, *epoch)).collect();
            let live = self.shard.live();
            let mut rows: Vec<_> = live.iter().flat_map(|live| self.rows_of(live)).collect();
            rows.sort();
            assert_eq!(rows.len(), self.shard.rows());
            let parts: Vec<_> = live.into_iter().flat_map(|live| live.parts(7)).collect();
            for part in &parts {
                let (among, alive) = part.among();
                assert!(among.len() <= 7 && part.count() == alive.true_count());
                assert!(part.places().eq(among.clone().filter(|row| alive.value(row - among.start))));
            }
            let mut in_parts: Vec<_> = parts.iter().flat_map(|part| self.rows_of(part)).collect();
            in_parts.sort();
            assert_eq!(in_parts, rows);
            rows.retain(is_due);
            assert_eq!(rows, expected);

            assert_eq!(self.restored(3, horizon), expected);

            let (_, buckets, found) = self.found(self.expected.keys());
            let places = buckets.iter().zip(&found).map(|(bucket, place)| (*bucket, place.unwrap()));
            let (sources, places) = self.shard.places(places);
            let value =
                |(source, row): &(usize, usize)| sources[*source].values[0].as_primitive::<Int64Type>().value(*row);
            assert!(places.iter().map(value).eq(self.expected.values().copied()));
            let others = [(-1, 0), (0, 1000), (5, -1)];
            assert!(self.found(others.iter()).2.iter().all(Option::is_none));

            if self.rises() {
                // What closes at minute 3, but every second one.
                let closing: Vec<_> = expected.iter().filter(|(key, _)| key.0 < 3).collect();
                let (_, buckets, found) = self.found(closing.iter().step_by(2).map(|(key, _)| key));
                let but = buckets.into_iter().zip(found).map(|(bucket, place)| (bucket, place.unwrap()));
                let mut left: Vec<_> = self.shard.closing(3, but).iter().flat_map(|live| self.rows_of(live)).collect();
                left.sort();
                assert!(left.iter().eq(closing.into_iter().skip(1).step_by(2)));
            }
        }
    }

    fn keys(most: usize) -> impl Strategy<Value = BTreeSet<Key>> {
        prop::collection::btree_set((0..5_i64, 0..60_i64), 0..most)
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

        /// Through merged chunks, rewritten ones, closed buckets and forgotten rows.
        #[test]
        fn a_shard_holds_what_a_map_would(
            rises: bool,
            epochs in prop::collection::vec((keys(40), keys(4), prop::option::weighted(0.1, 0..3_i64)), 1..60),
        ) {
            let mut beside = Beside::new(rises);
            let mut bound = i64::MIN;
            for (changed, gone, closes) in epochs {
                let changed = if rises { changed.into_iter().filter(|key| key.0 >= bound).collect() } else { changed };
                // A bound never goes back; of rows that are touched it follows at some distance.
                let closes = closes.map(|some| if rises { some } else { beside.epoch - 5 * (some + 1) });
                bound = bound.max(closes.unwrap_or(i64::MIN));
                beside.epoch(&changed, &gone, closes.map(|_| bound));
                beside.check(bound);
            }
        }
    }

    /// More rows than a chunk that is read from files has, some of them twice: in the chunk that is being filled, and in
    /// one that is full.
    #[test]
    fn a_shard_is_filled_with_more_than_one_chunk() {
        let mut beside = Beside::new(false);
        let all = |from: i64, to: usize| (from..to as i64).map(|number| (number % 7, number)).collect::<BTreeSet<_>>();
        let (older, newer) = (all(0, 2 * LARGE), all(100, LARGE + 100));
        let (mut expected, newest) = (BTreeMap::new(), all(50, 150));
        for (changed, epoch) in [&older, &newer, &newest].into_iter().zip(1..) {
            expected.extend(changed.iter().map(|key| (*key, epoch)));
        }
        beside.written = vec![older, newer, newest];
        assert!(beside.restored(1, 0).into_iter().eq(expected));
    }

    /// More keys than are fetched at once, half of them new in each epoch.
    #[test]
    fn many_keys_are_found_and_moved_at_once() {
        for rises in [true, false] {
            let mut beside = Beside::new(rises);
            for epoch in 0..6 {
                let changed = (500 * epoch..500 * epoch + 1000).map(|number| (number % 3 + 2, number)).collect();
                beside.epoch(&changed, &BTreeSet::new(), None);
                beside.check(i64::MIN);
            }
        }
    }

    /// Two keys may have one half of a hash in common: each is found, and a third one that has it, too, is not.
    #[test]
    fn keys_of_one_hash_are_told_apart() {
        let mut beside = Beside::new(true);
        let (a, b, c) = ((0, 1), (0, 2), (0, 3));
        beside.epoch(&BTreeSet::from([a, b]), &BTreeSet::new(), None);
        let (keys, ..) = beside.found([a, b, c].iter());
        let of = |row: usize| hash(keys.row(row));
        let bucket = beside.shard.buckets.get_mut(&0).unwrap();
        bucket.index = Places::default();
        (0..2).for_each(|row| bucket.index.insert(Place::new(0, row, of(0) as u32)));
        let found = beside.shard.find_all([0, 1, 2].into_iter().map(|row| (0, of(0), keys.row(row))));
        let rows: Vec<_> = found.iter().map(|place| place.map(|place| place.row)).collect();
        assert_eq!(rows, [Some(0), Some(1), None]);
    }
}
