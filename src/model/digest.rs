//! Digests of values by their meaning: equal meaning, equal digest, in every process.

use std::hash::{Hash, Hasher};

use data_encoding::BASE32_NOPAD;
use sha2::{Digest, Sha256};

use super::layout;

/// Part of every digest: what is compiled differently gets a different name, also across versions of this program.
const LAYOUT: u32 = 1;

/// The same for the other layout of a build with the lab.
const OTHER_LAYOUT: u32 = u32::MAX;

/// The number of digits: 80 bits, at 5 bits each. Two of a million names collide with a chance of 1 in 10^12.
pub const DIGITS: usize = 16;

/// A digest of a value, as 16 characters of `a-z2-7`: base32 in lower case.
#[must_use]
pub fn digest(value: &impl Hash) -> String {
    let mut hasher = Stable(Sha256::new());
    if layout::is_other() { OTHER_LAYOUT } else { LAYOUT }.hash(&mut hasher);
    value.hash(&mut hasher);
    let mut digits = BASE32_NOPAD.encode(&hasher.0.finalize()).to_ascii_lowercase();
    digits.truncate(DIGITS);
    digits
}

/// Whether this is a digest, or the beginning of one, with this many digits.
#[must_use]
pub fn is_digest(text: &str, digits: usize) -> bool {
    digits > 0 && text.len() == digits && text.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'2'..=b'7'))
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

    #[test]
    fn digest_is_stable_across_versions() {
        let names = [digest(&("a", 1_u8)), digest(&ObjectKey::new("shop", "db"))];
        assert_eq!(names, ["5h4hyob4ydfr3zsi", "osnkkwqexwci5itt"]);
        assert!(names.iter().all(|name| is_digest(name, DIGITS)));
    }
}
