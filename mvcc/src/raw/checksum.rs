//! The checksum of `RawChecksum`: CRC-64/XZ over each key and value, combined by exclusive or.

/// CRC-64 of ECMA-182, reflected, initial value and final exclusive or all ones (CRC-64/XZ).
const POLYNOMIAL: u64 = 0xC96C_5795_D787_0F42;

const TABLE: [u64; 256] = table();

const fn table() -> [u64; 256] {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = byte as u64;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ POLYNOMIAL } else { crc >> 1 };
            bit += 1;
        }
        table[byte] = crc;
        byte += 1;
    }
    table
}

fn update(crc: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(crc, |crc, byte| TABLE[((crc ^ u64::from(*byte)) & 0xFF) as usize] ^ (crc >> 8))
}

/// CRC-64/XZ of `bytes`.
pub fn crc64(bytes: &[u8]) -> u64 {
    !update(!0, bytes)
}

/// Sums over pairs. The order of the pairs does not matter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Checksum {
    /// Exclusive or of the pairs' CRCs.
    pub checksum: u64,
    /// Pairs.
    pub pairs: u64,
    /// Bytes of keys and values.
    pub bytes: u64,
}

impl Checksum {
    /// Adds one pair.
    pub fn add(&mut self, key: &[u8], value: &[u8]) {
        self.checksum ^= !update(update(!0, key), value);
        self.pairs += 1;
        self.bytes += (key.len() + value.len()) as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_known_vectors_hold() {
        assert_eq!(crc64(b"123456789"), 0x995D_C9BB_DF19_39FA);
        let mut sum = Checksum::default();
        sum.add(b"k", b"v");
        assert_eq!(sum, Checksum { checksum: 0x03DE_DF56_0E0C_C1C1, pairs: 1, bytes: 2 });
        let mut sum = Checksum::default();
        sum.add(b"k2", b"v2");
        sum.add(b"k1", b"v1");
        assert_eq!(sum.checksum, 0x06B6_5936_1859_4969);
    }
}
