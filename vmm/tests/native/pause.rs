//! A machine that stands still: no time goes by for the guest.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Duration;

use super::asm::*;
use super::guest::Guest;
use super::interrupts::{Ack, PIC1, counter, handler, interval_timer, load_idt, local_apic, pics};
use super::vm::{Ended, Running, Vm, eventually, hypervisor, send_signal, skipped, turn};

/// The power management timer, and its ticks in a second.
const PM_TIMER: u16 = 0x608;
const PM_HZ: u32 = 3_579_545;

/// Variables of the guest: the last reading and the longest step of both counters, the deadline, what KVM says of its clock.
const LAST_TSC: u32 = 0x2000;
const STEP_TSC: u32 = 0x2004;
const LAST_PM: u32 = 0x2008;
const STEP_PM: u32 = 0x200c;
const DEADLINE: u32 = 0x2010;
const KVMCLOCK: u32 = 0x2040;

/// The local APIC's timer, and a part of its interrupt request register: vectors 40h to 5Fh.
const LVT_TIMER: u32 = 0xfee0_0320;
const IRR: u32 = 0xfee0_0220;
/// Vector 40h, by a deadline of the time stamp counter (Intel SDM volume 3, 12.5.4.1).
const AT_DEADLINE: u32 = 0x4_0040;
const MSR_TSC_DEADLINE: u32 = 0x6e0;
/// MSR_KVM_SYSTEM_TIME_NEW.
const MSR_KVMCLOCK: u32 = 0x4b56_4d01;

/// When the guest ends.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Until {
    /// When the local APIC's timer goes off.
    Deadline,
    /// When KVM says that it was stopped.
    Stopped,
}

/// EAX = the time stamp counter in units of 1024 ticks.
fn read_tsc(g: &mut Asm) {
    // rdtsc; shrd eax, edx, 10
    g.bytes(&[0x0f, 0x31, 0x0f, 0xac, 0xd0, 10]);
}

/// Takes a reading in EAX, of which `mask` counts: notes how far it is from the last one if that is the longest step so far.
fn note_step(g: &mut Asm, last: u32, step: u32, mask: u32) {
    g.copy(Ecx, Eax);
    g.load_abs(Edx, last);
    g.store_abs(last, Eax);
    // sub ecx, edx (29 /r)
    g.bytes(&[0x29, 0xd1]);
    g.and(Ecx, mask);
    g.load_abs(Edx, step);
    g.cmp_reg(Ecx, Edx);
    let short = g.label();
    g.jump_if(Cond::Below, short);
    g.store_abs(step, Ecx);
    g.place(short);
}

/// Reads its clocks again and again.
fn watcher(until: Until) -> Vec<u8> {
    Guest::kernel(|g| {
        local_apic(g);
        g.set(Eax, AT_DEADLINE);
        g.store_abs(LVT_TIMER, Eax);
        g.set(Eax, KVMCLOCK | 1);
        g.set(Edx, 0);
        g.set(Ecx, MSR_KVMCLOCK);
        // wrmsr (0F 30)
        g.bytes(&[0x0f, 0x30]);
        // 2^32 ticks from now, one or two seconds. rdtsc; inc edx (42); wrmsr.
        g.set(Ecx, MSR_TSC_DEADLINE);
        g.bytes(&[0x0f, 0x31, 0x42, 0x0f, 0x30]);
        // shrd eax, edx, 10
        g.bytes(&[0x0f, 0xac, 0xd0, 10]);
        g.store_abs(DEADLINE, Eax);
        read_tsc(g);
        g.store_abs(LAST_TSC, Eax);
        g.in32(PM_TIMER);
        g.store_abs(LAST_PM, Eax);
        g.set(Eax, 0);
        g.store_abs(STEP_TSC, Eax);
        g.store_abs(STEP_PM, Eax);
        g.print("ready\n");
        let top = g.here();
        match until {
            Until::Deadline => {
                g.load_abs(Eax, IRR);
                g.and(Eax, 1);
            }
            Until::Stopped => {
                g.set(Esi, KVMCLOCK);
                // Flags, bit 1: PVCLOCK_GUEST_STOPPED.
                g.load8(Eax, Esi, 29);
                g.and(Eax, 2);
            }
        }
        g.copy(Edi, Eax);
        // The clocks once more, when it is to end.
        read_tsc(g);
        g.copy(Ebx, Eax);
        note_step(g, LAST_TSC, STEP_TSC, u32::MAX);
        g.in32(PM_TIMER);
        note_step(g, LAST_PM, STEP_PM, 0x00ff_ffff);
        g.cmp(Edi, 0);
        g.jump_if(Cond::Equal, top);
        g.load_abs(Ecx, DEADLINE);
        // sub ebx, ecx
        g.bytes(&[0x29, 0xcb]);
        g.report("past the deadline", Ebx);
        for (name, step) in [("tsc", STEP_TSC), ("pm", STEP_PM)] {
            g.load_abs(Eax, step);
            g.report(name, Eax);
        }
        g.set(Esi, KVMCLOCK);
        g.load8(Eax, Esi, 29);
        g.report("flags", Eax);
    })
}

/// Runs the guest, does `stop` for three seconds once it is ready, and returns what it reports; and how many units of 1024
/// ticks the host's time stamp counter makes in a second.
///
/// Where KVM has no virtualization to work with, guests have the host's time stamp counter, and the log says so: `None`.
fn stopped(kernel: &[u8], stop: impl FnOnce(&Vm, u32)) -> (Ended, Option<u32>) {
    let vm = Vm::new(kernel).set("control.path=control").set("serial.mode=file").set("serial.path=out");
    let _turn = turn();
    let running = Running::start(&mut vm.command());
    eventually("the guest", || fs::read_to_string(vm.path("out")).ok()?.contains("ready\n").then_some(()));
    let begin = host_tsc();
    thread::sleep(Duration::from_millis(100));
    let rate = (host_tsc() - begin) * 10 / 1024;
    stop(&vm, running.child.id());
    let mut ended = running.wait();
    let output = fs::read_to_string(vm.path("out")).unwrap();
    ended.output = output.trim_start_matches("ready\n").to_owned();
    let cannot = ended.errors.contains("this KVM cannot set time stamp counters back");
    if cannot {
        skipped("time stamp counters", "guests have the host's own");
        ended.errors.clear();
    }
    (ended, (!cannot).then_some(u32::try_from(rate).unwrap()))
}

#[allow(unsafe_code)]
fn host_tsc() -> u64 {
    // SAFETY: every processor that these tests run on has the instruction.
    unsafe { std::arch::x86_64::_rdtsc() }
}

fn pause(vm: &Vm, _: u32) {
    let control = UnixStream::connect(vm.path("control")).unwrap();
    let mut answers = BufReader::new(&control).lines();
    for command in ["stop", "cont"] {
        (&control).write_all(format!("{{\"execute\": \"{command}\"}}\n").as_bytes()).unwrap();
        assert_eq!(answers.next().unwrap().unwrap(), "{\"return\":{}}");
        if command == "stop" {
            thread::sleep(Duration::from_secs(3));
        }
    }
}

fn signals(first: &str) -> impl FnOnce(&Vm, u32) {
    move |_, process| {
        send_signal(process, first);
        thread::sleep(Duration::from_secs(3));
        send_signal(process, "CONT");
    }
}

#[test]
fn a_pause_takes_no_time_and_timers_go_off_in_time() {
    if !hypervisor("a_pause_takes_no_time_and_timers_go_off_in_time") {
        return;
    }
    for (name, stop) in
        [("pause", Box::new(pause) as Box<dyn FnOnce(&Vm, u32)>), ("TSTP", Box::new(signals("TSTP")))]
    {
        let (ended, rate) = stopped(&watcher(Until::Deadline), stop);
        let got = ended.reports();
        println!("{name}: {got:x?}, {rate:x?} a second");
        assert!(got["pm"] < PM_HZ, "{name}: the power management timer went on: {got:x?}");
        let rate = rate
            .inspect(|rate| assert!(got["tsc"] < *rate, "{name}: the time stamp counter went on: {got:x?}"));
        assert!(
            got["past the deadline"] < rate.unwrap_or(1 << 30),
            "{name}: not within a second after the deadline: {got:x?}"
        );
        assert_eq!(got["flags"] & 2, 2, "{name}: the guest is told that it was stopped");
    }
}

/// Nothing can be done before the vCPUs run again, but they know.
#[test]
fn a_guest_is_told_when_the_process_was_stopped() {
    if !hypervisor("a_guest_is_told_when_the_process_was_stopped") {
        return;
    }
    let (ended, rate) = stopped(&watcher(Until::Stopped), signals("STOP"));
    let (got, rate) = (ended.reports(), rate.unwrap());
    assert!(
        got["tsc"] > 2 * rate && got["pm"] > 2 * PM_HZ,
        "all clocks go on together: {got:x?}, {rate:x} a second"
    );
}

/// The interval timer's ticks, counted for two seconds by the power management timer.
#[test]
fn ticks_of_a_pause_are_not_made_up_for() {
    if !hypervisor("ticks_of_a_pause_are_not_made_up_for") {
        return;
    }
    const TICK: u16 = 11932;
    let kernel = Guest::kernel(|g| {
        handler(g, PIC1, Ack::Pic, |_| ());
        load_idt(g);
        pics(g, !1, !0);
        interval_timer(g, TICK);
        g.in32(PM_TIMER);
        g.store_abs(LAST_PM, Eax);
        g.set(Edi, 0);
        g.print("ready\n");
        let top = g.here();
        // Nothing comes between sti and hlt.
        g.sti();
        g.hlt();
        g.cli();
        g.in32(PM_TIMER);
        g.load_abs(Ecx, LAST_PM);
        g.store_abs(LAST_PM, Eax);
        // sub eax, ecx
        g.bytes(&[0x29, 0xc8]);
        g.and(Eax, 0x00ff_ffff);
        // add edi, eax
        g.bytes(&[0x01, 0xc7]);
        g.cmp(Edi, 2 * PM_HZ);
        g.jump_if(Cond::Below, top);
        g.load_abs(Eax, counter(PIC1));
        g.report("ticks", Eax);
        g.report("time", Edi);
    });
    let (ended, _) = stopped(&kernel, pause);
    let got = ended.reports();
    // Three times as many frequencies as the timer has.
    let expected = got["time"] / 3 / u32::from(TICK);
    assert!(got["ticks"].abs_diff(expected) < 50, "{expected} ticks are due: {got:?}");
}
