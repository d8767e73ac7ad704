//! Tapes (SSC-4): blocks and file marks in memory.

use super::disk::mode;
use super::sense::{Failure, Sense};
use super::{Done, Outcome, cut};
use crate::bytes::Fields;

/// What is on the tape between one place and the next.
#[derive(Debug)]
enum Mark {
    Block(Vec<u8>),
    File,
}

/// Where tapes end, in bytes of data.
const CAPACITY: usize = 256 << 20;
/// Early warning: what is written past here is, and the end is said to be near (SSC-4 4.2.5).
const EARLY: usize = CAPACITY - (1 << 20);
/// Blocks and file marks on it.
const MOST_MARKS: usize = 1 << 20;
/// The longest block.
const LONGEST: u32 = 1 << 20;

/// A tape drive with a tape.
#[derive(Default)]
pub(crate) struct Tape {
    marks: Vec<Mark>,
    /// How many of them are behind the head.
    at: usize,
    /// The length of blocks in fixed block mode; zero is variable.
    block: u32,
    used: usize,
    is_ejected: bool,
    /// It was loaded, of which others have yet to hear.
    came: bool,
}

impl Tape {
    /// Bytes of data on it.
    pub(crate) fn used(&self) -> usize {
        self.used
    }

    /// Whether the tape came since the last time that this was asked.
    pub(crate) fn take_came(&mut self) -> bool {
        std::mem::take(&mut self.came)
    }

    /// The drive begins anew, with the tape that is in it.
    pub(super) fn lose_power(&mut self) {
        (self.at, self.block, self.came) = (0, 0, false);
    }

    /// What is said of a write that is done.
    fn written(&self) -> Result<(), Failure> {
        let is_near = self.used > EARLY;
        if is_near { Err(Sense::END_OF_PARTITION.with(Sense::EOM, 0).into()) } else { Ok(()) }
    }

    pub(super) fn execute(&mut self, cdb: &[u8; 16]) -> Done {
        let [code, second, _, _, fifth, ..] = *cdb;
        let count = cdb.be24(2).unwrap_or_default();
        let needs_medium = !matches!(code, 0x05 | 0x1a | 0x1b | 0x1e | 0x15);
        if self.is_ejected && needs_medium {
            return Err(Sense::MEDIUM_NOT_PRESENT.into());
        }
        match code {
            // TEST UNIT READY, PREVENT ALLOW MEDIUM REMOVAL.
            0x00 | 0x1e => Ok(Outcome::Good),
            // REWIND.
            0x01 => {
                self.at = 0;
                Ok(Outcome::Good)
            }
            // READ BLOCK LIMITS.
            0x05 => cut(
                [LONGEST.to_be_bytes(), [0, 1, 0, 0]].concat().get(..6).unwrap_or_default().to_vec(),
                6_u8,
            ),
            0x08 => self.read(second, count),
            0x0a => {
                let length = self.length(second, count)?;
                Ok(if length == 0 { Outcome::Good } else { Outcome::Wants(length) })
            }
            // WRITE FILEMARKS. Without any it asks for what is buffered to be written, which all is.
            0x10 if count == 0 => Ok(Outcome::Good),
            0x10 => {
                self.truncate();
                if self.marks.len() + count as usize > MOST_MARKS {
                    return Err(Sense::VOLUME_OVERFLOW.with(Sense::EOM, count.into()).into());
                }
                self.marks.extend((0..count).map(|_| Mark::File));
                self.at = self.marks.len();
                self.written().map(|()| Outcome::Good)
            }
            0x11 => self.space(second & 0x0f, i64::from((count << 8).cast_signed() >> 8)),
            // ERASE.
            0x19 => {
                self.truncate();
                Ok(Outcome::Good)
            }
            // LOAD UNLOAD.
            0x1b => {
                let loads = fifth & 1 == 1;
                self.came |= loads && self.is_ejected;
                (self.at, self.is_ejected) = (0, !loads);
                Ok(Outcome::Good)
            }
            0x15 if fifth == 0 => Ok(Outcome::Good),
            0x15 => Ok(Outcome::Wants(fifth.into())),
            0x1a => self.mode_sense(cdb),
            // LOCATE(10), and READ POSITION in its short form.
            0x2b => {
                let wanted = cdb.be32(3).unwrap_or(u32::MAX) as usize;
                self.at = wanted.min(self.marks.len());
                if wanted > self.marks.len() { Err(Sense::BLANK_CHECK.into()) } else { Ok(Outcome::Good) }
            }
            0x34 if second & 0x1f <= 1 => {
                let at = u32::try_from(self.at).unwrap_or(u32::MAX).to_be_bytes();
                let first = if self.at == 0 { 0x80 } else { 0 };
                cut([&[first, 0, 0, 0][..], &at, &at, &[0; 8]].concat(), 20_u8)
            }
            _ => Err(Sense::INVALID_COMMAND_OPERATION_CODE.into()),
        }
    }

    /// Bytes that READ(6) or WRITE(6) moves: blocks of the length that is set, or one as long as it says.
    fn length(&self, second: u8, count: u32) -> Result<u32, Sense> {
        let fixed = second & 1 == 1;
        let length = if fixed { count.checked_mul(self.block) } else { Some(count) };
        let length = length.filter(|length| *length <= 8 * LONGEST).ok_or(Sense::INVALID_FIELD_IN_CDB)?;
        if (fixed && self.block == 0) || (!fixed && count > LONGEST) {
            return Err(Sense::INVALID_FIELD_IN_CDB);
        }
        Ok(length)
    }

    fn read(&mut self, second: u8, count: u32) -> Done {
        let (fixed, no_complaint) = (second & 1 == 1, second & 2 == 2);
        let total = self.length(second, count)?;
        let (unit, blocks) = if fixed { (self.block, count) } else { (count, u32::from(count > 0)) };
        let mut data = Vec::with_capacity(total as usize);
        for done in 0..blocks {
            // What was not read: in blocks, or in bytes.
            let rest = i64::from(if fixed { count - done } else { count });
            match self.marks.get(self.at) {
                None => return Ok(Outcome::Data(data, Some(Sense::BLANK_CHECK.with(0, rest)))),
                Some(Mark::File) => {
                    self.at += 1;
                    return Ok(Outcome::Data(data, Some(Sense::NONE_FILEMARK.with(Sense::FILEMARK, rest))));
                }
                Some(Mark::Block(bytes)) => {
                    self.at += 1;
                    let fits = bytes.len() == unit as usize;
                    data.extend(bytes.iter().take(unit as usize));
                    if !fits && (fixed || !no_complaint) {
                        let difference = i64::from(count) - bytes.len() as i64;
                        let information = if fixed { rest } else { difference };
                        let sense = Sense::NONE.with(Sense::ILI, information);
                        return Ok(Outcome::Data(data, Some(sense)));
                    }
                }
            }
        }
        Ok(Outcome::Data(data, None))
    }

    /// Cuts off what is ahead of the head.
    fn truncate(&mut self) {
        self.marks.truncate(self.at);
        let length = |mark: &Mark| if let Mark::Block(bytes) = mark { bytes.len() } else { 0 };
        self.used = self.marks.iter().map(length).sum();
    }

    /// SPACE: 0 blocks, 1 file marks, 3 the end of data.
    fn space(&mut self, what: u8, count: i64) -> Done {
        if what == 3 {
            self.at = self.marks.len();
            return Ok(Outcome::Good);
        }
        if what > 1 {
            return Err(Sense::INVALID_FIELD_IN_CDB.into());
        }
        let mut left = count.unsigned_abs();
        while left > 0 {
            let next = if count > 0 { Some(self.at) } else { self.at.checked_sub(1) };
            let Some(mark) = next.and_then(|at| self.marks.get(at)) else {
                let sense = if count > 0 { Sense::BLANK_CHECK } else { Sense::BEGINNING_OF_PARTITION };
                let flags = if count > 0 { 0 } else { Sense::EOM };
                return Err(sense.with(flags, left.cast_signed()).into());
            };
            let is_file = matches!(mark, Mark::File);
            self.at = if count > 0 { self.at + 1 } else { self.at - 1 };
            if is_file && what == 0 {
                return Err(Sense::NONE_FILEMARK.with(Sense::FILEMARK, left.cast_signed()).into());
            }
            left -= u64::from(what == 0 || is_file);
        }
        Ok(Outcome::Good)
    }

    fn descriptor(&self) -> [u8; 8] {
        let [_, a, b, c] = self.block.to_be_bytes();
        [0, 0, 0, 0, 0, a, b, c]
    }

    fn mode_sense(&self, cdb: &[u8; 16]) -> Done {
        match cdb[2] & 0x3f {
            // Buffered mode; the block descriptor says how long blocks are.
            0x00 | 0x3f => mode(cdb, 0x10, &self.descriptor(), &[]),
            // Data compression: none.
            0x0f => mode(cdb, 0x10, &self.descriptor(), &[&[0x0f, 14][..], &[0; 14]].concat()),
            _ => Err(Sense::INVALID_FIELD_IN_CDB.into()),
        }
    }

    pub(super) fn finish(&mut self, cdb: &[u8; 16], data: &[u8]) -> Result<(), Failure> {
        if cdb[0] == 0x15 {
            // MODE SELECT(6): the block descriptor sets the length of blocks.
            if data.byte(3) == Some(8) {
                let block = data.be24(9).ok_or(Sense::PARAMETER_LIST_LENGTH_ERROR)?;
                if block > LONGEST {
                    return Err(Sense::INVALID_FIELD_IN_PARAMETER_LIST.into());
                }
                self.block = block;
            }
            return Ok(());
        }
        self.truncate();
        let is_fixed = cdb[1] & 1 == 1;
        let unit = if is_fixed { self.block as usize } else { data.len() }.max(1);
        if self.used + data.len() > CAPACITY || self.marks.len() + data.len() / unit > MOST_MARKS {
            let rest = if is_fixed { data.len() / unit } else { data.len() };
            return Err(Sense::VOLUME_OVERFLOW.with(Sense::EOM, rest as i64).into());
        }
        self.marks.extend(data.chunks(unit).map(|bytes| Mark::Block(bytes.to_vec())));
        self.used += data.len();
        self.at = self.marks.len();
        self.written()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WRITE: [u8; 16] = [0x0a, 0, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

    fn six(bytes: [u8; 6]) -> [u8; 16] {
        let mut cdb = [0; 16];
        cdb[..6].copy_from_slice(&bytes);
        cdb
    }

    #[test]
    fn no_file_marks_cut_nothing() {
        let mut tape = Tape::default();
        tape.finish(&WRITE, &[1; 1000]).unwrap();
        tape.finish(&WRITE, &[2; 1000]).unwrap();
        tape.execute(&six([1, 0, 0, 0, 0, 0])).unwrap();
        // WRITE FILEMARKS of none is how a host asks for what is buffered to be written.
        assert_eq!(tape.execute(&six([0x10, 0, 0, 0, 0, 0])), Ok(Outcome::Good));
        assert_eq!((tape.used(), tape.at), (2000, 0));
        assert_eq!(tape.execute(&six([0x10, 0, 0, 0, 1, 0])), Ok(Outcome::Good));
        assert_eq!((tape.used(), tape.at), (0, 1));
    }

    #[test]
    fn the_end_is_said_before_it_comes() {
        let mut tape = Tape::default();
        let block = vec![7; 1 << 20];
        for _ in 0..255 {
            assert_eq!(tape.finish(&WRITE, &block), Ok(()));
        }
        // Done, and early warning; a file mark as well.
        let early = |rest| Sense::END_OF_PARTITION.with(Sense::EOM, rest);
        assert_eq!(tape.finish(&WRITE, &[7; 512]), Err(early(0).into()));
        assert_eq!(tape.execute(&six([0x10, 0, 0, 0, 1, 0])), Err(early(0).into()));
        assert_eq!((tape.used(), tape.at), ((255 << 20) + 512, 257));
        let bytes = early(0).bytes();
        assert_eq!((bytes[0], bytes[2], bytes[12], bytes[13]), (0xf0, 0x40, 0, 2));
        // What does not fit is not written, and is counted in blocks where they are fixed.
        let full = |rest| Err(Sense::VOLUME_OVERFLOW.with(Sense::EOM, rest).into());
        assert_eq!(tape.finish(&WRITE, &block), full(1 << 20));
        tape.block = 512;
        assert_eq!(tape.finish(&six([0x0a, 1, 0, 8, 0, 0]), &block), full(2048));
        assert_eq!((tape.used(), tape.at), ((255 << 20) + 512, 257));
        // Elsewhere nothing is said.
        tape.execute(&six([1, 0, 0, 0, 0, 0])).unwrap();
        assert_eq!(tape.execute(&six([0x10, 0, 0, 0, 1, 0])), Ok(Outcome::Good));
    }
}
