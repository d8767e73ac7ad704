// SPDX-License-Identifier: GPL-2.0-only
/*
 * What the device tells, and the look for units that follows.
 *
 * Two queues of work: events and ports are dealt with one after the other, and nothing there
 * waits for a command, for it may take an event to end that. Looks for units do; each target
 * has its own. They are frozen when the machine goes to sleep, before the midlayer quiesces its units:
 * a look at one that is quiet would not end before the machine wakes. So the transport, whose looks are
 * not frozen, has none.
 */
#include <linux/scatterlist.h>
#include <linux/slab.h>
#include <scsi/scsi_proto.h>

#include "vsfc.h"

/*
 * INQUIRY: bytes that are asked for, how often, and after which time it is ended, behind a port; what
 * does not come back then is waited for.
 */
#define INQUIRY_LEN	36
#define INQUIRY_TIME	(20 * HZ)
#define INQUIRY_TRIES	3
/* PARAMETERS CHANGED and its kin (SPC-5, annex F), in the reason of an event. */
#define ASC_PARAMETERS_CHANGED	0x2a

/* A unit's marks are bits of what would be a pointer. */
static unsigned long *marks(struct scsi_device *sdev)
{
	return (unsigned long *)&sdev->hostdata;
}

/* Takes a unit away from who uses it, when the device says that it has none there. */
static void verify_unit(struct scsi_device *sdev)
{
	const u8 cdb[6] = { INQUIRY, 0, 0, 0, INQUIRY_LEN, 0 };
	u8 *data = kzalloc(INQUIRY_LEN, GFP_KERNEL);
	struct scsi_sense_hdr sense;
	int result;

	if (!data)
		return;
	/* The device has a command wait for a unit that comes, and answers INQUIRY without it. */
	scsi_test_unit_ready(sdev, INQUIRY_TIME, INQUIRY_TRIES, &sense);
	result = vsfc_execute_read(sdev, cdb, data, INQUIRY_LEN, INQUIRY_TIME, INQUIRY_TRIES);
	/* Qualifier 011b: the target has no unit there. */
	if ((result == 0 && data[0] >> 5 == 3) ||
	    (result > 0 && host_byte(result) == DID_BAD_TARGET))
		scsi_remove_device(sdev);
	kfree(data);
}

/* Whether a unit is at a target, by the midlayer's number of that. */
static bool is_at(struct scsi_device *sdev, unsigned int scsi_id)
{
	return sdev->channel == 0 && sdev->id == scsi_id;
}

static void look_at_units(struct Scsi_Host *shost, unsigned int scsi_id, bool verify)
{
	struct scsi_device *sdev;

	/* What the device has told waits for no unit that nobody has told of. */
	shost_for_each_device(sdev, shost) {
		if (!is_at(sdev, scsi_id))
			continue;
		if (test_and_clear_bit(VSFC_UNIT_GONE, marks(sdev)))
			scsi_remove_device(sdev);
		else if (test_and_clear_bit(VSFC_UNIT_CHANGED, marks(sdev)))
			vsfc_rescan_unit(sdev);
	}
	if (!verify)
		return;
	shost_for_each_device(sdev, shost) {
		if (is_at(sdev, scsi_id))
			verify_unit(sdev);
	}
}

/* The midlayer's place of a target. */
struct place {
	struct Scsi_Host *shost;
	unsigned int scsi_id;
	/* What it hangs on, and the host as well: it is held. */
	struct device *parent;
};

/* Finds the place of a target. False where there is none now. */
static bool place_of(struct vsfc *host, u8 number, struct place *place)
{
	struct vsfc_target *target = &host->targets[number];
	bool is_there = true;

	if (!host->is_fc) {
		place->shost = host->shost;
		place->scsi_id = number;
		place->parent = get_device(&host->shost->shost_gendev);
		return true;
	}
	mutex_lock(&host->ports_lock);
	place->shost = target->port->shost;
	place->scsi_id = target->scsi_id;
	if (target->rport)
		place->parent = get_device(&target->rport->dev);
	else
		is_there = false;
	mutex_unlock(&host->ports_lock);
	return is_there;
}

/* Does what is to be done at a target. */
static void target_work(struct work_struct *work)
{
	struct vsfc_target *target = container_of(work, struct vsfc_target, work);
	struct vsfc *host = target->host;
	struct place place;
	unsigned long todo;

	/*
	 * Where a port is lost, its units stay as they are, and what is to be done stays to be
	 * done: who finds the port has it done.
	 */
	if (READ_ONCE(host->is_stopping) ||
	    !place_of(host, target - host->targets, &place))
		return;
	todo = xchg(&target->todo, 0);
	look_at_units(place.shost, place.scsi_id, test_bit(VSFC_TODO_VERIFY, &todo));
	if (test_bit(VSFC_TODO_SCAN, &todo) && !READ_ONCE(host->is_stopping))
		scsi_scan_target(place.parent, 0, place.scsi_id, SCAN_WILD_CARD, SCSI_SCAN_RESCAN);
	put_device(place.parent);
}

/* Something is to be done at a target. */
void vsfc_todo(struct vsfc *host, u8 number, unsigned int what)
{
	struct vsfc_target *target = &host->targets[number];

	set_bit(what, &target->todo);
	if (!READ_ONCE(host->is_stopping))
		queue_work(host->scan_wq, &target->work);
}

/* Marks a unit that went, or that is another now. */
static void mark_unit(struct vsfc *host, u8 number, u64 lun, unsigned int mark)
{
	struct Scsi_Host *shost = host->shost;
	unsigned int scsi_id = number;
	struct scsi_device *sdev;

	mutex_lock(&host->ports_lock);
	if (host->is_fc) {
		scsi_id = host->targets[number].scsi_id;
		shost = host->targets[number].port->shost;
	}
	/* A host of one of our ports may go when the lock is free. */
	sdev = scsi_device_lookup(shost, 0, scsi_id, lun);
	mutex_unlock(&host->ports_lock);
	if (!sdev)
		return;
	set_bit(mark, marks(sdev));
	scsi_device_put(sdev);
	vsfc_todo(host, number, VSFC_TODO_UNITS);
}

/* Without ports: looks at all known units, and for new ones at all targets. */
static void scan_all(struct work_struct *work)
{
	struct vsfc *host = container_of(work, struct vsfc, scan_all_work);
	struct scsi_device *sdev;

	shost_for_each_device(sdev, host->shost) {
		if (!READ_ONCE(host->is_stopping))
			verify_unit(sdev);
	}
	if (!READ_ONCE(host->is_stopping))
		scsi_scan_host(host->shost);
}

/* Events were lost, or there were none: looks at everything anew. */
void vsfc_look_at_all(struct vsfc *host)
{
	unsigned int number;

	if (!host->is_fc) {
		queue_work(host->scan_wq, &host->scan_all_work);
		return;
	}
	vsfc_fc_sync_all(host, false);
	for (number = 0; number < VSFC_TARGETS; number++) {
		if (READ_ONCE(host->targets[number].rport)) {
			set_bit(VSFC_TODO_VERIFY, &host->targets[number].todo);
			vsfc_todo(host, number, VSFC_TODO_SCAN);
		}
	}
}

static void refresh(struct work_struct *work)
{
	struct vsfc *host = container_of(work, struct vsfc, refresh_work);

	if (!READ_ONCE(host->is_stopping))
		vsfc_look_at_all(host);
}

static void transport_reset(struct vsfc *host, const struct virtio_scsi_event *wire, u32 reason)
{
	switch (reason) {
	case VIRTIO_SCSI_EVT_RESET_RESCAN:
		vsfc_todo(host, wire->lun[1], VSFC_TODO_SCAN);
		break;
	case VIRTIO_SCSI_EVT_RESET_REMOVED:
		mark_unit(host, wire->lun[1], vsfc_lun_of(wire->lun), VSFC_UNIT_GONE);
		break;
	}
}

static void handle_event(struct vsfc *host, const struct virtio_scsi_event *wire)
{
	u32 event = virtio32_to_cpu(host->vdev, wire->event);
	u32 reason = virtio32_to_cpu(host->vdev, wire->reason);

	if (event & VIRTIO_SCSI_T_EVENTS_MISSED)
		vsfc_look_at_all(host);
	event &= ~VIRTIO_SCSI_T_EVENTS_MISSED;
	/* Whatever is no target's is none of ours. */
	if (event == VIRTIO_SCSI_T_NO_EVENT || wire->lun[0] != 1)
		return;
	switch (event) {
	case VIRTIO_SCSI_T_TRANSPORT_RESET:
		transport_reset(host, wire, reason);
		break;
	case VIRTIO_SCSI_T_PARAM_CHANGE:
		if ((reason & 0xff) == ASC_PARAMETERS_CHANGED)
			mark_unit(host, wire->lun[1], vsfc_lun_of(wire->lun), VSFC_UNIT_CHANGED);
		break;
	case VSFC_T_RPORT:
		/* Whatever it was, the device is asked how the port is now. */
		if (host->is_fc)
			vsfc_fc_sync(host, wire->lun[1]);
		break;
	}
}

/* Gives the device a buffer for an event. */
static void give_buffer(struct vsfc_event *event)
{
	struct vsfc *host = event->host;
	struct scatterlist sg, *sgs[1] = { &sg };
	struct vsfc_buffers buffers = { .sgs = sgs, .in = 1, .data = event };

	/* Where the device writes nothing there is no event. vhost-scsi gives 0 as length in any case. */
	memset(&event->wire, 0, sizeof(event->wire));
	sg_init_one(&sg, &event->wire, sizeof(event->wire));
	if (!READ_ONCE(host->is_stopping))
		vsfc_ring_add(&host->event, &buffers, true, NULL);
}

static void event_work(struct work_struct *work)
{
	struct vsfc_event *event = container_of(work, struct vsfc_event, work);
	struct virtio_scsi_event wire = event->wire;

	give_buffer(event);
	if (!READ_ONCE(event->host->is_stopping))
		handle_event(event->host, &wire);
}

static void take_event(struct vsfc *host, void *data, unsigned int len)
{
	struct vsfc_event *event = data;

	if (!host->is_stopping)
		queue_work(host->event_wq, &event->work);
}

void vsfc_event_done(struct virtqueue *vq)
{
	struct vsfc *host = vq->vdev->priv;

	vsfc_ring_reap(host, &host->event, take_event);
}

void vsfc_events_start(struct vsfc *host)
{
	unsigned int i;

	for (i = 0; i < VSFC_EVENTS; i++)
		give_buffer(&host->events[i]);
}

/*
 * Nothing is left to do. What has not begun is dropped, rather than waited for: a queue that is
 * frozen does not begin it.
 */
void vsfc_events_stop(struct vsfc *host)
{
	unsigned int i;

	for (i = 0; i < VSFC_EVENTS; i++)
		cancel_work_sync(&host->events[i].work);
	cancel_work_sync(&host->config_work);
	cancel_work_sync(&host->ports_work);
	cancel_work_sync(&host->refresh_work);
	cancel_work_sync(&host->scan_all_work);
	for (i = 0; i < VSFC_TARGETS; i++)
		cancel_work_sync(&host->targets[i].work);
}

static void drop_event(struct vsfc *host, void *data, unsigned int len)
{
}

/* The device is reset: it has no buffers any more. */
void vsfc_end_events(struct vsfc *host)
{
	vsfc_ring_end(host, &host->event, drop_event);
}

int vsfc_events_init(struct vsfc *host)
{
	unsigned int i;

	host->events = kcalloc(VSFC_EVENTS, sizeof(*host->events), GFP_KERNEL);
	host->targets = kvcalloc(VSFC_TARGETS, sizeof(*host->targets), GFP_KERNEL);
	host->event_wq = alloc_ordered_workqueue("vsfc_event_%u", 0, host->shost->host_no);
	host->scan_wq = alloc_workqueue("vsfc_scan_%u", WQ_UNBOUND | WQ_FREEZABLE, 0,
					host->shost->host_no);
	if (!host->events || !host->targets || !host->event_wq || !host->scan_wq)
		return -ENOMEM;
	for (i = 0; i < VSFC_EVENTS; i++) {
		host->events[i].host = host;
		INIT_WORK(&host->events[i].work, event_work);
	}
	for (i = 0; i < VSFC_TARGETS; i++) {
		host->targets[i].host = host;
		host->targets[i].port = &host->port;
		host->targets[i].scsi_id = i;
		INIT_WORK(&host->targets[i].work, target_work);
	}
	INIT_WORK(&host->config_work, vsfc_fc_config_changed);
	INIT_WORK(&host->ports_work, vsfc_fc_look_for_ports);
	INIT_WORK(&host->refresh_work, refresh);
	INIT_WORK(&host->scan_all_work, scan_all);
	return 0;
}
