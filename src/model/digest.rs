//! Digests of values by their meaning: equal meaning, equal digest, in every process.

use std::hash::{Hash, Hasher};

use sha2::{Digest, Sha256};

/// Part of every digest: what is compiled differently gets a different name, also across versions of this program.
const LAYOUT: u32 = 1;

/// The number of digits: 80 bits, at 5 bits each. Two of a million names collide with a chance of 1 in 10^12.
pub const DIGITS: usize = 16;

/// The digits, by their value.
pub const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";

/// A digest of a value, as 16 characters of `a-z2-7`.
#[must_use]
pub fn digest(value: &impl Hash) -> String {
    let mut hasher = Stable(Sha256::new());
    LAYOUT.hash(&mut hasher);
    value.hash(&mut hasher);
    let bytes = hasher.0.finalize();
    let bits = bytes.iter().take(DIGITS).fold(0_u128, |bits, byte| bits << 8 | u128::from(*byte));
    (0..DIGITS)
        .map(|digit| {
            let index = bits >> (128 - 5 * (digit + 1)) & 31;
            char::from(ALPHABET.get(usize::try_from(index).unwrap_or(0)).copied().unwrap_or(b'a'))
        })
        .collect()
}

/// Hashes the output of derived `Hash` implementations with SHA-256: unlike with the standard library's own hasher,
/// the result is the same in every process.
struct Stable(Sha256);

impl Hasher for Stable {
    fn write(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// Not used: names need more than 64 bits.
    fn finish(&self) -> u64 {
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ObjectKey;

    #[test]
    fn digest_is_stable_and_differs_between_values() {
        assert_eq!(digest(&("a", 1_u8)), digest(&("a", 1_u8)));
        assert_ne!(digest(&("a", 1_u8)), digest(&("a", 2_u8)));
        assert_ne!(digest(&ObjectKey::new("a", "bc")), digest(&ObjectKey::new("ab", "c")));
    }
}
