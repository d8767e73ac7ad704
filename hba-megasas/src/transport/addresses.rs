//! Maps by guest address. Each command is put in and taken out, so hashing must cost little.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher, RandomState};

/// A map by guest address.
pub(super) type Addresses<T> = HashMap<u64, T, Key>;

/// An empty map with room for `count` addresses.
pub(super) fn with_room<T>(count: usize) -> Addresses<T> {
    HashMap::with_capacity_and_hasher(count, Key::new())
}

/// Hashing by one multiplication with a number that the guest does not know. Even a guest that finds addresses that collide
/// makes its own adapter slow only, and a map has no more of them than commands can be in flight.
#[derive(Clone, Debug)]
pub(super) struct Key(u64);

impl Key {
    fn new() -> Self {
        Self(RandomState::new().hash_one(0) | 1)
    }
}

impl BuildHasher for Key {
    type Hasher = Product;

    fn build_hasher(&self) -> Product {
        Product { key: self.0, hash: 0 }
    }
}

/// See [`Key`].
#[derive(Debug)]
pub(super) struct Product {
    key: u64,
    hash: u64,
}

impl Hasher for Product {
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|&byte| self.write_u64(byte.into()));
    }

    fn write_u64(&mut self, value: u64) {
        let product = u128::from(self.hash ^ value) * u128::from(self.key);
        self.hash = product as u64 ^ (product >> 64) as u64;
    }

    fn finish(&self) -> u64 {
        self.hash
    }
}
