//! What the two processes tell each other: texts with zeros between them. The list goes one way, once, before the guest runs; what
//! becomes of devices goes the other way.

use std::os::fd::OwnedFd;
use std::path::PathBuf;

use devices::scsi::generic::{Allow, Arrival, Driver, Found, HostLimits, Identity, Part, Report, Wanted};

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

const DRIVERS: [(Driver, &str); 3] = [(Driver::Block, "block"), (Driver::Bsg, "bsg"), (Driver::Sg, "sg")];
const PARTS: [(Part, &str); 5] = [
    (Part::Block, "block"),
    (Part::Bsg, "bsg"),
    (Part::Sg, "sg"),
    (Part::Claim, "claim"),
    (Part::Ring, "ring"),
];
const BOOLS: [(bool, &str); 2] = [(false, "no"), (true, "yes")];

fn word<T: PartialEq>(words: &[(T, &'static str)], value: &T) -> &'static str {
    words.iter().find(|(other, _)| other == value).map_or("", |(_, word)| word)
}

/// A message that is written.
#[derive(Default)]
struct Writer(Vec<u8>);

impl Writer {
    fn text(mut self, text: impl ToString) -> Self {
        // What has zeros would be two; no device needs one to be known.
        self.0.extend(text.to_string().bytes().filter(|byte| *byte != 0));
        self.0.push(0);
        self
    }

    fn each<T>(self, all: &[T], text: impl Fn(&T) -> String) -> Self {
        all.iter().fold(self.text(all.len()), |writer, one| writer.text(text(one)))
    }

    fn maybe(self, number: Option<u64>) -> Self {
        self.text(number.map(|number| number.to_string()).unwrap_or_default())
    }
}

/// A message that is read.
struct Reader<'a>(std::str::Split<'a, char>);

impl<'a> Reader<'a> {
    fn new(message: &'a [u8]) -> Option<Self> {
        Some(Self(std::str::from_utf8(message).ok()?.strip_suffix('\0')?.split('\0')))
    }

    fn text(&mut self) -> Option<&'a str> {
        self.0.next()
    }

    fn string(&mut self) -> Option<String> {
        self.text().map(str::to_owned)
    }

    fn number<T: std::str::FromStr>(&mut self) -> Option<T> {
        self.text()?.parse().ok()
    }

    fn maybe<T: std::str::FromStr>(&mut self) -> Option<Option<T>> {
        let text = self.text()?;
        if text.is_empty() { Some(None) } else { text.parse().ok().map(Some) }
    }

    fn one_of<T: Copy>(&mut self, words: &[(T, &str)]) -> Option<T> {
        let text = self.text()?;
        words.iter().find(|(_, word)| *word == text).map(|(value, _)| *value)
    }

    fn each<T>(&mut self, one: impl Fn(&mut Self) -> Option<T>) -> Option<Vec<T>> {
        let count: usize = self.number()?;
        // No more than there is text for.
        (0..count).map(|_| one(self)).collect()
    }

    fn end(mut self) -> Option<()> {
        self.text().is_none().then_some(())
    }
}

/// One device of the list.
pub(super) fn wanted(wanted: &Wanted) -> Option<Vec<u8>> {
    let Wanted { identity, driver, parts, allow, shared, directory, number } = wanted;
    let Identity { address, device_type, names, vendor, product, serial } = identity;
    let writer = Writer::default()
        .text(address)
        .text(device_type)
        .each(names, Clone::clone)
        .text(vendor)
        .text(product)
        .text(serial)
        .text(word(&DRIVERS, driver))
        .each(parts, |part| word(&PARTS, part).to_owned())
        .text(allow.name())
        .text(word(&BOOLS, shared))
        .text(directory.to_str()?)
        .text(number);
    Some(writer.0)
}

/// The same, read.
pub(super) fn read_wanted(message: &[u8]) -> Option<Wanted> {
    let mut reader = Reader::new(message)?;
    let reader_ref = &mut reader;
    let identity = Identity {
        address: reader_ref.string()?,
        device_type: reader_ref.number()?,
        names: reader_ref.each(Reader::string)?,
        vendor: reader_ref.string()?,
        product: reader_ref.string()?,
        serial: reader_ref.string()?,
    };
    let wanted = Wanted {
        identity,
        driver: reader.one_of(&DRIVERS)?,
        parts: reader.each(|reader| reader.one_of(&PARTS))?,
        allow: Allow::named(reader.text()?)?,
        shared: reader.one_of(&BOOLS)?,
        directory: PathBuf::from(reader.text()?),
        number: reader.number()?,
    };
    reader.end().map(|()| wanted)
}

/// What has become of a device, with the files that go with it.
pub(super) fn report(report: Report) -> (Vec<u8>, Vec<OwnedFd>) {
    let (found, index, files) = match report {
        Report::Lost(index) => return (Writer::default().text("lost").text(index).0, Vec::new()),
        Report::Failed(index, error) => {
            let mut error = error.to_string();
            error.truncate(error.floor_char_boundary(LENGTH / 2));
            return (Writer::default().text("failed").text(index).text(error).0, Vec::new());
        }
        Report::Slow(index, address) => {
            return (Writer::default().text("slow").text(index).text(address).0, Vec::new());
        }
        Report::Queued(index, address) => {
            return (Writer::default().text("queued").text(index).text(address).0, Vec::new());
        }
        Report::Back(index, arrival) => {
            let (found, files) = arrival.into_files();
            (found, index, files)
        }
    };
    let Found { path, address, limits, block, size } = found;
    let (parts, files): (Vec<_>, Vec<_>) = files.into_iter().unzip();
    let writer = Writer::default()
        .text("back")
        .text(index)
        .text(path)
        .text(address)
        .text(limits.max_bytes)
        .text(limits.preferred_bytes)
        .text(limits.max_segments)
        .text(limits.max_segment_bytes)
        .text(word(&BOOLS, &limits.lists))
        .maybe(block.map(u64::from))
        .maybe(size)
        .each(&parts, |part| word(&PARTS, part).to_owned());
    (writer.0, files)
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
        "back" => {
            let found = Found {
                path: reader.string()?,
                address: reader.string()?,
                limits: HostLimits {
                    max_bytes: reader.number()?,
                    preferred_bytes: reader.number()?,
                    max_segments: reader.number()?,
                    max_segment_bytes: reader.number()?,
                    lists: reader.one_of(&BOOLS)?,
                },
                block: reader.maybe()?,
                size: reader.maybe()?,
            };
            let parts = reader.each(|reader| reader.one_of(&PARTS))?;
            if parts.len() != files.len() {
                return None;
            }
            let files = parts.into_iter().zip(files).collect();
            News::Back(index, Box::new(Arrival::from_files(found, files)?))
        }
        _ => return None,
    };
    reader.end().map(|()| news)
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use devices::scsi::generic::GenericError;

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

    fn null() -> OwnedFd {
        File::open("/dev/null").unwrap().into()
    }

    fn back() -> (Vec<u8>, Vec<OwnedFd>) {
        let found = Found {
            path: "/dev/sdk".into(),
            address: "77:0:0:1".into(),
            limits: HostLimits { max_bytes: 1 << 40, lists: false, ..HostLimits::default() },
            block: None,
            size: Some(0),
        };
        let files = vec![(Part::Block, null()), (Part::Sg, null())];
        report(Report::Back(3, Box::new(Arrival::from_files(found, files).unwrap())))
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
        for (message, is_list) in [(&whole, true), (&bytes, false)] {
            let read = |message: &[u8]| match is_list {
                true => read_wanted(message).is_some(),
                false => read_report(message, vec![null(), null()]).is_some(),
            };
            assert!(read(message));
            for len in 0..message.len() {
                assert!(!read(&message[..len]), "{len}");
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
        assert!(read_report(b"back\x0018446744073709551616\0", Vec::new()).is_none());
        assert!(read_wanted(b"a\x000\x0018446744073709551615\0x\0").is_none());
    }
}
