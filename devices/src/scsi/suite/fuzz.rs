//! Whatever an initiator sends: no panic, consistent residuals, nothing beyond what a command may touch.

use std::sync::Arc;

use proptest::prelude::*;

use super::local::{Request, block_on, target_of};
use super::{BLOCK, FILL, config, image};
use crate::iothread::Io;
use crate::scsi::{Disk, Image, LogicalUnit, Nexus, Residual, Status};

/// CDBs that are mostly right: an operation code that is likely known, few bits set in the rest.
fn cdbs() -> impl Strategy<Value = Vec<u8>> {
    let known = prop::sample::select(vec![
        0x00u8, 0x03, 0x08, 0x0a, 0x12, 0x15, 0x16, 0x17, 0x1a, 0x1b, 0x1e, 0x25, 0x28, 0x2a, 0x2e, 0x2f,
        0x35, 0x41, 0x42, 0x4d, 0x55, 0x5a, 0x7f, 0x88, 0x8a, 0x8e, 0x8f, 0x91, 0x93, 0x9e, 0xa0, 0xa3, 0xa8,
        0xaa, 0xae, 0xaf, 0x04, 0x5e, 0x5f, 0x34, 0x37, 0x48, 0x89, 0x8b, 0x90, 0xb7,
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
            let moved_in = moved(reply.residual_in, data_in_len);
            let moved_out = moved(reply.residual_out, data_out.len());
            prop_assert!(moved_in.is_some() && moved_out.is_some(), "{reply:?}");
            prop_assert_eq!(reply.status == Status::CheckCondition, reply.sense.is_some());
            // Nothing is written beyond what the residual admits to.
            let moved_in = moved_in.unwrap();
            prop_assert!(data_in[moved_in..].iter().all(|byte| *byte == FILL), "{cdb:02x?}");
            if reply.status != Status::Good && reply.status != Status::CheckCondition {
                prop_assert_eq!(moved_in, 0);
            }
            if let Some(sense) = reply.sense {
                let sense = sense.as_bytes();
                let descriptor = sense[0] == 0x72;
                prop_assert!(descriptor || sense.len() == 18 && sense[0] & 0x7f == 0x70);
                prop_assert_eq!(usize::from(sense[7]) + 8, sense.len());
            }
        }
    }
}

/// Bytes moved according to a residual; `None` when it contradicts the buffer.
fn moved(residual: Residual, offered: usize) -> Option<usize> {
    match residual {
        Residual::Exact => Some(offered),
        Residual::Under(rest) => (rest > 0).then(|| offered.checked_sub(rest as usize))?,
        Residual::Over(rest) => (rest > 0).then_some(offered),
    }
}
