//! What there is, as answers show it.

use std::collections::BTreeMap;
use std::sync::Arc;

use devices::scsi::Lun;
use devices::storage::fdset;
use hba_virtio_scsi::fc::{PortState, View};
use serde_json::{Value, json};

use crate::fc_port::HostPort;
use crate::machine::adapter::{Adapter, names_word, port_state};
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
        object.insert("fc".into(), describe_fabric(&view, adapter.host_port(), adapter.vports()));
    }
    described
}

/// A number where a logical unit has one; else all 16 digits.
fn unit_number(lun: Lun) -> Value {
    lun.number().map_or_else(|| shown(lun).into(), Value::from)
}

fn describe_fabric(view: &View, port: Option<HostPort>, mut vports: BTreeMap<u16, HostPort>) -> Value {
    let name = |name: u64| (name != 0).then(|| format!("{name:016x}"));
    let ports = view.remotes.iter().map(|(target, port)| {
        json!({
            "target": target,
            "wwpn": name(port.names.wwpn),
            "wwnn": name(port.names.wwnn),
            "port_id": port.port_id,
            "state": port_state(port.state),
            "created": (port.vport != 0).then_some(port.vport),
        })
    });
    let created = view.vports.iter().map(|(number, port)| {
        json!({
            "number": number,
            "wwpn": name(port.primary.wwpn),
            "wwnn": name(port.primary.wwnn),
            "state": local_state(port.state),
            "port_id": port.port_id,
            "vport": vports.remove(number).map(describe_port),
        })
    });
    let created: Vec<_> = created.collect();
    let local = &view.local;
    json!({
        "wwpn": name(local.primary.wwpn),
        "wwnn": name(local.primary.wwnn),
        "secondary_wwpn": name(local.secondary.wwpn),
        "secondary_wwnn": name(local.secondary.wwnn),
        "names": names_word(local.active),
        "state": local_state(local.state),
        "port_id": local.port_id,
        "fabric": name(local.fabric),
        "vport": port.map(describe_port),
        "ports": ports.collect::<Vec<_>>(),
        "created": created,
    })
}

/// A virtual port as the host has it, under the keys of `vmm fc list --json` where it has them.
fn describe_port(port: HostPort) -> Value {
    let known = |text: String| (!text.is_empty()).then_some(text);
    json!({
        "name": port.vport,
        "host": port.host,
        "parent": known(port.parent),
        "driver": known(port.driver),
        "device": known(port.device),
        "origin": port.origin.word(),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fc_port::Origin;
    use hba_virtio_scsi::fc::{LocalPort, Names};

    #[test]
    fn a_virtual_port_is_shown_as_the_host_has_it() {
        let port = HostPort {
            vport: "vport-5:0-3".into(),
            host: 9,
            wwpn: 0x2100_0212_3456_789a,
            wwnn: 0x2000_0212_3456_789a,
            parent: "host5".into(),
            driver: "lpfc".into(),
            device: String::new(),
            origin: Origin::Persistent,
        };
        let shown = describe_fabric(&View::default(), Some(port), BTreeMap::new());
        let wanted = json!({
            "name": "vport-5:0-3", "host": 9, "parent": "host5", "driver": "lpfc", "device": null, "origin": "persistent",
        });
        assert_eq!(shown["vport"], wanted);
        assert_eq!(describe_fabric(&View::default(), None, BTreeMap::new())["vport"], Value::Null);
    }

    #[test]
    fn ports_that_the_guest_has_created_are_shown() {
        let local = LocalPort {
            primary: Names { wwnn: 0x2000_0212_3456_789a, wwpn: 0x2100_0200_0000_0001 },
            state: PortState::Online,
            port_id: 0x01_0203,
            ..LocalPort::default()
        };
        let view = View { vports: [(3, local)].into(), ..View::default() };
        let port = crate::fc_port::tests_host_port();
        let shown = describe_fabric(&view, None, [(3, port)].into());
        let wanted = json!([{
            "number": 3, "wwpn": "2100020000000001", "wwnn": "200002123456789a", "state": "online", "port_id": 0x01_0203,
            "vport": {
                "name": "vport-5:0-3", "host": 9, "parent": "host5", "driver": "lpfc", "device": "0000:10:00.0", "origin": "made",
            },
        }]);
        assert_eq!(shown["created"], wanted);
    }
}
