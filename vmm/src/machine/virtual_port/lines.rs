//! What the log says of units. Those of a port come, are lost and are back all together: of many a line says how many there are.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use devices::iothread::Remote;
use devices::scsi::Lun;

use crate::machine::units::shown;

/// Units of a target that have a line each, of what becomes of them within this time.
const EACH: usize = 8;
const WINDOW: Duration = Duration::from_secs(2);

/// What has become of a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Turn {
    Came,
    /// It could not be opened.
    Refused,
    Lost,
    Back,
    /// It is back, and does not go on.
    Stuck,
    Resized,
    Gone,
    /// It has gone before all was flushed, or is not closed.
    Unclosed,
}

/// How many units have each had a line, and which have none.
#[derive(Default)]
struct Said {
    lines: usize,
    others: BTreeSet<Lun>,
}

type All = Mutex<BTreeMap<(u8, Turn), Said>>;

/// The lines of an HBA.
pub(super) struct Lines {
    hba: Arc<str>,
    remote: Remote,
    said: Arc<All>,
}

/// One line for all that have none, when this is dropped: at the end of their time, or of the thread.
struct Rest {
    hba: Arc<str>,
    target: u8,
    turn: Turn,
    said: Arc<All>,
}

impl Lines {
    /// `remote`: the thread that counts.
    pub(super) fn new(hba: &str, remote: Remote) -> Self {
        Self { hba: hba.into(), remote, said: Arc::default() }
    }

    /// Has a line written of a unit, which `write` gets the name of; or counts it.
    pub(super) fn say(&self, target: u8, lun: Lun, turn: Turn, write: impl FnOnce(&str)) {
        let mut all = lock(&self.said);
        let is_first = !all.contains_key(&(target, turn));
        let said = all.entry((target, turn)).or_default();
        if said.lines >= EACH {
            said.others.insert(lun);
            return;
        }
        said.lines += 1;
        drop(all);
        write(&format!("hba {}, target {target} lun {}", self.hba, shown(lun)));
        if is_first {
            let rest = Rest { hba: self.hba.clone(), target, turn, said: self.said.clone() };
            self.remote.spawn(move |io| async move {
                io.sleep(WINDOW).await;
                drop(rest);
            });
        }
    }
}

impl Drop for Rest {
    fn drop(&mut self) {
        let said = lock(&self.said).remove(&(self.target, self.turn)).unwrap_or_default();
        let Some((first, last)) = said.others.first().zip(said.others.last()) else { return };
        let name = format!("hba {}, target {}", self.hba, self.target);
        let which = match said.others.len() {
            1 => format!("one more (lun {})", shown(*first)),
            count => format!("{count} more (lun {} to {})", shown(*first), shown(*last)),
        };
        match self.turn {
            Turn::Came => tracing::info!("{name}: units have come: {which}"),
            Turn::Refused => tracing::error!(
                "{name}: units that the array shows do not get to the guest, as those before: {which}; look at them on the host (vmm fc luns)"
            ),
            Turn::Lost => tracing::warn!(
                "{name}: the host has no devices of units any more; they go on when those are back: {which}"
            ),
            Turn::Back => tracing::info!("{name}: units are back: {which}"),
            Turn::Stuck => {
                tracing::error!("{name}: units are back, and do not go on, as those before: {which}")
            }
            Turn::Resized => tracing::info!("{name}: the sizes of units have changed at the array: {which}"),
            Turn::Gone => tracing::info!("{name}: the array does not show units any more: {which}"),
            Turn::Unclosed => tracing::warn!(
                "{name}: the array does not show units any more, and they were not closed well, as those before: {which}"
            ),
        }
    }
}

fn lock(said: &All) -> MutexGuard<'_, BTreeMap<(u8, Turn), Said>> {
    said.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use devices::iothread::IoThread;

    use super::*;

    #[test]
    fn many_have_one_line_together() {
        let thread = IoThread::start("test").unwrap();
        let lines = Lines::new("fc0", thread.remote());
        let written = AtomicUsize::new(0);
        let say = |target, number: u32, turn| {
            lines.say(target, Lun::from_number(number), turn, |name| {
                assert_eq!(name, format!("hba fc0, target {target} lun {number}"));
                written.fetch_add(1, Ordering::Relaxed);
            });
        };
        for number in 0..256 {
            say(3, number, Turn::Lost);
            say(4, number, Turn::Lost);
        }
        assert_eq!(written.swap(0, Ordering::Relaxed), 2 * EACH);
        // Something else has lines of its own.
        say(3, 0, Turn::Back);
        assert_eq!(written.swap(0, Ordering::Relaxed), 1);
        let others = |target, turn| lock(&lines.said).get(&(target, turn)).map(|said| said.others.len());
        assert_eq!((others(3, Turn::Lost), others(3, Turn::Back)), (Some(256 - EACH), Some(0)));
        // When their time is over, or their thread.
        drop(thread);
        assert_eq!((others(3, Turn::Lost), others(4, Turn::Lost), others(3, Turn::Back)), (None, None, None));
        say(3, 7, Turn::Lost);
        assert_eq!(written.load(Ordering::Relaxed), 1);
    }
}
