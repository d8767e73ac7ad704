//! Machines with ports of their own on a fabric: what their guests find there, and what the host has of them.

use std::collections::BTreeMap;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use testbed::bed::Bed;
use testbed::guest::Guest;
use testbed::report::note;
use testbed::vm::Vm;

use super::fabric::San;

/// What guests can call. `units` prints a line for each unit: address, serial number, blocks. `disk ADDRESS` and `sg ADDRESS` print
/// nodes. `within TENTHS COMMAND` waits until the command is true.
const FUNCTIONS: &str = r#"
    at() { echo /sys/class/scsi_device/$1/device; }
    disk() { echo /dev/$(ls $(at $1)/block); }
    sg() { echo /dev/$(ls $(at $1)/scsi_generic); }
    units() {
        for unit in /sys/class/scsi_device/*; do
            [ -e $unit/device ] || continue
            size=-; for block in $unit/device/block/*; do [ ! -e $block/size ] || size=$(cat $block/size); done
            echo UNIT ${unit##*/} $(tail -c +5 $unit/device/vpd_pg80) $size
        done
    }
    now() { tr -d . < /proc/uptime | cut -d' ' -f1; }
    within() {
        end=$(($(now) + $1 * 10)); shift
        until eval "$*"; do [ $(now) -lt $end ] || return 1; sleep 0.1; done 2>/dev/null
    }
    there() { [ -e $(at $1)/block ]; }
    gone() { [ ! -e $(at $1) ]; }
    read_one() { dd if=$(disk $1) of=/dev/null bs=4k count=1 iflag=direct 2>/dev/null; }
"#;

/// A unit as a guest sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Unit {
    /// What the array calls it, which is its serial number.
    pub(crate) name: String,
    /// Of disks, blocks of 512 bytes.
    pub(crate) blocks: Option<u64>,
}

/// Keys of `[hba.fc]`: the names that the port is to have, and more, each as KEY=VALUE.
pub(crate) fn keys(wwpn: &str, more: &[&str]) -> Result<toml::Table> {
    let mut keys = toml::Table::new();
    keys.insert("wwpn".into(), wwpn.into());
    keys.insert("wwnn".into(), wwpn.replacen("21", "20", 1).into());
    for key in more {
        let (key, value) = key.split_once('=').context("a key is KEY=VALUE")?;
        let value = value.parse().unwrap_or_else(|_| toml::Value::String(value.into()));
        keys.insert(key.into(), value);
    }
    Ok(keys)
}

/// A guest with a shell, which waits for [`shell`].
pub(crate) fn guest<'a>(bed: &'a Bed, name: &str) -> Guest<'a> {
    bed.guest().name(name).cpus(2).memory("512MiB").quick_shell()
}

/// Waits for the guest, whose shell then knows the functions above.
pub(crate) fn shell(vm: &mut Vm<'_>) -> Result<()> {
    vm.quick_shell()?;
    vm.run(FUNCTIONS)?;
    Ok(())
}

/// The units of the guest, by address.
pub(crate) fn units(vm: &mut Vm<'_>) -> Result<BTreeMap<String, Unit>> {
    let said = vm.run("units")?;
    let line = |line: &str| {
        let mut words = line.trim().strip_prefix("UNIT ")?.split_whitespace();
        let (address, name, blocks) = (words.next()?, words.next()?, words.next()?);
        Some((address.to_string(), Unit { name: name.into(), blocks: blocks.parse().ok() }))
    };
    Ok(said.lines().filter_map(line).collect())
}

/// A LUN as Linux writes it, at a target of the guest's adapter.
pub(crate) fn address(adapter: u32, target: u32, lun: u32) -> String {
    // Flat space addressing (SAM-5, 4.7.7.3) for what is above 255.
    format!("{adapter}:0:{target}:{}", if lun > 255 { lun | 0x4000 } else { lun })
}

/// How many seconds after a command to the fabric something is so in the guest.
pub(crate) fn after(
    san: &San<'_>,
    vm: &mut Vm<'_>,
    command: &str,
    condition: &str,
    seconds: u32,
) -> Result<f64> {
    vm.send(&format!("within {} '{condition}'; echo \"WITHIN \"$?\".\"\n", seconds * 10))?;
    let begin = Instant::now();
    if !command.is_empty() {
        san.tell(command)?;
    }
    vm.wait_for("WITHIN ", u64::from(seconds) + 60)?;
    let took = begin.elapsed().as_secs_f64();
    let code = vm.wait_for(".", 10)?;
    vm.wait_for("\n", 10)?;
    ensure!(code == "0", "{seconds} s after {command:?}, this is not so in the guest: {condition}");
    Ok(took)
}

/// Waits until nothing on the host is left of a machine with these ports: no virtual port, no process, no login at the fabric.
pub(crate) fn nothing_left(san: &San<'_>, wwpns: &[&str], seconds: u32) -> Result<()> {
    let begin = Instant::now();
    for wwpn in wwpns {
        san.shell(
            &format!("wait_for {seconds} '[ -z \"$(vport_state {wwpn})\" ]'"),
            u64::from(seconds) + 60,
        )?;
    }
    note(&format!("no virtual port after {:.1} s", begin.elapsed().as_secs_f64()));
    no_process(san, seconds)?;
    note(&format!("no process after {:.1} s", begin.elapsed().as_secs_f64()));
    let left = san.shell("ls /run/vmm/fc/vports 2>/dev/null; ls /sys/class/scsi_device; true", 30)?;
    ensure!(left.trim().is_empty(), "there are still {left}");
    let info = san.tell("info")?;
    for wwpn in wwpns {
        ensure!(!info.contains(wwpn), "{wwpn} is still logged in: {info}");
    }
    Ok(())
}

/// Waits until no process has ports of a machine. Nobody in level 1 asks how one of a killed machine has ended, so that its entry stays.
pub(crate) fn no_process(san: &San<'_>, seconds: u32) -> Result<()> {
    let script = format!(
        "runs() {{
             for process in $(grep -lx vmm-fcport /proc/[0-9]*/comm); do grep -q 'State:.[^Z]' ${{process%comm}}status && return; done
             return 1
         }}
         wait_for {seconds} '! runs' || {{ grep -lx vmm-fcport /proc/[0-9]*/comm; exit 1; }}"
    );
    san.shell(&script, u64::from(seconds) + 60).map(drop)
}

/// Resident memory of the machine's processes in KiB: its own, and that of its virtual ports.
pub(crate) fn memory(san: &San<'_>, vm: &Vm<'_>) -> Result<String> {
    let script = format!(
        "for process in {} $(grep -lx vmm-fcport /proc/[0-9]*/comm | cut -d/ -f3); do
             echo $(cat /proc/$process/comm) $(grep VmRSS /proc/$process/status | tr -s '\\t ' ' ') $(ls /proc/$process/fd | wc -l) files,
         done",
        vm.pid()
    );
    Ok(san.shell(&script, 30)?.trim().replace('\n', " "))
}
