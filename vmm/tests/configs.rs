//! The examples and the documentation agree with the code.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;
use vmm::config::schema::{Key, Kind, ROOT, Status};
use vmm::config::{Cache, Config, Controller, Device, Host, Restart, Serial, VhostScsi, VirtioScsi, parse};

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn text(path: &str) -> String {
    fs::read_to_string(workspace().join(path)).unwrap()
}

/// Where Debian's package of SeaBIOS has its images.
const SEABIOS: &str = "/usr/share/seabios/";

/// The files that a machine needs to be there, from its configuration's `text`.
fn files(text: &str) -> Vec<String> {
    fn collect(key: &str, value: &toml::Value, found: &mut Vec<String>) {
        match value {
            toml::Value::String(file) if ["kernel", "initrd", "firmware", "image"].contains(&key) => {
                found.push(file.clone());
            }
            toml::Value::Table(table) => table.iter().for_each(|(key, value)| collect(key, value, found)),
            toml::Value::Array(items) => items.iter().for_each(|item| collect(key, item, found)),
            _ => {}
        }
    }
    let mut found = Vec::new();
    collect("", &toml::Value::Table(text.parse().unwrap()), &mut found);
    found
}

/// A qcow2 image of one cluster of 4096 bytes with nothing in it (QEMU, docs/interop/qcow2.rst).
fn empty_qcow2() -> Vec<u8> {
    let mut bytes = vec![0; 3 * 4096];
    let fields: [(usize, &[u8]); 8] = [
        (0, b"QFI\xfb\0\0\0\x03"),
        (20, &12u32.to_be_bytes()),   // 4096 bytes a cluster
        (24, &4096u64.to_be_bytes()), // bytes of the disk
        (36, &1u32.to_be_bytes()),    // entries of the L1 table, and where it is
        (40, &4096u64.to_be_bytes()),
        (48, &8192u64.to_be_bytes()), // the refcount table, of one cluster
        (56, &1u32.to_be_bytes()),
        (96, &[0, 0, 0, 4, 0, 0, 0, 104]),
    ];
    for (at, field) in fields {
        bytes[at..at + field.len()].copy_from_slice(field);
    }
    bytes
}

/// Reads `text` as a file called `name`, in a directory that has every file it names (SeaBIOS, too).
fn read(name: &str, text: &str) -> (TempDir, Config) {
    let directory = TempDir::new().unwrap();
    let text = &text.replace(SEABIOS, "");
    for file in files(text) {
        let content = if file.ends_with(".qcow2") { empty_qcow2() } else { vec![0; 4096] };
        fs::write(directory.path().join(file), content).unwrap();
    }
    let config = parse(text, &directory.path().join(name), &[], &Host::default());
    let config = config.unwrap_or_else(|errors| {
        let lines: Vec<_> = errors.iter().map(ToString::to_string).collect();
        panic!("{name}:\n{}", lines.join("\n"));
    });
    (directory, config)
}

fn example(name: &str) -> Config {
    read(name, &text(&format!("configs/{name}"))).1
}

#[test]
fn every_example_is_a_machine() {
    let mut count = 0;
    for entry in fs::read_dir(workspace().join("configs")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(example(&name).vm.memory > 0);
        count += 1;
    }
    assert!(count >= 3);
}

#[test]
fn the_files_of_an_example_are_made_by_the_commands_it_begins_with() {
    let shell =
        |readme: &str| readme.split("```").filter(|part| part.starts_with("sh\n")).collect::<String>();
    let readme = text("README.md");
    let mut examples = vec![("README.md".to_owned(), blocks(&readme).remove(0), shell(&readme))];
    for entry in fs::read_dir(workspace().join("configs")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let text = text(&format!("configs/{name}"));
        let commands = text.lines().take_while(|line| line.starts_with('#')).collect::<Vec<_>>().join("\n");
        examples.push((name, text, commands));
    }
    for (name, text, commands) in examples {
        for file in files(&text) {
            let made = match file.strip_prefix(SEABIOS) {
                Some(_) => commands.contains("seabios"),
                None => commands.split([' ', '/', '\n']).any(|word| word == file),
            };
            assert!(made, "{name}: nothing says where {file} comes from");
        }
    }
}

#[test]
fn the_examples_mean_what_their_comments_say() {
    assert_eq!(example("minimal.toml").summary(), "minimal: 1 vCPU, 512MiB, 1 HBA, 1 logical unit");
    let debian = example("debian.toml");
    assert_eq!(debian.summary(), "deb13: 2 vCPUs, 1GiB, 1 HBA, 1 logical unit");
    let Device::Disk(disk) = &debian.hbas[0].luns[0].device else { panic!() };
    assert!(disk.discard && disk.cache == Cache::None);
    let storage = example("storage.toml");
    assert_eq!(storage.vm.on_reset, Restart::Exit);
    assert!(matches!(storage.serial, Serial::File(_)));
    assert_eq!(storage.hbas[1].controller, Controller::VirtioScsi(VirtioScsi::with_queues(8)));
    let addresses: Vec<_> = storage.hbas[1].luns.iter().map(|lun| (lun.target, lun.lun)).collect();
    assert_eq!(addresses, [(4, 0), (4, 1), (0, 0)]);
    let vhost = VhostScsi { wwpn: "naa.5001405a1b2c3d4e".into(), queues: 2, queue_size: 128 };
    assert_eq!(example("vhost.toml").hbas[0].controller, Controller::VhostScsi(vhost));
}

/// The TOML examples of a document.
fn blocks(document: &str) -> Vec<String> {
    let parts = document.split("```toml\n").skip(1);
    parts.map(|part| part.split("```").next().unwrap().to_owned()).collect()
}

#[test]
fn the_examples_of_the_documents_are_machines() {
    for document in ["README.md", "docs/configuration.md"] {
        let blocks = blocks(&text(document));
        assert!(!blocks.is_empty(), "{document}");
        for block in blocks {
            read("vm.toml", &block);
        }
    }
}

/// The rows of the tables of keys: section title and key, to the rest of the row.
fn documented() -> BTreeMap<(String, String), String> {
    let (mut rows, mut title, mut keys) = (BTreeMap::new(), String::new(), false);
    for line in text("docs/configuration.md").lines() {
        if let Some(heading) = line.strip_prefix("## ") {
            heading.clone_into(&mut title);
        } else if line.starts_with("| ") && line.contains(" | type | ") {
            keys = true;
        } else if !line.starts_with('|') {
            keys = false;
        } else if let Some((key, rest)) = line.strip_prefix("| `").and_then(|row| row.split_once("` | "))
            && keys
        {
            let before = rows.insert((title.clone(), key.to_owned()), rest.to_owned());
            assert!(before.is_none(), "`{key}` in {title} is there twice");
        }
    }
    rows
}

/// Every key of the schema with the title of the section that documents it.
fn known() -> Vec<(String, &'static Key)> {
    fn collect(title: &str, path: &str, keys: &'static [Key], found: &mut Vec<(String, &'static Key)>) {
        for key in keys {
            let inner = if path.is_empty() { key.name.to_owned() } else { format!("{path}.{}", key.name) };
            match key.kind {
                Kind::Table(keys) => collect(&format!("[{inner}]"), &inner, keys, found),
                Kind::Tables(keys) => collect(&format!("[[{inner}]]"), &inner, keys, found),
                _ => {}
            }
            // A table of the top level has a section instead.
            if !path.is_empty() || matches!(key.kind, Kind::Later) {
                found.push((title.to_owned(), key));
            }
        }
    }
    let mut found = Vec::new();
    collect("[[net]], [display]", "", ROOT, &mut found);
    found
}

#[test]
fn every_key_is_documented_where_it_belongs_and_no_other() {
    let (documented, known) = (documented(), known());
    assert!(known.len() > 40);
    for (title, key) in &known {
        let row = documented.get(&(title.clone(), key.name.to_owned()));
        assert!(row.is_some(), "`{}` of {title} is not documented", key.name);
    }
    for (title, name) in documented.keys() {
        let found = known.iter().any(|(known, key)| known == title && key.name == name);
        assert!(found, "`{name}` in {title} is documented and not known");
    }
}

#[test]
fn the_documentation_says_what_a_key_takes_and_what_is_not_yet() {
    let documented = documented();
    for (title, key) in known() {
        let row = &documented[&(title.clone(), key.name.to_owned())];
        let (kind, rest) = row.split_once(" | ").unwrap();
        let mut not_yet = key.status == Status::NotYet;
        match &key.kind {
            Kind::Choice(choices) | Kind::BoolOrChoice(choices) | Kind::ChoiceOrStrings(choices) => {
                for name in choices.names {
                    assert!(
                        kind.contains(&format!("`\"{name}\"`")),
                        "{title} {}: {name} is missing",
                        key.name
                    );
                }
                not_yet |= !choices.not_yet.is_empty();
            }
            Kind::Integer(least, most) if *least == 0 && *most == 65534 => {
                assert_eq!(kind, "0, 1, or 1025 to 65534");
            }
            Kind::Integer(least, most) if key.name != "physical_block_size" => {
                assert_eq!(kind, format!("{least} to {most}"), "{title} {}", key.name);
            }
            Kind::Ascii(most) if key.name != "id" => {
                assert_eq!(kind, format!("1 to {most} ASCII characters"), "{title} {}", key.name);
            }
            Kind::Size => assert_eq!(kind, "size"),
            Kind::Bool => assert_eq!(kind, "boolean"),
            Kind::Path => assert_eq!(kind, "path"),
            _ => {}
        }
        let says = rest.to_lowercase().contains("**not yet**");
        assert_eq!(says, not_yet, "{title} {}: what is said of \"not yet\"", key.name);
    }
}

#[test]
fn the_exit_codes_of_the_readme_are_those_of_the_command() {
    use vmm::exit::{HELP, Outcome};
    let readme = text("README.md");
    for outcome in [Outcome::PoweredOff, Outcome::Failed, Outcome::Reset, Outcome::Crashed] {
        let code = outcome as u8;
        assert!(readme.contains(&format!("\n| {code} | ")), "{outcome:?}");
        assert!(HELP.contains(&format!("\n  {code}  ")), "{outcome:?}");
    }
}
