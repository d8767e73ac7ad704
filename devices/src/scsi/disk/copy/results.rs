//! What became of copies: RECEIVE COPY STATUS, FAILURE DETAILS, OPERATING PARAMETERS, ROD TOKEN INFORMATION
//! (SPC-4, 6.24 to 6.29). Copies are over when their command is, so there is never one in progress.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::list::{BLOCK_TO_BLOCK, BLOCK_TO_BLOCK_OFFSET, IDENTIFICATION};
use super::rods::Rods;
use super::token::{TOKEN_LEN, Token};
use super::{MAX_CSCDS, MAX_DESCRIPTORS, MAX_HELD, MAX_SEGMENT, MAX_SEGMENTS, disk};
use crate::scsi::DataBuffers;
use crate::scsi::opcode::field;
use crate::scsi::outcome::{Outcome, Page, Writer};
use crate::scsi::sense::SenseData;
use crate::scsi::tasks::NexusId;
use crate::scsi::unit::Context;

/// COPY OPERATION STATUS (SPC-4, table 201): completed without errors, with errors.
const COMPLETED: u8 = 0x01;
const FAILED: u8 = 0x02;

/// How long RECEIVE COPY STATUS (LID1) tells of a copy whose own status told the same: "a vendor specific period of time"
/// (SPC-3, 6.17.2). Initiators use the same few identifiers again and again.
const STATUS_KEPT: Duration = Duration::from_secs(1);

/// The result of a copy, kept until others displace it.
#[derive(Debug)]
pub(super) struct Held {
    nexus: NexusId,
    list: u32,
    /// Service action of the command.
    action: u8,
    segments: u16,
    bytes: u64,
    sense: Option<SenseData>,
    token: Option<Token>,
    kept_at: Instant,
    /// RECEIVE COPY STATUS (LID1) told of it, which it does once (SPC-3, 6.17.2).
    told: bool,
}

impl Held {
    pub(super) fn new(nexus: NexusId, list: u32, action: u8) -> Self {
        let (kept_at, told) = (Instant::now(), false);
        Self { nexus, list, action, segments: 0, bytes: 0, sense: None, token: None, kept_at, told }
    }
    /// One more segment is done.
    pub(super) fn progress(&mut self, bytes: u64) {
        self.segments = self.segments.saturating_add(1);
        self.bytes += bytes;
    }
    /// Of a segment that failed, so much is there.
    pub(super) fn partly(&mut self, bytes: u64) {
        self.bytes += bytes;
    }
    pub(super) fn fail(&mut self, sense: SenseData) {
        self.sense = Some(sense);
    }
    pub(super) fn gives(&mut self, token: Token) {
        self.token = Some(token);
    }
    /// Takes the one report to RECEIVE COPY STATUS (LID1).
    fn tell(&mut self) -> bool {
        let late = self.kept_at.elapsed() > STATUS_KEPT;
        !std::mem::replace(&mut self.told, true) && !late
    }
    fn status(&self) -> u8 {
        if self.sense.is_none() { COMPLETED } else { FAILED }
    }
}

/// Results and tokens of the copies of one unit.
#[derive(Debug, Default)]
pub(in crate::scsi::disk) struct Copies {
    held: Mutex<VecDeque<Held>>,
    pub(super) rods: Arc<Rods>,
}

impl Copies {
    fn held(&self) -> MutexGuard<'_, VecDeque<Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps a result; one of the same list identifier gives way.
    pub(super) fn keep(&self, mut result: Held) {
        result.kept_at = Instant::now();
        let mut held = self.held();
        held.retain(|other| (other.nexus, other.list) != (result.nexus, result.list));
        if held.len() >= MAX_HELD {
            held.pop_front();
        }
        held.push_back(result);
    }

    /// Bytes at `at` are written or zeroed: what tokens say of them is no longer so.
    pub(in crate::scsi::disk) fn changed(&self, at: u64, len: u64) {
        self.rods.changed(at, len, None);
    }

    #[cfg(test)]
    pub(in crate::scsi::disk) fn writing(&self) -> usize {
        self.rods.writers()
    }

    pub(in crate::scsi::disk) fn forget(&self, nexus: NexusId) {
        self.held().retain(|held| held.nexus != nexus);
    }

    pub(in crate::scsi::disk) fn reset(&self) {
        self.held().clear();
        self.rods.clear();
    }
}

/// The commands with operation code 84h.
pub(in crate::scsi::disk) fn receive(context: Context<'_>, cdb: &[u8], data: &DataBuffers) -> Outcome {
    let mut writer = Writer::new(&data.data_in, field(cdb, 10, 4));
    let action = field(cdb, 1, 1) & 0x1f;
    if action == 3 {
        operating_parameters(&mut writer);
        return Ok(writer.finish());
    }
    let lid4 = action >= 5;
    let list = if lid4 { field(cdb, 2, 4) } else { field(cdb, 2, 1) } as u32;
    let disk = disk(&context.path.unit)?;
    let copies = &disk.copies;
    let mut held = copies.held();
    let mine = |held: &&mut Held| {
        held.nexus == context.path.nexus && held.list == list && (lid4 || held.action == 0)
    };
    let unknown = SenseData::cdb_field(2, Some(7));
    let found = held.iter_mut().rev().find(mine).ok_or(unknown)?;
    match action {
        0 if !found.tell() => return Err(unknown.into()),
        0 => status_lid1(found, &mut writer),
        4 => failure_details(found, &mut writer)?,
        5 => status_lid4(found, disk.block_size(), false, &mut writer),
        _ => status_lid4(found, disk.block_size(), true, &mut writer),
    }
    Ok(writer.finish())
}

/// Appends `page` after AVAILABLE DATA, which counts the bytes after itself.
fn available(writer: &mut Writer<'_>, page: &[u8]) {
    writer.put(&(page.len() as u32).to_be_bytes());
    writer.put(page);
}

fn operating_parameters(writer: &mut Writer<'_>) {
    let mut page = Page::<64>::new();
    page.u32(0x0100_0000); // SNLID: a list identifier may be reused
    page.u16(MAX_CSCDS as u16).u16(MAX_SEGMENTS as u16).u32(MAX_DESCRIPTORS as u32);
    // Maximum segment length, inline data length, held data limit, stream device transfer size.
    page.u32(MAX_SEGMENT as u32).u32(0).u32(0).u32(0);
    // Concurrent copies over all and of one initiator, as in the VPD page; granularities of data, inline data and held data.
    page.u16(0).u16(MAX_HELD as u16).u8(MAX_HELD as u8).u8(9).u8(0).u8(0).put(&[0; 3]);
    page.u8(3).put(&[BLOCK_TO_BLOCK, BLOCK_TO_BLOCK_OFFSET, IDENTIFICATION]);
    available(writer, page.as_bytes());
}

/// TRANSFER COUNT in the smallest power of 1024 bytes that fits, TRANSFER COUNT UNITS being the power.
fn counted(bytes: u64) -> (u8, u32) {
    (0..4).find_map(|unit| Some((unit, u32::try_from(bytes >> (10 * unit)).ok()?))).unwrap_or((3, u32::MAX))
}

fn status_lid1(held: &Held, writer: &mut Writer<'_>) {
    let (unit, count) = counted(held.bytes);
    let mut page = Page::<8>::new();
    page.u8(held.status()).u16(held.segments).u8(unit).u32(count);
    available(writer, page.as_bytes());
}

fn failure_details(held: &Held, writer: &mut Writer<'_>) -> Result<(), SenseData> {
    // Without a failure there are no details to hold (SPC-4, 6.25).
    let sense = held.sense.ok_or(SenseData::cdb_field(2, Some(7)))?.encode(false);
    let mut page = Page::<128>::new();
    page.pad_to(52).u8(0x02).u8(0).u16(sense.as_bytes().len() as u16).put(sense.as_bytes());
    available(writer, page.as_bytes());
    Ok(())
}

/// RECEIVE COPY STATUS (LID4), and with tokens RECEIVE ROD TOKEN INFORMATION, which begins alike.
fn status_lid4(held: &Held, block_size: u64, tokens: bool, writer: &mut Writer<'_>) {
    let sense = held.sense.map(|sense| sense.encode(true));
    let sense = sense.as_ref().map_or(&[][..], |sense| sense.as_bytes());
    let mut page = Page::<{ 64 + 6 + TOKEN_LEN }>::new();
    page.u8(held.action).u8(held.status()).u16(1).u32(0xffff_ffff);
    page.u8(if held.sense.is_none() { 0x00 } else { 0x02 });
    // The commands with tokens count blocks (SBC-3, 5.15 and 5.53), the others bytes.
    let (units, count) = if held.action >= 0x10 { (0xf1, held.bytes / block_size) } else { (0, held.bytes) };
    // The field has as many bytes as there is sense data.
    page.u8(sense.len() as u8).u8(sense.len() as u8).u8(units);
    page.u64(count).u16(held.segments).put(&[0; 6]).put(sense);
    if tokens {
        match &held.token {
            // ROD TOKEN DESCRIPTORS LENGTH; each has the number of its CSCD descriptor, here none.
            Some(token) => {
                page.u32(2 + TOKEN_LEN as u32).u16(0).put(token.as_bytes());
            }
            None => {
                page.u32(0);
            }
        }
    }
    available(writer, page.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_is_told_of_once_and_for_a_moment() {
        let before = |age| Held { kept_at: Instant::now() - age, ..Held::new(NexusId(1), 1, 0) };
        let mut now = before(Duration::ZERO);
        assert!(now.tell());
        assert!(!now.tell(), "once");
        assert!(!before(Duration::from_secs(2)).tell());
    }
}
