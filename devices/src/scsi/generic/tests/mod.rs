//! The unit over a device of the host that does what a test says.

mod answers;
mod comeback;
mod doubt;
mod ends;
mod order;
mod pieces;
mod seen;
mod speed;
mod warm;

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::{Allow, Answer, Command, Direction, Generic, GenericConfig, Host, HostLimits};
use crate::iothread::Io;
use crate::mem::{FromGuest, ToGuest};
use crate::scsi::suite::Request;
use crate::scsi::{LogicalUnit, Lun, MAX_SENSE, Nexus, ScsiReply, Target, TransportFault};

/// A command as the device got it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Seen {
    cdb: Vec<u8>,
    direction: Direction,
    len: u64,
    timeout: Duration,
    private: bool,
}

type Script = dyn Fn(&Command) -> io::Result<Answer> + Send + Sync;

/// A device that answers as its script says, and to INQUIRY as a disk or what it is told to be.
struct Fake {
    inquiry: Vec<u8>,
    pages: Vec<u8>,
    /// Where each command waits before it is answered.
    gate: Box<dyn Fn(&Command) + Send + Sync>,
    script: Box<Script>,
    seen: Mutex<Vec<Seen>>,
    resets: AtomicUsize,
    on_reset: Box<dyn Fn() -> io::Result<()> + Send + Sync>,
}

impl Fake {
    fn new(script: impl Fn(&Command) -> io::Result<Answer> + Send + Sync + 'static) -> Self {
        let mut inquiry = vec![0; 36];
        (inquiry[2], inquiry[3], inquiry[4]) = (6, 2, 31);
        inquiry[8..16].copy_from_slice(b"FAKE    ");
        Self {
            inquiry,
            pages: vec![0, 0, 0, 3, 0, 0x85, 0xb0],
            gate: Box::new(|_| {}),
            script: Box::new(script),
            seen: Mutex::default(),
            resets: AtomicUsize::new(0),
            on_reset: Box::new(|| Ok(())),
        }
    }

    fn of_type(mut self, device_type: u8) -> Self {
        self.inquiry[0] = device_type;
        self
    }

    /// What came since the last time, without what the unit asked when it was made.
    fn take_seen(&self) -> Vec<Seen> {
        std::mem::take(&mut self.seen.lock().unwrap())
    }

    fn cdbs(&self) -> Vec<Vec<u8>> {
        self.take_seen().into_iter().map(|seen| seen.cdb).collect()
    }
}

impl Host for Fake {
    fn execute(&self, command: &Command) -> io::Result<Answer> {
        let cdb = command.cdb.as_bytes().to_vec();
        let answer = match cdb[..3] {
            [0x12, 0, _] => Some(give(command, &self.inquiry)),
            [0x12, 1, 0] => Some(give(command, &self.pages)),
            _ => None,
        };
        let (direction, len) = (command.direction, command.data.len());
        let private = command.data.is_private();
        self.seen.lock().unwrap().push(Seen { cdb, direction, len, timeout: command.timeout, private });
        (self.gate)(command);
        answer.unwrap_or_else(|| (self.script)(command))
    }

    fn reset(&self) -> io::Result<()> {
        self.resets.fetch_add(1, Ordering::Relaxed);
        (self.on_reset)()
    }
}

/// GOOD with these bytes, as many as there is room for, in the command and in its memory.
fn give(command: &Command, bytes: &[u8]) -> io::Result<Answer> {
    let asked = usize::from(u16::from_be_bytes([command.cdb.padded()[3], command.cdb.padded()[4]]));
    let room = if command.cdb.opcode() == 0x12 { asked } else { usize::MAX };
    let part = &bytes[..bytes.len().min(room)];
    let wrote = ToGuest::new(command.data.window(0, u64::MAX)).write_at(0, part);
    Ok(Answer { residual: (command.data.len() - wrote as u64) as i32, ..Answer::good() })
}

/// The bytes that a command brings.
fn taken(command: &Command) -> Vec<u8> {
    let mut bytes = vec![0; command.data.len() as usize];
    FromGuest::new(command.data.window(0, u64::MAX)).read_at(0, &mut bytes);
    bytes
}

/// CHECK CONDITION with nothing moved.
fn check(command: &Command, sense: &[u8]) -> Answer {
    let mut all = [0; MAX_SENSE];
    all[..sense.len()].copy_from_slice(sense);
    let residual = command.data.len() as i32;
    Answer { status: 2, driver: 8, residual, sense: all, sense_len: sense.len() as u8, ..Answer::good() }
}

fn config() -> GenericConfig {
    GenericConfig {
        name: "/dev/sg0".into(),
        allow: Allow::All,
        bounce: false,
        shared: false,
        depth: 32,
        limits: HostLimits { max_bytes: 64 << 10, max_segments: 16, ..HostLimits::default() },
        block: None,
        size: Some(1 << 30),
        wanted: None,
    }
}

/// Makes a unit at `lun`; what it asked is forgotten.
fn attach(target: &Target, lun: Lun, fake: &Arc<Fake>, config: GenericConfig) {
    let unit = Generic::new(fake.clone(), config).unwrap();
    target.attach(lun, LogicalUnit::Generic(unit)).unwrap();
    fake.take_seen();
}

/// A nexus with the unit at LUN 0, whose POWER ON it has heard of.
async fn nexus_with(io: &Io, fake: &Arc<Fake>, config: GenericConfig) -> Arc<Nexus> {
    let target = Target::new();
    attach(&target, Lun::default(), fake, config);
    let nexus = Nexus::new(target, None);
    let (reply, _) = Request::new(&[0; 6], &[], 0).send(&nexus, io).await;
    assert_eq!(reply.unwrap().sense.unwrap().as_bytes()[12], 0x29);
    assert_eq!(fake.take_seen(), [], "the layer's own word");
    nexus
}

/// Sends one command; what comes back, and the data-in buffer.
async fn send(
    io: &Io,
    nexus: &Nexus,
    cdb: &[u8],
    data_out: &[u8],
    room: usize,
) -> (Result<ScsiReply, TransportFault>, Vec<u8>) {
    Request::new(cdb, data_out, room).send(nexus, io).await
}

/// Sense key, ASC and ASCQ in fixed format.
fn codes(reply: &ScsiReply) -> (u8, u8, u8) {
    let sense = reply.sense.unwrap();
    let bytes = sense.as_bytes();
    (bytes[2] & 0x0f, bytes[12], bytes[13])
}
