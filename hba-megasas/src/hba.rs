//! The host bus adapter: port, firmware, drives and the PCI function, put together.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use devices::iothread::{Io, Remote};
use devices::pci::{PciDevice, PciError, PciFunction, PciSeat};
use devices::scsi::TransferLimits;
use thiserror::Error;

use crate::differences::Differences;
use crate::firmware::{Drive, EventStore, Firmware, Log, MAX_LDS, Personality};
use crate::function;
use crate::limits::Limits;
use crate::model::Model;
use crate::transport::{Adapter, Port, Window, Worker, serve};

/// How often a reset ends the commands that it still finds.
const ABORT_POLL: Duration = Duration::from_millis(1);
/// The same where the host takes its time.
const ABORT_POLL_MAX: Duration = Duration::from_millis(50);
/// For how long taking bus mastering away waits for the host at most.
const LAST_DMA: Duration = Duration::from_secs(30);
/// Longest serial number, in bytes.
const MAX_SERIAL: usize = 31;

/// Properties of an HBA that do not change while it lives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// The board.
    pub model: Model,
    /// Serial number of the board: printable ASCII, at most 31 characters.
    pub serial: String,
    /// SAS address (NAA) of the controller's first port.
    pub sas_address: u64,
    /// Completed writes to volumes may be lost until the cache is flushed, which Linux does not do at a file
    /// system's flush. Otherwise each write is stable when it completes.
    pub write_back: bool,
    /// Where it answers as QEMU's board does.
    pub differences: Differences,
}

/// Why an HBA could not be made, or a drive not attached.
#[derive(Debug, Error)]
pub enum Error {
    /// A serial number that cannot be.
    #[error("a serial number is at most {MAX_SERIAL} characters of printable ASCII")]
    Serial,
    /// A drive beyond what drivers address.
    #[error("drive {0}; a controller has drives 0 to {last}", last = MAX_LDS - 1)]
    Drive(u8),
    /// An event descriptor could not be made.
    #[error("event descriptor")]
    EventFd(#[from] io::Error),
    /// The PCI function could not be built.
    #[error("PCI function")]
    Pci(#[from] PciError),
}

/// What became of a drive that was attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// The driver is told of it.
    There,
    /// The driver does not hear of it, and nothing reaches it, until the driver has acted on the removal of the one before.
    Waits,
}

/// A MegaRAID SAS host bus adapter: a PCI function for a slot of the host bridge.
///
/// Everything runs on one I/O thread. Before that thread ends, the HBA has to be dropped or told by
/// [`Megasas::shut_down`]: a thread that ends drops the frames it still runs.
pub struct Megasas {
    function: PciDevice,
    port: Arc<Port>,
    shared: Arc<Shared>,
}

/// What the port calls back.
struct Shared {
    firmware: Arc<Firmware>,
    remote: Remote,
    cancels: Arc<Cancels>,
}

/// The driver's wish that commands be ended, however often it says so: one task at a time, and once more for what came
/// while that ran. 1 while commands are ended, 2 when that is to be done again.
#[derive(Default)]
struct Cancels(AtomicU8);

impl Megasas {
    /// An HBA in the slot of `seat`, with `drives` by target number, on the thread of `io`. Without a store the event
    /// log ends with the HBA. Drives that are there before the guest first writes to the configuration space are no events.
    pub fn new(
        seat: PciSeat,
        drives: BTreeMap<u8, Drive>,
        io: Remote,
        options: Options,
        events: Option<Box<dyn EventStore>>,
    ) -> Result<Arc<Self>, Error> {
        Self::with_limits(seat, drives, io, options, events, TransferLimits::default())
    }

    /// As [`Self::new`]. Drivers are asked to keep to `transfer`, as far as that is less than what the board has: the number of
    /// elements in the status word and in the controller information, and the strips and the longest request there. Longer
    /// commands are taken all the same.
    pub fn with_limits(
        seat: PciSeat,
        drives: BTreeMap<u8, Drive>,
        io: Remote,
        options: Options,
        events: Option<Box<dyn EventStore>>,
        transfer: TransferLimits,
    ) -> Result<Arc<Self>, Error> {
        let Options { model, serial, sas_address, write_back, differences } = options;
        if serial.len() > MAX_SERIAL || !serial.bytes().all(|byte| (0x20..0x7f).contains(&byte)) {
            return Err(Error::Serial);
        }
        let limits = Limits::new(model, transfer);
        let personality = Personality { limits, serial, sas_address, write_back, differences };
        let firmware = Arc::new(Firmware::new(personality, Log::new(events)));
        let shared =
            Arc::new(Shared { firmware: firmware.clone(), remote: io.clone(), cancels: Arc::default() });
        let port = Port::new(limits, seat.dma.clone(), shared.clone(), differences)?;
        let window = Arc::new(Window(port.clone()));
        let page = (!Differences::are_traced()).then(|| port.page().clone());
        let function = function::build(model, seat, window, page)?;
        port.connect(function.interrupt().clone());
        let hba = Self { function, port: port.clone(), shared };
        for (id, drive) in drives {
            hba.attach_drive(id, drive)?;
        }
        let weak = Arc::downgrade(&port);
        firmware.listen(Box::new(move || {
            if let Some(port) = weak.upgrade() {
                port.ring_doorbell();
            }
        }));
        io.spawn(move |io| serve(Worker::new(io, port, firmware)));
        Ok(Arc::new(hba))
    }

    /// What drivers are told of the commands that they may send, for as long as the HBA lives: they ask once.
    pub fn transfer_limits(&self) -> TransferLimits {
        self.shared.firmware.personality().limits.told()
    }

    /// Takes the HBA out of service for good, at the end of the machine: no frame is taken any more, and the store of
    /// its events is dropped.
    pub fn shut_down(&self) {
        self.port.close();
        // Without the log's lock: commands that end write to it, and a store may wait for the host.
        let store = self.shared.firmware.log().close();
        drop(store);
    }

    /// Puts a drive at `id`, which is its target, device and slot number, and tells the driver. Where a drive has gone, and
    /// the driver has not yet shown that it has acted on that, the new one waits: see [`Arrival::Waits`]. What was there
    /// before goes as by [`Self::detach_drive`].
    pub fn attach_drive(&self, id: u8, drive: Drive) -> Result<Arrival, Error> {
        if id >= MAX_LDS {
            return Err(Error::Drive(id));
        }
        self.detach_drive(id);
        let there = self.shared.firmware.attach(id, drive);
        Ok(if there { Arrival::There } else { Arrival::Waits })
    }

    /// Takes the drive at `id` away and tells the driver. Frames it runs come to their end.
    pub fn detach_drive(&self, id: u8) -> Option<Drive> {
        self.shared.firmware.detach(id)
    }

    /// The places at which a drive has gone, and the driver has not yet shown that it has acted on that. There are none
    /// while no driver is at work.
    pub fn unnoticed(&self) -> Vec<u8> {
        self.shared.firmware.unnoticed()
    }

    /// Says who is called when a drive that waited is there. Once. Called on any thread; nothing of the HBA may be called
    /// from there.
    pub fn on_arrival(&self, listener: Box<dyn Fn(u8) + Send + Sync>) {
        self.shared.firmware.on_arrival(listener);
    }

    /// Makes the firmware fail, as a driver's recovery sees it: to test that.
    pub fn inject_fault(&self) {
        self.port.fault();
    }
}

impl Shared {
    /// Ends the commands of every drive; does not wait for it.
    fn end_commands(firmware: &Firmware) {
        firmware.drives().all().values().for_each(|place| place.end_commands());
        firmware.drives().unsettle();
    }
}

impl Cancels {
    /// Notes the wish; true when nobody is at it.
    fn ask(&self) -> bool {
        self.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, |n| Some(2.min(n + 1))) == Ok(0)
    }

    /// Ends commands until nobody has asked meanwhile.
    async fn serve(&self, io: &Io, mut end: impl FnMut()) {
        loop {
            self.0.store(1, Ordering::Release);
            end();
            // A driver that asks without a pause gets what it wants now and then: other disks are on this thread.
            io.sleep(ABORT_POLL).await;
            if self.0.compare_exchange(1, 0, Ordering::AcqRel, Ordering::Acquire).is_ok() {
                return;
            }
        }
    }
}

impl Adapter for Shared {
    fn abort(&self, port: Arc<Port>) {
        let firmware = self.firmware.clone();
        self.remote.spawn(move |io| async move {
            let mut pause = ABORT_POLL;
            loop {
                Self::end_commands(&firmware);
                // Commands that were on their way to a drive have arrived by the next time.
                io.sleep(pause).await;
                if port.in_flight() == 0 || port.is_closed() {
                    break port.aborted();
                }
                pause = (pause * 2).min(ABORT_POLL_MAX);
            }
        });
    }

    fn cancel(&self) {
        if self.cancels.ask() {
            let (firmware, cancels) = (self.firmware.clone(), self.cancels.clone());
            self.remote.spawn(move |io| async move {
                cancels.serve(&io, || Self::end_commands(&firmware)).await;
            });
        }
    }

    fn restart(&self) {
        self.firmware.started();
    }

    fn hurry(&self, hurried: bool) {
        self.firmware.drives().hurry(hurried);
    }

    fn unfinished(&self) -> String {
        let all = self.firmware.drives().all();
        all.values().filter_map(|place| place.unfinished()).collect::<Vec<_>>().join("; ")
    }
}

impl Drop for Megasas {
    fn drop(&mut self) {
        self.shut_down();
    }
}

impl PciFunction for Megasas {
    fn config_read(&self, offset: u16, data: &mut [u8]) {
        self.function.read(offset, data);
    }

    fn config_write(&self, offset: u16, data: &[u8]) {
        self.shared.firmware.begin();
        let change = self.function.write(offset, data);
        if change.bus_master == Some(false) {
            // What the host still works on must not land in memory that the guest believes is its own.
            self.port.quiesce(LAST_DMA);
        }
        self.port.refresh_interrupt();
    }

    fn reset(&self) {
        // First the registers: they revoke DMA.
        self.function.reset_registers();
        self.port.reset_and_wait();
        self.shared.firmware.driver_went();
    }

    fn name(&self) -> &str {
        PciFunction::name(&self.function)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;
    use std::sync::mpsc::channel;

    use devices::iothread::IoThread;

    use super::*;

    #[test]
    fn a_driver_that_asks_without_a_pause_leaves_the_thread_to_others() {
        let thread = IoThread::start("io").unwrap();
        let (cancels, enough) = (Arc::new(Cancels::default()), Arc::new(AtomicBool::new(false)));
        let ((ended, ends), (other, others)) = (channel(), channel());
        assert!(cancels.ask());
        let (asker, stop) = (cancels.clone(), enough.clone());
        thread.remote().spawn(move |io| async move {
            let end = || {
                let _ = ended.send(());
                // As fast as the thread itself.
                if !stop.load(Ordering::Acquire) {
                    assert!(!asker.ask());
                }
            };
            asker.serve(&io, end).await;
            drop(ended);
        });
        ends.recv().unwrap();
        thread.remote().spawn(move |_| async move { other.send(()).unwrap() });
        let served = others.recv_timeout(Duration::from_secs(10));
        enough.store(true, Ordering::Release);
        assert!(served.is_ok(), "nobody else was served");
        // The last wish is not forgotten, and the next one begins anew.
        while ends.recv().is_ok() {}
        assert!(cancels.ask());
    }
}
