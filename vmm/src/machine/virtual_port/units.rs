//! Units that come, are lost, come back, change and go, as the process tells of them.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use devices::scsi::generic::{Arrival, Wanted};
use devices::scsi::{HostLimits, Lun};
use devices::threads::{self, Kind};

use super::again::Again;
use super::lines::{Lines, Turn};
use super::opener::{Made, Opens, Returns};
use super::rescans::{Rescans, Work};
use crate::exit::explain;
use crate::fc_port::{Refused, UnitNews};
use crate::machine::adapter::Adapter;
use crate::machine::units::shown;

/// Units of one target that are worked on at a time.
const THREADS: usize = 64;

/// Tells the process what could not be taken.
pub(in crate::machine) type Refuse = Box<dyn Fn(Refused) + Send + Sync>;

/// What a unit is told.
type Tell = fn(&dyn Returns);

/// What is to be done with a unit.
enum Step {
    /// There is none yet; or its device is back: what the process calls that.
    Open(Box<Arrival>, u64),
    Resized,
    Close,
}

/// What is known of a unit.
#[derive(Default)]
struct Place {
    /// How it is opened, and found again.
    wanted: Option<Wanted>,
    /// It is there.
    returns: Option<Arc<dyn Returns>>,
    steps: VecDeque<(Step, Work)>,
    /// A thread does one of them.
    busy: bool,
    /// The host has lost it while it was opened.
    lost: bool,
    /// It may be another one.
    doubted: bool,
    /// What was said last of why it is not there.
    said: Option<String>,
}

impl Place {
    fn is_idle(&self) -> bool {
        !self.busy && self.steps.is_empty()
    }

    /// There is a unit, or is about to be one.
    fn is_taken(&self) -> bool {
        self.returns.is_some() || self.busy
    }

    fn is_closing(&self) -> bool {
        self.steps.iter().any(|(step, _)| matches!(step, Step::Close))
    }

    /// What waits to be done is no use any more, but that what was there goes.
    fn clear(&mut self, waste: &mut Vec<(Step, Work)>) {
        let all = std::mem::take(&mut self.steps).into_iter();
        let (closes, others) = all.partition::<VecDeque<_>, _>(|(step, _)| matches!(step, Step::Close));
        self.steps = closes;
        waste.extend(others);
    }
}

#[derive(Default)]
struct State {
    places: BTreeMap<(u8, Lun), Place>,
    /// Threads of each target.
    threads: BTreeMap<u8, usize>,
    limits: Option<HostLimits>,
}

/// The units behind a virtual port.
pub(super) struct Units {
    adapter: Arc<Adapter>,
    opens: Arc<dyn Opens>,
    rescans: Arc<Rescans>,
    /// Where the guest is to look again.
    again: Again,
    lines: Lines,
    refuse: Refuse,
    state: Mutex<State>,
}

impl Units {
    pub(super) fn new(
        adapter: Arc<Adapter>,
        opens: Arc<dyn Opens>,
        rescans: Arc<Rescans>,
        again: Again,
        refuse: Refuse,
    ) -> Arc<Self> {
        let lines = Lines::new(&adapter.id, adapter.remote().clone());
        Arc::new(Self { adapter, opens, rescans, again, refuse, lines, state: Mutex::default() })
    }

    /// What all units that were there at any time take with one command.
    pub(super) fn limits(&self) -> Option<HostLimits> {
        self.lock().limits
    }

    /// Takes news of a unit.
    pub(super) fn take(self: &Arc<Self>, target: u8, lun: Lun, news: UnitNews) {
        let mut waste = Vec::new();
        let (mut tell, mut refused) = (None::<(Tell, _)>, None);
        let is_lost = matches!(news, UnitNews::Lost);
        let mut state = self.lock();
        let place = state.places.entry((target, lun)).or_default();
        let step = |place: &mut Place, step| place.steps.push_back((step, self.rescans.work()));
        match news {
            UnitNews::Came(wanted, arrival, offer) => {
                place.clear(&mut waste);
                if place.is_taken() && !place.is_closing() {
                    // What was there is another one.
                    step(place, Step::Close);
                }
                (place.wanted, place.lost, place.doubted) = (Some(*wanted), false, false);
                step(place, Step::Open(arrival, offer));
            }
            UnitNews::Doubted => {
                place.doubted = true;
                tell = Some((|returns: &dyn Returns| returns.doubted(), place.returns.clone()));
            }
            UnitNews::Trusted => {
                place.doubted = false;
                tell = Some((|returns: &dyn Returns| returns.trusted(), place.returns.clone()));
            }
            UnitNews::Lost => {
                place.clear(&mut waste);
                (place.lost, place.doubted) = (true, false);
                tell = Some((|returns: &dyn Returns| returns.lost(), place.returns.clone()));
            }
            // Of what has never come it is not known how it is opened.
            UnitNews::Back(arrival, offer) if place.wanted.is_none() => {
                waste.push((Step::Open(arrival, offer), self.rescans.work()));
                refused = Some(Refused { target, lun: lun.0, offer, knows: false });
            }
            // One that could not be opened when it came may come so, too. What is to go does not.
            UnitNews::Back(arrival, offer) => {
                place.clear(&mut waste);
                (place.lost, place.doubted) = (false, false);
                // Before a thread can be done with it, and before the guest hears that the port is back.
                place.returns.iter().for_each(|returns| returns.coming());
                step(place, Step::Open(arrival, offer));
            }
            UnitNews::Resized => {
                let again = place.steps.iter().any(|(step, _)| matches!(step, Step::Resized));
                if place.is_taken() && !again {
                    step(place, Step::Resized);
                }
            }
            UnitNews::Gone => {
                place.clear(&mut waste);
                (place.wanted, place.said) = (None, None);
                if place.is_taken() && !place.is_closing() {
                    step(place, Step::Close);
                }
            }
        }
        self.settle(&mut state, target, lun);
        drop(state);
        // None of these waits for the host.
        if let Some((what, Some(returns))) = tell {
            what(&*returns);
            if is_lost {
                self.lines.say(target, lun, Turn::Lost, |name| {
                    tracing::warn!(
                        "{name}: the host has no device of the unit any more; it goes on when that is back"
                    );
                });
            }
        }
        refused.into_iter().for_each(|refused| (self.refuse)(refused));
        self.let_go(waste);
        self.work(target);
    }

    /// Nobody tells of a target any more: its units get nothing, or, for `trusted`, those again that the process does not doubt.
    pub(super) fn doubt(&self, target: u8, trusted: bool) {
        let mut state = self.lock();
        let of = state.of(target).filter(|(_, place)| !trusted || !place.doubted);
        let all: Vec<_> = of.filter_map(|(_, place)| place.returns.clone()).collect();
        drop(state);
        for returns in all {
            if trusted { returns.trusted() } else { returns.doubted() }
        }
    }

    /// Forgets a place where nothing is and nothing will be.
    fn settle(&self, state: &mut State, target: u8, lun: Lun) {
        let place = state.places.get(&(target, lun));
        if place.is_some_and(|place| place.is_idle() && place.returns.is_none() && place.wanted.is_none()) {
            state.places.remove(&(target, lun));
        }
    }

    /// To close nodes may wait for the host.
    fn let_go(&self, waste: Vec<(Step, Work)>) {
        // Nobody waits for what is not done.
        let steps: Vec<Step> = waste.into_iter().map(|(step, _)| step).collect();
        if steps.iter().any(|step| matches!(step, Step::Open(..))) {
            // Without a thread they are closed here: there is no other place.
            let _ = threads::spawn(Kind::Returns, "fc-close", move || drop(steps));
        }
    }

    /// Has a thread more work on the units of a target, if there is work for it.
    fn work(self: &Arc<Self>, target: u8) {
        let mut state = self.lock();
        let waits = state.of(target).any(|(_, place)| !place.busy && !place.steps.is_empty());
        let running = state.threads.entry(target).or_default();
        if !waits || *running >= THREADS {
            return;
        }
        *running += 1;
        drop(state);
        let here = self.clone();
        if let Err(error) = threads::spawn(Kind::Returns, "fc-unit", move || here.run(target)) {
            let left = self.end(&mut self.lock(), target);
            // One that is there does it, or the next news have it tried again.
            let when = if left > 0 {
                "they wait for another"
            } else {
                "they wait until something else changes there"
            };
            devices::log_limited!(
                error,
                "hba {}, target {target}: no thread for units that have come or gone: {error}; {when}",
                self.adapter.id
            );
        }
    }

    /// A thread of a target has ended; how many are left.
    fn end(&self, state: &mut State, target: u8) -> usize {
        let Some(running) = state.threads.get_mut(&target) else { return 0 };
        *running = running.saturating_sub(1);
        *running
    }

    /// The life of a thread.
    fn run(self: &Arc<Self>, target: u8) {
        loop {
            let mut state = self.lock();
            let next = state.of(target).find(|(_, place)| !place.busy && !place.steps.is_empty());
            let Some((lun, place)) = next else {
                self.end(&mut state, target);
                return;
            };
            let Some((step, work)) = place.steps.pop_front() else { continue };
            place.busy = true;
            let (wanted, returns) = (place.wanted.clone(), place.returns.clone());
            drop(state);
            self.step(target, lun, step, wanted, returns);
            // Nobody waits for it any more once it can be seen.
            let mut state = self.lock();
            if let Some(place) = state.places.get_mut(&(target, lun)) {
                place.busy = false;
            }
            self.settle(&mut state, target, lun);
            drop(state);
            drop(work);
        }
    }

    fn step(
        &self,
        target: u8,
        lun: Lun,
        step: Step,
        wanted: Option<Wanted>,
        returns: Option<Arc<dyn Returns>>,
    ) {
        match (step, wanted, returns) {
            (Step::Open(arrival, offer), Some(wanted), None) => {
                match self.open(target, lun, wanted, *arrival) {
                    Ok(()) => self.lock().is_there(target, lun),
                    Err(error) => {
                        let why = format!(
                            "the guest does not get a unit that the array shows: {}",
                            explain(&error)
                        );
                        self.fail(target, lun, offer, Turn::Refused, why);
                    }
                }
            }
            (Step::Open(arrival, offer), Some(_), Some(returns)) => {
                let path = arrival.path().to_owned();
                if let Err(error) = returns.back(*arrival) {
                    let why = format!("the unit is back, and does not go on: {}", explain(&error));
                    self.fail(target, lun, offer, Turn::Stuck, why);
                    return;
                }
                self.lock().is_there(target, lun);
                self.lines.say(target, lun, Turn::Back, |name| {
                    tracing::info!("{name}: the unit is back as {path}")
                });
                // Who has looked meanwhile has found nothing there. Of what comes the HBA hears by itself.
                self.again.look(target);
            }
            // It has gone meanwhile, or never came.
            (Step::Open(..), None, _) => {}
            (Step::Resized, _, Some(_)) => match self.adapter.resized_native(target, lun) {
                Ok(()) => self.lines.say(target, lun, Turn::Resized, |name| {
                    tracing::info!("{name}: the size has changed at the array");
                }),
                Err(error) => {
                    tracing::debug!("hba {}, target {target} lun {}: {error}", self.adapter.id, shown(lun))
                }
            },
            (Step::Resized, _, None) => {}
            (Step::Close, _, Some(_)) => {
                let closed = self.adapter.detach_native(target, lun);
                let mut state = self.lock();
                if let Some(place) = state.places.get_mut(&(target, lun)) {
                    place.returns = None;
                }
                drop(state);
                match closed {
                    Ok(()) => self.lines.say(target, lun, Turn::Gone, |name| {
                        tracing::info!("{name}: the array does not show the unit any more");
                    }),
                    Err(error) => self.lines.say(target, lun, Turn::Unclosed, |name| {
                        tracing::warn!(
                            "{name}: the array does not show the unit any more; {}",
                            explain(&error)
                        );
                    }),
                }
                // A guest that looked meanwhile may have stopped at this one, and hears of no other.
                self.again.look(target);
            }
            (Step::Close, ..) => {}
        }
    }

    /// A unit that was told of is not there. The log says so once for each reason.
    fn fail(&self, target: u8, lun: Lun, offer: u64, turn: Turn, why: String) {
        if self.lock().is_not_there(target, lun, &why) {
            self.lines.say(target, lun, turn, |name| {
                tracing::error!(
                    "{name}: {why}; it is tried again, with pauses; look at it on the host (vmm fc luns)"
                );
            });
        }
        (self.refuse)(Refused { target, lun: lun.0, offer, knows: true });
    }

    fn open(&self, target: u8, lun: Lun, wanted: Wanted, arrival: Arrival) -> anyhow::Result<()> {
        let Made { unit, returns } = self.opens.open(wanted, arrival)?;
        let (limits, shown_as) = (unit.limits(), unit.name().to_owned());
        // Before the guest can see it: what is told of it meanwhile counts for its first command. To attach it sends nothing.
        let mut state = self.lock();
        let place = state.places.entry((target, lun)).or_default();
        if place.doubted {
            returns.doubted();
        }
        if place.lost {
            returns.lost();
        }
        place.returns = Some(returns);
        drop(state);
        let attached =
            self.adapter.attach_native(target, lun, unit, self.opens.read_only(), self.opens.bounces());
        let mut state = self.lock();
        if let Err(error) = attached {
            if let Some(place) = state.places.get_mut(&(target, lun)) {
                place.returns = None;
            }
            return Err(error);
        }
        state.limits = Some(state.limits.map_or(limits, |all| all.and(limits)));
        drop(state);
        self.lines.say(target, lun, Turn::Came, |name| tracing::info!("{name}: {shown_as}"));
        Ok(())
    }

    /// Whether nobody is about to be told anything.
    #[cfg(test)]
    pub(super) fn is_told(&self) -> bool {
        self.again.is_idle()
    }

    /// Whether nothing is known of any unit.
    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.lock().places.is_empty()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Why a unit is not there: whether that is new.
    fn is_not_there(&mut self, target: u8, lun: Lun, why: &str) -> bool {
        let Some(place) = self.places.get_mut(&(target, lun)) else { return true };
        place.said.replace(why.to_owned()).as_deref() != Some(why)
    }

    fn is_there(&mut self, target: u8, lun: Lun) {
        if let Some(place) = self.places.get_mut(&(target, lun)) {
            place.said = None;
        }
    }

    /// The units of a target.
    fn of(&mut self, target: u8) -> impl Iterator<Item = (Lun, &mut Place)> {
        let all = (target, Lun([0; 8]))..=(target, Lun([u8::MAX; 8]));
        self.places.range_mut(all).map(|((_, lun), place)| (*lun, place))
    }
}
