//! Information units of the Fibre Channel Protocol for SCSI (FCP-4 clause 9).

use crate::bytes::Fields;

/// Task management flags of FCP_CMND (FCP-4 9.1, table of them).
pub(crate) mod task {
    pub(crate) const ABORT_TASK_SET: u8 = 0x02;
    pub(crate) const CLEAR_TASK_SET: u8 = 0x04;
    pub(crate) const LOGICAL_UNIT_RESET: u8 = 0x10;
    pub(crate) const TARGET_RESET: u8 = 0x20;
    pub(crate) const QUERY_TASK_SET: u8 = 0x01;
}

/// RSP_CODE of FCP_RSP (FCP-4 9.5, table of them).
pub(crate) mod code {
    pub(crate) const COMPLETE: u8 = 0x00;
    pub(crate) const FIELDS_INVALID: u8 = 0x02;
    pub(crate) const REJECTED: u8 = 0x04;
    pub(crate) const FAILED: u8 = 0x05;
    pub(crate) const INCORRECT_LUN: u8 = 0x09;
}

/// An FCP_CMND.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Command {
    pub(crate) lun: [u8; 8],
    pub(crate) management: u8,
    /// The first sixteen bytes of it; no longer ones are known here.
    pub(crate) cdb: [u8; 16],
    /// What may be sent to the initiator, and by it.
    pub(crate) read: u32,
    pub(crate) write: u32,
}

impl Command {
    pub(crate) fn read(payload: &[u8]) -> Option<Self> {
        let flags = payload.byte(11)?;
        let additional = usize::from(flags >> 2) * 4;
        let length = payload.be32(28 + additional)?;
        let (write, read) = match flags & 3 {
            0 => (0, 0),
            1 => (length, 0),
            2 => (0, length),
            // Both ways: a second length, for what is read.
            _ => (length, payload.be32(32 + additional)?),
        };
        let (lun, management, cdb) = (payload.chunk(0)?, payload.byte(10)?, payload.chunk(12)?);
        Some(Self { lun, management, cdb, read, write })
    }
}

/// An FCP_XFER_RDY (FCP-4 9.3): from where, how much.
pub(crate) fn transfer_ready(offset: u32, length: u32) -> Vec<u8> {
    [offset.to_be_bytes(), length.to_be_bytes(), [0; 4]].concat()
}

/// What an FCP_RSP says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Response {
    pub(crate) status: u8,
    pub(crate) sense: Option<Vec<u8>>,
    /// What the initiator allows less what there is to move: positive for an underrun.
    pub(crate) residual: i64,
    pub(crate) code: Option<u8>,
}

impl Response {
    pub(crate) fn payload(&self) -> Vec<u8> {
        // FCP_RSP_LEN_VALID, FCP_SNS_LEN_VALID, FCP_RESID_OVER, FCP_RESID_UNDER.
        let flags = u8::from(self.code.is_some())
            | u8::from(self.sense.is_some()) << 1
            | u8::from(self.residual < 0) << 2
            | u8::from(self.residual > 0) << 3;
        let residual = u32::try_from(self.residual.unsigned_abs()).unwrap_or(u32::MAX);
        let information = self.code.map(|code| [0, 0, 0, code, 0, 0, 0, 0]);
        let information = information.as_ref().map_or(&[][..], |bytes| bytes);
        let sense = self.sense.as_deref().unwrap_or_default();
        let length = |bytes: &[u8]| u32::try_from(bytes.len()).unwrap_or_default().to_be_bytes();
        let mut payload = vec![0; 10];
        payload.extend([flags, self.status]);
        payload.extend(residual.to_be_bytes());
        payload.extend(length(sense));
        payload.extend(length(information));
        payload.extend_from_slice(information);
        payload.extend_from_slice(sense);
        payload
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_read() {
        let mut bytes = vec![0x42, 0x01, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2];
        bytes.extend([0x12, 0, 0, 0, 36, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        bytes.extend([0, 0, 0, 36]);
        let command = Command::read(&bytes).unwrap();
        assert_eq!((command.lun[..2].to_vec(), command.cdb[0]), (vec![0x42, 0x01], 0x12));
        assert_eq!((command.read, command.write), (36, 0));
        for length in 0..32 {
            assert_eq!(Command::read(&bytes[..length]), None);
        }
        // A longer CDB is before the length; both ways there are two.
        bytes[11] = 4 | 1;
        assert_eq!(Command::read(&bytes), None);
        bytes.extend([0, 0, 2, 0]);
        assert_eq!(Command::read(&bytes).unwrap().write, 512);
        bytes[11] = 3;
        assert_eq!(Command::read(&bytes).map(|command| (command.write, command.read)), Some((36, 512)));
        bytes[11] = 0xff;
        assert_eq!(Command::read(&bytes), None);
    }

    #[test]
    fn responses_are_written() {
        let good = Response::default().payload();
        assert_eq!(good, [0; 24]);
        let busy = Response { status: 8, residual: 512, ..Response::default() }.payload();
        assert_eq!(busy[8..24], [0, 0, 0x08, 8, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        let sense = [0x70, 0, 5, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x25, 0, 0, 0, 0, 0];
        let check =
            Response { status: 2, sense: Some(sense.to_vec()), residual: -4, code: Some(0) }.payload();
        assert_eq!(check[10..24], [0x07, 2, 0, 0, 0, 4, 0, 0, 0, 18, 0, 0, 0, 8]);
        assert_eq!(check[24..32], [0; 8]);
        assert_eq!(check[32..], sense);
        assert_eq!(transfer_ready(0, 4096), [0, 0, 0, 0, 0, 0, 16, 0, 0, 0, 0, 0]);
    }
}
