//! Filters made short: what the compiler writes is mostly jumps to jumps, and the kernel keeps a filter for each thread and
//! runs it for each call that it has to look at.

use seccompiler::sock_filter;

/// Classes of instructions and the jumps among them (linux/bpf_common.h).
const CLASS: u16 = 0x07;
const CLASS_JUMP: u16 = 0x05;
const CLASS_RETURN: u16 = 0x06;
const ALWAYS: u16 = 0x05;

/// What an instruction is followed by.
enum Next {
    Nothing,
    One(usize),
    Either(usize, usize),
}

fn next(program: &[sock_filter], at: usize) -> Next {
    match program.get(at) {
        None => Next::Nothing,
        Some(one) if one.code == ALWAYS => Next::One(at + 1 + one.k as usize),
        Some(one) if one.code & CLASS == CLASS_JUMP => {
            Next::Either(at + 1 + usize::from(one.jt), at + 1 + usize::from(one.jf))
        }
        Some(one) if one.code & CLASS == CLASS_RETURN => Next::Nothing,
        Some(_) => Next::One(at + 1),
    }
}

/// Where a jump from `at` to `to` leads in the end, as far as one jump with a condition reaches.
fn end(program: &[sock_filter], at: usize, mut to: usize) -> usize {
    while let Some(one) = program.get(to).filter(|one| one.code == ALWAYS) {
        let further = to + 1 + one.k as usize;
        if further - at - 1 > usize::from(u8::MAX) {
            break;
        }
        to = further;
    }
    to
}

/// The same program, without jumps to jumps and without what nothing leads to. Jumps lead forward, as the kernel demands.
pub(super) fn compact(program: &[sock_filter]) -> Vec<sock_filter> {
    let offset = |at: usize, to: usize| (to - at - 1) as u8;
    let mut direct = program.to_vec();
    for (at, one) in direct.iter_mut().enumerate() {
        if let Next::Either(yes, no) = next(program, at) {
            (one.jt, one.jf) = (offset(at, end(program, at, yes)), offset(at, end(program, at, no)));
        }
    }
    let mut needed = vec![false; direct.len()];
    if let Some(first) = needed.first_mut() {
        *first = true;
    }
    for at in 0..direct.len() {
        if needed.get(at) != Some(&true) {
            continue;
        }
        let (one, other) = match next(&direct, at) {
            Next::Nothing => continue,
            Next::One(to) => (to, to),
            Next::Either(yes, no) => (yes, no),
        };
        for to in [one, other] {
            if let Some(needed) = needed.get_mut(to) {
                *needed = true;
            }
        }
    }
    let left: Vec<usize> = needed
        .iter()
        .scan(0, |count, needed| {
            let before = *count;
            *count += usize::from(*needed);
            Some(before)
        })
        .collect();
    let place = |to: usize| left.get(to).copied().unwrap_or(left.len());
    let all = direct.iter().enumerate().filter(|(at, _)| needed.get(*at) == Some(&true));
    all.map(|(at, one)| {
        let mut one = one.clone();
        match next(&direct, at) {
            Next::Either(yes, no) => {
                (one.jt, one.jf) = (offset(place(at), place(yes)), offset(place(at), place(no)));
            }
            Next::One(to) if one.code == ALWAYS => one.k = (place(to) - place(at) - 1) as u32,
            _ => {}
        }
        one
    })
    .collect()
}
