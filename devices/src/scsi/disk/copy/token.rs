//! ROD tokens (SBC-4, 5.15 and 5.53; SPC-4, 5.16.6): names for data as it is now. Windows copies files with them (ODX).
//!
//! A token dies when anything it stands for is written, when it was not used for long, and with the machine.

use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, Instant};

use super::buffer::Buffer;
use super::plan::{Move, moves, order};
use super::results::Held;
use super::rods::{Reading, Rod, Spans};
use super::{CHUNK, READ, Route, copy, disk, ready, unreachable, zero};
use crate::iothread::Scope;
use crate::mem::FromGuest;
use crate::scsi::background::{Lasting, visit};
use crate::scsi::disk::vpd::{
    DEFAULT_INACTIVITY, MAX_INACTIVITY, MAX_RANGES, MAX_TOKEN_TRANSFER, ROD_CHANGE_VULNERABLE, ROD_ZERO,
};
use crate::scsi::disk::{BUSY, Disk};
use crate::scsi::memory::Scratch;
use crate::scsi::opcode::field;
use crate::scsi::outcome::{Done, Outcome, Page};
use crate::scsi::sense::{
    Failure, INVALID_TOKEN_LENGTH, INVALID_TOKEN_OPERATION, LBA_OUT_OF_RANGE, PARAMETER_LIST_LENGTH_ERROR,
    SenseData, TOKEN_UNKNOWN, UNSUPPORTED_TOKEN_TYPE,
};
use crate::scsi::unit::Context;
use crate::scsi::{DataBuffers, Status};
use crate::storage::{ByteOffset, Image, Span};

/// Length of a token in bytes (SPC-4, 5.16.6.4).
pub(super) const TOKEN_LEN: usize = 512;
/// Block device range descriptor (SBC-4, 5.15.3).
const RANGE_LEN: u64 = 16;
/// Host memory for the pieces of a range: where they go, and in which order.
const LISTED: u64 = (2 * size_of::<Span>() + size_of::<Move>() + 3 * size_of::<usize>()) as u64;
/// Where the ranges begin in the lists of POPULATE TOKEN and WRITE USING TOKEN.
const POPULATE_RANGES: u64 = 16;
const WRITE_RANGES: u64 = 536;

/// A token as initiators carry it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Token(Box<[u8; TOKEN_LEN]>);

impl Token {
    pub(super) fn as_bytes(&self) -> &[u8] {
        &*self.0
    }

    /// A token for `len` bytes of `disk`: what makes it unique cannot be guessed.
    fn new(disk: &Disk<Image>, len: u64) -> Self {
        let mut page = Page::<TOKEN_LEN>::new();
        let random = || RandomState::new().hash_one(0);
        page.u32(ROD_CHANGE_VULNERABLE).u16(0).u16((TOKEN_LEN - 8) as u16).u64(random());
        // CREATOR LOGICAL UNIT DESCRIPTOR: an identification CSCD descriptor.
        page.put(&[super::list::IDENTIFICATION, 0, 0, 0]);
        if let Some(name) = disk.config.designators().next() {
            page.put(&[name.code_set(), name.kind(), 0, name.as_bytes().len() as u8]);
            page.put(name.as_bytes());
        }
        page.pad_to(48).u64(0).u64(len).pad_to(128);
        for _ in 0..4 {
            page.u64(random());
        }
        page.pad_to(TOKEN_LEN);
        let mut bytes = [0; TOKEN_LEN];
        bytes.iter_mut().zip(page.as_bytes()).for_each(|(to, from)| *to = *from);
        Self(Box::new(bytes))
    }
}

/// Reads the range descriptors of a list and checks them against the medium.
fn ranges(disk: &Disk<Image>, list: &FromGuest, len: u64, at: u64) -> Result<Vec<Span>, SenseData> {
    let mut head = [0; 2];
    list.read_at(at - 2, &mut head);
    let bytes = field(&head, 0, 2);
    if bytes < RANGE_LEN {
        return Err(SenseData::parameter_field(at as u16 - 2, None));
    }
    if at + bytes > len {
        return Err(SenseData::illegal(PARAMETER_LIST_LENGTH_ERROR));
    }
    if bytes / RANGE_LEN > u64::from(MAX_RANGES) {
        return Err(SenseData::parameter_field(at as u16 - 2, None));
    }
    let mut spans: Vec<Span> = Vec::with_capacity((bytes / RANGE_LEN) as usize);
    let mut total = 0;
    for index in 0..bytes / RANGE_LEN {
        let mut range = [0; RANGE_LEN as usize];
        list.read_at(at + index * RANGE_LEN, &mut range);
        let (lba, blocks) = (field(&range, 0, 8), field(&range, 8, 4));
        let capacity = disk.blocks();
        if lba > capacity || blocks > capacity - lba {
            return Err(SenseData::illegal(LBA_OUT_OF_RANGE).with_information(lba.max(capacity)));
        }
        total += blocks << disk.block_shift;
        if total > MAX_TOKEN_TRANSFER {
            return Err(SenseData::parameter_field((at + index * RANGE_LEN + 8) as u16, None));
        }
        let span = Span { at: ByteOffset(lba << disk.block_shift), len: blocks << disk.block_shift };
        let overlaps = |other: &Span| span.at.0 < other.at.0 + other.len && other.at.0 < span.at.0 + span.len;
        if spans.iter().any(overlaps) {
            return Err(SenseData::parameter_field((at + index * RANGE_LEN) as u16, None));
        }
        spans.push(span);
    }
    Ok(spans)
}

/// The length of the list, if it is all there and says so itself.
fn list_len(cdb: &[u8], list: &FromGuest, least: u64) -> Result<u64, SenseData> {
    let len = field(cdb, 10, 4);
    let mut head = [0; 2];
    if len < least || list.len() < len {
        return Err(SenseData::illegal(PARAMETER_LIST_LENGTH_ERROR));
    }
    list.read_at(0, &mut head);
    if field(&head, 0, 2) + 2 < least {
        return Err(SenseData::parameter_field(0, None));
    }
    Ok(len.min(field(&head, 0, 2) + 2))
}

/// POPULATE TOKEN: SBC-4, 5.15.
pub(in crate::scsi::disk) async fn populate_token(
    context: Context<'_>,
    cdb: &[u8],
    data: DataBuffers,
) -> Outcome {
    let list = &data.data_out;
    if field(cdb, 10, 4) == 0 {
        return Ok(Done::good());
    }
    let own = disk(&context.path.unit)?;
    let len = list_len(cdb, list, POPULATE_RANGES)?;
    let mut head = [0; POPULATE_RANGES as usize];
    list.read_at(0, &mut head);
    let timeout = match field(&head, 4, 4) as u32 {
        0 => DEFAULT_INACTIVITY,
        seconds if seconds <= MAX_INACTIVITY => seconds,
        _ => return Err(SenseData::parameter_field(4, None).into()),
    };
    // RTV: the type is named; else it is ours to choose.
    if field(&head, 2, 1) & 2 != 0 && field(&head, 8, 4) as u32 != ROD_CHANGE_VULNERABLE {
        return Err(SenseData::parameter_field(8, None).into());
    }
    // Not while something lands that the token would not stand for.
    let _turn = own.settled().await;
    let spans = ranges(own, list, len, POPULATE_RANGES)?;
    let total = spans.iter().map(|span| span.len).sum();
    let token = Token::new(own, total);
    let added = own.copies.rods.add(Rod {
        token: token.clone(),
        spans: Spans::new(spans.into()).into(),
        timeout: Duration::from_secs(timeout.into()),
        used: Instant::now(),
    });
    if !added {
        // A copy of another unit's writes to the blocks: there is no point in time before it is over.
        return Err(Failure::Status(Status::Busy));
    }
    let mut held = Held::new(context.path.nexus, field(cdb, 6, 4) as u32, 0x10);
    held.progress(total);
    held.gives(token);
    own.copies.keep(held);
    Ok(Done::received(field(cdb, 10, 4)))
}

/// Where the data of a token is.
enum Source {
    Zeros,
    Unit(Reading),
}

fn find(context: Context<'_>, token: &[u8]) -> Result<Source, Failure> {
    if field(token, 6, 2) as usize != TOKEN_LEN - 8 {
        return Err(SenseData::illegal(INVALID_TOKEN_LENGTH).into());
    }
    match field(token, 0, 4) as u32 {
        ROD_ZERO => return Ok(Source::Zeros),
        ROD_CHANGE_VULNERABLE => {}
        _ => return Err(SenseData::illegal(UNSUPPORTED_TOKEN_TYPE).into()),
    }
    let own = context.path.unit.clone();
    let mut units = std::iter::once(own).chain(context.nexus.target().reachable());
    let reading = units.find_map(|unit| Reading::begin(&unit, token));
    reading.map(Source::Unit).ok_or_else(|| SenseData::illegal(TOKEN_UNKNOWN).into())
}

/// WRITE USING TOKEN: SBC-4, 5.53.
pub(in crate::scsi::disk) async fn write_using_token(
    context: Context<'_>,
    cdb: &[u8],
    data: DataBuffers,
) -> Outcome {
    let list = &data.data_out;
    if field(cdb, 10, 4) == 0 {
        return Ok(Done::good());
    }
    let own = disk(&context.path.unit)?;
    let len = list_len(cdb, list, WRITE_RANGES)?;
    let mut head = [0; WRITE_RANGES as usize];
    list.read_at(0, &mut head);
    let targets = ranges(own, list, len, WRITE_RANGES)?;
    let token = head.get(16..16 + TOKEN_LEN).unwrap_or_default();
    let source = find(context, token)?;
    let mut held = Held::new(context.path.nexus, field(cdb, 6, 4) as u32, 0x11);
    let (offset, mut moved) = (field(&head, 8, 8), 0);
    let reads = context.io.scope();
    let fill = fill(context, own, &source, reads, offset, &targets, &mut moved);
    let result = match &source {
        Source::Zeros => fill.await,
        Source::Unit(reading) => visit(context.io, reading.unit(), reads, unreachable(), fill).await,
    };
    held.progress(moved);
    match &result {
        Ok(()) => {
            if let (2, Source::Unit(reading)) = (field(&head, 2, 1) & 2, &source) {
                disk(reading.unit())?.copies.rods.delete(token);
            }
        }
        Err(Failure::Check(sense)) => held.fail(*sense),
        // Not done, and nothing to tell of.
        Err(Failure::Status(_) | Failure::Passed(_)) => return result.map(|()| Done::good()),
    }
    own.copies.keep(held);
    result.map(|()| Done::received(field(cdb, 10, 4)))
}

/// Writes what `source` has from `offset` (in blocks of `own`) on to `targets`; `moved` is how many bytes are there, from
/// the first one on. A token that is shorter than the targets fills as much as it has.
async fn fill(
    context: Context<'_>,
    own: &Disk<Image>,
    source: &Source,
    reads: Scope,
    offset: u64,
    targets: &[Span],
    moved: &mut u64,
) -> Result<(), Failure> {
    let reading = match source {
        Source::Unit(reading) => reading,
        Source::Zeros => {
            for span in targets.iter().filter(|span| span.len > 0) {
                zero(context.io, own, *span).await?;
                *moved += span.len;
            }
            return Ok(());
        }
    };
    let from = disk(reading.unit())?;
    ready(context, reading.unit(), READ)?;
    from.usable(READ)?;
    let total: u64 = reading.spans().iter().map(|span| span.len).sum();
    let offset = offset.checked_mul(own.block_size()).filter(|offset| *offset < total);
    let skip = offset.ok_or(SenseData::parameter_field(8, None))?;
    let lists = (reading.spans().len() + targets.len()) as u64 * LISTED;
    let _lists = own.memory.take_all(lists, None).ok_or(BUSY)?;
    let moves = moves(reading.spans(), skip, targets, own.block_size())?;
    let route = Route { from, to: own, reading: Some(reading), reads };
    let mut buffer = Buffer::default();
    if !route.on_one_disk() {
        for one in &moves {
            copy(context.io, &route, *one, &mut buffer, moved).await?;
        }
        return Ok(());
    }
    let total = moves.iter().map(|one| one.len).sum();
    if total <= CHUNK
        && let Some(scratch) = buffer.for_all(&route, total)
    {
        return move_at_once(context, &route, &moves, scratch, moved).await;
    }
    // What is in no order that does not overwrite itself needs room for all of it.
    let circle = if total <= CHUNK { BUSY } else { SenseData::illegal(INVALID_TOKEN_OPERATION).into() };
    let order = order(&moves).ok_or(circle)?;
    let mut done = vec![false; moves.len()];
    let mut result = Ok(());
    for index in order {
        let Some(one) = moves.get(index) else { continue };
        result = copy(context.io, &route, *one, &mut buffer, &mut 0).await;
        if result.is_err() {
            break;
        }
        done.iter_mut().skip(index).take(1).for_each(|done| *done = true);
    }
    *moved = moves.iter().zip(&done).take_while(|(_, done)| **done).map(|(one, _)| one.len).sum();
    result
}

/// Reads all pieces before it writes any.
async fn move_at_once(
    context: Context<'_>,
    route: &Route<'_>,
    moves: &[Move],
    scratch: &Scratch,
    moved: &mut u64,
) -> Result<(), Failure> {
    let spans = moves.iter().map(|one| Span { at: ByteOffset(one.to), len: one.len }).collect();
    let _writing = Lasting::new(context.io, route.to.copies.rods.writing(spans));
    let mut at = 0;
    for one in moves {
        route.get(context.io, one.from, scratch, (at, one.len)).await?;
        at += one.len;
    }
    route.check()?;
    for one in moves {
        route.put(context.io, one.to, scratch, (*moved, one.len)).await?;
        *moved += one.len;
    }
    Ok(())
}
