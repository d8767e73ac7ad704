//! Third-party copy (SPC-4, 5.16): copies that never pass through the guest.
//!
//! EXTENDED COPY names its devices (CSCDs) by the designators of VPD page 83h, WRITE USING TOKEN by a token that
//! POPULATE TOKEN made. Both end here in host memory between two images.

mod buffer;
mod list;
mod plan;
mod results;
mod rods;
mod token;

use std::pin::pin;
use std::sync::Arc;

use self::buffer::Buffer;
use self::list::{Cscd, CscdId, List, Segment};
use self::plan::Move;
use self::results::Held;
pub(super) use self::results::{Copies, receive};
use self::rods::Reading;
pub(super) use self::token::{populate_token, write_using_token};
use super::Disk;
use crate::iothread::{Io, Scope};
use crate::mem::{FromGuest, ToGuest};
use crate::scsi::background::{Lasting, visit};
use crate::scsi::memory::Scratch;
use crate::scsi::opcode::{Properties, field};
use crate::scsi::outcome::{Done, Outcome};
use crate::scsi::sense::{
    COPY_TARGET_NOT_REACHABLE, Failure, LBA_OUT_OF_RANGE, NO_ADDITIONAL_SENSE, PARAMETER_LIST_LENGTH_ERROR,
    SenseData, SenseKey, THIRD_PARTY_DEVICE_FAILURE, UNEXPECTED_INEXACT_SEGMENT,
};
use crate::scsi::unit::{Context, LogicalUnit, Unit};
use crate::scsi::{Cdb, DataBuffers, Status};
use crate::storage::{ByteOffset, Durability, Image, Span};

/// Most CSCD descriptors of one list.
pub(super) const MAX_CSCDS: usize = 16;
/// Most segment descriptors of one list.
pub(super) const MAX_SEGMENTS: usize = 64;
/// Longest descriptors of one list together, in bytes: all of both kinds at their longest.
pub(super) const MAX_DESCRIPTORS: usize = MAX_CSCDS * 32 + MAX_SEGMENTS * 28;
/// Longest segment, in bytes.
pub(super) const MAX_SEGMENT: u64 = 256 << 20;
/// Copies held for RECEIVE COPY RESULTS, over all initiators.
pub(super) const MAX_HELD: usize = 32;
/// Bytes copied at a time.
const CHUNK: u64 = 1 << 20;

/// The disk behind a unit. What else there is takes no part in copies, and has no commands that ask for it.
pub(super) fn disk(unit: &Unit) -> Result<&Disk<Image>, SenseData> {
    match &unit.logical {
        LogicalUnit::Disk(disk) => Ok(disk),
        LogicalUnit::Cd(_) => Err(SenseData::new(SenseKey::CopyAborted, COPY_TARGET_NOT_REACHABLE)),
        LogicalUnit::Generic(_) | LogicalUnit::Block(_) => {
            Err(SenseData::new(SenseKey::CopyAborted, COPY_TARGET_NOT_REACHABLE))
        }
    }
}

/// Whether a command is EXTENDED COPY.
pub(in crate::scsi) fn is_extended_copy(cdb: &Cdb) -> bool {
    cdb.opcode() == 0x83 && cdb.padded()[1] & 0x1f <= 1
}

/// EXTENDED COPY (LID1) and (LID4): SPC-4, 6.4 and 6.5.
pub(super) async fn extended_copy(context: Context<'_>, cdb: &[u8], data: DataBuffers) -> Outcome {
    let len = field(cdb, 10, 4);
    if len == 0 {
        return Ok(Done::good());
    }
    let lid4 = field(cdb, 1, 1) & 0x1f == 1;
    let mut copy = [0; list::MAX_LIST];
    let bytes = usize::try_from(len).ok().and_then(|len| copy.get_mut(..len));
    let bytes = bytes.ok_or(SenseData::illegal(PARAMETER_LIST_LENGTH_ERROR))?;
    if data.data_out.read_at(0, bytes) < bytes.len() {
        return Err(SenseData::illegal(PARAMETER_LIST_LENGTH_ERROR).into());
    }
    let list = List::parse(bytes, lid4)?;
    let mut held = Held::new(context.path.nexus, list.id, if lid4 { 1 } else { 0 });
    let (mut result, mut buffer) = (Ok(Done::received(len)), Buffer::default());
    for (index, segment) in list.segments().enumerate() {
        if index > 0 {
            // To find its disks takes a while where there are many, and that may be all that a segment does.
            context.io.give_way().await;
        }
        let mut moved = 0;
        match run(context, &list, &segment, &mut buffer, &mut moved).await {
            Ok(()) => held.progress(moved),
            // Nothing was moved, and nothing is to be told of it.
            Err(failure) if buffer.is_missing() => return Err(failure),
            Err(failure) => {
                held.partly(moved);
                let sense = aborted(failure, index as u16);
                held.fail(sense);
                result = Ok(Done::received(len).but(sense));
                break;
            }
        }
    }
    if list.keeps_result {
        disk(&context.path.unit)?.copies.keep(held);
    }
    result
}

/// What a copy is told when a segment could not be done.
fn aborted(failure: Failure, segment: u16) -> SenseData {
    let code = match failure {
        Failure::Check(sense) if sense.is(SenseKey::CopyAborted) => {
            return sense.with_command(segment.into());
        }
        Failure::Check(sense) if sense.code() == LBA_OUT_OF_RANGE => NO_ADDITIONAL_SENSE,
        _ => THIRD_PARTY_DEVICE_FAILURE,
    };
    // COMMAND-SPECIFIC INFORMATION: the number of the segment descriptor in its last two bytes (SPC-4, 5.16.7.4).
    SenseData::new(SenseKey::CopyAborted, code).with_command(segment.into())
}

/// Copies one segment; `moved` is how many bytes are there.
async fn run(
    context: Context<'_>,
    list: &List<'_>,
    segment: &Segment,
    buffer: &mut Buffer,
    moved: &mut u64,
) -> Result<(), Failure> {
    let source = find(context, list, segment.source)?;
    let target = find(context, list, segment.target)?;
    let (from, to) = (disk(&source)?, disk(&target)?);
    let unit = if segment.counts_target { to.block_size() } else { from.block_size() };
    let len = if segment.in_bytes { segment.count } else { segment.count * unit };
    let at = |disk: &Disk<Image>, lba: u64, offset: u64| {
        lba.checked_mul(disk.block_size()).and_then(|at| at.checked_add(offset)).unwrap_or(u64::MAX)
    };
    let source_at = at(from, segment.source_lba, segment.source_offset);
    let target_at = at(to, segment.target_lba, segment.target_offset);
    let inexact = SenseData::new(SenseKey::CopyAborted, UNEXPECTED_INEXACT_SEGMENT);
    let whole = |disk: &Disk<Image>, at: u64| (at | len).is_multiple_of(disk.block_size());
    if at_end(from, source_at, len) || at_end(to, target_at, len) {
        return Err(SenseData::illegal(LBA_OUT_OF_RANGE).into());
    }
    if !whole(from, source_at) || !whole(to, target_at) {
        return Err(inexact.into());
    }
    for (unit, properties) in [(&source, READ), (&target, WRITE)] {
        ready(context, unit, properties)?;
    }
    from.usable(READ)?;
    to.usable(WRITE)?;
    let io = context.io;
    let into = &target;
    // It owns the source: that goes with it, and is not held while the target is waited for.
    let copy = async move {
        let route = Route { from: disk(&source)?, to: disk(into)?, reading: None, reads: io.scope() };
        let copy = copy(io, &route, Move { from: source_at, to: target_at, len }, buffer, moved);
        visit(io, &source, route.reads, unreachable(), copy).await
    };
    visit(io, &target, io.current_scope(), unreachable(), copy).await
}

/// Whether a unit takes a part of this command, as it would a command of its own.
fn ready(context: Context<'_>, unit: &Unit, properties: Properties) -> Result<(), Failure> {
    if unit.is_busy() {
        return Err(Failure::Status(Status::Busy));
    }
    unit.admits(context.path.nexus, properties.access(), false)
}

const READ: Properties = Properties::MEDIUM.and(Properties::READ);
const WRITE: Properties = Properties::MEDIUM.and(Properties::WRITE);

fn at_end(disk: &Disk<Image>, at: u64, len: u64) -> bool {
    let end = disk.blocks() << disk.block_shift;
    at.checked_add(len).is_none_or(|stop| stop > end)
}

/// The unit that a CSCD descriptor identifies: this one, or another one that the initiator has in this machine.
fn find(context: Context<'_>, list: &List<'_>, id: CscdId) -> Result<Arc<Unit>, Failure> {
    let own = &context.path.unit;
    let wanted = match list.cscd(id) {
        Some(Cscd::Own) => return Ok(own.clone()),
        Some(Cscd::Designated(designator)) => designator,
        None => return Err(unreachable()),
    };
    let mut named = context
        .nexus
        .target()
        .reachable()
        .into_iter()
        .filter(|unit| disk(unit).is_ok_and(|disk| disk.is_named(&wanted)));
    match (named.next(), named.next()) {
        (Some(unit), None) => Ok(unit),
        // A name that two have says nothing: better none than the wrong one.
        _ => Err(unreachable()),
    }
}

fn unreachable() -> Failure {
    SenseData::new(SenseKey::CopyAborted, COPY_TARGET_NOT_REACHABLE).into()
}

/// From where to where a copy goes.
struct Route<'a> {
    from: &'a Disk<Image>,
    to: &'a Disk<Image>,
    /// The token whose blocks are read.
    reading: Option<&'a Reading>,
    /// Whose the operations are that read; those that write are the command's.
    reads: Scope,
}

impl Route<'_> {
    fn on_one_disk(&self) -> bool {
        Arc::ptr_eq(&self.from.image, &self.to.image)
    }

    /// Whether what was read so far may be used.
    fn check(&self) -> Result<(), SenseData> {
        self.reading.map_or(Ok(()), Reading::check)
    }

    /// Reads what is at `at` into a part of `scratch`.
    async fn get(
        &self,
        io: &Io,
        at: u64,
        scratch: &Scratch,
        (first, len): (u64, u64),
    ) -> Result<(), Failure> {
        scratch.pass_to(&self.from.memory);
        let into = ToGuest::new(scratch.window(first, len));
        let fetch = pin!(self.from.fetch(io, ByteOffset(at), into));
        io.within(self.reads, fetch).await
    }

    /// Writes a part of `scratch`. Other copies and all tokens learn of it; this copy has read what was there.
    async fn put(
        &self,
        io: &Io,
        at: u64,
        scratch: &Scratch,
        (first, len): (u64, u64),
    ) -> Result<(), Failure> {
        scratch.pass_to(&self.to.memory);
        let part = FromGuest::new(scratch.window(first, len));
        let own = self.reading.filter(|_| std::ptr::eq(self.from, self.to)).map(Reading::id);
        let to = self.to;
        let _turn = Lasting::new(io, to.turns.shared().await);
        to.copies.rods.changed(at, len, own);
        let result = to.put_blocks(io, ByteOffset(at), part, to.durability(0)).await;
        to.copies.rods.changed(at, len, own);
        result
    }
}

/// Moves a piece through host memory, and counts what was moved in `moved`. Where source and target overlap, what is
/// overwritten has been read before.
async fn copy(
    io: &Io,
    route: &Route<'_>,
    piece: Move,
    buffer: &mut Buffer,
    moved: &mut u64,
) -> Result<(), Failure> {
    let Move { from, to, len } = piece;
    if len == 0 {
        return Ok(());
    }
    let backwards = route.on_one_disk() && to > from && to - from < len;
    let _writing = Lasting::new(io, route.to.copies.rods.writing([Span { at: ByteOffset(to), len }].into()));
    let mut done = 0;
    while done < len {
        let scratch = buffer.for_more(route, len - done)?;
        let step = scratch.len().min(len - done);
        let at = if backwards { len - done - step } else { done };
        route.get(io, from + at, scratch, (0, step)).await?;
        route.check()?;
        route.put(io, to + at, scratch, (0, step)).await?;
        done += step;
        // What is moved counts from the first byte on.
        if !backwards {
            *moved += step;
        }
    }
    if backwards {
        *moved += len;
    }
    Ok(())
}

/// Zeros `span` on behalf of a token that stands for zeros.
async fn zero(io: &Io, to: &Disk<Image>, span: Span) -> Result<(), Failure> {
    to.clear(io, span, to.unmap_if_thin()).await?;
    if to.durability(0) == Durability::Stable {
        to.flush(io).await?;
    }
    Ok(())
}
