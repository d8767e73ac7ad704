//! The serial console in all its modes.

use super::guest::Guest;
use super::vm::{Vm, hypervisor};

#[test]
fn text_reaches_standard_output_and_s5_ends_with_0() {
    if !hypervisor("text_reaches_standard_output_and_s5_ends_with_0") {
        return;
    }
    let kernel = Guest::kernel(|g| g.print("Hello from the guest\r\n"));
    assert_eq!(Vm::new(&kernel).run().ok(), "Hello from the guest\r\n");
}
