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
    /// How often it says that somebody else has the target.
    taken: std::sync::atomic::AtomicUsize,
    /// Held by a test, it does not answer whether it serves, or that it does not any more.
    hangs: [Mutex<()>; 2],
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
    fn name(&self) -> String {
        "hba lio0".into()
    }
    fn features(&self) -> u64 {
        ALL
    }
    fn start(&self, features: u64, queues: &[Option<KernelQueue<'_>>]) -> Result<(), Refused> {
        drop(self.hangs[0].lock().unwrap());
        if self.refuses.load(std::sync::atomic::Ordering::Relaxed) {
            return Err("no target".into());
        }
        let order = std::sync::atomic::Ordering::Relaxed;
        if self.taken.load(order) > 0 {
            self.taken.fetch_sub(1, order);
            return Err(Refused { why: "taken".into(), again: true });
        }
        assert_eq!(features, WANTED);
        let line = |queue: &Option<KernelQueue<'_>>| {
            queue.map_or("-".into(), |queue| format!("{} {:x?}", queue.size, queue.at))
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
    fn stop(&self) {
        drop(self.hangs[1].lock().unwrap());
        self.note("stop".into());
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
    thread: IoThread,
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
        Self { seat, kernel, messages, hba, thread }
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

    /// What the kernel was told, once the I/O thread has done what it had to.
    fn told(&self) -> Vec<String> {
        let (done, wait) = std::sync::mpsc::channel();
        self.thread.remote().spawn(move |_| async move { done.send(()).unwrap() });
        wait.recv().unwrap();
        self.kernel.take()
    }

    fn needs_reset(&self) -> bool {
        self.status() & status::DEVICE_NEEDS_RESET != 0
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
        format!("16 [{:x}, {:x}, {:x}]", queue << 16 | 0x1000, queue << 16 | 0x2000, queue << 16 | 0x3000)
    };
    assert_eq!(bench.told(), [[ring(0), ring(1), ring(2)].join(", ")]);
    let kick = bench.hba.transport.queues()[2].doorbell();
    assert_eq!(kick.read().unwrap(), 1, "buffers may be there already");
    // Firmware begins anew without a look at the status.
    bench.write(20, [0]);
    assert_eq!(bench.status(), 0);
    assert_eq!(bench.told(), ["stop", "forget"]);
    // It has one queue only.
    bench.drive(&[2]);
    assert_eq!(bench.told(), [format!("-, -, {}", ring(2))]);
    PciFunction::reset(&*bench.hba);
    assert_eq!(bench.told(), ["stop", "forget"], "a reset of the machine waits");
    PciFunction::reset(&*bench.hba);
    assert_eq!(bench.told(), ["forget"]);
    set_config_word(&*bench.hba, 4, MASTER);
    bench.drive(&[2]);
    assert_eq!(bench.told(), [format!("-, -, {}", ring(2))]);
    bench.hba.shut_down();
    assert_eq!(bench.kernel.take(), ["stop"]);
    bench.hba.shut_down();
    assert_eq!(bench.kernel.take(), [""; 0]);
}

/// A driver that sets itself up without a queue has nothing served, and the one after it all.
#[test]
fn a_driver_without_queues_leaves_nothing_behind() {
    let bench = Bench::new();
    for reset in [Bench::reset, |bench: &Bench| PciFunction::reset(&*bench.hba)] {
        bench.drive(&[]);
        assert_eq!(bench.told(), [""; 0]);
        assert!(!bench.needs_reset());
        reset(&bench);
        set_config_word(&*bench.hba, 4, MASTER);
        assert_eq!(bench.told(), ["forget"]);
        bench.drive(&[2]);
        assert_eq!(bench.told(), ["-, -, 16 [21000, 22000, 23000]"]);
        bench.reset();
        bench.told();
    }
}

/// The memory of its rings may be another kernel's by the time that bus mastering is on again: Linux puts it on before it resets.
#[test]
fn without_bus_mastering_nothing_is_served_until_a_reset() {
    let bench = Bench::new();
    bench.drive(&[2]);
    assert_eq!(bench.told().len(), 1);
    set_config_word(&*bench.hba, 4, 2);
    assert_eq!(bench.told(), ["stop"]);
    assert!(bench.needs_reset());
    set_config_word(&*bench.hba, 4, MASTER);
    assert_eq!(bench.told(), [""; 0]);
    bench.reset();
    bench.drive(&[2]);
    assert_eq!(bench.told(), ["forget", "-, -, 16 [21000, 22000, 23000]"]);
    bench.reset();
    set_config_word(&*bench.hba, 4, 2);
    bench.told();
    bench.drive(&[2]);
    assert_eq!(bench.told(), [""; 0], "not in its memory");
    assert!(bench.needs_reset());
}

#[test]
fn what_the_kernel_refuses_and_queues_that_come_late_need_a_reset() {
    let bench = Bench::new();
    bench.kernel.refuses.store(true, std::sync::atomic::Ordering::Relaxed);
    bench.drive(&[0, 1, 2]);
    bench.told();
    assert!(bench.needs_reset());
    bench.kernel.refuses.store(false, std::sync::atomic::Ordering::Relaxed);
    bench.reset();
    bench.drive(&[2]);
    bench.told();
    assert!(!bench.needs_reset());
    bench.enable(1);
    assert!(bench.needs_reset());
    bench.reset();
    // A ring at an odd place.
    bench.write(22, 2_u16.to_le_bytes());
    bench.write(32, 0x1001_u32.to_le_bytes());
    bench.told();
    bench.write(28, [1, 0]);
    bench.drive(&[]);
    assert_eq!(bench.told(), [""; 0]);
    assert!(bench.needs_reset());
}

/// A start that is only a try joins the target for a moment.
#[test]
fn a_target_that_another_has_for_a_moment_is_asked_for_again() {
    let bench = Bench::new();
    bench.kernel.taken.store(3, std::sync::atomic::Ordering::Relaxed);
    bench.drive(&[2]);
    wait(|| !bench.kernel.log.lock().unwrap().is_empty());
    assert_eq!(bench.told(), ["-, -, 16 [21000, 22000, 23000]"]);
    assert!(!bench.needs_reset());
    bench.reset();
    // Somebody has it for longer; and a reset ends the asking.
    bench.kernel.taken.store(usize::MAX, std::sync::atomic::Ordering::Relaxed);
    bench.drive(&[2]);
    wait(|| bench.needs_reset());
    bench.reset();
    bench.drive(&[2]);
    bench.reset();
    bench.kernel.taken.store(0, std::sync::atomic::Ordering::Relaxed);
    bench.kernel.take();
    std::thread::sleep(2 * PAUSE);
    assert_eq!(bench.told(), [""; 0], "of a driver that has gone");
}

/// The target of another machine hangs, and with it, on Linux 6.1, all that is asked of the kernel.
#[test]
fn nobody_but_the_io_thread_waits_for_the_kernel() {
    let bench = Bench::new();
    let hangs = bench.kernel.hangs[0].lock().unwrap();
    let begin = Instant::now();
    bench.drive(&[2]);
    bench.enable(1);
    bench.mask(2, true);
    bench.write(20, [0]);
    assert!(bench.status() != 0, "a reset is not over before it is");
    std::thread::scope(|threads| {
        let end = threads.spawn(|| bench.hba.shut_down());
        std::thread::sleep(Duration::from_millis(50));
        assert!(bench.hba.transport.is_closed() && !end.is_finished(), "the kernel may serve still");
        assert!(begin.elapsed() < Duration::from_secs(5));
        drop(hangs);
    });
    assert_eq!(bench.kernel.take()[..2], ["-, -, 16 [21000, 22000, 23000]", "stop"]);
}

/// It ends in its own time; bus mastering may be on again for long by then.
#[test]
fn an_end_that_takes_long_is_no_beginning() {
    let bench = Bench::new();
    bench.drive(&[2]);
    bench.told();
    let hangs = bench.kernel.hangs[1].lock().unwrap();
    bench.hba.transport.quiesce(Duration::from_millis(10));
    set_config_word(&*bench.hba, 4, MASTER);
    drop(hangs);
    wait(|| bench.needs_reset());
    assert_eq!(bench.told(), ["stop"]);
    bench.reset();
    bench.drive(&[2]);
    assert_eq!(bench.told(), ["forget", "-, -, 16 [21000, 22000, 23000]"]);
}

/// The kernel signals the hypervisor itself while the driver takes messages, and what stands in for it at all other times.
#[test]
fn interrupts_pass_by_unless_they_are_masked() {
    let bench = Bench::new();
    bench.msix(true);
    bench.mask(2, false);
    bench.drive(&[2]);
    bench.told();
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
