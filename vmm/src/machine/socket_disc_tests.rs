//! Discs of CD drives, word for word.

use super::*;

/// A service with a CD drive at target 5 of an adapter of this kind, with the disc `a.img`.
fn with_drive(kind: HbaType) -> (Bench, Service) {
    let (bench, service) = match kind {
        HbaType::VirtioScsi | HbaType::VhostScsi => {
            let (bench, mut service) = bench();
            service.adapters.truncate(1);
            (bench, service)
        }
        HbaType::Megasas => {
            let (bench, service, _) = board(MegasasMode::Jbod, WritePolicy::WriteThrough);
            (bench, service)
        }
    };
    let attach = r#"{"execute": "attach", "arguments": {"target": 5, "type": "cd", "image": "a.img"}}"#;
    assert_eq!(ask(&service, attach), json!({"return": {"target": 5, "lun": 0, "state": "attached"}}));
    (bench, service)
}

fn request(command: &str, more: &str) -> String {
    format!(r#"{{"execute": "{command}", "arguments": {{"target": 5{more}}}}}"#)
}

fn unit(service: &Service) -> Value {
    ask(service, r#"{"execute": "query-hbas"}"#)["return"][0]["units"][0].clone()
}

#[test]
fn discs_come_change_and_go() {
    for kind in [HbaType::VirtioScsi, HbaType::Megasas] {
        let (bench, service) = with_drive(kind);
        let image = |name: &str| bench.directory.path().join(name);
        let bounce = kind == HbaType::Megasas;
        let described = |image: Option<&Path>, size: u64, tray: &str, locked: bool| {
            json!({"target": 5, "lun": 0, "image": image, "size": size, "readonly": true, "bounce": bounce,
                   "flush_failed": false, "state": "attached", "type": "cd", "tray": tray, "locked": locked})
        };
        assert_eq!(unit(&service), described(Some(&image("a.img")), 1 << 20, "closed", false));
        let nexus = Nexus::new(service.adapters[0].targets()[0].clone(), None);
        let send = |cdb: &[u8], len: usize| command(&bench, &nexus, cdb, &[], len);
        let ready = || send(&[0; 6], 0).0 == Status::Good;
        let event = || send(&[0x4a, 1, 0, 0, 0x10, 0, 0, 0, 8, 0], 8).1[4..6].to_vec();
        assert!(!ready() && ready(), "POWER ON first");
        // The guest mounts it.
        assert_eq!(send(&[0x1e, 0, 0, 0, 1, 0], 0).0, Status::Good);
        assert_eq!(unit(&service), described(Some(&image("a.img")), 1 << 20, "closed", true));
        let locked = "the guest has locked the drive at target 5 lun 0, and is told that somebody wants the disc: ask again when it \
                      has ejected it or let go of it, or set \"force\", with which it loses the disc under way";
        assert_eq!(error(&service, &request("eject", "")), locked);
        assert_eq!(error(&service, &request("change", r#", "image": "b.img""#)), locked);
        assert!(is_open(&image("a.img")) && !is_open(&image("b.img")));
        assert_eq!((event(), event()), (vec![1, 2], vec![0, 2]));
        let there = error(&service, &request("insert", r#", "image": "b.img""#));
        let shown = image("a.img");
        assert_eq!(
            there,
            format!(
                "the drive at target 5 lun 0 has {} in it: eject that first, or change it",
                shown.display()
            )
        );
        // And lets go of it.
        assert_eq!(send(&[0x1e, 0, 0, 0, 0, 0], 0).0, Status::Good);
        assert_eq!(ask(&service, &request("eject", "")), json!({"return": {}}));
        assert!(!is_open(&image("a.img")), "closed");
        assert_eq!(unit(&service), described(None, 0, "open", false));
        assert_eq!((event(), ready()), (vec![3, 1], false));
        assert_eq!(ask(&service, &request("eject", "")), json!({"return": {}}), "there was none");
        assert_eq!(ask(&service, &request("insert", r#", "image": "b.img""#)), json!({"return": {}}));
        assert_eq!(unit(&service), described(Some(&image("b.img")), 2 << 20, "closed", false));
        assert_eq!((event(), ready(), ready()), (vec![2, 2], false, true));
        assert_eq!(send(&[0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0], 8).1, [0, 0, 3, 0xff, 0, 0, 8, 0]);
        // What cannot be opened, or has no sector, leaves the drive as it is.
        fs::write(image("short"), [0; 2047]).unwrap();
        for (name, expected) in
            [("none", "cannot open"), ("short", "it has not one whole block of 2048 bytes")]
        {
            let said = error(&service, &request("change", &format!(r#", "image": "{name}""#)));
            assert!(said.contains(expected), "{said}");
        }
        assert!(ready());
        // With force, whatever the guest says.
        assert_eq!(send(&[0x1e, 0, 0, 0, 1, 0], 0).0, Status::Good);
        let change = request("change", r#", "image": "a.img", "force": true"#);
        let there = json!({"return": {"target": 5, "lun": 0, "state": "attached"}});
        assert_eq!(ask(&service, &change), there);
        assert!(!is_open(&image("b.img")));
        assert_eq!(unit(&service), described(Some(&image("a.img")), 1 << 20, "closed", false));
        // The old one went, the new one came.
        assert_eq!((event(), event()), (vec![3, 2], vec![2, 2]));
        assert_eq!((ready(), ready()), (false, true));
        // The guest opens the tray itself: the disc stays in it until somebody takes it out.
        assert_eq!(send(&[0x1b, 0, 0, 0, 2, 0], 0).0, Status::Good);
        assert_eq!(unit(&service), described(Some(&image("a.img")), 1 << 20, "open", false));
        assert_eq!(ask(&service, &request("change", r#", "image": "b.img""#)), there);
        assert_eq!(unit(&service), described(Some(&image("b.img")), 2 << 20, "closed", false));
        drop(nexus);
        assert_eq!(ask(&service, &request("detach", "")), json!({"return": {}}));
        assert!(!is_open(&image("b.img")));
    }
}

/// What keeps a machine from waiting for a file server stays when the disc changes, also when the drive was empty meanwhile.
#[test]
fn bounce_is_the_drives() {
    let (_bench, service) = with_drive(HbaType::VirtioScsi);
    let bounce = || unit(&service)["bounce"].clone();
    assert_eq!(bounce(), false);
    ask(&service, &request("change", r#", "image": "b.img", "bounce": true"#));
    assert_eq!(bounce(), true);
    ask(&service, &request("change", r#", "image": "a.img""#));
    assert_eq!((bounce(), unit(&service)["size"].clone()), (json!(true), json!(1 << 20)));
    ask(&service, &request("eject", ""));
    ask(&service, &request("insert", r#", "image": "b.img""#));
    assert_eq!((bounce(), unit(&service)["size"].clone()), (json!(true), json!(2 << 20)));
    ask(&service, &request("change", r#", "image": "a.img", "bounce": false"#));
    assert_eq!(bounce(), false);
}

#[test]
fn what_is_no_disc_is_refused_by_name() {
    let (bench, service) = with_drive(HbaType::VirtioScsi);
    let disk = r#"{"execute": "attach", "arguments": {"target": 6, "image": "b.img"}}"#;
    assert!(ask(&service, disk)["return"].is_object());
    let at_disk = |command: &str, more: &str| request(command, more).replace("5", "6");
    let no_tray = "target 6 lun 0 is a disk, which has no tray: detach it, or change it for another one";
    for (line, expected) in [
        (at_disk("eject", ""), no_tray),
        (at_disk("insert", r#", "image": "a.img""#), no_tray),
        (
            at_disk("change", r#", "image": "a.img", "force": true"#),
            "\"force\" is for the disc of a CD drive",
        ),
        (request("change", ""), "no \"image\""),
        (request("insert", ""), "no \"image\""),
        (request("eject", r#", "lun": 1"#), "nothing at target 5 lun 1"),
        (request("eject", r#", "force": 1"#), "\"force\" is 1, expected true or false"),
        (
            request("insert", r#", "image": "a.img", "serial": "1""#),
            "unknown argument \"serial\"; expected \"hba\", \"target\", \"lun\", \"image\", \"format\", \"backing\", \"cache\" or \
             \"bounce\"",
        ),
        (
            request("change", r#", "image": "b.img", "vendor": "V""#),
            "\"vendor\" is nothing of a disc: the drive stays as it is; detach it and attach another one",
        ),
        (request("resize", ""), "a disc keeps its size; `change` it for another one"),
        (r#"{"execute": "eject"}"#.into(), "no \"target\""),
    ] {
        assert_eq!(error(&service, &line), expected, "{line}");
    }
    // A disk in the place of the drive, and a drive without a disc in that of the disk.
    fs::write(bench.directory.path().join("c.img"), [0; 512]).unwrap();
    let change = request("change", r#", "image": "c.img", "type": "disk""#);
    assert!(ask(&service, &change)["return"].is_object());
    assert_eq!(unit(&service)["tray"], Value::Null);
    let change = request("change", r#", "type": "cd""#);
    assert!(ask(&service, &change)["return"].is_object());
    assert_eq!(
        (unit(&service)["tray"].clone(), unit(&service)["image"].clone()),
        (json!("closed"), Value::Null)
    );
}

#[test]
fn a_board_makes_no_volume_of_a_drive() {
    let (_bench, service, _) = board(MegasasMode::Raid, WritePolicy::WriteThrough);
    let said = error(&service, r#"{"execute": "attach", "arguments": {"type": "cd"}}"#);
    assert!(said.contains("no volume is made of a CD drive"), "{said}");
}

#[test]
fn drives_are_called_after_their_places() {
    let (bench, service) = with_drive(HbaType::VirtioScsi);
    let attach = r#"{"execute": "attach", "arguments": {"target": 6, "type": "cd"}}"#;
    assert!(ask(&service, attach)["return"].is_object());
    let serial = |at: usize| {
        let nexus = Nexus::new(service.adapters[0].targets()[at].clone(), None);
        command(&bench, &nexus, &[0x12, 1, 0x80, 0, 64, 0], &[], 64).1
    };
    let first = serial(0);
    assert!(first[3] == 16 && serial(1)[..4] == first[..4] && serial(1) != first);
    ask(&service, &request("eject", ""));
    assert_eq!(serial(0), first, "whatever disc is in it");
    // No two are called the same.
    let other = r#"{"execute": "attach", "arguments": {"target": 7, "type": "cd", "serial": "S"}}"#;
    let third = other.replace("7", "8");
    assert!(ask(&service, other)["return"].is_object());
    assert_eq!(
        error(&service, &third),
        "hba scsi0, target 8: serial \"S\" is that of the unit at hba scsi0, target 7, lun 0; give each its own"
    );
}
