//! What may take its time, on threads of its own: one for each job, one for each device that is opened, one for each host that is looked
//! at. None waits for another.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use devices::scsi::generic::{self, GenericError};
use devices::threads::{self, Kind};
use fc::glimpse::{Glimpse, Sighting};
use fc::users::Users;
use fc::{Address, Roots, San};

use super::Wanted;
use super::inventory::{Done, Job, Opened, Opening};
use super::process::Event;

/// How often a host is looked at without a reason, and how often at most.
const LOOK: Duration = Duration::from_secs(1);
const REST: Duration = Duration::from_millis(30);

/// How long what is known of users of the whole host does for all units: to look at every process takes time.
const READING: Duration = Duration::from_secs(60);

/// Where what was done is told.
pub(super) type Tell = Sender<Event>;

/// Has a job done. Without a thread it is over at once, and comes again.
pub(super) fn give(roots: &Roots, tell: &Tell, hba: usize, target: u8, job: Job) {
    let (of_thread, roots, given) = (tell.clone(), roots.clone(), job.clone());
    let thread = threads::spawn(Kind::Returns, "fc-target", move || {
        let done = work(&roots, &given);
        let _ = of_thread.send(Event::Done(hba, target, given, done));
    });
    if let Err(error) = thread {
        let why = format!("there is no thread for it: {error}");
        let _ = tell.send(Event::Done(hba, target, job, Done::Over(Some(why))));
    }
}

/// Does a job.
pub(super) fn work(roots: &Roots, job: &Job) -> Done {
    let written = match job {
        Job::Ask(address) => return Done::Asked(generic::report_luns(&address.to_string())),
        Job::Who(address, was) => return Done::Who(generic::who_is(&address.to_string(), was)),
        Job::Tune(remote, times) => {
            let place = roots.sys.join("class/fc_remote_ports").join(remote);
            times.iter().try_for_each(|(name, seconds)| {
                write(&place.join(name), &seconds.to_string())
                    .map_err(|why| format!("{name} = {seconds}: {why}"))
            })
        }
        Job::Scan(address, false) => write(&scan_file(roots, address), &scan_line(address, false)),
        Job::Scan(address, true) => scan_one(roots, address),
        Job::Delete(unit) => write_of(unit, "delete"),
        Job::Rescan(unit, _) => write_of(unit, "rescan"),
    };
    Done::Over(written.err())
}

fn scan_file(roots: &Roots, address: &Address) -> PathBuf {
    roots.sys.join(format!("class/scsi_host/host{}/scan", address.host))
}

/// Channel, target and LUN, or all of these.
pub(super) fn scan_line(address: &Address, one: bool) -> String {
    let lun = if one { address.lun.0.to_string() } else { "-".into() };
    format!("{} {} {lun}", address.channel, address.target)
}

/// Has the kernel look for one unit. It refuses numbers above the driver's limit, for good; where it fails otherwise it is asked again.
fn scan_one(roots: &Roots, address: &Address) -> Result<(), String> {
    match try_write(&scan_file(roots, address), &scan_line(address, true)) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Err(
            "its number is above the limit of the adapter's driver on the host; raise that (lpfc: lpfc_max_luns=65535, 255 without; \
             qla2xxx: ql2xmaxlun), or map the LUN with a lower number"
                .into(),
        ),
        _ => Ok(()),
    }
}

/// Tells the kernel something of a unit, if that is the one that is there still.
fn write_of(unit: &Sighting, file: &str) -> Result<(), String> {
    let is_there = fs::metadata(&unit.directory).is_ok_and(|found| found.ino() == unit.number);
    if !is_there {
        return Ok(());
    }
    match try_write(&unit.directory.join(file), "1") {
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV)) => Ok(()),
        written => written.map_err(|error| error.to_string()),
    }
}

fn write(path: &Path, text: &str) -> Result<(), String> {
    try_write(path, text).map_err(|error| error.to_string())
}

fn try_write(path: &Path, text: &str) -> io::Result<()> {
    OpenOptions::new().write(true).open(path)?.write_all(text.as_bytes())
}

/// Opens a device on a thread of its own.
pub(super) fn open(roots: &Roots, wanted: &Wanted, tell: &Tell, hba: usize, opening: Opening) {
    let (tell, ticket, roots) = (tell.clone(), opening.ticket, roots.clone());
    let how = generic::Opening {
        ring: opening.ring,
        allow: wanted.allow,
        shared: wanted.shared,
        fresh: opening.fresh,
    };
    let of_thread = tell.clone();
    let open = move || {
        let opened = match opening.again.as_deref() {
            Some(device) => match generic::open_again(device, &opening.address) {
                Ok(Some(arrival)) => Opened::Again(Box::new(arrival)),
                Ok(None) => Opened::Other,
                Err(error) => failed(&roots, &opening, error),
            },
            None => match generic::open_at(&opening.address, how) {
                Ok((device, arrival)) => Opened::New(Box::new(device), Box::new(arrival)),
                Err(error) => failed(&roots, &opening, error),
            },
        };
        let _ = of_thread.send(Event::Opened(hba, ticket, opened));
    };
    if let Err(error) = threads::spawn(Kind::Returns, "fc-open", open) {
        let _ = tell.send(Event::Opened(
            hba,
            ticket,
            Opened::Failed(format!("there is no thread for it: {error}")),
        ));
    }
}

fn failed(roots: &Roots, opening: &Opening, error: GenericError) -> Opened {
    match error {
        GenericError::Absent { .. } => Opened::NoUnit,
        // It has gone again, or its nodes come.
        GenericError::NoNode { .. } | GenericError::Missing { .. } if opening.fresh => Opened::Later,
        // The machine is about to close its own.
        GenericError::InUse { .. } if opening.fresh && opening.again.is_some() => Opened::Later,
        GenericError::InUse { path, user } => {
            // The kernel's own users are known better by what they are called.
            let user = user_of(roots, &opening.address).unwrap_or(user);
            Opened::Failed(GenericError::InUse { path, user }.to_string())
        }
        error => Opened::Failed(error.to_string()),
    }
}

/// Who has a unit, other than this process.
fn user_of(roots: &Roots, address: &str) -> Option<String> {
    static READ: Mutex<Option<(Instant, San, Users)>> = Mutex::new(None);
    // Whoever comes meanwhile waits for the same.
    let mut read = READ.lock().unwrap_or_else(PoisonError::into_inner);
    if read.as_ref().is_none_or(|(then, ..)| then.elapsed() >= READING) {
        *read = Some((Instant::now(), San::read(roots), Users::read(roots)));
    }
    let (_, san, users) = read.as_ref()?;
    let unit = san.units.iter().find(|unit| unit.address.to_string() == address)?;
    let own = std::process::id();
    let users = users.of(unit);
    let other = |user: &fc::users::User| !matches!(user, fc::users::User::Process { pid, .. } if *pid == own);
    Some(users.into_iter().find(other)?.to_string())
}

/// Looks at a host again and again, and at once when it is poked.
///
/// # Errors
/// There is no thread for that.
pub(super) fn look(roots: &Roots, tell: &Tell, hba: usize, host: u32) -> io::Result<Sender<()>> {
    let (poke, poked) = mpsc::channel();
    let (roots, tell) = (roots.clone(), tell.clone());
    threads::spawn(Kind::Returns, "fc-look", move || {
        loop {
            // What cannot be read now is as it was.
            if let Ok(glimpse) = Glimpse::read(&roots, host)
                && tell.send(Event::Glimpse(hba, host, glimpse.map(Box::new))).is_err()
            {
                return;
            }
            std::thread::sleep(REST);
            match poked.recv_timeout(LOOK) {
                Err(RecvTimeoutError::Disconnected) => return,
                _ => while poked.try_recv().is_ok() {},
            }
        }
    })?;
    Ok(poke)
}
