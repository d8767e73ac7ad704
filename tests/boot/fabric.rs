//! A Fibre Channel SAN for the host: the process of `tests/fabric`, and the kernel's FCoE adapters at its fabrics.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use testbed::bed::{Bed, build_fabric};
use testbed::host::{Event, Process};
use testbed::report::note;
use testbed::tools::Tools;
use testbed::wire::Launch;

/// Adapters are `fi1`, `fi2` ..., the ends of the fabrics `sw1`, `sw2` ... Names of adapters depend on their addresses.
const MAKE: &str = "set -e
    modprobe -a sd_mod sg veth fcoe
    # The protocol has no way to ask again for what is lost on the way.
    echo 100000 > /proc/sys/net/core/netdev_max_backlog
    for number in $numbers; do
        ip link add fi$number address 02:aa:00:00:00:0$number mtu 2500 type veth peer name sw$number mtu 2500
        for link in fi$number sw$number; do
            [ ! -e /proc/sys/net/ipv6/conf/$link ] || echo 1 > /proc/sys/net/ipv6/conf/$link/disable_ipv6
            ip link set $link up
        done
    done";

const ENABLE: &str = "set -e
    for number in $numbers; do
        echo fi$number > /sys/bus/fcoe/ctlr_create
        for switch in /sys/devices/virtual/net/fi$number/ctlr_*/enabled; do echo 1 > $switch; done
    done";

const REMOVE: &str = "for number in $numbers; do
        echo fi$number > /sys/bus/fcoe/ctlr_destroy
        ip link del fi$number
    done 2>/dev/null; true";

/// What scripts on the host can call.
const FUNCTIONS: &str = "now() { read up rest < /proc/uptime; echo ${up%.*}${up#*.}; }
    # wait_for SECONDS COMMAND: until the command is true
    wait_for() {
        end=$(($(now) + $1 * 100)); shift
        until eval \"$*\"; do
            [ $(now) -lt $end ] || { echo \"NOT IN TIME: $*\"; return 1; }
            sleep 0.1
        done 2>/dev/null
    }
    host_of() {
        for host in /sys/class/fc_host/*; do
            read name < $host/port_name
            [ $name != 0x$1 ] || echo ${host##*/}
        done
    }
    state_of() { read state < /sys/class/fc_host/$(host_of $1)/port_state; echo $state; }
    vport_state() {
        for vport in /sys/class/fc_vports/*; do
            read name < $vport/port_name; read state < $vport/vport_state
            [ $name != 0x$1 ] || echo $state
        done
    }
    # port_state HOST WWPN: that of a remote port
    port_state() {
        for port in /sys/class/fc_remote_ports/rport-${1#host}:*; do
            read name < $port/port_name; read state < $port/port_state
            [ $name != 0x$2 ] || echo $state
        done
    }
    luns() {
        for device in /sys/class/scsi_device/${1#host}:*; do
            [ -e $device/device/block ] || continue
            address=${device##*/}
            read name < /sys/class/fc_transport/target${address%:*}/port_name
            set -- $1 $device/device/block/*
            echo LUN $address $name ${address##*:} ${2##*/}
        done
    }\n";

/// A disk that an adapter or a vport sees.
#[derive(Clone, Debug)]
pub(crate) struct Lun {
    /// Host, channel, target and LUN.
    pub(crate) address: String,
    /// The target port's name.
    pub(crate) port: String,
    /// The array's number.
    pub(crate) lun: u64,
    /// Its node.
    pub(crate) node: String,
}

/// What a test has had go wrong.
#[must_use]
pub(crate) struct Fault {
    command: String,
    before: Counts,
}

/// What the array has counted.
#[derive(Clone, Copy)]
struct Counts {
    /// Commands that had a fault.
    injected: u64,
    /// Frames that were lost on purpose.
    lost: u64,
    /// Frames to silent target ports.
    unheard: u64,
}

impl Counts {
    fn of(info: &str) -> Result<Self> {
        let count = |label: &str| {
            let line = info.lines().find_map(|line| line.strip_prefix(label));
            let number = line.and_then(|line| line.split(';').next()?.trim().parse().ok());
            number.with_context(|| format!("no count of {label:?} in: {info}"))
        };
        let unheard = |line: &str| line.strip_suffix(" not heard")?.rsplit(' ').next()?.parse::<u64>().ok();
        let parts = info.lines().filter(|line| line.starts_with("target ")).flat_map(|line| line.split(", "));
        Ok(Self {
            injected: count("injected:")?,
            lost: count("lost on purpose:")?,
            unheard: parts.filter_map(unheard).sum(),
        })
    }
}

/// The SAN. It goes when this is dropped, so that has to be after what uses its disks.
pub(crate) struct San<'a> {
    bed: &'a Bed,
    program: String,
    /// `ip`, and other programs, as functions of the shell.
    programs: String,
    process: Option<Process>,
}

const SOCKET: &str = "/run/testbed/tmp/fabric.socket";
/// What the process says.
const LOG: &str = "/run/testbed/tmp/fabric.log";

/// The name of an adapter.
pub(crate) fn adapter(number: usize) -> String {
    format!("200002aa{number:08x}")
}

impl<'a> San<'a> {
    /// Fabrics, with so many adapters each, and the array with so many ports at each of them. `setup` says what it has.
    pub(crate) fn new(bed: &'a Bed, fabrics: &[usize], ports: usize, setup: &str) -> Result<Self> {
        let program = build_fabric()?.to_string_lossy().into_owned();
        let iproute = Tools::of("iproute2", &["iproute2"])?;
        let mut programs = format!("ip() {{ {} \"$@\"; }}\n", iproute.words("ip", "ip", None)?.join(" "));
        for name in ["sg_persist", "sg_raw", "sg_inq"] {
            let words = bed.prepared().tools().words(name, name, None)?.join(" ");
            programs.push_str(&format!("{name}() {{ {words} \"$@\"; }}\n"));
        }
        programs.push_str(&format!("fabric_tell() {{ {program} tell {SOCKET} \"$@\"; }}\n"));
        let adapters: usize = fabrics.iter().sum();
        let numbers: Vec<String> = (1..=adapters).map(|number| number.to_string()).collect();
        programs.push_str(&format!("numbers='{}'\n", numbers.join(" ")));
        let mut san = Self { bed, program, programs, process: None };
        san.shell(REMOVE, 60)?;
        san.shell(MAKE, 120)?;
        bed.host().put("/run/testbed/tmp/fabric.setup", setup.as_bytes())?;
        let mut links = (1..=adapters).map(|number| format!("sw{number}"));
        let links: Vec<String> =
            fabrics.iter().map(|count| links.by_ref().take(*count).collect::<Vec<_>>().join(",")).collect();
        let script = format!(
            "exec {} --control {SOCKET} --setup /run/testbed/tmp/fabric.setup --ports {ports} {} 2>{LOG}",
            san.program,
            links.join(" ")
        );
        let words = ["sh", "-c", &script].map(str::to_string).to_vec();
        let mut process = bed.host().start(&Launch { words, ..Launch::default() })?;
        let event = process.next(Duration::from_secs(60))?;
        ensure!(matches!(event, Event::Output(_)), "the fabric: {event:?}\n{}", san.log());
        san.process = Some(process);
        san.shell(ENABLE, 60)?;
        for number in 1..=adapters {
            let script = format!("wait_for 60 '[ \"$(state_of {})\" = Online ]'", adapter(number));
            san.shell(&script, 90)?;
        }
        Ok(san)
    }

    /// Runs a shell text on the host, with the functions above.
    pub(crate) fn shell(&self, script: &str, seconds: u64) -> Result<String> {
        let done = self.bed.host().shell(&format!("{}{FUNCTIONS}{script}", self.programs), seconds);
        // The functions are known; what was done is what matters.
        done.map_err(|error| {
            anyhow::anyhow!("{}", format!("{error:#}").replace(&format!("{}{FUNCTIONS}", self.programs), ""))
        })
    }

    /// Gives the fabric a command.
    pub(crate) fn tell(&self, command: &str) -> Result<String> {
        self.bed.host().shell(&format!("{} tell {SOCKET} {command}", self.program), 60)
    }

    /// What the fabric says of itself.
    pub(crate) fn log(&self) -> String {
        self.bed.host().shell(&format!("tail -n 40 {LOG}"), 30).unwrap_or_default()
    }

    /// Has something go wrong. [`Self::mend`] says whether it did.
    pub(crate) fn fault(&self, command: &str) -> Result<Fault> {
        let before = self.counts()?;
        self.tell(command)?;
        Ok(Fault { command: command.into(), before })
    }

    /// Nothing goes wrong any more.
    ///
    /// # Errors
    /// It has not gone wrong as often as was asked for, so that whatever came of it says nothing.
    pub(crate) fn mend(&self, fault: &Fault) -> Result<()> {
        let info = self.tell("info")?;
        let after = Counts::of(&info)?;
        let Fault { command, before } = fault;
        let words: Vec<&str> = command.split_whitespace().collect();
        for command in ["inject off", "lose off"] {
            self.tell(command)?;
        }
        let (happened, wanted) = match words[..] {
            ["inject", _, _, count, ..] => (after.injected - before.injected, count.parse::<u64>()?),
            ["lose", _, count] => (after.lost - before.lost, count.parse().unwrap_or(u64::MAX)),
            ["port", port, "silent"] => {
                self.tell(&format!("port {port} heard"))?;
                (after.unheard - before.unheard, u64::MAX)
            }
            _ => return Ok(()),
        };
        // What goes wrong again and again has to do so once.
        let wanted = if wanted > 1000 { 1 } else { wanted };
        ensure!(happened >= wanted, "{command}: that went wrong {happened} times only\n{info}");
        Ok(())
    }

    fn counts(&self) -> Result<Counts> {
        Counts::of(&self.tell("info")?)
    }

    /// Creates a vport at an adapter, and waits until it is active. Returns its host.
    pub(crate) fn create_vport(&self, number: usize, wwpn: &str, wwnn: &str) -> Result<String> {
        self.ask_for_vport(number, wwpn, wwnn)?;
        self.shell(&format!("wait_for 60 '[ \"$(vport_state {wwpn})\" = Active ]'"), 90)?;
        Ok(self.shell(&format!("host_of {wwpn}"), 30)?.trim().to_string())
    }

    /// The same without waiting.
    pub(crate) fn ask_for_vport(&self, number: usize, wwpn: &str, wwnn: &str) -> Result<()> {
        let create =
            format!("echo {wwpn}:{wwnn} > /sys/class/fc_host/$(host_of {})/vport_create", adapter(number));
        self.shell(&create, 30).map(|_| ())
    }

    pub(crate) fn delete_vport(&self, number: usize, wwpn: &str, wwnn: &str) -> Result<()> {
        let delete =
            format!("echo {wwpn}:{wwnn} > /sys/class/fc_host/$(host_of {})/vport_delete", adapter(number));
        self.shell(&delete, 60).map(|_| ())
    }

    /// The disks of an adapter or a vport, by their port and LUN.
    pub(crate) fn luns(&self, host: &str) -> Result<Vec<Lun>> {
        let mut luns = Vec::new();
        for line in self.shell(&format!("luns {host}"), 60)?.lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            let ["LUN", address, port, lun, node] = &words[..] else { continue };
            let (port, node) = (port.trim_start_matches("0x").to_string(), format!("/dev/{node}"));
            // Linux's number has the addressing method in it, where that is not the peripheral one.
            let number: u64 = lun.parse()?;
            let lun = if number >> 14 == 1 { number & 0x3fff } else { number };
            luns.push(Lun { address: (*address).to_string(), port, lun, node });
        }
        luns.sort_by(|one, other| (&one.port, one.lun).cmp(&(&other.port, other.lun)));
        Ok(luns)
    }

    /// Waits until an adapter or a vport sees these LUNs at each of these ports, and no others.
    pub(crate) fn wait_for_luns(&self, host: &str, ports: &[&str], luns: &[u64]) -> Result<Vec<Lun>> {
        let wanted: Vec<(&str, u64)> =
            ports.iter().flat_map(|port| luns.iter().map(|lun| (*port, *lun))).collect();
        self.wait_for_disks(host, &wanted)
    }

    /// Waits until an adapter or a vport sees these disks, by port and LUN, and no others.
    pub(crate) fn wait_for_disks(&self, host: &str, disks: &[(&str, u64)]) -> Result<Vec<Lun>> {
        let wanted: BTreeSet<(&str, u64)> = disks.iter().copied().collect();
        let end = Instant::now() + Duration::from_secs(60);
        loop {
            let found = self.luns(host)?;
            let seen: BTreeSet<(&str, u64)> = found.iter().map(|lun| (&*lun.port, lun.lun)).collect();
            if seen == wanted {
                return Ok(found);
            }
            ensure!(Instant::now() < end, "{host} sees {seen:?}, not {wanted:?}\n{}", self.log());
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}

/// The one with this LUN at this port.
pub(crate) fn find<'l>(luns: &'l [Lun], port: &str, lun: u64) -> Result<&'l Lun> {
    luns.iter().find(|found| found.port == port && found.lun == lun).context("no such LUN")
}

impl Drop for San<'_> {
    fn drop(&mut self) {
        drop(self.shell(REMOVE, 120).inspect_err(|error| note(&format!("{error:#}"))));
    }
}
