//! The waits of the main thread, each with a way out, and the end of the machine.
//!
//! The host may never answer: a disk behind it is gone, a file server does not come back. Nothing can be done then about
//! what the kernel has been given, but the operator is heard, and what is healthy is closed.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::control::Control;
use super::events::MainLoop;
use super::hbas::Closing;
use super::{End, Machine, Outcome};
use crate::vcpu::VcpuThread;

/// What is left of a wait when the operator asks for the end, or asks once more.
const HURRY: Duration = Duration::from_secs(1);
/// After how long the end says what it waits for.
const SLOW_END: Duration = Duration::from_secs(3);

/// How long the main thread waits for others.
pub struct Patience<'a> {
    control: &'a Control,
    until: Option<Instant>,
    asked: usize,
}

impl<'a> Patience<'a> {
    /// Until the operator asks for the end.
    pub fn endless(control: &'a Control) -> Self {
        Self { control, until: None, asked: control.ends() }
    }

    /// For so long; when the operator asks for the end once more, hardly any longer.
    pub fn limited(control: &'a Control, time: Duration) -> Self {
        Self { until: Instant::now().checked_add(time), ..Self::endless(control) }
    }

    /// Whether to go on waiting.
    pub fn lasts(&mut self) -> bool {
        let (now, asked) = (Instant::now(), self.control.ends());
        if asked > self.asked {
            self.asked = asked;
            let soon = now + HURRY;
            self.until = Some(self.until.map_or(soon, |until| until.min(soon)));
        }
        self.until.is_none_or(|until| now < until)
    }
}

/// Tells the main thread that something is over: when the last clone of its `Arc` goes, done or not.
pub struct Over {
    control: Arc<Control>,
    done: SyncSender<()>,
}

impl Over {
    /// And where the main thread hears of it.
    pub fn new(control: &Arc<Control>) -> (Arc<Self>, Receiver<()>) {
        let (done, over) = mpsc::sync_channel(1);
        (Arc::new(Self { control: control.clone(), done }), over)
    }
}

impl Drop for Over {
    fn drop(&mut self) {
        let _ = self.done.try_send(());
        self.control.nudge();
    }
}

impl Machine {
    /// Does `work`, which may wait for the host, on a thread of its own; false when the wait for it ended before.
    pub(super) fn apart(
        &self,
        events: &mut MainLoop,
        patience: &mut Patience<'_>,
        work: impl FnOnce() + Send + 'static,
    ) -> Result<bool> {
        let (over, done) = Over::new(&self.control);
        let work = move || {
            work();
            drop(over);
        };
        std::thread::Builder::new()
            .name("waits".into())
            .spawn(work)
            .context("a thread that waits for the host")?;
        Ok(events.wait(&done, patience).is_some())
    }

    /// The end of the machine, within `shutdown_timeout`: vCPUs, requests under way, images, I/O threads. Says what was given
    /// up.
    pub(super) fn end(
        &self,
        threads: Vec<VcpuThread>,
        events: &mut MainLoop,
        end: Result<End>,
    ) -> Result<End> {
        let patience = &mut Patience::limited(&self.control, self.config.vm.shutdown_timeout);
        self.control.exit();
        let mut whole = self.join(threads, events, patience);
        // No request is taken any more.
        if !self.apart(events, patience, self.hbas.stop())? {
            tracing::error!("an HBA was not taken out of service: the host does not answer");
            whole = false;
        }
        whole &= self.close_images(events, patience);
        // What the host has not answered for units that went before is in the threads still.
        let (over, done) = Over::new(&self.control);
        self.hbas.end_threads(&over);
        drop(over);
        whole &= events.wait(&done, patience).is_some();
        if whole {
            return end;
        }
        tracing::error!("the machine ends, but the kernel may keep the process until the host answers");
        match end {
            Ok(End::Exit(Outcome::PoweredOff)) => Ok(End::Exit(Outcome::Failed)),
            end => end,
        }
    }

    fn join(&self, threads: Vec<VcpuThread>, events: &mut MainLoop, patience: &mut Patience<'_>) -> bool {
        while !threads.iter().all(VcpuThread::has_ended) {
            if !patience.lasts() {
                tracing::error!("a vCPU does not end");
                return false;
            }
            events.turn(Duration::from_millis(1));
        }
        threads.into_iter().for_each(VcpuThread::join);
        true
    }

    /// Closes all images at once; false when some are not closed.
    fn close_images(&self, events: &mut MainLoop, patience: &mut Patience<'_>) -> bool {
        let begin = Instant::now();
        let Closing { names, closed } = self.hbas.close(&self.control);
        let mut waiting: Vec<usize> = (0..names.len()).collect();
        let name = |number: usize| names.get(number).map_or("", String::as_str);
        let (mut good, said) = (true, Cell::new(false));
        while !waiting.is_empty() {
            // Twice: what is closed in time is reported, and then what is not.
            if begin.elapsed() > SLOW_END && !said.replace(true) {
                let all: Vec<_> = waiting.iter().map(|&number| name(number)).collect();
                tracing::warn!(
                    "the end waits for the host to close {}; another signal or quit gives them up",
                    all.join("; ")
                );
            }
            match closed.try_recv() {
                Ok((number, end)) => {
                    waiting.retain(|other| *other != number);
                    if let Err(error) = end {
                        tracing::error!("{}: closing failed: {error}", name(number));
                        good = false;
                    }
                }
                Err(_) if !patience.lasts() => break,
                Err(_) => events.turn(Duration::from_millis(50)),
            }
        }
        for &number in &waiting {
            let seconds = begin.elapsed().as_secs();
            tracing::error!(
                "{}: given up after {seconds} s: the host does not answer, the image is not closed and stays locked",
                name(number)
            );
        }
        good && waiting.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::Event;

    #[test]
    fn a_wait_ends_by_time_or_because_the_end_is_wanted() {
        let control = Control::new(0).unwrap();
        control.post(Event::Quit);
        let mut endless = Patience::endless(&control);
        let mut short = Patience::limited(&control, Duration::from_millis(20));
        let mut long = Patience::limited(&control, Duration::from_secs(3600));
        assert!(endless.lasts() && long.lasts(), "the first wish is what they are for");
        let begin = Instant::now();
        while short.lasts() {
            std::thread::yield_now();
        }
        assert!(begin.elapsed() >= Duration::from_millis(15));
        control.post(Event::Signal(15));
        let begin = Instant::now();
        while endless.lasts() || long.lasts() {
            assert!(begin.elapsed() < Duration::from_secs(30));
            std::thread::sleep(Duration::from_millis(1));
        }
        assert!(begin.elapsed() >= HURRY / 2);
    }

    #[test]
    fn what_is_over_is_told_when_the_last_goes() {
        let control = Control::new(0).unwrap();
        let (over, done) = Over::new(&control);
        let other = over.clone();
        drop(over);
        assert!(done.try_recv().is_err());
        std::thread::spawn(move || drop(other)).join().unwrap();
        assert!(done.try_recv().is_ok());
        assert!(control.wake().read().is_ok(), "the main thread looks");
    }
}
