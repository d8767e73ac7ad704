//! Each kind of thread in the sandbox, in a process of its own: it cannot be left again.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::mpsc;

use devices::threads::Kind;
use libc::c_long;

use super::*;
use crate::config::User;

const CHILD: &str = "VMM_TEST_JAIL_CHILD";

/// Runs [`child`] in a process of its own.
fn child_process(what: &str) -> Output {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "jail::tests::child", "--nocapture", "--test-threads=1"])
        .env(CHILD, what)
        .env("RUST_BACKTRACE", "1")
        .output()
        .unwrap()
}

fn said(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The child's part: does what the environment says. Does nothing in a normal run.
#[test]
fn child() {
    let Ok(what) = std::env::var(CHILD) else { return };
    let (way, kind) = what.split_once(':').unwrap();
    match way {
        "kept" => return kept(kind),
        "streams" => return streams(kind),
        _ => {}
    }
    let kind = Kind::ALL.into_iter().find(|one| format!("{one:?}") == kind).unwrap();
    let file = tempfile::tempfile().unwrap();
    let (go, gone) = mpsc::channel();
    let outside = Outside::new();
    let work = move || {
        gone.recv().unwrap();
        allowed(kind, &file);
        outside.run(|| signals::catch(libc::SIGSYS, on_trap, 0).unwrap());
        println!("refused: {}", refused(kind).join(" "));
        outside.run(|| refusal::explain().unwrap());
        // This ends the process.
        call(libc::SYS_execve, [0; 6]);
    };
    match way {
        "before" => {
            let thread = threads::spawn(kind, "jailed", work).unwrap();
            confine(Sandbox::On, None, None, Extras::default()).unwrap();
            go.send(()).unwrap();
            let _ = thread.join();
        }
        // As if the host kept it in a system call.
        "busy" => {
            let ((here, there), (back, comes)) = (mpsc::channel(), mpsc::channel::<()>());
            let thread = threads::spawn(kind, "jailed", move || {
                mask(libc::SIG_BLOCK, confine::signal());
                here.send(()).unwrap();
                comes.recv().unwrap();
                mask(libc::SIG_UNBLOCK, confine::signal());
                work();
            });
            there.recv().unwrap();
            confine(Sandbox::On, None, None, Extras::default()).unwrap();
            back.send(()).unwrap();
            go.send(()).unwrap();
            let _ = thread.unwrap().join();
        }
        // As an attacker might, who would rather have refused calls do nothing.
        "blocked" => {
            let (go, gone) = mpsc::channel();
            let thread = threads::spawn(kind, "jailed", move || {
                gone.recv().unwrap();
                mask(libc::SIG_BLOCK, libc::SIGSYS);
                call(libc::SYS_execve, [0; 6]);
                println!("it lives");
            });
            confine(Sandbox::On, None, None, Extras::default()).unwrap();
            go.send(()).unwrap();
            let _ = thread.unwrap().join();
        }
        "later" => {
            confine(Sandbox::On, None, None, Extras::default()).unwrap();
            let thread = threads::spawn(kind, "jailed", work).unwrap();
            go.send(()).unwrap();
            let _ = thread.join();
        }
        "main" => {
            confine(Sandbox::On, None, None, Extras::default()).unwrap();
            go.send(()).unwrap();
            work();
        }
        "log" => {
            let (go, gone) = mpsc::channel();
            let thread = threads::spawn(kind, "jailed", move || {
                gone.recv().unwrap();
                println!("socket {}", call(libc::SYS_socket, [1, 1, 0, 0, 0, 0]));
            });
            confine(Sandbox::Log, None, None, Extras::default()).unwrap();
            go.send(()).unwrap();
            thread.unwrap().join().unwrap();
        }
        "forbidden" => {
            devices::testing::forbid_filters();
            println!("{:#}", confine(Sandbox::On, None, None, Extras::default()).unwrap_err());
        }
        "unknown" => {
            devices::testing::forbid_system_call(libc::SYS_seccomp);
            confine(Sandbox::On, None, None, Extras::default()).unwrap();
            go.send(()).unwrap();
            work();
        }
        other => panic!("{other}"),
    }
}

/// Becomes another user while the host keeps a thread in a system call.
fn kept(sandbox: &str) {
    const HOST: Duration = Duration::from_secs(2);
    let sandbox = if sandbox == "on" { Sandbox::On } else { Sandbox::Off };
    // What is said of it is the first line of the log.
    crate::logging::start(None, None).unwrap();
    crate::logging::begin();
    let user = User { name: "x".into(), uid: 64_321, gid: 64_322, groups: vec![64_323] };
    let number = AtomicI32::new(0);
    std::thread::scope(|scope| {
        let (begins, begun) = mpsc::channel();
        let (end, ends) = mpsc::channel::<()>();
        let told = &number;
        let kept = threads::spawn_scoped(scope, Kind::Load, "kept", move || {
            told.store(threads::number(), Ordering::SeqCst);
            begins.send(()).unwrap();
            wait_for_host(HOST);
            let _ = ends.recv();
        });
        begun.recv().unwrap();
        // Until it is there.
        std::thread::sleep(Duration::from_millis(100));
        let begin = Instant::now();
        privileges::become_on_this_thread(&user).unwrap();
        confine(sandbox, Some(Ids::of(&user)), None, Extras::default()).unwrap();
        let took = begin.elapsed();
        assert!(took >= PATIENCE && took < Duration::from_millis(1500), "{took:?}");
        let ids = |number: i32| {
            let status = std::fs::read_to_string(format!("/proc/self/task/{number}/status")).unwrap();
            let shown =
                |key: &str| status.lines().find_map(|line| line.strip_prefix(key)).unwrap().to_owned();
            [shown("Uid:"), shown("Gid:"), shown("Groups:"), shown("CapEff:")]
                .map(|line| line.trim().to_owned())
        };
        let there =
            ["64321\t64321\t64321\t64321", "64322\t64322\t64322\t64322", "64322 64323", "0000000000000000"];
        let number = number.load(Ordering::SeqCst);
        assert_eq!(ids(threads::number()), there);
        assert_eq!(ids(number)[0], "0\t0\t0\t0", "the test keeps nothing");
        std::thread::sleep((HOST + Duration::from_millis(300)).saturating_sub(begin.elapsed()));
        assert_eq!(ids(number), there);
        drop(end);
        kept.unwrap().join().unwrap();
    });
    println!("it did");
}

/// Gives up what could be done with pipes and a terminal, and opens them anew as another user, who owns them.
fn streams(console: &str) {
    let mut script = pipe(0);
    script.write_all(b"x").unwrap();
    // Whoever has the other ends is another process.
    drop((script, pipe(1)));
    let terminal = terminal(2);
    let both = pipe(300);
    streams::narrow_output();
    streams::narrow(console == "console").unwrap();
    let user = User { name: "x".into(), uid: 64_321, gid: 64_322, groups: vec![] };
    let refused = |fd: i32| {
        let open = |read, write| {
            let opened = File::options()
                .read(read)
                .write(write)
                .custom_flags(libc::O_NONBLOCK)
                .open(format!("/proc/self/fd/{fd}"));
            opened.is_err_and(|error| error.raw_os_error() == Some(libc::EACCES))
        };
        [open(true, false), open(false, true), open(true, true)]
    };
    let tried = std::thread::spawn(move || {
        privileges::become_on_this_thread(&user).unwrap();
        [0, 1, 300].map(refused)
    });
    let tried = tried.join().unwrap();
    assert_eq!(tried[1], [true, false, true], "a pipe for output");
    assert_eq!(tried[2], [false, false, false], "both of its ends are here");
    drop(both);
    let mut read = [0];
    match console {
        "console" => {
            assert_eq!(tried[0], [false, true, true], "a pipe for input");
            assert_eq!((standard(0).read(&mut read).unwrap(), read), (1, *b"x"));
        }
        _ => assert_eq!(standard(0).read(&mut read).unwrap(), 0, "the script's"),
    }
    // What comes from the terminal's other side stays there.
    let mut other = terminal;
    other.write_all(b"typed\n").unwrap();
    assert_eq!(standard(2).read(&mut read).unwrap_err().raw_os_error(), Some(libc::EBADF));
    standard(2).write_all(b"written").unwrap();
    let (mut shown, mut some) = (Vec::new(), [0; 64]);
    while !said(&shown).contains("written") {
        let length = other.read(&mut some).unwrap();
        shown.extend(&some[..length]);
    }
    std::process::exit(77);
}

/// What is open as `fd`.
#[allow(unsafe_code)]
fn standard(fd: i32) -> std::mem::ManuallyDrop<File> {
    // SAFETY: it is not closed here.
    std::mem::ManuallyDrop::new(unsafe { std::os::fd::FromRawFd::from_raw_fd(fd) })
}

#[allow(unsafe_code)]
fn put(file: &impl std::os::fd::AsRawFd, fd: i32) {
    // SAFETY: no pointers.
    assert_eq!(unsafe { libc::dup2(file.as_raw_fd(), fd) }, fd);
}

/// A pipe of the other user's, one end of which is `fd`: the other end.
fn pipe(fd: i32) -> File {
    use std::os::fd::OwnedFd;
    let (reader, writer) = std::io::pipe().unwrap();
    std::os::unix::fs::fchown(&reader, Some(64_321), Some(64_322)).unwrap();
    let (reader, writer) = (File::from(OwnedFd::from(reader)), File::from(OwnedFd::from(writer)));
    let (own, other) = if fd == 0 { (reader, writer) } else { (writer, reader) };
    put(&own, fd);
    other
}

/// A terminal as `fd`: its other side.
#[allow(unsafe_code)]
fn terminal(fd: i32) -> File {
    let other = File::options().read(true).write(true).open("/dev/ptmx").unwrap();
    let number = std::os::fd::AsRawFd::as_raw_fd(&other);
    // SAFETY: no pointers.
    assert_eq!(unsafe { libc::unlockpt(number) }, 0);
    let mut name = [0; 64];
    // SAFETY: room of this length.
    assert_eq!(unsafe { libc::ptsname_r(number, name.as_mut_ptr(), name.len()) }, 0);
    // SAFETY: the call wrote a string.
    let name = unsafe { std::ffi::CStr::from_ptr(name.as_ptr()) }.to_str().unwrap();
    let terminal = File::options().read(true).write(true).open(name).unwrap();
    put(&terminal, fd);
    other
}

/// Keeps the calling thread in a system call that no signal interrupts, but one that ends the process.
#[allow(unsafe_code)]
fn wait_for_host(time: Duration) {
    let time = libc::timespec { tv_sec: time.as_secs().cast_signed(), tv_nsec: 0 };
    // SAFETY: no pointers; the child has memory of its own.
    let child = unsafe { libc::syscall(libc::SYS_clone, libc::CLONE_VFORK | libc::SIGCHLD, 0, 0, 0, 0) };
    if child == 0 {
        // SAFETY: a live time.
        unsafe { libc::nanosleep(&raw const time, std::ptr::null_mut()) };
        // SAFETY: it ends the child alone.
        unsafe { libc::_exit(0) };
    }
}

/// A thread that is never confined, for what no other may do any more.
struct Outside(mpsc::Sender<(fn(), mpsc::Sender<()>)>);

impl Outside {
    fn new() -> Self {
        let (give, given) = mpsc::channel::<(fn(), mpsc::Sender<()>)>();
        // Not one of ours, so nobody tells it to confine itself.
        std::thread::spawn(move || {
            for (work, done) in given {
                work();
                done.send(()).unwrap();
            }
        });
        Self(give)
    }

    fn run(&self, work: fn()) {
        let (done, is_done) = mpsc::channel();
        self.0.send((work, done)).unwrap();
        is_done.recv().unwrap();
    }
}

/// Keeps a signal from the calling thread, or lets it come.
#[allow(unsafe_code)]
fn mask(how: libc::c_int, signal: libc::c_int) {
    // SAFETY: all-zero bytes are a valid set.
    let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: the set is live.
    unsafe { libc::sigaddset(&raw mut set, signal) };
    // SAFETY: the set is live, and the old one is not asked for.
    assert_eq!(unsafe { libc::pthread_sigmask(how, &raw const set, std::ptr::null_mut()) }, 0);
}

#[allow(unsafe_code)]
fn call(number: c_long, arguments: [u64; 6]) -> c_long {
    let [a, b, c, d, e, f] = arguments;
    // SAFETY: the calls here are refused, or have no pointers.
    unsafe { libc::syscall(number, a, b, c, d, e, f) }
}

/// What threads do unseen: memory, clocks, files that are open, threads, a panic with its report.
fn allowed(kind: Kind, mut file: &File) {
    let mut bytes = vec![1u8; 1 << 20];
    bytes.resize(64 << 20, 2);
    bytes.shrink_to_fit();
    let many: Vec<Vec<u8>> = (1..2000).map(|size| vec![3; size * 37]).collect();
    drop((bytes, many));
    let mut map = HashMap::new();
    map.insert(1, "random state");
    std::thread::sleep(Duration::from_millis(2));
    std::thread::yield_now();
    file.write_all(b"written").unwrap();
    file.seek(SeekFrom::Start(0)).unwrap();
    let mut text = String::new();
    file.read_to_string(&mut text).unwrap();
    assert_eq!(text, "written");
    assert_eq!(file.metadata().unwrap().len(), 7);
    drop(file.try_clone().unwrap());
    let panicked = std::panic::catch_unwind(|| panic!("on purpose"));
    assert!(panicked.is_err());
    tracing::warn!("a line of the log");
    crate::exit::complain("a line");
    if matches!(kind, Kind::Io | Kind::IoHelper | Kind::Client | Kind::Main | Kind::EventLog) {
        file.set_len(1 << 20).unwrap();
        file.sync_all().unwrap();
        file.try_lock().unwrap();
    }
    if matches!(kind, Kind::Client | Kind::Main | Kind::Load | Kind::Loops) {
        assert!(std::fs::read_to_string("/proc/thread-self/status").unwrap().contains("\nSeccomp:\t2\n"));
        assert!(std::fs::read_dir("/proc/self/fd").unwrap().count() > 2);
    }
    let starts = match kind {
        Kind::Main => Kind::Load,
        Kind::Io => Kind::IoHelper,
        Kind::Control => Kind::Client,
        Kind::Client => Kind::Space,
        Kind::Returns => Kind::IoHelper,
        _ => return,
    };
    // More than there are places for the memory of threads, so that the library looks how many it may have.
    let threads: Vec<_> = (0..20)
        .map(|_| threads::spawn(starts, "started", || std::thread::sleep(Duration::from_millis(5))).unwrap())
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

static TRAPPED: AtomicI32 = AtomicI32::new(-1);

#[allow(unsafe_code)]
extern "C" fn on_trap(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: as in `refusal`.
    let call = unsafe { info.cast::<u8>().wrapping_add(24).cast::<i32>().read_unaligned() };
    TRAPPED.store(call, Ordering::SeqCst);
}

/// Tries what no thread of the kind may do; which of it was not refused.
fn refused(kind: Kind) -> Vec<String> {
    const WRITE: u64 = libc::O_RDWR as u64;
    let parent = std::os::unix::process::parent_id().into();
    let thread = (libc::CLONE_VM | libc::CLONE_SIGHAND | libc::CLONE_THREAD) as u64;
    let opens = matches!(kind, Kind::Main | Kind::Control | Kind::Client | Kind::Load | Kind::Loops);
    let starts = matches!(kind, Kind::Main | Kind::Io | Kind::Control | Kind::Client | Kind::Returns);
    let mut calls: Vec<(c_long, [u64; 6])> = vec![
        (libc::SYS_openat2, [0; 6]),
        (libc::SYS_open_by_handle_at, [0; 6]),
        (libc::SYS_name_to_handle_at, [0; 6]),
        (libc::SYS_creat, [0; 6]),
        (libc::SYS_socket, [1, 1, 0, 0, 0, 0]),
        (libc::SYS_socketpair, [1, 1, 0, 0, 0, 0]),
        (libc::SYS_connect, [u64::MAX, 0, 0, 0, 0, 0]),
        (libc::SYS_bind, [u64::MAX, 0, 0, 0, 0, 0]),
        (libc::SYS_listen, [u64::MAX, 0, 0, 0, 0, 0]),
        (libc::SYS_execve, [0; 6]),
        (libc::SYS_execveat, [0; 6]),
        (libc::SYS_fork, [0; 6]),
        (libc::SYS_vfork, [0; 6]),
        (libc::SYS_clone, [libc::SIGCHLD as u64, 0, 0, 0, 0, 0]),
        (libc::SYS_clone, [thread | libc::CLONE_NEWUSER as u64, 0, 0, 0, 0, 0]),
        (libc::SYS_ptrace, [0; 6]),
        (libc::SYS_process_vm_readv, [parent, 0, 0, 0, 0, 0]),
        (libc::SYS_process_vm_writev, [parent, 0, 0, 0, 0, 0]),
        (libc::SYS_kill, [parent, 0, 0, 0, 0, 0]),
        (libc::SYS_tgkill, [parent, parent, 0, 0, 0, 0]),
        (libc::SYS_rt_sigqueueinfo, [parent, 0, 0, 0, 0, 0]),
        (libc::SYS_pidfd_open, [parent, 0, 0, 0, 0, 0]),
        (libc::SYS_pidfd_getfd, [0; 6]),
        (libc::SYS_pidfd_send_signal, [u64::MAX, 0, 0, 0, 0, 0]),
        (libc::SYS_mmap, [0, 4096, 5, 0x22, u64::MAX, 0]),
        (libc::SYS_mprotect, [0, 4096, 7, 0, 0, 0]),
        (libc::SYS_pkey_mprotect, [0; 6]),
        (libc::SYS_memfd_create, [0; 6]),
        (libc::SYS_shmget, [0; 6]),
        (libc::SYS_shmat, [0; 6]),
        (libc::SYS_io_uring_setup, [1, 0, 0, 0, 0, 0]),
        (libc::SYS_io_uring_register, [u64::MAX, 0, 0, 0, 0, 0]),
        (libc::SYS_mount, [0; 6]),
        (libc::SYS_umount2, [0; 6]),
        (libc::SYS_pivot_root, [0; 6]),
        (libc::SYS_chroot, [0; 6]),
        (libc::SYS_unshare, [0; 6]),
        (libc::SYS_setns, [u64::MAX, 0, 0, 0, 0, 0]),
        (libc::SYS_bpf, [0; 6]),
        (libc::SYS_keyctl, [0; 6]),
        (libc::SYS_add_key, [0; 6]),
        (libc::SYS_userfaultfd, [0; 6]),
        (libc::SYS_perf_event_open, [0; 6]),
        (libc::SYS_finit_module, [u64::MAX, 0, 0, 0, 0, 0]),
        (libc::SYS_kexec_load, [0; 6]),
        (libc::SYS_reboot, [0; 6]),
        (libc::SYS_personality, [0x40_0000, 0, 0, 0, 0, 0]),
        (libc::SYS_iopl, [0; 6]),
        (libc::SYS_modify_ldt, [0; 6]),
        (libc::SYS_setuid, [0; 6]),
        (libc::SYS_setresuid, [u64::MAX, u64::MAX, u64::MAX, 0, 0, 0]),
        (libc::SYS_capset, [0; 6]),
        (libc::SYS_setrlimit, [0; 6]),
        (libc::SYS_prlimit64, [0, 7, 1, 0, 0, 0]),
        (libc::SYS_prctl, [libc::PR_SET_DUMPABLE as u64, 1, 0, 0, 0, 0]),
        (libc::SYS_fcntl, [0, libc::F_SETOWN as u64, parent, 0, 0, 0]),
        (libc::SYS_ioctl, [0, 0x5412, 0, 0, 0, 0]),
        (libc::SYS_ioctl, [0, 0xae01, 0, 0, 0, 0]),
        (libc::SYS_chmod, [0; 6]),
        (libc::SYS_fchmod, [u64::MAX, 0, 0, 0, 0, 0]),
        (libc::SYS_chown, [0; 6]),
        (libc::SYS_rename, [0; 6]),
        (libc::SYS_link, [0; 6]),
        (libc::SYS_symlink, [0; 6]),
        (libc::SYS_mkdir, [0; 6]),
        (libc::SYS_mknod, [0; 6]),
        (libc::SYS_truncate, [0; 6]),
        (libc::SYS_sendto, [u64::MAX, 0, 0, 0, 1, 1]),
        (libc::SYS_fanotify_init, [0; 6]),
        (libc::SYS_inotify_init1, [0; 6]),
        (libc::SYS_quotactl, [0; 6]),
        (libc::SYS_sched_setscheduler, [0; 6]),
        (libc::SYS_syslog, [3, 0, 0, 0, 0, 0]),
        (libc::SYS_rt_sigaction, [libc::SIGSYS as u64, 0, 0, 8, 0, 0]),
    ];
    if !opens {
        calls.push((libc::SYS_openat, [u64::MAX, 0, WRITE, 0, 0, 0]));
        calls.push((libc::SYS_open, [0, WRITE, 0, 0, 0, 0]));
    }
    if !starts {
        calls.push((
            libc::SYS_clone,
            [thread | libc::CLONE_FS as u64 | libc::CLONE_FILES as u64, 0, 0, 0, 0, 0],
        ));
        calls.push((libc::SYS_seccomp, [1, 0, 0, 0, 0, 0]));
        calls.push((libc::SYS_prctl, [libc::PR_SET_SECCOMP as u64, 2, 0, 0, 0, 0]));
    }
    if kind != Kind::Main {
        calls.push((libc::SYS_unlink, [0; 6]));
    }
    if kind != Kind::Vcpu {
        calls.push((libc::SYS_ioctl, [u64::MAX, 0xae80, 0, 0, 0, 0]));
    }
    let made = |(number, arguments): &(c_long, [u64; 6])| {
        TRAPPED.store(-1, Ordering::SeqCst);
        call(*number, *arguments);
        TRAPPED.load(Ordering::SeqCst) != *number as i32
    };
    let name =
        |(number, arguments): (c_long, _)| format!("{} {arguments:?}", calls::names::name(number).unwrap());
    let mut all: Vec<String> = calls.iter().filter(|one| made(one)).copied().map(name).collect();
    all.push(format!("all but that of {}", calls.len()));
    all
}

fn check(way: &str, kind: Kind) {
    let output = child_process(&format!("{way}:{kind:?}"));
    let (out, err) = (said(&output.stdout), said(&output.stderr));
    let shown = format!("{way} {kind:?}: {}\n{out}\n{err}", output.status);
    assert_eq!(output.status.signal(), Some(libc::SIGSYS), "{shown}");
    assert!(out.contains("refused: all but that of "), "{shown}");
    let thread =
        if matches!(way, "main" | "unknown") { "" } else { "\"jailed\" made the system call execve (59), " };
    let line = format!("vmm: error: the sandbox ended the machine: its thread {thread}");
    assert_eq!((err.matches(&line).count(), err.matches(" execve (59)").count()), (1, 1), "{shown}");
}

#[test]
fn each_kind_of_thread_that_is_there_is_confined() {
    Kind::ALL.into_iter().filter(|kind| *kind != Kind::Main).for_each(|kind| check("before", kind));
}

#[test]
fn threads_that_start_later_are_confined_as_well() {
    for kind in [Kind::Load, Kind::End] {
        check("later", kind);
    }
}

#[test]
fn a_thread_that_does_not_answer_is_confined_when_it_comes_back() {
    check("busy", Kind::Log);
}

#[test]
fn a_thread_that_the_host_keeps_becomes_another_user_when_it_comes_back() {
    if std::fs::metadata("/proc/self").unwrap().uid() != 0 {
        eprintln!("SKIPPED: only root becomes another user");
        return;
    }
    for sandbox in ["on", "off"] {
        let output = child_process(&format!("kept:{sandbox}"));
        let shown = format!("{}\n{}\n{}", output.status, said(&output.stdout), said(&output.stderr));
        assert!(output.status.success() && shown.contains("it did"), "{shown}");
    }
}

#[test]
fn standard_streams_lead_nowhere_else() {
    if std::fs::metadata("/proc/self").unwrap().uid() != 0 {
        eprintln!("SKIPPED: only root becomes another user");
        return;
    }
    for console in ["console", "none"] {
        let output = child_process(&format!("streams:{console}"));
        let shown = format!("{}\n{}\n{}", output.status, said(&output.stdout), said(&output.stderr));
        assert_eq!(output.status.code(), Some(77), "{console}: {shown}");
    }
}

#[test]
fn the_main_thread_is_confined_too() {
    check("main", Kind::Main);
}

#[test]
fn a_thread_that_blocks_the_signal_of_refused_calls_ends_by_it() {
    let output = child_process("blocked:Vcpu");
    let shown = format!("{}\n{}\n{}", output.status, said(&output.stdout), said(&output.stderr));
    assert_eq!(output.status.signal(), Some(libc::SIGSYS), "{shown}");
    assert!(!shown.contains("it lives"), "{shown}");
}

#[test]
fn calls_that_are_only_logged_are_made() {
    let output = child_process("log:Vcpu");
    let out = said(&output.stdout);
    assert!(output.status.success() && !out.contains("socket -1") && out.contains("socket "), "{out}");
}

/// As systemd's `@system-service` is before version 257. Older kernels than this one's slow threads down that way.
#[test]
fn a_service_manager_need_not_know_seccomp() {
    check("unknown", Kind::Main);
}

#[test]
fn a_host_that_forbids_the_sandbox_ends_the_start_with_a_remedy() {
    let output = child_process("forbidden:Vcpu");
    let out = said(&output.stdout);
    let line = "the host does not let the machine into its sandbox: giving up system calls (seccomp): Operation not permitted \
                (os error 1); have the host allow prctl and seccomp to it (SystemCallFilter= of its service, the seccomp \
                profile of its container), or set sandbox = \"off\" in [security] to run it without";
    assert!(output.status.success() && out.contains(line), "{out}{}", said(&output.stderr));
}
