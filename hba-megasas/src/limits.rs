//! What the board tells drivers of the commands that they may send.

use devices::scsi::TransferLimits;

use crate::model::Model;
use crate::spec::STATUS_MSIX_AND_IEEE;

/// Log2 of the strip in sectors: 4 KiB.
pub(crate) const STRIP: u8 = 3;
/// Bytes of a strip.
const STRIP_BYTES: u64 = 512 << STRIP;
/// Longest command in sectors of 512 bytes, before the elements of a list limit it.
const MAX_REQUEST: u32 = 0xffff;
/// Where lists may be IEEE's, Linux sends this many bytes, whatever the controller information says (`MEGASAS_MAX_SECTORS_IEEE`).
const IEEE_BYTES: u64 = 128 << 10;

/// The limits that drivers read: in the status word and in the controller information. Linux takes the least of elements of
/// 4 KiB, strips, and the longest request; FreeBSD of the first without one, and the others. Longer frames are taken all
/// the same, as long as the model's list holds them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limits {
    model: Model,
    transfer: TransferLimits,
}

impl Limits {
    pub(crate) fn new(model: Model, transfer: TransferLimits) -> Self {
        Self { model, transfer }
    }

    pub(crate) fn model(self) -> Model {
        self.model
    }

    /// Elements of a scatter-gather list.
    pub(crate) fn sges(self) -> u8 {
        u8::try_from(self.transfer.max_segments()).unwrap_or(u8::MAX).min(self.model.max_sges())
    }

    /// Strips of one command.
    pub(crate) fn strips(self) -> u16 {
        let most = self.model.max_sges().into();
        u16::try_from(self.transfer.max_bytes() / STRIP_BYTES).unwrap_or(u16::MAX).min(most)
    }

    /// Sectors of one command.
    pub(crate) fn max_request(self) -> u32 {
        self.transfer.sectors(MAX_REQUEST)
    }

    /// The part of the status word below the state. One bit offers MSI-X and IEEE lists: without it Linux has the limits from the
    /// controller information, and an interrupt by wire.
    pub(crate) fn word(self) -> u32 {
        let ieee = self.model == Model::Gen2 && self.transfer.max_bytes() >= IEEE_BYTES;
        let msix = if ieee { STATUS_MSIX_AND_IEEE } else { 0 };
        msix | u32::from(self.sges()) << 16 | u32::from(self.model.max_commands())
    }

    /// All of it together: the longest command that a driver makes of it.
    pub(crate) fn told(self) -> TransferLimits {
        let bytes = (u64::from(self.max_request()) * 512).min(u64::from(self.strips()) * STRIP_BYTES);
        TransferLimits::new(bytes, self.sges().into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(model: Model, bytes: u64, segments: u32) -> Limits {
        Limits::new(model, TransferLimits::new(bytes, segments))
    }

    #[test]
    fn boards_without_limits_say_what_they_always_said() {
        let of = |model| {
            let limits = Limits::new(model, TransferLimits::default());
            (limits.word(), limits.sges(), limits.strips(), limits.max_request())
        };
        assert_eq!(of(Model::Gen2), (0x043c_03f0, 60, 60, 0xffff));
        assert_eq!(of(Model::Sas1078), (0x0050_03e8, 80, 80, 0xffff));
    }

    /// What megaraid_sas of Linux makes of it, in sectors: the least of three, but 256 with IEEE lists.
    fn linux(limits: Limits) -> u32 {
        let word = limits.word();
        let strips = (1 << STRIP) * u32::from(limits.strips());
        let least = strips.min(limits.max_request());
        let sectors = ((word >> 16 & 0xff) * 4096 / 512).min(if least == 0 { u32::MAX } else { least });
        if word & 1 << 26 != 0 { 256 } else { sectors }
    }

    /// What mfi of FreeBSD makes of it: the first page may be shared.
    fn freebsd(limits: Limits) -> u32 {
        let most = (1 << STRIP) * u32::from(limits.strips());
        most.min(limits.max_request()).min((u32::from(limits.sges()) - 1) * 8)
    }

    #[test]
    fn drivers_send_no_more_than_the_host_takes() {
        for model in [Model::Gen2, Model::Sas1078] {
            for (bytes, segments) in [(0, 0), (8192, 1), (12 << 10, 40), (64 << 10, 16), (120 << 10, 128)] {
                let (limits, sectors) = (limits(model, bytes, segments), (bytes.max(8192) / 512) as u32);
                assert_eq!(linux(limits), sectors, "{model:?}: {bytes} bytes in {segments}");
                assert_eq!(freebsd(limits), sectors);
                assert_eq!(limits.word() & 1 << 26, 0, "Linux would send 128 KiB");
            }
            let of = |bytes, segments| {
                let limits = limits(model, bytes, segments);
                (linux(limits), freebsd(limits))
            };
            let gen2 = model == Model::Gen2;
            assert_eq!(of(128 << 10, 128), (256, 256));
            assert_eq!(of(1 << 20, 40), (if gen2 { 256 } else { 320 }, 312));
            assert_eq!(of(1 << 20, 256), if gen2 { (256, 472) } else { (640, 632) });
        }
    }

    #[test]
    fn what_drivers_are_told_is_known() {
        let of = |model, bytes, segments| {
            let told = limits(model, bytes, segments).told();
            (told.max_bytes(), told.max_segments())
        };
        assert_eq!(of(Model::Gen2, u64::MAX, u32::MAX), (240 << 10, 60));
        assert_eq!(of(Model::Sas1078, u64::MAX, u32::MAX), (320 << 10, 80));
        assert_eq!(of(Model::Gen2, 120 << 10, 128), (120 << 10, 31));
        assert_eq!(of(Model::Gen2, 0, 0), (8192, 17));
    }
}
