//! The agent: runs where the guests run and does there what the test bed asks for.
//!
//! When the test bed goes away, so do all processes the agent started.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{Error, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

use crate::wire::{self, Frame, GREETING, GREETING_START, Kind, Launch};

/// How long output may still arrive after its command has ended.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Serves the virtio-serial port with this name, one test bed after the other, for ever.
pub fn serve_port(name: &str) -> Result<()> {
    let device = find_port(name)?;
    let port = OpenOptions::new().read(true).write(true).open(&device);
    let port = port.with_context(|| format!("opening {}", device.display()))?;
    loop {
        match serve(&port) {
            Err(error) if error.kind() != std::io::ErrorKind::UnexpectedEof => eprintln!("agent: {error}"),
            _ => (),
        }
        // A port without anyone at its other end reads as ended.
        thread::sleep(Duration::from_millis(50));
    }
}

/// Serves the socket that is this process's standard input, until it closes.
pub fn serve_input() -> Result<()> {
    use std::os::fd::AsFd;
    let socket = std::io::stdin().as_fd().try_clone_to_owned()?;
    serve(&File::from(socket)).context("the test bed went away")
}

fn find_port(name: &str) -> Result<PathBuf> {
    for _ in 0..100 {
        for entry in std::fs::read_dir("/sys/class/virtio-ports").into_iter().flatten().flatten() {
            let found = std::fs::read_to_string(entry.path().join("name")).unwrap_or_default();
            if found.trim() == name {
                return Ok(Path::new("/dev").join(entry.file_name()));
            }
        }
        thread::sleep(Duration::from_millis(50));
    }
    bail!("there is no virtio-serial port called {name}")
}

/// What a running command can be reached by.
struct Job {
    pid: Pid,
    input: Sender<Vec<u8>>,
}

struct Agent {
    out: Mutex<File>,
    jobs: Mutex<HashMap<u32, Job>>,
}

fn serve(stream: &File) -> Result<(), Error> {
    let mut from = stream.try_clone()?;
    let greeting = read_greeting(&mut from)?;
    let agent = Arc::new(Agent { out: Mutex::new(stream.try_clone()?), jobs: Mutex::default() });
    lock(&agent.out).write_all(&greeting)?;
    let error = loop {
        match Frame::read(&mut from) {
            Ok(frame) => agent.handle(frame),
            Err(error) => break error,
        }
    };
    for job in lock(&agent.jobs).values() {
        job.signal(Signal::KILL);
    }
    Err(error)
}

/// Skips what is not a greeting, then returns the greeting.
fn read_greeting(from: &mut impl Read) -> Result<Vec<u8>, Error> {
    let mut last = Vec::with_capacity(GREETING);
    let mut byte = [0; 1];
    while !(last.len() == GREETING && last.starts_with(GREETING_START)) {
        if last.len() == GREETING {
            last.remove(0);
        }
        from.read_exact(&mut byte)?;
        last.extend_from_slice(&byte);
    }
    Ok(last)
}

impl Job {
    fn signal(&self, signal: Signal) {
        if kill_process_group(self.pid, signal).is_err() {
            // The group is not there yet; the process is.
            kill_process(self.pid, signal).ok();
        }
    }
}

impl Agent {
    fn send(&self, kind: Kind, job: u32, payload: &[u8]) {
        // If the test bed is gone, the reading side notices.
        wire::write(&mut *lock(&self.out), kind, job, payload).ok();
    }

    fn handle(self: &Arc<Self>, frame: Frame) {
        let Frame { kind, job, payload } = frame;
        let result = match kind {
            Kind::Launch => self.launch(job, &payload),
            Kind::Input => self.with_job(job, |job| drop(job.input.send(payload))),
            Kind::Signal => self.with_job(job, |job| {
                let number = payload.first().copied().map(i32::from);
                if let Some(signal) = number.and_then(Signal::from_named_raw) {
                    job.signal(signal);
                }
            }),
            Kind::Put => put(&payload).map(|()| self.send(Kind::Data, job, &[])),
            Kind::Get => get(&payload).map(|data| self.send(Kind::Data, job, &data)),
            _ => Ok(()),
        };
        if let Err(error) = result {
            self.send(Kind::Failed, job, format!("{error:#}").as_bytes());
        }
    }

    fn with_job(&self, job: u32, then: impl FnOnce(&Job)) -> Result<()> {
        if let Some(job) = lock(&self.jobs).get(&job) {
            then(job);
        }
        Ok(())
    }

    fn launch(self: &Arc<Self>, job: u32, payload: &[u8]) -> Result<()> {
        let launch: Launch = toml::from_str(std::str::from_utf8(payload)?)?;
        let mut command = command(&launch)?;
        let (mut child, streams, input) = match launch.terminal {
            Some(size) => in_terminal(&mut command, size)?,
            None => with_pipes(&mut command)?,
        };
        let pid = Pid::from_child(&child);
        let (sender, chunks) = channel::<Vec<u8>>();
        lock(&self.jobs).insert(job, Job { pid, input: sender });
        self.send(Kind::Started, job, &child.id().to_le_bytes());
        thread::spawn(move || {
            let mut input = input;
            // An empty chunk is the end of the input, and drops the pipe.
            for chunk in chunks.iter().take_while(|chunk| !chunk.is_empty()) {
                if input.write_all(&chunk).and_then(|()| input.flush()).is_err() {
                    break;
                }
            }
        });
        let (open, closed) = channel::<()>();
        for (kind, stream) in streams {
            let (agent, open) = (Arc::clone(self), open.clone());
            thread::spawn(move || {
                agent.forward(kind, job, stream);
                drop(open);
            });
        }
        drop(open);
        let agent = Arc::clone(self);
        thread::spawn(move || {
            let status = child.wait().map_or(-1, |status| status.into_raw());
            closed.recv_timeout(LAST_WORDS).ok();
            lock(&agent.jobs).remove(&job);
            agent.send(Kind::Ended, job, &status.to_le_bytes());
        });
        Ok(())
    }

    fn forward(&self, kind: Kind, job: u32, mut stream: File) {
        let mut buffer = vec![0; 32 << 10];
        while let Ok(count @ 1..) = stream.read(&mut buffer) {
            self.send(kind, job, buffer.get(..count).unwrap_or_default());
        }
    }
}

fn command(launch: &Launch) -> Result<Command> {
    let mut words = launch.words.iter();
    let program = words.next().context("no program to start")?;
    let mut command = if launch.terminal.is_some() {
        let mut command = Command::new("setsid");
        command.arg("--ctty").arg(program);
        command
    } else {
        let mut command = Command::new(program);
        command.process_group(0);
        command
    };
    command.args(words).envs(launch.env.iter().map(|(name, value)| (name, value)));
    if let Some(dir) = &launch.dir {
        command.current_dir(dir);
    }
    Ok(command)
}

type Started = (Child, Vec<(Kind, File)>, File);

fn with_pipes(command: &mut Command) -> Result<Started> {
    let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = child.with_context(|| format!("starting {}", command.get_program().to_string_lossy()))?;
    let (Some(input), Some(output), Some(errors)) =
        (child.stdin.take(), child.stdout.take(), child.stderr.take())
    else {
        bail!("a started command has no pipes");
    };
    let file = |descriptor: OwnedFd| File::from(descriptor);
    let streams = vec![(Kind::Output, file(output.into())), (Kind::Errors, file(errors.into()))];
    Ok((child, streams, file(input.into())))
}

fn in_terminal(command: &mut Command, (rows, columns): (u16, u16)) -> Result<Started> {
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    grantpt(&master)?;
    unlockpt(&master)?;
    let name = ptsname(&master, Vec::new())?;
    tcsetwinsize(&master, Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 })?;
    let slave = OpenOptions::new().read(true).write(true).open(name.to_str()?)?;
    let child = command.stdin(slave.try_clone()?).stdout(slave.try_clone()?).stderr(slave).spawn()?;
    // The command holds the other copies of the terminal: without this it never reads as ended.
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let master = File::from(master);
    Ok((child, vec![(Kind::Output, master.try_clone()?)], master))
}

fn put(payload: &[u8]) -> Result<()> {
    let end = payload.iter().position(|byte| *byte == 0).context("a path has no end")?;
    let (path, content) = payload.split_at(end);
    let path = std::str::from_utf8(path)?;
    std::fs::write(path, content.get(1..).unwrap_or_default()).with_context(|| format!("writing {path}"))
}

fn get(payload: &[u8]) -> Result<Vec<u8>> {
    let path = std::str::from_utf8(payload)?;
    std::fs::read(path).with_context(|| format!("reading {path}"))
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
