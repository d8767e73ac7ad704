//! What the controller has its disks say of themselves.

use devices::iothread::Io;
use devices::scsi::{HostDevice, Nexus, Status};

use super::drives::ask;

/// What a disk says of itself.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    /// Standard INQUIRY data, filled with zeros.
    pub(crate) inquiry: [u8; 96],
    /// Device identification VPD page, with as many designators as there is room for.
    pub(crate) vpd_83: [u8; 64],
    /// Logical block length in bytes.
    pub(crate) block_size: u32,
    /// Size in units of 512 bytes.
    pub(crate) sectors: u64,
    /// The medium does not rotate.
    pub(crate) solid_state: bool,
    /// It cannot be written.
    pub(crate) read_only: bool,
}

/// Peripheral device type: CD or DVD (SPC-5, 6.7.2).
const CD_DVD: u8 = 0x05;

impl Default for Identity {
    fn default() -> Self {
        Self {
            inquiry: [0; 96],
            vpd_83: [0; 64],
            block_size: 0,
            sectors: 0,
            solid_state: false,
            read_only: false,
        }
    }
}

/// Asks a unit who it is. `read_only`: what it was when it was asked last, for it may be reserved.
pub(super) async fn identify(io: &Io, nexus: &Nexus, mut read_only: bool) -> Identity {
    let mut inquiry = [0; 96];
    ask(io, nexus, &[0x12, 0, 0, 0, 96, 0], &mut inquiry).await;
    let mut names = [0; 252];
    ask(io, nexus, &[0x12, 1, 0x83, 0, 252, 0], &mut names).await;
    let mut characteristics = [0; 64];
    ask(io, nexus, &[0x12, 1, 0xb1, 0, 64, 0], &mut characteristics).await;
    // MODE SENSE(6) of the header, with any page: WP (SPC-5, 7.5.6; SBC-4, 6.5.1).
    let mut header = [0; 4];
    if ask(io, nexus, &[0x1a, 0x08, 0x0a, 0, 4, 0], &mut header).await == Some(Status::Good) {
        read_only = header[2] & 0x80 != 0;
    }
    let (last, block_size) = capacity(io, nexus, inquiry[0]).await;
    let blocks = if block_size == 0 { 0 } else { last.saturating_add(1) };
    let sectors = blocks.saturating_mul(u64::from(block_size / 512));
    let rate = u16::from_be_bytes([characteristics[4], characteristics[5]]);
    let solid_state = rate == 1;
    Identity { inquiry, vpd_83: shortened(&names), block_size, sectors, solid_state, read_only }
}

/// What a device of the host says of itself to who asks for nothing but INQUIRY data: to any other command it could report a unit
/// attention, which is the guest's to hear. `None` where it gives no answer; `first` gets what there is before it is asked for pages.
pub(super) async fn identify_device(
    io: &Io,
    nexus: &Nexus,
    device: HostDevice,
    first: impl FnOnce(&Identity),
) -> Option<Identity> {
    let mut identity = Identity::of_device(device);
    inquire(io, nexus, None, &mut identity.inquiry).await?;
    // Nothing is there (SPC-5, 6.7.2): a device that is away.
    if identity.inquiry.first().is_some_and(|first| first >> 5 != 0) {
        return None;
    }
    first(&identity);
    let mut names = [0; 252];
    inquire(io, nexus, Some(0x83), &mut names).await?;
    identity.vpd_83 = shortened(&names);
    if device.is_disk {
        let mut characteristics = [0; 64];
        inquire(io, nexus, Some(0xb1), &mut characteristics).await?;
        identity.solid_state = characteristics[4..6] == [0, 1];
    }
    Some(identity)
}

/// Standard INQUIRY data, or a VPD page, which is zeros where there is none; `None` without an answer.
async fn inquire(io: &Io, nexus: &Nexus, page: Option<u8>, data: &mut [u8]) -> Option<()> {
    let cdb = [0x12, page.is_some().into(), page.unwrap_or(0), 0, data.len() as u8, 0];
    match ask(io, nexus, &cdb, data).await? {
        Status::Good => Some(()),
        Status::CheckCondition if page.is_some() => Some(()),
        _ => None,
    }
}

/// The last block of a unit of this peripheral device type, and the length of all of them in bytes; zeros where nothing is known.
async fn capacity(io: &Io, nexus: &Nexus, kind: u8) -> (u64, u32) {
    let mut data = [0; 32];
    if kind & 0x1f == CD_DVD {
        // READ CAPACITY(10) is all that MMC-6 has.
        ask(io, nexus, &[0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0], &mut data[..8]).await;
        let value =
            u64::from_be_bytes([data[0], data[1], data[2], data[3], data[4], data[5], data[6], data[7]]);
        return (value >> 32, value as u32);
    }
    // READ CAPACITY(16) (SBC-4, 5.21).
    ask(io, nexus, &[0x9e, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 32, 0, 0], &mut data).await;
    let (last, rest) =
        data.split_first_chunk().map_or((0, &[][..]), |(at, rest)| (u64::from_be_bytes(*at), rest));
    (last, rest.first_chunk().map_or(0, |bytes| u32::from_be_bytes(*bytes)))
}

/// The designators of a device identification VPD page (SPC-5, 7.7.6): each as it is in the page.
fn designators(page: &[u8]) -> impl Iterator<Item = &[u8]> {
    let len = match page {
        [_, _, high, low, ..] => usize::from(u16::from_be_bytes([*high, *low])),
        _ => 0,
    };
    let mut rest = page.get(4..).map_or(&[][..], |rest| rest.get(..len).unwrap_or(rest));
    std::iter::from_fn(move || {
        let len = 4 + usize::from(*rest.get(3)?);
        let (designator, next) = rest.split_at_checked(len)?;
        rest = next;
        Some(designator)
    })
}

/// The page with those designators that fit into what drives' information has room for.
fn shortened(page: &[u8]) -> [u8; 64] {
    let mut short = [0; 64];
    let mut used = 4;
    for designator in designators(page) {
        if let Some(room) = short.get_mut(used..used + designator.len()) {
            room.copy_from_slice(designator);
            used += designator.len();
        }
    }
    let [high, low] = ((used - 4) as u16).to_be_bytes();
    let header = [page.first().copied().unwrap_or(0), 0x83, high, low];
    short.iter_mut().zip(header).for_each(|(to, from)| *to = from);
    short
}

impl Identity {
    /// What the host knows of a device without its answer.
    pub(super) fn of_device(device: HostDevice) -> Self {
        let mut identity =
            Self { block_size: device.block_size, sectors: device.size / 512, ..Self::default() };
        identity.inquiry[0] = device.device_type;
        identity
    }

    /// Whether it is a drive for CDs.
    pub(crate) fn is_cd(&self) -> bool {
        self.inquiry[0] & 0x1f == CD_DVD
    }

    /// The NAA name of the unit (SPC-5, 7.7.6.6), which is its SAS address.
    pub(crate) fn naa(&self) -> Option<u64> {
        designators(&self.vpd_83).find_map(|designator| match designator {
            [_, kind, _, _, name @ ..] if kind & 0x0f == 3 => name.try_into().ok().map(u64::from_be_bytes),
            _ => None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(page: &[u8]) -> Identity {
        let mut vpd_83 = [0; 64];
        vpd_83[..page.len()].copy_from_slice(page);
        Identity { vpd_83, ..Default::default() }
    }

    #[test]
    fn the_naa_name_is_found_among_designators() {
        let t10 = [2, 1, 0, 3, b'a', b'b', b'c'];
        let naa = [1, 3, 0, 8, 0x50, 0, 0xc5, 0, 0x12, 0x34, 0x56, 0x78];
        let page = [&[0, 0x83, 0, 19][..], &t10, &naa].concat();
        assert_eq!(identity(&page).naa(), Some(0x5000_c500_1234_5678));
        assert_eq!(identity(&[0, 0x83, 0, 7, 2, 1, 0, 3, 1, 2, 3]).naa(), None);
        assert_eq!(identity(&[0, 0x83, 0xff, 0xff, 1, 3, 0, 0xff]).naa(), None, "cut short");
        assert_eq!(identity(&[]).naa(), None);
    }

    #[test]
    fn a_long_page_keeps_the_designators_that_fit() {
        let designator = |kind: u8, len: u8| [vec![1, kind, 0, len], vec![kind; len.into()]].concat();
        let all = [designator(1, 40), designator(3, 8), designator(8, 30), designator(4, 0)].concat();
        let page = [&[0, 0x83, 0, all.len() as u8][..], &all].concat();
        let short = shortened(&page);
        let kept: Vec<_> = designators(&short).map(|designator| designator[1]).collect();
        assert_eq!((short[..4].to_vec(), kept), (vec![0, 0x83, 0, 60], vec![1, 3, 4]));
        assert_eq!(shortened(&[]), shortened(&[0, 0, 0xff, 0xff, 1, 3, 0, 9, 1]), "cut short");
    }
}
