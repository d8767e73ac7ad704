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
mod opener;
mod rescans;
mod units;

use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use devices::scsi::{HostLimits, Lun};
use devices::threads::{self, Kind};
use hba_virtio_scsi::fc::{Names, San, SanListener, View};

use super::adapter::{Adapter, port_state};
use super::host_unit::allow;
use crate::config::{self, Config};
use crate::fc_port::{self, HostPort, News, Passthrough};
use again::Again;
use blocked::Blocked;
use opener::{Opener, Opens};
use rescans::Rescans;
use units::{Refuse, Units};

/// How long units may take to answer who they are before the guest starts without them: they come when they do.
const START: Duration = Duration::from_secs(5);

/// How long after `fast_io_fail_tmo` the process has to say what became of a port that is blocked: it may open units meanwhile.
const SILENCE: Duration = Duration::from_secs(60);

/// Asks the process for a look; the number comes back when what was found has been told.
type Ask = Box<dyn Fn(u64) + Send + Sync>;

/// A virtual port of the host.
pub(super) struct VirtualPort {
    adapter: Arc<Adapter>,
    view: RwLock<Arc<View>>,
    blocked: Mutex<Blocked>,
    listener: Arc<Listener>,
    rescans: Arc<Rescans>,
    units: Arc<Units>,
    ask: Ask,
    /// What the host has of it, once that is known.
    port: OnceLock<HostPort>,
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

impl VirtualPort {
    /// The port of an HBA that is `wanted`, of which nothing is known yet.
    pub(super) fn new(
        adapter: &Arc<Adapter>,
        wanted: &config::VirtualPort,
        ask: Ask,
        refuse: Refuse,
    ) -> Arc<Self> {
        let opener = Opener { read_only: wanted.allow == config::Allow::ReadOnly, bounce: wanted.bounce };
        let limit = Duration::from_secs(wanted.fast_io_fail_tmo.into()) + SILENCE;
        Self::with(adapter, Arc::new(opener), ask, refuse, limit)
    }

    fn with(
        adapter: &Arc<Adapter>,
        opens: Arc<dyn Opens>,
        ask: Ask,
        refuse: Refuse,
        limit: Duration,
    ) -> Arc<Self> {
        let (rescans, listener) = (Rescans::new(), Arc::<Listener>::default());
        let of_units = listener.clone();
        let again = Again::new(adapter.remote().clone(), move |target| {
            of_units.tell(|listener| listener.units_changed(target));
        });
        let units = Units::new(adapter.clone(), opens, rescans.clone(), again, refuse);
        let (adapter, view, blocked) = (adapter.clone(), RwLock::default(), Mutex::new(Blocked::new(limit)));
        Arc::new(Self { adapter, view, blocked, listener, rescans, units, ask, port: OnceLock::new() })
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
            if !self.adapter.is_over() {
                // Commands that wait go on.
                let view = self.blocked().ended();
                self.show(view);
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
            let until = self.blocked().until(Instant::now());
            let next = match until {
                Some(until) => news.recv_timeout(until),
                None => news.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            match next {
                Ok(news) => self.take(news),
                Err(RecvTimeoutError::Timeout) => {
                    tracing::error!(
                        "hba {}: a port has been blocked for long, and the process that has its virtual port (vmm-fcport) does not tell what \
                         became of it: its commands go to the host's kernel now",
                        self.adapter.id
                    );
                    let view = self.blocked().shown(Instant::now());
                    self.show(view);
                }
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn blocked(&self) -> MutexGuard<'_, Blocked> {
        self.blocked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes what the process tells.
    fn take(&self, news: News) {
        let hba = &self.adapter.id;
        match news {
            News::View(view) => {
                let view = self.blocked().take(view, Instant::now());
                self.show(view);
            }
            News::Unit(target, lun, news) => self.units.take(target, Lun(lun), news),
            // That is for who told it.
            News::Heard => {}
            News::Looked(number) => self.rescans.looked(number),
            News::Port(port) => {
                tracing::info!("hba {hba}: its port is {port}");
                let _ = self.port.set(*port);
            }
            // They were heard on the way here.
            News::Waits(_) | News::Closed(_) => {}
            News::Warning(line) => tracing::warn!("hba {hba}: {line}"),
            News::Failed(line) => tracing::error!("hba {hba}: {line}"),
        }
    }

    /// What the host has of it.
    pub(super) fn port(&self) -> Option<&HostPort> {
        self.port.get()
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
                None => tracing::info!("hba {hba}: the port {wwpn:016x} is target {target}, and {state}"),
            }
        }
        // It may raise an interrupt, and this thread may not do that in the sandbox.
        let listener = self.listener.clone();
        self.adapter.remote().spawn(move |_| async move { listener.tell(|listener| listener.changed()) });
    }
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
