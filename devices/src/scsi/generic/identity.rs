//! Who a device of the host is: by what it is known again when it was gone.

use super::sysfs::Device;

/// Who a device is, as the host's kernel has heard it from the device when it found it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Host, channel, target and LUN, as the kernel writes them. They change, the rest does not.
    pub address: String,
    /// Peripheral device type (SPC-5, 6.7.2).
    pub device_type: u8,
    /// Names of the logical unit: in VPD page 83h, and what the kernel makes of it (`wwid`).
    pub names: Vec<String>,
    /// T10 VENDOR IDENTIFICATION.
    pub vendor: String,
    /// PRODUCT IDENTIFICATION.
    pub product: String,
    /// PRODUCT SERIAL NUMBER (VPD page 80h); empty without.
    pub serial: String,
}

impl Identity {
    pub(super) fn of(device: &Device) -> Self {
        let text = |name| device.text(name).unwrap_or_default();
        Self {
            address: device.address.clone(),
            device_type: text("type").parse().unwrap_or(u8::MAX),
            names: device.names(),
            vendor: text("vendor"),
            product: text("model"),
            serial: device.serial().unwrap_or_default(),
        }
    }

    /// Whether the other is the same device. A name alone does not do: devices that lie about theirs lie alike. One without a name
    /// is the same only where it was.
    pub fn is(&self, other: &Self) -> bool {
        let serials = [&self.serial, &other.serial];
        let said = serials.iter().all(|serial| !serial.is_empty());
        let alike = self.device_type == other.device_type
            && self.vendor == other.vendor
            && self.product == other.product;
        let named = match (self.names.is_empty(), other.names.is_empty()) {
            (true, true) => self.address == other.address && self.serial == other.serial,
            (false, false) => self.names.iter().any(|name| other.names.contains(name)),
            _ => false,
        };
        alike && named && (!said || self.serial == other.serial)
    }
}

#[cfg(test)]
mod tests {
    use super::super::sysfs::tests::Tree;
    use super::*;

    fn named(names: &[&str]) -> Identity {
        Identity {
            address: "2:0:0:5".into(),
            device_type: 0,
            names: names.iter().map(|name| (*name).to_owned()).collect(),
            vendor: "LIO-ORG".into(),
            product: "d0".into(),
            serial: "17".into(),
        }
    }

    #[test]
    fn a_device_with_a_name_is_the_same_wherever_it_is() {
        let was = named(&["naa1", "eui1"]);
        let is = |change: &dyn Fn(&mut Identity)| {
            let mut other = named(&["eui1"]);
            other.address = "7:0:0:1".into();
            change(&mut other);
            assert_eq!(was.is(&other), other.is(&was));
            was.is(&other)
        };
        assert!(is(&|_| {}));
        assert!(is(&|other| other.serial.clear()), "one that does not say it now");
        assert!(!is(&|other| other.names = vec!["naa2".into()]));
        assert!(!is(&|other| other.names.clear()));
        assert!(!is(&|other| other.device_type = 1));
        assert!(!is(&|other| other.serial = "18".into()));
        assert!(!is(&|other| other.product = "d1".into()));
        assert!(!is(&|other| other.vendor = "FAKE".into()));
    }

    #[test]
    fn a_device_without_a_name_is_the_same_only_where_it_was() {
        let was = named(&[]);
        let is = |change: &dyn Fn(&mut Identity)| {
            let mut other = was.clone();
            change(&mut other);
            was.is(&other)
        };
        assert!(is(&|_| {}));
        assert!(!is(&|other| other.address = "2:0:0:6".into()));
        assert!(!is(&|other| other.serial.clear()));
        assert!(!is(&|other| other.names = vec!["naa1".into()]));
    }

    #[test]
    fn the_kernel_has_it_from_the_device() {
        let tree = Tree::new();
        let disk = "devices/pci0/host2/rport-2:0-2/target2:0:0/2:0:0:5";
        tree.file(&format!("{disk}/type"), "0\n");
        tree.bytes(&format!("{disk}/vpd_pg80"), b"\0\x80\0\x06 17\0\0 ...");
        let of = |address: &str| {
            let all = tree.sysfs().all();
            Identity::of(all.iter().find(|device| device.address == address).unwrap())
        };
        let wanted = Identity { names: vec!["600140512345678900000000000abcde".into()], ..named(&[]) };
        assert_eq!(of("2:0:0:5"), wanted);
        let tape = of("3:0:0:0");
        assert_eq!((tape.device_type, &*tape.serial, &*tape.vendor), (u8::MAX, "", ""), "nothing is told");
        assert_eq!(tape.names, ["5001020304050607"]);
        // What is no name: all zeros, and a page that ends before it says so.
        tree.file(&format!("{disk}/wwid"), "naa.0000000000000000\n");
        tree.bytes(&format!("{disk}/vpd_pg80"), b"\0\x80\0\x40 17");
        assert_eq!(of("2:0:0:5"), Identity { names: Vec::new(), ..named(&[]) });
        tree.bytes(&format!("{disk}/vpd_pg80"), b"\0\x80");
        assert_eq!(of("2:0:0:5").serial, "");
    }
}
