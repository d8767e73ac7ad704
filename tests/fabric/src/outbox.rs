//! Frames that are to be sent, one after the other in one buffer; and frames that are lost because a test wants it.

use std::fmt;

use crate::crc::crc32;
use crate::frame::{
    EOF_N, EOF_T, ETHERTYPE_FCOE, ETHERTYPE_FIP, Header, PAYLOAD, SOF_I3, SOF_N3, f_ctl, kind, r_ctl,
};
use crate::names::Mac;
use crate::random::Random;

/// The way to an N_Port: what frames to it need on Ethernet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Route {
    pub(crate) link: usize,
    pub(crate) to: Mac,
    /// The fabric's own address: nodes take frames from no other.
    pub(crate) from: Mac,
}

/// A kind of frames that can be lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum What {
    Any,
    Command,
    Data,
    Ready,
    Response,
    Els,
    Services,
    Abort,
    Fip,
}

impl What {
    /// Of an FC frame; None is a frame that is never lost on purpose.
    fn of(header: &Header) -> Option<Self> {
        Some(match (header.r_ctl, header.kind) {
            (r_ctl::UNSOLICITED_COMMAND, kind::FCP) => Self::Command,
            (r_ctl::SOLICITED_DATA, kind::FCP) => Self::Data,
            (r_ctl::DATA_DESCRIPTOR, kind::FCP) => Self::Ready,
            (r_ctl::COMMAND_STATUS, kind::FCP) => Self::Response,
            (_, kind::ELS) => Self::Els,
            (_, kind::CT) => Self::Services,
            (r_ctl::ABTS, kind::BLS) => Self::Abort,
            _ => return None,
        })
    }
}

/// How many of a kind are lost.
#[derive(Clone, Copy, Debug)]
pub(crate) enum HowMany {
    /// The next ones.
    Next(u32),
    /// One of that many, at random.
    OneOf(u32),
}

/// The frames that are lost.
#[derive(Default)]
pub(crate) struct Losses {
    rules: Vec<(What, HowMany)>,
    random: Random,
    pub(crate) count: u64,
}

impl Losses {
    pub(crate) fn add(&mut self, what: What, how_many: HowMany) {
        self.rules.push((what, how_many));
    }

    pub(crate) fn clear(&mut self) {
        self.rules.clear();
    }

    /// Whether this frame is lost.
    pub(crate) fn take(&mut self, header: &Header) -> bool {
        !self.rules.is_empty() && What::of(header).is_some_and(|what| self.take_kind(what))
    }

    pub(crate) fn take_kind(&mut self, kind: What) -> bool {
        let random = self.random.next();
        let rule = self.rules.iter_mut().find_map(|(what, how_many)| {
            let fits = *what == kind || (*what == What::Any && kind != What::Fip);
            let takes = match how_many {
                HowMany::Next(left) => {
                    let takes = fits && *left > 0;
                    *left -= u32::from(takes);
                    takes
                }
                HowMany::OneOf(many) => fits && random.is_multiple_of(u64::from(*many).max(1)),
            };
            takes.then_some(())
        });
        self.rules.retain(|(_, how_many)| !matches!(how_many, HowMany::Next(0)));
        self.count += u64::from(rule.is_some());
        rule.is_some()
    }
}

impl fmt::Display for Losses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "lost on purpose: {}", self.count)?;
        self.rules.iter().try_for_each(|(what, how_many)| write!(f, "; {what:?} {how_many:?}"))
    }
}

/// Where a frame is in the buffer, and the link it goes to.
struct Place {
    link: usize,
    start: usize,
    end: usize,
}

/// What is to be sent, and the state of links that is to be.
#[derive(Default)]
pub struct Outbox {
    bytes: Vec<u8>,
    places: Vec<Place>,
    /// Links that are to go down or come up: their number, and whether they are up then.
    pub links: Vec<(usize, bool)>,
    /// What happened that is worth a line.
    pub notes: Vec<String>,
    pub(crate) losses: Losses,
    exchange: u16,
    pub(crate) sent: u64,
}

impl Outbox {
    /// The frames, with the number of the link that each goes to.
    pub fn frames(&self) -> impl Iterator<Item = (usize, &[u8])> {
        self.places.iter().filter_map(|place| Some((place.link, self.bytes.get(place.start..place.end)?)))
    }

    /// Bytes of all frames.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether there is no frame.
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// Forgets the frames; they were sent.
    pub fn clear(&mut self) {
        self.places.clear();
        self.bytes.clear();
    }

    /// A number for an exchange of our own, or for our side of another's.
    pub(crate) fn exchange(&mut self) -> u16 {
        self.exchange = (self.exchange + 1) % 0x7000;
        self.exchange + 0x100
    }

    /// A frame of the FCoE Initialization Protocol.
    pub(crate) fn fip(&mut self, link: usize, to: Mac, from: Mac, operation: &[u8]) {
        if self.losses.take_kind(What::Fip) {
            return;
        }
        let start = self.start(to, from, ETHERTYPE_FIP);
        self.bytes.extend_from_slice(operation);
        // The least that Ethernet carries.
        self.bytes.resize(self.bytes.len().max(start + 60), 0);
        self.end(link, start);
    }

    /// A frame that came, to another N_Port: all but Ethernet's addresses is as it was.
    pub(crate) fn forward(&mut self, route: Route, header: &Header, frame: &[u8]) {
        if self.losses.take(header) {
            return;
        }
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&route.to);
        self.bytes.extend_from_slice(&route.from);
        self.bytes.extend_from_slice(frame.get(12..).unwrap_or_default());
        self.end(route.link, start);
    }

    /// A sequence with this payload.
    pub(crate) fn send(&mut self, route: Route, header: &Header, payload: &[u8]) {
        self.send_with(route, header, payload.len(), |at, into| {
            let part = payload.get(at..).unwrap_or_default();
            into.copy_from_slice(part.get(..into.len()).unwrap_or_default());
        });
    }

    /// A sequence of so many bytes, in as many frames as it takes. `fill` writes a part of them, which begins at an offset.
    pub(crate) fn send_with(
        &mut self,
        route: Route,
        header: &Header,
        length: usize,
        mut fill: impl FnMut(usize, &mut [u8]),
    ) {
        let mut at = 0;
        loop {
            let part = PAYLOAD.min(length - at);
            let is_last = at + part == length;
            let padding = part.next_multiple_of(4) - part;
            let mut frame = *header;
            frame.seq_cnt = u16::try_from((at / PAYLOAD) & 0xffff).unwrap_or_default();
            if header.f_ctl & f_ctl::RELATIVE_OFFSET != 0 {
                frame.parameter = u32::try_from(at).unwrap_or_default();
            }
            if is_last {
                frame.f_ctl |= u32::try_from(padding).unwrap_or_default();
            } else {
                frame.f_ctl &= !(f_ctl::END_SEQUENCE | f_ctl::LAST_SEQUENCE | f_ctl::TRANSFER);
            }
            if !self.losses.take(&frame) {
                let start = self.start(route.to, route.from, ETHERTYPE_FCOE);
                self.bytes.extend_from_slice(&[0; 13]);
                self.bytes.push(if at == 0 { SOF_I3 } else { SOF_N3 });
                let fc = self.bytes.len();
                frame.append(&mut self.bytes);
                let payload = self.bytes.len();
                self.bytes.resize(payload + part, 0);
                fill(at, self.bytes.get_mut(payload..).unwrap_or_default());
                self.bytes.resize(payload + part + padding, 0);
                let crc = crc32(self.bytes.get(fc..).unwrap_or_default());
                self.bytes.extend_from_slice(&crc.to_le_bytes());
                self.bytes.extend_from_slice(&[if is_last { EOF_T } else { EOF_N }, 0, 0, 0]);
                self.end(route.link, start);
            }
            at += part;
            if is_last {
                return;
            }
        }
    }

    fn start(&mut self, to: Mac, from: Mac, ethertype: u16) -> usize {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&to);
        self.bytes.extend_from_slice(&from);
        self.bytes.extend_from_slice(&ethertype.to_be_bytes());
        start
    }

    fn end(&mut self, link: usize, start: usize) {
        self.sent += 1;
        self.places.push(Place { link, start, end: self.bytes.len() });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::{is_whole, unpack};
    use crate::names::PortId;

    const ROUTE: Route = Route { link: 3, to: [1; 6], from: [2; 6] };

    fn data() -> Header {
        let mut header = Header::request(r_ctl::SOLICITED_DATA, kind::FCP, PortId(1), PortId(2), 7);
        header.f_ctl = f_ctl::RESPONDER | f_ctl::END_SEQUENCE | f_ctl::RELATIVE_OFFSET;
        header
    }

    #[test]
    fn data_goes_in_frames_of_four_sectors() {
        let mut out = Outbox::default();
        let bytes: Vec<u8> = (0..4099_u32).map(|at| at as u8).collect();
        out.send(ROUTE, &data(), &bytes);
        let mut moved: Vec<u8> = Vec::new();
        let frames: Vec<_> = out.frames().collect();
        assert_eq!(frames.len(), 3);
        for (number, (link, frame)) in frames.into_iter().enumerate() {
            assert_eq!(link, 3);
            assert_eq!(frame[..14], [1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 0x89, 0x06]);
            let fc = unpack(frame).unwrap();
            assert!(is_whole(frame, fc));
            let header = Header::read(fc).unwrap();
            assert_eq!((usize::from(header.seq_cnt), header.parameter), (number, 2048 * number as u32));
            let is_last = number == 2;
            assert_eq!(header.f_ctl, if is_last { 0x88_0009 } else { 0x80_0008 });
            assert_eq!(frame[27], if number == 0 { 0x2e } else { 0x36 });
            assert_eq!(frame[frame.len() - 4], if is_last { 0x42 } else { 0x41 });
            moved.extend(&fc[24..fc.len() - (header.f_ctl & 3) as usize]);
        }
        assert_eq!(moved, bytes);
        out.clear();
        out.send(ROUTE, &data(), &[]);
        assert_eq!(out.frames().map(|(_, frame)| frame.len()).collect::<Vec<_>>(), [60]);
    }

    #[test]
    fn frames_are_lost_as_a_test_wants_it() {
        let mut out = Outbox::default();
        out.losses.add(What::Data, HowMany::Next(2));
        out.send(ROUTE, &data(), &[0; 8192]);
        assert_eq!(out.frames().count(), 2);
        out.clear();
        out.send(ROUTE, &data(), &[0; 8192]);
        assert_eq!(out.frames().count(), 4);
        out.clear();
        out.losses.add(What::Any, HowMany::OneOf(4));
        (0..100).for_each(|_| out.send(ROUTE, &data(), &[0; 8192]));
        let left = out.frames().count();
        assert!((250..350).contains(&left), "{left}");
        // What sets links up is not among any.
        (0..20).for_each(|_| out.fip(0, [0; 6], [0; 6], &[]));
        assert_eq!(out.frames().count(), left + 20);
        out.losses.clear();
        assert!(!out.losses.take(&data()));
    }
}
