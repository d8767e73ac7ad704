// SPDX-License-Identifier: MIT OR GPL-2.0
// A module that says of a SCSI host that its driver knows all LUNs, as qla2xxx and qedf do by an option: fcoe has none, and stops at 65535.
#include <linux/module.h>
#include <scsi/scsi_host.h>

static ushort host;
module_param(host, ushort, 0444);

static int __init raise(void)
{
	struct Scsi_Host *shost = scsi_host_lookup(host);

	if (!shost)
		return -ENODEV;
	shost->max_lun = ~0ULL;
	scsi_host_put(shost);
	return 0;
}

static void __exit leave(void)
{
}

module_init(raise);
module_exit(leave);
MODULE_DESCRIPTION("Raises the limit of LUNs of a SCSI host");
MODULE_LICENSE("Dual MIT/GPL");
