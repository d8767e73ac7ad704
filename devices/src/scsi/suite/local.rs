//! The suite over the SCSI layer alone.

use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;

pub(super) use super::request::Request;
use super::{Initiator, Outcome, RecordingDisk, config, image, tests};
use crate::iothread::Io;
use crate::scsi::{Disk, DiskConfig, Image, LogicalUnit, Lun, Nexus, Residual, Target};

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Runs a future on this thread.
pub(super) fn block_on<T>(future: impl Future<Output = T>) -> T {
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
