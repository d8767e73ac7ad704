//! Whether a disk has a cache of its own in which what was written may be lost, as it says to the guest, which asks when it finds the disk.

use super::host::Command;
use crate::mem::FromGuest;
use crate::scsi::opcode::field;

/// MODE SENSE and MODE SELECT of 6 and 10 bytes (SPC-5, 6.14 to 6.17).
const SENSE_6: u8 = 0x1a;
const SENSE_10: u8 = 0x5a;
const SELECT_6: u8 = 0x15;
const SELECT_10: u8 = 0x55;
/// The Caching page (SBC-4, 6.4.4), and all pages.
const CACHING: u8 = 0x08;
const ALL: u8 = 0x3f;
/// How much of an answer is looked at.
const LENGTH: usize = 256;

/// What a command that has ended well, and moved so many bytes, says of that; `None` for nothing.
pub(super) fn writes_back(command: &Command, moved: u64) -> Option<bool> {
    let (opcode, [_, _, page, ..]) = (command.cdb.opcode(), *command.cdb.padded());
    match opcode {
        // The guest may have switched it on.
        SELECT_6 | SELECT_10 => Some(true),
        // Current values, without a subpage.
        SENSE_6 | SENSE_10 if page == CACHING || page == ALL => {
            // It may be memory of the guest, which is looked at once.
            let mut bytes = [0; LENGTH];
            let len = FromGuest::new(command.data.window(0, moved)).read_at(0, &mut bytes);
            wce(bytes.get(..len)?, opcode == SENSE_10)
        }
        _ => None,
    }
}

/// WCE in the answer, if it is there.
fn wce(answer: &[u8], ten: bool) -> Option<bool> {
    const WCE: u8 = 0x04;
    // BLOCK DESCRIPTOR LENGTH (SPC-5, 7.5.5 and 7.5.6).
    let (header, descriptors) = match ten {
        true => (8, field(answer.get(..8)?, 6, 2)),
        false => (4, field(answer.get(..4)?, 3, 1)),
    };
    let mut pages = answer.get(header + descriptors as usize..)?;
    loop {
        match *pages {
            [CACHING | 0x88, _, flags, ..] => return Some(flags & WCE != 0),
            // With a subpage the length has two bytes.
            [code, _, high, low, ..] if code & 0x40 != 0 => {
                pages = pages.get(4 + usize::from(u16::from_be_bytes([high, low]))..)?;
            }
            [_, len, ..] => pages = pages.get(2 + usize::from(len)..)?,
            _ => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_caching_page_says() {
        let six = |flags| [23, 0, 0x10, 0, 0x88, 18, flags, 0, 0, 0];
        assert_eq!((wce(&six(0x04), false), wce(&six(0x1b), false)), (Some(true), Some(false)));
        assert_eq!(wce(&[0, 23, 0, 0x10, 0, 0, 0, 0, 0x08, 18, 0x14], true), Some(true));
        let mut descriptor = vec![31, 0, 0, 8, 0, 0, 0, 0, 0, 0, 2, 0];
        descriptor.extend(&six(0x04)[4..]);
        assert_eq!(wce(&descriptor, false), Some(true));
        // Among others, one with a subpage.
        let all = [0, 40, 0, 0, 0, 0, 0, 0, 0x81, 2, 4, 4, 0x4a, 1, 0, 2, 4, 4, 0x88, 18, 0];
        assert_eq!(wce(&all, true), Some(false));
        for answer in
            [&[9, 0, 0, 0, 0x0a, 2, 4, 4][..], &[6, 0, 0, 0, 8, 18], &[6, 0, 0, 8, 8, 18, 4], &[6, 0, 0], &[]]
        {
            assert_eq!(wce(answer, false), None, "{answer:02x?}");
        }
    }
}
