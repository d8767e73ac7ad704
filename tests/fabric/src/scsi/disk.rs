//! Disks (SBC-3).

use super::memory::Memory;
use super::referrals::{REPORT_REFERRALS, Referrals, Referred};
use super::sense::{Failure, Sense};
use super::{Done, Outcome, cut};
use crate::bytes::{Fields, put};

/// Bytes that one command reads or writes at most.
pub(crate) const MOST_MOVED: u32 = 8 << 20;
/// Blocks of WRITE SAME and of UNMAP, descriptors of UNMAP, and blocks that are compared.
pub(crate) const MOST_SAME: u32 = 65536;
pub(crate) const MOST_UNMAPPED: u32 = 0x40_0000;
pub(crate) const MOST_DESCRIPTORS: u32 = 64;
pub(crate) const MOST_COMPARED: u8 = 8;

/// A disk whose medium is memory.
pub(crate) struct Disk {
    pub(crate) memory: Memory,
    block: u32,
    pub(crate) referrals: Option<Referrals>,
}

/// Blocks that a CDB names: the first, and how many.
fn blocks(cdb: &[u8; 16]) -> Option<(u64, u32)> {
    Some(match cdb[0] >> 5 {
        0 => (u64::from(cdb.be24(1)? & 0x1f_ffff), if cdb[4] == 0 { 256 } else { cdb[4].into() }),
        1 | 2 => (cdb.be32(2)?.into(), cdb.be16(7)?.into()),
        4 => (cdb.be64(2)?, cdb.be32(10)?),
        5 => (cdb.be32(2)?.into(), cdb.be32(6)?),
        _ => return None,
    })
}

impl Disk {
    /// `size` is in bytes, a whole number of blocks.
    pub(crate) fn new(size: u64, block: u32) -> Self {
        Self { memory: Memory::new(size), block, referrals: None }
    }

    pub(crate) fn block(&self) -> u32 {
        self.block
    }

    /// Where the blocks that a CDB names are: offset and length in bytes. No more than `most` blocks.
    fn place(&self, cdb: &[u8; 16], most: u32) -> Result<(u64, u64), Sense> {
        let (first, count) = blocks(cdb).ok_or(Sense::INVALID_COMMAND_OPERATION_CODE)?;
        if first.checked_add(count.into()).is_none_or(|end| end > self.memory.size() / u64::from(self.block))
        {
            return Err(Sense::LOGICAL_BLOCK_ADDRESS_OUT_OF_RANGE);
        }
        if count > most {
            return Err(Sense::INVALID_FIELD_IN_CDB);
        }
        Ok((first * u64::from(self.block), u64::from(count) * u64::from(self.block)))
    }

    /// What came to a target port group.
    pub(super) fn execute(&mut self, cdb: &[u8; 16], group: u16) -> Done {
        let [code, second, ..] = *cdb;
        // Protection information is not supported: six-byte commands have no such field.
        let protected = code >= 0x20 && second >> 5 != 0;
        match code {
            // TEST UNIT READY, START STOP UNIT, PREVENT ALLOW MEDIUM REMOVAL, SYNCHRONIZE CACHE.
            0x00 | 0x1b | 0x1e | 0x35 | 0x91 => Ok(Outcome::Good),
            0x08 | 0x28 | 0x88 | 0xa8 | 0x0a | 0x2a | 0x8a | 0xaa | 0x2e | 0x8e | 0xae if !protected => {
                let (at, length) = self.place(cdb, MOST_MOVED / self.block)?;
                let length = u32::try_from(length).unwrap_or_default();
                let referrals = self.referrals.as_ref();
                let refers = referrals.filter(|_| length > 0).and_then(|referrals| {
                    Some((referrals.referred, referrals.refers(group, at / u64::from(self.block))?))
                });
                Ok(match (length, code & 0x0f) {
                    (0, _) => Outcome::Good,
                    (_, _) if matches!(refers, Some((Referred::Aborted, _))) => {
                        return Err(refers.map_or(Sense::NONE, |(_, sense)| sense).into());
                    }
                    (_, 0x08) if refers.is_some() => {
                        let mut data = vec![0; usize::try_from(length).unwrap_or_default()];
                        self.memory.read(at, &mut data);
                        Outcome::Data(data, refers.map(|(_, sense)| sense))
                    }
                    (_, 0x08) => Outcome::Read(at, length),
                    _ => Outcome::Write(at, length),
                })
            }
            // VERIFY, without data to compare with.
            0x2f | 0x8f | 0xaf if !protected && second & 0x06 == 0 => {
                self.place(cdb, u32::MAX)?;
                Ok(Outcome::Good)
            }
            // COMPARE AND WRITE.
            0x89 if !protected => {
                let mut count = [0; 16];
                count[0] = 0x88;
                put(&mut count, 2, &cdb[2..10]);
                count[13] = cdb[13];
                let (_, length) = self.place(&count, MOST_COMPARED.into())?;
                Ok(if length == 0 { Outcome::Good } else { Outcome::Wants((length * 2) as u32) })
            }
            // WRITE SAME.
            0x41 | 0x93 if !protected => {
                let (at, length) = self.place(cdb, MOST_SAME)?;
                if length == 0 {
                    return Err(Sense::INVALID_FIELD_IN_CDB.into());
                }
                // No data-out buffer: zeros.
                if code == 0x93 && second & 0x01 != 0 {
                    self.memory.clear(at, length);
                    return Ok(Outcome::Good);
                }
                Ok(Outcome::Wants(self.block))
            }
            // UNMAP, not anchored.
            0x42 if second & 0x01 == 0 => Ok(match cdb.be16(7) {
                Some(0) | None => Outcome::Good,
                Some(length) => Outcome::Wants(length.into()),
            }),
            0x25 => {
                let last = u32::try_from(self.last()).unwrap_or(u32::MAX);
                cut([last.to_be_bytes(), self.block.to_be_bytes()].concat(), usize::MAX)
            }
            // READ CAPACITY(16): thin, and what is unmapped reads as zeros.
            0x9e if second & 0x1f == 0x10 => {
                let mut data = [&self.last().to_be_bytes()[..], &self.block.to_be_bytes()].concat();
                data.extend([0, 0, 0xc0, 0]);
                data.resize(32, 0);
                cut(data, cdb.be32(10).unwrap_or_default())
            }
            0x9e if second & 0x1f == REPORT_REFERRALS => {
                let referrals = self.referrals.as_ref().ok_or(Sense::INVALID_COMMAND_OPERATION_CODE)?;
                cut(referrals.report(cdb, self.last())?, cdb.be32(10).unwrap_or_default())
            }
            0x1a | 0x5a => self.mode_sense(cdb),
            _ if protected => Err(Sense::INVALID_FIELD_IN_CDB.into()),
            _ => Err(Sense::INVALID_COMMAND_OPERATION_CODE.into()),
        }
    }

    /// The last block's address.
    fn last(&self) -> u64 {
        (self.memory.size() / u64::from(self.block)).saturating_sub(1)
    }

    fn mode_sense(&self, cdb: &[u8; 16]) -> Done {
        let page = cdb[2] & 0x3f;
        if cdb[2] >> 6 == 3 {
            // Saved values: SAVING PARAMETERS NOT SUPPORTED.
            return Err(Sense::new(5, 0x39, 0x00).into());
        }
        let mut pages = Vec::new();
        if page == 0x08 || page == 0x3f {
            // Caching (SBC-3 6.4.5): none.
            pages.extend([&[0x08, 18][..], &[0; 18]].concat());
        }
        if page == 0x0a || page == 0x3f {
            // Control (SPC-4 7.5.8): tasks in any order.
            pages.extend([0x0a, 10, 0, 0x10, 0, 0, 0, 0, 0, 0, 0, 0]);
        }
        if pages.is_empty() {
            return Err(Sense::INVALID_FIELD_IN_CDB.into());
        }
        // DPO and FUA are taken.
        mode(cdb, 0x10, &[], &pages)
    }

    pub(super) fn finish(&mut self, cdb: &[u8; 16], data: &[u8]) -> Result<(), Failure> {
        match cdb[0] {
            0x42 => return self.unmap(data),
            0x89 => {
                let (at, (old, new)) = (cdb.be64(2).unwrap_or_default(), data.split_at(data.len() / 2));
                let at = at.saturating_mul(self.block.into());
                let mut held = vec![0; old.len()];
                self.memory.read(at, &mut held);
                if held != old {
                    return Err(Sense::MISCOMPARE.into());
                }
                self.memory.write(at, new);
            }
            _ => {
                let (at, length) = self.place(cdb, MOST_SAME)?;
                let block = usize::try_from(self.block).unwrap_or_default();
                let data = data.get(..block).ok_or(Sense::INVALID_FIELD_IN_CDB)?;
                if data.iter().all(|byte| *byte == 0) {
                    self.memory.clear(at, length);
                } else {
                    (at..at + length).step_by(block.max(1)).for_each(|at| self.memory.write(at, data));
                }
            }
        }
        Ok(())
    }

    /// UNMAP's parameter list (SBC-3 5.28).
    fn unmap(&mut self, data: &[u8]) -> Result<(), Failure> {
        let rows = data.get(8..).unwrap_or_default();
        let listed = usize::from(data.be16(2).unwrap_or_default());
        let rows = rows.get(..listed.min(rows.len())).unwrap_or_default().chunks_exact(16);
        if rows.len() > MOST_DESCRIPTORS as usize {
            return Err(Sense::INVALID_FIELD_IN_PARAMETER_LIST.into());
        }
        let mut spans = Vec::new();
        for row in rows {
            let (first, count) = (row.be64(0).unwrap_or_default(), row.be32(8).unwrap_or_default());
            let end = first.checked_add(count.into());
            if end.is_none_or(|end| end > self.memory.size() / u64::from(self.block)) {
                return Err(Sense::LOGICAL_BLOCK_ADDRESS_OUT_OF_RANGE.into());
            }
            if count > MOST_UNMAPPED {
                return Err(Sense::INVALID_FIELD_IN_PARAMETER_LIST.into());
            }
            spans.push((first * u64::from(self.block), u64::from(count) * u64::from(self.block)));
        }
        spans.into_iter().for_each(|(at, length)| self.memory.clear(at, length));
        Ok(())
    }
}

/// A mode parameter list: the header of MODE SENSE(6) or (10), block descriptors and pages (SPC-4 7.5.5).
pub(super) fn mode(cdb: &[u8; 16], specific: u8, descriptors: &[u8], pages: &[u8]) -> Done {
    // Disable block descriptors.
    let descriptors = if cdb[1] & 0x08 == 0 { descriptors } else { &[] };
    let length = |bytes: usize| u8::try_from(bytes).unwrap_or(u8::MAX);
    let (all, of_descriptors) = (descriptors.len() + pages.len(), length(descriptors.len()));
    if cdb[0] == 0x1a {
        let header = [length(all + 3), 0, specific, of_descriptors];
        cut([&header[..], descriptors, pages].concat(), cdb[4])
    } else {
        let header = [0, length(all + 6), 0, specific, 0, 0, 0, of_descriptors];
        cut([&header[..], descriptors, pages].concat(), cdb.be16(7).unwrap_or_default())
    }
}
