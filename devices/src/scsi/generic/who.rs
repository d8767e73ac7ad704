//! Who a device is now, as it says itself: the kernel keeps what it said once, and does not ask again where a device is that it has.

use super::luns::open;
use super::probe;
use super::sysfs::{self, Sysfs};
use super::{Host, Identity};

/// ALLOCATION LENGTH of what is asked for: what all devices take, and more than the names of a logical unit.
const LENGTH: u8 = 0xfc;

/// Whether a device is who it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Who {
    /// It is, or it has no names by which it could be told from another one.
    Same,
    /// It is another one.
    Other,
    /// It did not say: why.
    Nothing(String),
}

/// Asks the device at an address of this host (`5:0:0:27`) for its names (INQUIRY with VPD pages 83h and 80h, SPC-5, 6.7 and 7.7), whoever
/// has it open. That takes no unit attention from those to whom it is due (SAM-6, 5.14). It waits for the answer.
pub fn who_is(address: &str, was: &Identity) -> Who {
    let sysfs = Sysfs::default();
    let node = sysfs.device_of(address).map_err(|error| error.to_string());
    match node.and_then(|device| open(&sysfs, &device)) {
        Ok(routes) => ask(&routes, was),
        Err(why) => Who::Nothing(why),
    }
}

/// The same of a device that is open.
pub(super) fn ask(host: &dyn Host, was: &Identity) -> Who {
    // Older devices have no page 83h, and an error is no news of them.
    let mut names = match (!was.names.is_empty()).then(|| page(host, 0x83)) {
        None => Vec::new(),
        Some(Ok(page)) => sysfs::designators(&page),
        Some(Err(why)) => return Who::Nothing(why),
    };
    names.retain(|name| name.bytes().any(|b| b != b'0'));
    if !names.is_empty() {
        let same = names.iter().any(|name| was.names.contains(name));
        return if same { Who::Same } else { Who::Other };
    }
    if was.serial.is_empty() {
        return Who::Same;
    }
    match page(host, 0x80).map(|page| sysfs::serial(&page)) {
        Ok(Some(serial)) if serial != was.serial => Who::Other,
        Ok(_) => Who::Same,
        Err(why) => Who::Nothing(why),
    }
}

fn page(host: &dyn Host, code: u8) -> Result<Vec<u8>, String> {
    let mut page = vec![0; LENGTH.into()];
    let len = probe(host, &[0x12, 1, code, 0, LENGTH, 0], &mut page)?;
    page.truncate(len);
    match *page.as_slice() {
        // PERIPHERAL QUALIFIER: there is no unit now.
        [first, ..] if first >> 5 != 0 => Err("it has no unit there".into()),
        [_, said, ..] if said == code => Ok(page),
        _ => Err(format!("it did not answer with page {code:02x}h")),
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;
    use crate::mem::ToGuest;
    use crate::scsi::generic::{Answer, Command};

    /// Pages 83h and 80h.
    struct Says(Option<&'static [u8]>, Option<&'static [u8]>);

    impl Host for Says {
        fn execute(&self, command: &Command) -> io::Result<Answer> {
            let cdb = command.cdb.padded();
            assert_eq!((&cdb[..2], &cdb[3..6]), (&[0x12, 1][..], &[0, LENGTH, 0][..]));
            let page = if cdb[2] == 0x83 { self.0 } else { self.1 };
            let page = page.ok_or_else(|| io::Error::from_raw_os_error(libc::EIO))?;
            let wrote = ToGuest::new(command.data.window(0, u64::MAX)).write_at(0, page);
            Ok(Answer { residual: (command.data.len() - wrote as u64) as i32, ..Answer::good() })
        }
        fn reset(&self) -> io::Result<()> {
            Ok(())
        }
    }

    fn identity(names: &[&str], serial: &str) -> Identity {
        Identity {
            address: "8:0:0:5".into(),
            device_type: 0,
            names: names.iter().map(|name| (*name).into()).collect(),
            vendor: "LIO-ORG".into(),
            product: "d0".into(),
            serial: serial.into(),
        }
    }

    /// NAA of the unit and of its port.
    const NAMED: &[u8] =
        &[0, 0x83, 0, 24, 1, 3, 0, 8, 0x60, 1, 2, 3, 4, 5, 6, 7, 1, 0x93, 0, 8, 0x51, 1, 2, 3, 4, 5, 6, 7];
    const UNNAMED: &[u8] = &[0, 0x83, 0, 8, 2, 1, 0, 4, 0x61, 0x62, 0x63, 0x64];
    const SERIAL: &[u8] = &[0, 0x80, 0, 4, 0x20, 0x31, 0x37, 0];

    #[test]
    fn a_device_without_names_is_not_asked_for_any() {
        assert_eq!(ask(&Says(None, None), &identity(&[], "")), Who::Same);
        assert_eq!(ask(&Says(None, Some(SERIAL)), &identity(&[], "17")), Who::Same);
        assert_eq!(ask(&Says(None, Some(SERIAL)), &identity(&[], "18")), Who::Other);
    }

    #[test]
    fn a_device_is_known_by_the_names_of_its_unit() {
        let says = Says(Some(NAMED), None);
        assert_eq!(ask(&says, &identity(&["6001020304050607"], "x")), Who::Same);
        assert_eq!(ask(&says, &identity(&["eui", "6001020304050607"], "")), Who::Same);
        assert_eq!(ask(&says, &identity(&["6001020304050608"], "")), Who::Other);
        assert_eq!(ask(&says, &identity(&["5101020304050607"], "")), Who::Other, "that is its port");
        let says = Says(Some(UNNAMED), Some(SERIAL));
        assert_eq!(ask(&says, &identity(&["t10.abcd"], "17")), Who::Same);
        assert_eq!(ask(&says, &identity(&["t10.abcd"], "18")), Who::Other);
        assert_eq!(ask(&says, &identity(&[], "")), Who::Same, "nobody could tell");
    }

    #[test]
    fn what_does_not_answer_says_nothing_of_who_it_is() {
        let nothing = |says: Says| {
            let who = ask(&says, &identity(&["6001020304050608"], "17"));
            assert!(matches!(who, Who::Nothing(_)), "{who:?}");
        };
        nothing(Says(None, None));
        nothing(Says(Some(&[]), None));
        nothing(Says(Some(&[0x7f, 0x83, 0, 0]), None));
        nothing(Says(Some(&[0, 0, 0, 0]), None));
        nothing(Says(Some(UNNAMED), None));
        // Cut short in the middle of a name.
        nothing(Says(Some(NAMED.get(..12).unwrap()), None));
    }
}
