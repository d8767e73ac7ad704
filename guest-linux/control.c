// SPDX-License-Identifier: GPL-2.0-only
/*
 * The control queue: task management, RESCAN, and ports of this machine.
 *
 * The device answers a function when the commands that it ends are back, however long its host
 * takes for them. Who waits for one does so without a limit but the end of the device: to give up
 * earlier would hand memory to others that the device may still write. The device bounds looks at the
 * fabric itself; who waits for one that does not leaves the memory to the ring. A port is created
 * and deleted when the fabric says so, or when the device is about to be reset, which does away
 * with it.
 */
#include <linux/delay.h>
#include <linux/scatterlist.h>
#include <linux/slab.h>

#include "vsfc.h"

/* Seconds that RESCAN is waited for: the device takes five at most. */
#define RESCAN_PATIENCE	30
#define NO_LIMIT	UINT_MAX
/* The same, but not for longer than the device is there to be used. */
#define WHILE_USED	(UINT_MAX - 1)

static struct vsfc_control *control_new(gfp_t gfp)
{
	struct vsfc_control *control = kzalloc(sizeof(*control), gfp);

	if (control) {
		refcount_set(&control->refs, 1);
		init_completion(&control->done);
		INIT_LIST_HEAD(&control->recovery);
	}
	return control;
}

void vsfc_control_put(struct vsfc_control *control)
{
	if (refcount_dec_and_test(&control->refs))
		kfree(control);
}

static void control_end(struct vsfc *host, void *data, unsigned int len)
{
	struct vsfc_control *control = data;

	control->len = len;
	vsfc_recovery_ended(host, control);
	complete(&control->done);
	vsfc_control_put(control);
}

void vsfc_control_done(struct virtqueue *vq)
{
	struct vsfc *host = vq->vdev->priv;

	vsfc_ring_reap(host, &host->control, control_end);
}

/* The device is reset: it answers nothing any more. */
void vsfc_end_control(struct vsfc *host)
{
	vsfc_ring_end(host, &host->control, control_end);
}

/* Sends a request, and waits for nothing. */
int vsfc_control_send(struct vsfc *host, struct vsfc_control *control)
{
	struct scatterlist *sgs[2], req, resp;
	struct vsfc_buffers buffers = { .sgs = sgs, .out = 1, .in = 1, .data = control };
	int err;

	sg_init_one(&req, &control->req, control->req_size);
	sg_init_one(&resp, &control->resp, control->resp_size);
	sgs[0] = &req;
	sgs[1] = &resp;
	/* The ring's reference. */
	refcount_inc(&control->refs);
	err = vsfc_ring_add(&host->control, &buffers, true, NULL);
	if (err)
		vsfc_control_put(control);
	return err;
}

/*
 * Sends a request and waits for its answer, for so many seconds at most, the wait for a place in
 * the ring included; returns how long the answer is, or an error. Who has a limit waits no longer
 * when the device is about to go, or to sleep; who has none has not begun to wait for the answer.
 */
static int control_run(struct vsfc *host, struct vsfc_control *control, unsigned int seconds)
{
	unsigned long begin = jiffies;
	bool is_bounded = seconds < WHILE_USED;
	int err;

	while ((err = vsfc_control_send(host, control)) == -ENOSPC) {
		if (READ_ONCE(host->is_stopping))
			return -ENODEV;
		if (is_bounded && time_after(jiffies, begin + seconds * HZ))
			return -ETIMEDOUT;
		msleep(20);
	}
	if (err)
		return err;
	while (!wait_for_completion_timeout(&control->done, HZ / 5)) {
		if (vsfc_is_broken(host) || (seconds != NO_LIMIT && READ_ONCE(host->is_stopping)))
			return -ENODEV;
		if (is_bounded && time_after(jiffies, begin + seconds * HZ))
			return -ETIMEDOUT;
	}
	return control->len;
}

/*
 * Asks for the target with the smallest number from @next_id on. -ENOENT when there is none any
 * more.
 */
int vsfc_rescan(struct vsfc *host, u32 next_id, struct vsfc_rescan_resp *resp)
{
	struct vsfc_control *control = control_new(GFP_NOIO);
	int len;

	if (!control)
		return -ENOMEM;
	control->req.rescan.type = cpu_to_le32(VSFC_T_RESCAN);
	control->req.rescan.next_id = cpu_to_le32(next_id);
	control->req_size = sizeof(control->req.rescan);
	control->resp_size = sizeof(control->resp.rescan);
	len = control_run(host, control, RESCAN_PATIENCE);
	if (len >= 0)
		*resp = control->resp.rescan;
	vsfc_control_put(control);
	if (len < 0)
		return len;
	if (len < sizeof(*resp) || resp->response != VIRTIO_SCSI_S_OK)
		return -EIO;
	if (le32_to_cpu(resp->id) == VSFC_NO_ID)
		return -ENOENT;
	/* A number that does not go on would have the driver ask for ever. */
	if (le32_to_cpu(resp->id) >= VSFC_TARGETS ||
	    (next_id != VSFC_NO_ID && le32_to_cpu(resp->id) < next_id))
		return -EIO;
	return 0;
}

/* What a request about a port came to: @len bytes of its answer, or an error. */
static int vport_result(int len, size_t wanted, u8 response, u8 reason)
{
	if (len < 0)
		return len;
	if (len >= wanted && response == VIRTIO_SCSI_S_OK)
		return 0;
	if (len < wanted || response != VIRTIO_SCSI_S_FAILURE)
		return -EIO;
	switch (reason) {
	case VSFC_VPORT_NOT_ALLOWED:
		return -EPERM;
	case VSFC_VPORT_IN_USE:
		return -EEXIST;
	case VSFC_VPORT_NO_ROOM:
		return -ENOSPC;
	case VSFC_VPORT_UNKNOWN:
		return -ENOENT;
	default:
		return -EIO;
	}
}

/* Has the device create a port; returns its number, or an error. */
int vsfc_create_vport(struct vsfc *host, u64 wwnn, u64 wwpn)
{
	struct vsfc_control *control = control_new(GFP_KERNEL);
	struct vsfc_create_resp *resp;
	u32 number;
	int err;

	if (!control)
		return -ENOMEM;
	resp = &control->resp.create;
	control->req.create.type = cpu_to_le32(VSFC_T_VPORT_CREATE);
	control->req.create.wwnn = cpu_to_be64(wwnn);
	control->req.create.wwpn = cpu_to_be64(wwpn);
	control->req_size = sizeof(control->req.create);
	control->resp_size = sizeof(*resp);
	err = control_run(host, control, WHILE_USED);
	err = vport_result(err, sizeof(*resp), resp->response, resp->reason);
	number = le32_to_cpu(resp->vport);
	vsfc_control_put(control);
	if (err)
		return err;
	return number && number <= U16_MAX ? number : -EIO;
}

static struct vsfc_control *vport_control(u32 type, u16 number, unsigned int resp_size)
{
	struct vsfc_control *control = control_new(GFP_NOIO);

	if (!control)
		return NULL;
	control->req.vport.type = cpu_to_le32(type);
	control->req.vport.vport = cpu_to_le32(number);
	control->req_size = sizeof(control->req.vport);
	control->resp_size = resp_size;
	return control;
}

/* Has the device delete a port. */
int vsfc_delete_vport(struct vsfc *host, u16 number)
{
	struct vsfc_delete_resp *resp;
	struct vsfc_control *control;
	int err;

	control = vport_control(VSFC_T_VPORT_DELETE, number, sizeof(*resp));
	if (!control)
		return -ENOMEM;
	resp = &control->resp.deleted;
	err = control_run(host, control, WHILE_USED);
	err = vport_result(err, sizeof(*resp), resp->response, resp->reason);
	vsfc_control_put(control);
	return err;
}

/* Asks how a port is. */
int vsfc_show_vport(struct vsfc *host, u16 number, struct vsfc_show_resp *shown)
{
	struct vsfc_control *control = vport_control(VSFC_T_VPORT_SHOW, number, sizeof(*shown));
	int err;

	if (!control)
		return -ENOMEM;
	err = control_run(host, control, WHILE_USED);
	*shown = control->resp.show;
	err = vport_result(err, sizeof(*shown), shown->response, shown->reason);
	vsfc_control_put(control);
	return err;
}

struct vsfc_control *vsfc_tmf_new(struct vsfc *host, u32 subtype, const u8 lun[8], u64 tag,
				  gfp_t gfp)
{
	struct vsfc_control *control = control_new(gfp);

	if (!control)
		return NULL;
	control->req.tmf.type = cpu_to_virtio32(host->vdev, VIRTIO_SCSI_T_TMF);
	control->req.tmf.subtype = cpu_to_virtio32(host->vdev, subtype);
	memcpy(control->req.tmf.lun, lun, sizeof(control->req.tmf.lun));
	control->req.tmf.tag = cpu_to_virtio64(host->vdev, tag);
	control->req_size = sizeof(control->req.tmf);
	control->resp_size = sizeof(control->resp.tmf);
	control->resp.tmf.response = VIRTIO_SCSI_S_FAILURE;
	return control;
}

/*
 * Has a function carried out, and waits for it: all commands that it ends are back then, as the
 * device has it. The host does not go meanwhile.
 */
int vsfc_tmf_run(struct vsfc *host, u32 subtype, const u8 lun[8], u64 tag)
{
	struct vsfc_control *control = vsfc_tmf_new(host, subtype, lun, tag, GFP_NOIO);
	int result = FAILED;
	int len;

	if (!control)
		return FAILED;
	down_read(&host->functions);
	len = control_run(host, control, NO_LIMIT);
	/* vhost-scsi gives 0 as length in any case; the response is a failure where it wrote none. */
	if (len >= 0 &&
	    (control->resp.tmf.response == VIRTIO_SCSI_S_OK ||
	     control->resp.tmf.response == VIRTIO_SCSI_S_FUNCTION_SUCCEEDED))
		result = SUCCESS;
	vsfc_control_put(control);
	/* The device has completed them; we may not have looked yet. */
	vsfc_reap(host);
	up_read(&host->functions);
	return result;
}
