//! Capabilities of the calling thread (capabilities(7)). Signal handlers may call all of this; errors are the system's numbers.

use std::sync::OnceLock;

type Result<T> = std::result::Result<T, libc::c_int>;

/// `_LINUX_CAPABILITY_VERSION_3` (linux/capability.h).
const VERSION: u32 = 0x2008_0522;
/// No kernel has more capabilities.
const MAX: u32 = u64::BITS;

/// CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH (linux/capability.h).
pub(super) const ANY_FILE: u32 = 1 << 1 | 1 << 2;
/// CAP_SYS_ADMIN.
pub(super) const ADMIN: u32 = 1 << 21;

#[repr(C)]
struct Header {
    version: u32,
    pid: libc::c_int,
}

/// The first or the second 32 of them.
#[repr(C)]
#[derive(Clone, Copy, Default, PartialEq)]
struct Sets {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

fn check(result: libc::c_long) -> Result<()> {
    if result >= 0 {
        return Ok(());
    }
    // It takes no memory.
    Err(std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO))
}

fn get() -> Result<[Sets; 2]> {
    let header = Header { version: VERSION, pid: 0 };
    let mut sets = [Sets::default(); 2];
    // SAFETY: a live header, and as much room as this version writes.
    #[allow(unsafe_code)]
    check(unsafe { libc::syscall(libc::SYS_capget, &raw const header, sets.as_mut_ptr()) }).map(|()| sets)
}

fn set(sets: [Sets; 2]) -> Result<()> {
    let header = Header { version: VERSION, pid: 0 };
    // SAFETY: a live header and two sets, which the call reads.
    #[allow(unsafe_code)]
    check(unsafe { libc::syscall(libc::SYS_capset, &raw const header, sets.as_ptr()) })
}

/// What the thread may have, the first 32 and the others.
pub(super) fn permitted() -> Result<[u32; 2]> {
    get().map(|sets| sets.map(|sets| sets.permitted))
}

/// Has those of the mask that it may have, beside what it has.
pub(super) fn raise(mask: u32) -> Result<()> {
    let [low, high] = get()?;
    let effective = low.effective | low.permitted & mask;
    if effective == low.effective { Ok(()) } else { set([Sets { effective, ..low }, high]) }
}

/// Gives up all but those in the mask that it has, and with them those of programs that are started.
pub(super) fn give_up(kept: u32) -> Result<()> {
    let before = get()?;
    give_up_same_bounds();
    // What is permitted and not used is left from before the process became another user.
    let [kept, _] = before.map(|sets| sets.effective & kept);
    let wanted = [Sets { effective: kept, permitted: kept, inheritable: 0 }, Sets::default()];
    if before == wanted { Ok(()) } else { set(wanted) }
}

/// By number: what no program that is started has any more since the main thread gave it up, as have those that it
/// started afterwards.
static GIVEN_UP: OnceLock<u64> = OnceLock::new();

/// No program that is started has any capability. For the main thread.
pub(super) fn give_up_bounds() {
    let mut given_up = 0;
    for capability in 0..MAX {
        match bound(libc::PR_CAPBSET_READ, capability) {
            0 => continue,
            1 => {}
            // There are no more.
            _ => break,
        }
        // It fails for who has no right to give them up.
        if bound(libc::PR_CAPBSET_DROP, capability) != 0 {
            break;
        }
        given_up |= 1 << capability;
    }
    let _ = GIVEN_UP.set(given_up);
}

/// The same for any thread. Does little where it has been done.
fn give_up_same_bounds() {
    let Some(given_up) = GIVEN_UP.get() else { return give_up_bounds() };
    let first = given_up.trailing_zeros();
    if first == u64::BITS || bound(libc::PR_CAPBSET_READ, first) == 0 {
        return;
    }
    for capability in (first..MAX).filter(|capability| given_up >> capability & 1 != 0) {
        bound(libc::PR_CAPBSET_DROP, capability);
    }
}

fn bound(operation: libc::c_int, capability: u32) -> libc::c_int {
    let (capability, none) = (libc::c_ulong::from(capability), 0 as libc::c_ulong);
    // SAFETY: no pointers.
    #[allow(unsafe_code)]
    unsafe {
        libc::prctl(operation, capability, none, none, none)
    }
}

/// What is permitted stays so when root becomes another user. Threads inherit that.
pub(super) fn keep_permitted() {
    let (yes, none): (libc::c_ulong, libc::c_ulong) = (1, 0);
    // SAFETY: no pointers. It fails only where root has forbidden it, and then the capabilities go sooner.
    #[allow(unsafe_code)]
    unsafe {
        libc::prctl(libc::PR_SET_KEEPCAPS, yes, none, none, none)
    };
}
