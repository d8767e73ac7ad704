//! Whatever an initiator sends: no panic, consistent residuals, nothing beyond what a command may touch.

use std::sync::Arc;

use proptest::prelude::*;

use super::local::{Request, block_on, target_of};
use super::request::check_reply;
use super::{BLOCK, config, image};
use crate::iothread::Io;
use crate::scsi::{Disk, Image, LogicalUnit, Nexus};

/// CDBs that are mostly right: an operation code that is likely known, few bits set in the rest.
fn cdbs() -> impl Strategy<Value = Vec<u8>> {
    let known = prop::sample::select(vec![
        0x00u8, 0x03, 0x08, 0x0a, 0x12, 0x15, 0x16, 0x17, 0x1a, 0x1b, 0x1e, 0x25, 0x28, 0x2a, 0x2e, 0x2f,
        0x35, 0x41, 0x42, 0x4d, 0x55, 0x5a, 0x7f, 0x88, 0x8a, 0x8e, 0x8f, 0x91, 0x93, 0x9e, 0xa0, 0xa3, 0xa8,
        0xaa, 0xae, 0xaf, 0x04, 0x5e, 0x5f, 0x34, 0x37, 0x48, 0x89, 0x8b, 0x90, 0xb7, 0x83, 0x84, 0x9c,
    ]);
    let opcode = prop_oneof![9 => known, 1 => any::<u8>()];
    let byte = prop_oneof![12 => Just(0u8), 3 => any::<u8>(), 2 => 0u8..4];
    (opcode, prop::collection::vec(byte, 0..40)).prop_map(|(opcode, rest)| {
        let mut cdb = vec![opcode];
        cdb.extend(rest);
        cdb
    })
}

fn data() -> impl Strategy<Value = Vec<u8>> {
    let byte = prop_oneof![3 => Just(0u8), 1 => any::<u8>()];
    prop_oneof![
        prop::collection::vec(byte, 0..64),
        (0usize..5 * BLOCK, any::<u8>()).prop_map(|(len, byte)| vec![byte; len]),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, ..ProptestConfig::default() })]
    #[test]
    fn any_command_ends_in_order(
        commands in prop::collection::vec((cdbs(), data(), 0usize..3 * BLOCK, any::<bool>()), 1..12)
    ) {
        let image = Arc::new(Image::Recording(image()));
        let target = target_of(LogicalUnit::Disk(Disk::new(image, config()).unwrap()));
        let nexus = Nexus::new(target, None);
        let io = Io::for_test();
        for (cdb, data_out, data_in_len, both) in commands {
            // Most transports have one direction a command; virtio-scsi may offer both.
            let data_in_len = if both || data_out.is_empty() { data_in_len } else { 0 };
            let (reply, data_in) = block_on(Request::new(&cdb, &data_out, data_in_len).send(&nexus, &io));
            let reply = reply.unwrap();
            check_reply(&cdb, data_out.len(), &data_in, &reply);
        }
    }
}

/// Lists of EXTENDED COPY that are mostly right, and their CDBs.
fn copies() -> impl Strategy<Value = (Vec<u8>, Vec<u8>)> {
    let cscd = (prop::sample::select(vec![0xe4u8, 0xe4, 0xe4, 0xe0]), 0u8..24).prop_map(|(kind, len)| {
        let mut cscd = vec![kind, 0, 0, 0, 1, 3, 0, if len < 21 { 8 } else { len }];
        cscd.extend(config().wwn.unwrap().to_be_bytes());
        cscd.resize(32, 0);
        cscd
    });
    let small = || prop_oneof![4 => 0u64..64, 2 => 16_370u64..16_390, 1 => any::<u64>()];
    let id = || prop_oneof![4 => 0u16..3, 1 => Just(0xffffu16), 1 => any::<u16>()];
    let segment = (any::<bool>(), id(), id(), 0u16..100, small(), small(), any::<u8>()).prop_map(
        |(bytes, source, target, count, from, to, offset)| {
            let mut segment = if bytes { vec![0x0a, 0, 0, 0x1c] } else { vec![2, offset & 2, 0, 0x18] };
            segment.extend(source.to_be_bytes());
            segment.extend(target.to_be_bytes());
            segment.extend(if bytes {
                (u32::from(count) * 512).to_be_bytes()
            } else {
                u32::from(count).to_be_bytes()
            });
            segment.extend(from.to_be_bytes());
            segment.extend(to.to_be_bytes());
            if bytes {
                segment.extend([offset & 2, 0, 0, 0]);
            }
            segment
        },
    );
    let list =
        (prop::collection::vec(cscd, 0..3), prop::collection::vec(segment, 0..5), any::<bool>(), 0u8..4);
    (list, prop::option::weighted(0.3, (any::<prop::sample::Index>(), any::<u8>()))).prop_map(
        |((cscds, segments, long, usage), damage)| {
            let (cscds, segments) = (cscds.concat(), segments.concat());
            let mut list = vec![0; if long { 48 } else { 16 }];
            list[1] = usage << 3;
            if long {
                (list[0], list[3], list[16]) = (1, 0x20, 0xff);
                list[43] = cscds.len() as u8;
                list[45] = segments.len() as u8;
            } else {
                list[3] = cscds.len() as u8;
                list[11] = segments.len() as u8;
            }
            list.extend(cscds);
            list.extend(segments);
            if let Some((at, value)) = damage {
                let at = at.index(list.len());
                list[at] = value;
            }
            let mut cdb = vec![0x83, u8::from(long), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
            cdb[12..14].copy_from_slice(&(list.len() as u16).to_be_bytes());
            (cdb, list)
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]
    #[test]
    fn any_copy_ends_in_order(lists in prop::collection::vec(copies(), 1..6)) {
        let image = Arc::new(Image::Recording(image()));
        let target = target_of(LogicalUnit::Disk(Disk::new(image, config()).unwrap()));
        let nexus = Nexus::new(target, None);
        let io = Io::for_test();
        block_on(Request::new(&[0; 6], &[], 0).send(&nexus, &io)).0.unwrap();
        for (cdb, list) in lists {
            let reply = block_on(Request::new(&cdb, &list, 0).send(&nexus, &io)).0.unwrap();
            if let Some(sense) = reply.sense {
                // ILLEGAL REQUEST for the list, COPY ABORTED for what it asks.
                prop_assert!(matches!(sense.as_bytes()[2] & 0x0f, 0x5 | 0xa), "{sense:?}");
            }
        }
    }
}
