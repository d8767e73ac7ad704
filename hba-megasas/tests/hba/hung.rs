//! A disk of the board for which the host does not answer, beside a healthy one.

use std::collections::BTreeMap;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use devices::iothread::{Io, IoThread, Remote};
use devices::pci::PciFunction;
use devices::scsi::Image;
use devices::storage::{CacheMode, RawImage, RawOptions, Sharing};
use hba_megasas::Model;

use crate::guest::{Frame, Guest, PRODUCER, drive, options};

/// What is on the disks, in the guest's memory, and what the guest puts there when that is its own again.
const OLD: u8 = 0x55;
const BUFFER: u8 = 0xdd;
const OTHER: u8 = 0x77;
/// From this block on the host does not answer.
const FAR: u64 = 64;
const MIB: usize = 1 << 20;
/// A board that is READY at once is so within this time on a host that is busy with other work: an abandoned write is waited for
/// for a second.
const AT_ONCE: Duration = Duration::from_secs(5);

struct Bench {
    guest: Guest,
    remote: Remote,
    files: Vec<tempfile::NamedTempFile>,
}

impl Bench {
    /// Two disks of a board that a driver has started.
    fn new(raid: bool, dress: impl Fn(Image) -> Image) -> Self {
        let files: Vec<_> = (0..2).map(|_| tempfile::NamedTempFile::new().unwrap()).collect();
        let open = |file: &tempfile::NamedTempFile| {
            file.as_file().write_all_at(&[OLD; MIB], 0).unwrap();
            let options = RawOptions {
                path: file.path().into(),
                read_only: false,
                cache: CacheMode::Writeback,
                sharing: Sharing::Unlocked,
            };
            Arc::new(dress(Image::Raw(RawImage::open(&options).unwrap())))
        };
        let images: BTreeMap<u8, _> = (0..).zip(files.iter().map(open)).collect();
        let drives = images.iter().map(|(&id, image)| (id, drive(image, raid))).collect();
        let thread = IoThread::start("io").unwrap();
        let remote = thread.remote();
        let mut guest = Guest::on(thread, options(Model::Gen2), drives, images);
        assert_eq!(guest.init(1009), 0);
        let mut bench = Self { guest, remote, files };
        bench.settle(raid);
        bench
    }

    /// Takes unit attentions: those of a plain disk are the driver's.
    fn settle(&mut self, raid: bool) {
        for target in [0, 1] {
            let ready = |bench: &mut Self| bench.test_unit(raid, target) == 0;
            assert!((0..8).any(|_| ready(self)));
        }
    }

    /// TEST UNIT READY, as Linux asks after a reset whether a disk is there.
    fn test_unit(&mut self, raid: bool, target: u8) -> u8 {
        self.guest.scsi(if raid { 3 } else { 4 }, target, &[0; 6], &[], 0).status
    }

    /// Does something to the host.
    fn host(&self, what: impl FnOnce(&Io) + Send + 'static) {
        let (done, end) = mpsc::channel();
        self.remote.spawn(move |io| async move {
            what(&io);
            done.send(()).unwrap();
        });
        end.recv().unwrap();
    }

    /// A transfer of a block of target 0 that hangs; returns its frame and buffer.
    fn hang(&mut self, raid: bool, write: bool) -> (u64, u64) {
        self.host(|io| io.hang_from(FAR * 512));
        let data = self.guest.alloc_with(&[BUFFER; 512]);
        let address = self.guest.send(&frame(raid, write, FAR).context(3).sge(data, 512));
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!(self.guest.status_of(address), 0xff);
        (address, data)
    }

    /// Sends a transfer that drivers poll for; its status, that of SCSI, and the data.
    fn send(&mut self, raid: bool, target: u8, write: bool, lba: u64) -> (u8, u8, Vec<u8>) {
        let data = self.guest.alloc_with(&[BUFFER; 512]);
        let sense = self.guest.alloc_with(&[0; 252]);
        let frame = frame(raid, write, lba).put(1, &[252]).put(0x18, &sense.to_le_bytes());
        let frame = frame.target(target).sge(data, 512);
        let address = self.guest.send(&frame.flags(crate::guest::DONT_POST));
        let status = self.guest.wait_frame(address);
        (status, self.guest.peek(address + 3, 1)[0], self.guest.peek(data, 512))
    }

    fn block(&self, lba: u64) -> Vec<u8> {
        let mut bytes = vec![0; 512];
        self.files[0].as_file().read_exact_at(&mut bytes, lba * 512).unwrap();
        bytes
    }
}

/// A transfer of one block of target 0 as drivers send it to a volume, or to a disk.
fn frame(raid: bool, write: bool, lba: u64) -> Frame {
    if raid {
        return Frame::io(write, 0, lba, 1);
    }
    let opcode = if write { 0x2a } else { 0x28 };
    Frame::scsi(4, 0, &[opcode, 0, 0, 0, 0, lba as u8, 0, 0, 1, 0]).len(512)
}

#[test]
fn a_disk_that_hangs_does_not_cost_the_board() {
    for (raid, write) in [(true, false), (true, true), (false, false), (false, true)] {
        let mut bench = Bench::new(raid, Image::private);
        let (address, data) = bench.hang(raid, write);
        let begin = Instant::now();
        bench.guest.adapter_reset();
        bench.guest.wait_ready();
        assert!(begin.elapsed() < AT_ONCE, "{:?}", begin.elapsed());
        // The memory is somebody else's.
        for (at, len) in [(address, 64), (data, 512)] {
            bench.guest.poke(at, &vec![OTHER; len]);
        }
        assert_eq!(bench.guest.init(1009), 0);
        bench.settle(raid);
        for _ in 0..20 {
            assert_eq!(bench.send(raid, 1, false, 3), (0, 0, vec![OLD; 512]), "the healthy disk");
        }
        // Linux repeats what was under way, and gives the board up when that does not come back within seconds.
        let begin = Instant::now();
        let (status, scsi, _) = bench.send(raid, 0, write, FAR);
        assert_eq!((status, scsi), (0x2d, 8), "BUSY");
        assert!(begin.elapsed() < AT_ONCE, "{:?}", begin.elapsed());
        assert_eq!(bench.test_unit(raid, 0), 0);
        assert_eq!(bench.block(FAR), [OLD; 512]);
        bench.host(|io| {
            io.repent();
            io.land();
        });
        assert_eq!(bench.block(FAR), [if write { BUFFER } else { OLD }; 512]);
        for (at, len) in [(address, 64), (data, 512)] {
            assert_eq!(bench.guest.peek(at, len), vec![OTHER; len]);
        }
        assert_eq!(bench.send(raid, 0, true, FAR).0, 0);
        assert_eq!(bench.send(raid, 0, false, FAR), (0, 0, vec![BUFFER; 512]));
    }
}

/// The virtual CPU that takes bus mastering away goes on, and nothing lands later.
#[test]
fn bus_mastering_off_does_not_wait_for_a_disk_that_hangs() {
    let mut bench = Bench::new(true, Image::private);
    let (address, data) = bench.hang(true, false);
    let begin = Instant::now();
    bench.guest.hba.config_write(4, &3_u16.to_le_bytes());
    assert!(begin.elapsed() < AT_ONCE, "{:?}", begin.elapsed());
    for (at, len) in [(address, 64), (data, 512)] {
        bench.guest.poke(at, &vec![OTHER; len]);
    }
    bench.host(|io| {
        io.repent();
        io.land();
    });
    for (at, len) in [(address, 64), (data, 512)] {
        assert_eq!(bench.guest.peek(at, len), vec![OTHER; len]);
    }
}

/// Only a driver that resets the adapter repeats what is BUSY. For that of the firmware a frame with any SCSI status is a good
/// one, and others fail commands that are BUSY: they wait for the host, as after each other start.
#[test]
fn only_who_resets_the_adapter_hears_busy() {
    type Start = fn(&mut Bench);
    let starts: [(&str, Start); 4] = [
        ("machine", |bench| {
            bench.guest.hba.reset();
            bench.guest.place();
        }),
        ("bus mastering", |bench| {
            bench.guest.hba.config_write(4, &3_u16.to_le_bytes());
            bench.guest.hba.config_write(4, &7_u16.to_le_bytes());
        }),
        ("doorbell", |bench| bench.guest.write(0x20, 2)),
        // It has reset the adapter itself, and sends INIT at once.
        ("illumos", |bench| {
            bench.guest.write(0x20, 0xf);
            assert_eq!(bench.guest.init(1008), 0);
        }),
    ];
    for (name, start) in starts {
        let mut bench = Bench::new(true, Image::private);
        bench.hang(true, true);
        bench.guest.adapter_reset();
        bench.guest.wait_ready();
        start(&mut bench);
        bench.guest.wait_for("the start", || matches!(bench.guest.state(), 0xb | 0xc));
        let mut send = |frame: Frame| {
            let data = bench.guest.alloc_with(&[BUFFER; 512]);
            bench.guest.send(&frame.sge(data, 512).flags(crate::guest::DONT_POST))
        };
        let near = send(Frame::io(false, 0, 3, 1));
        let passed = send(Frame::scsi(3, 0, &[0x28, 0, 0, 0, 0, 3, 0, 0, 1, 0]).len(512));
        std::thread::sleep(Duration::from_millis(1500));
        for address in [near, passed] {
            assert_eq!(bench.guest.status_of(address), 0xff, "{name}: {:?}", bench.guest.peek(address, 4));
        }
        bench.host(|io| {
            io.repent();
            io.land();
        });
        for address in [near, passed] {
            assert_eq!(bench.guest.wait_frame(address), 0, "{name}");
        }
    }
}

/// The firmware's driver looks at the status of the frame only.
#[test]
fn before_init_busy_is_a_failure() {
    let mut bench = Bench::new(true, Image::private);
    bench.hang(true, true);
    bench.guest.adapter_reset();
    bench.guest.wait_ready();
    assert_eq!(bench.send(true, 0, false, 3).0, 0x2e);
    assert_eq!(bench.guest.init(1009), 0);
    assert_eq!(bench.send(true, 0, false, 3).0, 0x2d);
    bench.host(|io| {
        io.repent();
        io.land();
    });
}

/// What the kernel was given with the guest's own memory holds the board up.
#[test]
fn without_memory_of_the_process_the_reset_waits_for_the_host() {
    let mut bench = Bench::new(true, |image| image);
    let (_, data) = bench.hang(true, false);
    bench.guest.write(0xfc, 0);
    for key in [4, 0xb, 2, 7, 0xd] {
        bench.guest.write(0xfc, key);
    }
    let diag = bench.guest.read(0xf8);
    bench.guest.write(0xf8, diag | 4);
    std::thread::sleep(Duration::from_millis(2500));
    assert_ne!(bench.guest.state(), 0xb);
    bench.host(|io| io.land());
    bench.guest.wait_ready();
    assert_eq!(bench.guest.peek(data, 512), [OLD; 512], "what is not to happen later");
}

/// What is under way at a shutdown ends with it: its memory is another driver's, or the next kernel's.
#[test]
fn nothing_lands_after_a_shutdown() {
    for (opcode, private) in
        [(0x0105_0000, true), (0x0106_0000, true), (0x0105_0000, false), (0x0106_0000, false)]
    {
        let mut bench = Bench::new(true, |image| if private { image.private() } else { image });
        let (address, data) = bench.hang(true, false);
        bench.guest.send(&Frame::dcmd(opcode, &[]).context(6));
        assert_eq!(bench.guest.wait_reply(), 6, "the completion can still be seen");
        if !private {
            std::thread::sleep(Duration::from_millis(100));
            assert_ne!(bench.guest.state(), 0xb, "the kernel can still write the data");
            bench.host(|io| io.land());
        }
        bench.guest.wait_ready();
        for (at, len) in [(address, 64), (data, 512)] {
            bench.guest.poke(at, &vec![OTHER; len]);
        }
        assert_eq!(bench.guest.init(1009), 0, "another driver");
        let producer = bench.guest.word(PRODUCER);
        bench.host(|io| {
            io.repent();
            io.land();
        });
        std::thread::sleep(Duration::from_millis(20));
        for (at, len) in [(address, 64), (data, 512)] {
            assert_eq!(bench.guest.peek(at, len), vec![OTHER; len]);
        }
        assert_eq!(bench.guest.word(PRODUCER), producer);
        assert_eq!(bench.send(true, 0, false, FAR), (0, 0, vec![OLD; 512]));
    }
}
