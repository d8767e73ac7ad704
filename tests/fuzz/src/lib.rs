//! What the targets share: reading structure out of bytes, a disk to command, an I/O thread that stays.
//!
//! A target is built in two ways: with `--cfg fuzzing` it is a program of libFuzzer's, without it one of the functions that
//! `replay` calls.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

pub mod board;
pub mod corpus;
pub mod megasas;
pub mod race;
pub mod rings;
pub mod virtio;

use std::future::Future;
use std::sync::{Arc, OnceLock, mpsc};
use std::time::Duration;

use devices::iothread::{Io, IoThread, Polling, Settings};
use devices::scsi::suite::{Request, check_reply};
use devices::scsi::{Cd, CdConfig, Disk, DiskConfig, Image, LogicalUnit, Lun, Nexus, ScsiReply, Target};
use devices::testing::RamDisk;

/// The one thing that a file of `targets` says: what is done with an input.
#[macro_export]
macro_rules! target {
    (|$input:ident: &[u8]| $body:block) => {
        #[cfg(fuzzing)]
        libfuzzer_sys::fuzz_target!(|$input: &[u8]| $body);

        /// Without libFuzzer: for one input.
        #[cfg(not(fuzzing))]
        pub fn run($input: &[u8]) $body

        #[cfg(not(fuzzing))]
        #[allow(dead_code)]
        fn main() {
            std::env::args().skip(1).for_each(|path| run(&std::fs::read(path).expect("an input")));
        }
    };
}

/// Most bytes of a data buffer: some blocks.
pub const MAX_DATA: usize = 4096;

/// Takes values off the front of a fuzzer's bytes; zeros when there are no more.
pub struct Bytes<'a>(pub &'a [u8]);

impl<'a> Bytes<'a> {
    /// Whether all were taken.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The next `len` bytes, or what is left.
    pub fn take(&mut self, len: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        taken
    }

    /// The next byte.
    pub fn u8(&mut self) -> u8 {
        self.take(1).first().copied().unwrap_or(0)
    }

    /// The next two bytes, big-endian.
    pub fn u16(&mut self) -> u16 {
        u16::from_be_bytes([self.u8(), self.u8()])
    }
}

/// A command as the inputs of `scsi-commands` hold it: length of the CDB, of the data out and of the data in, then the
/// CDB and the data out.
pub struct Command {
    pub cdb: Vec<u8>,
    pub data_out: Vec<u8>,
    pub data_in_len: usize,
}

impl Command {
    pub fn read(bytes: &mut Bytes<'_>) -> Self {
        let (cdb_len, out_len, in_len) = (bytes.u8(), bytes.u16(), bytes.u16());
        Self {
            cdb: bytes.take(1 + usize::from(cdb_len) % 40).to_vec(),
            data_out: bytes.take(usize::from(out_len) % (MAX_DATA + 1)).to_vec(),
            data_in_len: usize::from(in_len) % (MAX_DATA + 1),
        }
    }

    pub fn write(&self, to: &mut Vec<u8>) {
        to.push(self.cdb.len() as u8 - 1);
        to.extend((self.data_out.len().min(MAX_DATA) as u16).to_be_bytes());
        to.extend((self.data_in_len.min(MAX_DATA) as u16).to_be_bytes());
        to.extend(&self.cdb);
        to.extend(self.data_out.iter().take(MAX_DATA));
    }
}

/// The name of the first disk, which copies can use. That of the second is one more.
pub const WWN: u64 = 0x5000_c500_1234_5678;

/// Two small disks at LUN 0 and 1: the second thick, with blocks of 4096 bytes.
pub fn target() -> Arc<Target> {
    let target = Target::new();
    for (number, discard, block_size) in [(0, true, 512), (1, false, 4096)] {
        let wwn = Some(WWN + u64::from(number));
        let config = DiskConfig { wwn, discard, block_size, ..DiskConfig::default() };
        let image = Arc::new(Image::Ram(RamDisk::new(256 << 10)));
        let disk = LogicalUnit::Disk(Disk::new(image, config).expect("the configuration is good"));
        target.attach(Lun::from_number(number), disk).expect("the LUN is free");
    }
    target
}

/// A disc of some sectors.
fn disc() -> Arc<Image> {
    Arc::new(Image::Ram(RamDisk::new(128 << 10)))
}

/// A CD drive with a disc.
fn drive() -> Arc<Target> {
    let target = Target::new();
    let config = CdConfig { serial: "1".into(), ..CdConfig::default() };
    let drive = LogicalUnit::Cd(Cd::new(Some(disc()), config).expect("the configuration is good"));
    target.attach(Lun::default(), drive).expect("the LUN is free");
    target
}

/// Whoever has the image of a drive's disc changes it, now and then.
fn operate(drive: &Target, command: &Command) {
    let (lun, force) = (Lun::default(), command.cdb.len() & 1 == 0);
    match command.data_in_len % 8 {
        5 => drop(drive.eject(lun, force)),
        6 => drop(drive.insert(lun, disc())),
        7 => drop(drive.change(lun, disc(), force)),
        _ => {}
    }
}

/// Sends commands to LUN 0 of a fresh target, after its unit attention, and to a CD drive, and checks what must hold for each
/// reply.
pub fn send_all(commands: Vec<Command>) {
    on_io_thread(move |io| async move {
        let target = target();
        let nexus = Nexus::new(target, None);
        for lun in [0, 1] {
            let mut ready = Request::new(&[0; 6], &[], 0);
            ready.lun = Lun::from_number(lun);
            let _ = ready.send(&nexus, &io).await;
        }
        let mut token: Option<Vec<u8>> = None;
        let drive = drive();
        let host = Nexus::new(drive.clone(), None);
        let _ = Request::new(&[0; 6], &[], 0).send(&host, &io).await;
        for command in commands {
            operate(&drive, &command);
            let Command { cdb, mut data_out, data_in_len } = command;
            let (reply, data_in) = Request::new(&cdb, &data_out, data_in_len).send(&host, &io).await;
            check_reply(&cdb, data_out.len(), &data_in, &reply.expect("nothing ends commands here"));
            if let (Some(token), [0x83, 0x11, ..], Some(place)) = (&token, &*cdb, data_out.get_mut(16..528)) {
                place.copy_from_slice(token);
            }
            let (reply, data_in) = Request::new(&cdb, &data_out, data_in_len).send(&nexus, &io).await;
            let reply = reply.expect("nothing ends commands here");
            check_reply(&cdb, data_out.len(), &data_in, &reply);
            if cdb.starts_with(&[0x84, 0x07]) {
                token = token_of(&data_in);
            }
            if cdb.first() == Some(&SANITIZE) {
                assert_eq!(sense_of(&reply), Some((0x5, 0x20, 0x00)), "INVALID COMMAND OPERATION CODE");
            }
        }
    });
}

/// The token that RECEIVE ROD TOKEN INFORMATION tells (SPC-5, 6.34): no input can guess it.
fn token_of(data: &[u8]) -> Option<Vec<u8>> {
    let at = 32 + usize::from(*data.get(13)?);
    let len = u32::from_be_bytes(data.get(at..at + 4)?.try_into().ok()?);
    (len >= 514).then(|| data.get(at + 6..at + 518).map(<[u8]>::to_vec))?
}

/// There is none.
const SANITIZE: u8 = 0x48;

/// Sense key, ASC and ASCQ.
fn sense_of(reply: &ScsiReply) -> Option<(u8, u8, u8)> {
    match *reply.sense.as_ref()?.as_bytes() {
        [0x72 | 0x73, key, code, qualifier, ..] => Some((key & 0x0f, code, qualifier)),
        [_, _, key, _, _, _, _, _, _, _, _, _, code, qualifier, ..] => Some((key & 0x0f, code, qualifier)),
        _ => None,
    }
}

/// An I/O thread that polls, but no longer than it takes to begin: else that is what most of the processor is used for.
pub fn io_thread() -> IoThread {
    let polling = Polling::Adaptive(Duration::from_micros(20));
    IoThread::with("fuzz", Settings { polling, ..Settings::default() }).expect("an I/O thread")
}

/// Runs a future on the one I/O thread of this process and waits for it.
pub fn on_io_thread<T, F, M>(make: M) -> T
where
    T: Send + 'static,
    F: Future<Output = T> + 'static,
    M: FnOnce(Io) -> F + Send + 'static,
{
    static THREAD: OnceLock<IoThread> = OnceLock::new();
    let thread = THREAD.get_or_init(io_thread);
    let (done, result) = mpsc::sync_channel(1);
    thread.remote().spawn(move |io| {
        let future = make(io);
        async move { drop(done.send(future.await)) }
    });
    result.recv().expect("the task ended")
}

/// A qcow2 image of 64 KiB: version 3, nothing allocated.
pub const QCOW2: &[u8] = include_bytes!("../seeds/qcow2-images/v3.qcow2");

/// The bytes as text in which no path leads out of the folder that paths are relative to; `None` where one might that is
/// written some other way.
pub fn harmless(bytes: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(bytes).replace("..", "__");
    // An escape of JSON or TOML for a slash or a dot.
    if text.to_ascii_lowercase().split('\\').skip(1).any(|rest| {
        let digits: String = rest.chars().take(9).collect();
        rest.starts_with('/')
            || rest.starts_with(['u', 'x']) && (digits.contains("2f") || digits.contains("2e"))
    }) {
        return None;
    }
    let mut clean = String::with_capacity(text.len());
    for (at, character) in text.char_indices() {
        // Within a name, or where descriptors are.
        let inside = clean.chars().next_back().is_some_and(|before| before.is_ascii_alphanumeric());
        let descriptors = text[at..].starts_with("/dev/fdset/");
        clean.push(if character == '/' && !inside && !descriptors { '_' } else { character });
    }
    Some(clean)
}
