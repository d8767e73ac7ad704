//! Frames: copied once out of guest memory, then looked at.

use devices::mem::{Dma, SgList};
use devices::scsi::Cdb;
use zerocopy::FromBytes;

use crate::spec::{
    BODY_OFFSET, FRAME_SIZE, FrameHeader, SGL_OFFSET_IO, SGL_OFFSET_SCSI, Status, command, flag,
};

/// Most bytes of one frame: the longest fixed part and 255 elements of 16 bytes.
const MAX_FRAME: usize = SGL_OFFSET_SCSI + 255 * 16;
/// Most bytes that one command moves.
pub(crate) const MAX_TRANSFER: u64 = 32 << 20;

/// A frame in private memory.
#[derive(Debug)]
pub(crate) struct Frame {
    pub(crate) header: FrameHeader,
    pub(crate) body: Body,
    /// Where sense data goes; 0 for nowhere.
    pub(crate) sense_address: u64,
    /// The data, both ways; or why the list is none.
    pub(crate) data: Result<SgList, Status>,
}

impl Frame {
    /// Bytes of its data.
    pub(crate) fn bytes(&self) -> u64 {
        self.data.as_ref().map_or(0, SgList::len)
    }

    /// Whether it is a command to a disk.
    pub(crate) fn is_command(&self) -> bool {
        matches!(self.body, Body::Io { .. } | Body::Scsi { .. })
    }
}

/// What a frame asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Body {
    /// Queue information at this address.
    Init(u64),
    /// READ or WRITE of a logical drive; byte 1 of the CDB, and the first block.
    Io { write: bool, access: u8, lba: u64 },
    /// A CDB for a logical or a physical drive.
    Scsi { physical: bool, cdb: Cdb },
    /// A direct command.
    Dcmd { opcode: u32, mailbox: [u8; 12] },
    /// The frame at `address`, which has `context`.
    Abort { context: u64, address: u64 },
    /// Something that is answered with a status only.
    Refused(Status),
}

/// Bytes of a frame, with fields read little-endian; what is beyond the end reads zero.
struct Bytes<'a>(&'a [u8]);

impl Bytes<'_> {
    fn array<const N: usize>(&self, at: usize) -> [u8; N] {
        let found = self.0.get(at..).and_then(|rest| rest.first_chunk());
        found.copied().unwrap_or([0; N])
    }

    fn u32(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.array(at))
    }

    fn u64(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.array(at))
    }
}

/// A buffer for the fetching of frames, so that it costs no allocation.
pub(crate) struct Fetcher(Box<[u8; MAX_FRAME]>);

impl Default for Fetcher {
    fn default() -> Self {
        Self(Box::new([0; MAX_FRAME]))
    }
}

impl Fetcher {
    /// Copies the frame at `address`; `None` when it is not in memory. Each byte is read once; how far is decided by
    /// the first part of the copy, not by the hint that came with the address.
    pub(crate) fn fetch(&mut self, dma: &Dma, address: u64, max_sges: u8) -> Option<Frame> {
        let (first, rest) = self.0.split_at_mut_checked(FRAME_SIZE)?;
        dma.read(address, first).ok()?;
        let (header, _) = FrameHeader::read_from_prefix(first).ok()?;
        let offset = match header.cmd {
            command::LD_SCSI | command::PD_SCSI => SGL_OFFSET_SCSI,
            _ => SGL_OFFSET_IO,
        };
        let list = usize::from(header.sge_count.min(max_sges)) * element_size(header.flags.get());
        let more = (offset + list).saturating_sub(FRAME_SIZE);
        if more > 0 {
            dma.read(address.checked_add(FRAME_SIZE as u64)?, rest.get_mut(..more)?).ok()?;
        }
        let bytes = self.0.get(..FRAME_SIZE + more)?;
        Some(parse(dma, header, &Bytes(bytes), bytes.get(offset..offset + list)?, max_sges))
    }
}

/// Bytes of an element of the list.
fn element_size(flags: u16) -> usize {
    if flags & flag::IEEE != 0 {
        16
    } else if flags & flag::SGL64 != 0 {
        12
    } else {
        8
    }
}

fn parse(dma: &Dma, header: FrameHeader, bytes: &Bytes<'_>, list: &[u8], max_sges: u8) -> Frame {
    let at = BODY_OFFSET;
    let body = match header.cmd {
        command::INIT => Body::Init(bytes.u64(at)),
        command::LD_READ | command::LD_WRITE => {
            let write = header.cmd == command::LD_WRITE;
            // The place of the LUN is that of byte 1 of the CDB here.
            Body::Io { write, access: header.lun, lba: bytes.u64(at + 8) }
        }
        command::LD_SCSI | command::PD_SCSI => match cdb(header.cdb_len, bytes.array(at + 8)) {
            Some(cdb) => Body::Scsi { physical: header.cmd == command::PD_SCSI, cdb },
            None => Body::Refused(Status::InvalidParameter),
        },
        command::DCMD => Body::Dcmd { opcode: bytes.u32(at), mailbox: bytes.array(at + 4) },
        command::ABORT => Body::Abort { context: bytes.u64(at), address: bytes.u64(at + 8) },
        // There are no expanders, and the disks are no SATA disks.
        command::SMP | command::STP => Body::Refused(Status::DeviceNotFound),
        other => {
            devices::log_limited!(warn, "megasas: unknown frame {other:#04x}");
            Body::Refused(Status::InvalidCommand)
        }
    };
    let moves = matches!(body, Body::Io { .. } | Body::Scsi { .. } | Body::Dcmd { .. });
    let data = match moves {
        true if header.sge_count > max_sges => Err(Status::InvalidSgl),
        true => resolve(dma, header.flags.get(), list),
        false => Ok(SgList::empty()),
    };
    let sense = bytes.u64(at);
    let wide = header.flags.get() & flag::SENSE64 != 0;
    let sense_address = if wide { sense } else { sense & u64::from(u32::MAX) };
    Frame { header, body, sense_address, data }
}

/// The command: as long as its operation code says, whatever the frame says (SeaBIOS says 16 for all), filled with
/// zeros where the frame says less. How long vendors' commands are only the frame says.
fn cdb(len: u8, bytes: [u8; 16]) -> Option<Cdb> {
    let mut given = [0; 16];
    let sent = bytes.get(..usize::from(len))?;
    given.iter_mut().zip(sent).for_each(|(to, from)| *to = *from);
    // SPC-5, 4.2.5.1: the group code.
    let real = match sent.first()? >> 5 {
        0 => 6,
        1 | 2 => 10,
        5 => 12,
        6 | 7 => sent.len(),
        _ => 16,
    };
    Some(Cdb::new(given.get(..real)?))
}

fn resolve(dma: &Dma, flags: u16, list: &[u8]) -> Result<SgList, Status> {
    let size = element_size(flags);
    let elements = list.chunks_exact(size).map(|element| {
        let element = Bytes(element);
        if size == 8 { (u64::from(element.u32(0)), element.u32(4)) } else { (element.u64(0), element.u32(8)) }
    });
    let total: u64 = elements.clone().map(|(_, len)| u64::from(len)).sum();
    if total > MAX_TRANSFER {
        return Err(Status::InvalidSgl);
    }
    dma.to_guest(elements).map(devices::mem::ToGuest::into_inner).map_err(|error| {
        devices::log_limited!(warn, "megasas: scatter-gather list: {error}");
        Status::InvalidSgl
    })
}

#[cfg(test)]
#[path = "frame_tests.rs"]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests;
