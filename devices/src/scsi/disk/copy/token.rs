//! ROD tokens (SBC-4, 5.15 and 5.53; SPC-4, 5.16.6): names for data as it is now. Windows copies files with them (ODX).
//!
//! A token dies when anything it stands for is written, when it was not used for long, and with the machine.

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::results::Held;
use super::{READ, copy, disk, zero};
use crate::mem::FromGuest;
use crate::scsi::DataBuffers;
use crate::scsi::disk::Disk;
use crate::scsi::disk::vpd::{
    DEFAULT_INACTIVITY, MAX_INACTIVITY, MAX_RANGES, MAX_TOKEN_TRANSFER, ROD_CHANGE_VULNERABLE, ROD_ZERO,
};
use crate::scsi::opcode::field;
use crate::scsi::outcome::{Done, Outcome, Page};
use crate::scsi::sense::{
    Failure, INVALID_TOKEN_LENGTH, INVALID_TOKEN_OPERATION, LBA_OUT_OF_RANGE, PARAMETER_LIST_LENGTH_ERROR,
    SenseData, TOKEN_UNKNOWN, UNSUPPORTED_TOKEN_TYPE,
};
use crate::scsi::unit::{Context, Unit};
use crate::storage::{ByteOffset, Image, Span};

/// Length of a token in bytes (SPC-4, 5.16.6.4).
pub(super) const TOKEN_LEN: usize = 512;
/// Tokens of one unit that live at a time.
const MAX_TOKENS: usize = 64;
/// Block device range descriptor (SBC-4, 5.15.3).
const RANGE_LEN: u64 = 16;
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
        if let Some(name) = disk.designators().next() {
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

/// What a token stands for.
#[derive(Clone, Debug)]
struct Rod {
    token: Token,
    spans: Arc<[Span]>,
    timeout: Duration,
    used: Instant,
}

/// The tokens of one unit.
#[derive(Debug, Default)]
pub(super) struct Rods {
    /// Whether there is any: while not, writes need no lock.
    any: AtomicBool,
    live: Mutex<Vec<Rod>>,
}

impl Rods {
    fn lock(&self) -> MutexGuard<'_, Vec<Rod>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn retain(&self, stays: impl Fn(&Rod) -> bool) {
        let mut live = self.lock();
        live.retain(stays);
        self.any.store(!live.is_empty(), Ordering::SeqCst);
    }

    pub(super) fn changed(&self, at: u64, len: u64) {
        if self.any.load(Ordering::SeqCst) {
            let apart = |span: &Span| span.at.0 + span.len <= at || at.saturating_add(len) <= span.at.0;
            self.retain(|rod| rod.spans.iter().all(apart));
        }
    }

    pub(super) fn clear(&self) {
        self.retain(|_| false);
    }

    fn add(&self, rod: Rod) {
        self.retain(|rod| rod.used.elapsed() < rod.timeout);
        let mut live = self.lock();
        if live.len() >= MAX_TOKENS {
            live.remove(0);
        }
        live.push(rod);
        self.any.store(true, Ordering::SeqCst);
    }

    /// The spans that a token stands for, if it lives.
    fn find(&self, token: &[u8]) -> Option<Arc<[Span]>> {
        let mut live = self.lock();
        let found = live.iter_mut().find(|rod| rod.token.as_bytes() == token)?;
        if found.used.elapsed() >= found.timeout {
            return None;
        }
        found.used = Instant::now();
        Some(found.spans.clone())
    }

    fn delete(&self, token: &[u8]) {
        self.retain(|rod| rod.token.as_bytes() != token);
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
pub(in crate::scsi::disk) fn populate_token(context: Context<'_>, cdb: &[u8], data: &DataBuffers) -> Outcome {
    let list = &data.data_out;
    if field(cdb, 10, 4) == 0 {
        return Ok(Done::good());
    }
    let own = disk(&context.path.unit);
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
    let spans = ranges(own, list, len, POPULATE_RANGES)?;
    let total = spans.iter().map(|span| span.len).sum();
    let token = Token::new(own, total);
    own.copies.rods.add(Rod {
        token: token.clone(),
        spans: spans.into(),
        timeout: Duration::from_secs(timeout.into()),
        used: Instant::now(),
    });
    let mut held = Held::new(context.path.nexus, field(cdb, 6, 4) as u32, 0x10);
    held.progress(total);
    held.gives(token);
    own.copies.keep(held);
    Ok(Done::received(field(cdb, 10, 4)))
}

/// Where the data of a token is.
enum Source {
    Zeros,
    Unit(Arc<Unit>, Arc<[Span]>),
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
    for unit in std::iter::once(own).chain(context.nexus.target().reachable()) {
        if let Some(spans) = disk(&unit).copies.rods.find(token) {
            return Ok(Source::Unit(unit, spans));
        }
    }
    Err(SenseData::illegal(TOKEN_UNKNOWN).into())
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
    let own = disk(&context.path.unit);
    let len = list_len(cdb, list, WRITE_RANGES)?;
    let mut head = [0; WRITE_RANGES as usize];
    list.read_at(0, &mut head);
    let targets = ranges(own, list, len, WRITE_RANGES)?;
    let token = head.get(16..16 + TOKEN_LEN).unwrap_or_default();
    let source = find(context, token)?;
    let mut held = Held::new(context.path.nexus, field(cdb, 6, 4) as u32, 0x11);
    let offset = field(&head, 8, 8);
    let moved = fill(context, own, &source, offset, &targets).await;
    let outcome = match moved {
        Ok(bytes) => {
            held.progress(bytes);
            if field(&head, 2, 1) & 2 != 0
                && let Source::Unit(unit, _) = &source
            {
                disk(unit).copies.rods.delete(token);
            }
            Ok(Done::received(field(cdb, 10, 4)))
        }
        Err(failure) => {
            if let Failure::Check(sense) = &failure {
                held.fail(*sense);
            }
            Err(failure)
        }
    };
    own.copies.keep(held);
    outcome
}

/// Writes what `source` has from `offset` (in blocks of `own`) on to `targets`; returns how many bytes. A token that is
/// shorter than the targets fills as much as it has.
async fn fill(
    context: Context<'_>,
    own: &Disk<Image>,
    source: &Source,
    offset: u64,
    targets: &[Span],
) -> Result<u64, Failure> {
    let Source::Unit(unit, spans) = source else {
        for span in targets.iter().filter(|span| span.len > 0) {
            zero(context.io, own, *span).await?;
        }
        return Ok(targets.iter().map(|span| span.len).sum());
    };
    let from = disk(unit);
    unit.admits(context.path.nexus, READ.access(), false)?;
    from.usable(READ)?;
    let total: u64 = spans.iter().map(|span| span.len).sum();
    let offset = offset.checked_mul(own.block_size()).filter(|offset| *offset < total);
    let mut skip = offset.ok_or(SenseData::parameter_field(8, None))?;
    let mut pieces = spans.iter().filter_map(|span| {
        let skipped = skip.min(span.len);
        skip -= skipped;
        (span.len > skipped).then(|| (span.at.0 + skipped, span.len - skipped))
    });
    let mut piece = pieces.next();
    let mut moved = 0;
    for target in targets {
        let mut done = 0;
        while done < target.len {
            let Some((at, have)) = piece else { return Ok(moved) };
            let step = have.min(target.len - done);
            if !step.is_multiple_of(own.block_size()) {
                return Err(SenseData::illegal(INVALID_TOKEN_OPERATION).into());
            }
            copy(context.io, from, at, own, target.at.0 + done, step).await?;
            (done, moved) = (done + step, moved + step);
            piece = if have > step { Some((at + step, have - step)) } else { pieces.next() };
        }
    }
    Ok(moved)
}
