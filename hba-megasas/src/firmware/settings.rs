//! What the guest has chosen. It lasts as long as the events do: until the process ends, or as long as their file.

use zerocopy::little_endian::{I64, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::info::{MAX_LDS, default_properties};
use crate::spec::controller::Properties;

/// The name of a volume.
pub(super) type Name = [u8; 16];

/// The settings as they are kept. What is zero was never set, but for the properties.
#[derive(Clone, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct Settings {
    pub(super) properties: Properties,
    pub(super) bios_data: [u8; 64],
    /// What the controller's clock is ahead of the host's, in seconds.
    pub(super) ahead: I64,
    reserved: [u8; 56],
    names: [Named; MAX_LDS as usize],
}

#[derive(Clone, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct Named {
    /// The volume, by its own name (NAA), for another may be at its target at the next start; 0 where it has none.
    volume: U64,
    name: Name,
    reserved: [u8; 8],
}

const _: () = assert!(size_of::<Settings>() == 192 + 64 * 32);

impl Settings {
    /// The settings that were kept, as far as they are there; those of the factory where nothing was.
    pub(super) fn new(kept: &[u8]) -> Self {
        let mut settings = Self::new_zeroed();
        let room = settings.as_mut_bytes();
        room.iter_mut().zip(kept).for_each(|(to, from)| *to = *from);
        if kept.len() < size_of::<Properties>() {
            settings.properties = default_properties();
        }
        settings
    }

    /// The name of the volume at `target` that calls itself `volume`.
    pub(super) fn name(&self, target: u8, volume: Option<u64>) -> Name {
        let named = self.names.get(usize::from(target));
        let named = named.filter(|named| named.volume.get() == volume.unwrap_or(0));
        named.map(|named| named.name).unwrap_or_default()
    }

    pub(super) fn set_name(&mut self, target: u8, volume: Option<u64>, name: Name) {
        if let Some(named) = self.names.get_mut(usize::from(target)) {
            (named.volume, named.name) = (volume.unwrap_or(0).into(), name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_that_of_its_volume() {
        let mut settings = Settings::new(&[]);
        settings.set_name(63, Some(0x5006_05b0_0000_0001), *b"data\0\0\0\0\0\0\0\0\0\0\0\0");
        let settings = Settings::new(settings.as_bytes());
        assert_eq!(&settings.name(63, Some(0x5006_05b0_0000_0001))[..5], b"data\0");
        assert_eq!(settings.name(63, Some(0x5006_05b0_0000_0002)), [0; 16], "another volume");
        assert_eq!(settings.name(62, None), [0; 16]);
        assert_eq!(settings.name(64, None), [0; 16]);
    }

    #[test]
    fn what_was_kept_in_part() {
        let mut settings = Settings::new(&[]);
        settings.properties.intr_throttle_count = 7.into();
        settings.set_name(2, None, [0x55; 16]);
        let part = Settings::new(settings.as_bytes().get(..448).unwrap());
        assert_eq!((part.properties.intr_throttle_count.get(), part.name(2, None)), (7, [0x55; 16]));
        assert_eq!(Settings::new(&[0; 63]).properties.intr_throttle_count.get(), 16, "no whole properties");
    }
}
