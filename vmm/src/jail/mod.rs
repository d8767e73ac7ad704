//! The sandbox: once the machine is built and everything is open, each thread gives up what it does not need any more, for
//! good. A guest that takes over one of them finds little to do with it. What the kernel can show to this process alone is made
//! [before](separate).
//!
//! All threads do so at one moment, which is the end of the start: as the C library does for setuid(2), a signal goes to each
//! of them, and its handler makes the system calls. Threads that start later do it before anything else. Each gives up new
//! privileges, capabilities, [paths], and all system calls but those of its [kind](devices::threads::Kind). Before that
//! the process becomes [another user](privileges), if it shall.

mod calls;
mod capabilities;
mod confine;
mod keeper;
mod namespaces;
mod parent;
mod paths;
mod privileges;
mod refusal;
mod signals;
mod strangers;
mod streams;
#[cfg(test)]
mod tests;
mod trial;

use std::time::{Duration, Instant};

use anyhow::{Context, Error, Result, anyhow, bail};
use devices::threads::{self, Attention, Kind};

use crate::config::{Config, Controller, Sandbox, Serial, reason};
use crate::passed;
use calls::{Extras, Refusal};
use confine::{Prepared, Step, StepError};
pub(crate) use keeper::{confine_keeper, confine_port};
use paths::Paths;
use privileges::Ids;

/// How long threads may take to confine themselves. One that the host keeps in a system call does so when it comes back,
/// before anything else.
const PATIENCE: Duration = Duration::from_millis(500);
/// From one look at whether they live to the next.
const PAUSE: Duration = Duration::from_millis(1);

/// Becomes who the machine of `config` shall run as, and confines all threads of the process, and those that it starts from
/// now on, for good. To be called by the main thread when everything is open, once in a process.
///
/// # Errors
/// The host does not let a thread confine itself, or the user could not do later what has to be done. What has been given
/// up cannot be taken back.
pub fn enter(config: &Config) -> Result<()> {
    if config.security.sandbox == Sandbox::On {
        passed::close_others();
        streams::narrow(config.serial == Serial::Stdio).context("the sandbox: standard input and output")?;
    }
    privileges::check(config)?;
    let paths = paths::prepare(config)?;
    let user = config.security.user.as_ref();
    if let Some(user) = user {
        privileges::become_user(config, user)?;
    }
    namespaces::enter();
    let vhost = config.hbas.iter().any(|hba| matches!(hba.controller, Controller::VhostScsi(_)));
    // The terminal is asked for when filters are made.
    let extras = Extras { terminal: false, host_devices: config.security.host_devices, vhost };
    confine(config.security.sandbox, user.map(Ids::of), paths, extras)
}

/// What would keep the machine of `config` from becoming the user that it shall run as, and from its sandbox, which is tried
/// by a thread that ends. The process itself stays as it is.
///
/// # Errors
/// What that user could not do, or what the host does not let a thread do.
pub fn check(config: &Config) -> Result<()> {
    privileges::check(config)?;
    let Some(refusal) = refusal(config.security.sandbox) else { return Ok(()) };
    let paths = match refusal {
        Refusal::End => paths::made_of(config)?,
        Refusal::Log => None,
    };
    let attempt = || -> Result<()> {
        if let Some(user) = &config.security.user {
            privileges::become_on_this_thread(user)?;
        }
        // Nobody else is told, so there need not be anything to do.
        signals::catch(confine::signal(), on_signal, libc::SA_RESTART).context("the sandbox: its signal")?;
        let signalled = signals::send(threads::number(), confine::signal());
        let confined = signalled.map_err(|error| StepError::new(Step::Signal, error));
        confined.and_then(|_| confine::attempt(refusal, paths)).map_err(refused)
    };
    std::thread::scope(|scope| {
        let thread =
            threads::spawn_scoped(scope, Kind::Load, "attempt", attempt).context("starting a thread")?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// What the sandbox of a machine of `config` is made of on this host, for people.
pub fn describe(config: &Config) -> String {
    match config.security.sandbox {
        Sandbox::Off => "off".to_owned(),
        Sandbox::Log => "seccomp only logs, no Landlock".to_owned(),
        Sandbox::On => {
            let landlock = match paths::version() {
                Ok(version) => format!("Landlock version {version}"),
                Err(error) => format!("no Landlock ({})", reason(&error)),
            };
            ["seccomp", &landlock].into_iter().chain(namespaces::found()).collect::<Vec<_>>().join(", ")
        }
    }
}

/// What becomes of calls that are not allowed; `None` where all are.
fn refusal(sandbox: Sandbox) -> Option<Refusal> {
    match sandbox {
        Sandbox::On => Some(Refusal::End),
        Sandbox::Log => Some(Refusal::Log),
        Sandbox::Off => None,
    }
}

fn refused(error: StepError) -> Error {
    let remedy = error.remedy();
    anyhow!("the host does not let the machine into its sandbox: {error}; {remedy}")
}

/// Gives the process namespaces of its own, where the host lets it have them. To be called while it has one thread, which the
/// kernel wants, and before [`prepare`].
///
/// # Errors
/// The host has done a part of it.
pub fn separate() -> Result<()> {
    namespaces::separate()
}

/// Finds out what [`separate`] would give it on this host, for [`describe`]; the process stays as it is. To be called while it has
/// one thread.
pub fn look() {
    namespaces::look();
}

/// Has output to a terminal read nothing from it. To be called before anybody has a duplicate of standard output or error.
pub fn narrow_output() {
    streams::narrow_output();
}

/// To be called by the main thread before it starts most others, which inherit what it gives up here: else each of them would
/// have to, and that takes long.
pub fn prepare(config: &Config) {
    if config.security.sandbox == Sandbox::On {
        namespaces::begin();
        capabilities::give_up_bounds();
    }
}

fn confine(sandbox: Sandbox, user: Option<Ids>, paths: Option<Paths>, extras: Extras) -> Result<()> {
    let refusal = refusal(sandbox);
    if refusal.is_none() && user.is_none() {
        return Ok(());
    }
    let begin = Instant::now();
    // Who says something while no thread starts cannot have one started for it.
    crate::lines::prepare();
    if refusal.is_some() {
        refusal::explain().context("the sandbox: the signal of refused calls")?;
    }
    let stay = user.is_some();
    // What it interrupts goes on. On the thread's own stack, for one for signals would take a page of each thread.
    signals::catch(confine::signal(), on_signal, libc::SA_RESTART).context("the sandbox: its signal")?;
    let prepared = Prepared::new(refusal, user, paths, extras);
    // While those come up that were started last.
    prepared.make_all(&threads::living());
    let attention = threads::attend(confine::on_start);
    prepared.expect(&attention.living);
    look_for_strangers(&attention, stay)?;
    let made = begin.elapsed();
    let entered = tell(&attention).and_then(|()| {
        // While the others do.
        prepared.confine_main()?;
        wait(prepared)?;
        prepared.entered();
        Ok(())
    });
    if refusal == Some(Refusal::End) && !extras.host_devices {
        devices::sandbox::without_host_devices();
    }
    if let Some(paths) = prepared.paths() {
        devices::sandbox::confined(paths.reach.clone());
    }
    drop(attention);
    let (made, all) = (made.as_micros(), begin.elapsed().as_micros());
    tracing::debug!(target: "vmm::start", "{all} us for the sandbox, {made} of them for its filters");
    entered.map_err(refused)
}

/// Threads of libraries that somebody had loaded into the process are not told. With the rights of root, one could still do
/// anything.
fn look_for_strangers(attention: &Attention, user: bool) -> Result<()> {
    let strangers = strangers::find(attention);
    if strangers.is_empty() {
        return Ok(());
    }
    let names = strangers.join(", ");
    if user {
        bail!(
            "threads of a library that was loaded into the process would stay root: {names}; start the machine without it \
             (LD_PRELOAD, /etc/ld.so.preload), or as that user"
        );
    }
    tracing::warn!(
        "threads of a library that was loaded into the process are not in the sandbox: {names}; start the machine without it \
         (LD_PRELOAD, /etc/ld.so.preload)"
    );
    Ok(())
}

/// Has each thread confine itself. One that ends meanwhile need not.
fn tell(attention: &Attention) -> Result<(), StepError> {
    for living in &attention.living {
        signals::send(living.number, confine::signal())
            .map_err(|error| StepError::new(Step::Signal, error))?;
    }
    Ok(())
}

/// Waits until all have.
fn wait(prepared: &Prepared) -> Result<(), StepError> {
    let begin = Instant::now();
    loop {
        let late = begin.elapsed() > PATIENCE;
        if late {
            // Nobody looks at how it went with them any more.
            prepared.wait_no_more();
        }
        let answers = prepared.answers();
        let mut missing = prepared.missing()?;
        missing.retain(|number| threads::lives(*number));
        if missing.is_empty() {
            return Ok(());
        }
        if late {
            tracing::warn!(
                "threads that wait in the kernel for the host: {}; each is confined when it comes back, before it does \
                 anything",
                missing.len()
            );
            return Ok(());
        }
        prepared.rest(answers, PAUSE);
    }
}

extern "C" fn on_signal(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the library has a place for it in each thread.
    #[allow(unsafe_code)]
    let place = unsafe { libc::__errno_location() };
    // SAFETY: the place is this thread's own. Whoever was interrupted finds it as it was.
    #[allow(unsafe_code)]
    let before = unsafe { *place };
    confine::on_signal();
    // SAFETY: as above.
    #[allow(unsafe_code)]
    unsafe {
        *place = before;
    }
}
