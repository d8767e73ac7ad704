//! Devices of the host behind the board: what it asks itself takes nothing away from the guest, and one that hangs does not
//! cost the board.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use devices::mem::ToGuest;
use devices::scsi::generic::{Answer, Command, Direction, GenericConfig, Host};
use devices::scsi::{Allow, Generic, HostLimits, LogicalUnit, Lun, MAX_SENSE, Nexus, Target};
use hba_megasas::{Drive, Model};

use crate::guest::{Frame, Guest, Reply, le32, options};

const PD_LIST_QUERY: u32 = 0x0201_0100;
const PD_GET_INFO: u32 = 0x0202_0000;
const CACHE_FLUSH: u32 = 0x0110_1000;
const EXPOSED: u8 = 5;
const INQUIRY: [u8; 6] = [0x12, 0, 0, 0, 36, 0];
/// NOT READY TO READY CHANGE, MEDIUM MAY HAVE CHANGED.
const CHANGED: (u8, u8, u8) = (6, 0x28, 0);

#[derive(Default)]
struct State {
    seen: Vec<u8>,
    /// The last command that it got: its CDB, which way its data goes, and how much that is.
    last: Option<(Vec<u8>, Direction, u64)>,
    /// Unit attention conditions that it has yet to report.
    pending: Vec<(u8, u8)>,
    /// Sense key and code that SYNCHRONIZE CACHE ends with.
    flush: Option<(u8, u8, u8)>,
    /// Operation codes that it does not answer.
    stopped: Option<fn(u8) -> bool>,
}

/// A device of this peripheral device type that says what a test wants.
struct Fake {
    device_type: u8,
    state: Mutex<State>,
    changed: Condvar,
}

impl Host for Fake {
    fn execute(&self, command: &Command) -> io::Result<Answer> {
        let opcode = command.cdb.opcode();
        let mut state = self.state.lock().unwrap();
        state.seen.push(opcode);
        state.last = Some((command.cdb.as_bytes().to_vec(), command.direction, command.data.len()));
        let stopped = |state: &mut State| state.stopped.is_some_and(|stops| stops(opcode));
        state = self.changed.wait_while(state, stopped).unwrap();
        let mut data = vec![0; 36];
        match (opcode, command.cdb.padded()[1]) {
            (0x12, 0) => {
                (data[0], data[2], data[4]) = (self.device_type, 6, 31);
                data[8..16].copy_from_slice(b"FAKE    ");
            }
            (0x12, _) => (data[0], data[1]) = (self.device_type, command.cdb.padded()[2]),
            _ if !state.pending.is_empty() => {
                let (asc, ascq) = state.pending.remove(0);
                let mut sense = [0; MAX_SENSE];
                sense[..14].copy_from_slice(&[0x70, 0, 6, 0, 0, 0, 0, 10, 0, 0, 0, 0, asc, ascq]);
                let residual = command.data.len() as i32;
                return Ok(Answer { status: 2, residual, sense, sense_len: 18, ..Answer::good() });
            }
            (0x35, _) if let Some((key, asc, ascq)) = state.flush => {
                let mut sense = [0; MAX_SENSE];
                sense[..14].copy_from_slice(&[0x70, 0, key, 0, 0, 0, 0, 10, 0, 0, 0, 0, asc, ascq]);
                return Ok(Answer { status: 2, sense, sense_len: 18, ..Answer::good() });
            }
            _ => data.clear(),
        }
        let wrote = ToGuest::new(command.data.window(0, u64::MAX)).write_at(0, &data) as u64;
        Ok(Answer { residual: (command.data.len() - wrote) as i32, ..Answer::good() })
    }

    fn reset(&self) -> io::Result<()> {
        Ok(())
    }
}

impl Fake {
    fn new(device_type: u8) -> Arc<Self> {
        Arc::new(Self { device_type, state: Mutex::default(), changed: Condvar::new() })
    }

    fn stop(&self, stops: fn(u8) -> bool) {
        self.state.lock().unwrap().stopped = Some(stops);
    }

    fn go_on(&self) {
        self.state.lock().unwrap().stopped = None;
        self.changed.notify_all();
    }

    fn pend(&self, codes: &[(u8, u8)]) {
        self.state.lock().unwrap().pending.extend(codes);
    }

    /// The operation codes that came since the last time.
    fn seen(&self) -> Vec<u8> {
        std::mem::take(&mut self.state.lock().unwrap().seen)
    }
}

/// A board with this device as drive 0, that a driver has started.
fn board(fake: &Arc<Fake>, allow: Allow) -> Guest {
    let config = GenericConfig {
        name: "/dev/sg0".into(),
        allow,
        bounce: true,
        shared: false,
        depth: 32,
        limits: HostLimits::default(),
        block: Some(512),
        size: Some(1 << 30),
        wanted: None,
    };
    let target = Target::new();
    let unit = LogicalUnit::Generic(Generic::new(fake.clone(), config).unwrap());
    target.attach(Lun([0; 8]), unit).unwrap();
    let drive = Drive { logical: None, physical: Nexus::new(target, None) };
    let mut guest = Guest::with(options(Model::Gen2), BTreeMap::from([(0, drive)]), BTreeMap::new());
    assert_eq!(guest.init(1009), 0);
    // The layer's own word: POWER ON.
    assert_eq!(codes(&ask(&mut guest, &[0; 6], 0)), (6, 0x29, 0));
    fake.seen();
    guest
}

fn ask(guest: &mut Guest, cdb: &[u8], len: usize) -> Reply {
    guest.scsi(4, 0, cdb, &[], len)
}

fn codes(reply: &Reply) -> (u8, u8, u8) {
    assert_eq!((reply.status, reply.scsi_status), (0x2d, 2));
    (reply.sense[2] & 0x0f, reply.sense[12], reply.sense[13])
}

/// The type that the list of drives has for drive 0.
fn listed_type(guest: &mut Guest) -> u8 {
    let (status, list) = guest.dcmd(PD_LIST_QUERY, &[EXPOSED], 8192);
    assert_eq!((status, le32(&list, 4)), (0, 1));
    list[8 + 6]
}

#[test]
fn the_board_s_questions_take_no_unit_attention() {
    for device_type in [0, 1, 5, 8] {
        let fake = Fake::new(device_type);
        let mut guest = board(&fake, Allow::All);
        fake.pend(&[(0x28, 0), (0x2a, 3)]);
        assert_eq!(listed_type(&mut guest), device_type);
        guest.dcmd(PD_GET_INFO, &[0, 0], 512);
        guest.dcmd(0x0201_0000, &[], 8192);
        let seen = fake.seen();
        assert!(seen.iter().all(|opcode| *opcode == 0x12), "{seen:02x?} at type {device_type:02x}h");
        assert_eq!(guest.dcmd(CACHE_FLUSH, &[3], 0).0, 0);
        assert_eq!(fake.seen(), if device_type == 0 { vec![0x35; 3] } else { vec![] });
        assert_eq!(codes(&ask(&mut guest, &[0; 6], 0)), CHANGED, "type {device_type:02x}h");
        assert_eq!(codes(&ask(&mut guest, &[0; 6], 0)), (6, 0x2a, 3));
        assert_eq!(ask(&mut guest, &[0; 6], 0).status, 0);
    }
}

/// There is nothing to flush of a disk that the guest may not write, and it is no failure.
#[test]
fn a_disk_that_the_guest_only_reads_is_not_flushed() {
    let fake = Fake::new(0);
    let mut guest = board(&fake, Allow::ReadOnly);
    assert_eq!(guest.dcmd(CACHE_FLUSH, &[3], 0).0, 0);
    assert_eq!(fake.seen(), []);
}

/// What could not be flushed is said: a disk whose path is in transition has its cache still.
#[test]
fn a_flush_counts_as_done_where_it_was_or_nothing_is_to_be_done() {
    for (says, wanted) in [
        ((2, 0x04, 0x02), 0),
        ((2, 0x04, 0x04), 0),
        ((5, 0x20, 0x00), 0),
        ((2, 0x04, 0x0a), 0x2e),
        ((2, 0x04, 0x0c), 0x2e),
        ((5, 0x25, 0x00), 0x2e),
    ] {
        let fake = Fake::new(0);
        let mut guest = board(&fake, Allow::All);
        fake.state.lock().unwrap().flush = Some(says);
        assert_eq!(guest.dcmd(CACHE_FLUSH, &[3], 0).0, wanted, "{says:02x?}");
    }
}

#[test]
fn a_drive_that_is_at_work_is_what_it_is() {
    for asked_before in [false, true] {
        let fake = Fake::new(1);
        let mut guest = board(&fake, Allow::All);
        if asked_before {
            assert_eq!(listed_type(&mut guest), 1);
        }
        fake.stop(|opcode| opcode == 0x01);
        let rewind = guest.send(&Frame::scsi(4, 0, &[0x01, 0, 0, 0, 0, 0]).context(3));
        guest.wait_for("REWIND", || fake.state.lock().unwrap().seen.contains(&0x01));
        assert_eq!(listed_type(&mut guest), 1, "asked before: {asked_before}");
        let (status, info) = guest.dcmd(PD_GET_INFO, &[0, 0], 512);
        assert_eq!((status, &info[0x0c..0x10]), (0, &b"FAKE"[..]));
        assert_eq!(guest.status_of(rewind), 0xff);
        fake.go_on();
        assert_eq!(guest.wait_reply(), 3);
    }
}

/// What vendors' commands do is not in their CDBs.
#[test]
fn data_of_vendors_commands_goes_as_the_frame_says() {
    let fake = Fake::new(0);
    let mut guest = board(&fake, Allow::All);
    let data = guest.alloc(512);
    for (flags, way) in
        [(0x10, Direction::In), (0x08, Direction::Out), (0, Direction::In), (0x18, Direction::In)]
    {
        for cdb in [&[0xc1, 1, 2, 3, 4, 5][..], &[0xe0; 10], &[0xff; 12], &[0xd0; 16]] {
            let frame = Frame::scsi(4, 0, cdb).flags(flags).context(3).len(512).sge(data, 512);
            guest.poll(frame);
            let last = fake.state.lock().unwrap().last.clone();
            assert_eq!(last, Some((cdb.to_vec(), way, 512)), "flags {flags:#x}");
        }
    }
}

/// The driver would take it for a disk, and never look again.
#[test]
fn a_device_that_never_answered_the_board_is_what_the_host_knows() {
    for device_type in [1, 8] {
        let fake = Fake::new(device_type);
        let mut guest = board(&fake, Allow::All);
        fake.stop(|_| true);
        assert_eq!(listed_type(&mut guest), device_type);
        fake.go_on();
    }
}

/// Linux gives up all drives when one does not answer what it repeats after a reset, whatever that is.
#[test]
fn a_device_that_answers_nothing_does_not_cost_the_board() {
    for device_type in [0, 1] {
        for lost in [INQUIRY, [0; 6], [0x1a, 0, 0x3f, 0, 36, 0]] {
            let fake = Fake::new(device_type);
            let mut guest = board(&fake, Allow::All);
            fake.stop(|_| true);
            let data = guest.alloc(36);
            let frame = Frame::scsi(4, 0, &lost).context(3);
            guest.send(&if lost[4] > 0 { frame.len(36).sge(data, 36) } else { frame });
            guest.wait_for("a command", || !fake.state.lock().unwrap().seen.is_empty());
            guest.adapter_reset();
            guest.wait_ready();
            assert_eq!(guest.init(1009), 0);
            let begin = Instant::now();
            let reply = ask(&mut guest, &INQUIRY, 36);
            assert_eq!((reply.status, &reply.data[8..12]), (0, &b"FAKE"[..]));
            assert_eq!(codes(&ask(&mut guest, &[0; 6], 0)), (6, 0x29, 7));
            for cdb in [[0; 6], [0x12, 1, 0x83, 0, 36, 0], [0x1a, 0, 0x3f, 0, 36, 0]] {
                let reply = ask(&mut guest, &cdb, 36);
                assert_eq!((reply.status, reply.scsi_status), (0x2d, 8), "{cdb:02x?}");
            }
            assert!(begin.elapsed() < Duration::from_secs(4), "{:?}", begin.elapsed());
            assert_eq!(listed_type(&mut guest), device_type);
            fake.go_on();
        }
    }
}
