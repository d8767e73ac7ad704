// SPDX-License-Identifier: GPL-2.0-only
/*
 * Commands: from the midlayer to the device, and back.
 */
#include <linux/scatterlist.h>
#include <scsi/scsi.h>
#include <scsi/scsi_device.h>
#include <scsi/scsi_tcq.h>

#include "vsfc.h"

/* What the flat space addressing method has in the first byte of a LUN. */
#define FLAT_SPACE 0x40

/* The device's number for a remote port; negative while the transport has none. */
int vsfc_port_target(struct fc_rport *rport)
{
	struct vsfc_rport *ours = rport->dd_data;

	return READ_ONCE(ours->number) - 1;
}

/*
 * The LUN field of a unit: its target, and the LUN as the target has it, or the first level of
 * it in the flat space method. False for a unit that cannot be addressed.
 */
bool vsfc_address(struct scsi_device *sdev, u8 field[8])
{
	struct fc_rport *rport = starget_to_rport(scsi_target(sdev));
	struct vsfc *host = vsfc_of(sdev->host);
	int target = rport ? vsfc_port_target(rport) : sdev->id;
	struct scsi_lun lun;

	if (target < 0)
		return false;
	memset(field, 0, 8);
	field[0] = 1;
	field[1] = target;
	if (!host->is_native) {
		field[2] = sdev->lun >> 8 | FLAT_SPACE;
		field[3] = sdev->lun;
		return sdev->lun < 0x8000;
	}
	int_to_scsilun(sdev->lun, &lun);
	memcpy(&field[2], lun.scsi_lun, 6);
	/* There is no room for a fourth level. */
	return !lun.scsi_lun[6] && !lun.scsi_lun[7];
}

/* The LUN of an address, as the midlayer counts. */
u64 vsfc_lun_of(const u8 field[8])
{
	struct scsi_lun lun = {};

	memcpy(lun.scsi_lun, &field[2], 6);
	return scsilun_to_int(&lun);
}

static void fail(struct scsi_cmnd *sc, int host_byte)
{
	sc->result = 0;
	set_host_byte(sc, host_byte);
	scsi_done(sc);
}

/* What the response to a command means to the midlayer. */
static void take_response(struct vsfc *host, struct scsi_cmnd *sc,
			  const struct virtio_scsi_cmd_resp *resp)
{
	struct virtio_device *vdev = host->vdev;

	sc->result = resp->status;
	switch (resp->response) {
	case VIRTIO_SCSI_S_OK:
		break;
	case VIRTIO_SCSI_S_ABORTED:
		set_host_byte(sc, DID_ABORT);
		break;
	case VIRTIO_SCSI_S_BAD_TARGET:
	case VIRTIO_SCSI_S_TARGET_FAILURE:
		set_host_byte(sc, DID_BAD_TARGET);
		break;
	case VIRTIO_SCSI_S_RESET:
		set_host_byte(sc, DID_RESET);
		break;
	case VIRTIO_SCSI_S_BUSY:
		set_host_byte(sc, DID_BUS_BUSY);
		break;
	case VIRTIO_SCSI_S_TRANSPORT_FAILURE:
		/* Sent again, it finds the port blocked, and its timers decide. */
		set_host_byte(sc, DID_TRANSPORT_DISRUPTED);
		break;
	case VIRTIO_SCSI_S_NEXUS_FAILURE:
		sc->result = SAM_STAT_RESERVATION_CONFLICT;
		break;
	default:
		set_host_byte(sc, DID_ERROR);
	}
	scsi_set_resid(sc, min(virtio32_to_cpu(vdev, resp->resid), scsi_bufflen(sc)));
	if (resp->response == VIRTIO_SCSI_S_OK && resp->sense_len) {
		size_t len = min_t(size_t, virtio32_to_cpu(vdev, resp->sense_len),
				   sizeof(resp->sense));

		memcpy(sc->sense_buffer, resp->sense, min_t(size_t, len, SCSI_SENSE_BUFFERSIZE));
	}
}

static void complete_command(struct vsfc *host, struct scsi_cmnd *sc, unsigned int len)
{
	struct vsfc_cmd *cmd = scsi_cmd_priv(sc);
	struct fc_rport *rport = starget_to_rport(scsi_target(sc->device));

	/* A device that says nothing has not done it. */
	if (len < offsetof(struct virtio_scsi_cmd_resp, sense)) {
		fail(sc, DID_ERROR);
		return;
	}
	take_response(host, sc, &cmd->resp);
	/*
	 * What the device ended for a port that is lost is not over: it is sent again, and then
	 * waits or fails as the port's timers have it.
	 */
	if (rport && fc_remote_port_chkready(rport) && get_host_byte(sc) == DID_ABORT)
		set_host_byte(sc, DID_TRANSPORT_DISRUPTED);
	scsi_done(sc);
}

static void reap_queue(struct vsfc *host, struct vsfc_queue *queue)
{
	struct scsi_cmnd *sc;
	unsigned long flags;
	unsigned int len;

	spin_lock_irqsave(&queue->lock, flags);
	do {
		virtqueue_disable_cb(queue->vq);
		while ((sc = virtqueue_get_buf(queue->vq, &len)))
			complete_command(host, sc, len);
	} while (!virtqueue_is_broken(queue->vq) && !virtqueue_enable_cb(queue->vq));
	spin_unlock_irqrestore(&queue->lock, flags);
}

void vsfc_request_done(struct virtqueue *vq)
{
	struct vsfc *host = vq->vdev->priv;

	reap_queue(host, &host->queues[vq->index - VSFC_VQ_REQUEST]);
}

/* Takes what the device has completed, as after a function that ends commands. */
void vsfc_reap(struct vsfc *host)
{
	unsigned int i;

	for (i = 0; i < host->nr_queues; i++)
		reap_queue(host, &host->queues[i]);
}

/* The device is reset, or gone: ends all that it still had. */
void vsfc_end_commands(struct vsfc *host, int host_byte)
{
	struct scsi_cmnd *sc;
	unsigned long flags;
	unsigned int i;

	for (i = 0; i < host->nr_queues; i++) {
		spin_lock_irqsave(&host->queues[i].lock, flags);
		while ((sc = virtqueue_detach_unused_buf(host->queues[i].vq)))
			fail(sc, host_byte);
		spin_unlock_irqrestore(&host->queues[i].lock, flags);
	}
}

static void kick(struct vsfc_queue *queue)
{
	unsigned long flags;
	bool notify;

	spin_lock_irqsave(&queue->lock, flags);
	notify = virtqueue_kick_prepare(queue->vq);
	spin_unlock_irqrestore(&queue->lock, flags);
	if (notify)
		virtqueue_notify(queue->vq);
}

static int add_command(struct vsfc_queue *queue, struct scsi_cmnd *sc, bool is_last)
{
	struct scatterlist *sgs[4], req, resp;
	struct vsfc_cmd *cmd = scsi_cmd_priv(sc);
	unsigned int out = 0, in = 0;
	unsigned long flags;
	bool notify = false;
	int err;

	sg_init_one(&req, &cmd->req, sizeof(cmd->req));
	sgs[out++] = &req;
	if (sc->sc_data_direction == DMA_TO_DEVICE && scsi_sg_count(sc))
		sgs[out++] = scsi_sglist(sc);
	sg_init_one(&resp, &cmd->resp, sizeof(cmd->resp));
	sgs[out + in++] = &resp;
	if (sc->sc_data_direction == DMA_FROM_DEVICE && scsi_sg_count(sc))
		sgs[out + in++] = scsi_sglist(sc);

	spin_lock_irqsave(&queue->lock, flags);
	err = virtqueue_add_sgs(queue->vq, sgs, out, in, sc, GFP_ATOMIC);
	/* One that finds no room is the end of a batch, too. */
	if (is_last || err)
		notify = virtqueue_kick_prepare(queue->vq);
	spin_unlock_irqrestore(&queue->lock, flags);
	if (notify)
		virtqueue_notify(queue->vq);
	return err;
}

static struct vsfc_queue *queue_of(struct vsfc *host, struct scsi_cmnd *sc)
{
	u32 tag = blk_mq_unique_tag(scsi_cmd_to_rq(sc));

	return &host->queues[blk_mq_unique_tag_to_hwq(tag) % host->nr_queues];
}

int vsfc_queuecommand(struct Scsi_Host *shost, struct scsi_cmnd *sc)
{
	struct vsfc *host = vsfc_of(shost);
	struct vsfc_cmd *cmd = scsi_cmd_priv(sc);
	int err;

	if (host->is_fc) {
		struct fc_rport *rport = starget_to_rport(scsi_target(sc->device));
		int result = rport ? fc_remote_port_chkready(rport) : DID_NO_CONNECT << 16;

		if (unlikely(result)) {
			sc->result = result;
			scsi_done(sc);
			return 0;
		}
	}
	memset(&cmd->req, 0, sizeof(cmd->req));
	/* What a device leaves as it is says that all went wrong. */
	memset(&cmd->resp, 0, offsetof(struct virtio_scsi_cmd_resp, sense));
	cmd->resp.response = VIRTIO_SCSI_S_FAILURE;
	if (unlikely(!vsfc_address(sc->device, cmd->req.lun) ||
		     sc->cmd_len > sizeof(cmd->req.cdb))) {
		fail(sc, DID_BAD_TARGET);
		return 0;
	}
	cmd->req.tag = cpu_to_virtio64(host->vdev, blk_mq_unique_tag(scsi_cmd_to_rq(sc)));
	cmd->req.task_attr = VIRTIO_SCSI_S_SIMPLE;
	memcpy(cmd->req.cdb, sc->cmnd, sc->cmd_len);

	err = add_command(queue_of(host, sc), sc, sc->flags & SCMD_LAST);
	if (likely(!err))
		return 0;
	if (err == -EIO) {
		/* The device is gone. */
		fail(sc, DID_NO_CONNECT);
		return 0;
	}
	return SCSI_MLQUEUE_HOST_BUSY;
}

void vsfc_commit_rqs(struct Scsi_Host *shost, u16 hwq)
{
	struct vsfc *host = vsfc_of(shost);

	kick(&host->queues[hwq % host->nr_queues]);
}
