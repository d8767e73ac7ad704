//! Commands of the request queues (5.6.6.1).
//!
//! How the parts of a request are cut into descriptors is the driver's choice (2.7.4.1): everything here goes by
//! byte offsets in the readable and in the writable part.

use std::rc::Rc;

use devices::mem::{Dma, FromGuest, ToGuest};
use devices::scsi::{
    Cdb, DataBuffers, MAX_SENSE, ProtectionBuffers, Residual, ScsiReply, ScsiRequest, Tag, TaskAttribute,
    TransportFault,
};
use zerocopy::{FromBytes, IntoBytes};

use crate::config::Layout;
use crate::directory::Snapshot;
use crate::fc::gate::Origin;
use crate::fc::wire as fc;
use crate::lun::{self, Address};
use crate::queue::TaskId;
use crate::ring::{Chain, ChainError};
use crate::spec::{CmdProtection, CmdRequest, CmdResponse, Response, feature};
use crate::token::{ChainToken, ResponseArea, window};
use crate::transport::Transport;
use crate::worker::Parsed;

const REQUEST_HEAD: usize = size_of::<CmdRequest>();
const RESPONSE_HEAD: usize = size_of::<CmdResponse>();
/// Offset of the response byte, the last of the fixed part.
const RESPONSE_AT: usize = RESPONSE_HEAD - 1;
/// Longest request head with CDB.
const MAX_HEAD: usize = REQUEST_HEAD + size_of::<CmdProtection>() + 255;
/// Longest response that is ever filled in.
const MAX_RESPONSE: usize = RESPONSE_HEAD + MAX_SENSE;

/// What the driver and the device agreed on, as far as requests are concerned.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Format {
    layout: Layout,
    /// VIRTIO_SCSI_F_T10_PI
    protection: bool,
    /// VIRTIO_SCSI_F_INOUT
    both_ways: bool,
    /// VIRTIO_SCSI_F_NATIVE_LUN
    native: bool,
}

impl Format {
    pub(crate) fn new(layout: Layout, transport: &Transport) -> Self {
        let protection = transport.has(feature::SCSI_T10_PI);
        let native = transport.has(fc::feature::NATIVE_LUN);
        Self { layout, protection, both_ways: transport.has(feature::SCSI_INOUT), native }
    }
}

/// A command as it goes to a target.
#[derive(Debug)]
pub(crate) struct Command {
    address: Option<Address>,
    request: ScsiRequest,
    offered_out: u64,
    offered_in: u64,
    /// Length of the response with its sense area.
    response_len: usize,
    /// Protection information lies between response and data.
    protected: bool,
}

/// Looks at a chain of a request queue. A body of `None` is a request that can only be answered with FAILURE.
pub(crate) fn parse(
    dma: &Dma,
    format: Format,
    chain: &Chain,
    shape: Result<(), ChainError>,
) -> Parsed<Option<Command>> {
    let response_len = RESPONSE_HEAD + format.layout.sense_size as usize;
    let response = ResponseArea::of(&chain.writable, response_len as u64);
    let body = match shape {
        Ok(()) if response.len() == response_len as u64 => command(dma, format, chain, response_len),
        Ok(()) => Err("the writable part is shorter than a response".to_owned()),
        Err(error) => Err(error.to_string()),
    };
    let body = body.inspect_err(|why| devices::log_limited!(warn, "virtio-scsi: bad request: {why}")).ok();
    let task = body.as_ref().and_then(Command::task);
    Parsed { response, response_at: RESPONSE_AT, task, body }
}

fn command(dma: &Dma, format: Format, chain: &Chain, response_len: usize) -> Result<Command, String> {
    let mut head = [0; MAX_HEAD];
    let more = if format.protection { size_of::<CmdProtection>() } else { 0 };
    let head_len = (REQUEST_HEAD + more + format.layout.cdb_size as usize).min(MAX_HEAD);
    let head = head.get_mut(..head_len).unwrap_or_default();
    read_start(dma, &chain.readable, head)?;
    let (fixed, rest) = CmdRequest::read_from_prefix(head).map_err(|_| "no request".to_owned())?;
    let (protection, cdb) = match format.protection {
        true => CmdProtection::read_from_prefix(rest).map_err(|_| "no request".to_owned())?,
        false => (CmdProtection::default(), rest),
    };
    let (pi_out, pi_in) = (protection.pi_bytesout.get(), protection.pi_bytesin.get());
    let from = |at: u64, len: u64| {
        dma.from_guest(window(&chain.readable, at, len)).map_err(|error| error.to_string())
    };
    let into =
        |at: u64, len: u64| dma.to_guest(window(&chain.writable, at, len)).map_err(|error| error.to_string());
    let (out_at, in_at) = (head_len as u64, response_len as u64);
    let protection = if pi_out > 0 || pi_in > 0 {
        let (data_out, data_in) = (from(out_at, pi_out.into())?, into(in_at, pi_in.into())?);
        if data_out.len() < pi_out.into() || data_in.len() < pi_in.into() {
            return Err("less protection information than announced".to_owned());
        }
        Some(Box::new(ProtectionBuffers { data_out, data_in }))
    } else {
        None
    };
    let (out_at, in_at) = (out_at + u64::from(pi_out), in_at + u64::from(pi_in));
    // Most requests have data one way, many none: a list of nothing needs no looking up.
    let data_out = match has_beyond(&chain.readable, out_at) {
        true => from(out_at, u64::MAX)?,
        false => FromGuest::empty(),
    };
    let data_in = match has_beyond(&chain.writable, in_at) {
        true => into(in_at, u64::MAX)?,
        false => ToGuest::empty(),
    };
    if !format.both_ways && !data_out.is_empty() && !data_in.is_empty() {
        return Err("data in both directions without VIRTIO_SCSI_F_INOUT".to_owned());
    }
    let address = lun::decode(fixed.lun, format.native);
    let lun = match address {
        Some(Address::Unit { lun, .. }) => lun,
        _ => lun::REPORT_LUNS,
    };
    let (offered_out, offered_in) = (data_out.len(), data_in.len());
    let request = ScsiRequest {
        tag: Tag(fixed.id.get()),
        lun,
        cdb: Cdb::new(cdb),
        attribute: attribute(fixed.task_attr),
        // Priority is a field of 4 bits (SAM-6, 8.7).
        priority: fixed.prio & 0xf,
        data: DataBuffers { data_out, data_in, protection },
    };
    let protected = pi_in > 0;
    Ok(Command { address, request, offered_out, offered_in, response_len, protected })
}

/// Whether `parts` have bytes beyond the first `len`.
fn has_beyond(parts: &[(u64, u32)], len: u64) -> bool {
    let mut left = len;
    parts.iter().any(|&(_, size)| match left.checked_sub(size.into()) {
        Some(rest) => {
            left = rest;
            false
        }
        None => true,
    })
}

/// Copies the first bytes of the readable part, once.
pub(crate) fn read_start(dma: &Dma, parts: &[(u64, u32)], into: &mut [u8]) -> Result<(), String> {
    let wanted = into.len();
    if let Some(&(addr, len)) = parts.first()
        && len as usize >= wanted
    {
        return dma.read(addr, into).map_err(|error| error.to_string());
    }
    let mut rest = into;
    for (addr, len) in window(parts, 0, wanted as u64) {
        let (now, later) = rest.split_at_mut_checked(len as usize).ok_or("a request of no sense")?;
        dma.read(addr, now).map_err(|error| error.to_string())?;
        rest = later;
    }
    if rest.is_empty() {
        Ok(())
    } else {
        Err(format!("the readable part has not the {wanted} bytes of its head"))
    }
}

/// Values without a meaning count as SIMPLE.
fn attribute(value: u8) -> TaskAttribute {
    match value {
        1 => TaskAttribute::Ordered,
        2 => TaskAttribute::HeadOfQueue,
        3 => TaskAttribute::Aca,
        _ => TaskAttribute::Simple,
    }
}

impl Command {
    fn task(&self) -> Option<TaskId> {
        match self.address? {
            Address::Unit { target, lun } => Some(TaskId { target, lun, tag: self.request.tag }),
            Address::ReportLuns => None,
        }
    }
}

/// Carries a command out and answers it.
///
/// The command stays in the future, and is moved once with it.
#[expect(clippy::manual_async_fn, reason = "arguments of an async function have two places in its future")]
pub(crate) fn run(
    targets: Rc<Snapshot>,
    token: ChainToken,
    mut command: Option<Command>,
) -> impl Future<Output = ()> {
    async move {
        match &mut command {
            Some(command) => carry_out(&targets, token, command).await,
            None => token.fail(),
        }
    }
}

async fn carry_out(targets: &Snapshot, token: ChainToken, command: &mut Command) {
    let Command { address, ref mut request, offered_out, offered_in, response_len, protected } = *command;
    let target = match address {
        Some(Address::Unit { target, .. }) => Some(target),
        // Any target can tell; the first does.
        Some(Address::ReportLuns) => targets.reachable(),
        None => None,
    };
    let way = match (&targets.fc, target) {
        // The way in which nearly all go is one look.
        (Some(fc), Some(target)) if !fc.gate.is_open(target) => {
            // What any target can answer waits for none.
            let patient = matches!(address, Some(Address::Unit { .. }));
            match fc.gate.verdict(target, patient) {
                Some(verdict) => verdict,
                None => {
                    let task = TaskId { target, lun: request.lun, tag: request.tag };
                    let worker = token.worker();
                    let from = Origin { queue: worker.index(), is_running: &|| worker.queue().is_running() };
                    Box::pin(fc.gate.pass(task, from)).await
                }
            }
        }
        _ => Ok(()),
    };
    let nobody = || targets.fc.as_ref().map(|fc| &fc.nobody);
    let result = match (way, target) {
        (Err(fault), _) => Err(fault),
        (Ok(()), Some(target)) => match targets.get(target).or_else(nobody) {
            Some(nexus) => nexus.execute_at(token.worker().io(), request).await,
            None => Err(TransportFault::NoTarget),
        },
        (Ok(()), None) => Err(TransportFault::NoTarget),
    };
    if !token.worker().queue().is_running() {
        return token.abandon();
    }
    let mut response = [0; MAX_RESPONSE];
    let room = response_len.saturating_sub(RESPONSE_HEAD);
    let mut len = encode(&mut response, &result, offered_out.saturating_add(offered_in), room);
    let moved_in = match &result {
        Ok(ScsiReply { residual_in: Residual::Under(rest), .. }) => offered_in.saturating_sub(*rest),
        Ok(_) => offered_in,
        Err(_) => 0,
    };
    let mut used = len as u64;
    if moved_in > 0 && response_len <= MAX_RESPONSE {
        // What is reported as written has no gaps: the unused part of the sense area is zeroed (2.7.8.2).
        len = response_len;
        // How much of the protection information was written is the target's affair; less than was is allowed.
        used = (response_len as u64).saturating_add(if protected { 0 } else { moved_in });
    }
    let response = response.get(..len).unwrap_or_default();
    token.complete(response, u32::try_from(used).unwrap_or(u32::MAX));
}

/// Fills in the response, which is zero before; returns how many bytes of it carry something. `offered`: length of the data
/// buffers in bytes; `room`: that of the sense area.
fn encode(
    response: &mut [u8; MAX_RESPONSE],
    result: &Result<ScsiReply, TransportFault>,
    offered: u64,
    room: usize,
) -> usize {
    let (head, sense) = match result {
        Ok(reply) => {
            let sense = reply.sense.as_ref().map_or(&[][..], |sense| sense.as_bytes());
            let sense = sense.get(..room).unwrap_or(sense);
            let over = |residual| matches!(residual, Residual::Over(_));
            let response = if over(reply.residual_out) || over(reply.residual_in) {
                Response::Overrun
            } else {
                Response::Ok
            };
            let under = |residual| if let Residual::Under(bytes) = residual { bytes } else { 0 };
            let residual = under(reply.residual_out).saturating_add(under(reply.residual_in));
            (head(response, reply.status as u8, residual, sense.len()), sense)
        }
        Err(fault) => {
            let response = match fault {
                TransportFault::NoTarget => Response::BadTarget,
                TransportFault::Aborted => Response::Aborted,
                TransportFault::Reset => Response::Reset,
                TransportFault::PathLost => Response::TransportFailure,
                TransportFault::Busy => Response::Busy,
                TransportFault::TargetFailure => Response::TargetFailure,
                TransportFault::NexusFailure => Response::NexusFailure,
            };
            (head(response, 0, offered, 0), &[][..])
        }
    };
    let (fixed, rest) = response.split_at_mut(RESPONSE_HEAD);
    fixed.copy_from_slice(head.as_bytes());
    // `response` has room for all the sense data that there can be.
    if let Some(area) = rest.get_mut(..sense.len()) {
        area.copy_from_slice(sense);
    }
    RESPONSE_HEAD + sense.len()
}

fn head(response: Response, status: u8, residual: u64, sense_len: usize) -> CmdResponse {
    CmdResponse {
        sense_len: (sense_len as u32).into(),
        residual: u32::try_from(residual).unwrap_or(u32::MAX).into(),
        status_qualifier: 0.into(),
        status,
        response: response as u8,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a nexus says of a command without a status, and the response values of 5.6.6.1.
    #[test]
    fn each_fault_has_its_response() {
        for (fault, response) in [
            (TransportFault::Aborted, 2),
            (TransportFault::NoTarget, 3),
            (TransportFault::Reset, 4),
            (TransportFault::Busy, 5),
            (TransportFault::PathLost, 6),
            (TransportFault::TargetFailure, 7),
            (TransportFault::NexusFailure, 8),
        ] {
            let mut bytes = [0; MAX_RESPONSE];
            let len = encode(&mut bytes, &Err(fault), 0x1234, 96);
            let expected = [0, 0, 0, 0, 0x34, 0x12, 0, 0, 0, 0, 0, response];
            assert_eq!(bytes.get(..len), Some(&expected[..]), "{fault:?}");
        }
    }
}
