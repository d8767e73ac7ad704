//! What the test bed and its agent say to each other: frames over one byte stream.
//!
//! A frame is its kind (1 byte), the job it belongs to (4 bytes), the length of the payload (4 bytes, all
//! little-endian) and the payload. The test bed picks job numbers. A conversation starts with the 16 bytes
//! of a greeting, which the agent sends back; everything before them is left over from an earlier one.

use std::io::{Error, Read, Write};

use serde::{Deserialize, Serialize};

/// The length of a greeting.
pub const GREETING: usize = 16;
/// What every greeting starts with.
pub const GREETING_START: &[u8; 8] = b"\xfftestbed";
/// The largest payload of one frame.
pub const PAYLOAD_MAX: usize = 64 << 20;

/// What a frame is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// To the agent: start the command that the payload, a [`Launch`] in TOML, describes.
    Launch = 1,
    /// To the agent: bytes for the command's standard input; none at all mean its end.
    Input,
    /// To the agent: send the signal whose number is in the payload to the command.
    Signal,
    /// To the agent: write the file; the payload is the path, a zero byte and the content.
    Put,
    /// To the agent: send the file whose path is the payload.
    Get,
    /// From the agent: the command runs, under this process id.
    Started,
    /// From the agent: bytes from standard output, or of the terminal.
    Output,
    /// From the agent: bytes from standard error.
    Errors,
    /// From the agent: the command ended with this wait status. The job is over.
    Ended,
    /// From the agent: the answer to a Put or a Get. The job is over.
    Data,
    /// From the agent: the request failed, for this reason. The job is over.
    Failed,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Self> {
        use Kind::*;
        [Launch, Input, Signal, Put, Get, Started, Output, Errors, Ended, Data, Failed]
            .into_iter()
            .find(|kind| *kind as u8 == byte)
    }
}

/// A command to start.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Launch {
    /// The program and its arguments.
    pub words: Vec<String>,
    /// Variables added to the agent's environment.
    pub env: Vec<(String, String)>,
    /// The working directory.
    pub dir: Option<String>,
    /// Give the command a terminal with this many rows and columns.
    pub terminal: Option<(u16, u16)>,
}

/// One message.
#[derive(Debug)]
pub struct Frame {
    /// What it is about.
    pub kind: Kind,
    /// The job it belongs to.
    pub job: u32,
    /// The rest.
    pub payload: Vec<u8>,
}

impl Frame {
    /// Reads the next frame. An end of the stream is an error.
    pub fn read(from: &mut impl Read) -> Result<Self, Error> {
        let (mut kind, mut job, mut length) = ([0; 1], [0; 4], [0; 4]);
        from.read_exact(&mut kind)?;
        from.read_exact(&mut job)?;
        from.read_exact(&mut length)?;
        let length = u32::from_le_bytes(length) as usize;
        let [kind] = kind;
        let known = Kind::from_byte(kind).filter(|_| length <= PAYLOAD_MAX);
        let kind = known.ok_or_else(|| Error::other("the other side sent something else than a frame"))?;
        let mut payload = vec![0; length];
        from.read_exact(&mut payload)?;
        Ok(Self { kind, job: u32::from_le_bytes(job), payload })
    }
}

/// Writes one frame in one piece.
pub fn write(to: &mut impl Write, kind: Kind, job: u32, payload: &[u8]) -> Result<(), Error> {
    let length = u32::try_from(payload.len()).ok().filter(|_| payload.len() <= PAYLOAD_MAX);
    let length = length.ok_or_else(|| Error::other("a payload is too long for a frame"))?;
    let mut bytes = Vec::with_capacity(9 + payload.len());
    bytes.push(kind as u8);
    bytes.extend_from_slice(&job.to_le_bytes());
    bytes.extend_from_slice(&length.to_le_bytes());
    bytes.extend_from_slice(payload);
    to.write_all(&bytes)?;
    to.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_survive_the_stream() -> Result<(), Error> {
        let mut stream = Vec::new();
        write(&mut stream, Kind::Output, 7, b"text")?;
        let frame = Frame::read(&mut stream.as_slice())?;
        assert_eq!((frame.kind, frame.job, frame.payload.as_slice()), (Kind::Output, 7, b"text".as_slice()));
        Ok(())
    }

    #[test]
    fn garbage_is_an_error() {
        assert!(Frame::read(&mut [0u8; 64].as_slice()).is_err());
        assert!(Frame::read(&mut [1u8, 0, 0].as_slice()).is_err());
    }
}
