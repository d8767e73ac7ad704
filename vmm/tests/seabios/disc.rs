//! El Torito discs: SeaBIOS starts from a CD drive behind either kind of adapter.

use super::machine::{Plan, image, images};
use super::sector::Sector;

/// Bytes of a sector of a CD.
const SECTOR: usize = 2048;
/// Where the text is that the boot image reads by itself.
const TEXT_LBA: u8 = 20;

/// A disc that boots `code` without emulation (El Torito 1.0; ISO 9660 as far as the BIOS looks): volume descriptors from sector
/// 16 on, a boot catalog in sector 18, the boot image in 19, and a text in 20.
fn disc(code: Sector, text: &str) -> Vec<u8> {
    let mut disc = vec![0; 300 * SECTOR];
    let mut put = |sector: usize, at: usize, bytes: &[u8]| {
        let at = sector * SECTOR + at;
        disc[at..at + bytes.len()].copy_from_slice(bytes);
    };
    put(16, 0, b"\x01CD001\x01");
    put(17, 0, b"\x00CD001\x01EL TORITO SPECIFICATION");
    put(17, 0x47, &18_u32.to_le_bytes());
    // Validation entry: header, x86, and below a checksum that has all its words add up to zero.
    put(18, 0, &[1, 0]);
    put(18, 0x1e, &[0x55, 0xaa]);
    // Default entry: bootable, no emulation, the usual segment; four sectors of 512 bytes from sector 19 on.
    put(18, 0x20, &[0x88, 0, 0, 0, 0, 0, 4, 0, 19, 0, 0, 0]);
    put(19, 0, &code.finish());
    put(usize::from(TEXT_LBA), 0, text.as_bytes());
    let sum = disc[18 * SECTOR..18 * SECTOR + 32]
        .chunks(2)
        .fold(0_u16, |sum, word| sum.wrapping_add(u16::from_le_bytes([word[0], word[1]])));
    disc[18 * SECTOR + 0x1c..][..2].copy_from_slice(&sum.wrapping_neg().to_le_bytes());
    disc
}

/// Reads the text's sector from the drive that it was booted from, by INT 13h function 42h, and prints it.
fn reader() -> Sector {
    let sector = Sector::new();
    // jmp over the disk address packet: one sector to 0:8000h.
    let packet = [16, 0, 1, 0, 0, 0x80, 0, 0, TEXT_LBA, 0, 0, 0, 0, 0, 0, 0];
    let at = (0x7c00 + 6 + 2_u16).to_le_bytes();
    // mov si, packet; mov ah, 42h; int 13h; mov si, 8000h
    let sector = sector.code(&[0xeb, 16]).code(&packet).code(&[0xbe, at[0], at[1], 0xb4, 0x42, 0xcd, 0x13]);
    // lodsb; test al, al; jz end; mov dx, 3f8h; out dx, al; jmp lodsb
    sector.code(&[0xbe, 0, 0x80, 0xac, 0x84, 0xc0, 0x74, 0x06, 0xba, 0xf8, 0x03, 0xee, 0xeb, 0xf5])
}

const DRIVE: &str = "\n[[hba.lun]]\ntype = \"cd\"\nimage = \"disc\"\n";

#[test]
fn a_disc_boots_from_a_drive_of_each_adapter() {
    for image in images() {
        for (hba, found) in [
            ("type = \"virtio-scsi\"", "virtio-scsi"),
            ("type = \"megasas\"\nmode = \"jbod\"", "LD 0:0"),
            ("type = \"megasas\"\nmode = \"jbod\"\nmodel = \"1078\"", "LD 0:0"),
        ] {
            let files = vec![("disc", disc(reader(), "hello from the disc"))];
            let hba = &format!("{hba}{DRIVE}");
            let mut machine = Plan { files, hba, ..Plan::new(&image) }.start();
            machine.expect("serial", "hello from the disc");
            let log = machine.text("debug");
            for line in [found, "product='VIRTUAL DVD-ROM'", "type=5 removable=1", "Booting from 0000:7c00"] {
                assert!(log.contains(line), "no {line}:\n{log}");
            }
            assert_eq!(machine.text("log"), "");
        }
    }
}

/// Which is first says the configuration; a drive without a disc, or with one that boots nothing, is passed by.
#[test]
fn a_drive_has_its_place_in_the_order() {
    let Some(image) = image() else { return };
    let boots = || disc(Sector::new().print("this is the disc"), "");
    let empty = "[[hba.lun]]\ntype = \"cd\"\n";
    for (hba, file, boot, first) in [
        (DRIVE, boots(), "order = [\"hba0:0\", \"hba0:1\"]", "this is the disc"),
        (DRIVE, boots(), "order = [\"hba0:1\", \"hba0:0\"]", "this is the disk"),
        (DRIVE, vec![0; 64 * SECTOR], "order = [\"hba0:0\", \"hba0:1\"]", "this is the disk"),
        (empty, Vec::new(), "order = [\"hba0:0\", \"hba0:1\"]", "this is the disk"),
    ] {
        let disks = vec![Sector::new().print("this is the disk").finish()];
        let files = vec![("disc", file)];
        let mut machine = Plan { disks, files, hba, boot, ..Plan::new(&image) }.start();
        machine.wait("a boot sector", |machine| {
            let text = machine.text("serial");
            let at = text.find("this is the dis")?;
            text.get(at..at + first.len()).map(|found| assert_eq!(found, first))
        });
    }
}
