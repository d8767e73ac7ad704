// SPDX-License-Identifier: GPL-2.0-only
/*
 * Rings: what all queues of the device have in common.
 *
 * A queue is there, or not: while the machine sleeps, and when it could not be had again. Its lock
 * says which, and who notifies the device outside of it is waited for before the queue goes.
 */
#include "vsfc.h"

/* Gives a ring to the driver, or takes it away: NULL. */
void vsfc_ring_set(struct vsfc_queue *queue, struct virtqueue *vq)
{
	unsigned long flags;

	spin_lock_irqsave(&queue->lock, flags);
	queue->vq = vq;
	spin_unlock_irqrestore(&queue->lock, flags);
}

/* A ring that is not there, whose device is gone, or was found to break the rules. */
static bool is_broken(struct vsfc_queue *queue)
{
	unsigned long flags;
	bool broken;

	spin_lock_irqsave(&queue->lock, flags);
	broken = !queue->vq || virtqueue_is_broken(queue->vq);
	spin_unlock_irqrestore(&queue->lock, flags);
	return broken;
}

/*
 * A device that is gone, or that broke the rules of one of its rings, which is all that virtio marks
 * then: it may not be believed by the others.
 */
bool vsfc_is_broken(struct vsfc *host)
{
	unsigned int i;

	if (is_broken(&host->control) || is_broken(&host->event))
		return true;
	for (i = 0; i < host->nr_queues; i++) {
		if (is_broken(&host->queues[i]))
			return true;
	}
	return false;
}

/*
 * Adds buffers to a ring; @sent, if there is one, is told under its lock that they are the device's
 * now. -EAGAIN where there is no ring.
 */
int vsfc_ring_add(struct vsfc_queue *queue, struct vsfc_buffers *buffers, bool is_last,
		  void (*sent)(struct vsfc_queue *queue, void *data))
{
	struct virtqueue *vq;
	unsigned long flags;
	bool notify = false;
	int err = -EAGAIN;

	rcu_read_lock();
	spin_lock_irqsave(&queue->lock, flags);
	vq = queue->vq;
	if (vq) {
		if (sent)
			sent(queue, buffers->data);
		err = virtqueue_add_sgs(vq, buffers->sgs, buffers->out, buffers->in,
					buffers->data, GFP_ATOMIC);
		/* One that finds no room is the end of a batch, too. */
		if (is_last || err)
			notify = virtqueue_kick_prepare(vq);
	}
	spin_unlock_irqrestore(&queue->lock, flags);
	if (notify)
		virtqueue_notify(vq);
	rcu_read_unlock();
	return err;
}

/* Tells the device of what was added. */
void vsfc_ring_kick(struct vsfc_queue *queue)
{
	struct virtqueue *vq;
	unsigned long flags;
	bool notify = false;

	rcu_read_lock();
	spin_lock_irqsave(&queue->lock, flags);
	vq = queue->vq;
	if (vq)
		notify = virtqueue_kick_prepare(vq);
	spin_unlock_irqrestore(&queue->lock, flags);
	if (notify)
		virtqueue_notify(vq);
	rcu_read_unlock();
}

/* Takes what the device has completed. @take runs under the ring's lock. */
void vsfc_ring_reap(struct vsfc *host, struct vsfc_queue *queue, vsfc_take *take)
{
	unsigned long flags;
	unsigned int len;
	void *data;

	spin_lock_irqsave(&queue->lock, flags);
	if (queue->vq) {
		do {
			virtqueue_disable_cb(queue->vq);
			while ((data = virtqueue_get_buf(queue->vq, &len)))
				take(host, data, len);
		} while (!virtqueue_is_broken(queue->vq) && !virtqueue_enable_cb(queue->vq));
		if (virtqueue_is_broken(queue->vq) && !READ_ONCE(host->is_stopping))
			schedule_work(&host->broken_work);
	}
	spin_unlock_irqrestore(&queue->lock, flags);
}

/* The device is reset: takes what it still had, as what it has not answered. */
void vsfc_ring_end(struct vsfc *host, struct vsfc_queue *queue, vsfc_take *take)
{
	unsigned long flags;
	void *data;

	spin_lock_irqsave(&queue->lock, flags);
	if (queue->vq) {
		while ((data = virtqueue_detach_unused_buf(queue->vq)))
			take(host, data, 0);
	}
	spin_unlock_irqrestore(&queue->lock, flags);
}
