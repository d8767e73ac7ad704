//! Why a kernel or initrd cannot be started: one line each, naming the file, the reason and the remedy.

use std::fmt;
use std::io;
use std::path::PathBuf;

use thiserror::Error;
use vm_memory::GuestMemoryError;

use crate::acpi::InstallError;

/// Which file of the boot configuration is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The kernel image.
    Kernel,
    /// The initial RAM disk.
    Initrd,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Role::Kernel => "kernel",
            Role::Initrd => "initrd",
        })
    }
}

/// A byte count for people: exact when it is a whole number of MiB or KiB, else to a tenth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size(pub u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const KIB: u64 = 1 << 10;
        const MIB: u64 = 1 << 20;
        let (unit, name) = match self.0 {
            n if n >= MIB => (MIB, "MiB"),
            n if n >= KIB => (KIB, "KiB"),
            n => return write!(f, "{n} bytes"),
        };
        let (whole, rest) = (self.0 / unit, self.0 % unit);
        match rest * 10 / unit {
            0 if rest == 0 => write!(f, "{whole} {name}"),
            tenth => write!(f, "{whole}.{tenth} {name}"),
        }
    }
}

/// Why direct boot is impossible.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum LoadError {
    /// No such file.
    #[error("{role} {}: no such file; check the path", path.display())]
    Missing {
        /// Kernel or initrd.
        role: Role,
        /// The file.
        path: PathBuf,
    },
    /// The file exists but cannot be opened or read.
    #[error("{role} {}: cannot be read: {source}; check its permissions", path.display())]
    Unreadable {
        /// Kernel or initrd.
        role: Role,
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// The process has confined itself, and the file is out of its reach.
    #[error("{role} {}: cannot be read: {why}", path.display())]
    Confined {
        /// Kernel or initrd.
        role: Role,
        /// The file.
        path: PathBuf,
        /// What is within reach, and what to do.
        why: String,
    },
    /// A directory.
    #[error("{role} {}: is a directory; name the {role} file inside it", path.display())]
    Directory {
        /// Kernel or initrd.
        role: Role,
        /// The directory.
        path: PathBuf,
    },
    /// A device, pipe or socket.
    #[error("{role} {}: is not a regular file; copy its contents into one", path.display())]
    NotRegular {
        /// Kernel or initrd.
        role: Role,
        /// The file.
        path: PathBuf,
    },
    /// Zero bytes.
    #[error("{role} {}: is empty; build or download it again", path.display())]
    Empty {
        /// Kernel or initrd.
        role: Role,
        /// The file.
        path: PathBuf,
    },
    /// Neither bzImage nor ELF.
    #[error("kernel {}: is {found}, neither a bzImage nor an ELF file; {remedy}", path.display())]
    NotAKernel {
        /// The kernel file.
        path: PathBuf,
        /// What it looks like.
        found: &'static str,
        /// What to do about that.
        remedy: &'static str,
    },
    /// A kernel of a kind that cannot be started here.
    #[error("kernel {}: {reason}; {remedy}", path.display())]
    Unsupported {
        /// The kernel file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
        /// What to do about that.
        remedy: &'static str,
    },
    /// Header or contents end early or contradict themselves.
    #[error("kernel {}: is damaged: {reason}; build or download it again", path.display())]
    Damaged {
        /// The kernel file.
        path: PathBuf,
        /// The contradiction.
        reason: String,
    },
    /// The kernel does not fit.
    #[error("kernel {}: needs memory up to {needed}, but only {available} of low memory can hold it; \
             give the machine more memory", path.display())]
    KernelTooLarge {
        /// The kernel file.
        path: PathBuf,
        /// End of the memory it needs.
        needed: Size,
        /// End of the memory there is.
        available: Size,
    },
    /// The initrd does not fit above the kernel.
    #[error("initrd {}: its {size} do not fit: {available} are free above the kernel in {memory} of low \
             memory; give the machine more memory or use a smaller initrd", path.display())]
    InitrdTooLarge {
        /// The initrd file.
        path: PathBuf,
        /// Its length.
        size: Size,
        /// Free memory for it.
        available: Size,
        /// All low memory.
        memory: Size,
    },
    /// More command line than the kernel takes.
    #[error("cmdline: its {length} bytes are more than the {limit} that kernel {} takes; shorten it", kernel.display())]
    CmdlineTooLong {
        /// The kernel file.
        kernel: PathBuf,
        /// Length without NUL.
        length: usize,
        /// Greatest length without NUL.
        limit: usize,
    },
    /// The command line contains a NUL character.
    #[error("cmdline: contains a NUL character at byte {0}; remove it")]
    CmdlineNul(usize),
    /// An initrd but no kernel.
    #[error("initrd {}: is given without a kernel; add the kernel it belongs to or remove it", .0.display())]
    InitrdWithoutKernel(PathBuf),
    /// A command line but no kernel.
    #[error("cmdline: is given without a kernel; add the kernel or remove it")]
    CmdlineWithoutKernel,
    /// A file shrank or was replaced while it was being read.
    #[error("{role} {}: changed while it was being read; start again when it is complete", path.display())]
    Changed {
        /// Kernel or initrd.
        role: Role,
        /// The file.
        path: PathBuf,
    },
    /// The host has promised memory that it has not.
    #[error(
        "the host has no memory behind guest address {address:#x}; huge pages ran out, or what its cgroup may have of them (hugetlb.*.max)"
    )]
    HostMemory {
        /// Guest physical address where the file was to go.
        address: u64,
    },
    /// Guest RAM is not mapped as its layout says.
    #[error("guest memory at {address:#x} is not mapped: {source}; this is a defect of the program")]
    Memory {
        /// Guest physical address.
        address: u64,
        /// What the memory layer said.
        source: GuestMemoryError,
    },
    /// The ACPI tables do not fit.
    #[error(transparent)]
    Acpi(#[from] InstallError),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_well() {
        assert_eq!(Size(40 << 20).to_string(), "40 MiB");
        assert_eq!(Size((40 << 20) + (3 << 18)).to_string(), "40.7 MiB");
        assert_eq!(Size(1536).to_string(), "1.5 KiB");
        assert_eq!(Size(17).to_string(), "17 bytes");
    }

    #[test]
    fn errors_are_one_line_with_file_and_remedy() {
        let error = LoadError::InitrdTooLarge {
            path: "/boot/initrd".into(),
            size: Size(40 << 20),
            available: Size(12 << 20),
            memory: Size(64 << 20),
        };
        assert_eq!(
            error.to_string(),
            "initrd /boot/initrd: its 40 MiB do not fit: 12 MiB are free above the kernel in 64 MiB of low \
             memory; give the machine more memory or use a smaller initrd"
        );
    }
}
