//! A guest that has broken out: each thread of a machine that runs tries what would reach the host, and the jail lets none of
//! it through.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use libc::c_long;

use super::console::{converse, echo};
use super::seize::{Arg, Call, Outcome, Seized, threads};
use super::vm::{Ended, Running, Vm, eventually, hypervisor, landlock, skipped, turn};

/// Threads that every machine of [`machine`] has while a client is connected.
const THREADS: [&str; 13] = [
    "vmm",
    "vcpu0",
    "io-scsi0",
    "io-raid0",
    "control",
    "control-client",
    "console",
    "signals",
    "waits",
    "log-file",
    "event-log",
    "debug-log",
    "space",
];

/// linux/loop.h and linux/kvm.h.
const LOOP_SET_FD: i64 = 0x4c00;
const KVM_CREATE_VM: i64 = 0xae01;
/// scsi/sg.h.
const SG_IO: i64 = 0x2285;
/// asm-generic/ioctls.h.
const FIOASYNC: i64 = 0x5452;
/// SECCOMP_FILTER_FLAG_NEW_LISTENER (linux/seccomp.h).
const NEW_LISTENER: i64 = 1 << 3;

/// A machine with all kinds of threads, that echoes on its console.
pub fn machine() -> Vm {
    let vm = Vm::new(&echo())
        .set("control.path=control")
        .set("serial.mode=socket")
        .set("serial.path=serial")
        .set("boot.debug_log=debug")
        .set("hba.0.id=scsi0")
        .set("hba.0.lun.0.image=disk0")
        .set("hba.0.lun.0.on_no_space=pause")
        .set("hba.0.lun.1.image=disk2")
        .set("hba.0.lun.1.readonly=true")
        .set("hba.1.id=raid0")
        .set("hba.1.type=megasas")
        .set("hba.1.event_log=events")
        .set("hba.1.lun.0.image=disk1")
        .arg("--log-file")
        .arg("messages");
    for name in ["disk0", "disk1", "disk2"] {
        fs::File::create(vm.path(name)).unwrap().set_len(1 << 20).unwrap();
    }
    vm
}

/// A machine whose guest runs, with a client on its control socket and one on its console.
pub struct Started {
    pub running: Running,
    console: UnixStream,
    _control: UnixStream,
}

impl Started {
    pub fn new(vm: &Vm) -> Self {
        let running = vm.start();
        let connect = |name: &str| eventually(name, || UnixStream::connect(vm.path(name)).ok());
        let (control, mut console) = (connect("control"), connect("serial"));
        (&control).write_all(b"{\"execute\": \"query-status\"}\n").unwrap();
        let mut answer = String::new();
        BufReader::new(&control).read_line(&mut answer).unwrap();
        assert!(answer.contains("running"), "{answer}");
        // The guest answers: until it runs, threads have much to do.
        console.write_all(b"x").unwrap();
        console.read_exact(&mut [0]).unwrap();
        Self { running, console, _control: control }
    }
}

/// What a thread is made to try.
struct Attempts<'a> {
    /// A directory of the machine.
    directory: &'a Path,
    /// The port of a server on this host.
    port: u16,
    /// The descriptor of an image that the machine only reads.
    readonly: i32,
}

pub fn n(number: impl Into<i64>) -> Arg {
    Arg::Number(number.into())
}

fn text(text: &str) -> Arg {
    Arg::Bytes([text.as_bytes(), b"\0"].concat())
}

fn bytes(bytes: &[u8]) -> Arg {
    Arg::Bytes(bytes.to_vec())
}

impl Attempts<'_> {
    /// Calls that nothing in the machine has a use for. Should one be let through, it does no harm here.
    fn useless(&self) -> Vec<Call> {
        // The parent: it tests, and shall not be harmed by what gets through.
        let parent = i64::from(std::process::id());
        let here = i64::from(libc::AT_FDCWD);
        let file = |name: &str| text(self.directory.join(name).to_str().unwrap());
        // struct sockaddr_in of 127.0.0.1.
        let [high, low] = self.port.to_be_bytes();
        let address = [2, 0, high, low, 127, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0];
        let exec = i64::from(libc::PROT_READ | libc::PROT_EXEC);
        let anonymous = i64::from(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        let call = |name, number: c_long, arguments: &[Arg]| Call::new(name, number, arguments.to_vec());
        let mut calls = vec![
            // Files by other names than openat.
            call("creat", libc::SYS_creat, &[file("made"), n(0o600)]),
            call("openat2", libc::SYS_openat2, &[n(here), text("/etc/passwd"), bytes(&[0; 24]), n(24)]),
            call("open_by_handle_at", libc::SYS_open_by_handle_at, &[n(here), bytes(&[0; 16])]),
            call("mkdir", libc::SYS_mkdir, &[file("made"), n(0o700)]),
            call("mknod", libc::SYS_mknod, &[file("made"), n(0o600)]),
            call("symlink", libc::SYS_symlink, &[text("/etc"), file("made")]),
            call("link", libc::SYS_link, &[file("disk0"), file("made")]),
            call("rename", libc::SYS_rename, &[file("disk0"), file("made")]),
            call("chmod", libc::SYS_chmod, &[file("disk0"), n(0o777)]),
            call("chown", libc::SYS_chown, &[file("disk0"), n(1), n(1)]),
            call("truncate", libc::SYS_truncate, &[file("disk0"), n(1)]),
            call("setxattr", libc::SYS_setxattr, &[file("disk0"), text("user.x"), bytes(b"x"), n(1)]),
            call("chdir", libc::SYS_chdir, &[text("/none")]),
            call("chroot", libc::SYS_chroot, &[text("/none")]),
            call("mount", libc::SYS_mount, &[text("none"), text("/none"), text("tmpfs")]),
            call("umount2", libc::SYS_umount2, &[text("/none")]),
            call("pivot_root", libc::SYS_pivot_root, &[text("/none"), text("/none")]),
            // The network.
            call("socket", libc::SYS_socket, &[n(libc::AF_INET), n(libc::SOCK_STREAM)]),
            call(
                "socketpair",
                libc::SYS_socketpair,
                &[n(libc::AF_UNIX), n(libc::SOCK_STREAM), n(0), bytes(&[0; 8])],
            ),
            call("connect", libc::SYS_connect, &[n(0), bytes(&address), n(16)]),
            call("bind", libc::SYS_bind, &[n(0), bytes(&address), n(16)]),
            call("listen", libc::SYS_listen, &[n(0)]),
            // Other programs and processes.
            call("execve", libc::SYS_execve, &[text("/none")]),
            call("execveat", libc::SYS_execveat, &[n(here), text("/none")]),
            call("memfd_create", libc::SYS_memfd_create, &[text("made")]),
            call("clone", libc::SYS_clone, &[n(libc::SIGCHLD | libc::CLONE_NEWNS | libc::CLONE_FS)]),
            call("unshare", libc::SYS_unshare, &[n(libc::CLONE_NEWUSER)]),
            call("setns", libc::SYS_setns, &[n(0)]),
            call("kill", libc::SYS_kill, &[n(parent)]),
            call("tkill", libc::SYS_tkill, &[n(parent)]),
            call("tgkill", libc::SYS_tgkill, &[n(parent), n(parent)]),
            call("rt_sigqueueinfo", libc::SYS_rt_sigqueueinfo, &[n(parent), n(0), bytes(&[0; 128])]),
            call("pidfd_open", libc::SYS_pidfd_open, &[n(parent)]),
            call("ptrace", libc::SYS_ptrace, &[n(i64::from(libc::PTRACE_SEIZE)), n(parent), n(0), n(-1)]),
            call("process_vm_readv", libc::SYS_process_vm_readv, &[n(parent)]),
            call("process_vm_writev", libc::SYS_process_vm_writev, &[n(parent)]),
            // Code of its own.
            call("mprotect", libc::SYS_mprotect, &[n(0), n(4096), n(exec)]),
            call("pkey_mprotect", libc::SYS_pkey_mprotect, &[n(0), n(4096), n(exec), n(-1)]),
            call("mmap", libc::SYS_mmap, &[n(0), n(4096), n(exec), n(anonymous), n(-1)]),
            // More of the kernel.
            call("io_uring_setup", libc::SYS_io_uring_setup, &[n(8), bytes(&[0; 120])]),
            call("io_uring_register", libc::SYS_io_uring_register, &[n(0)]),
            call("bpf", libc::SYS_bpf, &[n(0), bytes(&[0; 64]), n(64)]),
            call("userfaultfd", libc::SYS_userfaultfd, &[]),
            call("perf_event_open", libc::SYS_perf_event_open, &[bytes(&[0; 128]), n(0), n(-1), n(-1)]),
            call("reboot", libc::SYS_reboot, &[]),
            call("keyctl", libc::SYS_keyctl, &[]),
            call("add_key", libc::SYS_add_key, &[]),
            call("init_module", libc::SYS_init_module, &[]),
            call("finit_module", libc::SYS_finit_module, &[]),
            call("kexec_load", libc::SYS_kexec_load, &[n(0), n(0), n(0), n(-1)]),
            call("setuid", libc::SYS_setuid, &[]),
            call("setgid", libc::SYS_setgid, &[]),
            call("setgroups", libc::SYS_setgroups, &[]),
            call("capset", libc::SYS_capset, &[]),
            call("personality", libc::SYS_personality, &[n(0)]),
            call("iopl", libc::SYS_iopl, &[n(3)]),
            call("ioperm", libc::SYS_ioperm, &[n(0), n(1), n(1)]),
            call("sethostname", libc::SYS_sethostname, &[n(0), n(-1)]),
            call("settimeofday", libc::SYS_settimeofday, &[]),
            call("swapon", libc::SYS_swapon, &[text("")]),
            call("quotactl", libc::SYS_quotactl, &[]),
            call("acct", libc::SYS_acct, &[text("/none")]),
            call("syslog", libc::SYS_syslog, &[n(-1)]),
            call("fsopen", libc::SYS_fsopen, &[text("none")]),
            call("open_tree", libc::SYS_open_tree, &[n(-1), text("")]),
            call("inotify_init1", libc::SYS_inotify_init1, &[]),
            call("fanotify_init", libc::SYS_fanotify_init, &[n(-1)]),
            call("shmget", libc::SYS_shmget, &[n(0), n(-1)]),
            call("shmat", libc::SYS_shmat, &[n(-1), n(0), n(libc::SHM_EXEC)]),
            call("pidfd_getfd", libc::SYS_pidfd_getfd, &[n(-1)]),
            call("kcmp", libc::SYS_kcmp, &[n(parent), n(parent)]),
            call("seccomp", libc::SYS_seccomp, &[n(-1)]),
            // The signal of refused calls, to make them and live.
            call("rt_sigaction", libc::SYS_rt_sigaction, &[n(libc::SIGSYS), bytes(&[0; 32]), n(0), n(8)]),
            call("seccomp, notify", libc::SYS_seccomp, &[n(libc::SECCOMP_SET_MODE_FILTER), n(NEW_LISTENER)]),
            // Calls that are made, for something else.
            call("prctl, dumpable", libc::SYS_prctl, &[n(libc::PR_SET_DUMPABLE), n(1)]),
            call("prctl, secure bits", libc::SYS_prctl, &[n(libc::PR_SET_SECUREBITS), n(0)]),
            call("prctl, who may trace", libc::SYS_prctl, &[n(libc::PR_SET_PTRACER), n(0)]),
            call("prlimit64", libc::SYS_prlimit64, &[n(0), n(libc::RLIMIT_CORE), bytes(&[0; 16])]),
            call("fcntl, owner", libc::SYS_fcntl, &[n(0), n(libc::F_SETOWN), n(parent)]),
            call("fcntl, signals", libc::SYS_fcntl, &[n(0), n(libc::F_SETFL), n(libc::O_ASYNC)]),
            call("fcntl, notify", libc::SYS_fcntl, &[n(0), n(libc::F_NOTIFY)]),
            call("ioctl, input", libc::SYS_ioctl, &[n(0), n(libc::TIOCSTI.cast_signed()), bytes(b"x")]),
            // The kernel looks at 32 bits of the number.
            call(
                "ioctl, input, with more bits",
                libc::SYS_ioctl,
                &[n(0), n(libc::TIOCSTI.cast_signed() | 1 << 32), bytes(b"x")],
            ),
            call("ioctl, signals", libc::SYS_ioctl, &[n(0), n(FIOASYNC), bytes(&[1, 0, 0, 0])]),
            call("ioctl, loop device", libc::SYS_ioctl, &[n(0), n(LOOP_SET_FD)]),
            call("ioctl, SCSI command", libc::SYS_ioctl, &[n(0), n(SG_IO)]),
            call("ioctl, another machine", libc::SYS_ioctl, &[n(0), n(KVM_CREATE_VM)]),
            call("sendto", libc::SYS_sendto, &[n(0), text(""), n(1), n(0), bytes(&address), n(16)]),
            call(
                "setsockopt",
                libc::SYS_setsockopt,
                &[n(0), n(libc::SOL_SOCKET), n(libc::SO_MARK), bytes(&[0; 4]), n(4)],
            ),
            call("process_madvise", libc::SYS_process_madvise, &[n(0)]),
        ];
        // The same numbers in the table of x32 (Linux, __X32_SYSCALL_BIT).
        calls.push(call("openat of x32", libc::SYS_openat | 1 << 30, &[n(here), text("/etc/passwd")]));
        calls
    }

    /// Calls that make another process: they would, and it would run on as the thread does.
    fn forks() -> [Call; 3] {
        [
            Call::new("fork", libc::SYS_fork, []),
            Call::new("vfork", libc::SYS_vfork, []),
            Call::new("clone", libc::SYS_clone, [n(libc::SIGCHLD)]),
        ]
    }

    /// Files that are opened to be read. Who may not open at all is told so: libraries try some, and make do without.
    fn reading() -> [Call; 3] {
        let file = || text("/etc/passwd");
        let root = text("/proc/self/root/etc/passwd");
        [
            Call::new("openat", libc::SYS_openat, [n(libc::AT_FDCWD), file()]),
            Call::new("open", libc::SYS_open, [file()]),
            Call::new("openat by the process' root", libc::SYS_openat, [n(libc::AT_FDCWD), root]),
        ]
    }

    /// Files that are opened to be written.
    fn writing(&self) -> [Call; 8] {
        let made = self.directory.join("made");
        let create = libc::O_CREAT | libc::O_WRONLY;
        let memory = format!("/proc/{}/mem", std::process::id());
        let readonly = format!("/proc/self/fd/{}", self.readonly);
        let openat = |name, path: &str, flags: i32| {
            Call::new(name, libc::SYS_openat, [n(libc::AT_FDCWD), text(path), n(flags), n(0o600)])
        };
        [
            openat("openat to create", made.to_str().unwrap(), create),
            openat("openat to change", "/etc/passwd", libc::O_RDWR),
            openat("openat of the parent's memory", &memory, libc::O_RDWR),
            openat("openat of its own memory", "/proc/self/mem", libc::O_RDWR),
            openat("openat of its own memory as a thread's", "/proc/thread-self/mem", libc::O_RDWR),
            openat("openat of who is killed last", "/proc/self/oom_score_adj", libc::O_WRONLY),
            openat("openat of an image that is only read", &readonly, libc::O_RDWR),
            openat("openat of its input", "/proc/self/fd/0", libc::O_WRONLY),
        ]
    }

    /// Files that are opened as nobody here opens any, whoever may write.
    fn unusual(&self) -> [Call; 4] {
        let open = |name, flags: i32, mode: i32| {
            let disk = text(self.directory.join("disk0").to_str().unwrap());
            Call::new(name, libc::SYS_openat, [n(libc::AT_FDCWD), disk, n(flags), n(mode)])
        };
        let pty = [n(libc::AT_FDCWD), text("/dev/ptmx"), n(libc::O_ACCMODE | libc::O_NOCTTY)];
        [
            open("openat for neither reading nor writing", libc::O_ACCMODE, 0),
            Call::new("openat of a terminal for neither", libc::SYS_openat, pty),
            open("openat to empty", libc::O_WRONLY | libc::O_TRUNC, 0),
            open("openat to create for others to run", libc::O_WRONLY | libc::O_CREAT, 0o4755),
        ]
    }

    /// A message to an address, from a socket that is there.
    fn message(&self, socket: i32) -> Call {
        let [high, low] = self.port.to_be_bytes();
        let address = bytes(&[2, 0, high, low, 127, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0]);
        // struct iovec and struct msghdr (sendmsg(2)): a name, a byte, nothing beside them.
        let data = Arg::Words(vec![bytes(b"x"), n(1)]);
        let message = Arg::Words(vec![address, n(16), data, n(1), n(0), n(0), n(0)]);
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        Call::new("sendmsg to an address", libc::SYS_sendmsg, [n(socket), message, n(flags)])
    }
}

/// Threads that open files while the machine runs, at a reset or for who is connected, and who starts such.
fn opens(thread: &str) -> bool {
    ["vmm", "control", "control-client"].contains(&thread)
}

/// Whether threads of a child can be seized here, in a machine.
pub fn possible(test: &str) -> bool {
    if !hypervisor(test) {
        return false;
    }
    let mut child = Command::new("sleep").arg("60").spawn().unwrap();
    let seized = Seized::new(child.id(), child.id().cast_signed()).map(drop);
    child.kill().unwrap();
    child.wait().unwrap();
    seized.is_ok() || skipped(test, "ptrace is forbidden here")
}

/// The descriptors of a process whose names are these.
pub fn descriptors(process: u32, wanted: impl Fn(&str) -> bool) -> Vec<i32> {
    let entries = fs::read_dir(format!("/proc/{process}/fd")).unwrap();
    let number = |entry: std::io::Result<fs::DirEntry>| {
        let path = entry.unwrap().path();
        let name = fs::read_link(&path).ok()?;
        wanted(name.to_str()?).then(|| path.file_name().unwrap().to_str().unwrap().parse().unwrap())
    };
    entries.filter_map(number).collect()
}

fn names(directory: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(directory).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn no_thread_gets_out() {
    if !possible("no_thread_gets_out") {
        return;
    }
    let begin = Instant::now();
    let vm = machine();
    let turn = turn();
    let started = Started::new(&vm);
    let process = started.running.child.id();
    let directory = vm.path("");
    let before = names(&directory);
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = server.local_addr().unwrap().port();
    let readonly = descriptors(process, |name| name.ends_with("/disk2"))[0];
    let attempts = Attempts { directory: &directory, port, readonly };
    let sockets = descriptors(process, |name| name.starts_with("socket:"));
    // Two servers, and a client of each.
    assert!(sockets.len() >= 4, "{sockets:?}");

    let landlock =
        landlock() || skipped("no_thread_gets_out", "no Landlock: threads that open files open any");

    let (mut wrong, mut tried, mut seen) = (Vec::new(), 0, BTreeSet::new());
    for (thread, name) in threads(process) {
        let mut seized = Seized::new(process, thread).unwrap();
        let mut check = |call: &Call, right: Outcome| {
            let outcome = seized.attempt(call).unwrap();
            tried += 1;
            if outcome != right {
                wrong.push(format!("{name}: {}: {outcome:?}", call.name));
            }
            wrong.len()
        };
        let failed = attempts.useless().iter().map(|call| check(call, Outcome::Trapped)).max();
        // Not before it is known that the jail is there.
        if failed == Some(0) {
            for call in Attempts::forks() {
                check(&call, Outcome::Trapped);
            }
        }
        // What it asks for cannot be looked at, so nobody has it: libraries make do with clone.
        let clone3 = Call::new("clone3", libc::SYS_clone3, [bytes(&[0; 64]), n(64)]);
        check(&clone3, Outcome::Answered(-i64::from(libc::ENOSYS)));
        // Landlock holds those that open files, filters the others.
        let denied = Outcome::Answered(-i64::from(libc::EACCES));
        let held = landlock || !opens(&name);
        if held {
            for call in &Attempts::reading() {
                check(call, denied);
            }
        }
        // The main thread only reads.
        let writes = opens(&name) && name != "vmm";
        if held || !writes {
            for call in &attempts.writing() {
                check(call, if writes { denied } else { Outcome::Trapped });
            }
        }
        for call in &attempts.unusual() {
            check(call, Outcome::Trapped);
        }
        for socket in &sockets {
            check(&attempts.message(*socket), Outcome::Trapped);
        }
        seen.insert(name);
    }
    assert!(wrong.is_empty(), "{} of {tried} attempts:\n{}", wrong.len(), wrong.join("\n"));
    for name in THREADS {
        assert!(seen.contains(name), "no thread {name}: {seen:?}");
    }
    assert_eq!(names(&directory), before);
    server.set_nonblocking(true).unwrap();
    assert!(server.accept().is_err(), "somebody has connected");

    // It was never let into anything, so the machine goes on.
    converse(&started.console);
    started.running.wait().ok();
    drop(turn);
    eprintln!("{tried} attempts by {} threads in {:?}", seen.len(), begin.elapsed());
}

/// What comes of a machine one of whose threads makes a system call.
fn let_go(name: &str, call: &Call) -> Ended {
    let vm = machine();
    let _turn = turn();
    let started = Started::new(&vm);
    let process = started.running.child.id();
    let (thread, _) = threads(process).into_iter().find(|(_, its)| its == name).unwrap();
    Seized::new(process, thread).unwrap().let_go_into(call).unwrap();
    started.running.wait()
}

#[test]
fn a_thread_that_tries_ends_the_machine() {
    if !possible("a_thread_that_tries_ends_the_machine") {
        return;
    }
    let execve = Call::new("execve", libc::SYS_execve, [text("/bin/sh")]);
    for name in THREADS {
        let ended = let_go(name, &execve);
        assert_eq!(ended.code, 128 + libc::SIGSYS, "{name}: {ended:?}");
        let lines: Vec<&str> = ended.errors.lines().collect();
        assert!(
            matches!(lines[..], [line] if line.contains("execve") && line.contains(name)),
            "{name}: {lines:?}"
        );
    }
}

/// A processor in 64-bit mode takes the system calls of 32-bit programs too, which have other numbers.
#[test]
fn calls_of_32_bit_programs_end_the_machine() {
    if !possible("calls_of_32_bit_programs_end_the_machine") {
        return;
    }
    // getpid (Linux, syscall_32.tbl), which nobody would mind.
    let getpid = Call::of_32_bits("getpid", 20);
    for name in ["vcpu0", "control-client"] {
        let ended = let_go(name, &getpid);
        // A kernel without such programs takes it for a fault.
        assert!([libc::SIGSYS, libc::SIGSEGV].contains(&(ended.code - 128)), "{name}: {ended:?}");
    }
}
