//! Requests and answers, word for word, on an HBA that only takes note.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use devices::iothread::IoThread;
use devices::scsi::suite::Request;
use devices::scsi::{Disk, DiskConfig, LogicalUnit, Lun, Nexus, Status, Target, TargetGroup};
use devices::storage::{CacheMode, Image, RawImage, RawOptions, Sharing};
use devices::testing::pci::TestSeat;
use hba_megasas::{Arrival, Megasas};
use hba_virtio_scsi::VirtioScsi;
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use super::*;
use crate::config::{MegasasMode, MegasasModel, WritePolicy};
use crate::machine::adapter::HotPlug;
use crate::machine::identity::Identities;
use crate::machine::space::Space;
use crate::machine::{hbas, raid};

#[derive(Default)]
struct Recorder(Mutex<Vec<String>>);

impl HotPlug for Recorder {
    fn units(&self, _: &config::Lun, image: &Arc<Image>, disk: DiskConfig) -> Result<Vec<LogicalUnit>> {
        Ok(vec![LogicalUnit::Disk(Disk::new(image.clone(), disk)?)])
    }

    fn attach_targets(&self, id: u8, targets: &[Arc<Target>]) -> Result<Arrival> {
        let units: usize = targets.iter().map(|target| Nexus::new(target.clone(), None).luns().len()).sum();
        self.0.lock().unwrap().push(format!("attach {id}, {units} units"));
        Ok(Arrival::There)
    }

    fn detach_targets(&self, id: u8) -> Result<()> {
        self.0.lock().unwrap().push(format!("detach {id}"));
        Ok(())
    }
}

struct Bench {
    _thread: IoThread,
    directory: tempfile::TempDir,
    recorder: Arc<Recorder>,
    control: Arc<Control>,
}

fn bench() -> (Bench, Service) {
    let thread = IoThread::start("test").unwrap();
    let directory = tempfile::tempdir().unwrap();
    for (name, len) in [("a.img", 1 << 20), ("b.img", 2 << 20)] {
        fs::File::create(directory.path().join(name)).unwrap().set_len(len).unwrap();
    }
    let recorder = Arc::new(Recorder::default());
    let control = Control::new(0).unwrap();
    let space = Space::new(control.clone());
    let adapter =
        Adapter::new("scsi0", HbaType::VirtioScsi, thread.remote(), &space, &TargetGroup::default());
    adapter.connect(recorder.clone());
    let raid = Adapter::new("raid0", HbaType::Megasas, thread.remote(), &space, &TargetGroup::default());
    let service = Service {
        own: Vec::new(),
        name: "vm".into(),
        directory: directory.path().into(),
        control: control.clone(),
        adapters: vec![Arc::new(adapter), Arc::new(raid)],
        space,
        power_button: Box::new(|| false),
    };
    (Bench { _thread: thread, directory, recorder, control }, service)
}

fn ask(service: &Service, line: &str) -> Value {
    service.answer(line.as_bytes(), &mut Given::default())
}

fn error(service: &Service, line: &str) -> String {
    ask(service, line)["error"]["desc"].as_str().unwrap_or_else(|| panic!("{line} is no error")).to_owned()
}

#[test]
fn disks_come_change_and_go() {
    let (bench, service) = bench();
    let attach = r#"{"execute": "attach", "arguments": {"hba": "scsi0", "image": "a.img"}, "id": "x"}"#;
    assert_eq!(
        ask(&service, attach),
        json!({"return": {"target": 0, "lun": 0, "state": "attached"}, "id": "x"})
    );
    let second = r#"{"execute": "attach", "arguments": {"hba": "scsi0", "target": 0, "lun": 3, "image": "b.img", "readonly": true, "bounce": true}}"#;
    assert_eq!(ask(&service, second), json!({"return": {"target": 0, "lun": 3, "state": "attached"}}));
    let image = |name: &str| bench.directory.path().join(name).to_string_lossy().into_owned();
    let units = json!([
        {"target": 0, "lun": 0, "image": image("a.img"), "size": 1 << 20, "readonly": false, "bounce": false,
         "flush_failed": false, "state": "attached", "type": "disk"},
        {"target": 0, "lun": 3, "image": image("b.img"), "size": 2 << 20, "readonly": true, "bounce": true,
         "flush_failed": false, "state": "attached", "type": "disk"},
    ]);
    let hbas = ask(&service, r#"{"execute": "query-hbas"}"#);
    assert_eq!(
        hbas["return"][0],
        json!({"id": "scsi0", "type": "virtio-scsi", "units": units, "unnoticed": []})
    );
    assert_eq!(error(&service, second), "target 0 lun 3 is in use");
    let resize = r#"{"execute": "resize", "arguments": {"hba": "scsi0", "target": 0, "size": 4194304}}"#;
    assert_eq!(ask(&service, resize), json!({"return": {"size": 4194304}}));
    assert_eq!(fs::metadata(bench.directory.path().join("a.img")).unwrap().len(), 4 << 20);
    assert!(error(&service, &resize.replace("4194304", "512")).contains("shrinking"));
    let detach = |lun| {
        format!(r#"{{"execute": "detach", "arguments": {{"hba": "scsi0", "target": 0, "lun": {lun}}}}}"#)
    };
    // A size in whole blocks of the disk.
    let large = |command: &str, more: &str| {
        format!(
            r#"{{"execute": "{command}", "arguments": {{"hba": "scsi0", "target": 0, "lun": 4, {more}}}}}"#
        )
    };
    fs::write(image("c.img"), [0; 8192]).unwrap();
    ask(&service, &large("attach", r#""image": "c.img", "block_size": 4096"#));
    let refused = error(&service, &large("resize", r#""size": 4194816"#));
    assert_eq!(refused, "4194816 bytes are no multiple of 4096, the length of the disk's blocks");
    assert_eq!(ask(&service, &large("resize", r#""size": 4198400"#)), json!({"return": {"size": 4_198_400}}));
    assert_eq!(ask(&service, &detach(4)), json!({"return": {}}));
    assert_eq!(ask(&service, &detach(0)), json!({"return": {}}));
    assert_eq!(error(&service, &detach(0)), "nothing at target 0 lun 0");
    assert_eq!(*bench.recorder.0.lock().unwrap(), ["attach 0, 1 units"], "a unit is left");
    let change =
        r#"{"execute": "change", "arguments": {"hba": "scsi0", "target": 0, "lun": 3, "image": "a.img"}}"#;
    assert_eq!(ask(&service, change), json!({"return": {"target": 0, "lun": 3, "state": "attached"}}));
    assert_eq!(ask(&service, &detach(3)), json!({"return": {}}));
    let seen = bench.recorder.0.lock().unwrap().join("; ");
    assert_eq!(seen, "attach 0, 1 units; detach 0; attach 0, 1 units; detach 0");
}

#[test]
fn a_disk_that_is_called_like_another_is_refused() {
    let (bench, service) = bench();
    let command = |command: &str, image: &str, more: &str| {
        format!(r#"{{"execute": "{command}", "arguments": {{"hba": "scsi0", "image": "{image}", {more}}}}}"#)
    };
    let attached = ask(&service, &command("attach", "a.img", r#""serial": "S""#));
    assert_eq!(attached, json!({"return": {"target": 0, "lun": 0, "state": "attached"}}));
    let b = bench.directory.path().join("b.img");
    let refused = format!(
        "{}: serial \"S\" is that of the unit at hba scsi0, target 0, lun 0; give each its own",
        b.display()
    );
    assert_eq!(error(&service, &command("attach", "b.img", r#""serial": "S""#)), refused);
    let zero = error(&service, &command("attach", "b.img", r#""wwn": "0000000000000000""#));
    assert!(zero.contains("expected a name that begins with 5"), "{zero}");
    // What takes its place may take its name.
    let change = command("change", "b.img", r#""serial": "S", "target": 0"#);
    assert_eq!(ask(&service, &change), json!({"return": {"target": 0, "lun": 0, "state": "attached"}}));
    let attached = ask(&service, &command("attach", "a.img", r#""serial": "T""#));
    assert_eq!(attached, json!({"return": {"target": 1, "lun": 0, "state": "attached"}}));
}

#[test]
fn what_cannot_be_is_refused_by_name() {
    let (_bench, service) = bench();
    for (line, expected) in [
        ("{", "not JSON"),
        ("[]", "no object"),
        (
            r#"{"execute": "quit", "argument": {}}"#,
            "unknown member \"argument\", did you mean \"arguments\"?",
        ),
        (r#"{"exec": "quit"}"#, "unknown member \"exec\""),
        (r#"{"execute": "dance"}"#, "unknown command \"dance\""),
        (r#"{"execute": "atach"}"#, "unknown command \"atach\", did you mean \"attach\"?"),
        (r#"{"execute": "query_hbas"}"#, "unknown command \"query_hbas\", did you mean \"query-hbas\"?"),
        (
            r#"{"execute": "quit", "arguments": {"now": true}}"#,
            "unknown argument \"now\": \"quit\" takes none",
        ),
        (
            r#"{"execute": "detach", "arguments": {"hba": "scsi0", "tagret": 1}}"#,
            "unknown argument \"tagret\", did you mean \"target\"?",
        ),
        (
            r#"{"execute": "resize", "arguments": {"hba": "scsi0", "target": 1, "bytes": 1}}"#,
            "unknown argument \"bytes\"; expected \"hba\", \"target\", \"lun\" or \"size\"",
        ),
        (
            r#"{"execute": "resize", "arguments": {"hba": "scsi0", "target": 1, "size": 4.5}}"#,
            "\"size\" is 4.5, expected 0 to 18446744073709551615",
        ),
        (
            r#"{"execute": "detach", "arguments": {"hba": "scsi0", "target": null}}"#,
            "\"target\" is null, expected 0 to 255",
        ),
        (r#"{"execute": "detach", "arguments": {"hba": 7}}"#, "\"hba\" is 7, expected a text"),
        (
            r#"{"execute": "attach", "arguments": {"hba": "scsi0", "image": "a.img", "serial": null}}"#,
            "\"serial\" is null, which no key takes; leave it out to have what it is without",
        ),
        (
            r#"{"execute": "attach", "arguments": {"hba": "scsi0", "image": "a.img", "throttle": {"iops": 4.5}}}"#,
            "\"throttle\": \"iops\" is 4.5, which no key takes; expected a whole number",
        ),
        (
            r#"{"execute": "attach", "arguments": {"hba": "scsi0", "image": "a.img", "target": 18446744073709551615}}"#,
            "\"target\" is 18446744073709551615, which no key takes; expected a whole number of less than 2^63",
        ),
        (r#"{"execute": "quit", "arguments": 1}"#, "\"arguments\" is no object"),
        (
            r#"{"execute": "detach", "arguments": {"target": 0}}"#,
            "which \"hba\"? There are \"scsi0\", \"raid0\"",
        ),
        (
            r#"{"execute": "detach", "arguments": {"hba": "x"}}"#,
            "no HBA is called \"x\"; there are \"scsi0\", \"raid0\"",
        ),
        (
            r#"{"execute": "detach", "arguments": {"hba": "scis0"}}"#,
            "no HBA is called \"scis0\", did you mean \"scsi0\"?",
        ),
        (r#"{"execute": "detach", "arguments": {"hba": "scsi0", "target": 256}}"#, "expected 0 to 255"),
        (r#"{"execute": "attach", "arguments": {"hba": "scsi0", "image": "no.img"}}"#, "no.img"),
        (
            r#"{"execute": "attach", "arguments": {"hba": "scsi0", "image": "a.img", "chache": "none"}}"#,
            "did you mean `cache`",
        ),
        (r#"{"execute": "attach", "arguments": {"hba": "scsi0", "image": "a.img\"\nx=1"}}"#, "a.img"),
        (r#"{"execute": "attach", "arguments": {"hba": "raid0", "image": "a.img"}}"#, "takes no disks"),
        (r#"{"execute": "powerdown"}"#, "does not listen"),
    ] {
        let said = error(&service, line);
        assert!(said.contains(expected), "{line}: {said}");
        // Nobody wrote a file with lines.
        assert!(!said.contains("request:"), "{line}: {said}");
    }
}

#[test]
fn cve_2015_1779_and_2015_8619_requests_of_any_length() {
    let (bench, service) = bench();
    for len in [0, 1, 15, 16, 17, 255, 4096, 60_000] {
        let name = "x".repeat(len);
        assert_eq!(
            error(&service, &format!(r#"{{"execute": "{name}"}}"#)),
            format!("unknown command \"{name}\"")
        );
        let line = format!(r#"{{"execute": "detach", "arguments": {{"hba": "{name}"}}}}"#);
        let said = error(&service, &line);
        assert!(said.starts_with(&format!("no HBA is called \"{name}\"")), "{len}");
    }
    assert!(error(&service, &"[".repeat(60_000)).starts_with("not JSON"));
    for depth in [1, 100, 126] {
        let (open, close) = ("[".repeat(depth), "]".repeat(depth));
        let attach = r#"{"execute": "attach", "arguments": {"hba": "scsi0", "image": "#;
        assert!(!error(&service, &format!("{attach}{open}{close}}}}}")).is_empty());
    }
    // More than a line may have is answered once, and then the connection ends.
    let path = bench.directory.path().join("control.sock");
    let _socket = Socket::listen(&path, service).unwrap();
    let mut client = UnixStream::connect(&path).unwrap();
    let _ = client.write_all(&vec![b'['; 4 << 20]);
    let mut said = String::new();
    let _ = BufReader::new(&client).read_line(&mut said);
    let expected = "the request has more than 65536 bytes; the connection ends";
    assert_eq!(said, format!("{{\"error\":{{\"class\":\"GenericError\",\"desc\":\"{expected}\"}}}}\n"));
    let mut rest = Vec::new();
    let _ = client.read_to_end(&mut rest);
    assert_eq!(rest, b"");
}

#[test]
fn cve_2019_12928_and_2023_30612_requests_run_nothing_and_close_nothing() {
    use std::os::fd::AsRawFd;
    let (bench, service) = bench();
    let file = fs::File::open(bench.directory.path().join("b.img")).unwrap();
    let number = file.as_raw_fd();
    for key in ["fd", "fds", "backend_fd"] {
        for value in [json!(number), json!([number]), json!(number.to_string())] {
            let arguments = json!({"hba": "scsi0", "image": "a.img", key: value});
            let said = error(&service, &json!({"execute": "attach", "arguments": arguments}).to_string());
            assert!(said.contains(&format!("`{key}`")), "{said}");
        }
    }
    let trace = bench.directory.path().join("trace");
    for program in ["exec:touch trace", "|touch trace", "$(touch trace)", "json:{\"driver\": \"null-co\"}"] {
        let attach = json!({"execute": "attach", "arguments": {"hba": "scsi0", "image": program}});
        assert!(error(&service, &attach.to_string()).contains("No such file"), "{program}");
    }
    assert!(!trace.exists());
    // Only what is in a set is closed.
    let added = pass(&service, r#"{"execute": "add-fd"}"#, vec![file.try_clone().unwrap().into()]);
    let set = added["return"]["fdset-id"].as_u64().unwrap();
    for fd in [number, 0, 1, 2] {
        let remove = json!({"execute": "remove-fd", "arguments": {"fdset-id": set, "fd": fd}});
        assert_eq!(error(&service, &remove.to_string()), format!("there is no descriptor {fd} in set {set}"));
    }
    let remove = json!({"execute": "remove-fd", "arguments": {"fdset-id": set}});
    assert_eq!(ask(&service, &remove.to_string()), json!({"return": {}}));
    assert_eq!(file.metadata().unwrap().len(), 2 << 20, "it is open, and the same file");
}

#[test]
fn a_connection_too_many_is_told() {
    let (bench, service) = bench();
    let path = bench.directory.path().join("control.sock");
    let _socket = Socket::listen(&path, service).unwrap();
    let line = |stream: &UnixStream| {
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).unwrap();
        line
    };
    let served: Vec<UnixStream> = (0..CLIENTS_MAX).map(|_| UnixStream::connect(&path).unwrap()).collect();
    for mut stream in &served {
        stream.write_all(b"{\"execute\": \"query-status\"}\n").unwrap();
        assert!(line(stream).starts_with("{\"return\""));
    }
    let said = line(&UnixStream::connect(&path).unwrap());
    assert!(said.contains("\"desc\":\"16 connections are served already; close one\""), "{said}");
}

/// A descriptor that takes `time` to be closed: of a connection with bytes that its peer does not take.
fn slow_to_close(time: libc::c_int) -> (OwnedFd, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut sender = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let peer = listener.accept().unwrap().0;
    sender.set_nonblocking(true).unwrap();
    while sender.write(&[0; 1 << 16]).is_ok() {}
    let linger = libc::linger { l_onoff: 1, l_linger: time };
    let size = size_of_val(&linger) as libc::socklen_t;
    // SAFETY: the kernel reads a structure of this size.
    #[allow(unsafe_code)]
    let set = unsafe {
        let (descriptor, value) = (sender.as_raw_fd(), (&raw const linger).cast());
        libc::setsockopt(descriptor, libc::SOL_SOCKET, libc::SO_LINGER, value, size)
    };
    assert_eq!(set, 0);
    (sender.into(), peer)
}

#[test]
fn a_connection_too_many_whose_end_waits_holds_no_other_up() {
    let (bench, service) = bench();
    let path = bench.directory.path().join("control.sock");
    let _socket = Socket::listen(&path, service).unwrap();
    let connect = || {
        let stream = UnixStream::connect(&path).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        stream
    };
    let is_served = |mut stream: &UnixStream| {
        let mut line = String::new();
        let asked = stream.write_all(b"{\"execute\": \"query-status\"}\n");
        asked.and_then(|()| BufReader::new(stream).read_line(&mut line)).is_ok()
            && line.starts_with("{\"return\"")
    };
    let mut served: Vec<UnixStream> = (0..CLIENTS_MAX).map(|_| connect()).collect();
    assert!(served.iter().all(is_served));
    let (slow, _peer) = slow_to_close(20);
    // One that was refused before it could send anything is followed by another.
    let sends = |_| connect().send_with_fds(&[b"x".as_slice()], &[slow.as_raw_fd()]).is_ok();
    assert!((0..1000).any(sends));
    drop(slow);
    std::thread::sleep(Duration::from_millis(200));
    served.pop();
    let begin = Instant::now();
    while !is_served(&connect()) {
        assert!(begin.elapsed() < Duration::from_secs(5), "it waits for the one that was refused");
    }
}

#[test]
fn the_machine_is_paused_reset_and_ended() {
    let (bench, service) = bench();
    let control = bench.control.clone();
    // What the main thread does.
    let main = std::thread::spawn(move || {
        for _ in 0..2 {
            let pause = loop {
                match control.take_event() {
                    Some(Event::Pause(pause)) => break pause,
                    Some(other) => panic!("{other:?}"),
                    None => std::thread::yield_now(),
                }
            };
            control.set_paused(pause);
        }
    });
    assert_eq!(ask(&service, r#"{"execute": "pause"}"#), json!({"return": {}}));
    assert_eq!(
        ask(&service, r#"{"execute": "query-status"}"#),
        json!({"return": {"name": "vm", "status": "paused", "running": false, "reason": "request"}})
    );
    assert_eq!(ask(&service, r#"{"execute": "cont"}"#), json!({"return": {}}));
    main.join().unwrap();
    ask(&service, r#"{"execute": "reset"}"#);
    assert_eq!(bench.control.take_event(), Some(Event::Reset("control socket")));
    ask(&service, r#"{"execute": "quit"}"#);
    assert_eq!(bench.control.take_event(), Some(Event::Quit));
}

#[test]
fn the_socket_answers_line_by_line_and_goes_away() {
    let (bench, service) = bench();
    let path = bench.directory.path().join("control.sock");
    let socket = Socket::listen(&path, service).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let mut client = UnixStream::connect(&path).unwrap();
    client.write_all(b"{\"execute\": \"query-status\", \"id\": 1}\n\n{\"execute\": \"x\"}\n").unwrap();
    let mut stays = client.try_clone().unwrap();
    let mut lines = BufReader::new(client).lines();
    let mut next = || serde_json::from_str::<Value>(&lines.next().unwrap().unwrap()).unwrap();
    assert_eq!((next()["id"].clone(), next()["error"]["class"].clone()), (json!(1), json!("GenericError")));
    assert!(listen::listen(&path, Takes::Descriptors).is_err(), "in use");
    drop(socket);
    assert!(!path.exists());
    // Who stays is served on.
    stays.write_all(b"{\"execute\": \"query-status\", \"id\": 2}\n").unwrap();
    assert_eq!(next()["id"], 2);
    drop(UnixListener::bind(&path).unwrap());
    assert!(listen::listen(&path, Takes::Descriptors).is_ok(), "left behind by a process that is gone");
    fs::write(bench.directory.path().join("file"), "").unwrap();
    assert!(listen::listen(&bench.directory.path().join("file"), Takes::Descriptors).is_err());
}

#[test]
fn a_disk_that_comes_with_protection_information_has_it() {
    let (bench, mut service) = bench();
    let (io, space) = (bench._thread.remote(), Space::new(bench.control.clone()));
    let options = hba_virtio_scsi::Options { protection: true, ..Default::default() };
    let device = VirtioScsi::new(TestSeat::new(1 << 16).seat, BTreeMap::new(), vec![io.clone()], options);
    let adapter = Adapter::new("scsi0", HbaType::VirtioScsi, io, &space, &TargetGroup::default());
    adapter.connect(device.unwrap());
    service.adapters = vec![Arc::new(adapter)];
    let attach = r#"{"execute": "attach", "arguments": {"hba": "scsi0", "image": "a.img", "protection": 1}}"#;
    assert_eq!(ask(&service, attach), json!({"return": {"target": 0, "lun": 0, "state": "attached"}}));
    let kept = bench.directory.path().join("a.img.pi");
    assert_eq!(fs::metadata(kept).unwrap().len(), 4096 + 8 * (1 << 20) / 512, "eight bytes for each block");
}

#[test]
fn names_of_a_board_s_disks_follow_the_images() {
    let (bench, _service, device) = board(MegasasMode::Raid, WritePolicy::WriteThrough);
    let board =
        raid::Board::new("raid0", &board_config(MegasasMode::Raid, WritePolicy::WriteThrough), device);
    let space = Space::new(bench.control.clone());
    // Page 83h of the disk and of its volume.
    let names = |target: u8, image: &str| -> Vec<Vec<u8>> {
        let text =
            format!("[[hba]]\ntype = \"megasas\"\n[[hba.lun]]\ntarget = {target}\nimage = \"{image}\"\n");
        let lun = config::parse_hba(&text, bench.directory.path()).unwrap().luns.remove(0);
        let (image, disk) = hbas::disk("raid0", &lun, &space, &Identities::default()).unwrap();
        let name = |unit| {
            let target = Target::new();
            target.attach(Lun::default(), unit).unwrap();
            let (nexus, (done, names)) = (Nexus::new(target, None), std::sync::mpsc::channel());
            bench._thread.remote().spawn(move |io| async move {
                let ask = Request::new(&[0x12, 1, 0x83, 0, 255, 0], &[], 255);
                let (_, names) = ask.send(&nexus, &io).await;
                // With it goes the image, which is opened again.
                drop(nexus);
                drop(done.send(names));
            });
            names.recv().unwrap()
        };
        board.units(&lun, &image, disk).unwrap().into_iter().map(name).collect()
    };
    let first = names(0, "a.img");
    assert_eq!(first.len(), 2);
    assert_ne!(first[0], first[1], "disk and volume");
    assert_eq!(names(7, "a.img"), first, "wherever it is plugged in");
    let other = names(0, "b.img");
    assert!(other[0] != first[0] && other[1] != first[1], "another image at the same place");
}

fn board_config(mode: MegasasMode, write_policy: WritePolicy) -> config::Megasas {
    let (model, serial, sas_address, event_log) = (MegasasModel::Gen2, None, None, None);
    config::Megasas { model, mode, write_policy, serial, sas_address, event_log, qemu_answers: vec![] }
}

/// A service with a board of this mode and write policy, to which no driver listens.
fn board(mode: MegasasMode, write_policy: WritePolicy) -> (Bench, Service, Arc<Megasas>) {
    let (bench, mut service) = bench();
    let config = board_config(mode, write_policy);
    let (io, options) = (bench._thread.remote(), raid::options("raid0", &config));
    let device =
        Megasas::new(TestSeat::new(1 << 16).seat, BTreeMap::new(), io.clone(), options, None).unwrap();
    let space = Space::new(bench.control.clone());
    let adapter = Adapter::new("raid0", HbaType::Megasas, io, &space, &TargetGroup::default());
    adapter.connect(Arc::new(raid::Board::new("raid0", &config, device.clone())));
    service.adapters = vec![Arc::new(adapter)];
    (bench, service, device)
}

fn is_open(path: &Path) -> bool {
    let open = fs::read_dir("/proc/self/fd").unwrap();
    open.flatten().any(|fd| fs::read_link(fd.path()).is_ok_and(|target| target == path))
}

#[test]
fn an_image_on_a_board_is_a_volume_with_a_disk_behind_it() {
    for (mode, targets) in [(MegasasMode::Raid, 2), (MegasasMode::Jbod, 1)] {
        let (bench, service, device) = board(mode, WritePolicy::WriteThrough);
        let path = bench.directory.path().join("a.img");
        assert_eq!(
            ask(&service, r#"{"execute": "attach", "arguments": {"target": 5, "image": "a.img"}}"#),
            json!({"return": {"target": 5, "lun": 0, "state": "attached"}})
        );
        assert_eq!(service.adapters[0].targets().len(), targets);
        assert!(is_open(&path));
        let resize = r#"{"execute": "resize", "arguments": {"target": 5, "size": 4194304}}"#;
        assert_eq!(ask(&service, resize), json!({"return": {"size": 4194304}}));
        let change = r#"{"execute": "change", "arguments": {"target": 5, "image": "b.img"}}"#;
        let there = json!({"return": {"target": 5, "lun": 0, "state": "attached"}});
        assert_eq!(ask(&service, change), there, "no driver is waited for");
        assert!(!is_open(&path));
        for (line, expected) in [
            (r#"{"execute": "attach", "arguments": {"target": 5, "image": "a.img"}}"#, "is in use"),
            (r#"{"execute": "attach", "arguments": {"target": 64, "image": "a.img"}}"#, "expected 0 to 63"),
            (
                r#"{"execute": "attach", "arguments": {"target": 1, "lun": 1, "image": "a.img"}}"#,
                "expected 0",
            ),
        ] {
            let said = error(&service, line);
            assert!(said.contains(expected), "{line}: {said}");
        }
        let detach = r#"{"execute": "detach", "arguments": {"target": 5}}"#;
        assert_eq!(ask(&service, detach), json!({"return": {}}));
        assert!(service.adapters[0].targets().is_empty() && device.detach_drive(5).is_none());
        assert!(!is_open(&bench.directory.path().join("b.img")));
        assert_eq!(error(&service, detach), "nothing at target 5 lun 0");
    }
}

/// A command that goes to the guest's disk, on the I/O thread; the reply and the data.
fn command(bench: &Bench, nexus: &Arc<Nexus>, cdb: &[u8], out: &[u8], len: usize) -> (Status, Vec<u8>) {
    let (nexus, request) = (nexus.clone(), Request::new(cdb, out, len));
    let (done, result) = std::sync::mpsc::channel();
    bench._thread.remote().spawn(move |io| async move {
        let (reply, data) = request.send(&nexus, &io).await;
        done.send((reply.unwrap().status, data)).unwrap();
    });
    result.recv().unwrap()
}

#[test]
fn a_disk_of_a_board_has_a_cache_only_where_the_administrator_says_so() {
    for mode in [MegasasMode::Jbod, MegasasMode::Raid] {
        for policy in [WritePolicy::WriteThrough, WritePolicy::WriteBack] {
            let (bench, service, _device) = board(mode, policy);
            ask(&service, r#"{"execute": "attach", "arguments": {"target": 5, "image": "a.img"}}"#);
            let nexus = Nexus::new(service.adapters[0].targets().last().unwrap().clone(), None);
            command(&bench, &nexus, &[0; 6], &[], 0);
            // MODE SENSE of the caching page without a block descriptor: now, and what can be changed.
            let wce = |control: u8| {
                let (status, page) = command(&bench, &nexus, &[0x1a, 8, control << 6 | 8, 0, 24, 0], &[], 24);
                assert_eq!(status, Status::Good);
                page[6] & 4 != 0
            };
            let cached = policy == WritePolicy::WriteBack;
            assert_eq!(wce(0), cached, "{mode:?} {policy:?}");
            // Of a volume too: copies that another unit was asked for go by its mode page.
            assert_eq!(wce(1), cached, "{mode:?} {policy:?}");
            let mut list = vec![0; 4];
            list.extend([0x08, 0x12, 4]);
            list.resize(24, 0);
            let (status, _) = command(&bench, &nexus, &[0x15, 0x10, 0, 0, 24, 0], &list, 0);
            let name = format!("{mode:?}: no guest switches it on");
            assert_eq!((status == Status::Good, wce(0)), (cached, cached), "{name}");
        }
    }
}

#[test]
fn a_board_that_never_flushes_takes_no_qcow2_image() {
    let (bench, service, _device) = board(MegasasMode::Raid, WritePolicy::WriteBack);
    // A header of version 2, one table entry, nothing allocated.
    let mut image = vec![0; 0x4_0000];
    let words: [u32; 18] =
        [0x5146_49fb, 2, 0, 0, 0, 16, 0, 1 << 20, 0, 1, 0, 0x3_0000, 0, 0x1_0000, 1, 0, 0, 0];
    image[..72].copy_from_slice(words.map(u32::to_be_bytes).as_flattened());
    image[0x1_0000..0x1_0008].copy_from_slice(&0x2_0000_u64.to_be_bytes());
    (0..4).for_each(|cluster| image[0x2_0001 + 2 * cluster] = 1);
    fs::write(bench.directory.path().join("c.qcow2"), image).unwrap();
    let said = error(
        &service,
        r#"{"execute": "attach", "arguments": {"image": "c.qcow2", "format": "qcow2", "target": 1}}"#,
    );
    assert!(said.contains("not for qcow2 images"), "{said}");
}

#[test]
fn the_status_says_that_the_machine_waits_for_space() {
    let (_bench, service) = bench();
    let waits = "writing \"/dev/vg/disk\" failed: the device has 1048576 bytes and needs 1114112; enlarge it";
    service.space.begin(waits);
    let status = json!({
        "return": {"name": "vm", "status": "paused", "running": false, "reason": "no-space", "detail": waits}
    });
    assert_eq!(ask(&service, r#"{"execute": "query-status"}"#), status);
    service.space.end();
    let status = json!({"return": {"name": "vm", "status": "running", "running": true}});
    assert_eq!(ask(&service, r#"{"execute": "query-status"}"#), status);
}

#[test]
fn images_are_looked_into_before_they_are_attached() {
    let (bench, service) = bench();
    let path = bench.directory.path().join("cloud.img");
    fs::write(&path, b"QFI\xfb\0\0\0\x03".repeat(128)).unwrap();
    let attach = r#"{"execute": "attach", "arguments": {"hba": "scsi0", "image": "cloud.img"}}"#;
    assert!(
        error(&service, attach).contains("is a qcow2 image; set format = \"qcow2\""),
        "{}",
        error(&service, attach)
    );
    let listed = attach.replace("}}", r#", "backing": ["nowhere"]}}"#);
    assert!(error(&service, &listed).contains("cannot open"), "{}", error(&service, &listed));
    let plain = attach.replace("}}", r#", "format": "raw"}}"#);
    assert_eq!(ask(&service, &plain), json!({"return": {"target": 0, "lun": 0, "state": "attached"}}));
    let change = attach.replace("attach", "change").replace("}}", r#", "target": 0}}"#);
    assert!(error(&service, &change).contains("is a qcow2 image"));
}

/// A request with descriptors.
fn pass(service: &Service, line: &str, descriptors: Vec<OwnedFd>) -> Value {
    service.answer(line.as_bytes(), &mut Given::of(descriptors))
}

fn opened(path: &Path, write: bool) -> OwnedFd {
    fs::File::options().read(true).write(write).open(path).unwrap().into()
}

#[test]
fn passed_descriptors_become_disks() {
    let (bench, service) = bench();
    let (a, b) = (bench.directory.path().join("a.img"), bench.directory.path().join("b.img"));
    let described = r#"{"execute": "add-fd", "arguments": {"opaque": "data"}}"#;
    let added = pass(&service, described, vec![opened(&a, true)]);
    let (set, fd) = (added["return"]["fdset-id"].clone(), added["return"]["fd"].clone());
    assert_eq!(added, json!({"return": {"fdset-id": set, "fd": fd}}));
    let serial = identity_of(&a);
    fs::remove_file(&a).unwrap();
    let listed = |set: &Value| {
        let all = ask(&service, r#"{"execute": "query-fdsets"}"#);
        let all = all["return"].as_array().unwrap().clone();
        all.into_iter().find(|one| one["fdset-id"] == *set)
    };
    assert_eq!(listed(&set), Some(json!({"fdset-id": set, "fds": [{"fd": fd, "opaque": "data"}]})));
    let command = |command: &str, set: &Value, more: &str| {
        format!(
            r#"{{"execute": "{command}", "arguments": {{"hba": "scsi0", "target": 0, "image": "/dev/fdset/{set}"{more}}}}}"#
        )
    };
    let read_only = error(&service, &command("attach", &set, r#", "readonly": true"#));
    assert!(
        read_only.contains(&format!(
            "cannot open /dev/fdset/{set} (\"data\"): it has no descriptor that is open for reading only"
        )),
        "{read_only}"
    );
    let attached = json!({"return": {"target": 0, "lun": 0, "state": "attached"}});
    assert_eq!(ask(&service, &command("attach", &set, "")), attached);
    let unit = ask(&service, r#"{"execute": "query-hbas"}"#)["return"][0]["units"][0].clone();
    assert_eq!((&unit["image"], &unit["size"]), (&json!(format!("/dev/fdset/{set}")), &json!(1 << 20)));
    assert_eq!(service.adapters[0].units()[0].image, Some(PathBuf::from(format!("/dev/fdset/{set}"))));
    assert_eq!(identity_of(Path::new(&format!("/dev/fdset/{set}"))), serial, "it is the same file");
    let resize = r#"{"execute": "resize", "arguments": {"hba": "scsi0", "target": 0, "size": 2097152}}"#;
    assert_eq!(ask(&service, resize), json!({"return": {"size": 2_097_152}}));
    // Several at once; another image at the same place, which leaves the first one alone when it cannot be had.
    let more = pass(&service, r#"{"execute": "add-fd"}"#, vec![opened(&b, true), opened(&b, false)]);
    let (other, fds) = (more["return"]["fdset-id"].clone(), more["return"]["fds"].clone());
    assert_eq!(fds.as_array().unwrap().len(), 2);
    assert_eq!(more["return"]["fd"], fds[0]);
    let remove = |set: &Value, fd: &Value| {
        format!(r#"{{"execute": "remove-fd", "arguments": {{"fdset-id": {set}, "fd": {fd}}}}}"#)
    };
    let in_use = error(&service, &command("change", &set, ""));
    assert!(in_use.contains("its descriptors are in use by other disks"), "{in_use}");
    assert_eq!(ask(&service, &command("change", &other, r#", "readonly": true"#)), attached);
    let done = json!({"return": {}});
    assert_eq!(ask(&service, &remove(&set, &fd)), done);
    assert_eq!(listed(&set), None, "nothing uses it any more");
    assert_eq!(ask(&service, &remove(&other, &fds[1])), done);
    assert_eq!(ask(&service, &remove(&other, &fds[0])), done);
    assert_eq!(listed(&other), Some(json!({"fdset-id": other, "fds": []})), "the disk is still there");
    let detach = r#"{"execute": "detach", "arguments": {"hba": "scsi0", "target": 0}}"#;
    assert_eq!(ask(&service, detach), done);
    assert_eq!(listed(&other), None);
    assert_eq!(error(&service, &remove(&other, &fds[0])), format!("there is no set {other}"));
}

/// It has the locks of the disk that runs.
#[test]
fn a_duplicate_that_is_refused_takes_nobodys_lock() {
    let (bench, service) = bench();
    let a = bench.directory.path().join("a.img");
    let given = fs::File::options().read(true).write(true).open(&a).unwrap();
    let add = |file: &fs::File| {
        let added = pass(&service, r#"{"execute": "add-fd"}"#, vec![file.try_clone().unwrap().into()]);
        added["return"]["fdset-id"].clone()
    };
    let attach = |target: u8, image: &str| {
        format!(
            r#"{{"execute": "attach", "arguments": {{"hba": "scsi0", "target": {target}, "image": "{image}"}}}}"#
        )
    };
    let sets = [add(&given), add(&given)];
    let [first, twin] = sets.each_ref().map(|set| format!("/dev/fdset/{set}"));
    assert_eq!(ask(&service, &attach(0, &first))["return"]["state"], json!("attached"));
    let options = || RawOptions {
        path: a.clone(),
        read_only: false,
        cache: CacheMode::Writeback,
        sharing: Sharing::Exclusive,
    };
    for _ in 0..2 {
        let refused = error(&service, &attach(1, &twin));
        assert!(refused.contains("a duplicate of one that another disk uses"), "{refused}");
        let locked = RawImage::open(&options()).err().expect("the disk has lost its lock");
        assert!(locked.message.contains("two disks of this machine use the same image"), "{locked}");
        assert!(error(&service, &attach(2, "a.img")).contains("two disks of this machine"));
    }
    let detach = r#"{"execute": "detach", "arguments": {"hba": "scsi0", "target": 0}}"#;
    assert_eq!(ask(&service, detach), json!({"return": {}}));
    drop(RawImage::open(&options()).unwrap());
    for set in sets {
        let remove = json!({"execute": "remove-fd", "arguments": {"fdset-id": set}});
        assert_eq!(ask(&service, &remove.to_string()), json!({"return": {}}));
    }
}

fn identity_of(path: &Path) -> String {
    crate::machine::identity::default_serial(path).unwrap()
}

#[test]
fn what_is_wrong_with_descriptors_is_said() {
    let (bench, service) = bench();
    let a = bench.directory.path().join("a.img");
    let add = r#"{"execute": "add-fd"}"#;
    assert_eq!(error(&service, add), "no descriptor came with the request (SCM_RIGHTS)");
    let desc = |answer: Value| answer["error"]["desc"].as_str().unwrap().to_owned();
    let refused = |line: &str| {
        let (mut reader, writer) = io::pipe().unwrap();
        let said = desc(pass(&service, line, vec![writer.into()]));
        assert_eq!(io::Read::read(&mut reader, &mut [0]).unwrap(), 0, "{line}: it is closed");
        said
    };
    assert!(refused(add).starts_with("the descriptor is of a pipe"));
    for (arguments, said) in [
        (r#"{"fdset-id": -1}"#, "\"fdset-id\" is -1, expected 0 to 9223372036854775807"),
        (r#"{"opaque": 1}"#, "\"opaque\" is 1, expected a text"),
        (r#"{"fd": 1}"#, "unknown argument \"fd\"; expected \"fdset-id\" or \"opaque\""),
    ] {
        assert_eq!(refused(&format!(r#"{{"execute": "add-fd", "arguments": {arguments}}}"#)), said);
    }
    let missing = r#"{"execute": "attach", "arguments": {"hba": "scsi0", "image": "/dev/fdset/4711000"}}"#;
    let said = error(&service, missing);
    assert!(
        said.ends_with("cannot open /dev/fdset/4711000: no descriptors were added as set 4711000 (add-fd)"),
        "{said}"
    );
    assert_eq!(error(&service, r#"{"execute": "remove-fd"}"#), "no \"fdset-id\"");
    // What cannot be beside an image that has no place.
    let set = pass(&service, add, vec![opened(&a, true)])["return"]["fdset-id"].clone();
    let protected = format!(
        r#"{{"execute": "attach", "arguments": {{"hba": "scsi0", "image": "/dev/fdset/{set}", "protection": 1}}}}"#
    );
    let said = error(&service, &protected);
    assert!(said.contains("no file can be made beside descriptors; set `protection_image`"), "{said}");
    assert_eq!(
        ask(&service, &format!(r#"{{"execute": "remove-fd", "arguments": {{"fdset-id": {set}}}}}"#)),
        json!({"return": {}})
    );
}

#[path = "socket_disc_tests.rs"]
mod discs;

#[path = "socket_fabric_tests.rs"]
mod fabrics;
