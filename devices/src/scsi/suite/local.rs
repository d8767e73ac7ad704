//! The suite over the SCSI layer alone.

use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;

pub(super) use super::request::Request;
use super::{Initiator, Outcome, RecordingDisk, config, image, settle, tests};
use crate::iothread::Io;
use crate::scsi::{Disk, DiskConfig, Image, LogicalUnit, Lun, Nexus, Residual, Target};
use crate::storage::Geometry;
use crate::testing::RamDisk;

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Runs a future on this thread.
pub(in crate::scsi) fn block_on<T>(future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    loop {
        if let Poll::Ready(done) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return done;
        }
        std::thread::park();
    }
}

pub(super) fn disk(image: RecordingDisk, config: DiskConfig) -> LogicalUnit {
    disk_of(Arc::new(Image::Recording(image)), config)
}

pub(super) fn disk_of(image: Arc<Image>, config: DiskConfig) -> LogicalUnit {
    LogicalUnit::Disk(Disk::new(image, config).unwrap())
}

/// An initiator on a nexus.
pub(super) struct Local {
    pub(super) nexus: Arc<Nexus>,
    pub(super) lun: Lun,
    io: Io,
}

impl Local {
    pub(super) fn new(target: &Arc<Target>) -> Self {
        Self { nexus: Nexus::new(target.clone(), None), lun: Lun::default(), io: Io::for_test() }
    }
}

impl Initiator for Local {
    fn command(&mut self, cdb: &[u8], data_out: &[u8], data_in_len: usize) -> Outcome {
        let mut request = Request::new(cdb, data_out, data_in_len);
        request.lun = self.lun;
        let (reply, data_in) = block_on(request.send(&self.nexus, &self.io));
        let reply = reply.expect("a reply");
        let residual = if data_out.is_empty() { reply.residual_in } else { reply.residual_out };
        if data_out.is_empty() && data_in_len == 0 {
            assert_eq!(reply.residual_out, Residual::Exact, "CDB {cdb:02x?}");
        }
        Outcome {
            status: reply.status as u8,
            sense: reply.sense.map(|sense| sense.as_bytes().to_vec()).unwrap_or_default(),
            data_in,
            residual: Some(residual),
        }
    }
}

/// A target whose LUN 0 is `disk`.
pub(super) fn target_of(disk: LogicalUnit) -> Arc<Target> {
    let target = Target::new();
    target.attach(Lun::default(), disk).unwrap();
    target
}

#[test]
fn suite_passes() {
    let mut failed = Vec::new();
    for (name, test) in tests() {
        let mut initiator = Local::new(&target_of(disk(image(), config())));
        let run = std::panic::AssertUnwindSafe(|| test(&mut initiator));
        if std::panic::catch_unwind(run).is_err() {
            failed.push(name);
        }
    }
    assert_eq!(failed, Vec::<&str>::new());
}

/// What VPD page B0h says of atomic writes, and what WRITE ATOMIC of the first 4096 bytes is answered with.
fn atomic_of(image: RamDisk, config: DiskConfig) -> (Vec<u8>, u8, Vec<u8>, bool) {
    let block = config.block_size as usize;
    let mut i = Local::new(&target_of(disk_of(Arc::new(Image::Ram(image)), config)));
    settle(&mut i);
    let limits = i.command(&[0x12, 1, 0xb0, 0, 64, 0], &[], 64).data_in[44..64].to_vec();
    let blocks = (4096 / block) as u8;
    let write = i.command(&[0x9c, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, blocks, 0, 0], &[7; 4096], 0);
    let listed = i.command(&[0xa3, 0x0c, 1, 0x9c, 0, 0, 0, 0, 0, 64, 0, 0], &[], 64);
    let sense = write.sense.get(..14).map(|sense| vec![sense[2] & 0x0f, sense[12], sense[13]]);
    (limits, write.status, sense.unwrap_or_default(), listed.data_in[1] & 7 == 3)
}

#[test]
fn only_what_the_host_guarantees_is_atomic() {
    let of = |physical, atomic| {
        let change =
            |geometry: &mut Geometry| (geometry.physical_block, geometry.atomic) = (physical, atomic);
        RamDisk::new(1 << 20).with_geometry(change)
    };
    let configured =
        |block_size, physical_block_size| DiskConfig { block_size, physical_block_size, ..config() };
    let refused = (vec![0; 20], 2, vec![0x5, 0x20, 0x00], false);
    // A block that the file system calls physical, or the administrator, promises nothing.
    assert_eq!(atomic_of(of(4096, 0), config()), refused);
    assert_eq!(atomic_of(of(512, 0), configured(512, Some(4096))), refused);
    // Less than a logical block is of no use; a disk that cannot be written to has no atomic writes.
    assert_eq!(atomic_of(of(512, 512), configured(4096, Some(4096))), refused);
    assert_eq!(atomic_of(of(4096, 4096), DiskConfig { read_only: true, ..config() }), refused);
    let eight = [0, 0, 0, 8, 0, 0, 0, 8, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0].to_vec();
    let done = (eight, 0, vec![], true);
    assert_eq!(atomic_of(of(4096, 4096), config()), done);
    assert_eq!(atomic_of(of(4096, 4096), configured(512, Some(512))), done, "whatever is said of alignment");
}
