//! Files of the kernel, which may be missing, say nonsense, or go while they are read.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// Longer than any file that is read here; sysfs has a page for each.
const LONGEST: u64 = 64 << 10;
/// More than any host has of anything.
const MOST: usize = 1 << 16;

/// Where the kernel's files are; elsewhere in tests.
#[derive(Clone, Debug)]
pub struct Roots {
    /// `/sys`
    pub sys: PathBuf,
    /// `/dev`
    pub dev: PathBuf,
    /// `/proc`
    pub proc: PathBuf,
}

impl Default for Roots {
    fn default() -> Self {
        Self::below(Path::new("/"))
    }
}

impl Roots {
    /// `sys`, `dev` and `proc` below a directory.
    pub fn below(root: &Path) -> Self {
        Self { sys: root.join("sys"), dev: root.join("dev"), proc: root.join("proc") }
    }

    /// Names in a class, in the order of their numbers, with the directory of each. There is no class before there is a driver for it.
    ///
    /// # Errors
    /// It cannot be listed, or sysfs is not mounted.
    pub(crate) fn class(&self, class: &str) -> Result<Vec<(String, PathBuf)>, Unreadable> {
        let classes = self.sys.join("class");
        let class = classes.join(class);
        let names = match list(&class) {
            Err(error) if error.error.kind() == io::ErrorKind::NotFound => list(&classes).map(|_| Vec::new()),
            result => result,
        }?;
        Ok(names.into_iter().map(|name| (name.clone(), class.join(name))).collect())
    }
}

/// What of the host cannot be read, so that nobody knows whether something is there.
#[derive(Debug, thiserror::Error)]
#[error("{path} cannot be read: {error}{remedy}", path = .path.display(), remedy = remedy(.error))]
pub struct Unreadable {
    /// The file or directory.
    pub path: PathBuf,
    /// Why.
    pub error: io::Error,
}

fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::NotFound => "; mount sysfs and proc",
        io::ErrorKind::PermissionDenied => "; be root",
        _ => "",
    }
}

/// What is in a directory, in the order of the numbers in the names.
///
/// # Errors
/// It cannot be listed, to its end.
pub(crate) fn list(directory: &Path) -> Result<Vec<String>, Unreadable> {
    let failed = |error| Unreadable { path: directory.into(), error };
    let mut names = Vec::new();
    for entry in fs::read_dir(directory).map_err(failed)? {
        if names.len() == MOST {
            return Err(failed(io::Error::other("it has more entries than any host has of anything")));
        }
        names.extend(entry.map_err(failed)?.file_name().into_string());
    }
    names.sort_by_cached_key(|name| key(name));
    Ok(names)
}

/// The same; nothing if it cannot be listed.
pub(crate) fn names(directory: &Path) -> Vec<String> {
    list(directory).unwrap_or_default()
}

/// Whether what an error is about is not there, or has just gone.
pub(crate) fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV | libc::ENXIO | libc::ESRCH))
}

/// Text and numbers by turns, so that host10 is behind host9.
fn key(name: &str) -> Vec<(String, u64)> {
    let mut parts = vec![(String::new(), 0_u64)];
    let mut in_number = false;
    for c in name.chars() {
        match (c.to_digit(10), in_number) {
            (None, true) => parts.push((c.to_string(), 0)),
            (digit, _) => {
                if let Some((text, number)) = parts.last_mut() {
                    match digit {
                        Some(digit) => *number = number.saturating_mul(10).saturating_add(digit.into()),
                        None => text.push(c),
                    }
                }
            }
        }
        in_number = c.is_ascii_digit();
    }
    parts
}

/// What a file says, in one line without control characters. `None` if it cannot be read, or is empty.
pub(crate) fn text(path: &Path) -> Option<String> {
    let text = all(path)?;
    let line = text.trim_matches(|c: char| c == '\0' || c.is_whitespace()).replace(char::is_control, " ");
    (!line.is_empty()).then_some(line)
}

/// All of a file, no more than would be sensible.
pub(crate) fn all(path: &Path) -> Option<String> {
    read(path).ok()
}

/// The same, with the reason.
pub(crate) fn read(path: &Path) -> io::Result<String> {
    let mut bytes = Vec::new();
    // What is read before an error counts for nothing: the device goes.
    File::open(path)?.take(LONGEST).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// A number, decimal or after `0x` hexadecimal. `None` if it is none, or does not fit.
pub(crate) fn number<T: TryFrom<u64>>(path: &Path) -> Option<T> {
    let text = text(path)?;
    let number = match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => u64::from_str(&text),
    };
    T::try_from(number.ok()?).ok()
}

/// The end of a link's target.
pub(crate) fn link_name(path: &Path) -> Option<String> {
    Some(fs::read_link(path).ok()?.file_name()?.to_str()?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tempfile::TempDir;

    #[test]
    fn names_are_in_the_order_of_their_numbers() {
        let directory = TempDir::new().unwrap();
        for name in ["host10", "host9", "rport-1:0-10", "rport-1:0-9", "host99999999999999999999999", "host"]
        {
            fs::write(directory.path().join(name), "").unwrap();
        }
        assert_eq!(
            names(directory.path()),
            ["host", "host9", "host10", "host99999999999999999999999", "rport-1:0-9", "rport-1:0-10"]
        );
        assert_eq!(names(Path::new("/no/such/directory")), [""; 0]);
    }

    /// No driver is no port; a host that cannot be looked at is an error.
    #[test]
    fn what_cannot_be_listed_is_not_nothing() {
        let directory = TempDir::new().unwrap();
        let roots = Roots::below(directory.path());
        let said = roots.class("fc_vports").unwrap_err().to_string();
        assert!(
            said.contains("sys/class cannot be read: No such file")
                && said.ends_with("; mount sysfs and proc"),
            "{said}"
        );
        fs::create_dir_all(roots.sys.join("class")).unwrap();
        assert_eq!(roots.class("fc_vports").unwrap(), []);
        fs::write(roots.sys.join("class/fc_vports"), "").unwrap();
        let said = roots.class("fc_vports").unwrap_err().to_string();
        assert!(said.contains("sys/class/fc_vports cannot be read: Not a directory"), "{said}");
    }

    #[test]
    fn what_files_say_is_one_line_or_nothing() {
        let directory = TempDir::new().unwrap();
        let file = directory.path().join("file");
        let says = |bytes: &[u8]| {
            fs::write(&file, bytes).unwrap();
            (text(&file), number::<u32>(&file))
        };
        assert_eq!(says(b"Online\n"), (Some("Online".into()), None));
        assert_eq!(says(b"\n\0 \n"), (None, None));
        assert_eq!(says(b"a\nb\x1b[31m\n").0.unwrap(), "a b [31m");
        assert_eq!(says(b"\xff\xfe").0.unwrap(), "\u{fffd}\u{fffd}");
        assert_eq!(says(b"64\n").1, Some(64));
        assert_eq!(says(b"0x010102\n").1, Some(0x010102));
        for none in [&b"-1\n"[..], b"4294967296", b"0x", b"0xfffffffff", b"6 4"] {
            assert_eq!(says(none).1, None);
        }
        assert_eq!(text(&directory.path().join("none")), None);
        assert_eq!(text(directory.path()), None, "a directory");
        fs::write(&file, vec![b'x'; 1 << 20]).unwrap();
        assert_eq!(text(&file).unwrap().len(), 64 << 10);
    }
}
