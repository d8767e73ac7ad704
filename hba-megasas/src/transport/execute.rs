//! What frames do: SCSI commands through the shared SCSI layer, the rest through the firmware.

use std::sync::Arc;

use devices::mem::{FromGuest, SgList, ToGuest};
use devices::scsi::{
    Cdb, DataBuffers, Lun, Nexus, Residual, ScsiReply, ScsiRequest, Status as ScsiStatus, TaskAttribute,
    TransportFault,
};

use super::frame::{Body, Frame};
use super::token::FrameToken;
use crate::firmware::{Dcmd, Kind, Place, Reply, changes_medium, only_reads, synchronize, write_protected};
use crate::spec::{FrameHeader, QueueInfo, Status, flag};

/// Byte 1 of READ and WRITE (SBC-4, 5.16): force unit access, and with it disable page out.
const FUA: u8 = 0x08;
const FUA_AND_DPO: u8 = 0x18;

/// Carries a frame out and completes it.
pub(crate) async fn run(token: FrameToken, frame: Frame) {
    let Frame { header, body, sense_address, data } = frame;
    match (body, data) {
        (Body::Refused(status), _) => token.complete(status),
        (Body::Init(address), _) => initialise(token, address),
        (Body::Abort { context, address }, _) => {
            let status = token.worker().clone().abort(context, address);
            token.complete(status);
        }
        (_, Err(status)) => token.complete(status),
        (Body::Io { write, access, lba }, Ok(data)) => {
            let result = transfer(&token, &header, (write, access, lba), data).await;
            finish(token, &header, sense_address, result);
        }
        (Body::Scsi { physical, cdb }, Ok(data)) => {
            let result = pass(&token, &header, physical, cdb, data).await;
            finish(token, &header, sense_address, result);
        }
        // Rare and large: not worth the room in every task.
        (Body::Dcmd { opcode, mailbox }, Ok(data)) => {
            Box::pin(direct(token, header, opcode, mailbox, data)).await;
        }
    }
}

/// INIT.
fn initialise(token: FrameToken, address: u64) {
    let port = token.worker().port();
    let status = match port.dma().read_obj::<QueueInfo>(address) {
        Ok(info) => match port.initialise(token.ticket().epoch, &info) {
            Ok(()) => {
                token.worker().firmware().driver_came();
                Status::Ok
            }
            Err(status) => status,
        },
        Err(_) => Status::MemoryNotAvailable,
    };
    token.complete(status);
}

/// DCMD.
async fn direct(token: FrameToken, header: FrameHeader, opcode: u32, mailbox: [u8; 12], mut data: SgList) {
    data.truncate(header.data_xfer_len.get().into());
    let buffer = FromGuest::new(data.window(0, data.len()));
    let worker = token.worker().clone();
    let room = buffer.len();
    let reply = worker.firmware().dcmd(worker.io(), &Dcmd { opcode, mailbox, buffer }).await;
    // What an unknown driver asks for is worth knowing; see docs/megasas.md.
    tracing::trace!(target: "hba_megasas::dcmd", "{opcode:#010x} {mailbox:02x?} of {room} bytes: {}", outcome(&reply));
    match reply {
        Ok(Reply::Done) => token.complete(Status::Ok),
        Ok(Reply::Data(bytes)) => {
            if !token.is_stale() {
                ToGuest::new(data).write_at(0, &bytes);
            }
            token.complete(Status::Ok);
        }
        Ok(Reply::Wait(filter)) => worker.wait_for_event(token, filter, ToGuest::new(data)),
        Ok(Reply::Shutdown { driver_goes }) => {
            // One that a reset of the adapter has ended is not the driver's end: it goes on with its disks.
            if driver_goes && !token.is_stale() {
                worker.firmware().driver_went();
            }
            let epoch = token.ticket().epoch;
            worker.end_wait();
            worker.port().drop_waiting(epoch);
            token.complete(Status::Ok);
            worker.flush();
            worker.signal();
            worker.port().retire(epoch);
        }
        Err(status) => token.complete(status),
    }
}

/// What becomes of a direct command, for the log.
fn outcome(reply: &Result<Reply, Status>) -> String {
    match reply {
        Ok(Reply::Done) => "done".into(),
        Ok(Reply::Data(bytes)) => format!("{} bytes", bytes.len()),
        Ok(Reply::Wait(_)) => "held".into(),
        Ok(Reply::Shutdown { .. }) => "shut down".into(),
        Err(status) => format!("{status:?}"),
    }
}

/// How a SCSI command ended without an answer of the unit.
enum Trouble {
    Frame(Status),
    Transport(TransportFault),
}

impl From<Status> for Trouble {
    fn from(status: Status) -> Self {
        Self::Frame(status)
    }
}

type Outcome = Result<ScsiReply, Trouble>;

/// LD READ and LD WRITE.
async fn transfer(
    token: &FrameToken,
    header: &FrameHeader,
    (write, access, lba): (bool, u8, u64),
    mut data: SgList,
) -> Outcome {
    let place = token.worker().place(header.target_id).ok_or(Status::DeviceNotFound)?;
    let nexus = ready(token, &place, Kind::Logical).await?;
    let blocks = header.data_xfer_len.get();
    let len = u64::from(blocks) * u64::from(place.block_size());
    if len > data.len() {
        return Err(Status::InvalidSgl.into());
    }
    data.truncate(len);
    let stable = write && !token.worker().firmware().personality().write_back;
    let mut cdb = [0; 16];
    cdb[0] = if write { 0x8a } else { 0x88 };
    cdb[1] = access & FUA_AND_DPO | if stable { FUA } else { 0 };
    let fields = lba.to_be_bytes().into_iter().chain(blocks.to_be_bytes());
    cdb.iter_mut().skip(2).zip(fields).for_each(|(to, from)| *to = from);
    execute(token, nexus, Cdb::new(&cdb), 0, data, Origin::Firmware).await
}

/// LD SCSI and PD SCSI.
async fn pass(
    token: &FrameToken,
    header: &FrameHeader,
    physical: bool,
    cdb: Cdb,
    mut data: SgList,
) -> Outcome {
    if header.lun != 0 {
        return Err(Status::DeviceNotFound.into());
    }
    let wanted = u64::from(header.data_xfer_len.get());
    if data.is_empty() && wanted > 0 {
        return Err(Status::InvalidSgl.into());
    }
    data.truncate(wanted);
    let place = token.worker().place(header.target_id).ok_or(Status::DeviceNotFound)?;
    let member = place.nexus(Kind::Logical).is_some();
    if physical && member && !only_reads(cdb.opcode()) {
        return Ok(write_protected());
    }
    let kind = match physical {
        true => Kind::Physical,
        false if member => Kind::Logical,
        false => place.bootable(token.worker().firmware().has_driver()).ok_or(Status::DeviceNotFound)?,
    };
    let nexus = ready(token, &place, kind).await?;
    let reply = execute(token, nexus, cdb, header.flags.get(), data, Origin::Driver).await?;
    let write_back = token.worker().firmware().personality().write_back;
    if !physical && !write_back && reply.status == ScsiStatus::Good && changes_medium(cdb.opcode()) {
        // Linux sends no SYNCHRONIZE CACHE to logical drives: what is done has to be stable.
        let flushed = synchronize(token.worker().io(), nexus).await.ok_or(Status::ScsiIoFailed)?;
        if flushed.status != ScsiStatus::Good {
            // With the unit's own reason: the driver would try the command again after a failure of the frame.
            return Ok(flushed);
        }
    }
    Ok(reply)
}

/// The way to a unit. Unit attentions of power-on and reset are the firmware's to take, but for those of a disk that
/// the host uses as it is.
async fn ready<'a>(token: &FrameToken, place: &'a Place, kind: Kind) -> Result<&'a Arc<Nexus>, Status> {
    let nexus = place.nexus(kind).ok_or(Status::DeviceNotFound)?;
    let volume = place.nexus(Kind::Logical).is_some();
    if volume && !place.is_settled(kind) {
        Box::pin(place.settle(token.worker().io(), kind)).await;
    }
    Ok(nexus)
}

/// Who made a CDB.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Origin {
    /// The driver: unit attentions are for it to see.
    Driver,
    /// The firmware, for LD READ and LD WRITE: FreeBSD makes an error of a unit attention there.
    Firmware,
}

async fn execute(
    token: &FrameToken,
    nexus: &Nexus,
    cdb: Cdb,
    flags: u16,
    data: SgList,
    origin: Origin,
) -> Outcome {
    let offered = data.len();
    if token.is_stale() {
        return Err(Trouble::Transport(TransportFault::Reset));
    }
    let mut request = ScsiRequest {
        tag: token.worker().next_tag(),
        lun: Lun::default(),
        cdb,
        attribute: TaskAttribute::Simple,
        priority: 0,
        data: buffers(cdb.opcode(), flags, data),
    };
    let io = token.worker().io();
    let reply = match origin {
        Origin::Driver => nexus.execute_at(io, &mut request).await,
        Origin::Firmware => nexus.execute_for(io, &mut request).await,
    };
    let reply = reply.map_err(Trouble::Transport)?;
    if reply.status != ScsiStatus::Good && (nexus.luns().is_empty() || nexus.is_distrusted()) {
        // The drive was taken away in the meantime, or the driver means the one before.
        return Err(Status::DeviceNotFound.into());
    }
    let short = |residual| matches!(residual, Residual::Over(_));
    if short(reply.residual_out) || (offered == 0 && short(reply.residual_in)) {
        // Frames of this kind have no residual to tell of it.
        return Err(Status::InvalidSgl.into());
    }
    Ok(reply)
}

/// The direction is that of the command; SeaBIOS does not set the flags of the frame. Where it is not plain, the unit
/// finds the memory both ways. What vendors' commands do only the driver knows.
fn buffers(opcode: u8, flags: u16, data: SgList) -> DataBuffers {
    const VENDOR_SPECIFIC: u8 = 0xc0;
    let way = (flags & flag::DIR_READ != 0, flags & flag::DIR_WRITE != 0);
    match opcode {
        VENDOR_SPECIFIC.. if way == (true, false) => DataBuffers::to_initiator(ToGuest::new(data)),
        VENDOR_SPECIFIC.. if way == (false, true) => DataBuffers::from_initiator(FromGuest::new(data)),
        0x08 | 0x28 | 0x88 | 0xa8 => DataBuffers::to_initiator(ToGuest::new(data)),
        0x0a | 0x2a | 0x8a | 0xaa => DataBuffers::from_initiator(FromGuest::new(data)),
        _ if data.is_empty() => DataBuffers::none(),
        _ => DataBuffers::new(FromGuest::new(data.window(0, data.len())), ToGuest::new(data)),
    }
}

/// Completes a SCSI frame.
fn finish(token: FrameToken, header: &FrameHeader, sense_address: u64, outcome: Outcome) {
    let reply = match outcome {
        Ok(reply) => reply,
        Err(Trouble::Frame(status)) => return token.complete(status),
        Err(Trouble::Transport(TransportFault::NoTarget)) => return token.complete(Status::DeviceNotFound),
        Err(Trouble::Transport(_)) => return token.complete(Status::ScsiIoFailed),
    };
    if reply.status == ScsiStatus::Good {
        return token.complete(Status::Ok);
    }
    if header.sense_len == 0 || sense_address == 0 {
        // SeaBIOS, which has no room for sense data, takes "done with error" for success and looks at no SCSI status.
        return token.complete(Status::ScsiIoFailed);
    }
    let mut written = 0;
    if let Some(sense) = &reply.sense
        && !token.is_stale()
    {
        let sense = sense.as_bytes();
        let part = sense.get(..usize::from(header.sense_len)).unwrap_or(sense);
        match token.worker().port().dma().write(sense_address, part) {
            Ok(()) => written = part.len() as u8,
            Err(error) => devices::log_limited!(warn, "megasas: sense data not written: {error}"),
        }
    }
    token.complete_scsi(reply.status, written);
}
