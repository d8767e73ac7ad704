//! The device configuration space (5.6.4).

use std::sync::atomic::{AtomicU32, Ordering};

use devices::scsi::TransferLimits;
use zerocopy::IntoBytes;

use crate::fc::wire::FcConfig;
use crate::spec::{DEFAULT_CDB_SIZE, DEFAULT_SENSE_SIZE, Event, ScsiConfig, config_offset};

/// Largest `sense_size` taken from a driver, in bytes. Sense data has at most 252; the rest of the area stays unused.
const MAX_SENSE_SIZE: u32 = 0xffff;
/// Largest `cdb_size` taken from a driver, in bytes; CDBs longer than the SCSI layer carries are cut.
const MAX_CDB_SIZE: u32 = 255;
/// Hint for the largest transfer, in blocks of 512 bytes, where nothing less is wanted: Linux makes this of 0, and to Windows
/// it means that there is no limit.
const MAX_SECTORS: u32 = 0xffff;
/// The largest target number.
const MAX_TARGET: u16 = 255;
/// The largest unit number of the single-level form.
const MAX_LUN: u32 = 16383;

/// Where the parts of a request lie, as the driver chose it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    /// Bytes of CDB in a request.
    pub(crate) cdb_size: u32,
    /// Bytes of sense area in a response.
    pub(crate) sense_size: u32,
}

/// The configuration space of one device.
#[derive(Debug)]
pub(crate) struct Config {
    request_queues: u16,
    queue_size: u16,
    seg_max: u32,
    max_sectors: u32,
    sense_size: AtomicU32,
    cdb_size: AtomicU32,
}

impl Config {
    pub(crate) fn new(request_queues: u16, queue_size: u16, transfer: TransferLimits) -> Self {
        // A command has a request and a response descriptor beside its data.
        let room = u32::from(queue_size.saturating_sub(2).max(1));
        Self {
            request_queues,
            queue_size,
            seg_max: room.min(transfer.max_segments()),
            max_sectors: transfer.sectors(MAX_SECTORS),
            sense_size: AtomicU32::new(DEFAULT_SENSE_SIZE),
            cdb_size: AtomicU32::new(DEFAULT_CDB_SIZE),
        }
    }

    /// What drivers are told of the commands that they may send.
    pub(crate) fn transfer(&self) -> TransferLimits {
        TransferLimits::new(u64::from(self.max_sectors) * 512, self.seg_max)
    }

    /// The sizes in force. Drivers set them before they send commands.
    pub(crate) fn layout(&self) -> Layout {
        Layout {
            cdb_size: self.cdb_size.load(Ordering::Relaxed),
            sense_size: self.sense_size.load(Ordering::Relaxed),
        }
    }

    /// Back to the defaults (5.6.4.2).
    pub(crate) fn reset(&self) {
        self.sense_size.store(DEFAULT_SENSE_SIZE, Ordering::Relaxed);
        self.cdb_size.store(DEFAULT_CDB_SIZE, Ordering::Relaxed);
    }

    /// Reads at any offset and width; `more` follows the structure, and bytes after that read as zero.
    pub(crate) fn read(&self, offset: u64, data: &mut [u8], more: Option<FcConfig>) {
        let Layout { cdb_size, sense_size } = self.layout();
        let image = ScsiConfig {
            num_queues: u32::from(self.request_queues).into(),
            seg_max: self.seg_max.into(),
            max_sectors: self.max_sectors.into(),
            cmd_per_lun: u32::from(self.queue_size).into(),
            event_info_size: (size_of::<Event>() as u32).into(),
            sense_size: sense_size.into(),
            cdb_size: cdb_size.into(),
            max_channel: 0.into(),
            max_target: MAX_TARGET.into(),
            max_lun: MAX_LUN.into(),
        };
        let mut whole = [0; size_of::<ScsiConfig>() + size_of::<FcConfig>()];
        let (standard, rest) = whole.split_at_mut(size_of::<ScsiConfig>());
        standard.copy_from_slice(image.as_bytes());
        if let Some(more) = more {
            rest.copy_from_slice(more.as_bytes());
        }
        copy_image(&whole, offset, data);
    }

    /// Writes. Only whole, aligned writes of `sense_size` and `cdb_size` within bounds have an effect.
    pub(crate) fn write(&self, offset: u64, data: &[u8]) {
        let Ok(value) = <[u8; 4]>::try_from(data).map(u32::from_le_bytes) else { return };
        match offset {
            config_offset::SENSE_SIZE if value <= MAX_SENSE_SIZE => {
                self.sense_size.store(value, Ordering::Relaxed);
            }
            config_offset::CDB_SIZE if (1..=MAX_CDB_SIZE).contains(&value) => {
                self.cdb_size.store(value, Ordering::Relaxed);
            }
            _ => devices::log_limited!(
                debug,
                "device configuration: write of {value:#x} at {offset:#x} ignored"
            ),
        }
    }
}

/// Fills `data` from `image` at `offset`, with zeros where the image ends.
pub(crate) fn copy_image(image: &[u8], offset: u64, data: &mut [u8]) {
    let rest = usize::try_from(offset).ok().and_then(|at| image.get(at..)).unwrap_or_default();
    for (i, byte) in data.iter_mut().enumerate() {
        *byte = rest.get(i).copied().unwrap_or(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn le32(config: &Config, offset: u64) -> u32 {
        let mut data = [0xee; 4];
        config.read(offset, &mut data, None);
        u32::from_le_bytes(data)
    }

    #[test]
    fn fields_are_where_the_standard_puts_them() {
        let config = Config::new(3, 256, TransferLimits::default());
        assert_eq!(le32(&config, 0), 3, "num_queues");
        assert_eq!(le32(&config, 4), 254, "seg_max");
        assert_eq!(le32(&config, 8), 65535, "max_sectors");
        assert_eq!(le32(&config, 12), 256, "cmd_per_lun");
        assert_eq!(le32(&config, 16), 16, "event_info_size");
        assert_eq!(le32(&config, 20), 96, "sense_size");
        assert_eq!(le32(&config, 24), 32, "cdb_size");
        assert_eq!(le32(&config, 28), 255 << 16, "max_channel, max_target");
        assert_eq!(le32(&config, 32), 16383, "max_lun");
        assert_eq!(le32(&config, 36), 0);
        assert_eq!(le32(&config, u64::MAX), 0);
        let mut two = [0; 2];
        config.read(30, &mut two, None);
        assert_eq!(two, [255, 0]);
    }

    /// VIRTIO 1.3, 5.6.4: seg_max is at 4, max_sectors at 8, in blocks of 512 bytes.
    #[test]
    fn transfers_are_limited_by_the_host_and_by_the_queue() {
        let bytes = |queue_size, bytes, segments| {
            let mut data = [0xee; 12];
            Config::new(1, queue_size, TransferLimits::new(bytes, segments)).read(4, &mut data, None);
            data
        };
        assert_eq!(bytes(256, u64::MAX, u32::MAX), [254, 0, 0, 0, 0xff, 0xff, 0, 0, 0, 1, 0, 0]);
        assert_eq!(bytes(256, 256 << 10, 64), [64, 0, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0], "512 sectors");
        assert_eq!(bytes(256, 120 << 10, 128), [31, 0, 0, 0, 240, 0, 0, 0, 0, 1, 0, 0]);
        assert_eq!(bytes(16, 256 << 10, 64), [14, 0, 0, 0, 0, 2, 0, 0, 16, 0, 0, 0], "the queue is short");
        assert_eq!(bytes(256, 64 << 20, 128), [128, 0, 0, 0, 0xff, 0xff, 0, 0, 0, 1, 0, 0]);
        // No driver gets 0: older drivers of Windows divide by seg_max, EDK2 halves max_sectors.
        assert_eq!(bytes(256, 0, 0), [17, 0, 0, 0, 16, 0, 0, 0, 0, 1, 0, 0]);
        assert_eq!(bytes(4, 0, 0), [2, 0, 0, 0, 16, 0, 0, 0, 4, 0, 0, 0]);
    }

    #[test]
    fn what_drivers_are_told_is_known() {
        let told = |transfer| Config::new(1, 256, transfer).transfer();
        let limits = TransferLimits::new(256 << 10, 64);
        assert_eq!(told(limits), limits);
        let most = told(TransferLimits::default());
        assert_eq!((most.max_bytes(), most.max_segments()), (0xfff8 * 512, 254));
    }

    #[test]
    fn only_the_two_sizes_can_be_written_and_only_whole() {
        let config = Config::new(1, 256, TransferLimits::default());
        config.write(20, &252u32.to_le_bytes());
        config.write(24, &16u32.to_le_bytes());
        assert_eq!(config.layout(), Layout { cdb_size: 16, sense_size: 252 });
        for offset in 0..40 {
            for width in [1, 2, 3, 5, 8] {
                config.write(offset, &[0x11; 8][..width]);
            }
        }
        config.write(0, &9u32.to_le_bytes());
        config.write(24, &0u32.to_le_bytes());
        config.write(24, &256u32.to_le_bytes());
        config.write(20, &0x1_0000u32.to_le_bytes());
        assert_eq!(config.layout(), Layout { cdb_size: 16, sense_size: 252 });
        assert_eq!(le32(&config, 0), 1);
        config.reset();
        assert_eq!(config.layout(), Layout { cdb_size: 32, sense_size: 96 });
    }
}
