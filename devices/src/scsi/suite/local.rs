//! The suite over the SCSI layer alone.

use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;

use super::{FILL, Initiator, Outcome, RecordingDisk, config, image, tests};
use crate::iothread::Io;
use crate::mem::{FromGuest, SgList, ToGuest};
use crate::scsi::{
    Cdb, DataBuffers, Disk, DiskConfig, Image, LogicalUnit, Lun, Nexus, Residual, ScsiReply, ScsiRequest,
    Tag, Target, TaskAttribute, TransportFault,
};

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
    LogicalUnit::Disk(Disk::new(Arc::new(Image::Recording(image)), config).unwrap())
}

/// A request with data buffers of its own.
pub(super) struct Request {
    pub(super) lun: Lun,
    pub(super) tag: u64,
    pub(super) attribute: TaskAttribute,
    cdb: Vec<u8>,
    data_out: Vec<u8>,
    data_in_len: usize,
}

impl Request {
    pub(super) fn new(cdb: &[u8], data_out: &[u8], data_in_len: usize) -> Self {
        Self {
            lun: Lun::default(),
            tag: 0,
            attribute: TaskAttribute::Simple,
            cdb: cdb.to_vec(),
            data_out: data_out.to_vec(),
            data_in_len,
        }
    }

    /// Sends the request on `nexus`; gives the reply and the data-in buffer.
    pub(super) async fn send(self, nexus: &Nexus, io: &Io) -> (Result<ScsiReply, TransportFault>, Vec<u8>) {
        let buffer = |len: usize| SgList::host(len, 16).unwrap().window(0, len as u64);
        let (data_in, data_out) = (buffer(self.data_in_len), buffer(self.data_out.len()));
        let fill = vec![FILL; self.data_in_len];
        ToGuest::new(data_in.window(0, u64::MAX)).write_at(0, &fill);
        ToGuest::new(data_out.window(0, u64::MAX)).write_at(0, &self.data_out);
        let seen = FromGuest::new(data_in.window(0, u64::MAX));
        let request = ScsiRequest {
            tag: Tag(self.tag),
            lun: self.lun,
            cdb: Cdb::new(&self.cdb),
            attribute: self.attribute,
            priority: 0,
            data: DataBuffers::new(FromGuest::new(data_out), ToGuest::new(data_in)),
        };
        let reply = nexus.execute(io, request).await;
        let mut data = fill;
        seen.read_at(0, &mut data);
        (reply, data)
    }
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
