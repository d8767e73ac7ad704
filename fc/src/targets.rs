//! What is stored of a machine for good: the number by which its guest knows each target port.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::state::file::{Put, make, put, read};
use crate::state::{StateError, Store, is_name};
use crate::wwn::Wwn;

/// Numbers of targets, by the WWPN of the port.
pub type Numbers = BTreeMap<Wwn, u8>;

#[derive(Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    target: Vec<Entry>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    number: u8,
    wwpn: Wwn,
}

impl Store {
    /// The numbers that targets had for an owner; none if nothing is stored.
    ///
    /// # Errors
    /// [`StateError`]: what is stored says nothing. It is put aside, and is not in the way of what is stored next.
    pub fn targets(&self, owner: &str) -> Result<Numbers, StateError> {
        let path = self.targets_path(owner)?;
        let file = match read::<File>(&path).and_then(|file| self.numbers(&path, file.unwrap_or_default())) {
            Ok(numbers) => return Ok(numbers),
            Err(error) => error,
        };
        // Whatever becomes of that, the error says what is wrong.
        let _ = fs::rename(&path, path.with_extension("broken"));
        Err(file)
    }

    fn numbers(&self, path: &std::path::Path, file: File) -> Result<Numbers, StateError> {
        let mut numbers = Numbers::new();
        for Entry { number, wwpn } in file.target {
            if numbers.values().any(|other| *other == number) || numbers.insert(wwpn, number).is_some() {
                let why = format!("target {number} ({wwpn}) is there twice");
                return Err(StateError::Broken { path: path.into(), why });
            }
        }
        Ok(numbers)
    }

    /// Stores numbers of an owner, on the disk when this returns: whole, or not at all.
    ///
    /// # Errors
    /// [`StateError`]; what was stored before is still there.
    pub fn keep_targets(&self, owner: &str, numbers: &Numbers) -> Result<(), StateError> {
        let path = self.targets_path(owner)?;
        make(&self.keep.join("targets"))?;
        let mut target: Vec<_> =
            numbers.iter().map(|(wwpn, number)| Entry { number: *number, wwpn: *wwpn }).collect();
        target.sort_by_key(|entry| entry.number);
        put(&path, &File { target }, Put::InPlace)
    }

    fn targets_path(&self, owner: &str) -> Result<PathBuf, StateError> {
        let place = is_name(owner).then(|| self.keep.join("targets").join(format!("{owner}.toml")));
        place.ok_or_else(|| StateError::Name(owner.chars().take(64).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tempfile::TempDir;

    #[test]
    fn numbers_are_there_at_the_next_start() {
        let directory = TempDir::new().unwrap();
        let store = Store::below(directory.path());
        assert_eq!(store.targets("vm1.hba0").unwrap(), Numbers::new());
        let numbers =
            Numbers::from([(Wwn::new(0x5006_0160_4460_2198), 1), (Wwn::new(0x5006_0160_4460_2199), 0)]);
        store.keep_targets("vm1.hba0", &numbers).unwrap();
        assert_eq!(store.targets("vm1.hba0").unwrap(), numbers);
        assert_eq!(store.targets("vm1.hba1").unwrap(), Numbers::new());
        let path = directory.path().join("var/lib/vmm/fc/targets/vm1.hba0.toml");
        assert_eq!(
            fs::read_to_string(&path).unwrap(),
            "[[target]]\nnumber = 0\nwwpn = \"5006016044602199\"\n\n[[target]]\nnumber = 1\nwwpn = \"5006016044602198\"\n"
        );
        assert!(store.definitions().unwrap().is_empty(), "it is none");
        assert!(matches!(store.targets("../x"), Err(StateError::Name(_))));
    }

    #[test]
    fn what_says_nothing_is_put_aside() {
        let directory = TempDir::new().unwrap();
        let store = Store::below(directory.path());
        let path = directory.path().join("var/lib/vmm/fc/targets/a.toml");
        store.keep_targets("a", &Numbers::new()).unwrap();
        let two = "[[target]]\nnumber = 0\nwwpn = \"5006016044602199\"\n";
        for text in [
            "\u{0}",
            "[[target]]\nnumber = 256\nwwpn = \"5006016044602199\"\n",
            &format!("{two}{two}"),
            "x = 1\n",
        ] {
            fs::write(&path, text).unwrap();
            let said = store.targets("a").unwrap_err().to_string();
            assert!(said.starts_with(&format!("{}: ", path.display())), "{said}");
            assert_eq!(fs::read_to_string(path.with_extension("broken")).unwrap(), text);
            assert_eq!(store.targets("a").unwrap(), Numbers::new());
        }
    }
}
