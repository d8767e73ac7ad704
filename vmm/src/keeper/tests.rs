use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixDatagram;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use devices::scsi::generic::{Allow, Driver, Identity, Lookout, Part, Wanted};

use super::*;
use crate::jail;

/// Events that a test sends.
struct Sent(UnixDatagram);

impl process::Events for Sent {
    fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    fn next(&mut self, into: &mut Vec<u8>) -> io::Result<bool> {
        into.resize(8 << 10, 0);
        let len = self.0.recv(into)?;
        into.truncate(len);
        // As the kernel says that some were lost.
        if len == 4 { Err(io::Error::from_raw_os_error(libc::ENOBUFS)) } else { Ok(true) }
    }
}

/// A device in a directory that stands for the kernel's.
fn wanted(directory: &std::path::Path) -> Wanted {
    use std::os::unix::fs::MetadataExt;
    Wanted {
        identity: Identity {
            address: "97:0:0:5".into(),
            device_type: 0,
            names: vec!["600140512345678900000000000abcde".into()],
            vendor: "LIO-ORG".into(),
            product: "d0".into(),
            serial: String::new(),
        },
        driver: Driver::Block,
        parts: vec![Part::Block],
        allow: Allow::NoManagement,
        shared: false,
        directory: directory.into(),
        number: std::fs::metadata(directory).unwrap().ino(),
    }
}

/// One path of a disk goes. A unit that was attached since, on another path, has not lost anything.
#[test]
fn only_the_same_path_opened_alike_stands_in_for_a_unit_of_the_start() {
    let directory = tempfile::tempdir().unwrap();
    let before = wanted(directory.path());
    assert!(stands_in(&before, &before.clone()));
    let other = |change: fn(&mut Wanted)| {
        let mut after = before.clone();
        change(&mut after);
        stands_in(&before, &after)
    };
    assert!(!other(|after| after.identity.address = "98:0:0:5".into()), "another path");
    assert!(!other(|after| after.identity.names = vec!["600140512345678900000000000abcdf".into()]));
    assert!(!other(|after| after.allow = Allow::ReadOnly), "the keeper would open it for writing");
    assert!(!other(|after| after.shared = true));
    assert!(!other(|after| after.driver = Driver::Sg));
}

fn news(machine: &UnixStream) -> Option<News> {
    let mut bytes = vec![0; message::LENGTH];
    let (len, mut given) = receive(machine, &mut bytes).unwrap();
    (len > 0).then(|| message::read_report(&bytes[..len], given.take().unwrap()).unwrap())
}

/// The loop, with events that say anything: what is gone is told once, and the end of the machine is its end.
#[test]
fn it_tells_what_is_gone_and_ends_with_the_machine() {
    let directory = tempfile::tempdir().unwrap();
    let place = directory.path().join("97:0:0:5");
    std::fs::create_dir(&place).unwrap();
    let (ours, theirs) = sys::pair().unwrap();
    let (sender, receiver) = UnixDatagram::pair().unwrap();
    receiver.set_nonblocking(true).unwrap();
    std::thread::scope(|scope| {
        let entry = wanted(&place);
        let theirs = &theirs;
        let keeper = scope
            .spawn(move || process::serve(&mut Sent(receiver), theirs, Lookout::new(vec![entry]).unwrap()));
        for event in
            [&b"add@/devices/x\0ACTION=add\0DEVPATH=/devices/x\0SUBSYSTEM=scsi\0"[..], b"", &[0xff; 9000]]
        {
            sender.send(event).unwrap();
        }
        std::fs::remove_dir(&place).unwrap();
        sender.send(b"lost").unwrap();
        assert!(matches!(news(&ours), Some(News::Lost(0))));
        sender.send(b"lost").unwrap();
        ours.set_nonblocking(true).unwrap();
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!((&ours).read(&mut [0; 16]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        drop(ours);
        keeper.join().unwrap().unwrap();
    });
}

#[test]
fn events_come_from_the_kernel_only() {
    // Where a container has none, there is nothing to look at.
    let Ok(socket) = Devices::open() else { return };
    let mut bytes = Vec::new();
    if let Err(error) = socket.receive(&mut bytes) {
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    }
    // A program that has the right may send to the group.
    // SAFETY: a structure of integers.
    #[allow(unsafe_code)]
    let mut group: libc::sockaddr_nl = unsafe { std::mem::zeroed() };
    (group.nl_family, group.nl_groups) = (libc::AF_NETLINK as u16, 1);
    let other = Devices::open().unwrap();
    let text = b"remove@/devices/x\0";
    // SAFETY: live bytes and a live address, with their lengths.
    #[allow(unsafe_code)]
    let sent = unsafe {
        use std::os::fd::AsRawFd;
        let (bytes, len) = (text.as_ptr().cast(), size_of_val(&group) as u32);
        libc::sendto(other.as_fd().as_raw_fd(), bytes, text.len(), 0, (&raw const group).cast(), len)
    };
    if sent < 0 {
        return;
    }
    let until = Instant::now() + Duration::from_secs(5);
    loop {
        match socket.receive(&mut bytes) {
            Ok(false) => break,
            Ok(true) => assert_ne!(bytes, text, "taken for the kernel's"),
            Err(_) => assert!(Instant::now() < until, "it never came"),
        }
    }
}

#[test]
fn files_go_with_messages() {
    let (one, other) = sys::pair().unwrap();
    for count in [0, 1, 2, 3] {
        let files: Vec<std::os::fd::OwnedFd> = (0..count)
            .map(|number| {
                let mut file = tempfile::tempfile().unwrap();
                write!(file, "{number}").unwrap();
                file.into()
            })
            .collect();
        sys::send(&one, b"text", &files).unwrap();
        let mut bytes = [0; 16];
        let (len, mut given) = receive(&other, &mut bytes).unwrap();
        assert_eq!(&bytes[..len], b"text");
        let given = given.take().unwrap();
        assert_eq!(given.len(), count);
        for (number, file) in given.into_iter().enumerate() {
            let mut said = [0];
            std::os::unix::fs::FileExt::read_at(&std::fs::File::from(file), &mut said, 0).unwrap();
            assert_eq!(said, [b'0' + number as u8]);
        }
    }
    assert!(sys::send(&one, b"x", &[(); 5].map(|()| tempfile::tempfile().unwrap().into())).is_err());
    drop(other);
    assert_eq!(sys::send(&one, b"x", &[]).unwrap_err().kind(), io::ErrorKind::BrokenPipe, "and no signal");
}

const CHILD: &str = "VMM_TEST_KEEPER_CHILD";

/// A process that starts a keeper, and says what has become of it. Does nothing in a normal run.
#[test]
fn child() {
    let Ok(place) = std::env::var(CHILD) else { return };
    if place == "calls" {
        return calls();
    }
    let held = tempfile::tempfile().unwrap();
    let Keeper(started) = Keeper::start(Sandbox::On);
    let keeper = started.unwrap();
    let entry = message::wanted(&wanted(place.as_ref())).unwrap();
    let children = std::fs::read_dir("/proc/self/task")
        .unwrap()
        .flatten()
        .map(|task| std::fs::read_to_string(task.path().join("children")).unwrap_or_default());
    let mut children = children;
    let number = children.find_map(|text| text.split_whitespace().next().map(str::to_owned));
    let number = number.expect("the kernel lists children");
    sys::send(&keeper, &entry, &[]).unwrap();
    std::fs::remove_dir(&place).unwrap();
    keeper.shutdown(Shutdown::Write).unwrap();
    // Nothing more goes there.
    assert!(sys::send(&keeper, &entry, &[]).is_err());
    // It looks when it has its list; what goes later than that the kernel would say.
    assert!(matches!(news(&keeper), Some(News::Lost(0))));
    let status = || std::fs::read_to_string(format!("/proc/{number}/status")).unwrap_or_default();
    let until = Instant::now() + Duration::from_secs(5);
    while !status().contains("\nSeccomp:\t2\n") && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(2));
    }
    let line = |key: &str| {
        let status = status();
        let line = status.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_default();
        line.trim_matches([':', '\t']).to_owned()
    };
    println!("name {}", line("Name"));
    println!("seccomp {} nnp {} caps {}", line("Seccomp"), line("NoNewPrivs"), line("CapEff"));
    // Not for it.
    #[allow(unsafe_code)]
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
        // SAFETY: no pointers.
        unsafe { libc::kill(number.parse().unwrap(), signal) };
    }
    let open = std::fs::read_dir(format!("/proc/{number}/fd")).map_or(0, Iterator::count);
    println!("files {open}");
    drop(held);
    drop(keeper);
    // A child that has ended and that nobody has asked for.
    let until = Instant::now() + Duration::from_secs(5);
    while !line("State").starts_with('Z') && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(2));
    }
    println!("state {}", line("State"));
}

/// Does what it takes to open a device, in its sandbox: a call that is refused ends the process.
fn calls() {
    use std::fs::{File, OpenOptions};
    use std::os::unix::fs::OpenOptionsExt;
    let (one, other) = sys::pair().unwrap();
    let (sender, receiver) = UnixDatagram::pair().unwrap();
    sender.send(b"x").unwrap();
    let (quiet, _open) = io::pipe().unwrap();
    let (told, bell) = io::pipe().unwrap();
    jail::confine_keeper(Sandbox::On).unwrap();
    let status = File::open("/proc/thread-self/status").and_then(std::io::read_to_string).unwrap();
    assert!(status.contains("\nSeccomp:\t2\n"));
    let mut seen = 0;
    for entry in std::fs::read_dir("/sys/class/block").unwrap().flatten() {
        let directory = std::fs::canonicalize(entry.path()).unwrap();
        std::fs::metadata(&directory).unwrap();
        let _ = std::fs::read(directory.join("dev")).unwrap();
        // Loop devices, holders, mounts.
        let node = std::path::Path::new("/dev").join(entry.file_name());
        let _ = devices::storage::user_of(&node);
        seen += 1;
    }
    assert!(seen > 0);
    let flags = libc::O_NONBLOCK | libc::O_EXCL;
    let node = OpenOptions::new().read(true).write(true).custom_flags(flags).open("/dev/null").unwrap();
    node.metadata().unwrap();
    node.try_lock().unwrap();
    for number in [0x2282, 0x1267, 0x227f] {
        let mut value = 0;
        // SAFETY: none of these writes more than one int.
        #[allow(unsafe_code)]
        let result = unsafe { libc::ioctl(std::os::fd::AsRawFd::as_raw_fd(&node), number, &raw mut value) };
        assert_eq!((result, io::Error::last_os_error().raw_os_error()), (-1, Some(libc::ENOTTY)));
    }
    let missing = devices::scsi::Generic::open(&devices::scsi::generic::GenericOptions {
        place: devices::scsi::generic::Place::Path("/dev/null".into()),
        shared: false,
        allow: Allow::All,
        bounce: false,
    });
    assert!(missing.unwrap_err().to_string().contains("no SCSI device"));
    std::thread::sleep(Duration::from_millis(1));
    // Threads, and what they say by a pipe that was made before.
    let opener = std::thread::spawn(move || (&bell).write_all(b"x").unwrap());
    opener.join().unwrap();
    assert_eq!(sys::wait([quiet.as_fd(), told.as_fd()], &one, None), (false, true));
    sys::send(&one, b"text", &[node.into()]).unwrap();
    assert_eq!(sys::wait([receiver.as_fd(), quiet.as_fd()], &one, Some(Duration::ZERO)), (true, true));
    assert_eq!(receiver.recv(&mut [0; 8]).unwrap(), 1);
    assert_eq!(sys::wait([receiver.as_fd(), quiet.as_fd()], &one, Some(Duration::ZERO)), (false, true));
    drop(other);
    assert_eq!(sys::wait([receiver.as_fd(), quiet.as_fd()], &one, None), (false, false));
    println!("outside {}", File::open("/etc/passwd").is_ok());
    println!("calls done");
}

#[test]
fn it_can_do_in_its_sandbox_what_it_takes() {
    let this = std::env::current_exe().unwrap();
    let output = Command::new(this)
        .args(["keeper::tests::child", "--exact", "--nocapture", "--test-threads=1"])
        .env(CHILD, "calls")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        said.contains("calls done\n"),
        "{} {said}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    if std::fs::read_to_string("/sys/kernel/security/lsm").is_ok_and(|all| all.contains("landlock")) {
        assert!(said.contains("outside false\n"), "{said}");
    }
}

/// The process as it is: confined, alone, deaf to signals, and gone when nobody is at the other end.
#[test]
fn the_process_is_confined_and_ends_with_the_machine() {
    if Devices::open().is_err() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let place = directory.path().join("97:0:0:5");
    std::fs::create_dir(&place).unwrap();
    let this = std::env::current_exe().unwrap();
    let output = Command::new(this)
        .args(["keeper::tests::child", "--exact", "--nocapture", "--test-threads=1"])
        .env(CHILD, &place)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    let has = |line: &str| assert!(said.contains(line), "{line}: {said}");
    has("name vmm-keeper\n");
    has("seccomp 2 nnp 1 caps 000000000000000");
    let caps = said.split("caps ").nth(1).unwrap().split_whitespace().next().unwrap();
    assert!(["0000000000000000", "0000000000000006"].contains(&caps), "{said}");
    // Standard input, output and error, which are nothing, both sockets, and a pipe. Who may not look finds none.
    assert!(said.contains("files 7\n") || said.contains("files 0\n"), "{said}");
    has("state Z");
}
