//! The fabric of an HBA with `[hba.fc]`, as it is built.

use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::Duration;

use anyhow::{Context, Result};
use devices::scsi::TransferLimits;
use hba_virtio_scsi::fc::{Emulated, Names, San};

use super::adapter::{Adapter, Fabric};
use super::virtual_port::{Calls, VirtualPort, Vports, names_of, not_allowed};
use crate::config::{self, EmulatedPort, Fc};
use crate::fc_port::{News, Port};

/// The fabric of an HBA that is being built.
pub(super) enum Plugged {
    Emulated(Arc<Emulated>),
    Host(Arc<VirtualPort>, Receiver<News>),
}

/// The fabric of `hba` of the machine called `machine`, if it is on one. `ports` are the virtual ports that are left.
///
/// # Errors
/// The port does not come.
pub(super) fn plug(
    machine: &str,
    hba: &config::Hba,
    adapter: &Arc<Adapter>,
    ports: &mut impl Iterator<Item = Port>,
) -> Result<Option<Plugged>> {
    match &hba.fc {
        None => Ok(None),
        Some(Fc::Emulated(port)) => emulated(&config::fc_owner(machine, &hba.id), port, adapter).map(Some),
        Some(Fc::Virtual(wanted)) => {
            let name = || format!("hba {}: no process has its virtual port", hba.id);
            let Port { news, look } = ports.next().with_context(name)?;
            let (refuses, activates) = (look.clone(), look.clone());
            let timeout = Duration::from_secs(wanted.timeout.into());
            let vports = Vports::new(&adapter.id, wanted.vports.clone(), Box::new(look.clone()), timeout);
            let calls = Calls {
                ask: Box::new(move |number| look.at(number)),
                refuse: Box::new(move |refused| refuses.refuse(refused)),
                activate: Box::new(move |number, active| activates.activate(number, active)),
                vports,
            };
            let port = VirtualPort::new(adapter, wanted, calls);
            adapter.join(Fabric::Host(port.clone()));
            port.begin(&news)?;
            Ok(Some(Plugged::Host(port, news)))
        }
    }
}

/// A fabric with a port, and a target, for each number. Its names follow from `name`.
fn emulated(name: &str, port: &EmulatedPort, adapter: &Arc<Adapter>) -> Result<Plugged> {
    let fabric = Emulated::new(name, 0..port.ports);
    let names = |names: fc::names::Names| Names { wwnn: names.wwnn.bits(), wwpn: names.wwpn.bits() };
    fabric.set_local(|local| {
        local.primary = port.names.map_or(local.primary, names);
        local.secondary = port.secondary.map(names).unwrap_or_default();
    });
    if let Some(allowed) = port.vports.clone() {
        let node = fc::Wwn::new(fabric.view().local.primary.wwnn);
        let hba = adapter.id.clone();
        fabric.allow_vports(allowed.most, move |asked| {
            let refused = allowed.check(names_of(asked), node).err();
            refused.inspect(|why| not_allowed(&hba, asked, why)).is_none()
        });
    }
    adapter.join(Fabric::Emulated(fabric.clone()));
    for target in 0..port.ports {
        adapter.target(target)?;
    }
    Ok(Plugged::Emulated(fabric))
}

impl Plugged {
    /// What the units that are there take with one command.
    pub(super) fn limits(&self) -> TransferLimits {
        match self {
            Self::Emulated(_) => TransferLimits::default(),
            Self::Host(port, _) => port.limits().map(TransferLimits::from).unwrap_or_default(),
        }
    }

    /// The fabric for the HBA.
    pub(super) fn san(&self) -> Arc<dyn San> {
        match self {
            Self::Emulated(fabric) => fabric.clone(),
            Self::Host(port, _) => port.clone(),
        }
    }

    /// The HBA is there: what changes reaches it from now on.
    pub(super) fn go_on(self) -> Result<()> {
        match self {
            Self::Emulated(_) => Ok(()),
            Self::Host(port, news) => port.go_on(news),
        }
    }
}
