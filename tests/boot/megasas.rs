//! Linux on MegaRAID SAS boards.

use anyhow::Result;
use testbed::bed::Bed;
use testbed::guest::{Disk, HbaKind, Vmm};
use testbed::kernel::Debian;

pub(crate) fn explore(bed: &Bed, vmm: Vmm) -> Result<()> {
    let disk = Disk::empty("1G").on(HbaKind::Megasas);
    let script = std::fs::read_to_string("/tmp/megasas-script.sh")?;
    let kernel = if std::env::var_os("K12").is_some() { Debian::Bookworm } else { Debian::Trixie };
    let output = bed.guest().vmm(vmm).kernel(kernel).cpus(2).disk(disk).script(&script).spawn()?.finish_script(300)?;
    println!("{output}");
    Ok(())
}
