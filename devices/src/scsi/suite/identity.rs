//! Who the disk says it is and what it says it can do: SPC-5.

use super::{BLOCK, BLOCKS, FILL, Initiator, Test, bad_field, check, exact, good, settle};
use crate::scsi::Residual;

pub(super) const TESTS: &[(&str, Test)] = &[
    ("power on attention", power_on_attention),
    ("request sense reports the attention as data", request_sense_takes_attention),
    ("inquiry", inquiry),
    ("inquiry allocation length", inquiry_allocation_length),
    ("inquiry bad fields", inquiry_bad_fields),
    ("the LUN that SCSI-2 had in the CDB", lun_of_scsi_2),
    ("vital product data list", vpd_list),
    ("vital product data identification", vpd_identification),
    ("vital product data block limits", vpd_block_limits),
    ("vital product data characteristics", vpd_characteristics),
    ("read capacity", read_capacity),
    ("send diagnostic", send_diagnostic),
    ("report luns", report_luns),
    ("supported operation codes", supported_operation_codes),
    ("supported operation codes one by one", one_operation_code),
    ("supported task management", supported_task_management),
    ("log sense", log_sense),
    ("unknown operation codes", unknown_operation_codes),
    ("naca", naca),
];

fn power_on_attention(i: &mut dyn Initiator) {
    // SAM-6, 5.14: INQUIRY and REPORT LUNS neither report nor clear it, the next command does, once.
    good(i, &[0x12, 0, 0, 0, 36, 0], &[], 36);
    good(i, &[0xa0, 0, 0, 0, 0, 0, 0, 0, 0, 16, 0, 0], &[], 16);
    check(i, &[0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0], &[], BLOCK, (0x6, 0x29, 0x00));
    good(i, &[0x00, 0, 0, 0, 0, 0], &[], 0);
}

fn request_sense_takes_attention(i: &mut dyn Initiator) {
    let data = exact(i, &[0x03, 0, 0, 0, 18, 0], &[], 18);
    assert_eq!((data[0], data[2], data[7], data[12], data[13]), (0x70, 0x6, 10, 0x29, 0x00));
    good(i, &[0x00, 0, 0, 0, 0, 0], &[], 0);
    let data = exact(i, &[0x03, 0, 0, 0, 18, 0], &[], 18);
    assert_eq!(data, [0x70, 0, 0, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    // DESC: descriptor format on request.
    let data = exact(i, &[0x03, 1, 0, 0, 8, 0], &[], 8);
    assert_eq!(data, [0x72, 0, 0, 0, 0, 0, 0, 0]);
}

fn inquiry(i: &mut dyn Initiator) {
    let data = exact(i, &[0x12, 0, 0, 0, 96, 0], &[], 96);
    assert_eq!(data[..8], [0x00, 0x00, 0x06, 0x12, 91, 0x08, 0, 0x02]);
    assert_eq!(&data[8..36], b"ACME    CONFORMANCE     2.71");
    // Version descriptors: SAM-5, SPC-4, SBC-3, SPC-5, SBC-4.
    assert_eq!(data[58..68], [0x00, 0xa0, 0x04, 0x60, 0x04, 0xc0, 0x05, 0xc0, 0x06, 0x00]);
    assert!(data[68..].iter().all(|byte| *byte == 0));
}

fn inquiry_allocation_length(i: &mut dyn Initiator) {
    for allocation in [0u8, 1, 5, 36] {
        let outcome = i.command(&[0x12, 0, 0, 0, allocation, 0], &[], 64);
        assert_eq!(outcome.status, 0);
        assert!(matches!(outcome.residual, None | Some(Residual::Under(_))));
        if let Some(residual) = outcome.residual {
            assert_eq!(residual, Residual::Under(64 - u64::from(allocation)));
        }
        assert!(outcome.data_in[usize::from(allocation)..].iter().all(|byte| *byte == FILL));
        if allocation >= 5 {
            // SPC-5, 4.2.5.6: truncation does not change the length field.
            assert_eq!(outcome.data_in[4], 91);
        }
    }
    // More than there is: both bytes of the allocation length count.
    let outcome = i.command(&[0x12, 0, 0, 1, 0, 0], &[], 256);
    assert!(matches!(outcome.residual, None | Some(Residual::Under(160))));
    assert!(outcome.data_in[96..].iter().all(|byte| *byte == FILL));
}

fn inquiry_bad_fields(i: &mut dyn Initiator) {
    settle(i);
    bad_field(i, &[0x12, 0, 0x80, 0, 36, 0], &[], 36, 2, Some(7));
    bad_field(i, &[0x12, 1, 0x4d, 0, 36, 0], &[], 36, 2, Some(7));
    // CMDDT is gone.
    bad_field(i, &[0x12, 2, 0, 0, 36, 0], &[], 36, 1, Some(1));
}

/// Linux writes it into its first INQUIRY to a unit of a target that it does not know.
fn lun_of_scsi_2(i: &mut dyn Initiator) {
    settle(i);
    assert_eq!(exact(i, &[0x12, 0x60, 0, 0, 36, 0], &[], 36)[..4], [0x00, 0x00, 0x06, 0x12]);
    assert_eq!(exact(i, &[0x12, 0xe1, 0x80, 0, 4, 0], &[], 4)[..2], [0x00, 0x80]);
    good(i, &[0x00, 0x60, 0, 0, 0, 0], &[], 0);
    good(i, &[0x03, 0x60, 0, 0, 18, 0], &[], 18);
    good(i, &[0xa0, 0x60, 0, 0, 0, 0, 0, 0, 0, 16, 0, 0], &[], 16);
    // Of a READ the bits are RDPROTECT.
    bad_field(i, &[0x28, 0x60, 0, 0, 0, 0, 0, 0, 1, 0], &[], BLOCK, 1, Some(6));
}

fn vpd_list(i: &mut dyn Initiator) {
    let data = good(i, &[0x12, 1, 0x00, 0, 255, 0], &[], 255);
    let count = usize::from(data[3]);
    let pages = &data[4..4 + count];
    assert_eq!(data[..3], [0, 0, 0]);
    assert!(pages.windows(2).all(|pair| pair[0] < pair[1]), "ascending: {pages:02x?}");
    for page in [0x00, 0x80, 0x83, 0x86, 0x87, 0x8f, 0xb0, 0xb1, 0xb2] {
        assert!(pages.contains(&page), "{page:02x}");
    }
    for page in 0..=0xff {
        let outcome = i.command(&[0x12, 1, page, 0, 255, 0], &[], 255);
        assert_eq!(outcome.status == 0, pages.contains(&page), "page {page:02x}");
        if outcome.status == 0 {
            assert_eq!(outcome.data_in[..2], [0, page]);
        }
    }
}

fn vpd_identification(i: &mut dyn Initiator) {
    let data = exact(i, &[0x12, 1, 0x80, 0, 11, 0], &[], 11);
    assert_eq!(&data[..], b"\x00\x80\x00\x07SN-0042");
    let data = good(i, &[0x12, 1, 0x83, 0, 255, 0], &[], 255);
    let len = 4 + usize::from(data[3]);
    let mut at = 4;
    let mut seen = Vec::new();
    while at < len {
        let (set, kind, size) = (data[at] & 0x0f, data[at + 1] & 0x3f, usize::from(data[at + 3]));
        seen.push((set, kind, data[at + 4..at + 4 + size].to_vec()));
        at += 4 + size;
    }
    assert_eq!(at, len);
    let naa = vec![0x50, 0x00, 0xc5, 0x00, 0x12, 0x34, 0x56, 0x78];
    assert!(seen.contains(&(1, 3, naa)), "{seen:02x?}");
    let eui64 = vec![0x00, 0x0c, 0x50, 0x00, 0x12, 0x34, 0x56, 0x78];
    assert!(seen.contains(&(1, 2, eui64)), "{seen:02x?}");
    // Ends in zeros, to a multiple of four bytes (SPC-5, 7.7.6.11).
    assert!(seen.contains(&(3, 8, b"naa.5000C50012345678\0\0\0\0".to_vec())), "{seen:02x?}");
    assert!(seen.contains(&(2, 1, b"ACME    CONFORMANCE     SN-0042".to_vec())), "{seen:02x?}");
    assert!(seen.contains(&(1, 0x14, vec![0, 0, 0, 1])), "{seen:02x?}");
}

fn vpd_block_limits(i: &mut dyn Initiator) {
    let data = exact(i, &[0x12, 1, 0xb0, 0, 64, 0], &[], 64);
    assert_eq!(data[..4], [0x00, 0xb0, 0x00, 0x3c]);
    assert_eq!(data[4] & 1, 1, "WSNZ");
    assert_eq!(data[5], 128, "64 KiB a COMPARE AND WRITE");
    assert_eq!(data[8..12], 65536u32.to_be_bytes(), "32 MiB a transfer");
    assert_eq!(data[20..24], (1u32 << 20).to_be_bytes(), "512 MiB an UNMAP");
    assert_eq!(data[24..28], 256u32.to_be_bytes());
    assert_eq!(data[28..32], 8u32.to_be_bytes(), "granularity 4096");
    assert_eq!(data[32..36], [0x80, 0, 0, 0], "aligned to LBA 0");
    assert_eq!(data[36..44], (1u64 << 20).to_be_bytes(), "512 MiB a WRITE SAME");
    // Atomic writes: length, alignment and granularity are what the image guarantees; no boundaries.
    assert_eq!(data[44..64], [0, 0, 0, 8, 0, 0, 0, 8, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0]);
}

fn vpd_characteristics(i: &mut dyn Initiator) {
    let data = exact(i, &[0x12, 1, 0xb1, 0, 64, 0], &[], 64);
    assert_eq!(data[..6], [0x00, 0xb1, 0x00, 0x3c, 0x1c, 0x20]);
    // Extended INQUIRY: all three ordering attributes, a volatile cache. Mode pages are shared.
    let data = exact(i, &[0x12, 1, 0x86, 0, 64, 0], &[], 64);
    assert_eq!(data[..8], [0x00, 0x86, 0x00, 0x3c, 0x00, 0x07, 0x01, 0x00]);
    let data = exact(i, &[0x12, 1, 0x87, 0, 8, 0], &[], 8);
    assert_eq!(data, [0x00, 0x87, 0x00, 0x04, 0x3f, 0xff, 0x00, 0x00]);
    let data = exact(i, &[0x12, 1, 0xb2, 0, 8, 0], &[], 8);
    // LBPU, LBPWS, LBPWS10, LBPRZ 001b; thin.
    assert_eq!(data, [0x00, 0xb2, 0x00, 0x04, 0x00, 0xe4, 0x02, 0x00]);
}

fn read_capacity(i: &mut dyn Initiator) {
    settle(i);
    let data = exact(i, &[0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0], &[], 8);
    assert_eq!(data, [0, 0, 0x3f, 0xff, 0, 0, 2, 0]);
    let data = exact(i, &[0x9e, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 32, 0, 0], &[], 32);
    assert_eq!(data[..8], (BLOCKS - 1).to_be_bytes());
    assert_eq!(data[8..12], [0, 0, 2, 0]);
    // No protection; 8 logical blocks a physical one; LBPME and LBPRZ; LBA 0 is aligned.
    assert_eq!(data[12..16], [0x00, 0x03, 0xc0, 0x00]);
    assert!(data[16..].iter().all(|byte| *byte == 0));
    let outcome = i.command(&[0x9e, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 12, 0, 0], &[], 32);
    assert!(outcome.data_in[12..].iter().all(|byte| *byte == FILL));
    // Up to SBC-2 there was PMI; an LBA means something with it only.
    let data = exact(i, &[0x25, 0, 0, 0, 1, 0, 0, 0, 1, 0], &[], 8);
    assert_eq!(data, [0, 0, 0x3f, 0xff, 0, 0, 2, 0]);
    bad_field(i, &[0x25, 0, 0, 0, 1, 0, 0, 0, 0, 0], &[], 8, 2, Some(7));
    let data = exact(i, &[0x9e, 0x10, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 8, 1, 0], &[], 8);
    assert_eq!(data, (BLOCKS - 1).to_be_bytes());
    bad_field(i, &[0x9e, 0x10, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 8, 0, 0], &[], 8, 2, Some(7));
}

fn send_diagnostic(i: &mut dyn Initiator) {
    settle(i);
    // SBC-3, table 34 has it as mandatory. Nothing; the default self-test, with PF, DEVOFFL, UNITOFFL.
    exact(i, &[0x1d, 0x10, 0, 0, 0, 0], &[], 0);
    exact(i, &[0x1d, 0x17, 0, 0, 0, 0], &[], 0);
    // A background self-test; a diagnostic page.
    bad_field(i, &[0x1d, 0x20, 0, 0, 0, 0], &[], 0, 1, Some(5));
    bad_field(i, &[0x1d, 0x10, 0, 0, 8, 0], &[0; 8], 0, 4, Some(3));
    exact(i, &[0x1b, 0, 0, 0, 0, 0], &[], 0);
    check(i, &[0x1d, 0x04, 0, 0, 0, 0], &[], 0, (0x2, 0x04, 0x02));
}

fn report_luns(i: &mut dyn Initiator) {
    let mut cdb = [0xa0, 0, 0, 0, 0, 0, 0, 0, 0, 16, 0, 0];
    let data = exact(i, &cdb, &[], 16);
    assert_eq!(data, [0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    cdb[2] = 1;
    let data = exact(i, &cdb, &[], 16);
    assert_eq!(data, [0, 0, 0, 8, 0, 0, 0, 0, 0xc1, 0x01, 0, 0, 0, 0, 0, 0]);
    cdb[2] = 2;
    // Truncated: the list length still counts both.
    let data = exact(i, &cdb, &[], 16);
    assert_eq!(data, [0, 0, 0, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    settle(i);
    cdb[2] = 0x10;
    bad_field(i, &cdb, &[], 16, 2, Some(7));
    (cdb[2], cdb[9]) = (0, 15);
    bad_field(i, &cdb, &[], 16, 6, Some(7));
}

fn supported_operation_codes(i: &mut dyn Initiator) {
    settle(i);
    let data = good(i, &[0xa3, 0x0c, 0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0], &[], 4096);
    let len = u32::from_be_bytes([data[0], data[1], data[2], data[3]]) as usize;
    let listed: Vec<_> = data[4..4 + len].chunks(8).collect();
    for entry in &listed {
        let (opcode, action) = (entry[0], u16::from_be_bytes([entry[2], entry[3]]));
        let cdb_len = usize::from(entry[7]);
        let with_action = entry[5] & 1 != 0;
        // Ask for the one, with what belongs to it.
        let option = if with_action { 2 } else { 1 };
        let [high, low] = action.to_be_bytes();
        let one = good(i, &[0xa3, 0x0c, option, opcode, high, low, 0, 0, 0, 64, 0, 0], &[], 64);
        assert_eq!(one[..4], [0, 3, 0, cdb_len as u8], "{opcode:02x}/{action:x}");
        assert_eq!(one[4], opcode);
        // CONTROL: nothing of it is looked at but NACA, which is refused.
        assert_eq!(one[if opcode == 0x7f { 5 } else { 3 + cdb_len }], 0);
    }
    for opcode in [0x00, 0x03, 0x12, 0x1d, 0x25, 0x28, 0x2a, 0x35, 0x42, 0x88, 0x8a, 0x93, 0x9e, 0xa0, 0xa3] {
        assert!(listed.iter().any(|entry| entry[0] == opcode), "{opcode:02x}");
    }
    // With timeouts each entry has CTDP and a descriptor of 12 bytes.
    let data = good(i, &[0xa3, 0x0c, 0x80, 0, 0, 0, 0, 0, 0x10, 0, 0, 0], &[], 4096);
    let timed = u32::from_be_bytes([data[0], data[1], data[2], data[3]]) as usize;
    assert_eq!(timed, listed.len() * 20);
    assert_eq!(data[4 + 5] & 2, 2);
    assert_eq!(data[4 + 8..4 + 10], [0, 0x0a]);
}

fn one_operation_code(i: &mut dyn Initiator) {
    settle(i);
    // READ (10): its usage map by SBC-4; RDPROTECT is not used without protection information.
    let data = good(i, &[0xa3, 0x0c, 1, 0x28, 0, 0, 0, 0, 0, 64, 0, 0], &[], 64);
    assert_eq!(data[..4], [0, 3, 0, 10]);
    assert_eq!((data[4], data[5] & 0xf8), (0x28, 0x18));
    assert_eq!(data[6..13], [0xff, 0xff, 0xff, 0xff, 0x3f, 0xff, 0xff]);
    // An operation code with service actions needs option 2 or 3, one without must not have 2.
    bad_field(i, &[0xa3, 0x0c, 1, 0x9e, 0, 0, 0, 0, 0, 64, 0, 0], &[], 64, 2, Some(2));
    bad_field(i, &[0xa3, 0x0c, 2, 0x28, 0, 0, 0, 0, 0, 64, 0, 0], &[], 64, 2, Some(2));
    let data = good(i, &[0xa3, 0x0c, 3, 0x9e, 0, 0x10, 0, 0, 0, 64, 0, 0], &[], 64);
    assert_eq!((data[1], data[5]), (3, 0x10));
    // Not supported: SUPPORT 001b and no usage data.
    for cdb in
        [[0xa3, 0x0c, 1, 0xd0, 0, 0, 0, 0, 0, 64, 0, 0], [0xa3, 0x0c, 3, 0x9e, 0, 0x1f, 0, 0, 0, 64, 0, 0]]
    {
        let data = good(i, &cdb, &[], 64);
        assert_eq!(data[..4], [0, 1, 0, 0]);
        assert_eq!(data[4], FILL);
    }
    bad_field(i, &[0xa3, 0x0c, 7, 0x28, 0, 0, 0, 0, 0, 64, 0, 0], &[], 64, 2, Some(2));
}

fn supported_task_management(i: &mut dyn Initiator) {
    settle(i);
    let data = exact(i, &[0xa3, 0x0d, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0], &[], 4);
    assert_eq!(data, [0xdc, 0x03, 0, 0]);
    let data = exact(i, &[0xa3, 0x0d, 0x80, 0, 0, 0, 0, 0, 0, 16, 0, 0], &[], 16);
    assert_eq!(data[..4], [0xdc, 0x03, 0, 12]);
    bad_field(i, &[0xa3, 0x0d, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0], &[], 4, 6, Some(7));
}

fn log_sense(i: &mut dyn Initiator) {
    settle(i);
    let data = good(i, &[0x4d, 0, 0x40, 0, 0, 0, 0, 0, 64, 0], &[], 64);
    assert_eq!(data[..2], [0, 0]);
    let pages = data[4..4 + usize::from(data[3])].to_vec();
    assert!(pages.contains(&0) && pages.windows(2).all(|pair| pair[0] < pair[1]));
    for page in 0..0x3f {
        let outcome = i.command(&[0x4d, 0, 0x40 | page, 0, 0, 0, 0, 1, 0, 0], &[], 256);
        assert_eq!(outcome.status == 0, pages.contains(&page), "{page:02x}");
    }
    // Parameters have a code, a control byte and a length; they fill the page.
    for page in pages.into_iter().skip(1) {
        let data = good(i, &[0x4d, 0, 0x40 | page, 0, 0, 0, 0, 1, 0, 0], &[], 256);
        let len = 4 + usize::from(u16::from_be_bytes([data[2], data[3]]));
        let mut at = 4;
        while at < len {
            at += 4 + usize::from(data[at + 3]);
        }
        assert_eq!((data[0], data[1], at), (page, 0, len));
    }
    let data = good(i, &[0x4d, 0, 0x40, 0xff, 0, 0, 0, 0, 64, 0], &[], 64);
    assert_eq!(data[..8], [0x40, 0xff, 0, 12, 0x00, 0x00, 0x00, 0xff]);
    bad_field(i, &[0x4d, 0, 0x7e, 0, 0, 0, 0, 0, 64, 0], &[], 64, 2, Some(5));
    // PARAMETER POINTER: of the start-stop cycle counter page from parameter 3 on, which leaves number 4.
    let data = exact(i, &[0x4d, 0, 0x4e, 0, 0, 0, 3, 0, 12, 0], &[], 12);
    assert_eq!(data[..8], [0x0e, 0, 0, 8, 0, 4, 3, 4]);
    bad_field(i, &[0x4d, 0, 0x4e, 0, 0, 0, 5, 0, 12, 0], &[], 12, 5, Some(7));
    bad_field(i, &[0x4d, 0, 0x40, 0, 0, 0, 1, 0, 12, 0], &[], 12, 5, Some(7));
}

fn unknown_operation_codes(i: &mut dyn Initiator) {
    settle(i);
    for opcode in [0x01, 0x0b, 0x52, 0xd0, 0xff] {
        let sense = check(i, &[opcode, 0, 0, 0, 0, 0], &[], 0, (0x5, 0x20, 0x00));
        assert_eq!(sense[15], 0, "no field pointer");
    }
    // A known operation code with an unknown service action.
    bad_field(i, &[0x9e, 0x1f, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 32, 0, 0], &[], 32, 1, Some(4));
}

fn naca(i: &mut dyn Initiator) {
    settle(i);
    bad_field(i, &[0x00, 0, 0, 0, 0, 0x04], &[], 0, 5, Some(2));
    bad_field(i, &[0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0x04], &[], BLOCK, 9, Some(2));
}
