//! Ports that the guest creates beside that of its HBA: which it may have, what becomes of them, and what it is shown of them.
//!
//! ```text
//!   create ──> Creating ──> There ──> Deleting ──> (none)
//!                  └─── a reset ────────┘  └── a create of the same name waits for it
//! ```
//! What the process tells of a port decides: it is there with its first view, and has gone when it is deleted on the host. Whoever waits for
//! either is told in time, whatever the process does: what comes after that goes again.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use fc::Wwn;
use fc::allowed::{Allowed, NotAllowed};
use hba_virtio_scsi::fc::{LocalPort, Names, PortState, RemoteState, View, VportRefusal};

use crate::fc_port::{HostPort, Look};

/// Who has ports created and deleted, by numbers from 1 on: on any thread, and it waits for nothing.
pub(in crate::machine) trait Creates: Send + Sync {
    fn create(&self, vport: u16, names: Names) -> io::Result<()>;
    fn delete(&self, vport: u16) -> io::Result<()>;
}

impl Creates for Look {
    fn create(&self, vport: u16, names: Names) -> io::Result<()> {
        Self::create(self, vport, names)
    }

    fn delete(&self, vport: u16) -> io::Result<()> {
        Self::delete(self, vport)
    }
}

/// Hears once which number a port has, or why there is none.
pub(super) type Created = Box<dyn FnOnce(Result<u16, VportRefusal>) + Send>;
/// Hears once that a port is deleted, or why not.
pub(super) type Deleted = Box<dyn FnOnce(Result<(), VportRefusal>) + Send>;

/// How much longer than host and fabric the process may take.
const SLACK: Duration = Duration::from_secs(30);
/// How often it is looked at who has waited for too long.
const LOOK: Duration = Duration::from_secs(30);
/// How long a deletion takes at most.
const DELETES: Duration = fc::vport::DELETION.saturating_add(SLACK);

/// The ports of one guest.
pub(in crate::machine) struct Vports {
    hba: String,
    allowed: Option<Allowed>,
    creates: Box<dyn Creates>,
    /// How long it takes at most to create one. What fails is deleted before it is said.
    creating: Duration,
    state: Mutex<BTreeMap<u16, Vport>>,
    /// The process has ended; changes with the lock.
    is_over: AtomicBool,
}

struct Vport {
    names: Names,
    stage: Stage,
    /// Until when whoever waits for it waits.
    until: Instant,
    /// What it sees; nothing until it has been looked at.
    view: Option<View>,
    /// What the host has of it.
    port: Option<HostPort>,
    /// Who wants one of this name as soon as this one has gone.
    next: Option<Next>,
}

/// Who wants a port whose name is not free yet.
struct Next {
    names: Names,
    done: Created,
    until: Instant,
}

enum Stage {
    Creating(Created),
    There,
    Deleting(Option<Deleted>),
}

/// Who hears what, outside of the lock.
pub(super) type Calls = Vec<Box<dyn FnOnce() + Send>>;

impl Vports {
    /// `timeout`: how long the fabric has to take one.
    pub(in crate::machine) fn new(
        hba: &str,
        allowed: Option<Allowed>,
        creates: Box<dyn Creates>,
        timeout: Duration,
    ) -> Self {
        let creating = timeout.saturating_add(DELETES);
        Self {
            hba: hba.into(),
            allowed,
            creates,
            creating,
            state: Mutex::default(),
            is_over: AtomicBool::new(false),
        }
    }

    /// How many there may be.
    pub(super) fn most(&self) -> u16 {
        self.allowed.as_ref().map_or(0, |allowed| allowed.most)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u16, Vport>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The guest wants a port; `own` is what the HBA's own port is.
    pub(super) fn create(&self, names: Names, own: &LocalPort, done: Created) {
        match self.begin(names, own, done) {
            Ok(()) => {}
            Err((refusal, done)) => done(Err(refusal)),
        }
    }

    fn begin(&self, names: Names, own: &LocalPort, done: Created) -> Result<(), (VportRefusal, Created)> {
        let checked =
            self.allowed.as_ref().map(|allowed| allowed.check(names_of(names), Wwn::new(own.primary.wwnn)));
        if let Some(Err(why)) = &checked {
            not_allowed(&self.hba, names, why);
        }
        let Some(Ok(())) = checked else { return Err((VportRefusal::NotAllowed, done)) };
        let mut state = self.lock();
        if self.is_over.load(Ordering::Relaxed) {
            return Err((VportRefusal::Failed, done));
        }
        if [own.primary.wwpn, own.secondary.wwpn].contains(&names.wwpn) {
            return Err((VportRefusal::InUse, done));
        }
        if let Some(same) = state.values_mut().find(|vport| vport.names.wwpn == names.wwpn) {
            if matches!(same.stage, Stage::Deleting(_)) && same.next.is_none() {
                same.next = Some(Next { names, done, until: Instant::now() + DELETES });
                return Ok(());
            }
            return Err((VportRefusal::InUse, done));
        }
        let free = (1..=self.most()).find(|number| !state.contains_key(number));
        let Some(number) = free else {
            devices::log_limited!(
                warn,
                "hba {}: the guest asked for a port {:016x}, and has {} already; more take a larger `vports` in [hba.fc]",
                self.hba,
                names.wwpn,
                self.most()
            );
            return Err((VportRefusal::NoRoom, done));
        };
        if self.creates.create(number, names).is_err() {
            return Err((VportRefusal::Failed, done));
        }
        state.insert(number, self.creating(names, done));
        Ok(())
    }

    /// One that is being created.
    fn creating(&self, names: Names, done: Created) -> Vport {
        let until = Instant::now() + self.creating;
        Vport { names, stage: Stage::Creating(done), until, view: None, port: None, next: None }
    }

    /// The guest wants a port no more.
    pub(super) fn delete(&self, number: u16, done: Deleted) {
        let mut state = self.lock();
        let there = state.get_mut(&number).filter(|vport| matches!(vport.stage, Stage::There));
        let refusal = match there {
            None => VportRefusal::Unknown,
            Some(vport) => match self.creates.delete(number) {
                Ok(()) => {
                    (vport.stage, vport.until) = (Stage::Deleting(Some(done)), Instant::now() + DELETES);
                    return;
                }
                Err(_) => VportRefusal::Failed,
            },
        };
        drop(state);
        done(Err(refusal));
    }

    /// The driver has gone: so do its ports.
    pub(super) fn delete_all(&self) {
        let mut waits: Calls = Vec::new();
        let mut state = self.lock();
        for (number, vport) in state.iter_mut() {
            if let Some(Next { done, .. }) = vport.next.take() {
                waits.push(Box::new(move || done(Err(VportRefusal::Failed))));
            }
            if matches!(vport.stage, Stage::Deleting(_)) {
                continue;
            }
            // At the end of the process nothing is left to delete.
            let _ = self.creates.delete(*number);
            if let Stage::Creating(done) = std::mem::replace(&mut vport.stage, Stage::Deleting(None)) {
                waits.push(Box::new(move || done(Err(VportRefusal::Failed))));
            }
        }
        drop(state);
        waits.into_iter().for_each(|call| call());
    }

    /// When to [look](Self::expire) again who waits; `None` where nobody ever does.
    pub(super) fn until(&self) -> Option<Duration> {
        (self.most() > 0).then_some(LOOK)
    }

    /// Whoever has waited for too long is told so. What comes later goes.
    pub(super) fn expire(&self, now: Instant) {
        let mut waits: Calls = Vec::new();
        let late = |what: &str, names: Names| {
            devices::log_limited!(
                error,
                "hba {}: the process that has its virtual port (vmm-fcport) does not tell what became of the guest's port {:016x}, which was \
                 to be {what}: the guest hears that it failed",
                self.hba,
                names.wwpn
            );
        };
        let mut state = self.lock();
        for (number, vport) in state.iter_mut() {
            if let Some(Next { done, .. }) = vport.next.take_if(|next| next.until <= now) {
                waits.push(Box::new(move || done(Err(VportRefusal::Failed))));
            }
            if vport.until > now {
                continue;
            }
            match &mut vport.stage {
                Stage::Creating(_) => {
                    late("created", vport.names);
                    let _ = self.creates.delete(*number);
                    if let Stage::Creating(done) = std::mem::replace(&mut vport.stage, Stage::Deleting(None))
                    {
                        waits.push(Box::new(move || done(Err(VportRefusal::Failed))));
                    }
                }
                Stage::Deleting(done) => {
                    if let Some(done) = done.take() {
                        late("deleted", vport.names);
                        waits.push(Box::new(move || done(Err(VportRefusal::Failed))));
                    }
                }
                Stage::There => {}
            }
        }
        drop(state);
        waits.into_iter().for_each(|call| call());
    }

    /// What a port sees; returns who is to hear of it once that is shown.
    #[must_use]
    pub(super) fn saw(&self, number: u16, view: View) -> Option<Box<dyn FnOnce() + Send>> {
        let mut state = self.lock();
        let vport = state.get_mut(&number)?;
        vport.view = Some(view);
        if !matches!(vport.stage, Stage::Creating(_)) {
            return None;
        }
        let Stage::Creating(done) = std::mem::replace(&mut vport.stage, Stage::There) else { return None };
        Some(Box::new(move || done(Ok(number))))
    }

    /// What the host has of a port that comes.
    pub(super) fn came(&self, number: u16, port: HostPort) {
        devices::log_limited!(info, "hba {}: the guest has created a port: {port}", self.hba);
        if let Some(vport) = self.lock().get_mut(&number) {
            vport.port = Some(port);
        }
    }

    /// A port does not come; returns who is to hear of it once that is shown.
    #[must_use]
    pub(super) fn not_created(&self, number: u16, refusal: VportRefusal, why: &str) -> Calls {
        let mut state = self.lock();
        let Some(vport) = state.get_mut(&number) else { return Calls::new() };
        let (hba, wwpn) = (&self.hba, vport.names.wwpn);
        if !matches!(vport.stage, Stage::Deleting(_)) {
            devices::log_limited!(
                warn,
                "hba {hba}: the guest asked for a port {wwpn:016x}, and does not get it: {why}"
            );
        }
        let mut waits = Calls::new();
        if vport.port.is_some() {
            // It was there for a moment, and is being deleted.
            match std::mem::replace(&mut vport.stage, Stage::Deleting(None)) {
                Stage::Creating(done) => waits.push(Box::new(move || done(Err(refusal)))),
                stage => vport.stage = stage,
            }
        } else if let Some(gone) = state.remove(&number) {
            match gone.stage {
                Stage::Creating(done) => waits.push(Box::new(move || done(Err(refusal)))),
                Stage::Deleting(Some(done)) => waits.push(Box::new(move || done(Ok(())))),
                Stage::There | Stage::Deleting(None) => {}
            }
            self.go_on(&mut state, gone.next, &mut waits);
        }
        waits
    }

    /// A port is deleted, or why it is not: then its place is taken until the machine ends. Returns who is to hear of it once that is shown.
    #[must_use]
    pub(super) fn closed(&self, number: u16, why: Option<String>) -> Calls {
        let mut state = self.lock();
        let Some(vport) = state.get_mut(&number) else { return Calls::new() };
        let (hba, wwpn) = (&self.hba, vport.names.wwpn);
        let stage = std::mem::replace(&mut vport.stage, Stage::Deleting(None));
        let mut waits = Calls::new();
        let result = match why {
            None => {
                devices::log_limited!(info, "hba {hba}: the guest's port {wwpn:016x} is deleted");
                let next = state.remove(&number).and_then(|gone| gone.next);
                self.go_on(&mut state, next, &mut waits);
                Ok(())
            }
            Some(why) => {
                devices::log_limited!(
                    warn,
                    "hba {hba}: the guest's port {wwpn:016x} is not deleted, which is tried again at the end of the machine: {why}"
                );
                if let Some(Next { done, .. }) = vport.next.take() {
                    waits.push(Box::new(move || done(Err(VportRefusal::InUse))));
                }
                Err(VportRefusal::Failed)
            }
        };
        match stage {
            Stage::Deleting(Some(done)) => waits.push(Box::new(move || done(result))),
            Stage::Creating(done) => waits.push(Box::new(move || done(Err(VportRefusal::Failed)))),
            Stage::There | Stage::Deleting(None) => {}
        }
        waits
    }

    /// The one that has waited for the name.
    fn go_on(&self, state: &mut BTreeMap<u16, Vport>, next: Option<Next>, waits: &mut Calls) {
        let Some(Next { names, done, .. }) = next else { return };
        let free = (1..=self.most()).find(|number| !state.contains_key(number));
        match free.filter(|number| self.creates.create(*number, names).is_ok()) {
            Some(number) => drop(state.insert(number, self.creating(names, done))),
            None => waits.push(Box::new(move || done(Err(VportRefusal::Failed)))),
        }
    }

    /// The process has ended: nobody creates or deletes anything any more. What is there stays, as the HBA's own does.
    pub(super) fn ended(&self) {
        let mut waits: Calls = Vec::new();
        let mut state = self.lock();
        self.is_over.store(true, Ordering::Relaxed);
        for vport in state.values_mut() {
            let stage = std::mem::replace(&mut vport.stage, Stage::Deleting(None));
            match stage {
                Stage::Creating(done) => waits.push(Box::new(move || done(Err(VportRefusal::Failed)))),
                Stage::Deleting(Some(done)) => waits.push(Box::new(move || done(Err(VportRefusal::Failed)))),
                Stage::There => vport.stage = Stage::There,
                Stage::Deleting(None) => {}
            }
            if let Some(Next { done, .. }) = vport.next.take() {
                waits.push(Box::new(move || done(Err(VportRefusal::Failed))));
            }
        }
        drop(state);
        waits.into_iter().for_each(|call| call());
    }

    /// What the guest is shown: what its HBA's own port sees, and what the others do. No two targets have one number.
    pub(super) fn with(&self, mut own: View) -> View {
        for (number, vport) in &*self.lock() {
            let Some(view) = &vport.view else { continue };
            let none = LocalPort { state: PortState::NotPresent, ..view.local };
            // While it goes it is shown as gone, and its targets as lost.
            let is_there = matches!(vport.stage, Stage::There | Stage::Creating(_));
            own.vports.insert(*number, if is_there { view.local } else { none });
            own.remotes.extend(view.remotes.iter().map(|(target, port)| {
                let mut port = *port;
                port.vport = *number;
                if !is_there {
                    port.state = RemoteState::Lost;
                }
                (*target, port)
            }));
        }
        own
    }

    /// What the host has of each that is there.
    pub(super) fn ports(&self) -> BTreeMap<u16, HostPort> {
        let state = self.lock();
        state.iter().filter_map(|(number, vport)| Some((*number, vport.port.clone()?))).collect()
    }
}

/// Names as the crate `fc` has them.
pub(in crate::machine) fn names_of(names: Names) -> fc::names::Names {
    fc::names::Names { wwnn: Wwn::new(names.wwnn), wwpn: Wwn::new(names.wwpn) }
}

/// The operator reads why the guest does not get a port.
pub(in crate::machine) fn not_allowed(hba: &str, names: Names, why: &NotAllowed) {
    devices::log_limited!(warn, "hba {hba}: the guest asked for a port {:016x}: {why}", names.wwpn);
}
