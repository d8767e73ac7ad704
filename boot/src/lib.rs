//! What firmware would have done, as functions over guest RAM.
//!
//! ```text
//!   linux   kernel + initrd + command line into RAM  ──> Entry: what the boot vCPU's registers hold
//!     |  \
//!     |   e820      the memory map (zero page, PVH, fw_cfg etc/e820)
//!   acpi            tables as blobs with fixups: linked in process, or by firmware's table loader
//!   smbios |        identity, processors, memory: in the BIOS area, or by fw_cfg
//!   firmware        an image of SeaBIOS or OVMF: the top of 4 GiB and the BIOS area
//!       \  |
//!       layout      every fixed guest physical address
//! ```
//!
//! Nothing here knows KVM and nothing here runs after the guest has started. Direct boot calls
//! [`linux::load`] once; a firmware boot uses [`acpi`], [`smbios`] and [`e820`] through fw_cfg.
//!
//! Documents cited: "boot protocol" is Documentation/arch/x86/boot.rst of Linux, "zero page" is
//! zero-page.rst beside it, "PVH" is Xen's docs/misc/pvh.pandoc with
//! xen/include/public/arch-x86/hvm/start_info.h, "ACPI" is the ACPI Specification 6.4.

pub mod acpi;
pub mod cpu;
pub mod e820;
pub mod firmware;
pub mod layout;
pub mod linux;
pub mod smbios;
#[cfg(any(test, feature = "testing"))]
pub mod testing;

pub use cpu::{CpuState, DescriptorTable, Entry, EntryKind, Segment};
pub use layout::{AddrRange, RamLayout};
