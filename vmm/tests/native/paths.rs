//! Files of the host that a machine in its sandbox opens while it runs, and those that it does not.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use devices::testing::answer_system_call;

use super::asm::*;
use super::guest::{COM1, Guest};
use super::vm::{Ended, Running, Vm, eventually, hypervisor, landlock, skipped, turn};

pub const HBAS: [&str; 2] = ["virtio-scsi", "megasas"];

/// Says `text` whenever a key is pressed.
fn guest(text: &str) -> Vec<u8> {
    Guest::kernel(|g| {
        let top = g.here();
        // Line Status Register: data ready.
        g.in8(COM1 + 5);
        g.and(Eax, 1);
        g.cmp(Eax, 0);
        g.jump_if(Cond::Equal, top);
        g.in8(COM1);
        g.print(text);
        g.jmp(top);
    })
}

/// A machine with a disk, and directories for all that it has.
pub fn machine(hba: &str) -> Vm {
    let vm = Vm::new(&guest("first\n"));
    for directory in ["boot", "run", "images", "other"] {
        fs::create_dir(vm.path(directory)).unwrap();
    }
    fs::rename(vm.path("kernel"), vm.path("boot/kernel")).unwrap();
    for image in ["disk.img", "images/a.img", "images/b.img", "other/a.img", "boot/a.img"] {
        fs::write(vm.path(image), [0; 1 << 16]).unwrap();
    }
    vm.set("boot.kernel=boot/kernel")
        .set("control.path=run/control")
        .set("serial.mode=socket")
        .set("serial.path=run/console")
        .set(&format!("hba.0.type={hba}"))
        .set("hba.0.lun.0.image=disk.img")
}

/// A machine that runs, and its control socket.
pub struct Machine {
    pub running: Running,
    control: BufReader<UnixStream>,
    console: BufReader<UnixStream>,
}

impl Machine {
    pub fn start(vm: &Vm) -> Self {
        Self::of(vm, Running::start(&mut vm.command()))
    }

    pub fn of(vm: &Vm, running: Running) -> Self {
        let connect =
            |name: &str| BufReader::new(eventually(name, || UnixStream::connect(vm.path(name)).ok()));
        let (control, console) = (connect("run/control"), connect("run/console"));
        let mut machine = Self { running, control, console };
        machine.settle();
        machine
    }

    /// Until the main thread has done what it was asked, and is in the sandbox.
    fn settle(&mut self) {
        for command in ["stop", "cont"] {
            assert_eq!(self.ask(command, ""), "{\"return\":{}}");
        }
    }

    pub fn reset(&mut self) {
        assert_eq!(self.ask("reset", ""), "{\"return\":{}}");
        self.settle();
    }

    pub fn ask(&mut self, command: &str, arguments: &str) -> String {
        let line = format!("{{\"execute\": \"{command}\", \"arguments\": {{{arguments}}}}}\n");
        self.control.get_mut().write_all(line.as_bytes()).unwrap();
        let mut answer = String::new();
        if self.control.read_line(&mut answer).is_err() || answer.is_empty() {
            panic!("{command}: no answer; {}", self.running.errors());
        }
        answer.trim_end().to_owned()
    }

    pub fn attach(&mut self, image: &str, more: &str) -> String {
        self.ask("attach", &format!("\"image\": \"{image}\"{more}"))
    }

    /// Asks for what is refused with these words.
    #[track_caller]
    pub fn refused(&mut self, image: &str, more: &str, said: &str) {
        let expected = format!("{{\"error\":{{\"class\":\"GenericError\",\"desc\":\"{said}\"}}}}");
        assert_eq!(self.attach(image, more), expected);
    }

    /// What the guest says.
    pub fn line(&mut self) -> String {
        let mut line = String::new();
        self.console.get_mut().write_all(b"x").unwrap();
        self.console.read_line(&mut line).unwrap();
        line
    }

    pub fn quit(mut self) -> Ended {
        assert_eq!(self.ask("quit", ""), "{\"return\":{}}");
        self.running.wait()
    }
}

/// Whether the kernel has Landlock. If not, says that `test` is skipped.
pub fn needs_landlock(test: &str) -> bool {
    landlock() || skipped(test, "this host has no Landlock")
}

/// A qcow2 image of one cluster with nothing in it (QEMU, docs/interop/qcow2.rst).
pub fn qcow2(backing: &str) -> Vec<u8> {
    let mut bytes = vec![0; 4096];
    let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
    put(0, b"QFI\xfb\0\0\0\x03");
    put(8, &200u64.to_be_bytes());
    put(16, &(backing.len() as u32).to_be_bytes());
    put(20, &9u32.to_be_bytes());
    put(24, &512u64.to_be_bytes());
    put(36, &1u32.to_be_bytes());
    put(40, &512u64.to_be_bytes());
    put(48, &1024u64.to_be_bytes());
    put(56, &1u32.to_be_bytes());
    put(96, &[0, 0, 0, 4, 0, 0, 0, 104]);
    put(104, &[0xe2, 0x79, 0x2a, 0xca, 0, 0, 0, 3]);
    put(112, b"raw");
    put(200, backing.as_bytes());
    bytes
}

pub const REMEDY: &str = "pass it as a descriptor (`add-fd`, docs/control.md), or name its directory in `directories` of [security] \
                      and start the machine anew";

#[test]
fn images_come_from_the_directories_that_are_named() {
    let name = "images_come_from_the_directories_that_are_named";
    if !hypervisor(name) || !needs_landlock(name) {
        return;
    }
    for hba in HBAS {
        let vm = machine(hba).set("security.directories=['images']");
        fs::write(vm.path("images/top.qcow2"), qcow2("../other/a.img")).unwrap();
        std::os::unix::fs::symlink("../other/a.img", vm.path("images/link.img")).unwrap();
        let _turn = turn();
        let mut machine = Machine::start(&vm);
        let attached =
            |target| format!("{{\"return\":{{\"lun\":0,\"state\":\"attached\",\"target\":{target}}}}}");
        assert_eq!(machine.attach("images/a.img", ", \"target\": 1"), attached(1), "{hba}");
        assert_eq!(
            machine.attach("images/b.img", ", \"target\": 2, \"cache\": \"none\", \"serial\": \"b\""),
            attached(2)
        );
        assert_eq!(
            machine.ask("resize", "\"target\": 1, \"size\": 131072"),
            "{\"return\":{\"size\":131072}}"
        );
        let refusal = |image: &str| {
            format!(
                "`image` in [[hba.lun]]: cannot open {image}: the sandbox does not let this machine open it; {REMEDY}"
            )
        };
        machine.refused("other/a.img", "", &refusal("other/a.img"));
        machine.refused("images/link.img", "", &refusal("images/link.img"));
        // What a reset reads can be read.
        machine.refused(
            "boot/a.img",
            "",
            &format!(
                "`image` in [[hba.lun]]: cannot write boot/a.img: the sandbox does not let this machine write it; {REMEDY}"
            ),
        );
        machine.refused(
            "images/top.qcow2",
            ", \"backing\": \"any\"",
            "`image` in [[hba.lun]]: images/top.qcow2 cannot use a backing file: cannot open the image \
             images/../other/a.img: the sandbox does not let this machine open it; name its directory in \
             `readonly_directories` of [security] and start the machine anew",
        );
        assert_eq!(
            machine.ask("change", "\"target\": 1, \"image\": \"other/a.img\""),
            format!("{{\"error\":{{\"class\":\"GenericError\",\"desc\":\"{}\"}}}}", refusal("other/a.img"))
        );
        // What the machine has had from the start may come back.
        assert_eq!(machine.ask("detach", "\"target\": 0"), "{\"return\":{}}");
        let state = machine.attach("disk.img", ", \"target\": 3");
        assert!(state.contains("\"return\""), "{state}");
        let ended = machine.quit();
        assert_eq!((ended.code, ended.errors.as_str()), (0, ""), "{hba}");
        assert!(fs::read_dir(vm.path("run")).unwrap().next().is_none(), "its sockets are gone");
    }
}

/// An image that many machines begin from is no place to write to, for whoever has taken over one of them neither.
#[test]
fn backing_files_come_from_directories_that_are_only_read() {
    let name = "backing_files_come_from_directories_that_are_only_read";
    if !hypervisor(name) || !needs_landlock(name) {
        return;
    }
    let vm = machine("virtio-scsi")
        .set("security.directories=['images']")
        .set("security.readonly_directories=['other']");
    fs::write(vm.path("images/top.qcow2"), qcow2("../other/a.img")).unwrap();
    let _turn = turn();
    let mut machine = Machine::start(&vm);
    let said = machine.attach("images/top.qcow2", ", \"backing\": \"any\", \"target\": 1");
    assert!(said.contains("\"return\""), "{said}");
    assert_eq!(machine.ask("detach", "\"target\": 1"), "{\"return\":{}}");
    let said = machine.attach("other/a.img", ", \"readonly\": true, \"target\": 2");
    assert!(said.contains("\"return\""), "{said}");
    assert_eq!(machine.ask("detach", "\"target\": 2"), "{\"return\":{}}");
    machine.refused(
        "other/a.img",
        "",
        &format!("`image` in [[hba.lun]]: cannot write other/a.img: the sandbox does not let this machine write it; {REMEDY}"),
    );
    assert_eq!(machine.quit().code, 0);
}

#[test]
fn protection_information_is_made_where_images_may_be() {
    let name = "protection_information_is_made_where_images_may_be";
    if !hypervisor(name) || !needs_landlock(name) {
        return;
    }
    let vm = machine("virtio-scsi").set("security.directories=['images']");
    let _turn = turn();
    let mut machine = Machine::start(&vm);
    let said = machine.attach("images/a.img", ", \"protection\": 1");
    assert!(said.contains("\"return\""), "{said}");
    machine.refused(
        "images/b.img",
        ", \"protection\": 1, \"serial\": \"b\", \"protection_image\": \"other/b.pi\"",
        "opening other/b.pi: the sandbox does not let this machine open it; name its directory in `directories` of \
         [security] and start the machine anew",
    );
    assert_eq!(machine.quit().code, 0);
    assert!(vm.path("images/a.img.pi").exists());
}

#[test]
fn a_reset_reads_the_kernel_that_has_come_to_its_place() {
    let name = "a_reset_reads_the_kernel_that_has_come_to_its_place";
    if !hypervisor(name) {
        return;
    }
    for hba in HBAS {
        let vm = machine(hba);
        let _turn = turn();
        let mut machine = Machine::start(&vm);
        assert_eq!(machine.line(), "first\n");
        machine.reset();
        assert_eq!(machine.line(), "first\n");
        fs::write(vm.path("boot/new"), guest("second\n")).unwrap();
        fs::rename(vm.path("boot/new"), vm.path("boot/kernel")).unwrap();
        machine.reset();
        assert_eq!(machine.line(), "second\n");
        let ended = machine.quit();
        assert_eq!((ended.code, ended.errors.as_str()), (0, ""), "{hba}");
        assert!(fs::read_dir(vm.path("run")).unwrap().next().is_none());
    }
}

#[test]
fn a_kernel_that_has_moved_ends_the_machine_with_the_remedy() {
    let name = "a_kernel_that_has_moved_ends_the_machine_with_the_remedy";
    if !hypervisor(name) || !needs_landlock(name) {
        return;
    }
    let vm = machine("virtio-scsi").set("boot.kernel=link");
    std::os::unix::fs::symlink("boot/kernel", vm.path("link")).unwrap();
    let _turn = turn();
    let mut machine = Machine::start(&vm);
    assert_eq!(machine.line(), "first\n");
    fs::rename(vm.path("boot/kernel"), vm.path("other/kernel")).unwrap();
    fs::remove_file(vm.path("link")).unwrap();
    std::os::unix::fs::symlink("other/kernel", vm.path("link")).unwrap();
    assert_eq!(machine.ask("reset", ""), "{\"return\":{}}");
    let ended = machine.running.wait();
    let boot = fs::canonicalize(vm.path("boot")).unwrap();
    let line = format!(
        "vmm: error: kernel link: cannot be read: the sandbox lets this machine read only what is in {} since its start; \
         put it there, or end the process and start it anew\n",
        boot.display()
    );
    assert_eq!((ended.code, ended.errors), (1, line));
}

/// Gone when dropped.
pub struct LoopDevice(pub PathBuf);

impl LoopDevice {
    pub fn over(file: &Path) -> Option<Self> {
        let made = Command::new("losetup").args(["--find", "--show"]).arg(file).output().ok()?;
        made.status.success().then(|| Self(String::from_utf8(made.stdout).unwrap().trim_end().into()))
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("--detach").arg(&self.0).status();
    }
}

#[test]
fn a_device_is_refused_with_the_directory_that_its_links_lead_to() {
    let name = "a_device_is_refused_with_the_directory_that_its_links_lead_to";
    if !hypervisor(name) || !needs_landlock(name) {
        return;
    }
    let image = tempfile::NamedTempFile::new().unwrap();
    image.as_file().set_len(1 << 20).unwrap();
    let Some(device) = LoopDevice::over(image.path()) else {
        skipped(name, "there are no loop devices");
        return;
    };
    for directories in ["[]", "['/dev']"] {
        let vm = machine("virtio-scsi").set(&format!("security.directories={directories}"));
        std::os::unix::fs::symlink(&device.0, vm.path("by-id")).unwrap();
        let _turn = turn();
        let mut machine = Machine::start(&vm);
        if directories == "[]" {
            machine.refused(
                "by-id",
                "",
                "`image` in [[hba.lun]]: cannot open by-id: the sandbox does not let this machine open it; pass it as a \
                 descriptor (`add-fd`, docs/control.md), or name /dev, with all devices there, in `directories` of \
                 [security] and start the machine anew",
            );
        } else {
            let said = machine.attach("by-id", ", \"cache\": \"none\"");
            assert!(said.contains("\"return\""), "{said}");
            let units = machine.ask("query-hbas", "");
            assert!(units.contains("\"size\":1048576"), "{units}");
        }
        assert_eq!(machine.quit().code, 0);
    }
}

/// As QEMU does for who writes and shares with nobody.
fn lock_for_writing(file: &File) {
    for byte in [100, 101, 201, 203] {
        let mut range = libc::flock {
            l_type: libc::F_RDLCK as libc::c_short,
            l_whence: libc::SEEK_SET as libc::c_short,
            l_start: byte,
            l_len: 1,
            l_pid: 0,
        };
        // SAFETY: the kernel reads a structure that lives on.
        #[allow(unsafe_code)]
        let locked = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw mut range) };
        assert_eq!(locked, 0);
    }
}

#[test]
fn who_writes_to_an_image_through_a_loop_device_is_found_in_the_sandbox_too() {
    let name = "who_writes_to_an_image_through_a_loop_device_is_found_in_the_sandbox_too";
    if !hypervisor(name) || !needs_landlock(name) {
        return;
    }
    for sandbox in ["off", "on"] {
        let vm = machine("virtio-scsi")
            .set("security.directories=['images']")
            .set(&format!("security.sandbox={sandbox}"));
        // Under another name, in a directory that is not named.
        fs::hard_link(vm.path("images/a.img"), vm.path("other/link.img")).unwrap();
        let Some(device) = LoopDevice::over(&vm.path("other/link.img")) else {
            skipped(name, "there are no loop devices");
            return;
        };
        let writer = File::options().read(true).write(true).open(&device.0).unwrap();
        lock_for_writing(&writer);
        let _turn = turn();
        let mut machine = Machine::start(&vm);
        let said = machine.attach("images/a.img", "");
        let expected =
            format!("of which {} is made: cannot open for writing: it is in use by", device.0.display());
        assert!(said.contains(&expected), "{sandbox}: {said}");
        let said = machine.attach("images/a.img", ", \"readonly\": true");
        assert!(said.contains("cannot open for reading: it is being written to by"), "{sandbox}: {said}");
        drop(writer);
        let said = machine.attach("images/a.img", "");
        assert!(said.contains("\"return\""), "{sandbox}: {said}");
        assert_eq!(machine.quit().code, 0);
    }
}

#[test]
fn without_landlock_a_line_says_so_and_the_machine_runs() {
    let name = "without_landlock_a_line_says_so_and_the_machine_runs";
    if !hypervisor(name) {
        return;
    }
    // Not built in, not enabled, and not allowed by a container.
    for error in [libc::ENOSYS, libc::EOPNOTSUPP, libc::EPERM] {
        let vm = machine("virtio-scsi").arg("--log-level").arg("warn").arg("--log-file").arg("log");
        let _turn = turn();
        let mut command = vm.command();
        // SAFETY: between fork and exec the closure makes system calls only.
        #[allow(unsafe_code)]
        unsafe {
            command.pre_exec(move || {
                answer_system_call(libc::SYS_landlock_create_ruleset, error);
                Ok(())
            });
        }
        let mut machine = Machine::of(&vm, Running::start(&mut command));
        assert_eq!(machine.line(), "first\n");
        let said = machine.attach("other/a.img", "");
        assert!(said.contains("\"return\""), "{said}");
        machine.reset();
        assert_eq!(machine.line(), "first\n");
        let ended = machine.quit();
        assert_eq!((ended.code, ended.errors.as_str()), (0, ""));
        let log = fs::read_to_string(vm.path("log")).unwrap();
        let lines: Vec<_> = log.lines().filter(|line| line.contains("Landlock")).collect();
        assert_eq!(lines.len(), 1, "{log}");
        let remedy = "Linux 5.13 or newer has it, where `landlock` is in the list of security modules (`lsm=` on the \
                      kernel's command line, /sys/kernel/security/lsm) and no container forbids it";
        assert!(lines[0].contains("WARN") && lines[0].ends_with(remedy), "{log}");
        assert!(fs::read_dir(vm.path("run")).unwrap().next().is_none());
    }
}

/// A user of no file system, and of nobody else.
const USER: u32 = 64_321;

fn is_root() -> bool {
    fs::metadata("/proc/self").unwrap().uid() == 0
}

fn give(path: &Path) {
    chown(path, Some(USER), Some(USER)).unwrap();
}

/// A machine that becomes another user, who may do what is needed.
fn given() -> Vm {
    let vm = machine("virtio-scsi")
        .set(&format!("security.user={USER}:{USER}"))
        .set("security.directories=['images']");
    fs::set_permissions(vm.path(""), fs::Permissions::from_mode(0o755)).unwrap();
    for path in ["run", "images", "images/a.img", "disk.img"] {
        give(&vm.path(path));
    }
    fs::set_permissions(vm.path("images/b.img"), fs::Permissions::from_mode(0o600)).unwrap();
    vm
}

#[test]
fn root_becomes_the_user_that_is_named() {
    let name = "root_becomes_the_user_that_is_named";
    if !hypervisor(name) || (!is_root() && !skipped(name, "only root becomes another user")) {
        return;
    }
    for sandbox in ["on", "log", "off"] {
        let vm = given().set(&format!("security.sandbox={sandbox}"));
        let _turn = turn();
        let mut machine = Machine::start(&vm);
        let process = machine.running.child.id();
        for task in fs::read_dir(format!("/proc/{process}/task")).unwrap() {
            let status = fs::read_to_string(task.unwrap().path().join("status")).unwrap();
            let all = format!("{USER}\t{USER}\t{USER}\t{USER}");
            assert!(status.contains(&format!("Uid:\t{all}\nGid:\t{all}\n")), "{status}");
            assert!(status.contains(&format!("Groups:\t{USER} \n")), "{status}");
            for set in ["CapEff", "CapPrm"] {
                assert!(status.contains(&format!("{set}:\t0000000000000000\n")), "{status}");
            }
        }
        for socket in ["run/control", "run/console"] {
            let found = fs::metadata(vm.path(socket)).unwrap();
            assert_eq!((found.uid(), found.gid(), found.mode() & 0o777), (USER, USER, 0o600), "{socket}");
        }
        let said = machine.attach("images/a.img", "");
        assert!(said.contains("\"return\""), "{said}");
        let who = format!("user \\\"{USER}:{USER}\\\" of [security]");
        machine.refused(
            "images/b.img",
            "",
            &format!(
                "`image` in [[hba.lun]]: cannot open images/b.img: {who} may not; change its owner or mode, or those of its \
                 directory, or pass it as a descriptor (`add-fd`, docs/control.md)"
            ),
        );
        assert_eq!(machine.line(), "first\n");
        machine.reset();
        assert_eq!(machine.line(), "first\n");
        let ended = machine.quit();
        let warned = ended.errors.lines().filter(|line| !line.contains("sandbox = \"log\"")).count();
        assert_eq!((ended.code, warned), (0, 0), "{}", ended.errors);
        assert!(fs::read_dir(vm.path("run")).unwrap().next().is_none(), "its sockets are gone");
    }
}

#[test]
fn what_the_user_cannot_do_later_is_said_at_the_start() {
    let name = "what_the_user_cannot_do_later_is_said_at_the_start";
    if !hypervisor(name) || (!is_root() && !skipped(name, "only root becomes another user")) {
        return;
    }
    let vm = given();
    fs::set_permissions(vm.path("boot/kernel"), fs::Permissions::from_mode(0o600)).unwrap();
    let ended = vm.run();
    let line = format!(
        "vmm: error: kernel boot/kernel: user \"{USER}:{USER}\" cannot read it, as a reset does: Permission denied; change \
         its owner or mode, or those of its directory\n"
    );
    assert_eq!((ended.code, &ended.errors), (1, &line));
    let checked = vm.run_with(vm.command().arg("--check"));
    assert_eq!((checked.code, checked.errors), (1, line));
    // It is not read again.
    let vm = vm.set("vm.on_reset=exit");
    let _turn = turn();
    assert_eq!(Machine::start(&vm).quit().code, 0);
    let vm = given();
    fs::set_permissions(vm.path("images"), fs::Permissions::from_mode(0o600)).unwrap();
    chown(vm.path("images"), Some(0), Some(0)).unwrap();
    drop(_turn);
    let ended = vm.run();
    let line = format!(
        "vmm: error: directories in [security]: user \"{USER}:{USER}\" cannot enter images: Permission denied; \
         change its owner or mode, or those of its directory\n"
    );
    assert_eq!((ended.code, ended.errors), (1, line));
    let vm = given();
    for path in ["run", "disk.img"] {
        chown(vm.path(path), Some(0), Some(0)).unwrap();
    }
    let _turn = turn();
    let ended = Machine::start(&vm).quit();
    assert_eq!(ended.code, 0);
    for socket in ["control", "console"] {
        let line = format!(
            "run/{socket} stays when the machine ends: user \"{USER}:{USER}\" cannot remove it from its directory: \
             Permission denied; change that directory's owner or mode"
        );
        assert!(ended.errors.contains(&line), "{}", ended.errors);
    }
    let line = format!(
        "disk.img cannot be attached again by its path once it is detached: user \"{USER}:{USER}\" cannot write it: \
         Permission denied; change its owner or mode, or those of its directory"
    );
    assert!(ended.errors.contains(&line), "{}", ended.errors);
}

#[test]
fn who_became_another_user_still_ends_with_its_parent() {
    let name = "who_became_another_user_still_ends_with_its_parent";
    if !hypervisor(name) || (!is_root() && !skipped(name, "only root becomes another user")) {
        return;
    }
    let vm = given();
    let _turn = turn();
    // The kernel takes the thread for the parent.
    let started = std::thread::scope(|scope| {
        let start = scope.spawn(|| {
            let mut command = vm.command();
            let with_parent = || {
                // SAFETY: no pointers.
                #[allow(unsafe_code)]
                unsafe {
                    libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM)
                };
                Ok(())
            };
            // SAFETY: between fork and exec the closure makes a system call only.
            #[allow(unsafe_code)]
            unsafe {
                command.pre_exec(with_parent)
            };
            Machine::of(&vm, Running::start(&mut command))
        });
        start.join().unwrap()
    });
    let Machine { mut running, .. } = started;
    let begin = std::time::Instant::now();
    while running.child.try_wait().unwrap().is_none() {
        assert!(begin.elapsed() < std::time::Duration::from_secs(10), "it outlives its parent");
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    assert_eq!(running.wait().code, 128 + libc::SIGTERM);
}
