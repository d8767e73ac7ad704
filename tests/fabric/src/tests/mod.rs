//! A host with an FCoE adapter that logs in and does SCSI, frame by frame, and what it finds.

mod access;
mod faults;
mod fences;
mod hostile;
mod logins;
mod maps;
mod ports;
mod referrals;
mod units;

use crate::bytes::{Fields, three};
use crate::crc::crc32;
use crate::frame::{Header, unpack};
use crate::names::{Mac, PortId};
use crate::outbox::Outbox;
use crate::san::San;

/// The node's address at a link, and two names.
pub(crate) const NODE: Mac = [2, 0xaa, 0, 0, 0, 1];
pub(crate) const BASE: u64 = 0x2000_02aa_0000_0001;
pub(crate) const ONE: u64 = 0x2100_0000_0000_0a01;
pub(crate) const TWO: u64 = 0x2100_0000_0000_0a02;

/// A frame that came to the host.
#[derive(Debug)]
pub(crate) struct Frame {
    pub(crate) link: usize,
    pub(crate) to: Mac,
    pub(crate) header: Header,
    pub(crate) payload: Vec<u8>,
}

/// How a command ended.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) status: u8,
    /// Key, code and qualifier.
    pub(crate) sense: Option<(u8, u8, u8)>,
    pub(crate) data: Vec<u8>,
    /// Negative for an overrun.
    pub(crate) residual: i64,
    pub(crate) code: Option<u8>,
}

impl Answer {
    /// That it is done, and its data.
    pub(crate) fn good(self) -> Vec<u8> {
        assert_eq!((self.status, self.sense), (0, None), "{self:?}");
        self.data
    }
}

/// The SAN and a host.
pub(crate) struct Bed {
    pub(crate) san: San,
    pub(crate) out: Outbox,
    pub(crate) now: u64,
    exchange: u16,
}

impl Bed {
    /// One fabric with two links, two target ports, disks `d0` to `d3` that `ONE` sees at 0, 5, 27 and 513.
    pub(crate) fn new() -> Self {
        let links = vec![vec!["sw0".to_owned(), "sw1".to_owned()]];
        let mut bed = Self { san: San::new(&links, 2), out: Outbox::default(), now: 1000, exchange: 0x10 };
        for disk in ["d0", "d1", "d2", "d3"] {
            bed.tell(&format!("disk {disk} 64M"));
        }
        bed.tell("map 2100000000000a01 0=d0 5=d1 27=d2 513=d3");
        bed
    }

    pub(crate) fn tell(&mut self, line: &str) -> String {
        self.san.command(line, self.now, &mut self.out).unwrap_or_else(|error| panic!("{line}: {error}"))
    }

    /// Frames of FC that were sent since the last time.
    pub(crate) fn take(&mut self) -> Vec<Frame> {
        let read = |(link, frame): (usize, &[u8])| {
            let fc = unpack(frame).filter(|_| frame.be16(12) == Some(0x8906))?;
            assert_eq!(frame[frame.len() - 8..frame.len() - 4], crc32(fc).to_le_bytes());
            let header = Header::read(fc).unwrap();
            let payload = fc[24..fc.len() - (header.f_ctl & 3) as usize].to_vec();
            Some(Frame { link, to: frame.chunk(0).unwrap(), header, payload })
        };
        let frames = self.out.frames().filter_map(read).collect();
        self.out.clear();
        frames
    }

    /// The operations of FIP that were sent since the last time: operation, subcode, and what is after the header.
    pub(crate) fn take_fip(&mut self) -> Vec<(u16, u8, Vec<u8>)> {
        let is_fip = |(_, frame): &(usize, &[u8])| frame.be16(12) == Some(0x8914);
        let read = |(_, frame): (usize, &[u8])| (frame.be16(16).unwrap(), frame[19], frame[24..].to_vec());
        let found = self.out.frames().filter(is_fip).map(read).collect();
        self.out.clear();
        found
    }

    pub(crate) fn receive(&mut self, link: usize, frame: &[u8]) {
        self.san.receive(link, frame, self.now, &mut self.out);
    }

    /// An operation of FIP from a node.
    pub(crate) fn fip(&mut self, link: usize, node: Mac, operation: u16, subcode: u8, list: &[u8]) {
        let mut frame = vec![2, 0xfc, 0xf0, 0, 0, 1];
        frame.extend(node);
        frame.extend([0x89, 0x14, 0x10, 0]);
        frame.extend(operation.to_be_bytes());
        frame.extend([0, subcode, 0, (list.len() / 4) as u8, 0x80, 0]);
        frame.extend(list);
        frame.resize(frame.len().max(60), 0);
        self.receive(link, &frame);
    }

    /// FLOGI (7), FDISC (8) or LOGO (9) from a node: the descriptor of the reply, from its FC header on.
    pub(crate) fn link_service(&mut self, link: usize, node: Mac, kind: u8, id: u32, wwpn: u64) -> Vec<u8> {
        let mut list = vec![kind, 36, 0, 0, 0x22, 0xff, 0xff, 0xfe, 0];
        list.extend(three(id));
        list.extend([1, 0x29, 0, 0, 0, 0, 0, 0, 0x33, 0x44, 0xff, 0xff, 0, 0, 0, 0]);
        let mut payload = vec![[0, 4, 0x51, 5][usize::from(kind - 6)]];
        payload.resize(20, 0);
        payload.extend(wwpn.to_be_bytes());
        payload.extend(0x1000_02aa_0000_0001_u64.to_be_bytes());
        payload.resize(116, 0);
        list.extend(payload);
        list.extend([2, 2, 0, 0, 0, 0, 0, 0]);
        self.out.clear();
        self.fip(link, node, 2, 1, &list);
        let replies: Vec<_> = self.out.frames().map(|(_, frame)| frame.to_vec()).collect();
        let reply = replies.iter().find(|frame| frame.be16(12) == Some(0x8914)).expect("no reply");
        assert_eq!((reply.be16(16), reply[19], &reply[..6]), (Some(2), 2, &node[..]));
        assert_eq!((reply[24], reply.be16(44)), (kind, Some(0x3344)));
        reply[28..].to_vec()
    }

    /// Logs in at a link: by FLOGI, or with `is_virtual` by FDISC.
    pub(crate) fn log_in(&mut self, link: usize, wwpn: u64, is_virtual: bool) -> Result<PortId, (u8, u8)> {
        let mut node = NODE;
        node[5] += link as u8;
        let reply = self.link_service(link, node, if is_virtual { 8 } else { 7 }, 0, wwpn);
        let payload = &reply[24..];
        if payload[0] == 1 {
            return Err((payload[5], payload[6]));
        }
        assert_eq!((payload[0], &reply[5..8]), (2, &[0xff, 0xff, 0xfe][..]));
        let id = PortId(reply.be24(1).unwrap());
        // The address that goes with it comes last.
        let [a, b, c] = id.bytes();
        assert_eq!(reply[140..148], [2, 2, 0x0e, 0xfc, 0, a, b, c]);
        Ok(id)
    }

    /// A frame from an N_Port, which is at the link that the area in its address says.
    pub(crate) fn send(&mut self, header: Header, payload: &[u8]) {
        let [_, area, _] = header.s_id.bytes();
        let mut fc = Vec::new();
        header.append(&mut fc);
        fc.extend(payload);
        fc.resize(fc.len().next_multiple_of(4), 0);
        let mut frame = vec![2, 0xfc, 0xf0, 0, 0, 1];
        frame.extend(header.s_id.mac());
        frame.extend([0x89, 0x06]);
        frame.extend([0; 13]);
        frame.push(0x2e);
        frame.extend(&fc);
        frame.extend(crc32(&fc).to_le_bytes());
        frame.extend([0x42, 0, 0, 0]);
        self.receive(usize::from(area) - 1, &frame);
    }

    pub(crate) fn request(&mut self, r_ctl: u8, kind: u8, from: PortId, to: PortId) -> Header {
        self.exchange = self.exchange.wrapping_add(1);
        Header::request(r_ctl, kind, from, to, self.exchange)
    }

    /// An extended link service, and its reply.
    pub(crate) fn els(&mut self, from: PortId, to: PortId, payload: &[u8]) -> Vec<u8> {
        self.out.clear();
        let header = self.request(0x22, 1, from, to);
        self.send(header, payload);
        let reply = |frame: Frame| {
            (frame.header.r_ctl == 0x23 && frame.header.ox_id == header.ox_id).then_some(frame.payload)
        };
        self.take().into_iter().find_map(reply).unwrap_or_default()
    }

    /// A request to the name server: what it says, why, and its data.
    pub(crate) fn ct(&mut self, from: PortId, code: u16, arguments: &[u8]) -> (u16, u8, u8, Vec<u8>) {
        self.out.clear();
        let mut payload = vec![1, 0, 0, 0, 0xfc, 2, 0, 0];
        payload.extend(code.to_be_bytes());
        payload.extend([0; 6]);
        payload.extend(arguments);
        let header = self.request(2, 0x20, from, PortId::DIRECTORY);
        self.send(header, &payload);
        let frames = self.take();
        let reply =
            frames.iter().find(|frame| frame.header.ox_id == header.ox_id && frame.header.kind == 0x20);
        let reply = &reply.expect("no reply").payload;
        (reply.be16(8).unwrap(), reply[13], reply[14], reply[16..].to_vec())
    }

    /// Registers a port as an initiator that wants to hear of changes.
    pub(crate) fn register(&mut self, id: PortId) {
        let [a, b, c] = id.bytes();
        let plogi = [&[3][..], &[0; 115]].concat();
        assert_eq!(self.els(id, PortId::DIRECTORY, &plogi)[0], 2);
        let mut types = vec![0, a, b, c, 0, 0, 1];
        types.resize(36, 0);
        assert_eq!(self.ct(id, 0x217, &types).0, 0x8002);
        assert_eq!(self.ct(id, 0x21f, &[0, a, b, c, 0, 0, 2, 8]).0, 0x8002);
        assert_eq!(self.els(id, PortId::FABRIC_CONTROLLER, &[0x62, 0, 0, 0, 0, 0, 0, 3])[0], 2);
    }

    /// The address of a target port, which people count from one.
    pub(crate) fn target(&self, number: usize) -> PortId {
        self.san.target_id(number - 1).unwrap()
    }

    /// PLOGI and PRLI to a target port.
    pub(crate) fn session(&mut self, from: PortId, to: PortId) {
        let plogi = self.els(from, to, &[&[3][..], &[0; 115]].concat());
        assert_eq!((plogi[0], plogi.len()), (2, 116));
        let prli = [0x20, 16, 0, 20, 8, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x22];
        let accept = [2, 16, 0, 20, 8, 0, 0x21, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x12];
        assert_eq!(self.els(from, to, &prli), accept);
    }

    /// FLOGI of the node, FDISC as `ONE`, and a session at the first target port with nothing left to hear.
    pub(crate) fn ready(&mut self) -> (PortId, PortId) {
        self.log_in(0, BASE, false).unwrap();
        let one = self.log_in(0, ONE, true).unwrap();
        self.register(one);
        let to = self.target(1);
        self.session(one, to);
        for lun in [0, 5, 27, 513] {
            assert_eq!(self.scsi(one, to, lun, &[0], 0, &[]).sense, Some((6, 0x29, 0)));
        }
        (one, to)
    }

    /// An FCP_CMND; its exchange. LUNs from 256 to 16383 are numbers; others are the two bytes that they have.
    pub(crate) fn command(
        &mut self,
        from: PortId,
        to: PortId,
        lun: u16,
        cdb: &[u8],
        read: u32,
        write: u32,
    ) -> Header {
        let mut payload = vec![0; 32];
        let lun = if (256..0x4000).contains(&lun) { 0x4000 | lun } else { lun };
        payload[..2].copy_from_slice(&lun.to_be_bytes());
        payload[11] = u8::from(write > 0) | u8::from(read > 0) << 1;
        payload[12..12 + cdb.len()].copy_from_slice(cdb);
        payload[28..].copy_from_slice(&read.max(write).to_be_bytes());
        let header = self.request(6, 8, from, to);
        self.send(header, &payload);
        header
    }

    /// Sends data in frames of this many bytes.
    pub(crate) fn data(&mut self, command: Header, rx_id: u16, data: &[u8], part: usize) {
        for (number, bytes) in data.chunks(part).enumerate() {
            let mut header = Header { r_ctl: 1, rx_id, f_ctl: 0x8, ..command };
            header.seq_cnt = number as u16;
            header.parameter = (number * part) as u32;
            header.f_ctl |= (bytes.len().next_multiple_of(4) - bytes.len()) as u32;
            self.send(header, bytes);
        }
    }

    /// What came of a command so far; None without a response.
    pub(crate) fn answer(&mut self, command: Header) -> Option<Answer> {
        let mut answer = Answer::default();
        let mut ended = false;
        for frame in self.take().into_iter().filter(|frame| frame.header.ox_id == command.ox_id) {
            match frame.header.r_ctl {
                1 => {
                    assert_eq!(frame.header.parameter as usize, answer.data.len());
                    answer.data.extend(frame.payload);
                }
                7 => {
                    ended = true;
                    let payload = frame.payload;
                    let (flags, information) = (payload[10], payload.be32(20).unwrap() as usize);
                    answer.status = payload[11];
                    let residual = i64::from(payload.be32(12).unwrap());
                    answer.residual = if flags & 4 != 0 { -residual } else { residual };
                    answer.code = (flags & 1 != 0).then(|| payload[27]);
                    let sense = &payload[24 + information..];
                    answer.sense = (flags & 2 != 0).then(|| (sense[2] & 0xf, sense[12], sense[13]));
                }
                other => panic!("r_ctl {other}"),
            }
        }
        ended.then_some(answer)
    }

    /// A whole command.
    pub(crate) fn scsi(
        &mut self,
        from: PortId,
        to: PortId,
        lun: u16,
        cdb: &[u8],
        read: u32,
        write: &[u8],
    ) -> Answer {
        self.out.clear();
        let command = self.command(from, to, lun, cdb, read, write.len() as u32);
        let ready = self.out.frames().find(|(_, frame)| frame[28] == 5).map(|(_, frame)| frame.to_vec());
        if let Some(ready) = ready {
            let fc = unpack(&ready).unwrap();
            assert_eq!((fc.be24(9), fc.be32(24)), (Some(0x89_0000), Some(0)));
            let (rx_id, length) = (fc.be16(18).unwrap(), fc.be32(28).unwrap() as usize);
            self.out.clear();
            self.data(command, rx_id, &write[..length], 2048);
        }
        self.answer(command).expect("no response")
    }
}
