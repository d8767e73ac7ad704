//! The command line of `vmm fc`.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use fc::Wwn;
use fc::choose::Rules;
use fc::names::Names;

use crate::cli::{Stop, read_with};

/// Fibre Channel ports of the host, and virtual ports (NPIV) on them
#[derive(Clone, Debug, Parser)]
#[command(name = "vmm fc", version)]
pub(super) struct Options {
    /// For programs: one JSON value, or with watch one on each line; docs/fc.md describes the keys
    #[arg(long, global = true)]
    pub(super) json: bool,

    /// Look at sys, dev, proc, run/vmm/fc and var/lib/vmm/fc below DIR
    #[arg(long, global = true, value_name = "DIR")]
    pub(super) root: Option<PathBuf>,

    #[command(subcommand)]
    pub(super) what: What,
}

#[derive(Clone, Debug, Subcommand)]
pub(super) enum What {
    /// Ports, virtual ports, and definitions
    List {
        /// Of the ports only those that create virtual ones
        #[arg(long)]
        capable: bool,
    },
    /// All of a port or virtual port: by name (host5, vport-5:0-0), WWPN, bus address or definition
    Show {
        #[arg(value_name = "PORT")]
        what: String,
    },
    /// Logical units behind all ports, or behind one: by path and name, with size, and who has them
    Luns {
        #[arg(value_name = "PORT")]
        of: Option<String>,
        /// With the links below /dev/disk
        #[arg(long)]
        long: bool,
    },
    /// Create a virtual port, and wait until the fabric has it; on failure nothing is left of it
    Create {
        /// A definition: its names are taken, or made once and stored
        #[arg(value_name = "NAME")]
        name: Option<String>,
        #[command(flatten)]
        given: Given,
        /// How long the fabric may take
        #[arg(long, value_name = "SECONDS", default_value_t = 30)]
        timeout: u64,
    },
    /// Delete a virtual port: by name, WWPN, host or definition
    Delete {
        #[arg(value_name = "VPORT")]
        vport: String,
        /// Also if its units are in use, or a running machine has it
        #[arg(long)]
        force: bool,
    },
    /// Store a virtual port for good, so that start-defined creates it whenever the host starts
    Define {
        #[arg(value_name = "NAME")]
        name: String,
        #[command(flatten)]
        given: Given,
        /// Store its names alone: start-defined passes by it
        #[arg(long)]
        names_only: bool,
    },
    /// Remove a definition, and its names; the virtual port stays until it is deleted
    Undefine {
        #[arg(value_name = "NAME")]
        name: String,
    },
    /// Create the virtual ports that are defined and not there: all, or those of these names
    StartDefined {
        #[arg(value_name = "NAME")]
        names: Vec<String>,
        /// How long the port and the fabric may take for each
        #[arg(long, value_name = "SECONDS", default_value_t = 60)]
        timeout: u64,
    },
    /// Delete the virtual ports of machines that were ended without their own end
    Clean,
    /// What changes, one line each, until it is interrupted
    Watch {
        /// Of this port alone
        #[arg(value_name = "PORT")]
        of: Option<String>,
        /// End after so many lines
        #[arg(long, value_name = "LINES")]
        count: Option<u64>,
        /// End after so long
        #[arg(long, value_name = "SECONDS")]
        timeout: Option<u64>,
    },
}

/// Names of a virtual port, and on which port it is to be.
#[derive(Clone, Debug, Args)]
pub(super) struct Given {
    /// The name of the virtual port, what zoning and LUN masking go by
    #[arg(long, value_name = "NAME", requires = "wwnn")]
    wwpn: Option<Wwn>,
    /// The name of its node
    #[arg(long, value_name = "NAME", requires = "wwpn")]
    wwnn: Option<Wwn>,
    /// Take names of a company whose hardware has such
    #[arg(long)]
    pub(super) any_oui: bool,
    /// On this port: host5, or its bus address. Without a rule the first that is online and has a free one
    #[arg(long, value_name = "PORT")]
    parent: Option<String>,
    /// On the port with this node name
    #[arg(long, value_name = "NAME", conflicts_with = "parent")]
    parent_wwnn: Option<Wwn>,
    /// On the port of this name
    #[arg(long, value_name = "NAME", conflicts_with = "parent")]
    parent_wwpn: Option<Wwn>,
    /// On the first port on this fabric that is online and has a free one
    #[arg(long, value_name = "NAME", conflicts_with_all = ["parent", "parent_wwnn", "parent_wwpn"])]
    parent_fabric: Option<Wwn>,
}

impl Given {
    pub(super) fn names(&self) -> Option<Names> {
        Some(Names { wwnn: self.wwnn?, wwpn: self.wwpn? })
    }

    pub(super) fn rules(&self) -> Rules {
        Rules {
            parent: self.parent.clone(),
            parent_wwnn: self.parent_wwnn,
            parent_wwpn: self.parent_wwpn,
            parent_fabric: self.parent_fabric,
        }
    }
}

/// Reads a command line whose first word after the program's name is `fc`; `None` for any other.
pub(super) fn read(arguments: impl IntoIterator<Item = OsString>) -> Option<Result<Options, Stop>> {
    let mut arguments = arguments.into_iter();
    let program = arguments.next()?;
    if arguments.next()? != "fc" {
        return None;
    }
    Some(read_with(std::iter::once(program).chain(arguments), "vmm fc --help"))
}
