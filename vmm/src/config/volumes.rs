//! How many MegaRAID volumes SeaBIOS has room for.

use super::types::{BootDevice, Controller, Device, Hba, MegasasMode};

/// So many volumes of all boards together: each takes low memory of SeaBIOS.
pub(super) const SEABIOS_VOLUMES: usize = 19;

/// The number of the volume among those of all boards in SeaBIOS's order, from 0. `None` for what is no volume.
pub(super) fn number(device: &BootDevice, hbas: &[Hba]) -> Option<usize> {
    let at = hbas.iter().position(|hba| hba.id == device.hba)?;
    let (before, from) = hbas.split_at_checked(at)?;
    let own = from.first().filter(|hba| has_volumes(hba))?;
    let earlier: usize = before.iter().filter(|hba| has_volumes(hba)).map(|hba| hba.luns.len()).sum();
    Some(earlier + own.luns.iter().filter(|unit| unit.target < device.target).count())
}

fn has_volumes(hba: &Hba) -> bool {
    matches!(&hba.controller, Controller::Megasas(board) if board.mode == MegasasMode::Raid)
        && hba.luns.iter().all(|unit| matches!(unit.device, Device::Disk(_)))
}

/// What is to be said of a boot device that SeaBIOS may not find.
pub(super) fn warning(text: &str, device: &BootDevice, hbas: &[Hba]) -> Option<String> {
    let number = number(device, hbas).filter(|number| *number >= SEABIOS_VOLUMES)?;
    Some(format!(
        "`order` in [boot]: SeaBIOS has room for some {SEABIOS_VOLUMES} MegaRAID volumes of all boards together, and \
         \"{text}\" is number {}: put it before others",
        number + 1
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::good;

    #[test]
    fn the_twentieth_volume_of_all_boards_is_one_too_many() {
        let disks = |count: usize| "[[hba.lun]]\nimage = \"a.img\"\n".repeat(count);
        let text = format!(
            "[vm]\nmemory = \"64MiB\"\n[boot]\nfirmware = \"vmlinuz\"\n[[hba]]\ntype = \"megasas\"\n{}\
             [[hba]]\ntype = \"megasas\"\nmode = \"jbod\"\n{}[[hba]]\n{}[[hba]]\ntype = \"megasas\"\n{}",
            disks(15),
            disks(3),
            disks(3),
            disks(10)
        );
        let (_fixture, config) = good(&text, &[]);
        let of = |hba: &str, target| {
            let device = BootDevice { hba: hba.into(), target, lun: 0 };
            (number(&device, &config.hbas), warning("x:1", &device, &config.hbas))
        };
        assert_eq!(of("hba0", 14), (Some(14), None));
        assert_eq!(of("hba1", 2), (None, None));
        assert_eq!(of("hba2", 2), (None, None));
        assert_eq!(of("hba3", 3), (Some(18), None));
        let (at, said) = of("hba3", 4);
        assert_eq!(at, Some(19));
        assert!(said.unwrap().ends_with("\"x:1\" is number 20: put it before others"));
    }
}
