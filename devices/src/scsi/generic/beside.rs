//! For the unit that reads and writes the blocks of a disk in another way, and asks this one for all else.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::host::Direction;
use super::link::Link;
use super::node::{Node, failed, find, look};
use super::route::Part;
use super::status::{self, Verdict};
use super::sysfs::{Driver, Sysfs};
use super::table::Class;
use super::{Allow, Generic, GenericError, GenericOptions, Place, filter, kind};
use crate::iothread::Io;
use crate::mem::SgList;
use crate::scsi::outcome::Outcome;
use crate::scsi::sense::{NO_ADDITIONAL_SENSE, SenseData, SenseKey};
use crate::scsi::unit::Context;
use crate::scsi::{Cdb, DataBuffers, Sense, Status};
use crate::storage::{
    Action, BlockError, BlockErrorKind, CacheMode, Image, OpenError, RawImage, RawOptions, Sharing,
};

/// Unit attention conditions that a device may have at once before its cache is written.
const ATTENTIONS: usize = 8;

impl Generic {
    /// As [`Generic::open`], of what has a block node; with the path of that, and its number.
    pub(in crate::scsi) fn open_block(
        options: &GenericOptions,
    ) -> Result<(Self, PathBuf, u64), GenericError> {
        let sysfs = Sysfs::default();
        let path = block_path(&sysfs, &options.place)?;
        let options = GenericOptions { place: Place::Path(path.clone()), ..options.clone() };
        let (node, mut config) = Node::open(&sysfs, &options)?;
        if let Some(wanted) = &mut config.wanted {
            wanted.parts.push(Part::Ring);
        }
        let found = node.routes.block().map(File::metadata).transpose().map_err(|e| failed(&path, e))?;
        Ok((Self::new(node.into_host(), config)?, path, found.map_or(0, |found| found.rdev())))
    }

    /// The blocks of the device that is there now are read and written by `image`, until it goes.
    pub(in crate::scsi) fn set_blocks(&self, image: Arc<Image>) {
        // There is none before.
        self.plug.peek(|link| link.set_blocks(image));
    }

    /// The blocks of what is there now; `None` while they are only reached by commands, as of a device that is back, or that may be another
    /// one: the initiator hears of that first, before anything is read or written there.
    pub(in crate::scsi) fn blocks(&self) -> Option<Blocks> {
        let link = self.plug.link();
        let is_known = !link.is_untold() && !link.is_doubted();
        (link.blocks().is_some() && is_known).then_some(Blocks(link))
    }

    /// Whether its medium may become another one.
    pub(in crate::scsi) fn is_removable(&self) -> bool {
        self.plug.peek(Link::is_removable)
    }

    /// Whether the guest may write.
    pub(in crate::scsi) fn may_write(&self) -> bool {
        self.allow != Allow::ReadOnly
    }

    /// Whether the kernel said last that there is no such device.
    pub(in crate::scsi) fn is_gone(&self) -> bool {
        self.plug.peek(Link::is_gone)
    }

    /// Whether a command does more than to read and to ask.
    pub(in crate::scsi) fn changes(&self, cdb: &Cdb) -> bool {
        filter::class(self.kind, &kind::trim(cdb)) != Class::Read
    }

    /// Carries out a command that was begun in another way at what had the number `begun` then. If something else is there now, it is
    /// not for that: as power on does (SAM-6, 6.3.1), its coming has aborted what was before.
    pub(in crate::scsi) async fn execute_again(
        &self,
        begun: u64,
        context: Context<'_>,
        cdb: &Cdb,
        data: &mut DataBuffers,
    ) -> Outcome {
        let link = self.plug.link();
        // What is not told yet is not sent to either: the initiator hears of it first.
        if link.number() != begun && !link.is_untold() {
            return Err(SenseData::new(SenseKey::AbortedCommand, NO_ADDITIONAL_SENSE).into());
        }
        self.execute_by(link, context, cdb, data, true).await
    }

    /// Has the device write what is in its cache. One that has no command for that, or does not write back, has nothing there.
    pub(in crate::scsi) async fn flush(&self, io: &Io) -> Result<(), BlockError> {
        // SYNCHRONIZE CACHE(10) of all blocks: that of 16 bytes takes CAP_SYS_RAWIO.
        let cdb = Cdb::new(&[0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        let mut said = String::new();
        let link = self.plug.link();
        for _ in 0..ATTENTIONS {
            let command = self.command(cdb, Direction::None, SgList::empty());
            let verdict = self.hand_over(io, &link, command, None).await;
            match &verdict {
                verdict if verdict.is_good() => return Ok(()),
                Verdict::Device { status: Status::CheckCondition, sense: Some(sense), .. } => {
                    let (key, asc, ascq) = codes(sense);
                    // No such command.
                    if (key, asc) == (SenseKey::IllegalRequest as u8, 0x20) {
                        return Ok(());
                    }
                    said = format!("sense {key:x}h, {asc:02x}h, {ascq:02x}h");
                    // Whatever it has to tell, it has not begun.
                    if key != SenseKey::UnitAttention as u8 {
                        break;
                    }
                }
                Verdict::Device { status, .. } => {
                    said = format!("status {:02x}h", *status as u8);
                    break;
                }
                Verdict::Fault(fault) => {
                    said = format!("{fault:?}");
                    break;
                }
                gone if *gone == status::gone() => {
                    said = "the host has no such device any more".into();
                    break;
                }
                Verdict::Failed(_) => {
                    said = "the kernel has not sent it, or has given up on it".into();
                    break;
                }
            }
        }
        if !link.writes_back() {
            return Ok(());
        }
        let action = Action::Flush;
        let context = format!("{action} \"{}\" failed: {said}", self.name);
        Err(BlockError::new(BlockErrorKind::WriteFailed, context))
    }
}

/// Blocks of a device that are read and written in another way than by commands. Who has this last does not close the device: that may
/// take as long as a command.
pub(in crate::scsi) struct Blocks(Arc<Link>);

impl Blocks {
    /// Where they are.
    pub(in crate::scsi) fn image(&self) -> Option<&Image> {
        self.0.blocks()
    }

    /// The number of the device at this unit.
    pub(in crate::scsi) fn number(&self) -> u64 {
        self.0.number()
    }

    /// Bytes of its logical block, as the kernel said when it was opened, or the device later.
    pub(in crate::scsi) fn block(&self) -> Option<u32> {
        self.0.block()
    }
}

/// Opens the blocks of a disk that the unit, or the process, has taken already. A medium that is write protected is opened for reading, as
/// the device was.
///
/// # Errors
/// It cannot be used with direct I/O, another virtual machine has it, or it is not the one with this number any more.
pub(in crate::scsi) fn open_blocks(
    path: &Path,
    number: u64,
    options: &GenericOptions,
) -> Result<RawImage, GenericError> {
    let open = |read_only| {
        RawImage::open_claimed(&RawOptions {
            path: path.into(),
            read_only,
            cache: CacheMode::None,
            // The node that commands go by is locked for both.
            sharing: Sharing::Unlocked,
        })
    };
    let read_only = options.allow == Allow::ReadOnly;
    let protected = |error: &OpenError| {
        error.source.as_ref().is_some_and(|error| error.raw_os_error() == Some(libc::EROFS))
    };
    let opened = match open(read_only) {
        Err(error) if !read_only && protected(&error) => open(true),
        opened => opened,
    };
    let image = opened.map_err(|error| GenericError::Image { message: shown(&error) })?;
    if image.device().is_ok_and(|found| found == number) {
        return Ok(image);
    }
    let message = format!("{}: another device came to its name meanwhile; try again", path.display());
    Err(GenericError::Image { message })
}

/// The blocks of a disk as its unit uses them: through memory of the process, if they shall `bounce`. What becomes of errors only the unit
/// knows.
pub(in crate::scsi) fn for_unit(image: RawImage, bounce: bool) -> Arc<Image> {
    let image = Image::Raw(image);
    Arc::new(if bounce { image.private().quiet() } else { image })
}

/// A message with its cause.
pub(super) fn shown(error: &OpenError) -> String {
    let cause = error.source.as_ref().map(|cause| format!(": {cause}")).unwrap_or_default();
    format!("{error}{cause}")
}

/// Another device in the place of one, or none.
#[cfg(test)]
type Next = Option<Arc<dyn super::Host>>;

#[cfg(test)]
impl Generic {
    /// What has the unit send nothing for a while.
    pub(in crate::scsi) fn doubter(&self) -> impl Fn(bool) + use<> {
        let plug = Arc::downgrade(&self.plug);
        let wanted = super::Wanted {
            identity: super::Identity {
                address: String::new(),
                device_type: 0,
                names: Vec::new(),
                vendor: String::new(),
                product: String::new(),
                serial: String::new(),
            },
            driver: Driver::Block,
            parts: Vec::new(),
            allow: self.allow,
            shared: false,
            directory: PathBuf::new(),
            number: 0,
        };
        move |doubted| {
            if let Some(plug) = plug.upgrade() {
                let returning = super::Returning::new(wanted.clone(), &plug);
                if doubted { returning.doubted() } else { returning.trusted() }
            }
        }
    }

    /// What puts another device in the place of this one, or none, when the unit is at work.
    pub(in crate::scsi) fn successor(
        &self,
    ) -> impl Fn(Next, Option<Arc<Image>>, &super::GenericConfig) + use<> {
        let plug = Arc::downgrade(&self.plug);
        move |host, blocks, config| {
            if let Some(plug) = plug.upgrade() {
                assert!(plug.put_with(host, blocks, config).is_ok());
            }
        }
    }
}

/// The path of a block node; which one to take, where it is another of its device.
fn block_path(sysfs: &Sysfs, place: &Place) -> Result<PathBuf, GenericError> {
    let path = find(sysfs, place)?;
    let (what, device) = match look(sysfs, &path)? {
        (_, Driver::Block, _) => return Ok(path),
        (device, Driver::Sg, _) => ("a node of sg", device),
        (device, Driver::Bsg, _) => ("a node of bsg", device),
    };
    let node = sysfs.block_node(&device);
    let other = node.map(|node| format!("take {}, or ", node.display())).unwrap_or_default();
    Err(GenericError::NoBlock { path: path.display().to_string(), what: what.into(), other })
}

/// Sense key, ASC and ASCQ of sense data in either format (SPC-5, 4.4.2 and 4.4.3).
pub(super) fn codes(sense: &Sense) -> (u8, u8, u8) {
    const DESCRIPTOR: u8 = 0x72;
    let byte = |at: usize| sense.as_bytes().get(at).copied().unwrap_or(0);
    match byte(0) & 0x7f {
        DESCRIPTOR.. => (byte(1) & 0x0f, byte(2), byte(3)),
        _ => (byte(2) & 0x0f, byte(12), byte(13)),
    }
}

#[cfg(test)]
mod tests {
    use super::super::sysfs::tests::Tree;
    use super::*;

    /// The tree takes /dev/null for a node of sg.
    #[test]
    fn blocks_go_by_block_nodes() {
        let tree = Tree::new();
        let disk = "devices/pci0/host9/target9:0:0/9:0:0:0";
        tree.node(&format!("{disk}/scsi_generic/sg9"), "char", "1:3");
        let said = || block_path(&tree.sysfs(), &Place::Path("/dev/null".into())).unwrap_err().to_string();
        let start = "/dev/null is a node of sg, and type = \"block\" takes disks, by their block nodes; ";
        assert_eq!(said(), format!("{start}set type = \"generic\""));
        tree.node(&format!("{disk}/block/sdz"), "block", "65:144");
        assert_eq!(said(), format!("{start}take /dev/sdz, or set type = \"generic\""));
        let said = block_path(&tree.sysfs(), &Place::Path("/dev/zero".into())).unwrap_err().to_string();
        assert!(said.starts_with("/dev/zero is no SCSI device"), "{said}");
    }

    #[test]
    fn sense_data_has_two_formats() {
        let of = |bytes: &[u8]| codes(&Sense::from_bytes(bytes));
        assert_eq!(of(&[0xf0, 0, 0x65, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x20, 1]), (5, 0x20, 1));
        assert_eq!(of(&[0x72, 6, 0x29, 3, 0, 0, 0, 0]), (6, 0x29, 3));
        assert_eq!(of(&[0x70]), (0, 0, 0));
    }
}
