//! Job control of a shell: the machine in the background, and in the foreground again.

use std::fs;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use super::guest::Guest;
use super::terminal::Terminal;
use super::vm::{Vm, eventually, hypervisor, skipped, turn};

/// A shell on a terminal of its own. Ends with its jobs when dropped.
struct Shell(Child);

impl Shell {
    fn on(terminal: &Terminal) -> Option<Self> {
        let shell = Command::new("setsid")
            .args(["--ctty", "bash", "--norc", "--noprofile", "-i"])
            .env("PS1", "ready> ")
            .stdin(terminal.slave())
            .stdout(terminal.slave())
            .stderr(terminal.slave())
            .spawn();
        shell.ok().map(Self)
    }

    /// The number of its child.
    fn job(&self) -> Option<u32> {
        let children = format!("/proc/{0}/task/{0}/children", self.0.id());
        fs::read_to_string(children).ok()?.split_whitespace().next()?.parse().ok()
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        if let Some(job) = self.job() {
            signal("KILL", job);
        }
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn signal(name: &str, process: u32) {
    let sent = Command::new("kill").args([&format!("-{name}"), &process.to_string()]).status();
    assert!(sent.unwrap().success());
}

/// `S`: it waits; `T`: it is stopped.
fn state(process: u32) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    stat.rsplit(") ").next()?.chars().next()
}

#[test]
fn a_machine_in_the_background_leaves_the_terminal_alone_and_takes_it_again() {
    let name = "a_machine_in_the_background_leaves_the_terminal_alone_and_takes_it_again";
    if !hypervisor(name) {
        return;
    }
    let bash = Command::new("bash").arg("--version").stdout(Stdio::null()).status();
    if !bash.is_ok_and(|status| status.success()) {
        skipped(name, "there is no bash");
        return;
    }
    let _turn = turn();
    let vm = Vm::new(&Guest::kernel(|g| {
        let top = g.here();
        // hlt, with interrupts off
        g.bytes(&[0xf4]);
        g.jmp(top);
    }));
    for _ in 0..3 {
        let terminal = Terminal::new();
        let Some(shell) = Shell::on(&terminal) else {
            skipped(name, "there is no setsid");
            return;
        };
        // Line editing of the shell is not that raw.
        let raw = || terminal.settings().contains("-isig -icanon");
        let settle = || thread::sleep(Duration::from_millis(700));
        settle();
        let command =
            format!("cd {} && {} --config vm.toml\n", vm.path("").display(), env!("CARGO_BIN_EXE_vmm"));
        terminal.type_in(command.as_bytes());
        let job = eventually("the machine", || shell.job().filter(|_| raw()));
        settle();
        signal("TSTP", job);
        eventually("stopped", || (state(job) == Some('T')).then_some(()));
        settle();
        terminal.type_in(b"bg\n");
        eventually("it runs again", || state(job).filter(|state| *state != 'T'));
        settle();
        terminal.type_in(b"echo typed at the shell\n");
        settle();
        assert_ne!(state(job), Some('T'), "what is typed at the shell stops the machine");
        terminal.type_in(b"fg\n");
        eventually("the terminal is raw again", || raw().then_some(()));
        assert_ne!(state(job), Some('T'));
    }
}
