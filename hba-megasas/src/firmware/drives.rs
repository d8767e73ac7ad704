//! Physical and logical drives over the SCSI layer: what the controller knows of its disks, it asks them.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::flushing::Flushing;
use super::identity::{Identity, identify, identify_device};
use devices::iothread::Io;
use devices::mem::{FromGuest, SgList, ToGuest};
use devices::scsi::{
    Cdb, DataBuffers, HostDevice, Lun, Nexus, ScsiReply, ScsiRequest, Status, Tag, TaskAttribute,
};

/// The controller's own commands have tags from here on; frames have smaller ones.
const OWN_TAGS: u64 = 1 << 63;
static NEXT_TAG: AtomicU64 = AtomicU64::new(OWN_TAGS);

/// How long the firmware waits for a disk that it asks who it is: disks are asked one after the other, and Linux resets a board after
/// 180 s. An answer takes as long as the host needs to tell the size of an image.
const PATIENCE: Duration = Duration::from_millis(500);
/// The same, for a disk that has not answered the last time.
const LATE_PATIENCE: Duration = Duration::from_millis(50);

/// Looks for unit attentions at most.
const SETTLE_TRIES: u32 = 8;

/// A disk as the host bus adapter is given it.
#[derive(Clone)]
pub struct Drive {
    /// The disk as a volume (RAID 0 of one), which is what the guest's disk driver gets; `None` gives the guest the
    /// physical drive.
    pub logical: Option<Arc<Nexus>>,
    /// The disk itself. Behind a volume only tools see it, and only to read.
    pub physical: Arc<Nexus>,
}

impl Drive {
    fn nexuses(&self) -> impl Iterator<Item = &Arc<Nexus>> {
        self.logical.iter().chain([&self.physical])
    }

    /// The driver may take it for another one: see [`Nexus::distrust`].
    pub(super) fn distrust(&self) {
        self.nexuses().for_each(|nexus| nexus.distrust());
    }
}

/// A drive in its place.
pub(crate) struct Place {
    /// Device ID of the physical drive, slot number, and target ID of the logical drive.
    pub(crate) id: u8,
    pub(crate) drive: Drive,
    /// Sequence number of the drive's configuration, counts changes.
    pub(crate) seq: u16,
    /// SAS address of its port.
    pub(crate) sas_address: u64,
    /// The firmware's own ways to the units: what it asks takes no unit attention away from the guest.
    own_logical: Option<Arc<Nexus>>,
    own_physical: Arc<Nexus>,
    /// Its way for what may take as long as the host does: a reset ends that, and what it asks goes on.
    pub(super) own_slow: Arc<Nexus>,
    /// The flushes that it asks for there.
    pub(super) flushing: Flushing,
    logical_settled: AtomicBool,
    physical_settled: AtomicBool,
    /// Logical block length of the logical drive in bytes; known once it is settled.
    block_size: AtomicU32,
    /// What the drives said of themselves last.
    known: [Known; 2],
}

/// What a drive said of itself last, and whether it is late with the next answer.
#[derive(Default)]
struct Known {
    identity: Mutex<Option<Identity>>,
    late: AtomicBool,
}

impl Known {
    fn lock(&self) -> MutexGuard<'_, Option<Identity>> {
        self.identity.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How long an answer is waited for.
    fn patience(&self) -> Duration {
        if self.late.load(Ordering::Relaxed) { LATE_PATIENCE } else { PATIENCE }
    }

    /// Asks a device of the host who it is. Nothing that it has to tell the guest is taken.
    async fn ask_device(&self, io: &Io, nexus: &Nexus, device: HostDevice) -> Identity {
        let first = |identity: &Identity| {
            self.lock().get_or_insert_with(|| identity.clone());
        };
        let ask = identify_device(io, nexus, device, first);
        let answer = io.at_most(self.patience(), ask).await.flatten();
        self.late.store(answer.is_none(), Ordering::Relaxed);
        match answer {
            Some(identity) => self.lock().insert(identity).clone(),
            None => self.lock().clone().unwrap_or_else(|| Identity::of_device(device)),
        }
    }
}

/// Which of the two a frame is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The volume.
    Logical,
    /// The disk.
    Physical,
}

impl Place {
    fn new(id: u8, drive: Drive, seq: u16, controller: u64) -> Self {
        let own = |nexus: &Arc<Nexus>| Nexus::new(nexus.target().clone(), None);
        Self {
            id,
            own_logical: drive.logical.as_ref().map(own),
            own_physical: own(&drive.physical),
            own_slow: own(drive.logical.as_ref().unwrap_or(&drive.physical)),
            drive,
            seq,
            // The ports of the disks follow those of the controller.
            sas_address: controller.wrapping_add(0x10).wrapping_add(u64::from(id)),
            flushing: Flushing::default(),
            logical_settled: AtomicBool::new(false),
            physical_settled: AtomicBool::new(false),
            block_size: AtomicU32::new(0),
            known: Default::default(),
        }
    }

    /// The way to the unit; `None` where there is none.
    pub(crate) fn nexus(&self, kind: Kind) -> Option<&Arc<Nexus>> {
        match kind {
            Kind::Logical => self.drive.logical.as_ref(),
            Kind::Physical => Some(&self.drive.physical),
        }
    }

    /// The way to the unit of a frame for a logical drive. Where no driver is at work, a CD drive is one: SeaBIOS knows no
    /// others, and drivers would find it twice.
    pub(crate) fn bootable(&self, driver: bool) -> Option<Kind> {
        let cd = || self.known[1].lock().as_ref().is_some_and(Identity::is_cd);
        match self.drive.logical {
            Some(_) => Some(Kind::Logical),
            None => (!driver && cd()).then_some(Kind::Physical),
        }
    }

    /// Asks a unit who it is; `None` where there is none. One that cannot say so soon, because a command that must be alone
    /// hangs on the host, is what it was when it was asked last; of one that never answered nothing is known, but of a device of the
    /// host what it said when it came.
    pub(crate) async fn identify(&self, io: &Io, kind: Kind) -> Option<Identity> {
        let (nexus, known) = match kind {
            Kind::Logical => (self.own_logical.as_ref()?, self.known.first()?),
            Kind::Physical => (&self.own_physical, self.known.last()?),
        };
        if let Some(device) = nexus.host_device(&Lun::default()) {
            return Some(known.ask_device(io, nexus, device).await);
        }
        let read_only = known.lock().as_ref().is_some_and(|identity| identity.read_only);
        let ask = async {
            settle(io, nexus).await;
            identify(io, nexus, read_only).await
        };
        let answer = io.at_most(known.patience(), ask).await;
        known.late.store(answer.is_none(), Ordering::Relaxed);
        match answer {
            // A reset came in between.
            Some(identity) if identity.block_size == 0 && !identity.is_cd() => Some(identity),
            Some(identity) => Some(known.lock().insert(identity).clone()),
            None => Some(known.lock().clone().unwrap_or_default()),
        }
    }

    /// The driver knows which drive this is.
    pub(super) fn trust(&self) {
        self.drive.nexuses().for_each(|nexus| nexus.trust());
    }

    /// Ends the commands of the driver, and what the firmware asks; does not wait for it.
    pub(crate) fn end_commands(&self) {
        // First: those who wait for a flush would begin another when this one ends.
        self.flushing.end();
        let own = [Some(&self.own_slow), Some(&self.own_physical), self.own_logical.as_ref()];
        own.into_iter().flatten().for_each(|nexus| nexus.abort_all());
        [Kind::Logical, Kind::Physical]
            .into_iter()
            .filter_map(|kind| self.nexus(kind))
            .for_each(|n| n.reset());
    }

    /// The disk, if the host works on commands that were ended; for messages.
    pub(crate) fn unfinished(&self) -> Option<String> {
        let names = self.drive.physical.unfinished().into_iter();
        let mut names = names.chain(self.drive.logical.iter().flat_map(|nexus| nexus.unfinished()));
        names.next().map(|name| format!("target {} {name}", self.id))
    }

    fn settled(&self, kind: Kind) -> &AtomicBool {
        match kind {
            Kind::Logical => &self.logical_settled,
            Kind::Physical => &self.physical_settled,
        }
    }

    /// Whether the firmware has taken the unit attentions of power-on and reset, which are its own, not the driver's.
    pub(crate) fn is_settled(&self, kind: Kind) -> bool {
        self.settled(kind).load(Ordering::Acquire)
    }

    /// Takes them.
    pub(crate) async fn settle(&self, io: &Io, kind: Kind) {
        if let Some(nexus) = self.nexus(kind) {
            settle(io, nexus).await;
        }
        if kind == Kind::Logical
            && let Some(identity) = self.identify(io, kind).await
        {
            if identity.block_size == 0 {
                // A reset came in between: asked again next time.
                return;
            }
            self.block_size.store(identity.block_size, Ordering::Relaxed);
        }
        self.settled(kind).store(true, Ordering::Release);
    }

    /// Logical block length of the logical drive in bytes, once it is settled.
    pub(crate) fn block_size(&self) -> u32 {
        self.block_size.load(Ordering::Relaxed)
    }

    fn hurry(&self, hurried: bool) {
        self.drive.nexuses().for_each(|nexus| nexus.hurry(hurried));
    }

    fn unsettle(&self) {
        self.logical_settled.store(false, Ordering::Release);
        self.physical_settled.store(false, Ordering::Release);
    }
}

type Map = BTreeMap<u8, Arc<Place>>;

/// All drives of a controller; changes when drives come and go.
pub(crate) struct Drives {
    version: AtomicU64,
    map: Mutex<Arc<Map>>,
    next_seq: AtomicU16,
    controller: u64,
    /// Changes with the map locked.
    hurried: AtomicBool,
}

impl Drives {
    /// None yet, behind a controller of this SAS address.
    pub(crate) fn new(controller: u64) -> Self {
        let map = Mutex::new(Arc::new(Map::new()));
        let (version, next_seq) = (AtomicU64::new(0), AtomicU16::new(1));
        Self { version, map, next_seq, controller, hurried: AtomicBool::new(false) }
    }

    /// All drives now, by ID.
    pub(crate) fn all(&self) -> Arc<Map> {
        self.map.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Changes with every change of [`Self::all`].
    pub(crate) fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// The drive at `id`.
    pub(crate) fn get(&self, id: u16) -> Option<Arc<Place>> {
        self.all().get(&u8::try_from(id).ok()?).cloned()
    }

    /// Puts a drive at `id` or takes away what is there; returns what was there.
    pub(crate) fn set(&self, id: u8, drive: Option<Drive>) -> Option<Arc<Place>> {
        let mut map = self.map.lock().unwrap_or_else(PoisonError::into_inner);
        let mut new = Map::clone(&map);
        let before = match drive {
            Some(drive) => {
                let seq = self.next_seq.fetch_add(1, Ordering::Relaxed);
                let place = Place::new(id, drive, seq, self.controller);
                place.hurry(self.hurried.load(Ordering::Relaxed));
                new.insert(id, Arc::new(place))
            }
            None => new.remove(&id),
        };
        *map = Arc::new(new);
        self.version.fetch_add(1, Ordering::Release);
        before
    }

    /// Whether the driver gives the board up for a drive that does not answer soon, see [`Nexus::hurry`]. One that resets the
    /// adapter does: Linux repeats after that what was under way; when it is not answered within seconds it resets the board
    /// again, and after the third time gives it up with all its drives. Drivers that never reset it (FreeBSD, OpenBSD, that of
    /// the firmware) wait for a drive, but take BUSY for a failure or even for success. So does that of illumos, which asks for
    /// READY after each reset. What drivers write before they reset the adapter does not tell Linux from that of Windows.
    pub(crate) fn hurry(&self, hurried: bool) {
        let map = self.map.lock().unwrap_or_else(PoisonError::into_inner);
        self.hurried.store(hurried, Ordering::Relaxed);
        map.values().for_each(|place| place.hurry(hurried));
    }

    /// After a reset every unit has attentions again.
    pub(crate) fn unsettle(&self) {
        self.all().values().for_each(|place| place.unsettle());
    }
}

/// The sense key of fixed and of descriptor format sense data (SPC-5, 4.4); 0, NO SENSE, where there is none.
pub(super) fn sense_key(reply: &ScsiReply) -> u8 {
    match reply.sense.as_ref().map(|sense| sense.as_bytes()) {
        Some([0x70 | 0x71, _, key, ..] | [0x72 | 0x73, key, ..]) => key & 0x0f,
        _ => 0,
    }
}

/// A command of the controller's own: status and as much of `data` as came.
pub(super) async fn ask(io: &Io, nexus: &Nexus, cdb: &[u8], data: &mut [u8]) -> Option<Status> {
    reply(io, nexus, cdb, data).await.map(|reply| reply.status)
}

/// As [`ask`], with all that the unit says.
async fn reply(io: &Io, nexus: &Nexus, cdb: &[u8], data: &mut [u8]) -> Option<ScsiReply> {
    let memory = SgList::host(data.len(), 512)?;
    let view = FromGuest::new(memory.window(0, data.len() as u64));
    // Rare and large: not worth the room in every task.
    let reply = Box::pin(nexus.execute(io, request(cdb, memory))).await.ok()?;
    view.read_at(0, data);
    Some(reply)
}

pub(super) fn request(cdb: &[u8], memory: SgList) -> ScsiRequest {
    let tag = Tag(NEXT_TAG.fetch_add(1, Ordering::Relaxed) | OWN_TAGS);
    ScsiRequest {
        tag,
        lun: Lun::default(),
        cdb: Cdb::new(cdb),
        attribute: TaskAttribute::Simple,
        priority: 0,
        data: DataBuffers::to_initiator(ToGuest::new(memory)),
    }
}

pub(super) async fn settle(io: &Io, nexus: &Nexus) {
    for _ in 0..SETTLE_TRIES {
        if ask(io, nexus, &[0; 6], &mut []).await != Some(Status::CheckCondition) {
            return;
        }
    }
}

/// Makes everything stable that was written through `nexus`; false when the disk says that it could not.
pub(super) async fn flush(io: &Io, nexus: &Nexus) -> bool {
    synchronize(io, nexus).await.is_some_and(|reply| reply.status == Status::Good)
}

/// SYNCHRONIZE CACHE(16) of the whole medium (SBC-4, 5.36).
pub(crate) async fn synchronize(io: &Io, nexus: &Nexus) -> Option<ScsiReply> {
    let mut cdb = [0; 16];
    cdb[0] = 0x91;
    // The driver has not sent it: what it has to be told of first waits for a command of its own.
    let mut request = request(&cdb, SgList::empty());
    Box::pin(nexus.execute_for(io, &mut request)).await.ok()
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::time::Instant;

    use devices::scsi::{Disk, DiskConfig, Image, LogicalUnit, Target};
    use devices::storage::Action;
    use devices::testing::{Effect, Fault, FaultDisk, RamDisk, on_io_thread};

    use super::*;

    /// COMPARE AND WRITE of block 0.
    fn compare_and_write() -> ScsiRequest {
        let memory = SgList::host(1024, 512).unwrap();
        ScsiRequest {
            tag: Tag(1),
            lun: Lun::default(),
            cdb: Cdb::new(&[0x89, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0]),
            attribute: TaskAttribute::Simple,
            priority: 0,
            data: DataBuffers::from_initiator(FromGuest::new(memory)),
        }
    }

    /// The driver is to hear of a unit attention itself, and its data is to be stable all the same.
    #[test]
    fn a_flush_takes_no_unit_attention() {
        on_io_thread(|io| async move {
            let disk = Disk::new(Image::Ram(RamDisk::new(1 << 20)).into(), DiskConfig::default()).unwrap();
            let target = Target::new();
            target.attach(Lun::default(), LogicalUnit::Disk(disk)).unwrap();
            let nexus = Nexus::new(target, None);
            assert!(flush(&io, &nexus).await);
            assert_eq!(ask(&io, &nexus, &[0; 6], &mut []).await, Some(Status::CheckCondition), "power on");
            assert_eq!(ask(&io, &nexus, &[0; 6], &mut []).await, Some(Status::Good));
        });
    }

    #[test]
    fn a_disk_that_hangs_is_what_it_was() {
        on_io_thread(|io| async move {
            let image = Arc::new(Image::Fault(FaultDisk::new(RamDisk::new(8 << 20))));
            let Image::Fault(fault) = &*image else { panic!("another kind of image") };
            let target = Target::new();
            let disk = Disk::new(image.clone(), DiskConfig::default()).unwrap();
            target.attach(Lun::default(), LogicalUnit::Disk(disk)).unwrap();
            let nexus = Nexus::new(target, None);
            let drive = Drive { logical: Some(nexus.clone()), physical: nexus.clone() };
            let (place, stranger) = (Place::new(0, drive.clone(), 1, 0), Place::new(0, drive, 1, 0));
            let kinds = [Kind::Logical, Kind::Physical];
            for kind in kinds {
                assert_eq!(place.identify(&io, kind).await.unwrap().sectors, 16384);
            }
            settle(&io, &nexus).await;
            fault.inject(Fault::every(Action::Read, Effect::Stall));
            let mut hung = pin!(nexus.execute(&io, compare_and_write()));
            assert!(io.at_most(Duration::from_millis(10), hung.as_mut()).await.is_none());
            assert_eq!(fault.stalled(), 1);
            let begin = Instant::now();
            for kind in kinds.repeat(10) {
                let ask = io.at_most(Duration::from_secs(5), place.identify(&io, kind)).await;
                let identity = ask.expect("an answer").unwrap();
                assert_eq!((identity.sectors, identity.block_size), (16384, 512));
                assert_eq!(&identity.inquiry[8..11], b"VMM");
                assert_eq!(identity.vpd_83[1], 0x83);
            }
            assert!(begin.elapsed() < Duration::from_secs(5), "asked one after the other");
            assert_eq!(stranger.identify(&io, Kind::Physical).await.unwrap().sectors, 0);
            fault.heal();
            fault.release();
            hung.await.unwrap();
            assert_eq!(stranger.identify(&io, Kind::Physical).await.unwrap().sectors, 16384);
        });
    }
}
