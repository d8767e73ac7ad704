//! Events of the Fibre Channel transport (Linux, include/uapi/scsi/scsi_netlink.h and scsi_netlink_fc.h). Numbers are in the host's order.

/// An event of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FcEvent {
    /// The number of the host that has it.
    pub host: u32,
    /// Counts all events of all hosts.
    pub number: u32,
    /// Seconds since 1970.
    pub seconds: u64,
    /// What has happened.
    pub code: Code,
    /// Of an RSCN its page: the kind of address, and the address (FC-LS-3, 4.2.33).
    pub data: u32,
}

/// What has happened (`enum fc_host_event_code`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// The loop was initialized.
    Lip,
    /// The link has come up.
    LinkUp,
    /// The link has gone down.
    LinkDown,
    /// The loop was reset.
    LipReset,
    /// The fabric says that other ports have changed.
    Rscn,
    /// The adapter has changed.
    AdapterChange,
    /// The state of the port is not known.
    PortUnknown,
    /// The port is off the fabric.
    PortOffline,
    /// The port is on the fabric.
    PortOnline,
    /// The port is on another fabric.
    PortFabric,
    /// The state of the link is not known.
    LinkUnknown,
    /// The fabric says that its performance has suffered.
    Fpin,
    /// The same, and the driver has acted on it.
    FpinAck,
    /// The vendor knows.
    VendorUnique,
    /// What newer kernels may say.
    Other(u32),
}

/// Codes, with the kernel's words for them.
const CODES: [(u32, Code, &str); 14] = [
    (0x1, Code::Lip, "lip"),
    (0x2, Code::LinkUp, "link_up"),
    (0x3, Code::LinkDown, "link_down"),
    (0x4, Code::LipReset, "lip_reset"),
    (0x5, Code::Rscn, "rscn"),
    (0x103, Code::AdapterChange, "adapter_chg"),
    (0x200, Code::PortUnknown, "port_unknown"),
    (0x201, Code::PortOffline, "port_offline"),
    (0x202, Code::PortOnline, "port_online"),
    (0x204, Code::PortFabric, "port_fabric"),
    (0x500, Code::LinkUnknown, "link_unknown"),
    (0x501, Code::Fpin, "link_FPIN"),
    (0x502, Code::FpinAck, "link_FPIN_ACK"),
    (0xffff, Code::VendorUnique, "vendor_unique"),
];

impl Code {
    fn of(number: u32) -> Self {
        CODES.iter().find(|(known, ..)| *known == number).map_or(Self::Other(number), |(_, code, _)| *code)
    }

    /// The kernel's word for it.
    pub fn word(self) -> &'static str {
        CODES.iter().find(|(_, code, _)| *code == self).map_or("unknown", |(.., word)| word)
    }
}

/// `struct nlmsghdr` (netlink(7)).
const HEADER: usize = 16;
/// `SCSI_TRANSPORT_MSG`
const TRANSPORT_MESSAGE: u16 = 0x11;
/// `SCSI_NL_VERSION`, `SCSI_NL_TRANSPORT_FC`
const VERSION_AND_TRANSPORT: [u8; 2] = [1, 1];
/// `SCSI_NL_MAGIC`
const MAGIC: u16 = 0xa1b2;
/// `FC_NL_ASYNC_EVENT`
const ASYNC_EVENT: u16 = 0x100;

/// The events in a datagram; what is no event, or cut off, is left out.
pub(super) fn parse(datagram: &[u8]) -> Vec<FcEvent> {
    let (mut rest, mut events) = (datagram, Vec::new());
    while let Some(len) = u32_at(rest, 0).and_then(|len| usize::try_from(len).ok()) {
        let Some(message) = rest.get(..len).filter(|_| len >= HEADER) else { break };
        events.extend(event(message));
        // Each begins at a multiple of four.
        rest = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    events
}

fn event(message: &[u8]) -> Option<FcEvent> {
    let body = message.get(HEADER..)?;
    let fits = u16_at(message, 4)? == TRANSPORT_MESSAGE
        && body.get(..2)? == VERSION_AND_TRANSPORT
        && u16_at(body, 2)? == MAGIC
        && u16_at(body, 4)? == ASYNC_EVENT;
    fits.then_some(())?;
    Some(FcEvent {
        seconds: u64::from_ne_bytes(*body.get(8..)?.first_chunk()?),
        host: u16_at(body, 24)?.into(),
        number: u32_at(body, 28)?,
        code: Code::of(u32_at(body, 32)?),
        // None if the vendor says nothing.
        data: u32_at(body, 36).unwrap_or(0),
    })
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// As the kernel of a little-endian host lays it out.
    pub(in super::super) fn message(host: u16, code: u32, data: u32) -> Vec<u8> {
        let mut bytes = vec![
            56, 0, 0, 0, 0x11, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, // length, type
            1, 1, 0xb2, 0xa1, 0x00, 0x01, 40, 0, // version, transport, magic, type, length
            0x80, 0x51, 0x01, 0, 0, 0, 0, 0, // seconds
            0, 0, 0, 0, 0, 0, 0, 0, // vendor
        ];
        bytes.extend(host.to_le_bytes());
        bytes.extend([4, 0, 9, 0, 0, 0]);
        bytes.extend(code.to_le_bytes());
        bytes.extend(data.to_le_bytes());
        bytes
    }

    #[test]
    fn an_event_is_read() {
        let event = FcEvent { host: 5, number: 9, seconds: 86_400, code: Code::Rscn, data: 0x01_0201 };
        assert_eq!(parse(&message(5, 5, 0x01_0201)), [event]);
        for (number, code, word) in CODES {
            let event = parse(&message(5, number, 0))[0];
            assert_eq!((event.code, event.code.word()), (code, word));
        }
        let event = parse(&message(65535, 0x7777, 0))[0];
        assert_eq!((event.host, event.code, event.code.word()), (65535, Code::Other(0x7777), "unknown"));
        let two = [message(1, 2, 0), message(2, 3, 0)].concat();
        assert_eq!(parse(&two).iter().map(|event| event.host).collect::<Vec<_>>(), [1, 2]);
    }

    #[test]
    fn what_is_none_is_left_out() {
        let whole = message(5, 2, 7);
        for len in 0..whole.len() {
            assert!(parse(&whole[..len]).is_empty(), "{len}");
        }
        // Every length that it may claim.
        for len in (0..=80_u32).chain([u32::MAX, 1 << 31]) {
            let mut bytes = whole.clone();
            bytes[..4].copy_from_slice(&len.to_le_bytes());
            assert!(parse(&bytes).len() <= 1, "{len}");
        }
        for at in [4, 16, 17, 18, 19, 20, 21] {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x40;
            assert!(parse(&bytes).is_empty(), "{at}");
        }
        for byte in [0, 1, 0xff] {
            assert!(parse(&[byte; 4096]).is_empty());
        }
        // Messages of nothing but a header: each is passed by.
        assert!(parse(&[16, 0, 0, 0, 0x11, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0].repeat(100)).is_empty());
        let vendors = [&whole[..], &[0; 4]].concat();
        assert_eq!(parse(&vendors).len(), 1);
    }
}
