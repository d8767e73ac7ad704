//! READ and WRITE in pieces: the same command over parts of its blocks, one after the other.

use super::kind::Kind;
use crate::scsi::Cdb;
use crate::scsi::opcode::field;

/// Where a CDB has its fields: the LBA and the number of blocks, each as the first byte and how many.
struct Layout {
    lba: (usize, usize),
    blocks: (usize, usize),
}

/// READ and WRITE, and WRITE AND VERIFY: SBC-4, 5.14 and on; MMC-6, 6.15 and on for CDs, which have not all of them.
fn layout(kind: Kind, opcode: u8) -> Option<Layout> {
    let layout = |lba, blocks| Some(Layout { lba, blocks });
    match (kind, opcode) {
        (Kind::Disk, 0x08 | 0x0a) => layout((1, 3), (4, 1)),
        (Kind::Disk | Kind::Cd, 0x28 | 0x2a | 0x2e) => layout((2, 4), (7, 2)),
        (Kind::Disk | Kind::Cd, 0xa8 | 0xaa) | (Kind::Disk, 0xae) => layout((2, 4), (6, 4)),
        (Kind::Disk, 0x88 | 0x8a | 0x8e) => layout((2, 8), (10, 4)),
        _ => None,
    }
}

/// Bytes that a command which writes brings along at least; `None` where that depends on more than its CDB and the length of a block.
pub(super) fn brings(kind: Kind, cdb: &Cdb, block: u64) -> Option<u64> {
    /// Blocks, whose length the tape knows (SSC-5, 5.4).
    const FIXED: u8 = 0x01;
    /// No data-out buffer (SBC-4, 5.52).
    const NDOB: u8 = 0x01;
    let bytes = cdb.padded();
    let blocks = match (kind, cdb.opcode()) {
        (Kind::Tape, 0x0a) if bytes[1] & FIXED == 0 => return Some(field(bytes, 2, 3)),
        (Kind::Tape, 0x8a) if bytes[1] & FIXED == 0 => return Some(field(bytes, 12, 3)),
        // COMPARE AND WRITE: what is compared, and what is written.
        (Kind::Disk, 0x89) => 2 * field(bytes, 13, 1),
        // ORWRITE(16); WRITE STREAM(16), WRITE ATOMIC(16); XDWRITE, XPWRITE(10).
        (Kind::Disk, 0x8b) => field(bytes, 10, 4),
        (Kind::Disk, 0x9a | 0x9c) => field(bytes, 12, 2),
        (Kind::Disk, 0x50 | 0x51) => field(bytes, 7, 2),
        // WRITE SAME (10, 16): one, whatever it is about.
        (Kind::Disk, 0x41) => 1,
        (Kind::Disk, 0x93) => u64::from(bytes[1] & NDOB == 0),
        // With protection information it is more.
        (_, 0x0a | 0x2a | 0xaa | 0x8a | 0x2e | 0xae | 0x8e) => extent(kind, cdb)?.1,
        _ => return None,
    };
    Some(blocks.saturating_mul(block))
}

/// The LBA and the number of blocks of a command that has both.
fn extent(kind: Kind, cdb: &Cdb) -> Option<(u64, u64)> {
    let (bytes, place) = (cdb.padded(), layout(kind, cdb.opcode())?);
    let lba = field(bytes, place.lba.0, place.lba.1);
    let blocks = field(bytes, place.blocks.0, place.blocks.1);
    // Of the six byte ones the upper bits are none of the LBA, and zero stands for 256.
    let six = cdb.opcode() < 0x20;
    Some(if six { (lba & 0x1f_ffff, if blocks == 0 { 256 } else { blocks }) } else { (lba, blocks) })
}

/// A command that can be sent in pieces.
#[derive(Clone, Copy, Debug)]
pub(super) struct Blocks {
    cdb: Cdb,
    lba: u64,
    blocks: u64,
}

impl Blocks {
    /// The command, if pieces of it are together what it is: it has a place and a length, and no protection information beside
    /// its blocks.
    pub(super) fn of(kind: Kind, cdb: &Cdb) -> Option<Self> {
        /// RDPROTECT, WRPROTECT (SBC-4, 5.14); the LUN of SCSI-2.
        const PROTECT: u8 = 0xe0;
        let (lba, blocks) = extent(kind, cdb)?;
        if cdb.opcode() >= 0x20 && cdb.padded()[1] & PROTECT != 0 {
            return None;
        }
        Some(Self { cdb: *cdb, lba, blocks })
    }

    /// The command.
    pub(super) fn cdb(&self) -> &Cdb {
        &self.cdb
    }

    /// How many blocks it is about.
    pub(super) fn count(&self) -> u64 {
        self.blocks
    }

    /// The command for `count` blocks from number `first` on; `None` where that is not within it, or within what the CDB can say.
    pub(super) fn part(&self, kind: Kind, first: u64, count: u64) -> Option<Cdb> {
        let place = layout(kind, self.cdb.opcode())?;
        let within = count > 0 && first.checked_add(count)? <= self.blocks;
        let lba = self.lba.checked_add(first).filter(|_| within)?;
        let mut bytes = *self.cdb.padded();
        let six = self.cdb.opcode() < 0x20;
        if six {
            // 256 blocks are zero, and there are no more.
            let upper = u64::from(self.cdb.padded()[1] & 0xe0);
            put(&mut bytes, place.lba, if lba > 0x1f_ffff { return None } else { lba | upper << 16 })?;
            put(&mut bytes, place.blocks, count & 0xff)?;
        } else {
            put(&mut bytes, place.lba, lba)?;
            put(&mut bytes, place.blocks, count)?;
        }
        Some(Cdb::new(bytes.get(..self.cdb.as_bytes().len())?))
    }
}

/// Writes a big-endian field; `None` where it does not fit.
fn put(bytes: &mut [u8], (at, len): (usize, usize), value: u64) -> Option<()> {
    let value = value.to_be_bytes();
    let (rest, low) = value.split_at_checked(value.len().checked_sub(len)?)?;
    if rest.iter().any(|byte| *byte != 0) {
        return None;
    }
    bytes.get_mut(at..at + len)?.copy_from_slice(low);
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(kind: Kind, cdb: &[u8], first: u64, count: u64) -> Option<Vec<u8>> {
        let blocks = Blocks::of(kind, &Cdb::new(cdb))?;
        blocks.part(kind, first, count).map(|cdb| cdb.as_bytes().to_vec())
    }

    #[test]
    fn pieces_keep_all_but_place_and_length() {
        let of = |cdb: &[u8], first, count| part(Kind::Disk, cdb, first, count).unwrap();
        assert_eq!(of(&[0x08, 0xe1, 2, 3, 0, 9], 255, 1), [0x08, 0xe1, 3, 2, 1, 9]);
        assert_eq!(of(&[0x0a, 0, 0, 0, 0, 0], 0, 256), [0x0a, 0, 0, 0, 0, 0]);
        assert_eq!(
            of(&[0x2a, 0x18, 0, 0, 1, 0, 5, 1, 0, 0xc0], 128, 64),
            [0x2a, 0x18, 0, 0, 1, 0x80, 5, 0, 64, 0xc0]
        );
        assert_eq!(
            of(&[0xa8, 0, 0, 0, 0, 0, 0, 1, 0, 0, 7, 0], 1, 65535),
            [0xa8, 0, 0, 0, 0, 1, 0, 0, 0xff, 0xff, 7, 0]
        );
        let sixteen = [0x8a, 8, 0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff, 0, 0, 1, 0, 3, 0];
        assert_eq!(of(&sixteen, 1, 16), [0x8a, 8, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 16, 3, 0]);
    }

    #[test]
    fn what_is_more_than_its_pieces_stays_whole() {
        let disk = |cdb: &[u8]| part(Kind::Disk, cdb, 0, 1);
        for cdb in [
            &[0x28, 0x20, 0, 0, 0, 0, 0, 0, 8, 0][..],            // RDPROTECT
            &[0x9c, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0], // WRITE ATOMIC
            &[0x89, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0], // COMPARE AND WRITE
            &[0x3b, 5, 0, 0, 0, 0, 0, 0, 8, 0],                   // WRITE BUFFER
            &[0x7f, 0, 0, 0, 0, 0, 0, 0x18, 0, 9],
        ] {
            assert_eq!(disk(cdb), None, "{cdb:02x?}");
        }
        assert_eq!(part(Kind::Tape, &[0x08, 1, 0, 0, 8, 0], 0, 1), None, "each is a position on the tape");
        assert_eq!(part(Kind::Cd, &[0xbe, 0, 0, 0, 0, 0, 0, 0, 8, 0x10, 0, 0], 0, 1), None);
        assert!(part(Kind::Cd, &[0xa8, 0, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0], 0, 1).is_some());
    }

    #[test]
    fn what_is_written_has_a_length() {
        let of = |kind, cdb: &[u8]| brings(kind, &Cdb::new(cdb), 512);
        assert_eq!(of(Kind::Disk, &[0x0a, 0, 0, 0, 0, 0]), Some(256 * 512));
        assert_eq!(of(Kind::Disk, &[0x2a, 0, 0, 0, 0, 0, 0, 0, 0, 0]), Some(0));
        assert_eq!(of(Kind::Cd, &[0xaa, 0, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0]), Some(3 * 512));
        let sixteen = [0x8a, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0];
        assert_eq!(of(Kind::Disk, &sixteen), Some(0xffff_ffff * 512));
        assert_eq!(of(Kind::Tape, &[0x0a, 0, 1, 0, 2, 0]), Some(0x10002));
        assert_eq!(of(Kind::Tape, &sixteen), Some(0xff_ff00));
        // WRPROTECT: its protection information comes beside that.
        assert_eq!(of(Kind::Disk, &[0x2a, 0x20, 0, 0, 0, 0, 0, 0, 8, 0]), Some(8 * 512));
        let long = |opcode: u8, second: u8| {
            of(Kind::Disk, &[opcode, second, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0])
        };
        // COMPARE AND WRITE has each block twice; ORWRITE, STREAM and ATOMIC.
        assert_eq!(long(0x89, 0), Some(6 * 512));
        assert_eq!((long(0x8b, 0), long(0x9a, 0), long(0x9c, 0)), (Some(1536), Some(1536), Some(1536)));
        // WRITE SAME has one block, whatever it is about, or none (NDOB).
        assert_eq!((long(0x93, 0), long(0x93, 8), long(0x93, 9)), (Some(512), Some(512), Some(0)));
        assert_eq!(of(Kind::Disk, &[0x41, 0, 0, 0, 0, 0, 0, 0, 0, 0]), Some(512));
        assert_eq!(of(Kind::Disk, &[0x51, 0, 0, 0, 0, 0, 0, 0, 2, 0]), Some(1024), "XPWRITE");
        for (kind, cdb) in [
            (Kind::Tape, &[0x0a, 1, 0, 0, 2, 0][..]),
            (Kind::Disk, &[0x28, 0, 0, 0, 0, 0, 0, 0, 8, 0]),
            (Kind::Processor, &[0x0a, 0, 0, 0, 8, 0]),      // SEND
            (Kind::Cd, &[0x51, 0, 0, 0, 0, 0, 0, 0, 8, 0]), // READ DISC INFORMATION
            (Kind::Tape, &[0x93, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]), // ERASE
        ] {
            assert_eq!(of(kind, cdb), None, "{cdb:02x?}");
        }
    }

    #[test]
    fn pieces_do_not_leave_their_command() {
        let ten = [0x28, 0, 0xff, 0xff, 0xff, 0xff, 0, 0, 8, 0];
        assert_eq!(part(Kind::Disk, &ten, 0, 9), None);
        assert_eq!(part(Kind::Disk, &ten, 8, 1), None);
        assert_eq!(part(Kind::Disk, &ten, u64::MAX, 1), None);
        assert_eq!(part(Kind::Disk, &ten, 0, 0), None);
        assert!(part(Kind::Disk, &ten, 0, 8).is_some());
        assert_eq!(part(Kind::Disk, &ten, 1, 1), None, "the CDB cannot say this place");
        assert_eq!(part(Kind::Disk, &[0x08, 0x1f, 0xff, 0xff, 8, 0], 1, 1), None);
    }
}
