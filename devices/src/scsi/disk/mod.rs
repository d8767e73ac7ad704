//! A direct access block device (SBC-4): the device server of a disk.

mod capacity;
mod commands;
mod config;
mod copy;
mod crc;
mod finishing;
mod inquiry;
mod log;
mod mode;
mod mode_select;
mod power;
mod protection;
mod provision;
mod transfer;
mod turns;
mod update;
mod verify;
mod vpd;
mod wipe;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

pub use crate::storage::Image;
pub use config::{DiskConfig, DiskError, ProtectionType};
pub(super) use copy::is_extended_copy;
#[cfg(test)]
pub(super) use protection::FINISH;
pub(super) use transfer::Extent;
pub(super) use update::runs_alone;

use self::commands::{COMMANDS, Id, STARTS};
use self::mode::ModeParameters;
use self::power::Power;
use self::protection::Protection;
use self::turns::{Turn, Turns};
use super::attention::Attention;
use super::memory::{Claim, Scratch, Share};
use super::opcode::{Command, Properties, decode, field};
use super::outcome::{Done, Outcome, granted};
use super::sense::{Failure, SOFTWARE_WRITE_PROTECTED, SenseData, SenseKey, WRITE_PROTECTED};
use super::tasks::NexusId;
use super::unit::{Context, Path};
use super::{Cdb, DataBuffers, Status, absent, reservation, supported};
use crate::iothread::Io;
use crate::mem::{FromGuest, ToGuest};
use crate::storage::{BlockBackend, BlockError, BlockErrorKind, ByteOffset, Durability, Span, Unmap};

/// There is no memory for a command now.
const BUSY: Failure = Failure::Status(Status::Busy);

/// How long an initiator that asks for the capacity waits for the host to look.
pub(super) const LOOK: Duration = Duration::from_millis(200);

/// A disk over an image.
pub struct Disk<B> {
    image: Arc<B>,
    config: DiskConfig,
    /// Log2 of the logical block length.
    block_shift: u32,
    /// Number of logical blocks that the initiators were last told of.
    known_blocks: AtomicU64,
    mode: ModeParameters,
    power: Power,
    copies: copy::Copies,
    protection: Option<Protection<B>>,
    /// Commands that nothing may come between, alone, and copies that other units were asked for.
    turns: Arc<Turns>,
    /// What commands hold of the host's memory.
    pub(super) memory: Share,
}

impl<B: BlockBackend> Disk<B> {
    /// A disk that shows `image` as `config` says.
    pub fn new(image: Arc<B>, config: DiskConfig) -> Result<Self, DiskError> {
        config.check()?;
        let disk = Self {
            block_shift: config.block_size.trailing_zeros(),
            known_blocks: AtomicU64::new(0),
            mode: ModeParameters::new(config.write_cache, config.cache_is_fixed),
            power: Power::default(),
            copies: copy::Copies::default(),
            protection: None,
            turns: Arc::default(),
            memory: Share::default(),
            image,
            config,
        };
        let blocks = disk.blocks();
        if blocks == 0 {
            return Err(DiskError::Empty);
        }
        disk.known_blocks.store(blocks, Ordering::Relaxed);
        Ok(disk)
    }

    /// A disk with protection information, which is in `store`: eight bytes for each logical block.
    pub fn with_protection(
        image: Arc<B>,
        config: DiskConfig,
        kind: ProtectionType,
        store: Arc<B>,
    ) -> Result<Self, DiskError> {
        Self::with_protection_at(image, config, kind, store, 0)
    }

    /// As [`Disk::with_protection`], with something else in the first bytes of `store`, so many.
    pub fn with_protection_at(
        image: Arc<B>,
        config: DiskConfig,
        kind: ProtectionType,
        store: Arc<B>,
        first: u64,
    ) -> Result<Self, DiskError> {
        let mut disk = Self::new(image, config)?;
        let protection = Protection::new(kind, store, first);
        if protection.blocks() < disk.blocks() {
            return Err(DiskError::ProtectionStore);
        }
        disk.protection = Some(protection);
        Ok(disk)
    }

    /// The image below.
    pub fn image(&self) -> &Arc<B> {
        &self.image
    }

    pub(super) async fn execute(&self, context: Context<'_>, cdb: &Cdb, data: &mut DataBuffers) -> Outcome {
        let (protect, cdb) = &self.split_protect(cdb);
        let command = decode(COMMANDS, &STARTS, |command| self.supports(command), cdb)?;
        let (io, bytes) = (context.io, cdb.padded().as_slice());
        self.reserved(context.path, command, bytes)?;
        self.usable(command.properties)?;
        match command.id {
            Id::Read => self.read(io, bytes, command.usage.len(), *protect, data).await,
            Id::Write => self.write(io, bytes, command.usage.len(), *protect, data).await,
            Id::SynchronizeCache => self.synchronize_cache(io, bytes, command.usage.len()).await,
            id if id.takes_long() => {
                Box::pin(self.execute_long(context, command, bytes, data.take(), *protect)).await
            }
            _ => self.inform(context, command, bytes, data),
        }
    }

    /// The commands that are seldom, or take so long that an allocation more does not show: their futures are large, and
    /// those of the others shall not be moved about with room for them.
    async fn execute_long(
        &self,
        context: Context<'_>,
        command: &Command<Id>,
        bytes: &[u8],
        data: DataBuffers,
        protect: u8,
    ) -> Outcome {
        let (io, len) = (context.io, command.usage.len());
        match command.id {
            Id::WriteAndVerify => self.write_and_verify(io, bytes, len, data).await,
            Id::Verify => self.verify(io, bytes, len, data).await,
            Id::CompareAndWrite => self.compare_and_write(io, bytes, data).await,
            Id::OrWrite => self.or_write(io, bytes, data).await,
            Id::FormatUnit => wipe::format_unit(context, bytes, data, self.check_format(protect)?).await,
            Id::WriteAtomic => self.write_atomic(io, bytes, data).await,
            Id::ExtendedCopy => copy::extended_copy(context, bytes, data).await,
            Id::PopulateToken => copy::populate_token(context, bytes, data).await,
            Id::WriteUsingToken => copy::write_using_token(context, bytes, data).await,
            Id::ReadCapacity10 | Id::ReadCapacity16 => {
                self.look_again(context).await;
                self.inform(context, command, bytes, &data)
            }
            Id::GetLbaStatus => self.get_lba_status(io, bytes, &data).await,
            Id::WriteSame => self.write_same(io, bytes, len, data).await,
            Id::Unmap => self.unmap(io, bytes, data).await,
            Id::StartStopUnit => self.start_stop(context, bytes).await,
            Id::PersistentReserveOut => reservation::persistent_reserve_out(context, bytes, data).await,
            Id::ModeSelect => self.mode_select(context, bytes, data).await,
            _ => self.inform(context, command, bytes, &data),
        }
    }

    /// The commands that need no I/O.
    fn inform(&self, context: Context<'_>, command: &Command<Id>, cdb: &[u8], data: &DataBuffers) -> Outcome {
        let path = context.path;
        match command.id {
            Id::TestUnitReady => self.power.check().map(|()| Done::good()),
            Id::RequestSense => Ok(self.request_sense(context, cdb, data)),
            Id::Inquiry => self.inquiry(cdb, data),
            Id::ModeSense => self.mode_sense(cdb, data),
            Id::LogSense => self.log_sense(cdb, data),
            Id::ReadCapacity10 => self.read_capacity_10(cdb, data),
            Id::ReadCapacity16 => self.read_capacity_16(cdb, data),
            Id::ReceiveCopyResults => copy::receive(context, cdb, data),
            Id::PreFetch => self.pre_fetch(cdb, command.usage.len()),
            Id::ReadDefectData => self.read_defect_data(cdb, data),
            Id::SendDiagnostic => self.send_diagnostic(cdb),
            Id::PreventAllow => self.power.prevent(path.nexus, cdb),
            Id::Reserve => granted(path.unit.reservations.reserve(path.nexus)),
            Id::Release => granted(path.unit.reservations.release(path.nexus)),
            Id::PersistentReserveIn => reservation::persistent_reserve_in(context, cdb, data),
            Id::ReportLuns => absent::report_luns(context.nexus, cdb, data),
            Id::SupportedOperationCodes => {
                let more = |command: &Command<Id>| self.protect_bits(command.opcode());
                supported::operation_codes(COMMANDS, |command| self.supports(command), more, cdb, data)
            }
            Id::SupportedTaskManagement => supported::task_management(cdb, data),
            Id::Read
            | Id::Write
            | Id::WriteAndVerify
            | Id::Verify
            | Id::SynchronizeCache
            | Id::FormatUnit
            | Id::WriteAtomic
            | Id::ExtendedCopy
            | Id::PopulateToken
            | Id::WriteUsingToken
            | Id::GetLbaStatus
            | Id::CompareAndWrite
            | Id::OrWrite
            | Id::WriteSame
            | Id::Unmap
            | Id::StartStopUnit
            | Id::PersistentReserveOut
            | Id::ModeSelect => Ok(Done::good()),
        }
    }

    fn supports(&self, command: &Command<Id>) -> bool {
        let thin = !command.properties.has(Properties::THIN) || self.is_thin();
        thin && (command.id != Id::WriteAtomic || self.atomic_blocks() > 0)
    }

    /// RESERVATION CONFLICT if reservations of others stand against a command.
    fn reserved(&self, path: &Path, command: &Command<Id>, cdb: &[u8]) -> Result<(), Failure> {
        let properties = command.id.properties(command.properties, cdb);
        path.unit.admits(path.nexus, properties.access(), properties.has(Properties::SHARED))
    }

    /// As [`Disk::reserved`], for a CDB that nobody has looked at.
    pub(super) fn check_reservations(&self, path: &Path, cdb: &Cdb) -> Result<(), Failure> {
        let (_, cdb) = &self.split_protect(cdb);
        match decode(COMMANDS, &STARTS, |command| self.supports(command), cdb) {
            Ok(command) => self.reserved(path, command, cdb.padded()),
            Err(_) => Ok(()),
        }
    }

    /// Whether the medium is there for a command with these properties.
    fn usable(&self, properties: Properties) -> Result<(), Failure> {
        if properties.has(Properties::MEDIUM) {
            self.power.check()?;
        }
        if properties.has(Properties::WRITE) {
            let protected = |code| Err(SenseData::new(SenseKey::DataProtect, code).into());
            if self.is_read_only() {
                return protected(WRITE_PROTECTED);
            }
            if self.mode.software_write_protected() {
                return protected(SOFTWARE_WRITE_PROTECTED);
            }
        }
        Ok(())
    }

    /// REQUEST SENSE: a pending unit attention, else why the medium is not ready, else nothing.
    fn request_sense(&self, context: Context<'_>, cdb: &[u8], data: &DataBuffers) -> Done {
        let sense = match (context.nexus.take_attention(context.path), self.power.check()) {
            (Some(attention), _) => attention.sense(),
            (None, Err(Failure::Check(sense))) => sense,
            _ => SenseData::new(SenseKey::NoSense, super::sense::NO_ADDITIONAL_SENSE),
        };
        absent::request_sense(cdb, sense, data)
    }

    /// SEND DIAGNOSTIC (SPC-5, 6.42): of self-tests the default one, which has nothing to test but that the medium is
    /// there. There are no diagnostic pages, so PF says nothing.
    fn send_diagnostic(&self, cdb: &[u8]) -> Outcome {
        const SELFTEST: u64 = 0x04;
        if field(cdb, 1, 1) & SELFTEST != 0 {
            self.power.check()?;
        }
        Ok(Done::good())
    }

    /// Logical block length in bytes.
    fn block_size(&self) -> u64 {
        1 << self.block_shift
    }

    /// Number of logical blocks; a last part of a block is not one, and what has no room for its protection information is
    /// none either.
    fn blocks(&self) -> u64 {
        let blocks = self.image.geometry().len >> self.block_shift;
        match &self.protection {
            Some(protection) => blocks.min(protection.blocks()),
            None => blocks,
        }
    }

    fn is_read_only(&self) -> bool {
        self.config.read_only || self.image.geometry().read_only
    }

    /// Whether space can be given back.
    fn is_thin(&self) -> bool {
        self.config.discard && self.image.geometry().discard_granularity != 0
    }

    /// As far as unmapping is allowed at all, it is.
    fn unmap_if_thin(&self) -> Unmap {
        if self.is_thin() { Unmap::Allowed } else { Unmap::Keep }
    }

    /// Writes to the image. Tokens that stand for what was there end, before it changes and for what comes meanwhile.
    async fn store(
        &self,
        io: &Io,
        at: ByteOffset,
        from: FromGuest,
        durability: Durability,
    ) -> Result<(), Failure> {
        let len = from.len();
        self.copies.changed(at.0, len);
        let result = self.put_blocks(io, at, from, durability).await;
        self.copies.changed(at.0, len);
        result
    }

    /// Writes to the image what came without protection information; for those who tell the tokens themselves.
    async fn put_blocks(
        &self,
        io: &Io,
        at: ByteOffset,
        from: FromGuest,
        durability: Durability,
    ) -> Result<(), Failure> {
        match &self.protection {
            None => self.image.write(io, at, from, durability).await.map_err(Failure::from),
            Some(protection) => {
                // Rare enough to be kept apart: the futures of plain disks stay small.
                Box::pin(self.store_generated(io, at, from, durability, protection)).await
            }
        }
    }

    /// Reads whole blocks for a command that goes on with them: compared, merged, copied. With protection information
    /// they are checked as READ checks them.
    async fn fetch(&self, io: &Io, at: ByteOffset, into: ToGuest) -> Result<(), Failure> {
        match &self.protection {
            None => self.image.read(io, at, into).await.map_err(Failure::from),
            Some(protection) => Box::pin(self.fetch_checked(io, at, into, protection)).await,
        }
    }

    /// Zeroes a part of the image; see [`Disk::store`].
    async fn clear(&self, io: &Io, span: Span, unmap: Unmap) -> Result<(), BlockError> {
        self.copies.changed(span.at.0, span.len);
        let result = match &self.protection {
            None => self.image.zero(io, span, unmap).await,
            Some(protection) => Box::pin(self.clear_protected(io, span, unmap, protection)).await,
        };
        self.copies.changed(span.at.0, span.len);
        result
    }

    /// Makes everything written so far stable.
    async fn flush(&self, io: &Io) -> Result<(), BlockError> {
        self.image.flush(io).await?;
        match &self.protection {
            Some(protection) => protection.store.flush(io).await,
            None => Ok(()),
        }
    }

    /// Whether a flush would make anything stable.
    fn is_unflushed(&self) -> bool {
        let store = self.protection.as_ref().map(|protection| &protection.store);
        self.image.is_unflushed() || store.is_some_and(|store| store.is_unflushed())
    }

    /// Makes the image whole: nothing more will be asked of it.
    pub(super) async fn close(&self, io: &Io) -> Result<(), BlockError> {
        let Some(protection) = &self.protection else { return self.image.close(io).await };
        // What commands that were ended had begun goes on for a moment.
        let _turn = protection.turns.alone().await;
        let closed = self.image.close(io).await;
        closed.and(protection.store.close(io).await)
    }

    /// Waits until nothing of what ended commands had begun, and what goes on without them, is under way.
    async fn settled(&self) -> Option<Turn> {
        match &self.protection {
            Some(protection) => Some(protection.turns.shared().await),
            None => None,
        }
    }

    /// A host buffer for data that no initiator sees: of `len` bytes, or as many as there are, at least a block. BUSY if there
    /// are none.
    fn scratch(&self, len: u64) -> Result<Scratch, Failure> {
        let (len, claim) = self.memory.take(len, |_| 0, None).ok_or(BUSY)?;
        self.buffer(len, claim)
    }

    /// A host buffer of `len` bytes, for which `claim` was taken.
    fn buffer(&self, len: u64, claim: Claim) -> Result<Scratch, Failure> {
        let align = self.image.geometry().dma_align.next_power_of_two().max(512);
        Scratch::new(len, align as usize, claim).ok_or_else(|| {
            let error = BlockError {
                kind: BlockErrorKind::HostResources,
                context: "allocating a buffer".into(),
                source: None,
            };
            error.into()
        })
    }

    #[cfg(test)]
    pub(super) fn copies_writing(&self) -> usize {
        self.copies.writing()
    }

    pub(super) fn mode(&self) -> &ModeParameters {
        &self.mode
    }

    /// An initiator asks for the capacity: perhaps the host has changed it. The others are told.
    async fn look_again(&self, context: Context<'_>) {
        // A host that takes its time is not waited for: a new size is seen when it is there.
        let _ = context.io.at_most(LOOK, self.image.refresh(context.io)).await;
        if self.take_capacity_change() {
            context.path.unit.raise(Attention::CapacityChanged, Some(context.path.nexus));
        }
    }

    pub(super) fn take_capacity_change(&self) -> bool {
        let blocks = self.blocks();
        self.known_blocks.load(Ordering::Relaxed) != blocks
            && self.known_blocks.swap(blocks, Ordering::AcqRel) != blocks
    }

    pub(super) fn reset(&self, power: bool) {
        self.mode.reset();
        self.power.reset(power);
        self.copies.reset();
    }

    pub(super) fn forget(&self, nexus: NexusId) {
        self.power.forget(nexus);
        self.copies.forget(nexus);
    }
}

impl Disk<Image> {
    /// The unit goes: nothing waits for space on the host any more.
    pub(super) fn stop_waiting(&self) {
        self.image.stop_waiting();
        if let Some(protection) = &self.protection {
            protection.store.stop_waiting();
        }
    }

    /// Whether the medium could not be made stable: then it cannot be again before its files are opened anew.
    pub(super) fn has_failed(&self) -> bool {
        let store = self.protection.as_ref().map(|protection| &protection.store);
        self.image.has_failed() || store.is_some_and(|store| store.has_failed())
    }
}
