//! PERSISTENT RESERVE IN (SPC-5, 6.16) and PERSISTENT RESERVE OUT (SPC-5, 6.17).

use super::Access;
use super::persistent::{Effects, Kind, Persistent};
use crate::scsi::attention::Attention;
use crate::scsi::opcode::field;
use crate::scsi::outcome::{Done, Outcome, Page, Writer};
use crate::scsi::sense::{Failure, PARAMETER_LIST_LENGTH_ERROR, SenseData};
use crate::scsi::tasks::{Ended, NexusId};
use crate::scsi::unit::{Context, Unit};
use crate::scsi::{DataBuffers, Status};

/// Length of the PERSISTENT RESERVE OUT parameter list (SPC-5, 6.17.3).
const LIST_LEN: u64 = 24;
/// The relative target port identifier of our only target port.
const TARGET_PORT: u16 = 1;

/// PERSISTENT RESERVE IN: keys, reservation, capabilities, full status.
pub(crate) fn persistent_reserve_in(context: Context<'_>, cdb: &[u8], data: &DataBuffers) -> Outcome {
    let mut writer = Writer::new(&data.data_in, field(cdb, 7, 2));
    let state = context.path.unit.reservations.lock();
    if state.reserved.is_some() {
        // Whoever made it: SPC-2, 5.5.1.
        return Err(Failure::Status(Status::ReservationConflict));
    }
    let persistent = &state.persistent;
    match field(cdb, 1, 1) & 0x1f {
        0 => read_keys(persistent, &mut writer),
        1 => read_reservation(persistent, &mut writer),
        // TMV and the types supported: all six. Nothing else: one target port, no power loss is survived.
        2 => writer.put(&[0, 8, 0x00, 0x80, 0xea, 0x01, 0, 0]),
        _ => read_full_status(persistent, &mut writer),
    }
    Ok(writer.finish())
}

fn header(persistent: &Persistent, writer: &mut Writer<'_>, len: usize) {
    writer.put(&persistent.generation().to_be_bytes());
    writer.put(&(len as u32).to_be_bytes());
}

fn read_keys(persistent: &Persistent, writer: &mut Writer<'_>) {
    header(persistent, writer, persistent.registrants().len() * 8);
    for registrant in persistent.registrants() {
        writer.put(&registrant.key.to_be_bytes());
    }
}

fn read_reservation(persistent: &Persistent, writer: &mut Writer<'_>) {
    let Some((kind, key)) = persistent.reservation() else { return header(persistent, writer, 0) };
    header(persistent, writer, 16);
    writer.put(&key.to_be_bytes());
    writer.put(&[0, 0, 0, 0, 0, kind as u8, 0, 0]);
}

fn read_full_status(persistent: &Persistent, writer: &mut Writer<'_>) {
    header(persistent, writer, persistent.registrants().len() * 48);
    for registrant in persistent.registrants() {
        let holds = persistent.is_holder(registrant.nexus);
        let kind = persistent.reservation().filter(|_| holds).map_or(0, |(kind, _)| kind as u8);
        let mut page = Page::<48>::new();
        page.u64(registrant.key).u32(0).u8(u8::from(holds)).u8(kind).u32(0).u16(TARGET_PORT).u32(24);
        // TransportID of a SAS port (SPC-5, 7.6.4.6) with a locally assigned name: an HBA in this machine.
        page.put(&[0x06, 0, 0, 0]).u64(3 << 60 | registrant.nexus.0).pad_to(48);
        writer.put(page.as_bytes());
    }
}

/// PERSISTENT RESERVE OUT.
pub(crate) async fn persistent_reserve_out(context: Context<'_>, cdb: &[u8], data: DataBuffers) -> Outcome {
    let unit = &context.path.unit;
    let nexus = context.path.nexus;
    let mut list = [0; LIST_LEN as usize];
    if field(cdb, 5, 4) != LIST_LEN || data.data_out.read_at(0, &mut list) < list.len() {
        return Err(SenseData::illegal(PARAMETER_LIST_LENGTH_ERROR).into());
    }
    let action = field(cdb, 1, 1) & 0x1f;
    let effects = change(unit, nexus, action, field(cdb, 2, 1) as u8, &list)?;
    for (nexus, attention) in &effects.attentions {
        unit.raise_for(*attention, &[*nexus]);
    }
    if action == PREEMPT_AND_ABORT {
        abort(unit, effects.preempted).await;
    }
    Ok(Done::received(LIST_LEN))
}

const PREEMPT_AND_ABORT: u64 = 5;

fn change(
    unit: &Unit,
    nexus: NexusId,
    action: u64,
    scope_and_type: u8,
    list: &[u8],
) -> Result<Effects, Failure> {
    let (key, action_key) = (field(list, 0, 8), field(list, 8, 8));
    let kind = Kind::from_scope_and_type(scope_and_type);
    // SPEC_I_PT, ALL_TG_PT and APTPL ask for what READ CAPABILITIES denies.
    let flags = field(list, 20, 1) as u8 & 0x0d;
    if flags != 0 && matches!(action, 0 | 6) {
        return Err(SenseData::parameter_field(20, Some(7 - flags.leading_zeros() as u8)).into());
    }
    unit.reservations.update(|state| {
        if state.reserved.is_some() {
            return Err(Failure::Status(Status::ReservationConflict));
        }
        let persistent = &mut state.persistent;
        match action {
            0 => persistent.register(nexus, key, action_key, false),
            1 => {
                let kind = kind.ok_or(SenseData::cdb_field(2, Some(7)))?;
                persistent.reserve(nexus, key, kind)
            }
            2 => persistent.release(nexus, key, kind),
            3 => persistent.clear(nexus, key),
            4 | PREEMPT_AND_ABORT => persistent.preempt(nexus, key, action_key, kind),
            _ => persistent.register(nexus, key, action_key, true),
        }
    })
}

/// Ends all commands of preempted nexuses (SPC-5, 5.13.11.2.6).
async fn abort(unit: &Unit, preempted: Vec<NexusId>) {
    let status = unit.logical.task_aborted_status();
    let why = if status { Ended::TaskAborted } else { Ended::Aborted };
    let mut losers = Vec::new();
    let mark = unit.tasks.end(|nexus, _| {
        let loses = preempted.contains(&nexus);
        if loses {
            losers.push(nexus);
        }
        loses.then_some(why)
    });
    if !status {
        unit.raise_for(Attention::CommandsCleared, &losers);
    }
    unit.tasks.left(mark).await;
}

impl Unit {
    /// An initiator is gone for good: its registration goes with it.
    pub(crate) fn unregister(&self, nexus: NexusId) {
        let effects = self.reservations.update(|state| state.persistent.unregister(nexus));
        for (nexus, attention) in effects.attentions {
            self.raise_for(attention, &[nexus]);
        }
    }

    /// Whether reservations of others let a command pass.
    pub(crate) fn admits(&self, nexus: NexusId, access: Access, shared: bool) -> Result<(), Failure> {
        if self.reservations.allows(nexus, access, shared) {
            return Ok(());
        }
        Err(Failure::Status(Status::ReservationConflict))
    }
}
