//! The keeper: a process of its own that finds devices of the host again which were gone, and passes them to the machine.
//!
//! ```text
//!   kernel ── events ──> keeper ── descriptors ──> machine (in its sandbox)
//!                        sysfs, /dev               Returning: the unit goes on
//! ```
//! The machine can open no node any more once it is in its sandbox, nor hear the kernel's events in a network of its own. The keeper
//! can, and takes nothing from the machine but a list of devices, once, before the guest runs: whoever takes over the machine gets from
//! it only what the configuration names.

mod message;
mod process;
pub(crate) mod sys;
#[cfg(test)]
mod tests;
pub(crate) mod text;
mod uevent;

use std::io;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use devices::scsi::generic::{Returning, Wanted};
use devices::threads::{self, Kind};
use fc::watch::Devices;

use crate::config::{Sandbox, reason};
use crate::machine::receive;
use message::News;

/// Called with a unit that has gone on with its device.
type Returned = Box<dyn Fn(&Returning) + Send + Sync>;

/// The machine's end.
pub struct Keeper(io::Result<UnixStream>);

impl Keeper {
    /// Starts the process, which waits for its list. To be called while this process has one thread, and before it has namespaces of its
    /// own: it stays in those of the host.
    pub fn start(sandbox: Sandbox) -> Self {
        Self(started(sandbox))
    }

    /// Has it look for the devices of the machine, of which all are open. To be called before the guest runs.
    pub fn begin(self, returned: Returned) {
        let units = Returning::all();
        if units.is_empty() {
            return;
        }
        if let Err(error) = self.0.and_then(|keeper| begin(keeper, units, returned)) {
            tracing::warn!(
                "devices of the host that are taken away and come back are not found again: {}; attach such a device anew",
                reason(&error)
            );
        }
    }
}

fn started(sandbox: Sandbox) -> io::Result<UnixStream> {
    let events = Devices::open()?;
    let (ours, theirs) = sys::pair()?;
    let parent = std::process::id();
    if sys::fork()?.is_none() {
        // Who is at the other end sees how it ended.
        let _ = process::live(&theirs, events, sandbox, parent);
        sys::end();
    }
    Ok(ours)
}

fn begin(keeper: UnixStream, units: Vec<Returning>, returned: Returned) -> io::Result<()> {
    for unit in &units {
        let entry = message::wanted(unit.wanted()).ok_or(io::ErrorKind::InvalidInput)?;
        sys::send(&keeper, &entry, &[])?;
    }
    // For good, whatever becomes of this process.
    keeper.shutdown(Shutdown::Write)?;
    units.iter().for_each(Returning::watch);
    threads::spawn(Kind::Returns, "returns", move || {
        let error = serve(&keeper, units, &Arc::new(returned));
        tracing::warn!(
            "devices of the host that are taken away and come back are not found again any more: the process that looks for them \
             has ended ({}); attach such a device anew",
            reason(&error)
        );
    })?;
    Ok(())
}

/// Takes what comes, until nothing comes any more.
fn serve(keeper: &UnixStream, mut units: Vec<Returning>, returned: &Arc<Returned>) -> io::Error {
    let mut bytes = vec![0; message::LENGTH];
    loop {
        let (len, files) = match receive(keeper, &mut bytes) {
            Ok((0, _)) => return io::ErrorKind::UnexpectedEof.into(),
            Ok((len, mut given)) => (len, given.take()),
            Err(error) => return error,
        };
        let message = bytes.get(..len).zip(files.ok());
        let news = message.and_then(|(message, files)| message::read_report(message, files));
        match news {
            Some(news) => take(news, &mut units, returned),
            // Files that there were no descriptors for, most likely.
            None => tracing::error!(
                "a device of the host is back, and cannot be taken: this process may have no more files open (LimitNOFILE= of its \
                 service, or ulimit -n)"
            ),
        }
    }
}

fn take(news: News, units: &mut [Returning], returned: &Arc<Returned>) {
    let (News::Lost(index)
    | News::Back(index, _)
    | News::Failed(index, _)
    | News::Slow(index, _)
    | News::Queued(index, _)) = news;
    let Some(unit) = unit(units, index) else {
        // Nobody wants it any more. Others do not wait for its node to close.
        let _ = threads::spawn(Kind::Returns, "return-close", move || drop(news));
        return;
    };
    match news {
        News::Lost(_) => unit.lost(),
        News::Back(_, arrival) => {
            // Each by itself: one that does not answer keeps none of the others waiting.
            let returned = returned.clone();
            let go_on = move || match unit.back(*arrival) {
                Ok(()) => returned(&unit),
                Err(error) => tracing::error!(
                    "a device of the host is back, and the unit does not go on with it: {error}; then attach it anew"
                ),
            };
            if let Err(error) = threads::spawn(Kind::Returns, "return", go_on) {
                tracing::error!(
                    "a device of the host is back, and there is no thread to ask it who it is: {}; attach it anew",
                    reason(&error)
                );
            }
        }
        News::Slow(_, address) => tracing::warn!(
            "a device of the host is back at {address}, and the host's kernel does not come back from opening its node; the unit goes on \
             with it when that ends; look what the kernel says of its adapter"
        ),
        News::Queued(_, address) => tracing::warn!(
            "a device of the host is back at {address}, and is not opened yet: the host's kernel does not come back from opening the nodes of \
             many others, or has no thread for this one; the unit goes on with it after them; look what the kernel says of their adapters"
        ),
        News::Failed(_, error) => tracing::error!(
            "a device of the host is back, and cannot be opened: {error}; then `udevadm trigger` has it tried again, within a minute"
        ),
    }
}

/// The unit that has the device of this number: that of the start, or one that was attached in its place.
fn unit(units: &mut [Returning], index: usize) -> Option<Returning> {
    let place = units.get(index)?;
    if place.is_over() {
        let known = |unit: &Returning| units.iter().any(|other| other.is(unit));
        let same = |unit: &Returning| stands_in(place.wanted(), unit.wanted());
        let next = Returning::all().into_iter().find(|unit| same(unit) && !known(unit))?;
        next.watch();
        *units.get_mut(index)? = next;
    }
    units.get(index).cloned()
}

/// Whether what the keeper tells of `before` is of `after`, too. A disk on another path is the same disk, but that path has not gone;
/// and the keeper opens what comes back as it was told at the start. Blocks that it was not told to open for the ring are no reason: then
/// they go by commands.
fn stands_in(before: &Wanted, after: &Wanted) -> bool {
    after.identity.is(&before.identity)
        && after.identity.address == before.identity.address
        && (after.driver, after.allow, after.shared) == (before.driver, before.allow, before.shared)
}
