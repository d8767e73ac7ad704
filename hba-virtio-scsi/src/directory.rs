//! Which nexus stands behind a target number.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use devices::scsi::Nexus;

use crate::fc::port::Port;

type Map = BTreeMap<u8, Arc<Nexus>>;

/// The targets of one HBA; changes when targets come and go.
pub(crate) struct Directory {
    version: AtomicU64,
    map: Mutex<Arc<Map>>,
}

impl Directory {
    pub(crate) fn new(map: Map) -> Self {
        Self { version: AtomicU64::new(0), map: Mutex::new(Arc::new(map)) }
    }

    /// All targets now.
    pub(crate) fn all(&self) -> Arc<Map> {
        self.map.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The nexus of `target`.
    pub(crate) fn get(&self, target: u8) -> Option<Arc<Nexus>> {
        self.all().get(&target).cloned()
    }

    /// Puts `nexus` at `target`, or takes away what is there; returns what was there.
    pub(crate) fn set(&self, target: u8, nexus: Option<Arc<Nexus>>) -> Option<Arc<Nexus>> {
        let mut map = self.map.lock().unwrap_or_else(PoisonError::into_inner);
        let mut new = Map::clone(&map);
        let before = match nexus {
            Some(nexus) => new.insert(target, nexus),
            None => new.remove(&target),
        };
        *map = Arc::new(new);
        self.version.fetch_add(1, Ordering::Release);
        before
    }
}

/// A copy of the directory that one worker uses without locks and without counting references across threads.
pub(crate) struct Snapshot {
    /// The port on a fabric, where there is one.
    pub(crate) fc: Option<Arc<Port>>,
    version: u64,
    targets: Box<[Option<Arc<Nexus>>; 256]>,
    first: Option<u8>,
}

impl Snapshot {
    /// The nexus of `target`.
    pub(crate) fn get(&self, target: u8) -> Option<&Arc<Nexus>> {
        self.targets.get(usize::from(target))?.as_ref()
    }

    /// The target with the smallest number to which commands go on at once; without a fabric, the first.
    pub(crate) fn reachable(&self) -> Option<u8> {
        let Some(fc) = &self.fc else { return self.first };
        let there = |id: &u8| self.get(*id).is_some() && fc.gate.is_open(*id);
        (0..=u8::MAX).find(there).or(self.first)
    }

    fn of(directory: &Directory, fc: Option<Arc<Port>>) -> Rc<Self> {
        let version = directory.version.load(Ordering::Acquire);
        let map = directory.all();
        let mut targets = Box::new([const { None }; 256]);
        for (&id, nexus) in &*map {
            if let Some(slot) = targets.get_mut(usize::from(id)) {
                *slot = Some(nexus.clone());
            }
        }
        Rc::new(Self { fc, version, targets, first: map.keys().next().copied() })
    }
}

/// A worker's snapshot, renewed when the directory has changed.
pub(crate) struct View {
    directory: Arc<Directory>,
    snapshot: RefCell<Rc<Snapshot>>,
}

impl View {
    pub(crate) fn new(directory: Arc<Directory>, fc: Option<Arc<Port>>) -> Self {
        let snapshot = RefCell::new(Snapshot::of(&directory, fc));
        Self { directory, snapshot }
    }

    /// The targets now.
    pub(crate) fn current(&self) -> Rc<Snapshot> {
        let mut snapshot = self.snapshot.borrow_mut();
        if snapshot.version != self.directory.version.load(Ordering::Acquire) {
            *snapshot = Snapshot::of(&self.directory, snapshot.fc.clone());
        }
        snapshot.clone()
    }
}
