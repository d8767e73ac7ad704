//! The in-kernel interrupt controllers and interval timer, back to power-on at a system reset.

use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, kvm_irqchip, kvm_pit_state2,
};
use kvm_ioctls::VmFd;

use super::{KvmError, call};

/// The state that the kernel gave the devices when it made them.
pub struct InitialChips {
    chips: Vec<kvm_irqchip>,
    pit: kvm_pit_state2,
}

impl InitialChips {
    /// Reads the state of a VM that has not run.
    pub fn capture(vm: &VmFd) -> Result<Self, KvmError> {
        let chips = [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_IRQCHIP_IOAPIC]
            .into_iter()
            .map(|chip_id| {
                let mut chip = kvm_irqchip { chip_id, ..Default::default() };
                vm.get_irqchip(&mut chip).map_err(call("reading an interrupt controller"))?;
                Ok(chip)
            })
            .collect::<Result<_, KvmError>>()?;
        Ok(Self { chips, pit: vm.get_pit2().map_err(call("reading the interval timer"))? })
    }

    /// Puts them back. The vCPUs must not run.
    pub fn restore(&self, vm: &VmFd) -> Result<(), KvmError> {
        for chip in &self.chips {
            vm.set_irqchip(chip).map_err(call("resetting an interrupt controller"))?;
        }
        vm.set_pit2(&self.pit).map_err(call("resetting the interval timer"))
    }
}
