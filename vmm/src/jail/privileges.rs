//! Who the process is once the machine has started: the user of `[security]` where root has started it.
//!
//! What was opened before stays open. What is opened later, a kernel at a reset above all, has to be the new user's to open.

use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use devices::threads::{self, Kind};

use super::parent::Parent;
use crate::config::{Config, User, parent, reason};

const REMEDY: &str = "change its owner or mode, or those of its directory";

/// Finds what the machine could not open or remove any more as another user, before it becomes that one.
pub(super) fn check(config: &Config) -> Result<()> {
    let Some(user) = &config.security.user else { return Ok(()) };
    let images = super::paths::images(config);
    let warnings = std::thread::scope(|scope| {
        // The kernel has credentials for each thread.
        let look = || become_on_this_thread(user).and_then(|()| look(config, user, &images));
        let thread = threads::spawn_scoped(scope, Kind::Load, "look", look).context("starting a thread")?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })?;
    // Not there: the log may start a thread, which would have that user's rights alone from then on.
    warnings.iter().for_each(|line| tracing::warn!("{line}"));
    Ok(())
}

fn look(config: &Config, user: &User, images: &[(PathBuf, bool)]) -> Result<Vec<String>> {
    let who = format!("user \"{}\"", user.name);
    for (what, path) in super::paths::read_again(config) {
        if let Err(error) = File::open(path) {
            bail!(
                "{what} {}: {who} cannot read it, as a reset does: {}; {REMEDY}",
                path.display(),
                reason(&error)
            );
        }
    }
    let security = &config.security;
    let named =
        [("directories", &security.directories), ("readonly_directories", &security.readonly_directories)];
    for (key, directory) in named.into_iter().flat_map(|(key, all)| all.iter().map(move |one| (key, one))) {
        if let Err(error) = fs::metadata(directory.join(".")) {
            bail!(
                "{key} in [security]: {who} cannot enter {}: {}; {REMEDY}",
                directory.display(),
                reason(&error)
            );
        }
    }
    let stays = |name: &Path| {
        let error = may(parent(name), libc::W_OK | libc::X_OK).err()?;
        Some(format!(
            "{} stays when the machine ends: {who} cannot remove it from its directory: {}; change that directory's owner or \
             mode",
            name.display(),
            reason(&error)
        ))
    };
    let gone = |(image, write): &(PathBuf, bool)| {
        let (how, verb) = if *write { (libc::R_OK | libc::W_OK, "write") } else { (libc::R_OK, "read") };
        let error = may(image, how).err()?;
        Some(format!(
            "{} cannot be attached again by its path once it is detached: {who} cannot {verb} it: {}; {REMEDY}",
            image.display(),
            reason(&error)
        ))
    };
    Ok(super::paths::names(config).filter_map(stays).chain(images.iter().filter_map(gone)).collect())
}

/// Gives this process' names to `user`, and has the main thread, which calls this, become that user for good. The others
/// [do so](Ids::take) when they are told: the C library's functions for all threads would wait for one that the host keeps.
pub(super) fn become_user(config: &Config, user: &User) -> Result<()> {
    super::paths::names(config).try_for_each(|name| {
        give(name, user).with_context(|| format!("giving {} to user \"{}\"", name.display(), user.name))
    })?;
    let parent = Parent::of();
    become_on_this_thread(user)?;
    parent.keep().context("the signal at the end of the parent (PR_SET_PDEATHSIG)")?;
    devices::sandbox::became(&user.name);
    Ok(())
}

/// Who a thread becomes.
pub(super) struct Ids {
    user: libc::uid_t,
    group: libc::gid_t,
    groups: Box<[libc::gid_t]>,
}

impl Ids {
    pub(super) fn of(user: &User) -> Self {
        let groups = [user.gid].into_iter().chain(user.groups.iter().copied()).collect();
        Self { user: user.uid, group: user.gid, groups }
    }

    /// The calling thread alone becomes that user. The kernel then lets no other process of that user look into this one; nor
    /// is its memory written to a file when it crashes, whatever the host's settings are: a guest's secrets are in it. A signal
    /// handler may call this; the error is the system's number.
    pub(super) fn take(&self) -> Result<(), libc::c_int> {
        let (user, group, groups) = (self.user, self.group, &self.groups);
        // SAFETY: the call reads a list of this length, which outlives it.
        #[allow(unsafe_code)]
        number(unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) })?;
        // SAFETY: no pointers.
        #[allow(unsafe_code)]
        number(unsafe { libc::syscall(libc::SYS_setresgid, group, group, group) })?;
        // SAFETY: no pointers.
        #[allow(unsafe_code)]
        number(unsafe { libc::syscall(libc::SYS_setresuid, user, user, user) })?;
        // The kernel has just done what fs.suid_dumpable says: with 1 or 2 there would be a core file.
        let (no, none): (libc::c_ulong, libc::c_ulong) = (0, 0);
        // SAFETY: no pointers.
        #[allow(unsafe_code)]
        number(unsafe { libc::prctl(libc::PR_SET_DUMPABLE, no, none, none, none) }.into())
    }

    /// The same of a thread that the main one may have started when it was that user already.
    pub(super) fn take_or_have(&self) -> Result<(), libc::c_int> {
        // SAFETY: no arguments, cannot fail.
        #[allow(unsafe_code)]
        let has = unsafe { libc::geteuid() } == self.user;
        self.take().or_else(|error| if has && error == libc::EPERM { Ok(()) } else { Err(error) })
    }
}

/// The calling thread becomes that user, and no other.
pub(super) fn become_on_this_thread(user: &User) -> Result<()> {
    Ids::of(user).take().map_err(io::Error::from_raw_os_error).with_context(|| {
        format!("becoming user \"{}\", for which root needs CAP_SETUID and CAP_SETGID", user.name)
    })
}

/// Makes the name of a socket, or a link, the user's: with the mode that it has, nobody else could connect.
fn give(name: &Path, user: &User) -> io::Result<()> {
    let path = CString::new(name.as_os_str().as_bytes())?;
    // Whoever may write to its directory may put a link to another file there.
    let flags = libc::O_PATH | libc::O_NOFOLLOW | libc::O_CLOEXEC;
    // SAFETY: the call reads a string that lives on.
    #[allow(unsafe_code)]
    let number = unsafe { libc::open(path.as_ptr(), flags) };
    check_call(number.into())?;
    // SAFETY: the call just gave us this descriptor, which nobody else owns.
    #[allow(unsafe_code)]
    let held = File::from(unsafe { OwnedFd::from_raw_fd(number) });
    let kind = held.metadata()?.file_type();
    if !kind.is_socket() && !kind.is_symlink() {
        return Err(io::Error::other("something else is there by now"));
    }
    // SAFETY: the call reads a string that lives on.
    #[allow(unsafe_code)]
    check_call(
        unsafe { libc::fchownat(held.as_raw_fd(), c"".as_ptr(), user.uid, user.gid, libc::AT_EMPTY_PATH) }
            .into(),
    )
}

/// Whether that can be done with what is at `path` (R_OK and its like).
fn may(path: &Path, how: libc::c_int) -> io::Result<()> {
    let name = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: the call reads a string that lives on.
    #[allow(unsafe_code)]
    check_call(unsafe { libc::faccessat(libc::AT_FDCWD, name.as_ptr(), how, libc::AT_EACCESS) }.into())
}

fn check_call(result: libc::c_long) -> Result<(), io::Error> {
    number(result).map_err(io::Error::from_raw_os_error)
}

fn number(result: libc::c_long) -> Result<(), libc::c_int> {
    if result >= 0 {
        return Ok(());
    }
    // It takes no memory.
    Err(io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO))
}
