//! What is stored: definitions of virtual ports, for good, and whose a virtual port is, until the host starts anew.
//!
//! A file is written beside its place, flushed, and linked there: it is there whole, or not at all, and never in place of another.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::choose::Rules;
use crate::names::Names;
use crate::sysfs::{self, Roots, text};
use crate::users::start_of;
use crate::wwn::Wwn;

/// Where definitions and records are.
#[derive(Clone, Debug)]
pub struct Store {
    /// Of this start of the host: `/run/vmm/fc`
    run: PathBuf,
    /// For good: `/var/lib/vmm/fc`
    keep: PathBuf,
}

/// A virtual port that somebody wants again and again, with names that are its own for good.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Definition {
    /// The name of its node.
    pub wwnn: Wwn,
    /// Its name.
    pub wwpn: Wwn,
    /// It is created when the host starts, and belongs to no machine.
    #[serde(default)]
    pub boot: bool,
    /// On which port.
    #[serde(flatten)]
    pub rules: Rules,
}

impl Definition {
    /// Both names.
    pub fn names(&self) -> Names {
        Names { wwnn: self.wwnn, wwpn: self.wwpn }
    }
}

/// Whose a virtual port is: it goes when that process is no more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// Its name.
    pub wwpn: Wwn,
    /// The name of its node.
    pub wwnn: Wwn,
    /// The port that it is on.
    pub parent: u32,
    /// The process.
    pub pid: u32,
    /// When that started, in ticks since the start of the host.
    pub start: u64,
    /// The start of the host that these count from.
    pub boot: String,
    /// What the process calls itself: a machine.
    pub owner: String,
}

/// Why something cannot be stored, or read.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// Not a name for a definition.
    #[error(
        "\"{0}\" is no name for a definition: that is up to 64 letters, digits, dots, dashes and underscores, and begins with none of \
             the last three"
    )]
    Name(String),
    /// It is there already.
    #[error("{0} is defined already ({1}); vmm fc undefine {0} removes it, and its names with it")]
    Exists(String, PathBuf),
    /// There is none.
    #[error("{0} is not defined; vmm fc define {0} does it")]
    Missing(String),
    /// The file says something else.
    #[error("{path}: {why}; mend or remove it", path = .path.display())]
    Broken {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// The file system's.
    #[error("{path}: cannot {what}: {error}{remedy}", path = .path.display(), remedy = remedy(.error))]
    Files {
        /// The file.
        path: PathBuf,
        /// Read, write ...
        what: &'static str,
        /// Why.
        error: io::Error,
    },
    /// Somebody else creates or deletes.
    #[error("another process has been at work on virtual ports for too long ({path} is locked); see what it waits for", path = .0.display())]
    Locked(PathBuf),
}

fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => "; be root, or let this user write there",
        io::ErrorKind::ReadOnlyFilesystem => "; that file system is mounted read-only",
        _ => "",
    }
}

impl Default for Store {
    fn default() -> Self {
        Self::below(Path::new("/"))
    }
}

/// Nobody else creates or deletes, until it is dropped.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl Store {
    /// `run/vmm/fc` and `var/lib/vmm/fc` below a directory.
    pub fn below(root: &Path) -> Self {
        Self { run: root.join("run/vmm/fc"), keep: root.join("var/lib/vmm/fc") }
    }

    /// The lock, if nobody has it.
    ///
    /// # Errors
    /// The file system's.
    pub(crate) fn try_lock(&self) -> Result<Option<Lock>, StateError> {
        let path = self.lock_path();
        let failed = |error| StateError::Files { path: path.clone(), what: "lock", error };
        make(&self.run)?;
        let file = OpenOptions::new().create(true).append(true).mode(0o644).open(&path).map_err(failed)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Lock { _file: file })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(failed(error)),
        }
    }

    pub(crate) fn lock_path(&self) -> PathBuf {
        self.run.join("lock")
    }

    /// All definitions, by name, with the errors of those that cannot be read.
    pub fn definitions(&self) -> Vec<(String, Result<Definition, StateError>)> {
        let names = sysfs::names(&self.keep).into_iter();
        let names = names
            .filter_map(|file| file.strip_suffix(".toml").filter(|name| is_name(name)).map(str::to_owned));
        names.map(|name| (name.clone(), self.definition(&name))).collect()
    }

    /// One definition.
    ///
    /// # Errors
    /// [`StateError`]; there is none.
    pub fn definition(&self, name: &str) -> Result<Definition, StateError> {
        read(&self.place(name)?)?.ok_or_else(|| StateError::Missing(name.to_owned()))
    }

    /// Stores a definition, on the disk when this returns.
    ///
    /// # Errors
    /// [`StateError`]; there is one of this name.
    pub fn define(&self, name: &str, definition: &Definition) -> Result<(), StateError> {
        let path = self.place(name)?;
        make(&self.keep)?;
        match put(&path, definition, Put::ForGood) {
            Err(StateError::Files { error, .. }) if error.kind() == io::ErrorKind::AlreadyExists => {
                Err(StateError::Exists(name.to_owned(), path))
            }
            result => result,
        }
    }

    /// Stores another definition in place of one of this name, on the disk when this returns.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn redefine(&self, name: &str, definition: &Definition) -> Result<(), StateError> {
        put(&self.place(name)?, definition, Put::InPlace)
    }

    /// Removes a definition.
    ///
    /// # Errors
    /// [`StateError`]; there is none.
    pub fn undefine(&self, name: &str) -> Result<(), StateError> {
        let path = self.place(name)?;
        match fs::remove_file(&path) {
            Ok(()) => flush(&self.keep),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(StateError::Missing(name.to_owned()))
            }
            Err(error) => Err(StateError::Files { path, what: "remove", error }),
        }
    }

    fn place(&self, name: &str) -> Result<PathBuf, StateError> {
        let place = is_name(name).then(|| self.keep.join(format!("{name}.toml")));
        place.ok_or_else(|| StateError::Name(name.chars().take(64).collect()))
    }

    /// Whose virtual ports are. What cannot be read is nobody's.
    pub fn records(&self) -> Vec<Record> {
        let directory = self.run.join("vports");
        let files = sysfs::names(&directory).into_iter().filter(|name| name.ends_with(".toml"));
        files.filter_map(|name| read(&directory.join(name)).ok()?).collect()
    }

    /// Writes down whose a virtual port is.
    pub(crate) fn record(&self, record: &Record) -> Result<(), StateError> {
        make(&self.run.join("vports"))?;
        // A process that is no more may have left one.
        self.forget(record.wwpn)?;
        put(&self.record_path(record.wwpn), record, Put::New)
    }

    /// It is nobody's, or no more.
    pub(crate) fn forget(&self, wwpn: Wwn) -> Result<(), StateError> {
        let path = self.record_path(wwpn);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(StateError::Files { path, what: "remove", error })
            }
            _ => Ok(()),
        }
    }

    fn record_path(&self, wwpn: Wwn) -> PathBuf {
        self.run.join("vports").join(format!("{wwpn}.toml"))
    }
}

impl Record {
    /// For a virtual port of this process, or another one that lives.
    pub(crate) fn new(roots: &Roots, names: Names, parent: u32, pid: u32, owner: &str) -> Option<Self> {
        let (start, boot) = (start_of(roots, pid)?, boot(roots));
        Some(Self { wwpn: names.wwpn, wwnn: names.wwnn, parent, pid, start, boot, owner: owner.to_owned() })
    }

    /// Whether the process is still there: that one, not another with its number.
    pub fn is_alive(&self, roots: &Roots) -> bool {
        self.boot == boot(roots) && start_of(roots, self.pid) == Some(self.start)
    }
}

/// Which start of the host this is.
fn boot(roots: &Roots) -> String {
    text(&roots.proc.join("sys/kernel/random/boot_id")).unwrap_or_default()
}

/// Whether a definition may have this name.
pub fn is_name(name: &str) -> bool {
    let fine = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    (1..=64).contains(&name.len())
        && name.chars().all(fine)
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
}

fn make(directory: &Path) -> Result<(), StateError> {
    let made = DirBuilder::new().recursive(true).mode(0o755).create(directory);
    made.map_err(|error| StateError::Files { path: directory.into(), what: "make the directory", error })
}

/// What a file says; `None` if there is none.
fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, StateError> {
    let text = match fs::metadata(path) {
        Ok(_) => sysfs::all(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(StateError::Files { path: path.into(), what: "read", error }),
    };
    let broken = |why: String| StateError::Broken { path: path.into(), why };
    let text = text.ok_or_else(|| broken("it cannot be read".into()))?;
    let parsed = toml::from_str(&text);
    parsed.map(Some).map_err(|error| broken(error.message().replace('\n', " ")))
}

/// How a file is written.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Put {
    /// It is not there yet.
    New,
    /// The same, and it is on the disk then.
    ForGood,
    /// The same, and it may be there.
    InPlace,
}

/// Writes a file: whole, or not at all.
fn put(path: &Path, value: &impl Serialize, how: Put) -> Result<(), StateError> {
    let for_good = how != Put::New;
    let failed = |error| StateError::Files { path: path.into(), what: "write", error };
    let text = toml::to_string(value).map_err(|error| failed(io::Error::other(error)))?;
    let directory = path.parent().unwrap_or(Path::new("."));
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let beside = directory.join(format!(".{name}.{}", std::process::id()));
    // Of a process of this number that was ended here.
    let _ = fs::remove_file(&beside);
    let written = || -> io::Result<()> {
        let mut file = OpenOptions::new().create_new(true).write(true).mode(0o644).open(&beside)?;
        file.write_all(text.as_bytes())?;
        if for_good {
            file.sync_all()?;
        }
        match how {
            Put::InPlace => fs::rename(&beside, path),
            Put::New | Put::ForGood => fs::hard_link(&beside, path),
        }
    };
    let result = written();
    let _ = fs::remove_file(&beside);
    result.map_err(failed)?;
    if for_good { flush(directory) } else { Ok(()) }
}

/// What is in a directory is on the disk.
fn flush(directory: &Path) -> Result<(), StateError> {
    let flushed = File::open(directory).and_then(|directory| directory.sync_all());
    flushed.map_err(|error| StateError::Files { path: directory.into(), what: "flush", error })
}

#[cfg(test)]
mod tests {
    use super::*;
    use tempfile::TempDir;

    fn definition() -> Definition {
        Definition {
            wwnn: Wwn::new(0x2000_0212_3456_789a),
            wwpn: Wwn::new(0x2100_0212_3456_789a),
            boot: true,
            rules: Rules { parent: Some("host5".into()), ..Rules::default() },
        }
    }

    #[test]
    fn definitions_are_there_whole_and_never_replaced() {
        let directory = TempDir::new().unwrap();
        let store = Store::below(directory.path());
        assert!(store.definitions().is_empty());
        store.define("vm1", &definition()).unwrap();
        assert_eq!(store.definition("vm1").unwrap(), definition());
        let path = directory.path().join("var/lib/vmm/fc/vm1.toml");
        assert_eq!(
            fs::read_to_string(&path).unwrap(),
            "wwnn = \"200002123456789a\"\nwwpn = \"210002123456789a\"\nboot = true\nparent = \"host5\"\n"
        );
        let said = store.define("vm1", &Definition { boot: false, ..definition() }).unwrap_err().to_string();
        assert_eq!(
            said,
            format!(
                "vm1 is defined already ({}); vmm fc undefine vm1 removes it, and its names with it",
                path.display()
            )
        );
        assert!(store.definition("vm1").unwrap().boot);
        store.redefine("vm1", &Definition { boot: false, ..definition() }).unwrap();
        assert!(!store.definition("vm1").unwrap().boot);
        let names: Vec<_> = fs::read_dir(path.parent().unwrap()).unwrap().collect();
        assert_eq!(names.len(), 1, "nothing is left beside it");
        store.undefine("vm1").unwrap();
        for said in [store.undefine("vm1").unwrap_err(), store.definition("vm1").unwrap_err()] {
            assert_eq!(said.to_string(), "vm1 is not defined; vmm fc define vm1 does it");
        }
    }

    #[test]
    fn files_that_say_something_else_are_named() {
        let directory = TempDir::new().unwrap();
        let store = Store::below(directory.path());
        store.define("a", &definition()).unwrap();
        let file = directory.path().join("var/lib/vmm/fc/a.toml");
        for (text, why) in [
            ("wwnn = \"2000\"\nwwpn = \"210002123456789a\"\n", "\"2000\" is no World Wide Name"),
            ("wwnn = \"200002123456789a\"\n", "missing field `wwpn`"),
            ("\u{0}", "; mend or remove it"),
            ("wwnn", "; mend or remove it"),
        ] {
            fs::write(&file, text).unwrap();
            let said = store.definition("a").unwrap_err().to_string();
            assert!(said.starts_with(&format!("{}: ", file.display())) && said.contains(why), "{said}");
            assert!(store.definitions()[0].1.is_err());
        }
        for name in ["", ".a", "-a", "a/b", "..", "a b", &"a".repeat(65), "ä"] {
            let said = store.define(name, &definition()).unwrap_err();
            assert!(matches!(said, StateError::Name(_)), "{name}");
        }
        assert_eq!(
            store.definition("../a").unwrap_err().to_string(),
            "\"../a\" is no name for a definition: that is up to 64 letters, digits, dots, dashes and underscores, and begins with \
             none of the last three"
        );
    }

    #[test]
    fn whose_a_port_is_counts_while_that_process_lives() {
        let directory = TempDir::new().unwrap();
        let (store, roots) = (Store::below(directory.path()), Roots::below(directory.path()));
        let stat = |start: u64| format!("77 (x) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 {start} 20\n");
        let write = |path: &str, text: &str| {
            let path = directory.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("proc/77/stat", &stat(1234));
        write("proc/sys/kernel/random/boot_id", "first\n");
        let record = Record::new(&roots, definition().names(), 5, 77, "machine m").unwrap();
        assert_eq!(Record::new(&roots, definition().names(), 5, 78, "none"), None);
        store.record(&record).unwrap();
        store.record(&record).unwrap();
        assert_eq!(store.records(), std::slice::from_ref(&record));
        assert!(record.is_alive(&roots));
        write("proc/77/stat", &stat(1235));
        assert!(!record.is_alive(&roots), "another process has its number");
        write("proc/77/stat", &stat(1234));
        write("proc/sys/kernel/random/boot_id", "second\n");
        assert!(!record.is_alive(&roots), "the host has started anew");
        write("run/vmm/fc/vports/broken.toml", "pid = -1\n");
        assert_eq!(store.records().len(), 1);
        store.forget(record.wwpn).unwrap();
        store.forget(record.wwpn).unwrap();
        assert!(store.records().is_empty());
    }

    #[test]
    fn one_at_a_time() {
        let directory = TempDir::new().unwrap();
        let store = Store::below(directory.path());
        let lock = store.try_lock().unwrap();
        assert!(lock.is_some() && store.try_lock().unwrap().is_none());
        drop(lock);
        assert!(store.try_lock().unwrap().is_some());
        fs::write(directory.path().join("file"), "").unwrap();
        let said = Store::below(&directory.path().join("file")).try_lock().unwrap_err().to_string();
        assert!(said.contains("run/vmm/fc: cannot make the directory: Not a directory"), "{said}");
    }
}
