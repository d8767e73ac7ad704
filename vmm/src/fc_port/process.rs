//! The process itself. It hears of everything in one place, and does there what takes no time; all else is [`super::work`].

use std::collections::BTreeSet;
use std::io::{self, Read};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use devices::threads::{self, Kind};
use fc::glimpse::Glimpse;
use fc::state::Store;
use fc::vport::{Live, Pause};
use fc::watch::{Change, Source, Watch};
use fc::{Roots, Wwn};
use hba_virtio_scsi::fc::Names;

use super::created::NotMade;
use super::former::{self, Settled};
use super::inventory::{Done, Inventory, Job, Opened, Order, Space};
use super::message::{self, LENGTH};
use super::nested::Vport;
use super::owned::{self, Owned};
use super::switch::{Request, Switch};
use super::work::{self, Tell};
use super::{News, VPORTS, Wanted};
use crate::config::{Sandbox, reason};
use crate::jail;
use crate::keeper::sys::{self, Ends};

/// Something that the process hears of.
pub(super) enum Event {
    /// The machine wants something.
    Asked(message::Order),
    /// The machine has ended, or says so.
    Over,
    /// What has become of the port of an HBA.
    Owned(usize, Result<Owned, String>),
    /// What is behind that with the host of this number.
    Glimpse(usize, u32, Option<Box<Glimpse>>),
    /// What has become of the port with the other names of an HBA.
    Other(usize, Result<Owned, String>),
    /// One that another has followed is deleted, or why not.
    Left(usize, Wwn, Result<(), String>),
    /// What has become of a port that a guest creates.
    Created(usize, Result<Owned, NotMade>),
    /// One of these is deleted, or why not.
    Deleted(usize, u64, Result<(), String>),
    /// A job at a target is over.
    Done(usize, u8, Job, Done),
    /// A device was opened, or not.
    Opened(usize, u64, Opened),
    /// The kernel tells of something.
    Change(Change),
}

/// A port: an HBA's own, or one that its guest may create.
pub(super) struct Hba {
    pub(super) wanted: Wanted,
    pub(super) owned: Option<Owned>,
    /// It is changing its names.
    pub(super) change: Option<Switch>,
    /// The names of ports that it has made and does not use any more, and that could not be deleted.
    pub(super) kept: BTreeSet<Wwn>,
    /// It is known what becomes of its port.
    pub(super) settled: bool,
    /// How it is, of one that a guest may create.
    pub(super) vport: Vport,
    /// The numbers of its targets, and of those behind the ports that its guest has created.
    pub(super) space: Space,
    /// The look that it was asked for last, and the last that was.
    pub(super) asked: u64,
    pub(super) looked: u64,
    /// The last look at all ports that the machine was told of.
    pub(super) said: u64,
    pub(super) inventory: Option<Inventory>,
    pub(super) look: Option<Sender<()>>,
}

pub(super) struct Process<'a> {
    pub(super) roots: Roots,
    pub(super) store: Store,
    pub(super) machine: &'a UnixStream,
    pub(super) tell: Tell,
    /// Those of HBAs, then those that guests may create (`super::slot`).
    pub(super) hbas: Vec<Hba>,
    /// How many HBAs there are.
    pub(super) count: usize,
    /// How many ports guests have created.
    pub(super) lives: u64,
    pub(super) ending: Arc<AtomicBool>,
}

/// The whole life of the child.
pub(super) fn live(mut machine: UnixStream, sandbox: Sandbox) -> io::Result<()> {
    // Ports are for the host's network alone to hear of.
    let sockets = fc::watch::Sockets::open();
    let netlink = sockets.as_ref().map(|(sockets, _)| sockets.files()).unwrap_or_default();
    let kept: Vec<_> = netlink.into_iter().chain([machine.as_fd()]).collect();
    sys::begin_alone(c"vmm-fcport", Ends::ByItself, &kept)?;
    // Each unit that is opened and each look takes some.
    let _ = crate::limits::raise_open_files();
    let Some(list) = list(&mut machine)? else { return Ok(()) };
    let (roots, store) = (Roots::default(), Store::default());
    let to_machine = Arc::new(machine.try_clone()?);
    let waits = move |hba, line| drop(say(&to_machine, hba, News::Waits(line)));
    let Some(former) = former::settle(&list, &mut machine, &roots, &store, waits)? else { return Ok(()) };
    if let Err(error) = jail::confine_port(sandbox) {
        for hba in 0..list.len() {
            say(&machine, hba, News::Failed(format!("{error:#}")))?;
        }
        return Ok(());
    }
    let (tell, events) = mpsc::channel();
    let (of_machine, reads) = (tell.clone(), machine.try_clone()?);
    threads::spawn(Kind::Returns, "fc-machine", move || hear_machine(reads, &of_machine))?;
    let mut process = Process::new(roots, store, &machine, tell, list);
    process.watch(sockets);
    process.begin(former);
    process.serve(&events);
    process.end(&events);
    // Whoever waits hears it now: a thread that the kernel keeps would have the socket still.
    machine.shutdown(Shutdown::Both)
}

/// The list; `None` if the machine has ended before, or has none.
fn list(machine: &mut UnixStream) -> io::Result<Option<Vec<Wanted>>> {
    let (mut list, mut bytes) = (Vec::new(), vec![0; LENGTH]);
    loop {
        let len = machine.read(&mut bytes)?;
        match bytes.get(..len).and_then(message::read_order) {
            Some(message::Order::Wanted(wanted)) => list.push(*wanted),
            Some(message::Order::Go) if !list.is_empty() => return Ok(Some(list)),
            _ => return Ok(None),
        }
    }
}

/// Hears what the machine wants, until it wants nothing any more.
fn hear_machine(mut machine: UnixStream, tell: &Tell) {
    let mut bytes = vec![0; LENGTH];
    loop {
        let event = match machine.read(&mut bytes) {
            Ok(0) => Event::Over,
            Ok(len) => match bytes.get(..len).and_then(message::read_order) {
                Some(message::Order::End) => Event::Over,
                Some(order) => Event::Asked(order),
                // Whoever has taken over the machine.
                None => continue,
            },
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(_) => Event::Over,
        };
        let over = matches!(event, Event::Over);
        if tell.send(event).is_err() || over {
            return;
        }
    }
}

pub(super) fn say(machine: &UnixStream, hba: usize, news: News) -> io::Result<()> {
    let (bytes, files) = message::news(hba, news);
    let sent = sys::send(machine, &bytes, &files);
    if !files.is_empty() {
        // The machine has them now; if it is no more, the last close may wait for the device.
        let _ = threads::spawn(Kind::Returns, "return-close", move || drop(files));
    }
    sent
}

impl<'a> Process<'a> {
    pub(super) fn new(
        roots: Roots,
        store: Store,
        machine: &'a UnixStream,
        tell: Tell,
        list: Vec<Wanted>,
    ) -> Self {
        let hba = |(wanted, settled): (&Wanted, bool)| Hba {
            wanted: wanted.clone(),
            owned: None,
            change: None,
            kept: BTreeSet::new(),
            settled,
            vport: Vport::Free,
            space: Space::default(),
            asked: 0,
            looked: 0,
            said: 0,
            inventory: None,
            look: None,
        };
        let some = list.iter().any(|wanted| wanted.vports.is_some());
        let vports =
            list.iter().flat_map(|wanted| std::iter::repeat_n(wanted, if some { VPORTS } else { 0 }));
        let all = list.iter().map(|wanted| (wanted, false)).chain(vports.map(|wanted| (wanted, true)));
        Self {
            roots,
            store,
            machine,
            tell,
            hbas: all.map(hba).collect(),
            count: list.len(),
            lives: 0,
            ending: Arc::default(),
        }
    }

    /// Listens to the kernel.
    fn watch(&self, sockets: io::Result<(fc::watch::Sockets, Option<io::Error>)>) {
        let warn = |why: String| {
            for hba in 0..self.count {
                let _ = say(self.machine, hba, News::Warning(why.clone()));
            }
        };
        match sockets {
            Ok((sockets, lacks)) => {
                if let Some(error) = lacks {
                    warn(format!(
                        "the kernel's events of Fibre Channel are not heard: {}; what they tell of is found by a look each second",
                        reason(&error)
                    ));
                }
                let tell = self.tell.clone();
                let _ = threads::spawn(Kind::Returns, "fc-watch", move || {
                    hear_kernel(Watch::new(sockets), &tell)
                });
            }
            Err(error) => warn(format!(
                "the kernel's events are not heard: {}; what they tell of is found by a look each second, sizes that change are not",
                reason(&error)
            )),
        }
    }

    /// Begins with all ports at a time, but for those to which something of `former` is in the way.
    fn begin(&mut self, former: Settled) {
        for ((hba, of), former) in self.hbas.iter().enumerate().zip(former) {
            if let Err(why) = former {
                let _ = self.tell.send(Event::Owned(hba, Err(why)));
                continue;
            }
            let (roots, store, wanted) = (self.roots.clone(), self.store.clone(), of.wanted.clone());
            let (tell, ending) = (self.tell.clone(), self.ending.clone());
            let own = move || {
                let kernel = || Live::new(interruptible(ending.clone()));
                let _ = tell.send(Event::Owned(hba, owned::own(&wanted, &roots, &store, kernel)));
            };
            if let Err(error) = threads::spawn(Kind::Returns, "fc-own", own) {
                let _ = self
                    .tell
                    .send(Event::Owned(hba, Err(format!("there is no thread for its port: {error}"))));
            }
        }
    }

    /// Does what is to be done, until the machine ends.
    fn serve(&mut self, events: &Receiver<Event>) {
        loop {
            let of_units = self.hbas.iter().filter_map(|hba| hba.inventory.as_ref()?.next());
            let of_names = self.hbas.iter().filter_map(|hba| hba.change.as_ref()?.next());
            let next = of_units.chain(of_names).min();
            let now = Instant::now();
            let time = next.map_or(Duration::from_secs(60), |next| next.saturating_duration_since(now));
            let mut event = match events.recv_timeout(time) {
                Ok(event) => Some(event),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            let now = Instant::now();
            // What has come together is worked on together.
            while let Some(one) = event.take().or_else(|| events.try_recv().ok()) {
                if matches!(one, Event::Over) {
                    return;
                }
                if self.take(one, now).is_err() {
                    return;
                }
            }
            if self.work(now).is_err() {
                return;
            }
        }
    }

    fn inventory(&mut self, hba: usize) -> Option<&mut Inventory> {
        self.hbas.get_mut(hba)?.inventory.as_mut()
    }

    pub(super) fn poke(&self, hba: usize) {
        if let Some(look) = self.hbas.get(hba).and_then(|hba| hba.look.as_ref()) {
            let _ = look.send(());
        }
    }

    pub(super) fn take(&mut self, event: Event, now: Instant) -> io::Result<()> {
        match event {
            Event::Asked(message::Order::Look(hba, number)) => {
                self.look(hba, number, now);
            }
            Event::Asked(message::Order::Refused(hba, all)) => {
                // No two of its ports have a target of one number.
                for slot in std::iter::once(hba).chain(self.vports(hba)) {
                    if let Some(inventory) = self.inventory(slot) {
                        inventory.refused(&all, now);
                    }
                }
                say(self.machine, hba, News::Heard)?;
            }
            Event::Asked(message::Order::Activate(hba, number, to)) => {
                self.activate(hba, Request { number, to })?
            }
            Event::Asked(message::Order::Create(hba, vport, names)) => self.create(hba, vport, names)?,
            Event::Asked(message::Order::Delete(hba, vport)) => self.delete(hba, vport)?,
            Event::Asked(_) | Event::Over => {}
            Event::Owned(hba, owned) => self.own(hba, owned, now)?,
            Event::Glimpse(hba, host, glimpse) => {
                let Some(of) = self.hbas.get_mut(hba) else { return Ok(()) };
                if of.owned.as_ref().is_some_and(|owned| owned.host == host) {
                    if let Some(inventory) = &mut of.inventory {
                        inventory.saw(glimpse.as_deref(), now);
                    }
                } else {
                    self.compare(hba, host, glimpse.as_deref(), now)?;
                }
            }
            Event::Created(slot, made) => self.created(slot, made, now)?,
            Event::Deleted(slot, wwpn, deleted) => self.deleted(slot, wwpn, deleted)?,
            Event::Other(hba, owned) => self.has_other(hba, owned, now)?,
            Event::Left(hba, wwpn, left) => self.has_left(hba, wwpn, left)?,
            Event::Done(hba, target, job, done) => {
                if let Some(inventory) = self.inventory(hba) {
                    inventory.done(target, &job, done, now);
                }
                // What the kernel has found or forgotten.
                self.poke(hba);
            }
            Event::Opened(hba, ticket, opened) => {
                let left = match self.inventory(hba) {
                    Some(inventory) => inventory.opened(ticket, opened, now),
                    None => Some(opened),
                };
                if let Some(left) = left {
                    let _ = threads::spawn(Kind::Returns, "return-close", move || drop(left));
                }
            }
            Event::Change(change) => {
                let host = change.host();
                for hba in 0..self.hbas.len() {
                    let own = self.hbas.get(hba).and_then(|hba| hba.owned.as_ref()).map(|owned| owned.host);
                    if let Some(switch) = self.hbas.get(hba).and_then(|hba| hba.change.as_ref()) {
                        switch.poke(host);
                    }
                    if host.is_none() || host == own {
                        if let Some(inventory) = self.inventory(hba) {
                            inventory.heard(&change, now);
                        }
                        self.poke(hba);
                    }
                }
            }
        }
        Ok(())
    }

    /// An HBA has its port, or not.
    pub(super) fn own(&mut self, hba: usize, owned: Result<Owned, String>, now: Instant) -> io::Result<()> {
        let Some(of) = self.hbas.get_mut(hba) else { return Ok(()) };
        of.settled = true;
        let owned = match owned {
            Ok(owned) => owned,
            Err(why) => return say(self.machine, hba, News::Failed(why)),
        };
        say(self.machine, hba, News::Port(Box::new(owned.shown(&self.roots))))?;
        let stored = self.store.targets(&of.wanted.owner).or_else(|error| {
            let text = format!("{error}; targets are numbered anew, and the file is beside it as .broken");
            say(self.machine, hba, News::Warning(text)).map(|()| Default::default())
        })?;
        if owned.named {
            let fc::names::Names { wwnn, wwpn } = owned.names;
            let text = format!(
                "its port has new names, WWPN {wwpn} and WWNN {wwnn}, which are stored as {} for good: zone the WWPN, and map LUNs to it",
                of.wanted.owner
            );
            say(self.machine, hba, News::Warning(text))?;
        }
        let names = Names { wwnn: owned.names.wwnn.bits(), wwpn: owned.names.wwpn.bits() };
        of.inventory = Some(Inventory::new(of.wanted.clone(), names, (stored, of.space.clone()), now));
        match work::look(&self.roots, &self.tell, hba, owned.host) {
            Ok(look) => of.look = Some(look),
            Err(error) => {
                let why =
                    format!("there is no thread that looks what is behind its port: {}", reason(&error));
                say(self.machine, hba, News::Failed(why))?;
            }
        }
        of.owned = Some(owned);
        Ok(())
    }

    /// Does what the inventories want done.
    pub(super) fn work(&mut self, now: Instant) -> io::Result<()> {
        for hba in 0..self.hbas.len() {
            let orders = self.inventory(hba).map(|inventory| inventory.work(now)).unwrap_or_default();
            for order in orders {
                match order {
                    Order::Say(News::Looked(number)) => {
                        self.looked(hba, number)?;
                    }
                    Order::Say(news) => say(self.machine, hba, news)?,
                    Order::Do(target, job) => work::give(&self.roots, &self.tell, hba, target, job),
                    Order::Open(opening) => {
                        if let Some(of) = self.hbas.get(hba) {
                            work::open(&self.roots, &of.wanted, &self.tell, hba, opening);
                        }
                    }
                    // Those of ports that come and go are not stored.
                    Order::Keep(_) if hba >= self.count => {}
                    Order::Keep(numbers) => {
                        let Some(of) = self.hbas.get(hba) else { continue };
                        if let Err(error) = self.store.keep_targets(&of.wanted.owner, &numbers) {
                            let text = format!("targets may have other numbers at the next start: {error}");
                            say(self.machine, hba, News::Warning(text))?;
                        }
                    }
                }
            }
        }
        self.end_changes(now)
    }
}

/// Waits, until the machine ends.
pub(super) fn interruptible(ending: Arc<AtomicBool>) -> impl FnMut(Duration) -> Pause {
    move |time| {
        thread::sleep(time);
        if ending.load(Ordering::Relaxed) { Pause::Interrupted } else { Pause::Over }
    }
}

pub(super) fn sleep(time: Duration) -> Pause {
    thread::sleep(time);
    Pause::Over
}

/// Hears what the kernel tells, for ever.
fn hear_kernel<S: Source>(mut watch: Watch<S>, tell: &Tell) {
    while let Ok(changes) = watch.next(None) {
        for change in changes {
            if tell.send(Event::Change(change)).is_err() {
                return;
            }
        }
    }
}

#[cfg(test)]
#[path = "process_tests.rs"]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests;
