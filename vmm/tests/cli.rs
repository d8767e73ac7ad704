//! The command as a user and a script meet it: streams, lines and exit codes.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

const CONFIG: &str = "\
[vm]
memory = \"64MiB\"
cpus = 2
[boot]
kernel = \"vmlinuz\"
[[hba]]
[[hba.lun]]
image = \"disk.img\"
";

/// A directory with a machine's files in it.
fn machine() -> TempDir {
    let directory = TempDir::new().unwrap();
    fs::write(directory.path().join("vm.toml"), CONFIG).unwrap();
    fs::write(directory.path().join("vmlinuz"), boot::testing::pvh_elf32(&[0xf4])).unwrap();
    fs::write(directory.path().join("disk.img"), [0; 512]).unwrap();
    directory
}

fn vmm(directory: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vmm"));
    command.current_dir(directory).env_remove("VMM_LOG").stdin(Stdio::null());
    command
}

/// Exit code, standard output and standard error.
fn run(command: &mut Command) -> (Option<i32>, String, String) {
    let Output { status, stdout, stderr } = command.output().unwrap();
    (status.code(), String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
}

/// Whether there is a hypervisor, without which no check ends well.
fn hypervisor() -> bool {
    let there = Path::new("/dev/kvm").exists();
    if !there {
        devices::testing::skipped("there is no /dev/kvm");
    }
    there
}

const CHECK: [&str; 3] = ["--config", "vm.toml", "--check"];

#[track_caller]
fn fails(arguments: &[&str], errors: &[&str]) {
    let directory = machine();
    let expected: String = errors.iter().map(|error| format!("vmm: error: {error}\n")).collect();
    let got = run(vmm(directory.path()).args(arguments));
    assert_eq!(got, (Some(1), String::new(), expected), "{arguments:?}");
}

#[test]
fn a_good_configuration_is_one_line() {
    if !hypervisor() {
        return;
    }
    let directory = machine();
    let check = |arguments: &[&str]| {
        let off = ["--set", "security.sandbox=off"];
        run(vmm(directory.path()).args(CHECK).args(off).args(arguments))
    };
    let ok = |text: &str| (Some(0), format!("vm.toml: OK, {text}; sandbox: off\n"), String::new());
    assert_eq!(check(&[]), ok("vm: 2 vCPUs, 64MiB, 1 HBA, 1 logical unit"));
    fs::write(directory.path().join("other.img"), [0; 512]).unwrap();
    let set = ["--set", "vm.cpus=1", "--set", "vm.name=x", "--set", "hba.0.lun.1.image=other.img"];
    assert_eq!(check(&set), ok("x: 1 vCPU, 64MiB, 1 HBA, 2 logical units"));
}

/// Nor a configuration.
#[test]
fn ports_of_the_host_are_told_of_without_a_machine() {
    let directory = TempDir::new().unwrap();
    let fc = |arguments: &[&str]| run(vmm(directory.path()).arg("fc").args(arguments).args(["--root", "."]));
    assert_eq!(fc(&["list"]), (Some(0), "no Fibre Channel ports\n".into(), String::new()));
    let (code, value, errors) = fc(&["list", "--json"]);
    assert_eq!((code, &*errors), (Some(0), ""));
    let value: serde_json::Value = serde_json::from_str(&value).unwrap();
    assert_eq!(value, serde_json::json!({ "ports": [], "vports": [], "definitions": [] }));
    let error = |line: &str| (Some(1), String::new(), format!("vmm: error: {line}\n"));
    assert_eq!(fc(&["show", "host1"]), error("there is no port host1; vmm fc list shows what there is"));
    assert_eq!(
        fc(&["create", "vm1"]),
        error("./sys/class cannot be read: No such file or directory (os error 2); mount sysfs and proc")
    );
    fs::create_dir_all(directory.path().join("sys/class")).unwrap();
    assert_eq!(
        fc(&["create", "vm1"]),
        error(
            "this host has no Fibre Channel port: no driver of an adapter (lpfc, qla2xxx, fcoe ...) has one in /sys/class/fc_host"
        )
    );
    assert_eq!(run(vmm(directory.path()).arg("fc")), error("no command; see vmm fc --help"));
    let (code, lines, _) = fc(&["watch", "--timeout", "1"]);
    assert_eq!((code, &*lines), (Some(0), ""));
}

/// As at the start. Blocks count, whatever is behind the last whole one.
#[test]
fn a_check_says_what_the_guest_will_not_see_of_an_image() {
    if !hypervisor() {
        return;
    }
    let directory = machine();
    let image = std::fs::File::options().write(true).open(directory.path().join("disk.img")).unwrap();
    for (len, block, said) in [
        (300_000_000, "4096", "is no multiple of 4096; the guest does not see the last 768"),
        (300_000_000, "512", "is no multiple of 512; the guest does not see the last 256"),
        (4096 + 3584, "4096", "is no multiple of 4096; the guest does not see the last 3584"),
        (4096 + 3584, "512", ""),
    ] {
        image.set_len(len).unwrap();
        let block = format!("hba.0.lun.0.block_size={block}");
        let (code, _, errors) = run(vmm(directory.path()).args(CHECK).args(["--set", &block]));
        let line = format!(" disk.img: its length of {len} bytes {said}\n");
        assert_eq!((code, errors.lines().count()), (Some(0), usize::from(!said.is_empty())), "{errors}");
        assert!(said.is_empty() || errors.ends_with(&line), "{errors}");
    }
    image.set_len(4095).unwrap();
    let set = ["--set", "hba.0.lun.0.block_size=4096"];
    let (code, _, errors) = run(vmm(directory.path()).args(CHECK).args(set));
    let line = "`image` in [[hba.lun]]: disk.img is too short: it has not one whole block of 4096 bytes\n";
    assert_eq!((code, errors.lines().count()), (Some(1), 1), "{errors}");
    assert!(errors.ends_with(line), "{errors}");
}

#[test]
fn a_check_says_that_there_is_no_port_for_a_virtual_one() {
    let directory = machine();
    let config = format!("{CONFIG}[[hba]]\nid = \"fc0\"\n[hba.fc]\nparent = \"host4711\"\n");
    fs::write(directory.path().join("vm.toml"), config).unwrap();
    let (code, _, errors) = run(vmm(directory.path()).args(CHECK).args(["--set", "vm.name=web1"]));
    let lines: Vec<_> = errors.lines().filter(|line| line.contains("hba fc0: ")).collect();
    let [line] = lines[..] else { panic!("{errors}") };
    let none = "vmm: error: hba fc0: this host has no Fibre Channel port: no driver of an adapter";
    let other = "vmm: error: hba fc0: there is no Fibre Channel port host4711; there are ";
    assert!(line.starts_with(none) || line.starts_with(other), "{line}");
    assert_eq!(code, Some(1));
}

#[test]
fn a_check_says_which_guests_cannot_read_a_volume() {
    if !hypervisor() {
        return;
    }
    let directory = machine();
    fs::write(directory.path().join("disk.img"), [0; 8192]).unwrap();
    for (mode, block, lines) in [("raid", "4096", 1), ("raid", "512", 0), ("jbod", "4096", 0)] {
        let set = [
            "hba.0.type=megasas".to_owned(),
            "hba.0.id=raid0".to_owned(),
            format!("hba.0.mode={mode}"),
            format!("hba.0.lun.0.block_size={block}"),
        ];
        let set = set.iter().flat_map(|set| ["--set", set.as_str()]);
        let (code, _, errors) = run(vmm(directory.path()).args(CHECK).args(set));
        assert_eq!((code, errors.lines().count()), (Some(0), lines), "{mode} {block} {errors}");
        let line = "hba raid0, target 0: FreeBSD and SeaBIOS take the blocks of a volume for 512 bytes and cannot read \
                    one with block_size = 4096\n";
        assert!(lines == 0 || errors.ends_with(line), "{errors}");
    }
}

#[test]
fn paths_are_relative_to_the_file() {
    if !hypervisor() {
        return;
    }
    let directory = machine();
    let file = directory.path().join("vm.toml");
    let (code, _, errors) = run(vmm(Path::new("/")).arg("--config").arg(&file).arg("--check"));
    assert_eq!((code, errors.as_str()), (Some(0), ""));
}

#[test]
fn configuration_errors_are_a_line_each_and_exit_with_1() {
    let with = |more: &[&'static str]| [&CHECK[..], more].concat();
    fails(
        &with(&["--set", "vm.cpus=300", "--set", "boot.kernel=gone"]),
        &[
            "--set boot.kernel=gone: `kernel` in [boot]: cannot open gone: No such file or directory",
            "--set vm.cpus=300: `cpus` in [vm] is 300, expected an integer from 1 to 255",
        ],
    );
    fails(&["--config", "gone.toml"], &["gone.toml: cannot read: No such file or directory"]);
    fails(&["--config", "."], &[".: cannot read: Is a directory"]);
}

/// Whoever would write to the pipe never comes; a file server that does not answer is the same.
#[test]
fn a_signal_ends_a_process_that_waits_for_its_file() {
    let directory = machine();
    let pipe = directory.path().join("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    for (check, blocked) in [(true, false), (false, false), (false, true)] {
        let mut command = vmm(directory.path());
        command.args(["--config", "pipe"]).args(check.then_some("--check"));
        if blocked {
            block_all(&mut command);
        }
        let mut child = command.spawn().unwrap();
        std::thread::sleep(Duration::from_millis(300));
        let pid = child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
        let begin = Instant::now();
        let status = loop {
            match child.try_wait().unwrap() {
                Some(status) => break Some(status),
                None if begin.elapsed() > Duration::from_secs(10) => break None,
                None => std::thread::sleep(Duration::from_millis(50)),
            }
        };
        if status.is_none() {
            child.kill().unwrap();
        }
        assert_eq!(status.and_then(|status| status.signal()), Some(15), "check: {check}, blocked: {blocked}");
    }
}

/// Has the program start with all signals blocked, as some that start others leave them.
fn block_all(command: &mut Command) {
    let block = || {
        // Every bit of the kernel's set of 64.
        let all = u64::MAX;
        let none = std::ptr::null_mut::<u64>();
        // SAFETY: a live set, whose size is told, and no place for the old one. No memory is taken after the fork.
        #[allow(unsafe_code)]
        let result = unsafe {
            libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_BLOCK, &raw const all, none, size_of::<u64>())
        };
        if result == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
    };
    // SAFETY: it makes one system call.
    #[allow(unsafe_code)]
    unsafe {
        command.pre_exec(block)
    };
}

#[test]
fn usage_errors_are_one_line_and_exit_with_1() {
    fails(&[], &["the following required arguments were not provided: --config <FILE>; see vmm --help"]);
    fails(&["vm.toml"], &["unexpected argument 'vm.toml' found; see vmm --help"]);
    fails(
        &["--config", "vm.toml", "--log-level", "loud"],
        &["invalid value 'loud' for '--log-level <LEVEL>' \
           [possible values: off, error, warn, info, debug, trace]; see vmm --help"],
    );
    fails(
        &["--config", "vm.toml", "--check", "--log-file", "gone/log"],
        &["--log-file gone/log: cannot open: No such file or directory"],
    );
}

/// Nothing is appended to a file that is something else, not even what the configuration is warned of.
#[test]
fn a_log_file_that_is_an_image_is_left_alone() {
    if !hypervisor() {
        return;
    }
    let directory = machine();
    let image = directory.path().join("disk.img");
    fs::write(&image, [1; 1000]).unwrap();
    for check in [&CHECK[..], &CHECK[..2]] {
        let (code, output, errors) = run(vmm(directory.path()).args(check).args(["--log-file", "disk.img"]));
        assert_eq!(
            (code, output.as_str(), fs::read(&image).unwrap()),
            (Some(1), "", vec![1; 1000]),
            "{errors}"
        );
        let line = "vmm: error: --log-file disk.img: disk.img is the `image` in [[hba.lun]] of line 8; \
                    expected a file of its own\n";
        // The warning of the image's end has another place then.
        assert!(errors.ends_with(line) && errors.contains("no multiple of 512"), "{errors}");
    }
    let (code, _, errors) = run(vmm(directory.path()).args(CHECK).args(["--log-file", "log"]));
    let log = fs::read_to_string(directory.path().join("log")).unwrap();
    assert_eq!((code, errors.as_str(), log.lines().count()), (Some(0), "", 1), "{log}");
    assert!(log.contains("no multiple of 512"), "{log}");
}

#[test]
fn a_log_filter_that_means_nothing_is_an_error() {
    if !hypervisor() {
        return;
    }
    let directory = machine();
    let mut command = vmm(directory.path());
    let (code, output, errors) = run(command.args(CHECK).env("VMM_LOG", "devices=loud"));
    assert_eq!((code, output.as_str()), (Some(1), ""));
    assert!(errors.starts_with("vmm: error: VMM_LOG=devices=loud: "), "{errors}");
    assert_eq!(errors.lines().count(), 1, "{errors}");
    let (code, _, _) = run(command.args(["--log-level", "info"]));
    assert_eq!(code, Some(0), "the flag wins");
}

#[test]
fn help_and_version_go_to_standard_output() {
    let directory = machine();
    let (code, output, errors) = run(vmm(directory.path()).arg("--help"));
    assert_eq!((code, errors.as_str()), (Some(0), ""));
    assert!(output.contains("Usage: vmm") && output.contains("Exit codes:"), "{output}");
    let expected = (Some(0), format!("vmm {}\n", env!("CARGO_PKG_VERSION")), String::new());
    assert_eq!(run(vmm(directory.path()).arg("--version")), expected);
}

#[test]
fn a_reader_that_went_away_is_no_crash() {
    let directory = machine();
    let mut child = vmm(directory.path()).arg("--help").stdout(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn files_without_permission_are_named() {
    let directory = machine();
    let path = |name: &str| directory.path().join(name);
    // Not by this process: while it writes, what other tests start has the file open for writing too.
    let copied =
        Command::new("cp").args([env!("CARGO_BIN_EXE_vmm").as_ref(), path("vmm").as_path()]).status();
    assert!(copied.unwrap().success());
    let modes = [("", 0o755), ("vmm", 0o755), ("vm.toml", 0o644), ("vmlinuz", 0o000), ("disk.img", 0o444)];
    for (name, mode) in modes {
        fs::set_permissions(path(name), Permissions::from_mode(mode)).unwrap();
    }
    let mut command = Command::new(path("vmm"));
    command.current_dir(directory.path()).env_remove("VMM_LOG").args(CHECK);
    if File::open(path("vmlinuz")).is_ok() {
        // The superuser may open anything: be somebody else.
        command.uid(65534).gid(65534);
    }
    let expected = "vmm: error: vm.toml:5: `kernel` in [boot]: cannot open vmlinuz: Permission denied\n\
                    vmm: error: vm.toml:8: `image` in [[hba.lun]]: cannot write disk.img: Permission denied; \
                    expected a writable image or `readonly = true`\n";
    assert_eq!(run(&mut command), (Some(1), String::new(), expected.into()));
    fs::set_permissions(path("vmlinuz"), Permissions::from_mode(0o444)).unwrap();
    let (_, _, errors) = run(command.args(["--set", "hba.0.lun.0.readonly=true"]));
    // This user may have no hypervisor.
    assert!(errors.lines().all(|line| line.starts_with("vmm: error: /dev/kvm: ")), "{errors}");
}
