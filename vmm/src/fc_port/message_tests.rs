use devices::scsi::generic::{Arrival, Driver, Found, HostLimits, Identity, Part};

use super::*;
use crate::keeper::text::tests::{arrival_of, is_taken_whole, null};

pub(in crate::fc_port) fn example() -> Wanted {
    Wanted {
        hba: "hba0".into(),
        owner: "vm1.hba0".into(),
        rules: Rules { parent: Some("host5".into()), parent_fabric: Some(Wwn::new(7)), ..Rules::default() },
        names: Some((Wwn::new(0x2000_0212_3456_789a), Wwn::new(0x2100_0212_3456_789a))),
        any_oui: true,
        secondary: Names { wwnn: 1, wwpn: 2 },
        vports: Some(Allowed { most: 3, names: "2100020000000001-2100020000000009".parse().unwrap() }),
        dev_loss_tmo: Some(60),
        fast_io_fail_tmo: 5,
        luns: vec![(0, 5), (27, u64::MAX)],
        passthrough: Passthrough::Block,
        allow: Allow::NoManagement,
        bounce: false,
        shared: true,
        timeout: 30,
    }
}

/// An arrival at an address, with two files.
pub(in crate::fc_port) fn arrival(address: &str) -> Arrival {
    let found = Found {
        path: "/dev/sdk".into(),
        address: address.into(),
        limits: HostLimits::default(),
        block: Some(512),
        size: Some(1 << 30),
        depth: 32,
    };
    arrival_of(found)
}

pub(in crate::fc_port) fn device(address: &str, name: &str) -> devices::scsi::generic::Wanted {
    devices::scsi::generic::Wanted {
        identity: Identity {
            address: address.into(),
            device_type: 0,
            names: vec![name.into()],
            vendor: "LIO-ORG".into(),
            product: "d0".into(),
            serial: String::new(),
        },
        driver: Driver::Block,
        parts: vec![Part::Ring, Part::Block, Part::Sg],
        allow: Allow::All,
        shared: false,
        directory: "/sys/devices/8:0:0:5".into(),
        number: 17,
    }
}

pub(crate) fn host_port() -> HostPort {
    HostPort {
        vport: "vport-5:0-3".into(),
        host: 9,
        wwpn: 0x2100_0212_3456_789a,
        wwnn: 0x2000_0212_3456_789a,
        parent: "host5".into(),
        driver: "lpfc".into(),
        device: "0000:10:00.0".into(),
        origin: Origin::Made,
    }
}

fn a_view() -> View {
    let remote = |state, wwpn| RemotePort {
        names: Names { wwnn: 9, wwpn },
        port_id: 0x01_0203,
        state,
        transport: 0,
        vport: 0,
    };
    View {
        local: LocalPort {
            primary: Names { wwnn: 1, wwpn: u64::MAX },
            state: PortState::Online,
            active: Active::Primary,
            port_id: 0xff_ffff,
            speed: 16_000,
            classes: 8,
            max_frame: 2112,
            ..LocalPort::default()
        },
        remotes: [(0, remote(RemoteState::Online, 4)), (255, remote(RemoteState::Lost, 5))].into(),
        ..View::default()
    }
}

fn orders() -> Vec<Vec<u8>> {
    vec![
        wanted(&example()).unwrap(),
        go(),
        look(3, u64::MAX),
        refused(3, &all_refused()),
        activate(2, u64::MAX, Active::Secondary),
        create(1, 64, Names { wwnn: 1, wwpn: u64::MAX }),
        delete(0, 1),
        end(),
    ]
}

fn all_refused() -> Vec<Refused> {
    let one = Refused { target: 255, lun: [0xff; 8], offer: u64::MAX, knows: false };
    vec![one, Refused { target: 0, lun: LUN, offer: 0, knows: true }]
}

const LUN: Lun = [0x40, 5, 0x40, 0x0a, 0, 0, 0, 0];

fn all_news() -> Vec<News> {
    let unit = |news| News::Unit(255, LUN, news);
    let came = UnitNews::Came(Box::new(device("8:0:0:5", "naa.1")), Box::new(arrival("8:0:0:5")), 7);
    vec![
        News::View(a_view()),
        News::Port(Box::new(host_port())),
        News::Waits("a moment".into()),
        News::Closed(7, None),
        News::Closed(u64::MAX, Some("it does not answer".into())),
        News::Other(u64::MAX, Box::new(host_port())),
        News::Activated(7, Active::Secondary, None),
        News::Activated(u64::MAX, Active::Primary, Some("it sees less".into())),
        News::Heard,
        News::Looked(u64::MAX),
        News::Warning("no \u{e4}".into()),
        News::Failed("because".into()),
        News::NotCreated(VportRefusal::InUse, "somebody has it".into()),
        unit(UnitNews::Doubted),
        unit(UnitNews::Trusted),
        unit(UnitNews::Lost),
        unit(UnitNews::Gone),
        unit(UnitNews::Resized),
        unit(UnitNews::Back(Box::new(arrival("9:0:0:5")), u64::MAX)),
        unit(came),
    ]
}

#[test]
fn what_is_written_is_read() {
    let read = |wanted: &Wanted| match read_order(&self::wanted(wanted).unwrap()) {
        Some(Order::Wanted(read)) => *read,
        other => panic!("{other:?}"),
    };
    assert_eq!(read(&example()), example());
    let plain = Wanted {
        rules: Rules::default(),
        names: None,
        dev_loss_tmo: None,
        luns: vec![],
        passthrough: Passthrough::Generic,
        bounce: true,
        shared: false,
        ..example()
    };
    assert_eq!(read(&plain), plain);
    assert!(self::wanted(&Wanted { hba: "x".repeat(LENGTH), ..example() }).is_none());
    assert!(matches!(read_order(&go()), Some(Order::Go)));
    assert!(matches!(read_order(&look(3, 7)), Some(Order::Look(3, 7))));
    assert!(matches!(read_order(&end()), Some(Order::End)));
    assert!(
        matches!(read_order(&refused(3, &all_refused())), Some(Order::Refused(3, all)) if all == all_refused())
    );
    let many = vec![all_refused()[0]; REFUSED];
    assert!(refused(usize::MAX, &many).len() < LENGTH);
    for one in all_news() {
        let shown = format!("{one:?}");
        let is_arrival = shown.contains("Arrival");
        let (bytes, files) = news(2, one);
        assert_eq!(files.len(), if is_arrival { 2 } else { 0 });
        let (hba, read) = read_news(&bytes, files).unwrap();
        assert_eq!(hba, 2);
        if is_arrival {
            assert_eq!(news(2, read).0, bytes);
        } else {
            assert_eq!(format!("{read:?}"), shown);
        }
    }
    let (bytes, _) = news(0, News::Failed("\u{e4}".repeat(LENGTH)));
    assert!(bytes.len() < LENGTH && read_news(&bytes, vec![]).is_some());
    // As many as there are numbers, with the longest of each.
    let remote = RemotePort {
        names: Names { wwnn: u64::MAX, wwpn: u64::MAX },
        port_id: 0xff_ffff,
        state: RemoteState::Blocked,
        transport: 255,
        vport: 0,
    };
    let remotes = (0..=255).map(|target| (target, remote)).collect();
    let most = View { local: a_view().local, remotes, ..View::default() };
    assert!(news(usize::MAX, News::View(most)).0.len() < LENGTH);
}

#[test]
fn what_is_no_message_is_none() {
    let some_files = |bytes: &[u8]| {
        let has = bytes.starts_with(b"back") || bytes.starts_with(b"came");
        if has { vec![null(), null()] } else { vec![] }
    };
    let all_news: Vec<_> = all_news().into_iter().map(|one| news(1, one).0).collect();
    let messages = orders()
        .into_iter()
        .map(|bytes| (bytes, true))
        .chain(all_news.into_iter().map(|bytes| (bytes, false)));
    for (message, is_order) in messages {
        let read = |bytes: &[u8]| match is_order {
            true => read_order(bytes).is_some(),
            false => read_news(bytes, some_files(&message)).is_some(),
        };
        is_taken_whole(&message, read);
    }
    let (bytes, _) = news(1, News::Unit(0, LUN, UnitNews::Back(Box::new(arrival("9:0:0:5")), u64::MAX)));
    assert!(read_news(&bytes, vec![]).is_none(), "files that have not come");
    assert!(read_news(b"view\x001\x00256\0", vec![]).is_none());
    assert!(read_order(b"look\x000\x0018446744073709551616\0").is_none());
}

/// There are no descriptors left for its files.
#[test]
fn news_without_their_files_say_of_which_unit_they_are() {
    let of = |news: News| without_files(&self::news(2, news).0);
    for (one, expected) in all_news().into_iter().zip(std::iter::repeat(2)) {
        let shown = format!("{one:?}");
        let refused = |offer, knows| Some((expected, Refused { target: 255, lun: LUN, offer, knows }));
        let wanted = match () {
            () if shown.contains("Came") => refused(7, false),
            () if shown.contains("Back") => refused(u64::MAX, true),
            () => None,
        };
        assert_eq!(of(one), wanted, "{shown}");
    }
    assert_eq!(without_files(b""), None);
    assert_eq!(without_files(b"came\x002\x00255\x00"), None);
}
