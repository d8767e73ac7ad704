//! Filters as programs that are made quickly and short, and searched by halves for the number of a call.
//!
//! When a thread takes a filter, the kernel (5.11 and newer) runs it in its mind for each number of a call that there is, so
//! that it need not run it for those that are always allowed; it translates it to instructions of the processor, and keeps
//! all this for each thread. A list of comparisons, as compilers of filters write it, makes that some 460 times its
//! length; docs/performance.md has what it costs.

use std::collections::BTreeMap;

use libc::sock_filter;

use super::list::Argument;

/// `struct seccomp_data` (linux/seccomp.h): where the number of the call, the architecture and the arguments are.
pub(super) const NUMBER: u32 = 0;
pub(super) const ARCHITECTURE: u32 = 4;
pub(super) const ARGUMENTS: u32 = 16;

/// AUDIT_ARCH_X86_64 (linux/audit.h).
pub(super) const X86_64: u32 = 62 | 0x8000_0000 | 0x4000_0000;

/// Instructions (linux/bpf_common.h): load a word, cut it, go on if it is a value or at least that, go on, return.
pub(super) const LOAD: u16 = 0x20;
pub(super) const AND: u16 = 0x54;
pub(super) const IF_EQUAL: u16 = 0x15;
pub(super) const IF_AT_LEAST: u16 = 0x35;
pub(super) const GO_ON: u16 = 0x05;
pub(super) const RETURN: u16 = 0x06;

/// How far a jump with a condition goes: a little less than it could, for what may have to come in between.
const REACH: usize = u8::MAX as usize - 3;

/// What is said of a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    /// That of the first argument that is as it says.
    pub(super) checks: Vec<(Argument, u32)>,
    /// That of no such one.
    pub(super) rest: u32,
}

impl Answer {
    /// Whatever the arguments.
    pub(super) fn any(rest: u32) -> Self {
        Self { checks: Vec::new(), rest }
    }
}

/// The program that says this of calls, `rest` of those that are not there, and ends a process that makes calls of other
/// architectures. One call may be looked for before all others.
pub(super) fn program(
    mut answers: BTreeMap<u32, Answer>,
    rest: u32,
    first: Option<libc::c_long>,
) -> Vec<sock_filter> {
    let first = first.and_then(|call| answers.remove_entry(&(call as u32)));
    let rest = Answer::any(rest);
    let mut code = Backwards::default();
    let mut begin = code.search(&parts(&answers, &rest));
    if let Some((call, answer)) = &first {
        let found = code.answer(answer);
        begin = code.branch(IF_EQUAL, *call, found, begin);
    }
    let begin = code.then(LOAD, NUMBER, begin);
    let other = code.then(RETURN, libc::SECCOMP_RET_KILL_PROCESS, begin);
    let begin = code.branch(IF_EQUAL, X86_64, begin, other);
    code.then(LOAD, ARCHITECTURE, begin);
    code.0.reverse();
    code.0
}

/// Numbers from this one to that of the next part, of which the same is said.
type Part<'a> = (u32, &'a Answer);

fn parts<'a>(answers: &'a BTreeMap<u32, Answer>, rest: &'a Answer) -> Vec<Part<'a>> {
    let (mut parts, mut next) = (Vec::<Part<'_>>::new(), 0);
    let mut add = |from, answer| {
        if parts.last().is_none_or(|(_, last)| *last != answer) {
            parts.push((from, answer));
        }
    };
    for (call, answer) in answers {
        if *call > next {
            add(next, rest);
        }
        add(*call, answer);
        next = call.saturating_add(1);
    }
    add(next, rest);
    parts
}

/// A program that is written from its end, so that a jump knows where it leads to.
#[derive(Default)]
struct Backwards(Vec<sock_filter>);

/// An instruction: how many are behind it.
type Place = usize;

impl Backwards {
    fn push(&mut self, code: u16, k: u32, jt: usize, jf: usize) -> Place {
        self.0.push(sock_filter { code, jt: jt as u8, jf: jf as u8, k });
        self.0.len() - 1
    }

    /// How many are between the next one and that place.
    fn between(&self, place: Place) -> usize {
        (self.0.len() - place).saturating_sub(1)
    }

    /// An instruction that goes on at a place, if at all.
    fn then(&mut self, code: u16, k: u32, next: Place) -> Place {
        if code != RETURN && self.between(next) > 0 {
            self.push(GO_ON, self.between(next) as u32, 0, 0);
        }
        self.push(code, k, 0, 0)
    }

    /// One that goes on at one of two.
    fn branch(&mut self, code: u16, k: u32, yes: Place, no: Place) -> Place {
        let yes = self.near(yes);
        let no = self.near(no);
        self.push(code, k, self.between(yes), self.between(no))
    }

    /// The place, or one in reach that does the same.
    fn near(&mut self, place: Place) -> Place {
        if self.between(place) <= REACH {
            return place;
        }
        match self.0.get(place) {
            Some(there) if there.code == RETURN => self.returns(there.k),
            _ => self.push(GO_ON, self.between(place) as u32, 0, 0),
        }
    }

    fn returns(&mut self, answer: u32) -> Place {
        let near = self.0.len().saturating_sub(REACH);
        let same = |one: &sock_filter| one.code == RETURN && one.k == answer;
        match self.0.iter().skip(near).position(same) {
            Some(at) => near + at,
            None => self.push(RETURN, answer, 0, 0),
        }
    }

    fn answer(&mut self, answer: &Answer) -> Place {
        let mut next = self.returns(answer.rest);
        // The argument that what comes next takes to be loaded.
        let mut loaded = None;
        for (argument, result) in answer.checks.iter().rev() {
            let yes = self.returns(*result);
            if let Some(other) =
                loaded.take_if(|number| !matches!(argument, Argument::Is(own, _) if own == number))
            {
                next = self.then(LOAD, low(other), next);
            }
            match *argument {
                Argument::Is(number, value) => {
                    next = self.branch(IF_EQUAL, value, yes, next);
                    loaded = Some(number);
                }
                Argument::Not(number, value) => {
                    let compared = self.branch(IF_EQUAL, value, next, yes);
                    next = self.then(LOAD, low(number), compared);
                }
                Argument::Null(number) => {
                    let compared = self.branch(IF_EQUAL, 0, yes, next);
                    let high = self.then(LOAD, low(number) + 4, compared);
                    let compared = self.branch(IF_EQUAL, 0, high, next);
                    next = self.then(LOAD, low(number), compared);
                }
                Argument::Has { number, mask, value } => {
                    let compared = self.branch(IF_EQUAL, value, yes, next);
                    let cut = self.then(AND, mask, compared);
                    next = self.then(LOAD, low(number), cut);
                }
                Argument::Both(arguments) => {
                    let mut found = yes;
                    for (number, mask, value) in arguments.into_iter().rev() {
                        let compared = self.branch(IF_EQUAL, value, found, next);
                        let cut = self.then(AND, mask, compared);
                        found = self.then(LOAD, low(number), cut);
                    }
                    next = found;
                }
            }
        }
        match loaded {
            Some(number) => self.then(LOAD, low(number), next),
            None => next,
        }
    }

    /// Finds the part that a number is in.
    fn search(&mut self, parts: &[Part<'_>]) -> Place {
        match *parts {
            [] => self.returns(libc::SECCOMP_RET_KILL_PROCESS),
            [(_, answer)] => self.answer(answer),
            // One number among others.
            [(_, around), (call, answer), (end, same)] if end == call + 1 && around == same => {
                let other = self.answer(around);
                let found = self.answer(answer);
                self.branch(IF_EQUAL, call, found, other)
            }
            [..] => {
                let (below, above) = parts.split_at(parts.len() / 2);
                let from = above.first().map_or(0, |(from, _)| *from);
                let at_least = self.search(above);
                let less = self.search(below);
                self.branch(IF_AT_LEAST, from, at_least, less)
            }
        }
    }
}

/// The lower half of an argument.
fn low(number: u8) -> u32 {
    ARGUMENTS + 8 * u32::from(number)
}
