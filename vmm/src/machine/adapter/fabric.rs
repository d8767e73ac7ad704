//! The fabric that the port of an HBA is on.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use hba_virtio_scsi::fc::{Active, Emulated, LocalPort, PortState, RemoteState, San, View};

use super::Adapter;
use crate::fc_port::HostPort;
use crate::machine::virtual_port::VirtualPort;

/// The N_Port_ID that the guest's port has on an emulated fabric after each login.
const PORT_ID: u32 = 0x01_0001;

/// A fabric, and who has made it.
pub(in crate::machine) enum Fabric {
    /// This process: its units are those of the configuration.
    Emulated(Arc<Emulated>),
    /// It is behind a virtual port of the host, and its units are what the array shows that.
    Host(Arc<VirtualPort>),
}

impl Fabric {
    /// What it looks like now.
    fn view(&self) -> Arc<View> {
        match self {
            Self::Emulated(fabric) => fabric.view(),
            Self::Host(fabric) => fabric.view(),
        }
    }
}

/// The states of ports in the words of the control socket.
const STATES: [(&str, RemoteState); 3] =
    [("online", RemoteState::Online), ("blocked", RemoteState::Blocked), ("lost", RemoteState::Lost)];

/// Names of a port in the words of the control socket.
const NAMES: [(&str, Active); 2] = [("primary", Active::Primary), ("secondary", Active::Secondary)];

/// Which names of a port a word means.
pub(in crate::machine) fn names_named(word: &str) -> Option<Active> {
    NAMES.iter().find(|(known, _)| *known == word).map(|(_, active)| *active)
}

/// Which names a port has, in a word.
pub(in crate::machine) fn names_word(active: Active) -> Option<&'static str> {
    NAMES.iter().find(|(_, known)| *known == active).map(|(word, _)| *word)
}

/// A state in the words of the control socket.
pub(in crate::machine) fn port_state(state: RemoteState) -> &'static str {
    STATES.iter().find(|(_, known)| *known == state).map_or("", |(word, _)| word)
}

/// The state of a word.
pub(in crate::machine) fn state_named(word: &str) -> Option<RemoteState> {
    STATES.iter().find(|(known, _)| *known == word).map(|(_, state)| *state)
}

impl Adapter {
    /// Says on which fabric its port is. Targets stay from now on when their last unit goes.
    pub(in crate::machine) fn join(&self, fabric: Fabric) {
        // Once.
        let _ = self.fabric.set(fabric);
    }

    pub(super) fn has_fabric(&self) -> bool {
        self.fabric.get().is_some()
    }

    /// What the fabric looks like; `None` of other HBAs.
    pub fn fabric_view(&self) -> Option<Arc<View>> {
        self.fabric.get().map(Fabric::view)
    }

    /// What the host has of its virtual port; `None` of other HBAs.
    pub fn host_port(&self) -> Option<HostPort> {
        match self.fabric.get()? {
            Fabric::Emulated(_) => None,
            Fabric::Host(port) => port.port(),
        }
    }

    /// What the host has of the ports that the guest has created, by their numbers.
    pub fn vports(&self) -> BTreeMap<u16, HostPort> {
        match self.fabric.get() {
            Some(Fabric::Host(port)) => port.vports(),
            _ => BTreeMap::new(),
        }
    }

    /// Refuses requests for units that are not the user's.
    pub(super) fn ensure_own(&self) -> Result<()> {
        let host = matches!(self.fabric.get(), Some(Fabric::Host(_)));
        ensure!(
            !host,
            "the units of hba {} are those that the array shows its virtual port: map them there, or take another HBA",
            self.id
        );
        Ok(())
    }

    /// There is a target: on a fabric that is a port.
    pub(super) fn add_port(&self, target: u8) {
        if let Some(Fabric::Emulated(fabric)) = self.fabric.get() {
            fabric.add(target);
        }
    }

    /// Has the guest's port log in with these of its names, and waits until all units are there by those.
    pub fn set_names(&self, active: Active) -> Result<()> {
        let fabric = self.fabric.get().with_context(|| format!("hba {} is on no fabric", self.id))?;
        let of_hba = || format!("hba {}", self.id);
        match fabric {
            Fabric::Host(port) => port.activate(active).with_context(of_hba),
            Fabric::Emulated(fabric) => {
                let local = fabric.view().local;
                ensure!(
                    local.secondary.wwpn != 0,
                    "hba {} has no other names; set secondary_wwnn and secondary_wwpn",
                    self.id
                );
                ensure!(local.active != Active::None, "hba {}: its port is lost", self.id);
                fabric.set_local(|local| local.active = active);
                Ok(())
            }
        }
    }

    /// Has a port of an emulated fabric lost or back; without a target that of the guest, which sees none of the others then.
    pub fn set_port(&self, target: Option<u8>, state: RemoteState) -> Result<()> {
        let fabric = self.fabric.get().with_context(|| format!("hba {} is on no fabric", self.id))?;
        let Fabric::Emulated(fabric) = fabric else {
            bail!(
                "hba {} has a virtual port of the host: its ports are lost and back as the fabric has it",
                self.id
            );
        };
        if let Some(target) = target {
            let known = fabric.set_state(target, state);
            ensure!(known, "there is no port with target {target} at hba {}", self.id);
            return Ok(());
        }
        let local = |local: &mut LocalPort| match state {
            RemoteState::Online => {
                (local.state, local.port_id) = (PortState::Online, PORT_ID);
                // It comes back with the names that it had, unless it was logged out.
                if local.active == Active::None {
                    local.active = Active::Primary;
                }
            }
            RemoteState::Blocked => local.state = PortState::Blocked,
            RemoteState::Lost => {
                (local.state, local.active, local.port_id) = (PortState::LinkDown, Active::None, 0)
            }
        };
        fabric.set_local(local);
        for target in fabric.view().remotes.keys() {
            fabric.set_state(*target, state);
        }
        Ok(())
    }
}
