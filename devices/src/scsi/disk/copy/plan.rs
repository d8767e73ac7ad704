//! In which order the pieces of a copy are moved when they are on one disk: none may overwrite what another one needs.

use crate::scsi::sense::{INVALID_TOKEN_OPERATION, SenseData};
use crate::storage::Span;

/// A piece of a copy, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Move {
    pub(super) from: u64,
    pub(super) to: u64,
    pub(super) len: u64,
}

impl Move {
    /// Whether what it writes is what `other` reads.
    fn overwrites(&self, other: &Self) -> bool {
        self.to < other.from + other.len && other.from < self.to + self.len
    }
}

/// The pieces that fill `targets` from byte `skip` of `spans` on, as far as those reach; all in whole blocks.
pub(super) fn moves(
    spans: &[Span],
    mut skip: u64,
    targets: &[Span],
    block: u64,
) -> Result<Vec<Move>, SenseData> {
    let mut pieces = spans.iter().filter_map(|span| {
        let skipped = skip.min(span.len);
        skip -= skipped;
        (span.len > skipped).then(|| (span.at.0 + skipped, span.len - skipped))
    });
    let mut moves = Vec::with_capacity(spans.len() + targets.len());
    let mut piece = pieces.next();
    for target in targets {
        let mut done = 0;
        while done < target.len {
            let Some((from, have)) = piece else { return Ok(moves) };
            let len = have.min(target.len - done);
            if !len.is_multiple_of(block) {
                return Err(SenseData::illegal(INVALID_TOKEN_OPERATION));
            }
            moves.push(Move { from, to: target.at.0 + done, len });
            done += len;
            piece = if have > len { Some((from + len, have - len)) } else { pieces.next() };
        }
    }
    Ok(moves)
}

/// An order in which each piece is read before anything is written over it; none if they go round in a circle.
/// A piece that overlaps itself is its own affair.
pub(super) fn order(moves: &[Move]) -> Option<Vec<usize>> {
    let others = |index: usize| moves.iter().enumerate().filter(move |(other, _)| *other != index);
    // How many pieces must come before each.
    let mut before: Vec<usize> = moves
        .iter()
        .enumerate()
        .map(|(index, one)| others(index).filter(|(_, other)| one.overwrites(other)).count())
        .collect();
    // Last in, first out, so from the back: without conflicts the order is that of the list.
    let free = before.iter().enumerate().filter(|(_, count)| **count == 0).map(|(index, _)| index);
    let mut ready: Vec<usize> = free.collect();
    ready.reverse();
    let mut order = Vec::with_capacity(moves.len());
    while let Some(index) = ready.pop() {
        order.push(index);
        let Some(done) = moves.get(index) else { continue };
        for (other, _) in others(index).filter(|(_, one)| one.overwrites(done)) {
            let Some(count) = before.get_mut(other) else { continue };
            *count -= 1;
            if *count == 0 {
                ready.push(other);
            }
        }
    }
    (order.len() == moves.len()).then_some(order)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(moves: &[(u64, u64, u64)]) -> Option<Vec<usize>> {
        let moves: Vec<_> = moves.iter().map(|&(from, to, len)| Move { from, to, len }).collect();
        order(&moves)
    }

    #[test]
    fn nothing_is_overwritten_before_it_was_read() {
        assert_eq!(listed(&[]), Some(vec![]));
        assert_eq!(listed(&[(0, 100, 8), (8, 200, 8)]), Some(vec![0, 1]));
        // Only itself.
        assert_eq!(listed(&[(0, 4, 8)]), Some(vec![0]));
        assert_eq!(listed(&[(0, 8, 8), (8, 16, 8), (16, 24, 8)]), Some(vec![2, 1, 0]));
        assert_eq!(listed(&[(8, 0, 8), (16, 8, 8)]), Some(vec![0, 1]));
        assert_eq!(listed(&[(0, 8, 8), (8, 0, 8)]), None);
        assert_eq!(listed(&[(50, 60, 5), (0, 8, 8), (8, 0, 8)]), None);
    }

    /// Whatever the pieces, an order that is found copies what was there.
    #[test]
    fn an_order_copies_what_was_there() {
        let (mut seed, mut found) = (7_u64, 0);
        let mut random = |below: u64| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (seed >> 33) % below
        };
        for _ in 0..2000 {
            // Sources and targets do not meet among themselves, as the lists of the commands must not.
            let slots = |random: &mut dyn FnMut(u64) -> u64| {
                let mut slots: Vec<u64> = (0..6).map(|slot| slot * 10 + random(5)).collect();
                for at in 0..slots.len() {
                    slots.swap(at, random(6) as usize);
                }
                slots
            };
            let (from, to) = (slots(&mut random), slots(&mut random));
            let moves: Vec<Move> =
                from.iter().zip(&to).take(4).map(|(&from, &to)| Move { from, to, len: 5 }).collect();
            let Some(order) = order(&moves) else { continue };
            found += 1;
            let old: Vec<usize> = (0..70).collect();
            let mut new = old.clone();
            for one in order.iter().map(|index| moves[*index]) {
                let (from, to, len) = (one.from as usize, one.to as usize, one.len as usize);
                new.copy_within(from..from + len, to);
            }
            for one in &moves {
                let (from, to, len) = (one.from as usize, one.to as usize, one.len as usize);
                assert_eq!(new[to..to + len], old[from..from + len], "{moves:?}");
            }
        }
        assert!(found > 500, "{found}");
    }
}
