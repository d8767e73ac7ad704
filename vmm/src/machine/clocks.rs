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
const READINGS: usize = 3;
const NEAR_NS: i64 = 20_000;

/// The moment that the clocks stand at.
#[derive(Debug)]
struct Held {
    since: Instant,
    /// Time stamp counter of the first vCPU.
    tsc: u64,
    /// In nanoseconds.
    kvmclock: i64,
    /// What the guest may have read of it at most.
    least: u64,
}

/// What a clock shows, and the host's time in the middle of the call that asked it: some take long, most of all where the
/// processor is emulated, and what is read at two moments must not be taken for one.
///
/// It is asked a few times, and the shortest call counts: this thread may lose its processor in one.
fn ask<T>(clock: impl Fn() -> io::Result<T>) -> io::Result<(Instant, T)> {
    let once = || {
        let begin = Instant::now();
        clock().map(|shown| (begin.elapsed(), begin, shown))
    };
    let mut best = once()?;
    for _ in 1..READINGS {
        let other = once()?;
        if other.0 < best.0 {
            best = other;
        }
    }
    let (took, begin, shown) = best;
    Ok((begin + took / 2, shown))
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
        // The vCPUs stand, so what it shows now is no less than what they have seen.
        Ok(Held { since, tsc, kvmclock, least: shown })
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
        set_clock(
            held.kvmclock,
            begin,
            |ns| set_kvmclock(self.vm, ns.max(held.least)),
            || kvmclock(self.vm),
        )?;
        for vcpu in vcpus {
            vcpu.renew_deadline()?;
            vcpu.was_stopped()?;
        }
        forget_ticks(self.vm)
    }
}

/// Sets a clock so that it showed `shown` at the moment `begin`. The call itself takes its time, which is found by asking.
fn set_clock(
    shown: i64,
    begin: Instant,
    mut set: impl FnMut(u64) -> io::Result<()>,
    read: impl Fn() -> io::Result<u64>,
) -> io::Result<()> {
    let mut slow = 0i64;
    for _ in 0..TRIES {
        let now = shown.saturating_add(from_to(begin, Instant::now())).saturating_add(slow);
        set(u64::try_from(now).unwrap_or(0))?;
        let (moment, found) = ask(&read)?;
        let behind = shown.saturating_add(from_to(begin, moment)).saturating_sub(found.cast_signed());
        if behind.abs() <= NEAR_NS {
            break;
        }
        slow = slow.saturating_add(behind);
    }
    Ok(())
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
    use std::cell::Cell;
    use std::time::Duration;

    use super::*;

    #[test]
    fn moments_may_be_in_either_order() {
        let one = Instant::now();
        let other = one + Duration::from_micros(7);
        assert_eq!((from_to(one, other), from_to(other, one)), (7000, -7000));
    }

    /// Setting it takes long, all of which passes before it takes the value.
    #[test]
    fn a_clock_that_is_set_slowly_shows_what_it_should() {
        let set_at = Cell::new((Instant::now(), 0u64));
        let begin = Instant::now();
        let set = |ns: u64| {
            std::thread::sleep(Duration::from_millis(30));
            set_at.set((Instant::now(), ns));
            Ok(())
        };
        let shows = || {
            let (since, ns) = set_at.get();
            ns.cast_signed() + from_to(since, Instant::now())
        };
        set_clock(5_000_000_000, begin, set, || Ok(shows().cast_unsigned())).unwrap();
        let wrong = shows() - 5_000_000_000 - from_to(begin, Instant::now());
        assert!(wrong.abs() < 15_000_000, "{wrong} ns");
    }

    #[test]
    fn a_call_that_is_held_up_does_not_count() {
        for slow in 0..READINGS {
            let (calls, begin) = (Cell::new(0), Instant::now());
            let (moment, shown) = ask(|| {
                let shown = from_to(begin, Instant::now());
                if calls.replace(calls.get() + 1) == slow {
                    std::thread::sleep(Duration::from_millis(60));
                }
                Ok(shown)
            })
            .unwrap();
            let wrong = from_to(begin, moment) - shown;
            assert!(wrong < 15_000_000, "{slow}: {wrong} ns");
        }
    }

    #[test]
    fn what_a_clock_shows_is_of_the_middle_of_the_call() {
        let begin = Instant::now();
        let (moment, shown) = ask(|| {
            std::thread::sleep(Duration::from_millis(20));
            Ok(5)
        })
        .unwrap();
        let (since, all) = (from_to(begin, moment), from_to(begin, Instant::now()));
        assert!(shown == 5 && since >= 10_000_000 && since <= all - 10_000_000, "{since} of {all}");
    }
}
