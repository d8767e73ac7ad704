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

/* The sense data of a response; false where a status needs some and has none. */
static bool take_sense(struct vsfc *host, struct scsi_cmnd *sc,
		       const struct virtio_scsi_cmd_resp *resp)
{
	size_t count = min_t(size_t, virtio32_to_cpu(host->vdev, resp->sense_len),
			     sizeof(resp->sense));

	memcpy(sc->sense_buffer, resp->sense, min_t(size_t, count, SCSI_SENSE_BUFFERSIZE));
	return count || resp->status != SAM_STAT_CHECK_CONDITION;
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
	/*
	 * The midlayer would stop all disks of the adapter to ask for sense data that are not
	 * there: the command is sent again instead.
	 */
	if (resp->response == VIRTIO_SCSI_S_OK && !take_sense(host, sc, resp))
		set_host_byte(sc, DID_ERROR);
}

/*
 * A command whose time was over, and that the device has ended therefore: it is sent again, as often
 * as the midlayer does that after its own aborts, but not behind a port that is marginal.
 */
static void take_timed_out(struct vsfc *host, struct scsi_cmnd *sc)
{
	if (get_host_byte(sc) != DID_ABORT && get_host_byte(sc) != DID_RESET)
		return;
	set_host_byte(sc, DID_SOFT_ERROR);
	vsfc_eh_should_retry(sc);
}

/* The device has given a command back. Called with the lock of its queue held. */
static void came_back(struct vsfc *host, struct vsfc_cmd *cmd)
{
	cmd->is_sent = false;
	if (unlikely(!list_empty(&cmd->owed)))
		vsfc_recovery_forget(host, cmd);
}

static void complete_command(struct vsfc *host, void *data, unsigned int len)
{
	struct scsi_cmnd *sc = data;
	struct vsfc_cmd *cmd = scsi_cmd_priv(sc);
	struct fc_rport *rport = starget_to_rport(scsi_target(sc->device));

	came_back(host, cmd);
	/* The response is a failure where the device wrote none. vhost-scsi gives 0 as length in any case. */
	take_response(host, sc, &cmd->resp);
	/*
	 * What the device ended for a port that is lost is not over: it is sent again, and then
	 * waits or fails as the port's timers have it.
	 */
	if (rport && fc_remote_port_chkready(rport) && get_host_byte(sc) == DID_ABORT)
		set_host_byte(sc, DID_TRANSPORT_DISRUPTED);
	else if (cmd->is_late)
		take_timed_out(host, sc);
	scsi_done(sc);
}

static void end_command(struct vsfc *host, void *data, unsigned int len)
{
	came_back(host, scsi_cmd_priv(data));
	fail(data, host->end_byte);
}

void vsfc_request_done(struct virtqueue *vq)
{
	struct vsfc *host = vq->vdev->priv;

	vsfc_ring_reap(host, &host->queues[vq->index - VSFC_VQ_REQUEST], complete_command);
}

/* Takes what the device has completed, as after a function that ends commands. */
void vsfc_reap(struct vsfc *host)
{
	unsigned int i;

	for (i = 0; i < host->nr_queues; i++)
		vsfc_ring_reap(host, &host->queues[i], complete_command);
}

/* The device is reset: ends all that it still had. */
void vsfc_end_commands(struct vsfc *host)
{
	unsigned int i;

	for (i = 0; i < host->nr_queues; i++)
		vsfc_ring_end(host, &host->queues[i], end_command);
}

/* Whether the device has a command, and may write its memory; and the tag that it knows it by. */
bool vsfc_is_sent(struct vsfc *host, struct scsi_cmnd *sc, u64 *tag)
{
	struct vsfc_cmd *cmd = scsi_cmd_priv(sc);
	struct vsfc_queue *queue = &host->queues[READ_ONCE(cmd->queue) % host->nr_queues];
	unsigned long flags;
	bool is_sent;

	spin_lock_irqsave(&queue->lock, flags);
	is_sent = cmd->is_sent;
	*tag = virtio64_to_cpu(host->vdev, cmd->req.tag);
	spin_unlock_irqrestore(&queue->lock, flags);
	return is_sent;
}

/*
 * A command is the device's from now on. Its tag is not that of one before it: a function that comes
 * late ends no other command.
 */
static void mark_sent(struct vsfc_queue *queue, void *data)
{
	struct scsi_cmnd *sc = data;
	struct vsfc *host = vsfc_of(sc->device->host);
	struct vsfc_cmd *cmd = scsi_cmd_priv(sc);
	u64 tag = blk_mq_unique_tag(scsi_cmd_to_rq(sc));

	queue->serial++;
	tag |= (u64)queue->serial << 32;
	cmd->req.tag = cpu_to_virtio64(host->vdev, tag);
	cmd->is_sent = true;
}

static int add_command(struct vsfc_queue *queue, struct scsi_cmnd *sc, bool is_last)
{
	struct scatterlist *sgs[4], req, resp;
	struct vsfc_cmd *cmd = scsi_cmd_priv(sc);
	struct vsfc_buffers buffers = { .sgs = sgs, .data = sc };
	int err;

	sg_init_one(&req, &cmd->req, sizeof(cmd->req));
	sgs[buffers.out++] = &req;
	if (sc->sc_data_direction == DMA_TO_DEVICE && scsi_sg_count(sc))
		sgs[buffers.out++] = scsi_sglist(sc);
	sg_init_one(&resp, &cmd->resp, sizeof(cmd->resp));
	sgs[buffers.out + buffers.in++] = &resp;
	if (sc->sc_data_direction == DMA_FROM_DEVICE && scsi_sg_count(sc))
		sgs[buffers.out + buffers.in++] = scsi_sglist(sc);
	err = vsfc_ring_add(queue, &buffers, is_last, mark_sent);
	if (err)
		cmd->is_sent = false;
	return err;
}

static struct vsfc_queue *queue_of(struct vsfc *host, struct scsi_cmnd *sc)
{
	u32 tag = blk_mq_unique_tag(scsi_cmd_to_rq(sc));

	return &host->queues[blk_mq_unique_tag_to_hwq(tag) % host->nr_queues];
}

/* A command that ends here may be the last one of a batch, whose others the device is to hear of. */
static vsfc_queue_status end_here(struct vsfc *host, struct scsi_cmnd *sc, int result)
{
	if (sc->flags & SCMD_LAST)
		vsfc_ring_kick(queue_of(host, sc));
	sc->result = result;
	scsi_done(sc);
	return 0;
}

vsfc_queue_status vsfc_queuecommand(struct Scsi_Host *shost, struct scsi_cmnd *sc)
{
	struct vsfc *host = vsfc_of(shost);
	struct vsfc_cmd *cmd = scsi_cmd_priv(sc);
	struct vsfc_queue *queue = queue_of(host, sc);
	int err;

	if (host->is_fc) {
		struct fc_rport *rport = starget_to_rport(scsi_target(sc->device));
		int result = rport ? fc_remote_port_chkready(rport) : DID_NO_CONNECT << 16;

		if (unlikely(result))
			return end_here(host, sc, result);
	}
	memset(&cmd->req, 0, sizeof(cmd->req));
	/* What a device leaves as it is says that all went wrong. */
	memset(&cmd->resp, 0, offsetof(struct virtio_scsi_cmd_resp, sense));
	cmd->resp.response = VIRTIO_SCSI_S_FAILURE;
	cmd->is_late = false;
	cmd->step = 0;
	INIT_LIST_HEAD(&cmd->owed);
	WRITE_ONCE(cmd->queue, queue - host->queues);
	if (unlikely(!vsfc_address(sc->device, cmd->req.lun) ||
		     sc->cmd_len > sizeof(cmd->req.cdb)))
		return end_here(host, sc, DID_BAD_TARGET << 16);
	cmd->req.task_attr = VIRTIO_SCSI_S_SIMPLE;
	memcpy(cmd->req.cdb, sc->cmnd, sc->cmd_len);

	err = add_command(queue, sc, sc->flags & SCMD_LAST);
	if (likely(!err))
		return 0;
	/* The device is gone, or its queues are. */
	if (err == -EIO || READ_ONCE(host->is_lost))
		return end_here(host, sc, DID_NO_CONNECT << 16);
	return SCSI_MLQUEUE_HOST_BUSY;
}

void vsfc_commit_rqs(struct Scsi_Host *shost, u16 hwq)
{
	struct vsfc *host = vsfc_of(shost);

	vsfc_ring_kick(&host->queues[hwq % host->nr_queues]);
}
