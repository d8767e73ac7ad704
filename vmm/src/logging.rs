//! Log lines: which are written, and where.
//!
//! Levels: `error` for what ends the machine or loses data, `warn` for what the operator should look at, `info`
//! for the life of the machine, `debug` and `trace` for developers. What a guest can cause is limited by
//! [`devices::log_limited`]. A line that cannot be written is lost and costs the thread that wrote it nothing, nor does one
//! whose reader makes it wait: a thread of its own writes them.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use anyhow::{Context, Result};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

use crate::config::{reason, spell};
use crate::exit::complain;
use crate::lines::{Lines, line_end, standard_error};
use crate::output_file;

pub use crate::lines::{set_raw_terminal, settle};

/// The environment variable with a filter, such as `info` or `warn,hba_virtio_scsi=trace`.
pub const VARIABLE: &str = "VMM_LOG";

/// What is logged when nobody says otherwise.
const DEFAULT: &str = "warn";
const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
/// What the names of log lines begin with: modules of each crate, and names of their own (`vmm::access`).
const PARTS: [(&str, &[&str]); 6] = [
    (
        "vmm",
        &[
            "access",
            "cli",
            "config",
            "console",
            "counters",
            "exit",
            "fc_command",
            "fc_port",
            "jail",
            "keeper",
            "kvm",
            "limits",
            "lines",
            "listen",
            "logging",
            "machine",
            "names",
            "output_file",
            "passed",
            "start",
            "vcpu",
            "vhost",
        ],
    ),
    (
        "devices",
        &[
            "bus",
            "iothread",
            "irq",
            "log",
            "machine",
            "mem",
            "moderation",
            "pci",
            "platform",
            "sandbox",
            "scsi",
            "storage",
            "testing",
            "threads",
        ],
    ),
    ("boot", &["acpi", "cpu", "e820", "firmware", "layout", "linux", "smbios", "testing"]),
    (
        "hba_megasas",
        &["dcmd", "differences", "firmware", "function", "hba", "limits", "model", "spec", "transport"],
    ),
    (
        "hba_virtio_scsi",
        &[
            "config",
            "control",
            "directory",
            "event",
            "fc",
            "function",
            "hba",
            "lun",
            "queue",
            "request",
            "ring",
            "spec",
            "token",
            "transport",
            "vhost",
            "worker",
        ],
    ),
    ("firmware", &[]),
];
const TARGETS: [&str; 6] = ["vmm", "devices", "boot", "hba_megasas", "hba_virtio_scsi", "firmware"];

/// Starts logging for the whole process: `level` wins over the environment. Lines go to the end of `file`, from [`begin`] on,
/// or to standard error.
///
/// # Errors
/// A filter in the environment that means nothing, or a file that cannot be opened.
pub fn start(level: Option<&str>, file: Option<&Path>) -> Result<()> {
    let variable = std::env::var_os(VARIABLE);
    let filter = filter(level, variable.as_deref())?;
    let log = tracing_subscriber::fmt().compact().with_ansi(false).with_env_filter(filter);
    // It would tell on standard error, each time, and panic if that is closed.
    let log = log.log_internal_errors(false);
    let started = match file {
        None => log.with_writer(StandardError).try_init(),
        Some(path) => {
            let file = OpenOptions::new().append(true).create(true).mode(output_file::MODE).open(path);
            let file = file.map_err(|error| anyhow::anyhow!(reason(&error)));
            let file = file.with_context(|| format!("--log-file {}: cannot open", path.display()))?;
            let log_file = LogFile::new(file, path);
            let log_lines = Lines::start("log-file", move |line| log_file.put(line));
            let log_lines = log_lines.context("starting the thread for --log-file")?;
            let held = HELD.get_or_init(|| Held { log: log_lines, lines: Mutex::new(Some(Vec::new())) });
            log.with_writer(held).try_init()
        }
    };
    started.map_err(|error| anyhow::anyhow!("cannot start logging: {error}"))?;
    if let (None, Some(text)) = (level, variable.as_deref().and_then(std::ffi::OsStr::to_str)) {
        silent(text).iter().for_each(|what| tracing::warn!("{VARIABLE}: {what}"));
    }
    // Before the line of a panic, and before the process is gone.
    let previous = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        settle();
        previous(info);
    }));
    Ok(())
}

fn filter(level: Option<&str>, variable: Option<&std::ffi::OsStr>) -> Result<EnvFilter> {
    let text = match (level, variable) {
        (Some(level), _) => level,
        (None, Some(text)) => text.to_str().with_context(|| format!("{VARIABLE}: not UTF-8"))?,
        (None, None) => DEFAULT,
    };
    let text = if text.trim().is_empty() { DEFAULT } else { text };
    let parsed = complete(text).and_then(|text| EnvFilter::try_new(text).map_err(|error| error.to_string()));
    parsed.map_err(|error| {
        let what = format!("{VARIABLE}={text}: {error}");
        anyhow::anyhow!(
            "{what}; expected a level such as \"info\", or a filter such as \"warn,devices=debug\""
        )
    })
}

/// The filter with a level for what it does not name: without one all that would be off, errors too. The library takes any
/// word for a name, so that a misspelt level would hide everything.
fn complete(text: &str) -> Result<String, String> {
    // Fields of spans, for developers, have commas of their own.
    if text.contains('[') {
        return Ok(format!("{DEFAULT},{text}"));
    }
    let parts: Vec<&str> = text.split(',').map(str::trim).filter(|part| !part.is_empty()).collect();
    let mut general = false;
    for part in &parts {
        match part.split_once('=') {
            Some((target, level)) => {
                check_target(target.trim())?;
                check_level(level.trim())?;
            }
            None if is_level(part) => general = true,
            None if is_target(part) => {}
            None => return Err(guess(part, "level", LEVELS.into_iter().chain(TARGETS))),
        }
    }
    let text = parts.join(",");
    Ok(if general { text } else { format!("{DEFAULT},{text}") })
}

fn is_level(word: &str) -> bool {
    LEVELS.iter().any(|level| word.eq_ignore_ascii_case(level))
}

fn is_target(name: &str) -> bool {
    TARGETS.contains(&name.split("::").next().unwrap_or(name))
}

fn check_level(word: &str) -> Result<(), String> {
    if is_level(word) { Ok(()) } else { Err(guess(word, "level", LEVELS)) }
}

fn check_target(name: &str) -> Result<(), String> {
    if is_target(name) { Ok(()) } else { Err(guess(name, "part of this program", TARGETS)) }
}

/// What is wrong with names of a filter by which nothing is logged. No error, for modules come and go.
fn silent(text: &str) -> Vec<String> {
    let names = text.split(',').map(|part| part.split(['=', '[']).next().unwrap_or(part).trim());
    let wrong = |name: &str| {
        let (first, rest) = name.split_once("::")?;
        let second = rest.split("::").next().unwrap_or(rest);
        let (_, known) = PARTS.iter().find(|(part, _)| *part == first)?;
        // A filter takes all that begins with it.
        if known.iter().any(|module| module.starts_with(second)) {
            return None;
        }
        let meant = spell::closest(second, known.iter().copied());
        let hint = meant.map_or_else(String::new, |meant| format!(", did you mean \"{first}::{meant}\"?"));
        Some(format!("nothing is logged by the name \"{name}\"{hint}"))
    };
    names.filter_map(wrong).collect()
}

fn guess(word: &str, what: &str, known: impl IntoIterator<Item = &'static str>) -> String {
    match spell::closest(word, known) {
        Some(meant) => format!("\"{word}\" is no {what}, did you mean \"{meant}\"?"),
        None => format!("\"{word}\" is no {what}"),
    }
}

/// Standard error, each event one write, with the line end that the terminal needs.
struct StandardError;

impl<'a> MakeWriter<'a> for StandardError {
    type Writer = Self;
    fn make_writer(&'a self) -> Self {
        Self
    }
}

impl Write for StandardError {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        match (line_end(), line.strip_suffix(b"\n")) {
            ("", _) | (_, None) => standard_error(line),
            (end, Some(text)) => standard_error(&[text, end.as_bytes(), b"\n"].concat()),
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A log file, each event one write at its end.
struct LogFile {
    file: File,
    path: PathBuf,
    /// A line could not be written, which was said.
    failed: AtomicBool,
}

/// A log file, and the lines of before it was known that the file is nothing that the machine uses.
struct Held {
    log: Arc<Lines>,
    /// `None` once they have gone to where they belong.
    lines: Mutex<Option<Vec<u8>>>,
}

static HELD: OnceLock<Held> = OnceLock::new();

/// The log file is nothing that the machine uses: from now on lines go there, with those of before.
pub fn begin() {
    let Some(held) = HELD.get() else { return };
    if let Some(lines) = held.let_go() {
        held.log.push(&lines);
    }
}

/// There will be no machine: lines of before [`begin`] go to standard error.
pub fn give_up() {
    if let Some(lines) = HELD.get().and_then(Held::let_go) {
        let _ = StandardError.write_all(&lines);
    }
}

impl Held {
    fn let_go(&self) -> Option<Vec<u8>> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl<'a> MakeWriter<'a> for &'static Held {
    type Writer = Self;
    fn make_writer(&'a self) -> Self {
        self
    }
}

impl Write for &Held {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        match self.lines.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
            Some(lines) => lines.extend_from_slice(line),
            None => self.log.push(line),
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl LogFile {
    fn new(file: File, path: &Path) -> Self {
        Self { file, path: path.into(), failed: AtomicBool::new(false) }
    }

    /// Writes lines. That they are lost is said once each time that it begins.
    fn put(&self, lines: &[u8]) {
        if let Some(error) = self.note((&self.file).write_all(lines)) {
            let (path, why) = (self.path.display(), reason(&error));
            complain(format!("--log-file {path}: {why}; lines are lost until it can be written again"));
        }
    }

    /// The error that is to be told of.
    fn note(&self, result: io::Result<()>) -> Option<io::Error> {
        let failed = self.failed.swap(result.is_err(), Ordering::Relaxed);
        result.err().filter(|_| !failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(level: Option<&str>, variable: Option<&str>) -> String {
        match filter(level, variable.map(std::ffi::OsStr::new)) {
            Ok(filter) => filter.to_string(),
            Err(error) => format!("{error:#}"),
        }
    }

    #[test]
    fn the_flag_wins_over_the_environment() {
        assert_eq!(shown(None, None), "warn");
        assert_eq!(shown(None, Some("")), "warn");
        assert_eq!(shown(None, Some("info")), "info");
        assert_eq!(shown(Some("trace"), Some("info")), "trace");
        assert_eq!(shown(Some("off"), Some("no such = filter")), "off");
    }

    #[test]
    fn each_outage_of_the_log_file_is_told() {
        let log = LogFile::new(tempfile::tempfile().unwrap(), Path::new("log"));
        let full = || Err(io::Error::from_raw_os_error(libc::ENOSPC));
        let results = [full(), full(), Ok(()), full(), full(), Ok(()), Ok(())];
        let told = results.map(|result| log.note(result).is_some());
        assert_eq!(told, [true, false, false, true, false, false, false]);
    }

    #[test]
    fn a_filter_that_means_nothing_is_an_error() {
        let error = shown(None, Some("devices=loud"));
        assert!(error.starts_with("VMM_LOG=devices=loud: "), "{error}");
        assert!(error.contains("expected a level such as \"info\""), "{error}");
        for (text, hint) in [
            ("wran", "\"wran\" is no level, did you mean \"warn\"?"),
            ("warning", "\"warning\" is no level"),
            ("7", "\"7\" is no level"),
            ("info firmware=debug", "\"info firmware\" is no part of this program"),
            ("warn,firmwar=debug", "\"firmwar\" is no part of this program, did you mean \"firmware\"?"),
            ("device", "\"device\" is no level, did you mean \"devices\"?"),
            ("devices=9", "\"9\" is no level"),
        ] {
            let error = shown(None, Some(text));
            assert!(error.starts_with(&format!("VMM_LOG={text}: {hint}")), "{error}");
            assert!(error.contains("expected a level such as \"info\""), "{error}");
        }
    }

    #[test]
    fn names_by_which_nothing_is_logged_are_said() {
        let text =
            "warn,vmm::acess=trace,hba_megasas::dcmd=debug,devices::scsi::disk,boot::potato,firmware=info";
        let expected = [
            "nothing is logged by the name \"vmm::acess\", did you mean \"vmm::access\"?",
            "nothing is logged by the name \"boot::potato\"",
        ];
        assert_eq!(silent(text), expected);
        assert!(silent("vmm::acc=trace,vmm").is_empty(), "the beginning of a name is one");
    }

    #[test]
    fn every_module_has_its_name_in_the_list() {
        let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        for (part, known) in PARTS {
            assert!(TARGETS.contains(&part) && known.is_sorted(), "{part}");
            let Ok(sources) = std::fs::read_dir(workspace.join(part.replace('_', "-")).join("src")) else {
                assert_eq!(part, "firmware");
                continue;
            };
            for source in sources {
                let name = source.unwrap().file_name().into_string().unwrap();
                let name = name.trim_end_matches(".rs");
                let no_module = matches!(name, "lib" | "main") || name.ends_with("_tests");
                assert!(no_module || known.contains(&name), "{part}::{name}");
            }
        }
    }

    #[test]
    fn a_filter_for_a_part_keeps_the_errors_of_all_others() {
        let sorted = |text: &str| {
            let mut parts: Vec<_> = text.split(',').map(str::to_owned).collect();
            parts.sort();
            parts.join(",")
        };
        let of = |text| sorted(&shown(None, Some(text)));
        assert_eq!(of("firmware=debug"), "firmware=debug,warn");
        assert_eq!(
            of("vmm::access=trace, hba_megasas::dcmd=debug,"),
            "hba_megasas::dcmd=debug,vmm::access=trace,warn"
        );
        assert_eq!(of("firmware=debug,off"), "firmware=debug,off");
        assert_eq!(of("INFO,devices"), "devices=trace,info");
    }
}
