//! Lists of physical and logical drives, and what is to know of each.

use std::sync::Arc;

use devices::iothread::Io;
use zerocopy::{FromZeros, IntoBytes};

use super::configuration::array_of;
use super::dcmd::{Dcmd, Reply, parse};
use super::drives::{Kind, Place};
use super::identity::Identity;
use super::{Firmware, info, lock};
use crate::limits::STRIP;
use crate::spec::drive::{
    DDF_IN_VD, DDF_SAS, DISK_CACHE_DISABLED, DISK_CACHE_ENABLED, LD_CACHE_BAD_BBU, LD_CACHE_WRITE_BACK,
    LD_CACHE_WRITES, LD_OPTIMAL, LD_READ_ONLY, LdConfig, LdEntry, LdInfo, LdProperties, NO_ENCLOSURE,
    PD_ACTIVE, PD_ONLINE, PD_SPEED_3G, PD_SYSTEM, PdAddress, PdInfo,
};
use crate::spec::{Status, opcode};

/// Bytes of the first part of PD_LIST_QUERY and LD_GET_LIST replies.
const LIST_HEADER: usize = 8;
/// Offset of the first target ID in LD_LIST_QUERY.
const TARGET_IDS: usize = 11;

impl Firmware {
    /// PD_LIST_QUERY: what is asked of the drives, then what they have to be.
    pub(super) async fn pd_list_query(&self, io: &Io, dcmd: &Dcmd) -> Result<Reply, Status> {
        let value = dcmd.byte(1);
        Ok(Reply::Data(match dcmd.byte(0) {
            opcode::PD_QUERY_ALL => self.pd_list(io, |_, _| true).await,
            opcode::PD_QUERY_STATE => {
                self.pd_list(io, |place, _| firmware_state(place) == u16::from(value)).await
            }
            opcode::PD_QUERY_POWER_STATE => self.pd_list(io, |_, _| value == PD_ACTIVE).await,
            opcode::PD_QUERY_MEDIA_TYPE => {
                self.pd_list(io, |_, identity| media_type(identity) == value).await
            }
            opcode::PD_QUERY_SPEED => self.pd_list(io, |_, _| value == PD_SPEED_3G).await,
            opcode::PD_QUERY_EXPOSED_TO_HOST => {
                let look = self.looks(Kind::Physical);
                let list = self.pd_list(io, |place, _| place.nexus(Kind::Logical).is_none()).await;
                self.looked(&look);
                list
            }
            _ => return Err(Status::InvalidParameter),
        }))
    }

    /// Those physical drives that are wanted.
    pub(super) async fn pd_list(&self, io: &Io, wanted: impl Fn(&Place, &Identity) -> bool) -> Vec<u8> {
        let mut bytes = vec![0; LIST_HEADER];
        let mut count = 0_u32;
        for place in self.drives.all().values() {
            let Some(identity) = place.identify(io, Kind::Physical).await else { continue };
            if !wanted(place, &identity) {
                continue;
            }
            let mut entry = PdAddress::new_zeroed();
            entry.device_id = u16::from(place.id).into();
            entry.enclosure_id = NO_ENCLOSURE.into();
            entry.enclosure_index = 0xff;
            entry.slot = place.id;
            entry.scsi_type = identity.inquiry[0] & 0x1f;
            entry.port_bitmap = 1;
            entry.sas_address = [sas_address(place, &identity).into(), 0.into()];
            bytes.extend_from_slice(entry.as_bytes());
            count += 1;
        }
        let size = bytes.len() as u32;
        let header = size.to_le_bytes().into_iter().chain(count.to_le_bytes());
        bytes.iter_mut().zip(header).for_each(|(to, from)| *to = from);
        bytes
    }

    /// PD_GET_INFO.
    pub(super) async fn pd_info(&self, io: &Io, id: u16) -> Result<Reply, Status> {
        let place = self.drives.get(id).ok_or(Status::DeviceNotFound)?;
        let identity = place.identify(io, Kind::Physical).await.ok_or(Status::DeviceNotFound)?;
        let mut info = PdInfo::new_zeroed();
        let member = place.nexus(Kind::Logical).is_some();
        info.device_id = id.into();
        info.seq = place.seq.into();
        info.inquiry = identity.inquiry;
        info.vpd_83 = identity.vpd_83;
        info.vpd_83_ext = identity.vpd_83;
        info.scsi_type = identity.inquiry[0] & 0x1f;
        info.connected_ports = 1;
        info.device_speed = PD_SPEED_3G;
        info.link_speed = PD_SPEED_3G;
        info.power_state = PD_ACTIVE;
        info.fw_state = firmware_state(&place).into();
        info.ddf_type = (DDF_SAS | if member { DDF_IN_VD } else { 0 }).into();
        info.path_count = 1;
        info.sas_address = [sas_address(&place, &identity).into(), 0.into(), 0.into(), 0.into()];
        info.raw_size = identity.sectors.into();
        info.non_coerced_size = identity.sectors.into();
        info.coerced_size = identity.sectors.into();
        info.enclosure_id = NO_ENCLOSURE.into();
        info.enclosure_index = 0xff;
        info.slot = place.id;
        info.media_type = media_type(&identity);
        // SAS.
        info.interface = 2;
        info.block_size = (identity.block_size as u16).into();
        Ok(Reply::Data(info.as_bytes().to_vec()))
    }

    /// LD_GET_LIST, with room for all that there can be.
    pub(super) async fn ld_list(&self, io: &Io) -> Vec<u8> {
        let look = self.looks(Kind::Logical);
        let mut bytes = vec![0; LIST_HEADER];
        let mut count = 0_u32;
        let driver = self.has_driver();
        for place in self.drives.all().values() {
            let mut identity = place.identify(io, Kind::Logical).await;
            if identity.is_none() && !driver {
                // Only what was asked before is known to be a CD drive.
                let own = place.identify(io, Kind::Physical).await;
                identity = own.filter(|_| place.bootable(driver).is_some());
            }
            let Some(identity) = identity else { continue };
            let mut entry = LdEntry::new_zeroed();
            entry.target_id = place.id;
            entry.seq = place.seq.into();
            entry.state = LD_OPTIMAL;
            entry.size = identity.sectors.into();
            bytes.extend_from_slice(entry.as_bytes());
            count += 1;
        }
        bytes.iter_mut().zip(count.to_le_bytes()).for_each(|(to, from)| *to = from);
        bytes.resize(LIST_HEADER + usize::from(info::MAX_LDS) * size_of::<LdEntry>(), 0);
        self.looked(&look);
        bytes
    }

    /// LD_LIST_QUERY: every logical drive is exposed to the host.
    pub(super) fn ld_list_query(&self, dcmd: &Dcmd) -> Result<Reply, Status> {
        if dcmd.byte(0) > opcode::LD_QUERY_MAX {
            return Err(Status::InvalidParameter);
        }
        let look = self.looks(Kind::Logical);
        let drives = self.drives.all();
        let ids = drives.values().filter(|place| place.nexus(Kind::Logical).is_some()).map(|place| place.id);
        let mut bytes = vec![0; TARGET_IDS];
        bytes.extend(ids);
        let count = bytes.len().saturating_sub(TARGET_IDS) as u32;
        let header = (bytes.len() as u32).to_le_bytes().into_iter().chain(count.to_le_bytes());
        bytes.iter_mut().zip(header).for_each(|(to, from)| *to = from);
        self.looked(&look);
        Ok(Reply::Data(bytes))
    }

    /// LD_GET_INFO.
    pub(super) async fn ld_info(&self, io: &Io, target: u16) -> Result<Reply, Status> {
        let drives = self.drives.all();
        let place = u8::try_from(target).ok().and_then(|id| drives.get(&id)).ok_or(Status::DeviceNotFound)?;
        let identity = place.identify(io, Kind::Logical).await.ok_or(Status::DeviceNotFound)?;
        // FreeBSD asks nothing else of a volume before it uses it.
        place.trust();
        let mut info = LdInfo::new_zeroed();
        info.config = self.ld_config(place, array_of(&drives, place.id), &identity);
        info.size = identity.sectors.into();
        info.vpd_83 = identity.vpd_83;
        Ok(Reply::Data(info.as_bytes().to_vec()))
    }

    /// How a logical drive is made up: RAID 0 of one disk, which is array `array_ref`.
    pub(super) fn ld_config(&self, place: &Place, array_ref: u16, identity: &Identity) -> LdConfig {
        let mut config = LdConfig::new_zeroed();
        config.properties = self.properties_of(place, identity);
        config.parameters.stripe_size = STRIP;
        config.parameters.drives = 1;
        config.parameters.span_depth = 1;
        config.parameters.state = LD_OPTIMAL;
        config.parameters.is_consistent = 1;
        if let Some(span) = config.spans.first_mut() {
            span.blocks = identity.sectors.into();
            span.array_ref = array_ref.into();
        }
        config
    }

    /// LD_GET_PROPERTIES.
    pub(super) async fn ld_properties(&self, io: &Io, target: u16) -> Result<LdProperties, Status> {
        let (place, identity) = self.volume(io, target).await?;
        Ok(self.properties_of(&place, &identity))
    }

    async fn volume(&self, io: &Io, target: u16) -> Result<(Arc<Place>, Identity), Status> {
        let place = self.drives.get(target).ok_or(Status::DeviceNotFound)?;
        let identity = place.identify(io, Kind::Logical).await.ok_or(Status::DeviceNotFound)?;
        Ok((place, identity))
    }

    fn properties_of(&self, place: &Place, identity: &Identity) -> LdProperties {
        let mut properties = LdProperties::new_zeroed();
        properties.target_id = place.id;
        properties.seq = place.seq.into();
        properties.name = lock(&self.settings).name(place.id, identity.naa());
        let (cache, disk_cache) = if self.personality.write_back {
            (LD_CACHE_WRITE_BACK | LD_CACHE_BAD_BBU | LD_CACHE_WRITES, DISK_CACHE_ENABLED)
        } else {
            (0, DISK_CACHE_DISABLED)
        };
        properties.default_cache_policy = cache;
        properties.current_cache_policy = cache;
        properties.disk_cache_policy = disk_cache;
        properties.access_policy = if identity.read_only { LD_READ_ONLY } else { 0 };
        properties
    }

    /// LD_SET_PROPERTIES: the name is the guest's to choose, what becomes of its data is the administrator's.
    pub(super) async fn set_ld_properties(&self, io: &Io, dcmd: &Dcmd) -> Result<Reply, Status> {
        let bytes: [u8; size_of::<LdProperties>()] = dcmd.input()?;
        let new: LdProperties = parse(&bytes)?;
        let (place, identity) = self.volume(io, dcmd.half(0)).await?;
        let now = self.properties_of(&place, &identity);
        let policies = |properties: &LdProperties| {
            [
                properties.default_cache_policy,
                properties.access_policy,
                properties.disk_cache_policy,
                properties.current_cache_policy,
                properties.no_background_init,
            ]
        };
        // Of a disk that has not said yet who it is nobody would know later whose name it was.
        if policies(&new) != policies(&now) || identity.block_size == 0 {
            return Err(Status::WrongState);
        }
        if new.name != now.name {
            self.set(|settings| settings.set_name(place.id, identity.naa(), new.name));
        }
        Ok(Reply::Done)
    }
}

/// `PdInfo::fw_state` of a disk.
fn firmware_state(place: &Place) -> u16 {
    if place.nexus(Kind::Logical).is_some() { PD_ONLINE } else { PD_SYSTEM }
}

/// `PdInfo::media_type` of a disk.
fn media_type(identity: &Identity) -> u8 {
    identity.solid_state.into()
}

/// The SAS address of a disk: its name where it has one.
fn sas_address(place: &Place, identity: &Identity) -> u64 {
    identity.naa().unwrap_or(place.sas_address)
}
