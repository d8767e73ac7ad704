//! Which files of the host an image may name as its backing file.
//!
//! The name is in the image, and an image may come from anybody: without a limit it opens whatever the process may read.

use std::fs;
use std::path::{Path, PathBuf};

use super::fdset;

/// Which backing files an image may have. Links are followed before a file is looked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Backing {
    /// Files in the directory of the image that was configured, as it was named or as links lead to it.
    #[default]
    SameDirectory,
    /// Any that can be opened.
    Any,
    /// None.
    None,
    /// These files and block devices, and files in these directories or below.
    Listed(Vec<PathBuf>),
}

impl Backing {
    /// The choices that have names.
    pub const NAMES: &[&str] = &["same-directory", "any", "none"];

    /// The choice that is called so.
    pub fn named(name: &str) -> Option<Self> {
        Some(match name {
            "same-directory" => Self::SameDirectory,
            "any" => Self::Any,
            "none" => Self::None,
            _ => return None,
        })
    }

    /// Whether `file`, a path without links, to a `regular` file or not, may be a backing file of the image that was
    /// configured at `top`; else why not.
    pub(super) fn allows(&self, top: &Path, file: &Path, regular: bool) -> Result<(), &'static str> {
        let allowed = match self {
            Self::Any => true,
            Self::None => false,
            Self::SameDirectory => regular && is_beside(top, file),
            Self::Listed(listed) => listed
                .iter()
                .filter_map(|entry| match fdset::number(entry) {
                    Some(_) => Some(entry.clone()),
                    None => fs::canonicalize(entry).ok(),
                })
                .any(|entry| file == entry || (entry.is_dir() && file.starts_with(entry))),
        };
        match self {
            _ if allowed => Ok(()),
            Self::None => Err("backing = \"none\" forbids any"),
            Self::Listed(_) => Err("the list of `backing` does not have it"),
            _ => Err("backing = \"same-directory\" allows only files in the directory of the image"),
        }
    }
}

impl Backing {
    /// What to do to have `file`, which is not allowed, read nevertheless.
    pub(super) fn remedy(&self, file: &Path, regular: bool) -> String {
        let show = file.display();
        let directory = if regular { " or its directory" } else { "" };
        match self {
            Self::Listed(_) => format!("if it shall be read, add \"{show}\"{directory} to that list"),
            _ => format!(
                "if it shall be read, set backing = [\"{show}\"]{} there; only the list counts then: it has to have all \
                 other backing files of the chain, or their directories, as well",
                directory
            ),
        }
    }
}

fn is_beside(top: &Path, file: &Path) -> bool {
    let directory = match top.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => fs::canonicalize(parent).ok(),
        _ => fs::canonicalize(".").ok(),
    };
    let real = fs::canonicalize(top).ok();
    let directories = [directory.as_deref(), real.as_deref().and_then(Path::parent)];
    file.parent().is_some_and(|parent| directories.contains(&Some(parent)))
}
