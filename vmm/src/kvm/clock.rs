//! The clocks that KVM keeps for the machine as a whole: kvmclock and the interval timer.

use std::io;

use kvm_bindings::kvm_clock_data;
use kvm_ioctls::VmFd;

/// Kvmclock in nanoseconds, as the guest would read it now (KVM API, 4.29).
pub fn kvmclock(vm: &VmFd) -> io::Result<u64> {
    Ok(vm.get_clock()?.clock)
}

/// Sets kvmclock. After the vCPUs' time stamp counters: it goes by them where they agree.
pub fn set_kvmclock(vm: &VmFd, ns: u64) -> io::Result<()> {
    Ok(vm.set_clock(&kvm_clock_data { clock: ns, ..Default::default() })?)
}

/// Forgets the ticks that a periodic interval timer has made while the vCPUs did not run, which the guest would get one
/// after the other, and begins a new period.
pub fn forget_ticks(vm: &VmFd) -> io::Result<()> {
    let pit = vm.get_pit2()?;
    let [periodic, ..] = pit.channels;
    // Modes 2 and 3. A one-shot ticks once at most, and would do so again.
    if matches!(periodic.mode, 2 | 3) {
        vm.set_pit2(&pit)?;
    }
    Ok(())
}
