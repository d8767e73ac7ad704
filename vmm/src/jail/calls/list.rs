//! A list of system calls, some of them with certain arguments only.

use std::collections::BTreeMap;

use seccompiler::SeccompCmpArgLen::{Dword, Qword};
use seccompiler::{BackendError, SeccompCmpOp, SeccompCondition, SeccompRule};

/// One argument: its number, and what its lower 32 bits must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Argument {
    /// This value.
    Is(u8, u32),
    /// No pointer.
    Null(u8),
    /// This value, in the bits of the mask.
    Has { number: u8, mask: u32, value: u32 },
}

impl Argument {
    fn condition(self) -> Result<SeccompCondition, BackendError> {
        match self {
            Self::Is(number, value) => SeccompCondition::new(number, Dword, SeccompCmpOp::Eq, value.into()),
            Self::Null(number) => SeccompCondition::new(number, Qword, SeccompCmpOp::Eq, 0),
            Self::Has { number, mask, value } => {
                SeccompCondition::new(number, Dword, SeccompCmpOp::MaskedEq(mask.into()), value.into())
            }
        }
    }
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

    pub(super) fn into_rules(self) -> Result<BTreeMap<i64, Vec<SeccompRule>>, BackendError> {
        let rule = |argument: Argument| SeccompRule::new(vec![argument.condition()?]);
        let rules = |arguments: Option<Vec<Argument>>| {
            arguments.into_iter().flatten().map(rule).collect::<Result<Vec<_>, _>>()
        };
        self.0.into_iter().map(|(call, arguments)| Ok((call, rules(arguments)?))).collect()
    }
}
