//! Texts that claim to be the configuration of a machine, with options of the command line.
#![cfg_attr(fuzzing, no_main)]

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use fuzz::{QCOW2, harmless};
use vmm::config::{Host, parse};

fn directory() -> &'static Path {
    static DIRECTORY: OnceLock<PathBuf> = OnceLock::new();
    DIRECTORY.get_or_init(|| {
        let directory = tempfile::tempdir_in("/dev/shm").expect("a folder in memory").keep();
        for name in ["vmlinuz", "initrd", "a.img", "b.img", "rom"] {
            std::fs::write(directory.join(name), [0; 4096]).expect("space in memory");
        }
        std::fs::write(directory.join("d.qcow2"), QCOW2).expect("space in memory");
        std::fs::write(directory.join("e"), "").expect("space in memory");
        std::fs::create_dir(directory.join("dir")).expect("a folder");
        directory
    })
}

fuzz::target!(|input: &[u8]| {
    let Some(text) = harmless(input) else { return };
    // Lines that begin with this are options.
    let (options, lines): (Vec<&str>, Vec<&str>) =
        text.split('\n').partition(|line| line.starts_with("--set "));
    let set: Vec<String> = options.iter().take(8).map(|option| option[6..].to_owned()).collect();
    let text = lines.join("\n");
    let path = directory().join("vm.toml");
    let host = Host { memory: Some(32 << 30), huge_pages: vec![(2 << 20, 600), (1 << 30, 0)], root: true };
    let errors = match parse(&text, &path, &set, &host) {
        Ok(config) => {
            assert!(!config.summary().contains('\n'));
            return;
        }
        Err(errors) => errors,
    };
    assert!(!errors.is_empty(), "refused without a word");
    for error in errors {
        let said = error.to_string();
        assert!(!said.contains(char::is_control), "{said:?} is no line");
        let file = path.display().to_string();
        let Some(rest) = said.strip_prefix(&file) else {
            assert!(said.starts_with("--set "), "{said:?} names neither file nor option");
            continue;
        };
        let Some(rest) = rest.strip_prefix(':') else { panic!("{said:?} has no place") };
        if let Some((number, what)) = rest.split_once(": ")
            && let Ok(number) = number.parse::<usize>()
        {
            assert!(
                (1..=lines.len().max(1)).contains(&number),
                "{said:?} is not in the {} lines",
                lines.len()
            );
            assert!(!what.trim().is_empty(), "{said:?} says nothing");
        } else {
            // For what is missing from the file as a whole.
            assert!(rest.trim().len() > 3, "{said:?} says nothing");
        }
    }
});
