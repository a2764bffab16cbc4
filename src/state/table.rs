//! Where rows lie, by the hash of their key.
//!
//! The idea: a table with open addressing and linear probing. A slot holds a place and the hash it goes by, side by side, so
//! that to look up a key that is there is one trip to memory, as a rule; and whoever looks up many has the trips of a hundred
//! or so made at the same time ([`fetched`]). That is why it is not hashbrown's: of that one, nothing can be read ahead.
//! Where a hash is looked up first, its home, is in the order of the hashes, so that a table is made larger from one end of
//! the memory to the other.
//!
//! Whoever is farther from home comes first (Robin Hood hashing): a place is about as near its home when it came to a table
//! that was nearly full as when that was empty. Otherwise epochs whose keys came late would take longer than others.
//!
//! Guarantee: a place that was put in is found until it is taken out. Not promised: to tell two keys of one hash apart,
//! which is the caller's, who has the keys.
//!
//! Memory: 12 bytes a slot. When more than two thirds of the slots would be taken, there are made twice as many as there are
//! places: 18 to 24 bytes a place, more where places were taken out.

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
    pub fn new(chunk: u32, row: usize, hash: u32) -> Self {
        Self { chunk, row: row as u32, hash }
    }

    fn is_free(&self) -> bool {
        self.chunk == FREE.chunk
    }
}

/// So many rows are fetched from memory at the same time: what they take, keys and places, fits the nearest cache.
pub const AHEAD: usize = 128;

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
    pub fn taken(&self) -> usize {
        self.taken
    }

    /// What it takes in memory.
    pub fn bytes(&self) -> usize {
        self.slots.capacity() * size_of::<Place>()
    }

    /// Something of the slot where a hash is looked up first. To read it has the memory bring it: see [`fetched`]. Both ends
    /// of the slot are read, as it may lie across two lines of the cache.
    pub fn peek(&self, hash: u32) -> u32 {
        self.slots.get(self.home(hash)).map_or(0, |place| place.hash ^ place.chunk)
    }

    /// The first place of this hash that `is_same` is true of.
    pub fn find(&self, hash: u32, mut is_same: impl FnMut(&Place) -> bool) -> Option<Place> {
        self.slot(hash, |place| place.hash == hash && is_same(place)).map(|slot| self.slots[slot])
    }

    /// Puts in a place of a key that has none.
    pub fn insert(&mut self, place: Place) {
        self.reserve(1);
        self.put(place);
        self.taken += 1;
    }

    /// Puts in places of different keys, each in the stead of the one that its key has, if it has one.
    pub fn set(&mut self, mut places: impl Iterator<Item = (Option<Place>, Place)>) {
        let mut ahead = vec![];
        loop {
            ahead.extend(places.by_ref().take(AHEAD));
            if ahead.is_empty() {
                return;
            }
            fetched(ahead.iter().map(|(_, new)| self.peek(new.hash)));
            for (old, new) in ahead.drain(..) {
                match old.and_then(|old| self.slot(old.hash, |place| *place == old)) {
                    Some(slot) => self.slots[slot] = new,
                    None => self.insert(new),
                }
            }
        }
    }

    /// Takes out a place; whether it was there.
    pub fn remove(&mut self, place: Place) -> bool {
        let Some(mut hole) = self.slot(place.hash, |other| *other == place) else { return false };
        // What follows moves up, up to one that is at home.
        let mut slot = self.after(hole);
        while !self.slots[slot].is_free() && self.steps(slot) > 0 {
            self.slots[hole] = self.slots[slot];
            hole = slot;
            slot = self.after(slot);
        }
        self.slots[hole] = FREE;
        self.taken -= 1;
        true
    }

    /// Whether there is room for so many more.
    pub fn has_room(&self, more: usize) -> bool {
        (self.taken + more) * 3 <= self.slots.len() * 2
    }

    /// Makes room for so many more.
    pub fn reserve(&mut self, more: usize) {
        if !self.has_room(more) {
            self.resize((self.taken + more) * 2);
        }
    }

    /// Gives back memory when less than an eighth of the slots is taken.
    pub fn shrink(&mut self) {
        if self.taken * 8 < self.slots.len() {
            self.resize(self.taken * 2);
        }
    }

    /// There is always a free slot: a search ends there.
    fn resize(&mut self, slots: usize) {
        let old = std::mem::replace(&mut self.slots, vec![FREE; slots]);
        old.into_iter().filter(|place| !place.is_free()).for_each(|place| self.put(place));
    }

    fn put(&mut self, mut place: Place) {
        let (mut slot, mut steps) = (self.home(place.hash), 0);
        while !self.slots[slot].is_free() {
            let others = self.steps(slot);
            if others < steps {
                std::mem::swap(&mut place, &mut self.slots[slot]);
                steps = others;
            }
            slot = self.after(slot);
            steps += 1;
        }
        self.slots[slot] = place;
    }

    /// The first slot that `is_it` is true of, from the home of a hash on, if it comes before where one of that hash would
    /// be put.
    fn slot(&self, hash: u32, mut is_it: impl FnMut(&Place) -> bool) -> Option<usize> {
        let (mut slot, mut steps) = (self.home(hash), 0);
        loop {
            match self.slots.get(slot) {
                None => return None,
                Some(place) if place.is_free() => return None,
                Some(place) if is_it(place) => return Some(slot),
                Some(_) if self.steps(slot) < steps => return None,
                Some(_) => (slot, steps) = (self.after(slot), steps + 1),
            }
        }
    }

    /// Where a hash is looked up first: as far along the slots as the hash is along the numbers.
    fn home(&self, hash: u32) -> usize {
        ((u64::from(hash) * self.slots.len() as u64) >> 32) as usize
    }

    /// How far what is in a slot is from its home.
    fn steps(&self, slot: usize) -> usize {
        let home = self.home(self.slots[slot].hash);
        if slot >= home { slot - home } else { slot + self.slots.len() - home }
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

        /// Through growth and shrinking, with hashes that are alike, that lie at the table's end, and that are the same.
        #[test]
        fn a_table_holds_what_a_map_would(
            steps in prop::collection::vec((0..4_u8, 0..4_usize, 0..40_u32), 1..400),
        ) {
            let (mut table, mut expected) = (Places::default(), BTreeMap::<(u32, u32), Place>::new());
            for (number, (step, hash, row)) in steps.into_iter().enumerate() {
                let hash = [0, 1, u32::MAX - 1, u32::MAX][hash];
                let hash = if row % 2 == 0 { hash } else { row.wrapping_mul(0x9E37_79B9) };
                let new = Place { chunk: number as u32, row, hash };
                match (step, expected.get(&(hash, row)).copied()) {
                    (0, Some(old)) => {
                        prop_assert!(table.remove(old));
                        prop_assert!(!table.remove(old));
                        expected.remove(&(hash, row));
                    }
                    (1, Some(old)) => {
                        table.set(std::iter::once((Some(old), new)));
                        expected.insert((hash, row), new);
                    }
                    (2, _) => table.shrink(),
                    (3, None) => {
                        table.set(std::iter::once((None, new)));
                        expected.insert((hash, row), new);
                    }
                    (_, None) => {
                        table.insert(new);
                        expected.insert((hash, row), new);
                    }
                    _ => {}
                }
                prop_assert_eq!(table.taken(), expected.len());
                prop_assert!(table.slots.len() > table.taken() || table.taken() == 0);
                for ((hash, row), place) in &expected {
                    prop_assert_eq!(table.find(*hash, |other| other.row == *row), Some(*place));
                }
                prop_assert_eq!(table.find(hash, |other| other.row == 99), None);
                for slot in (0..table.slots.len()).filter(|slot| !table.slots[*slot].is_free()) {
                    let before = if slot == 0 { table.slots.len() - 1 } else { slot - 1 };
                    let most = if table.slots[before].is_free() { 0 } else { table.steps(before) + 1 };
                    prop_assert!(table.steps(slot) <= most, "slot {slot} of {:?}", table.slots);
                }
            }
        }
    }

    #[test]
    fn what_comes_to_a_full_table_is_near_its_home_as_well() {
        let place = |row: u32| Place::new(0, row as usize, super::super::keys::hash(&row.to_le_bytes()) as u32);
        let mut table = Places::default();
        table.reserve(60_000);
        while table.has_room(1) {
            table.insert(place(table.taken() as u32));
        }
        let mean = |rows: std::ops::Range<usize>| {
            let steps = |row: usize| table.steps(table.slot(place(row as u32).hash, |p| p.row == row as u32).unwrap());
            rows.clone().map(steps).sum::<usize>() as f64 / rows.len() as f64
        };
        let (first, last) = (mean(0..table.taken() / 10), mean(table.taken() / 10 * 9..table.taken()));
        assert!(first > 0.5 && last < first * 2.0, "{first} and {last} steps");
    }

    #[test]
    fn a_table_takes_no_more_slots_than_it_says() {
        let mut table = Places::default();
        for row in 0..100_000 {
            table.insert(Place { chunk: 0, row, hash: row.wrapping_mul(0x9E37_79B9) });
            assert!(table.bytes() <= 24 * table.taken() && table.bytes() >= 18 * table.taken());
        }
    }
}
