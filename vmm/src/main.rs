//! `vmm --config FILE`: runs a virtual machine.

use std::process::ExitCode;

use vmm::cli::{self, LogLevel, Stop};
use vmm::exit::{Outcome, complain, tell};
use vmm::{config, logging};

fn main() -> ExitCode {
    run().into()
}

fn run() -> Outcome {
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
    complain("this build checks configurations only");
    Outcome::Failed
}
