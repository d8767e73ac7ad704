//! The boot tests: what a stock guest must find and be able to do.

mod clocks;
mod debian;
mod discs;
mod disk;
mod ends;
mod fabric;
mod fabric_host;
mod fc_alua;
mod fc_command;
mod fc_errors;
mod fc_guest;
mod fc_machine;
mod fc_module;
mod fc_module_fabric;
mod fc_module_hung;
mod fc_module_paths;
mod fc_module_sleep;
mod fc_module_vport;
mod fc_names;
mod fc_paths;
mod fc_rules;
mod fc_scale;
mod fc_tool;
mod fc_tour;
mod fc_vport;
mod firmware;
mod flush;
mod generic;
mod generic_soak;
mod grow;
mod handover;
mod hardware;
mod hotplug;
mod hung;
mod hung_board;
mod late;
mod mapper;
mod megasas;
mod memtest;
mod messages;
mod neighbours;
mod passed;
mod scsi;
mod scsi_host;
mod swap;
mod vhost;
mod vhost_rates;
mod virtio;
mod virtio_soak;

use testbed::runner::Test;

use generic_soak::{self as soak, BLOCK_MEGASAS, BLOCK_VIRTIO, GENERIC_MEGASAS, GENERIC_VIRTIO};

/// All boot tests, in the order in which they run: the quick ones first.
pub(crate) const TESTS: &[Test] = &[
    Test { name: "hardware-12-1cpu-512m", run: hardware::kernel12_one_cpu },
    Test { name: "hardware-13-2cpu-3g", run: hardware::kernel13_two_cpus },
    Test { name: "hardware-12-4cpu-6g", run: hardware::kernel12_four_cpus },
    Test { name: "hardware-13-no-ioapic", run: hardware::without_ioapic },
    Test { name: "end-reboot", run: ends::reboot },
    Test { name: "end-triple-fault", run: ends::triple_fault },
    Test { name: "end-no-reboot", run: ends::no_reboot },
    Test { name: "end-crash", run: ends::crash },
    Test { name: "end-host-error", run: ends::host_error },
    Test { name: "disk-ext4-13", run: disk::ext4_kernel13 },
    Test { name: "disk-kill-none", run: disk::kill_none },
    Test { name: "megasas-volumes-gen2-13", run: megasas::volumes_gen2_kernel13 },
    Test { name: "megasas-volumes-1078-12", run: megasas::volumes_1078_kernel12 },
    Test { name: "megasas-jbod-gen2-12", run: megasas::jbod_gen2_kernel12 },
    Test { name: "megasas-tools", run: megasas::tools },
    Test { name: "discs-virtio", run: discs::virtio },
    Test { name: "discs-megasas", run: discs::megasas },
    Test { name: "megasas-reload", run: megasas::reload },
    Test { name: "megasas-kill-writeback", run: megasas::kill_writeback },
    Test { name: "scsi-identity", run: scsi::identity },
    Test { name: "scsi-verify", run: scsi::verify },
    Test { name: "scsi-no-space", run: scsi_host::no_space },
    Test { name: "flush-failed-virtio", run: flush::failed_virtio },
    Test { name: "swap-jbod-paused", run: swap::jbod_paused },
    Test { name: "grow-pause", run: grow::pause },
    Test { name: "pause-clocks", run: clocks::pause_6 },
    Test { name: "hung-virtio", run: hung::virtio },
    Test { name: "hung-board-timeout", run: hung_board::timeout },
    Test { name: "generic-virtio", run: generic::virtio },
    Test { name: "fc-command", run: fc_command::command },
    Test { name: "fc-emulated", run: fc_machine::emulated },
    Test { name: "fc-machine", run: fc_machine::machine },
    Test { name: "fc-module-13", run: fc_module::emulated_13 },
    Test { name: "fc-module-hung", run: fc_module_hung::hung },
    Test { name: "fc-module-vport", run: fc_module_vport::vport },
    Test { name: "virtio-hotplug-13", run: virtio::hotplug_kernel13 },
    Test { name: "virtio-protection", run: virtio::protection },
    Test { name: "megasas-kexec", run: handover::kexec },
    Test { name: "debian-12", run: debian::bookworm },
    Test { name: "memtest-direct", run: memtest::direct },
    Test { name: "memtest-disk", run: memtest::disk },
    Test { name: "seabios-resets", run: firmware::resets },
    Test { name: "seabios-grub-13", run: firmware::trixie },
    Test { name: "vhost-scsi-13", run: vhost::quick },
    Test { name: "vhost-scsi-debian-13", run: vhost::trixie },
];

/// Boot tests that take long, with `boot-tests --soak`; CI does not run them.
pub(crate) const SOAK: &[Test] = &[
    Test { name: "hardware-13-4cpu-512m", run: hardware::kernel13_four_cpus },
    Test { name: "disk-ext4-12", run: disk::ext4_kernel12 },
    Test { name: "disk-kill-writeback", run: disk::kill_writeback },
    Test { name: "megasas-kill-none", run: megasas::kill_none },
    Test { name: "debian-13", run: debian::trixie },
    Test { name: "megasas-volumes-gen2-12", run: megasas::volumes_gen2_kernel12 },
    Test { name: "megasas-volumes-1078-13", run: megasas::volumes_1078_kernel13 },
    Test { name: "megasas-jbod-1078-13", run: megasas::jbod_1078_kernel13 },
    Test { name: "megasas-hotplug-gen2-13", run: megasas::hotplug_gen2_kernel13 },
    Test { name: "megasas-hotplug-1078-12", run: megasas::hotplug_1078_kernel12 },
    Test { name: "megasas-hotplug-jbod-12", run: megasas::hotplug_jbod_kernel12 },
    Test { name: "megasas-hotplug-jbod-13", run: megasas::hotplug_jbod_kernel13 },
    Test { name: "megasas-kdump", run: handover::kdump },
    Test { name: "megasas-kdump-1078-12", run: handover::kdump_1078_kernel12 },
    Test { name: "late-megasas", run: late::megasas },
    Test { name: "late-virtio", run: late::virtio },
    Test { name: "megasas-64", run: megasas::volumes_64 },
    Test { name: "megasas-reset-stalled", run: megasas::reset_of_a_stalled_disk },
    Test { name: "megasas-reset-stopped", run: megasas::reset_of_stopped_firmware },
    Test { name: "megasas-reload-50", run: megasas::reload_50 },
    Test { name: "megasas-debian-13", run: megasas::debian_13 },
    Test { name: "megasas-debian-12-1078", run: megasas::debian_12_1078 },
    Test { name: "seabios-grub-12", run: firmware::bookworm },
    Test { name: "seabios-grub-20-times", run: firmware::rounds },
    Test { name: "virtio-queues", run: virtio::queues },
    Test { name: "virtio-hotplug-12", run: virtio::hotplug_kernel12 },
    Test { name: "soak-virtio-hotplug-500", run: virtio::hotplug_many },
    Test { name: "virtio-legacy-12", run: virtio::legacy_kernel12 },
    Test { name: "virtio-legacy-13", run: virtio::legacy_kernel13 },
    Test { name: "virtio-unbind-ten", run: virtio_soak::unbind },
    Test { name: "virtio-reload-ten", run: virtio_soak::reload },
    Test { name: "virtio-resets-four", run: virtio_soak::resets },
    Test { name: "virtio-recovery", run: virtio_soak::recovery },
    Test { name: "virtio-stall", run: virtio_soak::stall },
    Test { name: "virtio-scale", run: virtio_soak::scale },
    Test { name: "soak-virtio-unbind-100", run: virtio_soak::unbind_100 },
    Test { name: "soak-virtio-reload-100", run: virtio_soak::reload_100 },
    Test { name: "soak-virtio-resets-30", run: virtio_soak::resets_30 },
    Test { name: "scsi-medium", run: scsi::medium },
    Test { name: "scsi-wipe", run: scsi::wipe },
    Test { name: "scsi-files", run: scsi::files },
    Test { name: "scsi-libiscsi", run: scsi::libiscsi },
    Test { name: "scsi-libiscsi-4096", run: scsi::libiscsi_4096 },
    Test { name: "scsi-qcow2-kill", run: scsi_host::qcow2_kill },
    Test { name: "scsi-pieces", run: scsi::pieces },
    Test { name: "scsi-mischief", run: scsi::mischief },
    Test { name: "scsi-pause", run: scsi_host::pause },
    Test { name: "scsi-pause-stop", run: scsi_host::stop_while_paused },
    Test { name: "flush-failed-megasas", run: flush::failed_megasas },
    Test { name: "flush-no-space-report", run: flush::no_space_report },
    Test { name: "flush-no-space-pause", run: flush::no_space_pause },
    Test { name: "swap-jbod-idle", run: swap::jbod_idle },
    Test { name: "swap-volumes-busy", run: swap::volumes_busy },
    Test { name: "swap-virtio-paused", run: swap::virtio_paused },
    Test { name: "swap-virtio-busy", run: swap::virtio_busy },
    Test { name: "grow-report", run: grow::report },
    Test { name: "pause-clocks-60", run: clocks::pause_60 },
    Test { name: "pause-clocks-60-12", run: clocks::pause_60_kernel12 },
    Test { name: "pause-clocks-300", run: clocks::pause_300 },
    Test { name: "grow-resize", run: grow::resize },
    Test { name: "hung-megasas", run: hung::megasas },
    Test { name: "hung-virtio-terminate", run: hung::virtio_terminate },
    Test { name: "hung-megasas-detach", run: hung::megasas_detach },
    Test { name: "hung-board-reset", run: hung_board::reset },
    Test { name: "generic-megasas", run: generic::megasas },
    Test { name: "generic-whole-virtio", run: generic::virtio_without_sandbox },
    Test { name: "generic-limits-virtio", run: |bed, vmm| soak::limits(bed, vmm, GENERIC_VIRTIO) },
    Test { name: "generic-limits-megasas", run: |bed, vmm| soak::limits(bed, vmm, GENERIC_MEGASAS) },
    Test { name: "block-limits-virtio", run: |bed, vmm| soak::limits(bed, vmm, BLOCK_VIRTIO) },
    Test { name: "block-limits-megasas", run: |bed, vmm| soak::limits(bed, vmm, BLOCK_MEGASAS) },
    Test { name: "generic-adapters-virtio", run: |bed, vmm| soak::adapters(bed, vmm, GENERIC_VIRTIO) },
    Test { name: "generic-adapters-megasas", run: |bed, vmm| soak::adapters(bed, vmm, GENERIC_MEGASAS) },
    Test { name: "block-adapters-virtio", run: |bed, vmm| soak::adapters(bed, vmm, BLOCK_VIRTIO) },
    Test { name: "block-adapters-megasas", run: |bed, vmm| soak::adapters(bed, vmm, BLOCK_MEGASAS) },
    Test { name: "generic-gone-virtio", run: |bed, vmm| soak::gone(bed, vmm, GENERIC_VIRTIO) },
    Test { name: "generic-gone-megasas", run: |bed, vmm| soak::gone(bed, vmm, GENERIC_MEGASAS) },
    Test { name: "block-gone-virtio", run: |bed, vmm| soak::gone(bed, vmm, BLOCK_VIRTIO) },
    Test { name: "block-gone-megasas", run: |bed, vmm| soak::gone(bed, vmm, BLOCK_MEGASAS) },
    Test { name: "generic-stalled-virtio", run: |bed, vmm| soak::stalled(bed, vmm, GENERIC_VIRTIO) },
    Test { name: "generic-stalled-megasas", run: |bed, vmm| soak::stalled(bed, vmm, GENERIC_MEGASAS) },
    Test { name: "block-stalled-virtio", run: |bed, vmm| soak::stalled(bed, vmm, BLOCK_VIRTIO) },
    Test { name: "block-stalled-megasas", run: |bed, vmm| soak::stalled(bed, vmm, BLOCK_MEGASAS) },
    Test { name: "generic-refused", run: soak::refused },
    Test { name: "fabric-host", run: fabric_host::host },
    Test { name: "fabric-lio", run: fabric_host::lio },
    Test { name: "fc-vports", run: fc_command::vports },
    Test { name: "fc-module-12", run: fc_module::emulated_12 },
    Test { name: "fc-module-reload-50-13", run: fc_module::reload_50_13 },
    Test { name: "fc-module-reload-50-12", run: fc_module::reload_50_12 },
    Test { name: "fc-module-sleep", run: fc_module_sleep::sleeps },
    Test { name: "fc-module-plain", run: fc_module::plain },
    Test { name: "fc-module-fabric", run: fc_module_fabric::fabric },
    Test { name: "fc-tour", run: fc_tour::tour },
    Test { name: "fc-alua", run: fc_alua::alua },
    Test { name: "fc-module-paths", run: fc_module_paths::paths },
    Test { name: "fc-names", run: fc_names::names },
    Test { name: "fc-vport", run: fc_vport::vport },
    Test { name: "fc-killed", run: fc_machine::killed },
    Test { name: "fc-cluster", run: fc_paths::cluster },
    Test { name: "fc-paths", run: fc_paths::multipath },
    Test { name: "fc-tape", run: fc_scale::tape },
    Test { name: "fc-many", run: fc_scale::many },
    Test { name: "fc-rates", run: fc_scale::rates },
    Test { name: "fc-rules", run: fc_rules::rules },
    Test { name: "vhost-scsi-module", run: vhost::module },
    Test { name: "vhost-scsi-rates", run: vhost_rates::rates },
    Test { name: "neighbours-greedy-queue", run: neighbours::greedy_queue },
    Test { name: "scsi-bad-sectors", run: scsi_host::bad_sectors },
];
