// SPDX-License-Identifier: GPL-2.0-only
/*
 * The control queue: task management, and RESCAN.
 *
 * The device answers a function when the commands that it ends are back, however long its host
 * takes for them. To give up earlier would hand memory to others that the device may still
 * write. So there is no limit to the wait but the end of the device. The device bounds looks at the
 * fabric itself; who waits for one that does not leaves the memory to the ring.
 */
#include <linux/delay.h>
#include <linux/scatterlist.h>
#include <linux/slab.h>

#include "vsfc.h"

/* Seconds that RESCAN is waited for: the device takes five at most. */
#define RESCAN_PATIENCE	30
#define NO_LIMIT	UINT_MAX

static struct vsfc_control *control_new(void)
{
	struct vsfc_control *control = kzalloc(sizeof(*control), GFP_NOIO);

	if (control) {
		refcount_set(&control->refs, 1);
		init_completion(&control->done);
	}
	return control;
}

static void control_put(struct vsfc_control *control)
{
	if (refcount_dec_and_test(&control->refs))
		kfree(control);
}

static void control_end(struct vsfc_control *control, unsigned int len)
{
	control->len = len;
	complete(&control->done);
	control_put(control);
}

void vsfc_control_done(struct virtqueue *vq)
{
	struct vsfc *host = vq->vdev->priv;
	struct vsfc_control *control;
	unsigned long flags;
	unsigned int len;

	spin_lock_irqsave(&host->control.lock, flags);
	do {
		virtqueue_disable_cb(vq);
		while ((control = virtqueue_get_buf(vq, &len)))
			control_end(control, len);
	} while (!virtqueue_is_broken(vq) && !virtqueue_enable_cb(vq));
	spin_unlock_irqrestore(&host->control.lock, flags);
}

/* The device is reset, or gone: it answers nothing any more. */
void vsfc_end_control(struct vsfc *host)
{
	struct vsfc_control *control;
	unsigned long flags;

	spin_lock_irqsave(&host->control.lock, flags);
	while ((control = virtqueue_detach_unused_buf(host->control.vq)))
		control_end(control, 0);
	spin_unlock_irqrestore(&host->control.lock, flags);
}

static int control_send(struct vsfc *host, struct vsfc_control *control)
{
	struct scatterlist *sgs[2], req, resp;
	unsigned long flags;
	bool notify = false;
	int err;

	sg_init_one(&req, &control->req, control->req_size);
	sg_init_one(&resp, &control->resp, control->resp_size);
	sgs[0] = &req;
	sgs[1] = &resp;

	spin_lock_irqsave(&host->control.lock, flags);
	err = virtqueue_add_sgs(host->control.vq, sgs, 1, 1, control, GFP_ATOMIC);
	if (!err) {
		refcount_inc(&control->refs);
		notify = virtqueue_kick_prepare(host->control.vq);
	}
	spin_unlock_irqrestore(&host->control.lock, flags);
	if (notify)
		virtqueue_notify(host->control.vq);
	return err;
}

/*
 * Sends a request and waits for its answer, for so many seconds at most; returns how long the
 * answer is, or an error.
 */
static int control_run(struct vsfc *host, struct vsfc_control *control, unsigned int seconds)
{
	int err;

	while ((err = control_send(host, control)) == -ENOSPC)
		msleep(20);
	if (err)
		return err;
	while (!wait_for_completion_timeout(&control->done, HZ)) {
		if (vsfc_is_broken(host))
			return -ENODEV;
		if (seconds != NO_LIMIT && !--seconds)
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
	struct vsfc_control *control = control_new();
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
	control_put(control);
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

static struct vsfc_control *tmf_new(struct vsfc *host, u32 subtype, const u8 lun[8], u64 tag)
{
	struct vsfc_control *control = control_new();

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

/* Has a function carried out; all commands that it ends are back then. */
static int tmf_run(struct vsfc *host, u32 subtype, const u8 lun[8], u64 tag)
{
	struct vsfc_control *control = tmf_new(host, subtype, lun, tag);
	int result = FAILED;
	int len;

	if (!control)
		return FAILED;
	len = control_run(host, control, NO_LIMIT);
	if (len >= (int)sizeof(control->resp.tmf) &&
	    (control->resp.tmf.response == VIRTIO_SCSI_S_OK ||
	     control->resp.tmf.response == VIRTIO_SCSI_S_FUNCTION_SUCCEEDED))
		result = SUCCESS;
	control_put(control);
	/* The device has completed them; we may not have looked yet. */
	vsfc_reap(host);
	return result;
}

/*
 * Has all commands to a target end, and waits for nothing: they come back by themselves.
 * Whoever calls this does so for one port after the other, and the host may take its time for
 * each.
 */
void vsfc_reset_nexus_later(struct vsfc *host, u8 target)
{
	const u8 lun[8] = { 1, target };
	struct vsfc_control *control;
	int err = -ENOMEM;

	control = tmf_new(host, VIRTIO_SCSI_T_TMF_I_T_NEXUS_RESET, lun, 0);
	if (control) {
		err = control_send(host, control);
		control_put(control);
	}
	if (err && !vsfc_is_broken(host))
		shost_printk(KERN_ERR, host->shost,
			     "commands to target %u stay with the device: error %d\n", target, err);
}

static int eh_function(struct scsi_cmnd *sc, u32 subtype, u64 tag)
{
	struct vsfc *host = vsfc_of(sc->device->host);
	u8 lun[8];
	/*
	 * While the port is blocked nothing helps; when its patience is over, the command is to
	 * end.
	 */
	int blocked = host->is_fc ? fc_block_scsi_eh(sc) : 0;
	int result;

	if (!vsfc_address(sc->device, lun))
		return FAILED;
	if (subtype == VIRTIO_SCSI_T_TMF_I_T_NEXUS_RESET)
		memset(&lun[2], 0, 6);
	result = tmf_run(host, subtype, lun, tag);
	return result == SUCCESS && blocked ? blocked : result;
}

int vsfc_eh_abort(struct scsi_cmnd *sc)
{
	return eh_function(sc, VIRTIO_SCSI_T_TMF_ABORT_TASK, blk_mq_unique_tag(scsi_cmd_to_rq(sc)));
}

int vsfc_eh_unit_reset(struct scsi_cmnd *sc)
{
	return eh_function(sc, VIRTIO_SCSI_T_TMF_LOGICAL_UNIT_RESET, 0);
}

int vsfc_eh_target_reset(struct scsi_cmnd *sc)
{
	return eh_function(sc, VIRTIO_SCSI_T_TMF_I_T_NEXUS_RESET, 0);
}

/*
 * The time of a command is over. A disk of the host is waited for, as the device promises to
 * answer. Behind a port the command may be lost on its way: it is aborted, and sent again.
 */
enum vsfc_timeout_action vsfc_eh_timed_out(struct scsi_cmnd *sc)
{
	struct vsfc *host = vsfc_of(sc->device->host);

	return host->is_fc ? fc_eh_timed_out(sc) : VSFC_WAIT_ON;
}

/*
 * A port that somebody has marked as marginal is given no second attempt where there is another
 * path.
 */
bool vsfc_eh_should_retry(struct scsi_cmnd *sc)
{
	return !vsfc_of(sc->device->host)->is_fc || fc_eh_should_retry_cmd(sc);
}
