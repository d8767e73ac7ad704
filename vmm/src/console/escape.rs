//! Escape sequences of the console on standard input: the same keys as QEMU's.

/// Ctrl-A.
const ESCAPE: u8 = 0x01;

/// What Ctrl-A h shows.
pub(super) const HELP: &str = "\r\n\
    Ctrl-A h       this help\r\n\
    Ctrl-A x       quit: stops the virtual machine at once\r\n\
    Ctrl-A b       send a break\r\n\
    Ctrl-A Ctrl-A  send Ctrl-A\r\n";

/// What a byte from the keyboard means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Typed {
    /// A byte for the guest.
    Byte(u8),
    /// A break for the guest.
    Break,
    /// The user wants the machine to end.
    Quit,
    /// The user asks for help.
    Help,
    /// Part of a sequence.
    Nothing,
}

/// Follows the bytes that the user types.
#[derive(Debug, Default)]
pub(super) struct EscapeParser {
    escaped: bool,
}

impl EscapeParser {
    /// Takes the next byte.
    pub(super) fn take(&mut self, byte: u8) -> Typed {
        match (std::mem::take(&mut self.escaped), byte) {
            (false, ESCAPE) => {
                self.escaped = true;
                Typed::Nothing
            }
            (false, byte) | (true, byte @ ESCAPE) => Typed::Byte(byte),
            (true, b'x') => Typed::Quit,
            (true, b'h' | b'?') => Typed::Help,
            (true, b'b') => Typed::Break,
            (true, _) => Typed::Nothing,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sequences() {
        let mut parser = EscapeParser::default();
        let typed: Vec<Typed> =
            b"a\x01xb\x01\x01x\x01h\x01b\x01c\x01Zq".iter().map(|b| parser.take(*b)).collect();
        use Typed::*;
        assert_eq!(
            typed,
            [
                Byte(b'a'),
                Nothing,
                Quit,
                Byte(b'b'),
                Nothing,
                Byte(1),
                Byte(b'x'),
                Nothing,
                Help,
                Nothing,
                Break,
                Nothing,
                Nothing,
                Nothing,
                Nothing,
                Byte(b'q')
            ]
        );
    }
}
