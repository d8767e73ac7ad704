//! Parameter lists whose CDBs are right: the first byte chooses the command, the second its options, the rest is the
//! list. SANITIZE is among them, which is refused. Afterwards the mode pages, the reservations and the results of copies are
//! read back.
#![cfg_attr(fuzzing, no_main)]

use fuzz::{Bytes, Command, MAX_DATA, send_all};

fuzz::target!(|input: &[u8]| {
    let mut bytes = Bytes(input);
    let mut commands = Vec::new();
    while !bytes.is_empty() && commands.len() < 8 {
        let (which, options, len) = (bytes.u8(), bytes.u8(), bytes.u16());
        let list = bytes.take(usize::from(len) % 1024).to_vec();
        if which % 9 == 7 && options & 0x80 != 0 {
            // The token that was made before, if one was.
            let cdb = vec![0x84, 7, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0];
            commands.push(Command { cdb, data_out: Vec::new(), data_in_len: MAX_DATA });
        }
        commands.push(command(which, options, list));
    }
    for cdb in [
        vec![0x1a, 0, 0x3f, 0xff, 0xff, 0],
        vec![0x5a, 0, 0x3f, 0, 0, 0, 0, 0x10, 0, 0],
        vec![0x5e, 0, 0, 0, 0, 0, 0, 0x10, 0, 0],
        vec![0x5e, 3, 0, 0, 0, 0, 0, 0x10, 0, 0],
        vec![0x84, 5, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0],
        vec![0x9e, 0x12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0],
    ] {
        commands.push(Command { cdb, data_out: Vec::new(), data_in_len: MAX_DATA });
    }
    send_all(commands);
});

fn command(which: u8, options: u8, data_out: Vec<u8>) -> Command {
    let [high, low] = (data_out.len() as u16).to_be_bytes();
    let cdb = match which % 9 {
        0 => vec![0x15, 0x10 & options, 0, 0, low, 0],
        1 => vec![0x55, 0x10 & options, 0, 0, 0, 0, 0, high, low, 0],
        2 => vec![0x42, 0, 0, 0, 0, 0, 0, high, low, 0],
        3 => vec![0x48, 0xa3 & options, 0, 0, 0, 0, 0, high, low, 0],
        4 => vec![0x04, 0x10 | 0x2f & options, 0, 0, 0, 0],
        5 => vec![0x5f, 7 & options, options >> 3, 0, 0, 0, 0, high, low, 0],
        6 => vec![0x83, 0x10, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, high, low, 0, 0],
        7 => vec![0x83, 0x11, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, high, low, 0, 0],
        _ => vec![0x83, 1 & options, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, high, low, 0, 0],
    };
    Command { cdb, data_out, data_in_len: 0 }
}
