//! What a board keeps from one start of the process to the next.

use std::sync::{Arc, Mutex};

use devices::iothread::IoThread;
use hba_megasas::{EventMarks, EventRecord, EventStore, KeptEvents, Model};

use crate::guest::{Guest, drive, image, le32, options};

/// A file of the host's.
#[derive(Clone, Default)]
struct Store(Arc<Mutex<KeptEvents>>);

impl EventStore for Store {
    fn load(&mut self) -> KeptEvents {
        self.0.lock().unwrap().clone()
    }
    fn keep(&mut self, number: u32, record: &EventRecord) {
        let mut kept = self.0.lock().unwrap();
        kept.records.push(*record);
        kept.next = number + 1;
    }
    fn keep_marks(&mut self, marks: EventMarks) {
        self.0.lock().unwrap().marks = marks;
    }
    fn keep_settings(&mut self, settings: &[u8]) {
        self.0.lock().unwrap().settings = settings.to_vec();
    }
    fn forget_events(&mut self) {
        let settings = std::mem::take(&mut self.0.lock().unwrap().settings);
        *self.0.lock().unwrap() = KeptEvents { settings, ..KeptEvents::default() };
    }
}

impl Store {
    /// The process starts, with volumes at these targets, and then the guest.
    fn start(&self, ids: &[u8]) -> Guest {
        let images = ids.iter().map(|&id| (id, image())).collect::<std::collections::BTreeMap<_, _>>();
        let drives = images.iter().map(|(&id, image)| (id, drive(image, true))).collect();
        let thread = IoThread::start("io").unwrap();
        let mut guest =
            Guest::kept_by(Some(Box::new(self.clone())), thread, options(Model::Gen2), drives, images);
        assert_eq!(guest.init(1009), 0);
        guest
    }

    /// The codes of all events so far.
    fn codes(&self) -> Vec<u32> {
        self.0.lock().unwrap().records.iter().map(|record| le32(record, 8)).collect()
    }
}

/// Rates of the controller, a name, what the BIOS keeps, and the time.
#[test]
fn what_the_guest_has_set_is_there_at_the_next_start() {
    let store = Store::default();
    let mut guest = store.start(&[3]);
    let mut properties = guest.dcmd(0x0102_0100, &[], 64).1;
    properties[8] = 77;
    assert_eq!(guest.dcmd_with(0x0102_0200, &[], &properties).0, 0);
    let mut volume = guest.dcmd(0x0303_0000, &[3], 32).1;
    volume[4..9].copy_from_slice(b"mails");
    assert_eq!(guest.dcmd_with(0x0304_0000, &[3], &volume).0, 0);
    assert_eq!(guest.dcmd_with(0x010c_0200, &[], &[0x5a; 64]).0, 0);
    assert_eq!(guest.dcmd(0x0108_0102, &[0xe8, 7, 3, 1, 12, 0, 0, 0], 0).0, 0);
    drop(guest);
    let mut guest = store.start(&[3]);
    assert_eq!(guest.dcmd(0x0102_0100, &[], 64).1[8], 77);
    assert_eq!(&guest.dcmd(0x0302_0000, &[3], 384).1[4..10], b"mails\0");
    assert_eq!(guest.dcmd(0x010c_0100, &[], 64).1, [0x5a; 64]);
    assert_eq!(guest.dcmd(0x0108_0101, &[], 8).1[..5], [0xe8, 7, 3, 1, 12]);
}

/// 64 disks at each start would push everything else out of a log of 256 events within two.
#[test]
fn disks_that_are_there_at_the_start_are_no_events() {
    let (store, all) = (Store::default(), (0..64).collect::<Vec<_>>());
    store.start(&all);
    let guest = store.start(&all[..63]);
    assert_eq!(store.codes(), [0, 0], "the two starts");
    guest.hba.attach_drive(63, drive(&image(), true)).unwrap();
    guest.hba.detach_drive(0).unwrap();
    assert_eq!(store.codes(), [0, 0, 0x5b, 0x8a, 0x51, 0x8b, 0x70]);
}
