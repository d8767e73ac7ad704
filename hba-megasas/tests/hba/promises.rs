//! What a driver was told is stable is stable, whenever the power fails: on volumes of both write policies, and on disks as
//! they are.

use devices::scsi::suite::promises::{Outage, Promise};
use devices::scsi::suite::{Initiator, Outcome};
use devices::testing::power::Without;
use hba_megasas::Model;

use crate::guest::{Guest, drive, options};
use crate::suites::Through;

/// Losses of power at each moment.
const EACH: u32 = 2;
/// MR_DCMD_CTRL_CACHE_FLUSH.
const CACHE_FLUSH: u32 = 0x0110_1000;

/// Writes to volumes with LD_WRITE, and flushes in turn with SYNCHRONIZE CACHE and with the firmware's own command.
struct Driver {
    through: Through,
    flushes: u32,
}

impl Initiator for Driver {
    fn command(&mut self, cdb: &[u8], data_out: &[u8], data_in_len: usize) -> Outcome {
        let (volume, guest) = (self.through.cmd == 3, &mut self.through.guest);
        let status = match cdb {
            [0x2a, 0, a, b, c, d, ..] if volume => {
                guest.io(true, 7, u32::from_be_bytes([*a, *b, *c, *d]).into(), data_out).0
            }
            [0x35, ..] if self.flushes.is_multiple_of(2) => {
                self.flushes += 1;
                guest.dcmd(CACHE_FLUSH, &[3], 0).0
            }
            _ => {
                self.flushes += u32::from(cdb[0] == 0x35);
                return self.through.command(cdb, data_out, data_in_len);
            }
        };
        Outcome { status, sense: Vec::new(), data_in: Vec::new(), residual: None }
    }
}

#[test]
fn promises_hold_when_the_power_fails() {
    for (qcow2, volume, write_back) in [
        (false, true, false),
        (false, true, true),
        (false, false, false),
        (true, true, false),
        (true, false, false),
    ] {
        let Some(outage) = Outage::new(qcow2) else { return };
        let image = outage.image();
        let mut options = options(Model::Gen2);
        options.write_back = write_back;
        let drive = drive(&image, volume);
        let guest = Guest::with(options, [(7, drive)].into(), [(7, image)].into());
        let recorder = outage.recorder();
        guest._thread.remote().spawn(move |io| async move { io.record(&recorder) });
        let through = Through { guest, cmd: if volume { 3 } else { 4 } };
        let mut driver = Driver { through, flushes: 0 };
        let promise = if volume && !write_back { Promise::AtOnce } else { Promise::Flushed };
        let history = outage.use_disk(&mut driver, promise, 5);
        let what = format!("qcow2: {qcow2}, volume: {volume}, write back: {write_back}");
        let count =
            history.survives(EACH, Without::Nothing).unwrap_or_else(|fault| panic!("{what}: {fault}"));
        assert!(count > 500, "{what}: {count}");
        // The check can fail: a flush that does nothing is missed.
        let flush = Without::Barrier(if qcow2 { "published" } else { "flush" });
        let fault = history.survives(4 * EACH, flush).expect_err(&what);
        eprintln!("{what}, {flush:?}: {fault}");
    }
}
