//! The console thread: moves bytes between the serial port and the other end of its line.

use std::collections::VecDeque;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use devices::platform::serial::Serial;

use super::escape::{EscapeParser, HELP, Typed};
use super::link::{Input, Link};
use super::output::Output;
use super::sys;

/// Time between two writes of a burst: long enough to gather bytes, too short to notice.
const PAUSE: Duration = Duration::from_millis(1);
/// Bytes of one write at most; as much as a pipe that polls as writable takes without blocking.
const CHUNK: usize = 4096;
/// Input that waits for the guest at most; then the sender waits. Large, because the escape keys are found only in what
/// has been read.
const MAX_INPUT: usize = 64 << 10;
/// How long a reader who takes nothing holds up the end.
const LAST_PATIENCE: Duration = Duration::from_secs(2);

/// Input on its way to the guest.
#[derive(Clone, Copy)]
enum Pending {
    Byte(u8),
    Break,
}

/// The state of the thread.
pub(super) struct Pump {
    link: Link,
    output: Arc<Output>,
    serial: Arc<Serial>,
    quit: Box<dyn Fn() + Send>,
    escapes: Option<EscapeParser>,
    pending: VecDeque<Pending>,
    /// The port took no more; its space event follows.
    refused: bool,
    /// Before then nothing is written unless much waits.
    next_write: Instant,
    /// The last write failed for good: whoever read is gone.
    broken: bool,
    /// When the end began, or the reader last took something since.
    closing_since: Option<Instant>,
}

impl Pump {
    /// `escapes`: look for Ctrl-A in the input.
    pub(super) fn new(
        link: Link,
        output: Arc<Output>,
        serial: Arc<Serial>,
        quit: Box<dyn Fn() + Send>,
        escapes: bool,
    ) -> Self {
        Self {
            link,
            output,
            serial,
            quit,
            escapes: escapes.then(EscapeParser::default),
            pending: VecDeque::new(),
            refused: false,
            next_write: Instant::now(),
            broken: false,
            closing_since: None,
        }
    }

    /// Runs until the output is closed and written out, and gives the link back: to take its name away is the main thread's, for
    /// the sandbox lets no other.
    pub(super) fn run(mut self) -> Link {
        while !self.finished() {
            if let Err(error) = self.step() {
                tracing::error!("console: {error}; the serial line is dead");
                self.output.set_connected(false);
                return self.link;
            }
        }
        let left = self.output.len();
        if left > 0 && !self.broken {
            tracing::warn!("console: the reader takes nothing; the last {left} bytes of output are lost");
        }
        self.link
    }

    fn finished(&mut self) -> bool {
        if !self.output.closing() {
            return false;
        }
        let since = *self.closing_since.get_or_insert_with(Instant::now);
        self.output.len() == 0 || self.link.output_fd().is_none() || since.elapsed() > LAST_PATIENCE
    }

    /// Waits for something to do, and does it.
    fn step(&mut self) -> std::io::Result<()> {
        let pause = self.next_write.checked_duration_since(Instant::now());
        let idle = self.output.about_to_sleep(pause.is_some());
        // Without events the entry still shows that the peer is gone.
        let wants_input = self.pending.len() < MAX_INPUT && self.link.input_open();
        let input_events = if wants_input { libc::POLLIN } else { 0 };
        let writable = self.link.output_fd().filter(|_| !idle);
        let space = self.refused.then(|| self.serial.space_event().as_raw_fd());
        let mut entries = [
            sys::entry(Some(self.output.wake_fd()), libc::POLLIN),
            sys::entry(space, libc::POLLIN),
            sys::entry(self.link.input_fd(), input_events),
            sys::entry(writable, libc::POLLOUT),
            sys::entry(self.link.listener_fd(), libc::POLLIN),
        ];
        let closing = self.closing_since.map(|_| LAST_PATIENCE / 4);
        let ask_again = self.link.ask_again();
        let timeout = [pause.filter(|_| idle), ask_again, closing].into_iter().flatten().min();
        sys::poll(&mut entries, timeout)?;
        let [woken, space, input, writable, listener] = entries.map(|entry| entry.revents);
        if idle || woken != 0 {
            self.output.awake(woken != 0);
        }
        if space != 0 {
            let _ = self.serial.space_event().read();
            self.feed();
        }
        if input != 0 {
            self.read(input & libc::POLLHUP != 0);
        }
        if writable != 0 {
            self.write();
        }
        if listener != 0 && self.link.accept() || ask_again.is_some() && self.link.ask() {
            devices::log_limited!(info, "console: connected");
            self.broken = false;
            self.output.set_connected(true);
        }
        Ok(())
    }

    fn read(&mut self, hung_up: bool) {
        let mut buffer = [0; 1024];
        match self.link.read(&mut buffer, hung_up) {
            Input::Bytes(count) => {
                for &byte in buffer.get(..count).unwrap_or_default() {
                    self.typed(byte);
                }
                self.feed();
            }
            Input::Nothing => {}
            Input::Ended => tracing::debug!("console: end of input"),
            Input::Left => self.left(),
        }
    }

    fn typed(&mut self, byte: u8) {
        let typed = self.escapes.as_mut().map_or(Typed::Byte(byte), |escapes| escapes.take(byte));
        match typed {
            Typed::Byte(byte) => self.pending.push_back(Pending::Byte(byte)),
            Typed::Break => self.pending.push_back(Pending::Break),
            Typed::Quit => {
                self.output.say("\r\nvmm: terminated by Ctrl-A x\r\n");
                (self.quit)();
            }
            Typed::Help => self.output.say(HELP),
            Typed::Nothing => {}
        }
    }

    /// Gives the port as much as it takes.
    fn feed(&mut self) {
        self.refused = false;
        while let Some(&first) = self.pending.front() {
            let taken = match first {
                Pending::Break => usize::from(self.serial.receive_break()),
                Pending::Byte(_) => {
                    let bytes: Vec<u8> = self.pending.iter().map_while(Pending::byte).take(64).collect();
                    let taken = self.serial.receive(&bytes);
                    self.refused = taken < bytes.len();
                    taken
                }
            };
            self.pending.drain(..taken);
            self.refused |= taken == 0;
            if self.refused {
                break;
            }
        }
    }

    fn write(&mut self) {
        let mut buffer = [0; CHUNK];
        let count = self.output.peek(&mut buffer);
        let Some(bytes) = buffer.get(..count).filter(|bytes| !bytes.is_empty()) else { return };
        match self.link.write(bytes) {
            Ok(0) => {}
            Ok(written) => {
                self.output.consume(written);
                self.next_write = Instant::now() + PAUSE;
                if self.closing_since.is_some() {
                    self.closing_since = Some(Instant::now());
                }
            }
            Err(error) => {
                // Said once for each reader.
                if !self.broken {
                    devices::log_limited!(warn, "console: output is lost: {error}");
                }
                self.broken = true;
                self.link.leave();
                self.left();
            }
        }
    }

    fn left(&mut self) {
        devices::log_limited!(info, "console: disconnected");
        self.output.set_connected(false);
        // A new peer did not type this.
        self.pending.clear();
        self.refused = false;
    }
}

impl Pending {
    fn byte(&self) -> Option<u8> {
        match self {
            Self::Byte(byte) => Some(*byte),
            Self::Break => None,
        }
    }
}
