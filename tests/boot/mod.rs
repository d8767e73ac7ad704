//! The boot tests: what a stock guest must find and be able to do.

mod debian;
mod disk;
mod ends;
mod hardware;
mod messages;
mod scsi;

use testbed::runner::Test;

/// All boot tests, in the order in which they run: the quick ones first.
pub(crate) const TESTS: &[Test] = &[
    Test { name: "hardware-12-1cpu-512m", run: hardware::kernel12_one_cpu },
    Test { name: "hardware-13-2cpu-3g", run: hardware::kernel13_two_cpus },
    Test { name: "hardware-13-4cpu-512m", run: hardware::kernel13_four_cpus },
    Test { name: "hardware-12-4cpu-6g", run: hardware::kernel12_four_cpus },
    Test { name: "end-reboot", run: ends::reboot },
    Test { name: "end-no-reboot", run: ends::no_reboot },
    Test { name: "end-crash", run: ends::crash },
    Test { name: "end-host-error", run: ends::host_error },
    Test { name: "disk-ext4-12", run: disk::ext4_kernel12 },
    Test { name: "disk-ext4-13", run: disk::ext4_kernel13 },
    Test { name: "scsi-identity", run: scsi::identity },
    Test { name: "scsi-medium", run: scsi::medium },
    Test { name: "scsi-wipe", run: scsi::wipe },
    Test { name: "disk-kill-none", run: disk::kill_none },
    Test { name: "disk-kill-writeback", run: disk::kill_writeback },
    Test { name: "scsi-files", run: scsi::files },
    Test { name: "debian-13", run: debian::trixie },
    Test { name: "debian-12", run: debian::bookworm },
];
