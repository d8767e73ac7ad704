//! The event queue: what the device tells the driver unasked (5.6.6.3).
//!
//! Events wait here while the driver has no buffer. Where there are not enough places, one event stands for all units of a target that come
//! (LUN 0, which stands for the target: 5.6.6.3). FreeBSD, and Linux before 5.10, look at LUN 0 alone then: so a driver that does not know
//! LUNs as the target has them is told besides that events were missed, and looks at everything. When too many wait all the same, the rest is dropped, and an event of its own after those says so: a driver then looks at everything anew, and nothing that
//! is older contradicts what it finds.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use devices::scsi::{Lun, Nexus, PortEvents};
use zerocopy::IntoBytes;

use crate::fc::wire as fc;
use crate::lun;
use crate::ring::Chain;
use crate::spec::{Event, event, feature, queue};
use crate::token::{ChainToken, ResponseArea};
use crate::transport::Transport;
use crate::worker::Worker;

/// Events that wait for buffers at most.
const MAX_WAITING: usize = 64;
/// PARAMETERS CHANGED and its kin (SPC-5, annex F): the attentions that are events too. Those of removable media
/// are not among them, as 5.6.6.3 demands.
const PARAMETERS_CHANGED: u8 = 0x2a;

/// Events on their way to the driver.
#[derive(Debug, Default)]
pub(crate) struct Events {
    state: Mutex<State>,
    /// Targets of ports that a driver has created: others do not hear of them.
    of_vports: Mutex<BTreeSet<u8>>,
}

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<Waiting>,
    missed: bool,
    /// One event stands for all units of a target.
    folded: bool,
}

/// An event that waits.
#[derive(Debug)]
struct Waiting {
    event: Event,
    /// It stands for all units of its target.
    whole: bool,
}

impl State {
    /// Adds an event; one of a unit that comes may become one of its target.
    fn add(&mut self, event: Event) {
        if let Some(target) = comes(&event) {
            let mut others = self.waiting.iter().filter(|waiting| comes(&waiting.event) == Some(target));
            if others.any(|waiting| waiting.whole) {
                return self.look_at(target);
            }
        }
        if self.waiting.len() >= MAX_WAITING {
            self.fold();
        }
        self.push(Waiting { event, whole: false });
    }

    fn push(&mut self, waiting: Waiting) {
        if self.waiting.len() < MAX_WAITING {
            self.waiting.push_back(waiting);
        } else {
            self.missed = true;
        }
    }

    /// Of all units of a target that come the driver hears by one event, after what else is told of the target.
    fn look_at(&mut self, target: u8) {
        self.folded = true;
        self.waiting.retain(|waiting| comes(&waiting.event) != Some(target));
        if self.waiting.len() >= MAX_WAITING {
            self.fold();
        }
        self.push(Waiting { event: look_again(target), whole: true });
    }

    /// Makes room: units of a target that come become one event.
    fn fold(&mut self) {
        let mut seen = BTreeMap::<u8, usize>::new();
        for target in self.waiting.iter().filter_map(|waiting| comes(&waiting.event)) {
            *seen.entry(target).or_default() += 1;
        }
        for (target, _) in seen.into_iter().filter(|(_, count)| *count > 1) {
            self.look_at(target);
        }
    }
}

impl Events {
    /// A driver has come that addresses units in another way than the one before: it would take what waits for other units, and looks
    /// at everything instead.
    pub(crate) fn addressed_anew(&self) {
        let mut state = self.lock();
        let before = state.waiting.len();
        state.waiting.retain(|waiting| about_port(&waiting.event).is_some());
        state.missed |= state.waiting.len() < before || std::mem::take(&mut state.folded);
    }

    /// Adds an event.
    pub(crate) fn push(&self, event: Event) {
        self.lock().add(event);
    }

    /// Adds events of units of a target that come; one, where they would need more places than there are.
    fn push_all(&self, target: u8, events: &[Event]) {
        let mut state = self.lock();
        if events.len() > MAX_WAITING.saturating_sub(state.waiting.len()) && events.len() > 1 {
            return state.look_at(target);
        }
        events.iter().for_each(|&event| state.add(event));
    }

    /// Adds an event, unless it is the last that waits for its target. Of a remote port the newest state is enough.
    fn push_once(&self, event: Event) {
        let mut state = self.lock();
        if let Some(about) = about_port(&event) {
            state.waiting.retain(|waiting| about_port(&waiting.event) != Some(about));
        }
        let of_target = |waiting: &&Waiting| target_of(&waiting.event) == target_of(&event);
        if state.waiting.iter().rev().find(of_target).map(|waiting| &waiting.event) != Some(&event) {
            state.add(event);
        }
    }

    /// The next event to deliver. `native`: the driver knows LUNs as the target has them.
    pub(crate) fn pop(&self, native: bool) -> Option<Event> {
        let mut state = self.lock();
        let next = state.waiting.pop_front();
        next.map(|waiting| waiting.event).or_else(|| {
            let nothing = event::NO_EVENT | event::EVENTS_MISSED;
            let missed = Event { event: nothing.into(), lun: [0; 8], reason: 0.into() };
            let folded = std::mem::take(&mut state.folded) && !native;
            (std::mem::take(&mut state.missed) || folded).then_some(missed)
        })
    }

    /// Whether there is nothing to deliver to such a driver.
    pub(crate) fn is_empty(&self, native: bool) -> bool {
        let state = self.lock();
        state.waiting.is_empty() && !state.missed && (native || !state.folded)
    }

    /// Forgets what the driver has not asked to hear of.
    fn keep(&self, has: impl Fn(u64) -> bool) {
        let mut state = self.lock();
        let others = if has(fc::feature::VPORT) { BTreeSet::new() } else { self.of_vports().clone() };
        let is_heard = |event: &Event| has(feature_of(event)) && !others.contains(&target_of(event));
        state.waiting.retain(|waiting| is_heard(&waiting.event));
        state.missed &=
            has(feature::SCSI_HOTPLUG) || has(feature::SCSI_CHANGE) || has(fc::feature::RPORT_EVENTS);
        state.folded &= has(feature::SCSI_HOTPLUG);
    }

    /// Tells the driver of a target, if it wants to hear of it and is not about to.
    pub(crate) fn tell(&self, transport: &Transport, event: Event) {
        if self.hears(transport, feature_of(&event), target_of(&event)) {
            self.push_once(event);
            ring(transport);
        }
    }

    /// Whether something of `target` has yet to be told, or may have.
    fn holds(&self, target: u8) -> bool {
        let state = self.lock();
        state.missed || state.waiting.iter().any(|waiting| target_of(&waiting.event) == target)
    }

    /// Whether `target` is one of a port that the driver has created.
    pub(crate) fn of_vport(&self, target: u8, is: bool) {
        let mut all = self.of_vports();
        if is {
            all.insert(target);
        } else {
            all.remove(&target);
        }
    }

    /// Whether a driver wants to hear of what belongs to this feature, at `target`. One that is yet to come, or that sleeps, hears of it
    /// when it is there; but then it has no ports of its own.
    fn hears(&self, transport: &Transport, feature: u64, target: u8) -> bool {
        (transport.has(feature) || !transport.has_driver())
            && (transport.has(fc::feature::VPORT) || !self.of_vports().contains(&target))
    }

    fn of_vports(&self) -> MutexGuard<'_, BTreeSet<u8>> {
        self.of_vports.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets everything.
    pub(crate) fn clear(&self) {
        *self.lock() = State::default();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The feature that an event belongs to.
fn feature_of(event: &Event) -> u64 {
    match event.event.get() {
        event::PARAM_CHANGE => feature::SCSI_CHANGE,
        fc::event::RPORT => fc::feature::RPORT_EVENTS,
        _ => feature::SCSI_HOTPLUG,
    }
}

/// What an event of a remote port is about: the port's address, and whether that is its state or its name.
fn about_port(event: &Event) -> Option<([u8; 8], bool)> {
    let is_name = event.reason.get() == fc::event::RPORT_CHANGED;
    (event.event.get() == fc::event::RPORT).then_some((event.lun, is_name))
}

fn target_of(event: &Event) -> u8 {
    let [_, target, ..] = event.lun;
    target
}

/// The target of which a unit comes, or all may, if the event says that.
fn comes(event: &Event) -> Option<u8> {
    let rescan = event.event.get() == event::TRANSPORT_RESET && event.reason.get() == event::RESET_RESCAN;
    rescan.then(|| target_of(event))
}

fn ring(transport: &Transport) {
    if let Some(queue) = transport.queues().get(usize::from(queue::EVENT)) {
        queue.ring_doorbell();
    }
}

/// The event that says of a target: look again (docs/virtio-scsi-fc.md, section 5).
pub(crate) fn look_again(target: u8) -> Event {
    let lun = lun::encode(target, Lun([0; 8]));
    Event { event: event::TRANSPORT_RESET.into(), lun, reason: event::RESET_RESCAN.into() }
}

/// The event of a remote port (docs/virtio-scsi-fc.md, section 5).
pub(crate) fn rport(target: u8, reason: u32) -> Event {
    let lun = lun::encode(target, Lun([0; 8]));
    Event { event: fc::event::RPORT.into(), lun, reason: reason.into() }
}

/// Serves the event queue: its buffers are taken only when there is something to say.
pub(crate) async fn serve(worker: Rc<Worker>, events: Arc<Events>) {
    let at_end = worker.clone();
    let _hook = worker.io().at_batch_end(move || at_end.flush());
    let (mut chain, mut watch) = (Chain::default(), worker.watch());
    while worker.next_doorbell(&mut watch).await {
        if worker.queue().is_running() {
            events.keep(|feature| worker.transport().has(feature));
        }
        let native = worker.transport().has(fc::feature::NATIVE_LUN);
        while !events.is_empty(native) {
            let size = size_of::<Event>() as u64;
            let area = |chain: &mut Chain, shape: Result<(), _>| {
                let area = ResponseArea::of(&chain.writable, size);
                (if shape.is_ok() { area } else { ResponseArea::of(&[], 0) }, None)
            };
            let Some((head, area)) = worker.take(true, &mut chain, area) else { break };
            let fits = area.len() == size;
            let token = ChainToken::new(worker.clone(), head, area, 0);
            // A buffer that holds no event goes back empty, and the event waits for the next one.
            match if fits { events.pop(native) } else { None } {
                Some(event) => token.complete(event.as_bytes(), size as u32),
                None => token.complete(&[], 0),
            }
        }
    }
    worker.flush();
}

/// What one target tells the HBA.
pub(crate) struct EventPort {
    target: u8,
    events: Arc<Events>,
    transport: Weak<Transport>,
    nexus: Weak<Nexus>,
    /// The units that the driver was told of, or finds by itself, ascending. Who tells of units holds it: see [`Self::addressed_anew`].
    known: Mutex<Vec<Lun>>,
    /// Units that the driver has found absent once and was told of again: see [`PortEvents::introduce`].
    again: Mutex<Vec<Lun>>,
}

impl EventPort {
    pub(crate) fn new(
        target: u8,
        nexus: &Arc<Nexus>,
        events: Arc<Events>,
        transport: &Arc<Transport>,
    ) -> Arc<Self> {
        let known = Mutex::new(nexus.luns());
        Arc::new(Self {
            target,
            events,
            transport: Arc::downgrade(transport),
            nexus: Arc::downgrade(nexus),
            known,
            again: Mutex::default(),
        })
    }

    /// The device was reset.
    pub(crate) fn reset(&self) {
        self.again().clear();
    }

    /// A driver has come that addresses units in another way: it knows what it can address.
    pub(crate) fn addressed_anew(&self) {
        let mut known = self.known();
        if let Some(nexus) = self.nexus.upgrade() {
            *known = nexus.luns();
        }
    }

    /// Who has looked may find more now.
    pub(crate) fn units_changed(&self) {
        if let Some(transport) = self.transport.upgrade() {
            self.events.tell(&transport, look_again(self.target));
        }
    }

    /// The same of one unit.
    pub(crate) fn unit_changed(&self, lun: Lun) {
        let known = self.known();
        if known.binary_search(&lun).is_ok() {
            self.units_came(&[lun]);
        }
    }

    /// The driver knows LUNs as the target has them: for all that comes it needs one event (docs/virtio-scsi-fc.md, section 5).
    fn looks_at_targets(&self) -> bool {
        self.transport.upgrade().is_some_and(|transport| transport.has(fc::feature::NATIVE_LUN))
    }

    /// Tells a driver of units that came.
    fn units_came(&self, luns: &[Lun]) {
        if luns.is_empty() {
            return;
        }
        let Some(transport) = self.transport.upgrade() else { return };
        if self.looks_at_targets() {
            return self.events.tell(&transport, look_again(self.target));
        }
        if self.events.hears(&transport, feature::SCSI_HOTPLUG, self.target) {
            let came = |lun: &Lun| Event {
                event: event::TRANSPORT_RESET.into(),
                lun: lun::encode(self.target, *lun),
                reason: event::RESET_RESCAN.into(),
            };
            self.events.push_all(self.target, &luns.iter().map(came).collect::<Vec<_>>());
            ring(&transport);
        }
    }

    /// The target is new: with LUN 0 the event stands for all of it (virtio 1.3, 5.6.6.3). FreeBSD, and Linux before 5.10, look
    /// at the unit alone that an event names, so the others have one each, as long as there are places.
    pub(crate) fn target_came(&self) {
        let known = self.known();
        let others = known.iter().copied().filter(|lun| lun.0 != [0; 8]);
        self.units_came(&[Lun([0; 8])].into_iter().chain(others).collect::<Vec<_>>());
    }

    /// The target is gone. Drivers remove the unit that an event names and no other.
    pub(crate) fn target_went(&self) {
        let mut known = self.known();
        for lun in known.drain(..) {
            self.transport_reset(lun, event::RESET_REMOVED);
        }
    }

    fn transport_reset(&self, lun: Lun, reason: u32) {
        self.raise(feature::SCSI_HOTPLUG, event::TRANSPORT_RESET, lun, reason);
    }

    fn raise(&self, feature: u64, event: u32, lun: Lun, reason: u32) {
        let hears = |transport: &Arc<Transport>| self.events.hears(transport, feature, self.target);
        let Some(transport) = self.transport.upgrade().filter(hears) else { return };
        let lun = lun::encode(self.target, lun);
        self.events.push(Event { event: event.into(), lun, reason: reason.into() });
        ring(&transport);
    }

    fn again(&self) -> MutexGuard<'_, Vec<Lun>> {
        self.again.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn known(&self) -> MutexGuard<'_, Vec<Lun>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PortEvents for EventPort {
    fn unit_attention(&self, lun: Lun, (asc, ascq): (u8, u8)) {
        // Of what a driver cannot address it would take the first level for the whole.
        let known = self.known();
        if asc == PARAMETERS_CHANGED && known.binary_search(&lun).is_ok() {
            let reason = u32::from(asc) | u32::from(ascq) << 8;
            self.raise(feature::SCSI_CHANGE, event::PARAM_CHANGE, lun, reason);
        }
    }

    /// INQUIRY alone says little: tools send it too, through the disk that was (`smartd`), and Linux does to find out what
    /// is gone after events were missed; others have one rescan for what goes and what comes. So the first one that follows
    /// the events finds nothing, which has any driver part with the old disk; then the unit is told of again, and the next
    /// INQUIRY is that of a driver that looks for new disks. One that does not hear of hot-plug gives no sign at all.
    fn introduce(&self, lun: Lun) -> bool {
        let transport = self.transport.upgrade().filter(|transport| transport.has(feature::SCSI_HOTPLUG));
        let Some(transport) = transport else { return false };
        if self.events.holds(self.target) {
            // What waits may be of other units: it is looked for once more after that.
            self.events.tell(&transport, look_again(self.target));
            return false;
        }
        let mut again = self.again();
        if let Some(at) = again.iter().position(|told| *told == lun) {
            again.swap_remove(at);
            return true;
        }
        again.push(lun);
        drop(again);
        self.transport_reset(lun, event::RESET_RESCAN);
        false
    }

    fn inventory_changed(&self) {
        let Some(nexus) = self.nexus.upgrade() else { return };
        let mut known = self.known();
        let now = nexus.luns();
        let before = std::mem::replace(&mut *known, now.clone());
        let is_in = |all: &[Lun], lun: &Lun| all.binary_search(lun).is_ok();
        for &lun in before.iter().filter(|lun| !is_in(&now, lun)) {
            self.transport_reset(lun, event::RESET_REMOVED);
        }
        let came: Vec<_> = now.into_iter().filter(|lun| !is_in(&before, lun)).collect();
        self.units_came(&came);
    }
}
