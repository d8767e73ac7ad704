//! What the processes beside the machine may do. That which looks for devices of the host reads what the kernel tells, opens nodes, and
//! passes them on. That which has Fibre Channel ports also writes to sysfs, keeps files of its own, and asks target ports for their units.

use super::list::{Argument, List};

impl List {
    /// All of it. It makes no socket, file or process, and has one end to speak to.
    pub(super) fn keeper() -> Self {
        let mut list = Self::common().files().reads().host_devices().starts();
        list.any(&[libc::SYS_recvfrom, libc::SYS_sendmsg]);
        // To read and write them, but not to make any, nor to cut one.
        let made = (libc::O_CREAT | libc::O_TRUNC | libc::O_TMPFILE & !libc::O_DIRECTORY).cast_unsigned();
        for (call, flags) in [(libc::SYS_open, 1), (libc::SYS_openat, 2)] {
            list.with(call, Argument::Has { number: flags, mask: made, value: 0 });
        }
        list
    }

    /// That which has Fibre Channel ports. It makes no socket, device or process; paths are Landlock's.
    pub(super) fn port() -> Self {
        let mut list = Self::common().files().paths().names().host_devices().commands().starts().receives();
        list.any(&[libc::SYS_sendmsg, libc::SYS_shutdown]);
        let usual = Argument::Has { number: 3, mask: libc::MSG_OOB.cast_unsigned(), value: 0 };
        list.with(libc::SYS_recvfrom, usual);
        // Its own files: written beside their place and linked or moved there; its locks are nobody else's.
        list.any(&[
            libc::SYS_link,
            libc::SYS_linkat,
            libc::SYS_mkdir,
            libc::SYS_mkdirat,
            libc::SYS_rename,
            libc::SYS_renameat,
            libc::SYS_renameat2,
            libc::SYS_fchmod,
        ]);
        list
    }
}
