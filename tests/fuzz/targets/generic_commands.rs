//! CDBs with memory of a guest, both ways, at devices of the host whose answers are the fuzzer's. What a guest may not send never gets there,
//! tapes have one command at a time in order, nothing is told as moved that was not asked for, and memory that no list names is as it was.
#![cfg_attr(fuzzing, no_main)]

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::Poll;

use devices::mem::{Dma, FromGuest, GuestRam, ToGuest};
use devices::scsi::generic::{Allow, Answer, Command, Direction, Generic, GenericConfig, Host, HostLimits};
use devices::scsi::suite::Request;
use devices::scsi::{
    Cdb, DataBuffers, LogicalUnit, Lun, MAX_SENSE, Nexus, Residual, ScsiReply, ScsiRequest, Tag, Target,
    TaskAttribute, TransportFault,
};
use fuzz::{Bytes, on_io_thread};
use vm_memory::GuestAddress;

const PAGE: u64 = 4096;
/// Segments of a list at most, each in a page of its own, with a page behind it that nobody names.
const SEGMENTS: u64 = 3;
const COMMANDS: usize = 8;
/// Pages of one command: lists for both ways.
const PAGES: u64 = 4 * SEGMENTS;

type List = Vec<(u64, u32)>;
type Ended = Result<ScsiReply, TransportFault>;
type Running = Pin<Box<dyn Future<Output = Ended>>>;

/// What is in memory before anything is done.
fn before(address: u64) -> u8 {
    (address.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8
}

fn content(list: &List) -> Vec<u8> {
    list.iter().flat_map(|(at, len)| (*at..at + u64::from(*len)).map(before)).collect()
}

/// One answer of the host.
#[derive(Clone, Copy, Default)]
struct Says {
    error: u8,
    status: u8,
    host: u8,
    driver: u8,
    residual: i32,
    sense_len: u8,
    fill: u16,
}

impl Says {
    fn read(bytes: &mut Bytes<'_>) -> Self {
        // Mostly one that is believed.
        let shape = bytes.u8();
        let mut says = Self { fill: bytes.u16(), ..Self::default() };
        if shape & 1 != 0 {
            says.residual = i32::from(bytes.u16());
        }
        if shape & 2 != 0 {
            (says.status, says.sense_len) = (bytes.u8(), bytes.u8());
        }
        if shape & 4 != 0 {
            (says.host, says.driver) = (bytes.u8(), bytes.u8());
        }
        if shape & 8 != 0 {
            says.residual = i32::from(bytes.u16()) << 16 | i32::from(bytes.u16());
        }
        if shape & 0x30 == 0x30 {
            says.error = bytes.u8();
        }
        says
    }
}

struct Fake {
    kind: u8,
    allow: Allow,
    most: u64,
    answers: Mutex<VecDeque<Says>>,
    /// What was sent by the guest, in order, with what it brought.
    sent: Vec<(Cdb, Vec<u8>)>,
    seen: Mutex<Vec<Cdb>>,
    now: AtomicUsize,
}

impl Fake {
    fn is_sequential(&self) -> bool {
        matches!(self.kind, 1 | 8)
    }

    /// Commands that change the device, written down apart from what is tested.
    fn is_forbidden(&self, cdb: &Cdb) -> bool {
        let (opcode, bytes) = (cdb.opcode(), cdb.padded());
        let disk = self.kind == 0;
        let manages = match opcode {
            0x3b | 0x5f | 0x4c | 0x3f | 0xc0.. => true,
            0x04 | 0x48 | 0x83 | 0x84 | 0xa4 | 0x53 | 0x16 | 0x56 => disk,
            0x15 | 0x55 => !matches!(self.kind, 1 | 5) || bytes[1] & 1 != 0,
            0x1d => bytes[1] & 3 != 0,
            _ => false,
        };
        let writes = match opcode {
            0x2a | 0xaa | 0x2e => matches!(self.kind, 0 | 5),
            0x0a | 0x8a => matches!(self.kind, 0 | 1),
            0x41 | 0x42 | 0x89 | 0x35 | 0x91 => disk,
            0x10 | 0x19 => self.kind == 1,
            0xa5 | 0xa6 => self.kind == 8,
            0x93 => matches!(self.kind, 0 | 1),
            _ => false,
        };
        match self.allow {
            Allow::All => false,
            Allow::NoManagement => manages,
            Allow::ReadOnly => manages || writes,
        }
    }
}

impl Host for Fake {
    fn execute(&self, command: &Command) -> io::Result<Answer> {
        let here = self.now.fetch_add(1, Ordering::SeqCst) + 1;
        assert!(here == 1 || !self.is_sequential(), "two commands at a tape");
        assert!(!self.is_forbidden(&command.cdb), "{:02x?} at the device", command.cdb);
        let len = command.data.len();
        assert!(len <= self.most, "{len} bytes with one command");
        // Of no blocks there is nothing, whichever way it goes.
        assert!(command.direction != Direction::None || len == 0);
        self.seen.lock().unwrap().push(command.cdb);
        let says = self.answers.lock().unwrap().pop_front().unwrap_or_default();
        let all = || command.data.window(0, u64::MAX);
        if command.direction == Direction::Out && len > 0 {
            let mut bytes = vec![0; len as usize];
            FromGuest::new(all()).read_at(0, &mut bytes);
            let is_part = |brought: &[u8]| brought.windows(bytes.len()).any(|part| part == bytes);
            assert!(self.sent.iter().any(|(_, brought)| is_part(brought)), "data that nobody sent");
        } else {
            let fill = usize::from(says.fill).min(len as usize);
            ToGuest::new(all()).write_at(0, &vec![says.fill as u8; fill]);
        }
        self.now.fetch_sub(1, Ordering::SeqCst);
        if says.error != 0 {
            return Err(io::Error::from_raw_os_error(i32::from(says.error)));
        }
        Ok(Answer {
            status: says.status,
            host: says.host.into(),
            driver: says.driver.into(),
            residual: says.residual,
            sense: [says.status; MAX_SENSE],
            sense_len: says.sense_len,
        })
    }

    fn reset(&self) -> io::Result<()> {
        Ok(())
    }
}

/// INQUIRY for the unit, until it is made: then the fuzzer has the word.
struct Polite {
    fake: Arc<Fake>,
    made: Arc<AtomicBool>,
}

impl Host for Polite {
    fn execute(&self, command: &Command) -> io::Result<Answer> {
        let kind = self.fake.kind;
        let bytes = match command.cdb.padded() {
            _ if self.made.load(Ordering::SeqCst) => return self.fake.execute(command),
            [0x12, 0, ..] => vec![kind, 0, 6, 2, 31],
            [0x12, 1, 0, ..] => vec![kind, 0, 0, 2, 0, 0x83],
            [0x12, 1, page, ..] => vec![kind, *page, 0, 4, 1, 3, 0, 0],
            _ => panic!("{:02x?} before the unit is there", command.cdb),
        };
        let mut all = vec![0; command.data.len() as usize];
        all[..bytes.len()].copy_from_slice(&bytes);
        ToGuest::new(command.data.window(0, u64::MAX)).write_at(0, &all);
        Ok(Answer::good())
    }

    fn reset(&self) -> io::Result<()> {
        self.fake.reset()
    }
}

/// A list out of pages from this one on.
fn list(bytes: &mut Bytes<'_>, first: u64, count: u8) -> List {
    let segment = |number| {
        let (offset, len) = (u64::from(bytes.u16()), u64::from(bytes.u16()));
        // Whole pages, blocks, and anything.
        let offset = if offset & 1 == 0 { 0 } else { offset % PAGE };
        let len = if len & 1 == 0 { len & 0x1e00 } else { len };
        ((first + 2 * number) * PAGE + offset, (1 + len.saturating_sub(1) % (PAGE - offset)) as u32)
    };
    (0..u64::from(count) % (SEGMENTS + 1)).map(segment).collect()
}

struct Asked {
    cdb: Cdb,
    data_in: List,
    data_out: List,
    attribute: TaskAttribute,
}

fuzz::target!(|input: &[u8]| {
    let mut bytes = Bytes(input);
    let (kind, shape) = (bytes.u8(), bytes.u8());
    let kind = [0, 1, 3, 5, 8, 0x0d, 2][usize::from(kind % 7)];
    let bounce = shape & 1 != 0;
    let limits = HostLimits {
        max_bytes: if shape & 2 == 0 { 8192 } else { 512 << 10 },
        max_segments: if shape & 4 == 0 { 2 } else { 128 },
        lists: shape & 8 == 0,
        ..HostLimits::default()
    };
    let allow = [Allow::NoManagement, Allow::ReadOnly, Allow::All][usize::from(shape >> 4 & 3) % 3];
    let block = (shape & 0x40 == 0).then_some(512);
    let (mut commands, mut answers) = (Vec::new(), VecDeque::new());
    while !bytes.is_empty() && commands.len() < COMMANDS {
        let (len, ways) = (bytes.u8(), bytes.u8());
        let cdb = Cdb::new(bytes.take(1 + usize::from(len) % 32));
        let first = commands.len() as u64 * PAGES;
        let data_in = list(&mut bytes, first, ways & 7);
        let data_out = list(&mut bytes, first + 2 * SEGMENTS, ways >> 3 & 7);
        let attribute = if ways & 0x80 == 0 { TaskAttribute::Simple } else { TaskAttribute::HeadOfQueue };
        commands.push(Asked { cdb, data_in, data_out, attribute });
        for _ in 0..=(ways >> 6 & 1) {
            answers.push_back(Says::read(&mut bytes));
        }
    }
    let host = Arc::new(Fake {
        kind,
        allow,
        most: limits.max_bytes,
        answers: Mutex::new(answers),
        sent: commands.iter().map(|asked| (asked.cdb, content(&asked.data_out))).collect(),
        seen: Mutex::default(),
        now: AtomicUsize::new(0),
    });
    let config = GenericConfig {
        name: "fuzz".into(),
        allow,
        bounce,
        shared: false,
        depth: 4,
        limits,
        block,
        size: None,
        wanted: None,
    };
    on_io_thread(move |io| async move {
        let size = PAGES * COMMANDS as u64 * PAGE;
        let ram = GuestRam::from_ranges(&[(GuestAddress(0), size as usize)]).unwrap();
        let dma = Dma::new(Arc::new(ram));
        dma.set_bus_master(true);
        let used = PAGES * commands.len() as u64 * PAGE;
        let memory: Vec<u8> = (0..used).map(before).collect();
        let all = [(0, used as u32)];
        dma.to_guest(all).unwrap().write_at(0, &memory);
        let made = Arc::new(AtomicBool::new(false));
        let unit = Generic::new(Arc::new(Polite { fake: host.clone(), made: made.clone() }), config).unwrap();
        made.store(true, Ordering::SeqCst);
        let target = Target::new();
        target.attach(Lun::default(), LogicalUnit::Generic(unit)).unwrap();
        let nexus = Nexus::new(target.clone(), None);
        let _ = Request::new(&[0; 6], &[], 0).send(&nexus, &io).await;
        let run = |(tag, asked): (usize, &Asked)| {
            let data = DataBuffers::new(
                dma.from_guest(asked.data_out.clone()).unwrap(),
                dma.to_guest(asked.data_in.clone()).unwrap(),
            );
            let request = ScsiRequest {
                tag: Tag(tag as u64),
                lun: Lun::default(),
                cdb: asked.cdb,
                attribute: asked.attribute,
                priority: 0,
                data,
            };
            let (nexus, io) = (nexus.clone(), io.clone());
            Some(Box::pin(async move { nexus.execute(&io, request).await }) as Running)
        };
        let mut running: Vec<_> = commands.iter().enumerate().map(run).collect();
        let mut replies: Vec<Option<Ended>> = commands.iter().map(|_| None).collect();
        poll_fn(|cx| {
            for (future, reply) in running.iter_mut().zip(&mut replies) {
                if let Some(Poll::Ready(ended)) = future.as_mut().map(|future| future.as_mut().poll(cx)) {
                    (*future, *reply) = (None, Some(ended));
                }
            }
            if running.iter().all(Option::is_none) { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
        let mut after = vec![0; memory.len()];
        dma.from_guest(all).unwrap().read_at(0, &mut after);
        let mut expected = memory;
        for (asked, reply) in commands.iter().zip(replies) {
            let offered = |list: &List| list.iter().map(|(_, len)| u64::from(*len)).sum::<u64>();
            let mut moved = offered(&asked.data_in);
            if let Ok(reply) = reply.expect("it ended") {
                for (residual, offered) in [
                    (reply.residual_in, offered(&asked.data_in)),
                    (reply.residual_out, offered(&asked.data_out)),
                ] {
                    let left = match residual {
                        Residual::Exact => 0,
                        Residual::Under(left) => left,
                        // REPORT LUNS is this layer's, and says what it would have.
                        Residual::Over(_) if asked.cdb.opcode() == 0xa0 => 0,
                        Residual::Over(more) => panic!("{more} bytes more than there is room for"),
                    };
                    assert!(left <= offered, "{left} of {offered} bytes are left");
                }
                // Of pieces the first have come when a later one fails.
                if let (true, Residual::Under(left)) =
                    (bounce && moved <= limits.transfer(), reply.residual_in)
                {
                    moved -= left;
                }
            }
            // What came is the host's; the rest is as it was.
            for (at, len) in &asked.data_in {
                let part = moved.min(u64::from(*len)) as usize;
                let at = *at as usize;
                expected[at..at + part].copy_from_slice(&after[at..at + part]);
                moved -= part as u64;
            }
        }
        let place = expected.iter().zip(&after).position(|(expected, after)| expected != after);
        assert_eq!(place, None, "memory that was none of the commands'");
        if host.is_sequential() {
            let mut sent = host.sent.iter();
            for seen in host.seen.lock().unwrap().iter() {
                let same = |(sent, _): &(Cdb, _)| sent.padded().starts_with(seen.as_bytes());
                assert!(sent.any(same), "{seen:02x?} out of order, or twice");
            }
        }
        target.detach(Lun::default()).await.unwrap().close(&io).await.unwrap();
    });
});
