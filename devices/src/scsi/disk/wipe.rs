//! What replaces everything on the medium: FORMAT UNIT (SBC-4, 5.4).
//!
//! While one runs the medium is not ready, and sense data tells how far it is.

use super::Disk;
use super::copy::disk;
use super::finishing::Finishing;
use super::power::Power;
use crate::iothread::Io;
use crate::mem::FromGuest;
use crate::scsi::DataBuffers;
use crate::scsi::background::Working;
use crate::scsi::opcode::field;
use crate::scsi::outcome::{Done, Outcome};
use crate::scsi::sense::{Failure, NO_ADDITIONAL_SENSE, PARAMETER_LIST_LENGTH_ERROR, SenseData, SenseKey};
use crate::scsi::unit::Context;
use crate::storage::{ByteOffset, Image, Span};

/// Bytes zeroed in one step: progress is told and an abort heeded in between.
const STEP: u64 = 1 << 30;

/// FMTDATA and LONGLIST in byte 1 of FORMAT UNIT.
const FMTDATA: u64 = 0x10;
const LONGLIST: u64 = 0x20;
/// FORMAT UNIT: all blocks read as zeros afterwards. The block length stays.
pub(super) async fn format_unit(context: Context<'_>, cdb: &[u8], data: DataBuffers, usage: u64) -> Outcome {
    let (received, immediate) = check_format_list(cdb, &data.data_out, usage)?;
    start(context, immediate).await?;
    Ok(Done::received(received))
}

/// Begins the work, and unless the initiator does not want to wait, does it. Resets and aborts do not end it; only
/// taking the unit away does.
async fn start(context: Context<'_>, immediate: bool) -> Result<(), Failure> {
    let unit = context.path.unit.clone();
    disk(&unit)?.power.begin()?;
    let (io, working) = (context.io.clone(), Working::on(unit));
    let work = Box::pin(async move { finish(&io, disk(&working)?, &working).await });
    let lasting = Finishing::new(context.io, work);
    if immediate { Ok(()) } else { lasting.await }
}

async fn finish(io: &Io, disk: &Disk<Image>, working: &Working) -> Result<(), Failure> {
    let progress = Progress { power: &disk.power, working };
    let result = disk.erase(io, &progress).await;
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
            progress.at(at, total)?;
        }
        self.flush(io).await?;
        Ok(())
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
    /// `done` of `total` bytes. Fails when the work must end here.
    fn at(&self, done: u64, total: u64) -> Result<(), Failure> {
        // PROGRESS INDICATION is a numerator over 65536 (SPC-5, 4.4.2.4.4).
        let part = u128::from(done) * 65535 / u128::from(total.max(1));
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
