//! The control requests by which the guest has more ports at its adapter (section 7).
//!
//! What the driver has created is shown to it, and nothing else: the fabric may still have ports of a driver that has gone, or of
//! requests of which it has not said yet how they ended.

use std::collections::{BTreeMap, BTreeSet};
use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};

use zerocopy::{FromBytes, IntoBytes};

use super::port::Port;
use super::wire::{self, CreateVport, NamedVport, VportCreated, VportDeleted, VportShown};
use super::{Names, San, VportRefusal};
use crate::queue::Queue;

/// A request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Request {
    /// A port with these names is wanted.
    Create { flags: u32, names: Names },
    /// A port is not wanted any more.
    Delete(u32),
    /// How is a port?
    Show(u32),
}

impl Request {
    /// The request of this `type` that goes on with `rest`; `None` for other types.
    pub(crate) fn parse(kind: u32, rest: &[u8]) -> Option<Result<Self, &'static str>> {
        let port = || NamedVport::read_from_prefix(rest).map(|(named, _)| named.vport.get());
        Some(match kind {
            wire::CONTROL_CREATE_VPORT => CreateVport::read_from_prefix(rest)
                .map(|(asked, _)| {
                    let names = Names { wwnn: asked.wwnn.get(), wwpn: asked.wwpn.get() };
                    Self::Create { flags: asked.flags.get(), names }
                })
                .map_err(|_| "a short request for a port"),
            wire::CONTROL_DELETE_VPORT => {
                port().map(Self::Delete).map_err(|_| "a short request to delete a port")
            }
            wire::CONTROL_SHOW_VPORT => port().map(Self::Show).map_err(|_| "a short question about a port"),
            _ => return None,
        })
    }

    /// Where the response byte is.
    pub(crate) fn response_at(self) -> usize {
        match self {
            Self::Create { .. } => wire::CREATED_RESPONSE_AT,
            Self::Delete(_) => wire::DELETED_RESPONSE_AT,
            Self::Show(_) => wire::SHOWN_RESPONSE_AT,
        }
    }

    /// Bytes of the response.
    pub(crate) fn response_len(self) -> usize {
        match self {
            Self::Create { .. } => size_of::<VportCreated>(),
            Self::Delete(_) => size_of::<VportDeleted>(),
            Self::Show(_) => size_of::<VportShown>(),
        }
    }

    /// Carries it out; returns the bytes of the response. `queue` is the one that it came by: whoever stops it ends the wait, but not what
    /// was begun.
    pub(crate) async fn run(self, port: &Port, queue: &Queue) -> Vec<u8> {
        let is_running = || queue.is_running();
        let port = Way { port, is_running: &is_running };
        match self {
            Self::Create { flags, names } => {
                VportCreated::of(port.create(flags, names).await).as_bytes().into()
            }
            Self::Delete(vport) => VportDeleted::of(port.delete(vport).await).as_bytes().into(),
            Self::Show(vport) => {
                port.port.changed();
                let shown = u16::try_from(vport).ok().and_then(|vport| port.port.vport(vport));
                VportShown::of(shown.as_ref()).as_bytes().into()
            }
        }
    }
}

/// Where a request goes, and whether anybody waits for it.
struct Way<'a> {
    port: &'a Port,
    is_running: &'a dyn Fn() -> bool,
}

impl Way<'_> {
    async fn create(&self, flags: u32, names: Names) -> Result<u16, Option<VportRefusal>> {
        let Names { wwnn, wwpn } = names;
        if flags != 0 {
            devices::log_limited!(warn, "virtio-scsi: a port with flags {flags:#x}, which nobody knows");
            return Err(None);
        }
        if wwnn == 0 || wwpn == 0 {
            devices::log_limited!(
                warn,
                "virtio-scsi: the guest wants a port with the names {wwpn:016x}:{wwnn:016x}; 0 is none"
            );
            return Err(Some(VportRefusal::NotAllowed));
        }
        if self.port.has_name(wwpn) {
            devices::log_limited!(
                warn,
                "virtio-scsi: the guest wants a port with the name {wwpn:016x}, which its adapter has"
            );
            return Err(Some(VportRefusal::InUse));
        }
        let begin = |san: &dyn San, done: Done| san.create_vport(names, Box::new(move |said| done.say(said)));
        self.call(Kind::Create, begin).await.map_err(Some)
    }

    async fn delete(&self, vport: u32) -> Result<(), VportRefusal> {
        let known = u16::try_from(vport).ok().filter(|vport| self.port.vports.live().contains(vport));
        let vport = known.ok_or(VportRefusal::Unknown)?;
        let begin = |san: &dyn San, done: Done| {
            san.delete_vport(vport, Box::new(move |said| done.say(said.map(|()| vport))));
        };
        self.call(Kind::Delete(vport), begin).await.map(drop)
    }

    /// Has the fabric do something, and waits for its word.
    async fn call(&self, kind: Kind, begin: impl FnOnce(&dyn San, Done)) -> Result<u16, VportRefusal> {
        let (port, san) = (self.port, self.port.san());
        port.vports.delete_left(san);
        let call = port.vports.begin(kind, san.max_vports())?;
        begin(san, call.done());
        let said = poll_fn(|cx| call.poll(self.is_running, cx.waker())).await;
        // Before the driver hears of the port, it can ask for it.
        port.changed();
        said
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Create,
    Delete(u16),
}

/// Ports that a driver has created, and what is under way for it.
#[derive(Default)]
pub(crate) struct Vports(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    /// Ports of this driver.
    live: BTreeSet<u16>,
    /// How many drivers were there before.
    life: u64,
    /// This one has asked for a port, so there may be some to delete when it goes.
    used: bool,
    /// Ports of drivers before are still to be deleted.
    left: bool,
    /// What the fabric has not said the end of, of drivers before included: it is not to have more to do than a driver may ask for.
    creating: u16,
    deleting: u16,
    /// How often those that waited were sent away.
    ends: u64,
    closed: bool,
    /// Who waits, by numbers of their own.
    waiting: BTreeMap<u64, Waiting>,
    next: u64,
}

#[derive(Default)]
struct Waiting {
    said: Option<Result<u16, VportRefusal>>,
    waker: Option<Waker>,
}

impl State {
    fn under_way(&mut self, kind: Kind) -> &mut u16 {
        match kind {
            Kind::Create => &mut self.creating,
            Kind::Delete(_) => &mut self.deleting,
        }
    }
}

impl Vports {
    /// The ports of this driver.
    pub(crate) fn live(&self) -> BTreeSet<u16> {
        lock(&self.0).live.clone()
    }

    /// The device was reset, and nothing of it is under way any more: the driver's ports are to be deleted. True when there may be some:
    /// then [`Self::delete_left`] is to be called, which the next request does as well.
    pub(crate) fn reset(&self) -> bool {
        let mut state = lock(&self.0);
        state.live.clear();
        state.life += 1;
        state.left |= std::mem::take(&mut state.used);
        state.left
    }

    /// Has ports of drivers before deleted. Not under a lock of the transport: the fabric may tell of the change at once.
    pub(crate) fn delete_left(&self, san: &dyn San) {
        let left = std::mem::take(&mut lock(&self.0).left);
        if left {
            san.delete_all_vports();
        }
    }

    /// Nobody waits any more: the device is reset, or the control queue.
    pub(crate) fn end(&self) {
        send_away(lock(&self.0), |state| state.ends += 1);
    }

    /// Nobody will wait any more: the HBA goes.
    pub(crate) fn close(&self) {
        send_away(lock(&self.0), |state| state.closed = true);
    }

    fn begin(&self, kind: Kind, max: u16) -> Result<Call, VportRefusal> {
        let mut state = lock(&self.0);
        let under_way = state.under_way(kind);
        if *under_way >= max {
            drop(state);
            devices::log_limited!(
                warn,
                "virtio-scsi: the guest wants more than {max} ports created or deleted at once"
            );
            return Err(VportRefusal::NoRoom);
        }
        *under_way += 1;
        state.used = true;
        let (number, ends, life) = (state.next, state.ends, state.life);
        state.next += 1;
        state.waiting.insert(number, Waiting::default());
        Ok(Call { state: self.0.clone(), kind, number, ends, life })
    }
}

/// Has those look who wait, after a change of what they wait for.
fn send_away(mut state: MutexGuard<'_, State>, change: impl FnOnce(&mut State)) {
    change(&mut state);
    let wakers: Vec<_> = state.waiting.values_mut().filter_map(|waiting| waiting.waker.take()).collect();
    drop(state);
    wakers.into_iter().for_each(Waker::wake);
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A request that the fabric has, and that is waited for. It leaves nothing behind when it is not any more.
struct Call {
    state: Arc<Mutex<State>>,
    kind: Kind,
    number: u64,
    ends: u64,
    life: u64,
}

impl Call {
    fn done(&self) -> Done {
        let (state, kind, number, life) = (self.state.clone(), self.kind, self.number, self.life);
        Done { state, kind, number, life, said: Err(VportRefusal::Failed) }
    }

    fn poll(&self, is_running: &dyn Fn() -> bool, waker: &Waker) -> Poll<Result<u16, VportRefusal>> {
        let mut state = lock(&self.state);
        // Whoever stops the queue sends away afterwards who waits here.
        let is_over = state.closed || state.ends != self.ends || !is_running();
        let waiting = state.waiting.entry(self.number).or_default();
        match waiting.said {
            Some(said) => Poll::Ready(said),
            None if is_over => Poll::Ready(Err(VportRefusal::Failed)),
            None => {
                waiting.waker = Some(waker.clone());
                Poll::Pending
            }
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        lock(&self.state).waiting.remove(&self.number);
    }
}

/// How a request ends, which the fabric says, or drops.
struct Done {
    state: Arc<Mutex<State>>,
    kind: Kind,
    number: u64,
    life: u64,
    said: Result<u16, VportRefusal>,
}

impl Done {
    fn say(mut self, said: Result<u16, VportRefusal>) {
        self.said = said;
    }
}

impl Drop for Done {
    fn drop(&mut self) {
        let mut state = lock(&self.state);
        let under_way = state.under_way(self.kind);
        *under_way = under_way.saturating_sub(1);
        // One of a driver that has gone is deleted.
        if state.life == self.life {
            match (self.kind, self.said) {
                (Kind::Create, Ok(vport)) => drop(state.live.insert(vport)),
                (Kind::Delete(vport), Ok(_) | Err(VportRefusal::Unknown)) => drop(state.live.remove(&vport)),
                (_, Err(_)) => {}
            }
        }
        let waiting = state.waiting.get_mut(&self.number);
        let waker = waiting.and_then(|waiting| {
            waiting.said = Some(self.said);
            waiting.waker.take()
        });
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}
