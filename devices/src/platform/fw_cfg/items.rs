//! What fw_cfg holds: items by key, and files, which are items with a name.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use thiserror::Error;

use super::{FwCfg, Make, Written};
use crate::mem::Dma;

/// Numeric keys that firmware knows; values are little-endian.
pub mod key {
    /// 4 bytes: "QEMU".
    pub const SIGNATURE: u16 = 0x00;
    /// u32: bit 0 the port interface, bit 1 DMA.
    pub const ID: u16 = 0x01;
    /// 16 bytes: the machine's UUID.
    pub const UUID: u16 = 0x02;
    /// u64: bytes of RAM.
    pub const RAM_SIZE: u16 = 0x03;
    /// u16: whether there is no display.
    pub const NO_GRAPHIC: u16 = 0x04;
    /// u16: processors present.
    pub const CPUS: u16 = 0x05;
    /// NUMA: u64 number of nodes, then affinities.
    pub const NUMA: u16 = 0x0d;
    /// u16: whether to offer a boot menu.
    pub const BOOT_MENU: u16 = 0x0e;
    /// u16: processors at most; in fact one more than the highest APIC ID.
    pub const MAX_CPUS: u16 = 0x0f;
    /// The directory of files, big-endian.
    pub const DIRECTORY: u16 = 0x19;
    /// Key of the first file.
    pub const FIRST_FILE: u16 = 0x20;
    /// u16: number of ACPI tables of the old kind.
    pub const OLD_ACPI: u16 = 0x8000;
    /// u16: number of SMBIOS entries of the old kind.
    pub const OLD_SMBIOS: u16 = 0x8001;
    /// u8: ISA IRQ 0 arrives at I/O APIC pin 2.
    pub const IRQ0_OVERRIDE: u16 = 0x8002;
    /// u32: number of memory map entries of the old kind.
    pub const OLD_E820: u16 = 0x8003;
    /// Set in a selector that writes; only DMA does that now.
    pub const WRITE_CHANNEL: u16 = 0x4000;
}

/// What [`key::ID`] tells: both interfaces.
const ID_PORTS_AND_DMA: u32 = 0b11;
/// Bytes of a directory entry: size, key, reserved, name.
const ENTRY_LEN: usize = 64;
const NAME_LEN: usize = 56;
/// Bytes of the longest file name; a NUL follows it.
pub const MAX_NAME: usize = NAME_LEN - 1;
/// Files fill the keys below the write channel bit.
const MAX_FILES: usize = (key::WRITE_CHANNEL - key::FIRST_FILE) as usize;

/// The bytes of an item.
#[derive(Clone)]
pub enum Content {
    /// Always the same.
    Fixed(Arc<[u8]>),
    /// Made anew whenever the guest selects the item: cut, or padded with zeroes, to `len` bytes, since the directory
    /// is read long before.
    Lazy {
        /// Bytes that the directory tells.
        len: usize,
        /// Makes them. Runs under the device's lock: it must not reach fw_cfg.
        make: Make,
    },
    /// The guest may write it by DMA. A system reset restores the first bytes.
    Writable {
        /// What it holds at first; its length stays.
        first: Arc<[u8]>,
        /// Told about each write.
        written: Written,
    },
}

impl Content {
    /// Bytes that never change.
    pub fn fixed(bytes: impl AsRef<[u8]>) -> Self {
        Self::Fixed(bytes.as_ref().into())
    }

    fn len(&self) -> usize {
        match self {
            Self::Fixed(bytes) | Self::Writable { first: bytes, .. } => bytes.len(),
            Self::Lazy { len, .. } => *len,
        }
    }
}

/// A file that fw_cfg cannot hold.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum FwCfgError {
    /// A name the directory has no room for.
    #[error("fw_cfg file name {0:?}: expected 1 to {MAX_NAME} bytes without NUL")]
    Name(String),
    /// Two files of one name.
    #[error("fw_cfg file {0:?} exists already")]
    Twice(String),
    /// No key is left, or a file is longer than the directory can say.
    #[error("fw_cfg file {0:?}: too large or one too many")]
    TooMuch(String),
}

/// Collects the items.
pub struct FwCfgBuilder {
    keys: Vec<(u16, Content)>,
    files: Vec<(String, Content)>,
}

impl Default for FwCfgBuilder {
    fn default() -> Self {
        Self::new()
    }
}

impl FwCfgBuilder {
    /// Nothing but the signature and the interface's ID.
    pub fn new() -> Self {
        let builder = Self { keys: Vec::new(), files: Vec::new() };
        builder.key(key::SIGNATURE, b"QEMU").key(key::ID, &ID_PORTS_AND_DMA.to_le_bytes())
    }

    /// Adds or replaces the item with this numeric key.
    #[must_use]
    pub fn key(mut self, key: u16, bytes: &[u8]) -> Self {
        self.keys.retain(|(other, _)| *other != key);
        self.keys.push((key, Content::fixed(bytes)));
        self
    }

    /// Adds a file.
    ///
    /// # Errors
    /// A bad or repeated name, or no room for it.
    pub fn file(&mut self, name: &str, content: Content) -> Result<(), FwCfgError> {
        let name = name.to_owned();
        if name.is_empty() || name.len() > MAX_NAME || name.contains('\0') {
            return Err(FwCfgError::Name(name));
        }
        if self.files.iter().any(|(other, _)| *other == name) {
            return Err(FwCfgError::Twice(name));
        }
        if self.files.len() >= MAX_FILES || u32::try_from(content.len()).is_err() {
            return Err(FwCfgError::TooMuch(name));
        }
        self.files.push((name, content));
        Ok(())
    }

    /// The device, which reaches guest memory through `dma`.
    pub fn build(mut self, dma: Dma) -> FwCfg {
        self.files.sort_by(|(a, _), (b, _)| a.cmp(b));
        let mut directory = Vec::with_capacity(4 + self.files.len() * ENTRY_LEN);
        directory.extend_from_slice(&(self.files.len() as u32).to_be_bytes());
        let keys = key::FIRST_FILE..;
        for (key, (name, content)) in keys.clone().zip(&self.files) {
            directory.extend_from_slice(&(content.len() as u32).to_be_bytes());
            directory.extend_from_slice(&key.to_be_bytes());
            directory.extend_from_slice(&[0; 2]);
            let end = directory.len() + NAME_LEN;
            directory.extend_from_slice(name.as_bytes());
            directory.resize(end, 0);
        }
        let this = self.key(key::DIRECTORY, &directory);
        let files = keys.zip(this.files.into_iter().map(|(_, content)| content));
        let mut items: Vec<_> =
            this.keys.into_iter().chain(files).map(|(key, content)| (key, Item::new(content))).collect();
        items.sort_by_key(|(key, _)| *key);
        FwCfg::new(items, dma)
    }
}

/// The bytes of a writable file now.
type Now = Arc<Mutex<Arc<[u8]>>>;

/// An item in the device.
pub(super) struct Item {
    content: Content,
    now: Option<Now>,
}

impl Item {
    fn new(content: Content) -> Self {
        let now = match &content {
            Content::Writable { first, .. } => Some(Arc::new(Mutex::new(first.clone()))),
            _ => None,
        };
        Self { content, now }
    }

    pub(super) fn len(&self) -> usize {
        self.content.len()
    }

    pub(super) fn reset(&self) {
        if let (Content::Writable { first, .. }, Some(now)) = (&self.content, &self.now) {
            *lock(now) = first.clone();
        }
    }

    /// The bytes for the time of one selection.
    pub(super) fn select(&self) -> Selected {
        match (&self.content, &self.now) {
            (Content::Fixed(bytes), _) => Selected { bytes: bytes.clone(), writable: None },
            (Content::Lazy { len, make }, _) => {
                let mut bytes = make();
                if bytes.len() > *len {
                    tracing::error!("a fw_cfg file of {} bytes does not fit into its {len}", bytes.len());
                }
                bytes.resize(*len, 0);
                Selected { bytes: bytes.into(), writable: None }
            }
            (Content::Writable { written, .. }, Some(now)) => {
                let bytes = lock(now).clone();
                Selected { bytes, writable: Some((now.clone(), written.clone())) }
            }
            (Content::Writable { first, .. }, None) => Selected { bytes: first.clone(), writable: None },
        }
    }
}

fn lock(now: &Mutex<Arc<[u8]>>) -> MutexGuard<'_, Arc<[u8]>> {
    now.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the selector points to; an unknown key is an empty item.
#[derive(Default)]
pub(super) struct Selected {
    bytes: Arc<[u8]>,
    writable: Option<(Now, Written)>,
}

impl Selected {
    /// The bytes from `offset` on.
    pub(super) fn tail(&self, offset: usize) -> &[u8] {
        self.bytes.get(offset..).unwrap_or_default()
    }

    /// Overwrites bytes from `offset` on; returns whether all of it could be.
    pub(super) fn write(&mut self, offset: usize, data: &[u8]) -> bool {
        let Some((now, written)) = &self.writable else { return false };
        let mut bytes = self.bytes.to_vec();
        let end = offset.checked_add(data.len());
        let Some(place) = end.and_then(|end| bytes.get_mut(offset..end)) else { return false };
        place.copy_from_slice(data);
        self.bytes = bytes.into();
        *lock(now) = self.bytes.clone();
        written(&self.bytes);
        true
    }
}
