//! Commands that replace everything on the medium: FORMAT UNIT (SBC-4, 5.4) and SANITIZE (SBC-4, 5.30).
//!
//! While one runs the medium is not ready, and sense data tells how far it is.

use std::pin::Pin;
use std::task::{self, Poll};

use super::Disk;
use super::copy::disk;
use super::power::{Power, Work};
use super::verify::CHUNK;
use crate::iothread::Io;
use crate::mem::{FromGuest, SgList, ToGuest};
use crate::scsi::DataBuffers;
use crate::scsi::background::Working;
use crate::scsi::opcode::field;
use crate::scsi::outcome::{Done, Outcome};
use crate::scsi::sense::{Failure, NO_ADDITIONAL_SENSE, PARAMETER_LIST_LENGTH_ERROR, SenseData, SenseKey};
use crate::scsi::unit::Context;
use crate::storage::{ByteOffset, Durability, Image, Span};

/// Bytes zeroed in one step: progress is told and an abort heeded in between.
const STEP: u64 = 1 << 30;

/// FMTDATA and LONGLIST in byte 1 of FORMAT UNIT.
const FMTDATA: u64 = 0x10;
const LONGLIST: u64 = 0x20;
/// IMMED and AUSE in byte 1 of SANITIZE.
const IMMED: u64 = 0x80;
const AUSE: u64 = 0x20;

/// SANITIZE OVERWRITE parameter list: count and INVERT, then the length of the pattern, then the pattern.
struct Overwrite {
    passes: u64,
    invert: bool,
    pattern: SgList,
}

/// What to do to all blocks.
enum Wipe {
    /// Give them back, or else zero them.
    Erase,
    /// Write a pattern.
    Overwrite(Overwrite),
}

/// FORMAT UNIT: all blocks read as zeros afterwards. The block length stays.
pub(super) async fn format_unit(context: Context<'_>, cdb: &[u8], data: DataBuffers, usage: u64) -> Outcome {
    let (received, immediate) = check_format_list(cdb, &data.data_out, usage)?;
    start(context, Work::Format, Wipe::Erase, immediate).await?;
    Ok(Done::received(received))
}

/// SANITIZE, but for EXIT FAILURE MODE. As far as this unit can reach, an erasure by blocks gives them back, and one of
/// the key, there being none, does the same.
pub(super) async fn sanitize(context: Context<'_>, cdb: &[u8], data: DataBuffers) -> Outcome {
    let (options, len) = (field(cdb, 1, 1), field(cdb, 7, 2));
    let overwrite = options & 0x1f == 1;
    let wipe = match overwrite {
        true => Wipe::Overwrite(disk(&context.path.unit).overwrite_list(len, &data.data_out)?),
        false if len != 0 => return Err(SenseData::cdb_field(7, Some(7)).into()),
        false => Wipe::Erase,
    };
    let work = Work::Sanitize { unrestricted_exit: options & AUSE != 0 };
    start(context, work, wipe, options & IMMED != 0).await?;
    Ok(Done::received(len))
}

/// Begins the work, and unless the initiator does not want to wait, does it. Resets and aborts do not end it (SBC-4,
/// 4.11.1); only taking the unit away does.
async fn start(context: Context<'_>, work: Work, wipe: Wipe, immediate: bool) -> Result<(), Failure> {
    let unit = context.path.unit.clone();
    disk(&unit).power.begin(work)?;
    let (io, working) = (context.io.clone(), Working::on(unit));
    let work = Box::pin(async move { finish(&io, disk(&working), wipe, &working).await });
    let lasting = Lasting { io: context.io, work: Some(work) };
    if immediate { Ok(()) } else { lasting.await }
}

type Wiping = Pin<Box<dyn Future<Output = Result<(), Failure>>>>;

/// Work that goes on by itself once nobody waits for it any more: the state of the medium tells what became of it.
struct Lasting<'a> {
    io: &'a Io,
    work: Option<Wiping>,
}

impl Future for Lasting<'_> {
    type Output = Result<(), Failure>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut task::Context<'_>) -> Poll<Self::Output> {
        let Some(work) = &mut self.work else { return Poll::Pending };
        let result = task::ready!(work.as_mut().poll(cx));
        self.work = None;
        Poll::Ready(result)
    }
}

impl Drop for Lasting<'_> {
    fn drop(&mut self) {
        if let Some(work) = self.work.take() {
            self.io.spawn(async move {
                let _ = work.await;
            });
        }
    }
}

async fn finish(io: &Io, disk: &Disk<Image>, wipe: Wipe, working: &Working) -> Result<(), Failure> {
    let progress = Progress { power: &disk.power, working };
    let result = match wipe {
        Wipe::Erase => disk.erase(io, &progress).await,
        Wipe::Overwrite(overwrite) => disk.overwrite(io, overwrite, &progress).await,
    };
    if result.is_err() {
        disk.power.fail();
    }
    result
}

impl Disk<Image> {
    async fn erase(&self, io: &Io, progress: &Progress<'_>) -> Result<(), Failure> {
        let total = self.blocks() << self.block_shift;
        let unmap = self.unmap_if_thin();
        let mut at = 0;
        while at < total {
            let span = Span { at: ByteOffset(at), len: STEP.min(total - at) };
            self.clear(io, span, unmap).await?;
            at += span.len;
            progress.at(0, at, total, 1)?;
        }
        self.flush(io).await?;
        Ok(())
    }

    /// Writes the initiator's pattern as often as it asks, with or without turning it over.
    async fn overwrite(&self, io: &Io, mut list: Overwrite, progress: &Progress<'_>) -> Result<(), Failure> {
        let total = self.blocks() << self.block_shift;
        for pass in 0..list.passes {
            if pass > 0 && list.invert {
                invert(&mut list.pattern);
            }
            let mut at = 0;
            while at < total {
                let part = FromGuest::new(list.pattern.window(0, CHUNK.min(total - at)));
                let len = part.len();
                self.store(io, ByteOffset(at), part, Durability::Cached).await?;
                at += len;
                progress.at(pass, at, total, list.passes)?;
            }
            self.flush(io).await?;
        }
        Ok(())
    }

    fn overwrite_list(&self, len: u64, list: &FromGuest) -> Result<Overwrite, Failure> {
        let mut header = [0; 4];
        if len < 5 || len > 4 + self.block_size() {
            return Err(SenseData::cdb_field(7, Some(7)).into());
        }
        if list.len() < len {
            return Err(SenseData::illegal(PARAMETER_LIST_LENGTH_ERROR).into());
        }
        list.read_at(0, &mut header);
        let (first, pattern_len) = (field(&header, 0, 1), field(&header, 2, 2));
        let passes = first & 0x1f;
        // TEST has vendor specific values only.
        if first & 0x60 != 0 || passes == 0 {
            let (bit, byte) = if passes == 0 { (4, 0) } else { (6, 0) };
            return Err(SenseData::parameter_field(byte, Some(bit)).into());
        }
        if pattern_len == 0 || pattern_len > self.block_size() {
            return Err(SenseData::parameter_field(2, None).into());
        }
        if pattern_len + 4 > len {
            return Err(SenseData::illegal(PARAMETER_LIST_LENGTH_ERROR).into());
        }
        // Each block starts with the pattern, which repeats up to the end of the block.
        let mut copy = vec![0; pattern_len as usize];
        list.read_at(4, &mut copy);
        let block: Vec<u8> = copy.iter().cycle().take(1 << self.block_shift).copied().collect();
        let pattern = self.scratch(CHUNK)?;
        let to = ToGuest::new(pattern.window(0, CHUNK));
        for at in (0..CHUNK).step_by(block.len()) {
            to.write_at(at, &block);
        }
        Ok(Overwrite { passes, invert: first & 0x80 != 0, pattern })
    }
}

fn invert(pattern: &mut SgList) {
    let len = pattern.len();
    let (from, to) = (FromGuest::new(pattern.window(0, len)), ToGuest::new(pattern.window(0, len)));
    let mut part = [0; 512];
    for at in (0..len).step_by(part.len()) {
        from.read_at(at, &mut part);
        part.iter_mut().for_each(|byte| *byte = !*byte);
        to.write_at(at, &part);
    }
}

/// Checks the parameter list of FORMAT UNIT (SBC-4, 5.4.2) and returns its length, and IMMED.
fn check_format_list(cdb: &[u8], list: &FromGuest, usage: u64) -> Result<(u64, bool), SenseData> {
    let options = field(cdb, 1, 1);
    if options & FMTDATA == 0 {
        // The rest of the byte belongs to the list.
        return if options == 0 && usage == 0 {
            Ok((0, false))
        } else {
            Err(SenseData::cdb_field(1, Some(4)))
        };
    }
    let (len, defects_at, defects_len) = if options & LONGLIST == 0 { (4, 2, 2) } else { (8, 4, 4) };
    let mut header = [0; 8];
    let header = header.get_mut(..len).unwrap_or_default();
    if list.read_at(0, header) < len {
        return Err(SenseData::illegal(PARAMETER_LIST_LENGTH_ERROR));
    }
    // The type of protection information that there is, no initialization pattern, no defects to bring along.
    if field(header, 0, 1) & 0x07 != usage {
        return Err(SenseData::parameter_field(0, Some(2)));
    }
    let format = field(header, 1, 1) as u8;
    if format & 0x08 != 0 {
        return Err(SenseData::parameter_field(1, Some(3)));
    }
    // Without FOV there are no DPRY, DCRT and STPF (SBC-4, 5.4.2.2). All of them are as they are here anyway.
    if format & 0x80 == 0 && format & 0x70 != 0 {
        return Err(SenseData::parameter_field(1, Some(7 - (format & 0x70).leading_zeros() as u8)));
    }
    // P_I_INFORMATION and PROTECTION INTERVAL EXPONENT.
    let interval = if options & LONGLIST == 0 { 0 } else { field(header, 3, 1) as u8 };
    if interval != 0 {
        return Err(SenseData::parameter_field(3, Some(7 - interval.leading_zeros() as u8)));
    }
    if field(header, defects_at, defects_len) != 0 {
        return Err(SenseData::parameter_field(defects_at as u16, None));
    }
    Ok((len as u64, format & 0x02 != 0))
}

/// Keeps the medium not ready while work is done on all of it; ready again when dropped.
struct Progress<'a> {
    power: &'a Power,
    working: &'a Working,
}

impl Progress<'_> {
    /// `done` of `total` bytes in pass number `pass` of `passes`. Fails when the work must end here.
    fn at(&self, pass: u64, done: u64, total: u64, passes: u64) -> Result<(), Failure> {
        // PROGRESS INDICATION is a numerator over 65536 (SPC-5, 4.4.2.4.4).
        let (total, passes) = (u128::from(total.max(1)), u128::from(passes.max(1)));
        let part = (u128::from(pass) * total + u128::from(done)) * 65535 / (total * passes);
        self.power.set_progress(part as u16);
        match self.working.must_end() {
            true => Err(SenseData::new(SenseKey::AbortedCommand, NO_ADDITIONAL_SENSE).into()),
            false => Ok(()),
        }
    }
}

impl Drop for Progress<'_> {
    fn drop(&mut self) {
        self.power.end();
    }
}
