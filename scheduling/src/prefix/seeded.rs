//! Hashing of keys that are hashes already.

use std::hash::{BuildHasher, Hasher};

/// A hasher for keys that are hashes already.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seeded(pub(super) u64);

pub(super) struct SeededHasher(pub(super) u64);

impl BuildHasher for Seeded {
    type Hasher = SeededHasher;

    fn build_hasher(&self) -> SeededHasher {
        SeededHasher(self.0)
    }
}

impl Hasher for SeededHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u64(&mut self, key: u64) {
        // The product's middle bits depend on all bits of the key and of the seed.
        let product = u128::from(self.0 ^ key) * 0x9e37_79b9_7f4a_7c15_u128;
        self.0 = (product >> 64) as u64 ^ product as u64;
    }
}
