//! Why a device of the host cannot be passed through.

use std::io;

use thiserror::Error;

/// A device that cannot be passed through.
#[derive(Debug, Error)]
pub enum GenericError {
    /// There is no such file.
    #[error(
        "{path}: there is no such device on the host; look for it with `lsscsi -g`, or call it by its wwn, which stays the same"
    )]
    Missing {
        /// As it was given.
        path: String,
    },
    /// No device has this name.
    #[error(
        "no SCSI device of the host is called \"{name}\"; look for it with `lsscsi -gw`, and whether its paths are up"
    )]
    Unknown {
        /// As it was given.
        name: String,
    },
    /// Several have it.
    #[error(
        "several SCSI devices of the host are called \"{name}\" ({addresses}): paths to one disk; give the path of one of them"
    )]
    Ambiguous {
        /// As it was given.
        name: String,
        /// Host, channel, target and LUN of each.
        addresses: String,
    },
    /// It is a descriptor that was passed.
    #[error(
        "{path}: a device of the host is not taken as a descriptor, for its other nodes are needed as well; give the path of a node, \
         or the wwn, and let the user of this process open its nodes"
    )]
    Descriptor {
        /// As it was given.
        path: String,
    },
    /// It has no node.
    #[error("the SCSI device \"{name}\" at {address} has no node on the host; load the module sg")]
    NoNode {
        /// As it was given.
        name: String,
        /// Host, channel, target and LUN.
        address: String,
    },
    /// The process may not open it.
    #[error("{path}: this process may not open it; {remedy}, or give it CAP_DAC_OVERRIDE")]
    Forbidden {
        /// As it was given.
        path: String,
        /// What to do.
        remedy: String,
    },
    /// The sandbox of the process does not let it open it.
    #[error("{path}: {why}")]
    Confined {
        /// As it was given.
        path: String,
        /// What it is, and what to do.
        why: String,
    },
    /// It takes no SCSI commands.
    #[error(
        "{path} is {what}, which takes no SCSI commands; set type = \"disk\" and image = \"{path}\" to use what is on it"
    )]
    NotScsi {
        /// As it was given.
        path: String,
        /// What it is.
        what: String,
    },
    /// It is a part of a disk.
    #[error(
        "{path} is a partition, and SCSI commands reach all of its disk; take {disk}, or set type = \"disk\" and image = \"{path}\""
    )]
    Partition {
        /// As it was given.
        path: String,
        /// The disk.
        disk: String,
    },
    /// It is of a driver that takes no commands.
    #[error("{path} is of a driver that makes the commands itself; take {sg}")]
    Driver {
        /// As it was given.
        path: String,
        /// What to take.
        sg: String,
    },
    /// The host uses it.
    #[error("{path} is in use: {user}; {}", remedy(user))]
    InUse {
        /// As it was given.
        path: String,
        /// By whom, as a sentence: "sdc is part of /dev/mapper/mpatha", "another program has it open".
        user: String,
    },
    /// This machine has it already.
    #[error(
        "{path} is the device {address}, which another unit of this machine is already, or was and the host has not let go of it \
         yet; give each its own, or try again"
    )]
    Twice {
        /// As it was given.
        path: String,
        /// Host, channel, target and LUN.
        address: String,
    },
    /// It did not answer who it is.
    #[error(
        "{path}: the device does not answer INQUIRY ({why}); look whether it is ready, and what the host's kernel says of it"
    )]
    Silent {
        /// What messages call it.
        path: String,
        /// What came instead.
        why: String,
    },
    /// There is a target, and no logical unit.
    #[error(
        "{path}: there is no logical unit behind it (peripheral qualifier {qualifier}); take the node of one that is"
    )]
    Absent {
        /// What messages call it.
        path: String,
        /// SPC-5, 6.7.2.
        qualifier: u8,
    },
    /// Another device has come to the place of one that was gone.
    #[error(
        "{path}: what came back is a device of type {found:02x}h, and the unit is one of type {wanted:02x}h; attach it as another \
         unit"
    )]
    Other {
        /// Its node.
        path: String,
        /// PERIPHERAL DEVICE TYPE (SPC-5, 6.7.2).
        found: u8,
        /// That of the unit.
        wanted: u8,
    },
    /// The same, of the same type.
    #[error("{path}: what came back has other names, and is another device; attach it as another unit")]
    Stranger {
        /// Its node.
        path: String,
    },
    /// It is no disk with a block node.
    #[error(
        "{path} is {what}, and type = \"block\" takes disks, by their block nodes; {other}set type = \"generic\""
    )]
    NoBlock {
        /// As it was given.
        path: String,
        /// What it is.
        what: String,
        /// What else to take, if there is something.
        other: String,
    },
    /// It cannot be read and written as a block device.
    #[error("{message}")]
    Image {
        /// Why, naming the node, and what to do.
        message: String,
    },
    /// The host refuses otherwise.
    #[error("{path}: the host cannot open it: {error}")]
    Host {
        /// As it was given.
        path: String,
        /// Its word.
        error: io::Error,
    },
}

/// What to do about a user of a device. What the host has mounted, swaps to, or has made a device of is written by a kernel that knows of no
/// guest: to share it destroys it. Programs that hold it may know of others.
fn remedy(user: &str) -> &'static str {
    let program = user.starts_with("another ") || user.starts_with("open by ");
    // It has paths open of devices that it makes of them.
    match program && !user.starts_with("open by multipathd ") {
        true => "free it, or set shared = true if all who use it know of each other",
        false => {
            "free it there, and keep the host from taking it again (docs/fc.md, \"Disks that the host must not take\")"
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_host_itself_has_is_never_to_be_shared() {
        let said =
            |user: &str| GenericError::InUse { path: "/dev/sdc".into(), user: user.into() }.to_string();
        let host = [
            "sdc is part of /dev/mapper/mpatha",
            "sdc is part of /dev/md127",
            "sdc1 is mounted at /srv",
            "sdc is swap space",
            // As they are called where the kernel lists them.
            "part of dm-0 (vg-data)",
            "mounted at /srv",
            "swap",
            "open by multipathd (411)",
        ];
        for user in host {
            let expected = format!(
                "/dev/sdc is in use: {user}; free it there, and keep the host from taking it again (docs/fc.md, \"Disks that the host \
                 must not take\")"
            );
            assert_eq!(said(user), expected);
        }
        for user in ["another program has it for itself", "open by qemu (4711)"] {
            let expected = format!(
                "/dev/sdc is in use: {user}; free it, or set shared = true if all who use it know of each other"
            );
            assert_eq!(said(user), expected);
        }
    }
}
