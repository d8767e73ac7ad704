//! `vmm --config FILE`: runs a virtual machine.

use std::process::ExitCode;
use std::time::Instant;

use vmm::cli::{self, LogLevel, Stop};
use vmm::config::Restart;
use vmm::exit::{Outcome, complain, tell};
use vmm::machine::Machine;
use vmm::{config, logging};

fn main() -> ExitCode {
    run().into()
}

fn run() -> Outcome {
    let start = Instant::now();
    let cli = match cli::parse() {
        Ok(cli) => cli,
        Err(Stop::Told(text)) => {
            tell(&text);
            return Outcome::PoweredOff;
        }
        Err(Stop::Usage(line)) => {
            complain(line);
            return Outcome::Failed;
        }
    };
    if let Err(error) = logging::start(cli.log_level.map(LogLevel::name), cli.log_file.as_deref()) {
        complain(format!("{error:#}"));
        return Outcome::Failed;
    }
    let config = match config::load(&cli.config, &cli.set) {
        Ok(config) => config,
        Err(errors) => {
            errors.iter().for_each(complain);
            return Outcome::Failed;
        }
    };
    if cli.check {
        tell(&format!("{}: OK, {}\n", cli.config.display(), config.summary()));
        return Outcome::PoweredOff;
    }
    let mut config = config;
    if cli.no_reboot {
        config.vm.on_reset = Restart::Exit;
        config.vm.on_crash = Restart::Exit;
    }
    match Machine::build(config, start) {
        Ok(machine) => machine.run(),
        Err(error) => {
            complain(format!("{error:#}"));
            Outcome::Failed
        }
    }
}
