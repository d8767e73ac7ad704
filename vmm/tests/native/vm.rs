//! Runs the command on a guest and takes what comes of it.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// Longer than any test takes on a busy machine.
const LIMIT: Duration = Duration::from_secs(60);

/// Whether there is a hypervisor. If not, says that `test` is skipped, on the real standard error.
pub fn hypervisor(test: &str) -> bool {
    Path::new("/dev/kvm").exists() || skipped(test, "there is no /dev/kvm")
}

/// Says that a test, or a part of it, is skipped, past the test harness, which keeps the output of tests that pass.
/// Returns false.
pub fn skipped(test: &str, why: &str) -> bool {
    let _ = writeln!(io::stderr(), "SKIPPED {test}: {why}");
    false
}

/// Whether the kernel has Landlock.
pub fn landlock() -> bool {
    // SAFETY: it asks for the version (LANDLOCK_CREATE_RULESET_VERSION).
    #[allow(unsafe_code)]
    let version = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, 0, 0, 1) };
    version > 0
}

/// Has a command log what it logs by itself, but for the line which says that this host has no Landlock.
pub fn usual_log(command: &mut Command) -> &mut Command {
    match landlock() {
        true => command.env_remove("VMM_LOG"),
        false => command.env("VMM_LOG", "warn,vmm::jail::paths=error"),
    }
}

/// Whether the processor can run any guest.
pub fn virtualization() -> bool {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap();
    cpuinfo.split_whitespace().any(|flag| flag == "svm" || flag == "vmx")
}

/// Whether QEMU emulates this machine's processor, so that times mean nothing.
pub fn emulated() -> bool {
    fs::read_to_string("/proc/cpuinfo").unwrap().contains("QEMU TCG CPU")
}

/// What `look` finds, as soon as it finds it.
#[track_caller]
pub fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let begin = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(begin.elapsed() < LIMIT, "{what}: not there after {LIMIT:?}");
        thread::sleep(Duration::from_millis(1));
    }
}

/// One machine at a time: the measures of time mean something, and a small computer is not overrun.
static ONE: Mutex<()> = Mutex::new(());

/// Waits until no other machine runs that is waited for.
pub fn turn() -> MutexGuard<'static, ()> {
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A machine to be started.
pub struct Vm {
    directory: TempDir,
    arguments: Vec<String>,
}

/// What came of a machine.
#[derive(Debug)]
pub struct Ended {
    /// Exit code, or 128 and the signal.
    pub code: i32,
    /// The serial console, or what else went to standard output.
    pub output: String,
    /// Standard error.
    pub errors: String,
}

impl Vm {
    /// A machine with one vCPU and 64 MiB that boots `kernel`. A crash ends it.
    pub fn new(kernel: &[u8]) -> Self {
        let directory = TempDir::new().unwrap();
        fs::write(directory.path().join("kernel"), kernel).unwrap();
        let config = "[vm]\nmemory = \"64MiB\"\non_crash = \"exit\"\n[boot]\nkernel = \"kernel\"\n";
        fs::write(directory.path().join("vm.toml"), config).unwrap();
        Self { directory, arguments: Vec::new() }
    }

    /// A file in the machine's directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// `--set`.
    pub fn set(mut self, key_value: &str) -> Self {
        self.arguments.extend(["--set".to_owned(), key_value.to_owned()]);
        self
    }

    /// Any argument.
    pub fn arg(mut self, argument: &str) -> Self {
        self.arguments.push(argument.to_owned());
        self
    }

    /// The command with its arguments and nothing on standard input.
    pub fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vmm"));
        usual_log(command.current_dir(self.directory.path()));
        command.args(["--config", "vm.toml"]).args(&self.arguments).stdin(Stdio::null());
        command
    }

    /// Starts it with its streams as pipes.
    pub fn start(&self) -> Running {
        Running::start(&mut self.command())
    }

    /// Runs it to its end.
    #[track_caller]
    pub fn run(&self) -> Ended {
        self.run_with(&mut self.command())
    }

    /// Runs it to its end by a command that was made from its own.
    #[track_caller]
    pub fn run_with(&self, command: &mut Command) -> Ended {
        let _turn = turn();
        Running::start(command).wait()
    }
}

/// A machine that runs. Killed when dropped.
pub struct Running {
    pub child: Child,
    output: Option<thread::JoinHandle<String>>,
    errors: Option<thread::JoinHandle<String>>,
    /// Dropped, it ends the watch.
    _watch: Sender<()>,
}

impl Running {
    /// Starts the command. Standard output and error are gathered unless they were taken elsewhere.
    pub fn start(command: &mut Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let (output, errors) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
        let _watch = watch(child.id());
        Self { child, output: Some(gather(output)), errors: Some(gather(errors)), _watch }
    }

    /// Waits for the end.
    #[track_caller]
    pub fn wait(mut self) -> Ended {
        let status = self.child.wait().unwrap();
        let (output, errors) = self.streams();
        let code = status.code().or_else(|| Some(128 + status.signal()?)).unwrap();
        assert_ne!(
            code,
            128 + libc::SIGKILL,
            "still running after {LIMIT:?}; output:\n{output}\nerrors:\n{errors}"
        );
        Ended { code, output, errors }
    }

    /// What is on standard error once the machine has ended.
    pub fn errors(&mut self) -> String {
        self.streams().1
    }

    fn streams(&mut self) -> (String, String) {
        let take = |stream: &mut Option<thread::JoinHandle<String>>| stream.take().unwrap().join().unwrap();
        (take(&mut self.output), take(&mut self.errors))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Long gone, unless the test failed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Kills the process unless the sender is dropped within the limit.
fn watch(process: u32) -> Sender<()> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        if receiver.recv_timeout(LIMIT) == Err(RecvTimeoutError::Timeout) {
            send_signal(process, "KILL");
        }
    });
    sender
}

/// Sends a signal by its name.
pub fn send_signal(process: u32, name: &str) {
    let sent = Command::new("kill").args([format!("-{name}"), process.to_string()]).status().unwrap();
    assert!(sent.success());
}

fn gather(mut from: impl Read + Send + 'static) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        from.read_to_end(&mut bytes).unwrap();
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

impl Ended {
    /// Checks the exit code, and that there was nothing to complain about; returns the output.
    #[track_caller]
    pub fn ok(self) -> String {
        assert_eq!((self.code, self.errors.as_str()), (0, ""), "output:\n{}", self.output);
        self.output
    }

    /// The values that the guest reported, by name.
    #[track_caller]
    pub fn reports(self) -> BTreeMap<String, u32> {
        let output = self.ok();
        let lines = output.lines().map(|line| {
            let (name, value) = line.split_once('=').unwrap_or_else(|| panic!("no report: {line}"));
            (name.to_owned(), u32::from_str_radix(value, 16).unwrap())
        });
        lines.collect()
    }
}
