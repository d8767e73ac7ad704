//! `[security]`.

use super::bad::after_smallest;
use super::*;

fn security(text: &str, set: &[&str]) -> (Fixture, Security) {
    let (fixture, config) = good(&format!("{SMALLEST}[security]\n{text}"), set);
    (fixture, config.security)
}

#[test]
fn every_key_is_read() {
    let text = "sandbox = \"log\"\ndirectories = [\"directory\", \".\", \"/tmp\"]\nreadonly_directories = [\".\", \"/\"]\n\
         user = \"1000:4294967294\"\n";
    let (fixture, read) = security(text, &[]);
    assert_eq!(
        read,
        Security {
            host_devices: false,
            sandbox: Sandbox::Log,
            directories: vec![fixture.path("directory"), fixture.path("."), "/tmp".into()],
            readonly_directories: vec![fixture.path("."), "/".into()],
            user: Some(User {
                name: "1000:4294967294".into(),
                uid: 1000,
                gid: 4_294_967_294,
                groups: vec![]
            }),
        }
    );
    assert_eq!(security("", &[]).1, Security::default());
    assert_eq!(Security::default().sandbox, Sandbox::On);
    for sandbox in [Sandbox::On, Sandbox::Log, Sandbox::Off] {
        assert_eq!(security(&format!("sandbox = \"{}\"", sandbox.name()), &[]).1.sandbox, sandbox);
    }
}

/// `daemon` has the same numbers on every Debian.
#[test]
fn users_have_names() {
    let user = security("user = \"daemon\"", &[]).1.user.unwrap();
    assert_eq!((user.name.as_str(), user.uid, user.gid), ("daemon", 1, 1));
    assert!(!user.groups.contains(&1), "{user:?}");
}

#[test]
fn options_replace_the_keys() {
    let options = ["security.sandbox=off", "security.directories=['directory']", "security.user=7:8"];
    let (fixture, read) = security("sandbox = \"log\"\ndirectories = [\"gone\"]", &options);
    assert_eq!((read.sandbox, read.directories), (Sandbox::Off, vec![fixture.path("directory")]));
    let user = read.user.unwrap();
    assert_eq!((user.uid, user.gid), (7, 8));
}

#[test]
fn what_is_wrong_is_told_with_what_would_be_right() {
    let no_user = "but this host has no such user; expected a user's name, or \"uid:gid\"";
    for (line, expected) in [
        ("sandbox = true", "`sandbox` in [security] is true, expected \"on\", \"log\" or \"off\"".to_owned()),
        ("sandbox = \"offf\"", "`sandbox` in [security] is \"offf\", did you mean \"off\"?".to_owned()),
        (
            "directories = \"a\"",
            "`directories` in [security] is \"a\", expected a list of strings".to_owned(),
        ),
        (
            "directories = [\"\"]",
            "`directories` in [security]: one is empty; expected \".\" for the directory of this file"
                .to_owned(),
        ),
        (
            "directories = [\"gone\"]",
            "`directories` in [security]: cannot open gone: No such file or directory".to_owned(),
        ),
        (
            "directories = [\"directory\", \"a.img\"]",
            "`directories` in [security]: a.img is a file, expected a directory".to_owned(),
        ),
        (
            "readonly_directories = [\"\"]",
            "`readonly_directories` in [security]: one is empty; expected \".\" for the directory of this file"
                .to_owned(),
        ),
        (
            "readonly_directories = [\"a.img\"]",
            "`readonly_directories` in [security]: a.img is a file, expected a directory".to_owned(),
        ),
        (
            "user = \"root\"",
            "`user` in [security] is \"root\", who is root, and that needs no key; expected another user"
                .to_owned(),
        ),
        (
            "user = \"0:8\"",
            "`user` in [security] is \"0:8\", who is root, and that needs no key; expected another user"
                .to_owned(),
        ),
        ("user = \"no-such-user\"", format!("`user` in [security] is \"no-such-user\", {no_user}")),
        ("user = \"1000\"", format!("`user` in [security] is \"1000\", {no_user}")),
        ("user = \"1000:\"", format!("`user` in [security] is \"1000:\", {no_user}")),
        ("user = \"+1:1\"", format!("`user` in [security] is \"+1:1\", {no_user}")),
        ("user = \"1:4294967295\"", format!("`user` in [security] is \"1:4294967295\", {no_user}")),
        ("user = 1000", "`user` in [security] is 1000, expected text without control characters".to_owned()),
        ("sandboxes = 1", "unknown key `sandboxes` in [security], did you mean `sandbox`?".to_owned()),
    ] {
        after_smallest(&format!("[security]\n{line}"), &[&format!("vm.toml:9: {expected}")]);
    }
}

#[test]
fn what_was_hardly_meant_is_told() {
    let warnings = |text: &str, control| {
        let (fixture, security) = security(text, &[]);
        let warnings = crate::config::security::warnings(&security, control);
        drop(fixture);
        warnings
    };
    let wide = |directory: &str, what: &str| {
        format!(
            "`directories` in [security]: {directory} lets this machine open {what}, as far as its user may"
        )
    };
    let device =
        "every device of the host, where a descriptor would do for the image of a disk (docs/control.md)";
    assert_eq!(warnings("directories = [\"directory\"]", true), [""; 0]);
    assert_eq!(
        warnings("directories = [\"directory\", \"/\", \"/dev/../dev\"]", true),
        [wide("/", "every file of the host"), wide("/dev/../dev", device)]
    );
    let nothing = "`directories` in [security] has no effect without [control]: no images come";
    assert_eq!(warnings("directories = [\"/\"]", false), [nothing]);
    assert_eq!(warnings("sandbox = \"off\"\ndirectories = [\"/\"]", true), [""; 0]);
    assert_eq!(warnings("", false), [""; 0]);
    assert_eq!(
        warnings("readonly_directories = [\"/\"]", true),
        [wide("/", "every file of the host").replace("`dir", "`readonly_dir").replace("open", "read")]
    );
}

#[test]
fn nobody_but_root_becomes_another_user() {
    let fixture = Fixture::new();
    let text = format!("{SMALLEST}[security]\nuser = \"daemon\"\n");
    let errors = parse(&text, &fixture.path("vm.toml"), &[], &Host::default()).unwrap_err();
    let expected = "vm.toml:9: `user` in [security] is \"daemon\", but only root becomes somebody else; \
                    start as root, or leave it out";
    assert_eq!(fixture.shorten(&errors), [expected]);
}

#[test]
fn the_sandbox_is_known_before_anything_is_checked() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("vm.toml");
    let known = |text: &str, set: &[&str]| {
        std::fs::write(&path, text).unwrap();
        let set: Vec<String> = set.iter().map(|&set| set.to_owned()).collect();
        Source::read(&path, &set).sandbox()
    };
    for (text, set, expected) in [
        ("", &[][..], Sandbox::On),
        ("[security]\ndirectories = 7\n[vm]\nmemory = \"all\"\n", &[], Sandbox::On),
        ("[security]\nsandbox = \"log\"\n", &[], Sandbox::Log),
        ("[security]\nsandbox = \"off\"\n", &[], Sandbox::Off),
        ("[security]\nsandbox = \"off\"\n", &["security.sandbox=on"], Sandbox::On),
        ("", &["security.sandbox=\"off\""], Sandbox::Off),
        ("", &["security={sandbox = \"log\"}"], Sandbox::Log),
        // Errors, which are told later.
        ("[security]\nsandbox = \"no\"\n", &[], Sandbox::Off),
        ("[security]\nsandbox = 1\n", &[], Sandbox::Off),
        ("security = 1\n", &[], Sandbox::Off),
        ("[security\n", &[], Sandbox::Off),
    ] {
        assert_eq!(known(text, set), expected, "{text} {set:?}");
    }
    assert_eq!(Source::read(&directory.path().join("gone"), &[]).sandbox(), Sandbox::Off);
}

#[test]
fn devices_of_the_host_are_known_before_anything_is_checked() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("vm.toml");
    let known = |text: &str, set: &[&str]| {
        std::fs::write(&path, text).unwrap();
        let set: Vec<String> = set.iter().map(|&set| set.to_owned()).collect();
        Source::read(&path, &set).has_host_devices()
    };
    let units = "[[hba]]\n[[hba.lun]]\nimage = \"a\"\n[[hba]]\n[[hba.lun]]\ntype = \"cd\"\n[[hba.lun]]\n";
    for (text, set, expected) in [
        (units.to_owned(), &[][..], false),
        (format!("{units}type = \"generic\"\n"), &[], true),
        (format!("{units}type = \"block\"\npath = 7\n"), &[], true),
        ("hba = [{lun = [{type = \"generic\"}]}]\n".into(), &[], true),
        ("hba = [7, {lun = 7}, {lun = [7, {type = 7}]}]\n".into(), &[], false),
        ("hba = \"generic\"\ntype = \"generic\"\n".into(), &[], false),
        ("[hba\n".into(), &[], false),
    ] {
        assert_eq!(known(&text, set), expected, "{text} {set:?}");
    }
    assert!(!Source::read(&directory.path().join("gone"), &[]).has_host_devices());
}
