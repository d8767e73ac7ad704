//! One command on its way to the device: with memory of the guest where the kernel takes it as it is, else through memory of the
//! process, else in pieces.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::comeback::Link;
use super::host::{Command, Direction};
use super::inquiry::{self, LONGEST, Look, WHOLE_LEN};
use super::room::Part;
use super::split::Blocks;
use super::status::{Verdict, refused, verdict};
use super::table::Class;
use super::{BUSY, COPIED_MAX, Generic, filter, timeouts};
use crate::iothread::{Io, Touches};
use crate::mem::{FromGuest, SgList, ToGuest};
use crate::scsi::memory::Scratch;
use crate::scsi::sense::{Failure, INVALID_FIELD_IN_CDB, LBA_OUT_OF_RANGE, SenseData};
use crate::scsi::{Cdb, Status};

/// What memory of the process is aligned to: no queue wants more.
const ALIGN: usize = 4096;
/// Bytes of a logical block that a device may have.
const BLOCK_MAX: u32 = 64 << 10;
/// What page B0h is written for where nobody knows.
pub(super) const BLOCK: u32 = 512;

impl Generic {
    /// Carries out a command with `data`, all of which goes one way. How it ended, and how many bytes were moved.
    pub(super) async fn transfer(
        &self,
        io: &Io,
        link: &Arc<Link>,
        cdb: Cdb,
        direction: Direction,
        data: SgList,
    ) -> Result<(Verdict, u64), Failure> {
        if data.len() <= link.most() || (!self.bounce && link.limits.admit(&data)) {
            let verdict = self.go(io, link, cdb, direction, data).await?;
            let moved = verdict.moved();
            return Ok((verdict, moved));
        }
        let Some(blocks) = Blocks::of(self.kind, &cdb) else {
            return Err(self.too_long(link, &cdb, data.len()));
        };
        let block = match link.block() {
            Some(block) => block,
            // Initiators ask before they read and write; what the device says otherwise is its word to this command.
            None => match self.ask_block(io, link).await? {
                Ok(block) => block,
                Err(verdict) => return Ok((verdict, 0)),
            },
        };
        self.pieces(io, link, blocks, u64::from(block), direction, data).await
    }

    /// A command in pieces. The first that does not end well is the last.
    async fn pieces(
        &self,
        io: &Io,
        link: &Arc<Link>,
        blocks: Blocks,
        block: u64,
        direction: Direction,
        mut data: SgList,
    ) -> Result<(Verdict, u64), Failure> {
        let (each, count) = (link.most() / block, blocks.count());
        let len = count.saturating_mul(block);
        // Less memory than the command is about, or other data than its blocks (raw sectors of CDs): what would come where is not
        // known.
        if each == 0 || len > data.len() || (direction == Direction::Out && len < data.len()) {
            return Err(self.too_long(link, blocks.cdb(), data.len()));
        }
        data.truncate(len);
        if count <= each {
            let verdict = self.go(io, link, *blocks.cdb(), direction, data).await?;
            let moved = verdict.moved();
            return Ok((verdict, moved));
        }
        let (mut first, mut moved) = (0, 0);
        loop {
            let part = each.min(count - first);
            let cdb = blocks.part(self.kind, first, part).ok_or(SenseData::illegal(LBA_OUT_OF_RANGE))?;
            let verdict = self.go(io, link, cdb, direction, data.window(first * block, part * block)).await?;
            moved += verdict.moved();
            first += part;
            if first >= count || !verdict.is_good() || verdict.moved() < part * block {
                return Ok((verdict, moved));
            }
        }
    }

    fn too_long(&self, link: &Link, cdb: &Cdb, len: u64) -> Failure {
        crate::log_limited!(
            warn,
            "\"{}\": command {:02x}h of the guest with {len} bytes is refused: the host takes {} with one command; have the \
             guest send less at a time",
            self.name,
            cdb.opcode(),
            link.most()
        );
        SenseData::illegal(INVALID_FIELD_IN_CDB).into()
    }

    /// One command as it is, through memory of the process where the kernel would not take the guest's.
    async fn go(
        &self,
        io: &Io,
        link: &Arc<Link>,
        cdb: Cdb,
        direction: Direction,
        data: SgList,
    ) -> Result<Verdict, Failure> {
        if data.is_empty() || (!self.bounce && link.limits.admit(&data)) {
            return Ok(self.send(io, link, cdb, direction, data, None).await);
        }
        let part = self.room.take(data.len()).await;
        let scratch = self.scratch(data.len())?;
        if direction == Direction::Out {
            io.copy(&data, &ToGuest::new(scratch.window(0, u64::MAX))).await;
        }
        let verdict = self.send(io, link, cdb, direction, scratch.window(0, u64::MAX), Some(part)).await;
        if direction == Direction::In {
            io.copy(&scratch.window(0, verdict.moved()), &ToGuest::new(data)).await;
        }
        Ok(verdict)
    }

    /// Hands one command to a helper thread, with memory that the kernel takes. It is sent once: nothing here repeats it.
    /// `part` is of the room for its data, until the device has let go of that.
    async fn send(
        &self,
        io: &Io,
        link: &Arc<Link>,
        cdb: Cdb,
        direction: Direction,
        data: SgList,
        part: Option<Part>,
    ) -> Verdict {
        let command = Command { cdb, direction, data, timeout: timeouts::of(self.kind, &cdb) };
        self.hand_over(io, link, command, part).await
    }

    /// The same for a command that is made.
    pub(super) async fn hand_over(
        &self,
        io: &Io,
        link: &Arc<Link>,
        command: Command,
        part: Option<Part>,
    ) -> Verdict {
        let (cdb, direction, asked) = (command.cdb, command.direction, command.data.len());
        let changes = filter::class(self.kind, &cdb) != Class::Read || self.kind.is_sequential();
        let touches = Touches::of(&command.data, changes);
        let sent = link.clone();
        // In this order: work that has not begun is over before it is given up.
        let (_wait, at_work) = self.orphans.hand_over();
        let work = move || {
            let (_part, _at_work) = (part, at_work);
            sent.host.execute(&command)
        };
        match io.blocking_for(&self.commands, touches, work).await.and_then(|answer| answer) {
            Ok(answer) => {
                if link.answers_again() {
                    tracing::info!("\"{}\": the device is back", self.name);
                }
                let verdict = verdict(&answer, direction, asked, self.kind.is_sequential());
                if verdict.is_good() {
                    self.held.note(&cdb);
                }
                verdict
            }
            Err(e) => {
                self.tell(link, &cdb, &e);
                refused(&e)
            }
        }
    }

    /// Says why the kernel has not sent a command.
    fn tell(&self, link: &Link, cdb: &Cdb, error: &std::io::Error) {
        let (name, opcode) = (&self.name, cdb.opcode());
        match error.raw_os_error() {
            Some(libc::ENODEV) => {
                if link.lost() {
                    let then = match self.plug.is_watched() {
                        true => "bring it back: the unit goes on with it, wherever it is then",
                        false => "bring it back, or attach it again if it came back by another name",
                    };
                    tracing::error!(
                        "\"{name}\": the device is gone from the host, or offline there (sysfs, state); {then}"
                    );
                }
            }
            Some(libc::EPERM | libc::EACCES) => crate::log_limited!(
                warn,
                "\"{name}\": the host's kernel lets this process not send command {opcode:02x}h; it takes the device's node of sg, \
                 which this process may read and write, or CAP_SYS_RAWIO"
            ),
            Some(libc::EINTR) => crate::log_limited!(
                error,
                "\"{name}\": this process was stopped or frozen while command {opcode:02x}h was at the device, and how it ended is not \
                 known; let no one do that while the device is in use"
            ),
            _ => crate::log_limited!(
                warn,
                "\"{name}\": the host's kernel has not sent command {opcode:02x}h: {error}"
            ),
        }
    }

    /// Memory of the process for so many bytes.
    fn scratch(&self, len: u64) -> Result<Scratch, Failure> {
        let claim = self.memory.take_whole(len).ok_or(BUSY)?;
        Scratch::new(len, ALIGN, claim).ok_or(BUSY)
    }

    /// A command whose answer is looked at before the guest has it.
    pub(super) async fn examine(
        &self,
        io: &Io,
        link: &Arc<Link>,
        cdb: Cdb,
        data: SgList,
        look: Look,
    ) -> Result<(Verdict, u64), Failure> {
        let data = ToGuest::new(data);
        let give = |bytes: &[u8]| data.write_at(0, bytes) as u64;
        if look == Look::MakeBlockLimits {
            let page = inquiry::made(self.peripheral, &link.limits, link.block().unwrap_or(BLOCK));
            let moved = give(page.get(..inquiry::wanted(&cdb)).unwrap_or(&page));
            return Ok((Verdict::Device { status: Status::Good, sense: None, moved }, moved));
        }
        let (sent, room) = match look {
            Look::Pages => (inquiry::whole(&cdb), WHOLE_LEN),
            _ => (cdb, data.len().min(LONGEST).min(link.most())),
        };
        let scratch = self.scratch(room)?;
        let verdict = self.send(io, link, sent, Direction::In, scratch.window(0, u64::MAX), None).await;
        let mut bytes = vec![0; verdict.moved() as usize];
        FromGuest::new(scratch.window(0, u64::MAX)).read_at(0, &mut bytes);
        if verdict.is_good() {
            link.edit(&mut bytes, look);
        }
        if look == Look::Pages {
            bytes.truncate(inquiry::wanted(&cdb));
        }
        let moved = give(&bytes);
        Ok((verdict, moved))
    }

    /// READ CAPACITY(10) in the place of the initiator's command, which waits for the length of a block.
    async fn ask_block(&self, io: &Io, link: &Arc<Link>) -> Result<Result<u32, Verdict>, Failure> {
        let scratch = self.scratch(8)?;
        let cdb = Cdb::new(&[0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        let verdict = self.send(io, link, cdb, Direction::In, scratch.window(0, u64::MAX), None).await;
        if !verdict.is_good() {
            return Ok(Err(verdict));
        }
        let mut bytes = [0; 8];
        FromGuest::new(scratch.window(0, verdict.moved())).read_at(0, &mut bytes);
        // To guess would be to write elsewhere.
        let block = link.note_block(&bytes, 4).ok_or(SenseData::illegal(INVALID_FIELD_IN_CDB))?;
        Ok(Ok(block))
    }
}

impl Link {
    /// Bytes of a command that can always be sent, if need be through memory of the process.
    fn most(&self) -> u64 {
        self.limits.transfer().min(COPIED_MAX)
    }

    /// Bytes of a logical block, for what is said in blocks.
    pub(super) fn block(&self) -> Option<u32> {
        Some(self.block.load(Ordering::Relaxed)).filter(|block| *block > 0)
    }

    fn edit(&self, bytes: &mut Vec<u8>, look: Look) {
        match look {
            Look::BlockLimits => inquiry::lower(bytes, &self.limits, self.block().unwrap_or(BLOCK)),
            Look::Pages => inquiry::add_page(bytes),
            Look::BlockLength(at) => drop(self.note_block(bytes, at)),
            Look::WriteProtected(at) => {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte |= 0x80;
                }
            }
            Look::Not | Look::MakeBlockLimits => {}
        }
    }

    fn note_block(&self, bytes: &[u8], at: usize) -> Option<u32> {
        let block = u32::from_be_bytes(*bytes.get(at..)?.first_chunk::<4>()?);
        let block = Some(block).filter(|block| (1..=BLOCK_MAX).contains(block))?;
        self.block.store(block, Ordering::Relaxed);
        Some(block)
    }
}
