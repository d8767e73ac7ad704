//! One command on its way to the device: with memory of the guest where the kernel takes it as it is, else through memory of the
//! process, else in pieces.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};
use std::{io, mem};

use super::host::{Command, Direction};
use super::inquiry::{self, LONGEST, Look, WHOLE_LEN};
use super::link::Link;
use super::room::Part;
use super::split::Blocks;
use super::status::{self, Verdict, refused, verdict};
use super::table::Class;
use super::{BUSY, COPIED_MAX, Generic, filter};
use crate::iothread::{Doing, Io, Touches, Work};
use crate::mem::{FromGuest, SgList, ToGuest};
use crate::scsi::memory::Scratch;
use crate::scsi::sense::{Failure, INVALID_FIELD_IN_CDB, LBA_OUT_OF_RANGE, SenseData};
use crate::scsi::unit::Path;
use crate::scsi::{Cdb, Status, absent};
use crate::storage::PIECE;

/// What memory of the process is aligned to: no queue wants more.
pub(super) const ALIGN: usize = 4096;
/// Bytes of a logical block that a device may have.
const BLOCK_MAX: u32 = 64 << 10;
/// What page B0h is written for where nobody knows.
pub(super) const BLOCK: u32 = 512;

/// How a command ended that was sent as it is, and how many bytes were moved.
pub(super) fn whole(verdict: Verdict) -> (Verdict, u64) {
    let moved = verdict.moved();
    (verdict, moved)
}

/// A command on its way through a helper thread.
pub(super) struct Order {
    link: Arc<Link>,
    command: Command,
    sequential: bool,
    /// It has not been kept back.
    sent: bool,
    /// Of the room for its data, until the device has let go of that.
    _part: Option<Part>,
}

impl Work for Order {
    type Result = io::Result<Verdict>;

    fn run(&mut self) -> io::Result<Verdict> {
        let Self { link, command, sequential, sent, .. } = self;
        // Whatever it has waited for: by now it may be for another device.
        if let Some(verdict) = link.keeps_back() {
            return Ok(verdict);
        }
        *sent = true;
        let answer = link.host.execute(command)?;
        Ok(verdict(&answer, command.direction, command.data.len(), *sequential))
    }
}

/// Empties memory that was used before: some adapters of hosts do not say how much they have brought, and the rest of an answer is to be as
/// on the host, and no other command's data.
fn blank(data: &ToGuest) {
    const ZEROS: [u8; 4096] = [0; 4096];
    let mut at = 0;
    while at < data.len() {
        at += (data.write_at(at, &ZEROS) as u64).max(1);
    }
}

/// A command that was handed over: the future of its end, with little in it.
pub(super) struct Sent<'a> {
    unit: &'a Generic,
    link: &'a Link,
    opcode: u8,
    doing: Doing<'a, Order>,
}

impl Future for Sent<'_> {
    type Output = Verdict;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Verdict> {
        let result = ready!(Pin::new(&mut self.doing).poll(cx));
        Poll::Ready(self.unit.ended(self.link, self.opcode, result))
    }
}

impl Generic {
    /// Whether the kernel takes the memory of a command as it is.
    pub(super) fn goes_as_it_is(&self, link: &Link, data: &SgList) -> bool {
        data.is_empty() || (!self.bounce && link.limits.admit(data))
    }

    /// Carries out a command, all data of which goes one way. How it ended, and how many bytes were moved.
    pub(super) async fn transfer(
        &self,
        io: &Io,
        link: &Arc<Link>,
        command: Command,
    ) -> Result<(Verdict, u64), Failure> {
        if self.goes_as_it_is(link, &command.data) || command.data.len() <= link.most() {
            return Ok(whole(self.go(io, link, command).await?));
        }
        let Some(blocks) = Blocks::of(self.kind, &command.cdb) else {
            return Err(self.too_long(link, &command.cdb, command.data.len()));
        };
        let block = match link.block() {
            Some(block) => block,
            // Initiators ask before they read and write; what the device says otherwise is its word to this command.
            None => match self.ask_block(io, link).await? {
                Ok(block) => block,
                Err(verdict) => return Ok((verdict, 0)),
            },
        };
        self.pieces(io, link, blocks, u64::from(block), command).await
    }

    /// A command in pieces. The first that does not end well is the last.
    async fn pieces(
        &self,
        io: &Io,
        link: &Arc<Link>,
        blocks: Blocks,
        block: u64,
        mut command: Command,
    ) -> Result<(Verdict, u64), Failure> {
        let (direction, data) = (command.direction, &mut command.data);
        let (each, count) = (link.most() / block, blocks.count());
        let len = count.saturating_mul(block);
        // Less memory than the command is about, or other data than its blocks (raw sectors of CDs): what would come where is not
        // known.
        if each == 0 || len > data.len() || (direction == Direction::Out && len < data.len()) {
            return Err(self.too_long(link, blocks.cdb(), data.len()));
        }
        data.truncate(len);
        if count <= each {
            return Ok(whole(self.go(io, link, command).await?));
        }
        let (mut first, mut moved) = (0, 0);
        loop {
            let part = each.min(count - first);
            let cdb = blocks.part(self.kind, first, part).ok_or(SenseData::illegal(LBA_OUT_OF_RANGE))?;
            let piece = self.command(cdb, direction, data.window(first * block, part * block));
            let verdict = self.go(io, link, piece).await?;
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

    /// One command, through memory of the process where the kernel would not take the guest's.
    async fn go(&self, io: &Io, link: &Arc<Link>, command: Command) -> Result<Verdict, Failure> {
        if self.goes_as_it_is(link, &command.data) {
            return Ok(self.hand_over(io, link, command, None).await);
        }
        self.copied(io, link, command).await
    }

    /// One command, through memory of the process.
    #[expect(
        clippy::manual_async_fn,
        reason = "arguments of an async function have two places in its future"
    )]
    pub(super) fn copied<'a>(
        &'a self,
        io: &'a Io,
        link: &'a Arc<Link>,
        mut command: Command,
    ) -> impl Future<Output = Result<Verdict, Failure>> + 'a {
        async move {
            let (buffer, part) = if command.data.len() <= PIECE {
                self.private.age(io);
                (self.private.lend(command.data.len()).await.map_err(|_| BUSY)?, None)
            } else {
                let part = Box::pin(self.room.take(command.data.len())).await;
                (self.scratch(command.data.len())?.all(), Some(part))
            };
            let data = ToGuest::new(mem::replace(&mut command.data, buffer.window(0, u64::MAX)));
            if command.direction == Direction::In && Blocks::of(self.kind, &command.cdb).is_none() {
                blank(&ToGuest::new(command.data.window(0, u64::MAX)));
            }
            if command.direction == Direction::Out {
                io.copy(&data, &ToGuest::new(buffer)).await;
                return Ok(self.hand_over(io, link, command, part).await);
            }
            let verdict = self.hand_over(io, link, command, part).await;
            io.copy(&buffer.window(0, verdict.moved()), &data).await;
            Ok(verdict)
        }
    }

    /// Hands one command to a helper thread, with memory that the kernel takes. It is sent once: nothing here repeats it. `part` is of the
    /// room for its data, until the device has let go of that.
    pub(super) fn hand_over<'a>(
        &'a self,
        io: &'a Io,
        link: &'a Arc<Link>,
        command: Command,
        part: Option<Part>,
    ) -> Sent<'a> {
        let (sequential, opcode) = (self.kind.is_sequential(), command.cdb.opcode());
        let changes = filter::class(self.kind, &command.cdb) != Class::Read || sequential;
        let touches = Touches::of(&command.data, changes);
        let order = Order { link: link.clone(), command, sequential, sent: false, _part: part };
        Sent { unit: self, link, opcode, doing: self.commands.run(io, touches, order) }
    }

    /// A command was sent, or was not.
    fn ended(&self, link: &Link, opcode: u8, result: io::Result<(Order, io::Result<Verdict>)>) -> Verdict {
        match result.and_then(|(order, result)| Ok((order, result?))) {
            Ok((order, verdict)) if !order.sent => verdict,
            Ok((order, verdict)) => {
                if link.answers_again() {
                    tracing::info!("\"{}\": the device is back", self.name);
                }
                if verdict.is_good() {
                    self.held.note(&order.command.cdb);
                    link.note(&order.command, verdict.moved());
                }
                verdict
            }
            Err(e) => {
                self.tell(link, opcode, &e);
                refused(&e)
            }
        }
    }

    /// Says why the kernel has not sent a command.
    fn tell(&self, link: &Link, opcode: u8, error: &io::Error) {
        let name = &self.name;
        match error.raw_os_error() {
            Some(libc::ENODEV) if !link.lost() => {}
            // They are many, and most of them are gone with their port, of which the log says so.
            Some(libc::ENODEV) if self.behind_port => crate::log_limited!(
                warn,
                "\"{name}\": the device is gone from the host, or offline there (sysfs, state); the unit goes on with it when it is back"
            ),
            Some(libc::ENODEV) => {
                let then = match self.plug.is_watched() {
                    true => "bring it back: the unit goes on with it, wherever it is then",
                    false => "bring it back, or attach it again if it came back by another name",
                };
                tracing::error!(
                    "\"{name}\": the device is gone from the host, or offline there (sysfs, state); {then}"
                );
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
        command: Command,
        look: Look,
    ) -> Result<(Verdict, u64), Failure> {
        let Command { cdb, data, .. } = command;
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
        let sent = self.command(sent, Direction::In, scratch.all());
        let verdict = self.hand_over(io, link, sent, None).await;
        let mut bytes = vec![0; verdict.moved() as usize];
        FromGuest::new(scratch.all()).read_at(0, &mut bytes);
        if verdict.is_good() {
            link.edit(&mut bytes, look);
        }
        if look == Look::Pages {
            bytes.truncate(inquiry::wanted(&cdb));
        }
        let moved = give(&bytes);
        Ok((verdict, moved))
    }

    /// Standard INQUIRY, which the unit answers itself where there is no device, to who looks for units.
    pub(super) async fn identify(
        &self,
        io: &Io,
        path: &Path,
        link: &Arc<Link>,
        command: Command,
    ) -> Result<(Verdict, u64), Failure> {
        let (cdb, data) = (command.cdb, ToGuest::new(command.data.window(0, u64::MAX)));
        let (verdict, moved) = self.transfer(io, link, command).await?;
        if verdict != status::gone() || self.keeps(path) {
            return Ok((verdict, moved));
        }
        if self.behind_port && self.plug.is_coming() {
            return Err(BUSY);
        }
        let page = absent::away();
        let bytes = page.as_bytes();
        let moved = data.write_at(0, bytes.get(..inquiry::wanted(&cdb)).unwrap_or(bytes)) as u64;
        Ok((Verdict::Device { status: Status::Good, sense: None, moved }, moved))
    }

    /// READ CAPACITY(10) in the place of the initiator's command, which waits for the length of a block.
    async fn ask_block(&self, io: &Io, link: &Arc<Link>) -> Result<Result<u32, Verdict>, Failure> {
        let scratch = self.scratch(8)?;
        let cdb = Cdb::new(&[0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        let command = self.command(cdb, Direction::In, scratch.all());
        let verdict = self.hand_over(io, link, command, None).await;
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
    pub(super) fn most(&self) -> u64 {
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
            Look::Not | Look::Standard | Look::MakeBlockLimits => {}
        }
    }

    fn note_block(&self, bytes: &[u8], at: usize) -> Option<u32> {
        let block = u32::from_be_bytes(*bytes.get(at..)?.first_chunk::<4>()?);
        let block = Some(block).filter(|block| (1..=BLOCK_MAX).contains(block))?;
        self.block.store(block, Ordering::Relaxed);
        Some(block)
    }
}
