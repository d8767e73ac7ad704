use std::fs::File;

use devices::scsi::generic::{Arrival, Driver, Found, HostLimits, Identity, Part};

use super::*;

pub(in crate::fc_port) fn example() -> Wanted {
    Wanted {
        hba: "hba0".into(),
        owner: "vm1.hba0".into(),
        rules: Rules { parent: Some("host5".into()), parent_fabric: Some(Wwn::new(7)), ..Rules::default() },
        names: Some((Wwn::new(0x2000_0212_3456_789a), Wwn::new(0x2100_0212_3456_789a))),
        any_oui: true,
        secondary: Names { wwnn: 1, wwpn: 2 },
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

fn null() -> OwnedFd {
    File::open("/dev/null").unwrap().into()
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
    Arrival::from_files(found, vec![(Part::Block, null()), (Part::Sg, null())]).unwrap()
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

fn a_view() -> View {
    let remote =
        |state, wwpn| RemotePort { names: Names { wwnn: 9, wwpn }, port_id: 0x01_0203, state, transport: 0 };
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
    }
}

fn orders() -> Vec<Vec<u8>> {
    vec![wanted(&example()).unwrap(), go(), look(3, u64::MAX), end()]
}

const LUN: Lun = [0x40, 5, 0x40, 0x0a, 0, 0, 0, 0];

fn all_news() -> Vec<News> {
    let unit = |news| News::Unit(255, LUN, news);
    let came = UnitNews::Came(Box::new(device("8:0:0:5", "naa.1")), Box::new(arrival("8:0:0:5")));
    vec![
        News::View(a_view()),
        News::Looked(u64::MAX),
        News::Warning("no \u{e4}".into()),
        News::Failed("because".into()),
        unit(UnitNews::Lost),
        unit(UnitNews::Gone),
        unit(UnitNews::Resized),
        unit(UnitNews::Back(Box::new(arrival("9:0:0:5")))),
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
    };
    let most = View { local: a_view().local, remotes: (0..=255).map(|target| (target, remote)).collect() };
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
        assert!(read(&message));
        for len in 0..message.len() {
            assert!(!read(&message[..len]), "{len} of {message:?}");
        }
        assert!(!read(&[&message[..], b"more\0"].concat()));
        for place in 0..message.len() {
            let mut other = message.clone();
            other[place] = 0xff;
            assert!(!read(&other), "{place}");
            // Whatever comes of it, it ends.
            for byte in [0, b'9', b'-'] {
                other[place] = byte;
                read(&other);
            }
        }
    }
    let (bytes, _) = news(1, News::Unit(0, LUN, UnitNews::Back(Box::new(arrival("9:0:0:5")))));
    assert!(read_news(&bytes, vec![]).is_none(), "files that have not come");
    assert!(read_news(b"view\x001\x00256\0", vec![]).is_none());
    assert!(read_order(b"look\x000\x0018446744073709551616\0").is_none());
}
