//! Where rows lie, by the hash of their key.
//!
//! The idea: a table with open addressing and linear probing. A slot holds a place and the hash it goes by, side by side, so
//! that a lookup is one trip to memory; and whoever looks up many has the trips of a few hundred made at the same time
//! ([`fetched`]). Slots are in the order of the hashes, so that a table is made larger from one end of the memory to the
//! other.
//!
//! Guarantee: a place that was put in is found until it is taken out. Not promised: to tell two keys of one hash apart,
//! which is the caller's, who has the keys.
//!
//! Memory: 12 bytes a slot. When more than three quarters of the slots would be taken, there are made twice as many as there
//! are places: 16 to 24 bytes a place.

use std::hint::black_box;

/// Where a row lies: the chunk of its bucket, and the row in the chunk's rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Place {
    /// The chunk's number.
    pub chunk: u32,
    /// The row in the chunk.
    pub row: u32,
    /// Half of its key's hash: a table that grows need not look at the keys.
    pub hash: u32,
}

impl Place {
    /// Of a key with this hash.
    pub fn new(chunk: u32, row: usize, hash: u64) -> Self {
        Self { chunk, row: row as u32, hash: hash as u32 }
    }
}

/// So many rows are fetched from memory at the same time: what they take fits the nearest cache.
pub const AHEAD: usize = 256;

/// A slot where nothing is: no chunk has that number.
const FREE: Place = Place { chunk: u32::MAX, row: 0, hash: 0 };

/// A table of places: see the module's text.
#[derive(Debug, Default)]
pub struct Places {
    slots: Vec<Place>,
    taken: usize,
}

impl Places {
    /// How many places there are.
    pub fn len(&self) -> usize {
        self.taken
    }

    /// What it takes in memory.
    pub fn bytes(&self) -> usize {
        self.slots.capacity() * size_of::<Place>()
    }

    /// Something of the slot where a hash is looked up first. To read it has the memory bring it: see [`fetched`].
    pub fn peek(&self, hash: u64) -> u32 {
        self.slots.get(self.home(hash as u32)).map_or(0, |place| place.hash ^ place.chunk)
    }

    /// The first place of this hash that `is_same` is true of.
    pub fn find(&self, hash: u64, mut is_same: impl FnMut(&Place) -> bool) -> Option<Place> {
        let hash = hash as u32;
        self.slot(hash, |place| place.hash == hash && is_same(place)).map(|slot| self.slots[slot])
    }

    /// Puts in a place of a key that has none.
    pub fn insert(&mut self, place: Place) {
        self.reserve(1);
        self.put(place);
        self.taken += 1;
    }

    /// Puts places where others of the same keys were: (old, new).
    pub fn replace(&mut self, mut moves: impl Iterator<Item = (Place, Place)>) {
        let mut ahead = Vec::with_capacity(AHEAD);
        loop {
            ahead.extend(moves.by_ref().take(AHEAD));
            if ahead.is_empty() {
                return;
            }
            fetched(ahead.iter().map(|(old, _)| self.peek(old.hash.into())));
            for (old, new) in ahead.drain(..) {
                if let Some(slot) = self.slot(old.hash, |place| *place == old) {
                    self.slots[slot] = new;
                }
            }
        }
    }

    /// Takes out a place; whether it was there.
    pub fn remove(&mut self, place: Place) -> bool {
        let Some(mut hole) = self.slot(place.hash, |other| *other == place) else { return false };
        // What follows without a gap moves up, unless it would come to lie before where it is looked up first.
        let mut slot = self.after(hole);
        while self.slots[slot] != FREE {
            let home = self.home(self.slots[slot].hash);
            let steps = |from: usize| (slot + self.slots.len() - from) % self.slots.len();
            if steps(home) >= steps(hole) {
                self.slots[hole] = self.slots[slot];
                hole = slot;
            }
            slot = self.after(slot);
        }
        self.slots[hole] = FREE;
        self.taken -= 1;
        true
    }

    /// Makes room for so many more.
    pub fn reserve(&mut self, more: usize) {
        let wanted = self.taken + more;
        if wanted * 4 > self.slots.len() * 3 {
            self.resize(wanted * 2);
        }
    }

    /// Gives back memory when an eighth of the slots or less is taken.
    pub fn shrink(&mut self) {
        if self.taken * 8 < self.slots.len() {
            self.resize(self.taken * 2);
        }
    }

    /// There is always a free slot: a search ends there.
    fn resize(&mut self, slots: usize) {
        let old = std::mem::replace(&mut self.slots, vec![FREE; slots]);
        old.into_iter().filter(|place| *place != FREE).for_each(|place| self.put(place));
    }

    fn put(&mut self, place: Place) {
        let mut slot = self.home(place.hash);
        while self.slots[slot] != FREE {
            slot = self.after(slot);
        }
        self.slots[slot] = place;
    }

    /// The first slot that `is_it` is true of, from where a hash is looked up on, if it comes before a free one.
    fn slot(&self, hash: u32, mut is_it: impl FnMut(&Place) -> bool) -> Option<usize> {
        let mut slot = self.home(hash);
        loop {
            match self.slots.get(slot) {
                None | Some(&FREE) => return None,
                Some(place) if is_it(place) => return Some(slot),
                Some(_) => slot = self.after(slot),
            }
        }
    }

    /// Where a hash is looked up first: as far along the slots as the hash is along the numbers.
    fn home(&self, hash: u32) -> usize {
        ((u64::from(hash) * self.slots.len() as u64) >> 32) as usize
    }

    fn after(&self, slot: usize) -> usize {
        if slot + 1 == self.slots.len() { 0 } else { slot + 1 }
    }
}

/// Waits for what lies all over the memory to be near, all of it at the same time: the values are read, none of which
/// depends on the one before, and then not used.
pub fn fetched(values: impl Iterator<Item = u32>) {
    black_box(values.fold(0, u32::wrapping_add));
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

        /// Through growth and shrinking, with hashes that are alike, that lie at the end of the table, and that are the same.
        #[test]
        fn a_table_holds_what_a_map_would(
            steps in prop::collection::vec((0..4_u8, prop::sample::select(vec![0, 1, u32::MAX - 1, u32::MAX]), 0..40_u32), 1..400)
        ) {
            let (mut table, mut expected) = (Places::default(), BTreeMap::<(u32, u32), Place>::new());
            for (number, (step, hash, row)) in steps.into_iter().enumerate() {
                let hash = if row % 2 == 0 { hash } else { row.wrapping_mul(0x9E37_79B9) };
                let new = Place { chunk: number as u32, row, hash };
                match (step, expected.get(&(hash, row)).copied()) {
                    (0, Some(old)) => {
                        prop_assert!(table.remove(old));
                        prop_assert!(!table.remove(old));
                        expected.remove(&(hash, row));
                    }
                    (1, Some(old)) => {
                        table.replace(std::iter::once((old, new)));
                        expected.insert((hash, row), new);
                    }
                    (2, _) => table.shrink(),
                    (_, None) => {
                        table.insert(new);
                        expected.insert((hash, row), new);
                    }
                    _ => {}
                }
                prop_assert_eq!(table.len(), expected.len());
                prop_assert!(table.slots.len() > table.len() || table.len() == 0);
                for ((hash, row), place) in &expected {
                    prop_assert_eq!(table.find(u64::from(*hash), |other| other.row == *row), Some(*place));
                }
                prop_assert_eq!(table.find(u64::from(hash), |other| other.row == 99), None);
            }
        }
    }

    #[test]
    fn a_table_takes_no_more_slots_than_it_says() {
        let mut table = Places::default();
        for row in 0..100_000 {
            table.insert(Place { chunk: 0, row, hash: row.wrapping_mul(0x9E37_79B9) });
            assert!(table.bytes() <= 12 * 2 * table.len() && table.slots.len() * 3 >= table.len() * 4);
        }
    }
}
