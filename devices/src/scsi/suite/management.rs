//! Task management functions, task attributes, and commands that end because something else happened.

use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use super::local::{Request, block_on};
use super::nexuses::{LUN_0, READ, READY, WRITE, ram, rig};
use super::{BLOCK, DiskConfig, check, config, exact, good, settle};
use crate::iothread::Io;
use crate::scsi::{
    Lun, Nexus, ScsiReply, Status, Tag, TaskAttribute, TaskManagement, TaskManagementReply, TransportFault,
};

pub(super) type Reply = Result<ScsiReply, TransportFault>;

/// A command under way.
pub(super) struct Running<'a>(Pin<Box<dyn Future<Output = (Reply, Vec<u8>)> + 'a>>);

impl<'a> Running<'a> {
    /// For LUN 0.
    pub(super) fn start(nexus: &'a Nexus, io: &'a Io, tag: u64, cdb: &[u8], data_out: &[u8]) -> Self {
        Self::start_at(nexus, io, (tag, LUN_0), cdb, data_out)
    }
    pub(super) fn start_at(
        nexus: &'a Nexus,
        io: &'a Io,
        (tag, lun): (u64, Lun),
        cdb: &[u8],
        data_out: &[u8],
    ) -> Self {
        let mut request = Request::new(cdb, data_out, BLOCK);
        (request.tag, request.lun) = (tag, lun);
        let mut running = Self(Box::pin(request.send(nexus, io)));
        assert!(running.poll().is_none(), "the command waits for the image");
        running
    }
    pub(super) fn poll(&mut self) -> Option<Reply> {
        match self.0.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready((reply, _)) => Some(reply),
            Poll::Pending => None,
        }
    }
}

/// Polls a task management function and the commands that it may end until all are done.
pub(super) fn manage(nexus: &Nexus, function: TaskManagement, ending: &mut [&mut Running<'_>]) -> Vec<Reply> {
    let io = Io::for_test();
    let mut managing = Box::pin(nexus.manage(&io, function));
    let mut poll = || managing.as_mut().poll(&mut Context::from_waker(Waker::noop()));
    if ending.is_empty() {
        assert_eq!(poll(), Poll::Ready(TaskManagementReply::Complete));
        return Vec::new();
    }
    let mut replies = Vec::new();
    for running in ending {
        assert_eq!(poll(), Poll::Pending, "it waits until the commands have left");
        replies.push(running.poll().expect("ended"));
    }
    assert_eq!(poll(), Poll::Ready(TaskManagementReply::Complete));
    replies
}

fn query(nexus: &Nexus, function: TaskManagement) -> TaskManagementReply {
    block_on(nexus.manage(&Io::for_test(), function))
}

#[test]
fn abort_task_ends_one_command() {
    let (_target, image, a, b) = rig(config());
    let io = Io::for_test();
    ram(&image).hold(true);
    let mut one = Running::start(&a.nexus, &io, 1, &READ, &[]);
    let mut two = Running::start(&a.nexus, &io, 2, &READ, &[]);
    let mut other = Running::start(&b.nexus, &io, 1, &READ, &[]);
    let task = TaskManagement::QueryTask(LUN_0, Tag(1));
    assert_eq!(query(&a.nexus, task), TaskManagementReply::Succeeded);
    let replies = manage(&a.nexus, TaskManagement::AbortTask(LUN_0, Tag(1)), &mut [&mut one]);
    assert_eq!(replies[0].as_ref().unwrap_err(), &TransportFault::Aborted);
    assert_eq!(query(&a.nexus, task), TaskManagementReply::Complete);
    assert_eq!(query(&a.nexus, TaskManagement::QueryTaskSet(LUN_0)), TaskManagementReply::Succeeded);
    // A tag that is not there is no error.
    manage(&a.nexus, TaskManagement::AbortTask(LUN_0, Tag(77)), &mut []);
    let replies = manage(&a.nexus, TaskManagement::AbortTaskSet(LUN_0), &mut [&mut two]);
    assert_eq!(replies[0].as_ref().unwrap_err(), &TransportFault::Aborted);
    ram(&image).hold(false);
    assert_eq!(other.poll().unwrap().unwrap().status, Status::Good);
    assert_eq!(query(&a.nexus, TaskManagement::ClearAca(LUN_0)), TaskManagementReply::Rejected);
    let nowhere = Lun([0, 9, 0, 0, 0, 0, 0, 0]);
    assert_eq!(query(&a.nexus, TaskManagement::AbortTaskSet(nowhere)), TaskManagementReply::IncorrectLun);
}

#[test]
fn clear_task_set_tells_the_other_initiator() {
    let (_target, image, mut a, mut b) = rig(config());
    let io = Io::for_test();
    ram(&image).hold(true);
    {
        let mut mine = Running::start(&a.nexus, &io, 1, &READ, &[]);
        let mut other = Running::start(&b.nexus, &io, 1, &READ, &[]);
        let replies = manage(&a.nexus, TaskManagement::ClearTaskSet(LUN_0), &mut [&mut mine, &mut other]);
        assert!(replies.iter().all(|reply| matches!(reply, Err(TransportFault::Aborted))));
    }
    ram(&image).hold(false);
    good(&mut a, &READY, &[], 0);
    check(&mut b, &READY, &[], 0, (0x6, 0x2f, 0x00));
    // With TAS set the other has a status instead.
    let mut list = vec![0; 4];
    list.extend(&good(&mut a, &[0x1a, 8, 0x0a, 0, 16, 0], &[], 16)[4..]);
    list[4 + 5] |= 0x40;
    exact(&mut a, &[0x15, 0x10, 0, 0, 16, 0], &list, 0);
    settle(&mut b);
    ram(&image).hold(true);
    let mut other = Running::start(&b.nexus, &io, 1, &READ, &[]);
    let replies = manage(&a.nexus, TaskManagement::ClearTaskSet(LUN_0), &mut [&mut other]);
    assert_eq!(replies[0].as_ref().unwrap().status, Status::TaskAborted);
    drop(other);
    ram(&image).hold(false);
    good(&mut b, &READY, &[], 0);
}

#[test]
fn logical_unit_reset_ends_everything_and_forgets_settings() {
    let (_target, image, mut a, mut b) = rig(config());
    let io = Io::for_test();
    let mut list = vec![0; 4];
    list.extend(&good(&mut a, &[0x1a, 8, 8, 0, 24, 0], &[], 24)[4..]);
    list[4 + 2] &= !0x04;
    exact(&mut a, &[0x15, 0x10, 0, 0, 24, 0], &list, 0);
    settle(&mut b);
    ram(&image).hold(true);
    {
        let mut mine = Running::start(&a.nexus, &io, 1, &READ, &[]);
        let mut other = Running::start(&b.nexus, &io, 1, &READ, &[]);
        let reset = TaskManagement::LogicalUnitReset(LUN_0);
        let replies = manage(&a.nexus, reset, &mut [&mut mine, &mut other]);
        assert!(replies.iter().all(|reply| matches!(reply, Err(TransportFault::Reset))));
    }
    ram(&image).hold(false);
    for initiator in [&mut a, &mut b] {
        check(initiator, &READY, &[], 0, (0x6, 0x29, 0x03));
        assert_eq!(good(initiator, &[0x1a, 8, 8, 0, 24, 0], &[], 24)[4 + 2], 0x04);
    }
}

#[test]
fn nexus_reset_ends_only_its_own() {
    let (_target, image, mut a, mut b) = rig(config());
    let io = Io::for_test();
    ram(&image).hold(true);
    {
        let mut mine = Running::start(&a.nexus, &io, 1, &READ, &[]);
        let mut other = Running::start(&b.nexus, &io, 1, &READ, &[]);
        let replies = manage(&a.nexus, TaskManagement::NexusReset, &mut [&mut mine]);
        assert!(matches!(replies[0], Err(TransportFault::Reset)));
        ram(&image).hold(false);
        assert_eq!(other.poll().unwrap().unwrap().status, Status::Good);
    }
    check(&mut a, &READY, &[], 0, (0x6, 0x29, 0x07));
    good(&mut b, &READY, &[], 0);
}

#[test]
fn power_on_starts_a_stopped_medium() {
    let (target, _, mut a, _) = rig(config());
    exact(&mut a, &[0x1b, 0, 0, 0, 0, 0], &[], 0);
    block_on(target.power_on());
    check(&mut a, &READY, &[], 0, (0x6, 0x29, 0x00));
    good(&mut a, &READY, &[], 0);
}

#[test]
fn detaching_ends_commands_with_a_status() {
    let (target, image, a, _) = rig(config());
    let io = Io::for_test();
    ram(&image).hold(true);
    let mut running = Running::start(&a.nexus, &io, 1, &READ, &[]);
    let mut detach = Box::pin(target.detach(LUN_0));
    let mut poll =
        || detach.as_mut().poll(&mut Context::from_waker(Waker::noop())).map(|gone| gone.is_some());
    assert_eq!(poll(), Poll::Pending);
    let reply = running.poll().unwrap().unwrap();
    assert_eq!(reply.status, Status::CheckCondition);
    assert_eq!(reply.sense.unwrap().as_bytes()[12..14], [0x25, 0x00]);
    assert_eq!(poll(), Poll::Ready(true));
}

#[test]
fn task_attributes_are_obeyed() {
    let (_target, image, a, _) = rig(config());
    let io = Io::for_test();
    ram(&image).hold(true);
    let mut first = Running::start(&a.nexus, &io, 1, &READ, &[]);
    let mut ordered = Request::new(&WRITE, &[5; BLOCK], 0);
    ordered.attribute = TaskAttribute::Ordered;
    let mut ordered = Running(Box::pin(ordered.send(&a.nexus, &io)));
    assert!(ordered.poll().is_none());
    let mut last = Running::start(&a.nexus, &io, 3, &READ, &[]);
    assert_eq!(ram(&image).arrived(), 1, "only the first has reached the image");
    let mut head = Request::new(&READ, &[], BLOCK);
    head.attribute = TaskAttribute::HeadOfQueue;
    let mut head = Running(Box::pin(head.send(&a.nexus, &io)));
    assert!(head.poll().is_none());
    assert_eq!(ram(&image).arrived(), 2, "the head of the queue did not wait");
    ram(&image).hold(false);
    assert!(last.poll().is_none() && ordered.poll().is_none());
    assert_eq!(first.poll().unwrap().unwrap().status, Status::Good);
    assert!(ordered.poll().is_none());
    assert_eq!(head.poll().unwrap().unwrap().status, Status::Good);
    assert!(last.poll().is_none());
    assert_eq!(ordered.poll().unwrap().unwrap().status, Status::Good);
    assert_eq!(last.poll().unwrap().unwrap().status, Status::Good);
    let mut aca = Request::new(&READ, &[], BLOCK);
    aca.attribute = TaskAttribute::Aca;
    let (reply, _) = block_on(aca.send(&a.nexus, &io));
    assert_eq!(reply.unwrap().sense.unwrap().as_bytes()[12..14], [0x49, 0x00]);
}

#[test]
fn nothing_comes_between_comparing_and_writing() {
    let (_target, image, mut a, b) = rig(config());
    let io = Io::for_test();
    exact(&mut a, &WRITE, &[1; BLOCK], 0);
    let _ = ram(&image).operations();
    ram(&image).hold(true);
    // COMPARE AND WRITE of one block at LBA 0: if ones, then twos.
    let cdb = [0x89, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0];
    let mut swap = Running::start(&a.nexus, &io, 1, &cdb, &[[1; BLOCK], [2; BLOCK]].concat());
    let mut head = Request::new(&WRITE, &[3; BLOCK], 0);
    head.attribute = TaskAttribute::HeadOfQueue;
    let mut head = Running(Box::pin(head.send(&b.nexus, &io)));
    assert!(head.poll().is_none());
    assert_eq!(ram(&image).arrived(), 1, "the head of the queue has not reached the image");
    ram(&image).hold(false);
    assert!(head.poll().is_none());
    assert_eq!(swap.poll().unwrap().unwrap().status, Status::Good);
    assert_eq!(head.poll().unwrap().unwrap().status, Status::Good);
    drop((swap, head));
    assert_eq!(exact(&mut a, &READ, &[], BLOCK), [3; BLOCK]);
}

#[test]
fn progress_is_told_while_the_medium_is_formatted() {
    let (_target, image, a, mut b) = rig(config());
    let io = Io::for_test();
    ram(&image).hold(true);
    let mut work = Running::start(&a.nexus, &io, 1, &[0x04, 0, 0, 0, 0, 0], &[]);
    // The last one is also wrong in itself: there is no medium to eject.
    for other in [&READY[..], &READ, &[0x1b, 0, 0, 0, 0, 0], &[0x1b, 0, 0, 0, 0x22, 0]] {
        let sense = check(&mut b, other, &[], BLOCK, (0x2, 0x04, 0x04));
        assert_eq!(sense[15], 0x80, "a progress indication");
    }
    let data = good(&mut b, &[0x03, 0, 0, 0, 18, 0], &[], 18);
    assert_eq!((data[2], data[12], data[13], data[15]), (0x2, 0x04, 0x04, 0x80));
    good(&mut b, &[0x12, 0, 0, 0, 36, 0], &[], 36);
    ram(&image).hold(false);
    assert_eq!(work.poll().unwrap().unwrap().status, Status::Good);
    good(&mut b, &READY, &[], 0);
}

/// A stop that waits for the cache, beside a format that begins meanwhile.
#[test]
fn a_stop_that_comes_late_ends_no_format() {
    for stop in [0x00, 0x02] {
        let (_target, image, a, mut b) = rig(DiskConfig { removable: true, ..config() });
        let io = Io::for_test();
        ram(&image).hold(true);
        let mut stopping = Running::start(&a.nexus, &io, 1, &[0x1b, 0, 0, 0, stop, 0], &[]);
        // FORMAT UNIT with IMMED; nobody runs what goes on in the background.
        let mut format = Request::new(&[0x04, 0x10, 0, 0, 0, 0], &[0, 2, 0, 0], 0);
        format.tag = 2;
        assert_eq!(block_on(format.send(&a.nexus, &io)).0.unwrap().status, Status::Good);
        check(&mut b, &READY, &[], 0, (0x2, 0x04, 0x04));
        ram(&image).hold(false);
        let reply = stopping.poll().unwrap().unwrap();
        assert_eq!(reply.status, Status::CheckCondition, "it has not stopped");
        check(&mut b, &READY, &[], 0, (0x2, 0x04, 0x04));
        check(&mut b, &[0x1b, 0, 0, 0, 0x03, 0], &[], 0, (0x2, 0x04, 0x04));
        check(&mut b, &READY, &[], 0, (0x2, 0x04, 0x04));
    }
}
