//! Requests and answers, word for word, on an HBA that only takes note.

use std::io::{BufRead, BufReader, Write};
use std::sync::Mutex;

use devices::iothread::IoThread;
use devices::scsi::{Nexus, TargetGroup};

use super::*;
use crate::machine::adapter::HotPlug;
use crate::machine::space::Space;

#[derive(Default)]
struct Recorder(Mutex<Vec<String>>);

impl HotPlug for Recorder {
    fn attach_target(&self, id: u8, nexus: Arc<Nexus>) -> Result<()> {
        self.0.lock().unwrap().push(format!("attach {id}, {} units", nexus.luns().len()));
        Ok(())
    }

    fn detach_target(&self, id: u8) -> Result<()> {
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
    let mut adapter =
        Adapter::new("scsi0", HbaType::VirtioScsi, thread.remote(), &space, &TargetGroup::default());
    adapter.connect(recorder.clone());
    let raid = Adapter::new("raid0", HbaType::Megasas, thread.remote(), &space, &TargetGroup::default());
    let service = Service {
        name: "vm".into(),
        directory: directory.path().into(),
        control: control.clone(),
        adapters: vec![Arc::new(adapter), Arc::new(raid)],
        power_button: Box::new(|| false),
    };
    (Bench { _thread: thread, directory, recorder, control }, service)
}

fn ask(service: &Service, line: &str) -> Value {
    service.answer(line.as_bytes())
}

fn error(service: &Service, line: &str) -> String {
    ask(service, line)["error"]["desc"].as_str().unwrap_or_else(|| panic!("{line} is no error")).to_owned()
}

#[test]
fn disks_come_change_and_go() {
    let (bench, service) = bench();
    let attach = r#"{"execute": "attach", "arguments": {"hba": "scsi0", "image": "a.img"}, "id": "x"}"#;
    assert_eq!(ask(&service, attach), json!({"return": {"target": 0, "lun": 0}, "id": "x"}));
    let second = r#"{"execute": "attach", "arguments": {"hba": "scsi0", "target": 0, "lun": 3, "image": "b.img", "readonly": true}}"#;
    assert_eq!(ask(&service, second), json!({"return": {"target": 0, "lun": 3}}));
    let image = |name: &str| bench.directory.path().join(name).to_string_lossy().into_owned();
    let units = json!([
        {"target": 0, "lun": 0, "image": image("a.img"), "size": 1 << 20, "readonly": false},
        {"target": 0, "lun": 3, "image": image("b.img"), "size": 2 << 20, "readonly": true},
    ]);
    let hbas = ask(&service, r#"{"execute": "query-hbas"}"#);
    assert_eq!(hbas["return"][0], json!({"id": "scsi0", "type": "virtio-scsi", "units": units}));
    assert_eq!(error(&service, second), "target 0 lun 3 is in use");
    let resize = r#"{"execute": "resize", "arguments": {"hba": "scsi0", "target": 0, "size": 4194304}}"#;
    assert_eq!(ask(&service, resize), json!({"return": {"size": 4194304}}));
    assert_eq!(fs::metadata(bench.directory.path().join("a.img")).unwrap().len(), 4 << 20);
    assert!(error(&service, &resize.replace("4194304", "512")).contains("shrinking"));
    let detach = |lun| {
        format!(r#"{{"execute": "detach", "arguments": {{"hba": "scsi0", "target": 0, "lun": {lun}}}}}"#)
    };
    assert_eq!(ask(&service, &detach(0)), json!({"return": {}}));
    assert_eq!(error(&service, &detach(0)), "nothing at target 0 lun 0");
    assert_eq!(*bench.recorder.0.lock().unwrap(), ["attach 0, 1 units"], "a unit is left");
    let change =
        r#"{"execute": "change", "arguments": {"hba": "scsi0", "target": 0, "lun": 3, "image": "a.img"}}"#;
    assert_eq!(ask(&service, change), json!({"return": {}}));
    assert_eq!(ask(&service, &detach(3)), json!({"return": {}}));
    let seen = bench.recorder.0.lock().unwrap().join("; ");
    assert_eq!(seen, "attach 0, 1 units; detach 0; attach 0, 1 units; detach 0");
}

#[test]
fn what_cannot_be_is_refused_by_name() {
    let (_bench, service) = bench();
    for (line, expected) in [
        ("{", "not JSON"),
        ("[]", "no \"execute\""),
        (r#"{"execute": "dance"}"#, "unknown command \"dance\""),
        (r#"{"execute": "quit", "arguments": {"now": true}}"#, "unknown argument \"now\""),
        (r#"{"execute": "quit", "arguments": 1}"#, "\"arguments\" is no object"),
        (r#"{"execute": "detach", "arguments": {"target": 0}}"#, "which \"hba\"? There are 2"),
        (r#"{"execute": "detach", "arguments": {"hba": "x"}}"#, "no HBA is called \"x\""),
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
        json!({"return": {"name": "vm", "status": "paused", "running": false}})
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
    let mut lines = BufReader::new(client).lines();
    let mut next = || serde_json::from_str::<Value>(&lines.next().unwrap().unwrap()).unwrap();
    assert_eq!((next()["id"].clone(), next()["error"]["class"].clone()), (json!(1), json!("GenericError")));
    assert!(bind(&path).is_err(), "in use");
    drop(socket);
    assert!(!path.exists());
    drop(UnixListener::bind(&path).unwrap());
    assert!(bind(&path).is_ok(), "left behind by a process that is gone");
    fs::write(bench.directory.path().join("file"), "").unwrap();
    assert!(bind(&bench.directory.path().join("file")).is_err());
}
