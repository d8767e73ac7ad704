//! What there is, as answers show it.

use std::sync::Arc;

use devices::scsi::Lun;
use devices::storage::fdset;
use hba_virtio_scsi::fc::{PortState, View};
use serde_json::{Value, json};

use crate::machine::adapter::{Adapter, port_state};
use crate::machine::units::shown;

/// An HBA with what is behind it.
pub(super) fn describe(adapter: &Arc<Adapter>) -> Value {
    let units: Vec<Value> = adapter
        .units()
        .into_iter()
        .map(|unit| {
            let mut described = json!({
                "target": unit.target,
                "lun": unit_number(unit.lun),
                "type": unit.kind.name(),
                "image": unit.image.map(|image| image.to_string_lossy().into_owned()),
                "size": unit.size,
                "readonly": unit.read_only,
                "bounce": unit.bounce,
                "flush_failed": unit.flush_failed,
                "state": unit.state.describe(),
            });
            if let (Some(tray), Some(object)) = (unit.tray, described.as_object_mut()) {
                object.insert("tray".into(), if tray.open { "open" } else { "closed" }.into());
                object.insert("locked".into(), tray.locked.into());
            }
            described
        })
        .collect();
    let mut described = json!({
        "id": adapter.id,
        "type": adapter.kind.name(),
        "units": units,
        "unnoticed": adapter.unnoticed(),
    });
    if let (Some(view), Some(object)) = (adapter.fabric_view(), described.as_object_mut()) {
        object.insert("fc".into(), describe_fabric(&view));
    }
    described
}

/// A number where a logical unit has one; else all 16 digits.
fn unit_number(lun: Lun) -> Value {
    lun.number().map_or_else(|| shown(lun).into(), Value::from)
}

fn describe_fabric(view: &View) -> Value {
    let name = |name: u64| (name != 0).then(|| format!("{name:016x}"));
    let ports = view.remotes.iter().map(|(target, port)| {
        json!({
            "target": target,
            "wwpn": name(port.names.wwpn),
            "wwnn": name(port.names.wwnn),
            "port_id": port.port_id,
            "state": port_state(port.state),
        })
    });
    let local = &view.local;
    json!({
        "wwpn": name(local.primary.wwpn),
        "wwnn": name(local.primary.wwnn),
        "state": local_state(local.state),
        "port_id": local.port_id,
        "fabric": name(local.fabric),
        "ports": ports.collect::<Vec<_>>(),
    })
}

fn local_state(state: PortState) -> &'static str {
    match state {
        PortState::Unknown => "unknown",
        PortState::NotPresent => "not present",
        PortState::Online => "online",
        PortState::Offline => "offline",
        PortState::Blocked => "blocked",
        PortState::LinkDown => "link down",
        PortState::Error => "error",
    }
}

/// A set of descriptors.
pub(super) fn describe_set((number, listed): (u64, Vec<fdset::Listed>)) -> Value {
    let describe = |fdset::Listed { fd, opaque }| match opaque {
        Some(opaque) => json!({ "fd": fd, "opaque": opaque }),
        None => json!({ "fd": fd }),
    };
    json!({ "fdset-id": number, "fds": listed.into_iter().map(describe).collect::<Vec<_>>() })
}
