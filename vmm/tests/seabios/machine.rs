//! A machine with SeaBIOS, its files, and what it printed.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// The firmware images to test with; none when there are none and nobody insists.
pub(crate) fn images() -> Vec<PathBuf> {
    let insists = std::env::var_os("VMM_TEST_SEABIOS");
    let images: Vec<PathBuf> = match &insists {
        Some(list) => std::env::split_paths(list).collect(),
        None => found(),
    };
    let kvm = fs::File::options().read(true).write(true).open("/dev/kvm").is_ok();
    if insists.is_some() {
        assert!(kvm, "VMM_TEST_SEABIOS is set, but /dev/kvm cannot be opened");
        images.iter().for_each(|image| assert!(image.is_file(), "no file {}", image.display()));
        assert!(!images.is_empty(), "VMM_TEST_SEABIOS is empty");
    } else if images.is_empty() || !kvm {
        // Past the test harness, which keeps the output of passing tests to itself.
        let reason = if kvm { "no SeaBIOS found, see VMM_TEST_SEABIOS" } else { "no /dev/kvm" };
        let mut output = fs::File::options().append(true).open("/dev/stderr").unwrap();
        let _ = writeln!(output, "SKIPPED: SeaBIOS tests: {reason}");
        return Vec::new();
    }
    images
}

/// One image for tests that do not depend on the version.
pub(crate) fn image() -> Option<PathBuf> {
    images().pop()
}

/// Images in the cache of the test bed and in Debian's place.
fn found() -> Vec<PathBuf> {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let cache = std::env::var_os("VMM_TEST_CACHE").map_or(workspace.join(".cache"), PathBuf::from);
    let folders = fs::read_dir(cache).into_iter().flatten().flatten();
    let mut folders: Vec<PathBuf> = folders
        .filter(|entry| {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            name.starts_with("seabios12-") || name.starts_with("tools-")
        })
        .map(|entry| entry.path())
        .collect();
    folders.sort();
    let images = folders.iter().map(|folder| folder.join("usr/share/seabios/bios-256k.bin"));
    let images: Vec<PathBuf> = images.filter(|image| image.is_file()).collect();
    match images.is_empty() {
        true => vec![PathBuf::from("/usr/share/seabios/bios-256k.bin")]
            .into_iter()
            .filter(|i| i.is_file())
            .collect(),
        false => images,
    }
}

/// What to start.
pub(crate) struct Plan<'a> {
    pub(crate) image: &'a Path,
    pub(crate) cpus: u32,
    pub(crate) memory: &'static str,
    /// Contents of the disks, target 0 up.
    pub(crate) disks: Vec<Vec<u8>>,
    /// More lines of [[hba]].
    pub(crate) hba: &'a str,
    /// SeaBIOS shows it on the console.
    pub(crate) uuid: Option<&'static str>,
    /// More lines of [vm].
    pub(crate) vm: &'static str,
    /// More lines of [boot].
    pub(crate) boot: &'static str,
    /// Files that the configuration names.
    pub(crate) files: Vec<(&'static str, Vec<u8>)>,
    /// `VMM_LOG`.
    pub(crate) log: &'static str,
    /// Whether the machine has a debug console, into the file "debug".
    pub(crate) debug: bool,
}

impl<'a> Plan<'a> {
    pub(crate) fn new(image: &'a Path) -> Self {
        Self {
            image,
            cpus: 1,
            memory: "64MiB",
            disks: Vec::new(),
            hba: "",
            uuid: Some("123e4567-e89b-12d3-a456-426614174000"),
            vm: "",
            boot: "",
            files: Vec::new(),
            log: "warn",
            debug: true,
        }
    }

    pub(crate) fn start(self) -> Machine {
        let seat = Seat::take();
        let dir = TempDir::new().unwrap();
        let uuid = self.uuid.map(|uuid| format!("uuid = \"{uuid}\"")).unwrap_or_default();
        let mut config = format!(
            "[vm]\ncpus = {}\nmemory = \"{}\"\n{uuid}\n{}\n\
             [boot]\nfirmware = \"{}\"\n{}\n{}\n\
             [serial]\nmode = \"file\"\npath = \"serial\"\n",
            self.cpus,
            self.memory,
            self.vm,
            self.image.display(),
            if self.debug { "debug_log = \"debug\"" } else { "" },
            self.boot
        );
        if !self.disks.is_empty() || !self.hba.is_empty() {
            config += &format!("[[hba]]\n{}\n", self.hba);
        }
        for (number, disk) in self.disks.iter().enumerate() {
            let name = format!("disk{number}");
            let file = fs::File::create(dir.path().join(&name)).unwrap();
            (&file).write_all(disk).unwrap();
            file.set_len((disk.len() as u64).max(1 << 20)).unwrap();
            config += &format!("[[hba.lun]]\nimage = \"{name}\"\n");
        }
        for (name, bytes) in &self.files {
            fs::write(dir.path().join(name), bytes).unwrap();
        }
        fs::write(dir.path().join("vm.toml"), config).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_vmm"));
        command.args(["--config", "vm.toml", "--log-file", "log"]).current_dir(dir.path());
        let start = Instant::now();
        let child = command.env("VMM_LOG", self.log).stdin(Stdio::null()).spawn().unwrap();
        Machine { dir, child, start, patience: PATIENCE, _seat: seat }
    }
}

/// A running machine. It is killed at the end.
pub(crate) struct Machine {
    dir: TempDir,
    child: Child,
    start: Instant,
    patience: Duration,
    _seat: Seat,
}

/// Where KVM emulates every instruction a boot takes seconds of processor time: so few at once that none waits long.
const SEATS: usize = 2;
static TAKEN: Mutex<usize> = Mutex::new(0);
static LEFT: Condvar = Condvar::new();

struct Seat;

impl Seat {
    fn take() -> Self {
        let mut taken = TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
        while *taken >= SEATS {
            taken = LEFT.wait(taken).unwrap_or_else(PoisonError::into_inner);
        }
        *taken += 1;
        Self
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        *TAKEN.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        LEFT.notify_one();
    }
}

/// Whether the processor runs guest code itself. If not, KVM emulates each instruction.
pub(crate) fn has_virtualization() -> bool {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let flags = text.lines().find(|line| line.starts_with("flags")).unwrap_or_default();
    flags.split_whitespace().any(|flag| flag == "svm" || flag == "vmx")
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The longest that any step may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

impl Machine {
    /// Processor time of the process so far, in user mode and altogether.
    pub(crate) fn processor_time(&self) -> (Duration, Duration) {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        // proc(5): utime and stime are fields 14 and 15, the 12th and 13th after the name in parentheses, in 1/100 s.
        let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
        let time = |at: usize| Duration::from_millis(10 * fields[at].parse::<u64>().unwrap());
        (time(11), time(11) + time(12))
    }

    /// Waits up to so long from the start on.
    pub(crate) fn patience(&mut self, patience: Duration) {
        self.patience = patience;
    }

    pub(crate) fn bytes(&self, file: &str) -> Vec<u8> {
        let look = || fs::read(self.dir.path().join(file)).unwrap_or_default();
        let mut found = look();
        if file != "debug" {
            return found;
        }
        // A thread writes what was printed to the debug console, a moment after that.
        loop {
            std::thread::sleep(Duration::from_millis(50));
            let now = look();
            if now.len() == found.len() {
                return found;
            }
            found = now;
        }
    }

    /// Where a file of the machine is.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A disk, to be changed by the host.
    pub(crate) fn file(&self, name: &str) -> fs::File {
        fs::File::options().write(true).open(self.dir.path().join(name)).unwrap()
    }

    /// What is in `file` so far: "debug", "serial" or "log".
    pub(crate) fn text(&self, file: &str) -> String {
        String::from_utf8_lossy(&self.bytes(file)).replace('\r', "")
    }

    /// Waits until `done` finds in the debug log what it wants.
    #[track_caller]
    pub(crate) fn wait<T>(&mut self, what: &str, mut done: impl FnMut(&Self) -> Option<T>) -> T {
        loop {
            if let Some(found) = done(self) {
                return found;
            }
            let ended = self.child.try_wait().unwrap();
            if ended.is_some() || self.start.elapsed() > self.patience {
                panic!(
                    "{what} does not come; ended: {ended:?}\n{}\n{}",
                    self.text("debug"),
                    self.text("log")
                );
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Waits until the guest has powered off.
    #[track_caller]
    pub(crate) fn expect_end(&mut self) {
        loop {
            if let Some(ended) = self.child.try_wait().unwrap() {
                assert!(ended.success(), "{ended}\n{}", self.text("log"));
                return;
            }
            assert!(self.start.elapsed() < self.patience, "no end\n{}", self.text("log"));
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Waits until `file` holds `text`; returns the time since the start.
    #[track_caller]
    pub(crate) fn expect(&mut self, file: &str, text: &str) -> Duration {
        self.wait(text, |machine| machine.text(file).contains(text).then_some(()));
        self.start.elapsed()
    }
}
