//! docs/security.md says what there is: its tests, its files, and the lints that are left out.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn text(path: &str) -> String {
    fs::read_to_string(workspace().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// The cells of the rows of all tables below the heading, without their heads.
fn rows(heading: &str) -> Vec<Vec<String>> {
    let document = text("docs/security.md");
    let section = document.split(&format!("\n## {heading}\n")).nth(1).unwrap();
    let section = section.split("\n## ").next().unwrap();
    let mut rows = Vec::new();
    let mut lines = section.lines().peekable();
    while let Some(line) = lines.next() {
        let head = lines.peek().is_some_and(|next| next.starts_with("|---"));
        if line.starts_with("| ") && !head {
            let cells = line.trim_matches('|').split(" | ").map(|cell| cell.trim().to_owned());
            rows.push(cells.collect());
        }
    }
    rows
}

/// What is between the only two backticks of a cell.
fn code(cell: &str) -> &str {
    let inner = cell.strip_prefix('`').and_then(|cell| cell.strip_suffix('`'));
    inner.filter(|inner| !inner.contains('`')).unwrap_or_else(|| panic!("{cell} is not one name"))
}

/// Files in which a module may be, of the library or of any binary with tests.
fn places(krate: &Path, module: &str) -> Vec<PathBuf> {
    let mut roots = vec![krate.join("src"), krate.join("tests")];
    for entry in fs::read_dir(krate.join("tests")).into_iter().flatten() {
        roots.extend(Some(entry.unwrap().path()).filter(|path| path.is_dir()));
    }
    let path = module.replace("::", "/");
    // Tests are in the module's file, beside it, or in files of their own.
    let own = path.strip_suffix("tests").map(|path| path.trim_end_matches('/'));
    let own = own
        .into_iter()
        .flat_map(|path| [format!("{path}.rs"), format!("{path}/mod.rs"), format!("{path}_tests.rs")]);
    let names: Vec<String> =
        [format!("{path}.rs"), format!("{path}/mod.rs")].into_iter().chain(own).collect();
    let mut found: Vec<PathBuf> = roots
        .iter()
        .flat_map(|root| names.iter().map(move |name| root.join(name)))
        .filter(|path| path.is_file())
        .collect();
    if module.is_empty() {
        let files =
            fs::read_dir(krate.join("tests")).into_iter().flatten().map(|entry| entry.unwrap().path());
        found.extend(files.filter(|path| path.extension().is_some_and(|suffix| suffix == "rs")));
    }
    found
}

/// Whether a source has a test of this name that is run: not left out by `#[ignore]` or by a condition.
fn has_test(source: &str, name: &str) -> bool {
    if source.lines().any(|line| line.trim().starts_with("#![cfg(") && line.trim() != "#![cfg(test)]") {
        return false;
    }
    let (mut is_test, mut is_left_out) = (false, false);
    for line in source.lines().map(str::trim) {
        match line {
            "#[test]" => is_test = true,
            _ if line.starts_with("#[ignore") || line.starts_with("#[cfg") => is_left_out = true,
            _ if line.starts_with("#[") || line.starts_with("//") => {}
            _ => {
                let function = line.strip_prefix("fn ").and_then(|rest| rest.strip_prefix(name));
                if is_test && !is_left_out && function.is_some_and(|rest| rest.starts_with('(')) {
                    return true;
                }
                (is_test, is_left_out) = (false, false);
            }
        }
    }
    false
}

#[test]
fn only_tests_that_are_run_count() {
    for (source, runs) in [
        ("#[test]\nfn a() {", true),
        (
            "#[cfg(test)]\nmod tests {\n    /// Of this.\n    #[test]\n    #[allow(unsafe_code)]\n    fn a() {",
            true,
        ),
        ("fn a() {", false),
        ("#[test]\nfn ab() {", false),
        ("#[test]\n#[ignore]\nfn a() {", false),
        ("#[ignore = \"slow\"]\n#[test]\nfn a() {", false),
        ("#[cfg(any())]\n#[test]\nfn a() {", false),
        ("#![cfg(any())]\n#[test]\nfn a() {", false),
    ] {
        assert_eq!(has_test(source, "a"), runs, "{source}");
    }
}

/// How many faults of others the document has. Who adds one counts it here, so that none goes unseen.
const FAULTS: usize = 131;

#[test]
fn every_fault_of_others_has_a_test_here() {
    let rows = rows("What was tried elsewhere");
    let mut seen = BTreeSet::new();
    for row in &rows {
        let [cve, _, ours, test] = &row[..] else { panic!("{row:?}") };
        let parts: Vec<&str> = cve.split('-').collect();
        assert!(
            matches!(parts[..], ["CVE", year, number]
            if year.len() == 4 && number.len() >= 4 && [year, number].iter().all(|part| part.bytes().all(|byte| byte.is_ascii_digit()))),
            "{cve}"
        );
        assert!(seen.insert(cve.clone()), "{cve} is there twice");
        assert!(workspace().join(code(ours)).is_file(), "{cve}: there is no {ours}");
        let (krate, path) = code(test).split_once(' ').unwrap_or_else(|| panic!("{cve}: {test}"));
        let (module, name) = path.rsplit_once("::").unwrap_or(("", path));
        let places = places(&workspace().join(krate), module);
        assert!(!places.is_empty(), "{cve}: there is no module {krate} {module}");
        let found = places.iter().any(|path| has_test(&fs::read_to_string(path).unwrap(), name));
        assert!(found, "{cve}: there is no test {name} in {places:?}");
    }
    assert_eq!(seen.len(), FAULTS);
}

#[test]
fn the_tests_of_a_table_are_in_order() {
    // Within a table by number, so that a new row has one place.
    let key = |row: &Vec<String>| {
        let parts: Vec<u32> = row[0].split('-').skip(1).map(|part| part.parse().unwrap()).collect();
        (parts[0], parts[1])
    };
    let document = text("docs/security.md");
    let section =
        document.split("\n## What was tried elsewhere\n").nth(1).unwrap().split("\n## ").next().unwrap();
    for table in section.split("\n### ").skip(1) {
        let rows: Vec<Vec<String>> = table
            .lines()
            .filter(|line| line.starts_with("| CVE-"))
            .map(|line| line.trim_matches('|').split(" | ").map(|cell| cell.trim().to_owned()).collect())
            .collect();
        for pair in rows.windows(2) {
            assert!(key(&pair[0]) < key(&pair[1]), "{} before {}", pair[0][0], pair[1][0]);
        }
    }
}

/// First versions without a fault that is known of a crate (RustSec, GitHub's advisories).
const MENDED: [(&str, [u64; 3], &str); 6] = [
    ("kvm-ioctls", [0, 19, 1], "RUSTSEC-2024-0428"),
    ("linux-loader", [0, 8, 1], "CVE-2022-23523"),
    ("tracing-subscriber", [0, 3, 20], "CVE-2025-58160"),
    ("vm-memory", [0, 12, 2], "CVE-2020-13759 and CVE-2023-41051"),
    ("vm-superio", [0, 1, 1], "CVE-2020-27173"),
    ("vmm-sys-util", [0, 12, 0], "CVE-2023-50711"),
];

#[test]
fn faults_of_crates_are_mended_in_the_versions_that_are_used() {
    let lock: toml::Table = text("Cargo.lock").parse().unwrap();
    let packages = lock["package"].as_array().unwrap();
    let versions = |name: &str| -> Vec<[u64; 3]> {
        let of = packages.iter().filter(|package| package["name"].as_str() == Some(name));
        of.map(|package| {
            let version = package["version"].as_str().unwrap();
            let numbers: Vec<u64> =
                version.split(['.', '-', '+']).take(3).map(|part| part.parse().unwrap()).collect();
            numbers.try_into().unwrap()
        })
        .collect()
    };
    for (name, first, fault) in MENDED {
        let used = versions(name);
        assert!(!used.is_empty(), "{name} is not used any more");
        assert!(used.iter().all(|version| *version >= first), "{name} {used:?} has {fault}");
    }
    assert_eq!(versions("versionize"), Vec::<[u64; 3]>::new(), "CVE-2023-28448");
}

/// What architecture.md quotes of messages, `N` for a number, is what the machine says.
#[test]
fn messages_that_are_quoted_are_in_the_code() {
    let mut files = Vec::new();
    sources(&workspace().join("vmm").join("src"), &mut files);
    // Long strings go on in the next line.
    let joined = |source: String| {
        let lines = source.split("\\\n").map(str::trim_start).collect::<Vec<_>>();
        lines.concat().replace("{}", "N")
    };
    let code: String = files.iter().map(|path| joined(fs::read_to_string(path).unwrap())).collect();
    // Without drawings.
    let document = text("docs/architecture.md");
    let document = document.split("```").step_by(2).collect::<String>().replace('\n', " ");
    let quoted: Vec<&str> = document.split('`').skip(1).step_by(2).collect();
    let messages: Vec<&&str> = quoted.iter().filter(|part| part.split(' ').count() > 5).collect();
    assert!(!messages.is_empty());
    for message in messages {
        assert!(code.contains(*message), "nothing says: {message}");
    }
}

/// Lints against what may panic.
const PANICS: [&str; 6] =
    ["unwrap_used", "expect_used", "panic", "unreachable", "indexing_slicing", "arithmetic_side_effects"];

/// Every source of the crates that the machine is made of, but for those that only tests are made of.
fn sources(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        let tests =
            ["tests", "testing", "suite", "power"].contains(&name.as_str()) || name.ends_with("_tests");
        if tests {
            continue;
        }
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|suffix| suffix == "rs") {
            found.push(path);
        }
    }
}

/// The lines of a source, each attribute on one.
fn lines_of(source: &str) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    let mut is_open = false;
    for line in source.lines().map(str::trim) {
        match lines.last_mut() {
            Some(last) if is_open => last.push_str(line),
            _ => lines.push(line.to_owned()),
        }
        let count = |bracket: char| lines.last().map_or(0, |last| last.matches(bracket).count());
        let is_attribute = lines.last().is_some_and(|last| last.starts_with("#[") || last.starts_with("#!["));
        is_open = is_attribute && count('[') > count(']');
    }
    lines
}

/// The lints against panics that a source leaves out, but for its tests.
fn lints_left_out(source: &str) -> Vec<&'static str> {
    let lines = lines_of(source);
    let mut left_out = Vec::new();
    for (at, line) in lines.iter().enumerate() {
        let start = line.strip_prefix("#![").or_else(|| line.strip_prefix("#["));
        let attribute = start.is_some_and(|start| {
            ["allow(", "expect(", "cfg_attr("].iter().any(|name| start.starts_with(name))
                && !start.starts_with("cfg_attr(test,")
        });
        // What follows says whether it is about tests.
        let about = lines[at + 1..].iter().find(|line| !line.starts_with("#["));
        let tests = line.starts_with("#[")
            && lines[..at]
                .iter()
                .rev()
                .take_while(|line| line.starts_with("#["))
                .any(|line| line == "#[cfg(test)]")
            || about.is_some_and(|about| about.starts_with("mod tests"));
        if attribute && !tests {
            left_out.extend(PANICS.iter().filter(|lint| line.contains(&format!("clippy::{lint}"))));
        }
    }
    left_out
}

#[test]
fn lints_are_seen_however_they_are_left_out() {
    for (source, expected) in [
        ("#[allow(clippy::panic)]\nfn a() {}", &["panic"][..]),
        (
            "#![expect(\n    clippy::unwrap_used,\n    clippy::panic,\n    reason = \"so\",\n)]\n",
            &["unwrap_used", "panic"],
        ),
        ("    #[cfg_attr(not(test), allow(clippy::expect_used))]\n    fn a() {}", &["expect_used"]),
        (
            "#[cfg_attr(\n    feature = \"a\",\n    allow(clippy::indexing_slicing)\n)]\nfn a() {}",
            &["indexing_slicing"],
        ),
        ("#[cfg_attr(test, allow(clippy::panic))]\nfn a() {}", &[]),
        ("#[cfg(test)]\n#[allow(\n    clippy::panic\n)]\nmod a {}", &[]),
        ("#[allow(clippy::panic)]\nmod tests {", &[]),
        ("#[derive(Debug)]\nstruct A([u8; 4]);\n// #[allow(clippy::panic)]", &[]),
    ] {
        assert_eq!(lints_left_out(source), expected, "{source}");
    }
}

#[test]
fn every_lint_against_panics_that_is_left_out_is_told_of() {
    let mut told: Vec<(String, String)> = rows("Panics that a guest could reach")
        .iter()
        .map(|row| (code(&row[0]).to_owned(), code(&row[1]).to_owned()))
        .collect();
    let root = workspace();
    let mut files = Vec::new();
    for krate in ["boot", "devices", "fc", "hba-megasas", "hba-virtio-scsi", "vmm"] {
        sources(&root.join(krate).join("src"), &mut files);
    }
    assert!(files.len() > 150);
    let mut left_out = Vec::new();
    for path in files {
        let source = fs::read_to_string(&path).unwrap();
        let shown = path.strip_prefix(&root).unwrap().to_str().unwrap().to_owned();
        left_out.extend(lints_left_out(&source).into_iter().map(|lint| (shown.clone(), lint.to_owned())));
    }
    told.sort();
    left_out.sort();
    assert_eq!(left_out, told);
}

/// How many blocks and implementations of a source, but for its tests, are unsafe.
fn unsafe_blocks(source: &str) -> usize {
    let begins_tests = |at: &usize| {
        let item = source[*at..].lines().find(|line| !line.starts_with("#["));
        item.is_some_and(|item| item.starts_with("mod ") && item.ends_with('{'))
    };
    let end = source.match_indices("#[cfg(test)]\n").map(|(at, _)| at).find(begins_tests);
    let code = &source[..end.unwrap_or(source.len())];
    code.matches("unsafe {").count() + code.matches("unsafe impl").count()
}

#[test]
fn unsafe_blocks_are_counted() {
    let root = workspace();
    let count = |places: &[&str]| {
        let mut files = Vec::new();
        for place in places.iter().map(|place| root.join(place)) {
            if place.is_dir() { sources(&place, &mut files) } else { files.push(place) }
        }
        files.iter().map(|path| unsafe_blocks(&fs::read_to_string(path).unwrap())).sum::<usize>()
    };
    let (mut told, mut counted) = (Vec::new(), Vec::new());
    let (mut of_machine, mut of_ports, mut of_devices) = (0, 0, count(&["devices/src/mem"]));
    for row in rows("Unsafe code") {
        let places: Vec<&str> = row[0].split('`').skip(1).step_by(2).collect();
        let found = count(&places);
        let others = row[0].ends_with("otherwise");
        let counted_here = if others { found - of_machine } else { found };
        let sum = match places[0].split('/').next() {
            Some("vmm") => &mut of_machine,
            Some("fc") => &mut of_ports,
            _ => &mut of_devices,
        };
        *sum += counted_here;
        told.push((row[0].clone(), row[1].clone()));
        counted.push((row[0].clone(), counted_here.to_string()));
    }
    assert_eq!(told, counted);
    assert_eq!(
        (of_devices, of_ports, of_machine),
        (count(&["devices/src"]), count(&["fc/src"]), count(&["vmm/src"])),
        "a place is missing"
    );
    assert_eq!(count(&["boot/src", "hba-megasas/src", "hba-virtio-scsi/src"]), 0);
}
