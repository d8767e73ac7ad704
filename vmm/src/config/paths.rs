//! What the machine writes or makes is nothing else that it uses: an image is not emptied as the file of a console.

use std::fs;
use std::path::{Path, PathBuf};

use super::error::{Errors, Origin};
use super::host::{self, Medium};
use super::section::Section;
use super::types::{Hba, Own};

/// A path of the configuration.
struct Used {
    what: String,
    origin: Origin,
    path: PathBuf,
    /// As it is written.
    shown: PathBuf,
    /// The machine reads it only, or it is an image, of which several may be one disk.
    shared: bool,
    part: Part,
}

/// Of what a path is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    /// Of the machine itself.
    Machine,
    /// Of a disk.
    Disk,
    /// Of the machine, which runs already.
    Running,
}

/// Which thing a path leads to.
#[derive(PartialEq, Eq)]
enum Target {
    Found(Medium),
    /// Nothing is there: the directory, and the name in it.
    Missing(PathBuf),
}

/// What all sections name, in the order in which it matters.
#[derive(Default)]
pub(super) struct Paths(Vec<Used>);

impl Paths {
    /// The configuration file itself.
    pub(super) fn of(file: &Path) -> Self {
        let what = "configuration file".to_owned();
        let (path, shown) = (file.into(), file.into());
        Self(vec![Used { what, origin: Origin::File, path, shown, shared: true, part: Part::Machine }])
    }

    /// What a machine that runs uses.
    pub(super) fn running(own: &[Own]) -> Self {
        let used = |own: &Own| Used {
            what: own.what.clone(),
            origin: Origin::File,
            path: own.path.clone(),
            shown: own.path.clone(),
            shared: own.read,
            part: Part::Running,
        };
        Self(own.iter().map(used).collect())
    }

    /// The log file.
    pub(super) fn log(&mut self, path: &Path) {
        let (what, origin) = ("log file".to_owned(), Origin::LogFile(path.to_string_lossy().into()));
        let (path, shown) = (path.into(), path.into());
        self.0.push(Used { what, origin, path, shown, shared: false, part: Part::Machine });
    }

    /// What is not of disks.
    pub(super) fn own(&self) -> Vec<Own> {
        let own = self.0.iter().filter(|used| used.part == Part::Machine);
        own.map(|used| Own { what: used.named(), path: used.path.clone(), read: used.shared }).collect()
    }

    /// What `[boot]` names.
    pub(super) fn boot(&mut self, section: &Section<'_>, directory: &Path) {
        for key in ["kernel", "initrd", "firmware", "vars"] {
            self.add(section, key, directory, true);
        }
        for (_, path) in section.texts("option_roms") {
            self.push(section, "option_roms", path.as_ref(), directory, true);
        }
        self.add(section, "debug_log", directory, false);
    }

    /// What `[serial]` or `[control]` names.
    pub(super) fn output(&mut self, section: &Section<'_>, directory: &Path) {
        self.add(section, "path", directory, false);
    }

    /// What the `[[hba]]` of the file name.
    pub(super) fn hbas(&mut self, hbas: &[Section<'_>], directory: &Path) {
        for hba in hbas {
            self.add(hba, "event_log", directory, false);
            for lun in hba.sections("lun") {
                self.add(lun, "image", directory, true);
                for path in lun.strings("backing") {
                    self.push(lun, "backing", path.as_ref(), directory, true);
                }
                self.protection(lun, directory);
            }
        }
    }

    /// What the disks of the file use besides what they name: `read` is what was made of `hbas`.
    pub(super) fn below(&mut self, hbas: &[Section<'_>], read: &[Hba]) {
        for (section, hba) in hbas.iter().zip(read) {
            for (section, lun) in section.sections("lun").iter().zip(&hba.luns) {
                let Some(disk) = lun.device.image() else { continue };
                for (what, path) in host::files_below(disk) {
                    self.0.push(Used {
                        what: format!("{what} of `image` in {}", section.title),
                        origin: section.origin("image"),
                        shown: path.clone(),
                        path,
                        shared: true,
                        part: Part::Disk,
                    });
                }
            }
        }
    }

    fn protection(&mut self, lun: &Section<'_>, directory: &Path) {
        if lun.integer("protection").is_none_or(|kind| kind == 0) {
            return;
        }
        // Several read-only disks may be one.
        let shared = lun.boolean("readonly") == Some(true);
        match (lun.text("protection_image"), lun.text("image")) {
            (Some(_), _) => self.add(lun, "protection_image", directory, shared),
            (None, Some(image)) => {
                let beside = format!("{image}.pi");
                self.push(lun, "protection", beside.as_ref(), directory, shared);
            }
            _ => {}
        }
    }

    fn add(&mut self, section: &Section<'_>, key: &str, directory: &Path, shared: bool) {
        if let Some(path) = section.text(key) {
            self.push(section, key, path.as_ref(), directory, shared);
        }
    }

    fn push(&mut self, section: &Section<'_>, key: &str, shown: &Path, directory: &Path, shared: bool) {
        let (path, shown) = (directory.join(shown), shown.to_owned());
        let what = format!("`{key}` in {}", section.title);
        let part = if section.title == "[[hba.lun]]" { Part::Disk } else { Part::Machine };
        self.0.push(Used { what, origin: section.origin(key), path, shown, shared, part });
    }

    /// Notes each path that is something else as well.
    pub(super) fn check(mut self, errors: &mut Errors) {
        self.0.sort_by(|a, b| a.origin.cmp(&b.origin));
        let targets: Vec<Option<Target>> = self.0.iter().map(|used| target(&used.path)).collect();
        for (index, (used, target)) in self.0.iter().zip(&targets).enumerate() {
            let before = self.0.iter().zip(&targets).take(index);
            let mut same = before.filter(|(_, other)| target.is_some() && *other == target);
            let Some((other, _)) = same.find(|(other, _)| !(used.shared && other.shared)) else { continue };
            if used.part == Part::Running || errors.at(&used.origin) {
                continue;
            }
            let (shown, named) = (used.shown.display(), other.named());
            let message = format!("{shown} is the {named}; expected a file of its own");
            let message = match &used.origin {
                Origin::LogFile(_) => message,
                _ => format!("{}: {message}", used.what),
            };
            errors.add(&used.origin, message);
        }
    }
}

impl Used {
    /// What it is, with its place.
    fn named(&self) -> String {
        match &self.origin {
            Origin::File | Origin::LogFile(_) => self.what.clone(),
            origin => format!("{} {}", self.what, super::hba::place(origin)),
        }
    }
}

/// Nothing for what takes output of everybody, as a terminal or /dev/null.
fn target(path: &Path) -> Option<Target> {
    use std::os::unix::fs::FileTypeExt;
    if fs::metadata(path).is_ok_and(|found| found.file_type().is_char_device()) {
        return None;
    }
    if let Some(medium) = host::medium(path) {
        return Some(Target::Found(medium));
    }
    let parent = fs::canonicalize(host::parent(path)).ok()?;
    Some(Target::Missing(parent.join(path.file_name()?)))
}
