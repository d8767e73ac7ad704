//! Places that change hands while a driver still knows the drive that went. What the old one's users still write must
//! never be in the new one.

use std::sync::Arc;

use devices::scsi::suite::RecordingDisk;
use devices::scsi::{Image, Lun};
use hba_megasas::{Arrival, Drive, Model};

use crate::guest::{Frame, Guest, drive, image, le16, le32};

const OLD: u8 = 0xee;

fn recording(image: &Arc<Image>) -> &RecordingDisk {
    match &**image {
        Image::Recording(image) => image,
        #[allow(unreachable_patterns)]
        _ => panic!("not a recording image"),
    }
}

/// A guest with a driver and one drive, at 0.
struct Bench {
    guest: Guest,
    raid: bool,
    old: Drive,
    new: Arc<Image>,
    record: u64,
    /// Number of the event to ask for.
    next: u32,
}

impl Bench {
    fn new(raid: bool) -> Self {
        Self::with(raid, &[0])
    }

    /// With more drives than that.
    fn with(raid: bool, ids: &[u8]) -> Self {
        let mut guest = Guest::new(Model::Gen2, raid, ids);
        let old = drive(&guest.images[&0].clone(), raid);
        assert_eq!(guest.hba.attach_drive(0, old.clone()).unwrap(), Arrival::There, "no driver yet");
        assert_eq!(guest.init(1009), 0);
        let record = guest.alloc(256);
        let (_, info) = guest.dcmd(0x0104_0100, &[], 20);
        let mut bench = Self { guest, raid, old, new: image(), record, next: le32(&info, 0) + 1 };
        bench.look();
        bench.scan();
        bench.arm();
        bench
    }

    fn arm(&mut self) {
        let mailbox = [self.next.to_le_bytes(), 0xfe00_ffff_u32.to_le_bytes()].concat();
        let frame = Frame::dcmd(0x0104_0500, &mailbox).context(8).len(256).sge(self.record, 256);
        self.guest.send(&frame);
    }

    /// The next event: its code. The registration is used up.
    fn event(&mut self) -> u32 {
        assert_eq!(self.guest.wait_reply(), 8);
        let record = self.guest.peek(self.record, 256);
        self.next = le32(&record, 0) + 1;
        assert_eq!(le16(&record, 0x20), 0);
        le32(&record, 8)
    }

    /// Reads both lists as Linux does; whether the drive is in its own.
    fn look(&mut self) -> bool {
        let (status, disks) = self.guest.dcmd(0x0201_0100, &[5], 8192);
        assert_eq!(status, 0);
        let (status, volumes) = self.guest.dcmd(0x0301_0100, &[1], 268);
        assert_eq!(status, 0);
        le32(if self.raid { &volumes } else { &disks }, 4) == 1
    }

    fn command(&mut self, cdb: &[u8], out: &[u8], len: usize) -> u8 {
        self.guest.scsi(if self.raid { 3 } else { 4 }, 0, cdb, out, len).status
    }

    /// What a driver does with a drive that is new to it.
    fn scan(&mut self) {
        assert_eq!(self.command(&[0x12, 0, 0, 0, 36, 0], &[], 36), 0);
        // A disk shows its own unit attention.
        while self.command(&[0; 6], &[], 0) == 0x2d {}
    }

    fn write(&mut self, value: u8) -> u8 {
        if self.raid {
            self.guest.io(true, 0, 5, &[value; 512]).0
        } else {
            self.command(&[0x2a, 0, 0, 0, 0, 5, 0, 0, 1, 0], &[value; 512], 0)
        }
    }

    /// What users of the old drive still do: nothing of it may be done.
    fn late(&mut self) {
        for _ in 0..3 {
            assert_eq!(self.write(OLD), 0x0c, "device not found");
        }
        // UNMAP and WRITE SAME change data, too; removing a device flushes it.
        let unmap = [&[0, 22, 0, 16, 0, 0, 0, 0][..], &[0; 15], &[1]].concat();
        assert_eq!(self.command(&[0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0], &unmap, 0), 0x0c);
        assert_eq!(self.command(&[0x41, 0, 0, 0, 0, 0, 0, 0, 1, 0], &[OLD; 512], 0), 0x0c);
        assert_eq!(self.command(&[0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0], &[], 0), 0x0c);
        assert_eq!(recording(&self.new).operations(), [], "the new image was touched");
    }

    /// What the host does for `detach`, with writes of the old drive under way.
    fn take_away(&mut self) {
        self.guest.recording(0).hold(true);
        let before = self.guest.recording(0).arrived();
        let under_way: Vec<u64> = (0..8).map(|context| self.write_later(100 + context)).collect();
        self.guest.wait_for("held writes", || self.guest.recording(0).arrived() == before + 8);
        assert!(self.guest.hba.detach_drive(0).is_some());
        let target = self.old.logical.as_ref().unwrap_or(&self.old.physical).target().clone();
        let (done, ended) = std::sync::mpsc::channel();
        self.guest._thread.remote().spawn(move |_| async move {
            done.send(target.detach(Lun::default()).await.is_some()).unwrap();
        });
        assert!(ended.recv().unwrap());
        for frame in under_way {
            assert_eq!(self.guest.wait_frame(frame), 0x0c);
        }
    }

    fn write_later(&mut self, context: u32) -> u64 {
        let data = self.guest.alloc_with(&[OLD; 512]);
        let frame = if self.raid {
            Frame::io(true, 0, 5, 1)
        } else {
            Frame::scsi(4, 0, &[0x2a, 0, 0, 0, 0, 5, 0, 0, 1, 0]).len(512)
        };
        self.guest.send(&frame.context(context).flags(1).sge(data, 512))
    }

    fn put_new(&mut self) -> Arrival {
        let drive = drive(&self.new, self.raid);
        self.guest.hba.attach_drive(0, drive).unwrap()
    }

    /// The events of a removal.
    fn removal(&self) -> &'static [u32] {
        if self.raid { &[0x51, 0x8b, 0x70] } else { &[0x70] }
    }

    /// Handles the events of a removal as Linux does: lists, removal, registration, one event after the other.
    fn act(&mut self) {
        for &code in self.removal() {
            assert_eq!(self.event(), code);
            self.late();
            assert!(!self.look());
            self.late();
            assert_eq!(self.guest.hba.unnoticed(), [0]);
            self.arm();
        }
    }

    /// The new drive is there and takes what is meant for it.
    fn finds_new(&mut self) {
        assert!(self.look());
        self.scan();
        recording(&self.new).operations();
        assert_eq!(self.write(0x11), 0);
        let wrote = recording(&self.new).operations();
        assert!(!wrote.is_empty());
        assert_eq!(self.guest.hba.unnoticed(), [0_u8; 0]);
    }
}

#[test]
fn a_new_drive_is_not_there_before_linux_has_removed_the_old_one() {
    for raid in [true, false] {
        let mut bench = Bench::new(raid);
        bench.take_away();
        assert_eq!(bench.put_new(), Arrival::Waits);
        bench.late();
        bench.act();
        assert_eq!(bench.event(), 0x5b);
        // What comes even now means the old drive: the new one has not been asked who it is.
        bench.late();
        assert!(bench.look());
        bench.arm();
        if raid {
            assert_eq!(bench.event(), 0x8a);
            bench.arm();
        }
        bench.finds_new();
        bench.guest.expect_silence();
    }
}

#[test]
fn what_comes_after_the_driver_took_note_need_not_wait() {
    let mut bench = Bench::new(false);
    bench.take_away();
    bench.act();
    bench.guest.wait_for("the driver's note", || bench.guest.hba.unnoticed().is_empty());
    assert_eq!(bench.put_new(), Arrival::There);
    assert_eq!(bench.event(), 0x5b);
    bench.finds_new();
}

#[test]
fn neither_a_look_nor_a_registration_alone_is_a_note() {
    for raid in [true, false] {
        let mut bench = Bench::new(raid);
        bench.take_away();
        assert_eq!(bench.put_new(), Arrival::Waits);
        // Registrations without a look, as FreeBSD has them. The removal is told once more, and not again.
        for _ in 0..2 {
            for &code in bench.removal() {
                assert_eq!(bench.event(), code);
                bench.arm();
            }
        }
        bench.guest.expect_silence();
        bench.late();
        // A tool's list of disks is not the driver's.
        bench.guest.dcmd(0x0201_0000, &[], 8192);
        // The driver looks, and the adapter is reset: recovery sends what was under way again.
        assert!(!bench.look());
        bench.guest.adapter_reset();
        bench.guest.wait_ready();
        assert_eq!(bench.guest.init(1009), 0);
        bench.arm();
        assert_eq!(bench.event(), 0, "the firmware has started");
        bench.arm();
        // Its look was for nothing: it is told once more, so that it looks again.
        for &code in bench.removal() {
            assert_eq!(bench.event(), code);
            bench.arm();
        }
        bench.guest.expect_silence();
        bench.late();
        assert_eq!(bench.guest.hba.unnoticed(), [0]);
        // A driver that starts anew: lists, then a registration.
        bench.guest.write(0x20, 0x07);
        bench.guest.wait_ready();
        assert_eq!(bench.guest.init(1009), 0);
        assert!(!bench.look());
        bench.late();
        let (_, info) = bench.guest.dcmd(0x0104_0100, &[], 20);
        bench.next = le32(&info, 0) + 1;
        bench.arm();
        assert_eq!(bench.event(), 0x5b);
        bench.finds_new();
    }
}

#[test]
fn the_end_of_a_driver_is_the_end_of_waiting() {
    for raid in [true, false] {
        // A driver that sleeps keeps its devices; one that shuts the controller down does not.
        let mut bench = Bench::new(raid);
        bench.take_away();
        assert_eq!(bench.put_new(), Arrival::Waits);
        assert_eq!(bench.guest.poll(Frame::dcmd(0x0106_0000, &[])), 0);
        bench.guest.wait_ready();
        bench.late();
        assert_eq!(bench.guest.hba.unnoticed(), [0]);
        assert_eq!(bench.guest.poll(Frame::dcmd(0x0105_0000, &[])), 0);
        bench.guest.wait_ready();
        bench.finds_new();
        // A reset of the machine.
        let mut bench = Bench::new(raid);
        bench.take_away();
        assert_eq!(bench.put_new(), Arrival::Waits);
        devices::pci::PciFunction::reset(&*bench.guest.hba);
        bench.guest.place();
        bench.guest.wait_ready();
        // The boot loader's own disk, without INIT.
        bench.finds_new();
        // Before INIT nobody is waited for.
        bench.guest.hba.detach_drive(0).unwrap();
        bench.new = image();
        assert_eq!(bench.put_new(), Arrival::There);
        bench.finds_new();
    }
}

/// A driver that resets the adapter while a shutdown waits for a flush goes on with its disks.
#[test]
fn a_shutdown_that_a_reset_has_ended_is_no_end_of_a_driver() {
    for raid in [true, false] {
        let mut bench = Bench::with(raid, &[0, 1]);
        bench.take_away();
        assert_eq!(bench.put_new(), Arrival::Waits);
        bench.guest.recording(1).hold(true);
        let before = bench.guest.recording(1).arrived();
        bench.guest.send(&Frame::dcmd(0x0105_0000, &[]).context(6));
        bench.guest.wait_for("flush", || bench.guest.recording(1).arrived() > before);
        bench.guest.adapter_reset();
        bench.guest.wait_ready();
        bench.guest.recording(1).hold(false);
        assert_eq!(bench.guest.init(1009), 0);
        assert_eq!(bench.guest.hba.unnoticed(), [0]);
        bench.late();
    }
}

#[test]
fn what_waits_can_be_taken_back() {
    let mut bench = Bench::new(false);
    bench.take_away();
    assert_eq!(bench.put_new(), Arrival::Waits);
    let first = bench.new.clone();
    assert!(bench.guest.hba.detach_drive(0).is_some());
    assert!(bench.guest.hba.detach_drive(0).is_none());
    assert_eq!(bench.guest.hba.unnoticed(), [0]);
    bench.new = image();
    assert_eq!(bench.put_new(), Arrival::Waits);
    bench.act();
    assert_eq!(bench.event(), 0x5b, "of the first nobody heard");
    bench.finds_new();
    assert_eq!(recording(&first).operations(), []);
}
