//! Namespaces of its own: what the kernel shows to this process alone (namespaces(7)).
//!
//! A user namespace needs a process with one thread, so it is made first of all. It gives an ordinary user the right to make the
//! others, and to nothing of the host. Root has that right, and needs its other ones to open what the machine has: it gets no
//! user namespace. The kernel takes long to make a network, so a thread has it made while the machine is built, and at the end
//! of the start all threads go there. Where the host lets no process have them, the machine starts without.

use std::fs::{self, File};
use std::io;
use std::os::fd::{IntoRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use devices::threads::{self, Kind};

use super::capabilities::{self, ADMIN};
use crate::config::reason;

/// How long the kernel may take for a network from when everything else is there.
const PATIENCE: Duration = Duration::from_millis(500);

/// Where AppArmor says that only programs that it knows have user namespaces.
const RESTRICTED: &str = "/proc/sys/kernel/apparmor_restrict_unprivileged_userns";

/// Whether the process may make namespaces; what it lacks for that, with the remedy, if not.
static SEPARATED: OnceLock<Result<(), String>> = OnceLock::new();

type Made = io::Result<OwnedFd>;

/// Where the network comes.
static COMES: Mutex<Option<Receiver<Made>>> = Mutex::new(None);

/// The network as a descriptor, once it is there.
static NETWORK: AtomicI32 = AtomicI32::new(NONE);
const NONE: RawFd = -1;

/// See [`super::separate`].
pub(super) fn separate() -> Result<()> {
    let [low, high] = capabilities::permitted().unwrap_or_default();
    let separated = if low & ADMIN != 0 {
        // It enters the network as the user that it becomes.
        capabilities::keep_permitted();
        Ok(())
    } else if low | high != 0 {
        Err("it has capabilities, which a user namespace would take, and CAP_SYS_ADMIN is not among them"
            .into())
    } else {
        user_namespace()?
    };
    let _ = SEPARATED.set(separated);
    Ok(())
}

fn user_namespace() -> Result<Result<(), String>> {
    let lacks = |error: &io::Error| {
        let remedy = match error.raw_os_error() {
            Some(libc::ENOSPC) => "raise user.max_user_namespaces (sysctl)",
            Some(libc::EINVAL | libc::ENOSYS) => "the kernel lacks CONFIG_USER_NS",
            _ => {
                "have the host allow user namespaces to this program (sysctl kernel.unprivileged_userns_clone, AppArmor, the \
                 seccomp profile of its container)"
            }
        };
        Ok(Err(format!("the host gives it no user namespace: {}; {remedy}", reason(error))))
    };
    let who = sys::ids();
    // Who cannot be put into it would be nobody there.
    if let Err(error) = sys::can_map() {
        return lacks(&error);
    }
    // AppArmor may let it be made, and nothing be done with it.
    let restricted = fs::read(RESTRICTED).is_ok_and(|text| text.starts_with(b"1"));
    if restricted && !sys::succeeds_in_child(|| sys::unshare(libc::CLONE_NEWUSER).and_then(|()| map(who))) {
        return lacks(&io::Error::from_raw_os_error(libc::EACCES));
    }
    if let Err(error) = sys::unshare(libc::CLONE_NEWUSER) {
        return lacks(&error);
    }
    map(who).context(
        "the host lets the machine have a user namespace, but nobody in it: allow that, or set sandbox = \"off\" in \
         [security]",
    )?;
    // The others would let it do with its own files what their modes forbid.
    let given_up = capabilities::give_up(ADMIN).map_err(io::Error::from_raw_os_error);
    given_up.context("giving up capabilities (capset)")?;
    Ok(Ok(()))
}

/// In the namespace, this process is who it was (user_namespaces(7)).
fn map((user, group): (u32, u32)) -> io::Result<()> {
    fs::write("/proc/self/setgroups", "deny")?;
    fs::write("/proc/self/uid_map", format!("{user} {user} 1"))?;
    fs::write("/proc/self/gid_map", format!("{group} {group} 1"))
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
        let made = sys::unshare(libc::CLONE_NEWNET);
        let made = made.and_then(|()| File::open(Path::new("/proc/thread-self/ns/net")));
        let _ = tell.send(made.map(OwnedFd::from));
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
    let late = |_| Err(io::Error::from(io::ErrorKind::TimedOut));
    let made = comes.recv_timeout(PATIENCE).unwrap_or_else(late);
    let entered = made.and_then(|network| {
        // For good: a thread that the host kept needs it late.
        let network = network.into_raw_fd();
        join_this(network).map_err(io::Error::from_raw_os_error)?;
        NETWORK.store(network, Ordering::SeqCst);
        Ok(())
    });
    if let Err(error) = entered {
        tracing::info!(
            "the sandbox is without a network of its own: {}; have the host allow network namespaces to this program \
             (sysctl user.max_net_namespaces, the seccomp profile of its container)",
            reason(&error)
        );
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

    /// Whether the process may write to its own files in /proc.
    pub(super) fn can_map() -> io::Result<()> {
        // SAFETY: the call reads a constant string.
        check(unsafe { libc::access(c"/proc/self/uid_map".as_ptr(), libc::W_OK) })
    }

    /// Tries something out. To be called while the process has one thread.
    pub(super) fn succeeds_in_child(work: impl FnOnce() -> io::Result<()>) -> bool {
        // SAFETY: no other thread holds a lock that the child would wait for.
        let child = unsafe { libc::fork() };
        if child == 0 {
            let failed = work().is_err();
            // SAFETY: ends the child, and nothing of its parent.
            unsafe { libc::_exit(failed.into()) };
        }
        let mut status = 0;
        // SAFETY: a live place for the status.
        child > 0 && unsafe { libc::waitpid(child, &raw mut status, 0) } == child && status == 0
    }
}
