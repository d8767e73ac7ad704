//! What is behind the port of one HBA, and what is to be done about it. It does nothing itself: it is told what was seen, answered and
//! opened, and when, and gives orders.
//!
//! ```text
//!   Glimpse, answers, what was opened ──> Inventory ──> Order: news, jobs for a target port, nodes to open
//!                                          |-- seen     what the host has
//!                                          |-- answers  what target ports say
//!                                          |-- numbers  the numbers of target ports
//!                                          |-- target   one target port: its state, and
//!                                          |-- lanes    its jobs, and
//!                                          |-- queue    those that wait
//!                                          |-- unit     one logical unit: there, away, not to be opened
//!                                          |-- doubt    whether a unit is who it was
//!                                          |-- look     what the machine waits for
//!                                          |-- shown    what it is shown of ports
//!                                          |-- moves    to another port of the host
//! ```

mod answers;
mod doubt;
mod lanes;
mod look;
mod moves;
mod numbers;
mod queue;
mod seen;
mod shown;
mod target;
#[cfg(test)]
mod tests;
mod unit;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use devices::scsi::generic::{Arrival, Identity, Luns, Wanted as Device, Who};
use fc::glimpse::{Glimpse, Sighting};
use fc::model::RemotePort as Seen;
use fc::watch::{Change, Reason, Thing, Uevent};
use fc::{Address, Wwn};
use hba_virtio_scsi::fc::{Active, LocalPort, Names, PortState, RemotePort, RemoteState, View};

use self::look::Looks;
use self::numbers::Numbers;
pub(super) use self::numbers::Space;
use self::target::Target;
use self::unit::{Stage, Unit};
use super::{Lun, News, Passthrough, Refused, UnitNews, Wanted};

/// How soon after it came a target port is asked for its units, after the kernel has.
const FIRST_ASK: Duration = Duration::from_millis(500);
/// How often it is asked.
const ASK: Duration = Duration::from_millis(1500);
/// How soon it is asked again, when it does not know a unit any more: once may be a mistake.
const SURE: Duration = Duration::from_millis(500);
const TIMES: u32 = 2;
/// How often the kernel looks for units of one that has none, and how often before those that it had are gone.
const SCAN: Duration = ASK;
const SCANS: u32 = 6;
/// How long a target port that has come, or is back, may take until it knows all its units: until then none is gone.
const RECOVERY: Duration = Duration::from_secs(30);
/// How long commands wait for units at a port that is back, while the kernel finds them again, and they say who they are.
const RETURN: Duration = Duration::from_secs(8);
/// How often the kernel looks for a unit that it was told of and did not take.
const TRY: Duration = Duration::from_secs(30);

/// Lines that are known to have been said, at most: what an array says of ever new units is said again then.
const TOLD: usize = 1024;

/// What is to be done.
#[derive(Debug)]
pub(super) enum Order {
    /// The machine hears it.
    Say(News),
    /// Something that may take its time, at a target port. The next of that comes when this is done.
    Do(u8, Job),
    /// A device is to be opened, by a thread of its own.
    Open(Opening),
    /// The numbers of targets are to be stored.
    Keep(fc::targets::Numbers),
}

/// A device that is to be opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Opening {
    /// By which it is known.
    pub(super) ticket: u64,
    pub(super) address: String,
    /// Who it was, of one that is back.
    pub(super) again: Option<Box<Device>>,
    /// The kernel may not have made all its nodes yet.
    pub(super) fresh: bool,
    /// Its blocks go by a ring, if it is a disk.
    pub(super) ring: bool,
}

/// Work at a target port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Job {
    /// Write these times, in this order, to a remote port.
    Tune(String, Vec<(&'static str, u32)>),
    /// Have the kernel look for units of a target, or for this one.
    Scan(Address, bool),
    /// REPORT LUNS.
    Ask(Address),
    /// Ask a unit who it is, which was this one.
    Who(Address, Box<Identity>),
    /// Have the kernel forget a unit.
    Delete(Sighting),
    /// Have the kernel ask a unit anew who it is, or for its size, which has changed.
    Rescan(Sighting, bool),
}

/// What came of a job.
#[derive(Debug)]
pub(super) enum Done {
    /// It is over: what went wrong, if something did.
    Over(Option<String>),
    /// What the target port said.
    Asked(Luns),
    /// Who a unit is.
    Who(Who),
}

/// What came of opening a device.
#[derive(Debug)]
pub(super) enum Opened {
    New(Box<Device>, Box<Arrival>),
    Again(Box<Arrival>),
    /// Another device is there.
    Other,
    /// Not yet.
    Later,
    /// There is no unit, although the array answers for it.
    NoUnit,
    /// Why not, and what to do.
    Failed(String),
}

/// What is behind one port.
pub(super) struct Inventory {
    wanted: Wanted,
    names: Names,
    /// Which of its names it has logged in with.
    active: Active,
    numbers: Numbers,
    targets: BTreeMap<u8, Target>,
    units: BTreeMap<(u8, Lun), Unit>,
    local: LocalPort,
    view: View,
    /// Units that the machine had when all went over to another port.
    moved: BTreeSet<(u8, Lun)>,
    looks: Looks,
    tickets: u64,
    /// What is being opened, and at which target; also what nobody wants any more.
    under_way: BTreeMap<u64, u8>,
    /// What was said already.
    told: BTreeSet<String>,
    orders: Vec<Order>,
}

impl Inventory {
    /// Of a port with these names, whose targets had these numbers before.
    pub(super) fn new(
        wanted: Wanted,
        names: Names,
        (stored, space): (fc::targets::Numbers, Space),
        now: Instant,
    ) -> Self {
        Self::with(wanted, names, Numbers::new(stored, space), 0, now)
    }

    /// Of a port that the guest has created. What comes of a former one with its number is known by tickets: they begin with `tickets`.
    pub(super) fn of_vport(wanted: Wanted, names: Names, space: Space, tickets: u64, now: Instant) -> Self {
        Self::with(wanted, names, Numbers::of_vport(space), tickets, now)
    }

    fn with(wanted: Wanted, names: Names, numbers: Numbers, tickets: u64, now: Instant) -> Self {
        let timeout = Duration::from_secs(wanted.timeout.into());
        Self {
            wanted,
            names,
            active: Active::Primary,
            numbers,
            targets: BTreeMap::new(),
            units: BTreeMap::new(),
            local: LocalPort::default(),
            view: View::default(),
            moved: BTreeSet::new(),
            looks: Looks::new(now, timeout),
            tickets,
            under_way: BTreeMap::new(),
            told: BTreeSet::new(),
            orders: Vec::new(),
        }
    }

    /// What the machine is told when the port goes: units first, then that it has no targets.
    pub(super) fn part(mut self) -> Vec<News> {
        let told = self.units.iter().filter(|(_, unit)| unit.is_told());
        let gone = told.map(|((target, lun), _)| News::Unit(*target, *lun, UnitNews::Gone));
        let mut news: Vec<_> = gone.collect();
        self.targets.clear();
        news.push(News::View(View { local: self.local, ..View::default() }));
        news
    }

    /// What is to be done now.
    pub(super) fn work(&mut self, now: Instant) -> Vec<Order> {
        self.ask_doubted(now);
        let numbers: Vec<u8> = self.targets.keys().copied().collect();
        numbers.into_iter().for_each(|number| self.begin_jobs(number, now));
        self.open_what_is_there(now);
        let view = self.other_view(now).map(|view| Order::Say(News::View(view)));
        self.orders.extend(view);
        self.end_looks(now);
        std::mem::take(&mut self.orders)
    }

    /// When there is something to do without being told.
    pub(super) fn next(&self) -> Option<Instant> {
        let asks = |number| (self.to_ask(number).is_some(), self.running(number).next().is_some());
        let jobs = self.targets.iter().filter_map(|(number, target)| {
            let (asks, runs) = asks(*number);
            target.next(asks, runs)
        });
        let (mut opening, threads) = (self.opening(), self.threads());
        let units = self.units.iter().filter_map(|((number, _), unit)| {
            let target = self.targets.get(number).filter(|target| target.is_online())?;
            // When another is open there is news of it.
            let has_room = *opening.entry(*number).or_default() < unit::MOST
                && threads.get(number).is_none_or(|count| *count < unit::THREADS);
            let opens = unit.next().filter(|_| has_room);
            if !unit.is_doubted() {
                return opens;
            }
            let asked = unit.seat.as_ref().is_some_and(|seat| target.lanes.asks_who(seat.address));
            opens.into_iter().chain(unit.next_question(asked)).min()
        });
        jobs.chain(units).chain(self.looks.next()).min()
    }

    /// A line for the operator, once.
    fn warn(&mut self, text: String) {
        self.warn_as(text.clone(), || text);
    }

    /// The same, of many that say the same but for a number.
    fn warn_as(&mut self, told: String, text: impl FnOnce() -> String) {
        if self.told.contains(&told) {
            return;
        }
        if self.told.len() >= TOLD {
            self.told.clear();
        }
        self.told.insert(told);
        self.orders.push(Order::Say(News::Warning(text())));
    }

    /// Where a target has units that commands reach.
    fn running(&self, target: u8) -> impl Iterator<Item = (&Lun, &Unit)> {
        let of = self.units.range((target, [0; 8])..=(target, [0xff; 8]));
        of.map(|((_, lun), unit)| (lun, unit))
            .filter(|(_, unit)| unit.seat.as_ref().is_some_and(Sighting::is_running))
    }

    /// The unit of a target that is asked what that has: the one that did not say last that it is none, or nothing.
    fn to_ask(&self, number: u8) -> Option<Address> {
        let target = self.targets.get(&number)?;
        let units =
            self.running(number).filter_map(|(lun, unit)| Some((lun, unit, unit.seat.as_ref()?.address)));
        let free = units.filter(|(.., address)| !target.lanes.asks(*address));
        free.min_by_key(|(lun, unit, _)| (unit.missing, unit.silent, **lun)).map(|(.., address)| address)
    }

    /// Begins with all jobs of a target that can begin.
    fn begin_jobs(&mut self, number: u8, now: Instant) {
        loop {
            let (asked, runs) = (self.to_ask(number), self.running(number).next().is_some());
            let Some(target) = self.targets.get_mut(&number) else { return };
            let Some(job) = target.begin(asked, runs, now) else { return };
            let is_ask = matches!(job, Job::Ask(_));
            self.orders.push(Order::Do(number, job));
            if is_ask {
                self.check_one(number, now);
            }
        }
    }

    /// How many units of each target are being opened.
    fn opening(&self) -> BTreeMap<u8, usize> {
        let mut opening = BTreeMap::new();
        for ((target, _), unit) in &self.units {
            *opening.entry(*target).or_default() += usize::from(unit.is_opening());
        }
        opening
    }

    /// How many threads open units of each target: what hangs at the host is let go of when its port is lost, and goes on.
    fn threads(&self) -> BTreeMap<u8, usize> {
        let mut threads = BTreeMap::new();
        self.under_way.values().for_each(|target| *threads.entry(*target).or_default() += 1);
        threads
    }

    fn open_what_is_there(&mut self, now: Instant) {
        let (mut opening, mut threads) = (self.opening(), self.threads());
        for ((target, _), unit) in &mut self.units {
            let online = self.targets.get(target).is_some_and(Target::is_online);
            let place = opening.entry(*target).or_default();
            let running = threads.entry(*target).or_default();
            if !online || *place >= unit::MOST || *running >= unit::THREADS {
                continue;
            }
            if let Some((address, again, fresh)) = unit.begin(self.tickets, now) {
                let (ticket, ring) = (self.tickets, self.wanted.passthrough == Passthrough::Block);
                self.under_way.insert(ticket, *target);
                self.orders.push(Order::Open(Opening { ticket, address, again, fresh, ring }));
                (self.tickets, *place, *running) = (self.tickets + 1, *place + 1, *running + 1);
            }
        }
    }

    /// A device was opened, or not; what nobody wants any more is given back.
    pub(super) fn opened(&mut self, ticket: u64, opened: Opened, now: Instant) -> Option<Opened> {
        self.under_way.remove(&ticket);
        let mut all = self.units.iter_mut();
        let Some(((target, lun), unit)) = all.find(|(_, unit)| unit.ticket() == Some(ticket)) else {
            return Some(opened);
        };
        let (target, lun) = (*target, *lun);
        let young = self.targets.get(&target).is_some_and(|target| target.is_young(now));
        let address = unit.seat.as_ref().map(|seat| seat.address.to_string()).unwrap_or_default();
        let say = |news| Order::Say(News::Unit(target, lun, news));
        match opened {
            Opened::New(device, arrival) => {
                let offer = unit.come(Some(device.clone()), now);
                self.orders.push(say(UnitNews::Came(device, arrival, offer)));
            }
            Opened::Again(arrival) => {
                let offer = unit.come(None, now);
                self.orders.push(say(UnitNews::Back(arrival, offer)));
            }
            Opened::Other => {
                if unit.is_taken_for_another(young, now) {
                    self.orders.push(say(UnitNews::Gone));
                    match unit.seat.clone().filter(|_| unit.is_of_kernels_memory()) {
                        Some(seat) => self.forget(target, lun, seat, now),
                        None => unit.be_another(now),
                    }
                }
            }
            Opened::Later => unit.fail_for_now(now),
            Opened::NoUnit => drop(unit.fail("no unit", now)),
            Opened::Failed(why) => {
                if unit.fail(&why, now) {
                    let number = fc::Lun::from_bytes(lun);
                    let text = format!(
                        "LUN {number} of target {target} ({address}) is not shown to the guest: {why}"
                    );
                    self.orders.push(Order::Say(News::Warning(text)));
                }
            }
        }
        None
    }

    /// The kernel says that something has changed.
    pub(super) fn heard(&mut self, change: &Change, now: Instant) {
        let Change::Device(Uevent { thing: Thing::Unit(address) | Thing::Node(address, ..), reason, .. }) =
            change
        else {
            return;
        };
        let seated = |unit: &Unit| unit.seat.as_ref().is_some_and(|seat| seat.address == *address);
        let Some(((number, lun), unit)) = self.units.iter_mut().find(|(_, unit)| seated(unit)) else {
            return;
        };
        unit.stir(now);
        let (number, lun, told) = (*number, *lun, unit.is_told());
        let (seat, Some(target)) = (unit.seat.clone(), self.targets.get_mut(&number)) else { return };
        match (reason, seat) {
            (Some(Reason::Inquiry), _) if told => self.suspect(number, lun, now),
            (Some(reason @ (Reason::Capacity | Reason::Inquiry)), Some(seat)) => {
                target.lanes.add(Job::Rescan(seat, *reason == Reason::Capacity));
            }
            (Some(Reason::Luns), _) => {
                // One of its LUNs may lead to another device now.
                target.doubts();
                target.ask_at(now);
            }
            _ => {}
        }
    }

    /// The machine did not take units that it was given by these numbers, whether it `knows` them or not.
    pub(super) fn refused(&mut self, all: &[Refused], now: Instant) {
        for Refused { target, lun, offer, knows } in all {
            let Some(unit) = self.units.get_mut(&(*target, *lun)) else { continue };
            if unit.be_refused(*offer, *knows, now) {
                self.orders.push(Order::Say(News::Unit(*target, *lun, UnitNews::Lost)));
            }
        }
    }

    /// The machine wants to know what is there now.
    pub(super) fn look(&mut self, number: u64, now: Instant) {
        self.looks.begin(number, now);
        for target in self.targets.values_mut() {
            target.ask_at(now);
        }
    }

    fn end_looks(&mut self, now: Instant) {
        let (seen, all, units) = (self.looks.seen(), &self.targets, &self.units);
        let settled = |since: Instant| {
            let mut targets = all.values().filter(|target| target.is_online());
            let opening = units.iter().any(|((target, _), unit)| {
                let online = all.get(target).is_some_and(Target::is_online);
                online && unit.is_about_to_come()
            });
            targets.all(|target| target.has_settled(since, seen, now)) && !opening
        };
        let targets = self.targets.values().any(Target::is_online);
        let over = self.looks.end(now, targets, settled);
        if over.contains(&0) {
            let wwpn = Wwn::new(self.names.wwpn);
            let count = self.targets.values().filter(|target| target.is_online()).count();
            if !targets {
                self.warn(format!(
                    "its port {wwpn} sees no target port on the fabric; look at the zoning of that WWPN, and whether the array's ports are \
                     online"
                ));
            } else if self.units.is_empty() {
                let ports = if count == 1 { "1 target port" } else { &format!("{count} target ports") };
                let which = if self.wanted.luns.is_empty() { "" } else { " of those in luns" };
                self.warn(format!(
                    "its port {wwpn} sees {ports} and no LUN{which}; map LUNs to that WWPN at the array"
                ));
            }
        }
        self.orders.extend(over.into_iter().map(|number| Order::Say(News::Looked(number))));
    }
}
