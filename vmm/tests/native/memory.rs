//! RAM: where it is, where it is not, and what the guest is told of it.

use super::asm::*;
use super::guest::Guest;
use super::vm::{Vm, hypervisor, skipped, virtualization};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const LOW_MAX: u64 = 2 * GIB;

/// Page directories for [`high_memory`], above the code.
const TABLES: u32 = 0x20_0000;
/// Where [`high_memory`] shows the first and the last of high RAM.
const FIRST: u32 = 0x4000_0000;
const LAST: u32 = 0x8000_0000;

/// Fills a page directory with 512 pages of 2 MiB from `physical` on.
fn directory(g: &mut Guest, table: u32, physical: u64) {
    g.set(Edi, table);
    // Present, writable, large.
    g.set(Eax, physical as u32 | 0x83);
    g.set(Ebx, (physical >> 32) as u32);
    g.repeat(512, |a| {
        a.store(Edi, 0, Eax);
        a.store(Edi, 4, Ebx);
        a.add(Edi, 8);
        a.add(Eax, 2 << 20);
        // adc ebx, 0
        a.bytes(&[0x83, 0xd3, 0x00]);
    });
}

/// Turns PAE paging on: the first GiB as it is, the GiB from 4 GiB at FIRST, and the one around `end` at LAST.
fn high_memory(g: &mut Guest, end: u64) {
    for (number, physical) in [0, 4 * GIB, end - GIB / 2].into_iter().enumerate() {
        let table = TABLES + 0x1000 * (number as u32 + 1);
        directory(g, table, physical);
        // A page directory pointer: present.
        g.set(Eax, table | 1);
        g.store_abs(TABLES + 8 * number as u32, Eax);
        g.set(Eax, 0);
        g.store_abs(TABLES + 8 * number as u32 + 4, Eax);
    }
    g.store_abs(TABLES + 0x18, Eax);
    g.store_abs(TABLES + 0x1c, Eax);
    // mov cr4, PAE; mov cr3, TABLES; mov cr0, PG | ET | PE
    g.set(Eax, 1 << 5);
    g.bytes(&[0x0f, 0x22, 0xe0]);
    g.set(Eax, TABLES);
    g.bytes(&[0x0f, 0x22, 0xd8]);
    g.set(Eax, 0x8000_0011);
    g.bytes(&[0x0f, 0x22, 0xc0]);
}

/// Prints the start info and its memory map: six dwords an entry.
fn print_map(g: &mut Guest) {
    g.load(Eax, Ebx, 0);
    g.report("magic", Eax);
    g.load(Eax, Ebx, 4);
    g.report("version", Eax);
    // memmap_paddr at 40, memmap_entries at 48.
    g.load(Esi, Ebx, 40);
    g.load(Ecx, Ebx, 48);
    g.report("entries", Ecx);
    let top = g.here();
    for at in (0..24).step_by(4) {
        g.load(Eax, Esi, at);
        g.print_eax();
        g.print(" ");
    }
    g.print("\n");
    g.add(Esi, 24);
    g.sub(Ecx, 1);
    g.jump_if(Cond::NotEqual, top);
}

/// Writes a pattern of its own to each place, then reports all.
fn check(g: &mut Guest, places: &[(&str, u32)]) {
    for (number, (_, place)) in places.iter().enumerate() {
        g.set(Eax, 0x5a5a_0001 + number as u32);
        g.store_abs(*place, Eax);
    }
    for (name, place) in places {
        g.load_abs(Eax, *place);
        g.report(name, Eax);
    }
}

fn run(test: &str, bytes: u64) {
    if !hypervisor(test) {
        return;
    }
    let low_top = bytes.min(LOW_MAX);
    let high_end = 4 * GIB + (bytes - low_top);
    let low = [
        ("start", 0x50_0000),
        ("middle", (low_top / 2) as u32),
        ("below the top", low_top as u32 - 4),
        ("hole", low_top as u32),
        ("hole at 3.5 GiB", 0xe000_0000),
        ("video window", 0xa_0000),
        ("below the video window", 0x9_fffc),
    ];
    let high = [
        ("from 4 GiB", FIRST),
        ("below the end", LAST + 0x1fff_fffc),
        ("behind the end", LAST + 0x2000_0000),
    ];
    // KVM emulates code without paging only.
    let see_high = high_end > 4 * GIB && (virtualization() || skipped(test, "high memory needs svm or vmx"));
    let kernel = Guest::kernel(|g| {
        print_map(g);
        check(g, &low);
        if see_high {
            high_memory(g, high_end);
            check(g, &high);
            g.load_abs(Eax, 0x50_0000);
            g.report("start, still", Eax);
        }
    });
    let output = Vm::new(&kernel).set(&format!("vm.memory={bytes}")).run().ok();
    let mut lines = output.lines();
    let mut value = |name: &str| {
        let line = lines.next().unwrap_or_else(|| panic!("{name} is missing in\n{output}"));
        let value = line
            .strip_prefix(name)
            .and_then(|rest| rest.strip_prefix('='))
            .unwrap_or_else(|| panic!("{line}"));
        u32::from_str_radix(value, 16).unwrap()
    };
    // Xen's public headers: XEN_HVM_START_MAGIC_VALUE; version 1 has the memory map.
    assert_eq!((value("magic"), value("version")), (0x336e_c578, 1));
    let entries = value("entries");
    let map: Vec<[u64; 3]> = (0..entries).map(|_| entry(lines.next().unwrap())).collect();
    check_map(&map, low_top, high_end);
    let mut value = |name: &str| {
        let line = lines.next().unwrap_or_else(|| panic!("{name} is missing in\n{output}"));
        let value = line
            .strip_prefix(name)
            .and_then(|rest| rest.strip_prefix('='))
            .unwrap_or_else(|| panic!("{line}"));
        u32::from_str_radix(value, 16).unwrap()
    };
    for (number, (name, place)) in low.into_iter().enumerate() {
        let ram = u64::from(place) < low_top && !(0xa_0000..0xc_0000).contains(&place);
        let expected = if ram { 0x5a5a_0001 + number as u32 } else { u32::MAX };
        assert_eq!(value(name), expected, "{name}");
    }
    if see_high {
        assert_eq!(value("from 4 GiB"), 0x5a5a_0001);
        assert_eq!(value("below the end"), 0x5a5a_0002);
        assert_eq!(value("behind the end"), u32::MAX);
        assert_eq!(value("start, still"), 0x5a5a_0001, "no alias");
    }
}

/// Address, size and type of a printed entry.
fn entry(line: &str) -> [u64; 3] {
    let words: Vec<u64> =
        line.split_whitespace().map(|word| u64::from_str_radix(word, 16).unwrap()).collect();
    let [a, b, c, d, kind, reserved] = words[..] else { panic!("{line}") };
    assert_eq!(reserved, 0);
    [a | b << 32, c | d << 32, kind]
}

fn check_map(map: &[[u64; 3]], low_top: u64, high_end: u64) {
    const RAM: u64 = 1;
    const RESERVED: u64 = 2;
    const ACPI: u64 = 3;
    for pair in map.windows(2) {
        assert!(pair[0][0] + pair[0][1] <= pair[1][0], "sorted, and nothing twice: {map:x?}");
    }
    assert_eq!(map[0], [0, 0x9_fc00, RAM], "conventional memory");
    let of = |kind| map.iter().filter(move |entry| entry[2] == kind);
    let above = |from: u64, to: u64| -> u64 {
        of(RAM).chain(of(ACPI)).filter(|e| (from..to).contains(&e[0])).map(|e| e[1]).sum()
    };
    assert_eq!(above(MIB, 4 * GIB), low_top - MIB, "all low RAM from 1 MiB: {map:x?}");
    assert_eq!(above(4 * GIB, u64::MAX), high_end - 4 * GIB, "all high RAM: {map:x?}");
    assert!(of(RAM).chain(of(ACPI)).all(|e| e[0] + e[1] <= low_top || e[0] >= 4 * GIB), "{map:x?}");
    assert_eq!(of(ACPI).count(), 1);
    assert!(of(RESERVED).any(|e| e[..2] == [0xb000_0000, 0x1000_0000]), "ECAM: {map:x?}");
    assert!(map.iter().all(|e| [RAM, RESERVED, ACPI].contains(&e[2])));
}

#[test]
fn ram_of_64_mib() {
    run("ram_of_64_mib", 64 * MIB);
}

#[test]
fn ram_of_512_mib() {
    run("ram_of_512_mib", 512 * MIB);
}

#[test]
fn ram_of_3_gib() {
    run("ram_of_3_gib", 3 * GIB);
}

#[test]
fn ram_of_6_gib() {
    run("ram_of_6_gib", 6 * GIB);
}
