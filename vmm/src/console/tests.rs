use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Instant;

use devices::bus::BusDevice;
use devices::irq::IrqLine;

use super::*;

const SOON: Duration = Duration::from_secs(10);

struct NoLine;
impl IrqLine for NoLine {
    fn set_level(&self, _: bool) {}
    fn pulse(&self) {}
}

/// The state of raw mode is one for the process.
fn alone() -> MutexGuard<'static, ()> {
    static LOCK: Mutex<()> = Mutex::new(());
    LOCK.lock().unwrap_or_else(PoisonError::into_inner)
}

fn started(mut console: Console, quit: impl Fn() + Send + 'static) -> (Console, Arc<Serial>) {
    let serial = Arc::new(Serial::new(Arc::new(NoLine), console.sink()).unwrap());
    console.start(serial.clone(), quit).unwrap();
    (console, serial)
}

/// The guest prints.
fn print(serial: &Serial, text: &[u8]) {
    text.iter().for_each(|byte| serial.write(0, &[*byte]));
}

/// The guest reads what is typed until it has `count` bytes.
fn typed(serial: &Serial, count: usize) -> Vec<u8> {
    let (mut bytes, start) = (Vec::new(), Instant::now());
    while bytes.len() < count {
        let mut byte = [0];
        serial.read(5, &mut byte);
        if byte[0] & 1 != 0 {
            serial.read(0, &mut byte);
            bytes.push(byte[0]);
        } else {
            assert!(start.elapsed() < SOON, "only {bytes:?} arrived");
            thread::sleep(Duration::from_millis(1));
        }
    }
    bytes
}

fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < SOON, "{what}");
        thread::sleep(Duration::from_millis(5));
    }
}

fn read_exactly(from: &mut impl Read, count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    from.read_exact(&mut bytes).unwrap();
    bytes
}

/// A terminal as a user has it: the emulator's side (reads of it do not block) and the program's side.
fn user_terminal() -> (File, File) {
    let master = sys::open_pty_master().unwrap();
    let slave = open_terminal(&sys::pty_slave_path(&master).unwrap());
    (master, slave)
}

fn open_terminal(path: &str) -> File {
    OpenOptions::new().read(true).write(true).custom_flags(libc::O_NOCTTY).open(path).unwrap()
}

/// Reads from the emulator's side until `text` has come.
fn shown(mut master: &File, text: &[u8]) -> Vec<u8> {
    let mut seen = Vec::new();
    eventually("text on the terminal", || {
        let mut buffer = [0; 4096];
        if let Ok(count) = master.read(&mut buffer) {
            seen.extend_from_slice(&buffer[..count]);
        }
        seen.windows(text.len()).any(|window| window == text)
    });
    seen
}

fn is_raw(terminal: &File) -> bool {
    let settings = sys::get_terminal(terminal.as_raw_fd()).unwrap();
    settings.c_lflag & (libc::ICANON | libc::ECHO | libc::ISIG) == 0 && settings.c_oflag & libc::OPOST == 0
}

fn is_cooked(terminal: &File) -> bool {
    let settings = sys::get_terminal(terminal.as_raw_fd()).unwrap();
    settings.c_lflag & libc::ICANON != 0
        && settings.c_lflag & libc::ECHO != 0
        && settings.c_lflag & libc::ISIG != 0
        && settings.c_oflag & libc::OPOST != 0
        && settings.c_iflag & libc::ICRNL != 0
}

fn on_terminal(terminal: &File, changed: fn(bool)) -> Console {
    let link = Link::stdio(terminal.as_fd(), terminal.as_fd(), changed).unwrap();
    Console::with(link, Patience::Endless, true).unwrap()
}

#[test]
fn terminal_is_raw_while_the_console_is_open() {
    static RAW: AtomicBool = AtomicBool::new(false);
    let _alone = alone();
    let (mut master, slave) = user_terminal();
    assert!(is_cooked(&slave));
    let quits = Arc::new(AtomicUsize::new(0));
    let console = on_terminal(&slave, |raw| RAW.store(raw, Ordering::SeqCst));
    assert!(is_raw(&slave) && RAW.load(Ordering::SeqCst));
    let (console, serial) = started(console, {
        let quits = quits.clone();
        move || _ = quits.fetch_add(1, Ordering::SeqCst)
    });
    print(&serial, b"login: \n");
    assert_eq!(shown(&master, b"login: \n"), b"login: \n", "no carriage return is added");
    master.write_all(b"root\r\x03\x01\x01\x01b.").unwrap();
    assert_eq!(
        typed(&serial, 9),
        b"root\r\x03\x01\0.",
        "Ctrl-C and Ctrl-A reach the guest; the break is a zero"
    );
    master.write_all(b"\x01h").unwrap();
    shown(&master, b"Ctrl-A x");
    assert_eq!(quits.load(Ordering::SeqCst), 0);
    master.write_all(b"\x01x").unwrap();
    eventually("quit", || quits.load(Ordering::SeqCst) == 1);
    print(&serial, b"last words");
    console.close();
    shown(&master, b"last words");
    assert!(is_cooked(&slave) && !RAW.load(Ordering::SeqCst));
    terminal::renew();
    assert!(is_cooked(&slave), "a late SIGCONT does not make it raw again");
}

#[test]
fn the_end_of_another_console_leaves_the_terminal_raw() {
    let _alone = alone();
    let (_master, slave) = user_terminal();
    let console = on_terminal(&slave, |_| {});
    let (input, _typing) = std::io::pipe().unwrap();
    let (_reading, output) = std::io::pipe().unwrap();
    let link = Link::stdio(input.as_fd(), output.as_fd(), |_| {}).unwrap();
    Console::with(link, Patience::Endless, true).unwrap().close();
    assert!(is_raw(&slave));
    console.close();
    assert!(is_cooked(&slave));
}

#[test]
fn typing_into_a_guest_that_does_not_read_loses_nothing_and_quit_still_works() {
    let _alone = alone();
    let (master, slave) = user_terminal();
    let quit = Arc::new(AtomicBool::new(false));
    let (console, serial) = started(on_terminal(&slave, |_| {}), {
        let quit = quit.clone();
        move || quit.store(true, Ordering::SeqCst)
    });
    let text: Vec<u8> = (0..3000u32).map(|i| b'a' + (i % 26) as u8).collect();
    (&master).write_all(&text).unwrap();
    (&master).write_all(b"\x01x").unwrap();
    eventually("quit", || quit.load(Ordering::SeqCst));
    assert_eq!(typed(&serial, 3000), text);
    console.close();
}

#[test]
fn pipes_need_no_terminal_and_may_end() {
    let (input, mut typing) = std::io::pipe().unwrap();
    let (mut reading, output) = std::io::pipe().unwrap();
    let link = Link::stdio(input.as_fd(), output.as_fd(), |_| panic!("no terminal here")).unwrap();
    let (console, serial) =
        started(Console::with(link, Patience::Endless, true).unwrap(), || panic!("nobody quit"));
    // Only a terminal has keys of its own: a file sent to the guest may have any byte.
    typing.write_all(b"ls\n\x01x\x01\x01").unwrap();
    drop(typing);
    assert_eq!(typed(&serial, 7), b"ls\n\x01x\x01\x01");
    // Much more than the ring and the pipe hold.
    let text: Vec<u8> = (0..200_000u32).map(|i| (i / 7) as u8).collect();
    let reader = thread::spawn(move || read_exactly(&mut reading, 200_000));
    print(&serial, &text);
    assert!(reader.join().unwrap() == text, "all of it, in order");
    console.close();
}

#[test]
fn a_closed_pipe_does_not_hold_up_the_guest() {
    let (input, _typing) = std::io::pipe().unwrap();
    let (reading, output) = std::io::pipe().unwrap();
    let link = Link::stdio(input.as_fd(), output.as_fd(), |_| {}).unwrap();
    let (console, serial) = started(Console::with(link, Patience::Endless, true).unwrap(), || {});
    drop(output);
    drop(reading);
    print(&serial, &[b'x'; 100_000]);
    console.close();
}

#[test]
fn a_stuck_reader_delays_the_end_only_so_long() {
    let (input, _typing) = std::io::pipe().unwrap();
    let (_reading, output) = std::io::pipe().unwrap();
    let link = Link::stdio(input.as_fd(), output.as_fd(), |_| {}).unwrap();
    let (console, serial) = started(Console::with(link, Patience::Endless, true).unwrap(), || {});
    let printer = thread::spawn(move || print(&serial, &[b'x'; 200_000]));
    thread::sleep(Duration::from_millis(100));
    assert!(!printer.is_finished(), "the guest waits");
    console.release();
    printer.join().unwrap();
    let start = Instant::now();
    console.close();
    assert!(start.elapsed() < LAST_WAIT + Duration::from_secs(1));
}

#[test]
fn bursts_take_few_writes_and_a_prompt_comes_at_once() {
    let (link_end, mut peer) = UnixStream::pair().unwrap();
    let (input, _typing) = std::io::pipe().unwrap();
    let link = Link::stdio(input.as_fd(), link_end.as_fd(), |_| {}).unwrap();
    let (console, serial) = started(Console::with(link, Patience::Endless, true).unwrap(), || {});
    thread::sleep(Duration::from_millis(20));
    let start = Instant::now();
    print(&serial, b"#");
    assert_eq!(read_exactly(&mut peer, 1), b"#");
    assert!(start.elapsed() < Duration::from_millis(500));
    print(&serial, &[b'y'; 10_000]);
    let (mut got, mut reads) = (0, 0);
    while got < 10_000 {
        got += peer.read(&mut [0; 16384]).unwrap();
        reads += 1;
    }
    assert!(reads <= 200, "{reads} writes for 10000 bytes");
    console.close();
}

#[test]
fn file_is_emptied_and_complete_after_closing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("serial.log");
    fs::write(&path, "old").unwrap();
    let (console, serial) = started(Console::open(&Mode::File(path.clone()), |_| {}).unwrap(), || {});
    let text: Vec<u8> = (0..100_000u32).map(|i| i as u8).collect();
    print(&serial, &text);
    console.close();
    assert!(fs::read(&path).unwrap() == text);
}

#[test]
fn output_before_the_start_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("serial.log");
    let console = Console::open(&Mode::File(path.clone()), |_| {}).unwrap();
    console.sink().put(b"early ");
    let (console, serial) = started(console, || {});
    print(&serial, b"late");
    console.close();
    assert_eq!(fs::read(&path).unwrap(), b"early late");
}

#[test]
fn errors_name_the_path_and_a_way_out() {
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("no/such/dir");
    let error = Console::open(&Mode::File(missing.clone()), |_| {}).err().unwrap().to_string();
    assert!(
        error.contains(missing.to_str().unwrap()) && error.contains("no such file or directory;"),
        "{error}"
    );
    let file = dir.path().join("file");
    fs::write(&file, "mine").unwrap();
    let error = Console::open(&Mode::Socket(file.clone()), |_| {}).err().unwrap().to_string();
    assert!(error.contains("exists and is no socket; remove it"), "{error}");
    let error = Console::open(&Mode::Pty(Some(file.clone())), |_| {}).err().unwrap().to_string();
    assert!(error.contains("exists and is no link to a pseudoterminal"), "{error}");
    let link = dir.path().join("link");
    std::os::unix::fs::symlink(&file, &link).unwrap();
    let error = Console::open(&Mode::Pty(Some(link.clone())), |_| {}).err().unwrap().to_string();
    assert!(error.contains("exists and is no link to a pseudoterminal"), "{error}");
    assert_eq!(fs::read_link(&link).unwrap(), file);
    assert_eq!(fs::read(&file).unwrap(), b"mine");
    let long = dir.path().join("x".repeat(120));
    let error = Console::open(&Mode::Socket(long), |_| {}).err().unwrap().to_string();
    assert!(error.contains("at most 107 bytes") && !error.contains('\n'), "{error}");
}

#[test]
fn socket_serves_one_client_after_another() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("serial.sock");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let mode = Mode::Socket(path.clone());
    let (console, serial) = started(Console::open(&mode, |_| {}).unwrap(), || {});
    assert!(matches!(Console::open(&mode, |_| {}), Err(ConsoleError::SocketInUse { .. })));
    // The probe of the second console was a client too, for a moment.
    print(&serial, &[b'-'; 50_000]);
    for round in 0..3 {
        let mut client = UnixStream::connect(&path).unwrap();
        client.set_read_timeout(Some(SOON)).unwrap();
        client.write_all(b"\x01xhi").unwrap();
        assert_eq!(typed(&serial, 4), b"\x01xhi", "no escape keys here, round {round}");
        print(&serial, b"hello");
        assert_eq!(read_exactly(&mut client, 5), b"hello");
        // Half closed: input has ended, output has not.
        client.shutdown(std::net::Shutdown::Write).unwrap();
        print(&serial, b"more");
        assert_eq!(read_exactly(&mut client, 4), b"more");
    }
    console.close();
    assert!(!path.exists(), "the socket is removed");
}

#[test]
fn socket_client_who_does_not_read_holds_up_the_guest_only_once() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("serial.sock");
    let (console, serial) = started(Console::open(&Mode::Socket(path.clone()), |_| {}).unwrap(), || {});
    let mut client = UnixStream::connect(&path).unwrap();
    client.write_all(b".").unwrap();
    typed(&serial, 1);
    let start = Instant::now();
    print(&serial, &vec![b'x'; 2 << 20]);
    assert!(start.elapsed() < SOON, "{:?}", start.elapsed());
    drop(client);
    console.close();
}

#[test]
fn pty_survives_its_readers() {
    let dir = tempfile::tempdir().unwrap();
    let link = dir.path().join("console");
    std::os::unix::fs::symlink("/nonexistent", &link).unwrap();
    let (console, serial) = started(Console::open(&Mode::Pty(Some(link.clone())), |_| {}).unwrap(), || {});
    let path = console.pty_path().unwrap().to_owned();
    assert_eq!(fs::read_link(&link).unwrap().to_str(), Some(&path[..]));
    print(&serial, &[b'-'; 50_000]);
    for _ in 0..2 {
        let mut user = open_terminal(&path);
        assert!(is_raw(&user));
        user.write_all(b"who\r").unwrap();
        assert_eq!(typed(&serial, 4), b"who\r");
        print(&serial, b"nobody");
        assert_eq!(read_exactly(&mut user, 6), b"nobody");
        drop(user);
        thread::sleep(Duration::from_millis(100));
        print(&serial, &[b'-'; 50_000]);
    }
    console.close();
    assert!(fs::symlink_metadata(&link).is_err(), "the link is removed");
}

/// A second machine that comes to no start leaves the first one's link alone, and so does the end of one that has lost it.
#[test]
fn the_link_of_another_machine_stays() {
    let dir = tempfile::tempdir().unwrap();
    let link = dir.path().join("console");
    let mode = Mode::Pty(Some(link.clone()));
    let (console, _) = started(Console::open(&mode, |_| {}).unwrap(), || {});
    let path = console.pty_path().unwrap().to_owned();
    drop(Console::open(&mode, |_| {}).unwrap());
    assert_eq!(fs::read_link(&link).ok(), Some(path.into()));
    let (other, _) = started(Console::open(&mode, |_| {}).unwrap(), || {});
    let path = other.pty_path().unwrap().to_owned();
    console.close();
    assert_eq!(fs::read_link(&link).ok(), Some(path.into()));
    other.close();
    assert!(fs::symlink_metadata(&link).is_err());
}

#[test]
fn the_socket_of_another_machine_stays() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("serial.sock");
    let mode = Mode::Socket(path.clone());
    let console = Console::open(&mode, |_| {}).unwrap();
    fs::remove_file(&path).unwrap();
    let other = Console::open(&mode, |_| {}).unwrap();
    console.close();
    UnixStream::connect(&path).expect("the other one's is there");
    other.close();
    assert!(!path.exists());
}

#[test]
fn off_swallows_everything() {
    let (console, serial) = started(Console::open(&Mode::Off, |_| {}).unwrap(), || {});
    print(&serial, &[b'x'; 100_000]);
    console.close();
}

// The ways in which a process ends, each in a child on a terminal of its own.

const CHILD: &str = "VMM_TEST_CONSOLE_CHILD";

/// The child's part: opens the console and ends in the way that the environment says. Does nothing in a normal run.
#[test]
fn child() {
    let Ok(way) = std::env::var(CHILD) else { return };
    let signals = Signals::block().unwrap();
    let (console, serial) = started(Console::open(&Mode::Stdio, |_| {}).unwrap(), || {});
    print(&serial, b"ready\n");
    // The parent says when.
    typed(&serial, 1);
    match way.as_str() {
        "close" => console.close(),
        "error" => std::process::exit(drop_and(console, 1)),
        "panic" => panic!("on purpose"),
        "abort" => std::process::abort(),
        "segv" => raise(libc::SIGSEGV),
        "bus" => no_memory(),
        _ => wait_for_signals(console, &signals),
    }
}

fn drop_and(console: Console, code: i32) -> i32 {
    drop(console);
    code
}

#[allow(unsafe_code)]
fn raise(signal: i32) {
    // SAFETY: no pointers.
    unsafe { libc::raise(signal) };
}

/// Reads what a mapped file does not have.
#[allow(unsafe_code)]
fn no_memory() {
    explain_bus_errors().unwrap();
    let file = tempfile::tempfile().unwrap();
    let (access, fd) = (libc::PROT_READ, file.as_raw_fd());
    // SAFETY: a new mapping, placed by the kernel.
    let place = unsafe { libc::mmap(std::ptr::null_mut(), 4096, access, libc::MAP_SHARED, fd, 0) };
    assert_ne!(place, libc::MAP_FAILED);
    // SAFETY: mapped; that the kernel has nothing for it is what this is about.
    let byte = unsafe { std::ptr::read_volatile(place.cast::<u8>()) };
    panic!("there is {byte}");
}

fn wait_for_signals(console: Console, signals: &Signals) {
    loop {
        let mut entries = [sys::entry(Some(signals.as_raw_fd()), libc::POLLIN)];
        sys::poll(&mut entries, None).unwrap();
        match signals.next().unwrap() {
            Some(Request::Terminate(signal)) => {
                console.close();
                die(signal);
            }
            Some(Request::Suspend) => suspend(),
            _ => {}
        }
    }
}

#[allow(unsafe_code)]
fn spawn(way: &str) -> (Child, File, File) {
    let (master, slave) = user_terminal();
    let end = || Stdio::from(slave.try_clone().unwrap());
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", "console::tests::child", "--nocapture", "--test-threads=1"])
        .env(CHILD, way)
        .stdin(end())
        .stdout(end())
        .stderr(if way == "bus" { Stdio::piped() } else { Stdio::null() });
    // The test harness has a thread of its own before `child` can block signals as `main` would. What this process
    // was told to ignore (by nohup) the child would ignore too, and never end.
    let block = || {
        for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGQUIT] {
            // SAFETY: a system call that the child may make between fork and exec.
            unsafe { libc::signal(signal, libc::SIG_DFL) };
        }
        Signals::block().map(std::mem::forget)
    };
    // SAFETY: it makes system calls only.
    unsafe { command.pre_exec(block) };
    let child = command.spawn().unwrap();
    shown(&master, b"ready\n");
    assert!(is_raw(&slave), "{way}");
    (&master).write_all(b"!").unwrap();
    (child, master, slave)
}

#[test]
fn every_end_gives_the_terminal_back() {
    for (way, by_signal) in [
        ("close", None),
        ("error", None),
        ("panic", None),
        ("abort", Some(libc::SIGABRT)),
        ("segv", Some(libc::SIGSEGV)),
    ] {
        let (mut child, _master, slave) = spawn(way);
        let status = child.wait().unwrap();
        assert_eq!(status.signal(), by_signal, "{way}: {status}");
        assert_eq!(status.success(), way == "close", "{way}: {status}");
        assert!(is_cooked(&slave), "{way}");
    }
}

#[test]
fn memory_that_the_host_does_not_have_ends_the_process_with_a_line() {
    let (mut child, _master, slave) = spawn("bus");
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!(child.wait().unwrap().signal(), Some(libc::SIGBUS), "{said}");
    assert!(said.contains("vmm: error: the host has no memory for what it promised (SIGBUS): "), "{said}");
    assert_eq!(said.matches("SIGBUS").count(), 1, "{said}");
    assert!(is_cooked(&slave));
}

#[allow(unsafe_code)]
fn kill(child: &Child, signal: i32) {
    // SAFETY: no pointers; the child has not been waited for, so the number is still its own.
    unsafe { libc::kill(child.id() as i32, signal) };
}

#[test]
fn terminating_signals_give_the_terminal_back_and_end_by_the_signal() {
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGQUIT] {
        let (mut child, _master, slave) = spawn("wait");
        kill(&child, signal);
        assert_eq!(child.wait().unwrap().signal(), Some(signal));
        assert!(is_cooked(&slave), "signal {signal}");
    }
}

#[test]
fn signals_that_end_the_process_at_once_give_the_terminal_back() {
    for signal in [
        libc::SIGBUS,
        libc::SIGXCPU,
        libc::SIGSYS,
        libc::SIGTRAP,
        libc::SIGUSR1,
        libc::SIGUSR2,
        libc::SIGALRM,
        libc::SIGVTALRM,
        libc::SIGPROF,
        libc::SIGIO,
        libc::SIGPWR,
        libc::SIGSTKFLT,
    ] {
        let (mut child, _master, slave) = spawn("wait");
        kill(&child, signal);
        assert_eq!(child.wait().unwrap().signal(), Some(signal));
        assert!(is_cooked(&slave), "signal {signal}");
    }
}

#[test]
fn stopping_gives_the_terminal_back_until_it_goes_on() {
    let (mut child, _master, slave) = spawn("wait");
    kill(&child, libc::SIGTSTP);
    let stat = format!("/proc/{}/stat", child.id());
    eventually("stopped", || fs::read_to_string(&stat).unwrap().contains(") T "));
    assert!(is_cooked(&slave));
    kill(&child, libc::SIGCONT);
    eventually("raw again", || is_raw(&slave));
    kill(&child, libc::SIGTERM);
    assert_eq!(child.wait().unwrap().signal(), Some(libc::SIGTERM));
    assert!(is_cooked(&slave));
}

/// Guest and reader are strangers: one prints without end, the other takes a little now and then.
#[test]
fn a_slow_reader_does_not_fill_the_log() {
    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);
    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let (lines, output) =
        (Lines::default(), Output::new(Patience::Limited(Duration::from_millis(1)), true).unwrap());
    let writer = lines.clone();
    let log = tracing_subscriber::fmt().with_writer(move || writer.clone()).finish();
    tracing::subscriber::with_default(log, || {
        for _ in 0..100 {
            output.put(&vec![b'x'; 16 << 10]);
            output.put(b"more");
            output.consume(1000);
        }
    });
    let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
    assert!(text.contains("takes nothing") && text.contains("goes on"), "{text}");
    let count = text.lines().count();
    assert!(count <= 2 * 12, "{count} lines");
}
