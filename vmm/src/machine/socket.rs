//! The control socket: one JSON object a line asks, one JSON object a line answers.
//!
//! `{"execute": "attach", "arguments": {"hba": "scsi0", "image": "extra.img"}, "id": 1}` is answered with
//! `{"return": {...}, "id": 1}` or `{"error": {"desc": "..."}, "id": 1}`. An `id` may be left out. Requests of one
//! connection are carried out in order. Descriptors come with `add-fd`, by SCM_RIGHTS.

mod describe;

use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, anyhow, bail, ensure};
use devices::storage::{fdset, settle_left};
use devices::threads::{self, Kind};
use serde_json::{Map, Value, json};

use super::adapter::{Adapter, UnitState, names_named, state_named};
use super::control::{Control, Event, PATIENCE};
use super::requests::{Given, LINE_MAX, Line, Requests};
use super::seats::{self, Seats};
use super::space::Space;
use crate::config::{self, ConfigError, HbaType, LunType, spell};
use crate::exit::explain;
use crate::listen::{self, Takes};
use crate::names::Name;
use describe::{describe, describe_set};

/// Connections at once.
const CLIENTS_MAX: usize = 16;

/// What is said of a disc, and where the drive is.
const DISC: [&str; 8] = ["hba", "target", "lun", "image", "format", "backing", "cache", "bounce"];

/// Each command with its arguments; `None`: those of `[[hba.lun]]`, too.
const COMMANDS: [(&str, Option<&[&str]>); 22] = [
    ("query-status", Some(&[])),
    ("query-hbas", Some(&[])),
    ("attach", None),
    ("detach", Some(&["hba", "target", "lun"])),
    ("change", None),
    ("eject", Some(&["hba", "target", "lun", "force"])),
    ("insert", Some(&DISC)),
    ("resize", Some(&["hba", "target", "lun", "size"])),
    ("fc-port", Some(&["hba", "target", "state"])),
    ("fc-names", Some(&["hba", "names"])),
    ("add-fd", Some(&["fdset-id", "opaque"])),
    ("remove-fd", Some(&["fdset-id", "fd"])),
    ("query-fdsets", Some(&[])),
    ("pause", Some(&[])),
    ("stop", Some(&[])),
    ("resume", Some(&[])),
    ("cont", Some(&[])),
    ("powerdown", Some(&[])),
    ("system_powerdown", Some(&[])),
    ("reset", Some(&[])),
    ("system_reset", Some(&[])),
    ("quit", Some(&[])),
];

/// What requests work on.
pub struct Service {
    /// The machine's name.
    pub name: String,
    /// Directory that paths are relative to.
    pub directory: PathBuf,
    /// Paths that no disk may have.
    pub own: Vec<config::Own>,
    /// Runs, pauses, ends the machine.
    pub control: Arc<Control>,
    /// Its HBAs.
    pub adapters: Vec<Arc<Adapter>>,
    /// What the host has no space for.
    pub space: Arc<Space>,
    /// Presses the power button; false when no guest listens.
    pub power_button: Box<dyn Fn() -> bool + Send + Sync>,
}

/// The socket while it is listened on, which is to the end of the process. Dropping it removes it from the file system.
pub struct Socket {
    _name: Name,
}

impl Socket {
    /// Listens at `path`, which only the user of this process may connect to, and serves on threads of its own.
    pub fn listen(path: &Path, service: Service) -> Result<Self> {
        let (listener, name) = listen::listen(path, Takes::Descriptors)
            .with_context(|| format!("control socket {}", path.display()))?;
        let service = Arc::new(service);
        let seats = Seats::new(CLIENTS_MAX);
        let accept = move || {
            for stream in listener.incoming() {
                let stream = match stream {
                    Ok(stream) => stream,
                    Err(error) => {
                        let pause = listen::accept_failed("control socket", &error);
                        std::thread::sleep(pause.unwrap_or_default());
                        continue;
                    }
                };
                let service = service.clone();
                seats::serve(stream, seats.next(), move |stream: &UnixStream, seat| {
                    if !seat.served {
                        refuse(stream);
                    } else if let Err(e) = service.serve(stream) {
                        tracing::debug!("a control connection ended: {e}");
                    }
                });
            }
        };
        threads::spawn(Kind::Control, "control", accept).context("the control thread")?;
        Ok(Self { _name: name })
    }
}

impl Service {
    /// Answers the requests of one connection until it ends.
    pub(super) fn serve(&self, stream: &UnixStream) -> io::Result<()> {
        let mut requests = Requests::new(stream);
        while let Some(Line { bytes, cut }) = requests.next()? {
            if bytes.iter().all(u8::is_ascii_whitespace) && !cut {
                continue;
            }
            let mut answer = match cut {
                true => failure(&format!("the request has more than {LINE_MAX} bytes; the connection ends")),
                false => self.answer(&bytes, &mut requests.given),
            }
            .to_string();
            requests.answered();
            answer.push('\n');
            (&*stream).write_all(answer.as_bytes())?;
            if cut {
                break;
            }
        }
        Ok(())
    }

    /// The answer to one line, with which, or before it, these descriptors came.
    pub fn answer(&self, line: &[u8], given: &mut Given) -> Value {
        let mut id = None;
        let result = serde_json::from_slice::<Value>(line).context("not JSON").and_then(|request| {
            id = request.get("id").cloned();
            check_members(&request)?;
            let name = request.get("execute").and_then(Value::as_str).context("no \"execute\"")?.to_owned();
            let arguments = match request.get("arguments") {
                None => Map::new(),
                Some(Value::Object(arguments)) => arguments.clone(),
                Some(_) => bail!("\"arguments\" is no object"),
            };
            self.execute(&name, Arguments(arguments), given)
        });
        let mut answer = match result {
            Ok(value) => json!({ "return": value }),
            Err(e) => failure(&explain(&e)),
        };
        if let (Some(id), Some(object)) = (id, answer.as_object_mut()) {
            object.insert("id".into(), id);
        }
        answer
    }

    /// The names are those of QMP where it has one; ours where that says it better.
    fn execute(&self, name: &str, mut arguments: Arguments, given: &mut Given) -> Result<Value> {
        check_command(name, &arguments).inspect_err(|_| {
            // They came with this request, and are closed with it.
            if name == "add-fd" {
                drop(given.take());
            }
        })?;
        let done = || Ok(json!({}));
        // Of disks for which the host did more when they went, if nobody sees to that. To unlock may wait for a file server, so it
        // is not done here.
        if matches!(name, "attach" | "change" | "insert" | "add-fd" | "remove-fd" | "query-fdsets")
            && let Some(adapter) = self.adapters.first()
        {
            adapter.remote().spawn(|io| async move { settle_left(&io) });
        }
        match name {
            "query-status" => Ok(self.status()),
            "query-hbas" => Ok(self.adapters.iter().map(describe).collect()),
            "attach" => {
                let adapter = self.adapter(&mut arguments)?;
                let free = match arguments.0.contains_key("target") {
                    true => None,
                    false => Some(adapter.free_target().context("no free target")?),
                };
                if let Some(free) = &free {
                    arguments.0.insert("target".into(), free.target().into());
                }
                let lun = self.unit(adapter, arguments)?;
                let state = adapter.attach(&lun)?;
                adapter.warn(&lun);
                Ok(json!({ "target": lun.target, "lun": lun.lun, "state": state.describe() }))
            }
            "detach" => {
                let (adapter, target, lun) = self.address(&mut arguments)?;
                adapter.detach(target, lun)?;
                done()
            }
            "change" => {
                let adapter = self.adapter(&mut arguments)?;
                ensure!(arguments.0.contains_key("target"), "no \"target\"");
                let force = arguments.flag("force")?;
                if changes_disc(adapter, &arguments)? {
                    let lun = self.disc(adapter, arguments)?;
                    adapter.change_disc(&lun, force)?;
                    let state = UnitState::Attached.describe();
                    return Ok(json!({ "target": lun.target, "lun": lun.lun, "state": state }));
                }
                ensure!(!force, "\"force\" is for the disc of a CD drive");
                let passes = place(&arguments).is_some_and(|(target, lun)| adapter.passes(target, lun));
                ensure!(
                    !passes || arguments.0.contains_key("type"),
                    "a device of the host is passed through there; say with \"type\" what is to come in its place"
                );
                let lun = self.unit(adapter, arguments)?;
                let state = adapter.change(&lun)?;
                adapter.warn(&lun);
                Ok(json!({ "target": lun.target, "lun": lun.lun, "state": state.describe() }))
            }
            "eject" => {
                let (adapter, target, lun) = self.address(&mut arguments)?;
                adapter.eject(target, lun, arguments.flag("force")?)?;
                done()
            }
            "insert" => {
                let adapter = self.adapter(&mut arguments)?;
                ensure!(arguments.0.contains_key("target"), "no \"target\"");
                let lun = self.disc(adapter, arguments)?;
                adapter.insert_disc(&lun)?;
                done()
            }
            "resize" => {
                let (adapter, target, lun) = self.address(&mut arguments)?;
                let size = arguments.number("size", u64::MAX)?;
                Ok(json!({ "size": adapter.resize(target, lun, size)? }))
            }
            "fc-port" => {
                let adapter = self.adapter(&mut arguments)?;
                let target = arguments.number("target", u8::MAX.into())?.map(u8::try_from).transpose()?;
                let word = arguments.text("state")?.context("no \"state\"")?;
                let state = state_named(&word).with_context(|| {
                    format!("\"state\" is \"{word}\", expected \"online\", \"blocked\" or \"lost\"")
                })?;
                adapter.set_port(target, state)?;
                done()
            }
            "fc-names" => {
                let adapter = self.adapter(&mut arguments)?;
                let word = arguments.text("names")?.context("no \"names\"")?;
                let names = names_named(&word).with_context(|| {
                    format!("\"names\" is \"{word}\", expected \"primary\" or \"secondary\"")
                })?;
                adapter.set_names(names)?;
                done()
            }
            "add-fd" => {
                // Closed where anything is wrong.
                let given = given.take()?;
                let set = arguments.number("fdset-id", fdset::NUMBER_MAX)?;
                let opaque = arguments.text("opaque")?;
                let (set, all) = fdset::add(given, set, opaque.as_deref())?;
                let mut answer = json!({ "fdset-id": set, "fd": all.first() });
                if let (true, Some(object)) = (all.len() > 1, answer.as_object_mut()) {
                    object.insert("fds".into(), all.into());
                }
                Ok(answer)
            }
            "remove-fd" => {
                let set = arguments.number("fdset-id", fdset::NUMBER_MAX)?.context("no \"fdset-id\"")?;
                let fd = arguments.number("fd", i32::MAX as u64)?;
                fdset::remove(set, fd.map(i32::try_from).transpose()?)?;
                done()
            }
            "query-fdsets" => Ok(fdset::list().into_iter().map(describe_set).collect()),
            "pause" | "stop" => {
                self.control.ask_to_pause(true, PATIENCE)?;
                done()
            }
            "resume" | "cont" => {
                self.control.ask_to_pause(false, PATIENCE)?;
                done()
            }
            "powerdown" | "system_powerdown" => {
                ensure!((self.power_button)(), "the guest does not listen to its power button");
                done()
            }
            "reset" | "system_reset" => {
                self.control.reset_requested("control socket");
                done()
            }
            "quit" => {
                self.control.post(Event::Quit);
                done()
            }
            other => bail!("unknown command \"{other}\""),
        }
    }

    /// Whether the machine runs, and why it does not.
    fn status(&self) -> Value {
        let (why, detail) = match self.space.shortage() {
            Some(detail) => ("no-space", Some(detail)),
            None if self.control.is_paused() => ("request", None),
            None => return json!({ "name": self.name, "status": "running", "running": true }),
        };
        let mut status = json!({ "name": self.name, "status": "paused", "running": false, "reason": why });
        if let (Some(detail), Some(object)) = (detail, status.as_object_mut()) {
            object.insert("detail".into(), detail.into());
        }
        status
    }

    fn adapter(&self, arguments: &mut Arguments) -> Result<&Arc<Adapter>> {
        match (arguments.text("hba")?, self.adapters.as_slice()) {
            (None, [only]) => Ok(only),
            (_, []) => bail!(
                "this machine has no HBA whose units are its own; those of vhost-scsi are the kernel's target"
            ),
            (None, all) => bail!("which \"hba\"? There are {}", ids(all)),
            (Some(id), all) => all.iter().find(|a| a.id == id).ok_or_else(|| {
                match spell::closest(&id, all.iter().map(|a| a.id.as_str())) {
                    Some(meant) => anyhow!("no HBA is called \"{id}\", did you mean \"{meant}\"?"),
                    None => anyhow!("no HBA is called \"{id}\"; there are {}", ids(all)),
                }
            }),
        }
    }

    fn address(&self, arguments: &mut Arguments) -> Result<(&Arc<Adapter>, u8, u16)> {
        let adapter = self.adapter(arguments)?;
        let target = arguments.number("target", u8::MAX.into())?.context("no \"target\"")?;
        let lun = arguments.number("lun", 16383)?.unwrap_or(0);
        Ok((adapter, u8::try_from(target)?, u16::try_from(lun)?))
    }

    /// A drive with the disc that the arguments describe, with `bounce` as the disc before had it.
    fn disc(&self, adapter: &Adapter, mut arguments: Arguments) -> Result<config::Lun> {
        ensure!(arguments.0.contains_key("image"), "no \"image\"");
        if let (false, Some((target, lun))) = (arguments.0.contains_key("bounce"), place(&arguments))
            && adapter.drive_bounces(target, lun)
        {
            arguments.0.insert("bounce".into(), true.into());
        }
        arguments.0.insert("type".into(), LunType::Cd.name().into());
        self.unit(adapter, arguments)
    }

    /// The unit that the arguments describe, in the words of `[[hba.lun]]`.
    fn unit(&self, adapter: &Adapter, arguments: Arguments) -> Result<config::Lun> {
        let mode = match adapter.kind {
            HbaType::Megasas if !adapter.makes_volumes() => "mode = \"jbod\"\n",
            _ => "",
        };
        let mut text = format!("[[hba]]\ntype = \"{}\"\n{mode}[[hba.lun]]\n", adapter.kind.name());
        for (key, value) in &arguments.0 {
            let value = toml_value(key, value)?;
            text.push_str(&format!("{} = {value}\n", toml::Value::String(key.clone())));
        }
        let hba = config::parse_new_hba(&text, &self.directory, &self.own).map_err(|errors| {
            let lines: Vec<String> = errors.iter().map(ConfigError::message).collect();
            anyhow!("{}", lines.join("; "))
        })?;
        ensure!(adapter.kind == HbaType::VirtioScsi || hba.luns.len() == 1, "one unit at a time");
        hba.luns.into_iter().next().context("no unit")
    }
}

fn failure(what: &str) -> Value {
    json!({ "error": { "class": "GenericError", "desc": what } })
}

/// One connection too many. It is not waited for.
fn refuse(mut stream: &UnixStream) {
    let line = format!("{}\n", failure(&format!("{CLIENTS_MAX} connections are served already; close one")));
    let _ = stream.set_nonblocking(true).and_then(|()| stream.write_all(line.as_bytes()));
}

/// A member that would be ignored is a mistake.
fn check_members(request: &Value) -> Result<()> {
    const MEMBERS: [&str; 3] = ["execute", "arguments", "id"];
    let members = request.as_object().context("no object")?;
    let Some(unknown) = members.keys().find(|name| !MEMBERS.contains(&name.as_str())) else { return Ok(()) };
    match spell::closest(unknown, MEMBERS) {
        Some(meant) => bail!("unknown member \"{unknown}\", did you mean \"{meant}\"?"),
        None => bail!("unknown member \"{unknown}\""),
    }
}

/// A command or an argument that nobody knows is a mistake.
fn check_command(name: &str, arguments: &Arguments) -> Result<()> {
    let Some((_, known)) = COMMANDS.iter().find(|(command, _)| *command == name) else {
        match spell::closest(name, COMMANDS.iter().map(|(command, _)| *command)) {
            Some(meant) => bail!("unknown command \"{name}\", did you mean \"{meant}\"?"),
            None => bail!("unknown command \"{name}\""),
        }
    };
    let Some(known) = known else { return Ok(()) };
    let unknown = arguments.0.keys().find(|key| !known.contains(&key.as_str()));
    let Some(unknown) = unknown else { return Ok(()) };
    match spell::closest(unknown, known.iter().copied()) {
        Some(meant) => bail!("unknown argument \"{unknown}\", did you mean \"{meant}\"?"),
        None if known.is_empty() => bail!("unknown argument \"{unknown}\": \"{name}\" takes none"),
        None => bail!("unknown argument \"{unknown}\"; expected {}", spell::any_of(known, '"')),
    }
}

/// Target and LUN; zeros where the arguments do not say.
fn place(arguments: &Arguments) -> Option<(u8, u16)> {
    let number = |key| arguments.0.get(key).map_or(Some(0), Value::as_u64);
    Some((u8::try_from(number("target")?).ok()?, u16::try_from(number("lun")?).ok()?))
}

/// Whether another disc comes into a drive that stays, not another unit to its place.
fn changes_disc(adapter: &Adapter, arguments: &Arguments) -> Result<bool> {
    let drive = place(arguments).is_some_and(|(target, lun)| adapter.has_drive(target, lun));
    let kind = arguments.0.get("type");
    if !drive || kind.is_some_and(|kind| kind != LunType::Cd.name()) {
        return Ok(false);
    }
    let other = arguments.0.keys().find(|key| *key != "type" && !DISC.contains(&key.as_str()));
    match other {
        Some(key) => bail!(
            "\"{key}\" is nothing of a disc: the drive stays as it is; detach it and attach another one"
        ),
        None => Ok(true),
    }
}

fn ids(adapters: &[Arc<Adapter>]) -> String {
    let all: Vec<String> = adapters.iter().map(|adapter| format!("\"{}\"", adapter.id)).collect();
    all.join(", ")
}

/// The value of `key` in the words of the configuration file.
fn toml_value(key: &str, value: &Value) -> Result<toml::Value> {
    Ok(match value {
        Value::Bool(value) => (*value).into(),
        Value::Number(number) if number.is_f64() => {
            bail!("\"{key}\" is {number}, which no key takes; expected a whole number")
        }
        Value::Number(number) => number
            .as_i64()
            .with_context(|| {
                format!(
                    "\"{key}\" is {number}, which no key takes; expected a whole number of less than 2^63"
                )
            })?
            .into(),
        Value::String(text) => text.as_str().into(),
        Value::Object(entries) => {
            let within = |(inner, value): (&String, &Value)| {
                let value = toml_value(inner, value).map_err(|error| anyhow!("\"{key}\": {error}"))?;
                Ok((inner.clone(), value))
            };
            toml::Value::Table(entries.iter().map(within).collect::<Result<_>>()?)
        }
        Value::Array(items) => {
            toml::Value::Array(items.iter().map(|item| toml_value(key, item)).collect::<Result<_>>()?)
        }
        Value::Null => {
            bail!("\"{key}\" is null, which no key takes; leave it out to have what it is without")
        }
    })
}

/// The arguments of a request; each is taken once, and none may be left.
struct Arguments(Map<String, Value>);

impl Arguments {
    fn number(&mut self, key: &str, most: u64) -> Result<Option<u64>> {
        let Some(value) = self.0.remove(key) else { return Ok(None) };
        let number = value.as_u64().filter(|number| *number <= most);
        number.map(Some).with_context(|| format!("\"{key}\" is {value}, expected 0 to {most}"))
    }

    fn flag(&mut self, key: &str) -> Result<bool> {
        match self.0.remove(key) {
            None => Ok(false),
            Some(Value::Bool(value)) => Ok(value),
            Some(value) => bail!("\"{key}\" is {value}, expected true or false"),
        }
    }

    fn text(&mut self, key: &str) -> Result<Option<String>> {
        match self.0.remove(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(value) => bail!("\"{key}\" is {value}, expected a text"),
        }
    }
}

#[cfg(test)]
#[path = "socket_tests.rs"]
mod tests;
