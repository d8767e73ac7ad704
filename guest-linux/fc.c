// SPDX-License-Identifier: GPL-2.0-only
/*
 * The port of this machine on a fabric, and the remote ports that it sees, for scsi_transport_fc.
 *
 * The transport has the timers: a port that is lost is given to it, with its units, and taken back
 * when the device says that it is there again.
 */
#include <linux/delay.h>
#include <linux/sched/mm.h>
#include <linux/utsname.h>
#include <scsi/scsi_transport.h>

#include "vsfc.h"

/* The midlayer's numbers for ports whose own one somebody else has: behind all of the device's. */
#define FIRST_FREE_ID	VSFC_TARGETS
/* FCP in a list of FC-4 types: type 08h is bit 0 of byte 2. */
#define FC4_FCP_BYTE	2
#define FC4_FCP_BIT	1
/* How often the configuration space is read until it is all of one moment. */
#define CONFIG_TRIES	10
/* Until a machine that is to sleep is told that it cannot: as long as Linux waits for its processes. */
#define PAUSE_PATIENCE	(20 * HZ)

static struct scsi_transport_template *fc_template;
/* That of ports which this machine has created. */
static struct scsi_transport_template *vport_template;
/* What the transport does when somebody asks for a scan. */
static int (*transport_user_scan)(struct Scsi_Host *shost, uint channel, uint id, u64 lun);

static u32 speed_of(u32 mbps)
{
	switch (mbps / 1000) {
	case 1:
		return FC_PORTSPEED_1GBIT;
	case 2:
		return FC_PORTSPEED_2GBIT;
	case 4:
		return FC_PORTSPEED_4GBIT;
	case 8:
		return FC_PORTSPEED_8GBIT;
	case 10:
		return FC_PORTSPEED_10GBIT;
	case 16:
		return FC_PORTSPEED_16GBIT;
	case 20:
		return FC_PORTSPEED_20GBIT;
	case 25:
		return FC_PORTSPEED_25GBIT;
	case 32:
		return FC_PORTSPEED_32GBIT;
	case 40:
		return FC_PORTSPEED_40GBIT;
	case 50:
		return FC_PORTSPEED_50GBIT;
	case 64:
		return FC_PORTSPEED_64GBIT;
	case 100:
		return FC_PORTSPEED_100GBIT;
	case 128:
		return FC_PORTSPEED_128GBIT;
	case 256:
		return FC_PORTSPEED_256GBIT;
	default:
		return FC_PORTSPEED_UNKNOWN;
	}
}

static enum fc_port_state port_state_of(u8 state)
{
	return state <= FC_PORTSTATE_ERROR ? state : FC_PORTSTATE_UNKNOWN;
}

/* Reads a field by its width (virtio 4.1.3.1). */
static void read_field(struct virtio_device *vdev, unsigned int at, void *field, size_t width)
{
	vdev->config->get(vdev, VSFC_CONFIG_OFFSET + at, field, width);
}

#define READ_FIELD(vdev, config, field)						\
	read_field(vdev, offsetof(struct vsfc_config, field), &(config)->field,	\
		   sizeof((config)->field))

/* A name is eight bytes, each a field. */
static __be64 read_name(struct virtio_device *vdev, unsigned int at)
{
	__be64 name;
	unsigned int i;

	for (i = 0; i < sizeof(name); i++)
		read_field(vdev, at + i, (u8 *)&name + i, 1);
	return name;
}

#define READ_NAME(vdev, config, field)						\
	((config)->field = read_name(vdev, offsetof(struct vsfc_config, field)))

/*
 * The configuration space: all of one moment, it is read again where its generation has changed. A
 * device that changes it all the time is asked again when it says next that it has done so.
 */
static void read_config(struct virtio_device *vdev, struct vsfc_config *config)
{
	unsigned int tries = CONFIG_TRIES;
	u32 generation;

	do {
		cond_resched();
		generation = vdev->config->generation ? vdev->config->generation(vdev) : 0;
		READ_FIELD(vdev, config, revision);
		READ_NAME(vdev, config, primary_wwnn);
		READ_NAME(vdev, config, primary_wwpn);
		READ_NAME(vdev, config, secondary_wwnn);
		READ_NAME(vdev, config, secondary_wwpn);
		READ_FIELD(vdev, config, active);
		READ_FIELD(vdev, config, port_state);
		READ_FIELD(vdev, config, max_vports);
		READ_FIELD(vdev, config, port_id);
		READ_NAME(vdev, config, fabric_name);
		READ_FIELD(vdev, config, speed_mbps);
		READ_FIELD(vdev, config, supported_classes);
		READ_FIELD(vdev, config, max_frame_size);
	} while (vdev->config->generation && generation != vdev->config->generation(vdev) &&
		 --tries);
}

/* Whether a device has a configuration space that this driver knows. */
bool vsfc_fc_offered(struct virtio_device *vdev)
{
	__le32 revision;

	read_field(vdev, 0, &revision, sizeof(revision));
	return le32_to_cpu(revision) >= VSFC_REVISION;
}

/* Shows what the device says of a port now. */
void vsfc_fc_set_state(struct Scsi_Host *shost, const struct vsfc_show_resp *shown)
{
	bool was_online = fc_host_port_state(shost) == FC_PORTSTATE_ONLINE;
	bool is_online;

	fc_host_port_id(shost) = le32_to_cpu(shown->port_id) & 0xffffff;
	fc_host_fabric_name(shost) = be64_to_cpu(shown->fabric_name);
	fc_host_speed(shost) = speed_of(le32_to_cpu(shown->speed_mbps));
	fc_host_supported_speeds(shost) |= fc_host_speed(shost);
	fc_host_supported_classes(shost) = le32_to_cpu(shown->supported_classes);
	fc_host_maxframe_size(shost) = le32_to_cpu(shown->max_frame_size);
	fc_host_port_state(shost) = port_state_of(shown->port_state);

	is_online = fc_host_port_state(shost) == FC_PORTSTATE_ONLINE;
	if (is_online != was_online)
		fc_host_post_event(shost, fc_get_event_number(),
				   is_online ? FCH_EVT_LINKUP : FCH_EVT_LINKDOWN, 0);
}

/* Shows what the device says of its own port now. */
static void read_local(struct vsfc *host)
{
	struct Scsi_Host *shost = host->shost;
	struct vsfc_show_resp shown;
	struct vsfc_config config;
	bool secondary;

	read_config(host->vdev, &config);
	secondary = config.active == VSFC_ACTIVE_SECONDARY;
	fc_host_node_name(shost) =
		be64_to_cpu(secondary ? config.secondary_wwnn : config.primary_wwnn);
	fc_host_port_name(shost) =
		be64_to_cpu(secondary ? config.secondary_wwpn : config.primary_wwpn);
	fc_host_permanent_port_name(shost) = be64_to_cpu(config.primary_wwpn);
	if (virtio_has_feature(host->vdev, VSFC_F_VPORT))
		fc_host_max_npiv_vports(shost) = le16_to_cpu(config.max_vports);
	shown = (struct vsfc_show_resp) {
		.port_id = config.port_id,
		.port_state = config.port_state,
		.fabric_name = config.fabric_name,
		.speed_mbps = config.speed_mbps,
		.supported_classes = config.supported_classes,
		.max_frame_size = config.max_frame_size,
	};
	vsfc_fc_set_state(shost, &shown);
}

/* What stays as it is. */
void vsfc_fc_set_fixed(struct Scsi_Host *shost)
{
	vsfc_port_of(shost)->next_scsi_id = FIRST_FREE_ID;
	fc_host_port_type(shost) = FC_PORTTYPE_NPIV;
	fc_host_supported_speeds(shost) = 0;
	fc_host_supported_fc4s(shost)[FC4_FCP_BYTE] = FC4_FCP_BIT;
	fc_host_active_fc4s(shost)[FC4_FCP_BYTE] = FC4_FCP_BIT;
	snprintf(fc_host_symbolic_name(shost), FC_SYMBOLIC_NAME_SIZE, "%s on %s at %s",
		 shost->hostt->name, init_utsname()->nodename,
		 dev_name(shost->shost_gendev.parent));
}

/* The host is there: shows its port, and finds the others. */
void vsfc_fc_start(struct vsfc *host)
{
	vsfc_fc_set_fixed(host->shost);
	read_local(host);
	vsfc_fc_sync_all(host, false);
}

void vsfc_fc_config_changed(struct work_struct *work)
{
	struct vsfc *host = container_of(work, struct vsfc, config_work);

	if (host->is_fc && !READ_ONCE(host->is_stopping)) {
		read_local(host);
		vsfc_vports_show(host);
	}
}

/* Gives a port that is lost to the transport. The caller has ports_lock, as of all that follows. */
static void lose_port(struct vsfc_target *target)
{
	struct fc_rport *rport = target->rport;

	WRITE_ONCE(target->rport, NULL);
	fc_remote_port_delete(rport);
}

/*
 * The midlayer's number for a port: the device's own one, so that disks have the names which
 * they have without this driver, unless another port has it: numbers of ports that are lost
 * stay theirs.
 */
static void choose_scsi_id(struct vsfc_target *target, u64 wwpn)
{
	struct Scsi_Host *shost = target->port->shost;
	unsigned int number = target - target->host->targets;
	unsigned long flags;

	if (!target->owner || target->owner == wwpn)
		target->owner = wwpn;
	else
		number = target->port->next_scsi_id++;
	spin_lock_irqsave(shost->host_lock, flags);
	fc_host_next_target_id(shost) = number;
	spin_unlock_irqrestore(shost->host_lock, flags);
}

/* Whether the transport has a port in a list of its own. Called with host_lock held. */
static bool is_listed(const struct list_head *ports, u64 wwpn)
{
	struct fc_rport *rport;

	list_for_each_entry(rport, ports, peers) {
		if (rport->port_name == wwpn)
			return true;
	}
	return false;
}

/*
 * Whether there is a number for a port: there are as many as the midlayer was told of. The transport
 * keeps those of ports that it knows for ever, so a device that has ever new names for its ports
 * comes to an end.
 */
static bool has_scsi_id(struct vsfc_port *port, const struct vsfc_target *target, u64 wwpn)
{
	struct Scsi_Host *shost = port->shost;
	unsigned long flags;
	bool is_known;

	if (port->next_scsi_id < VSFC_MAX_ID || !target->owner || target->owner == wwpn)
		return true;
	spin_lock_irqsave(shost->host_lock, flags);
	is_known = is_listed(&fc_host_rports(shost), wwpn) ||
		   is_listed(&fc_host_rport_bindings(shost), wwpn);
	spin_unlock_irqrestore(shost->host_lock, flags);
	return is_known;
}

/* A remote port that has another of the device's numbers now is lost before it is found by that. */
static void lose_elsewhere(struct vsfc_port *port, u64 wwpn)
{
	struct vsfc_target *target = port->host->targets;
	unsigned int number;

	for (number = 0; number < VSFC_TARGETS; number++, target++) {
		if (target->port == port && target->rport && target->wwpn == wwpn)
			lose_port(target);
	}
}

static void find_port(struct vsfc_port *port, u8 number, const struct vsfc_rescan_resp *found)
{
	struct vsfc_target *target = &port->host->targets[number];
	struct fc_rport_identifiers ids = {
		.node_name = be64_to_cpu(found->node_wwn),
		.port_name = be64_to_cpu(found->port_wwn),
		.port_id = le32_to_cpu(found->port_id) & 0xffffff,
		/* Nobody looks for units before the port has our number. */
		.roles = FC_PORT_ROLE_UNKNOWN,
	};
	struct fc_rport *rport = NULL;
	struct vsfc_rport *ours;

	lose_elsewhere(port, ids.port_name);
	if (has_scsi_id(port, target, ids.port_name))
		rport = fc_remote_port_add(port->shost, 0, &ids);
	if (!rport) {
		if (printk_ratelimit())
			shost_printk(KERN_ERR, port->shost,
				     "no room for remote port %016llx: load the driver anew to forget ports that went\n",
				     ids.port_name);
		return;
	}
	ours = rport->dd_data;
	WRITE_ONCE(ours->number, number + 1);
	rport->maxframe_size = fc_host_maxframe_size(port->shost);
	rport->supported_classes = fc_host_supported_classes(port->shost);
	target->port = port;
	WRITE_ONCE(target->rport, rport);
	target->wwnn = ids.node_name;
	target->wwpn = ids.port_name;
	target->port_id = ids.port_id;
	if (rport->scsi_target_id == -1)
		choose_scsi_id(target, ids.port_name);
	fc_remote_port_rolechg(rport, FC_PORT_ROLE_FCP_TARGET);
	target->scsi_id = rport->scsi_target_id;
	clear_bit(VSFC_RESET_OWED, &target->reset);
	/*
	 * Of units that went meanwhile the driver was told, and has kept them until now; and what
	 * came or went while nobody could be asked is found by a look.
	 */
	set_bit(VSFC_TODO_UNITS, &target->todo);
	set_bit(VSFC_TODO_VERIFY, &target->todo);
	vsfc_todo(port->host, number, VSFC_TODO_SCAN);
	fc_host_post_event(port->shost, fc_get_event_number(), FCH_EVT_RSCN, ids.port_id);
}

/* Which of our ports sees a remote port; NULL for one that is not there yet. */
static struct vsfc_port *who_sees(struct vsfc *host, const struct vsfc_rescan_resp *found)
{
	if (!virtio_has_feature(host->vdev, VSFC_F_VPORT))
		return &host->port;
	return vsfc_vport_by_number(host, le16_to_cpu(found->vport));
}

/* A port is like this now. */
static void show_port(struct vsfc *host, u8 number, const struct vsfc_rescan_resp *found)
{
	struct vsfc_target *target = &host->targets[number];
	struct vsfc_port *port = found ? who_sees(host, found) : NULL;
	/* When a port of ours comes that is not known yet, all are asked for again. */
	bool is_online = port && found->state == FC_PORTSTATE_ONLINE;
	unsigned int flags;
	bool is_same = is_online && target->port == port &&
		       target->wwpn == be64_to_cpu(found->port_wwn) &&
		       target->wwnn == be64_to_cpu(found->node_wwn) &&
		       target->port_id == (le32_to_cpu(found->port_id) & 0xffffff);

	/* Who needs memory may wait for a disk behind a port that is to be found here. */
	flags = memalloc_noio_save();
	if (target->rport && !is_same)
		lose_port(target);
	if (is_online && !target->rport && !port->is_going)
		find_port(port, number, found);
	memalloc_noio_restore(flags);
}

/* Whether ports may come and be lost. */
static bool is_in_use(struct vsfc *host)
{
	return !READ_ONCE(host->is_stopping) && !READ_ONCE(host->is_paused);
}

/* Asks the device how one port is. */
void vsfc_fc_sync(struct vsfc *host, u8 number)
{
	struct vsfc_rescan_resp found;
	int err;

	mutex_lock(&host->ports_lock);
	if (is_in_use(host)) {
		err = vsfc_rescan(host, number, &found);
		if (!err && le32_to_cpu(found.id) == number)
			show_port(host, number, &found);
		else if (!err || err == -ENOENT)
			show_port(host, number, NULL);
	}
	mutex_unlock(&host->ports_lock);
}

/*
 * Asks the device how all ports are; @look: after the host has looked at the fabric. A look takes
 * seconds, and ports that are lost meanwhile are to be blocked at once: nobody waits for it, and
 * what it says may be old when it comes.
 */
void vsfc_fc_sync_all(struct vsfc *host, bool look)
{
	struct vsfc_rescan_resp found;
	unsigned int number = 0;
	int err = 0;

	if (look && !READ_ONCE(host->is_stopping))
		vsfc_rescan(host, VSFC_NO_ID, &found);
	mutex_lock(&host->ports_lock);
	while (number < VSFC_TARGETS && is_in_use(host)) {
		unsigned int end = VSFC_TARGETS;

		err = vsfc_rescan(host, number, &found);
		if (err && err != -ENOENT)
			break;
		if (!err)
			end = le32_to_cpu(found.id);
		/* There is none between the last one and this one. */
		for (; number < end; number++)
			show_port(host, number, NULL);
		if (!err)
			show_port(host, number++, &found);
	}
	mutex_unlock(&host->ports_lock);
	if (err && err != -ENOENT && !READ_ONCE(host->is_stopping) && !vsfc_is_broken(host) &&
	    printk_ratelimit())
		shost_printk(KERN_ERR, host->shost,
			     "the device does not name its ports: error %d; scan the host to ask again\n",
			     err);
}

void vsfc_fc_look_for_ports(struct work_struct *work)
{
	vsfc_fc_sync_all(container_of(work, struct vsfc, ports_work), false);
}

/*
 * The machine is about to sleep. Who tells the transport of a port may wait there for units that
 * go, and so for their commands: false where that takes too long.
 */
bool vsfc_fc_pause(struct vsfc *host)
{
	unsigned long end = jiffies + PAUSE_PATIENCE;

	while (!mutex_trylock(&host->ports_lock)) {
		if (time_after(jiffies, end))
			return false;
		msleep(20);
	}
	WRITE_ONCE(host->is_paused, true);
	mutex_unlock(&host->ports_lock);
	return true;
}

/* All that a port of ours sees is lost. */
void vsfc_fc_lose_ports(struct vsfc_port *port)
{
	struct vsfc_target *target = port->host->targets;
	unsigned int number;

	for (number = 0; number < VSFC_TARGETS; number++, target++) {
		if (target->port == port && target->rport)
			lose_port(target);
	}
}

/*
 * Takes the units away that are there, while their ports are: a disk writes back what its cache has
 * then, for which a port that the transport parts with has no room. The transport is asked for it, as
 * a module that goes has no hold of its units. Those of a port that is lost go with that.
 */
void vsfc_fc_remove_units(struct vsfc_port *port)
{
	struct vsfc_target *target = port->host->targets;
	unsigned int number;

	for (number = 0; number < VSFC_TARGETS; number++, target++) {
		struct device *dev = NULL;

		mutex_lock(&port->host->ports_lock);
		if (target->port == port && target->rport)
			dev = get_device(&target->rport->dev);
		mutex_unlock(&port->host->ports_lock);
		if (dev)
			scsi_remove_target(dev);
		put_device(dev);
	}
}

/*
 * No remote port is told to the transport from now on, which is about to part with all of them. Their
 * units have gone before.
 */
void vsfc_fc_stop(struct vsfc_port *port)
{
	struct vsfc *host = port->host;
	unsigned int number;

	vsfc_fc_remove_units(port);
	mutex_lock(&host->ports_lock);
	for (number = 0; number < VSFC_TARGETS; number++) {
		struct vsfc_target *target = &host->targets[number];

		if (target->port != port)
			continue;
		WRITE_ONCE(target->rport, NULL);
		/* The midlayer forgets its numbers with the host. */
		target->port = &host->port;
		target->owner = 0;
	}
	mutex_unlock(&host->ports_lock);
	fc_remove_host(port->shost);
}

/* `echo - - - > scan`: what the array shows now, also where nobody has told of it. */
static int user_scan(struct Scsi_Host *shost, uint channel, uint id, u64 lun)
{
	vsfc_fc_sync_all(vsfc_of(shost), true);
	return transport_user_scan(shost, channel, id, lun);
}

/* `echo 1 > issue_lip`: the same, and the ones that are known are looked at too. */
static int issue_lip(struct Scsi_Host *shost)
{
	struct vsfc *host = vsfc_of(shost);

	vsfc_fc_sync_all(host, true);
	fc_host_post_event(shost, fc_get_event_number(), FCH_EVT_LIP, 0);
	vsfc_look_at_all(host);
	return 0;
}

/*
 * The port's patience is over: what the device still has for it is to end, unless its number is
 * that of another one now, whose commands those are. Takes no lock: who has ports_lock may wait for
 * the caller.
 */
static void terminate_rport_io(struct fc_rport *rport)
{
	struct vsfc *host = vsfc_of(rport_to_shost(rport));
	int number = vsfc_port_target(rport);
	struct fc_rport *present;

	if (number < 0)
		return;
	present = READ_ONCE(host->targets[number].rport);
	if (!present || present == rport)
		vsfc_reset_nexus_later(host, number);
}

/* The port is given up, with its units. Should it be there after all, nobody may say so again. */
static void dev_loss_over(struct fc_rport *rport)
{
	struct vsfc *host = vsfc_of(rport_to_shost(rport));

	if (!READ_ONCE(host->is_stopping))
		queue_work(host->event_wq, &host->ports_work);
}

static void set_dev_loss_tmo(struct fc_rport *rport, u32 seconds)
{
	rport->dev_loss_tmo = seconds ? seconds : 1;
}

/* What is shown of hosts and remote ports, and done with them, whoever created the port. */
#define FUNCTIONS						\
	.dd_fcrport_size = sizeof(struct vsfc_rport),		\
	.show_host_node_name = 1,				\
	.show_host_port_name = 1,				\
	.show_host_permanent_port_name = 1,			\
	.show_host_supported_classes = 1,			\
	.show_host_supported_fc4s = 1,				\
	.show_host_supported_speeds = 1,			\
	.show_host_maxframe_size = 1,				\
	.show_host_symbolic_name = 1,				\
	.show_host_port_id = 1,					\
	.show_host_port_type = 1,				\
	.show_host_port_state = 1,				\
	.show_host_active_fc4s = 1,				\
	.show_host_speed = 1,					\
	.show_host_fabric_name = 1,				\
	.show_starget_node_name = 1,				\
	.show_starget_port_name = 1,				\
	.show_starget_port_id = 1,				\
	.show_rport_maxframe_size = 1,				\
	.show_rport_supported_classes = 1,			\
	.show_rport_dev_loss_tmo = 1,				\
	.set_rport_dev_loss_tmo = set_dev_loss_tmo,		\
	.dev_loss_tmo_callbk = dev_loss_over,			\
	.terminate_rport_io = terminate_rport_io,		\
	.issue_fc_host_lip = issue_lip,				\
	/* It would look for units also where the machine is about to sleep: see event.c. */	\
	.disable_target_scan = 1

static struct fc_function_template functions = {
	FUNCTIONS,
	.dd_fcvport_size = sizeof(struct vsfc_port *),
	.vport_create = vsfc_vport_create,
	.vport_delete = vsfc_vport_delete,
	.vport_disable = vsfc_vport_disable,
};

/* A port that this machine has created creates none. */
static struct fc_function_template vport_functions = {
	FUNCTIONS,
};

struct scsi_transport_template *vsfc_fc_template(bool is_vport)
{
	return is_vport ? vport_template : fc_template;
}

int vsfc_fc_init(void)
{
	fc_template = fc_attach_transport(&functions);
	if (!fc_template)
		return -ENOMEM;
	vport_template = fc_attach_transport(&vport_functions);
	if (!vport_template) {
		fc_release_transport(fc_template);
		return -ENOMEM;
	}
	transport_user_scan = fc_template->user_scan;
	fc_template->user_scan = user_scan;
	vport_template->user_scan = user_scan;
	return 0;
}

void vsfc_fc_exit(void)
{
	fc_release_transport(vport_template);
	fc_release_transport(fc_template);
}
