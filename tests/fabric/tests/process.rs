//! The process on real sockets: virtual network cards, as root.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use fabric::ETHERTYPE_FIP;
use fabric::socket::{Batch, Socket, wait};

/// A pair of cards, which goes when this is dropped.
struct Pair {
    names: [String; 2],
}

impl Pair {
    /// None where none can be made; that is said.
    fn new(test: &str) -> Option<Self> {
        let names = ["a", "b"].map(|end| format!("fab{}{end}", std::process::id()));
        let [one, other] = &names;
        let script = format!(
            "ip link add {one} mtu 2500 type veth peer name {other} mtu 2500 && ip link set {one} up && ip link set {other} up"
        );
        let made = Command::new("sh").args(["-c", &script]).output().unwrap();
        if !made.status.success() {
            let why = String::from_utf8_lossy(&made.stderr).replace('\n', " ");
            // Past the harness.
            let line = format!("SKIPPED {test}: no virtual network cards: {why}\n");
            std::io::stderr().write_all(line.as_bytes()).unwrap();
            return None;
        }
        Some(Self { names })
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        Command::new("ip").args(["link", "del", &self.names[0]]).status().ok();
    }
}

struct Process {
    child: Child,
    socket: String,
}

impl Process {
    fn start(link: &str, setup: &str) -> Self {
        let place = std::env::temp_dir().join(link);
        let (socket, file) = (format!("{}.socket", place.display()), format!("{}.setup", place.display()));
        std::fs::write(&file, setup).unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_fabric"))
            .args(["--control", &socket, "--setup", &file, "--ports", "2", link])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        std::fs::remove_file(&file).unwrap();
        assert_eq!(line, "ready\n");
        Self { child, socket }
    }

    fn tell(&self, words: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_fabric")).args(["tell", &self.socket]).args(words).output().unwrap()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
        std::fs::remove_file(&self.socket).ok();
    }
}

/// The next advertisement: whom it is to, and its flags.
fn advertisement(socket: &Socket, batch: &mut Batch) -> ([u8; 6], u16) {
    use std::os::fd::AsRawFd;
    let end = Instant::now() + Duration::from_secs(20);
    while Instant::now() < end {
        wait(&[socket.as_raw_fd()], 1000).unwrap();
        // An interface that has just come up may say that it was down.
        if !socket.receive(batch).unwrap_or_default() {
            continue;
        }
        for frame in batch.frames() {
            if frame.get(16..20) == Some(&[0, 1, 0, 2]) {
                return (frame[..6].try_into().unwrap(), u16::from_be_bytes([frame[22], frame[23]]));
            }
        }
    }
    panic!("no advertisement");
}

#[test]
fn the_process_speaks_and_does_as_it_is_told() {
    let Some(pair) = Pair::new("the_process_speaks_and_does_as_it_is_told") else { return };
    let [link, ours] = &pair.names;
    let socket = Socket::open(ours, ETHERTYPE_FIP).unwrap();
    let process = Process::start(link, "# units\ndisk d0 1G\ntape t0\nmap any 0=d0 513=t0\nperiod 200\n");
    let mut batch = Batch::default();
    let everyone = [0x01, 0x10, 0x18, 0x01, 0x00, 0x01];
    assert_eq!(advertisement(&socket, &mut batch), (everyone, 0x8005));
    // A solicitation, of a card with this address.
    let mut frame = vec![0x01, 0x10, 0x18, 0x01, 0x00, 0x02, 2, 0xaa, 0, 0, 0, 1, 0x89, 0x14];
    frame.extend([0x10, 0, 0, 1, 0, 1, 0, 0, 0x80, 0]);
    frame.resize(60, 0);
    assert_eq!(socket.send(&[&frame]), 0);
    let end = Instant::now() + Duration::from_secs(10);
    while advertisement(&socket, &mut batch) != ([2, 0xaa, 0, 0, 0, 1], 0x8007) {
        assert!(Instant::now() < end);
    }
    let info = process.tell(&["info"]);
    let text = String::from_utf8(info.stdout).unwrap();
    for line in ["target 2 502fcf0000000002 up", "disk d0 1073741824 bytes, 0 held", "tape t0", "period 200"]
    {
        assert!(text.contains(line), "{line}: {text}");
    }
    assert!(info.status.success());
    let wrong = process.tell(&["port", "9", "down"]);
    assert_eq!(String::from_utf8(wrong.stderr).unwrap(), "fabric: there is no target port 9\n");
    assert!(!wrong.status.success());
    // The link: its other end loses its carrier, and has it again.
    let carrier = || std::fs::read_to_string(format!("/sys/class/net/{ours}/carrier")).unwrap();
    for (state, expected) in [("down", "0\n"), ("up", "1\n")] {
        assert!(process.tell(&["link", link, state]).status.success());
        let end = Instant::now() + Duration::from_secs(10);
        while carrier() != expected {
            assert!(Instant::now() < end, "{state}");
        }
    }
    assert_eq!(advertisement(&socket, &mut batch).1, 0x8005);
    // Many frames with one call, and one that no card takes.
    let many: Vec<&[u8]> = std::iter::repeat_n(&frame[..], 200).collect();
    assert_eq!(socket.send(&many), 0);
    assert_eq!(socket.send(&[&[0; 4000]]), 1);
    let end = Instant::now() + Duration::from_secs(10);
    while !String::from_utf8(process.tell(&["info"]).stdout).unwrap().contains("frames 201 received") {
        assert!(Instant::now() < end);
    }
}

#[test]
fn what_cannot_be_started_says_why() {
    for (words, why) in [
        (&[][..], "name one link at least"),
        (&["--ports"], "--ports needs a value"),
        (&["--odd"], "--odd is no option"),
        (&["nosuchlink"], "nosuchlink: "),
        (&["tell"], "tell SOCKET COMMAND"),
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_fabric")).args(words).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && said.contains(why), "{words:?}: {said}");
    }
}
