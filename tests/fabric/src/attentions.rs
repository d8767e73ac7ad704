//! Unit attentions: what initiators have yet to hear of units, and how loudly an array says it (SAM-5 5.14).

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use crate::array::{Array, Map};
use crate::scsi::Nexus;
use crate::scsi::luns::Lun;
use crate::scsi::sense::Sense;

/// What is not yet heard by an initiator, of a unit, is no more than this.
const MOST: usize = 16;

/// Who hears of a change. Arrays differ in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Loudness {
    Off,
    /// Each initiator at the first of its units, if it is about what it is mapped; the first initiator, if about a unit.
    First,
    All,
}

/// Changes of which an array may say nothing, by their additional sense codes.
pub(crate) const CHANGES: [(&str, Sense); 4] = [
    ("3f/0e", Sense::REPORTED_LUNS_DATA_HAS_CHANGED),
    ("3f/03", Sense::INQUIRY_DATA_HAS_CHANGED),
    ("2a/09", Sense::CAPACITY_DATA_HAS_CHANGED),
    ("2a/06", Sense::ASYMMETRIC_STATE_CHANGED),
];

/// The names of how loud that is.
pub(crate) const LOUDNESS: [(&str, Loudness); 3] =
    [("off", Loudness::Off), ("first", Loudness::First), ("all", Loudness::All)];

/// What waits to be heard, and how loud it is.
#[derive(Default)]
pub(crate) struct Attentions {
    waiting: HashMap<(Nexus, usize), Vec<Sense>>,
    /// By additional sense code and qualifier, where it is not for all.
    loudness: BTreeMap<(u8, u8), Loudness>,
}

impl Attentions {
    /// An initiator is to hear this with its next command to a unit.
    pub(crate) fn add(&mut self, nexus: Nexus, unit: usize, sense: Sense) {
        let waiting = self.waiting.entry((nexus, unit)).or_default();
        if !waiting.contains(&sense) && waiting.len() < MOST {
            waiting.push(sense);
        }
    }

    /// The next thing an initiator is to hear of a unit.
    pub(crate) fn take(&mut self, nexus: Nexus, unit: usize) -> Option<Sense> {
        let waiting = self.waiting.get_mut(&(nexus, unit))?;
        let next = (!waiting.is_empty()).then(|| waiting.remove(0));
        if waiting.is_empty() {
            self.waiting.remove(&(nexus, unit));
        }
        next
    }

    /// It asked what there is, so that it need not hear that this changed (SPC-4 6.35).
    pub(crate) fn luns_are_known(&mut self, nexus: Nexus) {
        for ((of, _), waiting) in &mut self.waiting {
            if *of == nexus {
                waiting.retain(|sense| *sense != Sense::REPORTED_LUNS_DATA_HAS_CHANGED);
            }
        }
        self.waiting.retain(|_, waiting| !waiting.is_empty());
    }

    /// Forgets all but what is for these.
    pub(crate) fn retain(&mut self, which: impl Fn(Nexus, usize) -> bool) {
        self.waiting.retain(|(nexus, unit), _| which(*nexus, *unit));
    }

    pub(crate) fn set(&mut self, change: Sense, loudness: Loudness) {
        let code = (change.asc, change.ascq);
        if loudness == Loudness::All {
            self.loudness.remove(&code);
        } else {
            self.loudness.insert(code, loudness);
        }
    }

    /// Those of them, in order, that hear of a change.
    fn heard_by<T>(&self, change: Sense, mut those: Vec<T>) -> Vec<T> {
        match self.loudness.get(&(change.asc, change.ascq)).unwrap_or(&Loudness::All) {
            Loudness::Off => those.clear(),
            Loudness::First => those.truncate(1),
            Loudness::All => {}
        }
        those
    }
}

impl fmt::Display for Attentions {
    /// Nothing, where all is loud.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, ((asc, ascq), loudness)) in self.loudness.iter().enumerate() {
            let before = if number == 0 { "attentions" } else { "," };
            let name = LOUDNESS.iter().find(|(_, of)| of == loudness).map_or("", |(name, _)| name);
            write!(f, "{before} {asc:02x}/{ascq:02x} {name}")?;
        }
        if self.loudness.is_empty() { Ok(()) } else { writeln!(f) }
    }
}

impl Array {
    /// All that are mapped a unit, but one, are to hear this.
    pub(crate) fn attend_all(&mut self, unit: usize, sense: Sense, but: Option<Nexus>) {
        let hears = |nexus: &Nexus| Some(*nexus) != but && self.map_of(*nexus).any(|(_, of)| of == unit);
        let all = self.nexuses().into_iter().filter(hears).collect();
        for nexus in self.attentions.heard_by(sense, all) {
            self.attentions.add(nexus, unit, sense);
        }
    }

    /// An initiator's map is another one now: it hears so at what it sees, and that a number has another unit there.
    pub(crate) fn map_changed(&mut self, nexus: Nexus, before: &Map) {
        let now: Map = self.map_of(nexus).collect();
        let is_other = |(lun, unit): &(&Lun, &usize)| before.get(lun).is_some_and(|was| was != *unit);
        let others = now.iter().filter(is_other).map(|(_, unit)| *unit).collect();
        for unit in self.attentions.heard_by(Sense::INQUIRY_DATA_HAS_CHANGED, others) {
            self.attentions.add(nexus, unit, Sense::INQUIRY_DATA_HAS_CHANGED);
        }
        let all = now.into_values().collect();
        for unit in self.attentions.heard_by(Sense::REPORTED_LUNS_DATA_HAS_CHANGED, all) {
            self.attentions.add(nexus, unit, Sense::REPORTED_LUNS_DATA_HAS_CHANGED);
        }
    }
}
