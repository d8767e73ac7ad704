//! The same for programs. Keys are described in docs/fc.md, and stay.

use fc::Wwn;
use fc::model::{Host, RemotePort, San, Unit, Vport};
use fc::state::Definition;
use fc::users::User;
use fc::vport::{Cleaned, CleanedUp};
use serde_json::{Value, json};

use super::View;
use super::table::{kind, owner};

fn name(wwn: Option<Wwn>) -> Value {
    wwn.map_or(Value::Null, |wwn| wwn.to_string().into())
}

/// Null for what is not known.
fn word(text: &str) -> Value {
    if text.is_empty() { Value::Null } else { text.into() }
}

pub(super) fn list(view: &View) -> Value {
    let ports = view.san.hosts.iter().filter(|host| host.vport.is_none());
    json!({
        "ports": ports.map(port).collect::<Vec<_>>(),
        "vports": view.san.vports.iter().map(|one| vport(view, one)).collect::<Vec<_>>(),
        "definitions": view.definitions.iter().map(|(name, one)| definition(name, one)).collect::<Vec<_>>(),
    })
}

fn port(host: &Host) -> Value {
    json!({
        "name": host.name(),
        "host": host.number,
        "vport": host.vport,
        "wwpn": name(host.wwpn),
        "wwnn": name(host.wwnn),
        "permanent_wwpn": name(host.permanent_wwpn),
        "fabric": name(host.fabric),
        "port_id": host.port_id,
        "state": word(&host.state),
        "type": word(&host.kind),
        "speed": word(&host.speed),
        "supported_speeds": word(&host.supported_speeds),
        "symbolic_name": word(&host.symbolic_name),
        "dev_loss_tmo": host.dev_loss_tmo,
        "max_vports": host.npiv.map(|npiv| npiv.max),
        "vports_in_use": host.npiv.map(|npiv| npiv.in_use),
        "driver": word(&host.driver),
        "parent": host.parent,
        "path": host.directory,
    })
}

pub(super) fn vport(view: &View, vport: &Vport) -> Value {
    json!({
        "name": vport.name,
        "parent": format!("host{}", vport.parent),
        "host": vport.host,
        "wwpn": name(vport.wwpn),
        "wwnn": name(vport.wwnn),
        "state": vport.state.word(),
        "last_state": vport.last_state.as_ref().map(|state| state.word()),
        "type": word(&vport.kind),
        "roles": word(&vport.roles),
        "symbolic_name": word(&vport.symbolic_name),
        "owner": owner(view, vport.wwpn),
    })
}

pub(super) fn definition(name: &str, definition: &Definition) -> Value {
    let rules = &definition.rules;
    json!({
        "name": name,
        "wwpn": definition.wwpn.to_string(),
        "wwnn": definition.wwnn.to_string(),
        "boot": definition.boot,
        "parent": rules.parent,
        "parent_wwnn": self::name(rules.parent_wwnn),
        "parent_wwpn": self::name(rules.parent_wwpn),
        "parent_fabric": self::name(rules.parent_fabric),
    })
}

pub(super) fn show(
    view: &View,
    host: Option<&Host>,
    own: Option<&Vport>,
    units: &[(&Unit, Vec<User>)],
) -> Value {
    let remotes = host.into_iter().flat_map(|host| view.san.remotes_of(host.number));
    json!({
        "port": host.map(port),
        "vport": own.map(|own| vport(view, own)),
        "remote_ports": remotes.map(remote).collect::<Vec<_>>(),
        "luns": luns(&view.san, units),
    })
}

fn remote(remote: &RemotePort) -> Value {
    json!({
        "name": remote.name,
        "host": remote.host,
        "wwpn": name(remote.wwpn),
        "wwnn": name(remote.wwnn),
        "port_id": remote.port_id,
        "roles": remote.roles.split(',').map(str::trim).filter(|role| !role.is_empty()).collect::<Vec<_>>(),
        "state": word(&remote.state),
        "target": remote.target,
        "dev_loss_tmo": remote.dev_loss_tmo,
        "fast_io_fail_tmo": remote.fast_io_fail_tmo,
    })
}

pub(super) fn luns(san: &San, units: &[(&Unit, Vec<User>)]) -> Value {
    let dev = |name: &Option<String>| name.as_ref().map(|name| format!("/dev/{name}"));
    let unit = |(unit, users): &(&Unit, Vec<User>)| {
        let remote = san.remote_of(unit);
        json!({
            "address": unit.address.to_string(),
            "host": unit.address.host,
            "lun": hex(&unit.address.lun.bytes()),
            "lun_number": unit.address.lun.flat(),
            "remote_port": unit.remote,
            "target_wwpn": name(remote.and_then(|remote| remote.wwpn)),
            "type": unit.device_type.map(kind),
            "vendor": word(&unit.vendor),
            "model": word(&unit.model),
            "revision": word(&unit.revision),
            "name": unit.wwid,
            "bytes": unit.bytes,
            "state": word(&unit.state),
            "block": dev(&unit.block),
            "sg": dev(&unit.sg),
            "bsg": unit.bsg.as_ref().map(|bsg| format!("/dev/bsg/{bsg}")),
            "tape": dev(&unit.tape),
            "links": unit.links,
            "in_use": !users.is_empty(),
            "users": users.iter().map(user).collect::<Vec<_>>(),
        })
    };
    units.iter().map(unit).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn user(user: &User) -> Value {
    match user {
        User::Mounted(place) => json!({ "kind": "mount", "name": place }),
        User::Swap => json!({ "kind": "swap" }),
        User::Holder(name) => json!({ "kind": "holder", "name": name }),
        User::Process { pid, name } => json!({ "kind": "process", "name": name, "pid": pid }),
    }
}

pub(super) fn started(view: &View, done: &[(String, Vport)]) -> Value {
    done.iter().map(|(name, one)| json!({ "definition": name, "vport": vport(view, one) })).collect()
}

pub(super) fn cleaned(cleaned: &[CleanedUp]) -> Value {
    let one = |(record, result): &CleanedUp| {
        json!({
            "wwpn": record.wwpn.to_string(),
            "owner": record.owner,
            "pid": record.pid,
            "result": match result {
                Ok(Cleaned::Deleted) => "deleted",
                Ok(Cleaned::Gone) => "gone",
                Ok(Cleaned::Kept) => "kept",
                Ok(Cleaned::Unclear) => "unclear",
                Err(_) => "failed",
            },
        })
    };
    cleaned.iter().map(one).collect()
}
