//! The machine's end: sends the list, hears what becomes of it, and asks to look anew.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use devices::threads::{self, Kind};
use hba_virtio_scsi::fc::{Active, Names};

use super::message::{self, LENGTH, REFUSED};
use super::{HostPort, News, Origin, Refused, Wanted, place, process};
use crate::config::{Sandbox, reason};
use crate::keeper::sys;
use crate::machine::receive;

/// How long the process may take longer than the port that has the most time: it waits for others, and says why there is no port once it
/// has deleted what it had made of it, so that what is left is said, too.
const SLACK: Duration = Duration::from_secs(45).saturating_add(fc::vport::DELETION);
/// How long a regular end waits until its ports are deleted: the kernel logs out at the fabric first.
pub const REMOVAL: Duration = Duration::from_secs(25);
/// After how long the end says what it waits for.
const SLOW_END: Duration = Duration::from_secs(3);
/// How often to ask whether to go on waiting.
const ASK_AGAIN: Duration = Duration::from_millis(50);

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
#[derive(Clone, Default)]
struct Asked {
    /// The last number.
    number: u64,
    /// The process has been told this one and has not done yet.
    told: Option<u64>,
    /// What was refused and the process has not been told; it has not heard yet what it was told.
    refused: BTreeSet<Refused>,
    refusing: bool,
}

struct Link {
    /// Written to with write(2), which every thread in the sandbox may. So little that it does not wait: three messages of each HBA, three of
    /// each port that its guest may have (`vports`), and the end.
    socket: File,
    asked: Mutex<Vec<Asked>>,
    /// What is known of the process and its ports.
    known: (Mutex<Known>, Condvar),
    /// What messages call the HBAs.
    names: Vec<String>,
}

/// What is known of the process and its ports.
#[derive(Default)]
struct Known {
    /// It has ended.
    over: bool,
    /// The ports that go with the machine, by HBA and WWPN, until they are deleted; and why one is not.
    made: BTreeMap<(usize, u64), (HostPort, Option<String>)>,
    /// By HBA and WWPN, why a port is still there that was given up while it was made.
    given_up: BTreeMap<(usize, u64), String>,
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
    /// What a former life has left has to go first.
    Later,
}

pub(super) fn begin(socket: UnixStream, wanted: &[Wanted]) -> Result<(Process, Vec<Port>)> {
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
        known: Default::default(),
        names: wanted.iter().map(|one| one.hba.clone()).collect(),
    });
    let (senders, receivers): (Vec<_>, Vec<_>) = wanted.iter().map(|_| mpsc::channel()).unzip();
    let (begun, told) = mpsc::channel();
    let of_thread = link.clone();
    threads::spawn(Kind::Returns, "fc-news", move || {
        let error = of_thread.serve(&socket, &senders, &begun);
        // Whoever waits for news sees their end.
        drop((senders, begun));
        of_thread.note(|known| known.over = true);
        tracing::debug!("the process that has the Fibre Channel ports has ended: {}", reason(&error));
    })
    .context(what)?;
    let process = Process(link.clone());
    if let Err(error) = wait(wanted, &told) {
        let until = Instant::now() + REMOVAL;
        process.close(|| Instant::now() < until);
        return Err(error);
    }
    let port = |(hba, news)| Port { news, look: Look { link: link.clone(), hba } };
    Ok((process, receivers.into_iter().enumerate().map(port).collect()))
}

/// Waits for the beginning of all.
fn wait(wanted: &[Wanted], told: &Receiver<(usize, Begun)>) -> Result<()> {
    let longest = wanted.iter().map(|one| one.timeout).max().unwrap_or(0);
    let mut until = Instant::now() + Duration::from_secs(longest.into()) + SLACK;
    let mut later = false;
    let mut failed = Vec::new();
    let mut open: Vec<usize> = (0..wanted.len()).collect();
    while !open.is_empty() {
        match told.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok((_, Begun::Later)) => {
                if !std::mem::replace(&mut later, true) {
                    until += Duration::from_secs(longest.into()) + fc::vport::DELETION;
                }
            }
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
                        "has ended; see whether the kernel's log says why (dmesg), and start the machine anew, which deletes what it may \
                         have left"
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
        let (mut bytes, mut reset) = (vec![0; LENGTH], false);
        loop {
            let (len, files) = match receive(socket, &mut bytes) {
                Ok((0, _)) => return io::ErrorKind::UnexpectedEof.into(),
                Ok((len, mut given)) => (len, given.take()),
                // It has ended without having read all. What it had said before comes after this, which is told once.
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset && !reset => {
                    reset = true;
                    continue;
                }
                Err(error) => return error,
            };
            let message = bytes.get(..len).zip(files.ok());
            let Some((hba, news)) = message.and_then(|(message, files)| message::read_news(message, files))
            else {
                // Files that there were no descriptors for, most likely.
                devices::log_limited!(
                    error,
                    "a logical unit of a Fibre Channel port cannot be taken: this process may have no more files open (LimitNOFILE= of \
                     its service, or ulimit -n); it is tried again"
                );
                if let Some((slot, refused)) = bytes.get(..len).and_then(message::without_files) {
                    self.refuse(place(self.names.len(), slot).0, refused);
                }
                continue;
            };
            let (hba, vport) = place(self.names.len(), hba);
            match &news {
                News::Heard => {
                    self.heard(hba);
                    continue;
                }
                News::Looked(number) => {
                    if *number == 0 {
                        let _ = begun.send((hba, Begun::Yes));
                    }
                    self.looked(hba, *number);
                }
                News::Failed(why) if vport == 0 => drop(begun.send((hba, Begun::No(why.clone())))),
                News::Port(port) | News::Other(_, port) if port.origin == Origin::Made => {
                    let of = (hba, port.wwpn);
                    self.note(|known| {
                        known.given_up.remove(&of);
                        known.made.insert(of, ((**port).clone(), None));
                    });
                }
                // Those who wait for news hear nothing before the start.
                News::Waits(line) => {
                    tracing::warn!("{}: {line}", self.name(hba));
                    let _ = begun.send((hba, Begun::Later));
                    continue;
                }
                News::Closed(wwpn, why) => {
                    self.note(|known| match (why, known.made.get_mut(&(hba, *wwpn))) {
                        (Some(why), Some((_, kept))) => *kept = Some(why.clone()),
                        (Some(why), None) => drop(known.given_up.insert((hba, *wwpn), why.clone())),
                        _ => {
                            known.given_up.remove(&(hba, *wwpn));
                            known.made.remove(&(hba, *wwpn));
                        }
                    });
                    if vport == 0 {
                        continue;
                    }
                }
                _ => {}
            }
            let news = if vport == 0 { news } else { News::Of(vport, Box::new(news)) };
            if let Some(sender) = senders.get(hba)
                && let Err(mpsc::SendError(news)) = sender.send(news)
            {
                // Nobody wants it any more. Others do not wait for its nodes to close.
                let _ = threads::spawn(Kind::Returns, "return-close", move || drop(news));
            }
        }
    }

    /// What messages call an HBA.
    fn name(&self, hba: usize) -> &str {
        self.names.get(hba).map_or("", String::as_str)
    }

    /// Something more is known.
    fn note(&self, what: impl FnOnce(&mut Known)) {
        what(&mut lock(&self.known.0));
        self.known.1.notify_all();
    }

    /// The process has looked as often as this.
    fn looked(&self, hba: usize, number: u64) {
        let mut asked = lock(&self.asked);
        let Some(of_hba) = asked.get_mut(hba) else { return };
        of_hba.told = of_hba.told.filter(|told| *told > number);
        self.tell(hba, of_hba);
    }

    /// A unit was not taken.
    fn refuse(&self, hba: usize, refused: Refused) {
        let mut asked = lock(&self.asked);
        let Some(of_hba) = asked.get_mut(hba) else { return };
        of_hba.refused.insert(refused);
        self.tell_refused(hba, of_hba);
    }

    /// The process has heard what was refused.
    fn heard(&self, hba: usize) {
        let mut asked = lock(&self.asked);
        let Some(of_hba) = asked.get_mut(hba) else { return };
        of_hba.refusing = false;
        self.tell_refused(hba, of_hba);
    }

    /// Tells the process what was refused since.
    fn tell_refused(&self, hba: usize, asked: &mut Asked) {
        if asked.refusing || asked.refused.is_empty() {
            return;
        }
        let all: Vec<Refused> = asked.refused.iter().take(REFUSED).copied().collect();
        asked.refused.retain(|refused| !all.contains(refused));
        asked.refusing = (&self.socket).write(&message::refused(hba, &all)).is_ok();
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

impl Look {
    /// Has the port log in with these of its names; [`News::Activated`] with this number says what became of that. On any thread; it waits
    /// for nothing.
    ///
    /// # Errors
    /// The process has ended.
    pub fn activate(&self, number: u64, active: Active) -> io::Result<()> {
        (&self.link.socket).write(&message::activate(self.hba, number, active)).map(drop)
    }

    /// Has a port created that the guest wants, by a number from 1 on that no other one has; [`News::Of`] says what becomes of it. On any
    /// thread; it waits for nothing.
    ///
    /// # Errors
    /// The process has ended.
    pub fn create(&self, vport: u16, names: Names) -> io::Result<()> {
        (&self.link.socket).write(&message::create(self.hba, vport, names)).map(drop)
    }

    /// Has that deleted: [`News::Closed`] of it says when that is done.
    ///
    /// # Errors
    /// The process has ended.
    pub fn delete(&self, vport: u16) -> io::Result<()> {
        (&self.link.socket).write(&message::delete(self.hba, vport)).map(drop)
    }

    /// Says that a unit was not taken, as it was told of: it is told of again, later. On any thread; it waits for nothing.
    pub fn refuse(&self, refused: Refused) {
        self.link.refuse(self.hba, refused);
    }
}

impl Process {
    /// The machine ends, and its units have closed their devices: has the process delete the ports that it made, and waits for that as
    /// long as `goes_on` says, which is asked again and again. In the sandbox or not. The log says what is not deleted.
    pub fn close(self, goes_on: impl FnMut() -> bool) {
        let Left { errors, warning } = self.closed(goes_on);
        errors.iter().for_each(|line| tracing::error!("{line}"));
        warning.iter().for_each(|line| tracing::warn!("{line}"));
    }

    /// The same, with what the log is to say.
    pub(super) fn closed(self, mut goes_on: impl FnMut() -> bool) -> Left {
        let link = &self.0;
        let _ = (&link.socket).write(&message::end());
        let (begin, mut said) = (Instant::now(), false);
        loop {
            let (known, changed) = &link.known;
            let waiting = changed.wait_timeout_while(lock(known), ASK_AGAIN, |known| !known.over);
            let known = waiting.unwrap_or_else(PoisonError::into_inner).0;
            if known.over {
                break;
            }
            if begin.elapsed() > SLOW_END && !said {
                said = true;
                tracing::warn!(
                    "the end waits until {} deleted; another signal or quit leaves that to the process vmm-fcport",
                    are(&known.made.values().filter(|(_, kept)| kept.is_none()).collect::<Vec<_>>())
                );
            }
            drop(known);
            if !goes_on() {
                break;
            }
        }
        link.left()
    }
}

/// Virtual ports as the subject of a sentence.
fn are(ports: &[&(HostPort, Option<String>)]) -> String {
    let names: Vec<String> = ports.iter().map(|(port, _)| format!("{:016x}", port.wwpn)).collect();
    match &names[..] {
        [] => "the virtual ports of the machine are".into(),
        [one] => format!("the virtual port {one} is"),
        all => format!("the virtual ports {} are", all.join(", ")),
    }
}

/// What the operator reads of ports that are not deleted.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Left {
    /// Of ports that nobody deletes any more.
    pub(super) errors: Vec<String>,
    /// Of those that the process is about to delete.
    pub(super) warning: Option<String>,
}

impl Link {
    fn left(&self) -> Left {
        let known = lock(&self.known.0);
        let (mut left, mut going) = (Left::default(), Vec::new());
        for ((hba, _), port) in &known.made {
            let (hba, (HostPort { wwpn, vport, .. }, kept)) = (self.name(*hba), port);
            match kept {
                Some(why) => left.errors.push(format!(
                    "{hba}: its virtual port {wwpn:016x} ({vport}) is still there, and vmm fc clean tries again to delete it: {why}"
                )),
                None if known.over => left.errors.push(format!(
                    "{hba}: its virtual port {wwpn:016x} ({vport}) may still be there, for the process that had it (vmm-fcport) has ended \
                     without deleting it; vmm fc clean does that"
                )),
                None => going.push(port),
            }
        }
        for ((hba, wwpn), why) in &known.given_up {
            let hba = self.name(*hba);
            left.errors.push(format!(
                "{hba}: the virtual port {wwpn:016x} that was to be its own is still there, and vmm fc clean tries again to delete it: {why}"
            ));
        }
        left.warning = (!going.is_empty()).then(|| {
            format!(
                "{} not deleted yet; the process that does it (vmm-fcport) goes on with it, and vmm fc list shows what is left",
                are(&going)
            )
        });
        left
    }
}

#[cfg(test)]
#[path = "machine_tests.rs"]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests;
