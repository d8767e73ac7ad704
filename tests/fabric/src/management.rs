//! Task management (SAM-5 clause 7; FCP-4 9.1 for its flags).

use std::collections::BTreeSet;

use crate::array::Array;
use crate::fcp::{Response, code, task};
use crate::inject::{Fault, Of};
use crate::outbox::Outbox;
use crate::scsi::Nexus;
use crate::scsi::luns::Lun;
use crate::scsi::sense::Sense;
use crate::tasks::{NO_UNIT, Task};

impl Array {
    /// Does what a request asks for, unless it has a fault, and answers.
    pub(crate) fn manage(&mut self, request: &Task, port: usize, lun: Lun, out: &mut Outbox) {
        let (asked, initiator) = (request.command.management, request.nexus.initiator);
        let fault = self.injections.take(port, lun, Of::Management);
        let said = fault.map_or_else(String::new, |fault| format!(": {fault:?}"));
        out.notes.push(format!("task management {asked:02x} of {initiator} to {lun:?}{said}"));
        let answer = match fault {
            None => self.done(request),
            Some(Fault::Code(code)) => code,
            Some(_) => return,
        };
        request.respond(&Response { code: Some(answer), ..Response::default() }, out);
    }

    /// Its RSP_CODE.
    fn done(&mut self, request: &Task) -> u8 {
        let (nexus, unit) = (request.nexus, request.unit);
        match request.command.management {
            task::TARGET_RESET => {
                let units: BTreeSet<usize> = self.map_of(nexus).map(|(_, unit)| unit).collect();
                units.into_iter().for_each(|unit| self.reset(unit));
            }
            _ if unit == NO_UNIT => return code::INCORRECT_LUN,
            task::ABORT_TASK_SET => self.abort(|task| task.unit == unit && task.nexus == nexus),
            task::CLEAR_TASK_SET => {
                let others = self.tasks.values().filter(|task| task.unit == unit && task.nexus != nexus);
                let others: Vec<Nexus> = others.map(|task| task.nexus).collect();
                self.abort(|task| task.unit == unit);
                others
                    .into_iter()
                    .for_each(|other| self.attentions.add(other, unit, Sense::COMMANDS_CLEARED));
            }
            task::LOGICAL_UNIT_RESET => self.reset(unit),
            task::QUERY_TASK_SET => {}
            _ => return code::REJECTED,
        }
        code::COMPLETE
    }

    /// All hear of a reset, who asked for it as well (SAM-5 6.3.3).
    fn reset(&mut self, unit: usize) {
        self.abort(|task| task.unit == unit);
        self.attend_all(unit, Sense::DEVICE_RESET, None);
    }
}
