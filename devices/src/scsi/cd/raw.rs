//! Sectors of a CD-ROM in mode 1 with all that is around their data (ECMA-130, 14): what a disc has beside what its image has can
//! be computed from that.

/// Bytes of a sector, of its parts, and where they are (ECMA-130, 14.3).
pub(super) const SECTOR: usize = 2352;
pub(super) const SYNC: usize = 12;
pub(super) const HEADER: usize = 4;
pub(super) const DATA: usize = 2048;
const DATA_AT: usize = SYNC + HEADER;
const EDC_AT: usize = DATA_AT + DATA;

/// Sectors of a second, and how many are before LBA 0 (MMC-6, 4.2.3.8.2).
pub(super) const FRAMES: u32 = 75;
const LEAD: u32 = 150;

/// Minute, second and frame of a sector; the last that can be written, if it is further away than that.
pub(super) fn msf(lba: u32) -> [u8; 3] {
    let frames = lba.saturating_add(LEAD);
    let (minutes, rest) = (frames / (60 * FRAMES), frames % (60 * FRAMES));
    match u8::try_from(minutes) {
        Ok(minutes) => [minutes, (rest / FRAMES) as u8, (rest % FRAMES) as u8],
        Err(_) => [u8::MAX, 59, FRAMES as u8 - 1],
    }
}

/// The sector at a minute, a second and a frame, if they are ones and not before LBA 0.
pub(super) fn lba([minute, second, frame]: [u8; 3]) -> Option<u32> {
    let (minute, second, frame) = (u32::from(minute), u32::from(second), u32::from(frame));
    if second >= 60 || frame >= FRAMES {
        return None;
    }
    ((minute * 60 + second) * FRAMES + frame).checked_sub(LEAD)
}

/// Puts what is before the data of the sector at `lba`.
pub(super) fn begin(sector: &mut [u8; SECTOR], lba: u32) {
    let decimal = |value: u8| value / 10 * 16 + value % 10;
    for (at, byte) in sector.iter_mut().enumerate().take(SYNC) {
        *byte = if at == 0 || at == SYNC - 1 { 0 } else { 0xff };
    }
    let [minute, second, frame] = msf(lba).map(decimal);
    put(sector, SYNC, &[minute, second, frame, 1]);
}

/// Puts what is behind its data, of a sector that is there up to them.
pub(super) fn complete(sector: &mut [u8; SECTOR]) {
    let code = detection(sector.get(..EDC_AT).unwrap_or_default());
    put(sector, EDC_AT, &code.to_le_bytes());
    // The intermediate field.
    put(sector, EDC_AT + 4, &[0; 8]);
    parities(sector);
}

fn put(sector: &mut [u8; SECTOR], at: usize, bytes: &[u8]) {
    for (to, from) in sector.iter_mut().skip(at).zip(bytes) {
        *to = *from;
    }
}

/// The error detection code (ECMA-130, 14.3): the polynomial (x^16 + x^15 + x^2 + 1)(x^16 + x^2 + x + 1), least significant bit
/// first.
fn detection(bytes: &[u8]) -> u32 {
    let mut code = 0;
    let (words, rest) = bytes.as_chunks::<4>();
    for word in words {
        let [a, b, c, d] = (code ^ u32::from_le_bytes(*word)).to_le_bytes();
        code = remainder(3, a) ^ remainder(2, b) ^ remainder(1, c) ^ remainder(0, d);
    }
    rest.iter().fold(code, |code, byte| code >> 8 ^ remainder(0, code as u8 ^ byte))
}

/// What a byte leaves that so many bytes follow.
fn remainder(followed: usize, byte: u8) -> u32 {
    REMAINDERS.get(followed).and_then(|table| table.get(usize::from(byte))).copied().unwrap_or(0)
}

const fn remainders() -> [[u32; 256]; 4] {
    let mut tables = [[0; 256]; 4];
    let (mut followed, mut byte) = (0, 0);
    while followed < 4 {
        let mut code = byte as u32;
        let mut bit = 0;
        while bit < 8 * (followed + 1) {
            code = code >> 1 ^ if code & 1 == 1 { 0xd801_8001 } else { 0 };
            bit += 1;
        }
        #[expect(clippy::indexing_slicing, reason = "evaluated by the compiler")]
        {
            tables[followed][byte] = code;
        }
        byte += 1;
        if byte == 256 {
            (followed, byte) = (followed + 1, 0);
        }
    }
    tables
}

static REMAINDERS: [[u32; 256]; 4] = remainders();

/// Times the primitive element of GF(2^8) over x^8 + x^4 + x^3 + x^2 + 1 (ECMA-130, annex A).
const fn times_alpha(value: u8) -> u8 {
    value << 1 ^ if value & 0x80 != 0 { 0x1d } else { 0 }
}

/// The element whose product with 1 + alpha is this one.
const fn by_one_and_alpha() -> [u8; 256] {
    let mut table = [0; 256];
    let mut value = 0;
    while value < 256 {
        let product = value as u8 ^ times_alpha(value as u8);
        #[expect(clippy::indexing_slicing, reason = "evaluated by the compiler")]
        {
            table[product as usize] = value as u8;
        }
        value += 1;
    }
    table
}

static BY_ONE_AND_ALPHA: [u8; 256] = by_one_and_alpha();

/// Words, each of two bytes that are coded apart, from the header on: of the P code, and of the Q code with the P parities.
const P_COLUMNS: usize = 43;
const P_ROWS: usize = 24;
const Q_DIAGONALS: usize = 26;
const Q_LEN: usize = 43;
const Q_WORDS: usize = P_COLUMNS * (P_ROWS + 2);

/// The parities P and Q (ECMA-130, 14.5 and annex A).
fn parities(sector: &mut [u8; SECTOR]) {
    for plane in 0..2 {
        for column in 0..P_COLUMNS {
            let word = |row: usize| P_COLUMNS * row + column;
            parity(sector, plane, (0..P_ROWS).map(word), [word(P_ROWS), word(P_ROWS + 1)]);
        }
    }
    for plane in 0..2 {
        for diagonal in 0..Q_DIAGONALS {
            let words = (0..Q_LEN).map(|m| (44 * m + P_COLUMNS * diagonal) % Q_WORDS);
            parity(sector, plane, words, [Q_WORDS + diagonal, Q_WORDS + Q_DIAGONALS + diagonal]);
        }
    }
}

/// Two parities of a code word: all of it adds up to zero, and so it does with each place worth alpha times the next.
fn parity(sector: &mut [u8; SECTOR], plane: usize, words: impl Iterator<Item = usize>, to: [usize; 2]) {
    let at = |word: usize| SYNC + 2 * word + plane;
    let (mut sum, mut weighed) = (0, 0);
    for word in words {
        let value = sector.get(at(word)).copied().unwrap_or(0);
        sum ^= value;
        weighed = times_alpha(weighed) ^ value;
    }
    // The parities' own places are worth alpha and one.
    let weighed = times_alpha(times_alpha(weighed));
    let first = BY_ONE_AND_ALPHA.get(usize::from(sum ^ weighed)).copied().unwrap_or(0);
    let [one, other] = to;
    put(sector, at(one), &[first]);
    put(sector, at(other), &[sum ^ first]);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sector(lba: u32, fill: impl Fn(usize) -> u8) -> [u8; SECTOR] {
        let mut sector = [0xee; SECTOR];
        for i in 0..DATA {
            sector[DATA_AT + i] = fill(i);
        }
        begin(&mut sector, lba);
        complete(&mut sector);
        sector
    }

    #[test]
    fn times_and_sectors_are_the_same() {
        assert_eq!(msf(0), [0, 2, 0]);
        assert_eq!(msf(16), [0, 2, 16]);
        assert_eq!(msf(359_999 - 150), [79, 59, 74]);
        assert_eq!(msf(256 * 60 * 75 - 150), [255, 59, 74]);
        assert_eq!(msf(u32::MAX), [255, 59, 74]);
        assert_eq!(lba([0, 2, 0]), Some(0));
        assert_eq!(lba([0, 1, 74]), None);
        assert_eq!(lba([0, 60, 0]), None);
        assert_eq!(lba([0, 2, 75]), None);
        assert_eq!(lba([79, 59, 74]), Some(359_849));
    }

    /// By the definition, bit by bit.
    #[test]
    fn codes_are_as_defined() {
        let bytes: Vec<u8> = (0..2067u32).map(|i| (i.wrapping_mul(i) & 0xff) as u8).collect();
        for len in [0, 1, 3, 4, 5, 2064, 2067] {
            let slow = bytes[..len].iter().fold(0, |code, byte| {
                (0..8).fold(code ^ u32::from(*byte), |code: u32, _| {
                    code >> 1 ^ if code & 1 == 1 { 0xd801_8001 } else { 0 }
                })
            });
            assert_eq!(detection(&bytes[..len]), slow, "{len} bytes");
        }
    }

    #[test]
    fn what_is_around_the_data_is_as_on_a_disc() {
        let sector = sector(16, |i| i as u8);
        assert_eq!(sector[..16], [0, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 0, 0, 0x02, 0x16, 1]);
        // ECMA-130: the code of all that is before it and of itself leaves nothing.
        assert_eq!(detection(&sector[..EDC_AT + 4]), 0);
        // Every code word adds up to zero, with and without weights.
        for plane in 0..2 {
            let value = |word: usize| sector[SYNC + 2 * word + plane];
            let zero = |words: &mut dyn Iterator<Item = usize>| {
                words.fold((0, 0), |(sum, weighed), word| {
                    (sum ^ value(word), times_alpha(weighed) ^ value(word))
                })
            };
            for column in 0..43 {
                assert_eq!(zero(&mut (0..26).map(|row| 43 * row + column)), (0, 0), "P {column}");
            }
            for diagonal in 0..26 {
                let words = (0..43).map(|m| (44 * m + 43 * diagonal) % 1118);
                assert_eq!(
                    zero(&mut words.chain([1118 + diagonal, 1144 + diagonal])),
                    (0, 0),
                    "Q {diagonal}"
                );
            }
        }
    }
}
