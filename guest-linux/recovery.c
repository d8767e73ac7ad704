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

/* Until what found no way to the device is tried again. */
#define PAUSE	(HZ / 5)

/* What is to end a command, one after the other, each when its time was over once more. */
static const u32 steps[] = {
	VIRTIO_SCSI_T_TMF_ABORT_TASK,
	VIRTIO_SCSI_T_TMF_LOGICAL_UNIT_RESET,
	VIRTIO_SCSI_T_TMF_I_T_NEXUS_RESET,
};

/* Of the functions that are under way, what is to be known for one that is to be sent. */
struct survey {
	/* One that does the same, or resets the unit: beside that nothing would be quicker. */
	bool is_covered;
	/* As many are for the same target. */
	unsigned int of_target;
	/* There is an abort of the same unit. */
	bool has_abort;
};

static u32 subtype_of(struct vsfc *host, const struct vsfc_control *control)
{
	return virtio32_to_cpu(host->vdev, control->req.tmf.subtype);
}

/* Looks at what is under way beside what is to end a command. Called with recovery_lock held. */
static struct survey look_around(struct vsfc *host, u32 subtype, const struct vsfc_cmd *cmd)
{
	const u8 *lun = cmd->req.lun;
	struct vsfc_control *control;
	struct survey survey = {};

	list_for_each_entry(control, &host->recoveries, recovery) {
		const struct virtio_scsi_ctrl_tmf_req *tmf = &control->req.tmf;
		bool is_same_unit = !memcmp(tmf->lun, lun, sizeof(tmf->lun));

		if (tmf->lun[1] != lun[1])
			continue;
		survey.of_target++;
		switch (subtype_of(host, control)) {
		case VIRTIO_SCSI_T_TMF_I_T_NEXUS_RESET:
			/* It may be there for ever for another unit's sake. */
			if (subtype == VIRTIO_SCSI_T_TMF_I_T_NEXUS_RESET)
				survey.is_covered = true;
			break;
		case VIRTIO_SCSI_T_TMF_LOGICAL_UNIT_RESET:
			if (is_same_unit)
				survey.is_covered = true;
			break;
		case VIRTIO_SCSI_T_TMF_ABORT_TASK:
			if (is_same_unit)
				survey.has_abort = true;
			break;
		}
	}
	return survey;
}

/*
 * Whether there is room for a function: a unit has one abort at a time, and others follow when that is
 * answered; aborts leave room for resets; and a target that has none finds room where others have
 * many, for what hangs may do so for ever.
 */
static bool has_room(struct vsfc *host, u32 subtype, const struct survey *survey)
{
	unsigned int limit = host->max_recoveries;

	if (subtype == VIRTIO_SCSI_T_TMF_ABORT_TASK) {
		if (survey->has_abort)
			return false;
		if (survey->of_target)
			limit /= 2;
	} else if (survey->of_target) {
		limit -= limit / 4;
	}
	return host->nr_recoveries < limit;
}

static void begin(struct vsfc *host, struct vsfc_control *control)
{
	list_add_tail(&control->recovery, &host->recoveries);
	host->nr_recoveries++;
}

/* Has owed_work run at once, or later. Called with recovery_lock held. */
static void pay(struct vsfc *host, unsigned long delay)
{
	if (!READ_ONCE(host->is_stopping))
		mod_delayed_work(system_wq, &host->owed_work, delay);
}

/* What has begun is over, or came to nothing: there is room for what is owed, at once or later. */
static void end(struct vsfc *host, struct vsfc_control *control, unsigned long delay)
{
	unsigned long flags;

	spin_lock_irqsave(&host->recovery_lock, flags);
	if (!list_empty(&control->recovery)) {
		list_del_init(&control->recovery);
		host->nr_recoveries--;
		if (!list_empty(&host->owed))
			pay(host, delay);
	}
	spin_unlock_irqrestore(&host->recovery_lock, flags);
}

/* A request of the control queue is over. */
void vsfc_recovery_ended(struct vsfc *host, struct vsfc_control *control)
{
	end(host, control, 0);
}

/* Sends what has begun. Called without recovery_lock, which who takes answers has. */
static bool send(struct vsfc *host, struct vsfc_control *control)
{
	bool is_sent = !vsfc_control_send(host, control);

	if (!is_sent)
		end(host, control, PAUSE);
	return is_sent;
}

/*
 * Makes the function that is to end a command next of a request. False where it is not to be sent: one
 * that is under way does the same, or there is no room, and then it is owed. Called with recovery_lock
 * held.
 */
static bool choose(struct vsfc *host, struct vsfc_cmd *cmd, struct vsfc_control *control)
{
	struct virtio_scsi_ctrl_tmf_req *tmf = &control->req.tmf;
	u32 subtype = steps[cmd->step];
	struct survey survey = look_around(host, subtype, cmd);

	if (!survey.is_covered && !has_room(host, subtype, &survey)) {
		if (list_empty(&cmd->owed))
			list_add_tail(&cmd->owed, &host->owed);
		return false;
	}
	list_del_init(&cmd->owed);
	if (survey.is_covered)
		return false;
	tmf->subtype = cpu_to_virtio32(host->vdev, subtype);
	memcpy(tmf->lun, cmd->req.lun, sizeof(tmf->lun));
	if (subtype == VIRTIO_SCSI_T_TMF_ABORT_TASK)
		tmf->tag = cmd->req.tag;
	else if (subtype == VIRTIO_SCSI_T_TMF_I_T_NEXUS_RESET)
		memset(&tmf->lun[2], 0, 6);
	begin(host, control);
	if (cmd->step < ARRAY_SIZE(steps) - 1)
		cmd->step++;
	return true;
}

static struct vsfc_control *new_function(struct vsfc *host, gfp_t gfp)
{
	static const u8 none[8];

	return vsfc_tmf_new(host, VIRTIO_SCSI_T_TMF_ABORT_TASK, none, 0, gfp);
}

/* Has a command end that the device has had for too long, if it still has it. */
static void recover(struct vsfc *host, struct scsi_cmnd *sc)
{
	struct vsfc_control *control = new_function(host, GFP_NOWAIT | __GFP_NOWARN);
	struct vsfc_cmd *cmd = scsi_cmd_priv(sc);
	struct vsfc_queue *queue = &host->queues[READ_ONCE(cmd->queue) % host->nr_queues];
	bool is_chosen = false;
	unsigned long flags;

	/* Its time will be over again. */
	if (!control)
		return;
	spin_lock_irqsave(&queue->lock, flags);
	if (cmd->is_sent) {
		cmd->is_late = true;
		spin_lock(&host->recovery_lock);
		is_chosen = choose(host, cmd, control);
		spin_unlock(&host->recovery_lock);
	}
	spin_unlock_irqrestore(&queue->lock, flags);
	if (is_chosen)
		send(host, control);
	vsfc_control_put(control);
}

/* A command that is owed something has come back. */
void vsfc_recovery_forget(struct vsfc *host, struct vsfc_cmd *cmd)
{
	unsigned long flags;

	spin_lock_irqsave(&host->recovery_lock, flags);
	list_del_init(&cmd->owed);
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
 * finds no room is sent when there is some. This does not sleep.
 */
enum vsfc_timeout_action vsfc_eh_timed_out(struct scsi_cmnd *sc)
{
	struct vsfc *host = vsfc_of(sc->device->host);

	if (host->is_fc && !is_waiting_for_port(sc))
		recover(host, sc);
	return VSFC_WAIT_ON;
}

/* Whether a reset of a target's nexus is under way. Called with recovery_lock held. */
static bool is_reset(struct vsfc *host, u8 target)
{
	struct vsfc_control *control;

	list_for_each_entry(control, &host->recoveries, recovery) {
		if (control->req.tmf.lun[1] == target &&
		    subtype_of(host, control) == VIRTIO_SCSI_T_TMF_I_T_NEXUS_RESET)
			return true;
	}
	return false;
}

/* Sends a reset of a nexus, or leaves it to the one that is under way; false where there is no room. */
static bool reset_nexus(struct vsfc *host, u8 target)
{
	const u8 lun[8] = { 1, target };
	bool is_wanted, has_place;
	struct vsfc_control *control;
	unsigned long flags;

	control = vsfc_tmf_new(host, VIRTIO_SCSI_T_TMF_I_T_NEXUS_RESET, lun, 0, GFP_NOIO);
	if (!control)
		return false;
	spin_lock_irqsave(&host->recovery_lock, flags);
	is_wanted = !is_reset(host, target);
	has_place = host->nr_recoveries < host->max_recoveries;
	if (is_wanted && has_place)
		begin(host, control);
	spin_unlock_irqrestore(&host->recovery_lock, flags);
	if (is_wanted && has_place)
		has_place = send(host, control) || vsfc_is_broken(host);
	vsfc_control_put(control);
	return !is_wanted || has_place;
}

/*
 * Has all commands to a target end, and waits for nothing: they come back by themselves.
 * Whoever calls this does so for one port after the other, and the host may take its time for
 * each.
 */
void vsfc_reset_nexus_later(struct vsfc *host, u8 target)
{
	unsigned long flags;

	if (reset_nexus(host, target))
		return;
	spin_lock_irqsave(&host->recovery_lock, flags);
	if (!READ_ONCE(host->is_stopping)) {
		set_bit(VSFC_RESET_OWED, &host->targets[target].reset);
		pay(host, PAUSE);
	}
	spin_unlock_irqrestore(&host->recovery_lock, flags);
}

/* Sends one of the functions that are owed to commands; false when there is none with room. */
static bool recover_owed(struct vsfc *host)
{
	struct vsfc_control *control = new_function(host, GFP_NOIO);
	struct vsfc_cmd *cmd, *next;
	bool is_chosen = false;
	unsigned long flags;

	if (!control)
		return false;
	/* Commands that are here have not come back: who takes them back takes them from here. */
	spin_lock_irqsave(&host->recovery_lock, flags);
	list_for_each_entry_safe(cmd, next, &host->owed, owed) {
		is_chosen = choose(host, cmd, control);
		if (is_chosen)
			break;
	}
	spin_unlock_irqrestore(&host->recovery_lock, flags);
	if (is_chosen)
		is_chosen = send(host, control);
	vsfc_control_put(control);
	return is_chosen;
}

/* Sends what there was no room for. A port that is back needs no reset any more. */
static void owed_work(struct work_struct *work)
{
	struct vsfc *host = container_of(to_delayed_work(work), struct vsfc, owed_work);
	unsigned int number;

	for (number = 0; number < VSFC_TARGETS && !READ_ONCE(host->is_stopping); number++) {
		if (test_and_clear_bit(VSFC_RESET_OWED, &host->targets[number].reset))
			vsfc_reset_nexus_later(host, number);
	}
	while (!READ_ONCE(host->is_stopping) && recover_owed(host))
		cond_resched();
}

/*
 * The device is about to be reset, after which no target is owed anything; commands come back. Who
 * looks whether the host is stopping has done so.
 */
void vsfc_recovery_stop(struct vsfc *host)
{
	unsigned int number;

	cancel_delayed_work_sync(&host->owed_work);
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
	INIT_LIST_HEAD(&host->owed);
	INIT_DELAYED_WORK(&host->owed_work, owed_work);
}
