//! The unit over a file in the place of the node, and a device over the same file that does what a test says.

mod ends;
mod suite;
mod ways;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex};

use vm_memory::GuestAddress;

use super::Block;
use crate::iothread::Io;
use crate::mem::{Dma, FromGuest, GuestRam, ToGuest};
use crate::scsi::generic::{Allow, Answer, Command, Direction, GenericConfig, Host, HostLimits};
use crate::scsi::suite::Request;
use crate::scsi::{Generic, LogicalUnit, Lun, MAX_SENSE, Nexus, ScsiReply, Target, TransportFault};
use crate::storage::{CacheMode, Image, RawImage, RawOptions, Sharing};
use crate::testing::temp_file;

const BLOCK: usize = 512;
const BLOCKS: usize = 2048;

/// A command as the device got it: its CDB and the data that it brought.
type Seen = (Vec<u8>, Vec<u8>);
/// What the device says to a command; `None` to carry it out.
type Script = dyn Fn(&Command) -> Option<io::Result<Answer>> + Send + Sync;

/// A disk whose blocks are in a file.
struct Device {
    file: File,
    device_type: u8,
    removable: bool,
    script: Box<Script>,
    seen: Mutex<Vec<Seen>>,
}

impl Host for Device {
    fn execute(&self, command: &Command) -> io::Result<Answer> {
        let cdb = command.cdb.padded();
        let mut data =
            vec![0; if command.direction == Direction::Out { command.data.len() as usize } else { 0 }];
        FromGuest::new(command.data.window(0, u64::MAX)).read_at(0, &mut data);
        self.seen.lock().unwrap().push((command.cdb.as_bytes().to_vec(), data.clone()));
        if let Some(answer) = (self.script)(command) {
            return answer;
        }
        let (ten, sixteen) = (u32::from_be_bytes([cdb[2], cdb[3], cdb[4], cdb[5]]), u64::from(cdb[9]));
        match cdb[0] {
            0x12 if cdb[1] == 0 => {
                give(command, &[self.device_type, u8::from(self.removable) << 7, 6, 2, 31])
            }
            0x12 => give(command, &[0, 0, 0, 2, 0, 0xb0]),
            0x25 => give(command, &[0, 0, 0x0f, 0xff, 0, 0, 2, 0]),
            0x28 | 0x88 => {
                let lba = if cdb[0] == 0x28 { u64::from(ten) } else { sixteen };
                let mut bytes = vec![0; command.data.len() as usize];
                let have = self.file.read_at(&mut bytes, lba * BLOCK as u64)?;
                give(command, &bytes[..have])
            }
            0x2a | 0x8a => {
                let lba = if cdb[0] == 0x2a { u64::from(ten) } else { sixteen };
                self.file.write_all_at(&data, lba * BLOCK as u64)?;
                Ok(Answer::good())
            }
            _ => Ok(Answer::good()),
        }
    }

    fn reset(&self) -> io::Result<()> {
        Ok(())
    }
}

/// GOOD with these bytes.
fn give(command: &Command, bytes: &[u8]) -> io::Result<Answer> {
    let wrote = ToGuest::new(command.data.window(0, u64::MAX)).write_at(0, bytes);
    Ok(Answer { residual: (command.data.len() - wrote as u64) as i32, ..Answer::good() })
}

/// This status and fixed sense data with this key, ASC and ASCQ; nothing is moved.
fn check(command: &Command, status: u8, (key, asc, ascq): (u8, u8, u8)) -> Answer {
    let mut sense = [0; MAX_SENSE];
    (sense[0], sense[2], sense[7], sense[12], sense[13]) = (0x70, key, 10, asc, ascq);
    let sense_len = if status == 2 { 18 } else { 0 };
    Answer { status, residual: command.data.len() as i32, sense, sense_len, ..Answer::good() }
}

fn errno<T>(error: i32) -> Option<io::Result<T>> {
    Some(Err(io::Error::from_raw_os_error(error)))
}

/// What each block of the file holds at first.
fn pattern(lba: usize) -> Vec<u8> {
    (0..BLOCK).map(|at| (at as u8).wrapping_mul(3) ^ lba as u8 ^ (lba >> 8) as u8).collect()
}

fn full_file() -> tempfile::NamedTempFile {
    let file = temp_file();
    let bytes: Vec<u8> = (0..BLOCKS).flat_map(pattern).collect();
    file.as_file().write_all_at(&bytes, 0).unwrap();
    file
}

/// How a bench is made.
struct Setup {
    device_type: u8,
    allow: Allow,
    bounce: bool,
    block: Option<u32>,
    script: Box<Script>,
}

impl Setup {
    fn new() -> Self {
        let block = Some(BLOCK as u32);
        Self { device_type: 0, allow: Allow::All, bounce: false, block, script: Box::new(|_| None) }
    }

    fn saying(script: impl Fn(&Command) -> Option<io::Result<Answer>> + Send + Sync + 'static) -> Self {
        Self { script: Box::new(script), ..Self::new() }
    }
}

/// A unit at LUN 0.
struct Bench {
    file: tempfile::NamedTempFile,
    device: Arc<Device>,
    target: Arc<Target>,
    nexus: Arc<Nexus>,
    successor: Box<Successor>,
    doubter: Box<dyn Fn(bool)>,
    config: GenericConfig,
}

/// See [`Generic::successor`].
type Successor = dyn Fn(Option<Arc<dyn Host>>, Option<Arc<Image>>, &GenericConfig);

impl Bench {
    async fn new(io: &Io, setup: Setup) -> Self {
        let file = full_file();
        let open = |cache| {
            let (path, read_only) = (file.path().into(), setup.allow == Allow::ReadOnly);
            RawImage::open(&RawOptions { path, read_only, cache, sharing: Sharing::Unlocked })
        };
        // As a node, where the file system has direct I/O.
        let image = Image::Raw(open(CacheMode::None).or_else(|_| open(CacheMode::Writeback)).unwrap());
        let image = Arc::new(if setup.bounce { image.private().quiet() } else { image });
        Self::with(io, setup, file, image).await
    }

    /// With another image in the place of the node.
    async fn over(io: &Io, setup: Setup, image: Arc<Image>) -> Self {
        Self::with(io, setup, full_file(), image).await
    }

    async fn with(io: &Io, setup: Setup, file: tempfile::NamedTempFile, image: Arc<Image>) -> Self {
        let device = Arc::new(Device {
            file: file.reopen().unwrap(),
            device_type: setup.device_type,
            removable: false,
            script: setup.script,
            seen: Mutex::default(),
        });
        let config = GenericConfig {
            name: "/dev/sdz".into(),
            allow: setup.allow,
            bounce: setup.bounce,
            shared: false,
            depth: 8,
            limits: HostLimits { max_bytes: 64 << 10, max_segments: 16, ..HostLimits::default() },
            block: setup.block,
            size: Some((BLOCKS * BLOCK) as u64),
            wanted: None,
        };
        let generic = Generic::new(device.clone(), config.clone()).unwrap();
        let (successor, doubter) = (Box::new(generic.successor()), Box::new(generic.doubter()));
        let unit = Block::new(generic, image).unwrap();
        let target = Target::new();
        target.attach(Lun::default(), LogicalUnit::Block(unit)).unwrap();
        let nexus = Nexus::new(target.clone(), None);
        let bench = Self { file, device, target, nexus, successor, doubter, config };
        let (reply, _) = bench.send(io, &[0; 6], &[], 0).await;
        assert_eq!(reply.unwrap().sense.unwrap().as_bytes()[12], 0x29);
        bench.seen();
        bench
    }

    async fn send(
        &self,
        io: &Io,
        cdb: &[u8],
        data_out: &[u8],
        room: usize,
    ) -> (Result<ScsiReply, TransportFault>, Vec<u8>) {
        Request::new(cdb, data_out, room).send(&self.nexus, io).await
    }

    /// The device goes and comes back.
    fn replace(&self) {
        self.replace_with(None);
    }

    /// The same, with its blocks.
    fn replace_with(&self, blocks: Option<Arc<Image>>) {
        (self.successor)(None, None, &self.config);
        (self.successor)(Some(self.device.clone()), blocks, &self.config);
    }

    /// What came to the device since the last time.
    fn seen(&self) -> Vec<Seen> {
        std::mem::take(&mut self.device.seen.lock().unwrap())
    }

    fn cdbs(&self) -> Vec<Vec<u8>> {
        self.seen().into_iter().map(|(cdb, _)| cdb).collect()
    }

    fn blocks(&self, lba: usize, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count * BLOCK];
        self.file.as_file().read_exact_at(&mut bytes, (lba * BLOCK) as u64).unwrap();
        bytes
    }
}

/// Guest memory of 4 MiB.
fn memory() -> Dma {
    let dma = Dma::new(Arc::new(GuestRam::from_ranges(&[(GuestAddress(0), 4 << 20)]).unwrap()));
    dma.set_bus_master(true);
    dma
}

/// READ(10) or WRITE(10).
fn ten(opcode: u8, lba: u32, blocks: u16) -> [u8; 10] {
    let ([a, b, c, d], [e, f]) = (lba.to_be_bytes(), blocks.to_be_bytes());
    [opcode, 0, a, b, c, d, 0, e, f, 0]
}

/// Sense key, ASC and ASCQ in fixed format.
fn codes(reply: &ScsiReply) -> (u8, u8, u8) {
    let sense = reply.sense.unwrap();
    let bytes = sense.as_bytes();
    (bytes[2] & 0x0f, bytes[12], bytes[13])
}
