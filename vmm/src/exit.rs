//! How the process ends, for scripts: one exit code for each outcome.

use std::fmt;
use std::io::{self, Write};
use std::process::ExitCode;

/// Why the process ends. The values are the exit codes and part of the command's interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Outcome {
    /// The guest powered off, or the user quit from the console.
    PoweredOff = 0,
    /// The host, the configuration or the command line is at fault; a line on standard error says how.
    Failed = 1,
    /// The guest reset, and resets end the process (`--no-reboot`, `on_reset = "exit"`).
    Reset = 2,
    /// The guest crashed with a triple fault, and crashes end the process (`--no-reboot`, `on_crash = "exit"`).
    Crashed = 3,
}

impl From<Outcome> for ExitCode {
    fn from(outcome: Outcome) -> Self {
        Self::from(outcome as u8)
    }
}

/// The exit codes for `--help`.
pub const HELP: &str = "\
Exit codes:
  0  the guest powered off, or you quit with Ctrl-A x
  1  the host, the configuration or the command line is at fault
  2  the guest reset and resets are not allowed
  3  the guest crashed (triple fault) and crashes are not restarted
  A signal ends the process in its own way: a shell shows 128 plus its number.";

/// Writes what the user asked for to standard output.
pub fn tell(text: &str) {
    // A reader that has seen enough may close the pipe.
    let _ = io::stdout().write_all(text.as_bytes());
}

/// Tells the operator what went wrong, on one line of standard error.
pub fn complain(what: impl fmt::Display) {
    let line = format!("vmm: error: {}", what.to_string().replace(char::is_control, " "));
    // Where standard error is closed there is nobody left to tell.
    let _ = writeln!(io::stderr(), "{line}{}", crate::logging::line_end());
}
