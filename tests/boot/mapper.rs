//! A block device of the host whose faults a test commands: a target of the device mapper over a file in memory.

use anyhow::Result;
use testbed::bed::Bed;
use testbed::report::note;
use testbed::tools::Tools;

/// The device. It goes when this is dropped, so that has to be after the VMM that uses it.
pub(crate) struct Mapped<'a> {
    bed: &'a Bed,
    name: String,
    dmsetup: String,
    file: String,
    device: String,
}

impl<'a> Mapped<'a> {
    /// Makes a device with this table over a file of so many MiB, which `DEVICE` stands for. In `folder`, the file takes space
    /// only as it is written.
    pub(crate) fn new(bed: &'a Bed, name: &str, folder: &str, mib: u32, table: &str) -> Result<Self> {
        let dmsetup = Tools::of("dmsetup", &["dmsetup"])?.words("dmsetup", "dmsetup", None)?.join(" ");
        let file = format!("{folder}/{name}.img");
        let device = bed.host().shell(
            &format!(
                "modprobe dm-mod
                 # A test that was ended may have left one.
                 {dmsetup} resume --noudevsync {name} 2>/dev/null && {dmsetup} remove --noudevsync {name}
                 losetup -j {file} -O NAME -n | xargs -r losetup -d
                 set -e
                 truncate -s {mib}M {file}
                 losetup -f --show {file}"
            ),
            60,
        )?;
        let device = device.trim().to_string();
        let mapped = Self { bed, name: name.to_string(), dmsetup, file, device };
        mapped.dmsetup(&format!("create --noudevsync {name}"), table)?;
        mapped.dmsetup("mknodes", "")?;
        Ok(mapped)
    }

    /// As [`Mapped::new`] in memory, with a table that gives it all of its file.
    pub(crate) fn whole(bed: &'a Bed, name: &str, mib: u32) -> Result<Self> {
        Self::new(bed, name, "/dev/shm", mib, &format!("0 {} linear DEVICE 0", mib * 2048))
    }

    /// The device's node.
    pub(crate) fn path(&self) -> String {
        format!("/dev/mapper/{}", self.name)
    }

    fn dmsetup(&self, command: &str, input: &str) -> Result<String> {
        let (dmsetup, table) = (&self.dmsetup, input.replace("DEVICE", &self.device));
        self.bed.host().shell(&format!("{dmsetup} {command} <<'END'\n{table}\nEND"), 60)
    }

    /// Gives it another table.
    pub(crate) fn change(&self, table: &str) -> Result<()> {
        self.dmsetup(&format!("reload {}", self.name), table)?;
        self.suspend()?;
        self.resume()
    }

    /// From now on whatever is sent to it waits.
    pub(crate) fn suspend(&self) -> Result<()> {
        self.dmsetup(&format!("suspend --nolockfs --noudevsync {}", self.name), "").map(|_| ())
    }

    /// What waits is done, and what comes.
    pub(crate) fn resume(&self) -> Result<()> {
        self.dmsetup(&format!("resume --noudevsync {}", self.name), "").map(|_| ())
    }
}

impl Drop for Mapped<'_> {
    fn drop(&mut self) {
        let Self { name, dmsetup, file, device, .. } = self;
        let script = format!(
            "{dmsetup} resume --noudevsync {name}
             for turn in $(seq 100); do
                 {dmsetup} remove --noudevsync {name} 2>/dev/null && break
                 sleep 0.2
             done
             losetup -d {device}; rm -f {file}
             ! {dmsetup} info {name} >/dev/null 2>&1"
        );
        drop(self.bed.host().shell(&script, 60).inspect_err(|error| note(&format!("{error:#}"))));
    }
}
