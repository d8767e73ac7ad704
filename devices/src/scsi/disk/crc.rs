//! The CRC of protection information.

/// The CRC of the guard (SBC-4, 4.21.4): polynomial 8BB7h, most significant bit first, from zero.
pub(super) fn crc_t10dif(bytes: &[u8]) -> u16 {
    #[expect(clippy::indexing_slicing, reason = "evaluated by the compiler, which would say so")]
    const TABLE: [u16; 256] = {
        let (mut table, mut byte) = ([0_u16; 256], 0);
        while byte < 256 {
            let (mut crc, mut bit) = ((byte as u16) << 8, 0);
            while bit < 8 {
                crc = if crc & 0x8000 != 0 { crc << 1 ^ 0x8bb7 } else { crc << 1 };
                bit += 1;
            }
            table[byte] = crc;
            byte += 1;
        }
        table
    };
    bytes.iter().fold(0, |crc, byte| {
        let index = usize::from((crc >> 8) as u8 ^ byte);
        crc << 8 ^ TABLE.get(index).copied().unwrap_or(0)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The check value of CRC-16/T10-DIF, and what SBC-4's table of examples has for blocks of 32 bytes (4.21.4).
    #[test]
    fn the_guard_is_the_crc_of_the_standard() {
        assert_eq!(crc_t10dif(b"123456789"), 0xd0db);
        assert_eq!(crc_t10dif(&[0; 32]), 0);
        assert_eq!(crc_t10dif(&[0xff; 32]), 0xa293);
        let counting: Vec<u8> = (0..32).collect();
        assert_eq!(crc_t10dif(&counting), 0x0224);
    }
}
