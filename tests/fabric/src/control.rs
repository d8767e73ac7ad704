//! Commands: what the array has, and what goes wrong. One a line, words with spaces between them.

use std::collections::BTreeSet;

use crate::array::{Array, Map, Whom};
use crate::attentions::{CHANGES, LOUDNESS};
use crate::els::{Reject, command};
use crate::fabric::{Fabric, Place};
use crate::inject::{Injection, Of};
use crate::names::{PortId, Wwn};
use crate::outbox::{HowMany, Outbox};
use crate::san::San;
use crate::scsi::Kind;
use crate::scsi::alua::{Access, STATES};
use crate::scsi::luns::Method;
use crate::scsi::referrals::{REFERRED, Referrals};
use crate::scsi::sense::Sense;
use crate::words::{
    FRAMES, LOGINS, OF_MANAGEMENT, ON, UP, fault, hex, number, of_command, one_of, or_any, size,
};

/// All commands. Numbers of codes are hexadecimal, all others decimal; sizes may end in K, M, G or T.
pub const HELP: &str = "\
info                                   ports, units, sessions, counts
disk NAME SIZE [BLOCK]                 a new disk; blocks have 512 bytes, or 4096
tape NAME                              a new tape
map WWPN|any[@PORT] LUN=NAME...        what an initiator sees at all target ports, or at one; without pairs nothing
                                       LUN is a number up to 16383, or all eight bytes: 4010400a00000000
unmap WWPN|any[@PORT]                  it sees again what is mapped to its name, to any at the port, or to any
method peripheral|flat [strict]        how LUNs below 256 are reported; strict takes them in no other form
lun0 absent|z                          what is at number 0 where no unit is; z says that a disk could be (LUNZ)
resize NAME SIZE                       a disk's size; initiators hear of it
read NAME OFFSET LENGTH                bytes of a disk, in hexadecimal
save NAME FILE                         a disk's bytes into a file
alua GROUP STATE [UNIT]                optimized, non-optimized, standby, unavailable, offline or transitioning; of one unit alone,
                                       which common makes as all others
pref GROUP on|off                      the preferred group
referrals NAME BLOCKS GROUP... quiet|completed|aborted
                                       a disk's blocks are dealt to groups, so many to each in turn; what a read or write hears that comes
                                       to another group: nothing, sense data with COMPLETED (reads alone), or ABORTED COMMAND
referrals NAME off
group PORT GROUP                       the target port group that a target port is in
port PORT down|up                      a target port
port PORT silent|heard                 a target port that hears and says nothing, of which nobody is told
burst BYTES|off                        writes are asked for in parts of so many bytes, of 512 at least
rec on|off                             whether target ports know of REC; without it, drivers wait for what is lost
link NAME down|up                      a network interface
logo WWPN [PORT]                       target ports log an initiator out
cvl [node] WWPN                        Clear Virtual Links: of one name, or of the node that it is on
zone NAME WWPN...                      a zone; without names it is none any more
rscn                                   everyone is to look at everything anew
attentions CODE|all off|first|all      who hears of a change: CODE is 3f/0e (LUNs), 3f/03 (another unit at a number), 2a/09 (size)
                                       or 2a/06 (ALUA); first is each initiator at its first unit, of the last two the first initiator
power [off|on]                         the array loses power and has it back: all logins go, and who logs in hears of a start
reject target-plogi|prli WWPN|any REASON EXPLANATION [PORT]
reject target-plogi|prli off           logins to target ports
inject LUN|any CODE|any COUNT WHAT [PORT]
                                       commands that drop, hang, are busy, full, in conflict, delay=MS, delay=MS-MS (in any order)
                                       or sense=KEY/ASC/ASCQ[@LBA][+d]: with information, in descriptor format
inject LUN|any tmf COUNT WHAT [PORT]   task management that drops, or that is not done: reject (RSP_CODE 04h), fail (05h)
inject off
lose WHAT COUNT|1/N                    frames: any, cmnd, data, ready, rsp, els, ct, abts or fip
lose off
address WWPN ID                        what a name gets with its next login, if that is free: a target port 01fxxx, a host's name 0101xx
of one fabric, with its number before them, or of all:
[@N] npiv on|off
[@N] reject flogi|fdisc|plogi WWPN|any REASON EXPLANATION
                                       plogi is to the directory and the fabric controller
[@N] reject flogi|fdisc|plogi off
[@N] addresses sticky|fresh            whether a name that comes back has the address that it had
[@N] restart MS                        all logins are forgotten, and nothing is heard for so long
[@N] period MS                         between keep-alives, and between advertisements
[@N] keep-alive on|off                 whether silent nodes are logged out
";

impl Array {
    /// A target port group that there is.
    fn group(&self, word: &str) -> Result<u16, String> {
        let group = number(word)?;
        if self.groups.has(group) { Ok(group) } else { Err(format!("there is no target port group {word}")) }
    }

    /// A unit's own state of a group, or none of its own.
    fn set_access(&mut self, unit: usize, group: u16, access: Option<Access>) {
        if let Some(unit) = self.units.get_mut(unit) {
            match access {
                Some(access) => drop(unit.access.insert(group, access)),
                None => drop(unit.access.remove(&group)),
            }
        }
        self.attend_all(unit, Sense::ASYMMETRIC_STATE_CHANGED, None);
    }
}

impl San {
    /// Does a command, at a time in milliseconds. Returns what it says, or what is wrong with it.
    pub fn command(&mut self, line: &str, now: u64, out: &mut Outbox) -> Result<String, String> {
        let mut words: Vec<&str> = line.split_whitespace().collect();
        let mut which = None;
        if let Some(number_of) = words.first().and_then(|word| word.strip_prefix('@')) {
            let at = number::<usize>(number_of)?.wrapping_sub(1);
            self.fabrics.get(at).ok_or_else(|| format!("there is no fabric {number_of}"))?;
            which = Some(at);
            words.remove(0);
        }
        let said = match &words[..] {
            [] => Ok(String::new()),
            [word] if word.starts_with('#') => Ok(String::new()),
            ["#", ..] => Ok(String::new()),
            ["help"] => Ok(HELP.to_owned()),
            ["info"] => Ok(self.info(out)),
            ["reject", login @ ("target-plogi" | "prli"), rest @ ..] => {
                self.reject(login, rest).map(|()| String::new())
            }
            ["npiv" | "reject" | "addresses" | "restart" | "period" | "keep-alive", ..] => {
                let chosen = |(at, _): &(usize, &mut Fabric)| which.is_none_or(|which| which == *at);
                let mut fabrics = self.fabrics.iter_mut().enumerate().filter(chosen);
                fabrics
                    .try_for_each(|(_, fabric)| of_fabric(fabric, &words, now, out))
                    .map(|()| String::new())
            }
            ["port" | "link" | "logo" | "cvl" | "zone" | "rscn" | "power" | "address", ..] => {
                self.of_paths(&words, out).map(|()| String::new())
            }
            ["inject" | "lose", ..] => self.of_faults(&words, out).map(|()| String::new()),
            _ => self.of_array(&words),
        };
        self.settle_after_command();
        said
    }

    /// The number of a target port, which people count from one.
    fn target_number(&self, word: &str) -> Result<usize, String> {
        let at = number::<usize>(word)?.wrapping_sub(1);
        if at < self.array.ports.len() { Ok(at) } else { Err(format!("there is no target port {word}")) }
    }

    /// Whom a map is for: a name or any, and a target port after an at sign.
    fn whom(&self, word: &str) -> Result<Whom, String> {
        let (name, port) = word.split_once('@').map_or((word, None), |(name, port)| (name, Some(port)));
        Ok((or_any(name, str::parse)?, port.map(|port| self.target_number(port)).transpose()?))
    }

    fn of_paths(&mut self, words: &[&str], out: &mut Outbox) -> Result<(), String> {
        match words {
            ["port", port, state @ ("silent" | "heard")] => {
                let port = self.target_number(port)?;
                if let Some(port) = self.array.ports.get_mut(port) {
                    port.is_silent = *state == "silent";
                }
            }
            ["port", port, state] => {
                let (port, is_up) = (self.target_number(port)?, one_of(state, &UP)?);
                self.set_target(port, is_up, out);
            }
            ["link", name, state] => {
                let link = self.links.iter().position(|link| link.name == *name);
                let link = link.ok_or_else(|| format!("there is no link {name}"))?;
                let is_up = one_of(state, &UP)?;
                out.links.push((link, is_up));
                if !is_up {
                    self.link_down(link, out);
                }
            }
            ["logo", name, port @ ..] => {
                let name: Wwn = name.parse()?;
                let ports = match port {
                    [] => (0..self.array.ports.len()).collect(),
                    [port] => vec![self.target_number(port)?],
                    _ => return Err("logo WWPN [PORT]".into()),
                };
                for port in ports {
                    if let Some(id) = self.target_id(port) {
                        self.array.send_logo(port, id, name, out);
                    }
                }
            }
            ["cvl", node @ .., name] if node.is_empty() || *node == ["node"] => {
                let name: Wwn = name.parse()?;
                let fabric = self.fabrics.iter_mut().find(|fabric| fabric.by_name(name).is_some());
                let fabric = fabric.ok_or_else(|| format!("{name} is not logged in"))?;
                cut_off(fabric, name, !node.is_empty(), out);
            }
            ["zone", name, names @ ..] => {
                let names: BTreeSet<Wwn> = names.iter().map(|name| name.parse()).collect::<Result<_, _>>()?;
                for fabric in &mut self.fabrics {
                    if names.is_empty() {
                        fabric.zones.remove(*name);
                    } else {
                        fabric.zones.insert((*name).to_owned(), names.clone());
                    }
                    fabric.announce_all(out);
                }
            }
            ["address", name, id] => {
                let (name, id) = (
                    name.parse()?,
                    u32::from_str_radix(id, 16).map_err(|_| format!("{id} is no N_Port_ID"))?,
                );
                let fabric = self.fabrics.iter_mut().find(|fabric| u32::from(fabric.domain) == id >> 16);
                let fabric = fabric.ok_or_else(|| format!("{id:06x} is of no fabric here"))?;
                fabric.addresses.want(name, PortId(id));
            }
            ["power"] => self.power(true, true, out),
            ["power", state] => {
                let is_on = one_of(state, &ON)?;
                self.power(!is_on, is_on, out);
            }
            ["rscn"] => self.fabrics.iter().for_each(|fabric| fabric.announce_all(out)),
            _ => return Err(format!("{}: see help", words.join(" "))),
        }
        Ok(())
    }

    /// Logins to target ports that are rejected.
    fn reject(&mut self, login: &str, words: &[&str]) -> Result<(), String> {
        let request = if login == "prli" { command::PRLI } else { command::PLOGI };
        match words {
            ["off"] => drop(self.array.rejects.remove(&request)),
            [name, reason, explanation, port @ ..] if port.len() < 2 => {
                let port = port.first().map(|port| self.target_number(port)).transpose()?;
                let reject = Reject(hex(reason)?, hex(explanation)?);
                self.array.rejects.insert(request, (or_any(name, str::parse)?, port, reject));
            }
            _ => return Err(format!("reject {login}: see help")),
        }
        Ok(())
    }

    fn of_faults(&mut self, words: &[&str], out: &mut Outbox) -> Result<(), String> {
        match words {
            ["inject", "off"] => self.array.injections.rules.clear(),
            ["inject", lun, code, count, what, port @ ..] => {
                let (of, fault) = match *code {
                    "tmf" => (Of::Management, one_of(what, &OF_MANAGEMENT)?),
                    code => (or_any(code, hex)?.map_or(Of::Any, Of::Operation), fault(what)?),
                };
                let injection = Injection {
                    of,
                    lun: or_any(lun, of_command)?,
                    port: port.first().map(|port| self.target_number(port)).transpose()?,
                    left: number(count)?,
                    fault,
                };
                if injection.left > 0 {
                    self.array.injections.rules.push(injection);
                }
            }
            ["lose", "off"] => out.losses.clear(),
            ["lose", what, count] => {
                let how_many = match count.strip_prefix("1/") {
                    Some(many) => HowMany::OneOf(number(many)?),
                    None => HowMany::Next(number(count)?),
                };
                out.losses.add(one_of(what, &FRAMES)?, how_many);
            }
            _ => return Err(format!("{}: see help", words.join(" "))),
        }
        Ok(())
    }

    fn of_array(&mut self, words: &[&str]) -> Result<String, String> {
        let whom = match words {
            ["map" | "unmap", whom, ..] => self.whom(whom)?,
            _ => (None, None),
        };
        let array = &mut self.array;
        match words {
            ["disk", name, bytes] => array.add_disk(name, size(bytes)?, 512)?,
            ["disk", name, bytes, block] => {
                let block = one_of(block, &[("512", 512), ("4096", 4096)])?;
                array.add_disk(name, size(bytes)?, block)?;
            }
            ["tape", name] => array.add_tape(name)?,
            ["map", _, pairs @ ..] => {
                let mut map = Map::new();
                for pair in pairs {
                    let (lun, name) = pair.split_once('=').ok_or_else(|| format!("{pair}: LUN=NAME"))?;
                    map.insert(lun.parse()?, array.unit(name)?);
                }
                array.map(whom, Some(map));
            }
            ["unmap", "any"] => return Err("any: map any, without pairs".into()),
            ["unmap", _] => array.map(whom, None),
            ["burst", "off"] => array.burst = None,
            ["burst", bytes] => {
                let burst = u32::try_from(size(bytes)?).ok().filter(|burst| *burst > 0 && *burst % 512 == 0);
                array.burst = Some(burst.ok_or_else(|| format!("{bytes}: a multiple of 512"))?);
            }
            ["rec", state] => array.has_no_rec = !one_of(state, &ON)?,
            ["method", method, strict @ ..] if matches!(strict, [] | ["strict"]) => {
                array.method = one_of(method, &[("peripheral", Method::Peripheral), ("flat", Method::Flat)])?;
                array.is_strict = !strict.is_empty();
            }
            ["lun0", what] => array.has_lunz = one_of(what, &[("absent", false), ("z", true)])?,
            ["alua", group, "common", unit] => {
                let (group, unit) = (array.group(group)?, array.unit(unit)?);
                array.set_access(unit, group, None);
            }
            ["alua", group, state, unit @ ..] if unit.len() < 2 => {
                let (group, state) = (array.group(group)?, one_of(state, &STATES)?);
                // By the array itself.
                let access = Access { state, cause: 2 };
                match unit.first().map(|unit| array.unit(unit)).transpose()? {
                    Some(unit) => array.set_access(unit, group, Some(access)),
                    None => {
                        array.groups.set(group, access);
                        array.states_changed(None);
                    }
                }
            }
            ["pref", group, state] => {
                let group = array.group(group)?;
                array.groups.prefer(group, one_of(state, &ON)?);
            }
            ["group", port, group] => {
                let port = self.target_number(port)?;
                self.array.groups.place(crate::array::relative(port), number(group)?);
                self.array.states_changed(None);
            }
            ["attentions", change, loudness] => {
                let loudness = one_of(loudness, &LOUDNESS)?;
                match *change {
                    "all" => CHANGES.iter().for_each(|(_, change)| array.attentions.set(*change, loudness)),
                    change => array.attentions.set(one_of(change, &CHANGES)?, loudness),
                }
            }
            ["resize" | "read" | "save" | "referrals", name, rest @ ..] => {
                return self.of_disk(words, name, rest);
            }
            _ => return Err(format!("{}: see help", words.join(" "))),
        }
        Ok(String::new())
    }

    fn of_disk(&mut self, words: &[&str], name: &str, rest: &[&str]) -> Result<String, String> {
        let at = self.array.unit(name)?;
        let referrals = match (words.first(), rest) {
            (Some(&"referrals"), [blocks, groups @ .., referred]) => Some(Referrals {
                blocks: number::<u32>(blocks)?.max(1),
                groups: groups.iter().map(|group| self.array.group(group)).collect::<Result<_, _>>()?,
                referred: one_of(referred, &REFERRED)?,
            }),
            _ => None,
        };
        let Some(Kind::Disk(disk)) = self.array.units.get_mut(at).map(|unit| &mut unit.kind) else {
            return Err(format!("{name} is no disk"));
        };
        match (words.first(), rest) {
            (Some(&"resize"), [bytes]) => {
                let (size, block) = (size(bytes)?, u64::from(disk.block()));
                disk.memory.resize(size - size % block);
                self.array.attend_all(at, Sense::CAPACITY_DATA_HAS_CHANGED, None);
                Ok(String::new())
            }
            (Some(&"referrals"), ["off"] | [_, _, _, ..]) => {
                disk.referrals = referrals;
                Ok(String::new())
            }
            (Some(&"read"), [offset, length]) => {
                let (offset, length) = (size(offset)?, size(length)?);
                let length = usize::try_from(length).ok().filter(|length| *length <= 1 << 20);
                let mut bytes = vec![0; length.ok_or("no more than 1M at once")?];
                disk.memory.read(offset, &mut bytes);
                Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>() + "\n")
            }
            (Some(&"save"), [file]) => {
                let save = || -> std::io::Result<()> {
                    use std::io::Write;
                    let mut file = std::fs::File::create(file)?;
                    let (size, mut part) = (disk.memory.size(), vec![0; 1 << 20]);
                    for at in (0..size).step_by(part.len()) {
                        disk.memory.read(at, &mut part);
                        let length =
                            usize::try_from(size - at).map_or(part.len(), |left| left.min(part.len()));
                        file.write_all(part.get(..length).unwrap_or_default())?;
                    }
                    Ok(())
                };
                save().map(|()| String::new()).map_err(|error| format!("{file}: {error}"))
            }
            _ => Err(format!("{}: see help", words.join(" "))),
        }
    }
}

/// Logs a name out, or its whole node, and says so to the node.
fn cut_off(fabric: &mut Fabric, name: Wwn, whole: bool, out: &mut Outbox) {
    let Some(port) = fabric.by_name(name) else { return };
    let Place::Node { link, node } = port.place else { return };
    if whole {
        fabric.clear_virtual_links(link, node, &[], out);
    } else {
        fabric.clear_virtual_links(link, node, &[(port.id, port.wwpn)], out);
    }
    let goes =
        |place: Place, wwpn: Wwn| if whole { place == Place::Node { link, node } } else { wwpn == name };
    let ids: Vec<_> =
        fabric.ports.values().filter(|port| goes(port.place, port.wwpn)).map(|port| port.id).collect();
    ids.into_iter().for_each(|id| fabric.remove(id, "Clear Virtual Links", out));
}

fn of_fabric(fabric: &mut Fabric, words: &[&str], now: u64, out: &mut Outbox) -> Result<(), String> {
    match words {
        ["npiv", state] => fabric.npiv = one_of(state, &ON)?,
        ["reject", login, "off"] => drop(fabric.rejects.remove(&one_of(login, &LOGINS)?)),
        ["reject", login, name, reason, explanation] => {
            let reject = Reject(hex(reason)?, hex(explanation)?);
            fabric.rejects.insert(one_of(login, &LOGINS)?, (or_any(name, str::parse)?, reject));
        }
        ["addresses", state] => {
            fabric.addresses.are_fresh = one_of(state, &[("sticky", false), ("fresh", true)])?;
        }
        ["restart", time] => {
            let time: u64 = number(time)?;
            fabric.restart(now.saturating_add(time), out);
        }
        ["period", time] => {
            fabric.period = number(time)?;
            fabric.advertise_now();
        }
        ["keep-alive", state] => fabric.wants_keep_alive = one_of(state, &ON)?,
        _ => return Err(format!("{}: see help", words.join(" "))),
    }
    Ok(())
}
