//! The Cloud Hypervisor command line for the machine that a vm.toml describes, with virtio-blk disks, for comparison.

use std::path::Path;

use anyhow::{Context, Result};

use crate::config::Config;

/// The words that start `program` with this machine, its console on standard input and output.
pub fn command_line(config: &Config, program: &Path) -> Result<Vec<String>> {
    let mut words = vec![program.to_string_lossy().into_owned()];
    let mut add = |option: &str, value: String| words.extend([option.to_string(), value]);
    for (option, value) in [
        ("--kernel", &config.boot.kernel),
        ("--initramfs", &config.boot.initrd),
        ("--cmdline", &config.boot.cmdline),
    ] {
        if let Some(value) = value {
            add(option, value.clone());
        }
    }
    let size = config.vm.memory.strip_suffix("iB").context("a size in MiB or GiB")?;
    add("--cpus", format!("boot={}", config.vm.cpus));
    add("--memory", format!("size={size}"));
    add("--serial", "tty".into());
    add("--console", "off".into());
    for lun in config.hba.iter().flat_map(|hba| &hba.lun) {
        let direct = if matches!(lun.cache.as_deref(), Some("none" | "directsync")) { "on" } else { "off" };
        let queues = config.vm.cpus;
        add(
            "--disk",
            format!("path={},image_type=raw,direct={direct},num_queues={queues},queue_size=256", lun.image),
        );
    }
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Boot, Hba, Lun, Machine, Serial};

    #[test]
    fn each_unit_is_a_disk() {
        let lun = Lun {
            target: 0,
            kind: "disk".into(),
            image: "/dev/nullb0".into(),
            format: Some("raw".into()),
            cache: Some("none".into()),
            more: toml::Table::new(),
        };
        let hba =
            Hba { id: "a".into(), kind: "virtio-scsi".into(), more: toml::Table::new(), lun: vec![lun] };
        let config = Config {
            vm: Machine { name: "m".into(), cpus: 2, memory: "1GiB".into(), on_crash: "exit".into() },
            boot: Boot { kernel: Some("k".into()), ..Boot::default() },
            serial: Serial { mode: "stdio".into() },
            hba: vec![hba],
        };
        let words = command_line(&config, Path::new("/ch")).unwrap().join(" ");
        assert_eq!(
            words,
            "/ch --kernel k --cpus boot=2 --memory size=1G --serial tty --console off \
             --disk path=/dev/nullb0,image_type=raw,direct=on,num_queues=2,queue_size=256"
        );
    }
}
