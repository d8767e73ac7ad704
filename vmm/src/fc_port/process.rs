//! The process itself.

use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use super::News;
use super::message::{self, LENGTH, Order};
use crate::config::Sandbox;
use crate::keeper::sys::{self, Ends};

/// The whole life of the child.
pub(super) fn live(mut machine: UnixStream, sandbox: Sandbox) -> io::Result<()> {
    sys::begin_alone(c"vmm-fcport", Ends::ByItself, &[machine.as_fd()])?;
    let _ = sandbox;
    let (mut list, mut bytes) = (Vec::new(), vec![0; LENGTH]);
    loop {
        let len = machine.read(&mut bytes)?;
        match bytes.get(..len).and_then(message::read_order) {
            Some(Order::Wanted(wanted)) => list.push(*wanted),
            Some(Order::Go) => {
                for hba in 0..list.len() {
                    let (bytes, files) =
                        message::news(hba, News::Failed("there is no such process yet".into()));
                    sys::send(&machine, &bytes, &files)?;
                }
            }
            Some(Order::Look(hba, number)) => {
                let (bytes, files) = message::news(hba, News::Looked(number));
                sys::send(&machine, &bytes, &files)?;
            }
            Some(Order::End) | None => return Ok(()),
        }
    }
}
