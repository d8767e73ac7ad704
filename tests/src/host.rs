//! The place where guests run, as the test bed sees it: a connection to the agent there.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, anyhow, bail, ensure};

use crate::wire::{self, Frame, GREETING, GREETING_START, Kind, Launch};

/// A connection to an agent. Clones share it.
#[derive(Clone)]
pub struct Host {
    shared: Arc<Shared>,
}

struct Shared {
    out: Mutex<UnixStream>,
    jobs: Jobs,
    next: AtomicU32,
}

/// Where the frames of each job go. None once the agent is gone.
type Jobs = Arc<Mutex<Option<HashMap<u32, Sender<Frame>>>>>;

/// What a command that ran to its end left.
#[derive(Debug)]
pub struct Output {
    /// How it ended.
    pub status: ExitStatus,
    /// What it printed, standard output first.
    pub text: String,
}

impl Host {
    /// Greets the agent at the other end of the stream; fails if it does not answer in time.
    pub fn connect(stream: UnixStream, patience: Duration) -> Result<Self> {
        let mut greeting = Vec::from(GREETING_START);
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos() as u64;
        greeting.extend_from_slice(&now.to_le_bytes());
        let mut from = stream.try_clone()?;
        (&stream).write_all(&greeting)?;
        from.set_read_timeout(Some(patience))?;
        let mut last = Vec::new();
        let mut byte = [0; 1];
        while last != greeting {
            if last.len() == GREETING {
                last.remove(0);
            }
            from.read_exact(&mut byte).context("the agent does not answer")?;
            last.extend_from_slice(&byte);
        }
        from.set_read_timeout(None)?;
        let jobs: Jobs = Arc::new(Mutex::new(Some(HashMap::new())));
        let readers = Arc::clone(&jobs);
        std::thread::spawn(move || {
            while let Ok(frame) = Frame::read(&mut from) {
                if let Some(job) = lock(&readers).as_ref().and_then(|jobs| jobs.get(&frame.job)) {
                    job.send(frame).ok();
                }
            }
            // Dropping the senders tells all who wait that nothing comes any more.
            lock(&readers).take();
        });
        Ok(Self { shared: Arc::new(Shared { out: Mutex::new(stream), jobs, next: AtomicU32::new(1) }) })
    }

    /// Whether the agent can still be reached, as far as is known.
    pub fn is_there(&self) -> bool {
        lock(&self.shared.jobs).is_some()
    }

    fn request(&self, kind: Kind, payload: &[u8]) -> Result<Process> {
        let job = self.shared.next.fetch_add(1, Ordering::Relaxed);
        let (sender, frames) = channel();
        lock(&self.shared.jobs).as_mut().context("the agent is gone")?.insert(job, sender);
        let process = Process { host: self.clone(), job, frames, pid: 0, ended: None };
        process.send(kind, payload)?;
        Ok(process)
    }

    fn send(&self, kind: Kind, job: u32, payload: &[u8]) -> Result<()> {
        let mut out = lock(&self.shared.out);
        wire::write(&mut *out, kind, job, payload).context("sending to the agent")
    }

    /// Starts a command.
    pub fn start(&self, launch: &Launch) -> Result<Process> {
        let mut process = self.request(Kind::Launch, toml::to_string(launch)?.as_bytes())?;
        let frame = process.frames.recv().map_err(|_| gone())?;
        if frame.kind == Kind::Failed {
            bail!("{}", String::from_utf8_lossy(&frame.payload));
        }
        process.pid = number(&frame.payload)?;
        Ok(process)
    }

    /// Runs a command to its end, for at most `limit`.
    pub fn run(&self, words: &[&str], limit: Duration) -> Result<Output> {
        let words = words.iter().map(|word| (*word).to_string()).collect();
        let mut process = self.start(&Launch { words, ..Launch::default() })?;
        process.end_input()?;
        process.finish(limit)
    }

    /// Runs a shell text to its end and returns what it printed; fails if it fails.
    pub fn shell(&self, script: &str, seconds: u64) -> Result<String> {
        let output = self.run(&["sh", "-c", script], Duration::from_secs(seconds))?;
        ensure!(output.status.success(), "{}: {script}\n{}", output.status, output.text);
        Ok(output.text)
    }

    /// Writes a file there.
    pub fn put(&self, path: &str, content: &[u8]) -> Result<()> {
        let payload = [path.as_bytes(), &[0], content].concat();
        self.answer(Kind::Put, &payload).map(|_| ())
    }

    /// Reads a file there.
    pub fn get(&self, path: &str) -> Result<Vec<u8>> {
        self.answer(Kind::Get, path.as_bytes())
    }

    fn answer(&self, kind: Kind, payload: &[u8]) -> Result<Vec<u8>> {
        let frame = self.request(kind, payload)?.frames.recv().map_err(|_| gone())?;
        ensure!(frame.kind == Kind::Data, "{}", String::from_utf8_lossy(&frame.payload));
        Ok(frame.payload)
    }
}

/// Something a running command did.
#[derive(Debug)]
pub enum Event {
    /// It printed this on standard output, or on its terminal.
    Output(Vec<u8>),
    /// It printed this on standard error.
    Errors(Vec<u8>),
    /// It ended.
    Ended(ExitStatus),
    /// Nothing, for the time given.
    Nothing,
}

/// A command that was started. It is killed when this is dropped.
pub struct Process {
    host: Host,
    job: u32,
    frames: Receiver<Frame>,
    pid: u32,
    ended: Option<ExitStatus>,
}

impl Process {
    /// Its process id, in the place where it runs.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// How it ended, if it was seen to end.
    pub fn ended(&self) -> Option<ExitStatus> {
        self.ended
    }

    /// Writes to its standard input.
    pub fn input(&self, bytes: &[u8]) -> Result<()> {
        if bytes.is_empty() { Ok(()) } else { self.send(Kind::Input, bytes) }
    }

    /// Something that other threads can write to its standard input with.
    pub fn keyboard(&self) -> Keyboard {
        Keyboard { host: self.host.clone(), job: self.job }
    }

    /// Closes its standard input.
    pub fn end_input(&self) -> Result<()> {
        self.send(Kind::Input, &[])
    }

    /// Sends a signal to it and its children.
    pub fn signal(&self, number: i32) -> Result<()> {
        self.send(Kind::Signal, &[u8::try_from(number)?])
    }

    /// Waits for the next thing it does.
    pub fn next(&mut self, patience: Duration) -> Result<Event> {
        let frame = match self.frames.recv_timeout(patience) {
            Ok(frame) => frame,
            Err(RecvTimeoutError::Timeout) => return Ok(Event::Nothing),
            Err(RecvTimeoutError::Disconnected) => return Err(gone()),
        };
        Ok(match frame.kind {
            Kind::Output => Event::Output(frame.payload),
            Kind::Errors => Event::Errors(frame.payload),
            Kind::Ended => {
                let status = ExitStatus::from_raw(number(&frame.payload)?.cast_signed());
                self.ended = Some(status);
                Event::Ended(status)
            }
            _ => bail!("{}", String::from_utf8_lossy(&frame.payload)),
        })
    }

    /// Collects what it prints until it ends, for at most `limit`.
    pub fn finish(&mut self, limit: Duration) -> Result<Output> {
        let end = Instant::now() + limit;
        let (mut output, mut errors) = (Vec::new(), Vec::new());
        loop {
            match self.next(end.saturating_duration_since(Instant::now()))? {
                Event::Output(bytes) => output.extend(bytes),
                Event::Errors(bytes) => errors.extend(bytes),
                Event::Ended(status) => {
                    let text = String::from_utf8_lossy(&[output, errors].concat()).into_owned();
                    return Ok(Output { status, text });
                }
                Event::Nothing => bail!(
                    "not done after {} s; so far:\n{}",
                    limit.as_secs(),
                    String::from_utf8_lossy(&[output, errors].concat())
                ),
            }
        }
    }

    fn send(&self, kind: Kind, payload: &[u8]) -> Result<()> {
        self.host.send(kind, self.job, payload)
    }
}

/// The standard input of a running command.
pub struct Keyboard {
    host: Host,
    job: u32,
}

impl Keyboard {
    /// Types these bytes.
    pub fn input(&self, bytes: &[u8]) -> Result<()> {
        if bytes.is_empty() { Ok(()) } else { self.host.send(Kind::Input, self.job, bytes) }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.pid != 0 && self.ended.is_none() {
            self.signal(libc::SIGKILL).ok();
        }
        if let Some(jobs) = lock(&self.host.shared.jobs).as_mut() {
            jobs.remove(&self.job);
        }
    }
}

fn gone() -> anyhow::Error {
    anyhow!("the agent went away")
}

fn number(payload: &[u8]) -> Result<u32> {
    Ok(u32::from_le_bytes(payload.try_into().context("a number of another size than 4 bytes")?))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
