//! CDBs with their data, one after the other.
#![cfg_attr(fuzzing, no_main)]

use fuzz::{Bytes, Command, send_all};

fuzz::target!(|input: &[u8]| {
    let mut bytes = Bytes(input);
    let mut commands = Vec::new();
    while !bytes.is_empty() && commands.len() < 32 {
        commands.push(Command::read(&mut bytes));
    }
    send_all(commands);
});
