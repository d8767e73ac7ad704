//! The waits of the main thread, each with a way out, and the end of the machine.
//!
//! The host may never answer: a disk behind it is gone, a file server does not come back. Nothing can be done then about
//! what the kernel has been given, but the operator is heard, and what is healthy is closed.

use std::cell::Cell;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, SendError, Sender, SyncSender, TryRecvError};
use std::time::{Duration, Instant};

use anyhow::Result;
use devices::threads::{self, Kind};

use super::control::Control;
use super::events::MainLoop;
use super::hbas::{Closing, Hbas};
use super::{End, Machine, Outcome};
use crate::fc_port::REMOVAL;
use crate::vcpu::VcpuThread;

/// What is left of a wait when the operator asks for the end, or asks once more.
const HURRY: Duration = Duration::from_secs(1);
/// How long the main thread sleeps between two looks at what ends.
const TURN: Duration = Duration::from_millis(1);
/// After how long the end says what it waits for.
const SLOW_END: Duration = Duration::from_secs(3);

/// How long the main thread waits for others.
pub struct Patience<'a> {
    control: &'a Control,
    until: Option<Instant>,
    asked: usize,
    /// The operator has asked for the end once more.
    hurried: bool,
}

impl<'a> Patience<'a> {
    /// Until the operator asks for the end. He may have done so already, and nobody has acted on it.
    pub fn endless(control: &'a Control) -> Self {
        Self { control, until: None, asked: control.ends_taken(), hurried: false }
    }

    /// For so long; when the operator asks for the end once more, hardly any longer. What he asked for until now is what
    /// it is for.
    pub fn limited(control: &'a Control, time: Duration) -> Self {
        Self { control, until: Instant::now().checked_add(time), asked: control.ends(), hurried: false }
    }

    /// Whether to go on waiting.
    pub fn lasts(&mut self) -> bool {
        let (now, asked) = (Instant::now(), self.control.ends());
        if asked > self.asked {
            (self.asked, self.hurried) = (asked, true);
            let soon = now + HURRY;
            self.until = Some(self.until.map_or(soon, |until| until.min(soon)));
        }
        self.until.is_none_or(|until| now < until)
    }

    /// For what is waited for next: so long from now; hardly at all where the operator has asked once more already.
    pub fn then(self, time: Duration) -> Self {
        let time = if self.hurried { time.min(HURRY) } else { time };
        Self { until: Instant::now().checked_add(time), ..self }
    }

    /// Whether to go on waiting for what began at `begin`: only for a quarter of the time, so that the rest is left for what
    /// comes then.
    pub fn lasts_in_part(&mut self, begin: Instant) -> bool {
        let left = |until: Instant| until.saturating_duration_since(Instant::now());
        self.lasts() && self.until.is_none_or(|until| begin.elapsed() < left(until) / 3)
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

type Work = Box<dyn FnOnce() + Send>;

/// A thread for work that may wait for the host. It is there before it is needed: a host that hangs may have no room for one.
pub struct Waits(Sender<Work>);

impl Waits {
    pub fn start() -> io::Result<Self> {
        let (work, works) = mpsc::channel::<Work>();
        threads::spawn(Kind::Waits, "waits", move || works.iter().for_each(|work| work()))?;
        Ok(Self(work))
    }
}

impl Machine {
    /// Does `work`, which may wait for the host, on a thread of its own; false when the wait for it ended before.
    pub(super) fn apart(
        &self,
        events: &mut MainLoop,
        patience: &mut Patience<'_>,
        work: impl FnOnce() + Send + 'static,
    ) -> bool {
        let (over, done) = Over::new(&self.control);
        let there = move || {
            work();
            drop(over);
        };
        // It ends with the machine only.
        if let Err(SendError(work)) = self.waits.0.send(Box::new(there)) {
            work();
        }
        events.wait(&done, patience).is_some()
    }

    /// The end of the machine, within `shutdown_timeout`: vCPUs, requests under way, images, I/O threads. Says what was given
    /// up. Then the virtual ports, for which [`REMOVAL`] is left.
    pub(super) fn end(
        &self,
        threads: Vec<VcpuThread>,
        events: &mut MainLoop,
        end: Result<End>,
    ) -> Result<End> {
        let mut patience = Patience::limited(&self.control, self.config.vm.shutdown_timeout);
        let ending = Ending {
            control: &self.control,
            hbas: &self.hbas,
            events: &mut *events,
            patience: &mut patience,
        };
        let whole = ending.run(threads);
        // Whoever is in a hurry by now stays so.
        self.close_ports(events, patience.then(REMOVAL));
        if whole {
            return end;
        }
        tracing::error!("the machine ends, but the kernel may keep the process until the host answers");
        match end {
            Ok(End::Exit(Outcome::PoweredOff)) => Ok(End::Exit(Outcome::Failed)),
            end => end,
        }
    }

    /// Has the virtual ports deleted. The operator is heard meanwhile.
    pub(super) fn close_ports(&self, events: &mut MainLoop, mut patience: Patience<'_>) {
        self.hbas.close_ports(|| {
            events.turn(Duration::ZERO);
            patience.lasts()
        });
    }
}

/// The end of everything that runs. Its steps hold each other up for a part of the time only: a vCPU or an HBA that the
/// host keeps costs no image its end.
struct Ending<'a, 'p> {
    control: &'a Arc<Control>,
    hbas: &'a Hbas,
    events: &'a mut MainLoop,
    patience: &'a mut Patience<'p>,
}

impl Ending<'_, '_> {
    /// False when something was given up or failed.
    fn run(mut self, threads: Vec<VcpuThread>) -> bool {
        // No request is taken any more. First: a vCPU may wait for the reset of an HBA.
        let mut stopped = Waited::new(self.control, |over| self.hbas.stop(over));
        self.control.exit();
        let begin = Instant::now();
        while !(has_ended(&threads) && stopped.is_over()) && self.patience.lasts_in_part(begin) {
            kick(&threads);
            self.events.turn(TURN);
        }
        let mut whole = self.close_images();
        // What the host has not answered for units that went before is in the threads still.
        let mut done = Waited::new(self.control, |over| self.hbas.end_threads(over));
        while !(has_ended(&threads) && stopped.is_over() && done.is_over()) && self.patience.lasts() {
            kick(&threads);
            self.events.turn(TURN);
        }
        whole &= done.is_over();
        if !stopped.is_over() {
            tracing::error!("an HBA was not taken out of service: the host does not answer");
            whole = false;
        }
        if !has_ended(&threads) {
            tracing::error!("a vCPU does not end");
            return false;
        }
        threads.into_iter().for_each(VcpuThread::join);
        whole
    }

    /// Closes all images at once; false when some are not closed.
    fn close_images(&mut self) -> bool {
        let begin = Instant::now();
        let Closing { names, closed } = self.hbas.close(self.control);
        let mut waiting: Vec<usize> = (0..names.len()).collect();
        let name = |number: usize| names.get(number).map_or("", String::as_str);
        let (mut good, mut answers, said) = (true, true, Cell::new(false));
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
                Err(TryRecvError::Disconnected) => {
                    answers = false;
                    break;
                }
                Err(_) if !self.patience.lasts() => break,
                Err(_) => self.events.turn(Duration::from_millis(50)),
            }
        }
        for &number in &waiting {
            let seconds = begin.elapsed().as_secs();
            if !answers {
                tracing::error!("{}: not closed: the I/O thread has ended", name(number));
                continue;
            }
            tracing::error!(
                "{}: given up after {seconds} s: the host does not answer, the image is not closed and stays locked",
                name(number)
            );
        }
        good && waiting.is_empty()
    }
}

fn has_ended(threads: &[VcpuThread]) -> bool {
    threads.iter().all(VcpuThread::has_ended)
}

/// Has vCPUs that run the guest leave it; a kick may come too early.
fn kick(threads: &[VcpuThread]) {
    threads.iter().filter(|thread| !thread.has_ended()).for_each(VcpuThread::kick);
}

/// What an `Over` stands for.
struct Waited {
    over: Receiver<()>,
    is_over: bool,
}

impl Waited {
    /// Of what `begin` begins.
    fn new(control: &Arc<Control>, begin: impl FnOnce(&Arc<Over>)) -> Self {
        let (over, done) = Over::new(control);
        begin(&over);
        Self { over: done, is_over: false }
    }

    fn is_over(&mut self) -> bool {
        self.is_over |= !matches!(self.over.try_recv(), Err(TryRecvError::Empty));
        self.is_over
    }
}

#[cfg(test)]
#[path = "ending_tests.rs"]
#[allow(clippy::unwrap_used)]
mod tests;
