//! CD drives: what drivers, SeaBIOS and tools make of them.

use std::collections::BTreeMap;
use std::sync::Arc;

use devices::scsi::{Cd, CdConfig, Image, LogicalUnit, Lun, Nexus, Target};
use devices::testing::RamDisk;
use hba_megasas::{Drive, Model};

use crate::guest::{Guest, drive, image, le16, le32, le64, options};

/// A board with a volume at 2, a plain disk at 4, an empty CD drive at 7 and at 6 one with a disc of so many sectors.
fn board(model: Model, sectors: usize) -> Guest {
    let cd = |disc: Option<Arc<Image>>| {
        let target = Target::new();
        let config =
            CdConfig { serial: "CD1".into(), wwn: Some(0x5006_05b0_1234_5678), ..CdConfig::default() };
        target.attach(Lun::default(), LogicalUnit::Cd(Cd::new(disc, config).unwrap())).unwrap();
        Drive { logical: None, physical: Nexus::new(target, None) }
    };
    let disc = Arc::new(Image::Ram(RamDisk::with_bytes(&vec![0x5a; sectors * 2048])));
    let drives =
        [(2, drive(&image(), true)), (4, drive(&image(), false)), (6, cd(Some(disc))), (7, cd(None))];
    Guest::with(options(model), drives.into(), BTreeMap::new())
}

/// Targets and number of the list of volumes.
fn volumes(guest: &mut Guest) -> Vec<u8> {
    let (status, list) = guest.dcmd(0x0301_0000, &[], 1032);
    assert_eq!(status, 0);
    (0..le32(&list, 0) as usize).map(|number| list[8 + 16 * number]).collect()
}

/// SeaBIOS knows logical drives only, and takes each that is a CD drive for one.
#[test]
fn a_cd_drive_is_a_logical_one_until_a_driver_comes() {
    for model in [Model::Gen2, Model::Sas1078] {
        let mut guest = board(model, 300);
        assert_eq!(volumes(&mut guest), [2, 6, 7]);
        let inquiry = guest.scsi(3, 6, &[0x12, 0, 0, 0, 36, 0], &[], 36);
        assert_eq!((inquiry.status, &inquiry.data[..2]), (0, &[0x05, 0x80][..]));
        // POWER ON first, then sectors; the empty one has none.
        assert_eq!(guest.scsi(3, 6, &[0; 6], &[], 0).scsi_status, 2);
        assert_eq!(guest.scsi(3, 6, &[0; 6], &[], 0).status, 0);
        let read = guest.scsi(3, 6, &[0x28, 0, 0, 0, 0, 17, 0, 0, 1, 0], &[], 2048);
        assert_eq!((read.status, read.data), (0, vec![0x5a; 2048]));
        guest.scsi(3, 7, &[0; 6], &[], 0);
        assert_eq!(guest.scsi(3, 7, &[0; 6], &[], 0).sense[12..14], [0x3a, 0x01]);
        // No plain disk is one, and no blocks of 512 bytes are read from a disc.
        assert_eq!(guest.scsi(3, 4, &[0x12, 0, 0, 0, 36, 0], &[], 36).status, 0x0c);
        assert_eq!(guest.io(false, 6, 0, &[0; 512]).0, 0x0c);
        assert_eq!(guest.init(64), 0);
        assert_eq!(volumes(&mut guest), [2]);
        assert_eq!(guest.scsi(3, 6, &[0; 6], &[], 0).status, 0x0c);
        assert_eq!(guest.scsi(4, 6, &[0; 6], &[], 0).status, 0);
    }
}

#[test]
fn a_driver_finds_a_cd_drive_as_it_is() {
    let mut guest = board(Model::Gen2, 300);
    assert_eq!(guest.init(64), 0);
    // PD_LIST_QUERY of what is exposed to the host: plain disk and drives, with their types.
    let (status, list) = guest.dcmd(0x0201_0100, &[5], 8 + 64 * 24);
    let entry = |number: usize| (le16(&list, 8 + 24 * number), list[8 + 24 * number + 6]);
    assert_eq!((status, le32(&list, 4)), (0, 3));
    assert_eq!([entry(0), entry(1), entry(2)], [(4, 0), (6, 5), (7, 5)]);
    // PD_GET_INFO: type, state, size in units of 512 bytes.
    for (id, size, block) in [(6_u8, 1200, 2048), (7, 0, 0)] {
        let (status, info) = guest.dcmd(0x0202_0000, &[id, 0], 512);
        assert_eq!((status, info[0xa5], le16(&info, 0xb8), le64(&info, 0xf8)), (0, 5, 0x40, size));
        assert_eq!((le16(&info, 0x194), le64(&info, 0xc8)), (block, 0x5006_05b0_1234_5678));
    }
    // CACHE FLUSH of all drives, and the shutdown of the board: nothing keeps them.
    assert_eq!(guest.dcmd(0x0110_1000, &[3], 0).0, 0);
    assert_eq!(guest.dcmd(0x0105_0000, &[], 0).0, 0);
}
