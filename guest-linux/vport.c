// SPDX-License-Identifier: GPL-2.0-only
/*
 * Ports that this machine creates at its adapter (docs/virtio-scsi-fc.md, section 7): each is a
 * host of its own to the midlayer, whose commands go by the same queues of the same device.
 *
 * The device knows a port by a number, and says of each target which port sees it. It forgets its
 * ports when it is reset: then they are created anew.
 */
#include <linux/delay.h>
#include <linux/string.h>
#include <scsi/scsi_transport.h>

#include "vsfc.h"

/* Until ports that somebody else parts with are looked at again, in milliseconds. */
#define PAUSE	20
/* How often a port is created anew after a reset, and jiffies in between. */
#define TRIES		45
#define TRY_PAUSE	(2 * HZ)

static struct vsfc_port *port_of(struct fc_vport *fc_vport)
{
	return *(struct vsfc_port **)fc_vport->dd_data;
}

/* A port by the device's number for it. The caller has ports_lock. */
struct vsfc_port *vsfc_vport_by_number(struct vsfc *host, u16 number)
{
	struct vsfc_port *port;

	if (!number)
		return &host->port;
	list_for_each_entry(port, &host->vports, entry) {
		if (port->number == number)
			return port;
	}
	return NULL;
}

static enum fc_vport_state vport_state_of(enum fc_port_state state)
{
	switch (state) {
	case FC_PORTSTATE_ONLINE:
		return FC_VPORT_ACTIVE;
	case FC_PORTSTATE_LINKDOWN:
	case FC_PORTSTATE_BLOCKED:
		return FC_VPORT_LINKDOWN;
	case FC_PORTSTATE_OFFLINE:
		return FC_VPORT_DISABLED;
	case FC_PORTSTATE_UNKNOWN:
		return FC_VPORT_INITIALIZING;
	default:
		return FC_VPORT_FAILED;
	}
}

/* Asks the device how a port is, and shows that. The caller has ports_lock. */
static void show(struct vsfc_port *port)
{
	struct vsfc_show_resp shown = {};
	enum fc_vport_state state;
	int err = -ENOENT;

	if (port->number)
		err = vsfc_show_vport(port->host, port->number, &shown);
	/* It stays what it was where the device does not say. */
	if (err && err != -ENOENT)
		return;
	if (err) {
		shown = (struct vsfc_show_resp) {
			.port_state = port->number || port->failures >= TRIES ?
				      FC_PORTSTATE_ERROR : FC_PORTSTATE_UNKNOWN,
		};
	}
	vsfc_fc_set_state(port->shost, &shown);
	state = vport_state_of(fc_host_port_state(port->shost));
	if (state != port->fc_vport->vport_state)
		fc_vport_set_state(port->fc_vport, state);
}

/* The configuration of the device has changed, of which the ports are a part. */
void vsfc_vports_show(struct vsfc *host)
{
	struct vsfc_port *port;

	mutex_lock(&host->ports_lock);
	list_for_each_entry(port, &host->vports, entry) {
		if (!READ_ONCE(host->is_stopping))
			show(port);
	}
	mutex_unlock(&host->ports_lock);
}

/* The host of a port. What the device takes is the same for all. */
static struct vsfc_port *new_port(struct vsfc *host, struct fc_vport *fc_vport, u16 number)
{
	struct Scsi_Host *own = host->shost;
	struct Scsi_Host *shost;
	struct vsfc_port *port;

	shost = vsfc_alloc_shost(vsfc_fc_template(true), sizeof(*port));
	if (!shost)
		return NULL;
	port = vsfc_port_of(shost);
	port->host = host;
	port->shost = shost;
	port->fc_vport = fc_vport;
	port->number = number;
	INIT_LIST_HEAD(&port->entry);
	shost->can_queue = own->can_queue;
	shost->cmd_per_lun = own->cmd_per_lun;
	shost->sg_tablesize = own->sg_tablesize;
	shost->max_sectors = own->max_sectors;
	shost->max_cmd_len = own->max_cmd_len;
	shost->nr_hw_queues = own->nr_hw_queues;
	shost->max_channel = own->max_channel;
	shost->max_id = own->max_id;
	shost->max_lun = own->max_lun;
	return port;
}

/* The host is there: shows the port, and has the targets that it sees dealt to it. */
static void start(struct vsfc_port *port)
{
	struct fc_vport *fc_vport = port->fc_vport;
	struct Scsi_Host *shost = port->shost;
	struct vsfc *host = port->host;

	vsfc_fc_set_fixed(shost);
	fc_host_node_name(shost) = fc_vport->node_name;
	fc_host_port_name(shost) = fc_vport->port_name;
	fc_host_permanent_port_name(shost) = fc_vport->port_name;
	if (!fc_vport->symbolic_name[0])
		strscpy(fc_vport->symbolic_name, fc_host_symbolic_name(shost),
			sizeof(fc_vport->symbolic_name));
	*(struct vsfc_port **)fc_vport->dd_data = port;
	mutex_lock(&host->ports_lock);
	list_add_tail(&port->entry, &host->vports);
	show(port);
	mutex_unlock(&host->ports_lock);
	vsfc_fc_sync_all(host, false);
}

/*
 * `echo WWPN:WWNN > vport_create`. Takes as long as the fabric does. The transport keeps the
 * adapter's host meanwhile, and vsfc_vports_end waits.
 */
int vsfc_vport_create(struct fc_vport *fc_vport, bool disable)
{
	struct vsfc *host = vsfc_of(fc_vport->shost);
	struct vsfc_port *port;
	int number, err;

	if (fc_vport->vport_type != FC_PORTTYPE_NPIV || disable)
		return -EOPNOTSUPP;
	if (READ_ONCE(host->is_stopping))
		return -ENODEV;
	fc_vport_set_state(fc_vport, FC_VPORT_INITIALIZING);
	number = vsfc_create_vport(host, fc_vport->node_name, fc_vport->port_name);
	if (number < 0)
		return number;
	err = -ENOMEM;
	port = new_port(host, fc_vport, number);
	if (!port)
		goto delete;
	err = scsi_add_host_with_dma(port->shost, &fc_vport->dev, &host->vdev->dev);
	if (err)
		goto put;
	start(port);
	return 0;
put:
	scsi_host_put(port->shost);
delete:
	vsfc_delete_vport(host, number);
	return err;
}

/*
 * Parts with a port: its units first, for what their caches have is written by it. Never fails: the
 * midlayer is done with it then, whatever the device says.
 */
int vsfc_vport_delete(struct fc_vport *fc_vport)
{
	struct vsfc_port *port = port_of(fc_vport);
	struct Scsi_Host *shost = port->shost;
	struct vsfc *host = port->host;
	u16 number;
	int err;

	mutex_lock(&host->ports_lock);
	WRITE_ONCE(port->is_going, true);
	mutex_unlock(&host->ports_lock);
	vsfc_fc_remove_units(port);
	mutex_lock(&host->ports_lock);
	number = port->number;
	list_del(&port->entry);
	mutex_unlock(&host->ports_lock);
	vsfc_fc_stop(port);
	scsi_remove_host(shost);
	scsi_host_put(shost);
	/* A reset does away with all. */
	if (!number || READ_ONCE(host->is_stopping))
		return 0;
	err = vsfc_delete_vport(host, number);
	if (err && err != -ENOENT && !READ_ONCE(host->is_stopping))
		shost_printk(KERN_WARNING, host->shost,
			     "the device keeps port %016llx until the driver is loaded anew: error %d\n",
			     fc_vport->port_name, err);
	return 0;
}

/* The transport has a file for this in any case. */
int vsfc_vport_disable(struct fc_vport *fc_vport, bool disable)
{
	return -EOPNOTSUPP;
}

/* One that nobody else parts with: it is the caller's to do so. */
static struct fc_vport *claim(struct Scsi_Host *shost, bool *is_empty)
{
	struct fc_vport *fc_vport, *claimed = NULL;
	unsigned long flags;

	spin_lock_irqsave(shost->host_lock, flags);
	*is_empty = list_empty(&shost_to_fc_host(shost)->vports);
	list_for_each_entry(fc_vport, &shost_to_fc_host(shost)->vports, peers) {
		if (fc_vport->flags & (FC_VPORT_DEL | FC_VPORT_CREATING))
			continue;
		fc_vport->flags |= FC_VPORT_DELETING;
		claimed = fc_vport;
		break;
	}
	spin_unlock_irqrestore(shost->host_lock, flags);
	return claimed;
}

/* The adapter goes: parts with all ports, before it does so with its own. */
void vsfc_vports_end(struct vsfc *host)
{
	struct fc_vport *fc_vport;
	bool is_empty;

	if (!host->is_fc)
		return;
	do {
		fc_vport = claim(host->shost, &is_empty);
		if (fc_vport)
			fc_vport_terminate(fc_vport);
		else if (!is_empty)
			msleep(PAUSE);
	} while (!is_empty);
}

/*
 * The device was reset while this machine slept: it has no ports any more. What they saw waits, as
 * at ports that are lost, until vports_work has them back.
 */
void vsfc_vports_lost(struct vsfc *host)
{
	struct vsfc_port *port;

	mutex_lock(&host->ports_lock);
	host->vports_round = 0;
	list_for_each_entry(port, &host->vports, entry) {
		port->number = 0;
		port->failures = 0;
		vsfc_fc_lose_ports(port);
	}
	mutex_unlock(&host->ports_lock);
}

/* A port that is to be created anew, and was not tried in this round. It is held. */
static struct vsfc_port *next_lost(struct vsfc *host, unsigned int round)
{
	struct vsfc_port *port, *lost = NULL;

	mutex_lock(&host->ports_lock);
	list_for_each_entry(port, &host->vports, entry) {
		if (port->number || port->is_going || port->failures > round)
			continue;
		get_device(&port->shost->shost_gendev);
		lost = port;
		break;
	}
	mutex_unlock(&host->ports_lock);
	return lost;
}

/* Creates a port anew; false when that is to be tried again. */
static bool create_again(struct vsfc *host, struct vsfc_port *port)
{
	u64 name = fc_host_port_name(port->shost);
	int number = vsfc_create_vport(host, fc_host_node_name(port->shost), name);
	bool is_wanted, is_over = false;

	mutex_lock(&host->ports_lock);
	is_wanted = !port->is_going && !READ_ONCE(host->is_stopping);
	if (is_wanted) {
		if (number > 0)
			port->number = number;
		else
			port->failures++;
		is_over = port->failures >= TRIES;
		show(port);
	}
	mutex_unlock(&host->ports_lock);
	if (number > 0 && is_wanted)
		vsfc_fc_sync_all(host, false);
	else if (number > 0)
		vsfc_delete_vport(host, number);
	else if (is_over)
		shost_printk(KERN_ERR, host->shost,
			     "port %016llx is not there any more: error %d; delete it, and create it again\n",
			     name, number);
	return number > 0 || is_over;
}

/* What the device had before its reset may be on its way out yet, so there are several rounds. */
static void vports_work(struct work_struct *work)
{
	struct vsfc *host = container_of(to_delayed_work(work), struct vsfc, vports_work);
	struct vsfc_port *port;
	bool again = false;

	while (!READ_ONCE(host->is_stopping) && (port = next_lost(host, host->vports_round))) {
		again |= !create_again(host, port);
		put_device(&port->shost->shost_gendev);
	}
	if (again && ++host->vports_round < TRIES && !READ_ONCE(host->is_stopping))
		queue_delayed_work(host->scan_wq, &host->vports_work, TRY_PAUSE);
}

void vsfc_vports_init(struct vsfc *host)
{
	INIT_LIST_HEAD(&host->vports);
	INIT_DELAYED_WORK(&host->vports_work, vports_work);
}
