//! A disk of the host, passed through, whose blocks are read and written by a ring.
//!
//! ```text
//!   Block ── READ, WRITE ──> Image: its block node, with direct I/O, no copy and no thread
//!      └──── all else ─────> Generic: the same node, one ioctl for each command (SG_IO)
//! ```
//! Where the ring has an error, the kernel has kept the device's own words: sense data, status, residual. The same command goes
//! to the device once more then, by SG_IO, and the guest hears what that says. Blocks of a disk are as if it had been sent once:
//! the same data comes to the same place, and until the command has ended nobody may rely on what is there. The kernel has
//! repeated it itself by then, for the same reason. Who must not write any more is refused this time as well: the device looks at
//! its reservations, and answers RESERVATION CONFLICT. Zoned disks are different, where a write moves the place for the next one:
//! what is written there goes by SG_IO alone. A medium that can be exchanged would be another place: such devices have no such unit.
//!
//! What still waits in this process for its turn, when the disk may have become another one or was taken away, does not go to the
//! ring any more: it ends as a command does that comes then.
//!
//! Past the page cache of the host nothing is kept: what the ring has written is at the device, so that a SYNCHRONIZE CACHE that
//! is sent afterwards is about it, whichever way it goes; and nothing is read that the device does not have.

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::disk::{Extent, Image, LOOK};
use super::generic::{Blocks, Generic, GenericError, GenericOptions, HostLimits, for_unit, open_blocks};
use super::outcome::{Done, Outcome};
use super::sense::Failure;
use super::unit::Context;
use super::{Cdb, DataBuffers, Status};
use crate::iothread::Io;
use crate::storage::{BlockBackend, BlockError, BlockErrorKind, Durability, Span};

/// Peripheral device types (SPC-5, 6.7.2): direct access, and host managed zoned block devices.
const DIRECT_ACCESS: u8 = 0x00;
const ZONED: u8 = 0x14;

/// A disk of the host. Its blocks go by a ring, all else by SG_IO.
pub struct Block {
    /// The device, which has the image of its blocks with it: both go and come together.
    generic: Generic,
    /// Beginnings and ends of commands that write, and how many of them the device has said to be stable.
    writes: AtomicU64,
    stable: AtomicU64,
}

/// What goes by the ring.
struct Transfer {
    way: Way,
    span: Span,
    blocks: Blocks,
}

/// What the ring could not do.
struct Failed {
    error: BlockError,
    /// That of the device, see [`Generic::execute_again`].
    number: u64,
}

/// Which way blocks go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Read,
    Write,
}

impl Block {
    /// Opens a disk of the host by its block node, which may take seconds.
    ///
    /// # Errors
    /// As [`Generic::open`]; it is no disk, or the node is none of a block device; it cannot be used with direct I/O, or another
    /// virtual machine has it.
    pub fn open(options: &GenericOptions) -> Result<Self, GenericError> {
        let (generic, path, number) = Generic::open_block(options)?;
        check_type(&generic)?;
        let image = open_blocks(&path, number, options)?;
        Self::new(generic, for_unit(image, options.bounce))
    }

    /// A unit of a device, and of the image that has its blocks: a private one, if data is to go through memory of the process. It is one
    /// that tells the log nothing (see [`Image::quiet`]): what becomes of its errors is known here.
    ///
    /// # Errors
    /// The device is no disk.
    pub fn new(generic: Generic, image: Arc<Image>) -> Result<Self, GenericError> {
        Self::of(generic, Some(image))
    }

    /// The same; without an image all goes by commands until the device is back with one.
    pub(super) fn of(generic: Generic, image: Option<Arc<Image>>) -> Result<Self, GenericError> {
        check_type(&generic)?;
        image.into_iter().for_each(|image| generic.set_blocks(image));
        Ok(Self { generic, writes: AtomicU64::new(0), stable: AtomicU64::new(0) })
    }

    /// What messages call it.
    pub fn name(&self) -> &str {
        self.generic.name()
    }

    /// Peripheral device type (SPC-5, 6.7.2).
    pub fn device_type(&self) -> u8 {
        self.generic.device_type()
    }

    /// What initiators should keep to with one command. The ring takes more; what has FUA, or is sent once more, does not go by it.
    pub fn limits(&self) -> HostLimits {
        self.generic.limits()
    }

    /// The device, for all that is not of its blocks.
    pub(super) fn generic(&self) -> &Generic {
        &self.generic
    }

    pub(super) async fn execute(&self, context: Context<'_>, cdb: &Cdb, data: &mut DataBuffers) -> Outcome {
        let mut failed = None;
        if let Some(Transfer { way, span, blocks }) = self.by_ring(cdb, data)
            && let Some(image) = blocks.image()
        {
            let result = match way {
                Way::Read => image.read(context.io, span.at, data.data_in.window(0, span.len)).await,
                Way::Write => {
                    self.note_write();
                    let from = data.data_out.window(0, span.len);
                    // Never forced: that would be the kernel's idea of the device's cache, and a flush of all of it.
                    let result = image.write(context.io, span.at, from, Durability::Cached).await;
                    self.note_write();
                    result
                }
            };
            match (result, way) {
                (Ok(()), Way::Read) => return Ok(Done::sent(span.len)),
                (Ok(()), Way::Write) => return Ok(Done::received(span.len)),
                (Err(error), _) => failed = Some(Failed { error, number: blocks.number() }),
            }
        }
        // In its own allocation, as the unit `generic` has it: what goes by the ring is not moved about with that.
        Box::pin(self.by_command(context, cdb, data, failed)).await
    }

    /// A command whose blocks go by the ring. It says no more than that, its memory is there, and the kernel counts blocks as the
    /// device does and knows of all of them: a disk that has grown has more.
    fn by_ring(&self, cdb: &Cdb, data: &DataBuffers) -> Option<Transfer> {
        let (way, extent) = plain(cdb)?;
        let offered = match way {
            Way::Read => data.data_in.len(),
            Way::Write => data.data_out.len(),
        };
        let blocks = self.generic.blocks()?;
        let (image, block) = (blocks.image()?, blocks.block());
        let (geometry, unit) = (image.geometry(), image.ending().unit);
        let may = way == Way::Read || (self.writes_by_ring() && !geometry.read_only);
        let plain = data.protection.is_none() && unit.is_power_of_two() && block.map(u64::from) == Some(unit);
        if !may || !plain {
            return None;
        }
        let shift = unit.trailing_zeros();
        let span = extent.span(shift, geometry.len >> shift).ok()?;
        (span.len > 0 && span.len <= offered).then_some(Transfer { way, span, blocks })
    }

    /// A command that writes begins or ends: what a flush that is under way meanwhile has of it, nobody knows.
    fn note_write(&self) {
        self.writes.fetch_add(1, Ordering::AcqRel);
    }

    /// Whether something was written that may be in the device's cache alone.
    fn is_unstable(&self) -> bool {
        self.writes.load(Ordering::Acquire) != self.stable.load(Ordering::Acquire)
    }

    /// Whether the guest may write, and what is written once more comes to the same place.
    fn writes_by_ring(&self) -> bool {
        self.generic.may_write() && self.generic.device_type() != ZONED
    }

    /// Sends a command to the device as it is; once more, where it has `failed` on the ring.
    async fn by_command(
        &self,
        context: Context<'_>,
        cdb: &Cdb,
        data: &mut DataBuffers,
        failed: Option<Failed>,
    ) -> Outcome {
        if let Some(Failed { error, .. }) = &failed
            && error.kind == BlockErrorKind::HostResources
        {
            crate::log_limited!(warn, "{}; the guest hears that the disk is busy", shown(error));
            return Err(Failure::Status(Status::Busy));
        }
        let changes = self.generic.changes(cdb) && !flushes(cdb);
        if changes {
            self.note_write();
        }
        let before = self.writes.load(Ordering::Acquire);
        if let Some(failed) = failed {
            let outcome = self.generic.execute_again(failed.number, context, cdb, data).await;
            if changes {
                self.note_write();
            }
            self.tell(&failed, &outcome);
            return outcome;
        }
        let outcome = self.generic.execute(context, cdb, data).await;
        if changes {
            self.note_write();
        } else if flushes(cdb) && matches!(&outcome, Ok(done) if done.status == Status::Good) {
            self.stable.fetch_max(before, Ordering::AcqRel);
        }
        if asks_capacity(cdb)
            && let Some(blocks) = self.generic.blocks()
            && let Some(image) = blocks.image()
        {
            // The kernel may know of more blocks by now. A host that takes its time is not waited for.
            let _ = context.io.at_most(LOOK, image.refresh(context.io)).await;
        }
        outcome
    }

    /// Says what the ring had of a command, unless it was said already that the device is gone.
    fn tell(&self, Failed { error, .. }: &Failed, outcome: &Outcome) {
        // Somebody else has the disk, or it was not asked, which is no fault.
        let is_fault = !matches!(error.kind, BlockErrorKind::ReservationConflict | BlockErrorKind::Withheld);
        if self.generic.is_gone() || !is_fault {
            return;
        }
        let end = match outcome {
            Ok(_) => "sent once more as a SCSI command it ended well",
            Err(_) => "the guest hears what the device said when it was sent once more",
        };
        crate::log_limited!(warn, "{}; {end}", shown(error));
    }

    /// The unit goes. What the guest has written may be in the device's cache. That is for the guest to flush, and most do; one that
    /// was ended in the middle of its work has not, and next the disk may be taken out or switched off. So the device is told once
    /// more. Of disks that were only read, or were flushed last, nothing is asked.
    pub(super) async fn close(&self, io: &Io) -> Result<(), BlockError> {
        let unflushed = self.is_unstable() && self.generic.may_write();
        let flushed = if unflushed { self.generic.flush(io).await } else { Ok(()) };
        self.generic.close(io).await;
        flushed
    }
}

/// READ and WRITE (6, 10, 12, 16) (SBC-4, 5.13 and on) that ask for nothing but blocks. DPO, FUA, RDPROTECT and WRPROTECT, the group
/// number, duration limits, CONTROL, and bits that are reserved, or were once: only the device knows what they mean.
fn plain(cdb: &Cdb) -> Option<(Way, Extent)> {
    let bytes = cdb.padded();
    let (way, len) = match cdb.opcode() {
        0x08 => (Way::Read, 6),
        0x0a => (Way::Write, 6),
        0x28 => (Way::Read, 10),
        0x2a => (Way::Write, 10),
        0xa8 => (Way::Read, 12),
        0xaa => (Way::Write, 12),
        0x88 => (Way::Read, 16),
        0x8a => (Way::Write, 16),
        _ => return None,
    };
    let more = match len {
        // LOGICAL BLOCK ADDRESS has the lower five bits of byte 1.
        6 => bytes[1] & 0xe0 | bytes[5],
        10 => bytes[1] | bytes[6] | bytes[9],
        12 => bytes[1] | bytes[10] | bytes[11],
        _ => bytes[1] | bytes[14] | bytes[15],
    };
    (more == 0).then(|| (way, Extent::of(bytes, len)))
}

/// SYNCHRONIZE CACHE (10, 16) of all blocks (SBC-4, 5.26 and 5.27) that ends when they are stable.
fn flushes(cdb: &Cdb) -> bool {
    const IMMED: u8 = 0x02;
    let bytes = cdb.padded();
    // LOGICAL BLOCK ADDRESS and NUMBER OF LOGICAL BLOCKS: from zero, all.
    let (from, count) = match cdb.opcode() {
        0x35 => (bytes.get(2..6), bytes.get(7..9)),
        0x91 => (bytes.get(2..10), bytes.get(10..14)),
        _ => return false,
    };
    let zero = |part: Option<&[u8]>| part.is_some_and(|part| part.iter().all(|byte| *byte == 0));
    bytes[1] & IMMED == 0 && zero(from) && zero(count)
}

/// READ CAPACITY (10, 16).
fn asks_capacity(cdb: &Cdb) -> bool {
    matches!((cdb.opcode(), cdb.padded()[1] & 0x1f), (0x25, _) | (0x9e, 0x10))
}

/// Disks whose medium stays. Of one that was exchanged the device tells once, and perhaps it tells the kernel: what is sent once more
/// would be written on the other one.
fn check_type(generic: &Generic) -> Result<(), GenericError> {
    let what = match generic.device_type() {
        DIRECT_ACCESS | ZONED if !generic.is_removable() => return Ok(()),
        DIRECT_ACCESS | ZONED => "a device whose medium can be exchanged".into(),
        other => format!("a device of type {other:02x}h"),
    };
    Err(GenericError::NoBlock { path: generic.name().to_owned(), what, other: String::new() })
}

/// A message with its cause.
fn shown(error: &BlockError) -> String {
    let cause = error.source.as_ref().map(|cause| format!(": {cause}")).unwrap_or_default();
    format!("{error}{cause}")
}

impl std::fmt::Debug for Block {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Block({:?})", self.name())
    }
}
