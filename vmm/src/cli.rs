//! The command line.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{CommandFactory, Parser, ValueEnum};

use crate::exit;

/// Where to read of the options.
const HELP: &str = "vmm --help";

/// Runs a virtual machine on Linux KVM.
#[derive(Clone, Debug, Parser)]
#[command(name = "vmm", version, after_help = exit::HELP, before_help = "vmm fc --help tells of Fibre Channel ports of the host")]
pub struct Cli {
    /// The machine's configuration, a TOML file; docs/configuration.md describes its keys
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,

    /// Check the configuration and the files it names, print one line and start nothing
    #[arg(long)]
    pub check: bool,

    /// Set a key of the configuration, as if the file had it so: vm.cpus=4, hba.0.lun.1.image=b.img,
    /// hba.scsi0.queues=2. VALUE is TOML or, failing that, plain text. May be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,

    /// Take descriptor N, which is open for this process, into set M: an image may be called /dev/fdset/M then. May be
    /// repeated
    #[arg(long, value_name = "fd=N,set=M[,opaque=TEXT]")]
    pub add_fd: Vec<String>,

    /// How much to log; without it the filter in VMM_LOG decides, such as "info" or "warn,devices=debug"
    #[arg(long, value_name = "LEVEL", ignore_case = true)]
    pub log_level: Option<LogLevel>,

    /// Append the log to FILE instead of writing it to standard error
    #[arg(long, value_name = "FILE")]
    pub log_file: Option<PathBuf>,

    /// End the process when the guest resets or crashes, whatever the configuration says
    #[arg(long)]
    pub no_reboot: bool,
}

/// How much is logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogLevel {
    /// Nothing.
    Off,
    /// What ends the machine or loses data.
    Error,
    /// What the operator should look at (the default).
    Warn,
    /// The life of the machine.
    Info,
    /// For developers.
    Debug,
    /// Everything.
    Trace,
}

impl LogLevel {
    /// The level as a filter.
    pub fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }
}

/// Why there is nothing to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The help or the version was asked for: the text for standard output.
    Told(String),
    /// The command line is wrong: one line that says how.
    Usage(String),
}

/// Reads the process's command line.
///
/// # Errors
/// [`Stop`] when no machine was asked for.
pub fn parse() -> Result<Cli, Stop> {
    parse_from(std::env::args_os())
}

/// Reads a command line, which begins with the name of the program.
///
/// # Errors
/// [`Stop`] when no machine was asked for.
pub fn parse_from(arguments: impl IntoIterator<Item = OsString>) -> Result<Cli, Stop> {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    if let Some(word) = arguments.iter().skip(1).find_map(|argument| one_dash(argument.to_str()?)) {
        return Err(Stop::Usage(
            one_line(&format!("unexpected argument '{word}' found"), HELP) + &elsewhere(word),
        ));
    }
    Cli::try_parse_from(arguments).map_err(|error| match stop(&error, HELP) {
        Stop::Usage(line) if error.kind() == ErrorKind::UnknownArgument => {
            Stop::Usage(line + &elsewhere(unknown(&error)))
        }
        stop => stop,
    })
}

/// Reads a command line of another kind, of which `help` tells.
///
/// # Errors
/// [`Stop`] when nothing was asked for.
pub(crate) fn read_with<P: Parser>(
    arguments: impl IntoIterator<Item = OsString>,
    help: &str,
) -> Result<P, Stop> {
    P::try_parse_from(arguments).map_err(|error| stop(&error, help))
}

fn stop(error: &clap::Error, help: &str) -> Stop {
    let text = error.to_string();
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => Stop::Told(text),
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => Stop::Usage(format!("no command; see {help}")),
        _ => Stop::Usage(one_line(&text, help)),
    }
}

/// An option as QEMU has them: a word after one dash. For the parser it would be options of one letter each, of which `-h` gives
/// the help.
fn one_dash(argument: &str) -> Option<&str> {
    let name = argument.strip_prefix('-')?;
    (name.len() > 1 && name.starts_with(|c: char| c.is_ascii_alphabetic()) && name != "help")
        .then_some(argument)
}

fn unknown(error: &clap::Error) -> &str {
    match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::String(unknown)) => unknown,
        _ => "",
    }
}

/// Where to find what options of other machine monitors stand for.
fn elsewhere(option: &str) -> String {
    let name = option.trim_start_matches('-').split('=').next().unwrap_or_default();
    let sandbox = [
        "seccomp",
        "no-seccomp",
        "seccomp-level",
        "sandbox",
        "no-sandbox",
        "disable-sandbox",
        "landlock",
        "landlock-rules",
        "runas",
        "run-with",
        "chroot",
        "chroot-base-dir",
        "user",
        "uid",
        "gid",
        "jailer",
    ];
    if sandbox.contains(&name) {
        return "; the sandbox (on by default) and the user are in [security] of the configuration (docs/jail.md)".into();
    }
    if one_dash(option).is_none() {
        return String::new();
    }
    match Cli::command().get_arguments().any(|ours| ours.get_long() == Some(name)) {
        true => format!("; it is --{name} here"),
        false => "; what the machine is made of is in its configuration (docs/configuration.md)".into(),
    }
}

/// The message of a usage error as one line: what stands before the usage, and where to read more.
fn one_line(text: &str, help: &str) -> String {
    let text = text.split("\n\nUsage:").next().unwrap_or(text);
    let text = text.split("\n\nFor more").next().unwrap_or(text);
    let words: Vec<&str> = text.strip_prefix("error: ").unwrap_or(text).split_whitespace().collect();
    format!("{}; see {help}", words.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(arguments: &[&str]) -> Result<Cli, Stop> {
        parse_from(["vmm"].iter().chain(arguments).map(OsString::from))
    }

    fn usage(arguments: &[&str]) -> String {
        match read(arguments) {
            Err(Stop::Usage(line)) => line,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn clap_accepts_the_definition() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_option_is_read() {
        let cli = read(&[
            "--config",
            "a.toml",
            "--set",
            "vm.cpus=2",
            "--set",
            "boot.cmdline=a=b",
            "--check",
            "--add-fd",
            "fd=3,set=1",
            "--no-reboot",
            "--log-level",
            "DEBUG",
            "--log-file",
            "l",
        ])
        .unwrap();
        assert_eq!(cli.config, PathBuf::from("a.toml"));
        assert_eq!(cli.set, ["vm.cpus=2", "boot.cmdline=a=b"]);
        assert_eq!(cli.add_fd, ["fd=3,set=1"]);
        assert!(cli.check && cli.no_reboot);
        assert_eq!(cli.log_level.map(LogLevel::name), Some("debug"));
        assert_eq!(cli.log_file, Some(PathBuf::from("l")));
        let cli = read(&["--config", "a.toml"]).unwrap();
        assert!(!cli.check && !cli.no_reboot && cli.log_level.is_none() && cli.log_file.is_none());
    }

    #[test]
    fn usage_errors_are_one_line() {
        assert_eq!(
            usage(&[]),
            "the following required arguments were not provided: --config <FILE>; see vmm --help"
        );
        assert_eq!(
            usage(&["--confg", "x"]),
            "unexpected argument '--confg' found tip: a similar argument exists: '--config'; see vmm --help"
        );
        assert_eq!(
            usage(&["--config", "x", "--log-level", "loud"]),
            "invalid value 'loud' for '--log-level <LEVEL>' \
             [possible values: off, error, warn, info, debug, trace]; see vmm --help"
        );
        for option in ["--seccomp", "--sandbox=on", "--landlock", "--runas"] {
            let line = usage(&["--config", "x", option]);
            let end = "see vmm --help; the sandbox (on by default) and the user are in [security] of the configuration \
                       (docs/jail.md)";
            assert!(line.starts_with("unexpected argument '--") && line.ends_with(end), "{line}");
        }
        for option in ["--no-sandbox", "--no-seccomp"] {
            assert!(usage(&["--config", "x", option]).ends_with("(docs/jail.md)"), "{option}");
        }
        assert_eq!(usage(&["--config", "x", "y"]), "unexpected argument 'y' found; see vmm --help");
    }

    /// Its options have one dash.
    #[test]
    fn options_of_qemu_are_named_as_they_were_typed() {
        let sandbox =
            "the sandbox (on by default) and the user are in [security] of the configuration (docs/jail.md)";
        let machine = "what the machine is made of is in its configuration (docs/configuration.md)";
        for (arguments, end) in [
            (&["-sandbox", "on,obsolete=deny,spawn=deny"][..], sandbox),
            (&["-runas", "vm"], sandbox),
            (&["-run-with", "user=vm"], sandbox),
            (&["-chroot", "/srv"], sandbox),
            (&["-add-fd", "fd=7,set=1,opaque=data"], "it is --add-fd here"),
            (&["-no-reboot"], "it is --no-reboot here"),
            (&["-set", "vm.cpus=2"], "it is --set here"),
            (&["-smp", "4"], machine),
            (&["-kernel", "vmlinuz"], machine),
            (&["-append", "console=ttyS0"], machine),
            (&["-drive", "file=disk.img,if=none,id=d0"], machine),
            (&["-enable-kvm"], machine),
            // Which is no help.
            (&["-hda", "disk.img"], machine),
        ] {
            let line = format!("unexpected argument '{}' found; see vmm --help; {end}", arguments[0]);
            assert_eq!(usage(arguments), line);
            assert_eq!(usage(&[&["--config", "x"], arguments].concat()), line);
        }
        assert_eq!(usage(&["--config", "x", "-m", "1G"]), "unexpected argument '-m' found; see vmm --help");
        assert!(
            matches!(read(&["-h"]), Err(Stop::Told(_))) && matches!(read(&["-help"]), Err(Stop::Told(_)))
        );
        assert!(matches!(read(&["-V"]), Err(Stop::Told(_))));
    }

    #[test]
    fn help_names_every_exit_code() {
        let Err(Stop::Told(help)) = read(&["--help"]) else { panic!() };
        for line in ["  0  the guest powered off", "  1  ", "  2  ", "  3  ", "--config <FILE>", "VMM_LOG"] {
            assert!(help.contains(line), "{line}\n{help}");
        }
        let Err(Stop::Told(version)) = read(&["--version"]) else { panic!() };
        assert_eq!(version, format!("vmm {}\n", env!("CARGO_PKG_VERSION")));
    }
}
