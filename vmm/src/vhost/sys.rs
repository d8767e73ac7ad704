//! The system calls that the crate `vhost` has no function for: those of vhost-scsi (linux/vhost.h, linux/vhost_types.h).

use std::fs::File;
use std::io;

use vhost::vhost_kern::vhost_binding::{
    VHOST_SCSI_ABI_VERSION, VHOST_SCSI_CLEAR_ENDPOINT, VHOST_SCSI_GET_ABI_VERSION, VHOST_SCSI_SET_ENDPOINT,
    VHOST_SCSI_SET_EVENTS_MISSED, VHOST_SET_VRING_ADDR, vhost_scsi_target, vhost_vring_addr,
};
use vmm_sys_util::ioctl::{ioctl_with_mut_ref, ioctl_with_ref};

/// The version of the interface that is spoken here.
pub(super) const ABI_VERSION: i32 = VHOST_SCSI_ABI_VERSION as i32;

/// What a machine that runs does with the device: VHOST_SET_FEATURES, VHOST_SET_VRING_NUM, _ADDR, _BASE, _KICK and _CALL,
/// VHOST_SCSI_SET_ENDPOINT and _CLEAR_ENDPOINT, VHOST_SCSI_SET_EVENTS_MISSED.
pub(crate) const COMMANDS: &[u32] = &[
    0x4008_af00,
    0x4008_af10,
    0x4028_af11,
    0x4008_af12,
    0x4008_af20,
    0x4008_af21,
    0x40e8_af40,
    0x40e8_af41,
    0x4004_af43,
];

fn done(result: i32) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// VHOST_SCSI_GET_ABI_VERSION.
pub(super) fn abi_version(device: &File) -> io::Result<i32> {
    let mut version = 0_i32;
    // SAFETY: the kernel writes an int, which is there; the result is checked.
    #[allow(unsafe_code)]
    let result = unsafe { ioctl_with_mut_ref(device, VHOST_SCSI_GET_ABI_VERSION(), &mut version) };
    done(result).map(|()| version)
}

/// What the kernel leaves out of a target's name (vhost_scsi_make_tport, drivers/vhost/scsi.c).
const FC: &str = "fc.";

/// The kernel looks for portal groups by name alone, and takes all of them that are free.
fn target(wwpn: &str) -> vhost_scsi_target {
    let wwpn = wwpn.strip_prefix(FC).unwrap_or(wwpn);
    let mut target = vhost_scsi_target { abi_version: ABI_VERSION, ..Default::default() };
    // The last byte stays zero, for it is a C string.
    let room = target.vhost_wwpn.len() - 1;
    for (to, from) in target.vhost_wwpn.iter_mut().zip(wwpn.bytes().take(room)) {
        *to = from.cast_signed();
    }
    target
}

/// VHOST_SCSI_SET_ENDPOINT: joins the queues that are set up with the target.
pub(super) fn set_endpoint(device: &File, wwpn: &str) -> io::Result<()> {
    let target = target(wwpn);
    // SAFETY: the kernel reads the structure, which lives until then; the result is checked.
    #[allow(unsafe_code)]
    done(unsafe { ioctl_with_ref(device, VHOST_SCSI_SET_ENDPOINT(), &target) })
}

/// VHOST_SCSI_CLEAR_ENDPOINT: parts them, and waits until no command is in flight.
pub(super) fn clear_endpoint(device: &File, wwpn: &str) -> io::Result<()> {
    let target = target(wwpn);
    // SAFETY: the kernel reads the structure, which lives until then; the result is checked.
    #[allow(unsafe_code)]
    done(unsafe { ioctl_with_ref(device, VHOST_SCSI_CLEAR_ENDPOINT(), &target) })
}

/// VHOST_SCSI_SET_EVENTS_MISSED: none was missed.
pub(super) fn forget_events(device: &File) -> io::Result<()> {
    let missed = 0_u32;
    // SAFETY: the kernel reads an unsigned int, which is there; the result is checked.
    #[allow(unsafe_code)]
    done(unsafe { ioctl_with_ref(device, VHOST_SCSI_SET_EVENTS_MISSED(), &missed) })
}

/// VHOST_SET_VRING_ADDR without addresses: the kernel has this ring no more. Only while the device has no target, for then it looks at no address.
pub(super) fn forget_ring(device: &File, index: usize) -> io::Result<()> {
    let nowhere = vhost_vring_addr { index: index as u32, ..Default::default() };
    // SAFETY: the kernel reads the structure, which lives until then; the result is checked.
    #[allow(unsafe_code)]
    done(unsafe { ioctl_with_ref(device, VHOST_SET_VRING_ADDR(), &nowhere) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use vhost::vhost_kern::vhost_binding as binding;

    #[test]
    fn the_commands_are_those_of_the_bindings() {
        let numbers = [
            binding::VHOST_SET_FEATURES(),
            binding::VHOST_SET_VRING_NUM(),
            binding::VHOST_SET_VRING_ADDR(),
            binding::VHOST_SET_VRING_BASE(),
            binding::VHOST_SET_VRING_KICK(),
            binding::VHOST_SET_VRING_CALL(),
            binding::VHOST_SCSI_SET_ENDPOINT(),
            binding::VHOST_SCSI_CLEAR_ENDPOINT(),
            binding::VHOST_SCSI_SET_EVENTS_MISSED(),
        ];
        let numbers: Vec<u32> = numbers.iter().map(|number| *number as u32).collect();
        assert_eq!(COMMANDS, numbers, "{numbers:x?}");
    }

    #[test]
    fn a_target_is_a_c_string() {
        let bytes = |wwpn: &str| target(wwpn).vhost_wwpn.map(|byte| byte as u8);
        assert!(bytes("naa.5001405000000001").starts_with(b"naa.5001405000000001\0"));
        assert!(bytes("iqn.2003-01.org.linux-iscsi:x").starts_with(b"iqn.2003-01.org.linux-iscsi:x\0"));
        assert!(
            bytes("fc.2100000000000001").starts_with(b"2100000000000001\0"),
            "the kernel keeps it without"
        );
        let long = bytes(&"x".repeat(300));
        assert_eq!((long[222], long[223]), (b'x', 0));
    }
}
