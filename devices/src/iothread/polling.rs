//! Looking for work instead of sleeping: how long, and where.
//!
//! A thread that sleeps is woken by the kernel, and its client has to cause that: for a guest, an exit for each
//! doorbell. For some time after it ran dry, a thread therefore looks by itself. The time adapts as that of KVM's
//! halt polling does: it grows while work comes within the bound, and shrinks when it does not.

use std::io;
use std::time::Duration;

use vmm_sys_util::eventfd::EventFd;

use crate::threads::{self, Kind};

/// Something that may have work without a wake-up, such as a queue in memory. Used on its thread only.
pub trait Poller {
    /// Looks for work, and wakes its task when there is some. Asked once in every round while the thread does not sleep, also
    /// when other queues have work.
    fn poll(&self) -> bool;
    /// Whether it holds something back that [`Poller::poll`] shall let go in a moment: until then the thread does not sleep.
    fn is_holding(&self) -> bool {
        false
    }
    /// The thread is about to sleep: asks for a wake-up for new work. True, and the task woken, when work came before.
    fn arm(&self) -> bool;
}

/// Whether a thread looks for work before it sleeps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Polling {
    /// As long as it pays, within a bound that goes by what a wake-up costs on this host.
    #[default]
    Auto,
    /// As long as it pays, this long at most.
    Adaptive(Duration),
    /// Always this long.
    Fixed(Duration),
    /// Never.
    Off,
}

/// A wake-up costs sleeper and waker about the same, and leads through cold caches. Polling for several times its
/// cost loses little when nothing comes, and wins all of it when something does.
const BOUND_IN_WAKES: u32 = 16;
/// The automatic bound at most, however slow the host is.
const AUTO_MAX: Duration = Duration::from_millis(2);
/// The automatic bound at least.
const AUTO_MIN: Duration = Duration::from_micros(20);
/// Where a closed window starts to grow.
const FIRST: Duration = Duration::from_micros(8);

/// How long a thread polls now.
#[derive(Debug)]
pub(super) struct Window {
    length: Duration,
    bound: Duration,
    adapts: bool,
    /// The bound has yet to be measured.
    unknown: bool,
}

impl Window {
    pub(super) fn new(polling: Polling) -> Self {
        let (bound, adapts, unknown) = match polling {
            Polling::Off => (Duration::ZERO, false, false),
            Polling::Fixed(time) => (time, false, false),
            Polling::Adaptive(bound) => (bound, true, false),
            Polling::Auto => (AUTO_MIN, true, true),
        };
        let length = if adapts { FIRST.min(bound) } else { bound };
        Self { length, bound, adapts, unknown }
    }

    /// Measures what a wake-up costs, once, where the bound depends on it: when there is something to poll.
    pub(super) fn calibrate(&mut self) {
        if std::mem::take(&mut self.unknown) {
            let cost = wake_up_cost().unwrap_or_default();
            self.bound = (cost * BOUND_IN_WAKES).clamp(AUTO_MIN, AUTO_MAX);
            tracing::debug!("a wake-up takes {cost:?}: polling for {:?} at most", self.bound);
        }
    }

    pub(super) fn is_open(&self) -> bool {
        !self.bound.is_zero()
    }

    pub(super) fn bound(&self) -> Duration {
        self.bound
    }

    pub(super) fn length(&self) -> Duration {
        self.length
    }

    /// Polling was in vain; from its begin to the next work it took this long.
    pub(super) fn slept(&mut self, time: Duration) {
        if !self.adapts {
            return;
        }
        self.length =
            if time <= self.bound { (self.length * 2).max(FIRST).min(self.bound) } else { self.length / 2 };
    }
}

/// The time from a signal to a sleeping thread until it runs: the shortest of a few.
fn wake_up_cost() -> io::Result<Duration> {
    let (there, back) = (EventFd::new(libc::EFD_CLOEXEC)?, EventFd::new(libc::EFD_CLOEXEC)?);
    let (wait, answer) = (there.try_clone()?, back.try_clone()?);
    const ROUNDS: usize = 12;
    let echo = threads::spawn(Kind::IoEcho, "io-calibrate", move || {
        for _ in 0..ROUNDS {
            if wait.read().is_err() || answer.write(1).is_err() {
                return;
            }
        }
    })?;
    let mut best = Duration::MAX;
    for _ in 0..ROUNDS {
        let begin = std::time::Instant::now();
        there.write(1)?;
        back.read()?;
        best = best.min(begin.elapsed() / 2);
    }
    let _ = echo.join();
    Ok(best)
}

/// A set of CPUs as the kernel takes it.
pub(super) type CpuMask = [u64; 1024 / 64];

/// These CPUs, by number.
pub(super) fn cpu_mask(cpus: &[usize]) -> io::Result<CpuMask> {
    let mut words = [0; 1024 / 64];
    for &cpu in cpus {
        let word: &mut u64 =
            words.get_mut(cpu / 64).ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL))?;
        *word |= 1 << (cpu % 64);
    }
    Ok(words)
}

/// Restricts the calling thread to these CPUs.
pub(super) fn set_affinity(cpus: &[usize]) -> io::Result<()> {
    let words = cpu_mask(cpus)?;
    // SAFETY: the kernel reads the words, whose size it is told; 0 means the calling thread.
    #[allow(unsafe_code)]
    let result = unsafe { libc::sched_setaffinity(0, size_of_val(&words), words.as_ptr().cast()) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const US: Duration = Duration::from_micros(1);

    #[test]
    fn the_window_grows_while_work_comes_in_time_and_shrinks_otherwise() {
        let mut window = Window::new(Polling::Adaptive(100 * US));
        for _ in 0..10 {
            window.slept(90 * US);
        }
        assert_eq!(window.length(), 100 * US);
        window.slept(101 * US);
        assert_eq!(window.length(), 50 * US);
        for _ in 0..40 {
            window.slept(Duration::from_secs(1));
        }
        assert_eq!(window.length(), Duration::ZERO);
        window.slept(10 * US);
        assert!(window.length() > Duration::ZERO, "it opens again");
    }

    #[test]
    fn fixed_and_off_do_not_adapt() {
        let mut fixed = Window::new(Polling::Fixed(30 * US));
        fixed.slept(Duration::from_secs(1));
        assert_eq!(fixed.length(), 30 * US);
        assert!(!Window::new(Polling::Off).is_open());
        let mut auto = Window::new(Polling::Auto);
        auto.calibrate();
        assert!(
            auto.bound >= Duration::from_micros(20) && auto.bound <= Duration::from_millis(2),
            "{auto:?}"
        );
    }

    #[test]
    fn affinity_is_taken_or_refused() {
        assert!(set_affinity(&[100_000]).is_err());
        std::thread::spawn(|| set_affinity(&[0]).unwrap()).join().unwrap();
    }
}
