//! Which kernel this is taken for: tests run as on an older one, and so go the ways that are left there.

/// Whether to try what Linux has since this version. The kernel may refuse it all the same, and decides.
#[cfg(not(any(test, feature = "testing")))]
pub(crate) fn may_have(_: (u32, u32)) -> bool {
    true
}

/// Whether to try what Linux has since this version: all, unless the variable `VMM_TEST_KERNEL` names an older one ("5.10").
#[cfg(any(test, feature = "testing"))]
pub(crate) fn may_have(since: (u32, u32)) -> bool {
    static OLDER: std::sync::OnceLock<Option<(u32, u32)>> = std::sync::OnceLock::new();
    let read = || {
        let text = std::env::var("VMM_TEST_KERNEL").ok()?;
        let (major, minor) = text.split_once('.')?;
        Some((major.parse().ok()?, minor.parse().ok()?))
    };
    OLDER.get_or_init(read).is_none_or(|kernel| since <= kernel)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// The kernels that differ in what I/O threads and images use of them; the newest is what the other tests run on.
    const KERNELS: [&str; 3] = ["5.10", "5.14", "5.19"];
    /// What runs on each of them.
    const TESTS: [&str; 2] = ["iothread::", "storage::raw::"];
    /// As many tests as that is at least, so that none are lost by a new name.
    const LEAST: usize = 60;

    #[test]
    fn all_goes_on_older_kernels_too() {
        if std::env::var_os("VMM_TEST_KERNEL").is_some() {
            return;
        }
        for kernel in KERNELS {
            let mut tests = Command::new(std::env::current_exe().unwrap());
            let output = tests.args(TESTS).env("VMM_TEST_KERNEL", kernel).output().unwrap();
            let text = String::from_utf8_lossy(&output.stdout);
            let passed = text.lines().filter(|line| line.ends_with("... ok")).count();
            assert!(output.status.success() && passed >= LEAST, "as on {kernel}, {passed} passed:\n{text}");
        }
    }

    #[test]
    fn a_variable_makes_the_kernel_older() {
        let wanted = std::env::var("VMM_TEST_KERNEL").ok();
        assert!(may_have((5, 10)), "the oldest");
        assert_eq!(may_have((5, 13)), wanted.as_deref() != Some("5.10"));
        assert_eq!(may_have((6, 1)), wanted.is_none());
    }
}
