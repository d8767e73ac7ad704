//! The conformance suite of the SCSI layer, through both kinds of SCSI frame.

use devices::scsi::suite::{self, Initiator, Outcome};
use hba_megasas::Model;

use crate::guest::{Guest, drive, image, options, suite_drive};

pub struct Through {
    pub guest: Guest,
    pub cmd: u8,
}

impl Initiator for Through {
    fn command(&mut self, cdb: &[u8], data_out: &[u8], data_in_len: usize) -> Outcome {
        let reply = self.guest.scsi(self.cmd, 7, cdb, data_out, data_in_len);
        if reply.status == 0x3c {
            // A write whose list is too short for it: frames have no residual to say so.
            assert!(!data_out.is_empty(), "CDB {cdb:02x?}");
            return Outcome { status: 0xff, sense: Vec::new(), data_in: Vec::new(), residual: None };
        }
        assert!(matches!(reply.status, 0 | 0x2d), "CDB {cdb:02x?}: status {:#04x}", reply.status);
        assert_eq!(reply.status == 0x2d, reply.scsi_status != 0, "CDB {cdb:02x?}");
        let data_in = if data_out.is_empty() { reply.data } else { Vec::new() };
        Outcome { status: reply.scsi_status, sense: reply.sense, data_in, residual: None }
    }

    fn longest_cdb(&self) -> usize {
        16
    }
}

fn run(cmd: u8) {
    for (name, test) in suite::tests() {
        println!("{name}");
        if cmd == 3 && matches!(name, "power on attention" | "request sense reports the attention as data") {
            // The firmware takes it: a volume has no power-on of its own.
            continue;
        }
        let image = image();
        let mut options = options(Model::Gen2);
        options.write_back = true;
        let drive = if cmd == 3 { suite_drive(&image) } else { drive(&image, false) };
        let guest = Guest::with(options, [(7, drive)].into(), [(7, image)].into());
        let mut through = Through { guest, cmd };
        test(&mut through);
    }
}

#[test]
fn through_ld_scsi() {
    run(3);
}

#[test]
fn through_pd_scsi() {
    run(4);
}

#[test]
fn disks_behind_a_volume_are_read_only_to_tools() {
    let mut guest = Guest::new(Model::Gen2, true, &[7]);
    let reply = guest.scsi(4, 7, &[0x12, 0, 0, 0, 96, 0], &[], 96);
    assert_eq!((reply.status, &reply.data[8..12]), (0, &b"ACME"[..]), "the disk, not the volume");
    assert_eq!(guest.scsi(4, 7, &[0x4d, 0, 0x40, 0, 0, 0, 0, 0, 64, 0], &[], 64).status, 0, "LOG SENSE");
    let writes: [&[u8]; 6] = [
        &[0x2a, 0, 0, 0, 0, 0, 0, 0, 1, 0],
        &[0x04, 0, 0, 0, 0, 0],
        &[0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0],
        &[0x48, 0x02, 0, 0, 0, 0, 0, 0, 0, 0],
        &[0x1b, 0, 0, 0, 0, 0],
        &[0x5f, 0, 0, 0, 0, 0, 0, 0, 24, 0],
    ];
    for cdb in writes {
        let reply = guest.scsi(4, 7, cdb, &[0; 512], 0);
        assert_eq!((reply.status, reply.scsi_status), (0x2d, 2), "{cdb:02x?}");
        assert_eq!((reply.sense[2], reply.sense[12], reply.sense[13]), (7, 0x27, 0), "{cdb:02x?}");
    }
}
