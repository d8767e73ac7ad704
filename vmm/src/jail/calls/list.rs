//! A list of system calls, some of them with certain arguments only.

use std::collections::BTreeMap;

use super::program::Answer;

/// One argument: its number, and what its lower 32 bits must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Argument {
    /// This value.
    Is(u8, u32),
    /// Any other value.
    Not(u8, u32),
    /// No pointer.
    Null(u8),
    /// This value, in the bits of the mask.
    Has { number: u8, mask: u32, value: u32 },
    /// Of two arguments: the number of each, a mask, and this value in its bits.
    Both([(u8, u32, u32); 2]),
}

/// The calls. One that is there without arguments is allowed with any.
#[derive(Clone, Debug, Default)]
pub(super) struct List(BTreeMap<libc::c_long, Option<Vec<Argument>>>);

impl List {
    /// Allows these calls, whatever their arguments.
    pub(super) fn any(&mut self, calls: &[libc::c_long]) {
        for call in calls {
            self.0.insert(*call, None);
        }
    }

    /// Allows a call with this argument, beside those with which it is allowed already.
    pub(super) fn with(&mut self, call: libc::c_long, argument: Argument) {
        if let Some(arguments) = self.0.entry(call).or_insert_with(|| Some(Vec::new())) {
            arguments.push(argument);
        }
    }

    /// Allows a call with each of these values of an argument.
    pub(super) fn with_each(&mut self, call: libc::c_long, number: u8, values: &[u32]) {
        for value in values {
            self.with(call, Argument::Is(number, *value));
        }
    }

    /// What `other` allows and this does not.
    #[cfg(test)]
    pub(super) fn lacks(&self, other: &Self) -> Vec<libc::c_long> {
        let has = |call: &libc::c_long, arguments: &Option<Vec<Argument>>| match (self.0.get(call), arguments)
        {
            (None, _) | (Some(Some(_)), None) => false,
            (Some(None), _) => true,
            (Some(Some(own)), Some(wanted)) => wanted.iter().all(|argument| own.contains(argument)),
        };
        other.0.iter().filter(|(call, arguments)| !has(call, arguments)).map(|(call, _)| *call).collect()
    }

    /// What is said of each: that it is allowed, and `rest` with other arguments.
    pub(super) fn into_answers(self, rest: u32) -> BTreeMap<u32, Answer> {
        let answer = |arguments: Option<Vec<Argument>>| match arguments {
            None => Answer::any(libc::SECCOMP_RET_ALLOW),
            Some(all) => {
                let checks = all.into_iter().map(|argument| (argument, libc::SECCOMP_RET_ALLOW)).collect();
                Answer { checks, rest }
            }
        };
        self.0.into_iter().map(|(call, arguments)| (call as u32, answer(arguments))).collect()
    }

    /// The calls, each with the arguments with which it is allowed.
    #[cfg(test)]
    pub(super) fn calls(&self) -> impl Iterator<Item = (libc::c_long, &[Argument])> {
        self.0.iter().map(|(call, arguments)| (*call, arguments.as_deref().unwrap_or_default()))
    }
}
