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
