//! FCP exchanges at target ports: a command, its data one way or the other, its response (FCP-4 clause 4.2).

use crate::array::{Array, Sender};
use crate::bytes::Fields;
use crate::els;
use crate::fcp::{self, Command, Response, code};
use crate::frame::{Header, f_ctl, kind, r_ctl};
use crate::inject::{Fault, Of};
use crate::names::PortId;
use crate::outbox::{Outbox, Route};
use crate::scsi::luns::{self, Lun};
use crate::scsi::sense::{Failure, Sense};
use crate::scsi::{self, Done, Kind, Nexus, Outcome, op, status};

/// Commands that an initiator may have at a target port at once.
const MOST_TASKS: usize = 2048;
/// Of data that is not for the medium, what one command may send.
const MOST_WANTED: u32 = 9 << 20;
/// Where tasks are whose unit there is none of.
pub(crate) const NO_UNIT: usize = usize::MAX;

/// An exchange: a target port, and the originator's address and number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key {
    pub(crate) port: usize,
    pub(crate) initiator: PortId,
    pub(crate) ox_id: u16,
}

impl Key {
    pub(crate) fn of(port: usize, header: &Header) -> Self {
        Self { port, initiator: header.s_id, ox_id: header.ox_id }
    }
}

/// What a task waits for.
enum State {
    /// Its time, None for ever.
    Parked(Option<u64>),
    /// Data for the medium, which begins there.
    Medium(u64),
    /// Data that it needs as a whole.
    Buffer(Vec<u8>),
}

/// A command that is not answered yet.
pub(crate) struct Task {
    pub(crate) nexus: Nexus,
    pub(crate) unit: usize,
    pub(crate) rx_id: u16,
    route: Route,
    header: Header,
    pub(crate) command: Command,
    state: State,
    /// Bytes that are awaited in all, that were asked for so far, and that came.
    length: u32,
    asked: u32,
    came: u32,
    /// What the command would have moved, had the initiator allowed it.
    wanted: u32,
}

impl Task {
    pub(crate) fn awaits_data(&self) -> bool {
        !matches!(self.state, State::Parked(_))
    }

    pub(crate) fn moved(&self) -> u32 {
        self.came
    }

    pub(crate) fn respond(&self, response: &Response, out: &mut Outbox) {
        let mut header = self.header.reply(r_ctl::COMMAND_STATUS, self.rx_id);
        header.seq_id = 1;
        out.send(self.route, &header, &response.payload());
    }

    /// Asks for the next data, or all of them: FCP_XFER_RDY.
    fn ask(&mut self, burst: Option<u32>, out: &mut Outbox) {
        let length = (self.length - self.asked).min(burst.unwrap_or(u32::MAX));
        let mut header = self.header.reply(r_ctl::DATA_DESCRIPTOR, self.rx_id);
        header.f_ctl = f_ctl::RESPONDER | f_ctl::END_SEQUENCE | f_ctl::TRANSFER;
        out.send(self.route, &header, &fcp::transfer_ready(self.asked, length));
        self.asked += length;
    }

    fn fail(&self, failure: Failure, out: &mut Outbox) {
        let residual = i64::from(self.command.read.max(self.command.write));
        self.respond(&failed(failure, residual), out);
    }
}

fn failed(failure: Failure, residual: i64) -> Response {
    match failure {
        Failure::Check(sense) => {
            let sense = Some(sense.bytes());
            Response { status: status::CHECK_CONDITION, sense, residual, code: None }
        }
        Failure::Status(status) => Response { status, residual, ..Response::default() },
    }
}

impl Array {
    /// FCP_CMND.
    pub(crate) fn command(
        &mut self,
        port: usize,
        from: Sender,
        header: &Header,
        payload: &[u8],
        now: u64,
        out: &mut Outbox,
    ) {
        let key = Key::of(port, header);
        let session = self.sessions.get_mut(&(port, header.s_id)).filter(|session| session.is_process);
        let Some(nexus) = session.map(|session| {
            session.commands += 1;
            session.nexus
        }) else {
            // Who is not logged in hears so (FCP-4 6.3.2: LOGO); or who is, but not as a process: PRLO.
            let Some(wwpn) = self.ports.get(port).map(|port| port.wwpn) else { return };
            let (request, own) = (r_ctl::ELS_REQUEST, header.d_id);
            let is_known = self.sessions.contains_key(&(port, header.s_id));
            let said = if is_known { els::prlo() } else { els::logo(own, wwpn) };
            let logo = Header::request(request, kind::ELS, own, header.s_id, out.exchange());
            return out.send(from.route, &logo, &said);
        };
        if let Some(port) = self.ports.get_mut(port) {
            port.commands += 1;
        }
        let parsed = Command::read(payload);
        let command =
            parsed.clone().unwrap_or(Command { lun: [0; 8], management: 0, cdb: [0; 16], read: 0, write: 0 });
        let number = luns::read(command.lun);
        let task = Task {
            nexus,
            unit: self.unit_at(nexus, command.lun).unwrap_or(NO_UNIT),
            rx_id: out.exchange(),
            route: from.route,
            header: *header,
            command,
            state: State::Parked(None),
            length: 0,
            asked: 0,
            came: 0,
            wanted: 0,
        };
        if parsed.is_none() {
            return task.respond(&Response { code: Some(code::FIELDS_INVALID), ..Response::default() }, out);
        }
        if task.command.management != 0 {
            return self.manage(&task, port, number, out);
        }
        // An exchange that begins anew ends the one before.
        self.tasks.remove(&key);
        let (first, last) = (Key { ox_id: 0, ..key }, Key { ox_id: u16::MAX, ..key });
        if self.tasks.len() >= MOST_TASKS && self.tasks.range(first..=last).count() >= MOST_TASKS {
            return task.fail(Failure::Status(status::TASK_SET_FULL), out);
        }
        let [operation, ..] = task.command.cdb;
        if let Some(fault) = self.injections.take(port, number, Of::Operation(operation)) {
            out.notes.push(format!("{fault:?}: {operation:02x} of {} to {number:?}", nexus.initiator));
            match fault {
                Fault::Drop | Fault::Code(_) => {}
                Fault::Hang => drop(self.tasks.insert(key, task)),
                Fault::Delay(time, _) => {
                    let state = State::Parked(Some(now + time));
                    self.tasks.insert(key, Task { state, ..task });
                }
                Fault::Status(status) => task.fail(Failure::Status(status), out),
                Fault::Sense(sense) => task.fail(sense.into(), out),
            }
            return;
        }
        self.begin_task(key, task, out);
    }

    /// Tasks whose time has come. Returns when the next one's does.
    pub(crate) fn tick(&mut self, now: u64, out: &mut Outbox) -> Option<u64> {
        let due = |task: &Task| match task.state {
            State::Parked(at) => at,
            State::Medium(_) | State::Buffer(_) => None,
        };
        let is_due = |(key, task): (&Key, &Task)| due(task).is_some_and(|at| at <= now).then_some(*key);
        let keys: Vec<Key> = self.tasks.iter().filter_map(is_due).collect();
        for key in keys {
            // A port that is silent ends it without an answer.
            if let Some(task) = self.tasks.remove(&key).filter(|_| !self.is_silent(key.port)) {
                self.begin_task(key, task, out);
            }
        }
        self.tasks.values().filter_map(due).min()
    }

    /// Does a command as far as it can be done without data of the initiator.
    fn begin_task(&mut self, key: Key, mut task: Task, out: &mut Outbox) {
        let outcome = match self.execute(&task) {
            Ok(outcome) => outcome,
            Err(failure) => return task.fail(failure, out),
        };
        let (state, wanted) = match outcome {
            Outcome::Good => {
                let residual = i64::from(task.command.read.max(task.command.write));
                return task.respond(&Response { residual, ..Response::default() }, out);
            }
            Outcome::Data(data, sense) => {
                let allowed = (task.command.read as usize).min(data.len());
                let part = data.get(..allowed).unwrap_or_default();
                if !part.is_empty() {
                    out.send(task.route, &data_header(&task), part);
                }
                let residual = i64::from(task.command.read) - data.len() as i64;
                let response = sense.map_or(Response::default(), |sense| failed(sense.into(), 0));
                return task.respond(&Response { residual, ..response }, out);
            }
            Outcome::Read(at, length) => {
                let allowed = task.command.read.min(length);
                if let Some(Kind::Disk(disk)) = self.units.get(task.unit).map(|unit| &unit.kind)
                    && allowed > 0
                {
                    let memory = &disk.memory;
                    out.send_with(task.route, &data_header(&task), allowed as usize, |offset, into| {
                        memory.read(at + offset as u64, into);
                    });
                }
                let residual = i64::from(task.command.read) - i64::from(length);
                return task.respond(&Response { residual, ..Response::default() }, out);
            }
            Outcome::Write(at, length) => (State::Medium(at), length),
            Outcome::Wants(length) if length > MOST_WANTED => {
                return task.fail(Sense::INVALID_FIELD_IN_CDB.into(), out);
            }
            Outcome::Wants(length) => (State::Buffer(Vec::new()), length),
        };
        (task.state, task.wanted, task.length) = (state, wanted, wanted.min(task.command.write));
        if task.length == 0 {
            return self.finish_task(&task, out);
        }
        task.ask(self.burst, out);
        self.tasks.insert(key, task);
    }

    /// FCP_DATA of an initiator: in order, as the fabric keeps it.
    pub(crate) fn data(&mut self, port: usize, header: &Header, payload: &[u8], out: &mut Outbox) {
        let key = Key::of(port, header);
        let Some(task) = self.tasks.get_mut(&key).filter(|task| task.rx_id == header.rx_id) else { return };
        let length = u32::try_from(payload.len()).unwrap_or(u32::MAX);
        let end = header.parameter.checked_add(length).filter(|end| *end <= task.asked);
        // A frame was lost, or there is more than was asked for: the initiator will miss its answer, and abort.
        let Some(end) = end.filter(|_| header.parameter == task.came) else { return };
        match &mut task.state {
            State::Parked(_) => return,
            State::Medium(at) => {
                let at = *at + u64::from(task.came);
                if let Some(Kind::Disk(disk)) = self.units.get_mut(task.unit).map(|unit| &mut unit.kind) {
                    disk.memory.write(at, payload);
                }
            }
            State::Buffer(buffer) => buffer.extend_from_slice(payload),
        }
        task.came = end;
        if end == task.asked && end < task.length {
            return task.ask(self.burst, out);
        }
        if end == task.length
            && let Some(task) = self.tasks.remove(&key)
        {
            self.finish_task(&task, out);
        }
    }

    /// All data is here.
    fn finish_task(&mut self, task: &Task, out: &mut Outbox) {
        let residual = i64::from(task.command.write) - i64::from(task.wanted);
        let done = match &task.state {
            State::Buffer(data) => self.finish(task, data),
            State::Medium(_) | State::Parked(_) => Ok(()),
        };
        match done {
            Ok(()) => task.respond(&Response { residual, ..Response::default() }, out),
            Err(failure) => task.respond(&failed(failure, residual), out),
        }
    }

    fn execute(&mut self, task: &Task) -> Done {
        let (nexus, cdb) = (task.nexus, &task.command.cdb);
        let [operation, ..] = *cdb;
        let number = luns::read(task.command.lun);
        // Where no unit is, number 0 and the well-known unit alone give the list (SPC-4 6.35).
        if operation == op::REPORT_LUNS
            && (task.unit != NO_UNIT || matches!(number, Lun::Number(0) | Lun::Report))
        {
            let mapped: Vec<Lun> = self.map_of(nexus).map(|(lun, _)| lun).collect();
            self.attentions.luns_are_known(nexus);
            let list = luns::report(cdb, mapped.into_iter(), self.method);
            return Ok(Outcome::Data(list.ok_or(Sense::INVALID_FIELD_IN_CDB)?, None));
        }
        if self.units.get(task.unit).is_none() {
            return match operation {
                op::INQUIRY => scsi::missing(cdb, self.has_lunz && number == Lun::Number(0)),
                op::REQUEST_SENSE => {
                    scsi::cut(Sense::LOGICAL_UNIT_NOT_SUPPORTED.bytes(), cdb.byte(4).unwrap_or_default())
                }
                op::TEST_UNIT_READY if number == Lun::Report => Ok(Outcome::Good),
                _ => Err(Sense::LOGICAL_UNIT_NOT_SUPPORTED.into()),
            };
        }
        // INQUIRY says nothing of what is to be heard; REQUEST SENSE says it as its data (SAM-5 5.14).
        if operation != op::INQUIRY
            && let Some(sense) = self.attentions.take(nexus, task.unit)
        {
            return match operation {
                op::REQUEST_SENSE => scsi::cut(sense.bytes(), cdb.byte(4).unwrap_or_default()),
                _ => Err(sense.into()),
            };
        }
        let port = self.context(nexus);
        let (wwpn, wwnn) = (port.wwpn, port.wwnn);
        let context = scsi::Context { nexus, groups: &self.groups, wwpn, wwnn };
        let unit = self.units.get_mut(task.unit).ok_or(Sense::LOGICAL_UNIT_NOT_SUPPORTED)?;
        let done = unit.execute(cdb, context);
        if let Kind::Tape(tape) = &mut unit.kind
            && tape.take_came()
        {
            self.attend_all(task.unit, Sense::MEDIUM_MAY_HAVE_CHANGED, Some(nexus));
        }
        done
    }

    /// Does a command with its data, and tells others what they are to hear of it.
    fn finish(&mut self, task: &Task, data: &[u8]) -> Result<(), Failure> {
        let (nexus, cdb) = (task.nexus, &task.command.cdb);
        if cdb.byte(0) == Some(op::MAINTENANCE_OUT) {
            return self.set_groups(task, data);
        }
        let port = self.context(nexus);
        let (wwpn, wwnn) = (port.wwpn, port.wwnn);
        let context = scsi::Context { nexus, groups: &self.groups, wwpn, wwnn };
        let unit = self.units.get_mut(task.unit).ok_or(Sense::LOGICAL_UNIT_NOT_SUPPORTED)?;
        let effects = unit.finish(cdb, data, context)?;
        for (other, sense) in effects.attentions {
            self.attentions.add(other, task.unit, sense);
        }
        for other in effects.abort {
            self.abort(|task_| task_.nexus == other && task_.unit == task.unit);
        }
        Ok(())
    }

    /// SET TARGET PORT GROUPS: of the unit alone where that has states of its own, else of the array.
    fn set_groups(&mut self, task: &Task, data: &[u8]) -> Result<(), Failure> {
        let unit = self.units.get_mut(task.unit).ok_or(Sense::LOGICAL_UNIT_NOT_SUPPORTED)?;
        let asked = self.groups.asked(data, &unit.access)?;
        if unit.access.is_empty() {
            asked.into_iter().for_each(|(group, access)| self.groups.set(group, access));
            self.states_changed(Some(task.nexus));
        } else {
            unit.access.extend(asked);
            self.attend_all(task.unit, Sense::ASYMMETRIC_STATE_CHANGED, Some(task.nexus));
        }
        Ok(())
    }

    /// States of target port groups changed: all hear so but the one who did it.
    pub(crate) fn states_changed(&mut self, but: Option<Nexus>) {
        (0..self.units.len()).for_each(|unit| self.attend_all(unit, Sense::ASYMMETRIC_STATE_CHANGED, but));
    }
}

/// The header of data for the initiator.
fn data_header(task: &Task) -> Header {
    let mut header = task.header.reply(r_ctl::SOLICITED_DATA, task.rx_id);
    header.seq_id = 0;
    header.f_ctl = f_ctl::RESPONDER | f_ctl::END_SEQUENCE | f_ctl::RELATIVE_OFFSET;
    header
}
