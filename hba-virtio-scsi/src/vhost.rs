//! An HBA whose queues the host's kernel serves (vhost-scsi): this process has its registers and its interrupts, and no request.
//!
//! ```text
//!   driver ── doorbell (ioeventfd) ──> host's kernel ── interrupt (irqfd) ──> driver
//!                                          |  ^
//!                             stand-in <───┘  └── start, stop, call <── VhostScsi <── Transport (registers)
//! ```
//! The kernel signals an event for each completion. While the driver can take the message of the queue, that event is the one by
//! which the hypervisor delivers it. While it is masked, or the wire is used, a stand-in is signalled instead, and this process
//! does what is right then.

use std::error::Error as StdError;
use std::fmt::Display;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

use devices::iothread::Remote;
use devices::irq::MsiVector;
use devices::mem::Dma;
use devices::pci::{PciFunction, PciSeat};
use devices::scsi::TransferLimits;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::config::Config;
use crate::function::{Function, Interface, vectors};
use crate::hba::{Error, MAX_REQUEST_QUEUES};
use crate::queue::Queue;
use crate::ring::{MAX_CHAIN, RingAddress};
use crate::spec::{feature, queue};
use crate::transport::{Device, Limits, Server, TRANSPORT_FEATURES, Transport};

/// Largest command in bytes, and segments of one: Linux before 6.15 has room for 2048 pages of memory in a command
/// (VHOST_SCSI_PREALLOC_SGLS, drivers/vhost/scsi.c), of which each segment may use one more than its length says.
const TRANSFER: (u64, u32) = (4 << 20, 1022);

/// For how long the kernel is asked again where another one has the target, who may have it for a moment only, and how often.
const PATIENCE: Duration = Duration::from_millis(1000);
const PAUSE: Duration = Duration::from_millis(50);

/// Why the kernel does not do what it shall: a line for people.
pub type Refusal = Box<dyn StdError + Send + Sync>;

/// Why the kernel does not serve.
#[derive(Debug)]
pub struct Refused {
    /// A line for people.
    pub why: Refusal,
    /// It may do so in a moment.
    pub again: bool,
}

impl<E: Into<Refusal>> From<E> for Refused {
    fn from(why: E) -> Self {
        Self { why: why.into(), again: false }
    }
}

/// A queue as the kernel gets it.
#[derive(Clone, Copy)]
pub struct KernelQueue<'a> {
    /// Its size in descriptors, a power of two.
    pub size: u16,
    /// Guest physical addresses of the descriptor table, the driver's area and the device's area (virtio 1.3, 2.7).
    /// The driver chose them: whether they are in RAM is not looked at yet.
    pub at: [u64; 3],
    /// Signalled by the driver when there are buffers.
    pub kick: &'a EventFd,
    /// To be signalled when there are used ones.
    pub call: &'a EventFd,
}

/// The part of the host's kernel that serves the queues of one HBA. It reaches all of the guest's RAM while it does.
pub trait Kernel: Send + Sync {
    /// What messages call it: the HBA and its target.
    fn name(&self) -> String;
    /// Feature bits of virtio that it can do (virtio 1.3, 6).
    fn features(&self) -> u64;
    /// Begins to serve these queues, by number, none of which it has. Where it fails it serves none. May take as long as the host does.
    fn start(&self, features: u64, queues: &[Option<KernelQueue<'_>>]) -> Result<(), Refused>;
    /// Has `call` signalled from now on for a queue that it serves.
    fn call(&self, queue: u16, call: &EventFd) -> Result<(), Refusal>;
    /// Ends serving, and waits until no command is in flight. May take as long as the host does.
    fn stop(&self);
    /// The driver has gone: what it was not told yet is nobody's.
    fn forget(&self);
}

/// Properties of such an HBA that do not change while it lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KernelOptions {
    /// Number of request queues, 1 to [`MAX_REQUEST_QUEUES`].
    pub request_queues: u16,
    /// Size of every queue on offer, in descriptors: a power of two, 4 to 1024.
    pub queue_size: u16,
}

/// A virtio-scsi adapter that the host's kernel serves: a PCI function for a slot of the host bridge.
pub struct VhostScsi {
    function: Function,
    transport: Arc<Transport>,
    shared: Arc<Shared>,
}

struct Shared {
    this: Weak<Self>,
    config: Config,
    kernel: Arc<dyn Kernel>,
    transport: OnceLock<Weak<Transport>>,
    dma: Dma,
    /// What is signalled where no message can be delivered past this process, by queue.
    stand_ins: Box<[Arc<EventFd>]>,
    remote: Remote,
    state: Mutex<State>,
    /// Signalled when the kernel has answered whether it serves.
    answered: Condvar,
}

#[derive(Default)]
struct State {
    /// Another one for each start and each end: what a start has begun ends with it.
    turn: u64,
    /// The I/O thread waits for the kernel's answer.
    starting: bool,
    serving: bool,
    /// What delivers the interrupts of each queue; `None` for the stand-in.
    direct: Vec<Option<Arc<dyn MsiVector>>>,
}

impl VhostScsi {
    /// An HBA in the slot of `seat`, whose queues `kernel` serves. The I/O thread of `remote` delivers what cannot be delivered
    /// past this process, and waits for the kernel when it shall end.
    pub fn new(
        seat: PciSeat,
        kernel: Arc<dyn Kernel>,
        remote: Remote,
        options: KernelOptions,
    ) -> Result<Arc<Self>, Error> {
        let KernelOptions { request_queues, queue_size } = options;
        if !(1..=MAX_REQUEST_QUEUES).contains(&request_queues) {
            return Err(Error::RequestQueues(request_queues));
        }
        if !queue_size.is_power_of_two() || !(4..=MAX_CHAIN as u16).contains(&queue_size) {
            return Err(Error::QueueSize(queue_size));
        }
        let count = queue::FIRST_REQUEST + request_queues;
        let new_event = |_| EventFd::new(EFD_NONBLOCK).map(Arc::new);
        let stand_ins = (0..count).map(new_event).collect::<io::Result<_>>()?;
        let shared = Arc::new_cyclic(|this| Shared {
            this: this.clone(),
            config: Config::new(request_queues, queue_size, TransferLimits::new(TRANSFER.0, TRANSFER.1)),
            kernel,
            transport: OnceLock::new(),
            dma: seat.dma.clone(),
            stand_ins,
            remote,
            state: Mutex::default(),
            answered: Condvar::new(),
        });
        let new_queue = |_| Queue::new(seat.dma.clone()).map(Arc::new);
        let queues = (0..count).map(new_queue).collect::<Result<_, _>>()?;
        let limits = Limits { queue_size, vectors: vectors(count), access_platform: false };
        let transport = Transport::new(shared.clone(), queues, limits);
        // It is set once, here.
        let _ = shared.transport.set(Arc::downgrade(&transport));
        let function = Function::new(seat, transport.clone(), Interface::Modern)?;
        let listener = shared.clone();
        function.listen(Box::new(move || listener.vector_changed()));
        shared.stand_in(&transport);
        Ok(Arc::new(Self { function, transport, shared }))
    }

    /// Takes the HBA out of service for good, at the end of the machine. Takes as long as the host does.
    pub fn shut_down(&self) {
        self.transport.close();
        for event in &self.shared.stand_ins {
            // It fails only when the counter is full: then its task wakes anyway.
            let _ = event.write(1);
        }
        self.shared.stop();
    }
}

impl Shared {
    /// Delivers what the stand-ins are signalled for, for as long as the device lives.
    fn stand_in(&self, transport: &Arc<Transport>) {
        for (queue, event) in transport.queues().iter().zip(&self.stand_ins) {
            let (queue, event, transport) = (queue.clone(), event.clone(), transport.clone());
            self.remote.spawn(move |io| async move {
                let mut watch = io.watch(&event);
                loop {
                    if let Err(error) = watch.next().await {
                        tracing::error!(%error, "vhost-scsi: an interrupt is lost");
                        break;
                    }
                    if transport.is_closed() {
                        break;
                    }
                    transport.interrupt_queue(&queue);
                }
            });
        }
    }

    /// Ends what the kernel does, if anything.
    fn stop(&self) {
        let mut state = self.lock();
        state.turn += 1;
        // On the I/O thread it never is.
        while state.starting {
            state = self.answered.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        let serving = std::mem::take(&mut state.serving);
        drop(state);
        if serving {
            self.kernel.stop();
        }
    }

    /// Has the kernel serve these rings, unless another start or an end has come since `turn`.
    fn begin(&self, features: u64, rings: &[Option<RingAddress>], turn: u64) -> Result<(), Refused> {
        let Some(transport) = self.transport() else { return Ok(()) };
        let mut state = self.lock();
        if state.turn != turn || transport.is_closed() {
            return Ok(());
        }
        state.starting = true;
        // The kernel may take its time: nobody waits for this lock meanwhile.
        drop(state);
        let direct: Vec<_> = transport.queues().iter().map(|queue| transport.direct(queue)).collect();
        let queues = rings.iter().enumerate().map(|(index, ring)| {
            let RingAddress { size, desc, driver, device } = (*ring)?;
            Some(KernelQueue {
                size,
                at: [desc, driver, device],
                kick: transport.queues().get(index)?.doorbell(),
                call: self.call(index, direct.get(index)?.as_ref())?,
            })
        });
        let started = self.kernel.start(features, &queues.collect::<Vec<_>>());
        let mut state = self.lock();
        (state.starting, state.serving) = (false, started.is_ok());
        state.direct = direct;
        drop(state);
        self.answered.notify_all();
        started?;
        // Interrupts may have been led elsewhere meanwhile, and buffers made available before.
        self.vector_changed();
        transport.queues().iter().zip(rings).for_each(|(queue, ring)| {
            if ring.is_some() {
                queue.ring_doorbell();
            }
        });
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn transport(&self) -> Option<Arc<Transport>> {
        self.transport.get()?.upgrade()
    }

    /// The event that the kernel is to signal.
    fn call<'a>(&'a self, index: usize, direct: Option<&'a Arc<dyn MsiVector>>) -> Option<&'a EventFd> {
        let stand_in = || self.stand_ins.get(index).map(|event| &**event);
        direct.and_then(|vector| vector.eventfd()).or_else(stand_in)
    }

    fn warn(&self, what: &str, why: &dyn Display) {
        devices::log_limited!(warn, "{}: {what}: {why}", self.kernel.name());
    }
}

impl Server for Shared {
    fn start(&self, features: u64, rings: &[Option<RingAddress>]) -> Result<(), Refusal> {
        let this = self.this.upgrade().ok_or("the machine ends")?;
        self.dma.ram()?;
        let mut state = self.lock();
        state.turn += 1;
        let (turn, rings) = (state.turn, rings.to_vec());
        drop(state);
        // Not here, on a vCPU: kernels such as Linux 6.1 have one lock for all targets, and hold it while one of them hangs.
        self.remote.spawn(move |io| async move {
            let until = Instant::now() + PATIENCE;
            while let Err(Refused { why, again }) = this.begin(features, &rings, turn) {
                if again && Instant::now() < until {
                    io.sleep(PAUSE).await;
                    continue;
                }
                if this.transport().is_some_and(|transport| transport.server_failed()) {
                    devices::log_limited!(
                        error,
                        "{}: {why}; the guest has none of its units until its driver resets the adapter: reboot the guest then",
                        this.kernel.name()
                    );
                }
                break;
            }
        });
        Ok(())
    }

    fn vector_changed(&self) {
        let Some(transport) = self.transport() else { return };
        let state = &mut *self.lock();
        if !state.serving {
            return;
        }
        for (index, (queue, before)) in transport.queues().iter().zip(&mut state.direct).enumerate() {
            let direct = transport.direct(queue);
            let same = match (&direct, &*before) {
                (Some(direct), Some(before)) => Arc::ptr_eq(direct, before),
                (None, None) => true,
                _ => false,
            };
            let Some(call) = self.call(index, direct.as_ref()).filter(|_| !same) else { continue };
            if let Err(why) = self.kernel.call(index as u16, call) {
                self.warn(&format!("the interrupt of queue {index} cannot be led elsewhere"), &why);
            }
            *before = direct;
        }
    }
}

impl Device for Shared {
    fn features(&self) -> u64 {
        self.kernel.features() & feature::SCSI_HOTPLUG
    }

    fn transport_features(&self) -> u64 {
        // It knows no reset of single queues.
        self.kernel.features() & TRANSPORT_FEATURES & !feature::RING_RESET
    }

    fn negotiate(&self, _: u64) -> bool {
        true
    }

    fn read_config(&self, offset: u64, data: &mut [u8], _: u64) {
        self.config.read(offset, data, None);
    }

    fn config_generation(&self) -> u8 {
        0
    }

    /// The kernel has its own sizes of CDBs and sense data, which are the defaults.
    fn write_config(&self, offset: u64, data: &[u8]) {
        devices::log_limited!(debug, "vhost-scsi: a write of {} bytes at {offset:#x} ignored", data.len());
    }

    fn abort(&self, transport: Arc<Transport>) {
        let Some(this) = self.this.upgrade() else { return };
        self.remote.spawn(move |_| async move {
            this.stop();
            for (index, queue) in (0..).zip(transport.queues()) {
                queue.returned();
                transport.queue_drained(index);
            }
            transport.aborted();
        });
    }

    fn queue_stopped(&self, _: u16) {}

    fn unfinished(&self) -> String {
        self.kernel.name()
    }

    fn reset(&self) {
        self.kernel.forget();
    }

    fn server(&self) -> Option<&dyn Server> {
        Some(self)
    }
}

impl Drop for VhostScsi {
    fn drop(&mut self) {
        self.shut_down();
    }
}

impl PciFunction for VhostScsi {
    fn config_read(&self, offset: u16, data: &mut [u8]) {
        self.function.config_read(offset, data);
    }

    fn config_write(&self, offset: u16, data: &[u8]) {
        self.function.config_write(offset, data);
    }

    fn reset(&self) {
        self.function.reset();
    }

    fn name(&self) -> &str {
        PciFunction::name(&self.function)
    }
}

#[cfg(test)]
#[path = "vhost_tests.rs"]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests;
