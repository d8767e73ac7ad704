// SPDX-License-Identifier: GPL-2.0-only
/*
 * A driver for virtio-scsi adapters with a port on a Fibre Channel fabric, and for plain ones.
 *
 * This file has the module, the device with its queues, and the SCSI host.
 */
#include <linux/interrupt.h>
#include <linux/module.h>
#include <linux/slab.h>
#include <linux/virtio_ids.h>
#include <linux/virtio_ring.h>
#include <scsi/scsi_devinfo.h>

#include "vsfc.h"

/* The largest LUN of three levels as the midlayer counts: a fourth one has no room in a request. */
#define MAX_NATIVE_LUN		0xffffffffffffULL
/* What the flat space method adds to the number of a unit. */
#define FLAT_SPACE_LUN		0x4000
/* Bytes of sense data and of a CDB in requests and responses of this driver. */
#define SENSE_SIZE		VIRTIO_SCSI_SENSE_DEFAULT_SIZE
#define CDB_SIZE		VIRTIO_SCSI_CDB_DEFAULT_SIZE

static bool plain;
module_param(plain, bool, 0444);
MODULE_PARM_DESC(plain, "Take no port on a fabric, as a plain virtio-scsi driver (default: N)");

static int unit_alloc(struct scsi_device *sdev)
{
	struct fc_rport *rport = starget_to_rport(scsi_target(sdev));
	u8 field[8];

	if (READ_ONCE(vsfc_of(sdev->host)->is_stopping) ||
	    READ_ONCE(vsfc_port_of(sdev->host)->is_going))
		return -ENXIO;
	if (vsfc_of(sdev->host)->is_fc && (!rport || fc_remote_port_chkready(rport)))
		return -ENXIO;
	/*
	 * What the device says there of its limits counts, also where a unit behind it is of a version of
	 * the standard for which the midlayer would not ask.
	 */
	sdev->sdev_bflags = BLIST_TRY_VPD_PAGES;
	/* Marks of units begin as none: see event.c. */
	sdev->hostdata = NULL;
	return vsfc_address(sdev, field) ? 0 : -ENXIO;
}

static int change_queue_depth(struct scsi_device *sdev, int depth)
{
	return scsi_change_queue_depth(sdev, min_t(int, depth, sdev->host->cmd_per_lun));
}

static void map_queues(struct Scsi_Host *shost)
{
	struct blk_mq_queue_map *map = &shost->tag_set.map[HCTX_TYPE_DEFAULT];

	vsfc_map_hw_queues(map, vsfc_of(shost)->vdev, VSFC_VQ_REQUEST);
}

static struct scsi_host_template template = {
	.module = THIS_MODULE,
	.name = "virtio-scsi-fc",
	.proc_name = "virtio_scsi_fc",
	.this_id = -1,
	.cmd_size = sizeof(struct vsfc_cmd),
	.queuecommand = vsfc_queuecommand,
	.commit_rqs = vsfc_commit_rqs,
	.map_queues = map_queues,
	.change_queue_depth = change_queue_depth,
	.track_queue_depth = 1,
	.eh_timed_out = vsfc_eh_timed_out,
	.eh_should_retry_cmd = vsfc_eh_should_retry,
	.eh_abort_handler = vsfc_eh_abort,
	.eh_device_reset_handler = vsfc_eh_unit_reset,
	.eh_target_reset_handler = vsfc_eh_target_reset,
	.eh_host_reset_handler = vsfc_eh_wait,
	.VSFC_UNIT_ALLOC = unit_alloc,
	.skip_settle_delay = 1,
	.dma_boundary = UINT_MAX,
};

struct Scsi_Host *vsfc_alloc_shost(struct scsi_transport_template *transport, size_t size)
{
	struct Scsi_Host *shost = scsi_host_alloc(&template, size);

	if (shost && transport)
		shost->transportt = transport;
	return shost;
}

/* A field of the configuration space, read by its width. */
#define CONFIG(vdev, field) ({								\
	typeof_member(struct virtio_scsi_config, field) wire;				\
											\
	(vdev)->config->get(vdev, offsetof(struct virtio_scsi_config, field), &wire,	\
			    sizeof(wire));						\
	wire;										\
})
#define CONFIG32(vdev, field) virtio32_to_cpu(vdev, CONFIG(vdev, field))

static void set_config32(struct virtio_device *vdev, unsigned int offset, u32 number)
{
	__virtio32 value = cpu_to_virtio32(vdev, number);

	vdev->config->set(vdev, offset, &value, sizeof(value));
}

/* Finds the queues, and tells the device of what size the parts of requests are. */
static int start_queues(struct vsfc *host)
{
	struct virtio_device *vdev = host->vdev;
	unsigned int i, count = VSFC_VQ_REQUEST + host->nr_queues;
	struct irq_affinity desc = { .pre_vectors = VSFC_VQ_REQUEST };
	struct vsfc_vq_want *wants;
	struct virtqueue **vqs;
	int err = -ENOMEM;

	wants = kcalloc(count, sizeof(*wants), GFP_KERNEL);
	vqs = kcalloc(count, sizeof(*vqs), GFP_KERNEL);
	if (!wants || !vqs)
		goto out;
	wants[VSFC_VQ_CONTROL] = (struct vsfc_vq_want){ "control", vsfc_control_done };
	wants[VSFC_VQ_EVENT] = (struct vsfc_vq_want){ "event", vsfc_event_done };
	for (i = VSFC_VQ_REQUEST; i < count; i++)
		wants[i] = (struct vsfc_vq_want){ "request", vsfc_request_done };
	err = vsfc_find_vqs(vdev, count, vqs, wants, &desc);
	if (err)
		goto out;
	vsfc_ring_set(&host->control, vqs[VSFC_VQ_CONTROL]);
	vsfc_ring_set(&host->event, vqs[VSFC_VQ_EVENT]);
	for (i = 0; i < host->nr_queues; i++)
		vsfc_ring_set(&host->queues[i], vqs[VSFC_VQ_REQUEST + i]);
	/* Without indirect descriptors a request takes two. */
	host->max_recoveries = max(virtqueue_get_vring_size(vqs[VSFC_VQ_CONTROL]) / 4, 4U);
	set_config32(vdev, offsetof(struct virtio_scsi_config, cdb_size), CDB_SIZE);
	set_config32(vdev, offsetof(struct virtio_scsi_config, sense_size), SENSE_SIZE);
out:
	kfree(vqs);
	kfree(wants);
	return err;
}

/* The device is reset, and writes no memory any more: takes back all that it had. */
static void take_back(struct vsfc *host, int host_byte)
{
	virtio_reset_device(host->vdev);
	host->end_byte = host_byte;
	vsfc_end_commands(host);
	vsfc_end_control(host);
	vsfc_end_events(host);
}

/* Nothing goes to the device any more, and nothing is waited for. */
static void part_with_device(struct vsfc *host)
{
	virtio_break_device(host->vdev);
	take_back(host, DID_NO_CONNECT);
}

static void device_broken(struct work_struct *work)
{
	struct vsfc *host = container_of(work, struct vsfc, broken_work);

	dev_err(&host->vdev->dev,
		"the device broke the rules of its queues, and is used no more: unbind the driver and bind it again\n");
	part_with_device(host);
}

/* Takes everything back from the device, and parts with the queues. */
static void stop_queues(struct vsfc *host, int host_byte)
{
	unsigned int i;

	take_back(host, host_byte);
	vsfc_ring_set(&host->control, NULL);
	vsfc_ring_set(&host->event, NULL);
	for (i = 0; i < host->nr_queues; i++)
		vsfc_ring_set(&host->queues[i], NULL);
	/* Who is about to notify the device has done so. */
	synchronize_rcu();
	host->vdev->config->del_vqs(host->vdev);
}

/* Nothing new is begun from now on, or again. Interrupts look at this under a lock of a queue. */
static void set_stopping(struct vsfc *host, bool is_stopping)
{
	WRITE_ONCE(host->is_stopping, is_stopping);
	/* Who has looked before, with a lock, has begun. */
	synchronize_rcu();
}

/* What the timers of commands, and rings, have begun is over, and nothing more of that is begun. */
static void stop_recovery(struct vsfc *host)
{
	set_stopping(host, true);
	cancel_work_sync(&host->broken_work);
	vsfc_recovery_stop(host);
}

static void set_limits(struct vsfc *host)
{
	struct virtio_device *vdev = host->vdev;
	struct Scsi_Host *shost = host->shost;
	u32 seg_max = CONFIG32(vdev, seg_max);
	u32 per_lun = CONFIG32(vdev, cmd_per_lun);

	shost->can_queue = virtqueue_get_vring_size(host->queues[0].vq);
	shost->cmd_per_lun = clamp_t(u32, per_lun, 1, shost->can_queue);
	/* Without indirect descriptors a command's segments, and two more, fill the ring. */
	if (!virtio_has_feature(vdev, VIRTIO_RING_F_INDIRECT_DESC))
		seg_max = min_t(u32, seg_max, max(shost->can_queue - 2, 1));
	shost->sg_tablesize = clamp_t(u32, seg_max, 1, SG_MAX_SEGMENTS);
	shost->max_sectors = CONFIG32(vdev, max_sectors) ?: 0xffff;
	shost->max_cmd_len = CDB_SIZE;
	shost->nr_hw_queues = host->nr_queues;
	shost->max_channel = 0;
	/* Who asks the transport for a scan has it go through all numbers. */
	shost->max_id = host->is_fc ? VSFC_MAX_ID : virtio16_to_cpu(vdev, CONFIG(vdev, max_target)) + 1;
	shost->max_lun = host->is_native ? MAX_NATIVE_LUN :
			 CONFIG32(vdev, max_lun) + 1ULL + FLAT_SPACE_LUN;
}

static void free_host(struct vsfc *host)
{
	if (host->event_wq)
		destroy_workqueue(host->event_wq);
	if (host->scan_wq)
		destroy_workqueue(host->scan_wq);
	kfree(host->events);
	kvfree(host->targets);
	scsi_host_put(host->shost);
}

static struct vsfc *new_host(struct virtio_device *vdev)
{
	u32 nr_queues = clamp_t(u32, CONFIG32(vdev, num_queues), 1, nr_cpu_ids);
	bool is_fc = virtio_has_feature(vdev, VSFC_F_FC_HOST);
	struct Scsi_Host *shost;
	struct vsfc *host;
	unsigned int i;

	shost = vsfc_alloc_shost(is_fc ? vsfc_fc_template(false) : NULL,
				 struct_size(host, queues, nr_queues));
	if (!shost)
		return NULL;
	host = shost_priv(shost);
	host->port.host = host;
	host->port.shost = shost;
	host->vdev = vdev;
	host->shost = shost;
	host->nr_queues = nr_queues;
	host->is_fc = is_fc;
	host->is_native = virtio_has_feature(vdev, VSFC_F_NATIVE_LUN);
	mutex_init(&host->ports_lock);
	vsfc_recovery_init(host);
	vsfc_vports_init(host);
	INIT_WORK(&host->broken_work, device_broken);
	spin_lock_init(&host->control.lock);
	spin_lock_init(&host->event.lock);
	for (i = 0; i < nr_queues; i++)
		spin_lock_init(&host->queues[i].lock);
	if (vsfc_events_init(host)) {
		free_host(host);
		return NULL;
	}
	return host;
}

static int probe(struct virtio_device *vdev)
{
	struct vsfc *host;
	int err;

	if (!vdev->config->get)
		return -EINVAL;
	host = new_host(vdev);
	if (!host)
		return -ENOMEM;
	vdev->priv = host;
	err = start_queues(host);
	if (err)
		goto free;
	set_limits(host);
	err = scsi_add_host(host->shost, &vdev->dev);
	if (err)
		goto stop;
	virtio_device_ready(vdev);
	if (host->is_fc)
		vsfc_fc_start(host);
	vsfc_events_start(host);
	if (!host->is_fc)
		scsi_scan_host(host->shost);
	return 0;
stop:
	stop_queues(host, DID_NO_CONNECT);
free:
	free_host(host);
	return err;
}

static void remove(struct virtio_device *vdev)
{
	struct vsfc *host = vdev->priv;

	stop_recovery(host);
	cancel_delayed_work_sync(&host->vports_work);
	/* Of a device that is gone nothing comes back; one that broke a rule may still write. */
	if (vsfc_is_broken(host))
		part_with_device(host);
	vsfc_vports_end(host);
	if (host->is_fc)
		vsfc_fc_stop(&host->port);
	scsi_remove_host(host->shost);
	vsfc_events_stop(host);
	stop_queues(host, DID_NO_CONNECT);
	/* Somebody may have asked for a reset, and waits for it. */
	down_write(&host->functions);
	up_write(&host->functions);
	free_host(host);
}

static void config_changed(struct virtio_device *vdev)
{
	struct vsfc *host = vdev->priv;
	unsigned long flags;

	spin_lock_irqsave(&host->event.lock, flags);
	if (!host->is_stopping)
		queue_work(host->event_wq, &host->config_work);
	spin_unlock_irqrestore(&host->event.lock, flags);
}

/*
 * Features that mean nothing without others are left, before they are told to the device. Without a
 * port on a fabric, which this driver may not want, all of them are.
 */
static int validate(struct virtio_device *vdev)
{
	static const unsigned int all[] = {
		VSFC_F_RESCAN, VSFC_F_NATIVE_LUN, VSFC_F_FC_HOST, VSFC_F_RPORT_EVENTS,
		VSFC_F_VPORT,
	};
	unsigned int i;

	if (!vdev->config->get)
		return -EINVAL;
	if (!virtio_has_feature(vdev, VIRTIO_SCSI_F_HOTPLUG))
		__virtio_clear_bit(vdev, VSFC_F_RPORT_EVENTS);
	if (!plain && virtio_has_feature(vdev, VIRTIO_F_VERSION_1) &&
	    virtio_has_feature(vdev, VSFC_F_RESCAN) && virtio_has_feature(vdev, VSFC_F_FC_HOST)) {
		if (vsfc_fc_offered(vdev))
			return 0;
		dev_err(&vdev->dev, "the device offers a port, but its configuration has none: update the driver, or load it with plain=1\n");
		return -EINVAL;
	}
	for (i = 0; i < ARRAY_SIZE(all); i++)
		__virtio_clear_bit(vdev, all[i]);
	return 0;
}

#ifdef CONFIG_PM_SLEEP
/*
 * The machine goes to sleep: nobody looks for units any more, for scan_wq is frozen. When all are
 * prepared the midlayer quiesces the units, one by one, and a command that a look sends then waits
 * until the machine wakes; and no device may come. So ports that come, or are lost, wait from now on.
 */
static int prepare(struct device *dev)
{
	struct vsfc *host = dev_to_virtio(dev)->priv;

	return vsfc_fc_pause(host) ? 0 : -EBUSY;
}

/* All devices are awake, or it came to nothing. */
static void complete_sleep(struct device *dev)
{
	struct vsfc *host = dev_to_virtio(dev)->priv;

	WRITE_ONCE(host->is_paused, false);
	if (READ_ONCE(host->is_stopping))
		return;
	/* Nobody was there to hear of what has changed. */
	queue_work(host->event_wq, &host->config_work);
	queue_work(host->event_wq, &host->refresh_work);
	/* What this machine had created the reset has deleted. */
	queue_delayed_work(host->scan_wq, &host->vports_work, 0);
}

static const struct dev_pm_ops pm_ops = {
	.prepare = prepare,
	.complete = complete_sleep,
};

/* What is in scan_wq stays there, until it is thawed. */
static int freeze(struct virtio_device *vdev)
{
	struct vsfc *host = vdev->priv;

	stop_recovery(host);
	cancel_delayed_work_sync(&host->vports_work);
	flush_workqueue(host->event_wq);
	stop_queues(host, DID_REQUEUE);
	return 0;
}

static int restore(struct virtio_device *vdev)
{
	struct vsfc *host = vdev->priv;
	int err;

	vsfc_vports_lost(host);
	err = start_queues(host);
	if (err) {
		/* Nothing is left to wait for. */
		WRITE_ONCE(host->is_lost, true);
		return err;
	}
	virtio_device_ready(vdev);
	set_stopping(host, false);
	vsfc_events_start(host);
	return 0;
}
#endif

static const struct virtio_device_id ids[] = {
	{ VIRTIO_ID_SCSI, VIRTIO_DEV_ANY_ID },
	{ 0 },
};
MODULE_DEVICE_TABLE(virtio, ids);

static unsigned int features[] = {
	VIRTIO_SCSI_F_HOTPLUG,
	VIRTIO_SCSI_F_CHANGE,
	VSFC_F_RESCAN,
	VSFC_F_NATIVE_LUN,
	VSFC_F_FC_HOST,
	VSFC_F_RPORT_EVENTS,
	VSFC_F_VPORT,
};

static struct virtio_driver driver = {
	.driver.name = KBUILD_MODNAME,
	.driver.owner = THIS_MODULE,
#ifdef CONFIG_PM_SLEEP
	.driver.pm = &pm_ops,
#endif
	.id_table = ids,
	.feature_table = features,
	.feature_table_size = ARRAY_SIZE(features),
	.validate = validate,
	.probe = probe,
	.remove = remove,
	.config_changed = config_changed,
#ifdef CONFIG_PM_SLEEP
	.freeze = freeze,
	.restore = restore,
#endif
};

static int __init vsfc_init(void)
{
	int err = vsfc_fc_init();

	if (err)
		return err;
	err = register_virtio_driver(&driver);
	if (err)
		vsfc_fc_exit();
	return err;
}

static void __exit vsfc_exit(void)
{
	unregister_virtio_driver(&driver);
	vsfc_fc_exit();
}

module_init(vsfc_init);
module_exit(vsfc_exit);

MODULE_DESCRIPTION("virtio-scsi with a port on a Fibre Channel fabric");
MODULE_AUTHOR("The vmm developers");
MODULE_VERSION("0.1.0");
MODULE_LICENSE("GPL");
