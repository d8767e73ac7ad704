//! Ports that somebody may create under names of his own choice: how many, and which names.

use std::fmt;
use std::str::FromStr;

use crate::names::Names;
use crate::wwn::Wwn;

/// Names from and to, both included: a list such as `2100020000000001, 2100020000000100-21000200000001ff`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ranges(Vec<(Wwn, Wwn)>);

/// What is no such list.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is neither a World Wide Name nor two with a dash between them, the smaller one first")]
pub struct Malformed(pub String);

impl Ranges {
    /// Whether a name is among them.
    pub fn has(&self, name: Wwn) -> bool {
        self.0.iter().any(|(from, to)| (from..=to).contains(&&name))
    }

    /// From and to, each.
    pub fn iter(&self) -> impl Iterator<Item = (Wwn, Wwn)> {
        self.0.iter().copied()
    }
}

impl FromIterator<(Wwn, Wwn)> for Ranges {
    fn from_iter<T: IntoIterator<Item = (Wwn, Wwn)>>(ranges: T) -> Self {
        Self(ranges.into_iter().collect())
    }
}

impl FromStr for Ranges {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        let range = |part: &str| {
            let part = part.trim();
            if let Ok(name) = part.parse() {
                return Ok((name, name));
            }
            // A name may have a dash of its own before it ("wwn-2100...").
            let both = |(at, _): (usize, &str)| {
                let (from, to) = part.split_at_checked(at)?;
                let name = |text: &str| text.trim().parse::<Wwn>().ok();
                name(from).zip(name(to.strip_prefix('-')?)).filter(|(from, to)| from <= to)
            };
            part.match_indices('-').find_map(both).ok_or_else(|| Malformed(part.into()))
        };
        text.split(',').map(range).collect()
    }
}

/// What a guest may have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Allowed {
    /// Ports at a time, 1 and more.
    pub most: u16,
    /// Their names, and those of their nodes.
    pub names: Ranges,
}

/// Why a guest may not have a port with these names: for the operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotAllowed {
    /// `WWPN` or `WWNN`.
    pub which: &'static str,
    /// The name.
    pub name: Wwn,
}

impl Allowed {
    /// Whether a guest may have a port with these names. `node` is the name of the node of the adapter's own port, which it may have for others
    /// as well.
    ///
    /// # Errors
    /// The first of both names that is not allowed.
    pub fn check(&self, names: Names, node: Wwn) -> Result<(), NotAllowed> {
        if !self.names.has(names.wwpn) {
            return Err(NotAllowed { which: "WWPN", name: names.wwpn });
        }
        if names.wwnn != node && !self.names.has(names.wwnn) {
            return Err(NotAllowed { which: "WWNN", name: names.wwnn });
        }
        Ok(())
    }
}

impl fmt::Display for NotAllowed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "its {} {} is not among vport_names of [hba.fc]; add it there to allow it",
            self.which, self.name
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranges(text: &str) -> Vec<(u64, u64)> {
        text.parse::<Ranges>().unwrap().iter().map(|(from, to)| (from.bits(), to.bits())).collect()
    }

    #[test]
    fn lists_are_read_in_all_forms_of_names() {
        let one = 0x2100_0200_0000_0001;
        assert_eq!(ranges("2100020000000001"), [(one, one)]);
        assert_eq!(ranges("wwn-2100020000000001"), [(one, one)]);
        assert_eq!(
            ranges(" 21:00:02:00:00:00:00:01 ,0x2100020000000100 - wwn-21000200000001ff"),
            [(one, one), (0x2100_0200_0000_0100, 0x2100_0200_0000_01ff)]
        );
        for text in [
            "",
            "1",
            "2100020000000001,",
            "2100020000000002-2100020000000001",
            "2100020000000001-",
            "-",
            "x-y",
        ] {
            assert!(text.parse::<Ranges>().is_err(), "{text}");
        }
    }

    #[test]
    fn both_names_are_to_be_allowed() {
        let names = |wwnn, wwpn| Names { wwnn: Wwn::new(wwnn), wwpn: Wwn::new(wwpn) };
        let allowed = Allowed { most: 1, names: "2100020000000001-2100020000000002".parse().unwrap() };
        let (first, node) = (0x2100_0200_0000_0001, Wwn::new(0x2000_0000_0000_0009));
        assert_eq!(allowed.check(names(first + 1, first), node), Ok(()));
        assert_eq!(allowed.check(names(node.bits(), first), node), Ok(()));
        let refused = allowed.check(names(first, first + 2), node).unwrap_err();
        assert_eq!((refused.which, refused.name.bits()), ("WWPN", first + 2));
        let refused = allowed.check(names(first + 2, first), node).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "its WWNN 2100020000000003 is not among vport_names of [hba.fc]; add it there to allow it"
        );
    }
}
