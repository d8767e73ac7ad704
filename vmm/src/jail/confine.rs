//! What each thread does to itself, in a signal handler where it was there before: system calls that were prepared, no
//! memory and no locks.

use std::cell::Cell;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use devices::threads::{self, Kind};
use libc::sock_filter;

use super::calls::{self, Extras, Refusal};
use super::paths::Paths;
use super::privileges::Ids;
use super::refusal::Line;
use super::{capabilities, namespaces};

/// How far a thread has come: not yet, all the way, or the step that failed with the system's error number.
const WAITING: u32 = 0;
const DONE: u32 = 1;

/// What is done to a thread, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// It becomes the user of `[security]`.
    User,
    /// No program that it starts has more rights than it.
    NoNewPrivileges,
    /// It leaves the host's network.
    Network,
    /// It gives up the rights of the administrator.
    Capabilities,
    /// It gives up paths.
    Paths,
    /// It gives up system calls.
    Calls,
    /// It is told to do all this.
    Signal,
}

impl Step {
    const ALL: [Self; 7] = [
        Self::User,
        Self::NoNewPrivileges,
        Self::Network,
        Self::Capabilities,
        Self::Paths,
        Self::Calls,
        Self::Signal,
    ];

    fn what(self) -> &'static str {
        match self {
            Self::User => "becoming the user of [security] (setresuid)",
            Self::NoNewPrivileges => "giving up new privileges (PR_SET_NO_NEW_PRIVS)",
            Self::Network => "entering a network of its own (setns)",
            Self::Capabilities => "giving up capabilities (capset)",
            Self::Paths => "giving up paths (Landlock)",
            Self::Calls => "giving up system calls (seccomp)",
            Self::Signal => "sending a thread its signal",
        }
    }

    /// The system calls that it takes.
    fn call(self) -> &'static str {
        match self {
            Self::User => "setgroups, setresgid and setresuid",
            Self::NoNewPrivileges => "prctl",
            Self::Network => "setns",
            Self::Capabilities => "capset",
            Self::Paths => "landlock_restrict_self",
            Self::Calls => "prctl and seccomp",
            Self::Signal => "tgkill",
        }
    }
}

/// A step that failed.
#[derive(Debug, thiserror::Error)]
#[error("{}: {source}", .step.what())]
pub(super) struct StepError {
    step: Step,
    source: io::Error,
}

impl StepError {
    pub(super) fn new(step: Step, source: io::Error) -> Self {
        Self { step, source }
    }

    /// What to do about it.
    pub(super) fn remedy(&self) -> String {
        let off = "set sandbox = \"off\" in [security] to run it without";
        let call = match (self.step, self.source.raw_os_error()) {
            (Step::User, _) => return "start it with CAP_SETUID and CAP_SETGID, or as that user".into(),
            (Step::Signal, Some(libc::EAGAIN)) => {
                return "raise the limit of pending signals (LimitSIGPENDING= of its service, or ulimit -i)"
                    .into();
            }
            (step, Some(libc::EPERM | libc::EACCES | libc::ENOSYS)) => step.call(),
            _ => return off.into(),
        };
        format!(
            "have the host allow {call} to it (SystemCallFilter= of its service, the seccomp profile of its container), or {off}"
        )
    }
}

/// A thread that was there before, and how far it has come.
struct Reached {
    number: i32,
    state: AtomicU32,
}

/// Everything that the threads need, made before the first is told.
pub(super) struct Prepared {
    /// What becomes of calls that are not allowed; `None` where threads only become another user.
    refusal: Option<Refusal>,
    /// Whom all but the main thread, which is that user already, have to become.
    user: Option<Ids>,
    /// Paths to be given up (landlock_restrict_self(2)).
    paths: Option<Paths>,
    /// What the process has of the host that others have not.
    extras: Extras,
    filters: [OnceLock<Vec<sock_filter>>; Kind::ALL.len()],
    reached: OnceLock<Box<[Reached]>>,
    /// How many of them have answered.
    answers: AtomicU32,
    /// A thread that cannot confine itself ends the process: nobody waits for it any more.
    late: AtomicBool,
    /// All are confined, so that those that they start need their own filter only.
    entered: AtomicBool,
}

static PREPARED: OnceLock<Prepared> = OnceLock::new();

thread_local! {
    // Without destructor: the handler looks at it at any time.
    static CONFINED: Cell<bool> = const { Cell::new(false) };
}

/// The signal that tells a thread to confine itself. The one before it kicks vCPUs.
pub(super) fn signal() -> libc::c_int {
    libc::SIGRTMIN() + 1
}

impl Prepared {
    /// To be done once in a process; later it is as it was the first time.
    pub(super) fn new(
        refusal: Option<Refusal>,
        user: Option<Ids>,
        paths: Option<Paths>,
        extras: Extras,
    ) -> &'static Self {
        PREPARED.get_or_init(|| Self::of(refusal, user, paths, extras))
    }

    fn of(refusal: Option<Refusal>, user: Option<Ids>, paths: Option<Paths>, extras: Extras) -> Self {
        sys::look_at_kernel();
        Self {
            refusal,
            user,
            paths,
            extras,
            filters: [const { OnceLock::new() }; Kind::ALL.len()],
            reached: OnceLock::new(),
            answers: AtomicU32::new(0),
            late: AtomicBool::new(false),
            entered: AtomicBool::new(false),
        }
    }

    /// The paths that are not given up.
    pub(super) fn paths(&self) -> Option<&Paths> {
        self.paths.as_ref()
    }

    /// Makes the filter for a kind, if it is not there yet and threads get one.
    fn make(&self, kind: Kind) -> Option<&[sock_filter]> {
        let kind = calls::like(kind);
        let (place, refusal) = (self.filters.get(kind as usize)?, self.refusal?);
        let extras = Extras { terminal: crate::console::has_raw_terminal(), ..self.extras };
        Some(place.get_or_init(|| calls::filter(kind, refusal, extras)))
    }

    fn filter(&self, kind: Kind) -> Option<&[sock_filter]> {
        self.filters.get(calls::like(kind) as usize).and_then(OnceLock::get).map(Vec::as_slice)
    }

    /// Makes the filters for these threads and the main thread.
    pub(super) fn make_all(&self, living: &[threads::Living]) {
        for kind in living.iter().map(|living| living.kind).chain([Kind::Main]) {
            self.make(kind);
        }
    }

    /// Takes down who is to be told, and makes what they need.
    pub(super) fn expect(&self, living: &[threads::Living]) {
        self.make_all(living);
        let reached =
            |living: &threads::Living| Reached { number: living.number, state: AtomicU32::new(WAITING) };
        let _ = self.reached.set(living.iter().map(reached).collect());
    }

    /// How many threads have answered.
    pub(super) fn answers(&self) -> u32 {
        self.answers.load(Ordering::Acquire)
    }

    /// Waits a while for the last answer, if there are only so many.
    pub(super) fn rest(&self, answers: u32, time: Duration) {
        sys::sleep_on(&self.answers, answers, time);
    }

    /// Takes down the answer of a thread.
    fn answer(&self, number: i32, state: u32) {
        let all = self.reached.get().map(Box::as_ref).unwrap_or_default();
        let Some(reached) = all.iter().find(|reached| reached.number == number) else { return };
        reached.state.store(state, Ordering::SeqCst);
        let answers = self.answers.fetch_add(1, Ordering::SeqCst) + 1;
        if state != DONE || answers as usize == all.len() {
            sys::wake(&self.answers);
        }
    }

    /// The threads that have not answered yet; an error of one that could not.
    pub(super) fn missing(&self) -> Result<Vec<i32>, StepError> {
        let mut missing = Vec::new();
        for reached in self.reached.get().iter().flat_map(|all| all.iter()) {
            match reached.state.load(Ordering::Acquire) {
                DONE => {}
                WAITING => missing.push(reached.number),
                failed => {
                    let step = Step::ALL
                        .get((failed >> 16).wrapping_sub(1) as usize)
                        .copied()
                        .unwrap_or(Step::Calls);
                    let error = io::Error::from_raw_os_error((failed & 0xffff).cast_signed());
                    return Err(StepError::new(step, error));
                }
            }
        }
        Ok(missing)
    }

    /// From now on a thread that cannot confine itself ends the process.
    pub(super) fn wait_no_more(&self) {
        self.late.store(true, Ordering::SeqCst);
    }

    /// Confines the calling thread, the first one of the process.
    pub(super) fn confine_main(&self) -> Result<(), StepError> {
        let error = |(step, error)| StepError::new(step, io::Error::from_raw_os_error(error));
        self.confine_here(Kind::Main).map_err(error)
    }

    /// All are confined: from now on threads that begin confine themselves.
    pub(super) fn entered(&self) {
        self.entered.store(true, Ordering::Release);
    }

    /// The same, of what is prepared: no memory, no locks. The error is the system's number.
    fn confine_here(&self, kind: Kind) -> Result<(), (Step, libc::c_int)> {
        if CONFINED.replace(true) {
            return Ok(());
        }
        if let Some(user) = self.user.as_ref().filter(|_| kind != Kind::Main) {
            user.take_or_have().map_err(|error| (Step::User, error))?;
        }
        let Some(refusal) = self.refusal else { return Ok(()) };
        let filter = self.filter(kind).ok_or((Step::Calls, libc::EINVAL))?;
        sys::no_new_privileges().map_err(|error| (Step::NoNewPrivileges, error))?;
        if refusal == Refusal::End {
            namespaces::join().map_err(|error| (Step::Network, error))?;
            capabilities::give_up(kept(kind)).map_err(|error| (Step::Capabilities, error))?;
        }
        if let Some(paths) = &self.paths {
            sys::restrict_paths(paths.ruleset.as_raw_fd()).map_err(|error| (Step::Paths, error))?;
        }
        sys::filter_calls(filter).map_err(|error| (Step::Calls, error))
    }
}

/// Confines the calling thread as the main one, and no other: a trial on a thread that ends then.
pub(super) fn attempt(refusal: Refusal, paths: Option<Paths>) -> Result<(), StepError> {
    let prepared = Prepared::of(Some(refusal), None, paths, Extras::default());
    prepared.make(Kind::Main);
    prepared.confine_main()
}

/// Confines the calling thread of another process by these: the capabilities that it keeps (`None`: all), its paths and its calls.
pub(super) fn confine_alone(
    kept: Option<u32>,
    paths: Option<&Paths>,
    filter: &[sock_filter],
) -> Result<(), StepError> {
    let step = |step| move |error| StepError::new(step, io::Error::from_raw_os_error(error));
    sys::look_at_kernel();
    sys::no_new_privileges().map_err(step(Step::NoNewPrivileges))?;
    if let Some(kept) = kept {
        capabilities::give_up(kept).map_err(step(Step::Capabilities))?;
    }
    if let Some(paths) = paths {
        sys::restrict_paths(paths.ruleset.as_raw_fd()).map_err(step(Step::Paths))?;
    }
    sys::filter_calls(filter).map_err(step(Step::Calls))
}

/// Confines a thread that begins. It has what its starter has given up already, so a failure leaves it confined all the same.
pub(super) fn on_start(kind: Kind) {
    let Some(prepared) = PREPARED.get().filter(|prepared| prepared.entered.load(Ordering::Acquire)) else {
        return;
    };
    CONFINED.set(true);
    let error = |error| StepError::new(Step::Calls, io::Error::from_raw_os_error(error));
    let Some(filter) = prepared.make(kind) else { return };
    if let Err(error) = sys::filter_calls(filter).map_err(error) {
        devices::log_limited!(warn, "a thread may do as much as the one that started it: {error}");
    }
}

/// Told by the signal: the thread confines itself, and says how that went.
pub(super) fn on_signal() {
    let (Some(prepared), Some(kind)) = (PREPARED.get(), threads::here()) else { return };
    let confined = prepared.confine_here(kind);
    let state = match confined {
        Ok(()) => DONE,
        Err((step, error)) => (step as u32 + 1) << 16 | error.cast_unsigned() & 0xffff,
    };
    prepared.answer(threads::number(), state);
    if let Err((step, error)) = confined
        && prepared.late.load(Ordering::SeqCst)
    {
        sys::end(&late(step, error));
    }
}

/// What is said of a thread that could not confine itself when nobody waited for it any more.
fn late(step: Step, error: libc::c_int) -> Line {
    let mut line = Line::new();
    line.add(b"vmm: error: a thread that the host kept could not enter the sandbox: ");
    line.add(step.what().as_bytes());
    line.add(b" failed with error ");
    line.number(error.cast_unsigned());
    line.add(b"; the machine ends\n");
    line
}

/// The capabilities that threads of a kind keep. Of a machine that root starts without another user, those that open files
/// still open those of others: kernels at a reset, images.
fn kept(kind: Kind) -> u32 {
    if calls::opens(kind) { capabilities::ANY_FILE } else { 0 }
}

/// System calls that a signal handler may make. Each gives the system's error number.
#[allow(unsafe_code)]
mod sys {
    use std::sync::OnceLock;

    use super::{AtomicU32, Duration, Line, RawFd, sock_filter};

    type Result = std::result::Result<(), libc::c_int>;

    #[repr(C)]
    struct Program {
        len: libc::c_ushort,
        filter: *const sock_filter,
    }

    /// Ends the process, with a line that says why.
    pub(super) fn end(line: &Line) {
        let line = line.bytes();
        // SAFETY: the pointer and the length are those of live bytes.
        unsafe { libc::write(libc::STDERR_FILENO, line.as_ptr().cast(), line.len()) };
        // SAFETY: no pointers; `raise` may be called in signal handlers.
        unsafe { libc::raise(libc::SIGABRT) };
    }

    fn check(result: libc::c_long) -> Result {
        if result >= 0 {
            return Ok(());
        }
        // It takes no memory.
        Err(std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO))
    }

    pub(super) fn no_new_privileges() -> Result {
        let (yes, none): (libc::c_ulong, libc::c_ulong) = (1, 0);
        // SAFETY: no pointers.
        check(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, yes, none, none, none) }.into())
    }

    /// Waits until it is told to [`wake`], if the word has this value.
    pub(super) fn sleep_on(word: &AtomicU32, value: u32, time: Duration) {
        let time = libc::timespec {
            tv_sec: time.as_secs().cast_signed(),
            tv_nsec: libc::c_long::from(time.subsec_nanos()),
        };
        let wait = libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG;
        // SAFETY: a live word and a live time.
        unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), wait, value, &raw const time) };
    }

    /// Wakes who waits.
    pub(super) fn wake(word: &AtomicU32) {
        let wake = libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG;
        // SAFETY: a live word.
        unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), wake, 1) };
    }

    pub(super) fn restrict_paths(rules: RawFd) -> Result {
        // SAFETY: no pointers.
        check(unsafe { libc::syscall(libc::SYS_landlock_restrict_self, rules, 0) })
    }

    /// Whether prctl(2) gives a thread its filter: before Linux 5.16 it would slow it down with that (Speculative Store Bypass),
    /// against which the filter is no help.
    static BY_PRCTL: OnceLock<bool> = OnceLock::new();

    /// Finds out how filters are given.
    pub(super) fn look_at_kernel() {
        BY_PRCTL.get_or_init(|| release().is_some_and(|release| release >= (5, 16)));
    }

    /// Version and patch level of the kernel.
    fn release() -> Option<(u32, u32)> {
        // SAFETY: all-zero bytes are valid strings.
        let mut names: libc::utsname = unsafe { std::mem::zeroed() };
        // By uname(2): a service may have no such file in /proc (`ProcSubset=pid`).
        // SAFETY: a live place for the names.
        check(unsafe { libc::uname(&raw mut names) }.into()).ok()?;
        let release = names.release.map(i8::cast_unsigned);
        let release = std::ffi::CStr::from_bytes_until_nul(&release).ok()?.to_str().ok()?;
        let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
        Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
    }

    /// Service managers and containers that do not know seccomp(2) allow its elder brother (systemd's `@system-service` before
    /// version 257).
    pub(super) fn filter_calls(filter: &[sock_filter]) -> Result {
        let program = Program { len: filter.len() as libc::c_ushort, filter: filter.as_ptr() };
        let program = &raw const program;
        if BY_PRCTL.get() == Some(&true) {
            let (mode, none) = (libc::c_ulong::from(libc::SECCOMP_MODE_FILTER), 0 as libc::c_ulong);
            // SAFETY: the kernel copies the program, whose length it is told.
            return check(unsafe { libc::prctl(libc::PR_SET_SECCOMP, mode, program, none, none) }.into());
        }
        let flags = libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW;
        // SAFETY: as above.
        check(unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, program) })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_came_late_says_what_it_could_not_do() {
        let said = String::from_utf8(late(Step::Paths, libc::EPERM).bytes().to_vec()).unwrap();
        assert_eq!(
            said,
            "vmm: error: a thread that the host kept could not enter the sandbox: giving up paths (Landlock) failed with \
             error 1; the machine ends\n"
        );
    }
}
