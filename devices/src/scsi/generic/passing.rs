//! Devices that a process beside the machine finds by where they are, and opens for it: the machine, in its sandbox, makes units of them.

use std::fs;
use std::sync::Arc;

use super::comeback::{Returning, ask_again};
use super::identity::Identity;
use super::lookout::{self, Arrival, Wanted};
use super::route::Part;
use super::sysfs::{Device, Driver, Sysfs};
use super::{Allow, Generic, GenericConfig, GenericError, Host};
use crate::scsi::block::Block;

/// Peripheral device types of disks with blocks to read and write (SPC-5, 6.7.2): direct access, and host managed zoned block devices.
const DISKS: [u8; 2] = [0x00, 0x14];
/// Types that have a block node on the host: those, write once, CD, and optical memory.
const BLOCKS: [u8; 5] = [0x00, 0x04, 0x05, 0x07, 0x14];

/// How a device that has come is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opening {
    /// Its blocks go by a ring, if it is a disk whose medium stays.
    pub ring: bool,
    /// What the guest may do.
    pub allow: Allow,
    /// Others of the host use it as well.
    pub shared: bool,
    /// The kernel may still be about to make its nodes: one that lacks its block node is not opened yet.
    pub fresh: bool,
}

/// Opens the device at an address of this host (`5:0:0:27`) for another process, and says how it is found again. That may take as long
/// as the host waits for the device.
///
/// # Errors
/// There is none, there is no logical unit behind it ([`GenericError::Absent`]), or it cannot be opened.
pub fn open_at(address: &str, opening: Opening) -> Result<(Wanted, Arrival), GenericError> {
    open_below(&Sysfs::default(), address, opening, lookout::open)
}

/// Opens the device at an address again as `wanted`; `None` if it is another device. That may take as long as the host waits for it.
///
/// # Errors
/// There is none, or it cannot be opened.
pub fn open_again(wanted: &Wanted, address: &str) -> Result<Option<Arrival>, GenericError> {
    let sysfs = Sysfs::default();
    let device = sysfs.device_of(address)?;
    reopen(&sysfs, wanted, &device, lookout::open)
}

/// Where a target has a unit, what is there without a name is the same if all else is.
fn reopen(
    sysfs: &Sysfs,
    wanted: &Wanted,
    device: &Device,
    open: impl Fn(&Sysfs, &Wanted, &Device) -> Result<Arrival, GenericError>,
) -> Result<Option<Arrival>, GenericError> {
    let mut wanted = wanted.clone();
    wanted.identity.address.clone_from(&device.address);
    if !wanted.identity.is(&Identity::of(device)) {
        return Ok(None);
    }
    open(sysfs, &wanted, device).map(Some)
}

fn open_below(
    sysfs: &Sysfs,
    address: &str,
    opening: Opening,
    open: impl Fn(&Sysfs, &Wanted, &Device) -> Result<Arrival, GenericError>,
) -> Result<(Wanted, Arrival), GenericError> {
    let device = sysfs.device_of(address)?;
    // Where the array has no unit, it may still answer for it.
    let first = fs::read(device.directory.join("inquiry")).ok().and_then(|data| data.first().copied());
    if let Some(qualifier @ 1..) = first.map(|first| first >> 5) {
        return Err(GenericError::Absent { path: address.to_owned(), qualifier });
    }
    let kind = device.device_type().unwrap_or(u8::MAX);
    let drivers = [Driver::Block, Driver::Sg, Driver::Bsg];
    let driver = drivers.into_iter().find(|driver| sysfs.node_of(&device, *driver).is_some());
    let lacks = opening.fresh && BLOCKS.contains(&kind) && driver != Some(Driver::Block);
    let Some(driver) = driver.filter(|_| !lacks) else {
        let name = device.names().first().cloned().unwrap_or_else(|| device.title());
        return Err(GenericError::NoNode { name, address: address.to_owned() });
    };
    let ring = opening.ring && driver == Driver::Block && DISKS.contains(&kind) && !device.is_removable();
    let number = device.number().map_err(|error| GenericError::Host { path: address.to_owned(), error })?;
    let mut wanted = Wanted {
        identity: Identity::of(&device),
        driver,
        parts: if ring { vec![Part::Ring] } else { Vec::new() },
        allow: opening.allow,
        shared: opening.shared,
        directory: device.directory.clone(),
        number,
    };
    let arrival = open(sysfs, &wanted, &device)?;
    wanted.parts.extend(arrival.node.parts());
    Ok((wanted, arrival))
}

impl Arrival {
    /// Where it is: host, channel, target and LUN.
    pub fn address(&self) -> &str {
        &self.found.address
    }
}

impl Wanted {
    /// Whether it is a disk whose blocks go by a ring: a unit of type [`Block`].
    pub fn is_block(&self) -> bool {
        self.parts.contains(&Part::Ring)
    }
}

impl Generic {
    /// A unit of what another process has opened, and what has it go on when that finds the device again. It asks the device who it is,
    /// which may take a minute. `name` is what messages call it; with `bounce` all data goes through memory of this process.
    ///
    /// # Errors
    /// It does not answer, or is none.
    pub fn from_arrival(
        name: &str,
        arrival: Arrival,
        wanted: Wanted,
        bounce: bool,
    ) -> Result<(Self, Returning), GenericError> {
        let Arrival { node, found, .. } = arrival;
        let config = GenericConfig {
            name: name.to_owned(),
            allow: wanted.allow,
            bounce,
            shared: wanted.shared,
            depth: found.depth,
            limits: found.limits,
            block: found.block,
            size: found.size,
            // Nobody else looks for it.
            wanted: None,
        };
        let host: Arc<dyn Host> = node.into_host();
        let mut unit = ask_again(|| Self::new(host.clone(), config.clone()))?;
        unit.behind_port = true;
        let returning = Returning::new(wanted, &unit.plug);
        returning.watch();
        Ok((unit, returning))
    }
}

impl Block {
    /// The same, of a disk ([`Wanted::is_block`]). Blocks that cannot be had by a ring go by commands until it comes back; the log says so.
    ///
    /// # Errors
    /// It does not answer, or is no disk whose medium stays.
    pub fn from_arrival(
        name: &str,
        mut arrival: Arrival,
        wanted: Wanted,
        bounce: bool,
    ) -> Result<(Self, Returning), GenericError> {
        let image = super::comeback::ring(arrival.blocks.take(), &arrival.found, bounce);
        let (generic, returning) = Generic::from_arrival(name, arrival, wanted, bounce)?;
        Ok((Self::of(generic, image)?, returning))
    }
}
