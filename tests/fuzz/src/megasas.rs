//! MegaRAID SAS adapters for the targets: made once, used by every input, and never left in the middle of something.

use std::cell::RefCell;
use std::collections::BTreeMap;

use devices::scsi::suite::RecordingDisk;
use devices::testing::Operation;
use hba_megasas::Model;

#[path = "../../../hba-megasas/tests/hba/guest.rs"]
#[allow(dead_code, missing_docs, unreachable_pub, clippy::unwrap_used, clippy::panic)]
pub mod guest;

use crate::{Bytes, io_thread};
use guest::{Guest, HEAP, RAM};

/// Memory that no input names, and what it holds. The last bytes of memory are named.
pub const CANARY: (u64, usize) = (RAM as u64 - (1 << 16), (1 << 16) - LAST as usize);
const FILL: u8 = 0xa7;
/// Where data may go: there, and the last bytes of memory.
const DATA: u64 = 0x200_0000;
const LAST: u64 = 64;

/// Runs `test` with one of four adapters, which `choice` picks: both boards, volumes and plain disks. Afterwards the
/// adapter is reset, has to serve, and the canary has to be as it was.
///
/// Memory and disks are as at first. Settings and the log of events stay: to make a board takes longer than most inputs.
pub fn with_adapter(choice: u8, test: impl FnOnce(&mut Guest)) {
    thread_local!(static GUESTS: Vec<RefCell<Guest>> = make());
    GUESTS.with(|guests| {
        let guest = &mut *guests[usize::from(choice % 4)].borrow_mut();
        begin(guest);
        guest.init(129);
        guest.enable_interrupts();
        test(guest);
        guest.write(0x20, 0x40);
        guest.wait_ready();
        assert_eq!(guest.dcmd(0x0301_0100, &[], 268).0, 0, "it does not serve after a reset");
        let canary = guest.peek(CANARY.0, CANARY.1);
        assert!(canary.iter().all(|&byte| byte == FILL), "something wrote where nothing was named");
    });
}

/// Takes back what earlier inputs left in memory and on the disks.
fn begin(guest: &mut Guest) {
    const ZEROS: &[u8] = &[0; 1 << 20];
    let used = (guest.heap - HEAP) as usize;
    guest.poke(0, &ZEROS[..0x2_0000]);
    guest.poke(HEAP, &ZEROS[..used.min(ZEROS.len())]);
    guest.poke(DATA, ZEROS);
    guest.heap = HEAP;
    for id in [0, 1] {
        let disk: &RecordingDisk = guest.recording(id);
        for operation in disk.operations() {
            let (at, len) = match operation {
                Operation::Write(at, len, _) => (at, len),
                Operation::Zero(..) | Operation::Read(..) | Operation::Flush => continue,
            };
            // What was beyond the end was refused.
            if at + len <= ZEROS.len() as u64 {
                disk.poke(at as usize, &ZEROS[..len as usize]);
            }
        }
    }
}

fn make() -> Vec<RefCell<Guest>> {
    let kinds = [(Model::Gen2, true), (Model::Gen2, false), (Model::Sas1078, true), (Model::Sas1078, false)];
    kinds
        .map(|(model, raid)| {
            let images: BTreeMap<u8, _> = [0, 1].map(|id| (id, guest::image())).into();
            let drives = images.iter().map(|(&id, image)| (id, guest::drive(image, raid))).collect();
            let guest = Guest::on(io_thread(), guest::options(model), drives, images);
            guest.poke(CANARY.0, &vec![FILL; CANARY.1]);
            RefCell::new(guest)
        })
        .into()
}

/// An address and a length: mostly of memory below the canary, sometimes of none, and lengths of all sizes.
pub fn element(bytes: &mut Bytes<'_>) -> (u64, u32) {
    let (kind, place, len) = (bytes.u8(), bytes.u16(), bytes.u16());
    let addr = match kind & 0x0f {
        0 => 0xc000_0000 + u64::from(place),
        1 => RAM as u64 - u64::from(place) % LAST,
        2 => u64::MAX - u64::from(place),
        _ => DATA + (u64::from(place) << 4),
    };
    let len = match kind >> 4 {
        0 => u32::MAX - u32::from(len),
        1 => u32::from(len) << 16,
        _ => u32::from(len),
    };
    // What begins in memory and is long ends beyond it: no such list is taken.
    (addr, if addr == RAM as u64 { len.max(1) } else { len })
}
