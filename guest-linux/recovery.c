// SPDX-License-Identifier: GPL-2.0-only
/*
 * Commands that are not answered in time.
 *
 * The midlayer has one queue of aborts for an adapter, and stops all its disks while it resets one;
 * and an answer may take as long as the device's host takes. So functions are sent from the
 * command's timer, and nobody waits for them: the command comes back by its own ring when the device
 * has ended it, and not before, for until then the device may write its memory. Other disks go on.
 *
 * The midlayer's own way is left for what it cannot leave to the driver: commands that it sends
 * while it recovers, and resets that somebody asks for.
 */
#include <linux/delay.h>

#include "vsfc.h"

/* Until a reset that found no way to the device is tried again. */
#define RESET_PAUSE	(HZ / 5)

static u32 subtype_of(struct vsfc *host, const struct vsfc_control *control)
{
	return virtio32_to_cpu(host->vdev, control->req.tmf.subtype);
}

/*
 * Whether a function that is under way is to end a command, too; of those, whether one is a reset of
 * the unit. Called with recovery_lock held.
 */
static bool is_under_way(struct vsfc *host, u32 subtype, const u8 lun[8], u64 tag)
{
	struct vsfc_control *control;

	list_for_each_entry(control, &host->recoveries, recovery) {
		const struct virtio_scsi_ctrl_tmf_req *tmf = &control->req.tmf;

		if (tmf->lun[1] != lun[1])
			continue;
		switch (subtype_of(host, control)) {
		case VIRTIO_SCSI_T_TMF_I_T_NEXUS_RESET:
			return true;
		case VIRTIO_SCSI_T_TMF_LOGICAL_UNIT_RESET:
			/* A reset of all units would not be quicker for this one. */
			if (!memcmp(tmf->lun, lun, sizeof(tmf->lun)))
				return true;
			break;
		case VIRTIO_SCSI_T_TMF_ABORT_TASK:
			if (subtype == VIRTIO_SCSI_T_TMF_ABORT_TASK &&
			    virtio64_to_cpu(host->vdev, tmf->tag) == tag)
				return true;
			break;
		}
	}
	return false;
}

/* Sends a function that nobody waits for, unless one that does the same is under way. */
static void recover(struct vsfc *host, u32 subtype, const u8 unit[8], u64 tag)
{
	bool is_abort = subtype == VIRTIO_SCSI_T_TMF_ABORT_TASK;
	/* Aborts leave room for resets, and both for other requests. */
	unsigned int limit = is_abort ? host->max_recoveries / 2 : host->max_recoveries;
	struct vsfc_control *control;
	unsigned long flags;
	bool is_wanted;
	u8 lun[8];

	memcpy(lun, unit, sizeof(lun));
	if (subtype == VIRTIO_SCSI_T_TMF_I_T_NEXUS_RESET)
		memset(&lun[2], 0, 6);
	control = vsfc_tmf_new(host, subtype, lun, is_abort ? tag : 0, GFP_NOWAIT | __GFP_NOWARN);
	if (!control)
		return;
	spin_lock_irqsave(&host->recovery_lock, flags);
	is_wanted = host->nr_recoveries < limit && !is_under_way(host, subtype, unit, tag);
	if (is_wanted) {
		list_add_tail(&control->recovery, &host->recoveries);
		host->nr_recoveries++;
	}
	spin_unlock_irqrestore(&host->recovery_lock, flags);
	if (is_wanted && vsfc_control_send(host, control))
		vsfc_recovery_ended(host, control);
	vsfc_control_put(control);
}

/* A request of the control queue is over. */
void vsfc_recovery_ended(struct vsfc *host, struct vsfc_control *control)
{
	unsigned long flags;

	spin_lock_irqsave(&host->recovery_lock, flags);
	if (!list_empty(&control->recovery)) {
		list_del_init(&control->recovery);
		host->nr_recoveries--;
	}
	spin_unlock_irqrestore(&host->recovery_lock, flags);
}

/* A blocked port's commands wait, unless its patience is over. */
static bool is_waiting_for_port(struct scsi_cmnd *sc)
{
	struct fc_rport *rport = starget_to_rport(scsi_target(sc->device));

	return rport && fc_eh_timed_out(sc) == VSFC_WAIT_ON &&
	       !(READ_ONCE(rport->flags) & FC_RPORT_FAST_FAIL_TIMEDOUT);
}

/*
 * The time of a command is over. A disk of the host is waited for, as the device promises to
 * answer. Behind a port the command may be lost on its way: it is aborted, and sent again. Where the
 * abort does not bring it back in the same time, its unit is reset, and then its port's nexus. What
 * finds no room now does when the time is over again. This does not sleep.
 */
enum vsfc_timeout_action vsfc_eh_timed_out(struct scsi_cmnd *sc)
{
	static const u32 steps[] = {
		VIRTIO_SCSI_T_TMF_ABORT_TASK,
		VIRTIO_SCSI_T_TMF_LOGICAL_UNIT_RESET,
		VIRTIO_SCSI_T_TMF_I_T_NEXUS_RESET,
	};
	struct vsfc *host = vsfc_of(sc->device->host);
	struct vsfc_cmd *cmd = scsi_cmd_priv(sc);
	u8 lun[8];
	u64 tag;

	if (!host->is_fc || is_waiting_for_port(sc) || !vsfc_address(sc->device, lun) ||
	    !vsfc_is_sent(host, sc, &tag))
		return VSFC_WAIT_ON;
	recover(host, steps[min_t(size_t, cmd->step, ARRAY_SIZE(steps) - 1)], lun, tag);
	if (cmd->step < ARRAY_SIZE(steps))
		cmd->step++;
	return VSFC_WAIT_ON;
}

/* Sends a reset of a nexus; false where there is no way to the device now. */
static bool reset_nexus(struct vsfc *host, u8 target)
{
	const u8 lun[8] = { 1, target };
	struct vsfc_control *control;
	int err;

	control = vsfc_tmf_new(host, VIRTIO_SCSI_T_TMF_I_T_NEXUS_RESET, lun, 0, GFP_NOIO);
	if (!control)
		return false;
	err = vsfc_control_send(host, control);
	vsfc_control_put(control);
	return !err || vsfc_is_broken(host);
}

/*
 * Has all commands to a target end, and waits for nothing: they come back by themselves.
 * Whoever calls this does so for one port after the other, and the host may take its time for
 * each.
 */
void vsfc_reset_nexus_later(struct vsfc *host, u8 target)
{
	if (reset_nexus(host, target) || READ_ONCE(host->is_stopping))
		return;
	set_bit(VSFC_RESET_OWED, &host->targets[target].reset);
	queue_delayed_work(host->event_wq, &host->reset_work, RESET_PAUSE);
}

/* Sends resets for which there was no way before. A port that is back needs none any more. */
static void reset_work(struct work_struct *work)
{
	struct vsfc *host = container_of(to_delayed_work(work), struct vsfc, reset_work);
	unsigned int number;

	for (number = 0; number < VSFC_TARGETS && !READ_ONCE(host->is_stopping); number++) {
		if (test_and_clear_bit(VSFC_RESET_OWED, &host->targets[number].reset))
			vsfc_reset_nexus_later(host, number);
	}
}

/*
 * The device is about to be reset, after which nothing is owed. Where somebody still asks for resets,
 * this is called again when nobody does.
 */
void vsfc_recovery_stop(struct vsfc *host)
{
	unsigned int number;

	cancel_delayed_work_sync(&host->reset_work);
	for (number = 0; number < VSFC_TARGETS; number++)
		clear_bit(VSFC_RESET_OWED, &host->targets[number].reset);
}

struct search {
	struct vsfc *host;
	struct scsi_device *sdev;
	struct scsi_target *starget;
	bool found;
};

static bool search_one(struct scsi_cmnd *sc, void *data)
{
	struct search *search = data;
	u64 tag;

	if (scsi_target(sc->device) != search->starget ||
	    (search->sdev && sc->device != search->sdev))
		return true;
	search->found = vsfc_is_sent(search->host, sc, &tag);
	return !search->found;
}

/* Whether the device still has commands to a target, or to a unit of it. */
static bool has_commands(struct Scsi_Host *shost, struct scsi_target *starget,
			 struct scsi_device *sdev)
{
	struct search search = { .host = vsfc_of(shost), .starget = starget, .sdev = sdev };

	scsi_host_busy_iter(shost, search_one, &search);
	return search.found;
}

/*
 * The midlayer's functions. What the device says is believed when the commands are back: what is
 * still in a ring is not handed to the midlayer as ended.
 */
static int eh_function(struct scsi_cmnd *sc, u32 subtype)
{
	struct vsfc *host = vsfc_of(sc->device->host);
	struct scsi_device *sdev = sc->device;
	bool is_abort = subtype == VIRTIO_SCSI_T_TMF_ABORT_TASK;
	int blocked, result;
	u64 tag = 0;
	u8 lun[8];

	/*
	 * While the port is blocked nothing helps; when its patience is over, the command is to
	 * end.
	 */
	blocked = host->is_fc ? fc_block_scsi_eh(sc) : 0;
	if (!vsfc_address(sdev, lun))
		return FAILED;
	if (subtype == VIRTIO_SCSI_T_TMF_I_T_NEXUS_RESET) {
		memset(&lun[2], 0, 6);
		sdev = NULL;
	}
	/* It may have come back meanwhile. */
	if (is_abort && !vsfc_is_sent(host, sc, &tag))
		return blocked ? blocked : SUCCESS;
	result = vsfc_tmf_run(host, subtype, lun, tag);
	if (is_abort)
		result = vsfc_is_sent(host, sc, &tag) ? FAILED : SUCCESS;
	else if (has_commands(sc->device->host, scsi_target(sc->device), sdev))
		result = FAILED;
	return result == SUCCESS && blocked ? blocked : result;
}

int vsfc_eh_abort(struct scsi_cmnd *sc)
{
	return eh_function(sc, VIRTIO_SCSI_T_TMF_ABORT_TASK);
}

int vsfc_eh_unit_reset(struct scsi_cmnd *sc)
{
	return eh_function(sc, VIRTIO_SCSI_T_TMF_LOGICAL_UNIT_RESET);
}

int vsfc_eh_target_reset(struct scsi_cmnd *sc)
{
	return eh_function(sc, VIRTIO_SCSI_T_TMF_I_T_NEXUS_RESET);
}

/*
 * The last that the midlayer tries, before it ends commands whatever the device does: waits until
 * that has given them back, or is reset.
 */
int vsfc_eh_wait(struct scsi_cmnd *sc)
{
	struct vsfc *host = vsfc_of(sc->device->host);

	down_read(&host->functions);
	while (has_commands(sc->device->host, scsi_target(sc->device), NULL))
		msleep(20);
	up_read(&host->functions);
	return FAILED;
}

/*
 * A port that somebody has marked as marginal is given no second attempt where there is another
 * path.
 */
bool vsfc_eh_should_retry(struct scsi_cmnd *sc)
{
	return !vsfc_of(sc->device->host)->is_fc || fc_eh_should_retry_cmd(sc);
}

void vsfc_recovery_init(struct vsfc *host)
{
	init_rwsem(&host->functions);
	spin_lock_init(&host->recovery_lock);
	INIT_LIST_HEAD(&host->recoveries);
	INIT_DELAYED_WORK(&host->reset_work, reset_work);
}
