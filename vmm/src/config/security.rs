//! `[security]`: what the process may still do once the machine has started, and who it is then.

use std::ffi::{CStr, CString};
use std::path::{Path, PathBuf};

use super::error::Errors;
use super::host::{self, Host};
use super::section::Section;
use super::types::{Hba, Sandbox, Security, User};

/// Longest entry of the database of users in bytes, and most groups of a user (Linux's own limit).
const ENTRY_MAX: usize = 64 << 10;
const GROUPS_MAX: usize = 65536;

/// Reads `[security]`.
pub(super) fn security(
    section: &Section<'_>,
    hbas: Option<&[Hba]>,
    directory: &Path,
    host: &Host,
    errors: &mut Errors,
) -> Option<Security> {
    let sandbox = section.text("sandbox").map_or(Some(Sandbox::On), Sandbox::named);
    let mut directories = |key| directories(section, key, directory, errors);
    let (writable, readonly) = (directories("directories"), directories("readonly_directories"));
    let user = match section.text("user") {
        Some(text) => Some(user(section, text, host, errors)?),
        None => None,
    };
    let hbas = hbas.unwrap_or_default();
    let there = hbas.iter().flat_map(|hba| &hba.luns).any(|lun| lun.device.host().is_some());
    let ports = hbas.iter().any(|hba| hba.virtual_port().is_some());
    let host_devices = section.boolean("host_devices").unwrap_or(there || ports);
    if there && !host_devices {
        section.refuse("host_devices", "but there is a [[hba.lun]] with a device of the host", errors);
    } else if ports && !host_devices {
        section.refuse("host_devices", "but there is a [hba.fc] with a virtual port of the host", errors);
    }
    Some(Security {
        sandbox: sandbox?,
        directories: writable,
        readonly_directories: readonly,
        host_devices,
        user,
    })
}

/// What is right, but hardly what was meant.
pub(super) fn warnings(security: &Security, control: bool) -> Vec<String> {
    let lists = [
        ("directories", "open", &security.directories),
        ("readonly_directories", "read", &security.readonly_directories),
    ];
    let named =
        lists.iter().flat_map(|(key, verb, all)| all.iter().map(move |directory| (*key, *verb, directory)));
    let mut lines: Vec<String> = named
        .filter_map(|(key, verb, directory)| {
            if !control {
                return Some(format!(
                    "`{key}` in [security] has no effect without [control]: no images come"
                ));
            }
            let what = match std::fs::canonicalize(directory).ok()?.to_str()? {
                "/" => "every file of the host",
                "/dev" => "every device of the host, where a descriptor would do for the image of a disk (docs/control.md)",
                _ => return None,
            };
            let directory = directory.display();
            Some(format!(
                "`{key}` in [security]: {directory} lets this machine {verb} {what}, as far as its user may"
            ))
        })
        .filter(|_| security.sandbox == Sandbox::On)
        .collect();
    lines.dedup();
    lines
}

fn directories(
    section: &Section<'_>,
    key: &'static str,
    directory: &Path,
    errors: &mut Errors,
) -> Vec<PathBuf> {
    let mut all = Vec::new();
    for text in section.strings(key) {
        let path = directory.join(text);
        match host::check_directory(&path) {
            _ if text.is_empty() => {
                section.reject(key, "one is empty; expected \".\" for the directory of this file", errors);
            }
            Err(reason) => section.reject(key, &reason, errors),
            Ok(()) => {}
        }
        all.push(path);
    }
    all
}

fn user(section: &Section<'_>, text: &str, host: &Host, errors: &mut Errors) -> Option<User> {
    let user = numbers(text).or_else(|| named(text));
    let wrong = match &user {
        None => "but this host has no such user; expected a user's name, or \"uid:gid\"",
        Some(user) if user.uid == 0 => "who is root, and that needs no key; expected another user",
        Some(_) if !host.root => "but only root becomes somebody else; start as root, or leave it out",
        Some(_) => return user,
    };
    section.refuse("user", wrong, errors);
    None
}

/// Reads `uid:gid`, whether the host has such a user or not. It is in no other groups.
fn numbers(text: &str) -> Option<User> {
    let (uid, gid) = text.split_once(':')?;
    let number = |text: &str| {
        let digits = text.bytes().all(|byte| byte.is_ascii_digit());
        // The last number is "as it is" for the kernel.
        digits.then(|| text.parse().ok()).flatten().filter(|&number| number != u32::MAX)
    };
    Some(User { name: text.to_owned(), uid: number(uid)?, gid: number(gid)?, groups: Vec::new() })
}

/// The user called `name` in the host's database of users.
fn named(name: &str) -> Option<User> {
    let called = CString::new(name).ok()?;
    let mut buffer = vec![0; ENTRY_MAX];
    // SAFETY: all of it are numbers and pointers, for which zeroes are values.
    #[allow(unsafe_code)]
    let mut entry: libc::passwd = unsafe { std::mem::zeroed() };
    let mut found = std::ptr::null_mut();
    // SAFETY: the call reads a string and fills an entry, a buffer of this length and a pointer, which all outlive it.
    #[allow(unsafe_code)]
    let result = unsafe {
        libc::getpwnam_r(called.as_ptr(), &raw mut entry, buffer.as_mut_ptr(), buffer.len(), &raw mut found)
    };
    if result != 0 || found.is_null() {
        return None;
    }
    let groups = groups(&called, entry.pw_gid);
    Some(User { name: name.to_owned(), uid: entry.pw_uid, gid: entry.pw_gid, groups })
}

/// The groups that the user is in besides `gid`.
fn groups(name: &CStr, gid: u32) -> Vec<u32> {
    let mut groups = vec![0; GROUPS_MAX];
    let mut count = GROUPS_MAX as libc::c_int;
    // SAFETY: the call reads a string and fills a list of this length and a number, which all outlive it.
    #[allow(unsafe_code)]
    let result = unsafe { libc::getgrouplist(name.as_ptr(), gid, groups.as_mut_ptr(), &raw mut count) };
    groups.truncate(if result < 0 { 0 } else { usize::try_from(count).unwrap_or(0) });
    groups.retain(|&group| group != gid);
    groups
}
