//! Log messages that a guest can cause: limited per call site, so that a hostile guest cannot fill the log.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

#[doc(hidden)]
pub use tracing;

/// Messages that pass at once after a quiet time.
const BURST: u64 = 10;

/// After a burst, one message passes in this time.
const PERIOD: Duration = Duration::from_secs(5);

/// The token bucket of one call site. Lock-free: callers on several threads never wait for each other.
///
/// Kept as one time (the generic cell rate algorithm): when the bucket will be full again. Each message moves
/// it on by one period; a message passes while it is less than a burst of periods ahead of now.
#[derive(Debug, Default)]
pub struct Limiter {
    full_at: AtomicU64,
    suppressed: AtomicU64,
}

impl Limiter {
    /// A full bucket.
    pub const fn new() -> Self {
        Self { full_at: AtomicU64::new(0), suppressed: AtomicU64::new(0) }
    }

    /// Takes a token: `Some(n)` when a message may pass, `n` messages having been suppressed since the last one.
    pub fn admit(&self) -> Option<u64> {
        static START: OnceLock<Instant> = OnceLock::new();
        self.admit_at(START.get_or_init(Instant::now).elapsed())
    }

    /// [`Self::admit`] at the time `now` of a monotonic clock.
    fn admit_at(&self, now: Duration) -> Option<u64> {
        let (now, period) = (nanoseconds(now), nanoseconds(PERIOD));
        let room = period * (BURST - 1);
        let taken = self.full_at.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |full_at| {
            (full_at.saturating_sub(now) <= room).then(|| full_at.max(now).saturating_add(period))
        });
        match taken {
            Ok(_) => Some(self.suppressed.swap(0, Ordering::Relaxed)),
            Err(_) => {
                self.suppressed.fetch_add(1, Ordering::Relaxed);
                None
            }
        }
    }
}

/// `time` in nanoseconds; a process does not run the 584 years after which this saturates.
fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// Logs like the macro of `tracing` that the first argument names, at most ten times at once and then once in
/// five seconds for each place in the source. The next message that passes says how many were suppressed.
///
/// Arguments are neither evaluated nor formatted when the level is off or the message is suppressed.
///
/// ```
/// # let frame = 0x1000_u64;
/// devices::log_limited!(warn, "frame at {frame:#x}: {} is no command", 0xff);
/// ```
#[macro_export]
macro_rules! log_limited {
    (error, $($message:tt)+) => { $crate::log_limited!(@ error ERROR $($message)+) };
    (warn, $($message:tt)+) => { $crate::log_limited!(@ warn WARN $($message)+) };
    (info, $($message:tt)+) => { $crate::log_limited!(@ info INFO $($message)+) };
    (debug, $($message:tt)+) => { $crate::log_limited!(@ debug DEBUG $($message)+) };
    (trace, $($message:tt)+) => { $crate::log_limited!(@ trace TRACE $($message)+) };
    (@ $macro:ident $level:ident $($message:tt)+) => {{
        static LIMITER: $crate::log::Limiter = $crate::log::Limiter::new();
        if $crate::log::tracing::enabled!($crate::log::tracing::Level::$level) {
            match LIMITER.admit() {
                Some(0) => $crate::log::tracing::$macro!($($message)+),
                Some(suppressed) => $crate::log::tracing::$macro!(
                    "{} ({suppressed} more suppressed)",
                    format_args!($($message)+)
                ),
                None => {}
            }
        }
    }};
}

#[cfg(test)]
pub(crate) use tests::recorded;

#[cfg(test)]
mod tests {
    use super::*;
    use std::fmt::Write as _;
    use std::sync::{Arc, Mutex};

    use tracing::field::{Field, Visit};
    use tracing::span::{Attributes, Id, Record};
    use tracing::{Event, Level, Metadata, Subscriber};

    /// Records the messages at or above a level.
    struct Recorder(Level, Arc<Mutex<Vec<String>>>);

    struct Message(String);
    impl Visit for Message {
        fn record_debug(&mut self, _: &Field, value: &dyn std::fmt::Debug) {
            write!(self.0, "{value:?}").unwrap();
        }
    }

    impl Subscriber for Recorder {
        fn enabled(&self, metadata: &Metadata<'_>) -> bool {
            *metadata.level() <= self.0
        }
        fn new_span(&self, _: &Attributes<'_>) -> Id {
            Id::from_u64(1)
        }
        fn record(&self, _: &Id, _: &Record<'_>) {}
        fn record_follows_from(&self, _: &Id, _: &Id) {}
        fn event(&self, event: &Event<'_>) {
            let mut message = Message(format!("{} ", event.metadata().level()));
            event.record(&mut message);
            self.1.lock().unwrap().push(message.0);
        }
        fn enter(&self, _: &Id) {}
        fn exit(&self, _: &Id) {}
    }

    pub(crate) fn recorded(level: Level, body: impl FnOnce()) -> Vec<String> {
        let messages = Arc::new(Mutex::new(Vec::new()));
        tracing::subscriber::with_default(Recorder(level, messages.clone()), body);
        Arc::into_inner(messages).unwrap().into_inner().unwrap()
    }

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn ten_pass_at_once_then_one_in_five_seconds() {
        let limiter = Limiter::new();
        let at = |second: u32| limiter.admit_at(SECOND * second);
        for _ in 0..10 {
            assert_eq!(at(100), Some(0));
        }
        assert_eq!((at(100), at(104)), (None, None));
        assert_eq!(at(105), Some(2), "says how many were suppressed");
        assert_eq!((at(109), at(110), at(110)), (None, Some(1), None));
    }

    #[test]
    fn a_quiet_time_fills_the_bucket_and_no_more() {
        let limiter = Limiter::new();
        let burst = |second: u32| (0..100).filter(|_| limiter.admit_at(SECOND * second).is_some()).count();
        assert_eq!(burst(0), 10);
        assert_eq!(burst(10), 2);
        assert_eq!(burst(100_000), 10);
    }

    #[test]
    fn threads_share_one_bucket() {
        let limiter = Limiter::new();
        let passed = AtomicU64::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..1000 {
                        passed.fetch_add(u64::from(limiter.admit_at(SECOND).is_some()), Ordering::Relaxed);
                    }
                });
            }
        });
        assert_eq!(passed.load(Ordering::Relaxed), 10);
        assert_eq!(limiter.suppressed.load(Ordering::Relaxed), 3990);
    }

    #[test]
    fn each_place_has_its_own_bucket() {
        let messages = recorded(Level::WARN, || {
            for i in 0..20 {
                log_limited!(warn, "first {i}");
                crate::log_limited!(error, "second {}", i);
            }
        });
        assert_eq!(messages.len(), 20);
        assert_eq!(messages[0], "WARN first 0");
        assert_eq!(messages[19], "ERROR second 9");
    }

    #[test]
    fn a_level_that_is_off_costs_no_token_and_evaluates_nothing() {
        let mut evaluated = 0;
        let mut log = || {
            log_limited!(info, "{}", {
                evaluated += 1;
                evaluated
            });
        };
        assert!(recorded(Level::WARN, || (0..50).for_each(|_| log())).is_empty());
        assert_eq!(recorded(Level::INFO, || (0..50).for_each(|_| log())).len(), 10);
        assert_eq!(evaluated, 10);
    }
}
