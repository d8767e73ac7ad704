//! A virtio-scsi HBA that stays from input to input, with two new disks for each, and a driver that knows how to begin.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock, mpsc};
use std::time::{Duration, Instant};

use devices::bus::{Doorbell, Space};
use devices::iothread::{IoThread, Remote};
use devices::pci::PciFunction;
use devices::scsi::{Disk, DiskConfig, Image, LogicalUnit, Lun, Nexus, ProtectionType, Target};
use devices::testing::RamDisk;
use devices::testing::pci::{TestSeat, set_config_dword, set_config_word};
use hba_virtio_scsi::fc::{Emulated, RemoteState};
use hba_virtio_scsi::{Interface, Options, VirtioScsi};
use vm_memory::{Bytes as _, GuestAddress};

use crate::io_thread;

/// Guest RAM in bytes.
pub const RAM: u64 = 1 << 19;
/// Where the structures, the legacy registers and the doorbell ports are.
pub const STRUCTURES: u64 = 0xc000_0000;
pub const LEGACY: u64 = 0xc000;
pub const PORTS: u64 = 0xc100;
/// Queues: control, event, two request queues.
pub const QUEUES: u16 = 4;
/// Descriptors of each queue.
pub const SIZE: u16 = 16;
/// VIRTIO_F_VERSION_1
pub const VERSION_1: u64 = 1 << 32;
/// Longer than any of this takes, shorter than the fuzzer's limit.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// The HBA in its slot.
pub struct Rig {
    pub seat: TestSeat,
    pub hba: Arc<VirtioScsi>,
    /// A fabric with a port for each target.
    san: Arc<Emulated>,
    /// What comes and goes at target 2.
    spare: Arc<Nexus>,
    remote: Remote,
    _thread: IoThread,
}

/// Lends the one rig of this process, with memory and disks in which nothing is.
pub fn with_rig(act: impl FnOnce(&Rig)) {
    static RIG: OnceLock<Mutex<Rig>> = OnceLock::new();
    let mut rig = RIG.get_or_init(|| Mutex::new(Rig::new())).lock().expect("no input has failed before");
    rig.begin();
    rig.place();
    act(&rig);
    rig.plug(false);
    rig.settle();
    // Whatever the driver did: a system reset ends, and the next driver finds a device that works.
    rig.hba.reset();
    rig.place();
    rig.assert_serves();
    rig.end();
}

/// Where the parts of a queue are.
pub fn ring(queue: u16) -> [u64; 3] {
    let base = 0x1_0000 + 0x2000 * u64::from(queue);
    [base, base + 0x1000, base + 0x1800]
}

/// A small disk of zeros.
fn target(protected: bool) -> Arc<Nexus> {
    let image = |len| Arc::new(Image::Ram(RamDisk::new(len)));
    let (disk, config) = (image(256 << 10), DiskConfig::default());
    let disk = match protected {
        true => Disk::with_protection(disk, config, ProtectionType::Type1, image(4096)),
        false => Disk::new(disk, config),
    };
    let target = Target::new();
    target.attach(Lun::default(), LogicalUnit::Disk(disk.expect("good"))).expect("free");
    Nexus::new(target, None)
}

impl Rig {
    fn new() -> Self {
        let seat = TestSeat::new(RAM as usize);
        let thread = io_thread();
        let options = Options {
            request_queues: QUEUES - 2,
            queue_size: SIZE,
            access_platform: true,
            protection: true,
            interface: Interface::Transitional,
            ..Options::default()
        };
        let targets = BTreeMap::from([(0, target(false)), (1, target(true))]);
        let san = Emulated::new("fuzz", 0..3);
        san.allow_vports(2, |names| names.wwnn & 1 == 0);
        let remotes = vec![thread.remote()];
        let hba = VirtioScsi::with_san(seat.seat.clone(), targets, remotes, options, san.clone());
        let hba = hba.expect("an HBA");
        Self { seat, hba, san, spare: target(false), remote: thread.remote(), _thread: thread }
    }

    fn begin(&mut self) {
        self.poke(0, &[0; RAM as usize]);
        self.seat.msi.take();
        self.spare = target(false);
    }

    /// The driver that is there now does not hear of new disks, and the reset makes them what was always there.
    fn end(&self) {
        self.disturb(0);
        self.hba.attach_target(0, target(false));
        self.hba.attach_target(1, target(true));
        self.hba.reset();
    }

    /// What the operator does: a disk comes, or goes.
    pub fn plug(&self, comes: bool) {
        if comes {
            self.hba.attach_target(2, self.spare.clone());
        } else {
            self.hba.detach_target(2);
        }
    }

    /// What the fabric does: the port of target 1 is lost, or back; the address of the guest's port is another one, or that of a port which
    /// the guest has created; and units come.
    pub fn disturb(&self, how: u8) {
        let state = [RemoteState::Online, RemoteState::Blocked, RemoteState::Lost, RemoteState::Online];
        if let Some(state) = state.get(usize::from(how & 3)) {
            self.san.set_state(1, *state);
        }
        match how >> 2 & 3 {
            1 => self.san.set_local(|port| port.port_id = port.port_id.wrapping_add(1)),
            2 => self.san.units_changed(1),
            3 => {
                self.san.set_vport(1, |port| port.port_id = port.port_id.wrapping_add(1));
            }
            _ => {}
        }
    }

    /// What firmware does.
    pub fn place(&self) {
        for (bar, at) in [(0, LEGACY), (1, STRUCTURES + 0x10_0000), (4, STRUCTURES), (5, PORTS)] {
            set_config_dword(&*self.hba, 0x10 + 4 * bar, at as u32);
        }
        set_config_word(&*self.hba, 4, 0x7);
    }

    pub fn write(&self, offset: u64, data: &[u8]) {
        self.seat.memory.write(STRUCTURES + offset, data);
    }

    pub fn read<const N: usize>(&self, offset: u64) -> [u8; N] {
        let mut data = [0; N];
        self.seat.memory.read(STRUCTURES + offset, &mut data);
        data
    }

    /// Writes guest memory; what is beyond it is left out.
    pub fn poke(&self, at: u64, bytes: &[u8]) {
        let _ = self.seat.ram.write_slice(bytes, GuestAddress(at));
    }

    /// `len` bytes of guest memory; none where they are not all there.
    pub fn peek_all(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        match self.seat.ram.read_slice(&mut bytes, GuestAddress(at)) {
            Ok(()) => bytes,
            Err(_) => Vec::new(),
        }
    }

    pub fn peek<const N: usize>(&self, at: u64) -> [u8; N] {
        let mut bytes = [0; N];
        let _ = self.seat.ram.read_slice(&mut bytes, GuestAddress(at));
        bytes
    }

    /// A doorbell of version 1.
    pub fn ring_doorbell(&self, queue: u16) {
        let addr = STRUCTURES + 0x3000 + 4 * u64::from(queue);
        let bell = Doorbell { addr, space: Space::Memory, width: 2, value: Some(queue.into()) };
        if !self.seat.doorbells.ring(bell) {
            self.seat.memory.write(addr, &queue.to_le_bytes());
        }
    }

    /// Lets the I/O thread come to what it was woken for.
    pub fn settle(&self) {
        for _ in 0..3 {
            let (done, result) = mpsc::sync_channel(1);
            self.remote.spawn(move |_| async move {
                let _ = done.send(());
            });
            result.recv().expect("the I/O thread lives");
        }
    }

    /// Initialises the device and all queues in the places of [`ring`].
    pub fn start(&self, features: u64) {
        self.write(20, &[0]);
        let begin = Instant::now();
        while self.read::<1>(20) != [0] {
            assert!(begin.elapsed() < PATIENCE, "the reset does not end");
            std::thread::yield_now();
        }
        self.write(20, &[1]);
        self.write(20, &[3]);
        for half in 0..2_u32 {
            self.write(8, &half.to_le_bytes());
            self.write(12, &((features >> (32 * half)) as u32).to_le_bytes());
        }
        self.write(20, &[11]);
        for queue in 0..QUEUES {
            let parts = ring(queue);
            self.poke(parts[0], &[0; 0x2000]);
            self.write(22, &queue.to_le_bytes());
            for (offset, part) in [32, 40, 48].into_iter().zip(parts) {
                self.write(offset, &part.to_le_bytes());
            }
            self.write(28, &[1, 0]);
        }
        self.write(20, &[15]);
    }

    fn assert_serves(&self) {
        self.start(VERSION_1);
        assert_eq!(self.read::<1>(20), [15], "a fresh device starts");
        let [desc, avail, used] = ring(2);
        let request = 0x8000;
        self.poke(request, &[0; 51 + 108]);
        self.poke(request, &[1, 0, 0x40]);
        for (index, (addr, len, flags, next)) in
            [(request, 51_u32, 1_u16, 1_u16), (request + 51, 108, 2, 0)].into_iter().enumerate()
        {
            let at = desc + 16 * index as u64;
            self.poke(at, &addr.to_le_bytes());
            self.poke(at + 8, &len.to_le_bytes());
            self.poke(at + 12, &flags.to_le_bytes());
            self.poke(at + 14, &next.to_le_bytes());
        }
        self.poke(avail, &[0, 0, 1, 0, 0, 0]);
        self.ring_doorbell(2);
        let begin = Instant::now();
        while self.peek::<2>(used + 2) != [1, 0] {
            assert!(begin.elapsed() < PATIENCE, "TEST UNIT READY does not end");
            std::thread::yield_now();
        }
        assert_eq!(self.peek::<1>(request + 51 + 11), [0], "response");
    }
}
