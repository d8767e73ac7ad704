//! The console: the other end of the first serial port, as `[serial]` configures it.
//!
//! ```text
//!   vCPU threads -> Serial -> Output (ring) -> console thread -> terminal, file, pseudoterminal or socket
//!                   Serial <----------------- console thread <-
//! ```
//!
//! A terminal on standard input is raw while the machine runs: every key goes to the guest, Ctrl-C too. Ctrl-A starts
//! the keys that do not: Ctrl-A x quits, Ctrl-A h lists them. The terminal is given back when the console closes, and
//! also by a panic, a fatal signal, and while the process is stopped ([`Signals`]).

mod error;
mod escape;
mod link;
mod output;
mod pump;
mod signals;
mod sys;
mod terminal;

use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SendError};
use std::thread::JoinHandle;
use std::time::Duration;

use devices::platform::serial::Serial;
use devices::platform::sink::{NoSink, Sink};
use devices::threads::{self, Kind};

use crate::config::Serial as Mode;

use self::link::Link;
use self::output::{Output, Patience};
use self::pump::Pump;

pub use self::error::ConsoleError;
pub use self::signals::{Request, Signals, Watch, die, let_signals_end, suspend};
pub(crate) use self::terminal::has_raw_terminal;
pub use self::terminal::{explain_bus_errors, leave as give_back};

/// How long a connected but silent reader of a pseudoterminal or socket may hold up the guest.
const SLOW_READER: Duration = Duration::from_secs(1);
/// How long the end waits for the thread, which itself gives up on a reader earlier unless a write blocks.
const LAST_WAIT: Duration = Duration::from_secs(5);
/// The thread's stack: enough for its buffers and a log line.
const STACK: usize = 64 << 10;

/// The console. Dropping it does what [`Self::close`] does.
pub struct Console {
    output: Option<Arc<Output>>,
    waiting: Option<Waiting>,
    pty: Option<String>,
    /// It made a terminal raw, and has to give it back.
    terminal: bool,
    thread: Option<(JoinHandle<()>, Receiver<Link>)>,
}

/// What the thread will need.
struct Waiting {
    link: Link,
    escapes: bool,
}

impl Console {
    /// Opens the line's other end and, if that is a terminal, makes it raw. Output is gathered until [`Self::start`],
    /// which empties a file and places the link to a pseudoterminal.
    ///
    /// `raw_terminal` is told when the terminal becomes raw and when it is given back; it may run in a signal handler.
    pub fn open(mode: &Mode, raw_terminal: fn(bool)) -> Result<Self, ConsoleError> {
        let limited = Patience::Limited(SLOW_READER);
        let (link, patience) = match mode {
            Mode::Off => {
                return Ok(Self { output: None, waiting: None, pty: None, terminal: false, thread: None });
            }
            Mode::Stdio => return Self::on_stdio(raw_terminal),
            Mode::File(path) => (Link::file(path)?, Patience::Endless),
            Mode::Pty(link) => return Self::on_pty(link.as_deref()),
            Mode::Socket(path) => (Link::socket(path)?, limited),
        };
        let connected = matches!(mode, Mode::File(_));
        Self::with(link, patience, connected)
    }

    /// What [`Self::open`] would find wrong. Changes nothing.
    pub fn check(mode: &Mode) -> Result<(), ConsoleError> {
        match mode {
            Mode::Off | Mode::Stdio => Ok(()),
            Mode::File(path) => link::check_file(path),
            Mode::Pty(link) => Link::pty(link.as_deref()).map(drop),
            Mode::Socket(path) => link::check_socket(path),
        }
    }

    fn on_stdio(raw_terminal: fn(bool)) -> Result<Self, ConsoleError> {
        use std::os::fd::AsFd;
        let link = Link::stdio(io::stdin().as_fd(), io::stdout().as_fd(), raw_terminal)?;
        Self::with(link, Patience::Endless, true)
    }

    fn on_pty(link: Option<&Path>) -> Result<Self, ConsoleError> {
        let (link, path) = Link::pty(link)?;
        let mut console = Self::with(link, Patience::Limited(SLOW_READER), false)?;
        console.pty = Some(path);
        Ok(console)
    }

    fn with(link: Link, patience: Patience, connected: bool) -> Result<Self, ConsoleError> {
        let output = Output::new(patience, connected).map_err(ConsoleError::Resources)?;
        // Only a keyboard has no other way to quit; what a program sends is the guest's as it is.
        let terminal = link.is_terminal();
        let waiting = Some(Waiting { link, escapes: terminal });
        Ok(Self { output: Some(Arc::new(output)), waiting, pty: None, terminal, thread: None })
    }

    /// Where the serial port sends its bytes.
    pub fn sink(&self) -> Arc<dyn Sink> {
        match &self.output {
            Some(output) => output.clone(),
            None => Arc::new(NoSink),
        }
    }

    /// The path of the pseudoterminal, which is not known in advance; [`Self::start`] tells it on standard error.
    pub fn pty_path(&self) -> Option<&str> {
        self.pty.as_deref()
    }

    /// Connects the serial port. `quit` is called, on the console's thread, when the user types Ctrl-A x; it returns
    /// at once and lets the machine end.
    pub fn start(
        &mut self,
        serial: Arc<Serial>,
        quit: impl Fn() + Send + 'static,
    ) -> Result<(), ConsoleError> {
        let (Some(output), Some(Waiting { mut link, escapes })) = (&self.output, self.waiting.take()) else {
            return Ok(());
        };
        link.begin()?;
        if let Some(path) = &self.pty {
            // Not a log line: the user needs it at any log level. Without standard error nobody can be told.
            let _ = writeln!(io::stderr(), "vmm: the serial console is {path}");
        }
        let pump = Pump::new(link, output.clone(), serial, Box::new(quit), escapes);
        let (done, finished) = mpsc::sync_channel(1);
        let run = move || {
            let link = pump.run();
            // Its name is taken away by who waits. Where nobody does any more, it stays: this thread may not.
            if let Err(SendError(link)) = done.send(link) {
                std::mem::forget(link);
            }
        };
        let thread = threads::spawn_with_stack(Kind::Console, "console", STACK, run);
        self.thread = Some((thread.map_err(ConsoleError::Resources)?, finished));
        Ok(())
    }

    /// Has the console look at its terminal again. To be called after the process was stopped or continued: the terminal may be
    /// in the hands of another job now, or no longer.
    pub fn waker(&self) -> impl Fn() + Send + 'static {
        let output = self.output.clone();
        move || output.iter().for_each(|output| output.wake())
    }

    /// Output makes no vCPU wait until [`Self::bind`]. To be called before vCPUs are stopped.
    pub fn release(&self) {
        if let Some(output) = &self.output {
            output.release();
        }
    }

    /// A vCPU waits for a slow reader again, so that what is kept for one has a bound. To be called when they are stopped.
    pub fn bind(&self) {
        if let Some(output) = &self.output {
            output.bind();
        }
    }

    /// Writes out what is left, as long as the reader takes it, ends the thread and gives the terminal back. To be
    /// called when no vCPU runs any more.
    pub fn close(self) {
        drop(self);
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        if let Some(output) = &self.output {
            output.close();
        }
        if let Some((thread, finished)) = self.thread.take() {
            match finished.recv_timeout(LAST_WAIT) {
                Err(RecvTimeoutError::Timeout) => {
                    tracing::warn!("console: the reader blocks; the last output is lost");
                }
                _ if thread.join().is_err() => tracing::error!("console: the console thread failed"),
                _ => {}
            }
        }
        // Also where the thread still hangs in a write.
        if self.terminal {
            terminal::leave();
        }
    }
}

#[cfg(test)]
mod tests;
