/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The Fibre Channel extension of virtio-scsi, revision 1: what goes over the wire.
 *
 * docs/virtio-scsi-fc.md of the device is the truth; sections here are of that page. What is
 * not here is in <linux/virtio_scsi.h>.
 */
#ifndef VSFC_ABI_H
#define VSFC_ABI_H

#include <linux/types.h>

/* Feature bits (section 1). */
#define VSFC_F_RESCAN		4
#define VSFC_F_NATIVE_LUN	5
#define VSFC_F_FC_HOST		6
#define VSFC_F_RPORT_EVENTS	7
#define VSFC_F_VPORT		8

/* The revision of the configuration space that this driver knows. */
#define VSFC_REVISION		1

/* Where the configuration space of the extension begins: after that of the standard (section 2). */
#define VSFC_CONFIG_OFFSET	36

struct vsfc_config {
	__le32 revision;
	__be64 primary_wwnn;
	__be64 primary_wwpn;
	__be64 secondary_wwnn;
	__be64 secondary_wwpn;
	u8 active;
	u8 port_state;
	__le16 max_vports;
	__le32 port_id;
	__be64 fabric_name;
	__le32 speed_mbps;
	__le32 supported_classes;
	__le32 max_frame_size;
} __packed;

/* Values of vsfc_config.active. */
#define VSFC_ACTIVE_SECONDARY	2

/* The control request RESCAN (section 3). */
#define VSFC_T_RESCAN		3
/* As next_id: look at the fabric first, then the first target. As id: no further target. */
#define VSFC_NO_ID		0xffffffffU
/* Target numbers are one byte of a LUN field (section 4). */
#define VSFC_TARGETS		256

struct vsfc_rescan_req {
	__le32 type;
	__le32 next_id;
} __packed;

struct vsfc_rescan_resp {
	__le32 id;
	__le32 transport;
	__be64 node_wwn;
	__be64 port_wwn;
	__le32 port_id;
	u8 state;
	u8 response;
	__le16 vport;
} __packed;

/* The control requests about ports of this machine's own (section 7). */
#define VSFC_T_VPORT_CREATE	4
#define VSFC_T_VPORT_DELETE	5
#define VSFC_T_VPORT_SHOW	6

struct vsfc_create_req {
	__le32 type;
	__le32 flags;
	__be64 wwnn;
	__be64 wwpn;
} __packed;

struct vsfc_create_resp {
	__le32 vport;
	u8 response;
	u8 reason;
	u8 reserved[2];
} __packed;

/* Delete and show. */
struct vsfc_vport_req {
	__le32 type;
	__le32 vport;
} __packed;

struct vsfc_delete_resp {
	u8 response;
	u8 reason;
	u8 reserved[2];
} __packed;

/* Fields as in vsfc_config. */
struct vsfc_show_resp {
	__le32 port_id;
	u8 port_state;
	u8 active;
	u8 response;
	u8 reason;
	__be64 fabric_name;
	__le32 speed_mbps;
	__le32 supported_classes;
	__le32 max_frame_size;
} __packed;

/* Why not. */
#define VSFC_VPORT_NOT_ALLOWED	1
#define VSFC_VPORT_IN_USE	2
#define VSFC_VPORT_NO_ROOM	3
#define VSFC_VPORT_FAILED	4
#define VSFC_VPORT_UNKNOWN	5

/* The event of remote ports (section 5), and its reasons. */
#define VSFC_T_RPORT		4
#define VSFC_RPORT_LOST		0
#define VSFC_RPORT_BACK		1
#define VSFC_RPORT_CHANGED	2

#endif
