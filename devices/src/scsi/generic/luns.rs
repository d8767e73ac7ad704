//! Which logical units a target has for this host, asked by one of them: the kernel only hears that there are others when a command was
//! sent, and does not look at which.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::time::Duration;

use super::beside::codes;
use super::host::{Command, Direction, Host};
use super::route::Routes;
use super::status::{self, Verdict};
use super::sysfs::{Device, Driver, Sysfs};
use crate::mem::{FromGuest, SgList};
use crate::scsi::opcode::field;
use crate::scsi::sense::{LUN_NOT_SUPPORTED, SenseKey};
use crate::scsi::{Cdb, Status};

/// How long the target is waited for.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes of the header of what it says (SPC-5, 6.33), and of each unit.
const HEADER: usize = 8;
const EACH: usize = 8;
/// Units that there is room for at first, and at most: more no target has.
const FIRST: usize = 255;
const MOST: usize = 1 << 16;

/// What a target says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Luns {
    /// Its units for this host, by their numbers (SAM-6, 4.7): all of them.
    All(Vec<[u8; 8]>),
    /// It has no such unit as was asked, any more.
    NoUnit,
    /// Nothing, or not all: why.
    Nothing(String),
}

/// Sends REPORT LUNS to the unit at an address of this host (`5:0:0:27`), whoever has it open. It changes nothing there but that the unit
/// has told of other units then, if it had to. It waits for the answer.
pub fn report_luns(address: &str) -> Luns {
    let sysfs = Sysfs::default();
    let node = sysfs.device_of(address).map_err(|error| error.to_string());
    match node.and_then(|device| open(&sysfs, &device)) {
        Ok(routes) => ask(&routes),
        Err(why) => Luns::Nothing(why),
    }
}

/// A node that nobody can have for himself.
pub(super) fn open(sysfs: &Sysfs, device: &Device) -> Result<Routes, String> {
    let open = |driver| {
        let path = sysfs.node_of(device, driver)?;
        let file = OpenOptions::new()
            .read(true)
            .write(driver == Driver::Bsg)
            .custom_flags(libc::O_NONBLOCK)
            .open(&path);
        Some(file.map_err(|error| format!("{}: {error}", path.display())).map(|file| (file, driver)))
    };
    let (file, driver) = open(Driver::Bsg)
        .or_else(|| open(Driver::Block))
        .ok_or_else(|| format!("{} has no node of bsg", device.address))??;
    if !leads(sysfs, &file, device) {
        return Err(format!("{}: another device has come to its name", device.address));
    }
    Ok(Routes::new(Some((file, driver)), None))
}

fn leads(sysfs: &Sysfs, file: &File, device: &Device) -> bool {
    let found = file.metadata().ok();
    found.is_some_and(|found| {
        let leads = sysfs.device(found.file_type().is_block_device(), found.rdev());
        leads.is_ok_and(|(found, _)| found == *device)
    })
}

fn ask(host: &dyn Host) -> Luns {
    let mut room = FIRST;
    loop {
        let bytes = match ask_once(host, HEADER + room * EACH) {
            Ok(bytes) => bytes,
            Err(luns) => return luns,
        };
        let Some(list) = bytes.get(HEADER..) else { return Luns::Nothing("it said nothing".into()) };
        let count = field(&bytes, 0, 4) as usize / EACH;
        if count <= list.len() / EACH {
            return Luns::All(
                list.chunks_exact(EACH).take(count).filter_map(|lun| lun.try_into().ok()).collect(),
            );
        }
        // It is asked once more for all of them.
        if count <= room || count > MOST {
            return Luns::Nothing(format!("it said {} of {count} units", list.len() / EACH));
        }
        room = count;
    }
}

fn ask_once(host: &dyn Host, len: usize) -> Result<Vec<u8>, Luns> {
    let nothing = |why: &str| Luns::Nothing(why.to_owned());
    let [a, b, c, d] = u32::try_from(len).map_err(|_| nothing("too much"))?.to_be_bytes();
    let data = SgList::host(len, 4096).ok_or_else(|| nothing("no memory"))?;
    let seen = FromGuest::new(data.window(0, u64::MAX));
    // SELECT REPORT 0: all but well known ones, as the kernel asks.
    let cdb = Cdb::new(&[0xa0, 0, 0, 0, 0, 0, a, b, c, d, 0, 0]);
    let command = Command { cdb, direction: Direction::In, data, timeout: TIMEOUT };
    let answer = host.execute(&command).map_err(|error| Luns::Nothing(error.to_string()))?;
    let verdict = status::verdict(&answer, Direction::In, command.data.len(), false);
    if let Verdict::Device { status: Status::CheckCondition, sense: Some(sense), .. } = &verdict {
        let (asc, ascq) = LUN_NOT_SUPPORTED;
        if codes(sense) == (SenseKey::IllegalRequest as u8, asc, ascq) {
            return Err(Luns::NoUnit);
        }
    }
    if !verdict.is_good() {
        return Err(Luns::Nothing(format!("status {:02x}h, adapter {:02x}h", answer.status, answer.host)));
    }
    let mut bytes = vec![0; len];
    let got = seen.read_at(0, &mut bytes).min(usize::try_from(verdict.moved()).unwrap_or(0));
    bytes.truncate(got);
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::Mutex;

    use super::*;
    use crate::mem::ToGuest;
    use crate::scsi::MAX_SENSE;
    use crate::scsi::generic::Answer;

    /// A target that says these bytes, and how much it was asked for.
    struct Says(Vec<u8>, Mutex<Vec<u64>>);

    impl Host for Says {
        fn execute(&self, command: &Command) -> io::Result<Answer> {
            let cdb = command.cdb.padded();
            assert_eq!((cdb[..6].to_vec(), &cdb[10..12]), (vec![0xa0, 0, 0, 0, 0, 0], &[0, 0][..]));
            assert_eq!(field(cdb, 6, 4), command.data.len());
            self.1.lock().unwrap().push(command.data.len());
            let wrote = ToGuest::new(command.data.window(0, u64::MAX)).write_at(0, &self.0);
            Ok(Answer { residual: (command.data.len() - wrote as u64) as i32, ..Answer::good() })
        }
        fn reset(&self) -> io::Result<()> {
            Ok(())
        }
    }

    fn said(count: u32, luns: &[[u8; 8]]) -> (Luns, Vec<u64>) {
        let bytes = [&(count * 8).to_be_bytes()[..], &[0; 4], &luns.concat()].concat();
        let says = Says(bytes, Mutex::default());
        (ask(&says), says.1.into_inner().unwrap())
    }

    #[test]
    fn all_units_are_told_or_none() {
        let luns =
            [[0, 5, 0, 0, 0, 0, 0, 0], [0x42, 1, 0, 0, 0, 0, 0, 0], [0x40, 0x10, 0x40, 0x0a, 0, 0, 0, 0]];
        assert_eq!(said(3, &luns), (Luns::All(luns.to_vec()), vec![8 + 255 * 8]));
        assert_eq!(said(0, &[]).0, Luns::All(vec![]));
        assert_eq!(said(2, &luns).0, Luns::All(luns[..2].to_vec()), "no more than it counts");
        assert_eq!(said(4, &luns).0, Luns::Nothing("it said 3 of 4 units".into()));
        assert_eq!(said(u32::MAX / 8, &luns).0, Luns::Nothing("it said 3 of 536870911 units".into()));
        let many: Vec<[u8; 8]> = (0..300_u64).map(|lun| (lun << 48).to_be_bytes()).collect();
        assert_eq!(said(300, &many), (Luns::All(many), vec![8 + 255 * 8, 8 + 300 * 8]));
        let short = Says(vec![0; 7], Mutex::default());
        assert_eq!(ask(&short), Luns::Nothing("it said nothing".into()));
    }

    #[test]
    fn other_answers_say_nothing_of_units() {
        struct Fails(io::Result<Answer>);
        impl Host for Fails {
            fn execute(&self, _: &Command) -> io::Result<Answer> {
                match &self.0 {
                    Ok(answer) => Ok(*answer),
                    Err(error) => Err(io::Error::from_raw_os_error(error.raw_os_error().unwrap())),
                }
            }
            fn reset(&self) -> io::Result<()> {
                Ok(())
            }
        }
        let check = |key, asc, ascq| {
            let mut sense = [0; MAX_SENSE];
            sense[..14].copy_from_slice(&[0x70, 0, key, 0, 0, 0, 0, 10, 0, 0, 0, 0, asc, ascq]);
            ask(&Fails(Ok(Answer { status: 2, sense, sense_len: 14, residual: 2048, ..Answer::good() })))
        };
        assert_eq!(check(5, 0x25, 0), Luns::NoUnit);
        assert_eq!(check(6, 0x3f, 0x0e), Luns::Nothing("status 02h, adapter 00h".into()));
        let lost = Fails(Ok(Answer { host: 1, ..Answer::good() }));
        assert_eq!(ask(&lost), Luns::Nothing("status 00h, adapter 01h".into()));
        assert!(matches!(ask(&Fails(Err(io::Error::from_raw_os_error(libc::ENODEV)))), Luns::Nothing(_)));
    }
}
