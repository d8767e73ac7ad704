//! A running guest: its console, and how it ends.

use std::fmt::Write as _;
use std::fs::File;
use std::io::Write as _;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};

use crate::bed::Bed;
use crate::host::{Event, Keyboard, Process};
use crate::paths;
use crate::report::last_lines;
use crate::wire::Launch;

/// How many lines of the console are shown of a guest that failed.
const SHOWN_LINES: usize = 80;
/// How long, in seconds, a guest that boots may print nothing.
const BOOT_SILENCE: u64 = 300;

/// A running guest. It is killed when this is dropped.
pub struct Vm<'a> {
    bed: &'a Bed,
    process: Process,
    dir: String,
    config: String,
    console: Vec<u8>,
    errors: Vec<u8>,
    /// A copy of the console, for those who want to watch.
    copy: File,
    /// Everything on the console before this was looked at.
    seen: usize,
    begin: Instant,
    well: bool,
}

/// How the VMM process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit(ExitStatus);

impl Exit {
    /// The exit code, unless a signal ended it.
    pub fn code(self) -> Option<i32> {
        self.0.code()
    }

    /// The signal that ended it.
    pub fn signal(self) -> Option<i32> {
        self.0.signal()
    }
}

impl<'a> Vm<'a> {
    pub(crate) fn start(bed: &'a Bed, launch: &Launch, dir: String, config: String) -> Result<Self> {
        let begin = Instant::now();
        let process = bed.host().start(launch)?;
        let number = dir.rsplit('/').next().unwrap_or_default();
        let copy = File::create(paths::runs()?.join(format!("guest{number}.console")))?;
        let (console, errors) = (Vec::new(), Vec::new());
        Ok(Self { bed, process, dir, config, console, errors, copy, seen: 0, begin, well: false })
    }

    /// The process id, where the guest runs.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// The folder of its configuration and disks (`disk0.raw`, ...), where the guest runs.
    pub fn dir(&self) -> &str {
        &self.dir
    }

    /// Time since the process was started.
    pub fn age(&self) -> Duration {
        self.begin.elapsed()
    }

    /// Everything on the console so far.
    pub fn console(&self) -> String {
        String::from_utf8_lossy(&self.console).replace('\r', "")
    }

    /// Everything the VMM printed on standard error so far.
    pub fn errors(&self) -> String {
        String::from_utf8_lossy(&self.errors).into_owned()
    }

    /// Waits until `text` appears on the console, after what an earlier wait found; returns what was there
    /// before it.
    pub fn wait_for(&mut self, text: &str, seconds: u64) -> Result<String> {
        let end = Instant::now() + Duration::from_secs(seconds);
        let mut from = self.seen;
        loop {
            if let Some(at) = find(self.console.get(from..).unwrap_or_default(), text.as_bytes()) {
                let before = self.console.get(self.seen..from + at).unwrap_or_default();
                let before = String::from_utf8_lossy(before).replace('\r', "");
                self.seen = from + at + text.len();
                return Ok(before);
            }
            from = from.max(self.console.len().saturating_sub(text.len()));
            match self.step(end)? {
                Event::Nothing => bail!("{text:?} is not on the console after {seconds} s"),
                Event::Ended(status) => bail!("the VMM ended before {text:?} was on the console: {status}"),
                _ => (),
            }
        }
    }

    /// As [`Vm::wait_for`], on a console that programs draw on: what moves the cursor or colours may be within `text`.
    pub fn wait_for_drawn(&mut self, text: &str, seconds: u64) -> Result<()> {
        let end = Instant::now() + Duration::from_secs(seconds);
        loop {
            let rest = self.console.get(self.seen..).unwrap_or_default();
            if let Some(past) = find_drawn(rest, text.as_bytes()) {
                self.seen += past;
                return Ok(());
            }
            match self.step(end)? {
                Event::Nothing => bail!("{text:?} is not drawn on the console after {seconds} s"),
                Event::Ended(status) => bail!("the VMM ended before {text:?} was drawn: {status}"),
                _ => (),
            }
        }
    }

    /// Waits for `text` as a guest boots: for 20 minutes, unless it prints nothing for five. An emulated
    /// processor was seen to put a guest to sleep for ever, under QEMU too.
    pub fn wait_for_boot(&mut self, text: &str) -> Result<String> {
        let end = Instant::now() + Duration::from_secs(1200);
        loop {
            let before = self.console.len();
            match self.wait_for(text, BOOT_SILENCE) {
                Err(error) if self.process.ended().is_some() || Instant::now() > end => return Err(error),
                Err(error) if self.console.len() == before => {
                    return Err(error.context(format!("the guest was silent for {BOOT_SILENCE} s")));
                }
                Err(_) => (),
                found => return found,
            }
        }
    }

    /// Waits for the next event and keeps what it brings.
    fn step(&mut self, end: Instant) -> Result<Event> {
        if let Some(status) = self.process.ended() {
            return Ok(Event::Ended(status));
        }
        let event = self.process.next(end.saturating_duration_since(Instant::now()))?;
        match &event {
            Event::Output(bytes) => {
                self.copy.write_all(bytes)?;
                self.console.extend_from_slice(bytes);
            }
            Event::Errors(bytes) => self.errors.extend_from_slice(bytes),
            _ => (),
        }
        Ok(event)
    }

    /// Waits up to `patience` for new text on the console and returns it; None once the VMM has ended.
    pub fn next_output(&mut self, patience: Duration) -> Result<Option<Vec<u8>>> {
        Ok(match self.step(Instant::now() + patience)? {
            Event::Output(bytes) => Some(bytes),
            Event::Ended(_) => None,
            _ => Some(Vec::new()),
        })
    }

    /// Types on the console.
    pub fn send(&self, text: &str) -> Result<()> {
        self.process.input(text.as_bytes())
    }

    /// Types bytes on the console.
    pub fn send_bytes(&self, bytes: &[u8]) -> Result<()> {
        self.process.input(bytes)
    }

    /// Something that other threads can type on the console with.
    pub fn keyboard(&self) -> Keyboard {
        self.process.keyboard()
    }

    /// Logs in at a login prompt that was waited for, and makes the shell one that is easy to talk to.
    pub fn login(&mut self, user: &str) -> Result<()> {
        self.send(&format!("{user}\n"))?;
        self.wait_for("# ", 120)?;
        self.plain_shell()
    }

    /// Makes the shell on the console one without echo and prompt, which `run` needs.
    pub fn plain_shell(&mut self) -> Result<()> {
        self.send("exec sh\n")?;
        self.send("stty -echo; PS1=; PS2=; dmesg -n 1; echo talk''ing\n")?;
        self.wait_for("talking", 60)?;
        self.wait_for("\n", 10)?;
        Ok(())
    }

    /// Waits for the quick initramfs's shell and makes it one that `run` can use.
    pub fn quick_shell(&mut self) -> Result<()> {
        self.wait_for("TESTBED READY", 300)?;
        self.wait_for("# ", 60)?;
        self.plain_shell()
    }

    /// Runs a command in the guest's shell and returns what it printed; fails if it fails.
    pub fn run(&mut self, command: &str) -> Result<String> {
        self.run_for(command, 120)
    }

    /// Runs a command that may take this many seconds.
    pub fn run_for(&mut self, command: &str, seconds: u64) -> Result<String> {
        let (output, code) = self.run_code(command, seconds)?;
        ensure!(code == 0, "the guest's command failed with {code}: {command}\n{output}");
        Ok(output)
    }

    /// Runs a command that may fail; returns what it printed, and its exit code.
    pub fn run_code(&mut self, command: &str, seconds: u64) -> Result<(String, i32)> {
        self.send(&format!("{command}\necho \"@@\"$?\"@@\"\n"))?;
        let output = self.wait_for("@@", seconds).with_context(|| command.to_string())?;
        let code = self.wait_for("@@", 10)?;
        self.wait_for("\n", 10)?;
        Ok((output, code.parse().with_context(|| format!("an exit code of {code}"))?))
    }

    /// Waits for the VMM to end.
    pub fn wait_exit(&mut self, seconds: u64) -> Result<Exit> {
        let end = Instant::now() + Duration::from_secs(seconds);
        loop {
            match self.step(end)? {
                Event::Ended(status) => return Ok(Exit(status)),
                Event::Nothing => bail!("the VMM still runs after {seconds} s"),
                _ => (),
            }
        }
    }

    /// Waits for the VMM to end with this exit code.
    pub fn expect_exit(&mut self, code: i32, seconds: u64) -> Result<()> {
        let exit = self.wait_exit(seconds)?;
        ensure!(exit.code() == Some(code), "the VMM ended with {}, not with exit code {code}", exit.0);
        self.well = true;
        Ok(())
    }

    /// Waits for the script of the quick initramfs to end well and for the VMM to end with exit code 0;
    /// returns what the script printed.
    pub fn finish_script(&mut self, seconds: u64) -> Result<String> {
        self.wait_for("TESTBED READY", seconds)?;
        let output = self.wait_for("TESTBED EXIT ", seconds)?;
        let code = self.wait_for("\n", 10)?;
        ensure!(code.trim() == "0", "the script in the guest failed with {code}");
        self.expect_exit(0, 60)?;
        Ok(output)
    }

    /// Ends the VMM at once, as a failing host would.
    pub fn kill(&mut self) -> Result<()> {
        self.process.signal(libc::SIGKILL)?;
        let exit = self.wait_exit(60)?;
        ensure!(exit.signal() == Some(libc::SIGKILL), "the VMM ended with {} before it was killed", exit.0);
        self.well = true;
        Ok(())
    }

    /// Sends a signal to the VMM.
    pub fn send_signal(&self, number: i32) -> Result<()> {
        self.process.signal(number)
    }

    /// Says that what follows is not worth a report: the VMM will be killed when this is dropped.
    pub fn done(mut self) {
        self.well = true;
    }

    /// What the VMM's threads and KVM do, twice: tells a guest that waits from one that spins, inside or by exits. Only
    /// of level 1, whose file systems and traces are ours to change.
    fn doings(&self) -> String {
        if !self.bed.is_emulated() {
            return String::new();
        }
        let script = format!(
            "[ -d /sys/kernel/debug/kvm ] || mount -t debugfs debugfs /sys/kernel/debug
             for look in 1 2; do
                 for task in /proc/{}/task/*; do
                     echo \"$(cat $task/comm): $(sed 's/.*) //' $task/stat | cut -d' ' -f1,12,13) $(cat $task/wchan)\"
                 done
                 for name in exits io_exits mmio_exits halt_exits signal_exits irq_injections request_irq_exits; do
                     echo $name $(cat /sys/kernel/debug/kvm/$name)
                 done
                 [ $look = 2 ] || sleep 3
             done 2>&1
             cd /sys/kernel/tracing 2>/dev/null || exit 0
             [ -e events ] || mount -t tracefs tracefs .
             cd /sys/kernel/tracing
             for event in kvm_exit kvm_pio kvm_mmio; do echo 1 > events/kvm/$event/enable; done
             sleep 0.1
             for event in kvm_exit kvm_pio kvm_mmio; do echo 0 > events/kvm/$event/enable; done
             grep -v '^#' trace | tail -n 60; echo > trace",
            self.pid()
        );
        self.bed.host().shell(&script, 30).unwrap_or_else(|error| error.to_string())
    }

    fn report(&self) -> Result<String> {
        let mut text = String::new();
        writeln!(text, "--- {}/vm.toml\n{}", self.dir, self.config)?;
        writeln!(
            text,
            "--- console, last {SHOWN_LINES} lines\n{}",
            last_lines(&self.console(), SHOWN_LINES)
        )?;
        writeln!(
            text,
            "--- standard error, last {SHOWN_LINES} lines\n{}",
            last_lines(&self.errors(), SHOWN_LINES)
        )?;
        match self.process.ended() {
            Some(status) => writeln!(text, "--- the VMM ended: {status}")?,
            None => writeln!(text, "--- the VMM was still running\n{}", self.doings())?,
        }
        Ok(text)
    }
}

impl Drop for Vm<'_> {
    fn drop(&mut self) {
        if self.well && !std::thread::panicking() {
            // The disks are only of use where something went wrong.
            if self.process.ended().is_some() {
                return;
            }
        } else {
            let text = self.report().unwrap_or_else(|error| anyhow!(error).to_string());
            self.bed.add_diagnostics(text);
        }
        if self.process.ended().is_none() {
            self.process.signal(libc::SIGKILL).ok();
            self.wait_exit(20).ok();
        }
    }
}

fn find(text: &[u8], what: &[u8]) -> Option<usize> {
    text.windows(what.len().max(1)).position(|window| window == what)
}

/// Where the first `what` ends, not counting escape sequences (ECMA-48, 5.4) in between.
fn find_drawn(text: &[u8], what: &[u8]) -> Option<usize> {
    let mut plain = Vec::new();
    let mut bytes = text.iter().enumerate();
    while let Some((at, &byte)) = bytes.next() {
        if byte != 0x1b {
            plain.push((at, byte));
        } else if let Some((_, b'[')) = bytes.next() {
            bytes.by_ref().find(|(_, byte)| (0x40..=0x7e).contains(*byte));
        }
    }
    let place = plain
        .windows(what.len().max(1))
        .position(|window| window.iter().map(|(_, byte)| byte).eq(what.iter()))?;
    plain.get(place + what.len().checked_sub(1)?).map(|(at, _)| at + 1)
}

#[cfg(test)]
mod tests {
    use super::{find, find_drawn};

    #[test]
    fn finds_what_is_drawn() {
        assert_eq!(find_drawn(b"a\x1b[0m\x1b[2JGN\x1b[02;43HU x", b"GNU"), Some(20));
        assert_eq!(find_drawn(b"\x1bcab", b"ab"), Some(4));
        assert_eq!(find_drawn(b"a\x1b[", b"ab"), None);
    }

    #[test]
    fn finds_bytes() {
        assert_eq!(find(b"abc", b"bc"), Some(1));
        assert_eq!(find(b"abc", b"d"), None);
        assert_eq!(find(b"", b"d"), None);
    }
}
