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

/// How often kvmclock is set until it agrees with the time stamp counters, and what is near enough: Linux in the guest gives a
/// clock up that is half a millisecond away from another one.
const TRIES: usize = 4;
const NEAR_NS: i64 = 20_000;

/// The moment that the clocks stand at.
#[derive(Debug)]
struct Held {
    since: Instant,
    /// Time stamp counter of the first vCPU.
    tsc: u64,
    /// In nanoseconds.
    kvmclock: i64,
}

/// What a clock shows, and the host's time in the middle of the call that asked it: some take long, most of all where the
/// processor is emulated, and what is read at two moments must not be taken for one.
fn ask<T>(clock: impl FnOnce() -> io::Result<T>) -> io::Result<(Instant, T)> {
    let begin = Instant::now();
    let shown = clock()?;
    Ok((begin + begin.elapsed() / 2, shown))
}

/// Nanoseconds from one moment to another.
fn from_to(one: Instant, other: Instant) -> i64 {
    let ns = |time: std::time::Duration| i64::try_from(time.as_nanos()).unwrap_or(i64::MAX);
    match other.checked_duration_since(one) {
        Some(later) => ns(later),
        None => -ns(one.duration_since(other)),
    }
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
        let (since, tsc) = ask(|| first.tsc())?;
        let (moment, shown) = ask(|| kvmclock(self.vm))?;
        let kvmclock = shown.cast_signed().saturating_sub(from_to(since, moment));
        Ok(Held { since, tsc, kvmclock })
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
        let (begin, tsc) = ask(|| first.tsc())?;
        let ticks = tsc.wrapping_sub(held.tsc);
        self.chipset.clock.release();
        match set_back(vcpus, ticks) {
            Err(e) if e.kind() == io::ErrorKind::Unsupported => {
                tracing::warn!(
                    "this KVM cannot set time stamp counters back: a guest that goes by them sees the pause"
                );
            }
            other => other?,
        }
        self.set_kvmclock(held.kvmclock, begin)?;
        for vcpu in vcpus {
            vcpu.renew_deadline()?;
            vcpu.was_stopped()?;
        }
        forget_ticks(self.vm)
    }

    /// Sets kvmclock so that it showed `shown` at the moment `begin`. The call itself takes its time, which is found by asking.
    fn set_kvmclock(&self, shown: i64, begin: Instant) -> io::Result<()> {
        let mut slow = 0;
        for _ in 0..TRIES {
            let now = shown.saturating_add(from_to(begin, Instant::now())).saturating_add(slow);
            set_kvmclock(self.vm, u64::try_from(now).unwrap_or(0))?;
            let (moment, found) = ask(|| kvmclock(self.vm))?;
            let behind = shown.saturating_add(from_to(begin, moment)).saturating_sub(found.cast_signed());
            if behind.abs() <= NEAR_NS {
                break;
            }
            slow = behind.saturating_add(slow);
        }
        Ok(())
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn moments_may_be_in_either_order() {
        let one = Instant::now();
        let other = one + Duration::from_micros(7);
        assert_eq!((from_to(one, other), from_to(other, one)), (7000, -7000));
    }

    #[test]
    fn what_a_clock_shows_is_of_the_middle_of_the_call() {
        let begin = Instant::now();
        let (moment, shown) = ask(|| {
            std::thread::sleep(Duration::from_millis(20));
            Ok(5)
        })
        .unwrap();
        let since = from_to(begin, moment);
        assert!(shown == 5 && since >= 10_000_000 && since < from_to(begin, Instant::now()), "{since}");
    }
}
