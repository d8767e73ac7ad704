//! Cache modes, with the meaning they have in QEMU.

use std::fmt;
use std::str::FromStr;

/// How the host caches an image.
///
/// | mode         | host page cache | flushes of the guest | a completed write |
/// |--------------|-----------------|----------------------|-------------------|
/// | none         | no              | honoured             | may be in the device's cache |
/// | writeback    | yes             | honoured             | may be in the page cache |
/// | writethrough | yes             | not needed           | is stable |
/// | directsync   | no              | not needed           | is stable |
/// | unsafe       | yes             | ignored              | may be lost at any time |
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CacheMode {
    /// Direct I/O; the guest flushes.
    #[default]
    None,
    /// Page cache; the guest flushes.
    Writeback,
    /// Page cache for reads; every write is stable.
    Writethrough,
    /// Direct I/O; every write is stable.
    Directsync,
    /// Page cache; flushes and forced writes are ignored. For throw-away machines.
    Unsafe,
}

impl CacheMode {
    /// All modes, in the order of the table.
    pub const ALL: [Self; 5] =
        [Self::None, Self::Writeback, Self::Writethrough, Self::Directsync, Self::Unsafe];

    /// The name in configurations.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Writeback => "writeback",
            Self::Writethrough => "writethrough",
            Self::Directsync => "directsync",
            Self::Unsafe => "unsafe",
        }
    }

    /// Whether the page cache is bypassed (O_DIRECT).
    pub fn is_direct(self) -> bool {
        matches!(self, Self::None | Self::Directsync)
    }

    /// Whether every write is stable when it completes.
    pub fn is_stable(self) -> bool {
        matches!(self, Self::Writethrough | Self::Directsync)
    }
}

impl fmt::Display for CacheMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for CacheMode {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|mode| mode.name() == name).ok_or_else(|| {
            format!("\"{name}\" is no cache mode; use none, writeback, writethrough, directsync or unsafe")
        })
    }
}
