//! The host bus adapter: queues, workers, targets and the PCI function, put together.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use devices::iothread::Remote;
use devices::mem::Dma;
use devices::pci::{PciError, PciFunction, PciSeat};
use devices::scsi::{Lun, Nexus, TransferLimits, TransportFault};
use thiserror::Error;

use crate::config::Config;
use crate::directory::{Directory, View};
use crate::event::{EventPort, Events};
use crate::fc::port::Port;
use crate::fc::{San, SanListener, wire};
use crate::function::{Function, Interface, vectors};
use crate::queue::Queue;
use crate::ring::MAX_CHAIN;
use crate::spec::{feature, queue};
use crate::transport::{Device, Limits, Transport};
use crate::worker::{Worker, serve};
use crate::{control, event as event_queue, request};

/// Request queues of one HBA at most.
pub const MAX_REQUEST_QUEUES: u16 = 256;

/// How often a reset ends the commands that it still finds.
const ABORT_POLL: Duration = Duration::from_millis(1);
/// The same where the host takes its time.
const ABORT_POLL_MAX: Duration = Duration::from_millis(50);

/// Properties of an HBA that do not change while it lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Number of request queues, 1 to [`MAX_REQUEST_QUEUES`]: one for each vCPU is usual.
    pub request_queues: u16,
    /// Size of every queue on offer, in descriptors: a power of two, 4 to 1024. A driver may use less.
    pub queue_size: u16,
    /// Offer VIRTIO_F_ACCESS_PLATFORM. Memory is reached in the same way; guests that insist on their own memory
    /// protection want to see it.
    pub access_platform: bool,
    /// Offer VIRTIO_SCSI_F_T10_PI: protection information of disks that have it goes through buffers of its own.
    pub protection: bool,
    /// The register interfaces.
    pub interface: Interface,
    /// What `max_sectors` and `seg_max` of the configuration space say (5.6.4), as far as that is less than the queues allow.
    /// Longer commands are taken all the same.
    pub transfer: TransferLimits,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            request_queues: 1,
            queue_size: 256,
            access_platform: false,
            protection: false,
            interface: Interface::Modern,
            transfer: TransferLimits::default(),
        }
    }
}

/// Why an HBA could not be made.
#[derive(Debug, Error)]
pub enum Error {
    /// A number of queues that cannot be.
    #[error("{0} request queues; an HBA has 1 to {MAX_REQUEST_QUEUES}")]
    RequestQueues(u16),
    /// A queue size that cannot be.
    #[error("a queue size of {0}; it is a power of two from 4 to 1024")]
    QueueSize(u16),
    /// No I/O thread to run on.
    #[error("no I/O thread")]
    NoIoThread,
    /// An event descriptor could not be made.
    #[error("event descriptor")]
    EventFd(#[from] io::Error),
    /// The PCI function could not be built.
    #[error("PCI function")]
    Pci(#[from] PciError),
}

/// A virtio-scsi host bus adapter: a PCI function for a slot of the host bridge.
///
/// Control and event queue run on the first I/O thread, request queue *i* on thread *i* modulo their number. Before
/// those threads end, the HBA has to be dropped or told by [`VirtioScsi::shut_down`]: a thread that ends drops the
/// requests it still runs.
pub struct VirtioScsi {
    function: Function,
    transport: Arc<Transport>,
    shared: Arc<Shared>,
}

/// What the transport and the workers share of the device.
struct Shared {
    config: Config,
    /// Offer VIRTIO_SCSI_F_T10_PI.
    protection: bool,
    directory: Arc<Directory>,
    events: Arc<Events>,
    /// What each nexus reports to, by target number.
    ports: Mutex<BTreeMap<u8, Arc<EventPort>>>,
    /// Targets that went since the machine was reset: a driver may still take them to be there.
    past: Mutex<BTreeSet<u8>>,
    /// The thread of the control queue.
    remote: Remote,
    /// The port on a fabric.
    fc: Option<Arc<Port>>,
    /// The driver addresses units as targets call them.
    native: AtomicBool,
}

impl VirtioScsi {
    /// An HBA in the slot of `seat`, with `targets` by target number, on the threads of `io`.
    ///
    /// Becomes the listener for events of each nexus.
    pub fn new(
        seat: PciSeat,
        targets: BTreeMap<u8, Arc<Nexus>>,
        io: Vec<Remote>,
        options: Options,
    ) -> Result<Arc<Self>, Error> {
        Self::build(seat, targets, io, options, None)
    }

    /// As [`Self::new`], with a port on a fabric: the driver can ask for the targets that `san` has, hears of them, and knows units by the
    /// LUNs that they were attached with ([`devices::scsi::Target::attach_native`]). A target number that `san` never had has no target,
    /// whatever is attached there; one that it has and nothing is attached at has no units. Becomes the listener of `san`.
    pub fn with_san(
        seat: PciSeat,
        targets: BTreeMap<u8, Arc<Nexus>>,
        io: Vec<Remote>,
        options: Options,
        san: Arc<dyn San>,
    ) -> Result<Arc<Self>, Error> {
        Self::build(seat, targets, io, options, Some(san))
    }

    fn build(
        seat: PciSeat,
        targets: BTreeMap<u8, Arc<Nexus>>,
        io: Vec<Remote>,
        options: Options,
        san: Option<Arc<dyn San>>,
    ) -> Result<Arc<Self>, Error> {
        let Options { request_queues, queue_size, access_platform, protection, interface, transfer } =
            options;
        if !(1..=MAX_REQUEST_QUEUES).contains(&request_queues) {
            return Err(Error::RequestQueues(request_queues));
        }
        if !queue_size.is_power_of_two() || !(4..=MAX_CHAIN as u16).contains(&queue_size) {
            return Err(Error::QueueSize(queue_size));
        }
        let remote = io.first().ok_or(Error::NoIoThread)?.clone();
        let events = Arc::<Events>::default();
        let shared = Arc::new(Shared {
            config: Config::new(request_queues, queue_size, transfer),
            protection,
            directory: Arc::new(Directory::new(BTreeMap::new())),
            fc: san.clone().map(|san| Arc::new(Port::new(san, events.clone()))),
            events,
            ports: Mutex::default(),
            past: Mutex::default(),
            remote,
            native: AtomicBool::new(false),
        });
        let count = queue::FIRST_REQUEST + request_queues;
        let new_queue = |_| Queue::new(seat.dma.clone()).map(Arc::new);
        let queues = (0..count).map(new_queue).collect::<Result<_, _>>()?;
        let limits = Limits { queue_size, vectors: vectors(count), access_platform };
        let transport = Transport::new(shared.clone(), queues, limits);
        if let Some(fc) = &shared.fc {
            let weak = Arc::downgrade(&shared);
            fc.connect(&transport, move |target| {
                if let Some(shared) = weak.upgrade() {
                    shared.port_came(target);
                }
            });
        }
        let dma = seat.dma.clone();
        let function = Function::new(seat, transport.clone(), interface)?;
        let hba = Self { function, transport, shared };
        for (id, nexus) in targets {
            hba.connect(id, nexus);
        }
        hba.start(&io, &dma);
        if let Some(fc) = &hba.shared.fc {
            fc.san().set_listener(Some(Arc::new(Listener(Arc::downgrade(&hba.shared)))));
            // What has changed since the first look.
            fc.changed();
        }
        Ok(Arc::new(hba))
    }

    /// What drivers are told of the commands that they may send, for as long as the HBA lives: they ask once.
    pub fn transfer_limits(&self) -> TransferLimits {
        self.shared.config.transfer()
    }

    /// Takes the HBA out of service for good, at the end of the machine: no request is taken or given back any more.
    pub fn shut_down(&self) {
        if let Some(fc) = &self.shared.fc {
            fc.san().set_listener(None);
        }
        self.transport.close();
        if let Some(fc) = &self.shared.fc {
            fc.gate.close();
            fc.looks.close();
            fc.vports.close();
            if fc.reset() {
                fc.vports.delete_left(fc.san());
            }
        }
    }

    /// Puts a target at `id` and tells the driver. What was there before goes as by [`Self::detach_target`].
    pub fn attach_target(&self, id: u8, nexus: Arc<Nexus>) -> Option<Arc<Nexus>> {
        let before = self.detach_target(id);
        if self.shared.past().contains(&id) {
            nexus.distrust();
        }
        self.connect(id, nexus);
        if let Some(port) = self.shared.ports().get(&id) {
            port.target_came();
        }
        before
    }

    /// Takes the target at `id` away and tells the driver, unit by unit. Commands it runs come to their end.
    pub fn detach_target(&self, id: u8) -> Option<Arc<Nexus>> {
        let before = self.shared.directory.set(id, None)?;
        if before.is_used() {
            self.shared.past().insert(id);
        }
        before.set_events(None);
        if let Some(port) = self.shared.ports().remove(&id) {
            port.target_went();
        }
        Some(before)
    }

    /// Who has looked for this unit may find it now: its device was not there, and is back. Tells the driver.
    pub fn look_again(&self, id: u8, lun: Lun) {
        let port = self.shared.ports().get(&id).cloned();
        if let Some(port) = port {
            port.unit_changed(lun);
        }
    }

    fn connect(&self, id: u8, nexus: Arc<Nexus>) {
        let mut ports = self.shared.ports();
        nexus.address_natively(self.shared.native.load(Ordering::Relaxed));
        let port = EventPort::new(id, &nexus, self.shared.events.clone(), &self.transport);
        nexus.set_events(Some(port.clone()));
        self.shared.directory.set(id, Some(nexus));
        ports.insert(id, port);
    }

    fn start(&self, io: &[Remote], dma: &Dma) {
        for (index, queue) in (0_u16..).zip(self.transport.queues()) {
            let thread = usize::from(index.saturating_sub(queue::FIRST_REQUEST)) % io.len().max(1);
            let Some(remote) = io.get(thread) else { continue };
            let (transport, shared) = (self.transport.clone(), self.shared.clone());
            let (queue, dma) = (queue.clone(), dma.clone());
            remote.spawn(move |io| serve_queue(Worker::new(io, transport, index, queue, dma), shared));
        }
    }
}

/// Serves a queue for as long as the device lives.
async fn serve_queue(worker: Rc<Worker>, shared: Arc<Shared>) {
    let dma = worker.dma().clone();
    match worker.index() {
        queue::CONTROL => {
            let transport = worker.transport().clone();
            let parse =
                |chain: &mut _, shape| control::parse(&dma, control::Format::new(&transport), chain, shape);
            let run = |token, body| control::run(shared.directory.clone(), shared.fc.clone(), token, body);
            serve(worker, parse, run).await;
        }
        queue::EVENT => event_queue::serve(worker, shared.events.clone()).await,
        _ => {
            let view = View::new(shared.directory.clone(), shared.fc.clone());
            let transport = worker.transport().clone();
            let parse = |chain: &mut _, shape| {
                let format = request::Format::new(shared.config.layout(), &transport);
                request::parse(&dma, format, chain, shape)
            };
            serve(worker, parse, |token, body| request::run(view.current(), token, body)).await;
        }
    }
}

impl Shared {
    fn past(&self) -> std::sync::MutexGuard<'_, BTreeSet<u8>> {
        self.past.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ports(&self) -> std::sync::MutexGuard<'_, BTreeMap<u8, Arc<EventPort>>> {
        self.ports.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shared {
    /// The port of `target` is there, for the first time or after it was given up: tells a driver that looks for what it has not found.
    fn port_came(&self, target: u8) {
        let port = self.ports().get(&target).cloned();
        match (port, &self.fc) {
            (Some(port), _) => port.target_came(),
            (None, Some(fc)) => fc.target_came(target),
            (None, None) => {}
        }
    }

    /// The machine is reset: nobody knows anything of before.
    fn power_on(&self) {
        self.events.clear();
        self.past().clear();
        self.directory.all().values().for_each(|nexus| nexus.trust());
    }
}

/// Hears of changes of the fabric.
struct Listener(Weak<Shared>);

impl SanListener for Listener {
    fn changed(&self) {
        if let Some(fc) = self.0.upgrade().and_then(|shared| shared.fc.clone()) {
            fc.changed();
        }
    }

    fn units_changed(&self, target: u8) {
        let Some(shared) = self.0.upgrade() else { return };
        let port = shared.ports().get(&target).cloned();
        if let Some(port) = port {
            port.units_changed();
        }
    }
}

impl Device for Shared {
    fn features(&self) -> u64 {
        let protection = if self.protection { feature::SCSI_T10_PI } else { 0 };
        let vports = |fc: &Arc<Port>| if fc.san().max_vports() > 0 { wire::feature::VPORT } else { 0 };
        let fabric = self.fc.as_ref().map_or(0, |fc| wire::feature::ALL | vports(fc));
        feature::SCSI_INOUT | feature::SCSI_HOTPLUG | feature::SCSI_CHANGE | protection | fabric
    }

    fn negotiate(&self, features: u64) -> bool {
        if !wire::is_consistent(features) {
            return false;
        }
        let native = features & wire::feature::NATIVE_LUN != 0;
        let ports = self.ports();
        if self.native.swap(native, Ordering::Relaxed) != native {
            self.directory.all().values().for_each(|nexus| nexus.address_natively(native));
            ports.values().for_each(|port| port.addressed_anew());
            // Whoever tells of units from now on does so in the new way.
            self.events.addressed_anew();
        }
        true
    }

    fn read_config(&self, offset: u64, data: &mut [u8], features: u64) {
        let fc = self.fc.as_ref().filter(|_| features & wire::feature::FC_HOST != 0);
        self.config.read(offset, data, fc.map(|fc| fc.config(features & wire::feature::VPORT != 0)));
    }

    fn config_generation(&self) -> u8 {
        self.fc.as_ref().map_or(0, |fc| fc.generation())
    }

    fn write_config(&self, offset: u64, data: &[u8]) {
        self.config.write(offset, data);
    }

    fn abort(&self, transport: Arc<Transport>) {
        let (targets, fc) = (self.directory.all(), self.fc.clone());
        self.remote.spawn(move |io| async move {
            let mut pause = ABORT_POLL;
            loop {
                if let Some(fc) = &fc {
                    fc.gate.end(|_| true, TransportFault::Reset);
                    fc.looks.end();
                    fc.vports.end();
                }
                targets.values().for_each(|nexus| nexus.reset());
                // Commands that were on their way to a target have arrived by the next time.
                io.sleep(pause).await;
                if !transport.is_busy() || transport.is_closed() {
                    break transport.aborted();
                }
                pause = (pause * 2).min(ABORT_POLL_MAX);
            }
        });
    }

    fn queue_stopped(&self, index: u16) {
        if let Some(fc) = &self.fc {
            fc.gate.queue_stopped(index);
            if index == queue::CONTROL {
                fc.looks.end();
                fc.vports.end();
            }
        }
    }

    fn unfinished(&self) -> String {
        let of = |(id, nexus): (&u8, &Arc<Nexus>)| {
            let names = nexus.unfinished();
            (!names.is_empty()).then(|| format!("target {id} {}", names.join(", ")))
        };
        self.directory.all().iter().filter_map(of).collect::<Vec<_>>().join("; ")
    }

    fn reset(&self) {
        self.config.reset();
        if let Some(fc) = self.fc.clone()
            && fc.reset()
        {
            // The transport's lock is held here.
            self.remote.spawn(move |_| async move { fc.vports.delete_left(fc.san()) });
        }
        // Where nothing was under way, no nexus was reset.
        self.directory.all().values().for_each(|nexus| nexus.forget_use());
        // What was not told yet is told to the driver that comes: it may be the one before, which slept and kept its disks.
        self.ports().values().for_each(|port| port.reset());
    }
}

impl Drop for VirtioScsi {
    fn drop(&mut self) {
        self.shut_down();
    }
}

impl PciFunction for VirtioScsi {
    fn config_read(&self, offset: u16, data: &mut [u8]) {
        self.function.config_read(offset, data);
    }

    fn config_write(&self, offset: u16, data: &[u8]) {
        self.function.config_write(offset, data);
    }

    fn reset(&self) {
        self.function.reset();
        self.shared.power_on();
    }

    fn name(&self) -> &str {
        PciFunction::name(&self.function)
    }
}
