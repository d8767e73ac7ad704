//! Events: held registrations, hot-plug, and storms.

use devices::scsi::Lun;
use hba_megasas::{Drive, Model};

use crate::guest::{Frame, Guest, drive, image, le16, le32};

struct Watcher {
    guest: Guest,
    record: u64,
    next: u32,
}

impl Watcher {
    fn new(raid: bool) -> Self {
        let mut guest = Guest::new(Model::Gen2, raid, &[0]);
        assert_eq!(guest.init(1009), 0);
        let (_, info) = guest.dcmd(0x0104_0100, &[], 20);
        let record = guest.alloc(256);
        Self { guest, record, next: le32(&info, 0) + 1 }
    }

    fn arm(&mut self) {
        let mailbox = [self.next.to_le_bytes(), 0xfe00_ffff_u32.to_le_bytes()].concat();
        let frame = Frame::dcmd(0x0104_0500, &mailbox).context(8).len(256).sge(self.record, 256);
        self.guest.send(&frame);
    }

    /// The next event: code and first two bytes of its arguments.
    fn event(&mut self) -> (u32, u16) {
        assert_eq!(self.guest.wait_reply(), 8);
        let record = self.guest.peek(self.record, 256);
        self.next = le32(&record, 0) + 1;
        (le32(&record, 8), le16(&record, 0x20))
    }
}

#[test]
fn volumes_come_and_go() {
    let mut watcher = Watcher::new(true);
    watcher.arm();
    watcher.guest.expect_silence();
    let new = image();
    watcher.guest.hba.attach_drive(9, drive(&new, true)).unwrap();
    // Two events back to back, the second while nobody waits.
    assert_eq!(watcher.event(), (0x5b, 9));
    watcher.arm();
    assert_eq!(watcher.event(), (0x8a, 9));
    let (_, list) = watcher.guest.dcmd(0x0301_0100, &[1], 268);
    assert_eq!((le32(&list, 4), &list[11..13]), (2, &[0, 9][..]));
    assert_eq!(watcher.guest.io(false, 9, 0, &[0; 512]).0, 0);
    watcher.arm();
    assert!(watcher.guest.hba.detach_drive(9).is_some());
    // FreeBSD takes its disk away when the state becomes offline, and for nothing else.
    assert_eq!(watcher.event(), (0x51, 9));
    let record = watcher.guest.peek(watcher.record, 256);
    assert_eq!((record[0x10], &record[0x20..0x2c]), (8, &[9, 0, 9, 0, 3, 0, 0, 0, 0, 0, 0, 0][..]));
    let (_, list) = watcher.guest.dcmd(0x0301_0100, &[1], 268);
    assert_eq!((le32(&list, 4), list[11]), (1, 0), "gone before it is told");
    watcher.arm();
    assert_eq!(watcher.event(), (0x8b, 9));
    watcher.arm();
    assert_eq!(watcher.event(), (0x70, 9));
    assert_eq!(watcher.guest.io(false, 9, 0, &[0; 512]).0, 0x0c);
    assert!(watcher.guest.hba.detach_drive(9).is_none());
    assert!(watcher.guest.hba.attach_drive(64, drive(&new, true)).is_err());
}

#[test]
fn system_drives_come_and_go() {
    let mut watcher = Watcher::new(false);
    watcher.arm();
    watcher.guest.hba.attach_drive(3, drive(&image(), false)).unwrap();
    assert_eq!(watcher.event(), (0x5b, 3));
    let (_, list) = watcher.guest.dcmd(0x0201_0100, &[5], 8192);
    assert_eq!(le32(&list, 4), 2);
    watcher.arm();
    watcher.guest.hba.detach_drive(3).unwrap();
    assert_eq!(watcher.event(), (0x70, 3));
}

#[test]
fn a_storm_of_events_keeps_its_order() {
    let mut watcher = Watcher::new(true);
    watcher.arm();
    // Five events each.
    for id in 1..64 {
        watcher.guest.hba.attach_drive(id, drive(&image(), true)).unwrap();
        watcher.guest.hba.detach_drive(id).unwrap();
    }
    let mut last = 0;
    // What the ring has lost is lost; what it has comes in order.
    for _ in 0..200 {
        watcher.event();
        assert!(watcher.next > last);
        last = watcher.next;
        watcher.arm();
    }
}

#[test]
fn a_second_registration_is_refused() {
    let mut watcher = Watcher::new(true);
    watcher.arm();
    watcher.guest.expect_silence();
    let record = watcher.guest.alloc(256);
    let frame = Frame::dcmd(0x0104_0500, &[0xff; 4]).len(256).sge(record, 256);
    assert_eq!(watcher.guest.poll(frame), 0x32);
    watcher.guest.hba.attach_drive(9, drive(&image(), true)).unwrap();
    assert_eq!(watcher.event().0, 0x5b);
}

#[test]
fn classes_and_locales_filter() {
    let mut watcher = Watcher::new(true);
    // Volumes only: the inserted disk is not told.
    let mailbox = [watcher.next.to_le_bytes(), 0xfe00_0001_u32.to_le_bytes()].concat();
    let frame = Frame::dcmd(0x0104_0500, &mailbox).context(8).len(256).sge(watcher.record, 256);
    watcher.guest.send(&frame);
    watcher.guest.hba.attach_drive(2, drive(&image(), true)).unwrap();
    assert_eq!(watcher.event(), (0x8a, 2));
    // Fatal only.
    let mailbox = [1_u32.to_le_bytes(), 0x0300_ffff_u32.to_le_bytes()].concat();
    assert_eq!(watcher.guest.dcmd(0x0104_0300, &mailbox, 8 + 2560).0, 0x23);
}

/// What the host does to take a drive away: the firmware forgets it, then its commands are ended.
fn take_away(guest: &Guest, id: u8, drive: &Drive) {
    let (done, ended) = std::sync::mpsc::channel();
    let target = drive.logical.as_ref().unwrap_or(&drive.physical).target().clone();
    assert!(guest.hba.detach_drive(id).is_some());
    guest._thread.remote().spawn(move |io| async move {
        assert!(target.detach(Lun::default()).await.is_some());
        io.quiesce().await;
        done.send(()).unwrap();
    });
    // The image holds its commands back for as long as it likes: that is not waited for.
    ended.recv_timeout(std::time::Duration::from_secs(10)).unwrap();
}

#[test]
fn each_command_in_flight_on_a_drive_that_goes_completes_once() {
    for raid in [true, false] {
        let mut guest = Guest::new(Model::Gen2, raid, &[0, 1]);
        let drive = drive(&guest.images[&1].clone(), raid);
        guest.hba.attach_drive(1, drive.clone()).unwrap();
        assert_eq!(guest.init(1009), 0);
        // A unit attention may come first.
        guest.scsi(if raid { 3 } else { 4 }, 1, &[0; 6], &[], 0);
        guest.recording(1).hold(true);
        let before = guest.recording(1).arrived();
        let read = |guest: &mut Guest, context: u32| {
            let data = guest.alloc(512);
            let frame = if raid {
                Frame::io(false, 1, 0, 1)
            } else {
                Frame::scsi(4, 1, &[0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0]).len(512)
            };
            guest.send(&frame.context(context).sge(data, 512))
        };
        let frames: Vec<u64> = (0..200).map(|context| read(&mut guest, context)).collect();
        guest.wait_for("held reads", || guest.recording(1).arrived() == before + 200);
        take_away(&guest, 1, &drive);
        let mut seen = vec![0; 201];
        (0..200).for_each(|_| seen[guest.wait_reply() as usize] += 1);
        // Later ones find nothing; what the image answers now is nobody's.
        let late = read(&mut guest, 200);
        seen[guest.wait_reply() as usize] += 1;
        guest.recording(1).hold(false);
        guest.expect_silence();
        assert!(seen.iter().all(|&times| times == 1), "{seen:?}");
        for frame in frames.into_iter().chain([late]) {
            assert_eq!(guest.status_of(frame), 0x0c);
        }
        assert_eq!(guest.scsi(if raid { 3 } else { 4 }, 0, &[0; 6], &[], 0).status & !0x2d, 0);
    }
}
