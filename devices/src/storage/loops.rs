//! Loop devices over files: which are over an image.
//!
//! What they are made of belongs to others, and its server may not answer. The kernel tells their names, and which files they
//! are when a device is asked, which a server may keep it from. Who may not open a device looks at what has that name, without
//! opening it. Threads of their own ask and look, and are not waited for long.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::sys::{self, LoopStatus};
use super::sysfs::{backing_file, device_of, number, parts};
use crate::threads::{self, Kind};

/// Loop devices over each other at most.
const MOST: usize = 16;

/// How long a device may take to tell what it is made of.
const PATIENCE: Duration = Duration::from_secs(1);

/// Devices that are being asked, and since when: who has not answered in time is not asked by others as well.
static ASKED: Mutex<Option<HashMap<u64, Instant>>> = Mutex::new(None);

/// A loop device.
struct Loop {
    node: PathBuf,
    number: u64,
    /// Its file, as the kernel calls it: perhaps from another root directory.
    backing: PathBuf,
    /// `None` when it does not tell.
    status: Option<LoopStatus>,
}

/// A file or block device by all that it may be known by.
struct Known {
    name: Option<PathBuf>,
    /// Device and inode.
    file: Option<(u64, u64)>,
    /// Its own number.
    block: Option<u64>,
}

impl Known {
    fn of(file: &File) -> io::Result<Self> {
        let found = file.metadata()?;
        let block = found.file_type().is_block_device().then(|| found.rdev());
        Ok(Self {
            name: fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).ok(),
            file: block.is_none().then(|| (found.dev(), found.ino())),
            block,
        })
    }

    fn is_below(&self, above: &Loop) -> bool {
        match &above.status {
            Some(status) => match status.block {
                Some(block) => self.block == Some(block),
                None => self.file == Some((status.device, status.inode)),
            },
            // Without a node the name is likely that of another root directory.
            None => {
                self.name.as_ref() == Some(&above.backing) && device_of(&above.node) == Some(above.number)
            }
        }
    }
}

/// The loop devices over a file or block device, and over these: paths and numbers.
pub(super) fn loops_over(file: &File) -> Vec<(PathBuf, u64)> {
    let mut above: Vec<(PathBuf, u64)> = Vec::new();
    let (mut loops, Ok(known)) = (all(), Known::of(file)) else { return above };
    ask(&mut loops);
    let mut below = vec![known];
    for _ in 0..MOST {
        let next: Vec<_> =
            loops.iter().filter(|above| below.iter().any(|known| known.is_below(above))).collect();
        if next.is_empty() {
            break;
        }
        below = next.iter().flat_map(|device| of_device(device)).collect();
        above.extend(next.into_iter().map(|device| (device.node.clone(), device.number)));
    }
    above
}

/// A device and its partitions.
fn of_device(device: &Loop) -> Vec<Known> {
    let known = |(name, part): (Option<String>, u64)| Known {
        name: Some(name.map_or_else(|| device.node.clone(), PathBuf::from)),
        file: None,
        block: Some(part),
    };
    parts(device.number).into_iter().map(known).collect()
}

/// All that are made of something, not yet asked.
fn all() -> Vec<Loop> {
    let entries = fs::read_dir("/sys/block").into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_name().as_encoded_bytes().starts_with(b"loop"))
        .filter_map(|entry| {
            let backing = backing_file(&entry.path())?;
            let node = Path::new("/dev").join(entry.file_name());
            Some(Loop { node, number: number(&entry.path())?, backing, status: None })
        })
        .collect()
}

/// Asks what they are made of, each with patience.
fn ask(loops: &mut [Loop]) {
    let mut rest = loops;
    while !rest.is_empty() {
        let (answer, answers) = mpsc::channel();
        let each = |device: &Loop| (device.node.clone(), device.number, device.backing.clone());
        let nodes: Vec<_> = rest.iter().map(each).collect();
        let asking = threads::spawn(Kind::Loops, "loops", move || {
            for (node, number, backing) in nodes {
                // Nobody waits any more once it took too long.
                if answer.send(status(&node, number, &backing)).is_err() {
                    break;
                }
            }
        });
        // Then their names have to do.
        if asking.is_err() {
            return;
        }
        let mut done = 0;
        for device in rest.iter_mut() {
            match answers.recv_timeout(PATIENCE) {
                Ok(status) => device.status = status,
                Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) => {
                    // That of others, usually: nothing to warn of.
                    tracing::info!(
                        "{} does not tell which file it is made of, so that its name has to do: {} does not answer",
                        device.node.display(),
                        device.backing.display()
                    );
                    done += 1;
                    break;
                }
            }
            done += 1;
        }
        rest = rest.get_mut(done..).unwrap_or_default();
    }
}

/// What a loop device says of its file, which has this name. May take for ever.
fn status(node: &Path, number: u64, backing: &Path) -> Option<LoopStatus> {
    let asked = |change: &dyn Fn(&mut HashMap<u64, Instant>) -> bool| {
        change(ASKED.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_default())
    };
    if !asked(&|asked| asked.entry(number).or_insert_with(Instant::now).elapsed() < PATIENCE) {
        return None;
    }
    // A device is there whose number is another, where somebody else made the node.
    let status = match OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(node) {
        Ok(device) => Some(device)
            .filter(|device| device.metadata().is_ok_and(|found| found.rdev() == number))
            .and_then(|device| sys::loop_status(&device).ok()),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => named(backing),
        Err(_) => None,
    };
    asked(&|asked| asked.remove(&number).is_some());
    status
}

/// The file of that name, as a device over all of it would tell.
fn named(backing: &Path) -> Option<LoopStatus> {
    let found = fs::metadata(backing).ok()?;
    let block = found.file_type().is_block_device().then(|| found.rdev());
    Some(LoopStatus { device: found.dev(), inode: found.ino(), block, offset: 0, limit: 0 })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::temp_dir;

    #[test]
    fn a_file_is_known_by_all_its_names() {
        let directory = temp_dir();
        let [one, other] = ["one.img", "other.img"].map(|name| directory.path().join(name));
        let file = File::create(&one).unwrap();
        fs::hard_link(&one, &other).unwrap();
        let status = named(&other);
        let above = Loop { node: "/dev/loop0".into(), number: 7 << 8, backing: other, status };
        assert!(Known::of(&file).unwrap().is_below(&above));
        let another = File::create(directory.path().join("another.img")).unwrap();
        assert!(!Known::of(&another).unwrap().is_below(&above));
        assert!(named(&directory.path().join("gone (deleted)")).is_none());
    }
}
