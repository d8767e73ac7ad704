//! EXTENDED COPY lists that are well formed: headers and CSCDs are made here, the segments are the fuzzer's.
#![cfg_attr(fuzzing, no_main)]

use fuzz::{Bytes, Command, WWN, send_all};

fuzz::target!(|input: &[u8]| {
    let mut bytes = Bytes(input);
    let long = bytes.u8() & 1;
    let mut cscds = Vec::new();
    for disk in 0..2 {
        cscds.extend([0xe4, 0, 0, 0, 1, 3, 0, 8]);
        cscds.extend((WWN + disk).to_be_bytes());
        cscds.resize(32 * (disk as usize + 1), 0);
    }
    let mut segments = Vec::new();
    while !bytes.is_empty() && segments.len() < 1500 {
        let offsets = bytes.u8() & 1 != 0;
        segments.extend(if offsets { [0x0a, 0, 0, 0x1c] } else { [2, bytes.u8() & 2, 0, 0x18] });
        // The devices, mostly those that there are; then counts and addresses.
        segments.extend([0, bytes.u8() % 3, 0, bytes.u8() % 3]);
        let len = if offsets { 24 } else { 20 };
        let start = segments.len();
        segments.extend(bytes.take(len));
        segments.resize(start + len, 0);
    }
    let mut list = vec![0; if long == 1 { 48 } else { 16 }];
    let [high, low] = (segments.len() as u16).to_be_bytes();
    if long == 1 {
        (list[0], list[3], list[16]) = (1, 0x20, 0xff);
        (list[43], list[44], list[45]) = (64, high, low);
    } else {
        (list[3], list[10], list[11]) = (64, high, low);
    }
    list.extend(cscds);
    list.extend(segments);
    let [high, low] = (list.len() as u16).to_be_bytes();
    let cdb = vec![0x83, long, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, high, low, 0, 0];
    send_all(vec![Command { cdb, data_out: list, data_in_len: 0 }]);
});
