//! What there is, as lines for people and for tests to look through.

use std::fmt::Write;

use crate::array::relative;
use crate::fabric::Place;
use crate::names::mac_text;
use crate::outbox::Outbox;
use crate::san::San;
use crate::scsi::alua::Own;
use crate::scsi::{Kind, Nexus};

impl San {
    /// A line for each fabric, port, unit and session, and counts.
    pub(crate) fn info(&self, out: &Outbox) -> String {
        let mut text = String::new();
        // Writing to a string does not fail.
        let _ = self.write_info(&mut text, out);
        text
    }

    fn write_info(&self, text: &mut String, out: &Outbox) -> std::fmt::Result {
        for fabric in &self.fabrics {
            let (state, npiv) = (if fabric.off_until.is_some() { "off" } else { "on" }, fabric.npiv);
            let npiv = if npiv { "npiv" } else { "no npiv" };
            writeln!(
                text,
                "fabric {} {} {state}, {npiv}, period {}",
                fabric.domain,
                fabric.name(),
                fabric.period
            )?;
            for (name, zone) in &fabric.zones {
                let names: Vec<String> = zone.iter().map(ToString::to_string).collect();
                writeln!(text, "zone {name} {}", names.join(" "))?;
            }
            for port in fabric.ports.values() {
                let place = match port.place {
                    Place::Array(number) => format!("target port {}", number + 1),
                    Place::Node { link, node } => {
                        let name = self.links.get(link).map_or("", |link| link.name.as_str());
                        let kind = if port.is_virtual { "FDISC" } else { "FLOGI" };
                        format!("{kind} at {name} of {}", mac_text(node))
                    }
                };
                let hears = if port.is_registered { " RSCN" } else { "" };
                writeln!(
                    text,
                    "port {} {} {} {place}{hears}: {}",
                    port.id,
                    port.wwpn,
                    port.wwnn,
                    port.entry.text()
                )?;
            }
        }
        let array = &self.array;
        for (number, port) in array.ports.iter().enumerate() {
            let relative = relative(number);
            let state = match (port.is_up, port.is_silent) {
                (false, _) => "down",
                (true, true) => "silent",
                (true, false) => "up",
            };
            let (group, access) =
                (array.groups.group_of(relative), array.groups.state_at(relative, &Own::new()));
            let (name, unheard, commands) = (port.wwpn, port.unheard, port.commands);
            writeln!(
                text,
                "target {relative} {name} {state} group {group} {access:?}, {unheard} not heard, {commands} commands"
            )?;
        }
        for unit in &array.units {
            let own = unit.access.iter().map(|(group, access)| format!(", group {group} {:?}", access.state));
            let own: String = own.collect();
            match &unit.kind {
                Kind::Disk(disk) => {
                    let (size, held) = (disk.memory.size(), disk.memory.held());
                    writeln!(text, "disk {} {size} bytes, {held} held{own}", unit.name)?;
                }
                Kind::Tape(tape) => writeln!(text, "tape {} {} bytes{own}", unit.name, tape.used())?,
            }
        }
        for ((_, id), session) in &array.sessions {
            let tasks = array.tasks.values().filter(|task| task.nexus == session.nexus).count();
            let kind = if session.is_process { "PRLI" } else { "PLOGI" };
            let (Nexus { initiator, port }, commands) = (session.nexus, session.commands);
            writeln!(
                text,
                "session {initiator} {id} target {port} {kind}, {commands} commands, {tasks} tasks"
            )?;
        }
        write!(text, "{}", array.attentions)?;
        writeln!(text, "{}", array.injections)?;
        let (received, forwarded, dropped) = (self.received, self.forwarded, self.dropped);
        writeln!(
            text,
            "frames {received} received, {forwarded} forwarded, {dropped} dropped, {} sent",
            out.sent
        )?;
        writeln!(text, "{}", out.losses)
    }
}
