/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What differs between kernels, from Linux 6.1 on. Everything else of the driver is the same
 * for all of them.
 */
#ifndef VSFC_COMPAT_H
#define VSFC_COMPAT_H

#include <linux/blk-mq.h>
#include <linux/slab.h>
#include <linux/version.h>
#include <linux/virtio.h>
#include <linux/virtio_config.h>
#include <scsi/scsi_cmnd.h>
#include <scsi/scsi_device.h>
#include <scsi/scsi_host.h>

#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 1, 0)
#error "Linux 6.1 or newer is needed"
#endif

/* What becomes of a command whose time is over. */
#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 2, 0)
#define vsfc_timeout_action	blk_eh_timer_return
#define VSFC_WAIT_ON		BLK_EH_RESET_TIMER
#else
#define vsfc_timeout_action	scsi_timeout_action
#define VSFC_WAIT_ON		SCSI_EH_RESET_TIMER
#endif

/* What queuecommand returns: a number, or from Linux 7.0 on an enumeration. */
typedef typeof(((struct scsi_host_template *)NULL)->queuecommand(NULL, NULL)) vsfc_queue_status;

/* Longtime kernels have taken the newer form of this over, so its type says which it is. */
static inline void vsfc_rescan_unit(struct scsi_device *sdev)
{
	void *unit = sdev;

	if (__builtin_types_compatible_p(typeof(&scsi_rescan_device), void (*)(struct device *)))
		unit = &sdev->sdev_gendev;
	scsi_rescan_device(unit);
}

/* Sends a command that reads. Returns what the command returned: negative, or a result. */
static inline int vsfc_execute_read(struct scsi_device *sdev, const u8 *cdb, void *buf,
				    unsigned int len, int timeout, int retries)
{
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 3, 0)
	return scsi_execute_cmd(sdev, cdb, REQ_OP_DRV_IN, buf, len, timeout, retries, NULL);
#else
	return scsi_execute_req(sdev, cdb, DMA_FROM_DEVICE, buf, len, NULL, timeout, retries, NULL);
#endif
}

/* Names of the callbacks by which the midlayer tells of units. */
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 14, 0)
#define VSFC_UNIT_ALLOC		sdev_init
#else
#define VSFC_UNIT_ALLOC		slave_alloc
#endif

/* Queues in the order of the interrupts, from the first one of requests on. */
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 14, 0)
static inline void vsfc_map_hw_queues(struct blk_mq_queue_map *map, struct virtio_device *vdev,
				      int first)
{
	blk_mq_map_hw_queues(map, &vdev->dev, first);
}
#else
#include <linux/blk-mq-virtio.h>
static inline void vsfc_map_hw_queues(struct blk_mq_queue_map *map, struct virtio_device *vdev,
				      int first)
{
	blk_mq_virtio_map_queues(map, vdev, first);
}
#endif

/* A virtqueue that is wanted. */
struct vsfc_vq_want {
	const char *name;
	vq_callback_t *callback;
};

static inline int vsfc_find_vqs(struct virtio_device *vdev, unsigned int count,
				struct virtqueue **vqs, const struct vsfc_vq_want *wants,
				struct irq_affinity *desc)
{
	unsigned int i;
	int err;
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 11, 0)
	struct virtqueue_info *infos = kcalloc(count, sizeof(*infos), GFP_KERNEL);

	if (!infos)
		return -ENOMEM;
	for (i = 0; i < count; i++) {
		infos[i].name = wants[i].name;
		infos[i].callback = wants[i].callback;
	}
	err = virtio_find_vqs(vdev, count, vqs, infos, desc);
	kfree(infos);
#else
	const char **names = kcalloc(count, sizeof(*names), GFP_KERNEL);
	vq_callback_t **callbacks = kcalloc(count, sizeof(*callbacks), GFP_KERNEL);

	err = -ENOMEM;
	if (names && callbacks) {
		for (i = 0; i < count; i++) {
			names[i] = wants[i].name;
			callbacks[i] = wants[i].callback;
		}
		err = virtio_find_vqs(vdev, count, vqs, callbacks, names, desc);
	}
	kfree(callbacks);
	kfree(names);
#endif
	return err;
}

#endif
