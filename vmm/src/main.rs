//! `vmm --config FILE`: runs a virtual machine. `vmm fc`: Fibre Channel ports of the host.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use vmm::cli::{self, LogLevel, Stop};
use vmm::config::{Restart, Sandbox, Source};
use vmm::console::{Signals, Watch, die, explain_bus_errors, let_signals_end};
use vmm::exit::{Outcome, complain, explain, tell};
use vmm::fc_port::{self, FcPorts};
use vmm::keeper::Keeper;
use vmm::machine::{End, Machine, rehearse};
use vmm::{config, fc_command, jail, limits, logging, passed};

/// How long a signal that ends the process waits for the start, so that it ends in good order. A machine has its
/// `shutdown_timeout` for that.
const GRACE: Duration = Duration::from_secs(2);

/// How long its end may take beside what waits for the host: the console, the logs.
const REST: Duration = Duration::from_secs(15);

fn main() -> ExitCode {
    let outcome = run();
    logging::settle();
    outcome.into()
}

fn run() -> Outcome {
    let start = Instant::now();
    limits::survive_file_sizes();
    jail::narrow_output();
    // Without it such an end has no line of its own, and that is all.
    let _ = explain_bus_errors();
    if let Some(outcome) = fc_command::run(std::env::args_os()) {
        return outcome;
    }
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
    // It may be on a host that does not answer. Signals end the process meanwhile, for nothing has begun that has an end.
    let_signals_end();
    let source = Source::read(&cli.config, &cli.set);
    // A process with one thread has a child that is whole, and it hears the kernel in the host's namespaces only.
    let keeper = (!cli.check && source.has_host_devices()).then(|| Keeper::start(source.sandbox()));
    // The same of the process that has the virtual ports of Fibre Channel.
    let ports = (!cli.check && source.has_virtual_ports()).then(|| FcPorts::start(source.sandbox()));
    // The kernel lets only a process with one thread have namespaces of its own.
    if source.sandbox() == Sandbox::On {
        if cli.check {
            jail::look();
        } else if let Err(error) = jail::separate() {
            complain(explain(&error));
            return Outcome::Failed;
        }
    }
    // Before any thread, so that all inherit it.
    let signals = match Signals::block() {
        Ok(signals) => Arc::new(signals),
        Err(error) => {
            complain(format!("blocking signals: {error}"));
            return Outcome::Failed;
        }
    };
    // Logs, images and kernels may be on a host that does not answer.
    let watch = Watch::start(&signals, GRACE);
    if let Err(error) = logging::start(cli.log_level.map(LogLevel::name), cli.log_file.as_deref()) {
        complain(explain(&error));
        return Outcome::Failed;
    }
    if let Err(error) = &watch {
        tracing::warn!("no thread for signals that the main thread does not hear: {error}");
    }
    if let Err(error) = passed::take(&cli.add_fd) {
        logging::give_up();
        complain(explain(&error));
        return Outcome::Failed;
    }
    let config = match config::load(source, cli.log_file.as_deref()) {
        Ok(config) => config,
        Err(errors) => {
            logging::give_up();
            errors.iter().for_each(complain);
            return Outcome::Failed;
        }
    };
    logging::begin();
    if cli.check {
        let problems = rehearse(&config);
        problems.iter().for_each(complain);
        if !problems.is_empty() {
            return Outcome::Failed;
        }
        let sandbox = jail::describe(&config);
        tell(&format!("{}: OK, {}; sandbox: {sandbox}\n", cli.config.display(), config.summary()));
        return Outcome::PoweredOff;
    }
    let mut config = config;
    if cli.no_reboot {
        config.vm.on_reset = Restart::Exit;
        config.vm.on_crash = Restart::Exit;
    }
    if config.security.sandbox == Sandbox::On
        && let Err(error) = passed::find_others()
    {
        tracing::warn!("what was open at the start stays so, for /proc is needed to close it: {error}");
    }
    if let Err(error) = limits::raise_open_files() {
        tracing::warn!("the limit of open files stays as it is: {error}");
    }
    let ports_time = if ports.is_some() { fc_port::REMOVAL } else { Duration::ZERO };
    let end = config.vm.shutdown_timeout + ports_time + REST;
    let machine = match Machine::build(config, signals, keeper, ports, start) {
        Ok(machine) => machine,
        Err(error) => {
            complain(explain(&error));
            return Outcome::Failed;
        }
    };
    if let Ok(watch) = &watch {
        watch.allow(end);
    }
    match machine.run() {
        End::Exit(outcome) => outcome,
        End::Signal(number) => die(number),
    }
}
