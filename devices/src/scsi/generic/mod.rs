//! A device of the host, passed through: its commands go to it as they are, and its answers come back word for word.
//!
//! ```text
//!   Generic ──> request: one command, or its pieces, with memory that the kernel takes
//!      |            └─> Host::execute on a helper thread: Node, by one of its Routes: /dev/sg*, /dev/bsg/*, block devices
//!      ├─ filter (what the guest may), inquiry (what it sees otherwise), status (how it ended)
//!      ├─ doubt (whether that may be another device)
//!      └─ comeback (what is behind it now) <── lookout, in a process of its own: finds what was gone by its identity
//! ```
//! The kernel has one way to send a command that is open to a process which has given up its privileges: an ioctl that waits.
//! (write(2) and read(2) of /dev/sg* refuse a thread whose credentials are not those that opened the node.) So each unit has helper
//! threads of its own, as many as the device takes commands: one that hangs holds up no I/O thread and no other unit.

mod asking;
mod beside;
mod cache;
mod comeback;
mod doubt;
mod error;
mod filter;
mod guard;
mod held;
mod host;
mod identity;
mod inquiry;
mod kept;
mod kind;
mod known;
mod limits;
mod link;
mod lookout;
mod luns;
mod node;
mod opening;
mod orphans;
mod passing;
mod past;
mod places;
mod request;
mod room;
mod route;
mod seat;
mod split;
mod status;
mod sys;
mod sysfs;
mod table;
mod taken;
#[cfg(test)]
mod tests;
mod timeouts;
mod udev;
mod who;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

pub(in crate::scsi) use beside::{Blocks, for_unit, open_blocks};
pub use comeback::Returning;
pub use error::GenericError;
pub use filter::Allow;
pub use host::{Answer, Command, Direction, Host};
pub use identity::Identity;
pub use known::HostDevice;
pub use limits::HostLimits;
pub use lookout::{Arrival, Found, Lookout, Report, Wanted};
pub use luns::{Luns, report_luns};
pub use node::{GenericOptions, Place};
pub use passing::{Opening, open_again, open_at};
pub use route::Part;
pub use sysfs::Driver;
pub use who::{Who, who_is};

use self::comeback::Plug;
use self::held::Held;
use self::inquiry::Look;
use self::kind::Kind;
use self::known::Unheard;
use self::link::Link;
use self::request::{Order, whole};
use self::room::Room;
use self::status::Verdict;
use super::attention::Attention;
use super::memory::Share;
use super::outcome::{Done, Outcome};
use super::passed::Words;
use super::sense::{Failure, INVALID_FIELD_IN_CDB, INVALID_OPERATION_CODE, SenseData};
use super::unit::Context;
use super::{Cdb, DataBuffers, Status, TaskAttribute, TransportFault, absent};
use crate::iothread::{Errands, Io, Owner};
use crate::mem::{FromGuest, SgList};
use crate::storage::{PIECE, PrivateMemory};

/// Commands of one unit that are at the host at a time, at most: each has a thread.
const DEPTH_MAX: usize = 32;
/// Bytes of one command that go through memory of the process, at most; and of all that are longer than the longest buffer there, of a unit
/// at a time: a part of what all units have.
const COPIED_MAX: u64 = 4 << 20;
/// Bytes of others of a unit at a time, for those of less than 64 KiB and for longer ones.
const COPIED: (u64, u64) = (1 << 20, 4 << 20);
/// How long the device is waited for when the unit is made.
const PROBE: Duration = Duration::from_secs(10);
/// How long a LOGICAL UNIT RESET is waited for.
const RESET: Duration = Duration::from_secs(30);

/// A device of the host as it shall appear.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GenericConfig {
    /// What messages call it.
    pub name: String,
    /// What the guest may do.
    pub allow: Allow,
    /// All data goes through memory of the process, so that commands which the device does not answer can be ended.
    pub bounce: bool,
    /// Others use it, too: the guest's resets do not reach it.
    pub shared: bool,
    /// Commands that it takes at a time.
    pub depth: usize,
    /// What its queue takes with one command.
    pub limits: HostLimits,
    /// Bytes of a logical block, where the host knows.
    pub block: Option<u32>,
    /// Its length in bytes, where the host knows.
    pub size: Option<u64>,
    /// How it is found again when it was gone; `None` if it is not.
    pub wanted: Option<Wanted>,
}

/// A device of the host.
pub struct Generic {
    /// What is behind it.
    plug: Arc<Plug>,
    /// It is reached by a port of a fabric that the machine knows of.
    behind_port: bool,
    name: String,
    /// First byte of the device's INQUIRY data.
    peripheral: u8,
    kind: Kind,
    allow: Allow,
    bounce: bool,
    may_reset: bool,
    resetting: Arc<AtomicBool>,
    told_no_reset: AtomicBool,
    held: Held,
    unheard: Unheard,
    /// Commands that are at the device at a time, at most.
    depth: usize,
    /// Those commands.
    commands: Errands<Order>,
    /// Whose resets wait for each other.
    resets: Owner,
    /// For data that goes through memory of the process; and for what is longer than the longest buffer of that.
    private: Arc<PrivateMemory>,
    room: Room,
    /// What the device said to commands that are about to end.
    pub(super) words: Words,
    /// What commands hold of the host's memory.
    pub(super) memory: Share,
}

/// Which way a command goes that has come.
enum Way {
    /// It needs nothing of the device.
    Answered(Done),
    /// To the device, with the memory that it came with.
    AsItIs(Command),
    /// To the device, through memory of the process.
    Copied(Command),
    /// To the device, when that is not held up; in pieces, if need be. Its answer is looked at.
    InTime(Command, Look),
}

impl Generic {
    /// Asks a device who it is, which may take seconds, and makes a unit of it.
    ///
    /// # Errors
    /// It does not answer, or is none.
    pub fn new(host: Arc<dyn Host>, config: GenericConfig) -> Result<Self, GenericError> {
        let link = Link::new(host, &config)?;
        let peripheral = link.peripheral();
        let kind = Kind::of(peripheral);
        let depth = if kind.is_sequential() { 1 } else { config.depth.clamp(1, DEPTH_MAX) };
        Ok(Self {
            name: config.name.clone(),
            peripheral,
            kind,
            allow: config.allow,
            bounce: config.bounce,
            // On an array others would lose their commands and reservations.
            may_reset: !config.shared && config.allow == Allow::All,
            resetting: Arc::default(),
            told_no_reset: AtomicBool::new(false),
            plug: Plug::new(link, config),
            behind_port: false,
            held: Held::default(),
            unheard: Unheard::default(),
            depth,
            commands: Errands::new(Owner::with_helpers(depth)),
            resets: Owner::default(),
            private: PrivateMemory::of_device(request::ALIGN as u32, COPIED.0, COPIED.1),
            room: Room::new(COPIED_MAX),
            words: Words::default(),
            memory: Share::default(),
        })
    }

    /// What messages call it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The node that it is reached by now: another one after a return, maybe.
    pub(super) fn node(&self) -> String {
        self.plug.peek(|link| link.name.clone())
    }

    /// Peripheral device type (SPC-5, 6.7.2).
    pub fn device_type(&self) -> u8 {
        self.peripheral & 0x1f
    }

    /// Whether its commands depend on where the one before has left the medium: a tape, a changer.
    pub fn is_sequential(&self) -> bool {
        self.kind.is_sequential()
    }

    /// What its queue at the host takes with one command.
    pub fn limits(&self) -> HostLimits {
        self.plug.link().limits
    }

    /// Commands that depend on where the one before has left the medium go alone, whatever the initiator says.
    pub(super) fn attribute(&self, asked: TaskAttribute) -> TaskAttribute {
        if self.kind.is_sequential() { TaskAttribute::Ordered } else { asked }
    }

    pub(super) fn execute<'a>(
        &'a self,
        context: Context<'a>,
        cdb: &'a Cdb,
        data: &'a mut DataBuffers,
    ) -> impl Future<Output = Outcome> + 'a {
        self.execute_by(self.plug.link(), context, cdb, data, true)
    }

    /// Without `attentive` the initiator has not sent it. What few commands need has allocations of its own: the future of all others,
    /// those of disks among them, is not larger for it.
    #[expect(
        clippy::manual_async_fn,
        reason = "arguments of an async function have two places in its future"
    )]
    fn execute_by<'a>(
        &'a self,
        link: Arc<Link>,
        context: Context<'a>,
        cdb: &'a Cdb,
        data: &'a mut DataBuffers,
        attentive: bool,
    ) -> impl Future<Output = Outcome> + 'a {
        async move {
            let (direction, way) = self.prepare(&link, &context, cdb, data, attentive)?;
            let (verdict, moved) = match way {
                Way::Answered(done) => return Ok(done),
                Way::AsItIs(command) => whole(self.hand_over(context.io, &link, command, None).await),
                Way::Copied(command) => whole(self.copied(context.io, &link, command).await?),
                Way::InTime(command, look) => Box::pin(self.in_time(context, &link, command, look)).await?,
            };
            if verdict.may_have_reset(self.kind.is_sequential()) {
                context.path.unit.raise(Attention::UnitReset, None);
            }
            self.as_path(verdict).outcome(direction, moved, &self.words)
        }
    }

    /// Behind a port of a fabric a device that is not there is a path that is not there: the array has not said that the unit is gone,
    /// and its others find another path.
    fn as_path(&self, verdict: Verdict) -> Verdict {
        if !self.behind_port || verdict != status::gone() {
            return verdict;
        }
        if self.plug.is_coming() {
            return Verdict::Failed(BUSY);
        }
        Verdict::Fault(TransportFault::PathLost)
    }

    /// What has to wait, to be divided or to be looked at.
    async fn in_time(
        &self,
        context: Context<'_>,
        link: &Arc<Link>,
        command: Command,
        look: Look,
    ) -> Result<(Verdict, u64), Failure> {
        self.wait_for_orphans(&context, &command.cdb).await?;
        match look {
            Look::Not => self.transfer(context.io, link, command).await,
            Look::Standard => self.identify(context.io, context.path, link, command).await,
            look => self.examine(context.io, link, command, look).await,
        }
    }

    /// Which way a command goes that has come, and its data.
    fn prepare(
        &self,
        link: &Link,
        context: &Context<'_>,
        cdb: &Cdb,
        data: &mut DataBuffers,
        attentive: bool,
    ) -> Result<(Direction, Way), Failure> {
        const REQUEST_SENSE: u8 = 0x03;
        const INQUIRY: u8 = 0x12;
        const REPORT_LUNS: u8 = 0xa0;
        let cdb = kind::trim(cdb);
        if cdb.opcode() == REPORT_LUNS {
            // What is at the guest's target, not at the host's.
            let done = absent::report_luns(context.nexus, cdb.padded(), data)?;
            return Ok((Direction::None, Way::Answered(done)));
        }
        if link.is_untold() && !matches!(cdb.opcode(), REQUEST_SENSE | INQUIRY) {
            link.tell(&context.path.unit);
            if attentive {
                return Err(context
                    .nexus
                    .take_attention(context.path)
                    .map_or(BUSY, |new| new.sense().into()));
            }
        }
        if let Some((byte, bit)) = kind::naca(&cdb) {
            // An ACA would hold up the commands of all others that share the host's way to the device.
            return Err(SenseData::cdb_field(byte, Some(bit)).into());
        }
        self.permit(&cdb)?;
        if data.protection_in() > 0 || data.protection_out() > 0 {
            // The kernel takes none apart from the data.
            return Err(SenseData::cdb_field(1, Some(7)).into());
        }
        if table::goes_both_ways(self.kind, &cdb) {
            return Err(SenseData::illegal(INVALID_OPERATION_CODE).into());
        }
        let (direction, data) = self.direct(&cdb, data.take());
        self.agree(link, &cdb, direction, data.len())?;
        let look = match direction {
            Direction::In => inquiry::look(self.kind, link.page, self.allow == Allow::ReadOnly, &cdb),
            Direction::None | Direction::Out => Look::Not,
        };
        Ok((direction, self.way(link, context, self.command(cdb, direction, data), look)))
    }

    fn way(&self, link: &Link, context: &Context<'_>, command: Command, look: Look) -> Way {
        if look != Look::Not || self.may_be_held_up(context, &command.cdb) {
            Way::InTime(command, look)
        } else if self.goes_as_it_is(link, &command.data) {
            Way::AsItIs(command)
        } else if command.data.len() <= link.most().min(PIECE) {
            Way::Copied(command)
        } else {
            Way::InTime(command, look)
        }
    }

    /// A command for the device.
    fn command(&self, cdb: Cdb, direction: Direction, data: SgList) -> Command {
        Command { cdb, direction, data, timeout: timeouts::of(self.kind, &cdb) }
    }

    fn permit(&self, cdb: &Cdb) -> Result<(), SenseData> {
        self.allow.check(self.kind, cdb).inspect_err(|_| {
            crate::log_limited!(
                warn,
                "\"{}\": command {:02x}h of the guest is refused by allow = \"{}\"; set another if the guest may do that",
                self.name,
                cdb.opcode(),
                self.allow.name()
            );
        })
    }

    /// Which way the data goes. Where the adapter offers memory both ways, the command decides; no kernel sends both.
    fn direct(&self, cdb: &Cdb, data: DataBuffers) -> (Direction, SgList) {
        let direction = match (data.data_out.is_empty(), data.data_in.is_empty()) {
            (true, true) => Direction::None,
            (true, false) => Direction::In,
            (false, true) => Direction::Out,
            (false, false) => table::direction(self.kind, cdb),
        };
        match direction {
            Direction::None => (direction, SgList::empty()),
            Direction::In => (direction, data.data_in.into_inner()),
            Direction::Out => (direction, data.data_out.into_inner()),
        }
    }

    /// Refuses data of which the command says something else: the device would wait for what never comes, or get what it is not
    /// about. Less memory for what is read is an initiator's right.
    fn agree(&self, link: &Link, cdb: &Cdb, direction: Direction, len: u64) -> Result<(), SenseData> {
        // Where nobody has asked for the length of a block, no less than the shortest is.
        let block = u64::from(link.block().unwrap_or(request::BLOCK));
        let short = split::brings(self.kind, cdb, block).is_some_and(|brings| len < brings);
        if short || table::contradicts(self.kind, cdb, direction) {
            return Err(SenseData::illegal(INVALID_FIELD_IN_CDB));
        }
        Ok(())
    }

    /// To have the device reset, for LOGICAL UNIT RESET: commands that it does not answer come back so. Not where others use
    /// it, and not while a reset is under way.
    pub(super) fn reset_device(&self) -> Option<Reset> {
        if !self.may_reset {
            if !self.told_no_reset.swap(true, Ordering::Relaxed) {
                tracing::warn!(
                    "\"{}\": a reset of the guest's ends its commands when the host answers or gives up on them: the device is not reset, which \
                     takes allow = \"all\" without shared, for others lose their commands with it",
                    self.name
                );
            }
            return None;
        }
        if self.resetting.swap(true, Ordering::AcqRel) {
            return None;
        }
        Some(Reset {
            link: Arc::downgrade(&self.plug.link()),
            name: self.name.clone(),
            owner: self.resets.clone(),
            under_way: UnderWay(self.resetting.clone()),
        })
    }
}

/// A reset of a device that is about to begin.
pub(crate) struct Reset {
    link: Weak<Link>,
    name: String,
    owner: Owner,
    under_way: UnderWay,
}

impl Reset {
    /// Resets the device, and waits for that for a while. The log says why not, if not.
    pub(crate) async fn run(self, io: &Io) {
        let (link, under_way) = (self.link, self.under_way);
        let reset = io.blocking_on(&self.owner, move || {
            let _under_way = under_way;
            // Another one that is there now is not for that.
            link.upgrade().filter(|link| link.keeps_back().is_none()).map_or(Ok(()), |link| link.host.reset())
        });
        let why = match io.at_most(RESET, reset).await {
            Some(Ok(Ok(()))) => return,
            Some(Ok(Err(e))) if e.kind() == std::io::ErrorKind::PermissionDenied => {
                format!(
                    "{e}: it takes CAP_SYS_ADMIN and CAP_SYS_RAWIO, which threads in the sandbox do not have"
                )
            }
            Some(Ok(Err(e)) | Err(e)) => e.to_string(),
            None => "the kernel does not come back".into(),
        };
        crate::log_limited!(
            warn,
            "\"{}\": the device is not reset ({why}); its commands end when it answers, or when the host gives up on them",
            self.name
        );
    }
}

/// A reset that has not ended.
struct UnderWay(Arc<AtomicBool>);

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

/// Asks a device on the calling thread; how much of `into` there is.
fn probe(host: &dyn Host, cdb: &[u8], into: &mut [u8]) -> Result<usize, String> {
    let data = SgList::host(into.len(), 4096).ok_or("no memory")?;
    let seen = FromGuest::new(data.window(0, u64::MAX));
    let command = Command { cdb: Cdb::new(cdb), direction: Direction::In, data, timeout: PROBE };
    let answer = host.execute(&command).map_err(|e| e.to_string())?;
    let verdict = status::verdict(&answer, Direction::In, command.data.len(), false);
    if !verdict.is_good() {
        return Err(format!("status {:02x}h, adapter {:02x}h", answer.status, answer.host));
    }
    let len = seen.read_at(0, into);
    Ok(len.min(verdict.moved() as usize))
}

impl std::fmt::Debug for Generic {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Generic({:?}, type {:02x}h)", self.name, self.device_type())
    }
}

/// Nothing was done, and there is no memory to do it with.
const BUSY: Failure = Failure::Status(Status::Busy);
