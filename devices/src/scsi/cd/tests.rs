//! A drive as an initiator sees it. Expected bytes are written from MMC-6 and SPC-5.

use std::sync::Arc;

use super::{Cd, CdConfig, CdError, Tray};
use crate::iothread::Io;
use crate::mem::{SgList, ToGuest};
use crate::scsi::suite::block_on;
use crate::scsi::suite::{Request, check_reply};
use crate::scsi::{
    Cdb, DataBuffers, Image, LogicalUnit, Lun, Nexus, ScsiReply, ScsiRequest, Status, Tag, Target,
    TaskAttribute,
};
use crate::testing::RamDisk;

const SECTORS: usize = 300;

/// A disc whose sectors begin with their number.
fn disc(sectors: usize) -> Arc<Image> {
    let mut bytes = vec![0; sectors * 2048];
    for (number, sector) in bytes.chunks_mut(2048).enumerate() {
        sector[..4].copy_from_slice(&(number as u32).to_be_bytes());
        sector[2047] = 0xaa;
    }
    Arc::new(Image::Ram(RamDisk::with_bytes(&bytes)))
}

struct Host {
    target: Arc<Target>,
    nexus: Arc<Nexus>,
    io: Io,
}

impl Host {
    /// After the attention that it was switched on.
    fn of(image: Option<Arc<Image>>) -> Self {
        let target = Target::new();
        let config = CdConfig { serial: "1234".into(), ..CdConfig::default() };
        target.attach(Lun::default(), LogicalUnit::Cd(Cd::new(image, config).unwrap())).unwrap();
        let host = Self { nexus: Nexus::new(target.clone(), None), target, io: Io::for_test() };
        assert_eq!(host.sense(&[0; 6]), (0x6, 0x29, 0x00));
        host
    }

    fn send(&self, cdb: &[u8], out: &[u8], room: usize) -> (ScsiReply, Vec<u8>) {
        let (reply, data) = block_on(Request::new(cdb, out, room).send(&self.nexus, &self.io));
        let reply = reply.unwrap();
        check_reply(cdb, out.len(), &data, &reply);
        (reply, data)
    }

    /// The data of a command that succeeds, as much as it says there is.
    fn data(&self, cdb: &[u8], room: usize) -> Vec<u8> {
        let (reply, mut data) = self.send(cdb, &[], room);
        assert_eq!(reply.status, Status::Good, "{cdb:02x?}: {reply:?}");
        if let crate::scsi::Residual::Under(rest) = reply.residual_in {
            data.truncate(room - rest as usize);
        }
        data
    }

    /// Sense key, ASC and ASCQ of a command; zeros for GOOD.
    fn sense(&self, cdb: &[u8]) -> (u8, u8, u8) {
        let (reply, _) = self.send(cdb, &[], 4096);
        reply.sense.map_or((0, 0, 0), |sense| {
            let sense = sense.as_bytes();
            (sense[2] & 0x0f, sense[12], sense[13])
        })
    }

    fn event(&self) -> [u8; 2] {
        let data = self.data(&[0x4a, 1, 0, 0, 0x10, 0, 0, 0, 8, 0], 8);
        assert_eq!(data[..4], [0, 6, 4, 0x14]);
        [data[4], data[5]]
    }
}

const READY: [u8; 6] = [0; 6];
const EJECT: [u8; 6] = [0x1b, 0, 0, 0, 2, 0];
const LOAD: [u8; 6] = [0x1b, 0, 0, 0, 3, 0];
const LOCK: [u8; 6] = [0x1e, 0, 0, 0, 1, 0];
const UNLOCK: [u8; 6] = [0x1e, 0, 0, 0, 0, 0];

#[test]
fn a_drive_says_what_it_is() {
    let host = Host::of(Some(disc(SECTORS)));
    let data = host.data(&[0x12, 0, 0, 0, 96, 0], 96);
    assert_eq!(data[..8], [0x05, 0x80, 0x06, 0x12, 91, 0, 0, 2]);
    assert_eq!(&data[8..36], b"VMM     VIRTUAL DVD-ROM 1.0 ");
    assert_eq!(host.data(&[0x12, 1, 0x80, 0, 64, 0], 64), [5, 0x80, 0, 4, b'1', b'2', b'3', b'4']);
    assert_eq!(host.data(&[0x12, 1, 0, 0, 64, 0], 64), [5, 0, 0, 3, 0, 0x80, 0x83]);
    assert_eq!(host.sense(&[0x12, 1, 0xb0, 0, 64, 0]), (5, 0x24, 0));
    let page = host.data(&[0x5a, 8, 0x2a, 0, 0, 0, 0, 0, 64, 0], 64);
    assert_eq!(page[..16], [0, 32, 0, 0, 0, 0, 0, 0, 0x2a, 0x18, 0x3b, 0, 0, 0, 0x29, 0]);
    assert_eq!(host.sense(&LOCK), (0, 0, 0));
    assert_eq!(host.data(&[0x1a, 8, 0x2a, 0, 64, 0], 64)[4 + 6], 0x2b, "locked");
    // All pages, in order; what can be changed: nothing.
    let all = host.data(&[0x5a, 8, 0x3f, 0, 0, 0, 0, 1, 0, 0], 256);
    let mut codes = vec![];
    let mut at = 8;
    while at < all.len() {
        codes.push(all[at]);
        at += 2 + usize::from(all[at + 1]);
    }
    assert_eq!((codes, at), (vec![0x01, 0x0d, 0x0e, 0x1a, 0x1d, 0x2a], usize::from(all[1]) + 2));
    assert_eq!(host.data(&[0x5a, 8, 0x4d, 0, 0, 0, 0, 0, 64, 0], 64)[8..], [0x0d, 6, 0, 0, 0, 0, 0, 0]);
    assert_eq!(host.sense(&[0x5a, 8, 0x08, 0, 0, 0, 0, 0, 64, 0]), (5, 0x24, 0));
}

#[test]
fn sectors_are_read() {
    let host = Host::of(Some(disc(SECTORS)));
    assert_eq!(host.data(&[0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0], 8), [0, 0, 1, 43, 0, 0, 8, 0]);
    let data = host.data(&[0x28, 0, 0, 0, 1, 42, 0, 0, 2, 0], 4096);
    assert_eq!((&data[..4], data[2047], &data[2048..2052]), (&[0, 0, 1, 42][..], 0xaa, &[0, 0, 1, 43][..]));
    assert_eq!(host.data(&[0xa8, 0, 0, 0, 0, 7, 0, 0, 0, 1, 0, 0], 2048)[..4], [0, 0, 0, 7]);
    // READ (6): 21 bits of an address, and a count of zero, which is 256.
    assert_eq!(host.data(&[0x08, 0, 1, 42, 1, 0], 4096)[..4], [0, 0, 1, 42]);
    let data = host.data(&[0x08, 0, 0, 44, 0, 0], 300 * 2048);
    assert_eq!((data.len(), &data[255 * 2048..][..4]), (256 * 2048, &[0, 0, 1, 43][..]));
    assert_eq!(host.sense(&[0x08, 0, 0, 45, 0, 0]), (5, 0x21, 0));
    assert_eq!(host.sense(&[0x08, 0x01, 0, 0, 1, 0]), (5, 0x21, 0), "sector 65536");
    assert_eq!(host.sense(&[0x08, 0x20, 0, 0, 1, 0]), (5, 0x24, 0), "reserved");
    assert_eq!(host.sense(&[0x28, 0, 0, 0, 1, 43, 0, 0, 2, 0]), (5, 0x21, 0));
    assert_eq!(host.sense(&[0x28, 0, 0, 0, 1, 44, 0, 0, 0, 0]), (5, 0x21, 0));
    assert_eq!(host.sense(&[0x2b, 0, 0, 0, 1, 43, 0, 0, 0, 0]), (0, 0, 0));
    assert_eq!(host.sense(&[0x2b, 0, 0, 0, 1, 44, 0, 0, 0, 0]), (5, 0x21, 0));
    // INFORMATION is the first of the command: nothing of it has come.
    let (reply, _) = host.send(&[0x28, 0, 0, 0, 1, 40, 0, 0, 9, 0], &[], 9 * 2048);
    assert_eq!(reply.sense.unwrap().as_bytes()[..7], [0xf0, 0, 5, 0, 0, 1, 40]);
    // Nothing writes.
    assert_eq!(host.sense(&[0x2a, 0, 0, 0, 0, 0, 0, 0, 1, 0]), (5, 0x20, 0));
}

#[test]
fn whole_sectors_of_a_cd_are_read() {
    let host = Host::of(Some(disc(SECTORS)));
    // Data only, by LBA and by time.
    assert_eq!(host.data(&[0xbe, 0, 0, 0, 0, 9, 0, 0, 1, 0x10, 0, 0], 2048)[..4], [0, 0, 0, 9]);
    assert_eq!(host.data(&[0xb9, 0, 0, 0, 2, 9, 0, 2, 10, 0x10, 0, 0], 2048)[..4], [0, 0, 0, 9]);
    // All of it, more than is completed at a time.
    let data = host.data(&[0xbe, 8, 0, 0, 0, 10, 0, 0, 70, 0xf8, 0, 0], 70 * 2352);
    assert_eq!(data.len(), 70 * 2352);
    for (number, sector) in data.chunks(2352).enumerate() {
        let frame = 10 + number as u8;
        let decimal = |value: u8| value / 10 * 16 + value % 10;
        assert_eq!(sector[..12], [0, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 0]);
        assert_eq!(sector[12..16], [0, decimal(2 + frame / 75), decimal(frame % 75), 1]);
        assert_eq!(sector[16..20], [0, 0, 0, frame]);
    }
    // Header only; nothing; what a disc of data has not.
    assert_eq!(host.data(&[0xbe, 0, 0, 0, 0, 0, 0, 0, 2, 0x20, 0, 0], 64), [0, 2, 0, 1, 0, 2, 1, 1]);
    assert_eq!(host.data(&[0xbe, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0], 64), []);
    assert_eq!(host.sense(&[0xbe, 4, 0, 0, 0, 0, 0, 0, 1, 0x10, 0, 0]), (5, 0x64, 0), "CD-DA");
    assert_eq!(host.sense(&[0xbe, 0, 0, 0, 0, 0, 0, 0, 1, 0x90, 0, 0]), (5, 0x24, 0));
    assert_eq!(host.sense(&[0xbe, 0, 0, 0, 0, 0, 0, 0, 1, 0xfa, 0, 0]), (5, 0x24, 0), "C2");
    assert_eq!(host.sense(&[0xbe, 0, 0, 0, 0, 0, 0, 0, 1, 0x10, 1, 0]), (5, 0x24, 0), "subchannel");
    assert_eq!(host.sense(&[0xb9, 0, 0, 0, 2, 9, 0, 2, 8, 0x10, 0, 0]), (5, 0x24, 0), "backwards");
}

#[test]
fn the_table_of_contents_has_one_track() {
    let host = Host::of(Some(disc(SECTORS)));
    let toc =
        |time, format, track, control| host.data(&[0x43, time, format, 0, 0, 0, track, 0, 64, control], 64);
    let lba = [0, 18, 1, 1, 0, 0x14, 1, 0, 0, 0, 0, 0, 0, 0x14, 0xaa, 0, 0, 0, 1, 44];
    assert_eq!(toc(0, 0, 0, 0), lba);
    assert_eq!(toc(0, 0, 1, 0), lba);
    // 300 sectors after two seconds are six.
    assert_eq!(toc(2, 0, 0xaa, 0), [0, 10, 1, 1, 0, 0x14, 0xaa, 0, 0, 0, 6, 0]);
    let session = [0, 10, 1, 1, 0, 0x14, 1, 0, 0, 0, 0, 0];
    assert_eq!(toc(0, 1, 0, 0), session);
    assert_eq!(toc(0, 0, 0, 0x40), session, "as ATAPI had it");
    let full = toc(0, 2, 1, 0);
    assert_eq!(full[..4], [0, 46, 1, 1]);
    assert_eq!(full[4..15], [1, 0x14, 0, 0xa0, 0, 0, 0, 0, 1, 0, 0]);
    assert_eq!(full[26..37], [1, 0x14, 0, 0xa2, 0, 0, 0, 0, 0, 6, 0]);
    assert_eq!(full[37..], [1, 0x14, 0, 1, 0, 0, 0, 0, 0, 2, 0]);
    assert_eq!(host.sense(&[0x43, 0, 0, 0, 0, 0, 2, 0, 64, 0]), (5, 0x24, 0));
    assert_eq!(host.sense(&[0x43, 0, 5, 0, 0, 0, 0, 0, 64, 0]), (5, 0x24, 0), "CD-TEXT");
}

#[test]
fn features_follow_the_disc() {
    let host = Host::of(Some(disc(SECTORS)));
    let features = |host: &Host, kind| {
        let data = host.data(&[0x46, kind, 0, 0, 0, 0, 0, 1, 0, 0], 256);
        assert_eq!(u32::from_be_bytes(data[..4].try_into().unwrap()) as usize, data.len() - 4);
        let mut found = vec![];
        let mut at = 8;
        while at < data.len() {
            found.push((u16::from_be_bytes([data[at], data[at + 1]]), data[at + 2] & 1));
            at += 4 + usize::from(data[at + 3]);
        }
        (u16::from_be_bytes([data[6], data[7]]), found)
    };
    let all = |cd, dvd, any| {
        vec![
            (0x0000, 1),
            (0x0001, 1),
            (0x0002, 1),
            (0x0003, 1),
            (0x0010, any),
            (0x001d, cd),
            (0x001e, cd),
            (0x001f, dvd),
            (0x0100, 1),
            (0x0105, 1),
            (0x0108, 1),
        ]
    };
    assert_eq!(features(&host, 0), (0x0008, all(1, 0, 1)));
    let current: Vec<_> = all(1, 0, 1).into_iter().filter(|(_, current)| *current == 1).collect();
    assert_eq!(features(&host, 1), (0x0008, current));
    let one = host.data(&[0x46, 2, 0, 0x10, 0, 0, 0, 1, 0, 0], 256);
    assert_eq!(one, [0, 0, 0, 16, 0, 0, 0, 8, 0, 0x10, 1, 8, 0, 0, 8, 0, 0, 1, 1, 0]);
    // Nothing keeps anybody from asking: an attention stays for who is to hear it.
    host.target.eject(Lun::default(), false).unwrap();
    assert_eq!(features(&host, 0), (0, all(0, 0, 0)));
    host.target.insert(Lun::default(), disc(360_001)).unwrap();
    assert_eq!(features(&host, 0), (0x0010, all(0, 1, 1)));
    assert_eq!(host.sense(&READY), (6, 0x28, 0));
    assert_eq!(host.sense(&[0xbe, 0, 0, 0, 0, 0, 0, 0, 1, 0x10, 0, 0]), (5, 0x30, 2), "no CD");
    let structure = host.data(&[0xad, 0, 0, 0, 0, 0, 0, 0, 0, 24, 0, 0], 24);
    // 30000h and 57E40h sectors of the one layer.
    assert_eq!(structure[..16], [8, 2, 0, 0, 1, 0x0f, 1, 0, 0, 3, 0, 0, 0, 0x08, 0x7e, 0x40]);
    // A table of contents as far as a disc that is no CD has one.
    let toc = host.data(&[0x43, 2, 0, 0, 0, 0, 0, 0, 64, 0], 64);
    assert_eq!(toc[..8], [0, 18, 1, 1, 0, 0x14, 1, 0]);
    assert_eq!(toc[12..], [0, 0x14, 0xaa, 0, 0, 80, 2, 1]);
    assert_eq!(host.sense(&[0x43, 2, 2, 0, 0, 0, 0, 0, 64, 0]), (5, 0x24, 0));
    let serial = host.data(&[0x46, 2, 1, 8, 0, 0, 0, 1, 0, 0], 256);
    assert_eq!(&serial[8..], [1, 8, 3, 4, b'1', b'2', b'3', b'4']);
}

#[test]
fn information_on_disc_track_and_drive() {
    let host = Host::of(Some(disc(SECTORS)));
    let data = host.data(&[0x51, 0, 0, 0, 0, 0, 0, 0, 64, 0], 64);
    assert_eq!((&data[..9], data.len()), (&[0, 32, 0x0e, 1, 1, 1, 1, 0x20, 0][..], 34));
    let data = host.data(&[0x52, 1, 0, 0, 0, 1, 0, 0, 64, 0], 64);
    assert_eq!((&data[..8], &data[24..28]), (&[0, 34, 1, 1, 0, 4, 1, 0][..], &[0, 0, 1, 44][..]));
    assert_eq!(host.sense(&[0x52, 1, 0, 0, 0, 2, 0, 0, 64, 0]), (5, 0x24, 0));
    assert_eq!(host.data(&[0x52, 0, 0, 0, 1, 43, 0, 0, 64, 0], 64)[..2], [0, 34]);
    assert_eq!(host.sense(&[0x52, 0, 0, 0, 1, 44, 0, 0, 64, 0]), (5, 0x21, 0));
    assert_eq!(host.sense(&[0xad, 0, 0, 0, 0, 0, 0, 0, 0, 24, 0, 0]), (5, 0x30, 2), "a CD has none");
    assert_eq!(
        host.data(&[0xad, 0, 0, 0, 0, 0, 0, 0xff, 0, 64, 0, 0], 64)[..8],
        [0, 18, 0, 0, 0, 0x40, 8, 4]
    );
    assert_eq!(host.data(&[0xbd, 0, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0], 8), [0; 8]);
    host.sense(&EJECT);
    assert_eq!(host.data(&[0xbd, 0, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0], 8)[1], 0x10);
}

#[test]
fn the_guest_ejects_and_loads() {
    let host = Host::of(Some(disc(SECTORS)));
    assert_eq!(host.event(), [0, 2]);
    assert_eq!(host.sense(&LOCK), (0, 0, 0));
    assert_eq!(host.sense(&EJECT), (5, 0x53, 2));
    assert_eq!(host.sense(&UNLOCK), (0, 0, 0));
    assert_eq!(host.sense(&EJECT), (0, 0, 0));
    assert_eq!(host.sense(&READY), (2, 0x3a, 2));
    assert_eq!(host.sense(&[0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0]), (2, 0x3a, 2));
    // Whoever takes the header only has not heard of it; who has, has.
    assert_eq!(host.data(&[0x4a, 1, 0, 0, 0x10, 0, 0, 0, 4, 0], 4), [0, 6, 4, 0x14]);
    assert_eq!((host.event(), host.event()), ([3, 1], [0, 1]));
    assert_eq!(host.sense(&LOAD), (0, 0, 0));
    assert_eq!(host.event(), [2, 2]);
    assert_eq!(host.sense(&READY), (6, 0x28, 0));
    assert_eq!(host.sense(&READY), (0, 0, 0));
    // Power management comes first, unless there is news of the disc; other classes are not there.
    assert_eq!(host.data(&[0x4a, 1, 0, 0, 0x14, 0, 0, 0, 8, 0], 8), [0, 6, 2, 0x14, 0, 1, 0, 0]);
    assert_eq!(host.data(&[0x4a, 1, 0, 0, 0x40, 0, 0, 0, 8, 0], 8), [0, 2, 0x80, 0x14]);
    assert_eq!(host.sense(&[0x4a, 0, 0, 0, 0x10, 0, 0, 0, 8, 0]), (5, 0x24, 0));
}

#[test]
fn the_operator_changes_the_disc() {
    let host = Host::of(None);
    let lun = Lun::default();
    assert_eq!(host.event(), [0, 0]);
    assert_eq!(host.sense(&READY), (2, 0x3a, 1));
    host.target.insert(lun, disc(SECTORS)).unwrap();
    assert_eq!(host.event(), [2, 2]);
    assert_eq!(host.sense(&READY), (6, 0x28, 0));
    assert_eq!(host.target.insert(lun, disc(SECTORS)).unwrap_err(), CdError::Occupied);
    // A lock holds, and the guest is asked; force does not ask.
    assert_eq!(host.sense(&LOCK), (0, 0, 0));
    assert!(matches!(host.target.eject(lun, false), Err(CdError::Locked(_))));
    assert_eq!(host.event(), [1, 2]);
    assert_eq!(host.sense(&READY), (0, 0, 0));
    assert!(host.target.eject(lun, true).unwrap().is_some());
    assert_eq!(host.event(), [3, 1]);
    assert_eq!(host.sense(&READY), (2, 0x3a, 2));
    assert!(host.target.eject(lun, false).unwrap().is_none());
    host.target.insert(lun, disc(SECTORS + 1)).unwrap();
    assert_eq!((host.sense(&READY), host.sense(&READY)), ((6, 0x28, 0), (0, 0, 0)));
    assert_eq!(host.data(&[0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0], 8)[..4], [0, 0, 1, 44]);
    // Both at once: no command finds an empty drive, but that the old disc went is heard of first.
    assert_eq!(host.event(), [2, 2]);
    assert_eq!(host.sense(&LOCK), (0, 0, 0));
    assert!(matches!(host.target.change(lun, disc(7), false), Err(CdError::Locked(_))));
    assert_eq!(host.target.tray(lun), Some(Tray { open: false, locked: true }));
    assert!(host.target.change(lun, disc(8), true).unwrap().is_some());
    assert_eq!(host.target.tray(lun), Some(Tray { open: false, locked: false }));
    assert_eq!((host.event(), host.event()), ([3, 2], [2, 2]));
    assert_eq!(host.event(), [0, 2], "the wish is fulfilled");
    assert_eq!((host.sense(&READY), host.sense(&READY)), ((6, 0x28, 0), (0, 0, 0)));
    assert_eq!(host.data(&[0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0], 8)[..4], [0, 0, 0, 7]);
    // No disc and no drive.
    let nothing = Arc::new(Image::Ram(RamDisk::new(1024)));
    host.target.eject(lun, false).unwrap();
    assert_eq!(host.target.insert(lun, nothing).unwrap_err(), CdError::Empty);
    assert!(matches!(host.target.eject(Lun::from_number(1), false), Err(CdError::NoDrive)));
}

/// What was wanted of a disc is not wanted of the next, nor when nobody holds the tray any more; and a host whose nexus was lost
/// need not hear again what it has heard.
#[test]
fn wishes_end_with_what_they_were_for() {
    let host = Host::of(Some(disc(SECTORS)));
    let lun = Lun::default();
    host.target.eject(lun, false).unwrap();
    host.target.insert(lun, disc(SECTORS)).unwrap();
    assert_eq!((host.event(), host.event(), host.event()), ([3, 2], [2, 2], [0, 2]));
    assert_eq!((host.sense(&READY), host.sense(&LOCK)), ((6, 0x28, 0), (0, 0, 0)));
    assert!(host.target.eject(lun, false).is_err());
    assert_eq!(host.event(), [1, 2]);
    host.nexus.reset();
    assert_eq!(host.sense(&READY), (6, 0x29, 7));
    assert_eq!(host.event(), [0, 2]);
    // One that nobody has heard of ends with the lock.
    assert_eq!(host.sense(&LOCK), (0, 0, 0));
    assert!(host.target.eject(lun, false).is_err());
    assert_eq!(host.sense(&UNLOCK), (0, 0, 0));
    assert_eq!(host.event(), [0, 2]);
    // One for an empty drive is none for the disc that comes.
    let host = Host::of(None);
    assert_eq!(host.sense(&LOCK), (0, 0, 0));
    assert!(host.target.eject(lun, false).is_err());
    host.target.insert(lun, disc(SECTORS)).unwrap();
    assert_eq!((host.event(), host.event()), ([2, 2], [0, 2]));
}

/// A command that reads goes on with the disc that it began with.
#[test]
fn a_disc_that_is_read_is_not_gone() {
    let image = disc(SECTORS);
    let host = Host::of(Some(image.clone()));
    let reading = super::Cd::new(Some(image.clone()), CdConfig::default()).unwrap();
    let held = reading.drive.ready().unwrap_or_else(|_| panic!("no disc"));
    let removed = reading.remove(false).unwrap().unwrap();
    assert!(Arc::ptr_eq(&removed, held.image()) && reading.image().is_none());
    drop((host, reading, removed));
    assert_eq!((Arc::strong_count(&image), held.sectors()), (2, SECTORS as u32));
}

/// It looked for unit attentions before the disc came, and means the one before.
#[test]
fn a_read_that_began_before_a_change_is_none_of_the_new_disc() {
    let host = Host::of(Some(disc(SECTORS)));
    host.target.change(Lun::default(), disc(SECTORS), false).unwrap();
    for cdb in [&[0x28, 0, 0, 0, 0, 1, 0, 0, 1, 0][..], &[0xbe, 0, 0, 0, 0, 1, 0, 0, 1, 0x10, 0, 0]] {
        let memory = SgList::host(2048, 16).unwrap();
        let mut request = ScsiRequest {
            tag: Tag(0),
            lun: Lun::default(),
            cdb: Cdb::new(cdb),
            attribute: TaskAttribute::Simple,
            priority: 0,
            data: DataBuffers::to_initiator(ToGuest::new(memory)),
        };
        let reply = block_on(host.nexus.execute_for(&host.io, &mut request)).unwrap();
        assert_eq!(&reply.sense.unwrap().as_bytes()[12..14], [0x28, 0]);
        assert_eq!(host.sense(cdb), (0, 0, 0));
        host.target.change(Lun::default(), disc(SECTORS), false).unwrap();
    }
}

#[test]
fn a_host_that_has_the_button_opens_the_tray_itself() {
    let host = Host::of(Some(disc(SECTORS)));
    let other = Nexus::new(host.target.clone(), None);
    let send = |cdb: &[u8]| {
        let (reply, data) = block_on(Request::new(cdb, &[], 64).send(&other, &host.io));
        let sense = reply.unwrap().sense.map_or([0; 3], |sense| {
            let sense = sense.as_bytes();
            [sense[2] & 0x0f, sense[12], sense[13]]
        });
        (sense, data)
    };
    assert_eq!(send(&READY).0, [6, 0x29, 0]);
    // PREVENT ALLOW MEDIUM REMOVAL with PERSISTENT.
    assert_eq!(host.sense(&[0x1e, 0, 0, 0, 3, 0]), (0, 0, 0));
    assert!(matches!(host.target.eject(Lun::default(), false), Err(CdError::Locked(_))));
    assert_eq!((host.event(), host.event()), ([1, 2], [0, 2]));
    assert_eq!(send(&EJECT).0, [5, 0x53, 2], "of another host");
    assert_eq!(host.sense(&EJECT), (0, 0, 0));
    // Each host hears of what happened, also one that has never asked before, and of its wish nobody any more.
    let event = [0x4a, 1, 0, 0, 0x10, 0, 0, 0, 8, 0];
    assert_eq!(send(&event).1[..6], [0, 6, 4, 0x14, 3, 1]);
    assert_eq!(send(&event).1[..6], [0, 6, 4, 0x14, 0, 1]);
    assert_eq!(host.event(), [3, 1]);
    // A lock of one host is one for all, and ends with that host.
    assert_eq!(host.sense(&LOAD), (0, 0, 0));
    assert_eq!((send(&READY).0, host.sense(&READY)), ([6, 0x28, 0], (6, 0x28, 0)));
    assert_eq!(send(&LOCK).0, [0; 3]);
    assert_eq!(host.sense(&EJECT), (5, 0x53, 2));
    other.reset();
    assert_eq!(host.sense(&EJECT), (0, 0, 0));
}

#[test]
fn power_on_closes_the_tray_and_a_reset_unlocks_it() {
    let host = Host::of(Some(disc(SECTORS)));
    assert_eq!(host.sense(&LOCK), (0, 0, 0));
    block_on(host.nexus.manage(&host.io, crate::scsi::TaskManagement::LogicalUnitReset(Lun::default())));
    assert_eq!(host.sense(&READY), (6, 0x29, 3));
    assert_eq!(host.sense(&EJECT), (0, 0, 0));
    block_on(host.target.power_on());
    assert_eq!(host.target.tray(Lun::default()), Some(Tray { open: false, locked: false }));
    assert_eq!((host.sense(&READY), host.sense(&READY)), ((6, 0x29, 0), (0, 0, 0)));
    assert_eq!(host.event(), [0, 2]);
}

/// Without a disc what needs none is answered, and what needs one is not.
#[test]
fn an_empty_drive_answers() {
    let host = Host::of(None);
    assert_eq!(
        host.data(&[0x03, 0, 0, 0, 18, 0], 18)[..14],
        [0x70, 0, 2, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x3a, 1]
    );
    for cdb in [
        &[0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0][..],
        &[0x43, 0, 0, 0, 0, 0, 0, 0, 64, 0],
        &[0x51, 0, 0, 0, 0, 0, 0, 0, 64, 0],
        &[0x52, 1, 0, 0, 0, 1, 0, 0, 64, 0],
        &[0xad, 0, 0, 0, 0, 0, 0, 0, 0, 64, 0, 0],
        &[0xbe, 0, 0, 0, 0, 0, 0, 0, 1, 0x10, 0, 0],
        &[0x1b, 0, 0, 0, 1, 0],
    ] {
        assert_eq!(host.sense(cdb), (2, 0x3a, 1), "{cdb:02x?}");
    }
    // Nothing was ever written: SYNCHRONIZE CACHE (10) and (16).
    assert_eq!(host.sense(&[0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0]), (0, 0, 0));
    assert_eq!(host.sense(&[0x91, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]), (0, 0, 0));
    assert_eq!(host.sense(&LOCK), (0, 0, 0));
    assert_eq!(host.sense(&EJECT), (2, 0x53, 2));
}

/// Whatever the CDB and however little room: an answer that is one.
#[test]
fn any_cdb_gets_an_answer() {
    for host in [Host::of(Some(disc(SECTORS))), Host::of(Some(disc(360_001))), Host::of(None)] {
        for opcode in 0..=0xff {
            for fill in [0x00, 0x01, 0x10, 0x7f, 0xff] {
                for (at, set) in [(1, 0), (1, 1), (2, 0x3f), (9, 0xf8), (9, 0x10), (4, 2)] {
                    let mut cdb = [fill; 16];
                    cdb[0] = opcode;
                    cdb[at] = set;
                    for room in [0, 1, 7, 4096] {
                        // The bits that must be zero are, but for those of a whole CDB.
                        host.send(&cdb, &[fill; 24], room);
                        cdb[15] = 0;
                        cdb[11] = 0;
                    }
                }
            }
        }
    }
}

#[test]
fn a_list_of_mode_select_says_what_is_so() {
    let host = Host::of(Some(disc(SECTORS)));
    let page = host.data(&[0x5a, 8, 0x01, 0, 0, 0, 0, 0, 64, 0], 64);
    let select = [0x55, 0x10, 0, 0, 0, 0, 0, 0, 20, 0];
    // Nothing can be saved: byte 1, bit 0.
    let (reply, _) = host.send(&[0x55, 0x11, 0, 0, 0, 0, 0, 0, 20, 0], &page, 0);
    assert_eq!(reply.sense.unwrap().as_bytes()[12..14], [0x24, 0]);
    let (reply, _) = host.send(&select, &page, 0);
    assert_eq!(reply.status, Status::Good);
    // With a block descriptor: MODE SELECT (6), blocks of 2048 bytes, of none, of 512.
    for (block, right) in [(2048_u32, true), (0, true), (512, false)] {
        let [_, high, middle, low] = block.to_be_bytes();
        let list = [0, 0, 0, 8, 0, 0, 0, 0, 0, high, middle, low];
        let (reply, _) = host.send(&[0x15, 0x10, 0, 0, 12, 0], &list, 0);
        assert_eq!(reply.status == Status::Good, right, "{block}");
        let sense = reply.sense.map(|sense| sense.as_bytes()[12..18].to_vec());
        assert_eq!(sense, (!right).then(|| vec![0x26, 0, 0, 0x80, 0, 9]));
    }
    let mut other = page.clone();
    other[11] = 5;
    let (reply, _) = host.send(&select, &other, 0);
    let sense = reply.sense.unwrap();
    assert_eq!((sense.as_bytes()[2], &sense.as_bytes()[12..18]), (5, &[0x26, 0, 0, 0x80, 0, 11][..]));
}
