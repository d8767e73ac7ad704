//! The QEMU command line for the same machine that a vm.toml describes, for comparison.

use anyhow::{Context, Result};

use crate::config::{Config, Hba, Lun};
use crate::tools::Tools;

/// The words that start QEMU with this machine, its console on standard input and output.
pub fn command_line(config: &Config, tools: &Tools) -> Result<Vec<String>> {
    let mut words = tools.words("qemu-system-x86_64", "qemu-system-x86_64", None)?;
    words.extend(tools.qemu_data());
    let mut add = |items: &[&str]| words.extend(items.iter().map(|item| (*item).to_string()));
    add(&[
        "-name",
        &config.vm.name,
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
        "-serial",
        "stdio",
    ]);
    // Without graphics firmware prints to the serial port, as with our VMM.
    add(&["-M", "q35,graphics=off", "-accel", "kvm", "-cpu", "host"]);
    add(&["-smp", &config.vm.cpus.to_string(), "-m", &memory(&config.vm.memory)?]);
    add(&["-object", "iothread,id=io0"]);
    for (option, value) in [
        ("-kernel", &config.boot.kernel),
        ("-initrd", &config.boot.initrd),
        ("-append", &config.boot.cmdline),
    ] {
        if let Some(value) = value {
            add(&[option, value]);
        }
    }
    if let Some(firmware) = &config.boot.firmware {
        add(&["-bios", firmware]);
    }
    for hba in &config.hba {
        add(&["-device", &hba_device(hba)]);
        for lun in &hba.lun {
            let id = format!("{}-{}", hba.id, lun.target);
            add(&["-drive", &drive(lun, &id), "-device", &unit_device(hba, lun, &id)]);
        }
    }
    Ok(words)
}

/// "1GiB" is 1G for QEMU.
fn memory(size: &str) -> Result<String> {
    size.strip_suffix("iB").map(str::to_string).with_context(|| format!("{size} is no size in MiB or GiB"))
}

fn hba_device(hba: &Hba) -> String {
    match hba.kind.as_str() {
        "megasas" if hba.more.get("model").and_then(toml::Value::as_str) == Some("1078") => {
            format!("megasas,id={}{}", hba.id, jbod(hba))
        }
        "megasas" => format!("megasas-gen2,id={}{}", hba.id, jbod(hba)),
        _ => format!("virtio-scsi-pci,id={},iothread=io0", hba.id),
    }
}

fn jbod(hba: &Hba) -> &'static str {
    if hba.more.get("mode").and_then(toml::Value::as_str) == Some("jbod") { ",use_jbod=on" } else { "" }
}

fn drive(lun: &Lun, id: &str) -> String {
    // io_uring only goes with direct I/O in a way worth comparing.
    let (Some(format), Some(cache)) = (&lun.format, &lun.cache) else {
        return format!("if=none,id={id},file={},format=raw", lun.image);
    };
    let aio = if matches!(cache.as_str(), "none" | "directsync") { "io_uring" } else { "threads" };
    let readonly = if lun.kind == "cd" { ",readonly=on" } else { "" };
    format!("if=none,id={id},file={},format={format},cache={cache},aio={aio}{readonly}", lun.image)
}

fn unit_device(hba: &Hba, lun: &Lun, id: &str) -> String {
    let kind = match lun.kind.as_str() {
        "cd" => "scsi-cd",
        "generic" => "scsi-generic",
        "block" => "scsi-block",
        _ => "scsi-hd",
    };
    let number = lun.more.get("lun").and_then(toml::Value::as_integer).unwrap_or(0);
    format!("{kind},drive={id},bus={}.0,scsi-id={},lun={number}", hba.id, lun.target)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_sizes() {
        assert_eq!(memory("512MiB").ok().as_deref(), Some("512M"));
        assert!(memory("512").is_err());
    }
}
