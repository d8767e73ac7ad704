//! The machine's end: sends the list, hears what becomes of it, and asks to look anew.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use devices::threads::{self, Kind};

use super::message::{self, LENGTH};
use super::{News, Wanted, process};
use crate::config::{Sandbox, reason};
use crate::keeper::sys;
use crate::machine::receive;

/// How long the process may take longer than the port that has the most time.
const SLACK: Duration = Duration::from_secs(45);
/// How long it has to delete its ports: the kernel logs out at the fabric first.
const REMOVAL: Duration = Duration::from_secs(25);

/// The process, which waits for its list.
pub struct FcPorts(io::Result<UnixStream>);

/// The process at work. When it is dropped nothing ends: that is when the machine does, or [`Process::close`] is called.
pub struct Process(Arc<Link>);

/// The port of one HBA.
pub struct Port {
    /// What changes there, in the order in which it did. After [`FcPorts::begin`] everything is in it that was found at first, up to
    /// [`News::Looked`] of number 0; from then on it comes when it comes. It is at its end when the process is: nothing changes then any
    /// more, and nobody looks. Whoever takes from it may take its time, for it waits in memory.
    pub news: Receiver<News>,
    /// Asks to look.
    pub look: Look,
}

/// Has the process look at the fabric, and for logical units, now.
#[derive(Clone)]
pub struct Look {
    link: Arc<Link>,
    hba: usize,
}

/// What was asked for, of one HBA.
#[derive(Clone, Copy, Default)]
struct Asked {
    /// The last number.
    number: u64,
    /// The process has been told this one and has not done yet.
    told: Option<u64>,
}

struct Link {
    /// Written to with write(2), which every thread in the sandbox may. So little that it never waits: one message of each HBA, and the
    /// end.
    socket: File,
    asked: Mutex<Vec<Asked>>,
    /// The process has ended.
    over: (Mutex<bool>, Condvar),
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl FcPorts {
    /// Starts the process, which waits for its list. To be called while this process has one thread, and before it has namespaces of its
    /// own: it stays in those of the host.
    pub fn start(sandbox: Sandbox) -> Self {
        Self(started(sandbox))
    }

    /// Has the process create the ports of the list, in the order of which they are given back, and waits until the fabric has each and
    /// was looked at once, for as long as each may take. To be called on the main thread, before the sandbox and before the guest runs.
    /// It starts one thread, which takes what the process tells and gives it to [`Port::news`].
    ///
    /// # Errors
    /// A line for each HBA that has no port, with what to do. Then none of the ports is there any more, or soon.
    pub fn begin(self, wanted: &[Wanted]) -> Result<(Process, Vec<Port>)> {
        let socket = self.0.context("starting the process that has the Fibre Channel ports")?;
        begin(socket, wanted)
    }
}

fn started(sandbox: Sandbox) -> io::Result<UnixStream> {
    let (ours, theirs) = sys::pair()?;
    if sys::fork()?.is_none() {
        // Who is at the other end sees that it ended.
        let _ = process::live(theirs, sandbox);
        sys::end();
    }
    Ok(ours)
}

/// How it began with a port.
enum Begun {
    Yes,
    No(String),
}

fn begin(socket: UnixStream, wanted: &[Wanted]) -> Result<(Process, Vec<Port>)> {
    let what = "the process that has the Fibre Channel ports";
    for one in wanted {
        let entry =
            message::wanted(one).with_context(|| format!("{}: what it wants is too long", one.hba))?;
        sys::send(&socket, &entry, &[]).context(what)?;
    }
    sys::send(&socket, &message::go(), &[]).context(what)?;
    let writes = File::from(OwnedFd::from(socket.try_clone().context(what)?));
    let link = Arc::new(Link {
        socket: writes,
        asked: Mutex::new(vec![Asked::default(); wanted.len()]),
        over: Default::default(),
    });
    let (senders, receivers): (Vec<_>, Vec<_>) = wanted.iter().map(|_| mpsc::channel()).unzip();
    let (begun, told) = mpsc::channel();
    let of_thread = link.clone();
    threads::spawn(Kind::Returns, "fc-news", move || {
        let error = of_thread.serve(&socket, &senders, &begun);
        // Whoever waits for news sees their end.
        drop((senders, begun));
        let mut over = lock(&of_thread.over.0);
        *over = true;
        of_thread.over.1.notify_all();
        drop(over);
        tracing::debug!("the process that has the Fibre Channel ports has ended: {}", reason(&error));
    })
    .context(what)?;
    let process = Process(link.clone());
    if let Err(error) = wait(wanted, &told) {
        process.close();
        return Err(error);
    }
    let port = |(hba, news)| Port { news, look: Look { link: link.clone(), hba } };
    Ok((process, receivers.into_iter().enumerate().map(port).collect()))
}

/// Waits for the beginning of all.
fn wait(wanted: &[Wanted], told: &Receiver<(usize, Begun)>) -> Result<()> {
    let longest = wanted.iter().map(|one| one.timeout).max().unwrap_or(0);
    let until = Instant::now() + Duration::from_secs(longest.into()) + SLACK;
    let mut failed = Vec::new();
    let mut open: Vec<usize> = (0..wanted.len()).collect();
    while !open.is_empty() {
        match told.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok((hba, begun)) => {
                open.retain(|other| *other != hba);
                if let Begun::No(why) = begun {
                    let name = wanted.get(hba).map_or("", |one| &one.hba);
                    failed.push(format!("{name}: {why}"));
                }
            }
            Err(error) => {
                let why = match error {
                    mpsc::RecvTimeoutError::Timeout => {
                        "does not answer; see what the kernel says of the adapters (dmesg)"
                    }
                    mpsc::RecvTimeoutError::Disconnected => {
                        "has ended; see whether the kernel's log says why (dmesg), and start the machine anew"
                    }
                };
                let left: Vec<&str> = open.iter().filter_map(|hba| Some(&*wanted.get(*hba)?.hba)).collect();
                failed
                    .push(format!("{}: the process that has its Fibre Channel port {why}", left.join(", ")));
                break;
            }
        }
    }
    if failed.is_empty() { Ok(()) } else { bail!("{}", failed.join("; ")) }
}

impl Link {
    /// Takes what comes, until nothing comes any more.
    fn serve(
        &self,
        socket: &UnixStream,
        senders: &[Sender<News>],
        begun: &Sender<(usize, Begun)>,
    ) -> io::Error {
        let mut bytes = vec![0; LENGTH];
        loop {
            let (len, files) = match receive(socket, &mut bytes) {
                Ok((0, _)) => return io::ErrorKind::UnexpectedEof.into(),
                Ok((len, mut given)) => (len, given.take()),
                Err(error) => return error,
            };
            let message = bytes.get(..len).zip(files.ok());
            let Some((hba, news)) = message.and_then(|(message, files)| message::read_news(message, files))
            else {
                // Files that there were no descriptors for, most likely.
                devices::log_limited!(
                    error,
                    "a logical unit of a Fibre Channel port cannot be taken: this process may have no more files open (LimitNOFILE= of \
                     its service, or ulimit -n)"
                );
                continue;
            };
            match &news {
                News::Looked(number) => {
                    if *number == 0 {
                        let _ = begun.send((hba, Begun::Yes));
                    }
                    self.looked(hba, *number);
                }
                News::Failed(why) => drop(begun.send((hba, Begun::No(why.clone())))),
                _ => {}
            }
            if let Some(sender) = senders.get(hba)
                && let Err(mpsc::SendError(news)) = sender.send(news)
            {
                // Nobody wants it any more. Others do not wait for its nodes to close.
                let _ = threads::spawn(Kind::Returns, "return-close", move || drop(news));
            }
        }
    }

    /// The process has looked as often as this.
    fn looked(&self, hba: usize, number: u64) {
        let mut asked = lock(&self.asked);
        let Some(of_hba) = asked.get_mut(hba) else { return };
        of_hba.told = of_hba.told.filter(|told| *told > number);
        self.tell(hba, of_hba);
    }

    /// Tells the process what was asked for since.
    fn tell(&self, hba: usize, asked: &mut Asked) {
        if asked.told.is_none() && asked.number > 0 {
            let sent = (&self.socket).write(&message::look(hba, asked.number));
            // At the end of the process nobody is told anything any more.
            asked.told = sent.ok().map(|_| std::mem::take(&mut asked.number));
        }
    }
}

impl Look {
    /// Asks for a look; [`News::Looked`] with this number, or a larger one, comes after what was found. Numbers begin with 1 and grow. On
    /// any thread; it waits for nothing.
    pub fn at(&self, number: u64) {
        let mut asked = lock(&self.link.asked);
        if let Some(of_hba) = asked.get_mut(self.hba) {
            of_hba.number = number;
            self.link.tell(self.hba, of_hba);
        }
    }
}

impl Process {
    /// The machine ends, and its units have closed their devices: has the process delete the ports that it made, and waits for that, for a
    /// while. On the main thread, in the sandbox or not. The log says if it takes longer.
    pub fn close(self) {
        let _ = (&self.0.socket).write(&message::end());
        let (over, ended) = &self.0.over;
        let (over, _) = ended
            .wait_timeout_while(lock(over), REMOVAL, |over| !*over)
            .unwrap_or_else(PoisonError::into_inner);
        if !*over {
            tracing::warn!(
                "the virtual ports of the machine are not deleted yet; the process that does it (vmm-fcport) goes on with it, and vmm fc \
                 list shows what is left"
            );
        }
    }
}
