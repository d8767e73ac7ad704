//! Runs each input of the repository once, as plain programs without libFuzzer: `replay FOLDER RESULTS [WORD...]`, where the
//! folder has `corpus` and `seeds` in it and an input that ends a target is left in `RESULTS`. Only targets whose name holds one of
//! the words are run, or `=NAME` alone. `replay --alone NAME FILE` runs one input, as the first of a process.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)]

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use std::{env, fs, panic, process, thread};

use fuzz::corpus;

macro_rules! targets {
    ($($module:ident $name:literal $file:literal;)*) => {
        $(#[path = $file] mod $module;)*
        /// What is there to run.
        const TARGETS: &[(&str, fn(&[u8]))] = &[$(($name, $module::run)),*];
    };
}

targets! {
    configuration "configuration" "../targets/configuration.rs";
    control_lines "control-lines" "../targets/control_lines.rs";
    event_logs "event-logs" "../targets/event_logs.rs";
    generic_commands "generic-commands" "../targets/generic_commands.rs";
    kernel_images "kernel-images" "../targets/kernel_images.rs";
    megasas_dcmds "megasas-dcmds" "../targets/megasas_dcmds.rs";
    megasas_frames "megasas-frames" "../targets/megasas_frames.rs";
    megasas_registers "megasas-registers" "../targets/megasas_registers.rs";
    platform_ports "platform-ports" "../targets/platform_ports.rs";
    protection_files "protection-files" "../targets/protection_files.rs";
    qcow2_images "qcow2-images" "../targets/qcow2_images.rs";
    scsi_commands "scsi-commands" "../targets/scsi_commands.rs";
    scsi_copies "scsi-copies" "../targets/scsi_copies.rs";
    scsi_lists "scsi-lists" "../targets/scsi_lists.rs";
    virtio_registers "virtio-registers" "../targets/virtio_registers.rs";
    virtio_rings "virtio-rings" "../targets/virtio_rings.rs";
}

/// One input takes milliseconds; a machine may be busy.
const PATIENCE: Duration = Duration::from_secs(120);

/// The input that runs.
struct Current {
    target: &'static str,
    input: Vec<u8>,
    since: Instant,
}

static CURRENT: Mutex<Option<Current>> = Mutex::new(None);

/// What races is tried so often, each time for so long.
const TRIES: usize = 20;
const ALONE: Duration = Duration::from_secs(20);

fn main() {
    let mut words = env::args().skip(1);
    if env::args().nth(1).as_deref() == Some("--alone") {
        return alone(&words.nth(1).expect("a target"), &words.next().expect("an input"));
    }
    let folder = PathBuf::from(words.next().expect("a folder"));
    let results = PathBuf::from(words.next().expect("a folder for results"));
    let words: Vec<String> = words.collect();
    watch(results.clone());
    // Whichever thread it is.
    let tell = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        tell(info);
        fail(&results, "ended by a panic", true);
    }));
    for (name, run) in TARGETS {
        let is_meant = |word: &String| {
            word.strip_prefix('=').map_or(name.contains(word.as_str()), |exact| exact == *name)
        };
        if !words.is_empty() && !words.iter().any(is_meant) {
            continue;
        }
        let inputs = corpus::of(&folder, name);
        assert!(!inputs.is_empty(), "there is no input for {name}");
        let (count, begin) = (inputs.len(), Instant::now());
        for input in inputs {
            *lock() = Some(Current { target: name, input: input.clone(), since: Instant::now() });
            run(&input);
        }
        *lock() = None;
        println!("{name}: {count} inputs, {:.1} s", begin.elapsed().as_secs_f64());
    }
}

fn lock() -> std::sync::MutexGuard<'static, Option<Current>> {
    CURRENT.lock().unwrap_or_else(PoisonError::into_inner)
}

fn watch(results: PathBuf) {
    thread::spawn(move || {
        loop {
            thread::sleep(Duration::from_secs(1));
            if lock().as_ref().is_some_and(|current| current.since.elapsed() > PATIENCE) {
                fail(&results, &format!("takes more than {} s", PATIENCE.as_secs()), false);
            }
        }
    });
}

/// Runs one input.
fn alone(target: &str, path: &str) {
    let input = fs::read(path).expect("an input");
    let (_, run) = TARGETS.iter().find(|(name, _)| *name == target).expect("a target");
    panic::set_hook(Box::new(|_| process::exit(1)));
    thread::spawn(|| {
        thread::sleep(ALONE);
        process::exit(1)
    });
    run(&input);
}

/// Whether an input ends a process in which nothing was before it.
fn again(target: &str, path: &Path) -> String {
    let Ok(program) = env::current_exe() else { return "it was not tried alone".into() };
    let ends = |_: &usize| {
        let mut program = process::Command::new(&program);
        program.args(["--alone", target]).arg(path);
        program.stdout(process::Stdio::null()).stderr(process::Stdio::null());
        program.status().is_ok_and(|status| !status.success())
    };
    match (1..=TRIES).find(ends) {
        Some(1) => "the input alone does that, too".into(),
        Some(tries) => format!("the input alone does that now and then: at try {tries}"),
        None => {
            format!("the input alone did not do that in {TRIES} tries: it takes those before it, or luck")
        }
    }
}

/// Says which input it was, leaves it, and ends the process.
fn fail(results: &Path, how: &str, try_again: bool) -> ! {
    static FAILED: AtomicBool = AtomicBool::new(false);
    if FAILED.swap(true, Ordering::Relaxed) {
        // Another thread is at it.
        loop {
            thread::park();
        }
    }
    let current = lock().take();
    if let Some(Current { target, input, .. }) = current {
        let path = results.join(format!("fuzz-{target}-replay"));
        let left = fs::write(&path, &input);
        eprintln!("{target}: {how}; the input is {} ({left:?})", path.display());
        if try_again && left.is_ok() {
            eprintln!("{target}: {}", again(target, &path));
        }
    }
    process::exit(1)
}
