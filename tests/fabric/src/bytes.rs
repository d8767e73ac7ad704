//! Fields of what came by the wire, most significant byte first. Where the bytes end there is nothing, and no panic.

/// Reading by offset.
pub(crate) trait Fields {
    /// The `N` bytes from `at` on.
    fn chunk<const N: usize>(&self, at: usize) -> Option<[u8; N]>;
    /// `len` bytes from `at` on.
    fn cut(&self, at: usize, len: usize) -> Option<&[u8]>;

    fn byte(&self, at: usize) -> Option<u8> {
        self.chunk::<1>(at).map(|[byte]| byte)
    }

    fn be16(&self, at: usize) -> Option<u16> {
        self.chunk(at).map(u16::from_be_bytes)
    }

    fn be24(&self, at: usize) -> Option<u32> {
        self.chunk(at).map(|[a, b, c]| u32::from_be_bytes([0, a, b, c]))
    }

    fn be32(&self, at: usize) -> Option<u32> {
        self.chunk(at).map(u32::from_be_bytes)
    }

    fn be64(&self, at: usize) -> Option<u64> {
        self.chunk(at).map(u64::from_be_bytes)
    }
}

impl Fields for [u8] {
    fn chunk<const N: usize>(&self, at: usize) -> Option<[u8; N]> {
        self.get(at..)?.first_chunk().copied()
    }

    fn cut(&self, at: usize, len: usize) -> Option<&[u8]> {
        self.get(at..)?.get(..len)
    }
}

/// The lower three bytes.
pub(crate) fn three(value: u32) -> [u8; 3] {
    let [_, a, b, c] = value.to_be_bytes();
    [a, b, c]
}

/// Writes `bytes` at `at`, if all of them have a place there.
pub(crate) fn put(into: &mut [u8], at: usize, bytes: &[u8]) {
    if let Some(place) = into.get_mut(at..).and_then(|rest| rest.get_mut(..bytes.len())) {
        place.copy_from_slice(bytes);
    }
}
