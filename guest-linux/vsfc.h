/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the parts of the driver know of each other.
 *
 * main.c     the module, the device and its queues, the SCSI host
 * command.c  commands, from the midlayer to the device and back
 * ring.c     what all queues have in common
 * control.c  requests of the control queue: task management, RESCAN
 * recovery.c commands that are not answered in time, and what the midlayer wants reset
 * event.c    what the device tells, and the look for units that follows
 * fc.c       the port of this machine and the remote ports, for scsi_transport_fc
 * vport.c    more ports of this machine, which it has created
 */
#ifndef VSFC_H
#define VSFC_H

#include <linux/completion.h>
#include <linux/list.h>
#include <linux/mutex.h>
#include <linux/refcount.h>
#include <linux/rwsem.h>
#include <linux/scatterlist.h>
#include <linux/spinlock.h>
#include <linux/virtio.h>
#include <linux/virtio_scsi.h>
#include <linux/workqueue.h>
#include <scsi/scsi_cmnd.h>
#include <scsi/scsi_device.h>
#include <scsi/scsi_host.h>
#include <scsi/scsi_transport_fc.h>

#include "abi.h"
#include "compat.h"

/* Numbers of virtqueues: requests have those that follow. */
#define VSFC_VQ_CONTROL		0
#define VSFC_VQ_EVENT		1
#define VSFC_VQ_REQUEST		2

/*
 * The midlayer's numbers for remote ports: those of the device, and as many for ports whose own one
 * belongs to another.
 */
#define VSFC_MAX_ID		(2 * VSFC_TARGETS)

/* Buffers that the device has for events: what waits behind them waits in the device. */
#define VSFC_EVENTS		16

/* What memory behind a command has for the driver. */
struct vsfc_cmd {
	/* The device has it. Protected by the lock of its queue. */
	bool is_sent;
	/* Its time was over. */
	bool is_late;
	/* The function that is to end it next: see recovery.c. Protected by vsfc.recovery_lock. */
	u8 step;
	/* The queue that it was sent by. */
	u16 queue;
	/* In vsfc.owed. Changes with the locks of the queue and of that. */
	struct list_head owed;
	struct virtio_scsi_cmd_req req;
	struct virtio_scsi_cmd_resp resp ____cacheline_aligned;
};

struct vsfc_queue {
	/* Held for the ring. Interrupts take it. */
	spinlock_t lock;
	/* NULL while there is none. */
	struct virtqueue *vq;
	/* Of requests: makes tags of commands that no later one has. */
	u32 serial;
} ____cacheline_aligned_in_smp;

/* What is added to a ring. */
struct vsfc_buffers {
	struct scatterlist **sgs;
	unsigned int out;
	unsigned int in;
	void *data;
};

struct vsfc;
struct vsfc_port;

/* Takes what the device gives back: @len bytes of it are written. */
typedef void vsfc_take(struct vsfc *host, void *data, unsigned int len);

/* A request of the control queue. Whoever waits has one reference, the ring the other. */
struct vsfc_control {
	refcount_t refs;
	struct completion done;
	/* In vsfc.recoveries, for a function that nobody waits for. */
	struct list_head recovery;
	/* Bytes of the response that the device has written; set before @done. */
	unsigned int len;
	unsigned int req_size;
	unsigned int resp_size;
	union {
		struct virtio_scsi_ctrl_tmf_req tmf;
		struct vsfc_rescan_req rescan;
		struct vsfc_create_req create;
		struct vsfc_vport_req vport;
	} req ____cacheline_aligned;
	union {
		struct virtio_scsi_ctrl_tmf_resp tmf;
		struct vsfc_rescan_resp rescan;
		struct vsfc_create_resp create;
		struct vsfc_delete_resp deleted;
		struct vsfc_show_resp show;
	} resp ____cacheline_aligned;
};

struct vsfc_event {
	struct vsfc *host;
	struct work_struct work;
	struct virtio_scsi_event wire ____cacheline_aligned;
};

/* What the midlayer keeps for us with a remote port. */
struct vsfc_rport {
	/*
	 * The device's number for it, and one: the transport clears it. It need not be the
	 * midlayer's.
	 */
	u16 number;
};

/* What is to be done at a target, bits of vsfc_target.todo. */
enum {
	VSFC_TODO_UNITS,	/* units are marked: see below */
	VSFC_TODO_SCAN,		/* look for units */
	VSFC_TODO_VERIFY,	/* look whether the known ones are still there */
};

/* Bits of vsfc_target.reset. */
enum {
	VSFC_RESET_OWED,	/* I_T NEXUS RESET found no way to the device */
};

/* What is to be done with a unit: bits of scsi_device.hostdata, which points to nothing. */
enum {
	VSFC_UNIT_GONE,
	VSFC_UNIT_CHANGED,
};

/* A target of the device. */
struct vsfc_target {
	struct vsfc *host;
	unsigned long todo;
	unsigned long reset;
	struct work_struct work;
	/* The rest is about the remote port, and protected by vsfc.ports_lock. */
	/* Whose it is, or was when it was online last. */
	struct vsfc_port *port;
	/* The port while it is online; the transport's alone when it is not. */
	struct fc_rport *rport;
	u64 wwnn;
	u64 wwpn;
	u32 port_id;
	/* The midlayer's number for it. */
	unsigned int scsi_id;
	/* Who has this number at the midlayer, which keeps it for a port that may be back. */
	u64 owner;
};

/* A port of this machine: what a Scsi_Host has for the driver. */
struct vsfc_port {
	/* The device. */
	struct vsfc *host;
	struct Scsi_Host *shost;
	/* The midlayer's number for the next remote port whose own one is taken. */
	unsigned int next_scsi_id;
	/* The rest is of ports that this machine has created. */
	struct fc_vport *fc_vport;
	/* In vsfc.vports. Protected by vsfc.ports_lock, as is what follows. */
	struct list_head entry;
	/* The device's number for it; 0 while it has none. */
	u16 number;
	/* How often the device did not take it back. */
	unsigned int failures;
	/* It is about to go. */
	bool is_going;
};

struct vsfc {
	/* The adapter's own one. First: see vsfc_of. */
	struct vsfc_port port;
	struct virtio_device *vdev;
	struct Scsi_Host *shost;
	/* The adapter has a port on a fabric. */
	bool is_fc;
	/* LUNs are as the target has them. */
	bool is_native;
	/* Nothing new is begun: the host goes, or sleeps. */
	bool is_stopping;
	/* Ports stay as they are: the machine is about to sleep, or to wake. Set with ports_lock. */
	bool is_paused;
	/* The queues could not be had again: nothing comes any more. */
	bool is_lost;
	/* What becomes of commands that the device had when it is reset: a host byte. */
	int end_byte;
	/* Read by who waits for a function, so that the host does not go meanwhile. */
	struct rw_semaphore functions;
	/* Protects what follows. Taken with the lock of a queue held. */
	spinlock_t recovery_lock;
	/* Functions that are under way, and nobody waits for. */
	struct list_head recoveries;
	unsigned int nr_recoveries;
	unsigned int max_recoveries;
	/* Commands for whose function there was no room. */
	struct list_head owed;
	/* Sends what is owed. */
	struct delayed_work owed_work;
	/* Parts with a device that broke the rules of a ring. */
	struct work_struct broken_work;
	unsigned int nr_queues;
	struct vsfc_queue control;
	struct vsfc_queue event;
	struct vsfc_event *events;
	/* Events and ports: never waits for a command. */
	struct workqueue_struct *event_wq;
	/* Looks for units, which wait for commands. Frozen while the machine sleeps. */
	struct workqueue_struct *scan_wq;
	struct work_struct config_work;
	/* Asks how all ports are. */
	struct work_struct ports_work;
	/* Asks that, and for all units. */
	struct work_struct refresh_work;
	struct work_struct scan_all_work;
	/* Held while what is known of ports changes, which asks the device. */
	struct mutex ports_lock;
	struct vsfc_target *targets;
	/* Ports that this machine has created. */
	struct list_head vports;
	/* Creates them anew. */
	struct delayed_work vports_work;
	unsigned int vports_round;
	struct vsfc_queue queues[];
};

static inline struct vsfc_port *vsfc_port_of(struct Scsi_Host *shost)
{
	return shost_priv(shost);
}

static inline struct vsfc *vsfc_of(struct Scsi_Host *shost)
{
	return vsfc_port_of(shost)->host;
}

/* main.c */
struct Scsi_Host *vsfc_alloc_shost(struct scsi_transport_template *transport, size_t size);

/* ring.c */
void vsfc_ring_set(struct vsfc_queue *queue, struct virtqueue *vq);
bool vsfc_is_broken(struct vsfc *host);
int vsfc_ring_add(struct vsfc_queue *queue, struct vsfc_buffers *buffers, bool is_last,
		  void (*sent)(struct vsfc_queue *queue, void *data));
void vsfc_ring_kick(struct vsfc_queue *queue);
void vsfc_ring_reap(struct vsfc *host, struct vsfc_queue *queue, vsfc_take *take);
void vsfc_ring_end(struct vsfc *host, struct vsfc_queue *queue, vsfc_take *take);

/* command.c */
vsfc_queue_status vsfc_queuecommand(struct Scsi_Host *shost, struct scsi_cmnd *sc);
void vsfc_commit_rqs(struct Scsi_Host *shost, u16 hwq);
void vsfc_request_done(struct virtqueue *vq);
void vsfc_reap(struct vsfc *host);
void vsfc_end_commands(struct vsfc *host);
bool vsfc_is_sent(struct vsfc *host, struct scsi_cmnd *sc, u64 *tag);
bool vsfc_address(struct scsi_device *sdev, u8 field[8]);
int vsfc_port_target(struct fc_rport *rport);
u64 vsfc_lun_of(const u8 field[8]);

/* control.c */
void vsfc_control_done(struct virtqueue *vq);
void vsfc_end_control(struct vsfc *host);
int vsfc_rescan(struct vsfc *host, u32 next_id, struct vsfc_rescan_resp *resp);
int vsfc_create_vport(struct vsfc *host, u64 wwnn, u64 wwpn);
int vsfc_delete_vport(struct vsfc *host, u16 number);
int vsfc_show_vport(struct vsfc *host, u16 number, struct vsfc_show_resp *resp);
int vsfc_control_send(struct vsfc *host, struct vsfc_control *control);
void vsfc_control_put(struct vsfc_control *control);
struct vsfc_control *vsfc_tmf_new(struct vsfc *host, u32 subtype, const u8 lun[8], u64 tag,
				  gfp_t gfp);
int vsfc_tmf_run(struct vsfc *host, u32 subtype, const u8 lun[8], u64 tag);

/* recovery.c */
void vsfc_recovery_init(struct vsfc *host);
void vsfc_recovery_stop(struct vsfc *host);
void vsfc_recovery_ended(struct vsfc *host, struct vsfc_control *control);
void vsfc_recovery_forget(struct vsfc *host, struct vsfc_cmd *cmd);
void vsfc_reset_nexus_later(struct vsfc *host, u8 target);
int vsfc_eh_abort(struct scsi_cmnd *sc);
int vsfc_eh_unit_reset(struct scsi_cmnd *sc);
int vsfc_eh_target_reset(struct scsi_cmnd *sc);
int vsfc_eh_wait(struct scsi_cmnd *sc);
enum vsfc_timeout_action vsfc_eh_timed_out(struct scsi_cmnd *sc);
bool vsfc_eh_should_retry(struct scsi_cmnd *sc);

/* event.c */
int vsfc_events_init(struct vsfc *host);
void vsfc_events_start(struct vsfc *host);
void vsfc_events_stop(struct vsfc *host);
void vsfc_event_done(struct virtqueue *vq);
void vsfc_end_events(struct vsfc *host);
void vsfc_todo(struct vsfc *host, u8 target, unsigned int what);
void vsfc_look_at_all(struct vsfc *host);

/* fc.c */
int vsfc_fc_init(void);
void vsfc_fc_exit(void);
struct scsi_transport_template *vsfc_fc_template(bool is_vport);
bool vsfc_fc_offered(struct virtio_device *vdev);
void vsfc_fc_start(struct vsfc *host);
void vsfc_fc_set_fixed(struct Scsi_Host *shost);
void vsfc_fc_set_state(struct Scsi_Host *shost, const struct vsfc_show_resp *shown);
void vsfc_fc_config_changed(struct work_struct *work);
void vsfc_fc_sync(struct vsfc *host, u8 target);
void vsfc_fc_sync_all(struct vsfc *host, bool look);
void vsfc_fc_look_for_ports(struct work_struct *work);
bool vsfc_fc_pause(struct vsfc *host);
void vsfc_fc_lose_ports(struct vsfc_port *port);
void vsfc_fc_remove_units(struct vsfc_port *port);
void vsfc_fc_stop(struct vsfc_port *port);

/* vport.c */
int vsfc_vport_create(struct fc_vport *fc_vport, bool disable);
int vsfc_vport_delete(struct fc_vport *fc_vport);
int vsfc_vport_disable(struct fc_vport *fc_vport, bool disable);
struct vsfc_port *vsfc_vport_by_number(struct vsfc *host, u16 number);
void vsfc_vports_init(struct vsfc *host);
void vsfc_vports_show(struct vsfc *host);
void vsfc_vports_end(struct vsfc *host);
void vsfc_vports_lost(struct vsfc *host);

#endif
