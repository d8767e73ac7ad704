//! What a driver was told is stable is stable, whenever the power fails.

use devices::scsi::suite::promises::{Outage, Promise};
use devices::scsi::{Disk, DiskConfig, LogicalUnit, Lun, Nexus, Target};
use devices::testing::power::Without;
use hba_virtio_scsi::Options;

use crate::disks::{Bench, ThroughHba};
use crate::guest::{Guest, VERSION_1};

/// Losses of power at each moment.
const EACH: u32 = 2;

#[test]
fn promises_hold_when_the_power_fails() {
    for (qcow2, write_cache) in [(false, true), (false, false), (true, true), (true, false)] {
        let Some(outage) = Outage::new(qcow2) else { return };
        let disk = outage.image();
        let target = Target::new();
        let config = DiskConfig { write_cache, ..devices::scsi::suite::config() };
        let unit = LogicalUnit::Disk(Disk::new(disk.clone(), config).unwrap());
        target.attach(Lun([0; 8]), unit).unwrap();
        let nexus = Nexus::new(target.clone(), None);
        let mut guest = Guest::new(Options::default(), 1, [(5, nexus)].into());
        let recorder = outage.recorder();
        guest.remotes[0].spawn(move |io| async move { io.record(&recorder) });
        guest.start(VERSION_1, 16);
        let mut through = ThroughHba(Bench { guest, target, disk });
        let promise = if write_cache { Promise::Flushed } else { Promise::AtOnce };
        let history = outage.use_disk(&mut through, promise, 5);
        let what = format!("qcow2: {qcow2}, write cache: {write_cache}");
        let count =
            history.survives(EACH, Without::Nothing).unwrap_or_else(|fault| panic!("{what}: {fault}"));
        assert!(count > 500, "{what}: {count}");
        // The check can fail: a flush, and a forced write, that do nothing are missed.
        let flush = if qcow2 { "published" } else { "flush" };
        for without in [Without::Barrier(flush), Without::StableWrites] {
            let fault = history.survives(4 * EACH, without).expect_err(&what);
            eprintln!("{what}, {without:?}: {fault}");
        }
    }
}
