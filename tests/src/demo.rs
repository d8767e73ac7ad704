//! The demonstration: Debian 13 from its own root file system on a virtio-scsi disk, on this terminal.

use std::io::{IsTerminal, Read, Write};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

use crate::bed::{Bed, Prepared};
use crate::guest::{Disk, Vmm};
use crate::host::Keyboard;
use crate::kernel::Debian;
use crate::report::note;
use crate::vm::Vm;

/// Ctrl-] ends the demonstration from the keyboard.
const ESCAPE: u8 = 0x1d;
const LOGIN: &str = "login: ";
const PATIENCE: u64 = 1200;

/// Runs the demonstration; with `quick`, a shell in the quick initramfs instead of Debian.
pub fn run(quick: bool, vmm: Vmm) -> Result<()> {
    let begin = Instant::now();
    if vmm == Vmm::Ours {
        crate::bed::build_vmm()?;
    }
    let prepared = Prepared::new(&[Debian::Trixie])?;
    let prepare_time = begin.elapsed();
    let bed = Bed::with(prepared)?;
    let interactive = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
    let size = interactive.then(|| tcgetwinsize(std::io::stdout())).transpose()?;
    let mut guest = bed.guest().vmm(vmm).cpus(2).memory("1GiB").disk(Disk::debian_root(Debian::Trixie));
    guest = guest.terminal(size.map(|size| (size.ws_row, size.ws_col)));
    if quick {
        guest = guest.quick_shell();
    }
    note("starting the guest");
    let mut vm = guest.spawn()?;
    let ready = if quick { "TESTBED READY" } else { LOGIN };
    let result = if interactive { attend(&mut vm, ready) } else { watch(&mut vm, ready, quick) };
    for text in bed.take_diagnostics() {
        eprintln!("{text}");
    }
    let boot_time = result?;
    vm.done();
    eprintln!();
    note(&format!("preparation          {:6.1} s", prepare_time.as_secs_f64()));
    note(&format!("level 1 boot         {:6.1} s", bed.start_time().as_secs_f64()));
    if let Some(time) = boot_time {
        note(&format!("{} exec to prompt {:6.1} s", vmm.name(), time.as_secs_f64()));
    }
    Ok(())
}

/// Shows the console, up to the prompt; then powers the guest off.
fn watch(vm: &mut Vm<'_>, ready: &str, quick: bool) -> Result<Option<Duration>> {
    let mut screen = Screen::new(ready);
    while screen.time.is_none() {
        ensure!(vm.age().as_secs() < PATIENCE, "no prompt after {PATIENCE} s");
        if !screen.show(vm)? {
            bail!("the guest ended before its prompt\n{}", vm.errors());
        }
    }
    vm.wait_for(ready, 1)?;
    if quick {
        vm.send("poweroff -f\n")?;
    } else {
        vm.send("root\n")?;
        vm.wait_for("# ", PATIENCE)?;
        vm.send("poweroff\n")?;
    }
    vm.expect_exit(0, PATIENCE).context("powering the guest off")?;
    print!("{}", crate::report::last_lines(&vm.console(), 12));
    Ok(screen.time)
}

/// Connects the terminal with the console until the guest powers off, or Ctrl-] is typed.
fn attend(vm: &mut Vm<'_>, ready: &str) -> Result<Option<Duration>> {
    note("log in as root, without a password; Ctrl-] leaves");
    let _raw = Raw::set()?;
    let keyboard = vm.keyboard();
    let (left, leave) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        type_on(&keyboard).ok();
        left.send(()).ok();
    });
    let mut screen = Screen::new(ready);
    while screen.show(vm)? {
        if leave.try_recv().is_ok() {
            break;
        }
    }
    let errors = vm.errors();
    if !errors.is_empty() {
        eprint!("\r\n{}\r\n", errors.replace('\n', "\r\n"));
    }
    Ok(screen.time)
}

fn type_on(keyboard: &Keyboard) -> Result<()> {
    let mut buffer = [0; 256];
    loop {
        let count = std::io::stdin().read(&mut buffer)?;
        let typed = buffer.get(..count).unwrap_or_default();
        if typed.is_empty() || typed.contains(&ESCAPE) {
            return Ok(());
        }
        keyboard.input(typed)?;
    }
}

/// Copies the console to the terminal and notes when the prompt appears.
struct Screen<'a> {
    ready: &'a str,
    last: Vec<u8>,
    time: Option<Duration>,
}

impl<'a> Screen<'a> {
    fn new(ready: &'a str) -> Self {
        Self { ready, last: Vec::new(), time: None }
    }

    /// Shows what comes next; false once the guest has ended.
    fn show(&mut self, vm: &mut Vm<'_>) -> Result<bool> {
        let Some(bytes) = vm.next_output(Duration::from_millis(100))? else { return Ok(false) };
        let mut out = std::io::stdout().lock();
        out.write_all(&bytes)?;
        out.flush()?;
        if self.time.is_none() {
            self.last.extend_from_slice(&bytes);
            if String::from_utf8_lossy(&self.last).contains(self.ready) {
                self.time = Some(vm.age());
            }
            let keep = self.last.len().saturating_sub(2 * self.ready.len());
            self.last.drain(..keep);
        }
        Ok(true)
    }
}

/// The terminal without line editing and echo, until this is dropped.
struct Raw {
    before: Termios,
}

impl Raw {
    fn set() -> Result<Self> {
        let before = tcgetattr(std::io::stdin())?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(std::io::stdin(), OptionalActions::Now, &raw)?;
        Ok(Self { before })
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        tcsetattr(std::io::stdin(), OptionalActions::Now, &self.before).ok();
    }
}
