//! The clocks of a paused machine: for the guest the pause takes no time.
//!
//! What would run on by itself is held together: the time stamp counters and kvmclock in KVM, and what our devices go by. So
//! no clock of the guest disagrees with another one afterwards, and none jumps. The real-time clock alone follows the host.

use std::io;
use std::sync::{Arc, MutexGuard};
use std::time::Instant;

use kvm_ioctls::VmFd;

use super::chipset::Chipset;
use crate::kvm::{forget_ticks, kvmclock, set_kvmclock};
use crate::vcpu::{Vcpu, VcpuThread, set_back};

/// The clocks, and where they stand.
pub struct Clocks<'a> {
    vm: &'a Arc<VmFd>,
    chipset: &'a Chipset,
    held: Option<Held>,
}

/// The moment that the clocks stand at.
#[derive(Debug)]
struct Held {
    since: Instant,
    /// Time stamp counter of the first vCPU.
    tsc: u64,
    /// In nanoseconds.
    kvmclock: u64,
}

impl<'a> Clocks<'a> {
    /// Clocks that run.
    pub fn new(vm: &'a Arc<VmFd>, chipset: &'a Chipset) -> Self {
        Self { vm, chipset, held: None }
    }

    /// Holds them, unless they are held already. All vCPUs are parked; else nothing happens.
    pub fn hold(&mut self, threads: &[VcpuThread]) {
        if self.held.is_some() {
            return;
        }
        let Some(vcpus) = all_parked(threads) else { return };
        match self.moment(&vcpus) {
            Ok(held) => {
                self.chipset.clock.hold();
                self.held = Some(held);
            }
            Err(e) => tracing::warn!("the guest's clocks run on while it is paused: {e}"),
        }
    }

    fn moment(&self, vcpus: &[MutexGuard<'_, Vcpu>]) -> io::Result<Held> {
        let first = vcpus.first().ok_or_else(|| io::Error::other("there is no vCPU"))?;
        Ok(Held { since: Instant::now(), tsc: first.tsc()?, kvmclock: kvmclock(self.vm)? })
    }

    /// Has them go on from where they stand, if they were held. All vCPUs are parked still.
    pub fn release(&mut self, threads: &[VcpuThread]) {
        let Some(held) = self.held.take() else { return };
        let done = match all_parked(threads) {
            Some(vcpus) => self.go_on(&held, &vcpus),
            None => Err(io::Error::other("a vCPU is not parked")),
        };
        // Whatever became of the others.
        self.chipset.release_clock();
        match done {
            Ok(()) => {
                tracing::debug!(
                    "the guest's clocks stood still for {:.3} s",
                    held.since.elapsed().as_secs_f64()
                );
            }
            Err(e) => tracing::warn!(
                "the guest's clocks jump, for the pause was {} s: {e}",
                held.since.elapsed().as_secs()
            ),
        }
    }

    fn go_on(&self, held: &Held, vcpus: &[MutexGuard<'_, Vcpu>]) -> io::Result<()> {
        let first = vcpus.first().ok_or_else(|| io::Error::other("there is no vCPU"))?;
        // All clocks run from this moment on, however long the rest takes.
        let (begin, ticks) = (Instant::now(), first.tsc()?.wrapping_sub(held.tsc));
        self.chipset.clock.release();
        match set_back(vcpus, ticks) {
            Err(e) if e.kind() == io::ErrorKind::Unsupported => {
                tracing::warn!(
                    "this KVM cannot set time stamp counters back: a guest that goes by them sees the pause"
                );
            }
            other => other?,
        }
        let late = u64::try_from(begin.elapsed().as_nanos()).unwrap_or(0);
        set_kvmclock(self.vm, held.kvmclock.saturating_add(late))?;
        for vcpu in vcpus {
            vcpu.renew_deadline()?;
            vcpu.was_stopped()?;
        }
        forget_ticks(self.vm)
    }
}

/// Tells the guest that all its processors were stopped, for how long nobody knows. They are parked.
pub fn were_stopped(threads: &[VcpuThread]) {
    let told = |vcpu: MutexGuard<'_, Vcpu>| vcpu.was_stopped();
    if let Err(e) = threads.iter().filter_map(VcpuThread::parked).try_for_each(told) {
        tracing::warn!("the guest is not told that it was stopped: {e}");
    }
}

/// All vCPUs, or none when one of them is at something.
fn all_parked(threads: &[VcpuThread]) -> Option<Vec<MutexGuard<'_, Vcpu>>> {
    threads.iter().map(VcpuThread::parked).collect()
}
