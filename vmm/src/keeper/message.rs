//! What the two processes tell each other: texts with zeros between them. The list goes one way, once, before the guest runs; what
//! becomes of devices goes the other way.

use std::os::fd::OwnedFd;

use devices::scsi::generic::{Arrival, Report, Wanted};

use super::text::{self, Reader, Writer};

/// Bytes of a message at most.
pub(super) const LENGTH: usize = 16 << 10;

/// What has become of a device, as the machine hears it.
#[derive(Debug)]
pub(super) enum News {
    /// It is gone.
    Lost(usize),
    /// It is back.
    Back(usize, Box<Arrival>),
    /// It is back, and cannot be opened, for this reason.
    Failed(usize, String),
    /// It is back at this address, and the host does not come back from opening it.
    Slow(usize, String),
    /// It is back at this address, and waits for the host to come back from others.
    Queued(usize, String),
}

/// One device of the list.
pub(super) fn wanted(wanted: &Wanted) -> Option<Vec<u8>> {
    text::wanted(Writer::default(), wanted).map(|writer| writer.0)
}

/// The same, read.
pub(super) fn read_wanted(message: &[u8]) -> Option<Wanted> {
    let mut reader = Reader::new(message)?;
    let wanted = text::read_wanted(&mut reader)?;
    reader.end().map(|()| wanted)
}

/// What has become of a device, with the files that go with it.
pub(super) fn report(report: Report) -> (Vec<u8>, Vec<OwnedFd>) {
    let (kind, index, said) = match report {
        Report::Back(index, arrival) => {
            let (writer, files) = text::arrival(Writer::default().text("back").text(index), *arrival);
            return (writer.0, files);
        }
        Report::Lost(index) => return (Writer::default().text("lost").text(index).0, Vec::new()),
        Report::Failed(index, error) => {
            let mut error = error.to_string();
            error.truncate(error.floor_char_boundary(LENGTH / 2));
            ("failed", index, error)
        }
        Report::Slow(index, address) => ("slow", index, address),
        Report::Queued(index, address) => ("queued", index, address),
    };
    (Writer::default().text(kind).text(index).text(said).0, Vec::new())
}

/// The same, read; `None` of what is no such message, or has other files.
pub(super) fn read_report(message: &[u8], files: Vec<OwnedFd>) -> Option<News> {
    let mut reader = Reader::new(message)?;
    let (kind, index) = (reader.text()?, reader.number()?);
    let news = match kind {
        "lost" => News::Lost(index),
        "failed" => News::Failed(index, reader.string()?),
        "slow" => News::Slow(index, reader.string()?),
        "queued" => News::Queued(index, reader.string()?),
        "back" => News::Back(index, Box::new(text::read_arrival(&mut reader, files)?)),
        _ => return None,
    };
    reader.end().map(|()| news)
}

#[cfg(test)]
mod tests {
    use devices::scsi::generic::{Allow, Driver, Found, GenericError, HostLimits, Identity, Part};

    use super::super::text::tests::{arrival_of, is_taken_whole, null};
    use super::*;

    pub(in crate::keeper) fn example() -> Wanted {
        Wanted {
            identity: Identity {
                address: "2:0:0:5".into(),
                device_type: 0,
                names: vec!["600140512345678900000000000abcde".into(), "t10.ata  x".into()],
                vendor: "LIO-ORG".into(),
                product: String::new(),
                serial: "17".into(),
            },
            driver: Driver::Block,
            parts: vec![Part::Block, Part::Sg],
            allow: Allow::NoManagement,
            shared: true,
            directory: "/sys/devices/pci0/2:0:0:5".into(),
            number: u64::MAX,
        }
    }

    fn back() -> (Vec<u8>, Vec<OwnedFd>) {
        let found = Found {
            path: "/dev/sdk".into(),
            address: "77:0:0:1".into(),
            limits: HostLimits { max_bytes: 1 << 40, lists: false, ..HostLimits::default() },
            block: None,
            size: Some(0),
            depth: 32,
        };
        report(Report::Back(3, Box::new(arrival_of(found))))
    }

    #[test]
    fn what_is_written_is_read() {
        let mut wanted = example();
        assert_eq!(read_wanted(&super::wanted(&wanted).unwrap()), Some(wanted.clone()));
        (wanted.identity.names, wanted.parts) = (Vec::new(), Vec::new());
        (wanted.driver, wanted.allow, wanted.shared) = (Driver::Sg, Allow::ReadOnly, false);
        assert_eq!(read_wanted(&super::wanted(&wanted).unwrap()), Some(wanted.clone()));
        wanted.identity.serial = "1\x007".into();
        assert_eq!(read_wanted(&super::wanted(&wanted).unwrap()).unwrap().identity.serial, "17");

        let (bytes, files) = back();
        let Some(News::Back(3, arrival)) = read_report(&bytes, files) else { panic!() };
        assert_eq!(report(Report::Back(3, arrival)).0, bytes);
        let (bytes, _) = report(Report::Lost(0));
        assert!(matches!(read_report(&bytes, Vec::new()), Some(News::Lost(0))));
        let place = || "7:0:0:1".to_owned();
        let read = |report| read_report(&self::report(report).0, Vec::new());
        assert!(matches!(read(Report::Slow(2, place())), Some(News::Slow(2, said)) if said == place()));
        assert!(matches!(read(Report::Queued(2, place())), Some(News::Queued(2, said)) if said == place()));
        let long = GenericError::Missing { path: "ä".repeat(LENGTH) };
        let (bytes, _) = report(Report::Failed(7, long));
        assert!(bytes.len() < LENGTH);
        let Some(News::Failed(7, text)) = read_report(&bytes, Vec::new()) else { panic!() };
        assert!(text.starts_with("ää"));
    }

    #[test]
    fn what_is_no_message_is_none() {
        let (bytes, files) = back();
        assert!(read_report(&bytes, Vec::new()).is_none(), "files that have not come");
        assert!(
            read_report(&report(Report::Lost(0)).0, files).is_some(),
            "files that nobody wants are closed"
        );
        let whole = super::wanted(&example()).unwrap();
        is_taken_whole(&whole, |message| read_wanted(message).is_some());
        is_taken_whole(&bytes, |message| read_report(message, vec![null(), null()]).is_some());
        assert!(read_report(b"back\x0018446744073709551616\0", Vec::new()).is_none());
        assert!(read_wanted(b"a\x000\x0018446744073709551615\0x\0").is_none());
    }
}
