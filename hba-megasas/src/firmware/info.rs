//! The controller: information and properties.

use devices::iothread::Io;
use zerocopy::{FromZeros, IntoBytes};

use super::dcmd::{Dcmd, Reply, parse};
use super::log::{Event, Subject};
use super::{Firmware, Kind, lock, put_text};
use crate::limits::STRIP;
use crate::model::Model;
use crate::spec::Status;
use crate::spec::controller::{
    ControllerInfo, DEVICE_SAS_3G, DISABLE_OCR, Defaults, ENABLE_JBOD, HOST_PCIE, HOST_PCIX, HW_PRESENT,
    PD_MIX, Properties,
};
use crate::spec::event::{class, code, locale};

/// Logical drives at most: one byte of a frame names them, but drivers of this generation know 64.
pub(crate) const MAX_LDS: u8 = 64;
/// Memory of the controller in MiB; 0 would have Linux take it for one without.
const MEMORY_MIB: u16 = 512;
/// "SSIS", which says that the firmware image is whole.
const IMAGE_CHECK_WORD: u32 = 0x5353_4953;
/// Share of the time for work in the background, in per cent.
const BACKGROUND_RATE: u8 = 30;
/// Seconds after which the cache is flushed.
const FLUSH_TIME: u8 = 4;
/// Ports of the board.
const PORTS: u8 = 8;
/// Switches of the properties that follow from the machine's configuration.
const HOSTS_SWITCHES: u32 = ENABLE_JBOD | DISABLE_OCR;

/// Properties as they leave the factory: 16 completions or 50 ms, 30 per cent of the time for background work.
pub(super) fn default_properties() -> Properties {
    let mut properties = Properties::new_zeroed();
    properties.predictive_failure_poll = 300.into();
    properties.intr_throttle_count = 16.into();
    properties.intr_throttle_timeout = 50.into();
    let [rate, flush] = [BACKGROUND_RATE, FLUSH_TIME];
    let rates = [rate, rate, rate, rate, rate, flush];
    properties.rates.iter_mut().zip(rates).for_each(|(to, from)| *to = from);
    properties
}

impl Firmware {
    /// CTRL_GET_INFO. What this generation does not have is zero, which is what drivers of later ones look for.
    pub(super) async fn controller_info(&self, _io: &Io) -> Vec<u8> {
        let mut info = ControllerInfo::new_zeroed();
        self.describe_board(&mut info);
        let limits = self.personality.limits;
        info.max_arms = 32;
        info.max_spans = 8;
        info.max_arrays = MAX_LDS;
        info.max_lds = MAX_LDS;
        info.max_cmds = limits.model().max_commands().into();
        info.max_sge = u16::from(limits.sges()).into();
        info.max_request = limits.max_request().into();
        info.max_strips_per_io = limits.strips().into();
        // RAID 0.
        info.raid_levels = 1.into();
        info.stripe_min = STRIP;
        info.stripe_max = STRIP;
        info.pd_mix = PD_MIX.into();
        let drives = self.drives.all();
        // OpenBSD and NetBSD take it for the number of targets to look at, from 0: one without a volume says so itself.
        let last = drives.values().rfind(|place| place.nexus(Kind::Logical).is_some());
        info.lds_present = last.map_or(0, |place| u16::from(place.id) + 1).into();
        info.pds_present = (drives.len() as u16).into();
        info.disks_present = (drives.len() as u16).into();
        info.properties = self.properties();
        info.as_bytes().to_vec()
    }

    fn describe_board(&self, info: &mut ControllerInfo) {
        let personality = self.personality();
        let model = personality.limits.model();
        info.vendor = 0x1000.into();
        info.device = model.device_id().into();
        info.sub_vendor = 0x1000.into();
        info.sub_device = model.subsystem_id().into();
        info.host_interface.kind = if model == Model::Gen2 { HOST_PCIE } else { HOST_PCIX };
        info.host_interface.port_count = 1;
        info.device_interface.kind = DEVICE_SAS_3G;
        info.device_interface.port_count = PORTS;
        for (port, address) in info.device_interface.port_address.iter_mut().zip(0..) {
            *port = personality.sas_address.wrapping_add(address).into();
        }
        info.image_check_word = IMAGE_CHECK_WORD.into();
        info.component_count = 1.into();
        if let Some(component) = info.components.first_mut() {
            put_text(&mut component.name, "APP");
            put_text(&mut component.version, model.firmware());
        }
        put_text(&mut info.product_name, model.product());
        put_text(&mut info.serial, &personality.serial);
        put_text(&mut info.package_version, model.package());
        info.hw_present = HW_PRESENT.into();
        info.fw_time = self.clock.seconds().into();
        info.nvram_kib = 32.into();
        info.memory_mib = MEMORY_MIB.into();
        info.flash_mib = 8.into();
    }

    /// MFC_DEFAULTS_GET.
    pub(super) fn factory_defaults(&self) -> Defaults {
        let personality = self.personality();
        let mut defaults = Defaults::new_zeroed();
        defaults.sas_address = personality.sas_address.into();
        defaults.background_rate = BACKGROUND_RATE;
        defaults.stripe_size = STRIP;
        defaults.flush_time = FLUSH_TIME;
        defaults.write_back = personality.write_back.into();
        defaults.cache_when_bbu_bad = personality.write_back.into();
        // There is none.
        defaults.alarm_disable = 1;
        defaults
    }

    /// The properties now.
    pub(super) fn properties(&self) -> Properties {
        let mut properties = lock(&self.settings).properties;
        let jbod = self.drives.all().values().any(|place| place.nexus(Kind::Logical).is_none());
        let on_off = properties.on_off.get() & !HOSTS_SWITCHES;
        properties.on_off = (on_off | if jbod { ENABLE_JBOD } else { 0 }).into();
        // Snap dump and the combined device list are of later generations.
        properties.on_off_2 = 0.into();
        properties
    }

    /// CTRL_SET_PROPERTIES. What does not follow from it is refused.
    pub(super) fn set_properties(&self, dcmd: &Dcmd) -> Result<Reply, Status> {
        let bytes: [u8; size_of::<Properties>()] = dcmd.input()?;
        let new: Properties = parse(&bytes)?;
        let switched = new.on_off.get() ^ self.properties().on_off.get();
        if switched & HOSTS_SWITCHES != 0 || new.on_off_2.get() != 0 {
            return Err(Status::WrongState);
        }
        Ok(self.replace_properties(new))
    }

    /// FACTORY_DEFAULTS. Volumes and their names stay.
    pub(super) fn set_factory_defaults(&self) -> Reply {
        self.replace_properties(default_properties())
    }

    /// MFC_DEFAULTS_SET: the factory was the administrator.
    pub(super) fn set_mfc_defaults(&self, dcmd: &Dcmd) -> Result<Reply, Status> {
        let bytes: [u8; size_of::<Defaults>()] = dcmd.input()?;
        if bytes == self.factory_defaults().as_bytes() { Ok(Reply::Done) } else { Err(Status::WrongState) }
    }

    fn replace_properties(&self, new: Properties) -> Reply {
        self.set(|settings| {
            let seq = settings.properties.seq.get().wrapping_add(1);
            settings.properties = Properties { seq: seq.into(), ..new };
        });
        let event = Event {
            code: code::PROPERTIES_CHANGED,
            locale: locale::CTRL,
            class: class::INFO,
            subject: Subject::None,
        };
        self.report(event, "Controller properties changed");
        Reply::Done
    }
}
