//! MegaRAID SAS adapters for the targets: made once, used by every input, and never left in the middle of something.

use std::cell::RefCell;

use hba_megasas::Model;

#[path = "../../../hba-megasas/tests/hba/guest.rs"]
#[allow(dead_code, missing_docs, unreachable_pub, clippy::unwrap_used, clippy::panic)]
pub mod guest;

use crate::Bytes;
use guest::{Guest, RAM};

/// Memory that no input names, and what it holds.
const CANARY: (u64, usize) = (RAM as u64 - (1 << 16), 1 << 16);
const FILL: u8 = 0xa7;
/// Where data may go.
const DATA: u64 = 0x200_0000;

/// Runs `test` with one of four adapters, which `choice` picks: both boards, volumes and plain disks. Afterwards the
/// adapter is reset, has to serve, and the canary has to be as it was.
pub fn with_adapter(choice: u8, test: impl FnOnce(&mut Guest)) {
    thread_local!(static GUESTS: Vec<RefCell<Guest>> = make());
    GUESTS.with(|guests| {
        let guest = &mut *guests[usize::from(choice % 4)].borrow_mut();
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

fn make() -> Vec<RefCell<Guest>> {
    let kinds = [(Model::Gen2, true), (Model::Gen2, false), (Model::Sas1078, true), (Model::Sas1078, false)];
    kinds
        .map(|(model, raid)| {
            let guest = Guest::new(model, raid, &[0, 1]);
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
        1 => RAM as u64 - u64::from(place % 64),
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
