//! Dependencies run one way: between crates by their manifests, within `devices` by every path from the root.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// What each crate may depend on. Development dependencies of the test bed are free.
const CRATES: [(&str, &[&str]); 8] = [
    ("devices", &[]),
    ("fc", &[]),
    ("hba-megasas", &["devices"]),
    ("hba-virtio-scsi", &["devices"]),
    ("boot", &["devices"]),
    ("vmm", &["boot", "devices", "fc", "hba-megasas", "hba-virtio-scsi"]),
    ("testbed", &[]),
    ("fabric", &[]),
];

/// What each module of `devices` may name. Every one may name itself, `log`, and in its tests `testing`.
const MODULES: [(&str, &[&str]); 14] = [
    ("log", &[]),
    ("threads", &[]),
    ("sandbox", &[]),
    ("mem", &[]),
    ("irq", &[]),
    ("bus", &[]),
    ("machine", &[]),
    ("pci", &["bus", "irq", "mem", "machine"]),
    ("platform", &["bus", "irq", "mem", "machine"]),
    ("iothread", &["mem", "threads"]),
    ("moderation", &[]),
    ("storage", &["iothread", "mem", "sandbox", "threads"]),
    ("scsi", &["storage", "iothread", "mem", "sandbox", "threads"]),
    ("testing", &["mem", "irq", "bus", "pci", "platform", "iothread", "storage", "scsi"]),
];

/// Crates that speak to the hypervisor: only `vmm` may.
const HYPERVISOR: [&str; 2] = ["kvm-bindings", "kvm-ioctls"];

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn manifest(directory: &Path) -> toml::Table {
    fs::read_to_string(directory.join("Cargo.toml")).unwrap().parse().unwrap()
}

/// The names and manifests of the workspace's crates.
fn members() -> Vec<(String, toml::Table)> {
    let root = manifest(&workspace());
    let members = root["workspace"]["members"].as_array().unwrap();
    let member = |directory: &toml::Value| {
        let manifest = manifest(&workspace().join(directory.as_str().unwrap()));
        (manifest["package"]["name"].as_str().unwrap().to_owned(), manifest)
    };
    members.iter().map(member).collect()
}

/// The packages in every table of `manifest` called one of `tables`, those for single targets included.
fn dependencies(manifest: &toml::Table, tables: &[&str]) -> BTreeSet<String> {
    let targets = manifest.get("target").and_then(toml::Value::as_table);
    let targets = targets.into_iter().flat_map(toml::Table::values).filter_map(toml::Value::as_table);
    let mut names = BTreeSet::new();
    for place in std::iter::once(manifest).chain(targets) {
        for table in tables.iter().filter_map(|table| place.get(*table)?.as_table()) {
            for (name, value) in table {
                let package = value.get("package").and_then(toml::Value::as_str);
                names.insert(package.unwrap_or(name).to_owned());
            }
        }
    }
    names
}

#[test]
fn crates_depend_downwards() {
    let members = members();
    for (name, manifest) in &members {
        let (_, allowed) = CRATES
            .iter()
            .find(|(known, _)| known == name)
            .unwrap_or_else(|| panic!("{name} has no place in the layers: add it to CRATES"));
        let mut tables = vec!["dependencies", "build-dependencies"];
        if name != "testbed" {
            tables.push("dev-dependencies");
        }
        let named = dependencies(manifest, &tables);
        for (other, _) in members.iter().filter(|(other, _)| named.contains(other)) {
            assert!(allowed.contains(&other.as_str()), "{name} may not depend on {other}");
        }
        for other in HYPERVISOR {
            assert!(name == "vmm" || !named.contains(other), "{name} may not know the hypervisor: {other}");
        }
    }
}

/// Every crate builds under the lints of the workspace, `unsafe_code` among them.
#[test]
fn crates_take_the_lints_of_the_workspace() {
    for (name, manifest) in members() {
        let lints = manifest.get("lints").and_then(|lints| lints.get("workspace"));
        assert_eq!(lints.and_then(toml::Value::as_bool), Some(true), "{name}");
    }
}

fn is_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

/// The modules that `text` names from the root of its crate: `crate::a`, `crate::{a, b::c}`. Comments do not count.
fn named_modules(text: &str) -> BTreeSet<String> {
    let code = |line: &str| line.split_once("//").map_or(line, |(code, _)| code).to_owned();
    let text = text.lines().map(code).collect::<Vec<_>>().join("\n");
    let mut found = BTreeSet::new();
    for (at, root) in text.match_indices("crate::") {
        if text[..at].ends_with(is_name) {
            continue;
        }
        let rest = text[at + root.len()..].trim_start();
        match rest.strip_prefix('{') {
            Some(group) => found.extend(heads(group)),
            None => {
                found.insert(rest.chars().take_while(|&c| is_name(c)).collect());
            }
        }
    }
    found
}

/// The first name of each path of a group, up to the brace that ends it.
fn heads(group: &str) -> Vec<String> {
    let (mut depth, mut names, mut path) = (1, Vec::new(), String::new());
    for c in group.chars() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        if depth == 0 || (depth == 1 && c == ',') {
            let name: String = path.trim().chars().take_while(|&c| is_name(c)).collect();
            names.extend((!name.is_empty()).then_some(name));
            path.clear();
        } else {
            path.push(c);
        }
        if depth == 0 {
            break;
        }
    }
    names
}

/// Whether a `use` in the first column of `text` climbs `depth` modules or more: out of its own one.
fn climbs_out(text: &str, depth: usize) -> bool {
    let climbs = |line: &str| line.split_once("use ").map_or(0, |(_, path)| path.matches("super::").count());
    text.lines().filter(|line| !line.starts_with([' ', '\t'])).any(|line| climbs(line) >= depth)
}

/// Every source file below a directory.
fn sources(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|suffix| suffix == "rs") {
            found.push(path);
        }
    }
    found
}

#[test]
fn modules_of_devices_name_what_is_below_them() {
    let root = workspace().join("devices/src");
    let mut seen = BTreeSet::new();
    for path in sources(&root) {
        let relative = path.strip_prefix(&root).unwrap().with_extension("");
        let mut parts: Vec<&str> = relative.iter().map(|part| part.to_str().unwrap()).collect();
        if parts == ["lib"] {
            continue;
        }
        parts.pop_if(|last| *last == "mod");
        let (module, shown) = (parts[0], path.display());
        let (name, allowed) = MODULES
            .iter()
            .find(|(known, _)| *known == module)
            .unwrap_or_else(|| panic!("{shown}: {module} has no place in the layers: add it to MODULES"));
        seen.insert(*name);
        let text = fs::read_to_string(&path).unwrap();
        for other in named_modules(&text) {
            let everywhere = ["log", "log_limited", "testing"].contains(&other.as_str());
            let fine = everywhere || other == module || allowed.contains(&other.as_str());
            assert!(fine, "{shown}: {module} may not name {other}");
        }
        assert!(!climbs_out(&text, parts.len()), "{shown}: write crate:: instead of climbing to the root");
    }
    let missing: Vec<&str> =
        MODULES.iter().map(|(name, _)| *name).filter(|name| !seen.contains(name)).collect();
    assert!(missing.is_empty(), "modules that are no more: {missing:?}");
}

/// What starts a thread, past `devices::threads`.
const STARTS: [&str; 6] = [
    "thread::spawn",
    "thread::Builder",
    "thread::{Builder",
    "scope.spawn(",
    "spawn_unchecked",
    "pthread_create",
];

/// The part of a source file that is no test: tests are one module at its end.
fn without_tests(text: &str) -> String {
    let is_tests = |rest: &str| {
        let mut lines = rest.lines().skip(1).skip_while(|line| line.starts_with("#["));
        lines.next().is_some_and(|line| line.starts_with("mod ") && line.ends_with('{'))
    };
    let end = text.match_indices("#[cfg(test)]\n").find(|(at, _)| is_tests(&text[*at..]));
    let code = |line: &str| line.split_once("//").map_or(line, |(code, _)| code).to_owned();
    text[..end.map_or(text.len(), |(at, _)| at)].lines().map(code).collect::<Vec<_>>().join("\n")
}

/// Whether a file is compiled for tests alone.
fn is_test(path: &Path) -> bool {
    let words = ["tests", "testing", "suite", "fakes", "mischief"];
    path.iter().filter_map(|part| part.to_str()).any(|part| {
        let name = part.trim_end_matches(".rs");
        words.contains(&name) || name.ends_with("_tests")
    })
}

/// The sandbox confines each thread by what it is for: one that started elsewhere it would not know.
#[test]
fn threads_start_in_one_place() {
    let mut seen = 0;
    for name in ["boot", "devices", "fc", "hba-megasas", "hba-virtio-scsi", "vmm"] {
        let root = workspace().join(name).join("src");
        for path in sources(&root) {
            let relative = path.strip_prefix(&root).unwrap();
            if is_test(relative) || (name == "devices" && relative == Path::new("threads.rs")) {
                continue;
            }
            let text = without_tests(&fs::read_to_string(&path).unwrap());
            let found: Vec<_> = STARTS.into_iter().filter(|start| text.contains(start)).collect();
            assert!(found.is_empty(), "{}: {found:?}; use devices::threads::spawn", path.display());
            seen += 1;
        }
    }
    assert!(seen > 200, "only {seen} files were looked at");
}

#[test]
fn the_layers_have_no_cycle() {
    // Each module stands after everything that it may name.
    let mut below: Vec<&str> = Vec::new();
    for (module, allowed) in MODULES {
        assert!(allowed.iter().all(|name| below.contains(name)), "{module} names what is not below it");
        below.push(module);
    }
}

#[test]
fn names_are_found_however_they_are_written() {
    let names = |text| named_modules(text).into_iter().collect::<Vec<_>>();
    assert_eq!(names("use crate::mem::Dma;\nlet x = crate::pci::A;"), ["mem", "pci"]);
    assert_eq!(
        names("use crate::{bus, irq::{A, B}, mem as m, scsi::C as D};"),
        ["bus", "irq", "mem", "scsi"]
    );
    assert_eq!(
        names("use crate::{\n    scsi::{a::{b}, c},\n    pci,\n};\ncrate::bus"),
        ["bus", "pci", "scsi"]
    );
    assert_eq!(names("$crate::log::tracing"), ["log"]);
    assert_eq!(names("pub(crate) fn x() {} // crate::mem\n//! [`crate::bus`]\nmycrate::x"), [""; 0]);
    assert!(climbs_out("use super::super::scsi;", 2) && climbs_out("pub use super::scsi;", 1));
    assert!(!climbs_out("use super::sibling;\n    use super::super::x;", 2));
}
