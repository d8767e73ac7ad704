//! Progress on the terminal: what is being done, for how long, and how it ended.

use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant};

use anyhow::Result;

const HEARTBEAT: Duration = Duration::from_secs(15);

/// Prints one line about what happens now.
pub fn note(text: &str) {
    eprintln!("testbed: {text}");
}

/// Runs `work`, printing its name, a heartbeat while it lasts, and the time it took.
pub fn step<T>(name: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    note(name);
    let beat = Heartbeat::start(name);
    let start = Instant::now();
    let result = work();
    drop(beat);
    let seconds = start.elapsed().as_secs_f64();
    match &result {
        Ok(_) => note(&format!("{name}: done in {seconds:.1} s")),
        Err(_) => note(&format!("{name}: failed after {seconds:.1} s")),
    }
    result
}

/// Prints a line every now and then while it lives.
pub struct Heartbeat {
    _stop: Sender<()>,
}

impl Heartbeat {
    /// Starts the heartbeat for the work called `name`.
    pub fn start(name: &str) -> Self {
        let (stop, stopped) = channel::<()>();
        let name = name.to_string();
        let start = Instant::now();
        std::thread::spawn(move || {
            use std::sync::mpsc::RecvTimeoutError::Timeout;
            while let Err(Timeout) = stopped.recv_timeout(HEARTBEAT) {
                note(&format!("{name}: still at it after {} s", start.elapsed().as_secs()));
            }
        });
        Self { _stop: stop }
    }
}

/// The middle value; of an even number, the mean of the two middle ones.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let half = sorted.len() / 2;
    let at = |index: usize| sorted.get(index).copied().unwrap_or(f64::NAN);
    if sorted.len() % 2 == 1 { at(half) } else { (at(half.wrapping_sub(1)) + at(half)) / 2.0 }
}

/// The last `count` lines of a text.
pub fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    let start = lines.len().saturating_sub(count);
    lines.get(start..).unwrap_or_default().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert!(median(&[]).is_nan());
    }

    #[test]
    fn keeps_the_last_lines() {
        assert_eq!(last_lines("a\nb\nc", 2), "b\nc");
        assert_eq!(last_lines("a", 2), "a");
    }
}
