//! The cyclic redundancy check of FC frames, that of Ethernet as well (FC-FS-3 11.3.4; FC-BB-5 7.7 for where it is in FCoE).

/// Sixteen tables: what a byte does to the remainder when it is followed by that many others.
const TABLES: [[u32; 256]; 16] = tables();

#[expect(clippy::indexing_slicing, reason = "at compile time")]
const fn tables() -> [[u32; 256]; 16] {
    let mut tables = [[0; 256]; 16];
    let mut byte = 0;
    while byte < 256 {
        let mut value = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            value = if value & 1 == 1 { 0xedb8_8320 ^ (value >> 1) } else { value >> 1 };
            bit += 1;
        }
        tables[0][byte] = value;
        byte += 1;
    }
    let mut table = 1;
    while table < 16 {
        let mut byte = 0;
        while byte < 256 {
            let before = tables[table - 1][byte];
            tables[table][byte] = tables[0][(before & 0xff) as usize] ^ (before >> 8);
            byte += 1;
        }
        table += 1;
    }
    tables
}

/// The check of these bytes, as a number whose least significant byte is the first on the wire.
#[expect(clippy::indexing_slicing, reason = "a byte in a table of 256, one of 16 tables")]
pub(crate) fn crc32(bytes: &[u8]) -> u32 {
    let mut value = u32::MAX;
    let (chunks, rest) = bytes.as_chunks::<16>();
    for chunk in chunks {
        let mixed = u128::from_le_bytes(*chunk) ^ u128::from(value);
        value = 0;
        for (at, byte) in mixed.to_le_bytes().into_iter().enumerate() {
            value ^= TABLES[15 - at][usize::from(byte)];
        }
    }
    for byte in rest {
        value = TABLES[0][usize::from(value.to_le_bytes()[0] ^ byte)] ^ (value >> 8);
    }
    !value
}

#[cfg(test)]
mod tests {
    use super::crc32;

    #[test]
    fn the_check_is_the_known_one() {
        // The check value of the catalogue of such algorithms.
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
        assert_eq!(crc32(b""), 0);
        // More than one chunk of sixteen.
        assert_eq!(crc32(&[0; 32]), 0x190a_55ad);
        assert_eq!(crc32(b"The quick brown fox jumps over the lazy dog"), 0x414f_a339);
    }
}
