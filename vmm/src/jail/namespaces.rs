//! Namespaces of its own: what the kernel shows to this process alone (namespaces(7)).
//!
//! A user namespace needs a process with one thread, so it is made first of all. It gives an ordinary user the right to make the
//! others, and to nothing of the host. Root has that right, and needs its other ones to open what the machine has: it gets no
//! user namespace. The kernel takes long to make a network, so a thread has it made while the machine is built, and at the end
//! of the start all threads go there. Where the host lets no process have them, the machine starts without: a child [tries](trial)
//! first.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, IntoRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use anyhow::{Result, bail};
use devices::threads::{self, Kind};

use super::capabilities::{self, ADMIN};
use super::trial::{self, Failure, Step, Why};

/// How long the kernel may take for a network from when everything else is there.
const PATIENCE: Duration = Duration::from_millis(500);

/// Whether the process may make namespaces; what it lacks for that, with the remedy, if not.
static SEPARATED: OnceLock<Result<(), String>> = OnceLock::new();

type Made = io::Result<OwnedFd>;

/// Where the network comes.
static COMES: Mutex<Option<Receiver<Made>>> = Mutex::new(None);

/// The network as a descriptor, once it is there.
static NETWORK: AtomicI32 = AtomicI32::new(NONE);
const NONE: RawFd = -1;

/// What a machine would get, for people.
static FOUND: OnceLock<String> = OnceLock::new();

/// What the process may have.
enum Way {
    /// A network, for it is root or has the right for another reason.
    Network,
    /// A user namespace, as these, and a network.
    User((u32, u32)),
    /// Nothing.
    Neither,
}

fn way() -> Way {
    match capabilities::permitted().unwrap_or_default() {
        [low, _] if low & ADMIN != 0 => Way::Network,
        [0, 0] => Way::User(sys::ids()),
        _ => Way::Neither,
    }
}

const NEITHER: &str =
    "it has capabilities, which a user namespace would take, and CAP_SYS_ADMIN is not among them";

/// See [`super::separate`].
pub(super) fn separate() -> Result<()> {
    let separated = match way() {
        Way::Network => {
            let tried = if sys::is_filtered() { trial::in_child(|begin| calls(begin)) } else { Ok(()) };
            if tried.is_ok() {
                // It enters the network as the user that it becomes.
                capabilities::keep_permitted();
            }
            tried.map_err(|failure| lacks("network namespace", &failure))
        }
        Way::User(who) => user_namespace(who)?.map_err(|failure| lacks("user namespace", &failure)),
        Way::Neither => Err(NEITHER.into()),
    };
    let _ = SEPARATED.set(separated);
    Ok(())
}

fn lacks(what: &str, failure: &Failure) -> String {
    format!("the host gives it no {what}: {}", failure.explain())
}

/// Finds out what [`separate`] and [`enter`] could have, for [`found`]. The process stays as it is. To be called while it has one
/// thread.
pub(super) fn look() {
    let none = |why: &str| format!("no namespaces of its own ({why})");
    let found = match way() {
        Way::Network => match trial::in_child(|begin| network(begin)) {
            Ok(()) => "network namespace".into(),
            Err(failure) => none(&lacks("network namespace", &failure)),
        },
        // The child would have one thread only.
        Way::User(_) if threads() > 1 => {
            none("a library that was loaded into the process has threads (LD_PRELOAD)")
        }
        Way::User(who) => match trial::in_child(|begin| user(who, begin).and_then(|()| network(begin))) {
            Ok(()) => "network and user namespaces".into(),
            Err(failure @ Failure { step: Step::Network | Step::Enter, why: Why::Error(_) }) => {
                format!("user namespace, no network of its own ({})", failure.explain())
            }
            Err(failure) => none(&lacks("user namespace", &failure)),
        },
        Way::Neither => none(NEITHER),
    };
    let _ = FOUND.set(found);
}

/// How many threads the process has; one where nothing says so.
fn threads() -> usize {
    fs::read_dir("/proc/self/task").map_or(1, Iterator::count)
}

/// What [`look`] found, if it did.
pub(super) fn found() -> Option<&'static str> {
    FOUND.get().map(String::as_str)
}

/// Makes it, if the host gives it.
fn user_namespace(who: (u32, u32)) -> Result<Result<(), Failure>> {
    if let Err(failure) = trial::in_child(|begin| user(who, begin).and_then(|()| calls(begin))) {
        return Ok(Err(failure));
    }
    let mut at = Step::User;
    match user(who, &mut |step| at = step).map_err(|error| Failure::new(at, &error)) {
        Err(failure) if at != Step::User => bail!(
            "the host let a child of the machine have a user namespace, and now not the machine: {}; or start it anew, or set \
             sandbox = \"off\" in [security]",
            failure.explain()
        ),
        made => Ok(made),
    }
}

/// Makes a user namespace in which this process is who it was (user_namespaces(7)).
fn user((user, group): (u32, u32), begin: &mut dyn FnMut(Step)) -> io::Result<()> {
    begin(Step::User);
    sys::unshare(libc::CLONE_NEWUSER)?;
    begin(Step::Map);
    fs::write("/proc/self/setgroups", "deny")?;
    fs::write("/proc/self/uid_map", format!("{user} {user} 1"))?;
    fs::write("/proc/self/gid_map", format!("{group} {group} 1"))?;
    begin(Step::Capabilities);
    // The others would let it do with its own files what their modes forbid.
    capabilities::give_up(ADMIN).map_err(io::Error::from_raw_os_error)
}

/// Makes the calls for a network, and does nothing by them. A machine copes with their errors, but not with an end.
fn calls(begin: &mut dyn FnMut(Step)) -> io::Result<()> {
    begin(Step::Network);
    let _ = sys::unshare(0);
    begin(Step::Enter);
    let _ = sys::enter(NONE, libc::CLONE_NEWNET);
    Ok(())
}

/// Makes a network and enters it, which is where it is then.
fn network(begin: &mut dyn FnMut(Step)) -> io::Result<()> {
    begin(Step::Network);
    let network = made()?;
    begin(Step::Enter);
    join_this(network.as_raw_fd()).map_err(io::Error::from_raw_os_error)
}

/// Makes a network for the calling thread.
fn made() -> Made {
    sys::unshare(libc::CLONE_NEWNET)?;
    File::open(Path::new("/proc/thread-self/ns/net")).map(OwnedFd::from)
}

/// Has a network made in which nothing is, while the machine is built.
pub(super) fn begin() {
    match SEPARATED.get() {
        None => return,
        Some(Err(lacks)) => {
            tracing::info!("the sandbox is without namespaces of its own: {lacks}");
            return;
        }
        Some(Ok(())) => {}
    }
    let (tell, told) = mpsc::sync_channel(1);
    let make = move || {
        let _ = tell.send(made());
    };
    match threads::spawn(Kind::Network, "network", make) {
        Ok(_) => *COMES.lock().unwrap_or_else(PoisonError::into_inner) = Some(told),
        Err(error) => tracing::info!("the sandbox is without a network of its own: {error}"),
    }
}

/// Enters the network, if there is one, so that the other threads can. What is to be of the host's network has to be open by
/// then, such as the device of a network interface: it stays where it was made.
pub(super) fn enter() {
    let Some(comes) = COMES.lock().unwrap_or_else(PoisonError::into_inner).take() else { return };
    let Ok(made) = comes.recv_timeout(PATIENCE) else {
        tracing::warn!(
            "the sandbox is without a network of its own: the kernel has not made one within {} ms more than the rest of the \
             start took; it makes and removes them one after another, for all programs: start the machine anew to have one",
            PATIENCE.as_millis()
        );
        return;
    };
    let entered = made.map_err(|error| Failure::new(Step::Network, &error)).and_then(|network| {
        // For good: a thread that the host kept needs it late.
        let network = network.into_raw_fd();
        let entered = join_this(network);
        entered.map_err(|error| Failure { step: Step::Enter, why: Why::Error(error) })?;
        NETWORK.store(network, Ordering::SeqCst);
        Ok(())
    });
    if let Err(failure) = entered {
        tracing::info!("the sandbox is without a network of its own: {}", failure.explain());
    }
}

/// The same of any other thread, which may be in a signal handler. The error is the system's number.
pub(super) fn join() -> Result<(), libc::c_int> {
    match NETWORK.load(Ordering::SeqCst) {
        NONE => Ok(()),
        network => join_this(network),
    }
}

fn join_this(network: RawFd) -> Result<(), libc::c_int> {
    capabilities::raise(ADMIN)?;
    sys::enter(network, libc::CLONE_NEWNET)
}

#[allow(unsafe_code)]
mod sys {
    use std::io;
    use std::os::fd::RawFd;

    fn check(result: libc::c_int) -> io::Result<()> {
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    pub(super) fn unshare(what: libc::c_int) -> io::Result<()> {
        // SAFETY: no pointers.
        check(unsafe { libc::unshare(what) })
    }

    /// A signal handler may call it.
    pub(super) fn enter(namespace: RawFd, what: libc::c_int) -> Result<(), libc::c_int> {
        // SAFETY: no pointers.
        check(unsafe { libc::setns(namespace, what) })
            .map_err(|error| error.raw_os_error().unwrap_or(libc::EIO))
    }

    /// Effective user and group.
    pub(super) fn ids() -> (u32, u32) {
        // SAFETY: no arguments, cannot fail.
        let user = unsafe { libc::geteuid() };
        // SAFETY: as above.
        (user, unsafe { libc::getegid() })
    }

    /// Whether somebody gave the process a filter of system calls, which may end it.
    pub(super) fn is_filtered() -> bool {
        let none: libc::c_ulong = 0;
        // SAFETY: no pointers.
        (unsafe { libc::prctl(libc::PR_GET_SECCOMP, none, none, none, none) }) != 0
    }
}
