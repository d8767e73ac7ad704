//! Whole files in, configurations or exact error lines out.

mod bad;
mod fc;
mod good;
mod images;
mod paths;
mod security;
mod set;

use std::fs;
use std::path::PathBuf;

use tempfile::TempDir;

use super::*;

/// A directory with the files that configurations name.
pub(super) struct Fixture(TempDir);

impl Fixture {
    fn new() -> Self {
        let directory = TempDir::new().unwrap();
        for file in ["vmlinuz", "initrd", "a.img", "b.img", "c.img"] {
            fs::write(directory.path().join(file), [0; 4096]).unwrap();
        }
        fs::write(directory.path().join("d.qcow2"), images::qcow2("")).unwrap();
        fs::write(directory.path().join("empty.img"), "").unwrap();
        fs::create_dir(directory.path().join("directory")).unwrap();
        std::os::unix::fs::symlink("loop", directory.path().join("loop")).unwrap();
        Self(directory)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn parse(&self, text: &str, set: &[&str]) -> Result<Config, Vec<ConfigError>> {
        let host =
            Host { memory: Some(32 << 30), huge_pages: vec![(2 << 20, 600), (1 << 30, 0)], root: true };
        let set: Vec<String> = set.iter().map(|&option| option.to_owned()).collect();
        parse(text, &self.path("vm.toml"), &set, &host)
    }

    /// The errors, with the directory's name taken out.
    fn lines(&self, text: &str, set: &[&str]) -> Vec<String> {
        self.shorten(&self.parse(text, set).expect_err(text))
    }

    fn shorten(&self, errors: &[ConfigError]) -> Vec<String> {
        let directory = format!("{}/", self.0.path().display());
        errors.iter().map(|error| error.to_string().replace(&directory, "")).collect()
    }
}

pub(super) fn good(text: &str, set: &[&str]) -> (Fixture, Config) {
    let fixture = Fixture::new();
    let config = fixture.parse(text, set).unwrap_or_else(|errors| panic!("{text}\n{errors:#?}"));
    (fixture, config)
}

const SMALLEST: &str =
    "[vm]\nmemory = \"1GiB\"\n[boot]\nkernel = \"vmlinuz\"\n[[hba]]\n[[hba.lun]]\nimage = \"a.img\"\n";

/// What `text` means where unsupported parts are not in the way, and all errors.
fn parsed(text: &str) -> (Fixture, Vec<String>, Option<Config>) {
    let fixture = Fixture::new();
    let mut errors = Errors::default();
    let tree = tree::parse(text, &mut errors);
    let mut root = Section::root(&tree, &mut errors);
    let config = build(&mut root, &fixture.path("vm.toml"), None, &Host::default(), &mut errors);
    let lines = fixture.shorten(&errors.finish("vm.toml"));
    (fixture, lines, config)
}
