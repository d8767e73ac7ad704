//! The life of an HBA that the kernel serves, with a kernel that only writes down what it is told.

use std::time::{Duration, Instant};

use devices::iothread::IoThread;
use devices::irq::{MsiAllocator, MsiMessage};
use devices::testing::pci::{TestSeat, set_config_dword, set_config_word};

use super::*;
use crate::spec::status;

const ALL: u64 = feature::VERSION_1
    | feature::RING_RESET
    | feature::RING_EVENT_IDX
    | feature::SCSI_INOUT
    | feature::SCSI_HOTPLUG
    | feature::SCSI_CHANGE;
const WANTED: u64 = feature::VERSION_1 | feature::RING_EVENT_IDX | feature::SCSI_HOTPLUG;

#[derive(Default)]
struct Fake {
    log: Mutex<Vec<String>>,
    calls: Mutex<Vec<Option<EventFd>>>,
    refuses: std::sync::atomic::AtomicBool,
}

impl Fake {
    fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.log.lock().unwrap())
    }

    fn note(&self, line: String) {
        self.log.lock().unwrap().push(line);
    }

    /// As for a completion.
    fn complete(&self, queue: usize) {
        self.calls.lock().unwrap()[queue].as_ref().unwrap().write(1).unwrap();
    }
}

impl Kernel for Fake {
    fn features(&self) -> u64 {
        ALL
    }
    fn start(&self, features: u64, queues: &[Option<KernelQueue<'_>>]) -> Result<(), Refusal> {
        if self.refuses.load(std::sync::atomic::Ordering::Relaxed) {
            return Err("no target".into());
        }
        assert_eq!(features, WANTED);
        let line = |queue: &Option<KernelQueue<'_>>| {
            queue.map_or("-".into(), |queue| format!("{} {:x?} {}", queue.size, queue.at, queue.base))
        };
        self.note(queues.iter().map(line).collect::<Vec<_>>().join(", "));
        let call = |queue: &Option<KernelQueue<'_>>| queue.map(|queue| queue.call.try_clone().unwrap());
        *self.calls.lock().unwrap() = queues.iter().map(call).collect();
        Ok(())
    }
    fn call(&self, queue: u16, call: &EventFd) -> Result<(), Refusal> {
        self.calls.lock().unwrap()[usize::from(queue)] = Some(call.try_clone()?);
        Ok(())
    }
    fn stop(&self) -> Vec<u16> {
        self.note("stop".into());
        vec![7, 8, 9]
    }
    fn forget(&self) {
        self.note("forget".into());
    }
}

/// Message-signalled interrupts, each an event that is counted by this process or by the hypervisor.
#[derive(Default)]
struct Messages(Mutex<Vec<Arc<Message>>>);
struct Message {
    event: EventFd,
    triggered: std::sync::atomic::AtomicUsize,
}

impl MsiVector for Message {
    fn route(&self, _: MsiMessage) -> io::Result<()> {
        Ok(())
    }
    fn trigger(&self) {
        self.triggered.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
    }
    fn eventfd(&self) -> Option<&EventFd> {
        Some(&self.event)
    }
}

impl MsiAllocator for Messages {
    fn allocate(&self) -> io::Result<Arc<dyn MsiVector>> {
        let event = EventFd::new(EFD_NONBLOCK)?;
        let message = Arc::new(Message { event, triggered: Default::default() });
        self.0.lock().unwrap().push(message.clone());
        Ok(message)
    }
}

struct Bench {
    seat: TestSeat,
    kernel: Arc<Fake>,
    messages: Arc<Messages>,
    hba: Arc<VhostScsi>,
    _thread: IoThread,
}

const TABLE: u64 = 0xc000_0000;
const MASTER: u16 = 6;

impl Bench {
    /// An HBA with one request queue; its BARs are mapped.
    fn new() -> Self {
        let mut seat = TestSeat::new(1 << 20);
        let (kernel, messages) = (Arc::new(Fake::default()), Arc::new(Messages::default()));
        seat.seat.msi = messages.clone();
        let thread = IoThread::start("vhost").unwrap();
        let options = KernelOptions { request_queues: 1, queue_size: 256 };
        let hba = VhostScsi::new(seat.seat.clone(), kernel.clone(), thread.remote(), options).unwrap();
        set_config_dword(&*hba, 0x14, TABLE as u32);
        set_config_word(&*hba, 4, MASTER);
        Self { seat, kernel, messages, hba, _thread: thread }
    }

    fn write<const N: usize>(&self, offset: u64, data: [u8; N]) {
        self.hba.transport.write(offset, &data);
    }

    fn status(&self) -> u8 {
        let mut status = [0];
        self.hba.transport.read(20, &mut status);
        status[0]
    }

    /// What a driver does: features, then these queues, with a vector of its own each, then DRIVER_OK.
    fn drive(&self, queues: &[u16]) {
        self.write(20, [3]);
        for half in 0..2_u32 {
            self.write(8, half.to_le_bytes());
            self.write(12, ((WANTED >> (32 * half)) as u32).to_le_bytes());
        }
        self.write(20, [3 | status::FEATURES_OK]);
        assert!(self.status() & status::FEATURES_OK != 0);
        queues.iter().for_each(|queue| self.enable(*queue));
        self.write(20, [3 | status::FEATURES_OK | status::DRIVER_OK]);
    }

    fn enable(&self, queue: u16) {
        self.write(22, queue.to_le_bytes());
        self.write(24, 16_u16.to_le_bytes());
        self.write(26, queue.to_le_bytes());
        for (field, offset) in [32, 40, 48].into_iter().zip(1_u64..) {
            let at = u64::from(queue) * 0x1_0000 + offset * 0x1000;
            self.write(field, (at as u32).to_le_bytes());
        }
        self.write(28, [1, 0]);
    }

    fn reset(&self) {
        self.write(20, [0]);
        wait(|| self.status() == 0);
    }

    /// Enables MSI-X, or not.
    fn msix(&self, on: bool) {
        let at = devices::testing::pci::find_capability(&*self.hba, 0x11).unwrap();
        set_config_word(&*self.hba, at + 2, if on { 0x8000 } else { 0 });
    }

    fn mask(&self, vector: u64, masked: bool) {
        self.seat.memory.write(TABLE + 16 * vector, &[0, 0, 0xe0, 0xfe, 0, 0, 0, 0]);
        self.seat.memory.write(TABLE + 16 * vector + 12, &u32::from(masked).to_le_bytes());
    }
}

fn wait(until: impl Fn() -> bool) {
    let begin = Instant::now();
    while !until() {
        assert!(begin.elapsed() < Duration::from_secs(10), "nothing happens");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_driver_gets_the_features_of_the_kernel_that_go_with_this_transport() {
    let bench = Bench::new();
    assert_eq!(bench.hba.transport.offered(), WANTED);
    let mut data = [0; 12];
    bench.hba.transport.read(0x2000, &mut data);
    assert_eq!(data, [1, 0, 0, 0, 254, 0, 0, 0, 0, 0x20, 0, 0], "4 MiB in one command");
    // Sizes of CDB and sense data stay: the kernel has no others.
    bench.write(0x2014, 252_u32.to_le_bytes());
    bench.hba.transport.read(0x2014, &mut data);
    assert_eq!(data[..8], [96, 0, 0, 0, 32, 0, 0, 0]);
}

#[test]
fn queues_are_served_from_driver_ok_to_the_reset() {
    let bench = Bench::new();
    bench.drive(&[0, 1, 2]);
    let ring = |queue: u64| {
        format!("16 [{:x}, {:x}, {:x}] 0", queue << 16 | 0x1000, queue << 16 | 0x2000, queue << 16 | 0x3000)
    };
    assert_eq!(bench.kernel.take(), [[ring(0), ring(1), ring(2)].join(", ")]);
    let kick = bench.hba.transport.queues()[2].doorbell();
    assert_eq!(kick.read().unwrap(), 1, "buffers may be there already");
    bench.reset();
    assert_eq!(bench.kernel.take(), ["stop", "forget"]);
    // Firmware has one queue only, and begins anew.
    bench.drive(&[2]);
    assert_eq!(bench.kernel.take(), [format!("-, -, {}", ring(2))]);
    PciFunction::reset(&*bench.hba);
    assert_eq!(bench.kernel.take(), ["stop", "forget"], "a reset of the machine waits");
    PciFunction::reset(&*bench.hba);
    assert_eq!(bench.kernel.take(), ["forget"]);
    set_config_word(&*bench.hba, 4, MASTER);
    bench.drive(&[2]);
    bench.hba.shut_down();
    assert_eq!(bench.kernel.take(), [format!("-, -, {}", ring(2)), "stop".into()]);
    bench.hba.shut_down();
    assert_eq!(bench.kernel.take(), [""; 0]);
}

#[test]
fn without_bus_mastering_nothing_is_served_and_afterwards_it_goes_on() {
    let bench = Bench::new();
    bench.drive(&[2]);
    assert_eq!(bench.kernel.take().len(), 1);
    set_config_word(&*bench.hba, 4, 2);
    assert_eq!(bench.kernel.take(), ["stop"]);
    set_config_word(&*bench.hba, 4, MASTER);
    assert_eq!(bench.kernel.take(), ["-, -, 16 [21000, 22000, 23000] 9"]);
    bench.reset();
    set_config_word(&*bench.hba, 4, 2);
    bench.kernel.take();
    bench.drive(&[2]);
    assert_eq!(bench.kernel.take(), [""; 0], "not in its memory");
    assert!(bench.status() & status::DEVICE_NEEDS_RESET != 0);
}

#[test]
fn what_the_kernel_refuses_and_queues_that_come_late_need_a_reset() {
    let bench = Bench::new();
    bench.kernel.refuses.store(true, std::sync::atomic::Ordering::Relaxed);
    bench.drive(&[0, 1, 2]);
    assert!(bench.status() & status::DEVICE_NEEDS_RESET != 0);
    bench.kernel.refuses.store(false, std::sync::atomic::Ordering::Relaxed);
    bench.reset();
    bench.drive(&[2]);
    assert!(bench.status() & status::DEVICE_NEEDS_RESET == 0);
    bench.enable(1);
    assert!(bench.status() & status::DEVICE_NEEDS_RESET != 0);
    bench.reset();
    // A ring at an odd place.
    bench.write(22, 2_u16.to_le_bytes());
    bench.write(32, 0x1001_u32.to_le_bytes());
    bench.kernel.take();
    bench.write(28, [1, 0]);
    bench.drive(&[]);
    assert_eq!(bench.kernel.take(), [""; 0]);
    assert!(bench.status() & status::DEVICE_NEEDS_RESET != 0);
}

/// The kernel signals the hypervisor itself while the driver takes messages, and what stands in for it at all other times.
#[test]
fn interrupts_pass_by_unless_they_are_masked() {
    let bench = Bench::new();
    bench.msix(true);
    bench.mask(2, false);
    bench.drive(&[2]);
    let message = || bench.messages.0.lock().unwrap()[0].clone();
    let count = || message().triggered.load(std::sync::atomic::Ordering::SeqCst);
    bench.kernel.complete(2);
    assert_eq!((message().event.read().unwrap(), count()), (1, 0));
    // Masked it waits, until it is not.
    bench.mask(2, true);
    bench.kernel.complete(2);
    let pending = || {
        let mut bits = [0];
        bench.seat.memory.read(TABLE + 4 * 16, &mut bits);
        bits[0] == 1 << 2
    };
    wait(pending);
    assert_eq!(count(), 0);
    bench.mask(2, false);
    assert_eq!(count(), 1);
    bench.kernel.complete(2);
    assert_eq!((message().event.read().unwrap(), count()), (1, 1));
    // Without messages it is the wire.
    bench.msix(false);
    bench.kernel.complete(2);
    wait(|| bench.seat.intx.is_high());
    let mut isr = [0];
    bench.hba.transport.read(0x1000, &mut isr);
    assert_eq!((isr, bench.seat.intx.is_high()), ([1], false));
    assert!(message().event.read().is_err(), "not past the process");
}
