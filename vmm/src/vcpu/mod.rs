//! vCPU threads.

mod clock;
mod counters;
mod cpuid;
mod exit;
mod state;
#[cfg(test)]
mod tests;

use std::io;
use std::ops::Deref;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::thread::JoinHandle;

use boot::Entry;
use devices::threads::{self, Kind};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

pub use cpuid::CpuidTemplate;

use crate::kvm::{KvmError, call};
use crate::machine::{Buses, Control, Crash, Order};
use clock::Method;
use exit::{Outcome, Refusal, Refusals};
use state::PowerOnState;

/// Stack of a vCPU thread: device accesses run on it.
const STACK: usize = 256 << 10;

/// A vCPU, set up, with its state after power-on.
pub struct Vcpu {
    index: u32,
    fd: VcpuFd,
    power_on: PowerOnState,
    physical_bits: u8,
    /// How often KVM_RUN returned.
    returns: u64,
}

impl Vcpu {
    /// Creates vCPU `index`; its APIC id is the index.
    pub fn new(kvm: &Kvm, vm: &VmFd, cpuid: &CpuidTemplate, index: u32) -> Result<Self, KvmError> {
        let fd = vm.create_vcpu(u64::from(index)).map_err(call("creating a vCPU"))?;
        fd.set_cpuid2(&cpuid.for_vcpu(index)?).map_err(call("setting CPUID"))?;
        let power_on = PowerOnState::capture(kvm, &fd)
            .map_err(|source| KvmError::Call { what: "reading the state of a new vCPU", source })?;
        Ok(Self { index, fd, power_on, physical_bits: cpuid.physical_bits(), returns: 0 })
    }

    /// Sets the registers for a direct boot: the first vCPU enters the kernel, the others wait.
    pub fn prepare(&self, entry: Option<&Entry>) -> io::Result<()> {
        let Some(entry) = entry else { return Ok(()) };
        state::after_firmware(&self.fd, entry, self.physical_bits, self.index == 0)?;
        if self.index == 0 {
            state::enter(&self.fd, entry)?;
        }
        Ok(())
    }

    /// Starts the thread. It waits until [`Control`] lets the machine run.
    pub fn start(self, control: Arc<Control>, buses: Arc<Buses>) -> io::Result<VcpuThread> {
        let index = self.index;
        let vcpu = Arc::new(Mutex::new(self));
        let shared = vcpu.clone();
        let serve = move || Self::serve(&shared, index, &control, &buses);
        let join = threads::spawn_with_stack(Kind::Vcpu, &format!("vcpu{index}"), STACK, serve)?;
        Ok(VcpuThread { join, vcpu: Some(vcpu) })
    }

    /// Holds the vCPU while it does something, and lets go of it before it parks.
    fn serve(vcpu: &Mutex<Self>, index: u32, control: &Control, buses: &Buses) {
        loop {
            let order = control.next(index);
            let mut vcpu = vcpu.lock().unwrap_or_else(PoisonError::into_inner);
            match order {
                Order::Run => vcpu.run(control, buses),
                Order::Reset(entry) => {
                    let done = vcpu.power_on.restore(&vcpu.fd).and_then(|()| vcpu.prepare(entry.as_deref()));
                    if let Err(e) = done {
                        control.crashed(Crash::Host(format!("vCPU {index}: resetting: {e}")));
                    }
                }
                Order::Exit => return counters::log(&vcpu.fd, index, vcpu.returns),
            }
        }
    }

    /// The time stamp counter as the guest would read it now.
    pub fn tsc(&self) -> io::Result<u64> {
        clock::tsc(&self.fd)
    }

    /// To be called when the time stamp counter was [set back](set_back).
    pub fn renew_deadline(&self) -> io::Result<()> {
        clock::renew_deadline(&self.fd)
    }

    /// Tells the guest that this processor did not run for a while, for its watchdogs.
    pub fn was_stopped(&self) -> io::Result<()> {
        clock::was_stopped(&self.fd)
    }

    /// Runs the guest until the machine wants something else.
    fn run(&mut self, control: &Control, buses: &Buses) {
        if self.index == 0 {
            tracing::debug!(target: "vmm::start", "first guest instruction next");
        }
        let mut refusals = Refusals::default();
        while control.is_running() {
            self.returns = self.returns.wrapping_add(1);
            match exit::run_once(&mut self.fd, buses) {
                Outcome::Continue => refusals.none(),
                // Nobody has asked for it: the process was stopped, frozen or traced, and each vCPU comes along here before
                // it is in the guest again.
                Outcome::Kicked if control.is_running() => {
                    refusals.none();
                    if let Err(e) = self.was_stopped() {
                        devices::log_limited!(
                            warn,
                            "vCPU {}: the guest is not told of a stop: {e}",
                            self.index
                        );
                    }
                }
                Outcome::Kicked => {}
                Outcome::Refused(code) => match refusals.one(code, || self.waits()) {
                    Refusal::Again => {}
                    Refusal::Later(line) => {
                        line.into_iter().for_each(|line| tracing::warn!("vCPU {}: {line}", self.index));
                        std::thread::sleep(Refusals::PAUSE);
                    }
                    Refusal::Fatal(reason) => {
                        control.crashed(Crash::Host(format!("vCPU {}: {reason}", self.index)));
                        return;
                    }
                },
                Outcome::SystemReset => control.reset_requested("hypervisor register"),
                Outcome::Shutdown => {
                    let at = exit::whereabouts(&mut self.fd, buses);
                    control.crashed(Crash::Guest(format!("vCPU {}: triple fault: {at}", self.index)));
                    return;
                }
                Outcome::Fatal(reason) => return self.fail(control, buses, &reason),
            }
        }
        if let Outcome::Fatal(reason) = self.complete_access(buses) {
            self.fail(control, buses, &reason);
        }
    }

    fn fail(&mut self, control: &Control, buses: &Buses, reason: &str) {
        let at = exit::whereabouts(&mut self.fd, buses);
        control.crashed(Crash::Host(format!("vCPU {}: {reason}: {at}", self.index)));
    }

    /// Whether it is an application processor that waits for its start-up message.
    fn waits(&self) -> bool {
        // Where KVM does not say, nothing was refused.
        self.fd.get_mp_state().map_or(true, |state| state.mp_state != kvm_bindings::KVM_MP_STATE_RUNNABLE)
    }

    /// Ends the instruction that the last exit was for: KVM takes what was answered, and asks for the accesses that are left
    /// (the write of a read-modify-write, the second of two pages). Else it would do so at the next KVM_RUN, on top of
    /// whatever state was set in between, and a write that is not served would be lost.
    ///
    /// Gives back what the last run ended with. An access that cannot be answered would be lost: it does not come again.
    ///
    /// Bounded: KVM looks at the flag before any further instruction, and of a repeated one after 1024 elements.
    fn complete_access(&mut self, buses: &Buses) -> Outcome {
        self.fd.set_kvm_immediate_exit(1);
        let end = loop {
            match exit::run_once(&mut self.fd, buses) {
                Outcome::Continue => {}
                // Usually it is kicked (EINTR).
                end => break end,
            }
        };
        self.fd.set_kvm_immediate_exit(0);
        end
    }
}

/// Sets the time stamp counters of all vCPUs back by so many ticks; `Unsupported` where KVM cannot. Timers with deadlines are
/// [renewed](Vcpu::renew_deadline) then.
pub fn set_back(vcpus: &[impl Deref<Target = Vcpu>], ticks: u64) -> io::Result<()> {
    let all: Vec<_> = vcpus.iter().map(|vcpu| &vcpu.fd).collect();
    let Some(first) = all.first() else { return Ok(()) };
    clock::set_back(&all, ticks, Method::of(first))
}

/// A running vCPU thread.
pub struct VcpuThread {
    join: JoinHandle<()>,
    vcpu: Option<Arc<Mutex<Vcpu>>>,
}

impl VcpuThread {
    /// A thread that acts like a vCPU.
    #[cfg(test)]
    pub fn of(join: JoinHandle<()>) -> Self {
        Self { join, vcpu: None }
    }

    /// The vCPU, while it is parked.
    pub fn parked(&self) -> Option<MutexGuard<'_, Vcpu>> {
        match self.vcpu.as_ref()?.try_lock() {
            Ok(vcpu) => Some(vcpu),
            Err(TryLockError::Poisoned(vcpu)) => Some(vcpu.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// Makes KVM_RUN return. A kick that comes just before KVM_RUN is lost: the caller repeats it until the
    /// thread has answered.
    pub fn kick(&self) {
        // The thread may have ended already.
        let _ = self.join.kill(SIGRTMIN());
    }

    /// Whether it has ended.
    pub fn has_ended(&self) -> bool {
        self.join.is_finished()
    }

    /// Waits for the end of the thread.
    pub fn join(self) {
        if self.join.join().is_err() {
            tracing::error!("a vCPU thread panicked");
        }
    }
}

/// Installs the handler of the signal that kicks vCPUs: its arrival alone ends KVM_RUN.
pub fn install_kick() -> io::Result<()> {
    extern "C" fn nothing(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}
    register_signal_handler(SIGRTMIN(), nothing).map_err(Into::into)
}
