//! `vmm fc`: Fibre Channel ports of the host, and virtual ports on them, for people and, with `--json`, for programs (docs/fc.md).

mod json;
mod options;
mod table;
mod watching;

use std::ffi::OsString;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use devices::threads::{self, Kind};
use fc::choose::Rules;
use fc::model::{Host, San, Unit, Vport};
use fc::names::{Names, random};
use fc::state::{Definition, Life, Lock, StateError, Store, is_of_ports};
use fc::users::{User, Users};
use fc::vport::{Cleaned, Cleanup, Live, Pause, Ports, Request};
use fc::{Roots, Wwn};

use self::options::{Given, Options, What};
use crate::cli::Stop;
use crate::console::{Request as Signal, Signals};
use crate::exit::{Outcome, complain, explain, tell};

/// Does what a command line asks for that begins with `fc`; `None` if it asks for something else.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> Option<Outcome> {
    let outcome = match options::read(arguments)? {
        Ok(options) => Tool::new(&options).run(options.what),
        Err(Stop::Told(text)) => {
            tell(&text);
            Ok(())
        }
        Err(Stop::Usage(line)) => Err(anyhow::anyhow!(line)),
    };
    Some(match outcome {
        Ok(()) => Outcome::PoweredOff,
        Err(error) => {
            complain(explain(&error));
            Outcome::Failed
        }
    })
}

/// What the host shows, at one moment, and what is stored.
struct View {
    san: San,
    records: Vec<(Wwn, String)>,
    definitions: Vec<(String, Definition)>,
}

struct Tool {
    roots: Roots,
    store: Store,
    json: bool,
}

impl Tool {
    fn new(options: &Options) -> Self {
        let root = options.root.clone().unwrap_or_else(|| "/".into());
        Self { roots: Roots::below(&root), store: Store::below(&root), json: options.json }
    }

    fn run(&self, what: What) -> Result<()> {
        match what {
            What::List { capable } => self.list(capable),
            What::Show { what } => self.show(&what),
            What::Luns { of, long } => self.luns(of.as_deref(), long),
            What::Create { name, given, timeout } => self.create(name.as_deref(), given, timeout),
            What::Delete { vport, force } => self.delete(&vport, force),
            What::Define { name, given, names_only } => self.define(&name, given, !names_only),
            What::Undefine { name } => self.undefine(&name),
            What::StartDefined { names, timeout } => self.start_defined(&names, timeout),
            What::Clean => self.clean(),
            What::Watch { of, count, timeout } => {
                let host = of.map(|of| self.host(&San::read(&self.roots), &of)).transpose()?;
                watching::watch(&self.roots, host, count, timeout, self.json)
            }
        }
    }

    fn view(&self) -> View {
        let records = listed(self.store.records()).into_iter().filter_map(told).map(|record| {
            let state = match record.life(&self.roots) {
                Life::Lives => "",
                Life::Ended | Life::OtherStart => ", ended",
                Life::Unknown => ", not to be seen from here",
            };
            (record.wwpn, format!("{} ({}{state})", record.owner, record.pid))
        });
        let definitions = listed(self.store.definitions()).into_iter();
        let definitions = definitions.filter_map(|(name, definition)| Some((name, told(definition)?)));
        View { san: San::read(&self.roots), records: records.collect(), definitions: definitions.collect() }
    }

    /// What is stored is read and written by nobody else, until this is dropped.
    fn lock(&self) -> Result<Lock> {
        Ok(self.ports(sleep).lock()?)
    }

    fn ports<W: FnMut(Duration) -> Pause>(&self, wait: W) -> Ports<'_, Live<W>> {
        Ports::new(&self.roots, &self.store, Live::new(wait))
    }

    /// One table, or one value.
    fn say(&self, text: String, value: impl FnOnce() -> serde_json::Value) {
        if self.json { tell(&format!("{:#}\n", value())) } else { tell(&text) }
    }

    fn list(&self, capable: bool) -> Result<()> {
        let mut view = self.view();
        if capable {
            view.san.hosts.retain(|host| host.npiv.is_some_and(|npiv| npiv.max > 0));
        }
        self.say(table::list(&view), || json::list(&view));
        Ok(())
    }

    /// What a user means: the name of a definition stands for its virtual port.
    fn meant(&self, what: &str) -> String {
        match self.store.definition(what) {
            Ok(definition) if !is_of_ports(what) => definition.wwpn.to_string(),
            _ => what.to_owned(),
        }
    }

    /// The number of the host that a user means: a port, or a virtual one.
    fn host(&self, san: &San, what: &str) -> Result<u32> {
        match find(san, &self.meant(what))? {
            (_, Some(vport)) => vport.host.with_context(|| format!("{} has no host yet", vport.name)),
            (Some(host), None) => Ok(host.number),
            (None, None) => bail!(no_port(what)),
        }
    }

    fn show(&self, what: &str) -> Result<()> {
        let view = self.view();
        let (host, vport) = find(&view.san, &self.meant(what))?;
        let users = Users::read(&self.roots);
        let units = units(&view.san, host.map(|host| host.number), &users);
        self.say(table::show(&view, host, vport, &units), || json::show(&view, host, vport, &units));
        Ok(())
    }

    fn luns(&self, of: Option<&str>, long: bool) -> Result<()> {
        let san = San::read(&self.roots);
        let host = of.map(|of| self.host(&san, of)).transpose()?;
        let users = Users::read(&self.roots);
        let units: Vec<_> = match host {
            Some(_) => units(&san, host, &users),
            None => san.units.iter().map(|unit| (unit, users.of(unit))).collect(),
        };
        self.say(table::luns(&san, &units, long), || json::luns(&san, &units));
        Ok(())
    }

    /// Names and rules for a virtual port: as they are given, as they are defined, or made now. Whoever stores them has had the lock since
    /// before.
    fn definition(&self, name: &str, given: &Given, boot: bool) -> Result<(Definition, bool)> {
        match self.store.definition(name) {
            Ok(mut definition) => {
                if let Some(names) = given.names()
                    && names != definition.names()
                {
                    bail!(
                        "{name} is defined with WWPN {} and WWNN {} already, and names never change; leave them out, or vmm fc \
                         undefine {name} first",
                        definition.wwpn,
                        definition.wwnn
                    );
                }
                if given.rules() != Rules::default() {
                    definition.rules = given.rules();
                }
                Ok((definition, true))
            }
            Err(StateError::Missing(_)) => {
                let taken = self.ports(sleep).taken()?;
                let names = match given.names() {
                    Some(names) => {
                        names.check(&taken, given.any_oui)?;
                        names
                    }
                    None => Names::make(&taken, random).context("making names")?,
                };
                let Names { wwnn, wwpn } = names;
                Ok((Definition { wwnn, wwpn, boot, rules: given.rules() }, false))
            }
            Err(error) => Err(error.into()),
        }
    }

    fn undefine(&self, name: &str) -> Result<()> {
        let _lock = self.lock()?;
        Ok(self.store.undefine(name)?)
    }

    fn define(&self, name: &str, given: Given, boot: bool) -> Result<()> {
        let _lock = self.lock()?;
        let (mut definition, known) = self.definition(name, &given, boot)?;
        definition.boot = boot;
        match known {
            true => self.store.redefine(name, &definition)?,
            false => self.store.define(name, &definition)?,
        }
        let Definition { wwpn, wwnn, .. } = definition;
        self.say(format!("{name} is defined: WWPN {wwpn}, WWNN {wwnn}\n"), || {
            json::definition(name, &definition)
        });
        Ok(())
    }

    fn create(&self, name: Option<&str>, given: Given, timeout: u64) -> Result<()> {
        let (names, rules, any_oui) = match (name, given.names()) {
            (Some(name), _) => {
                let _lock = self.lock()?;
                let (definition, known) = self.definition(name, &given, false)?;
                // Before the port: whatever becomes of it, these are its names from now on. The rules are of this time alone.
                if !known {
                    let stored = Definition { rules: Rules::default(), ..definition.clone() };
                    self.store.define(name, &stored)?;
                }
                // They were looked at when they were defined.
                (definition.names(), definition.rules, true)
            }
            (None, Some(names)) => (names, given.rules(), given.any_oui),
            (None, None) => bail!(
                "no names: say --wwpn and --wwnn, or a name of your own, under which they are made once and stored (vmm fc create vm1)"
            ),
        };
        let wanted = rules.wanted();
        let deadline = Duration::from_secs(timeout);
        let request =
            Request { wanted, names, definition: name, any_oui, deadline, owner: None, spares: false };
        let vport = self.ports(interruptible()?).create(&request)?;
        let host = vport.host.map(|host| format!("host{host}")).unwrap_or_default();
        self.say(
            format!("{} on host{} is active: {host}, WWPN {}\n", vport.name, vport.parent, names.wwpn),
            || json::vport(&self.view(), &vport),
        );
        Ok(())
    }

    fn delete(&self, what: &str, force: bool) -> Result<()> {
        let vport = self.ports(sleep).delete(&self.meant(what), force)?;
        self.say(format!("{} is deleted\n", vport.name), || serde_json::json!({ "deleted": vport.name }));
        Ok(())
    }

    fn start_defined(&self, names: &[String], timeout: u64) -> Result<()> {
        let mut wanted = Vec::new();
        let mut failed = 0;
        for (name, definition) in self.store.definitions()? {
            match definition {
                Ok(definition) if names.is_empty() && definition.boot || names.contains(&name) => {
                    wanted.push((name, definition));
                }
                Ok(_) => {}
                Err(error) => {
                    failed += 1;
                    complain(error);
                }
            }
        }
        if let Some(name) = names.iter().find(|name| !wanted.iter().any(|(known, _)| known == *name)) {
            // Which says what is wrong with it.
            self.store.definition(name)?;
        }
        // All at once: one on a fabric that does not answer keeps no other one waiting.
        let (wait, time) = (Interruptible::new()?, Duration::from_secs(timeout));
        let start = |name: &str, definition: &Definition| {
            self.ports(|time| wait.pause(time)).start(&Request {
                wanted: definition.rules.wanted(),
                names: definition.names(),
                definition: Some(name),
                any_oui: true,
                deadline: time,
                owner: None,
                spares: false,
            })
        };
        let results = thread::scope(|scope| {
            let spawn = |(name, definition): (String, Definition)| {
                let started = name.clone();
                let work = move || start(&started, &definition);
                (name, threads::spawn_scoped(scope, Kind::Waits, "start-defined", work))
            };
            let threads: Vec<_> = wanted.into_iter().map(spawn).collect();
            let join = |(name, thread): (String, std::io::Result<thread::ScopedJoinHandle<'_, _>>)| {
                let joined = thread.context("starting a thread").and_then(|thread| match thread.join() {
                    Ok(result) => Ok(result?),
                    Err(_) => bail!("the thread that started it failed"),
                });
                (name, joined)
            };
            threads.into_iter().map(join).collect::<Vec<_>>()
        });
        let mut done = Vec::new();
        for (name, result) in results {
            match result {
                Ok(vport) => done.push((name, vport)),
                Err(error) => {
                    failed += 1;
                    complain(format!("{name}: {}", explain(&error)));
                }
            }
        }
        let lines =
            done.iter().map(|(name, vport)| format!("{name}: {} on host{}\n", vport.name, vport.parent));
        self.say(lines.collect(), || json::started(&self.view(), &done));
        match failed {
            0 => Ok(()),
            _ => bail!("{failed} of the definitions could not be started"),
        }
    }

    fn clean(&self) -> Result<()> {
        let Cleanup { done, broken } = self.ports(sleep).clean()?;
        let mut failed = broken.len();
        broken.iter().for_each(complain);
        let mut lines = String::new();
        for (record, result) in &done {
            match result {
                Ok(what) => {
                    let what = match what {
                        Cleaned::Deleted => "is deleted",
                        Cleaned::Gone => "was gone already",
                        Cleaned::Kept => "is defined, and stays",
                        Cleaned::Unclear => "stays: whether that runs cannot be seen from here",
                    };
                    lines += &format!("{} of {} ({}) {what}\n", record.wwpn, record.owner, record.pid);
                }
                Err(error) => {
                    failed += 1;
                    complain(error);
                }
            }
        }
        self.say(lines, || json::cleaned(&done));
        match failed {
            0 => Ok(()),
            _ => bail!("{failed} of the virtual ports of ended processes are still there"),
        }
    }
}

/// Waits, until a signal wants an end: of all threads that wait.
struct Interruptible {
    signals: Signals,
    over: AtomicBool,
}

impl Interruptible {
    /// Before threads are started, so that signals are blocked in these too.
    fn new() -> Result<Self> {
        Ok(Self { signals: Signals::block().context("blocking signals")?, over: AtomicBool::new(false) })
    }

    fn pause(&self, time: Duration) -> Pause {
        thread::sleep(time);
        if matches!(self.signals.next(), Ok(Some(Signal::Terminate(_)))) {
            self.over.store(true, Ordering::Relaxed);
        }
        if self.over.load(Ordering::Relaxed) { Pause::Interrupted } else { Pause::Over }
    }
}

fn interruptible() -> Result<impl FnMut(Duration) -> Pause> {
    let wait = Interruptible::new()?;
    Ok(move |time| wait.pause(time))
}

/// What could be read; the rest is said.
fn told<T>(result: Result<T, StateError>) -> Option<T> {
    result.map_err(complain).ok()
}

fn listed<T>(result: Result<Vec<T>, StateError>) -> Vec<T> {
    told(result).unwrap_or_default()
}

fn no_port(what: &str) -> String {
    format!("there is no port {what}; vmm fc list shows what there is")
}

fn sleep(time: Duration) -> Pause {
    thread::sleep(time);
    Pause::Over
}

/// A port, or a virtual one with its host, by one of their names.
fn find<'a>(san: &'a San, what: &str) -> Result<(Option<&'a Host>, Option<&'a Vport>)> {
    let wwpn = what.parse::<Wwn>().ok();
    let is_host = |host: &&Host| {
        host.name() == what
            || format!("scsi_{}", host.name()) == what
            || host.vport.is_none()
                && (host.parent.as_deref() == Some(what) || wwpn.is_some() && host.wwpn == wwpn)
    };
    let is_vport = |vport: &&Vport| vport.name == what || wwpn.is_some() && vport.wwpn == wwpn;
    let host = san.hosts.iter().find(is_host);
    let vport = san
        .vports
        .iter()
        .find(|vport| is_vport(vport) || host.is_some_and(|host| host.vport.as_ref() == Some(&vport.name)));
    match (host, vport) {
        (None, None) => bail!(no_port(what)),
        (host, vport) => {
            let own = vport.and_then(|vport| vport.host).and_then(|number| san.host(number));
            Ok((own.or(host), vport))
        }
    }
}

/// The units of a host, with who has them.
fn units<'a>(san: &'a San, host: Option<u32>, users: &Users) -> Vec<(&'a Unit, Vec<User>)> {
    let units = host.into_iter().flat_map(|host| san.units_of(host));
    units.map(|unit| (unit, users.of(unit))).collect()
}

#[cfg(test)]
mod tests;
