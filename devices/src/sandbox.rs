//! What the process can still open once it has confined itself, and who it is then: for whoever says why something cannot be
//! opened.
//!
//! The kernel says "permission denied" for the sandbox as for owner and mode, and the remedies are others.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

/// What is within reach.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reach {
    /// Directories, without links in their paths, whose files can be read and written, with all that is below.
    pub writable: Vec<PathBuf>,
    /// The same, whose files can be read, for images.
    pub readable: Vec<PathBuf>,
    /// The same, for what the machine reads again at a reset.
    pub boot: Vec<PathBuf>,
    /// Files by device and inode, and whether they can be written.
    pub files: Vec<(u64, u64, bool)>,
}

static REACH: OnceLock<Reach> = OnceLock::new();
static USER: OnceLock<String> = OnceLock::new();
static NO_HOST_DEVICES: AtomicBool = AtomicBool::new(false);

/// How an image comes that the process cannot open.
const DESCRIPTOR: &str = "pass it as a descriptor (`add-fd`, docs/control.md)";

/// From now on the process can open nothing else. The first call counts.
pub fn confined(reach: Reach) {
    let _ = REACH.set(reach);
}

/// From now on the process can send no commands to devices of the host.
pub fn without_host_devices() {
    NO_HOST_DEVICES.store(true, Ordering::Release);
}

/// Whether it can.
pub fn has_host_devices() -> bool {
    !NO_HOST_DEVICES.load(Ordering::Acquire)
}

/// The process is not root's any more, but the user's of this name. The first call counts.
pub fn became(user: &str) {
    let _ = USER.set(user.to_owned());
}

/// Why the file at `path` cannot be opened, for reading or for writing, and what to do, if the sandbox is why, or whom root has
/// become. It has no other way to come than by its name.
pub fn explain(path: &Path, write: bool, error: &io::Error) -> Option<String> {
    let confined = REACH.get().filter(|_| is_refusal(error)).and_then(|reach| reach.explain(path, write));
    confined.or_else(|| another_user(error))
}

/// The same of an image, which can be passed as a descriptor.
pub fn explain_image(path: &Path, write: bool, error: &io::Error) -> Option<String> {
    let confined =
        REACH.get().filter(|_| is_refusal(error)).and_then(|reach| reach.explain_image(path, write));
    confined.or_else(|| Some(format!("{}, or {DESCRIPTOR}", another_user(error)?)))
}

/// The same of what the machine reads again at a reset.
pub fn explain_boot(path: &Path, error: &io::Error) -> Option<String> {
    let confined = REACH.get().filter(|_| is_refusal(error)).and_then(|reach| reach.explain_boot(path));
    confined.or_else(|| another_user(error))
}

fn is_refusal(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::PermissionDenied
}

/// Root would not be refused because of owner or mode.
fn another_user(error: &io::Error) -> Option<String> {
    let user = USER.get().filter(|_| error.raw_os_error() == Some(libc::EACCES))?;
    Some(format!(
        "user \"{user}\" of [security] may not; change its owner or mode, or those of its directory"
    ))
}

impl Reach {
    fn refuses(&self, path: &Path, write: bool) -> bool {
        // Who may not go there finds nothing, for other reasons.
        let Some(real) = real(path) else { return false };
        let readable = self.readable.iter().chain(&self.boot).filter(|_| !write);
        let below = self.writable.iter().chain(readable).any(|directory| real.starts_with(directory));
        let id = fs::metadata(path).map(|found| (found.dev(), found.ino())).ok();
        let named =
            self.files.iter().any(|&(dev, ino, can_write)| id == Some((dev, ino)) && (can_write || !write));
        !below && !named
    }

    /// See [`explain`].
    pub fn explain(&self, path: &Path, write: bool) -> Option<String> {
        let (what, remedy) = self.refusal(path, write)?;
        Some(format!("{what}; {remedy}"))
    }

    /// See [`explain_image`].
    pub fn explain_image(&self, path: &Path, write: bool) -> Option<String> {
        let (what, remedy) = self.refusal(path, write)?;
        Some(format!("{what}; {DESCRIPTOR}, or {remedy}"))
    }

    /// What is refused, and what to do.
    fn refusal(&self, path: &Path, write: bool) -> Option<(String, String)> {
        if !self.refuses(path, write) {
            return None;
        }
        let verb = if self.refuses(path, false) { "open" } else { "write" };
        let is_device = fs::metadata(path)
            .is_ok_and(|found| found.file_type().is_block_device() || found.file_type().is_char_device());
        let place = match real(path)?.parent().filter(|_| is_device) {
            // Names such as those in /dev/disk/by-id are links that lead there.
            Some(directory) => format!("{}, with all devices there,", directory.display()),
            None => "its directory".into(),
        };
        let key = if write { "directories" } else { "readonly_directories" };
        Some((
            format!("the sandbox does not let this machine {verb} it"),
            format!("name {place} in `{key}` of [security] and start the machine anew"),
        ))
    }

    /// See [`explain_boot`].
    pub fn explain_boot(&self, path: &Path) -> Option<String> {
        if !self.refuses(path, false) {
            return None;
        }
        let directories: Vec<String> = self.boot.iter().map(|path| path.display().to_string()).collect();
        Some(format!(
            "the sandbox lets this machine read only what is in {} since its start; put it there, or end the process and \
             start it anew",
            directories.join(" or ")
        ))
    }
}

/// Where links lead, also to a file that is not there yet.
fn real(path: &Path) -> Option<PathBuf> {
    let beside = || {
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        Some(fs::canonicalize(parent.unwrap_or(Path::new("."))).ok()?.join(path.file_name()?))
    };
    fs::canonicalize(path).ok().or_else(beside)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(path: &Path) -> (u64, u64) {
        let found = fs::metadata(path).unwrap();
        (found.dev(), found.ino())
    }

    #[test]
    fn only_what_is_out_of_reach_is_explained() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        for name in ["in", "in/below", "base", "boot", "out"] {
            fs::create_dir(path(name)).unwrap();
            fs::write(path(name).join("a"), "a").unwrap();
        }
        fs::write(path("out/known"), "k").unwrap();
        fs::write(path("out/read"), "r").unwrap();
        std::os::unix::fs::symlink("../out/a", path("in/link")).unwrap();
        std::os::unix::fs::symlink("../in/a", path("out/link")).unwrap();
        let real = |name: &str| fs::canonicalize(path(name)).unwrap();
        let ((dev, known), (_, read)) = (id(&path("out/known")), id(&path("out/read")));
        let reach = Reach {
            writable: vec![real("in")],
            readable: vec![real("base")],
            boot: vec![real("boot")],
            files: vec![(dev, known, true), (dev, read, false)],
        };
        for (name, read, written) in [
            ("in/a", true, true),
            ("in/below/a", true, true),
            ("out/link", true, true),
            ("base/a", true, false),
            ("boot/a", true, false),
            ("out/known", true, true),
            ("out/read", true, false),
            ("out/a", false, false),
            ("in/link", false, false),
            // Not there yet.
            ("in/new", true, true),
            ("out/new", false, false),
            // Who knows.
            ("gone/new", true, true),
        ] {
            for (write, within) in [(false, read), (true, written)] {
                assert_eq!(reach.explain(&path(name), write).is_none(), within, "{name} {write}");
            }
        }
        // A file that came to the name.
        fs::write(path("out/new"), "n").unwrap();
        fs::rename(path("out/new"), path("out/known")).unwrap();
        assert!(reach.refuses(&path("out/known"), false));
        assert_eq!(
            reach.explain(&path("out/a"), true).unwrap(),
            "the sandbox does not let this machine open it; name its directory in `directories` of [security] and start the \
             machine anew"
        );
        assert_eq!(
            reach.explain(&path("out/a"), false).unwrap(),
            "the sandbox does not let this machine open it; name its directory in `readonly_directories` of [security] and \
             start the machine anew"
        );
        assert_eq!(
            reach.explain_image(&path("boot/a"), true).unwrap(),
            "the sandbox does not let this machine write it; pass it as a descriptor (`add-fd`, docs/control.md), or name its \
             directory in `directories` of [security] and start the machine anew"
        );
        assert_eq!(
            reach.explain_boot(&path("out/a")).unwrap(),
            format!(
                "the sandbox lets this machine read only what is in {} since its start; put it there, or end the \
                 process and start it anew",
                real("boot").display()
            )
        );
    }

    #[test]
    fn a_device_is_explained_with_its_real_directory() {
        let Some(device) = crate::testing::LoopDevice::new(1 << 20, 512) else { return };
        let directory = tempfile::tempdir().unwrap();
        let link = directory.path().join("by-id");
        std::os::unix::fs::symlink(device.path(), &link).unwrap();
        assert_eq!(
            Reach::default().explain(&link, true).unwrap(),
            "the sandbox does not let this machine open it; name /dev, with all devices there, in `directories` of [security] \
             and start the machine anew"
        );
    }
}
