//! Threads of another process in the hands of this one: what they would do if a guest had taken them over.
//!
//! By ptrace(2): a thread is stopped, its registers are set to those of a system call, and it takes one step. The kernel treats that
//! as the thread's own call, filters and all.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;

use libc::{c_int, c_long, c_void, pid_t, siginfo_t, user_regs_struct};

/// Of a SIGSYS that a filter of system calls has sent (Linux, asm-generic/siginfo.h).
const SYS_SECCOMP: c_int = 1;
/// The processor's `syscall` instruction (AMD64 manual, volume 3).
const SYSCALL: [u8; 2] = [0x0f, 0x05];
/// `int 80h`, by which 32-bit programs make system calls.
const INT_80: [u8; 2] = [0xcd, 0x80];
/// Bytes below the stack that belong to the running function (System V ABI for AMD64, 3.2.2).
const RED_ZONE: u64 = 128;
/// What is written further down, for the system call to read.
const ROOM: u64 = 1024;

/// An argument of a system call.
#[derive(Clone, Debug)]
pub enum Arg {
    Number(i64),
    /// The address of these bytes.
    Bytes(Vec<u8>),
    /// The address of a structure of words, each of which is a number or an address itself.
    Words(Vec<Arg>),
}

/// A system call.
#[derive(Clone, Debug)]
pub struct Call {
    pub name: &'static str,
    number: i64,
    arguments: Vec<Arg>,
    instruction: [u8; 2],
}

impl Call {
    /// The call of this number. Arguments that are left out are 0.
    pub fn new(name: &'static str, number: c_long, arguments: impl IntoIterator<Item = Arg>) -> Self {
        Self { name, number, arguments: arguments.into_iter().collect(), instruction: SYSCALL }
    }

    /// The call of this number in the table for 32-bit programs, without arguments.
    pub fn of_32_bits(name: &'static str, number: i64) -> Self {
        Self { name, number, arguments: Vec::new(), instruction: INT_80 }
    }
}

/// What comes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A filter has stopped it: the process gets a SIGSYS, or would have got it.
    Trapped,
    /// The kernel has answered.
    Answered(i64),
}

/// The threads of a process, with their names, but for those that run in the kernel only, such as KVM's.
pub fn threads(process: u32) -> Vec<(pid_t, String)> {
    /// PF_IO_WORKER and PF_USER_WORKER (Linux, linux/sched.h).
    const KERNEL: u32 = 0x10 | 0x4000;
    let tasks = fs::read_dir(format!("/proc/{process}/task")).unwrap();
    let thread = |task: io::Result<fs::DirEntry>| {
        let task = task.unwrap();
        let stat = fs::read_to_string(task.path().join("stat")).ok()?;
        let (head, rest) = stat.rsplit_once(") ")?;
        // proc_pid_stat(5): the flags are field 9; the first after the name is number 3.
        let flags: u32 = rest.split_whitespace().nth(9 - 3)?.parse().ok()?;
        let (number, name) = head.split_once(" (")?;
        (flags & KERNEL == 0).then(|| (number.parse().unwrap(), name.to_owned()))
    };
    tasks.filter_map(thread).collect()
}

/// A thread that stands still. It goes on as if nothing had been when this is dropped.
pub struct Seized {
    process: u32,
    thread: pid_t,
    /// As it was stopped.
    registers: user_regs_struct,
    memory: File,
    /// Where there is a `syscall` instruction.
    instruction: u64,
}

impl Seized {
    /// Stops a thread. It dies with this process.
    pub fn new(process: u32, thread: pid_t) -> io::Result<Self> {
        trace(libc::PTRACE_SEIZE, thread, 0, libc::PTRACE_O_EXITKILL as usize)?;
        trace(libc::PTRACE_INTERRUPT, thread, 0, 0)?;
        loop {
            let status = wait(thread)?;
            if is_event(status) {
                break;
            }
            // A signal came first: it has it.
            trace(libc::PTRACE_CONT, thread, 0, libc::WSTOPSIG(status) as usize)?;
        }
        let memory = File::options().read(true).write(true).open(format!("/proc/{process}/mem"))?;
        let instruction = find_instruction(process, &memory)?;
        let mut seized = Self { process, thread, registers: zeroed(), memory, instruction };
        seized.registers = seized.read()?;
        Ok(seized)
    }

    /// Has the thread make a system call. What a filter traps is not punished.
    pub fn attempt(&mut self, call: &Call) -> io::Result<Outcome> {
        self.prepare(call)?;
        let mut trapped = false;
        loop {
            trace(libc::PTRACE_SINGLESTEP, self.thread, 0, 0)?;
            let status = wait(self.thread)?;
            if !libc::WIFSTOPPED(status) {
                return Err(io::Error::other(format!("{}: the thread is gone: {status:x}", call.name)));
            }
            match libc::WSTOPSIG(status) {
                _ if is_event(status) => {}
                libc::SIGSYS => trapped |= self.signal()?.si_code == SYS_SECCOMP,
                // The step, unless there is more to come of it.
                libc::SIGTRAP if !self.is_pending(libc::SIGSYS) => break,
                _ => {}
            }
        }
        let answer = self.read()?.rax.cast_signed();
        Ok(if trapped { Outcome::Trapped } else { Outcome::Answered(answer) })
    }

    /// Lets the thread go into a system call, with all that comes of it.
    pub fn let_go_into(mut self, call: &Call) -> io::Result<()> {
        self.prepare(call)?;
        self.registers = self.read()?;
        Ok(())
    }

    /// Sets the registers to those at a system call.
    fn prepare(&mut self, call: &Call) -> io::Result<()> {
        let mut free = self.registers.rsp - RED_ZONE - ROOM;
        let place = |argument: &Arg| self.place(argument, &mut free);
        let arguments: Vec<u64> = call.arguments.iter().map(place).collect::<io::Result<_>>()?;
        assert!(free <= self.registers.rsp - RED_ZONE, "{}", call.name);
        if call.instruction != SYSCALL {
            self.memory.write_all_at(&call.instruction, self.instruction)?;
        }
        let argument = |number: usize| arguments.get(number).copied().unwrap_or(0);
        let registers = user_regs_struct {
            rax: call.number.cast_unsigned(),
            // In no system call that would be begun again.
            orig_rax: u64::MAX,
            rdi: argument(0),
            rsi: argument(1),
            rdx: argument(2),
            r10: argument(3),
            r8: argument(4),
            r9: argument(5),
            rip: self.instruction,
            ..self.registers
        };
        self.write(&registers)
    }

    /// Writes what an argument points to at the next address that is free. Returns its value.
    fn place(&self, argument: &Arg, free: &mut u64) -> io::Result<u64> {
        let bytes = match argument {
            Arg::Number(number) => return Ok(number.cast_unsigned()),
            Arg::Bytes(bytes) => bytes.clone(),
            Arg::Words(words) => {
                let values = words.iter().map(|word| self.place(word, free).map(u64::to_ne_bytes));
                values.collect::<io::Result<Vec<_>>>()?.concat()
            }
        };
        let at = *free;
        *free += (bytes.len() as u64).next_multiple_of(16);
        self.memory.write_all_at(&bytes, at).map(|()| at)
    }

    /// The process' memory.
    pub fn memory(&self) -> &File {
        &self.memory
    }

    fn is_pending(&self, signal: c_int) -> bool {
        let status = fs::read_to_string(format!("/proc/{}/task/{}/status", self.process, self.thread));
        let status = status.unwrap();
        let pending = status.lines().find_map(|line| line.strip_prefix("SigPnd:")).unwrap();
        u64::from_str_radix(pending.trim(), 16).unwrap() & 1 << (signal - 1) != 0
    }

    fn signal(&self) -> io::Result<siginfo_t> {
        let mut info: siginfo_t = zeroed();
        trace(libc::PTRACE_GETSIGINFO, self.thread, 0, (&raw mut info).addr()).map(|()| info)
    }

    fn read(&self) -> io::Result<user_regs_struct> {
        let mut registers: user_regs_struct = zeroed();
        trace(libc::PTRACE_GETREGS, self.thread, 0, (&raw mut registers).addr()).map(|()| registers)
    }

    fn write(&self, registers: &user_regs_struct) -> io::Result<()> {
        trace(libc::PTRACE_SETREGS, self.thread, 0, (&raw const *registers).addr())
    }
}

impl Drop for Seized {
    fn drop(&mut self) {
        // It may be gone.
        let _ = self.write(&self.registers);
        let _ = trace(libc::PTRACE_DETACH, self.thread, 0, 0);
    }
}

/// A `syscall` instruction in the code that the kernel gives each process.
fn find_instruction(process: u32, memory: &File) -> io::Result<u64> {
    let maps = fs::read_to_string(format!("/proc/{process}/maps"))?;
    let vdso = maps.lines().find(|line| line.ends_with("[vdso]")).unwrap();
    let (from, to) = vdso.split_once(' ').unwrap().0.split_once('-').unwrap();
    let number = |text| u64::from_str_radix(text, 16).unwrap();
    let mut code = vec![0; (number(to) - number(from)) as usize];
    memory.read_exact_at(&mut code, number(from))?;
    let at = code.windows(2).position(|bytes| bytes == SYSCALL).unwrap();
    Ok(number(from) + at as u64)
}

/// Whether a thread has stopped because it was asked to (ptrace(2), PTRACE_EVENT_STOP), not by a signal.
fn is_event(status: c_int) -> bool {
    status >> 16 == libc::PTRACE_EVENT_STOP
}

fn wait(thread: pid_t) -> io::Result<c_int> {
    let mut status = 0;
    // SAFETY: `status` is there.
    #[allow(unsafe_code)]
    let waited = unsafe { libc::waitpid(thread, &raw mut status, libc::__WALL) };
    if waited == thread { Ok(status) } else { Err(io::Error::last_os_error()) }
}

/// What the data points to, if it does, must be as the request wants it.
fn trace(request: libc::c_uint, thread: pid_t, address: usize, data: usize) -> io::Result<()> {
    let (address, data) = (address as *mut c_void, data as *mut c_void);
    // SAFETY: the callers have room for what the request writes.
    #[allow(unsafe_code)]
    let done = unsafe { libc::ptrace(request, thread, address, data) };
    if done == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// A structure of the kernel's interface that is numbers only.
fn zeroed<T: Copy>() -> T {
    // SAFETY: see above.
    #[allow(unsafe_code)]
    unsafe {
        std::mem::zeroed()
    }
}
