//! The medium: bytes in memory, of which those that are zero take none.

use std::collections::HashMap;

/// The least that is held.
const CHUNK: usize = 64 << 10;

/// So many bytes, all zero at first.
#[derive(Default)]
pub(crate) struct Memory {
    size: u64,
    chunks: HashMap<u64, Box<[u8]>>,
}

/// The parts of `length` bytes from `at` on: the chunk, where in it, how much.
fn parts(mut at: u64, mut length: u64) -> impl Iterator<Item = (u64, usize, usize)> {
    let chunk = CHUNK as u64;
    std::iter::from_fn(move || {
        let (number, offset) = (at / chunk, at % chunk);
        let part = length.min(chunk - offset);
        at += part;
        length -= part;
        (part > 0).then_some((number, usize::try_from(offset).ok()?, usize::try_from(part).ok()?))
    })
}

impl Memory {
    pub(crate) fn new(size: u64) -> Self {
        Self { size, chunks: HashMap::new() }
    }

    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// What it takes of this process's memory.
    pub(crate) fn held(&self) -> usize {
        self.chunks.len() * CHUNK
    }

    /// Makes it larger or smaller. What is cut off is gone.
    pub(crate) fn resize(&mut self, size: u64) {
        if size < self.size {
            self.clear(size, self.size - size);
        }
        self.size = size;
    }

    pub(crate) fn read(&self, at: u64, mut into: &mut [u8]) {
        for (number, offset, length) in parts(at, into.len() as u64) {
            let Some((place, rest)) = into.split_at_mut_checked(length) else { return };
            match self.chunks.get(&number).and_then(|chunk| chunk.get(offset..offset + length)) {
                Some(bytes) => place.copy_from_slice(bytes),
                None => place.fill(0),
            }
            into = rest;
        }
    }

    /// What is past the end is not written.
    pub(crate) fn write(&mut self, at: u64, bytes: &[u8]) {
        let room = usize::try_from(self.size.saturating_sub(at)).unwrap_or(usize::MAX);
        let mut bytes = bytes.get(..room.min(bytes.len())).unwrap_or_default();
        for (number, offset, length) in parts(at, bytes.len() as u64) {
            let Some((part, rest)) = bytes.split_at_checked(length) else { return };
            let chunk = self.chunks.entry(number).or_insert_with(|| vec![0; CHUNK].into());
            if let Some(place) = chunk.get_mut(offset..offset + length) {
                place.copy_from_slice(part);
            }
            bytes = rest;
        }
    }

    /// Makes bytes zero. Whole chunks are given back.
    pub(crate) fn clear(&mut self, at: u64, length: u64) {
        let end = at.saturating_add(length);
        let chunk = CHUNK as u64;
        let touched = |number: &u64| (number + 1) * chunk > at && number * chunk < end;
        // There may be far fewer chunks than the bytes would make.
        let numbers: Vec<u64> = self.chunks.keys().copied().filter(touched).collect();
        for number in numbers {
            let (start, stop) = (at.max(number * chunk), end.min((number + 1) * chunk));
            if stop - start == chunk {
                self.chunks.remove(&number);
            } else if let Some(held) = self.chunks.get_mut(&number) {
                let range = (start % chunk) as usize..(start % chunk + (stop - start)) as usize;
                held.get_mut(range).unwrap_or_default().fill(0);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read() {
        let mut memory = Memory::new(1 << 40);
        let bytes: Vec<u8> = (0..200_000_u32).map(|at| (at % 251 + 1) as u8).collect();
        let at = (1 << 39) - 1000;
        memory.write(at, &bytes);
        let mut back = vec![9; bytes.len() + 20];
        memory.read(at - 10, &mut back);
        assert_eq!(back[..10], [0; 10]);
        assert!(back[10..200_010] == bytes && back[200_010..] == [0; 10]);
        let held = memory.held();
        assert!(held <= 5 * CHUNK, "{held}");
        memory.clear(at + 5, 199_990);
        assert!(memory.held() < held);
        memory.read(at - 10, &mut back);
        assert_eq!((&back[10..15], &back[200_005..200_010]), (&bytes[..5], &bytes[199_995..]));
        assert!(back[15..200_005].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn nothing_is_past_the_end() {
        let mut memory = Memory::new(100);
        memory.write(90, &[1; 20]);
        memory.write(u64::MAX, &[1]);
        memory.resize(200);
        let mut back = [9; 30];
        memory.read(80, &mut back);
        assert_eq!(back, [[0; 10], [1; 10], [0; 10]].concat()[..]);
        memory.resize(95);
        memory.resize(100);
        memory.read(80, &mut back);
        assert_eq!(back.iter().filter(|byte| **byte == 1).count(), 5);
    }
}
