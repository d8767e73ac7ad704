//! What may fail, or end the process, is done by a child first: a filter of a service manager or a security module may forbid any
//! part of making namespaces, and what is done cannot be undone.

use std::io::{self, Read, Write};

use crate::config::reason;

/// What a process does for namespaces of its own, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// It has a child.
    Child,
    /// It makes a user namespace.
    User,
    /// It says who is in it.
    Map,
    /// It gives up the rights that it has there.
    Capabilities,
    /// It makes a network.
    Network,
    /// It enters one.
    Enter,
}

impl Step {
    const ALL: [Self; 6] =
        [Self::Child, Self::User, Self::Map, Self::Capabilities, Self::Network, Self::Enter];

    fn call(self) -> &'static str {
        match self {
            Self::Child => "fork",
            Self::User | Self::Network => "unshare",
            Self::Map => "/proc/self/uid_map",
            Self::Capabilities => "capset",
            Self::Enter => "setns",
        }
    }
}

/// How it went wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Why {
    /// The system's error number.
    Error(libc::c_int),
    /// The signal that ended it.
    Signal(libc::c_int),
}

/// A step that the host does not let the process do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Failure {
    pub(super) step: Step,
    pub(super) why: Why,
}

impl Failure {
    pub(super) fn new(step: Step, error: &io::Error) -> Self {
        Self { step, why: Why::Error(error.raw_os_error().unwrap_or(libc::EIO)) }
    }

    /// What is wrong and what to do about it.
    pub(super) fn explain(&self) -> String {
        let call = self.step.call();
        match self.why {
            Why::Signal(signal) => {
                format!("{call} ends a process here (signal {signal}); {}", self.remedy(sys::dumpable()))
            }
            Why::Error(error) => {
                let error = io::Error::from_raw_os_error(error);
                format!("{call}: {}; {}", reason(&error), self.remedy(sys::dumpable()))
            }
        }
    }

    fn remedy(&self, dumpable: bool) -> &'static str {
        match (self.step, self.why) {
            (_, Why::Signal(_)) | (Step::Capabilities | Step::Enter, _) => {
                "have the host allow unshare, setns and capset to it (SystemCallFilter= of its service, the seccomp profile of \
                 its container)"
            }
            (Step::Child, _) => {
                "have the host allow it one more process (TasksMax= of its service, the limit of the user's processes)"
            }
            (Step::User, Why::Error(libc::ENOSPC)) => "raise user.max_user_namespaces (sysctl)",
            (Step::User, Why::Error(libc::EINVAL)) => {
                "the kernel lacks CONFIG_USER_NS, or a library that was loaded into the process has threads (LD_PRELOAD)"
            }
            (Step::User, Why::Error(libc::ENOSYS)) => "the kernel lacks CONFIG_USER_NS",
            (Step::User, _) => {
                "have the host allow user namespaces to this program (sysctl kernel.unprivileged_userns_clone, AppArmor, \
                 SELinux, RestrictNamespaces= of its service, the seccomp profile of its container); in a chroot there are none"
            }
            (Step::Map | Step::Network, Why::Error(libc::ENOENT)) => "mount /proc where it runs",
            (Step::Map, _) if !dumpable => {
                "let its user read the executable, and do not have that change users or groups (chmod g-s,u-s)"
            }
            (Step::Map, _) => {
                "have the host let this program use user namespaces (AppArmor: a profile with `userns`, SELinux: \
                 cap_userns; docs/jail.md)"
            }
            (Step::Network, Why::Error(libc::ENOSPC)) => "raise user.max_net_namespaces (sysctl)",
            (Step::Network, Why::Error(libc::EINVAL | libc::ENOSYS)) => "the kernel lacks CONFIG_NET_NS",
            (Step::Network, _) => {
                "have the host allow network namespaces to this program (AppArmor, SELinux, RestrictNamespaces= of its \
                 service, the seccomp profile of its container)"
            }
        }
    }
}

/// Has a child do `work`, which says before each step what it begins. To be called while the process has one thread.
pub(super) fn in_child(work: impl FnOnce(&mut dyn FnMut(Step)) -> io::Result<()>) -> Result<(), Failure> {
    let failed = |error: &io::Error| Failure::new(Step::Child, error);
    let (mut reader, mut writer) = io::pipe().map_err(|error| failed(&error))?;
    let child = sys::Child::start().map_err(|error| failed(&error))?;
    let Some(child) = child else {
        let mut begin = |step: Step| {
            // If it fails, it is not known where it ended.
            let _ = writer.write_all(&[step as u8]);
        };
        // An error number is below 256.
        sys::end(work(&mut begin).map_or_else(|error| error.raw_os_error().unwrap_or(libc::EIO), |()| 0));
    };
    drop(writer);
    let mut steps = Vec::new();
    let read = reader.read_to_end(&mut steps);
    let status = child.wait().and_then(|status| read.map(|_| status)).map_err(|error| failed(&error))?;
    let step = steps.last().and_then(|step| Step::ALL.get(usize::from(*step))).copied();
    let why = match (libc::WIFSIGNALED(status), libc::WEXITSTATUS(status)) {
        (true, _) => Why::Signal(libc::WTERMSIG(status)),
        (false, 0) => return Ok(()),
        (false, error) => Why::Error(error),
    };
    Err(Failure { step: step.unwrap_or(Step::Child), why })
}

#[allow(unsafe_code)]
mod sys {
    use std::io;
    use std::mem::zeroed;
    use std::ptr;

    fn check(result: libc::c_int) -> io::Result<()> {
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// A child, and what becomes of the signal at its end afterwards: where that is ignored, nobody hears how it ended.
    pub(super) struct Child {
        number: libc::pid_t,
        before: libc::sigaction,
    }

    impl Child {
        /// `None` in the child.
        pub(super) fn start() -> io::Result<Option<Self>> {
            // SAFETY: all-zero bytes are a valid `sigaction` (integers and null pointers), SIG_DFL.
            let (usual, mut before): (libc::sigaction, _) = unsafe { zeroed() };
            // SAFETY: both are live; no handler.
            check(unsafe { libc::sigaction(libc::SIGCHLD, &raw const usual, &raw mut before) })?;
            // SAFETY: no other thread holds a lock that the child would wait for.
            let number = unsafe { libc::fork() };
            if number == 0 {
                no_core();
                return Ok(None);
            }
            let error = io::Error::last_os_error();
            let child = Self { number, before };
            if number > 0 { Ok(Some(child)) } else { Err(error) }
        }

        /// Its status.
        pub(super) fn wait(&self) -> io::Result<libc::c_int> {
            let mut status = 0;
            loop {
                // SAFETY: a live place for the status.
                if unsafe { libc::waitpid(self.number, &raw mut status, 0) } == self.number {
                    return Ok(status);
                }
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }

    impl Drop for Child {
        fn drop(&mut self) {
            // SAFETY: the action is live, and was there before.
            unsafe { libc::sigaction(libc::SIGCHLD, &raw const self.before, ptr::null_mut()) };
        }
    }

    /// A child that a filter ends is nothing to look into. With a limit of 1 the kernel does not start a program for it either
    /// (core(5)).
    fn no_core() {
        let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: a live place for the limits.
        unsafe { libc::getrlimit(libc::RLIMIT_CORE, &raw mut limit) };
        limit.rlim_cur = limit.rlim_max.min(1);
        // SAFETY: live limits.
        unsafe { libc::setrlimit(libc::RLIMIT_CORE, &raw const limit) };
    }

    /// Ends the child, and nothing of its parent.
    pub(super) fn end(status: libc::c_int) -> ! {
        // SAFETY: no pointers.
        unsafe { libc::_exit(status) }
    }

    /// Whether the files of this process in /proc are its user's (PR_SET_DUMPABLE).
    pub(super) fn dumpable() -> bool {
        let none: libc::c_ulong = 0;
        // SAFETY: no pointers.
        (unsafe { libc::prctl(libc::PR_GET_DUMPABLE, none, none, none, none) }) == 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_remedy_is_for_what_went_wrong() {
        let remedy = |step, error, dumpable| Failure { step, why: Why::Error(error) }.remedy(dumpable);
        let cases = [
            (Step::Child, libc::EAGAIN, true, "TasksMax="),
            (Step::User, libc::ENOSPC, true, "user.max_user_namespaces"),
            (Step::User, libc::EINVAL, true, "CONFIG_USER_NS"),
            (Step::User, libc::EPERM, true, "RestrictNamespaces="),
            (Step::Map, libc::ENOENT, true, "/proc"),
            (Step::Network, libc::ENOENT, true, "/proc"),
            (Step::Map, libc::EACCES, false, "executable"),
            (Step::Map, libc::EACCES, true, "AppArmor"),
            (Step::Capabilities, libc::EPERM, true, "SystemCallFilter="),
            (Step::Network, libc::ENOSPC, true, "user.max_net_namespaces"),
            (Step::Network, libc::EPERM, true, "RestrictNamespaces="),
            (Step::Enter, libc::EPERM, true, "SystemCallFilter="),
        ];
        for (step, error, dumpable, part) in cases {
            assert!(remedy(step, error, dumpable).contains(part), "{step:?} {error}");
        }
        let ended = Failure { step: Step::Capabilities, why: Why::Signal(libc::SIGSYS) };
        assert!(
            ended.explain().starts_with("capset ends a process here (signal 31); have the host allow"),
            "{ended:?}"
        );
    }
}
