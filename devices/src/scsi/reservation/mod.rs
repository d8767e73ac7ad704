//! Reservations: who may use a logical unit. The persistent ones of SPC-5, 5.13, and the older RESERVE and RELEASE of
//! SPC-2, which exclude each other.

mod command;
mod persistent;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

pub(crate) use command::{persistent_reserve_in, persistent_reserve_out};
use persistent::Persistent;

use super::tasks::NexusId;

/// What a command does, as far as a persistent reservation cares (SPC-4, table 66; SBC-3, table 13). Where only its holder
/// has access, registration alone gives nobody more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// Allowed to everyone.
    Always,
    /// Allowed to all while only writing is exclusive.
    Read,
    /// Allowed to those who have the reservation, or share in it.
    Write,
}

/// The reservations of one logical unit.
#[derive(Debug, Default)]
pub(crate) struct Reservations {
    /// Whether there is any: while not, commands need no lock.
    held: AtomicBool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Of RESERVE.
    reserved: Option<NexusId>,
    persistent: Persistent,
}

impl Reservations {
    /// Whether a command may go on. `shared` says that a reservation by RESERVE does not matter to it.
    pub(crate) fn allows(&self, nexus: NexusId, access: Access, shared: bool) -> bool {
        if !self.held.load(Ordering::Acquire) {
            return true;
        }
        let state = self.lock();
        (shared || state.reserved.is_none_or(|holder| holder == nexus))
            && state.persistent.allows(nexus, access)
    }

    /// RESERVE; false is RESERVATION CONFLICT, which is also the answer while anyone is registered.
    pub(crate) fn reserve(&self, nexus: NexusId) -> bool {
        self.update(|state| {
            let free = state.reserved.is_none_or(|holder| holder == nexus);
            let may = free && !state.persistent.has_registrants();
            if may {
                state.reserved = Some(nexus);
            }
            may
        })
    }

    /// RELEASE: of what another one holds it does nothing; false is RESERVATION CONFLICT.
    pub(crate) fn release(&self, nexus: NexusId) -> bool {
        self.update(|state| {
            if state.reserved == Some(nexus) {
                state.reserved = None;
            }
            !state.persistent.has_registrants()
        })
    }

    /// A logical unit reset ends what RESERVE made, and nothing else; after power on there is nothing at all.
    pub(crate) fn reset(&self, power: bool) {
        self.update(|state| {
            state.reserved = None;
            if power {
                state.persistent = Persistent::default();
            }
        });
    }

    /// A nexus is lost: registrations outlast that.
    pub(crate) fn nexus_lost(&self, nexus: NexusId) {
        self.update(|state| {
            if state.reserved == Some(nexus) {
                state.reserved = None;
            }
        });
    }

    fn update<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.lock();
        let result = change(&mut state);
        let held = state.reserved.is_some() || state.persistent.is_reserved();
        self.held.store(held, Ordering::Release);
        result
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
