//! Time as devices see it, and wake-ups at a time. The machine gives the real ones, tests their own.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use vmm_sys_util::timerfd::TimerFd;

/// Nanoseconds of a second.
pub const NS_PER_SEC: u64 = 1_000_000_000;

/// The two clocks of a machine.
pub trait Clock: Send + Sync {
    /// Nanoseconds since an arbitrary start; never goes back. Stands still while the machine is paused.
    fn monotonic_ns(&self) -> u64;
    /// Nanoseconds since 1970-01-01 00:00 UTC; follows the host's clock when that is set, and goes on in a pause.
    fn unix_ns(&self) -> i128;
}

/// Wakes a device at a time: after the deadline, whoever runs the event loop calls the device's `timer_expired`.
pub trait Alarm: Send + Sync {
    /// Sets the one deadline, on [`Clock::monotonic_ns`]; `None` for no wake-up. A deadline in the past wakes at once.
    fn set(&self, deadline_ns: Option<u64>);
}

/// The host's clocks, of which the monotonic one can be held.
#[derive(Debug)]
pub struct HostClock {
    start: Instant,
    /// One word, so that readers need no lock: nanoseconds that it was held for so far, or [`HELD`] and the time that
    /// it stands at.
    state: AtomicU64,
}

/// The clock is held.
const HELD: u64 = 1 << 63;

impl HostClock {
    /// A clock whose monotonic time starts now.
    pub fn new() -> Self {
        Self { start: Instant::now(), state: AtomicU64::new(0) }
    }

    /// Nanoseconds since the start, held or not: 292 years until this saturates.
    fn real_ns(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX).min(HELD - 1)
    }

    /// Monotonic time stands still from here on, and no [`HostAlarm`] is set any more. Nobody may read the clock who would
    /// mind to see it a moment ahead.
    pub fn hold(&self) {
        if !self.is_held() {
            self.state.store(HELD | self.monotonic_ns(), Ordering::Release);
        }
    }

    /// Monotonic time goes on from where it stands. Devices have to set their alarms again.
    pub fn release(&self) {
        if self.is_held() {
            let held_for = self.real_ns().saturating_sub(self.monotonic_ns());
            self.state.store(held_for, Ordering::Release);
        }
    }

    /// Whether monotonic time stands still.
    pub fn is_held(&self) -> bool {
        self.state.load(Ordering::Acquire) & HELD != 0
    }
}

impl Default for HostClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for HostClock {
    fn monotonic_ns(&self) -> u64 {
        match self.state.load(Ordering::Acquire) {
            held if held & HELD != 0 => held & !HELD,
            held_for => self.real_ns().saturating_sub(held_for),
        }
    }

    fn unix_ns(&self) -> i128 {
        let ns = |d: Duration| i128::try_from(d.as_nanos()).unwrap_or(i128::MAX);
        match SystemTime::now().duration_since(UNIX_EPOCH) {
            Ok(since) => ns(since),
            Err(before) => -ns(before.duration()),
        }
    }
}

/// An [`Alarm`] on a timer descriptor.
///
/// An event loop polls the descriptor for input and, when it is readable, calls the device's `timer_expired`. It need
/// not read the descriptor: the device sets the next deadline (or none), which makes it unreadable again.
///
/// While the clock is held there are no deadlines: whoever releases it calls `timer_expired`, too.
pub struct HostAlarm {
    clock: Arc<HostClock>,
    timer: Mutex<TimerFd>,
    fd: RawFd,
}

impl HostAlarm {
    /// A timer that measures deadlines on `clock`. Fails when the process has no descriptor left.
    pub fn new(clock: Arc<HostClock>) -> io::Result<Self> {
        let timer = TimerFd::new()?;
        let fd = timer.as_raw_fd();
        Ok(Self { clock, timer: Mutex::new(timer), fd })
    }
}

impl Alarm for HostAlarm {
    fn set(&self, deadline_ns: Option<u64>) {
        let mut timer = self.timer.lock().unwrap_or_else(PoisonError::into_inner);
        // Zero would disarm the timer instead of firing at once.
        let wait = |at: u64| Duration::from_nanos(at.saturating_sub(self.clock.monotonic_ns()).max(1));
        let result = match deadline_ns {
            Some(at) if !self.clock.is_held() => timer.reset(wait(at), None),
            _ => timer.clear(),
        };
        if let Err(error) = result {
            crate::log_limited!(error, "cannot set a device timer: {error}");
        }
    }
}

impl AsRawFd for HostAlarm {
    fn as_raw_fd(&self) -> RawFd {
        self.fd
    }
}

/// Seconds by which local time is ahead of UTC now, from the host's time zone. Zero when it cannot be found out.
pub fn local_utc_offset_secs() -> i32 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let Ok(now) = libc::time_t::try_from(now) else { return 0 };
    local_offset_at(now)
}

#[allow(unsafe_code)]
fn local_offset_at(time: libc::time_t) -> i32 {
    let mut tm = std::mem::MaybeUninit::<libc::tm>::zeroed();
    // SAFETY: both pointers are to live values of the right types; the function keeps neither.
    let done = unsafe { libc::localtime_r(&time, tm.as_mut_ptr()) };
    if done.is_null() {
        return 0;
    }
    // SAFETY: all-zero bytes are a valid `tm` (integers and a pointer that is not read), and the call filled it.
    let tm = unsafe { tm.assume_init() };
    i32::try_from(tm.tm_gmtoff).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[allow(unsafe_code)]
    fn readable(fd: RawFd, timeout_ms: i32) -> bool {
        let mut poll = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
        // SAFETY: one live entry.
        unsafe { libc::poll(&mut poll, 1, timeout_ms) == 1 }
    }

    #[test]
    fn alarm_fires_after_its_deadline_and_setting_it_clears_it() {
        let clock = Arc::new(HostClock::new());
        let alarm = HostAlarm::new(clock.clone()).unwrap();
        assert!(!readable(alarm.as_raw_fd(), 0));
        let at = clock.monotonic_ns() + 20_000_000;
        alarm.set(Some(at));
        assert!(readable(alarm.as_raw_fd(), 5000));
        assert!(clock.monotonic_ns() >= at);
        alarm.set(None);
        assert!(!readable(alarm.as_raw_fd(), 50));
        alarm.set(Some(0));
        assert!(readable(alarm.as_raw_fd(), 5000), "a past deadline wakes at once");
    }

    #[test]
    fn a_held_clock_stands_still_and_goes_on_from_there() {
        let clock = Arc::new(HostClock::new());
        let alarm = HostAlarm::new(clock.clone()).unwrap();
        let ns = |time: Duration| u64::try_from(time.as_nanos()).unwrap();
        let mut total = 0;
        for _ in 0..2 {
            alarm.set(Some(clock.monotonic_ns() + 20_000_000));
            let (begin, before, unix) = (Instant::now(), clock.monotonic_ns(), clock.unix_ns());
            clock.hold();
            let held = clock.monotonic_ns();
            assert!((before..=before + ns(begin.elapsed())).contains(&held), "{before} {held}");
            std::thread::sleep(Duration::from_millis(200));
            clock.hold();
            assert_eq!(clock.monotonic_ns(), held);
            assert!(clock.unix_ns() - unix >= 200_000_000, "the calendar goes on");
            // What was set before still wakes, once; the device asks again, in vain.
            assert!(readable(alarm.as_raw_fd(), 5000));
            alarm.set(Some(held + 1));
            assert!(!readable(alarm.as_raw_fd(), 50), "no time goes by");
            let release = Instant::now();
            clock.release();
            clock.release();
            let after = clock.monotonic_ns();
            assert!((held..=held + ns(release.elapsed())).contains(&after), "{held} {after}");
            total += 250_000_000;
            assert!(clock.real_ns() >= after + total, "held for all pauses together");
            alarm.set(Some(after + 20_000_000));
            assert!(readable(alarm.as_raw_fd(), 5000));
            assert!(clock.monotonic_ns() >= after + 20_000_000);
        }
    }

    #[test]
    fn host_clock_agrees_with_the_system() {
        let clock = HostClock::new();
        let system = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as i128;
        assert!((clock.unix_ns() - system).abs() < 1_000_000_000);
        let first = clock.monotonic_ns();
        assert!(clock.monotonic_ns() >= first);
    }

    #[test]
    fn local_offset_is_a_real_time_zone() {
        let offset = local_utc_offset_secs();
        assert!((-12 * 3600..=14 * 3600).contains(&offset) && offset % 900 == 0, "{offset}");
    }
}
