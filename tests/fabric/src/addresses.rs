//! Which N_Port_ID a name gets when it logs in.

use std::collections::{BTreeSet, HashMap};

use crate::names::{PortId, Wwn};

/// Names whose addresses are remembered, at all links together.
const MOST: usize = 10_000;

/// The addresses that names had last, so that they get them again, unless they are not to.
#[derive(Default)]
pub(crate) struct Addresses {
    known: HashMap<Wwn, PortId>,
    /// What a name gets with its next login.
    wanted: HashMap<Wwn, PortId>,
    /// Each login gets another one.
    pub(crate) are_fresh: bool,
}

impl Addresses {
    /// A name is to have this address with its next login, if it is free then.
    pub(crate) fn want(&mut self, wwpn: Wwn, id: PortId) {
        self.wanted.insert(wwpn, id);
    }

    /// One of these for a name. What another one had last goes to it only when there is nothing else.
    pub(crate) fn choose(
        &mut self,
        wwpn: Wwn,
        ids: impl Iterator<Item = PortId> + Clone,
        is_free: impl Fn(PortId) -> bool,
    ) -> Option<PortId> {
        let fits = |id: &PortId| is_free(*id) && ids.clone().any(|other| other == *id);
        let free = || ids.clone().filter(|id| is_free(*id));
        let own = self.known.get(&wwpn).copied();
        let taken: BTreeSet<PortId> = self.known.values().copied().collect();
        let id = self
            .wanted
            .remove(&wwpn)
            .filter(fits)
            .or_else(|| own.filter(|id| !self.are_fresh && fits(id)))
            .or_else(|| free().find(|id| !taken.contains(id)))
            .or_else(|| free().find(|id| Some(*id) != own))
            .or_else(|| free().next())?;
        if self.known.len() >= MOST {
            self.known.retain(|_, id| !is_free(*id));
        }
        self.known.insert(wwpn, id);
        Some(id)
    }
}
