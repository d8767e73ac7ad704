//! The fabric as a process.
//!
//! ```text
//! fabric [--control SOCKET] [--setup FILE] [--ports N] [--quiet] LINK[,LINK...]...
//! fabric tell SOCKET COMMAND...
//! ```
//!
//! Each argument is a fabric with its links: network interfaces at whose far ends hosts have theirs. The array has `N` target
//! ports at each fabric, one if nothing is said. `FILE` has commands; `tell` gives one to a process that runs.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use fabric::socket::{Batch, Socket, set_link, wait};
use fabric::{ETHERTYPE_FCOE, ETHERTYPE_FIP, HELP, Outbox, San};

/// How long `tell` waits for the other process to be there.
const PATIENCE: Duration = Duration::from_secs(10);
/// Bytes of frames that wait to be sent while more are looked at.
const ENOUGH: usize = 256 << 10;
/// Batches of one link before others have their turn.
const TURN: usize = 16;

type Result<T> = std::result::Result<T, String>;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let done = match words.split_first() {
        Some((first, rest)) if first == "tell" => tell(rest),
        _ => Options::read(&words).and_then(|options| Process::start(&options)?.run()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("fabric: {error}");
            ExitCode::FAILURE
        }
    }
}

#[derive(Default)]
struct Options {
    control: Option<String>,
    setup: Option<String>,
    ports: usize,
    quiet: bool,
    fabrics: Vec<Vec<String>>,
}

impl Options {
    fn read(words: &[String]) -> Result<Self> {
        let mut options = Self { ports: 1, ..Self::default() };
        let mut words = words.iter();
        while let Some(word) = words.next() {
            let mut value = || words.next().cloned().ok_or_else(|| format!("{word} needs a value"));
            match word.as_str() {
                "--control" => options.control = Some(value()?),
                "--setup" => options.setup = Some(value()?),
                "--ports" => options.ports = value()?.parse().map_err(|_| "--ports needs a number")?,
                "--quiet" => options.quiet = true,
                word if word.starts_with('-') => return Err(format!("{word} is no option\n{HELP}")),
                links => options.fabrics.push(links.split(',').map(str::to_owned).collect()),
            }
        }
        if options.fabrics.is_empty() || options.fabrics.len() > 100 {
            return Err(
                "name one link at least: fabric [--control SOCKET] [--setup FILE] [--ports N] [--quiet] \
                        LINK[,LINK...]..., or fabric tell SOCKET COMMAND"
                    .into(),
            );
        }
        Ok(options)
    }
}

/// Sockets of a link: for each type of frames one, and one that only sends.
struct Link {
    name: String,
    fip: Socket,
    fcoe: Socket,
    out: Socket,
}

/// Somebody who gives commands.
struct Client {
    stream: UnixStream,
    line: Vec<u8>,
}

struct Process {
    san: San,
    out: Outbox,
    links: Vec<Link>,
    listener: Option<UnixListener>,
    clients: Vec<Client>,
    start: Instant,
    quiet: bool,
    lost: usize,
}

impl Process {
    fn start(options: &Options) -> Result<Self> {
        let san = San::new(&options.fabrics, options.ports);
        let mut links = Vec::new();
        for name in san.links() {
            let open = |kind| Socket::open(name, kind).map_err(|error| format!("{name}: {error}"));
            let (fip, fcoe, out) = (open(ETHERTYPE_FIP)?, open(ETHERTYPE_FCOE)?, open(0)?);
            links.push(Link { name: name.to_owned(), fip, fcoe, out });
        }
        let mut process = Self {
            san,
            out: Outbox::default(),
            links,
            listener: None,
            clients: Vec::new(),
            start: Instant::now(),
            quiet: options.quiet,
            lost: 0,
        };
        if let Some(file) = &options.setup {
            let text = std::fs::read_to_string(file).map_err(|error| format!("{file}: {error}"))?;
            for (number, line) in text.lines().enumerate() {
                process.command(line).map_err(|error| format!("{file}:{}: {error}", number + 1))?;
            }
        }
        if let Some(path) = &options.control {
            // One of an earlier process.
            std::fs::remove_file(path).ok();
            let listener = UnixListener::bind(path).map_err(|error| format!("{path}: {error}"))?;
            listener.set_nonblocking(true).map_err(|error| error.to_string())?;
            process.listener = Some(listener);
        }
        Ok(process)
    }

    fn now(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn run(mut self) -> Result<()> {
        println!("ready");
        let mut batch = Batch::default();
        loop {
            let now = self.now();
            let next = self.san.tick(now, &mut self.out);
            self.flush();
            let ready =
                wait(&self.descriptors(), next.saturating_sub(now)).map_err(|error| error.to_string())?;
            for number in 0..self.links.len() {
                self.serve(number, &ready, &mut batch);
            }
            self.listen(&ready);
        }
    }

    fn descriptors(&self) -> Vec<RawFd> {
        let links = self.links.iter().flat_map(|link| [link.fip.as_raw_fd(), link.fcoe.as_raw_fd()]);
        let clients = self.clients.iter().map(|client| client.stream.as_raw_fd());
        links.chain(self.listener.iter().map(AsRawFd::as_raw_fd)).chain(clients).collect()
    }

    /// Takes what came in at a link.
    fn serve(&mut self, number: usize, ready: &[RawFd], batch: &mut Batch) {
        for is_fip in [true, false] {
            for _ in 0..TURN {
                let Some(link) = self.links.get(number) else { return };
                let socket = if is_fip { &link.fip } else { &link.fcoe };
                if !ready.contains(&socket.as_raw_fd()) {
                    break;
                }
                match socket.receive(batch) {
                    Ok(true) => {}
                    Ok(false) => break,
                    // The interface went down; both sockets hear of it.
                    Err(error) => {
                        if is_fip {
                            self.out.notes.push(format!("{}: {error}", link.name));
                            self.san.link_down(number, &mut self.out);
                        }
                        break;
                    }
                }
                let now = self.now();
                for frame in batch.frames() {
                    self.san.receive(number, frame, now, &mut self.out);
                    if self.out.len() > ENOUGH {
                        self.flush();
                    }
                }
                self.flush();
            }
        }
    }

    /// Sends what there is to send, and says what happened.
    fn flush(&mut self) {
        for (number, is_up) in std::mem::take(&mut self.out.links) {
            if let Some(link) = self.links.get(number)
                && let Err(error) = set_link(&link.name, is_up)
            {
                self.out.notes.push(format!("{}: {error}", link.name));
            }
        }
        if !self.out.is_empty() {
            let mut lost = 0;
            for (number, link) in self.links.iter().enumerate() {
                let frames: Vec<&[u8]> =
                    self.out.frames().filter(|(to, _)| *to == number).map(|(_, frame)| frame).collect();
                lost += link.out.send(&frames);
            }
            self.out.clear();
            if lost > 0 {
                self.lost += lost;
                self.out.notes.push(format!("{lost} frames could not be sent, {} in all", self.lost));
            }
        }
        for note in self.out.notes.drain(..) {
            if !self.quiet {
                eprintln!("[{:9.3}] {note}", self.start.elapsed().as_secs_f64());
            }
        }
    }

    fn command(&mut self, line: &str) -> Result<String> {
        let now = self.now();
        if !line.trim().is_empty() {
            self.out.notes.push(format!("> {line}"));
        }
        let said = self.san.command(line, now, &mut self.out);
        self.flush();
        said
    }

    /// Takes commands, a line each, and answers them.
    fn listen(&mut self, ready: &[RawFd]) {
        if let Some(listener) = &self.listener
            && ready.contains(&listener.as_raw_fd())
            && let Ok((stream, _)) = listener.accept()
            && stream.set_nonblocking(true).is_ok()
        {
            self.clients.push(Client { stream, line: Vec::new() });
        }
        for mut client in std::mem::take(&mut self.clients) {
            if !ready.contains(&client.stream.as_raw_fd()) || self.answer(&mut client) {
                self.clients.push(client);
            }
        }
    }

    /// Whether the client is still there.
    fn answer(&mut self, client: &mut Client) -> bool {
        let mut part = [0; 4096];
        let stays = match client.stream.read(&mut part) {
            Ok(0) => false,
            Ok(length) => {
                client.line.extend(part.iter().take(length));
                client.line.len() < 1 << 20
            }
            Err(error) => error.kind() == std::io::ErrorKind::WouldBlock,
        };
        while let Some(end) = client.line.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = client.line.drain(..=end).collect();
            let reply = match self.command(String::from_utf8_lossy(&line).trim()) {
                Ok(said) => format!("{said}ok\n"),
                Err(error) => format!("error: {error}\n"),
            };
            // Who does not read its answer keeps nothing waiting for long.
            let timeout = client.stream.set_write_timeout(Some(Duration::from_secs(1)));
            let blocks = client.stream.set_nonblocking(false).and(timeout);
            if blocks.and_then(|()| client.stream.write_all(reply.as_bytes())).is_err()
                || client.stream.set_nonblocking(true).is_err()
            {
                return false;
            }
        }
        stays
    }
}

/// Gives a command to a process that runs, prints what it says, and fails if the command did.
fn tell(words: &[String]) -> Result<()> {
    let (path, command) = words.split_first().ok_or("tell SOCKET COMMAND...")?;
    let end = Instant::now() + PATIENCE;
    let mut stream = loop {
        match UnixStream::connect(path) {
            Ok(stream) => break stream,
            Err(error) if Instant::now() > end => return Err(format!("{path}: {error}")),
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    };
    let failed = |error: std::io::Error| format!("{path}: {error}");
    writeln!(stream, "{}", command.join(" ")).map_err(failed)?;
    stream.shutdown(Shutdown::Write).map_err(failed)?;
    for line in BufReader::new(stream).lines() {
        let line = line.map_err(failed)?;
        match line.strip_prefix("error: ") {
            Some(error) => return Err(error.to_owned()),
            None if line == "ok" => return Ok(()),
            None => println!("{line}"),
        }
    }
    Err(format!("{path}: no answer"))
}
