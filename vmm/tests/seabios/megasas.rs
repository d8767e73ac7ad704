//! SeaBIOS starts from a volume of a MegaRAID SAS board: no INIT, no interrupts, frames polled in READY.

use super::machine::{Plan, image, images};
use super::sector::Sector;

const GEN2: &str = "type = \"megasas\"";
const SAS1078: &str = "type = \"megasas\"\nmodel = \"1078\"";

/// INT 13h (`ah` 02h reads, 03h writes) of one sector, numbered from 1, at 8000h: xor ax, ax; mov es, ax; mov ax, ..01h;
/// mov cx, sector; mov dx, 80h; mov bx, 8000h; int 13h
pub(crate) fn int13(sector: Sector, ah: u8, number: u8) -> Sector {
    sector.code(&[
        0x31, 0xc0, 0x8e, 0xc0, 0xb8, 1, ah, 0xb9, number, 0, 0xba, 0x80, 0, 0xbb, 0, 0x80, 0xcd, 0x13,
    ])
}

/// With RAM above 4 GiB SeaBIOS 1.16.3 moves 64-bit BARs there. Its driver takes what is in BAR 2 of gen2 for the
/// address of the ports, unless it is zero.
#[test]
fn a_boot_sector_runs_from_a_volume_of_each_board() {
    for image in images() {
        for (hba, product, memory) in
            [(GEN2, "MR9260-8i", "64MiB"), (GEN2, "MR9260-8i", "6GiB"), (SAS1078, "MegaRAID 8708EM2", "6GiB")]
        {
            let disks = vec![Sector::new().print("hello from the volume").finish()];
            let mut machine = Plan { cpus: 2, memory, disks, hba, ..Plan::new(&image) }.start();
            machine.expect("serial", "hello from the volume");
            let log = machine.text("debug");
            for line in [
                "found MegaRAID SAS at 00:01.0, io @ c000",
                &format!("LD 0:0 vendor='LSI' product='{product}'"),
                "LD 0:0 blksize=512 sectors=2048",
                "Booting from 0000:7c00",
            ] {
                assert!(log.contains(line), "no {line}:\n{log}");
            }
            assert_eq!(machine.text("log"), "");
        }
    }
}

#[test]
fn the_bios_reads_and_writes_a_volume() {
    let Some(image) = image() else { return };
    for hba in [GEN2, SAS1078] {
        let code = int13(int13(Sector::new(), 0x02, 2), 0x03, 3).print("written");
        let mut disk = code.finish();
        let text: Vec<u8> = (0..512_u32).map(|at| (at * 7 + 3) as u8).collect();
        disk.extend(&text);
        let mut machine = Plan { disks: vec![disk], hba, ..Plan::new(&image) }.start();
        machine.expect("serial", "written");
        assert_eq!(machine.bytes("disk0").get(1024..1536), Some(&text[..]));
        assert_eq!(machine.text("log"), "");
    }
}

/// What cannot be read is not run: the BIOS says so with carry.
#[test]
fn the_bios_hears_of_an_error_of_the_host() {
    let Some(image) = image() else { return };
    for hba in [GEN2, SAS1078] {
        // jnc to the read
        let code = int13(Sector::new().print("reads"), 0x02, 2).code(&[0x73, 0xec]).print("hears");
        let mut machine = Plan { disks: vec![code.finish()], hba, ..Plan::new(&image) }.start();
        machine.expect("serial", "reads");
        // The host's file loses its end.
        machine.file("disk0").set_len(512).unwrap();
        machine.expect("serial", "hears");
    }
}

#[test]
fn volumes_boot_in_the_order_of_the_configuration() {
    let Some(image) = image() else { return };
    let disks = vec![
        Sector::new().print("this is volume zero").finish(),
        Sector::new().print("this is volume one").finish(),
    ];
    let mut machine =
        Plan { disks, hba: GEN2, boot: "order = [\"hba0:1\", \"hba0:0\"]", ..Plan::new(&image) }.start();
    machine.expect("serial", "this is volume");
    machine.expect("serial", "this is volume one");
    assert!(!machine.text("serial").contains("volume zero"));
}

#[test]
fn disks_that_are_no_volumes_are_not_for_the_bios() {
    let Some(image) = image() else { return };
    let disks = vec![Sector::new().print("unreachable").finish()];
    let hba = "type = \"megasas\"\nmode = \"jbod\"";
    let mut machine = Plan { disks, hba, ..Plan::new(&image) }.start();
    machine.expect("serial", "No bootable device.");
    assert!(machine.text("debug").contains("found MegaRAID SAS at 00:01.0"));
}

/// The driver finds the board in READY after each kind of reset, whatever it did before.
#[test]
fn a_volume_boots_again_after_each_kind_of_reset() {
    let Some(image) = image() else { return };
    for (hba, resets) in [(GEN2, 4), (SAS1078, 1)] {
        let kinds = |sector: Sector, kind| match kind {
            0 => sector.out(0xcf9, 0x06),
            1 => sector.out(0x92, 0x01),
            2 => sector.out(0x64, 0xfe),
            _ => sector.triple_fault(),
        };
        let sector = Sector::new().count(0x40, kinds, resets).print("booted again");
        let mut machine =
            Plan { disks: vec![sector.finish()], hba, log: "info", ..Plan::new(&image) }.start();
        machine.expect("serial", "booted again");
        assert_eq!(machine.text("debug").matches("Booting from 0000:7c00").count(), usize::from(resets) + 1);
    }
}
