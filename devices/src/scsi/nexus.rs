//! The I_T nexus: where commands and task management functions of one initiator port arrive.

use std::collections::{BTreeMap, BTreeSet};
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::task::{Context as TaskContext, Poll, ready};
use std::time::{Duration, Instant};

use super::attention::Attention;
use super::background::Calm;
use super::generic::HostDevice;
use super::lun::Address;
use super::outcome::{Offered, Outcome, pass, reply};
use super::sense::{Failure, INVALID_MESSAGE_ERROR, LUN_NOT_SUPPORTED, SenseData};
use super::tasks::{Ended, NexusId, Refused, TaskSet};
use super::unit::{Context, Events, Path, Unit};
use super::{
    Cdb, Lun, PortEvents, ScsiReply, ScsiRequest, Status, Tag, Target, TaskAttribute, TaskManagement,
    TaskManagementReply, TransportFault, absent,
};
use crate::iothread::Io;

static NEXT_ID: AtomicU64 = AtomicU64::new(1);

/// After how long a task management function that waits for the host says so.
const SLOW_FUNCTION: Duration = if cfg!(test) { Duration::from_millis(100) } else { Duration::from_secs(10) };

/// How long a command of an initiator in a hurry waits for a disk that hangs, see [`Nexus::hurry`].
const HURRY: Duration = Duration::from_millis(250);

/// The relation of one initiator port and one target port.
pub struct Nexus {
    id: NexusId,
    target: Arc<Target>,
    /// By the LUNs that REPORT LUNS has.
    paths: RwLock<Paths>,
    /// LUNs at which there were units that the initiator may still take to be there.
    past: Mutex<BTreeSet<Lun>>,
    /// The initiator knows of LUNs of more than one level.
    native: AtomicBool,
    /// Whether the initiator has sent anything: else it knows of no unit here.
    used: AtomicBool,
    hurried: AtomicBool,
    events: Arc<Events>,
}

impl Nexus {
    /// A nexus; the initiator finds a POWER ON unit attention on each logical unit.
    pub fn new(target: Arc<Target>, events: Option<Arc<dyn PortEvents>>) -> Arc<Self> {
        let sink = Arc::new(Events::default());
        sink.set(events);
        let nexus = Arc::new(Self {
            id: NexusId(NEXT_ID.fetch_add(1, Ordering::Relaxed)),
            target,
            paths: RwLock::default(),
            past: Mutex::default(),
            native: AtomicBool::new(false),
            used: AtomicBool::new(false),
            hurried: AtomicBool::new(false),
            events: sink,
        });
        nexus.target.join(&nexus);
        nexus
    }

    /// Says where changes are reported from now on.
    pub fn set_events(&self, events: Option<Arc<dyn PortEvents>>) {
        self.events.set(events);
    }

    /// The target of this nexus.
    pub fn target(&self) -> &Arc<Target> {
        &self.target
    }

    /// The initiator gives up all that it has here when a disk does not answer what is repeated after a reset. So while the host
    /// has not answered for commands of a disk that were ended, others for it get BUSY soon, and nothing more is asked of the
    /// host: those that need the medium, and at a device of the host all that it would have to answer itself. Not for
    /// initiators that fail commands which are BUSY, or take them for done.
    pub fn hurry(&self, hurried: bool) {
        self.hurried.store(hurried, Ordering::Relaxed);
    }

    /// The initiator may take the units here for those that were at this place before, and send them what it meant for
    /// those. So each answers as if it were not there until the initiator has asked it who it is (standard INQUIRY data)
    /// and [`PortEvents::introduce`] takes that for a sign that it knows. A unit attention would not do: initiators
    /// repeat a write after that.
    pub fn distrust(&self) {
        self.read().values().for_each(|path| path.set_strange(true));
    }

    /// The initiator knows what is here, or nothing of what was: the machine is reset, or it was told in another way. A
    /// reset of the HBA is no such thing: a driver that wakes up resets it, and keeps its disks.
    pub fn trust(&self) {
        self.used.store(false, Ordering::Relaxed);
        self.past().clear();
        self.read().values().for_each(|path| path.set_strange(false));
        self.forget_use();
    }

    /// Another driver may be next, which finds out what is there: no unit is one that the initiator has.
    pub fn forget_use(&self) {
        self.read().values().for_each(|path| path.forget_use());
    }

    /// Whether the initiator has sent anything since it was made or trusted.
    pub fn is_used(&self) -> bool {
        self.used.load(Ordering::Relaxed)
    }

    /// Whether there is a unit that the initiator may take for another one.
    pub fn is_distrusted(&self) -> bool {
        self.read().values().any(|path| path.is_strange())
    }

    /// Whether the initiator uses LUNs as REPORT LUNS has them, of up to three levels. Without that, which is how a nexus begins, it has
    /// single-level ones of 14 bits, and what it cannot address by that is not in REPORT LUNS: units of more levels or with longer
    /// numbers or methods, and of two units whose LUNs are one number the one with the longer method.
    pub fn address_natively(&self, native: bool) {
        self.native.store(native, Ordering::Relaxed);
    }

    /// The LUNs that have a logical unit which the initiator can address, ascending.
    pub fn luns(&self) -> Vec<Lun> {
        let mut all = Vec::new();
        self.for_each_lun(|lun| all.push(lun));
        all
    }

    /// Executes a command to its end: exactly one result for each call.
    ///
    /// A caller that drops the future has no result; memory that the kernel still works on then lives until it is
    /// done, see [`Io::released`].
    pub async fn execute(&self, io: &Io, mut request: ScsiRequest) -> Result<ScsiReply, TransportFault> {
        self.execute_at(io, &mut request).await
    }

    /// As [`Nexus::execute`], with the request where it is: it is moved no more. The buffers are taken out of it.
    pub fn execute_at<'a>(
        &'a self,
        io: &'a Io,
        request: &'a mut ScsiRequest,
    ) -> impl Future<Output = Result<ScsiReply, TransportFault>> + 'a {
        self.carry_out(io, request, true)
    }

    /// As [`Nexus::execute_at`], for a command that the initiator has not sent as such: a unit attention condition does not
    /// end it, and stays for one that it has sent.
    pub fn execute_for<'a>(
        &'a self,
        io: &'a Io,
        request: &'a mut ScsiRequest,
    ) -> impl Future<Output = Result<ScsiReply, TransportFault>> + 'a {
        self.carry_out(io, request, false)
    }

    async fn carry_out(
        &self,
        io: &Io,
        request: &mut ScsiRequest,
        attentive: bool,
    ) -> Result<ScsiReply, TransportFault> {
        let offered = Offered::of(&request.data);
        if !self.is_used() {
            self.used.store(true, Ordering::Relaxed);
        }
        let Some(path) = self.path(&request.lun) else {
            let outcome = absent::execute(self, &request.lun, &request.cdb, &request.data);
            return Ok(reply(outcome, offered, false));
        };
        if let Some(outcome) = self.ahead(&path, request) {
            return Ok(reply(outcome, offered, false));
        }
        let unit = &path.unit;
        let order = unit.logical.attribute(&request.cdb, request.attribute);
        let outcome = match unit.tasks.enter(self.id, request.tag, order) {
            Err(Refused::Full) => Err(Failure::Status(Status::TaskSetFull)),
            Err(Refused::Detached) => absent::execute(self, &request.lun, &request.cdb, &request.data),
            Ok(task) => {
                let (scope, medium) = (io.scope(), unit.medium());
                let result = {
                    // Initiators that hear BUSY give up some time; they wait for a disk that takes its time. What waits
                    // here has nothing in the kernel, so that a task management function ends it at once.
                    let mut held = (!is_harmless(&request.cdb)).then(|| self.hold(io, unit));
                    let mut work = pin!(self.serve(io, &path, request, attentive));
                    let mut work = pin!(poll_fn(|cx| {
                        if let Some(hold) = &mut held {
                            ready!(hold.poll(cx))?;
                        }
                        held = None;
                        work.as_mut().poll(cx)
                    }));
                    let mut work = pin!(io.within(scope, work.as_mut()));
                    task.run(work.as_mut()).await
                };
                match result {
                    Ok(outcome) => {
                        if outcome.is_err() {
                            // Perhaps it was given up, because another unit that it needed has gone.
                            unit.leave_behind(io, scope, &request.cdb, medium);
                        }
                        outcome
                    }
                    Err(why) => {
                        // The command's work is dropped, the kernel's part of it perhaps not yet done.
                        unit.part(io, scope, &request.cdb, medium).await;
                        drop(task);
                        ended(why)?
                    }
                }
            }
        };
        if let Err(Failure::Passed(number)) = outcome
            && let Some(passed) = unit.logical.passed(number)
        {
            return pass(passed, offered);
        }
        Ok(reply(outcome, offered, unit.logical.descriptor_sense()))
    }

    /// What a command that the medium is needed for waits for first.
    fn hold<'a>(&self, io: &'a Io, unit: &'a Unit) -> Hold<'a> {
        let hurried = self.hurried.load(Ordering::Relaxed);
        let background = &unit.background;
        let calm = if hurried { background.answered() } else { background.calm() };
        Hold { io, unit, since: hurried.then(|| io.now()), calm, late: None }
    }

    /// What needs no turn: the unit answers it at once, whatever goes on there.
    fn ahead(&self, path: &Path, request: &ScsiRequest) -> Option<Outcome> {
        if request.attribute == TaskAttribute::Aca || path.is_strange() {
            return None;
        }
        path.unit.logical.ahead(self, path, &request.cdb, &request.data)
    }

    /// What is known of the device of the host that a logical unit passes through; `None` where it is none.
    pub fn host_device(&self, lun: &Lun) -> Option<HostDevice> {
        self.path(lun)?.unit.logical.host_device()
    }

    /// See [`Self::hurry`].
    pub(crate) fn is_hurried(&self) -> bool {
        self.hurried.load(Ordering::Relaxed)
    }

    /// Whether the initiator meets a unit that it may take for another one with this command: the unit carries it out then.
    fn meets(&self, path: &Path, cdb: &Cdb) -> bool {
        // INQUIRY, EVPD is zero; the LUN of SCSI-2 may be beside it.
        let met =
            matches!(cdb.padded(), [0x12, byte, ..] if byte & 1 == 0) && self.events.introduce(path.unit.lun);
        if met {
            path.set_strange(false);
        }
        met
    }

    /// Without `attentive`, unit attention conditions stay where they are.
    async fn serve(&self, io: &Io, path: &Path, request: &mut ScsiRequest, attentive: bool) -> Outcome {
        if request.attribute == TaskAttribute::Aca {
            // No ACA is ever established here (SAM-6, 8.9.5).
            return Err(SenseData::illegal(INVALID_MESSAGE_ERROR).into());
        }
        path.unit.refresh();
        if path.is_strange() && !self.meets(path, &request.cdb) {
            return absent::execute(self, &request.lun, &request.cdb, &request.data);
        }
        path.note(request.cdb.opcode());
        if attentive
            && !path.unit.logical.passes_attention(request.cdb.opcode())
            && let Some(first) = path.attentions.first()
        {
            if !first.precedes_conflict() {
                path.unit.logical.check_reservations(path, &request.cdb)?;
            }
            if let Some(attention) = self.take_attention(path) {
                return Err(attention.sense().into());
            }
        }
        let context = Context { io, nexus: self, path };
        if let Some(device) = path.unit.logical.generic() {
            if !attentive {
                return Box::pin(device.execute_unheard(context, &request.cdb, &mut request.data)).await;
            }
            if !path.unit.logical.passes_attention(request.cdb.opcode())
                && let Some(said) = device.take_unheard()
            {
                return Err(said);
            }
        }
        path.unit.logical.execute(context, &request.cdb, &mut request.data).await
    }

    /// Takes the unit attention condition to report next.
    pub(crate) fn take_attention(&self, path: &Path) -> Option<Attention> {
        let attention = path.attentions.take()?;
        if attention == Attention::LunsChanged {
            // Reported once for the target, not once for each unit (SPC-5, 6.33).
            self.clear_luns_changed();
        }
        Some(attention)
    }

    /// The initiator knows the inventory.
    pub(crate) fn clear_luns_changed(&self) {
        for path in self.read().values() {
            path.attentions.clear(Attention::LunsChanged);
        }
    }

    /// Calls `each` for the LUN of every logical unit that the initiator can address, ascending.
    pub(crate) fn for_each_lun(&self, mut each: impl FnMut(Lun)) {
        let (paths, native) = (self.read(), self.is_native());
        for lun in paths.keys() {
            if native
                || lun.is_classic() && find(&paths, *lun, false).is_some_and(|path| path.unit.lun == *lun)
            {
                each(*lun);
            }
        }
    }

    /// Executes a task management function. When it returns, tasks that it ended have returned to their callers
    /// or are about to without touching guest memory any more: it takes as long as the host does. To fail meanwhile would
    /// be worse: initiators then take the commands for ended and use their memory for something else.
    pub async fn manage(&self, io: &Io, function: TaskManagement) -> TaskManagementReply {
        use TaskManagement as Function;
        let lun = match function {
            Function::NexusReset => {
                let marks: Vec<_> = self.read().values().map(|path| self.lose(path)).collect();
                return self.left(io, &marks).await;
            }
            Function::AbortTask(lun, _)
            | Function::AbortTaskSet(lun)
            | Function::ClearAca(lun)
            | Function::ClearTaskSet(lun)
            | Function::LogicalUnitReset(lun)
            | Function::QueryTask(lun, _)
            | Function::QueryTaskSet(lun) => lun,
        };
        let Some(path) = self.path(&lun) else {
            // The well known unit has no commands that last, hence none to manage.
            return match (lun.address(), function) {
                (Address::ReportLuns, Function::ClearAca(_)) => TaskManagementReply::Rejected,
                (Address::ReportLuns, _) => TaskManagementReply::Complete,
                _ => TaskManagementReply::IncorrectLun,
            };
        };
        let unit = &path.unit;
        let mine = |nexus| nexus == self.id;
        let mark = match function {
            Function::AbortTask(_, tag) => {
                unit.tasks.end(|n, t| (mine(n) && t == tag).then_some(Ended::Aborted))
            }
            Function::AbortTaskSet(_) => unit.tasks.end(|n, _| mine(n).then_some(Ended::Aborted)),
            Function::ClearTaskSet(_) => self.clear_task_set(unit),
            Function::LogicalUnitReset(_) => {
                let mark = unit.tasks.end(|_, _| Some(Ended::Reset));
                unit.reset(Attention::UnitReset);
                mark
            }
            Function::QueryTask(_, tag) => return found(unit.tasks.holds(|n, t| mine(n) && t == tag)),
            Function::QueryTaskSet(_) => return found(unit.tasks.holds(|n, _| mine(n))),
            Function::ClearAca(_) | Function::NexusReset => return TaskManagementReply::Rejected,
        };
        let mark = Mark::of(unit, mark);
        let reset = match function {
            Function::LogicalUnitReset(_) => unit.logical.reset_device(),
            _ => None,
        };
        // One that goes while this waits is its own caller's alone.
        drop(path);
        if let Some(reset) = reset {
            Box::pin(reset.run(io)).await;
        }
        self.left(io, &[mark]).await
    }

    /// Waits until what was ended has left.
    async fn left(&self, io: &Io, marks: &[Mark]) -> TaskManagementReply {
        let mut all = pin!(async {
            for mark in marks {
                mark.tasks.left(mark.before).await;
            }
        });
        if io.at_most(SLOW_FUNCTION, all.as_mut()).await.is_none() {
            // Also of units that are detached meanwhile.
            let late = marks.iter().filter(|mark| mark.tasks.is_ending());
            let names = late.map(|mark| mark.shown.as_str()).collect::<Vec<_>>().join(", ");
            crate::log_limited!(
                warn,
                "task management: the host has not answered for {names} within {} s; the function waits for it",
                SLOW_FUNCTION.as_secs()
            );
            all.await;
        }
        TaskManagementReply::Complete
    }

    /// The logical units with commands that were ended and that the host still works on, for messages. Holds none, so that
    /// none ends here: a vCPU asks.
    pub fn unfinished(&self) -> Vec<String> {
        let paths = self.read();
        let units = paths.values().map(|path| &path.unit);
        units.filter(|unit| unit.tasks.is_ending()).map(|unit| shown(unit)).collect()
    }

    /// What the host calls the medium of a logical unit, for messages.
    pub fn medium(&self, lun: &Lun) -> Option<String> {
        self.path(lun).map(|path| path.unit.name().into_owned())
    }

    /// Ends the commands of this nexus, as their initiator wishes it, without waiting until they have left.
    pub fn abort_all(&self) {
        for path in self.read().values() {
            path.unit.tasks.end(|nexus, _| (nexus == self.id).then_some(Ended::Aborted));
        }
    }

    /// CLEAR TASK SET (SAM-6, 7.5): commands of all initiators. The others learn of it by status or by attention.
    fn clear_task_set(&self, unit: &Unit) -> u64 {
        let status = unit.logical.task_aborted_status();
        let mut others: Vec<NexusId> = Vec::new();
        let mark = unit.tasks.end(|nexus, _: Tag| {
            if nexus == self.id {
                return Some(Ended::Aborted);
            }
            others.push(nexus);
            Some(if status { Ended::TaskAborted } else { Ended::Aborted })
        });
        if !status {
            unit.raise_for(Attention::CommandsCleared, &others);
        }
        mark
    }

    /// The nexus is lost and there anew: its commands end. Does not wait until they have left.
    pub fn reset(&self) {
        for path in self.read().values() {
            drop(self.lose(path));
            path.forget_use();
        }
    }

    fn lose(&self, path: &Path) -> Mark {
        let mark = path.unit.tasks.end(|nexus, _| (nexus == self.id).then_some(Ended::Reset));
        path.unit.forget(self.id);
        path.attentions.raise(Attention::NexusLoss);
        Mark::of(&path.unit, mark)
    }

    pub(crate) fn connect(&self, unit: &Arc<Unit>) {
        let path = unit.connect(self.id, &self.events);
        let mut paths = self.write();
        let is_past = |lun: &Lun| self.past().contains(lun);
        // Also what another unit was called, or is still.
        let mixes_up = self.is_used() && !self.is_native();
        let mixed_up = |lun: Lun| is_past(&lun) || mixes_up && paths.contains_key(&lun);
        path.set_strange(is_past(&unit.lun) || unit.lun.synonyms().any(mixed_up));
        paths.insert(unit.lun, path);
    }

    pub(crate) fn disconnect(&self, lun: Lun) {
        if self.is_used() {
            self.past().insert(lun);
        }
        let mut paths = self.write();
        paths.remove(&lun);
        // Another unit may be called so from now on.
        if self.is_used()
            && !self.is_native()
            && let Some(heir) = find(&paths, lun, false)
        {
            heir.set_strange(true);
        }
    }

    fn past(&self) -> MutexGuard<'_, BTreeSet<Lun>> {
        self.past.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn events(&self) -> &Events {
        &self.events
    }

    fn path(&self, lun: &Lun) -> Option<Arc<Path>> {
        find(&self.read(), *lun, self.is_native()).cloned()
    }

    fn is_native(&self) -> bool {
        self.native.load(Ordering::Relaxed)
    }

    fn read(&self) -> RwLockReadGuard<'_, Paths> {
        self.paths.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Paths> {
        self.paths.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Units by the LUNs that REPORT LUNS has.
type Paths = BTreeMap<Lun, Arc<Path>>;

/// What `lun` leads to. Initiators that have single-level LUNs have one unit for each number, whichever method they use; others mean
/// just what they say.
fn find(paths: &Paths, lun: Lun, native: bool) -> Option<&Arc<Path>> {
    if native {
        return paths.get(&lun);
    }
    lun.synonyms().filter(Lun::is_classic).find_map(|lun| paths.get(&lun))
}

/// A command that waits for what the host does for commands that are no more.
struct Hold<'a> {
    io: &'a Io,
    unit: &'a Unit,
    /// When the command came, of an initiator in a hurry: it may have waited for its turn.
    since: Option<Instant>,
    calm: Calm<'a>,
    /// When it does not wait any more.
    late: Option<Pin<Box<dyn Future<Output = ()> + 'a>>>,
}

impl Hold<'_> {
    fn poll(&mut self, cx: &mut TaskContext<'_>) -> Poll<Result<(), Failure>> {
        if self.calm.poll(cx).is_ready() {
            return Poll::Ready(Ok(()));
        }
        let Some(since) = self.since else { return Poll::Pending };
        let left = HURRY.saturating_sub(since.elapsed());
        if !left.is_zero() {
            let io = self.io;
            ready!(self.late.get_or_insert_with(|| Box::pin(io.sleep(left))).as_mut().poll(cx));
        }
        crate::log_limited!(
            warn,
            "\"{}\": the host has not answered for commands that were ended; the disk is busy until it does",
            self.unit.name()
        );
        Poll::Ready(Err(Failure::Status(Status::Busy)))
    }
}

impl Drop for Nexus {
    fn drop(&mut self) {
        for path in self.read().values() {
            path.unit.gone(self.id);
        }
    }
}

/// What was ended of a unit, to be waited for without holding the unit.
struct Mark {
    tasks: Arc<TaskSet>,
    /// See [`TaskSet::left`].
    before: u64,
    shown: String,
}

impl Mark {
    fn of(unit: &Unit, before: u64) -> Self {
        Self { tasks: unit.tasks.clone(), before, shown: shown(unit) }
    }
}

/// A unit in messages.
fn shown(unit: &Unit) -> String {
    format!("\"{}\"", unit.name())
}

/// Commands that have nothing to do with what is on the medium: TEST UNIT READY, with which initiators find out whether a unit
/// answers after they have aborted a command, those that pass unit attentions, and those with which they learn what a unit is:
/// without an answer to READ CAPACITY Linux has a disk of no blocks. Reservations are not among them: to preempt one must
/// not pass what its holder wrote.
pub(super) fn is_harmless(cdb: &Cdb) -> bool {
    let opcode = cdb.opcode();
    match opcode {
        // TEST UNIT READY; MODE SENSE(6) and (10); READ CAPACITY(10); LOG SENSE; MAINTENANCE IN.
        0x00 | 0x1a | 0x5a | 0x25 | 0x4d | 0xa3 => true,
        // GET CONFIGURATION, GET EVENT STATUS NOTIFICATION: hosts ask for these again and again.
        0x46 | 0x4a => true,
        // READ CAPACITY(16), not GET LBA STATUS.
        0x9e => cdb.padded()[1] & 0x1f == 0x10,
        _ => passes_attention(opcode),
    }
}

/// Commands that neither report a unit attention condition by CHECK CONDITION nor are stopped by one (SAM-6, 5.14):
/// REQUEST SENSE, INQUIRY, REPORT LUNS.
fn passes_attention(opcode: u8) -> bool {
    matches!(opcode, 0x03 | 0x12 | 0xa0)
}

fn found(yes: bool) -> TaskManagementReply {
    if yes { TaskManagementReply::Succeeded } else { TaskManagementReply::Complete }
}

/// What the caller of an ended command hears.
fn ended(why: Ended) -> Result<Outcome, TransportFault> {
    match why {
        Ended::Aborted => Err(TransportFault::Aborted),
        Ended::Reset => Err(TransportFault::Reset),
        Ended::Detached => Ok(Err(SenseData::illegal(LUN_NOT_SUPPORTED).into())),
        Ended::TaskAborted => Ok(Err(Failure::Status(Status::TaskAborted))),
    }
}
