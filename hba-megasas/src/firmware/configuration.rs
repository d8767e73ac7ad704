//! The configuration on the disks: an array of one disk for each logical drive.

use std::collections::BTreeMap;
use std::sync::Arc;

use devices::iothread::Io;
use zerocopy::{FromZeros, IntoBytes};

use super::{Firmware, Kind, Place};
use crate::spec::config::{Array, ConfigHeader, NO_DEVICE, SPARE_SIZE};
use crate::spec::drive::{LdConfig, PD_ONLINE};

impl Firmware {
    /// CFG_READ.
    pub(super) async fn read_configuration(&self, io: &Io) -> Vec<u8> {
        let (mut arrays, mut lds) = (Vec::new(), Vec::new());
        let mut count = 0_u16;
        let drives = self.drives.all();
        for place in drives.values() {
            let Some(identity) = place.identify(io, Kind::Logical).await else { continue };
            let array_ref = array_of(&drives, place.id);
            let mut array = Array::new_zeroed();
            array.size = identity.sectors.into();
            array.drives = 1;
            array.array_ref = array_ref.into();
            array.members.iter_mut().for_each(|member| member.device_id = NO_DEVICE.into());
            if let Some(member) = array.members.first_mut() {
                member.device_id = u16::from(place.id).into();
                member.seq = place.seq.into();
                member.fw_state = PD_ONLINE.into();
                member.enclosure_index = 0xff;
                member.slot = place.id;
            }
            arrays.extend_from_slice(array.as_bytes());
            lds.extend_from_slice(self.ld_config(place, array_ref, &identity).as_bytes());
            count += 1;
        }
        let header = ConfigHeader {
            size: ((size_of::<ConfigHeader>() + arrays.len() + lds.len()) as u32).into(),
            array_count: count.into(),
            array_size: (size_of::<Array>() as u16).into(),
            ld_count: count.into(),
            ld_size: (size_of::<LdConfig>() as u16).into(),
            spare_count: 0.into(),
            spare_size: SPARE_SIZE.into(),
            reserved: [0; 16],
        };
        [header.as_bytes(), &arrays, &lds].concat()
    }
}

/// The array of logical drive `target`. Arrays are numbered in the order in which the configuration has them: OpenBSD and
/// NetBSD take the number for an index there.
pub(super) fn array_of(drives: &BTreeMap<u8, Arc<Place>>, target: u8) -> u16 {
    drives.range(..target).filter(|(_, place)| place.nexus(Kind::Logical).is_some()).count() as u16
}
