//! A disk for which the host does not answer while the device is reset.

use std::collections::BTreeMap;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use devices::iothread::{Io, IoThread, Remote};
use devices::pci::PciFunction;
use devices::scsi::{Disk, Image, LogicalUnit, Lun, Nexus, Target, suite};
use devices::storage::{CacheMode, RawImage, RawOptions, Sharing};
use hba_virtio_scsi::Options;

use crate::guest::{Guest, VERSION_1, into, lun, out};

const OLD: u8 = 0x55;
const BUFFER: u8 = 0xdd;
const OTHER: u8 = 0x77;
/// From this block on the host does not answer.
const FAR: u8 = 64;
const MIB: usize = 1 << 20;

struct Bench {
    guest: Guest,
    remote: Remote,
    files: Vec<tempfile::NamedTempFile>,
}

impl Bench {
    /// Two disks, at targets 0 and 1.
    fn new(dress: impl Fn(Image) -> Image) -> Self {
        let files: Vec<_> = (0..2).map(|_| tempfile::NamedTempFile::new().unwrap()).collect();
        let nexus = |file: &tempfile::NamedTempFile| {
            file.as_file().write_all_at(&[OLD; MIB], 0).unwrap();
            let options = RawOptions {
                path: file.path().into(),
                read_only: false,
                cache: CacheMode::Writeback,
                sharing: Sharing::Unlocked,
            };
            let image = Arc::new(dress(Image::Raw(RawImage::open(&options).unwrap())));
            let target = Target::new();
            let unit = LogicalUnit::Disk(Disk::new(image, suite::config()).unwrap());
            target.attach(Lun([0; 8]), unit).unwrap();
            Nexus::new(target, None)
        };
        let targets = BTreeMap::from_iter((0..).zip(files.iter().map(nexus)));
        let thread = IoThread::start("io").unwrap();
        let remote = thread.remote();
        let options = Options { request_queues: 1, ..Options::default() };
        let mut guest = Guest::on(vec![thread], options, targets);
        guest.start(VERSION_1, 16);
        let mut bench = Self { guest, remote, files };
        bench.settle();
        bench
    }

    fn settle(&mut self) {
        for target in [0, 1] {
            let ready =
                |bench: &mut Self| bench.guest.command(2, lun(target, 0), &[0; 6], &[], 0).status == 0;
            assert!((0..8).any(|_| ready(self)));
        }
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

    /// A transfer of a block of target 0 that hangs; returns its response and buffer.
    fn hang(&mut self, write: bool) -> (u64, u64) {
        self.host(|io| io.hang_from(u64::from(FAR) * 512));
        let head = Guest::request_head(lun(0, 0), 7, &cdb(write, FAR));
        let (request, response) = (self.guest.alloc_with(&head), self.guest.alloc_with(&[0xee; 108]));
        let data = self.guest.alloc_with(&[BUFFER; 512]);
        let parts = match write {
            true => [out(request, 51), out(data, 512), into(response, 108)],
            false => [out(request, 51), into(response, 108), into(data, 512)],
        };
        self.guest.add(2, &parts);
        self.guest.kick(2);
        self.guest.expect_silence(2);
        (response, data)
    }

    fn block(&self) -> Vec<u8> {
        let mut bytes = vec![0; 512];
        self.files[0].as_file().read_exact_at(&mut bytes, u64::from(FAR) * 512).unwrap();
        bytes
    }
}

fn cdb(write: bool, lba: u8) -> [u8; 10] {
    [if write { 0x2a } else { 0x28 }, 0, 0, 0, 0, lba, 0, 0, 1, 0]
}

#[test]
fn a_reset_does_not_wait_for_a_disk_that_hangs() {
    for write in [false, true] {
        let mut bench = Bench::new(Image::private);
        let (response, data) = bench.hang(write);
        let begin = Instant::now();
        bench.guest.reset();
        assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
        for (at, len) in [(response, 108), (data, 512)] {
            bench.guest.poke(at, &vec![OTHER; len]);
        }
        bench.guest.start(VERSION_1, 16);
        bench.settle();
        for _ in 0..20 {
            let reply = bench.guest.command(2, lun(1, 0), &cdb(false, 3), &[], 512);
            assert_eq!((reply.response, reply.status, reply.data), (0, 0, vec![OLD; 512]));
        }
        assert_eq!(bench.block(), [OLD; 512]);
        bench.host(|io| {
            io.repent();
            io.land();
        });
        assert_eq!(bench.block(), [if write { BUFFER } else { OLD }; 512]);
        assert_eq!(bench.guest.peek(data, 512), [OTHER; 512]);
        assert_eq!(bench.guest.peek(response, 108), [OTHER; 108]);
        let reply = bench.guest.command(2, lun(0, 0), &cdb(true, FAR), &[0x33; 512], 0);
        assert_eq!((reply.response, reply.status), (0, 0));
        assert_eq!(bench.block(), [0x33; 512]);
    }
}

/// The virtual CPU that takes bus mastering away goes on, and nothing lands later.
#[test]
fn bus_mastering_off_does_not_wait_for_a_disk_that_hangs() {
    let mut bench = Bench::new(Image::private);
    let (_, data) = bench.hang(false);
    let begin = Instant::now();
    bench.guest.hba.config_write(4, &2_u16.to_le_bytes());
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
    bench.guest.poke(data, &[OTHER; 512]);
    bench.host(|io| {
        io.repent();
        io.land();
    });
    assert_eq!(bench.guest.peek(data, 512), [OTHER; 512]);
}

/// What the kernel was given with the guest's own memory holds the reset up.
#[test]
fn without_memory_of_the_process_the_reset_waits_for_the_host() {
    let mut bench = Bench::new(|image| image);
    let (_, data) = bench.hang(false);
    bench.guest.set_status(0);
    std::thread::sleep(Duration::from_millis(2500));
    assert_ne!(bench.guest.status(), 0);
    bench.host(|io| io.land());
    bench.guest.reset();
    assert_eq!(bench.guest.peek(data, 512), [OLD; 512], "what is not to happen later");
}
