//! The PCI Express capability of a root complex integrated endpoint (PCIe 3.0, 7.8).

use super::PciError;
use super::config::{ConfigSpace, cap};

/// Capability version 2, Device/Port Type 9: root complex integrated endpoint, no slot, no link (7.8.2).
const CAPABILITIES: u16 = 9 << 4 | 2;
/// Device Capabilities: role-based error reporting (7.8.3).
const ROLE_BASED_ERRORS: u32 = 1 << 15;
/// Device Capabilities: Function Level Reset.
const FLR_CAPABLE: u32 = 1 << 28;
/// Device Control: Initiate Function Level Reset; reads zero (7.8.4).
pub(super) const INITIATE_FLR: u16 = 1 << 15;
/// Device Control at power-on: relaxed ordering, no snoop, read requests up to 512 bytes.
const CONTROL: u16 = 0x2810;
/// Device Control bits that are storage: error reporting, relaxed ordering, payload size,
/// extended tags, no snoop, read request size.
const CONTROL_WRITABLE: u16 = 0x79ff;
/// Device Capabilities 2 and Control 2: Completion Timeout Disable (7.8.15).
const TIMEOUT_DISABLE: u32 = 1 << 4;
/// Bytes after ID and next pointer, up to Slot Status 2.
const BODY: usize = 0x3c - 2;

/// Offset of Device Control within the capability.
pub(super) const DEVICE_CONTROL: u16 = 8;

/// Adds the capability; returns its offset.
pub(super) fn add(config: &mut ConfigSpace, offset: Option<u16>, flr: bool) -> Result<u16, PciError> {
    let at = match offset {
        Some(at) => config.capability_at(at, cap::PCI_EXPRESS, &[0; BODY])?,
        None => config.capability(cap::PCI_EXPRESS, &[0; BODY])?,
    };
    let capabilities = ROLE_BASED_ERRORS | if flr { FLR_CAPABLE } else { 0 };
    config.set(at + 2, &CAPABILITIES.to_le_bytes());
    config.set_u32(at + 4, capabilities);
    config.register(at + DEVICE_CONTROL, &CONTROL.to_le_bytes(), &CONTROL_WRITABLE.to_le_bytes());
    // Device Status: the four error bits clear by writing ones.
    config.clear_on_one(at + 10, &[0x0f]);
    config.set_u32(at + 0x24, TIMEOUT_DISABLE);
    config.allow(at + 0x28, &TIMEOUT_DISABLE.to_le_bytes());
    Ok(at)
}
