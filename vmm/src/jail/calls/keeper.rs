//! What the process may do that looks for devices of the host: it reads what the kernel tells, opens nodes, and passes them on.

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
}
