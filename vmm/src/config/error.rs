//! Errors of the configuration: each one line that names the place, the key and what would be right.

use std::fmt;
use std::rc::Rc;

/// How many errors are worth reading.
const SHOWN: usize = 50;

/// Where a value was written.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// In the file as a whole: for what is missing from it.
    File,
    /// On a line of the file, counted from 1.
    Line(usize),
    /// In a `--set` option with this argument.
    Set(Rc<str>),
    /// The option `--log-file` with this argument.
    LogFile(Rc<str>),
}

/// Something wrong with the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    place: String,
    message: String,
}

impl ConfigError {
    /// An error in what the user calls `place`: a file and line, or an option.
    pub fn new(place: impl Into<String>, message: impl Into<String>) -> Self {
        Self { place: place.into(), message: message.into() }
    }

    /// What is wrong, for somebody who wrote no file. One line.
    pub fn message(&self) -> String {
        self.message.replace(char::is_control, " ")
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // One line whatever a file or an option contained.
        let line = format!("{}: {}", self.place, self.message);
        f.write_str(&line.replace(char::is_control, " "))
    }
}

impl std::error::Error for ConfigError {}

/// Collects errors, so that the user sees all of them at once.
#[derive(Debug, Default)]
pub(super) struct Errors(Vec<(Origin, String)>);

impl Errors {
    /// Takes note of an error.
    pub(super) fn add(&mut self, origin: &Origin, message: impl Into<String>) {
        self.0.push((origin.clone(), message.into()));
    }

    /// The value, or notes why there is none.
    pub(super) fn take<T>(&mut self, origin: &Origin, result: Result<T, String>) -> Option<T> {
        result.map_err(|message| self.add(origin, message)).ok()
    }

    /// Whether something is wrong there already.
    pub(super) fn at(&self, origin: &Origin) -> bool {
        self.0.iter().any(|(known, _)| known == origin)
    }

    /// Whether there are none.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The errors in the order of the file, then of the options. `file` is the name the user gave.
    pub(super) fn finish(mut self, file: &str) -> Vec<ConfigError> {
        self.0.sort_by(|a, b| a.0.cmp(&b.0));
        self.0.dedup();
        let more = self.0.len().saturating_sub(SHOWN);
        let rest = format!("and {more} more error{}", if more == 1 { "" } else { "s" });
        let rest = (more > 0).then(|| ConfigError::new(file, rest));
        self.0
            .into_iter()
            .take(SHOWN)
            .map(|(origin, message)| {
                let place = match origin {
                    Origin::File => file.to_owned(),
                    Origin::Line(line) => format!("{file}:{line}"),
                    Origin::Set(argument) => format!("--set {argument}"),
                    Origin::LogFile(argument) => format!("--log-file {argument}"),
                };
                ConfigError::new(place, message)
            })
            .chain(rest)
            .collect()
    }
}
