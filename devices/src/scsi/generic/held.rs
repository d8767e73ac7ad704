//! What a guest holds of a device that outlasts it: reservations of SPC-2 and locks of the medium. They go with the unit; persistent
//! reservations stay, as they do when a machine of hardware is switched off.

use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use super::Generic;
use super::host::{Command, Direction};
use crate::iothread::Io;
use crate::mem::SgList;
use crate::scsi::Cdb;

/// How long the device is waited for when the unit goes, in all, and after how long the host's kernel aborts such a command.
const WAIT: Duration = Duration::from_secs(3);
const TIMEOUT: Duration = Duration::from_secs(30);

/// By RESERVE(6) and RESERVE(10) (SPC-2, 7.21 and 7.22).
const RESERVED_6: u8 = 1;
const RESERVED_10: u8 = 2;
/// By PREVENT ALLOW MEDIUM REMOVAL (SPC-5, 6.14), and by its persistent kind of drives for CDs (MMC-6, 6.13).
const LOCKED: u8 = 4;
const LOCKED_PERSISTENTLY: u8 = 8;

/// How each is given back, in this order.
const BACK: [(u8, &[u8]); 4] = [
    (LOCKED_PERSISTENTLY, &[0x1e, 0, 0, 0, 2, 0]),
    (LOCKED, &[0x1e, 0, 0, 0, 0, 0]),
    (RESERVED_10, &[0x57, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
    (RESERVED_6, &[0x17, 0, 0, 0, 0, 0]),
];

/// What is held.
#[derive(Debug, Default)]
pub(super) struct Held(AtomicU8);

impl Held {
    /// A command has ended well.
    pub(super) fn note(&self, cdb: &Cdb) {
        let (bit, holds) = match (cdb.opcode(), cdb.padded()[4] & 0x03) {
            (0x16, _) => (RESERVED_6, true),
            (0x17, _) => (RESERVED_6, false),
            (0x56, _) => (RESERVED_10, true),
            (0x57, _) => (RESERVED_10, false),
            (0x1e, prevent) => {
                (if prevent & 2 == 0 { LOCKED } else { LOCKED_PERSISTENTLY }, prevent & 1 != 0)
            }
            _ => return,
        };
        if holds {
            self.0.fetch_or(bit, Ordering::Relaxed);
        } else {
            self.0.fetch_and(!bit, Ordering::Relaxed);
        }
    }
}

impl Generic {
    /// Gives back, once, what the guest holds. The log says what the device keeps all the same.
    pub(in crate::scsi) async fn close(&self, io: &Io) {
        let held = self.held.0.swap(0, Ordering::Relaxed);
        if held == 0 {
            return;
        }
        let link = self.plug.link();
        let all = async {
            let mut kept = 0;
            for (bit, cdb) in BACK.iter().filter(|(bit, _)| held & bit != 0) {
                let (cdb, direction, data) = (Cdb::new(cdb), Direction::None, SgList::empty());
                let command = Command { cdb, direction, data, timeout: TIMEOUT };
                if !self.hand_over(io, &link, command, None).await.is_good() {
                    kept |= bit;
                }
            }
            kept
        };
        if io.at_most(WAIT, all).await != Some(0) {
            tracing::warn!(
                "\"{}\": the device may keep a reservation or a lock of its medium that the guest has made; free it with `sg_prevent \
                 --allow`, or reset it",
                self.name
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ended_well_is_held_or_given_back() {
        let held = Held::default();
        let after = |cdb: &[u8]| {
            held.note(&Cdb::new(cdb));
            held.0.load(Ordering::Relaxed)
        };
        assert_eq!(after(&[0x16]), RESERVED_6);
        assert_eq!(after(&[0x56]), RESERVED_6 | RESERVED_10);
        assert_eq!(after(&[0x17]), RESERVED_10);
        assert_eq!(after(&[0x1e, 0, 0, 0, 1]), RESERVED_10 | LOCKED);
        assert_eq!(after(&[0x1e, 0, 0, 0, 3]), RESERVED_10 | LOCKED | LOCKED_PERSISTENTLY);
        assert_eq!(after(&[0x57]), LOCKED | LOCKED_PERSISTENTLY);
        assert_eq!(after(&[0x1e, 0, 0, 0, 0]), LOCKED_PERSISTENTLY);
        assert_eq!(after(&[0x1e, 0, 0, 0, 2]), 0);
        assert_eq!(after(&[0x5f, 1]), 0, "persistent reservations are none of it");
    }
}
