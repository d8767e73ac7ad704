//! Direct commands (DCMD frames): dispatch, and those that are not worth a module of their own.

use std::future::{Future, poll_fn};
use std::task::Poll;

use devices::iothread::Io;
use devices::mem::FromGuest;
use devices::scsi::{Lun, TaskManagement};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use super::drives::Kind;
use super::log::{Event, Filter, Subject};
use super::{Firmware, lock, physical};
use crate::differences::Difference;
use crate::spec::controller::{PATROL_DISABLED, PatrolProperties};
use crate::spec::drive::{PD_ONLINE, PD_SYSTEM};
use crate::spec::event::{Record, class, code, locale};
use crate::spec::{Status, opcode};

/// Bytes that a reply without content has at most.
const MAX_DUMMY: u64 = 4096;
/// Events in one reply at most.
const MAX_EVENTS: u64 = 256;

/// A direct command.
#[derive(Debug)]
pub(crate) struct Dcmd {
    pub(crate) opcode: u32,
    pub(crate) mailbox: [u8; 12],
    /// The buffer, to read what the driver put there; its length is what a reply may have.
    pub(crate) buffer: FromGuest,
}

impl Dcmd {
    /// Byte `at` of the mailbox.
    pub(super) fn byte(&self, at: usize) -> u8 {
        self.mailbox.get(at).copied().unwrap_or(0)
    }

    /// Half-word `at` (in half-words) of the mailbox.
    pub(super) fn half(&self, at: usize) -> u16 {
        u16::from_le_bytes([self.byte(2 * at), self.byte(2 * at + 1)])
    }

    /// Word `at` (in words) of the mailbox.
    pub(super) fn word(&self, at: usize) -> u32 {
        u32::from(self.half(2 * at)) | u32::from(self.half(2 * at + 1)) << 16
    }

    /// Bytes that the reply has room for.
    pub(super) fn room(&self) -> u64 {
        self.buffer.len()
    }

    /// What the driver put into the buffer: exactly `N` bytes, of which there have to be that many.
    pub(super) fn input<const N: usize>(&self) -> Result<[u8; N], Status> {
        let mut bytes = [0; N];
        if self.buffer.read_at(0, &mut bytes) < N {
            return Err(Status::InvalidParameter);
        }
        Ok(bytes)
    }

    /// Refuses a buffer of less than `len` bytes.
    fn needs(&self, len: usize) -> Result<(), Status> {
        if self.room() < len as u64 { Err(Status::InvalidParameter) } else { Ok(()) }
    }
}

/// What becomes of a direct command that is not refused.
#[derive(Debug)]
pub(crate) enum Reply {
    /// Done; no data.
    Done,
    /// Data; what the buffer has no room for is left out.
    Data(Vec<u8>),
    /// Held until there is such an event.
    Wait(Filter),
    /// Done, and the controller is shut down.
    Shutdown {
        /// It is the end of the driver, which forgets its disks.
        driver_goes: bool,
    },
}

fn data(value: &(impl IntoBytes + zerocopy::Immutable)) -> Result<Reply, Status> {
    Ok(Reply::Data(value.as_bytes().to_vec()))
}

impl Firmware {
    /// Carries a direct command out.
    pub(crate) async fn dcmd(&self, io: &Io, dcmd: &Dcmd) -> Result<Reply, Status> {
        match dcmd.opcode {
            opcode::CTRL_GET_INFO => Ok(Reply::Data(self.controller_info(io).await)),
            opcode::CTRL_GET_PROPERTIES => data(&self.properties()),
            opcode::CTRL_SET_PROPERTIES => self.set_properties(dcmd),
            opcode::PD_GET_LIST => Ok(Reply::Data(self.pd_list(io, |_, _| true).await)),
            opcode::PD_LIST_QUERY => self.pd_list_query(io, dcmd).await,
            opcode::PD_GET_INFO => self.pd_info(io, dcmd.half(0)).await,
            opcode::LD_GET_LIST => Ok(Reply::Data(self.ld_list(io).await)),
            opcode::LD_LIST_QUERY => self.ld_list_query(dcmd),
            opcode::LD_GET_INFO => self.ld_info(io, dcmd.half(0)).await,
            opcode::LD_GET_PROPERTIES => data(&self.ld_properties(io, dcmd.half(0)).await?),
            opcode::LD_SET_PROPERTIES => self.set_ld_properties(io, dcmd).await,
            opcode::CFG_READ => Ok(Reply::Data(self.read_configuration(io).await)),
            opcode::CACHE_FLUSH => self.flush_all(io).await.map(|()| Reply::Done),
            // Asleep, Linux keeps its devices: only the other one is the end of a driver.
            opcode::HIBERNATE_STANDBY => self.shut_down(io, false).await,
            opcode::CTRL_SHUTDOWN => self.shut_down(io, true).await,
            opcode::CLUSTER_RESET_LD => self.reset_logical(io, dcmd.half(0)).await,
            opcode::CLUSTER_RESET_ALL => Ok(self.reset_all(io).await),
            opcode::PD_LOCATE_ON | opcode::PD_LOCATE_OFF => self.locate(dcmd),
            _ => self.inform(dcmd).or_else(|| constant(dcmd)).unwrap_or_else(|| self.unknown(dcmd.opcode)),
        }
    }

    /// Commands about the controller itself.
    fn inform(&self, dcmd: &Dcmd) -> Option<Result<Reply, Status>> {
        Some(match dcmd.opcode {
            opcode::EVENT_GET_INFO => dcmd.needs(20).and_then(|()| data(&self.log().info())),
            opcode::EVENT_CLEAR => Ok(self.clear_log()),
            opcode::EVENT_COUNT => {
                let count = self.log().count(&Filter::new(dcmd.word(0), dcmd.word(1)));
                data(&zerocopy::little_endian::U32::new(count))
            }
            opcode::EVENT_GET => self.events(dcmd),
            opcode::EVENT_WAIT => {
                let filter = Filter::new(dcmd.word(0), dcmd.word(1));
                dcmd.needs(size_of::<Record>()).map(|()| Reply::Wait(filter))
            }
            opcode::GET_TIME => data(&self.clock.packed()),
            opcode::GET_TIME_SECONDS => data(&zerocopy::little_endian::U32::new(self.clock.seconds())),
            opcode::SET_TIME => {
                let packed = dcmd.mailbox.first_chunk().copied().unwrap_or_default();
                if self.clock.set(packed) {
                    self.set(|settings| settings.ahead = self.clock.ahead().into());
                    Ok(Reply::Done)
                } else {
                    Err(Status::InvalidParameter)
                }
            }
            opcode::BIOS_DATA_GET => data(&lock(&self.settings).bios_data),
            opcode::BIOS_DATA_SET => dcmd.input().map(|bytes| {
                self.set(|settings| settings.bios_data = bytes);
                Reply::Done
            }),
            opcode::MFC_DEFAULTS_GET => data(&self.factory_defaults()),
            opcode::MFC_DEFAULTS_SET => self.set_mfc_defaults(dcmd),
            opcode::FACTORY_DEFAULTS => Ok(self.set_factory_defaults()),
            _ => return None,
        })
    }

    fn unknown(&self, opcode: u32) -> Result<Reply, Status> {
        devices::log_limited!(warn, "megasas: unknown DCMD {opcode:#010x}");
        let done = self.personality.differences.happens(Difference::UnknownDcmd);
        if done { Ok(Reply::Done) } else { Err(Status::InvalidDcmd) }
    }

    fn clear_log(&self) -> Reply {
        self.log().clear();
        let event = Event {
            code: code::LOG_CLEARED,
            locale: locale::CTRL,
            class: class::INFO,
            subject: Subject::None,
        };
        self.report(event, "Event log cleared");
        Reply::Done
    }

    /// EVENT_GET. A reply without events would have FreeBSD look at the entry before the first.
    fn events(&self, dcmd: &Dcmd) -> Result<Reply, Status> {
        const HEADER: u64 = 8;
        let record = size_of::<Record>() as u64;
        let room = dcmd.room().saturating_sub(HEADER) / record;
        dcmd.needs(HEADER as usize + size_of::<Record>())?;
        let log = self.log();
        let filter = Filter::new(dcmd.word(0), dcmd.word(1));
        let mut bytes = vec![0; HEADER as usize];
        let mut count = 0_u32;
        for record in log.matching(&filter).take(room.min(MAX_EVENTS) as usize) {
            bytes.extend_from_slice(record.as_bytes());
            count += 1;
        }
        if count == 0 {
            return Err(Status::NotFound);
        }
        bytes.iter_mut().zip(count.to_le_bytes()).for_each(|(to, from)| *to = from);
        Ok(Reply::Data(bytes))
    }

    /// Makes everything stable that was written: all disks at once, and none waits for another.
    async fn flush_all(&self, io: &Io) -> Result<(), Status> {
        let all = self.drives.all();
        let good = together(all.values().map(|place| place.flush(io))).await;
        if good { Ok(()) } else { Err(Status::ScsiIoFailed) }
    }

    async fn shut_down(&self, io: &Io, driver_goes: bool) -> Result<Reply, Status> {
        let flushed = self.flush_all(io).await;
        let event =
            Event { code: code::SHUTDOWN, locale: locale::CTRL, class: class::INFO, subject: Subject::None };
        let seq = self.report(event, "Shutdown command received from host");
        self.log().shut_down(seq);
        // What could not be made stable is worth a complaint, but does not keep a machine from going down.
        if flushed.is_err() {
            devices::log_limited!(warn, "megasas: shutdown, but a disk could not be flushed");
        }
        Ok(Reply::Shutdown { driver_goes })
    }

    async fn reset_logical(&self, io: &Io, id: u16) -> Result<Reply, Status> {
        let place = self.drives.get(id).ok_or(Status::DeviceNotFound)?;
        let nexus = place.nexus(Kind::Logical).ok_or(Status::DeviceNotFound)?;
        nexus.manage(io, TaskManagement::AbortTaskSet(Lun::default())).await;
        Ok(Reply::Done)
    }

    async fn reset_all(&self, io: &Io) -> Reply {
        let all = self.drives.all();
        let nexuses = all.values().filter_map(|place| place.nexus(Kind::Logical));
        together(nexuses.map(|nexus| async {
            nexus.manage(io, TaskManagement::AbortTaskSet(Lun::default())).await;
            true
        }))
        .await;
        Reply::Done
    }

    /// The locate LED: nobody sees it, but it is an event. There is no code for it: it is a change to the same state.
    fn locate(&self, dcmd: &Dcmd) -> Result<Reply, Status> {
        let place = self.drives.get(dcmd.half(0)).ok_or(Status::DeviceNotFound)?;
        let on = if dcmd.opcode == opcode::PD_LOCATE_ON { "on" } else { "off" };
        let state = if place.nexus(Kind::Logical).is_some() { PD_ONLINE } else { PD_SYSTEM };
        let subject = Subject::PhysicalState(place.id.into(), 0xff, place.id, [state; 2]);
        let event = Event { subject, ..physical(code::PD_STATE_CHANGED, place.id) };
        self.report(event, &format!("Locate LED {on}: PD {:02x}", place.id));
        Ok(Reply::Done)
    }
}

/// Does all at once, so that none waits for another; whether all of it was good.
async fn together<F: Future<Output = bool>>(all: impl Iterator<Item = F>) -> bool {
    let mut all: Vec<_> = all.map(Box::pin).collect();
    let mut good = true;
    poll_fn(|cx| {
        all.retain_mut(|one| match one.as_mut().poll(cx) {
            Poll::Ready(done) => {
                good &= done;
                false
            }
            Poll::Pending => true,
        });
        if all.is_empty() { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    good
}

/// Commands whose answer never changes.
fn constant(dcmd: &Dcmd) -> Option<Result<Reply, Status>> {
    Some(match dcmd.opcode {
        opcode::NONE => Ok(Reply::Done),
        opcode::HOST_MEM_ALLOC
        | opcode::ALARM_GET
        | opcode::ALARM_DISABLE
        | opcode::ALARM_SILENCE
        | opcode::CFG_FOREIGN_SCAN
        | opcode::CLUSTER => Ok(Reply::Data(vec![0; dcmd.room().min(MAX_DUMMY) as usize])),
        // Patrol reads are the host's to do: they are off, and stay so.
        opcode::PATROL_PROPERTIES => data(&patrol_properties()),
        // No run so far, none under way.
        opcode::PATROL_STATUS => data(&[0_u8; 16]),
        opcode::PATROL_STOP => Ok(Reply::Done),
        opcode::PATROL_SET_PROPERTIES => {
            let same = |bytes: [u8; size_of::<PatrolProperties>()]| bytes == patrol_properties().as_bytes();
            dcmd.input().and_then(|bytes| if same(bytes) { Ok(Reply::Done) } else { Err(Status::WrongState) })
        }
        opcode::CFG_FOREIGN_DISPLAY | opcode::CFG_FOREIGN_PREVIEW => Err(Status::NotFound),
        opcode::BBU_STATUS
        | opcode::BBU_CAPACITY
        | opcode::BBU_DESIGN
        | opcode::BBU_START_LEARN
        | opcode::BBU_PROPERTIES
        | opcode::BBU_SET_PROPERTIES
        | opcode::ALARM_ENABLE
        | opcode::ALARM_TEST => Err(Status::NoHardwarePresent),
        // Neither the configuration of the machine nor its firmware is the guest's to change.
        opcode::PATROL_START
        | opcode::FLASH_OPEN
        | opcode::FLASH_DOWNLOAD
        | opcode::FLASH_WRITE
        | opcode::FLASH_CLOSE
        | opcode::PD_STATE_SET
        | opcode::PD_REBUILD_START
        | opcode::PD_REBUILD_ABORT
        | opcode::PD_CLEAR_START
        | opcode::PD_CLEAR_ABORT
        | opcode::PD_PROGRESS
        | opcode::LD_INIT
        | opcode::LD_DELETE
        | opcode::CFG_ADD
        | opcode::CFG_CLEAR
        | opcode::CFG_MAKE_SPARE
        | opcode::CFG_REMOVE_SPARE
        | opcode::CFG_FOREIGN_IMPORT
        | opcode::CFG_FOREIGN_CLEAR => Err(Status::WrongState),
        _ => return None,
    })
}

fn patrol_properties() -> PatrolProperties {
    let mut properties = PatrolProperties::new_zeroed();
    properties.mode = PATROL_DISABLED;
    properties
}

/// A structure from what a driver sent.
pub(super) fn parse<T: FromBytes>(bytes: &[u8]) -> Result<T, Status> {
    T::read_from_bytes(bytes).map_err(|_| Status::InvalidParameter)
}
