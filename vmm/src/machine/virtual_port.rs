//! A virtual port of the host as the fabric of an HBA: what the process tells that has the port becomes what the guest sees.
//!
//! ```text
//!   process ── News ──> VirtualPort ── view ──> HBA (a San)
//!                          |  └── Looked ──> rescans: who asked hears when all that was told before is done
//!                          └── Unit ──> units: threads for each target ──> Adapter ──> Target
//! ```
//! News are taken one after the other and none waits: what may wait for the host is done on threads, the news of one unit in their
//! order. A unit that hangs holds up no other.

mod again;
mod blocked;
mod lines;
mod names;
mod opener;
mod rescans;
mod units;
mod vports;

use std::collections::BTreeMap;
use std::io;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use devices::log::Limiter;
use devices::scsi::{HostLimits, Lun};
use devices::threads::{self, Kind};
use hba_virtio_scsi::fc::{Active, Names, San, SanListener, View, VportRefusal};

use super::adapter::{Adapter, port_state};
use super::host_unit::allow;
use crate::config::{self, Config};
use crate::fc_port::{self, HostPort, News, Passthrough, UnitNews};
use again::Again;
use blocked::{Blocked, Shown};
use names::Waits;
use opener::{Opener, Opens};
use rescans::Rescans;
use units::{Refuse, Units};
pub(super) use vports::{Vports, names_of, not_allowed};

/// How long units may take to answer who they are before the guest starts without them: they come when they do.
const START: Duration = Duration::from_secs(5);

/// How long a unit that is lost has its device at most until the HBA has heard how its port is: an I/O thread waits for nobody.
const HEARS: Duration = Duration::from_secs(5);

/// How long after `fast_io_fail_tmo` the process has to say what became of a port that is blocked: it may open units meanwhile.
const SILENCE: Duration = Duration::from_secs(60);

/// Has the process change the names of the port; the number comes back with what became of that.
pub(super) type Activate = Box<dyn Fn(u64, Active) -> io::Result<()> + Send + Sync>;

/// How a port reaches the process that has it.
pub(super) struct Calls {
    pub(super) ask: Ask,
    pub(super) refuse: Refuse,
    pub(super) activate: Activate,
    /// Ports that the guest creates.
    pub(super) vports: Vports,
}

/// Asks the process for a look; the number comes back when what was found has been told.
pub(super) type Ask = Box<dyn Fn(u64) + Send + Sync>;

/// A virtual port of the host.
pub(super) struct VirtualPort {
    adapter: Arc<Adapter>,
    view: RwLock<Arc<View>>,
    /// What the HBA's own port sees, as the process has told it.
    own: Mutex<View>,
    vports: Vports,
    blocked: Mutex<Blocked>,
    listener: Arc<Listener>,
    untold: Arc<Untold>,
    rescans: Arc<Rescans>,
    units: Arc<Units>,
    ask: Ask,
    /// Has the process change the names of the port.
    activate: Activate,
    port: Mutex<Known>,
    waits: Mutex<Waits>,
    /// How long that takes at most.
    names_time: Duration,
    /// Lines of the process: an array can cause any number of them.
    warnings: Limiter,
}

/// What the host has of it.
#[derive(Default)]
struct Known {
    port: Option<HostPort>,
    /// The port with its other names, and the number of the request for which that is there.
    other: Option<(u64, HostPort)>,
}

/// Who hears of changes.
#[derive(Default)]
struct Listener(Mutex<Option<Arc<dyn SanListener>>>);

impl Listener {
    fn tell(&self, tell: impl FnOnce(&dyn SanListener)) {
        let listener = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(listener) = listener {
            tell(&*listener);
        }
    }
}

/// How many changes of the view the HBA has not heard of.
#[derive(Default)]
struct Untold(Mutex<usize>, Condvar);

/// One of them, until it is dropped.
struct Change(Arc<Untold>);

impl Untold {
    fn begin(self: &Arc<Self>) -> Change {
        *lock(&self.0) += 1;
        Change(self.clone())
    }

    /// Waits until it has heard of all.
    fn wait(&self) {
        let waits = self.1.wait_timeout_while(lock(&self.0), HEARS, |count| *count > 0);
        drop(waits.unwrap_or_else(PoisonError::into_inner));
    }
}

impl Drop for Change {
    fn drop(&mut self) {
        let mut count = lock(&self.0.0);
        *count = count.saturating_sub(1);
        self.0.1.notify_all();
    }
}

impl VirtualPort {
    /// The port of an HBA that is `wanted`, of which nothing is known yet.
    pub(super) fn new(adapter: &Arc<Adapter>, wanted: &config::VirtualPort, calls: Calls) -> Arc<Self> {
        let opener = Opener { read_only: wanted.allow == config::Allow::ReadOnly, bounce: wanted.bounce };
        let limit = Duration::from_secs(wanted.fast_io_fail_tmo.into()) + SILENCE;
        // What is left of it is deleted, it is made and deleted again, or sees all and has its units.
        let names_time = 2 * Duration::from_secs(wanted.timeout.into()) + SILENCE + 2 * fc::vport::DELETION;
        Self::with(adapter, Arc::new(opener), calls, limit, names_time)
    }

    fn with(
        adapter: &Arc<Adapter>,
        opens: Arc<dyn Opens>,
        Calls { ask, refuse, activate, vports }: Calls,
        limit: Duration,
        names_time: Duration,
    ) -> Arc<Self> {
        let (rescans, listener) = (Rescans::new(), Arc::<Listener>::default());
        let of_units = listener.clone();
        let again = Again::new(adapter.remote().clone(), move |target| {
            of_units.tell(|listener| listener.units_changed(target));
        });
        let units = Units::new(adapter.clone(), opens, rescans.clone(), again, refuse);
        let (adapter, view, blocked) = (adapter.clone(), RwLock::default(), Mutex::new(Blocked::new(limit)));
        Arc::new(Self {
            adapter,
            view,
            own: Mutex::default(),
            vports,
            blocked,
            listener,
            untold: Arc::default(),
            rescans,
            units,
            ask,
            activate,
            port: Mutex::default(),
            waits: Mutex::default(),
            names_time,
            warnings: Limiter::new(),
        })
    }

    /// Takes what was found at first, before the guest runs.
    ///
    /// # Errors
    /// The port does not come.
    pub(super) fn begin(&self, news: &Receiver<News>) -> Result<()> {
        loop {
            match news.recv() {
                Ok(News::Looked(0)) => break,
                Ok(News::Failed(why)) => bail!("hba {}: {why}", self.adapter.id),
                Ok(news) => self.take(news),
                Err(_) => bail!(
                    "hba {}: the process that has its virtual port has ended; see whether the kernel's log says why (dmesg)",
                    self.adapter.id
                ),
            }
        }
        if !self.rescans.wait(START) {
            tracing::warn!(
                "hba {}: some units of the array have not answered within {} s who they are; the guest has them when they do",
                self.adapter.id,
                START.as_secs()
            );
        }
        Ok(())
    }

    /// Takes what comes from now on, on a thread of its own.
    pub(super) fn go_on(self: Arc<Self>, news: Receiver<News>) -> Result<()> {
        let serve = move || {
            self.serve(&news);
            self.rescans.ended();
            drop(lock(&self.waits).who.take());
            self.vports.ended();
            if !self.adapter.is_over() {
                // Commands that wait go on.
                self.blocked().end();
                self.merge();
                tracing::error!(
                    "hba {}: the process that has its virtual port (vmm-fcport) has ended: the units that are there stay, and nothing that \
                     changes on the fabric reaches the guest any more; see whether the kernel's log says why (dmesg), and start the \
                     machine anew",
                    self.adapter.id
                );
            }
        };
        threads::spawn(Kind::Returns, "fc-port", serve).map(drop).context("a thread for a virtual port")
    }

    /// Takes what comes, as long as anything may.
    fn serve(&self, news: &Receiver<News>) {
        loop {
            let now = Instant::now();
            self.vports.expire(now);
            let blocked = self.blocked().until(now);
            let until = blocked.into_iter().chain(self.vports.until()).min();
            let next = match until {
                Some(until) => news.recv_timeout(until),
                None => news.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            match next {
                Ok(news) => self.take(news),
                Err(RecvTimeoutError::Timeout) if blocked.is_none_or(|blocked| until < Some(blocked)) => {}
                Err(RecvTimeoutError::Timeout) => {
                    tracing::error!(
                        "hba {}: a port has been blocked for long, and the process that has its virtual port (vmm-fcport) does not tell what \
                         became of it: its units may be others when it is back, and its commands end as on a path that is lost",
                        self.adapter.id
                    );
                    let shown = self.blocked().shown(Instant::now());
                    self.show_all(shown);
                }
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn blocked(&self) -> MutexGuard<'_, Blocked> {
        lock(&self.blocked)
    }

    /// Takes what the process tells.
    fn take(&self, news: News) {
        let hba = &self.adapter.id;
        match news {
            News::View(view) => {
                *lock(&self.own) = view;
                self.merge();
            }
            News::Of(vport, news) => self.take_of(vport, *news),
            // Only of those that the guest has created.
            News::NotCreated(..) => {}
            News::Unit(target, lun, news) => self.unit(target, lun, news),
            // That is for who told it.
            News::Heard => {}
            News::Looked(number) => self.rescans.looked(number),
            News::Port(port) => {
                tracing::info!("hba {hba}: its port is {port}");
                lock(&self.port).port = Some(*port);
            }
            News::Other(number, port) => {
                tracing::info!("hba {hba}: with its other names it has {port}");
                lock(&self.port).other = Some((number, *port));
            }
            News::Activated(number, active, why) => self.activated(number, active, why),
            // They were heard on the way here.
            News::Waits(_) | News::Closed(..) => {}
            News::Warning(line) => match self.warnings.admit() {
                Some(0) => tracing::warn!("hba {hba}: {line}"),
                Some(suppressed) => tracing::warn!("hba {hba}: {line} ({suppressed} more suppressed)"),
                None => {}
            },
            News::Failed(line) => tracing::error!("hba {hba}: {line}"),
        }
    }

    /// Takes what the process tells of a port that the guest has created.
    fn take_of(&self, vport: u16, news: News) {
        let hba = &self.adapter.id;
        match news {
            News::View(view) => {
                let told = self.vports.saw(vport, view);
                self.merge();
                if let Some(told) = told {
                    told();
                }
            }
            News::Unit(target, lun, news) => self.unit(target, lun, news),
            News::Port(port) => self.vports.came(vport, *port),
            News::NotCreated(refusal, why) => {
                let told = self.vports.not_created(vport, refusal, &why);
                self.merge();
                told.into_iter().for_each(|told| told());
            }
            News::Closed(_, why) => {
                let told = self.vports.closed(vport, why);
                self.merge();
                told.into_iter().for_each(|told| told());
            }
            // A guest that creates ports again and again has no more lines than an array.
            News::Warning(line) | News::Failed(line) => {
                devices::log_limited!(warn, "hba {hba}, the guest's port {vport}: {line}");
            }
            News::Heard
            | News::Looked(_)
            | News::Waits(_)
            | News::Other(..)
            | News::Activated(..)
            | News::Of(..) => {}
        }
    }

    /// Nothing reaches a unit of a port that nobody tells of before somebody does.
    fn show_all(&self, shown: Shown) {
        shown.doubted.iter().for_each(|target| self.units.doubt(*target, false));
        shown.trusted.iter().for_each(|target| self.units.doubt(*target, true));
        self.show(shown.view);
    }

    /// Takes news of a unit. One that is lost has its device until its commands wait: without it they would end.
    fn unit(&self, target: u8, lun: fc_port::Lun, news: UnitNews) {
        if matches!(news, UnitNews::Lost) {
            self.untold.wait();
        }
        self.units.take(target, Lun(lun), news);
    }

    /// Shows what all ports see.
    fn merge(&self) {
        let view = self.vports.with(lock(&self.own).clone());
        let shown = self.blocked().take(view, Instant::now());
        self.show_all(shown);
    }

    /// What the host has of the ports that the guest has created, by their numbers.
    pub(super) fn vports(&self) -> BTreeMap<u16, HostPort> {
        self.vports.ports()
    }

    /// What the host has of it.
    pub(super) fn port(&self) -> Option<HostPort> {
        lock(&self.port).port.clone()
    }

    /// What all units that have come take with one command; `None` where none has.
    pub(super) fn limits(&self) -> Option<HostLimits> {
        self.units.limits()
    }

    /// Commands may come to a target once the guest can see it: so it is there before.
    fn show(&self, view: View) {
        for target in view.remotes.keys() {
            if let Err(error) = self.adapter.target(*target) {
                tracing::debug!("hba {}: no target {target}: {error}", self.adapter.id);
                return;
            }
        }
        let view = Arc::new(view);
        let before = {
            let mut shown = self.view.write().unwrap_or_else(PoisonError::into_inner);
            std::mem::replace(&mut *shown, view.clone())
        };
        if before == view {
            return;
        }
        for (target, port) in &view.remotes {
            let (hba, wwpn, state) = (&self.adapter.id, port.names.wwpn, port_state(port.state));
            match before.remotes.get(target).map(|before| before.state) {
                Some(before) if before == port.state => {}
                // What is lost, and that it is back.
                Some(_) => devices::log_limited!(
                    warn,
                    "hba {hba}: the port {wwpn:016x} (target {target}) is {state}"
                ),
                None if port.vport == 0 => {
                    tracing::info!("hba {hba}: the port {wwpn:016x} is target {target}, and {state}");
                }
                None => devices::log_limited!(
                    info,
                    "hba {hba}, the guest's port {}: the port {wwpn:016x} is target {target}, and {state}",
                    port.vport
                ),
            }
        }
        // It may raise an interrupt, and this thread may not do that in the sandbox.
        let (listener, change) = (self.listener.clone(), self.untold.begin());
        self.adapter.remote().spawn(move |_| async move {
            listener.tell(|listener| listener.changed());
            drop(change);
        });
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl San for VirtualPort {
    fn view(&self) -> Arc<View> {
        self.view.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn rescan(&self, done: Box<dyn FnOnce() + Send>) {
        if let Some(number) = self.rescans.begin(done) {
            (self.ask)(number);
        }
    }

    fn set_listener(&self, listener: Option<Arc<dyn SanListener>>) {
        *self.listener.0.lock().unwrap_or_else(PoisonError::into_inner) = listener;
    }

    fn max_vports(&self) -> u16 {
        self.vports.most()
    }

    fn create_vport(&self, names: Names, done: Box<dyn FnOnce(Result<u16, VportRefusal>) + Send>) {
        let own = lock(&self.own).local;
        self.vports.create(names, &own, done);
    }

    fn delete_vport(&self, vport: u16, done: Box<dyn FnOnce(Result<(), VportRefusal>) + Send>) {
        self.vports.delete(vport, done);
    }

    fn delete_all_vports(&self) {
        self.vports.delete_all();
    }
}

/// The virtual ports that the HBAs of a machine want, in the order of the file.
pub(super) fn wanted(config: &Config) -> Vec<fc_port::Wanted> {
    let of_hba = |hba: &config::Hba| {
        let port = hba.virtual_port()?;
        let names = |names: fc::names::Names| Names { wwnn: names.wwnn.bits(), wwpn: names.wwpn.bits() };
        Some(fc_port::Wanted {
            hba: format!("hba {}", hba.id),
            owner: config::fc_owner(&config.vm.name, &hba.id),
            rules: port.rules.clone(),
            names: port.names.map(|names| (names.wwnn, names.wwpn)),
            any_oui: port.any_oui,
            secondary: port.secondary.map(names).unwrap_or_default(),
            vports: port.vports.clone(),
            dev_loss_tmo: port.dev_loss_tmo,
            fast_io_fail_tmo: port.fast_io_fail_tmo,
            luns: port.luns.clone(),
            passthrough: match port.passthrough {
                config::Passthrough::Block => Passthrough::Block,
                config::Passthrough::Generic => Passthrough::Generic,
            },
            allow: allow(port.allow),
            bounce: port.bounce,
            shared: port.shared,
            timeout: port.timeout,
        })
    };
    config.hbas.iter().filter_map(of_hba).collect()
}

#[cfg(test)]
#[path = "virtual_port_tests.rs"]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests;
