//! An adapter on an emulated fabric: its ports, and units that come and go there.

use hba_virtio_scsi::fc::RemoteState;

use super::*;
use crate::machine::fabric::{self, Plugged};
use crate::machine::units::shown;

/// A service with an adapter that has these lines in `[hba.fc]`.
fn with_fabric(lines: &str) -> (Bench, Service) {
    let (bench, mut service) = bench();
    let text = format!("[[hba]]\nid = \"fc0\"\n[hba.fc]\nemulated = true\n{lines}");
    let hba = config::parse_hba(&text, bench.directory.path()).unwrap();
    let (io, space) = (bench._thread.remote(), Space::new(bench.control.clone()));
    let adapter =
        Arc::new(Adapter::new("fc0", HbaType::VirtioScsi, io.clone(), &space, &TargetGroup::default()));
    let plugged = fabric::plug("vm", &hba, &adapter, &mut std::iter::empty()).unwrap().unwrap();
    hbas::attach_all(&hba, hbas::open_all(&hba, &adapter).unwrap(), &adapter).unwrap();
    let (seat, options) = (TestSeat::new(1 << 16).seat, hba_virtio_scsi::Options::default());
    let made = adapter.connect_with(|targets| {
        let nexuses = targets.into_iter().map(|(id, target)| (id, Nexus::new(target, None))).collect();
        Ok(VirtioScsi::with_san(seat, nexuses, vec![io], options, plugged.san())?)
    });
    made.unwrap();
    plugged.go_on().unwrap();
    service.adapters = vec![adapter];
    (bench, service)
}

fn fabric(service: &Service) -> Value {
    ask(service, r#"{"execute": "query-hbas"}"#)["return"][0]["fc"].clone()
}

fn states(service: &Service) -> Vec<String> {
    let ports = fabric(service)["ports"].as_array().unwrap().clone();
    ports.iter().map(|port| format!("{} {}", port["target"], port["state"].as_str().unwrap())).collect()
}

#[test]
fn the_fabric_is_shown_with_names_that_stay() {
    let (_bench, service) = with_fabric("ports = 2\n");
    let (_other, again) = with_fabric("ports = 2\n");
    let shown = fabric(&service);
    assert_eq!(shown, fabric(&again));
    assert_eq!(states(&service), ["0 online", "1 online"]);
    assert_eq!(shown["state"], "online");
    let wwpn = shown["wwpn"].as_str().unwrap();
    assert!(wwpn.len() == 16 && wwpn.starts_with("21"), "{wwpn}");
    let (_bench, service) = with_fabric("wwnn = \"2000020000000001\"\nwwpn = \"2100020000000001\"\n");
    assert_eq!(fabric(&service)["wwpn"], "2100020000000001");
    assert_eq!(fabric(&service)["wwnn"], "2000020000000001");
    let (_bench, service) = bench();
    assert_eq!(fabric(&service), Value::Null);
}

#[test]
fn units_come_and_go_and_ports_stay() {
    let (bench, service) = with_fabric("ports = 2\n[[hba.lun]]\ntarget = 0\nlun = 513\nimage = \"a.img\"\n");
    let units = |service: &Service| {
        let units = service.adapters[0].units();
        units.into_iter().map(|unit| (unit.target, shown(unit.lun))).collect::<Vec<_>>()
    };
    assert_eq!(units(&service), [(0, "513".to_owned())]);
    // The port without units is the next free target.
    let attach = r#"{"execute": "attach", "arguments": {"image": "b.img"}}"#;
    assert_eq!(ask(&service, attach), json!({"return": {"target": 1, "lun": 0, "state": "attached"}}));
    let detach = |target| format!(r#"{{"execute": "detach", "arguments": {{"target": {target}}}}}"#);
    assert_eq!(ask(&service, &detach(1)), json!({"return": {}}));
    assert_eq!(states(&service), ["0 online", "1 online"]);
    assert_eq!(service.adapters[0].targets().len(), 2);
    assert_eq!(ask(&service, attach), json!({"return": {"target": 1, "lun": 0, "state": "attached"}}));
    // A target that comes is another port.
    fs::File::create(bench.directory.path().join("c.img")).unwrap().set_len(1 << 20).unwrap();
    let more = r#"{"execute": "attach", "arguments": {"target": 9, "lun": 3, "image": "c.img"}}"#;
    assert_eq!(ask(&service, more), json!({"return": {"target": 9, "lun": 3, "state": "attached"}}));
    assert_eq!(states(&service), ["0 online", "1 online", "9 online"]);
}

#[test]
fn ports_are_lost_and_back_as_asked() {
    let (_bench, service) = with_fabric("ports = 2\n");
    let port = |target: u32, state: &str| {
        format!(r#"{{"execute": "fc-port", "arguments": {{"target": {target}, "state": "{state}"}}}}"#)
    };
    for (state, shown) in [("blocked", "1 blocked"), ("lost", "1 lost"), ("online", "1 online")] {
        assert_eq!(ask(&service, &port(1, state)), json!({"return": {}}));
        assert_eq!(states(&service), ["0 online", shown]);
    }
    assert_eq!(service.adapters[0].fabric_view().unwrap().remotes[&1].state, RemoteState::Online);
    // The guest's own: it sees none of the others then.
    let own = |state: &str| format!(r#"{{"execute": "fc-port", "arguments": {{"state": "{state}"}}}}"#);
    let before = fabric(&service);
    assert_eq!(ask(&service, &own("lost")), json!({"return": {}}));
    let down = fabric(&service);
    assert_eq!((&down["state"], &down["port_id"]), (&json!("link down"), &json!(0)));
    assert_eq!(states(&service), ["0 lost", "1 lost"]);
    assert_eq!(ask(&service, &own("online")), json!({"return": {}}));
    assert_eq!(fabric(&service), before);
    assert_eq!(error(&service, &port(5, "lost")), "there is no port with target 5 at hba fc0");
    let words = "\"state\" is \"down\", expected \"online\", \"blocked\" or \"lost\"";
    assert_eq!(error(&service, &port(1, "down")), words);
    assert_eq!(error(&service, r#"{"execute": "fc-port", "arguments": {"target": 1}}"#), "no \"state\"");
    let (_bench, mut service) = bench();
    service.adapters.truncate(1);
    assert_eq!(error(&service, &port(1, "lost")), "hba scsi0 is on no fabric");
}

/// The guest is shown the other names, and its ports stay.
#[test]
fn names_change_as_asked() {
    let to = |names: &str| format!(r#"{{"execute": "fc-names", "arguments": {{"names": "{names}"}}}}"#);
    let (_bench, service) = with_fabric("ports = 1\n");
    assert_eq!(
        error(&service, &to("secondary")),
        "hba fc0 has no other names; set secondary_wwnn and secondary_wwpn"
    );
    let second = "ports = 1\nsecondary_wwnn = \"2001020000000001\"\nsecondary_wwpn = \"2101020000000001\"\n";
    let (_bench, service) = with_fabric(second);
    assert_eq!(fabric(&service)["names"], json!("primary"));
    assert_eq!(ask(&service, &to("secondary")), json!({"return": {}}));
    let shown = fabric(&service);
    assert_eq!(
        (&shown["names"], &shown["secondary_wwpn"]),
        (&json!("secondary"), &json!("2101020000000001"))
    );
    assert_eq!(states(&service), ["0 online"]);
    // A port that is blocked for a moment keeps them.
    for state in ["blocked", "online"] {
        let own = format!(r#"{{"execute": "fc-port", "arguments": {{"state": "{state}"}}}}"#);
        assert_eq!(ask(&service, &own), json!({"return": {}}));
    }
    assert_eq!(fabric(&service), shown);
    let words = "\"names\" is \"both\", expected \"primary\" or \"secondary\"";
    assert_eq!(error(&service, &to("both")), words);
    let (_bench, mut service) = bench();
    service.adapters.truncate(1);
    assert_eq!(error(&service, &to("primary")), "hba scsi0 is on no fabric");
}

#[test]
fn what_needs_no_process_has_none() {
    let (bench, _service) = bench();
    let text = "[[hba]]\nid = \"fc0\"\n[hba.fc]\n";
    let hba = config::parse_hba(text, bench.directory.path()).unwrap();
    let space = Space::new(bench.control.clone());
    let adapter = Arc::new(Adapter::new(
        "fc0",
        HbaType::VirtioScsi,
        bench._thread.remote(),
        &space,
        &TargetGroup::default(),
    ));
    let made = fabric::plug("vm", &hba, &adapter, &mut std::iter::empty());
    let said = made.map(|_: Option<Plugged>| ()).unwrap_err().to_string();
    assert_eq!(said, "hba fc0: no process has its virtual port");
}
