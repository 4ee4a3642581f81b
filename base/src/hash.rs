//! A hash that is the same in every process, for whatever must not depend on std's random seed.

/// The finalizer of splitmix64 (Steele, Lea and Flood, OOPSLA 2014): each input bit changes half of the output bits.
pub fn mix64(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

/// Folds `value` into a running hash. Order matters.
pub fn fold(hash: u64, value: u64) -> u64 {
    mix64(hash.rotate_left(5) ^ value.wrapping_add(0x9E37_79B9_7F4A_7C15))
}

/// Folds bytes into a running hash. Order and length matter.
pub fn fold_bytes(hash: u64, bytes: &[u8]) -> u64 {
    let mut hash = fold(hash, bytes.len() as u64);
    for chunk in bytes.chunks(8) {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        hash = fold(hash, u64::from_le_bytes(word));
    }
    hash
}
