//! Level 1: a small Debian machine under QEMU's software emulation, whose /dev/kvm can run 64-bit guests.
//!
//! Only needed where the processor itself offers no virtualization. QEMU emulates a processor with SVM and
//! nested paging; level 1 is a stock kernel with this machine's file system as its root, shared read-only,
//! so every built program is there at once.

use std::fs::{self, File};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::cpio::Archive;
use crate::host::Host;
use crate::images::{add_base, add_modules};
use crate::kernel::Kernel;
use crate::packages::{capture, require};
use crate::tools::Tools;
use crate::{cache, paths, report};

const MODULES: &[&str] = &[
    "virtio_pci",
    "virtio_console",
    "virtio_blk",
    "virtio_rng",
    "virtio_balloon",
    "9pnet_virtio",
    "9p",
    "crc32c_generic",
    "xfs",
];
/// Four levels of page tables instead of five: the emulated processor walks them anew after each VM exit, two of them at a
/// time. Protection keys and the virtual GIF only add work to each entry.
const LEVEL1_CPU: &str = "max,+svm,-la57,-pku,-vgif";
/// Disks behind adapters whose queues take little: four pieces of memory (two fewer than the ring has places, which only a packed one may have
/// six of) and 64 KiB; memory aligned to 512 bytes; packets of USB. Tests that pass them through to guests load the drivers.
const SMALL: [&[&str]; 3] = [
    &["virtio-scsi-pci,id=few,packed=on,virtqueue_size=6,max_sectors=128", "scsi-hd,bus=few.0,DRIVE"],
    &["ide-hd,bus=ide.0,DRIVE"],
    &["qemu-xhci,id=usb", "usb-storage,bus=usb.0,DRIVE"],
];
const BOOT_LIMIT: Duration = Duration::from_secs(120);

/// What level 1 is made of.
pub struct Parts<'a> {
    /// QEMU and more.
    pub tools: &'a Tools,
    /// The kernel it runs.
    pub kernel: &'a Kernel,
    /// The disk with the root images and space for more.
    pub scratch: &'a Path,
}

/// A running level 1, which ends when this is dropped.
pub struct Level1 {
    child: Option<Child>,
    pid: u32,
    socket: PathBuf,
    /// Its console, what QEMU printed, and what QEMU says of resets.
    logs: [PathBuf; 3],
}

impl Level1 {
    /// Starts it and waits for its agent. With `stay` it outlives this process.
    pub fn start(parts: &Parts<'_>, stay: bool) -> Result<(Self, Host)> {
        let socket = socket()?;
        fs::remove_file(&socket).ok();
        let logs = logs()?;
        let [log, messages, resets] = &logs;
        let mut command = command(parts, &socket, log, stay)?;
        // A processor that resets by a triple fault leaves its registers there.
        command.args(["-d", "cpu_reset", "-D"]).arg(resets);
        let messages = File::create(messages)?;
        command.stdin(Stdio::null()).stdout(messages.try_clone()?).stderr(messages);
        let child = if stay { command.spawn()? } else { spawn_with_lasting_parent(command)? };
        let pid = child.id();
        let mut level1 = Self { child: Some(child), pid, socket, logs };
        match level1.wait_for_agent() {
            Ok(host) => Ok((level1, host)),
            Err(error) => Err(error.context(level1.last_words())),
        }
    }

    /// What it and QEMU printed last.
    fn last_words(&self) -> String {
        let read = |path: &PathBuf| String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned();
        let [console, messages, resets] = self.logs.each_ref().map(read);
        let fault = resets.find("Triple fault").and_then(|at| resets.get(at..)).unwrap_or_default();
        let fault: String = fault.lines().take(30).map(|line| format!("{line}\n")).collect();
        let [console, messages] = [console, messages].map(|text| report::last_lines(&text, 25));
        format!("level 1 said:\n{console}\nits QEMU said:\n{messages}\n{fault}")
    }

    /// How it ended, and its last words; for one that was just seen to be out of reach.
    pub fn obituary(&mut self) -> String {
        // A process that is ending needs a moment.
        std::thread::sleep(Duration::from_millis(500));
        let status = match self.child.as_mut().map(Child::try_wait) {
            Some(Ok(Some(status))) => format!("level 1 ended: {status}"),
            Some(_) => "level 1 still runs, but its agent is out of reach".into(),
            None => "level 1, started earlier to stay, is out of reach".into(),
        };
        format!("{status}\n{}", self.last_words())
    }

    /// Finds one that was started to stay.
    pub fn find() -> Result<Option<(Self, Host)>> {
        let socket = socket()?;
        let Some(pid) = running(&socket) else { return Ok(None) };
        let stream = UnixStream::connect(&socket)?;
        let host = Host::connect(stream, Duration::from_secs(20)).context("the running level 1")?;
        Ok(Some((Self { child: None, pid, socket, logs: logs()? }, host)))
    }

    /// The process that is level 1.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Whether it was started to outlive this process.
    pub fn stays(&self) -> bool {
        self.child.is_none()
    }

    /// Leaves it running when this is dropped.
    pub fn leave(mut self) {
        self.child = None;
    }

    /// Ends it even if it was started to stay.
    pub fn stop(mut self) -> Result<()> {
        if self.child.is_none() {
            let pid =
                rustix::process::Pid::from_raw(self.pid.cast_signed()).context("level 1 has no process")?;
            match rustix::process::kill_process(pid, rustix::process::Signal::KILL) {
                // It is gone already.
                Ok(()) | Err(rustix::io::Errno::SRCH) => (),
                Err(error) => return Err(error.into()),
            }
        }
        self.end();
        fs::remove_file(&self.socket).ok();
        Ok(())
    }

    fn end(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().ok();
            child.wait().ok();
        }
    }

    fn wait_for_agent(&mut self) -> Result<Host> {
        let end = Instant::now() + BOOT_LIMIT;
        loop {
            if let Some(status) = self.child.as_mut().and_then(|child| child.try_wait().transpose()) {
                bail!("level 1 ended before it was up: {}", status?);
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                bail!("level 1 is not up after {} s", BOOT_LIMIT.as_secs());
            }
            match UnixStream::connect(&self.socket) {
                Ok(stream) => return Host::connect(stream, left),
                Err(_) => std::thread::sleep(Duration::from_millis(50)),
            }
        }
    }
}

impl Drop for Level1 {
    fn drop(&mut self) {
        self.end();
    }
}

fn logs() -> Result<[PathBuf; 3]> {
    let dir = paths::runs()?;
    Ok(["level1.log", "level1-qemu.log", "level1-resets.log"].map(|name| dir.join(name)))
}

/// The socket is in the cache, so that there is one for each; a path too long for a socket's address is cut short.
fn socket() -> Result<PathBuf> {
    let socket = paths::cache()?.join("level1.socket");
    if socket.as_os_str().len() < 100 {
        return Ok(socket);
    }
    let hash = cache::hash(socket.as_os_str().as_encoded_bytes());
    Ok(std::env::temp_dir().join(format!("level1-{hash:016x}.socket")))
}

/// The process that has this socket in its command line.
fn running(socket: &Path) -> Option<u32> {
    let wanted = format!("path={},", socket.display());
    fs::read_dir("/proc").ok()?.flatten().find_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let words = fs::read(entry.path().join("cmdline")).ok()?;
        let mine = String::from_utf8_lossy(&words).contains(&wanted);
        mine.then_some(pid)
    })
}

/// Makes the child's parent thread live as long as this process: the child asks to be killed when that
/// thread ends.
fn spawn_with_lasting_parent(mut command: Command) -> Result<Child> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        sender.send(command.spawn()).ok();
        loop {
            std::thread::park();
        }
    });
    Ok(receiver.recv().context("the thread that starts level 1 ended")??)
}

fn command(parts: &Parts<'_>, socket: &Path, log: &Path, stay: bool) -> Result<Command> {
    let preload = preload()?;
    let words = parts.tools.words("qemu-system-x86_64", "qemu-system-x86_64", Some(&preload))?;
    let mut command = if stay {
        Command::new("setsid")
    } else {
        let mut command = Command::new("setpriv");
        // A group of its own: Ctrl-C on the terminal is for us, not for QEMU.
        command.args(["--pdeathsig", "KILL", "--"]).process_group(0);
        command
    };
    command.args(words).args(parts.tools.qemu_data());
    let kmod = parts.tools.words("kmod", "modprobe", None)?.join(":");
    let cmdline = format!(
        "console=ttyS0 quiet panic=-1 mitigations=off tsc=reliable clocksource=tsc kvm.halt_poll_ns=0 testbed.program={} testbed.kernel={} testbed.kmod={kmod}",
        paths::program()?.display(),
        parts.kernel.dir().display()
    );
    let out = paths::runs()?;
    command.args(["-name", "level1", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
    command.args(["-M", "q35", "-accel", "tcg,thread=multi,tb-size=512", "-cpu", LEVEL1_CPU]);
    command.args(["-smp", "2", "-m", "10G", "-serial", &format!("file:{}", log.display())]);
    command.arg("-kernel").arg(parts.kernel.image()).arg("-initrd").arg(initramfs(parts)?);
    command.args(["-append", &cmdline]);
    command.args(["-virtfs", "local,path=/,mount_tag=root,security_model=none,readonly=on,multidevs=remap"]);
    command.arg("-virtfs");
    command.arg(format!("local,path={},mount_tag=out,security_model=none,multidevs=remap", out.display()));
    command.arg("-drive").arg(format!(
        "if=none,id=scratch,file={},format=raw,snapshot=on,cache=unsafe,discard=unmap",
        parts.scratch.display()
    ));
    command.args(["-device", "virtio-blk-pci,drive=scratch", "-device", "virtio-rng-pci"]);
    let empty =
        cache::build("empty", "empty 1 64M", |dir| Ok(File::create(dir.join("disk"))?.set_len(64 << 20)?))?;
    let empty = empty.join("disk");
    for (index, devices) in SMALL.iter().enumerate() {
        let drive = format!("if=none,id=small{index},file={},format=raw,snapshot=on", empty.display());
        command.args(["-drive", &drive]);
        for device in *devices {
            command.args([
                "-device",
                &device.replace("DRIVE", &format!("drive=small{index},serial=SMALL{index}")),
            ]);
        }
    }
    // What guests leave free goes back to this machine.
    command.args(["-device", "virtio-balloon-pci,free-page-reporting=on"]);
    command.arg("-chardev").arg(format!("socket,id=agent,path={},server=on,wait=off", socket.display()));
    command.args(["-device", "virtio-serial-pci", "-device", "virtserialport,chardev=agent,name=testbed"]);
    Ok(command)
}

fn initramfs(parts: &Parts<'_>) -> Result<PathBuf> {
    let init = include_str!("level1-init.sh");
    let recipe = format!("level1 1 {} {MODULES:?} {init}", parts.kernel.dir().display());
    let dir = cache::build("level1", &recipe, |dir| {
        let mut archive = Archive::default();
        add_base(&mut archive, parts.tools, init)?;
        add_modules(&mut archive, parts.kernel, parts.tools, MODULES)?;
        Ok(fs::write(dir.join("initrd"), archive.finish())?)
    })?;
    Ok(dir.join("initrd"))
}

/// The library that mends what QEMU gets wrong with nested guests; see its source.
fn preload() -> Result<PathBuf> {
    let source = include_str!("../preload/nested.c");
    let dir = cache::build("preload", source, |dir| {
        require("cc", "gcc")?;
        let file = dir.join("nested.c");
        fs::write(&file, source)?;
        let mut cc = Command::new("cc");
        cc.args(["-shared", "-fPIC", "-O2", "-Wall", "-o"]).arg(dir.join("nested.so")).arg(file);
        capture(&mut cc).map(|_| ())
    })?;
    Ok(dir.join("nested.so"))
}
