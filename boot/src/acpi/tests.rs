//! Table contents against the ACPI specification, and acceptance by the reference compiler.

use std::io::Write;
use std::path::Path;
use std::process::Command;

use super::*;
use devices::mem::GuestRam;
use vm_memory::{Bytes, GuestAddress};

const TOP: u64 = 64 << 20;

/// The ICH9 rule for slots 0-24: pins rotate over GSI 20 to 23.
fn gsi(slot: u8, pin: u8) -> u32 {
    20 + u32::from((slot + pin) & 3)
}

fn machine(cpus: u32) -> Machine {
    Machine::direct_boot(&RamLayout::new(TOP).unwrap(), 40, (0..cpus).collect(), gsi)
}

/// Tables installed in RAM, read back as an operating system does.
struct Installed {
    ram: GuestRam,
    placement: Placement,
}

impl Installed {
    fn new(machine: &Machine) -> Self {
        let ram = GuestRam::from_ranges(&[(GuestAddress(0), TOP as usize)]).unwrap();
        let set = machine.tables().unwrap();
        let placement = set.placement_below(TOP).unwrap();
        set.install(&ram, &placement).unwrap();
        Self { ram, placement }
    }

    fn read(&self, at: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.ram.read_slice(&mut bytes, GuestAddress(at)).unwrap();
        bytes
    }

    /// A table with its length from its header, checksum verified.
    fn table(&self, at: u64) -> Vec<u8> {
        assert!(self.placement.range.contains(at), "{at:#x}");
        let length = u32_at(&self.read(at, 8), 4) as usize;
        let table = self.read(at, length);
        assert_eq!(sum(&table), 0, "checksum of {}", String::from_utf8_lossy(&table[..4]));
        table
    }

    fn rsdp(&self) -> Vec<u8> {
        self.read(0xe_0000, 36)
    }

    /// Addresses of all tables named by the XSDT.
    fn xsdt(&self) -> Vec<u64> {
        let xsdt = self.table(u64_at(&self.rsdp(), 24));
        assert_eq!(&xsdt[..4], b"XSDT");
        xsdt[36..].chunks(8).map(|entry| u64_at(entry, 0)).collect()
    }

    fn find(&self, signature: &[u8; 4]) -> Option<Vec<u8>> {
        self.xsdt().into_iter().map(|at| self.table(at)).find(|table| table.starts_with(signature))
    }

    fn dsdt(&self) -> Vec<u8> {
        self.table(u64_at(&self.find(b"FACP").unwrap(), 140))
    }
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, &byte| sum.wrapping_add(byte))
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes[at..at + 2].try_into().unwrap())
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}

#[test]
fn root_pointer_and_both_root_tables_agree() {
    let installed = Installed::new(&machine(1));
    let rsdp = installed.rsdp();
    assert_eq!(&rsdp[..8], b"RSD PTR ");
    assert_eq!((sum(&rsdp[..20]), sum(&rsdp)), (0, 0));
    assert_eq!((rsdp[15], u32_at(&rsdp, 20)), (2, 36));
    let rsdt = installed.table(u64::from(u32_at(&rsdp, 16)));
    assert_eq!(&rsdt[..4], b"RSDT");
    let narrow: Vec<u64> = rsdt[36..].chunks(4).map(|entry| u64::from(u32_at(entry, 0))).collect();
    assert_eq!(narrow, installed.xsdt());
    let names: Vec<_> = installed.xsdt().iter().map(|&at| installed.read(at, 4)).collect();
    assert_eq!(names, [b"FACP", b"APIC", b"MCFG", b"WAET"]);
}

#[test]
fn fadt_fields() {
    let installed = Installed::new(&machine(1));
    let fadt = installed.find(b"FACP").unwrap();
    assert_eq!((fadt.len(), fadt[8], fadt[131]), (276, 6, 4));
    // The DSDT twice, at the same address; the FACS once, aligned to 64.
    assert_eq!(u64::from(u32_at(&fadt, 40)), u64_at(&fadt, 140));
    assert_eq!(u64_at(&fadt, 132), 0);
    let facs = installed.read(u64::from(u32_at(&fadt, 36)), 64);
    assert_eq!(u32_at(&fadt, 36) % 64, 0);
    assert_eq!((&facs[..4], u32_at(&facs, 4), facs[32]), (&b"FACS"[..], 64, 2));
    // SCI, no SMI.
    assert_eq!((u16_at(&fadt, 46), u32_at(&fadt, 48), fadt[52], fadt[53]), (9, 0, 0, 0));
    // Power management block: 32-bit addresses, lengths, and the same as generic addresses.
    assert_eq!([56, 64, 76, 80].map(|at| u32_at(&fadt, at)), [0x600, 0x604, 0x608, 0x620]);
    assert_eq!([60, 68, 72, 84].map(|at| u32_at(&fadt, at)), [0, 0, 0, 0]);
    assert_eq!(fadt[88..96], [4, 2, 0, 4, 16, 0, 0, 0]);
    for (at, address, bits, access) in
        [(148, 0x600, 32, 2), (172, 0x604, 16, 2), (208, 0x608, 32, 3), (220, 0x620, 128, 1)]
    {
        assert_eq!(fadt[at..at + 4], [1, bits, 0, access], "generic address at {at}");
        assert_eq!(u64_at(&fadt, at + 4), address);
    }
    assert_eq!(
        (u16_at(&fadt, 96), u16_at(&fadt, 98), fadt[108], u16_at(&fadt, 109)),
        (0xfff, 0xfff, 0x32, 2)
    );
    assert_eq!(u32_at(&fadt, 112), 0x8425);
    // Reset register: I/O port 0xcf9, one byte, value 0x0f.
    assert_eq!(fadt[116..120], [1, 8, 0, 1]);
    assert_eq!((u64_at(&fadt, 120), fadt[128]), (0xcf9, 0x0f));
}

#[test]
fn fadt_follows_the_machine() {
    let many = Machine { i8042: false, pm_base: 0x1000, sci: 10, ..machine(9) };
    let fadt = Installed::new(&many).find(b"FACP").unwrap();
    assert_eq!((u32_at(&fadt, 112), u16_at(&fadt, 109)), (0x48425, 0));
    assert_eq!((u32_at(&fadt, 76), u16_at(&fadt, 46)), (0x1008, 10));
}

/// MADT entries as (type, body).
fn madt_entries(madt: &[u8]) -> Vec<(u8, Vec<u8>)> {
    let mut rest = &madt[44..];
    let mut entries = Vec::new();
    while !rest.is_empty() {
        let (entry, tail) = rest.split_at(usize::from(rest[1]));
        entries.push((entry[0], entry[2..].to_vec()));
        rest = tail;
    }
    entries
}

#[test]
fn madt_of_two_cpus() {
    let madt = Installed::new(&Machine { irq0_to_gsi2: true, ..machine(2) }).find(b"APIC").unwrap();
    assert_eq!((madt[8], u32_at(&madt, 36), u32_at(&madt, 40)), (5, 0xfee0_0000, 1));
    assert_eq!(
        madt_entries(&madt),
        [
            (0, vec![0, 0, 1, 0, 0, 0]),
            (0, vec![1, 1, 1, 0, 0, 0]),
            (1, vec![0, 0, 0, 0, 0xc0, 0xfe, 0, 0, 0, 0]),
            (2, vec![0, 0, 2, 0, 0, 0, 0, 0]),
            (2, vec![0, 5, 5, 0, 0, 0, 0x0d, 0]),
            (2, vec![0, 9, 9, 0, 0, 0, 0x0d, 0]),
            (2, vec![0, 10, 10, 0, 0, 0, 0x0d, 0]),
            (2, vec![0, 11, 11, 0, 0, 0, 0x0d, 0]),
            (4, vec![0xff, 0, 0, 1]),
        ]
    );
}

#[test]
fn a_shared_sci_is_overridden_once() {
    let madt = Installed::new(&Machine { sci: 10, ..machine(1) }).find(b"APIC").unwrap();
    let sources: Vec<_> =
        madt_entries(&madt).into_iter().filter(|(kind, _)| *kind == 2).map(|(_, b)| b[1]).collect();
    assert_eq!(sources, [5, 10, 11]);
}

#[test]
fn large_apic_ids_use_x2apic_entries() {
    let apic_ids = vec![0, 2, 254, 255, 300];
    let madt = Installed::new(&Machine { apic_ids, ..machine(1) }).find(b"APIC").unwrap();
    let entries = madt_entries(&madt);
    assert_eq!(entries[2], (0, vec![2, 254, 1, 0, 0, 0]));
    assert_eq!(entries[3], (9, vec![0, 0, 255, 0, 0, 0, 1, 0, 0, 0, 3, 0, 0, 0]));
    assert_eq!(entries[4], (9, vec![0, 0, 0x2c, 1, 0, 0, 1, 0, 0, 0, 4, 0, 0, 0]));
    assert_eq!(entries.last().unwrap(), &(10, vec![0, 0, 0xff, 0xff, 0xff, 0xff, 1, 0, 0, 0]));
}

#[test]
fn mcfg_follows_ecam() {
    let mcfg = Installed::new(&machine(1)).find(b"MCFG").unwrap();
    assert_eq!((mcfg.len(), u64_at(&mcfg, 44)), (60, 0xb000_0000));
    assert_eq!(mcfg[52..60], [0, 0, 0, 255, 0, 0, 0, 0]);
    let ecam = Some(AddrRange { base: 0xe000_0000, size: 64 << 20 });
    let mcfg = Installed::new(&Machine { ecam, ..machine(1) }).find(b"MCFG").unwrap();
    assert_eq!((u64_at(&mcfg, 44), mcfg[55]), (0xe000_0000, 63));
    assert_eq!(Installed::new(&Machine { ecam: None, ..machine(1) }).find(b"MCFG"), None);
}

#[test]
fn waet_says_the_timer_is_good() {
    let waet = Installed::new(&machine(1)).find(b"WAET").unwrap();
    assert_eq!((waet.len(), u32_at(&waet, 36)), (40, 2));
}

#[test]
fn dsdt_describes_what_there_is() {
    let full = Installed::new(&machine(3)).dsdt();
    assert_eq!((&full[..4], full[8]), (&b"DSDT"[..], 2));
    // Soft off: Name (_S5_, Package (4) {0, 0, 0, 0}).
    assert!(contains(&full, b"\x08_S5_\x12\x06\x04\0\0\0\0"));
    // PNP0303 in compressed form (ACPI 19.3.4).
    let keyboard = [0x41, 0xd0, 0x03, 0x03];
    assert!(contains(&full, &keyboard));
    // COM1: eight ports at 0x3f8, IRQ 4 edge-triggered.
    assert!(contains(&full, &[0x47, 1, 0xf8, 0x03, 0xf8, 0x03, 1, 8, 0x22, 0x10, 0, 0x79, 0]));
    // Routing of slot 3 INTB#: {0x3ffff, 1, 0, 20}.
    assert!(contains(&full, &[0x0c, 0xff, 0xff, 0x03, 0, 1, 0, 0x0a, 20]));
    // Without IOAPIC it goes to link E of the LPC bridge: {0x3ffff, 1, ISA_.LNKE, 0}.
    assert!(contains(&full, b"\x0c\xff\xff\x03\0\x01\x2eISA_LNKE\0"));
    // The route registers: at 60h of the LPC bridge, a byte each, with a gap of four after the fourth.
    assert!(contains(&full, b"\x5b\x80PIRR\x02\x0a\x60\x0a\x0c"));
    assert!(contains(&full, b"\x01PRQA\x08PRQB\x08PRQC\x08PRQD\x08\0\x20PRQE\x08PRQF\x08PRQG\x08PRQH\x08"));
    // A link may go to interrupt 5, 10 or 11: level-triggered, active high, shared.
    let links: [u8; 17] = [0x89, 14, 0, 9, 3, 5, 0, 0, 0, 10, 0, 0, 0, 11, 0, 0, 0];
    assert_eq!(full.windows(links.len()).filter(|window| *window == links).count(), 8);
    // 32-bit window: memory, min and max fixed, not cacheable, read-write.
    let window = [0x87, 0x17, 0, 0, 0x0c, 1, 0, 0, 0, 0, 0, 0, 0, 0xc0, 0xff, 0xff, 0xbf, 0xfe];
    assert!(contains(&full, &window));
    assert!(contains(&full, b"C002") && !contains(&full, b"C003"));
    assert!(!contains(&full, b"QEMU0002"));

    let bare = Machine { i8042: false, com_ports: Vec::new(), fw_cfg: true, mem64: None, ..machine(1) };
    let bare = Installed::new(&bare).dsdt();
    assert!(!contains(&bare, &keyboard) && !contains(&bare, b"COM1"));
    assert!(contains(&bare, b"QEMU0002"));
}

#[test]
fn contradictions_are_refused() {
    let refused = |machine: Machine| machine.tables().unwrap_err();
    assert_eq!(refused(machine(0)), MachineError::CpuCount(0));
    assert_eq!(refused(machine(4097)), MachineError::CpuCount(4097));
    assert_eq!(refused(Machine { apic_ids: vec![0, 1, 1], ..machine(1) }), MachineError::ApicIds);
    let window = AddrRange { base: 0xf000_0000, size: 0x1000_0001 };
    assert_eq!(refused(Machine { mem32: vec![window], ..machine(1) }), MachineError::Window(window.base));
    let window = Some(AddrRange { base: 1 << 30, size: 1 << 33 });
    assert_eq!(refused(Machine { mem64: window, ..machine(1) }), MachineError::Window(1 << 30));
    let ecam = Some(AddrRange { base: 0xb000_0000, size: 4096 });
    assert_eq!(refused(Machine { ecam, ..machine(1) }), MachineError::Ecam(0xb000_0000));
    assert_eq!(refused(Machine { pm_base: 0x610, ..machine(1) }), MachineError::PmBase(0x610));
}

#[test]
fn tables_that_do_not_fit_are_refused() {
    let set = machine(4096).tables().unwrap();
    assert!(matches!(set.placement_below(2 << 20), Err(InstallError::NoRoom { .. })));
    let high = Placement { range: AddrRange { base: 1 << 32, size: 1 << 20 }, rsdp: 0xe_0000 };
    let ram = GuestRam::from_ranges(&[(GuestAddress(0), TOP as usize)]).unwrap();
    assert!(matches!(set.install(&ram, &high), Err(InstallError::Fixup(_))));
    let unmapped = Placement { range: AddrRange { base: TOP, size: 1 << 20 }, rsdp: 0xe_0000 };
    assert!(matches!(set.install(&ram, &unmapped), Err(InstallError::Memory { .. })));
}

/// Runs the loader script the way firmware does and compares with the in-process result.
#[test]
fn loader_script_gives_the_same_tables() {
    let set = machine(2).tables().unwrap();
    let script = set.loader_script();
    assert_eq!(script.len() % 128, 0);
    let placement = Placement { range: AddrRange { base: 0x3ff_0000, size: 0x1_0000 }, rsdp: 0xf_5a40 };
    let address = |name: &[u8]| if name == b"etc/acpi/rsdp" { 0xf_5a40u64 } else { 0x3ff_0000 };
    let mut files = [
        (b"etc/acpi/rsdp".to_vec(), set.bytes(Blob::Rsdp).to_vec()),
        (b"etc/acpi/tables".to_vec(), set.bytes(Blob::Tables).to_vec()),
    ];
    let text = |bytes: &[u8]| bytes.iter().copied().take_while(|&byte| byte != 0).collect::<Vec<_>>();
    let mut allocated = Vec::new();
    for command in script.chunks(128) {
        let name = text(&command[4..60]);
        let file = &mut files.iter_mut().find(|file| file.0 == name).unwrap().1;
        match u32_at(command, 0) {
            1 => allocated.push((name, u32_at(command, 60), command[64])),
            2 => {
                let (at, size) = (u32_at(command, 116) as usize, usize::from(command[120]));
                let mut number = [0; 8];
                number[..size].copy_from_slice(&file[at..at + size]);
                let number = u64::from_le_bytes(number) + address(&text(&command[60..116]));
                file[at..at + size].copy_from_slice(&number.to_le_bytes()[..size]);
            }
            3 => {
                let [at, start, length] = [60, 64, 68].map(|field| u32_at(command, field) as usize);
                file[at] = 0u8.wrapping_sub(sum(&file[start..start + length]));
            }
            other => panic!("command {other}"),
        }
    }
    assert_eq!(allocated, [(b"etc/acpi/rsdp".to_vec(), 16, 2), (b"etc/acpi/tables".to_vec(), 64, 1)]);
    let ram = GuestRam::from_ranges(&[(GuestAddress(0), TOP as usize)]).unwrap();
    set.install(&ram, &placement).unwrap();
    let installed = Installed { ram, placement };
    assert_eq!(installed.read(placement.rsdp, 36), files[0].1);
    assert_eq!(installed.read(placement.range.base, files[1].1.len()), files[1].1);
}

/// Runs iasl and returns what it printed, or `None` when it is not installed.
fn iasl(directory: &Path, arguments: &[&str]) -> Option<String> {
    let output = Command::new("iasl").args(arguments).current_dir(directory).output().ok()?;
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    assert!(output.status.success(), "iasl {arguments:?}:\n{text}");
    Some(text)
}

/// ACPICA's compiler disassembles every table and compiles it again without any remark.
#[test]
fn iasl_accepts_every_table() {
    let machines = [
        machine(1),
        Machine { fw_cfg: true, irq0_to_gsi2: true, ..machine(255) },
        Machine { ecam: None, mem64: None, i8042: false, com_ports: Vec::new(), ..machine(300) },
    ];
    for machine in &machines {
        let installed = Installed::new(machine);
        let mut tables: Vec<_> = installed.xsdt().iter().map(|&at| installed.table(at)).collect();
        tables.push(installed.dsdt());
        for table in tables {
            let name = String::from_utf8_lossy(&table[..4]).to_lowercase();
            let directory = tempfile::tempdir().unwrap();
            let file = format!("{name}.dat");
            std::fs::write(directory.path().join(&file), &table).unwrap();
            let Some(text) = iasl(directory.path(), &["-d", &file]) else {
                // Straight to the stream: the test harness hides what the print macros of a passing test say.
                let skipped =
                    "SKIPPED: iasl is not installed, so it has not checked the tables (acpica-tools)";
                writeln!(std::io::stderr(), "\n{skipped}").unwrap();
                return;
            };
            for word in ["Warning", "Error", "error", "Invalid", "Incorrect"] {
                assert!(!text.contains(word), "{name}: {text}");
            }
            let text = iasl(directory.path(), &["-we", "-p", "again", &format!("{name}.dsl")]).unwrap();
            assert!(text.contains(" 0 Errors, 0 Warnings, 0 Remarks"), "{name}: {text}");
            let again = std::fs::read(directory.path().join("again.aml")).unwrap();
            // All but checksum and creator come out again, byte for byte.
            assert!(again[36..] == table[36..], "{name}");
        }
    }
}
