//! Requests whose data buffers are their own, and what every reply must be, whatever was asked.

use super::FILL;
use crate::iothread::Io;
use crate::mem::{FromGuest, SgList, ToGuest};
use crate::scsi::{
    Cdb, DataBuffers, Lun, Nexus, Residual, ScsiReply, ScsiRequest, Status, Tag, TaskAttribute,
    TransportFault,
};

/// A request with data buffers of its own.
#[derive(Debug)]
pub struct Request {
    /// The logical unit.
    pub lun: Lun,
    /// The task tag.
    pub tag: u64,
    /// Ordering.
    pub attribute: TaskAttribute,
    cdb: Vec<u8>,
    data_out: Vec<u8>,
    data_in_len: usize,
}

impl Request {
    /// A SIMPLE command for LUN 0.
    pub fn new(cdb: &[u8], data_out: &[u8], data_in_len: usize) -> Self {
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
    ///
    /// # Panics
    /// When the host has no memory.
    pub async fn send(self, nexus: &Nexus, io: &Io) -> (Result<ScsiReply, TransportFault>, Vec<u8>) {
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

/// Checks what holds for every reply: residuals that fit the buffers, sense data with CHECK CONDITION and only
/// there, no byte of data beyond what the residual admits to.
///
/// # Panics
/// When the reply is out of order.
pub fn check_reply(cdb: &[u8], data_out_len: usize, data_in: &[u8], reply: &ScsiReply) {
    let what = || format!("CDB {cdb:02x?}: {reply:?}");
    let moved_in = moved(reply.residual_in, data_in.len());
    assert!(moved_in.is_some() && moved(reply.residual_out, data_out_len).is_some(), "{}", what());
    assert_eq!(reply.status == Status::CheckCondition, reply.sense.is_some(), "{}", what());
    let moved_in = moved_in.unwrap_or(0);
    assert!(data_in[moved_in..].iter().all(|byte| *byte == FILL), "{}", what());
    if reply.status != Status::Good && reply.status != Status::CheckCondition {
        assert_eq!(moved_in, 0, "{}", what());
    }
    if let Some(sense) = reply.sense {
        let sense = sense.as_bytes();
        assert!(sense[0] == 0x72 || sense.len() == 18 && sense[0] & 0x7f == 0x70, "{}", what());
        assert_eq!(usize::from(sense[7]) + 8, sense.len(), "{}", what());
    }
}

/// Bytes moved according to a residual; `None` when it contradicts the buffer.
fn moved(residual: Residual, offered: usize) -> Option<usize> {
    match residual {
        Residual::Exact => Some(offered),
        Residual::Under(rest) => (rest > 0).then(|| offered.checked_sub(rest as usize))?,
        Residual::Over(rest) => (rest > 0).then_some(offered),
    }
}
