//! Tables and lines for people.

use fc::Wwn;
use fc::model::{Host, RemotePort, San, Unit, Vport};
use fc::state::Definition;
use fc::users::User;

use super::View;

/// Rows below a head, in columns.
fn columns<const N: usize>(head: [&str; N], rows: Vec<[String; N]>) -> String {
    let head = head.map(str::to_owned);
    let mut widths = [0; N];
    for row in std::iter::once(&head).chain(&rows) {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    let mut text = String::new();
    for row in std::iter::once(&head).chain(&rows) {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}"));
        text += cells.collect::<Vec<_>>().join("  ").trim_end();
        text.push('\n');
    }
    text
}

/// A dash for what is not known.
fn or_dash<T: ToString>(value: Option<T>) -> String {
    value.map_or_else(|| "-".into(), |value| value.to_string()).replace('\n', " ")
}

fn filled(text: &str) -> String {
    or_dash(Some(text).filter(|text| !text.is_empty()))
}

fn port_id(id: Option<u32>) -> String {
    or_dash(id.map(|id| format!("{id:06x}")))
}

pub(super) fn list(view: &View) -> String {
    let ports: Vec<_> = view.san.hosts.iter().filter(|host| host.vport.is_none()).map(port).collect();
    if ports.is_empty() && view.definitions.is_empty() {
        return "no Fibre Channel ports\n".into();
    }
    let mut parts = Vec::new();
    if !ports.is_empty() {
        let head = ["PORT", "STATE", "SPEED", "ID", "WWPN", "WWNN", "FABRIC", "VPORTS", "DRIVER", "PARENT"];
        parts.push(columns(head, ports));
    }
    let vports: Vec<_> = view.san.vports.iter().map(|one| vport(view, one)).collect();
    if !vports.is_empty() {
        parts.push(columns(["VPORT", "ON", "STATE", "HOST", "ID", "WWPN", "WWNN", "OWNER"], vports));
    }
    let definitions: Vec<_> =
        view.definitions.iter().map(|(name, one)| definition(&view.san, name, one)).collect();
    if !definitions.is_empty() {
        parts.push(columns(["DEFINITION", "AT BOOT", "THERE", "WWPN", "WWNN", "ON"], definitions));
    }
    parts.join("\n")
}

fn port(host: &Host) -> [String; 10] {
    let vports = host.npiv.filter(|npiv| npiv.max > 0).map(|npiv| format!("{} of {}", npiv.in_use, npiv.max));
    [
        host.name(),
        filled(&host.state),
        filled(&host.speed),
        port_id(host.port_id),
        or_dash(host.wwpn),
        or_dash(host.wwnn),
        or_dash(host.fabric),
        vports.unwrap_or_else(|| "none".into()),
        filled(&host.driver),
        or_dash(host.parent.as_ref()),
    ]
}

/// Whose a virtual port is, as far as anybody wrote it down.
pub(super) fn owner(view: &View, wwpn: Option<Wwn>) -> Option<String> {
    let record = view.records.iter().find(|(name, _)| Some(*name) == wwpn).map(|(_, owner)| owner.clone());
    let defined = view.definitions.iter().find(|(_, definition)| Some(definition.wwpn) == wwpn);
    record.or_else(|| defined.map(|(name, _)| format!("definition {name}")))
}

fn vport(view: &View, vport: &Vport) -> [String; 8] {
    let host = vport.host.and_then(|number| view.san.host(number));
    [
        vport.name.clone(),
        format!("host{}", vport.parent),
        vport.state.word().to_owned(),
        or_dash(vport.host.map(|number| format!("host{number}"))),
        port_id(host.and_then(|host| host.port_id)),
        or_dash(vport.wwpn),
        or_dash(vport.wwnn),
        or_dash(owner(view, vport.wwpn)),
    ]
}

fn definition(san: &San, name: &str, definition: &Definition) -> [String; 6] {
    let rules = &definition.rules;
    let part = |what: &str, name: Option<Wwn>| name.map(|name| format!("{what} {name}"));
    let rule = rules.parent.clone().or(part("WWPN", rules.parent_wwpn)).or(part("WWNN", rules.parent_wwnn));
    [
        name.to_owned(),
        if definition.boot { "yes" } else { "no" }.into(),
        or_dash(san.vport(definition.wwpn).map(|vport| vport.name.clone())),
        definition.wwpn.to_string(),
        definition.wwnn.to_string(),
        rule.or(part("fabric", rules.parent_fabric)).unwrap_or_else(|| "any".into()),
    ]
}

pub(super) fn show(
    view: &View,
    host: Option<&Host>,
    vport: Option<&Vport>,
    units: &[(&Unit, Vec<User>)],
) -> String {
    let mut lines: Vec<(&str, String)> = Vec::new();
    if let Some(vport) = vport {
        lines.extend([
            ("virtual port", vport.name.clone()),
            ("on", format!("host{}", vport.parent)),
            ("state", vport.state.word().to_owned()),
            ("state before", or_dash(vport.last_state.as_ref().map(|state| state.word().to_owned()))),
            ("roles", filled(&vport.roles)),
            ("owner", or_dash(owner(view, vport.wwpn))),
            ("WWPN", or_dash(vport.wwpn)),
            ("WWNN", or_dash(vport.wwnn)),
        ]);
    }
    if let Some(host) = host {
        lines.push(("host", host.name()));
        if vport.is_none() {
            lines.extend([("WWPN", or_dash(host.wwpn)), ("WWNN", or_dash(host.wwnn))]);
            lines.extend(
                host.permanent_wwpn
                    .filter(|own| Some(*own) != host.wwpn)
                    .map(|own| ("WWPN of the hardware", own.to_string())),
            );
            let npiv = host.npiv.filter(|npiv| npiv.max > 0);
            lines.push((
                "virtual ports",
                npiv.map_or("creates none".into(), |npiv| format!("{} of {}", npiv.in_use, npiv.max)),
            ));
        }
        lines.extend([
            ("port state", filled(&host.state)),
            ("port type", filled(&host.kind)),
            ("port ID", port_id(host.port_id)),
            ("fabric", or_dash(host.fabric)),
            ("speed", filled(&host.speed)),
            ("speeds", filled(&host.supported_speeds)),
            ("symbolic name", filled(&host.symbolic_name)),
            ("dev_loss_tmo", or_dash(host.dev_loss_tmo)),
            ("driver", filled(&host.driver)),
            ("parent", or_dash(host.parent.as_ref())),
        ]);
    }
    let width = lines.iter().map(|(key, _)| key.len()).max().unwrap_or(0);
    let mut parts: Vec<String> =
        vec![lines.iter().map(|(key, value)| format!("{key:width$}  {value}\n")).collect()];
    let remotes: Vec<_> =
        host.into_iter().flat_map(|host| view.san.remotes_of(host.number)).map(remote).collect();
    if !remotes.is_empty() {
        let head = ["REMOTE PORT", "STATE", "ID", "WWPN", "WWNN", "TARGET", "DEV LOSS", "FAST FAIL", "ROLES"];
        parts.push(columns(head, remotes));
    }
    if !units.is_empty() {
        parts.push(luns(&view.san, units, false));
    }
    parts.join("\n")
}

fn remote(remote: &RemotePort) -> [String; 9] {
    let seconds = |value: Option<u32>| value.map_or("off".into(), |value| format!("{value} s"));
    [
        remote.name.clone(),
        filled(&remote.state),
        port_id(remote.port_id),
        or_dash(remote.wwpn),
        or_dash(remote.wwnn),
        or_dash(remote.target),
        seconds(remote.dev_loss_tmo),
        seconds(remote.fast_io_fail_tmo),
        filled(&remote.roles),
    ]
}

pub(super) fn luns(san: &San, units: &[(&Unit, Vec<User>)], long: bool) -> String {
    if units.is_empty() {
        return "no logical units\n".into();
    }
    let head = ["UNIT", "TARGET", "LUN", "TYPE", "SIZE", "STATE", "NODES", "NAME", "DEVICE", "USED BY"];
    let rows = units.iter().map(|(unit, users)| row(san, unit, users)).collect();
    let table = columns(head, rows);
    if !long {
        return table;
    }
    let mut lines = table.lines().map(str::to_owned);
    let mut text: String = lines.next().map(|head| head + "\n").unwrap_or_default();
    for (line, (unit, _)) in lines.zip(units) {
        text += &line;
        text.push('\n');
        text.extend(unit.links.iter().map(|link| format!("    {link}\n")));
    }
    text
}

fn row(san: &San, unit: &Unit, users: &[User]) -> [String; 10] {
    let nodes: Vec<&str> =
        [&unit.block, &unit.tape, &unit.sg].into_iter().flatten().map(String::as_str).collect();
    let users: Vec<String> = users.iter().map(ToString::to_string).collect();
    [
        unit.address.to_string(),
        or_dash(san.remote_of(unit).and_then(|remote| remote.wwpn)),
        unit.address.lun.to_string(),
        or_dash(unit.device_type.map(kind)),
        or_dash(unit.bytes.map(size)),
        filled(&unit.state),
        filled(&nodes.join(" ")),
        or_dash(unit.wwid.as_ref()),
        filled(format!("{} {}", unit.vendor, unit.model).trim()),
        filled(&users.join(", ")),
    ]
}

/// The name of a peripheral device type (SPC-5, 6.7.2).
pub(super) fn kind(device_type: u8) -> String {
    match device_type {
        0 => "disk".into(),
        1 => "tape".into(),
        5 => "cd".into(),
        8 => "changer".into(),
        0xc => "array".into(),
        0xd => "enclosure".into(),
        0x14 => "zoned".into(),
        other => format!("type {other}"),
    }
}

/// Bytes, in the largest unit of which there is at least one.
fn size(bytes: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let place = units.len().min((bytes.max(1).ilog2() / 10) as usize + 1) - 1;
    let unit = units.get(place).copied().unwrap_or_default();
    let (whole, rest) = (bytes >> (10 * place), bytes & ((1 << (10 * place)) - 1));
    // Tenths, rounded down: what is there for certain.
    let tenths = (u128::from(rest) * 10) >> (10 * place);
    if tenths == 0 { format!("{whole} {unit}") } else { format!("{whole}.{tenths} {unit}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_short() {
        for (bytes, text) in [
            (0, "0 B"),
            (512, "512 B"),
            (1 << 30, "1 GiB"),
            (1_000_000_000, "953.6 MiB"),
            (3 << 39, "1.5 TiB"),
            (u64::MAX, "15.9 EiB"),
        ] {
            assert_eq!(size(bytes), text);
        }
    }
}
