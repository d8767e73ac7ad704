//! The commands of the test bed.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use testbed::bed::{self, Bed, Prepared};
use testbed::host::{Event, Process};
use testbed::level1::Level1;
use testbed::wire::Launch;
use testbed::{agent, report};

/// Prepares and runs everything needed to test the vmm with stock guests.
#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    command: Cmd,
}

#[derive(Subcommand)]
enum Cmd {
    /// Fetch and build all that is needed, into the cache.
    Prepare,
    /// Keep the machine in which guests run alive between runs.
    Level1 {
        #[command(subcommand)]
        action: Level1Action,
    },
    /// Run a command where guests run.
    Exec {
        /// The command and its arguments.
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        words: Vec<String>,
    },
    /// Serve a test bed (used by the test bed itself).
    #[command(hide = true)]
    Agent {
        /// Name of the virtio-serial port; without it, standard input is a socket.
        #[arg(long)]
        port: Option<String>,
    },
}

#[derive(Clone, Copy, Subcommand)]
enum Level1Action {
    /// Start it, to stay.
    Start,
    /// Stop it.
    Stop,
    /// Say whether it runs.
    Status,
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("testbed: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Cmd) -> Result<ExitCode> {
    match command {
        Cmd::Prepare => Prepared::new().map(|_| ExitCode::SUCCESS),
        Cmd::Level1 { action } => level1(action),
        Cmd::Exec { words } => exec(words),
        Cmd::Agent { port: Some(name) } => agent::serve_port(&name).map(|()| ExitCode::SUCCESS),
        Cmd::Agent { port: None } => agent::serve_input().map(|()| ExitCode::SUCCESS),
    }
}

fn level1(action: Level1Action) -> Result<ExitCode> {
    let _lock = bed::lock()?;
    let found = Level1::find()?;
    match (action, found) {
        (Level1Action::Start, None) => {
            let prepared = Prepared::new()?;
            let (level1, _host) = report::step("starting level 1", || prepared.level1(true))?;
            report::note(&format!("level 1 is process {}", level1.pid()));
            level1.leave();
        }
        (Level1Action::Stop, Some((level1, host))) => {
            drop(host);
            level1.stop()?;
        }
        (_, Some((level1, _))) => report::note(&format!("level 1 is process {}", level1.pid())),
        (_, None) => report::note("level 1 does not run"),
    }
    Ok(ExitCode::SUCCESS)
}

fn exec(words: Vec<String>) -> Result<ExitCode> {
    let bed = Bed::new()?;
    let mut process = bed.host().start(&Launch { words, ..Launch::default() })?;
    process.end_input()?;
    let code = copy_out(&mut process)?;
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)))
}

fn copy_out(process: &mut Process) -> Result<i32> {
    use std::io::Write;
    loop {
        match process.next(Duration::from_secs(3600))? {
            Event::Output(bytes) => std::io::stdout().lock().write_all(&bytes).context("writing")?,
            Event::Errors(bytes) => std::io::stderr().lock().write_all(&bytes).context("writing")?,
            Event::Ended(status) => return Ok(status.code().unwrap_or(1)),
            Event::Nothing => (),
        }
    }
}
