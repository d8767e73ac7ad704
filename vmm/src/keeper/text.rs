//! Messages between the machine and the processes beside it: texts with zeros between them; and how devices are told in such.

use std::os::fd::OwnedFd;
use std::path::PathBuf;

use devices::scsi::generic::{Allow, Arrival, Driver, Found, HostLimits, Identity, Part, Wanted};

const DRIVERS: [(Driver, &str); 3] = [(Driver::Block, "block"), (Driver::Bsg, "bsg"), (Driver::Sg, "sg")];
const PARTS: [(Part, &str); 5] = [
    (Part::Block, "block"),
    (Part::Bsg, "bsg"),
    (Part::Sg, "sg"),
    (Part::Claim, "claim"),
    (Part::Ring, "ring"),
];
/// Yes or no.
pub(crate) const BOOLS: [(bool, &str); 2] = [(false, "no"), (true, "yes")];

/// The word for a value.
pub(crate) fn word<T: PartialEq>(words: &[(T, &'static str)], value: &T) -> &'static str {
    words.iter().find(|(other, _)| other == value).map_or("", |(_, word)| word)
}

/// A message that is written.
#[derive(Default)]
pub(crate) struct Writer(pub(crate) Vec<u8>);

impl Writer {
    pub(crate) fn text(mut self, text: impl ToString) -> Self {
        // What has zeros would be two; no device needs one to be known.
        self.0.extend(text.to_string().bytes().filter(|byte| *byte != 0));
        self.0.push(0);
        self
    }

    pub(crate) fn each<T>(self, all: &[T], text: impl Fn(&T) -> String) -> Self {
        all.iter().fold(self.text(all.len()), |writer, one| writer.text(text(one)))
    }

    pub(crate) fn maybe(self, number: Option<u64>) -> Self {
        self.text(number.map(|number| number.to_string()).unwrap_or_default())
    }
}

/// A message that is read.
pub(crate) struct Reader<'a>(std::str::Split<'a, char>);

impl<'a> Reader<'a> {
    pub(crate) fn new(message: &'a [u8]) -> Option<Self> {
        Some(Self(std::str::from_utf8(message).ok()?.strip_suffix('\0')?.split('\0')))
    }

    pub(crate) fn text(&mut self) -> Option<&'a str> {
        self.0.next()
    }

    pub(crate) fn string(&mut self) -> Option<String> {
        self.text().map(str::to_owned)
    }

    pub(crate) fn number<T: std::str::FromStr>(&mut self) -> Option<T> {
        self.text()?.parse().ok()
    }

    pub(crate) fn maybe<T: std::str::FromStr>(&mut self) -> Option<Option<T>> {
        let text = self.text()?;
        if text.is_empty() { Some(None) } else { text.parse().ok().map(Some) }
    }

    pub(crate) fn one_of<T: Copy>(&mut self, words: &[(T, &str)]) -> Option<T> {
        let text = self.text()?;
        words.iter().find(|(_, word)| *word == text).map(|(value, _)| *value)
    }

    pub(crate) fn each<T>(&mut self, one: impl Fn(&mut Self) -> Option<T>) -> Option<Vec<T>> {
        let count: usize = self.number()?;
        // No more than there is text for.
        (0..count).map(|_| one(self)).collect()
    }

    pub(crate) fn end(mut self) -> Option<()> {
        self.text().is_none().then_some(())
    }
}

/// A device that is looked for; `None` if its path is no text.
pub(crate) fn wanted(writer: Writer, wanted: &Wanted) -> Option<Writer> {
    let Wanted { identity, driver, parts, allow, shared, directory, number } = wanted;
    let Identity { address, device_type, names, vendor, product, serial } = identity;
    let writer = writer
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
    Some(writer)
}

/// The same, read.
pub(crate) fn read_wanted(reader: &mut Reader<'_>) -> Option<Wanted> {
    let identity = Identity {
        address: reader.string()?,
        device_type: reader.number()?,
        names: reader.each(Reader::string)?,
        vendor: reader.string()?,
        product: reader.string()?,
        serial: reader.string()?,
    };
    Some(Wanted {
        identity,
        driver: reader.one_of(&DRIVERS)?,
        parts: reader.each(|reader| reader.one_of(&PARTS))?,
        allow: Allow::named(reader.text()?)?,
        shared: reader.one_of(&BOOLS)?,
        directory: PathBuf::from(reader.text()?),
        number: reader.number()?,
    })
}

/// A device that has come, with the files that go with the message.
pub(crate) fn arrival(writer: Writer, arrival: Arrival) -> (Writer, Vec<OwnedFd>) {
    let (found, files) = arrival.into_files();
    let Found { path, address, limits, block, size, depth } = found;
    let (parts, files): (Vec<_>, Vec<_>) = files.into_iter().unzip();
    let writer = writer
        .text(path)
        .text(address)
        .text(limits.max_bytes)
        .text(limits.preferred_bytes)
        .text(limits.max_segments)
        .text(limits.max_segment_bytes)
        .text(word(&BOOLS, &limits.lists))
        .maybe(block.map(u64::from))
        .maybe(size)
        .text(depth)
        .each(&parts, |part| word(&PARTS, part).to_owned());
    (writer, files)
}

/// The same, read; `None` if it has other files, or no command can be sent by them.
pub(crate) fn read_arrival(reader: &mut Reader<'_>, files: Vec<OwnedFd>) -> Option<Arrival> {
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
        depth: reader.number()?,
    };
    let parts = reader.each(|reader| reader.one_of(&PARTS))?;
    if parts.len() != files.len() {
        return None;
    }
    Arrival::from_files(found, parts.into_iter().zip(files).collect())
}

#[cfg(test)]
pub(crate) mod tests {
    use std::fs::File;

    use super::*;

    /// A file that goes with a message.
    pub(crate) fn null() -> OwnedFd {
        File::open("/dev/null").unwrap().into()
    }

    /// A device that has come, with two files.
    pub(crate) fn arrival_of(found: Found) -> Arrival {
        Arrival::from_files(found, vec![(Part::Block, null()), (Part::Sg, null())]).unwrap()
    }

    /// Whether `read` takes a message whole and no other way.
    #[track_caller]
    pub(crate) fn is_taken_whole(message: &[u8], read: impl Fn(&[u8]) -> bool) {
        assert!(read(message));
        for len in 0..message.len() {
            assert!(!read(&message[..len]), "{len} of {message:?}");
        }
        assert!(!read(&[message, b"more\0"].concat()));
        for place in 0..message.len() {
            let mut other = message.to_vec();
            other[place] = 0xff;
            assert!(!read(&other), "{place} of {message:?}");
            // Whatever comes of it, it ends.
            for byte in [0, b'9', b'-'] {
                other[place] = byte;
                read(&other);
            }
        }
    }
}
