//! The control queue: task management and asynchronous notification (5.6.6.2).

use std::sync::Arc;
use std::time::{Duration, Instant};

use devices::iothread::Io;
use devices::mem::Dma;
use devices::scsi::{Nexus, Tag, TaskManagement, TaskManagementReply, TransportFault};
use zerocopy::little_endian::U32;
use zerocopy::{FromBytes, IntoBytes};

use crate::directory::Directory;
use crate::fc::gate::Gate;
use crate::fc::port::Port;
use crate::fc::rescan;
use crate::fc::vports;
use crate::fc::wire::{self as fc, RescanRequest, RescanResponse};
use crate::lun::{self, Address};
use crate::queue::{Queue, TaskId, TaskMark};
use crate::request::read_start;
use crate::ring::{Chain, ChainError};
use crate::spec::{AnRequest, Response, TmfRequest, control, queue};
use crate::token::{ChainToken, ResponseArea};
use crate::transport::Transport;
use crate::worker::Parsed;

/// Longest control request in bytes: a task management function, or a port that is wanted.
const MAX_REQUEST: usize = 24;
/// Longest control response in bytes: RESCAN.
const MAX_RESPONSE: u64 = size_of::<RescanResponse>() as u64;
/// How long to wait between looks at the request queues.
const POLL: Duration = Duration::from_micros(50);
/// How long no chain of a queue is taken, before a function that waits for that fails: the sum of the times between looks at
/// it, each of which counts for no more than `STEP`. In a process that is frozen there are none.
const STANDSTILL: Duration = if cfg!(test) { Duration::from_millis(200) } else { Duration::from_secs(60) };
const STEP: Duration = Duration::from_millis(1);
/// Looks after which a function is carried out again: a command may have been on its way to the target.
const LOOKS: u32 = 40;

/// A control request.
#[derive(Debug)]
pub(crate) enum Control {
    /// Task management: the target it goes to, and the function.
    Manage(u8, TaskManagement),
    /// A response that is known already.
    Answer(Response),
    /// Asynchronous notification query or subscription of a target: no events are on offer.
    Notification(u8),
    /// The target with the smallest number from this one on; all ones: after a look at the fabric.
    Rescan(u32),
    /// A port of the guest's own.
    Vport(vports::Request),
}

impl Control {
    /// Bytes that the response needs, whose response byte is at `at`: a driver looks at more than that.
    fn needs(&self, at: usize) -> u64 {
        match self {
            Self::Rescan(_) => MAX_RESPONSE,
            Self::Vport(request) => request.response_len() as u64,
            Self::Manage(..) | Self::Answer(_) | Self::Notification(_) => at as u64 + 1,
        }
    }
}

/// What the driver and the device agreed on, as far as control requests are concerned.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Format {
    /// VIRTIO_SCSI_F_RESCAN
    rescan: bool,
    /// VIRTIO_SCSI_F_NATIVE_LUN
    native: bool,
    /// VIRTIO_SCSI_F_VPORT
    vport: bool,
}

impl Format {
    pub(crate) fn new(transport: &Transport) -> Self {
        Self {
            rescan: transport.has(fc::feature::RESCAN),
            native: transport.has(fc::feature::NATIVE_LUN),
            vport: transport.has(fc::feature::VPORT),
        }
    }
}

/// Looks at a chain of the control queue. A body of `None` is a request that can only be answered with FAILURE.
pub(crate) fn parse(
    dma: &Dma,
    format: Format,
    chain: &Chain,
    shape: Result<(), ChainError>,
) -> Parsed<Option<Control>> {
    let response = ResponseArea::of(&chain.writable, MAX_RESPONSE);
    let body = match shape {
        Ok(()) => request(dma, format, chain),
        Err(error) => Err(error.to_string()),
    };
    let (response_at, body) = match body {
        Ok((at, body)) if response.len() >= body.needs(at) => (at, Some(body)),
        Ok((at, _)) => {
            devices::log_limited!(warn, "virtio-scsi: a control request without room for its response");
            (at, None)
        }
        Err(why) => {
            devices::log_limited!(warn, "virtio-scsi: bad control request: {why}");
            (0, None)
        }
    };
    Parsed { response, response_at, task: None, body }
}

/// The request, and where its response byte goes.
fn request(dma: &Dma, format: Format, chain: &Chain) -> Result<(usize, Control), String> {
    let mut bytes = [0; MAX_REQUEST];
    let given: u64 = chain.readable.iter().map(|&(_, len)| u64::from(len)).sum();
    let given = bytes.get_mut(..given.min(MAX_REQUEST as u64) as usize).unwrap_or_default();
    read_start(dma, &chain.readable, given)?;
    let (kind, rest) = U32::read_from_prefix(given).map_err(|_| "no type")?;
    match kind.get() {
        control::TMF => {
            let (tmf, _) =
                TmfRequest::read_from_prefix(rest).map_err(|_| "a short task management request")?;
            Ok((0, manage(&tmf, format)))
        }
        control::AN_QUERY | control::AN_SUBSCRIBE => {
            let (an, _) = AnRequest::read_from_prefix(rest).map_err(|_| "a short notification request")?;
            let body = match lun::decode(an.lun, format.native) {
                Some(Address::Unit { target, .. }) => Control::Notification(target),
                _ => Control::Answer(Response::BadTarget),
            };
            Ok((4, body))
        }
        fc::CONTROL_RESCAN if format.rescan => {
            let (asked, _) = RescanRequest::read_from_prefix(rest).map_err(|_| "a short rescan request")?;
            Ok((fc::RESCAN_RESPONSE_AT, Control::Rescan(asked.next_id.get())))
        }
        other => match vports::Request::parse(other, rest).filter(|_| format.vport) {
            Some(request) => {
                request.map(|body| (body.response_at(), Control::Vport(body))).map_err(Into::into)
            }
            None => Err(format!("type {other}")),
        },
    }
}

fn manage(request: &TmfRequest, format: Format) -> Control {
    let Some(Address::Unit { target, lun }) = lun::decode(request.lun, format.native) else {
        return Control::Answer(Response::BadTarget);
    };
    let tag = Tag(request.id.get());
    let function = match request.subtype.get() {
        0 => TaskManagement::AbortTask(lun, tag),
        1 => TaskManagement::AbortTaskSet(lun),
        2 => TaskManagement::ClearAca(lun),
        3 => TaskManagement::ClearTaskSet(lun),
        4 => TaskManagement::NexusReset,
        5 => TaskManagement::LogicalUnitReset(lun),
        6 => TaskManagement::QueryTask(lun, tag),
        7 => TaskManagement::QueryTaskSet(lun),
        _ => return Control::Answer(Response::FunctionRejected),
    };
    Control::Manage(target, function)
}

/// Carries a control request out and answers it.
pub(crate) async fn run(
    directory: Arc<Directory>,
    port: Option<Arc<Port>>,
    token: ChainToken,
    body: Option<Control>,
) {
    let port = port.as_deref();
    let nexus = |target| match port {
        Some(port) if port.gate.knows(target) => directory.get(target).or_else(|| Some(port.nobody.clone())),
        Some(_) => None,
        None => directory.get(target),
    };
    let response = match (body, port) {
        (None, _) | (Some(Control::Rescan(_) | Control::Vport(_)), None) => return token.fail(),
        (Some(Control::Answer(response)), _) => response,
        (Some(Control::Notification(target)), _) if nexus(target).is_some() => Response::Ok,
        (Some(Control::Notification(_)), _) => Response::BadTarget,
        (Some(Control::Manage(target, function)), _) => match nexus(target) {
            Some(nexus) => {
                let worker = token.worker().clone();
                let way = Way { target, nexus: &nexus, gate: port.map(|port| &port.gate) };
                carry_out(worker.io(), worker.transport(), way, function).await
            }
            None => Response::BadTarget,
        },
        (Some(Control::Rescan(next_id)), Some(port)) => {
            let worker = token.worker();
            let vports = worker.transport().has(fc::feature::VPORT);
            let answer = rescan::next(worker.io(), port, next_id, vports, worker.queue()).await;
            return complete(token, answer.as_bytes());
        }
        (Some(Control::Vport(request)), Some(port)) => {
            let answer = request.run(port, token.worker().queue()).await;
            return complete(token, &answer);
        }
    };
    if !token.worker().queue().is_running() {
        return token.abandon();
    }
    token.answer(response);
}

/// Answers, unless the queue was stopped meanwhile.
fn complete(token: ChainToken, answer: &[u8]) {
    if token.worker().queue().is_running() {
        token.complete(answer, answer.len() as u32);
    } else {
        token.abandon();
    }
}

/// The way to a target: the gate before it, where there is a fabric, and the nexus.
struct Way<'a> {
    target: u8,
    nexus: &'a Nexus,
    gate: Option<&'a Gate>,
}

impl Way<'_> {
    async fn manage(&self, io: &Io, function: TaskManagement) -> TaskManagementReply {
        let held = self.gate.is_some_and(|gate| self.manage_held(gate, function));
        match self.nexus.manage(io, function).await {
            TaskManagementReply::Complete if held && is_query(function) => TaskManagementReply::Succeeded,
            // There may be no unit yet to which it was sent.
            TaskManagementReply::IncorrectLun if held && is_query(function) => TaskManagementReply::Succeeded,
            reply => reply,
        }
    }

    /// Ends the commands that a function ends and that wait before the gate, or finds those that it asks for; returns whether there are any.
    fn manage_held(&self, gate: &Gate, function: TaskManagement) -> bool {
        if let Some(ends) = ends(self.target, function) {
            let resets = matches!(function, TaskManagement::NexusReset | TaskManagement::LogicalUnitReset(_));
            let fault = if resets { TransportFault::Reset } else { TransportFault::Aborted };
            return gate.end(ends, fault) > 0;
        }
        let (lun, tag) = match function {
            TaskManagement::QueryTask(lun, tag) => (lun, Some(tag)),
            TaskManagement::QueryTaskSet(lun) => (lun, None),
            _ => return false,
        };
        gate.holds(|task| {
            task.target == self.target && task.lun == lun && tag.is_none_or(|tag| tag == task.tag)
        })
    }
}

fn is_query(function: TaskManagement) -> bool {
    matches!(function, TaskManagement::QueryTask(..) | TaskManagement::QueryTaskSet(_))
}

/// Carries out a function. Commands that it ends are back with the driver before it is answered (5.6.6.2), however long
/// the host takes for them: a driver that hears of a failure gives their memory to others.
async fn carry_out(io: &Io, transport: &Transport, way: Way<'_>, function: TaskManagement) -> Response {
    let target = way.target;
    let Some(ends) = ends(target, function) else { return response(way.manage(io, function).await) };
    if !take_backlog(io, transport).await {
        devices::log_limited!(
            warn,
            "virtio-scsi: a task management function for target {target} fails: what was sent before it cannot be taken"
        );
        return Response::Failure;
    }
    let queues = request_queues(transport);
    let marks: Vec<Vec<TaskMark>> = queues.iter().map(|queue| queue.tasks(&ends)).collect();
    let some = marks.iter().any(|marks| !marks.is_empty());
    let is_held = || queues.iter().zip(&marks).any(|(queue, marks)| queue.holds_any(marks));
    loop {
        let reply = match way.manage(io, function).await {
            // What is still out for a unit that is none comes to an end, too: a driver that hears of a failure goes on to resets.
            TaskManagementReply::IncorrectLun if some => TaskManagementReply::Complete,
            reply => reply,
        };
        if !matches!(reply, TaskManagementReply::Complete | TaskManagementReply::Succeeded) {
            return response(reply);
        }
        for _ in 0..LOOKS {
            if !is_held() {
                return response(reply);
            }
            io.sleep(POLL).await;
        }
    }
}

/// Waits until every command that the driver sent before the function has been taken from its ring; false when that comes
/// to a stop. To answer as if it had come to an end would be worse: the driver takes those commands for ended.
async fn take_backlog(io: &Io, transport: &Transport) -> bool {
    for queue in request_queues(transport) {
        let Some(backlog) = queue.backlog() else { continue };
        queue.ring_doorbell();
        let (mut before, mut still, mut looked) = (0, Duration::ZERO, Instant::now());
        loop {
            let left = queue.left_of(backlog);
            if left == 0 || transport.is_broken() {
                break;
            }
            still = if left == before { still + looked.elapsed().min(STEP) } else { Duration::ZERO };
            if still > STANDSTILL {
                return false;
            }
            (before, looked) = (left, Instant::now());
            io.sleep(POLL).await;
        }
    }
    true
}

fn request_queues(transport: &Transport) -> &[Arc<Queue>] {
    transport.queues().get(usize::from(queue::FIRST_REQUEST)..).unwrap_or_default()
}

/// Which commands a function ends; `None` when it ends none.
fn ends(target: u8, function: TaskManagement) -> Option<impl Fn(&TaskId) -> bool> {
    let (lun, tag) = match function {
        TaskManagement::AbortTask(lun, tag) => (Some(lun), Some(tag)),
        TaskManagement::AbortTaskSet(lun)
        | TaskManagement::ClearTaskSet(lun)
        | TaskManagement::LogicalUnitReset(lun) => (Some(lun), None),
        TaskManagement::NexusReset => (None, None),
        TaskManagement::ClearAca(_) | TaskManagement::QueryTask(..) | TaskManagement::QueryTaskSet(_) => {
            return None;
        }
    };
    Some(move |task: &TaskId| {
        task.target == target
            && lun.is_none_or(|lun| lun == task.lun)
            && tag.is_none_or(|tag| tag == task.tag)
    })
}

fn response(reply: TaskManagementReply) -> Response {
    match reply {
        TaskManagementReply::Complete => Response::Ok,
        TaskManagementReply::Succeeded => Response::FunctionSucceeded,
        TaskManagementReply::Rejected => Response::FunctionRejected,
        TaskManagementReply::IncorrectLun => Response::IncorrectLun,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use devices::iothread::IoThread;
    use devices::mem::GuestRam;
    use vm_memory::{Bytes, GuestAddress};

    use super::*;
    use crate::ring::RingAddress;
    use crate::transport::{Device, Limits};

    struct Nothing;
    impl Device for Nothing {
        fn unfinished(&self) -> String {
            String::new()
        }
        fn features(&self) -> u64 {
            0
        }
        fn negotiate(&self, _: u64) -> bool {
            true
        }
        fn read_config(&self, _: u64, _: &mut [u8], _: u64) {}
        fn queue_stopped(&self, _: u16) {}
        fn config_generation(&self) -> u8 {
            0
        }
        fn write_config(&self, _: u64, _: &[u8]) {}
        fn abort(&self, _: Arc<Transport>) {}
        fn reset(&self) {}
    }

    const AT: RingAddress = RingAddress { size: 4, desc: 0x1000, driver: 0x2000, device: 0x3000 };

    /// A device whose first request queue has `waiting` chains that nobody takes.
    fn standing_still(waiting: u8) -> Arc<Transport> {
        let ram = Arc::new(GuestRam::from_ranges(&[(GuestAddress(0), 0x1_0000)]).unwrap());
        let dma = Dma::new(ram.clone());
        dma.set_bus_master(true);
        ram.write_slice(&[0, 0, waiting, 0, 0, 0, 0, 0], GuestAddress(0x2000)).unwrap();
        let queues: Vec<_> =
            (0..=queue::FIRST_REQUEST).map(|_| Arc::new(Queue::new(dma.clone()).unwrap())).collect();
        queues[usize::from(queue::FIRST_REQUEST)].start(AT, false).unwrap();
        let limits = Limits { queue_size: 4, vectors: 1, access_platform: false };
        Transport::new(Arc::new(Nothing), queues.into(), limits)
    }

    /// What becomes of the wait for the backlog, while `meanwhile` goes on.
    fn backlog_is_taken(waiting: u8, meanwhile: impl FnOnce(&Queue)) -> Option<bool> {
        let (thread, transport) = (IoThread::start("test").unwrap(), standing_still(waiting));
        let (tell, told) = mpsc::channel();
        let there = transport.clone();
        thread.remote().spawn(move |io| async move {
            let _ = tell.send(take_backlog(&io, &there).await);
        });
        std::thread::sleep(Duration::from_millis(20));
        meanwhile(&request_queues(&transport)[0]);
        told.recv_timeout(Duration::from_secs(10)).ok()
    }

    #[test]
    fn a_backlog_that_nobody_takes_is_not_waited_for_for_ever() {
        assert_eq!(backlog_is_taken(0, |_| ()), Some(true));
        assert_eq!(backlog_is_taken(2, |_| ()), Some(false), "it cannot be taken");
        assert_eq!(backlog_is_taken(2, |queue| assert!(queue.stop())), Some(true), "it never will be");
    }

    /// A process that was frozen for longer has not looked.
    #[test]
    fn a_thread_that_stands_still_itself_fails_no_function() {
        let (thread, transport) = (IoThread::start("test").unwrap(), standing_still(2));
        let ((tell, told), (thaw, thawed)) = (mpsc::channel(), mpsc::channel());
        let there = transport.clone();
        thread.remote().spawn(move |io| async move {
            let _ = tell.send(take_backlog(&io, &there).await);
        });
        std::thread::sleep(Duration::from_millis(20));
        thread.remote().spawn(move |_| async move {
            std::thread::sleep(2 * STANDSTILL);
            let _ = thaw.send(());
        });
        thawed.recv().unwrap();
        std::thread::sleep(Duration::from_millis(20));
        assert!(request_queues(&transport)[0].stop());
        assert_eq!(told.recv_timeout(Duration::from_secs(10)), Ok(true));
    }

    /// What the driver sent before it took the queue back is not looked for in the next life of the queue.
    #[test]
    fn a_backlog_ends_with_the_life_of_its_queue() {
        let anew = |queue: &Queue| {
            queue.stop();
            queue.start(AT, false).unwrap();
        };
        assert_eq!(backlog_is_taken(2, anew), Some(true));
    }
}
