//! The commands of the test bed.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use testbed::bed::{self, Bed, Prepared};
use testbed::bench_plan::{Engine, HALT_POLL_DEFAULT, Plan, QemuSuite};
use testbed::guest::{HbaKind, Vmm};
use testbed::host::{Event, Process};
use testbed::kernel::Debian;
use testbed::level1::Level1;
use testbed::runner::{self, Count, Test};
use testbed::wire::Launch;
use testbed::{
    agent, bench, bench_conditions, bench_mixed, bench_passed, bench_storage, ci, demo, fuzz, fuzz_corpus,
    fuzz_coverage, guest_module, proofs, report,
};

#[path = "../boot/mod.rs"]
mod boot;

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
    /// Boot Debian 13 and attach this terminal to it.
    Demo {
        /// Boot a small initramfs to a shell instead.
        #[arg(long)]
        quick: bool,
        /// Run the guest under QEMU instead of our VMM.
        #[arg(long)]
        qemu: bool,
    },
    /// Run boot tests.
    BootTests {
        /// Only list them.
        #[arg(long)]
        list: bool,
        /// The tests that take long instead, which CI does not run.
        #[arg(long)]
        soak: bool,
        /// Run the guests under QEMU instead of our VMM.
        #[arg(long)]
        qemu: bool,
        /// Run only tests whose name holds one of these.
        filters: Vec<String>,
    },
    /// Measure our VMM against QEMU.
    Bench {
        /// What to measure.
        what: Measure,
        /// How often to measure each [default: 3; of conditions 2, or 1 with --quick].
        #[arg(long)]
        rounds: Option<u32>,
        /// Measure only QEMU.
        #[arg(long)]
        qemu: bool,
        #[command(flatten)]
        storage: Box<StorageArgs>,
    },
    /// Build the fuzz targets and run them one after the other.
    Fuzz {
        /// How long each runs.
        #[arg(long, default_value_t = 60)]
        seconds: u64,
        /// Only list them.
        #[arg(long)]
        list: bool,
        /// Run only what the repository keeps, once, without libFuzzer: as `cargo ci` does.
        #[arg(long, group = "instead")]
        replay: bool,
        /// The same, to say which lines it reaches.
        #[arg(long, group = "instead")]
        coverage: bool,
        /// Keep what the cache has in the repository, as the smallest set that reaches as much.
        #[arg(long, group = "instead")]
        keep: bool,
        /// Only targets whose name holds one of these.
        filters: Vec<String>,
    },
    /// Run unit tests under Miri, which finds undefined behaviour.
    Proofs {
        /// Only tests whose crate or module holds one of these.
        filters: Vec<String>,
    },
    /// Run everything that has to pass before a change is taken.
    Ci,
    /// Send lines to a control socket in one packet and print the answers (used by tests).
    #[command(hide = true)]
    Ask {
        /// The socket.
        socket: String,
        /// The requests.
        #[arg(required = true)]
        lines: Vec<String>,
    },
    /// Serve a test bed (used by the test bed itself).
    #[command(hide = true)]
    Agent {
        /// Name of the virtio-serial port; without it, standard input is a socket.
        #[arg(long)]
        port: Option<String>,
    },
}

/// What `bench storage`, `bench passed` and `bench conditions` take besides.
#[derive(clap::Args)]
struct StorageArgs {
    /// The HBA that is measured.
    #[arg(long, value_enum, default_value = "virtio-scsi")]
    hba: Hba,
    /// Fewer workloads, in three minutes instead of half an hour; of conditions, shorter ones.
    #[arg(long)]
    quick: bool,
    /// Instead, a small reader beside a greedy one, with two vCPUs and two queues.
    #[arg(long)]
    mixed: bool,
    /// Instead, writes of 4 KiB that are to be stable, by fdatasync and by O_SYNC.
    #[arg(long)]
    forced: bool,
    /// Number of vCPUs, and so of queues.
    #[arg(long, default_value_t = 1)]
    cpus: u32,
    /// With --quick: each workload on every vCPU at once.
    #[arg(long)]
    spread: bool,
    /// Only workloads whose name holds one of these words.
    #[arg(long)]
    only: Vec<String>,
    /// Cache mode of the disk.
    #[arg(long, default_value = "none")]
    cache: String,
    /// With what fio in the guest asks for I/O.
    #[arg(long, value_enum, default_value = "io_uring")]
    engine: Engine,
    /// The guest's kernel: Linux 6.1 of Debian 12, or 6.12 of 13.
    #[arg(long, default_value_t = 13, value_parser = clap::value_parser!(u32).range(12..=13))]
    debian: u32,
    /// KVM's halt_poll_ns while it is measured: nanoseconds, or `default`. Level 1 has 0 else.
    #[arg(long, value_parser = halt_poll)]
    halt_poll: Option<u32>,
    /// The clock where guests run while it is measured: tsc, hpet or acpi_pm.
    #[arg(long)]
    clocksource: Option<String>,
    /// The Debian suite whose QEMU it is measured against.
    #[arg(long, value_enum, default_value = "trixie")]
    qemu_suite: QemuSuite,
    /// A key of our `[[hba]]`, as KEY=VALUE.
    #[arg(long)]
    key: Vec<String>,
    /// Measure this Cloud Hypervisor too, with virtio-blk.
    #[arg(long)]
    cloud_hypervisor: Option<PathBuf>,
    /// Of conditions: only those whose name holds one of these words.
    #[arg(long)]
    condition: Vec<String>,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Measure {
    /// Time to the login prompt.
    Boot,
    /// Memory beyond the guest's own.
    Memory,
    /// Operations, bandwidth and CPU time of a disk.
    Storage,
    /// A device of the host, as an image and passed through, and passed through by QEMU.
    Passed,
    /// A disk under one condition after the other: guest, host, clock, QEMU, adapter.
    Conditions,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Hba {
    VirtioScsi,
    Megasas,
}

impl Hba {
    fn kind(self) -> HbaKind {
        match self {
            Self::VirtioScsi => HbaKind::Virtio,
            Self::Megasas => HbaKind::Megasas,
        }
    }
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
        Cmd::Prepare => prepare().map(|()| ExitCode::SUCCESS),
        Cmd::Level1 { action } => level1(action),
        Cmd::Exec { words } => exec(words),
        Cmd::Demo { quick, qemu } => demo::run(quick, which(qemu)).map(|()| ExitCode::SUCCESS),
        Cmd::BootTests { list, qemu, soak, filters } => {
            let tests = if soak { boot::SOAK } else { boot::TESTS };
            Ok(boot_tests(tests, list, which(qemu), &filters)?)
        }
        Cmd::Bench { what, rounds, qemu, storage } => {
            let bed = Bed::new()?;
            let which: &[Vmm] = if qemu { &[Vmm::Qemu] } else { &[Vmm::Ours, Vmm::Qemu] };
            let often = rounds.unwrap_or(3);
            match what {
                Measure::Boot => bench::boot(&bed, often, which)?,
                Measure::Memory => bench::memory(&bed, often, which)?,
                Measure::Conditions => {
                    bench_conditions::run(&bed, rounds, storage.quick, &storage.condition, &storage.only)?;
                }
                Measure::Storage => measure_storage(&bed, *storage, often, which)?,
                Measure::Passed => bench_passed::run(&bed, &plan(*storage, often))?,
            }
            Ok(ExitCode::SUCCESS)
        }
        Cmd::Fuzz { list: true, filters, .. } => {
            fuzz::select(&filters)?.iter().for_each(|name| println!("{name}"));
            Ok(ExitCode::SUCCESS)
        }
        Cmd::Fuzz { seconds, filters, replay, coverage, keep, .. } => {
            match (replay, coverage, keep) {
                (true, ..) => fuzz_corpus::replay(&filters)?,
                (_, true, _) => fuzz_coverage::run(&filters)?,
                (.., true) => fuzz::keep(&filters)?,
                _ => fuzz::run(&filters, seconds)?,
            }
            Ok(ExitCode::SUCCESS)
        }
        Cmd::Proofs { filters } => proofs::run(&filters).map(|()| ExitCode::SUCCESS),
        Cmd::Ci => Ok(if ci::run(boot::TESTS) { ExitCode::SUCCESS } else { ExitCode::FAILURE }),
        Cmd::Ask { socket, lines } => ask(&socket, &lines).map(|()| ExitCode::SUCCESS),
        Cmd::Agent { port: Some(name) } => agent::serve_port(&name).map(|()| ExitCode::SUCCESS),
        Cmd::Agent { port: None } => agent::serve_input().map(|()| ExitCode::SUCCESS),
    }
}

fn prepare() -> Result<()> {
    let prepared = Prepared::new(&Debian::ALL)?;
    for debian in Debian::ALL {
        guest_module::build(debian, prepared.kernel(debian)?)?;
    }
    Ok(())
}

fn measure_storage(bed: &Bed, args: StorageArgs, rounds: u32, which: &[Vmm]) -> Result<()> {
    if args.mixed {
        let seconds = if args.quick { 5 } else { 10 };
        return bench_mixed::run(bed, args.hba.kind(), rounds, seconds, &args.key, which);
    }
    let plan = plan(args, rounds);
    let mut which = which.to_vec();
    which.extend(plan.cloud_hypervisor.as_ref().map(|_| Vmm::CloudHypervisor));
    bench_storage::run(bed, &plan, &which)
}

fn plan(args: StorageArgs, rounds: u32) -> Plan {
    Plan {
        hba: args.hba.kind(),
        rounds,
        quick: args.quick,
        cpus: args.cpus,
        spread: args.spread,
        only: args.only,
        forced: args.forced,
        cache: args.cache,
        engine: args.engine,
        debian: if args.debian == 12 { Debian::Bookworm } else { Debian::Trixie },
        halt_poll: args.halt_poll,
        clock: args.clocksource,
        qemu: args.qemu_suite,
        keys: args.key,
        cloud_hypervisor: args.cloud_hypervisor,
        ..Plan::default()
    }
}

/// A number of nanoseconds, or what Linux has where nobody sets it.
fn halt_poll(text: &str) -> Result<u32> {
    if text == "default" {
        Ok(HALT_POLL_DEFAULT)
    } else {
        text.parse().context("neither default nor nanoseconds")
    }
}

fn which(qemu: bool) -> Vmm {
    if qemu { Vmm::Qemu } else { Vmm::Ours }
}

fn boot_tests(tests: &[Test], list: bool, vmm: Vmm, filters: &[String]) -> Result<ExitCode> {
    let tests = runner::select(tests, filters);
    if list {
        tests.iter().for_each(|test| println!("{}", test.name));
        return Ok(ExitCode::SUCCESS);
    }
    if vmm == Vmm::Ours {
        bed::build_vmm()?;
    }
    let mut bed = Bed::new()?;
    let mut count = Count::default();
    runner::run(&mut bed, vmm, &tests, &mut count);
    println!("{}", count.summary());
    Ok(if count.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn level1(action: Level1Action) -> Result<ExitCode> {
    let _lock = bed::lock()?;
    let found = Level1::find()?;
    match (action, found) {
        (Level1Action::Start, None) => {
            let prepared = Prepared::new(&Debian::ALL)?;
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

fn ask(socket: &str, lines: &[String]) -> Result<()> {
    use std::io::{BufRead, BufReader, Write};
    let mut stream = std::os::unix::net::UnixStream::connect(socket).context(socket.to_string())?;
    stream.write_all(format!("{}\n", lines.join("\n")).as_bytes())?;
    let mut answers = BufReader::new(stream);
    for _ in lines {
        let mut answer = String::new();
        answers.read_line(&mut answer)?;
        print!("{answer}");
    }
    Ok(())
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
