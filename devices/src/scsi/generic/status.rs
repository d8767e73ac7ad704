//! What the kernel says of a command, in the words of this layer. Nothing of it is trusted: drivers of adapters have bugs, and
//! devices lie.

use std::io;

use super::BUSY;
use super::host::{Answer, Direction};
use crate::scsi::outcome::{Done, Outcome};
use crate::scsi::passed::{Passed, Words};
use crate::scsi::sense::{
    Failure, INSUFFICIENT_RESOURCES, INVALID_FIELD_IN_CDB, INVALID_OPERATION_CODE, LUN_NOT_SUPPORTED,
    SPACE_ALLOCATION_FAILED, SenseData, SenseKey, UNRECOVERED_READ_ERROR, WRITE_ERROR,
};
use crate::scsi::{MAX_SENSE, Sense, Status, TransportFault};

/// What the adapter's driver says (Linux, scsi/scsi_status.h, `host_byte`).
mod host {
    pub(super) const OK: u16 = 0x00;
    pub(super) const NO_CONNECT: u16 = 0x01;
    pub(super) const BUS_BUSY: u16 = 0x02;
    pub(super) const TIME_OUT: u16 = 0x03;
    pub(super) const BAD_TARGET: u16 = 0x04;
    pub(super) const ABORT: u16 = 0x05;
    pub(super) const RESET: u16 = 0x08;
    pub(super) const PASSTHROUGH: u16 = 0x0a;
    pub(super) const IMM_RETRY: u16 = 0x0c;
    pub(super) const REQUEUE: u16 = 0x0d;
    pub(super) const TARGET_FAILURE: u16 = 0x10;
    pub(super) const NEXUS_FAILURE: u16 = 0x11;
    pub(super) const ALLOC_FAILURE: u16 = 0x12;
    pub(super) const MEDIUM_ERROR: u16 = 0x13;
}

/// What Linux before 5.14 says beside that (`driver_byte`), without its suggestions.
mod driver {
    pub(super) const BUSY: u16 = 0x01;
    pub(super) const TIMEOUT: u16 = 0x06;
    pub(super) const MASK: u16 = 0x0f;
}

/// How a command ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// With what the device said: status, its sense data, and how many bytes were transferred.
    Device { status: Status, sense: Option<Box<Sense>>, moved: u64 },
    /// Without a word of the device.
    Fault(TransportFault),
    /// Not carried out, or not to its end: what this layer says of it.
    Failed(Failure),
}

impl Verdict {
    /// Whether it ended well.
    pub(super) fn is_good(&self) -> bool {
        matches!(self, Self::Device { status: Status::Good | Status::ConditionMet, .. })
    }

    /// Whether the host may have reset the device over it. The device's word of that goes to the kernel's own recovery; whoever sent
    /// the command has to hear that settings are lost, and of a tape perhaps its place.
    pub(super) fn may_have_reset(&self, sequential: bool) -> bool {
        match self {
            Self::Fault(TransportFault::Reset) => true,
            Self::Fault(TransportFault::PathLost) => sequential,
            Self::Failed(_) => sequential && *self == failed(SenseKey::AbortedCommand, (0, 0)),
            Self::Fault(_) | Self::Device { .. } => false,
        }
    }

    /// Bytes that were transferred.
    pub(super) fn moved(&self) -> u64 {
        match self {
            Self::Device { moved, .. } => *moved,
            Self::Fault(_) | Self::Failed(_) => 0,
        }
    }

    /// What the unit says of it, with all that was `moved` of the data; `words` gets what the outcome has no room for.
    pub(super) fn outcome(self, direction: Direction, moved: u64, words: &Words) -> Outcome {
        let (data_out, data_in) = match direction {
            Direction::Out => (moved, 0),
            Direction::In => (0, moved),
            Direction::None => (0, 0),
        };
        let passed = match self {
            Self::Device { status, sense: None, .. } => {
                return Ok(Done { status, sense: None, data_out, data_in });
            }
            Self::Failed(failure) => return Err(failure),
            Self::Device { status, sense, .. } => Passed::Reply { status, sense, data_out, data_in },
            Self::Fault(fault) => Passed::Fault(fault),
        };
        Err(Failure::Passed(words.leave(passed)))
    }
}

fn failed(key: SenseKey, code: (u8, u8)) -> Verdict {
    Verdict::Failed(SenseData::new(key, code).into())
}

/// How a command that asked for `asked` bytes ended, by what the kernel says of it. What a `sequential` device may have begun with
/// must not be repeated as if it had not gone out.
pub(super) fn verdict(answer: &Answer, direction: Direction, asked: u64, sequential: bool) -> Verdict {
    let said = match (answer.status, answer.host, answer.driver & driver::MASK) {
        // The kernel has looked at status and sense, and adds what it makes of them.
        (1.., host::OK | host::PASSTHROUGH | host::TARGET_FAILURE..=host::MEDIUM_ERROR, _) => None,
        // It has given up on it, and may have reset the device over it. Initiators repeat what a reset has ended. (COMMAND TIMEOUT
        // DURING PROCESSING, 2Eh/02h, would be the end of a duration limit: Linux has an error at once then.)
        (0, host::OK | host::PASSTHROUGH, driver::TIMEOUT) | (_, host::TIME_OUT, _) => {
            Some(Verdict::Fault(TransportFault::Reset))
        }
        (0, host::OK | host::PASSTHROUGH, driver::BUSY) => Some(fault(host::BUS_BUSY, direction)),
        // Some drivers say that of what they have not sent; 8 is what the kernel adds to sense data.
        (0, host::OK | host::PASSTHROUGH, 1..=7 | 9..) => Some(Verdict::Fault(TransportFault::TargetFailure)),
        (_, host::OK | host::PASSTHROUGH, _) => None,
        (_, host, _) => Some(fault(host, direction)),
    };
    match said.unwrap_or_else(|| device(answer, asked)) {
        // What drivers of changers repeat, or take for success, when an adapter says it: they do neither with this.
        Verdict::Fault(_) if sequential => failed(SenseKey::AbortedCommand, (0, 0)),
        verdict => verdict,
    }
}

/// Without a status of the device.
fn fault(host: u16, direction: Direction) -> Verdict {
    use TransportFault as Fault;
    Verdict::Fault(match host {
        host::NO_CONNECT | host::BAD_TARGET => Fault::NoTarget,
        // Most say so of what has not gone out, some of what has.
        host::BUS_BUSY | host::IMM_RETRY | host::REQUEUE => Fault::Busy,
        host::ABORT => return failed(SenseKey::AbortedCommand, (0, 0)),
        host::RESET => Fault::Reset,
        host::TARGET_FAILURE => Fault::TargetFailure,
        host::NEXUS_FAILURE => Fault::NexusFailure,
        host::ALLOC_FAILURE => return failed(SenseKey::DataProtect, SPACE_ALLOCATION_FAILED),
        host::MEDIUM_ERROR if direction == Direction::Out => {
            return failed(SenseKey::MediumError, WRITE_ERROR);
        }
        host::MEDIUM_ERROR => return failed(SenseKey::MediumError, UNRECOVERED_READ_ERROR),
        // Errors of the adapter and of the transport, and what later kernels may add: another path may do better.
        _ => Fault::PathLost,
    })
}

/// What the device said itself.
fn device(answer: &Answer, asked: u64) -> Verdict {
    // Bits 0, 6 and 7 were vendor specific once; TASK ABORTED has bit 6.
    let status = match answer.status {
        0x40 => Status::TaskAborted,
        other => match other & 0x3e {
            0x00 => Status::Good,
            0x02 => Status::CheckCondition,
            0x04 => Status::ConditionMet,
            0x08 => Status::Busy,
            0x18 => Status::ReservationConflict,
            0x28 => Status::TaskSetFull,
            0x30 => Status::AcaActive,
            _ => {
                crate::log_limited!(warn, "a device answered with SCSI status {other:02x}h, which is none");
                return Verdict::Fault(TransportFault::TargetFailure);
            }
        },
    };
    let len = usize::from(answer.sense_len).min(MAX_SENSE);
    let sense = answer.sense.get(..len).filter(|sense| !sense.is_empty());
    let sense = sense.map(|sense| Box::new(Sense::from_bytes(sense)));
    let moved = match status {
        // Whatever is said of a residual: a command that was not taken moved nothing.
        Status::Busy
        | Status::ReservationConflict
        | Status::TaskSetFull
        | Status::AcaActive
        | Status::TaskAborted => 0,
        Status::Good | Status::CheckCondition | Status::ConditionMet => {
            asked - asked.min(u64::try_from(answer.residual).unwrap_or(0))
        }
    };
    Verdict::Device { status, sense, moved }
}

/// How a command ended for which there is no device.
pub(super) fn gone() -> Verdict {
    failed(SenseKey::IllegalRequest, LUN_NOT_SUPPORTED)
}

/// How a command ended that the kernel has not carried out.
pub(super) fn refused(error: &io::Error) -> Verdict {
    match error.raw_os_error() {
        // Deleted, or a block device that is offline: as a command for a LUN that is not there.
        Some(libc::ENODEV) => gone(),
        // Set offline, by the kernel or by hand.
        Some(libc::ENXIO) => Verdict::Fault(TransportFault::PathLost),
        // The kernel's own filter for those without CAP_SYS_RAWIO, or a node that is open for reading.
        Some(libc::EPERM | libc::EACCES) => failed(SenseKey::IllegalRequest, INVALID_OPERATION_CODE),
        // The process was stopped meanwhile, and the kernel has let go of a command that it had sent.
        Some(libc::EINTR) => failed(SenseKey::AbortedCommand, (0, 0)),
        // There is no room for it now. Initiators wait for a device that is BUSY; of an adapter that is they have an error soon.
        Some(libc::ENOMEM | libc::EAGAIN | libc::EBUSY | libc::EDOM) => Verdict::Failed(BUSY),
        // It does not take what it is given; the same again would end the same way.
        Some(libc::EINVAL | libc::EIO | libc::EMSGSIZE | libc::EOPNOTSUPP | libc::ENOTTY) => {
            failed(SenseKey::IllegalRequest, INVALID_FIELD_IN_CDB)
        }
        _ => failed(SenseKey::AbortedCommand, INSUFFICIENT_RESOURCES),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u8, host: u16, driver: u16, residual: i32) -> Answer {
        Answer { status, host, driver, residual, ..Answer::good() }
    }

    fn of(status: u8, host: u16, driver: u16, residual: i32) -> Verdict {
        verdict(&answer(status, host, driver, residual), Direction::In, 4096, false)
    }

    fn plain(status: Status, moved: u64) -> Verdict {
        Verdict::Device { status, sense: None, moved }
    }

    #[test]
    fn each_word_of_the_adapter_has_one_here() {
        use TransportFault as Fault;
        let faults = [
            (0x01, Fault::NoTarget),
            (0x02, Fault::Busy),
            (0x04, Fault::NoTarget),
            (0x06, Fault::PathLost),
            (0x07, Fault::PathLost),
            (0x08, Fault::Reset),
            (0x09, Fault::PathLost),
            (0x0b, Fault::PathLost),
            (0x0c, Fault::Busy),
            (0x0d, Fault::Busy),
            (0x0e, Fault::PathLost),
            (0x0f, Fault::PathLost),
            (0x10, Fault::TargetFailure),
            (0x11, Fault::NexusFailure),
            (0x14, Fault::PathLost),
            (0xff, Fault::PathLost),
            (0xffff, Fault::PathLost),
        ];
        for (host, fault) in faults {
            assert_eq!(of(0, host, 0, 0), Verdict::Fault(fault), "{host:02x}h");
        }
        assert_eq!(of(0, 0, 0x01, 0), Verdict::Fault(Fault::Busy));
        for driver in [0x02, 0x03, 0x04, 0x05, 0x07, 0x09, 0x0f] {
            assert_eq!(of(0, 0, driver, 0), Verdict::Fault(Fault::TargetFailure), "{driver:02x}h");
        }
        assert_eq!(of(0, 0, 0x08, 0), plain(Status::Good, 4096));
        for (host, driver) in [(3, 0), (0, 6), (0, 0x16)] {
            assert_eq!(of(0, host, driver, 0), Verdict::Fault(Fault::Reset));
        }
        assert_eq!(of(0, 5, 0, 0), failed(SenseKey::AbortedCommand, (0, 0)));
        assert_eq!(of(0, 0x12, 0, 0), failed(SenseKey::DataProtect, (0x27, 0x07)));
        assert_eq!(of(0, 0x13, 0, 0), failed(SenseKey::MediumError, (0x11, 0x00)));
        let write = verdict(&answer(0, 0x13, 0, 0), Direction::Out, 1, false);
        assert_eq!(write, failed(SenseKey::MediumError, (0x0c, 0x00)));
        assert_eq!(of(0, 0x0a, 0, 96), plain(Status::Good, 4000), "past the middle layer");
    }

    #[test]
    fn a_sequential_device_may_have_begun_with_it() {
        let of = |host, driver| verdict(&answer(0, host, driver, 0), Direction::Out, 1, true);
        let words = [(0x02, 0), (0x0c, 0), (0x0d, 0), (0, 0x01), (0x03, 0), (0, 0x06)];
        for (host, driver) in
            words.into_iter().chain([(1, 0), (4, 0), (7, 0), (8, 0), (0x0b, 0), (0x0e, 0), (0x0f, 0)])
        {
            assert_eq!(of(host, driver), failed(SenseKey::AbortedCommand, (0, 0)), "{host:02x}h");
            assert!(of(host, driver).may_have_reset(true));
        }
    }

    /// Linux has an error at once, without a line in its log.
    #[test]
    fn nothing_of_ours_is_the_end_of_a_duration_limit() {
        let limits: Vec<_> = (1..4).map(|code| failed(SenseKey::AbortedCommand, (0x2e, code))).collect();
        for (host, driver) in (0..0x20).flat_map(|host| (0..0x10).map(move |driver| (host, driver))) {
            for sequential in [false, true] {
                let said = verdict(&answer(0, host, driver, 0), Direction::In, 1, sequential);
                assert!(!limits.contains(&said), "{host:02x}h, {driver:02x}h");
            }
        }
        for error in 1..134 {
            assert!(!limits.contains(&refused(&io::Error::from_raw_os_error(error))), "{error}");
        }
    }

    /// Kernels set these words where they have looked at status or sense: what the device said counts.
    #[test]
    fn the_devices_word_counts_more_than_what_the_kernel_makes_of_it() {
        assert_eq!(of(0x18, 0x11, 0, 0), plain(Status::ReservationConflict, 0));
        assert_eq!(of(0x02, 0x10, 8, 4096), plain(Status::CheckCondition, 0));
        assert_eq!(of(0x02, 0x12, 8, 4096), plain(Status::CheckCondition, 0));
        // A transport that was disrupted after a status leaves the status in doubt.
        assert_eq!(of(0x02, 0x0e, 0, 0), Verdict::Fault(TransportFault::PathLost));
    }

    #[test]
    fn statuses_are_the_devices() {
        assert_eq!(of(0, 0, 0, 0), plain(Status::Good, 4096));
        assert_eq!(of(0x04, 0, 0, 0), plain(Status::ConditionMet, 4096));
        assert_eq!(of(0x40, 0, 0, 0), plain(Status::TaskAborted, 0));
        assert_eq!(of(0x30, 0, 0, 0), plain(Status::AcaActive, 0));
        assert_eq!(of(0xc0, 0, 0, 0), plain(Status::Good, 4096), "bits that were the vendors'");
        for status in [0x10, 0x14, 0x22, 0x3e] {
            assert_eq!(of(status, 0, 0, 0), Verdict::Fault(TransportFault::TargetFailure), "{status:02x}h");
        }
        for status in [0x08, 0x28] {
            assert_eq!(of(status, 0, 0, 0).moved(), 0, "{status:02x}h says no residual");
        }
    }

    #[test]
    fn residuals_and_lengths_that_cannot_be_are_cut() {
        assert_eq!(of(0, 0, 0, 4096).moved(), 0);
        assert_eq!(of(0, 0, 0, 5000).moved(), 0, "more than was asked for");
        assert_eq!(of(0, 0, 0, i32::MAX).moved(), 0);
        assert_eq!(of(0, 0, 0, -1).moved(), 4096);
        assert_eq!(of(0, 0, 0, i32::MIN).moved(), 4096);
        let mut long = answer(2, 0, 8, 4096);
        (long.sense, long.sense_len) = ([0x70; MAX_SENSE], 255);
        let Verdict::Device { sense: Some(sense), .. } = verdict(&long, Direction::In, 4096, false) else {
            panic!()
        };
        assert_eq!(sense.as_bytes(), [0x70; MAX_SENSE]);
        long.sense_len = 3;
        let Verdict::Device { sense: Some(sense), .. } = verdict(&long, Direction::In, 4096, false) else {
            panic!()
        };
        assert_eq!(sense.as_bytes(), [0x70; 3]);
    }

    #[test]
    fn what_the_kernel_did_not_send_has_an_end_too() {
        let of = |error| refused(&io::Error::from_raw_os_error(error));
        assert_eq!(of(libc::ENODEV), failed(SenseKey::IllegalRequest, (0x25, 0x00)));
        assert_eq!(of(libc::ENXIO), Verdict::Fault(TransportFault::PathLost));
        assert_eq!(of(libc::EPERM), failed(SenseKey::IllegalRequest, (0x20, 0x00)));
        for error in [libc::ENOMEM, libc::EDOM, libc::EBUSY, libc::EAGAIN] {
            assert_eq!(of(error), Verdict::Failed(Failure::Status(Status::Busy)));
        }
        assert_eq!(of(libc::EINTR), failed(SenseKey::AbortedCommand, (0, 0)));
        assert!(of(libc::EINTR).may_have_reset(true), "a tape may be elsewhere");
        assert_eq!(of(libc::EINVAL), failed(SenseKey::IllegalRequest, (0x24, 0x00)));
        assert_eq!(of(libc::EFAULT), failed(SenseKey::AbortedCommand, (0x55, 0x03)));
        assert_eq!(refused(&io::Error::other("a helper that is no more")), of(libc::EFAULT));
    }
}
