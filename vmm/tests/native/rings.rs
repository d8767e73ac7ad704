//! The rings of a machine that runs, in the hands of who has taken over their threads: what enters them passes no filter of
//! system calls.

use std::os::unix::fs::FileExt;

use super::seize::{Call, Outcome, Seized, threads};
use super::seized::{Started, descriptors, machine, n, possible};
use super::vm::{skipped, turn};

/// Where things are in the memory that a ring shares, for all rings of this kernel (io_uring_setup(2)).
struct Offsets {
    tail: u64,
    entries: u64,
    completion_tail: u64,
    completion_entries: u64,
    completions: u64,
}

impl Offsets {
    fn new() -> Option<Self> {
        // struct io_uring_params, of which sq_off and cq_off begin at bytes 40 and 80.
        let mut params = [0_u32; 30];
        // SAFETY: the kernel fills the structure, which outlives the call.
        #[allow(unsafe_code)]
        let ring = unsafe { libc::syscall(libc::SYS_io_uring_setup, 4, params.as_mut_ptr()) };
        if ring < 0 {
            return None;
        }
        // SAFETY: the call has just given us this descriptor.
        #[allow(unsafe_code)]
        unsafe {
            libc::close(ring as i32)
        };
        let [tail, entries, completion_tail, completion_entries, completions] =
            [11, 13, 21, 23, 25].map(|at: usize| u64::from(params[at]));
        Some(Self { tail, entries, completion_tail, completion_entries, completions })
    }
}

/// A ring that a seized thread uses.
struct Ring<'a> {
    thread: &'a mut Seized,
    number: i32,
    offsets: &'a Offsets,
    /// The ring with its completions, and its entries, in the process' memory.
    shared: u64,
    entries: u64,
}

impl<'a> Ring<'a> {
    fn new(thread: &'a mut Seized, number: i32, offsets: &'a Offsets) -> Self {
        let mut ring = Self { thread, number, offsets, shared: 0, entries: 0 };
        ring.shared = ring.map(0, 4096);
        let completions = u64::from(ring.word(offsets.completion_entries));
        ring.shared = ring.map(0, offsets.completions + 16 * completions);
        let entries = u64::from(ring.word(offsets.entries));
        // IORING_OFF_SQES (linux/io_uring.h).
        ring.entries = ring.map(0x1000_0000, 64 * entries);
        ring
    }

    /// A part of the ring's memory, once more.
    fn map(&mut self, offset: i64, len: u64) -> u64 {
        let access = libc::PROT_READ | libc::PROT_WRITE;
        let arguments =
            [n(0), n(len.cast_signed()), n(access), n(libc::MAP_SHARED), n(self.number), n(offset)];
        match self.thread.attempt(&Call::new("mmap", libc::SYS_mmap, arguments)).unwrap() {
            Outcome::Answered(at @ 1..) => at.cast_unsigned(),
            other => panic!("the memory of a ring: {other:?}"),
        }
    }

    fn word(&self, offset: u64) -> u32 {
        let mut word = [0; 4];
        self.thread.memory().read_exact_at(&mut word, self.shared + offset).unwrap();
        u32::from_ne_bytes(word)
    }

    /// What comes of an entry with this operation and these flags, on no file.
    fn answer(&mut self, operation: u8, flags: u8) -> i32 {
        const MARK: u64 = 0x7e57_7e57_7e57_7e57;
        let tail = self.word(self.offsets.tail);
        let index = u64::from(tail % self.word(self.offsets.entries));
        let mut entry = [0; 64];
        (entry[0], entry[1]) = (operation, flags);
        entry[4..8].copy_from_slice(&(-1_i32).to_ne_bytes());
        entry[32..40].copy_from_slice(&MARK.to_ne_bytes());
        let memory = self.thread.memory();
        memory.write_all_at(&entry, self.entries + 64 * index).unwrap();
        memory.write_all_at(&(tail + 1).to_ne_bytes(), self.shared + self.offsets.tail).unwrap();
        // IORING_ENTER_GETEVENTS.
        let enter = Call::new("io_uring_enter", libc::SYS_io_uring_enter, [n(self.number), n(1), n(1), n(1)]);
        assert_eq!(self.thread.attempt(&enter).unwrap(), Outcome::Answered(1), "operation {operation}");
        let last = self.word(self.offsets.completion_tail).wrapping_sub(1);
        let index = u64::from(last % self.word(self.offsets.completion_entries));
        let mut completion = [0; 16];
        let at = self.shared + self.offsets.completions + 16 * index;
        self.thread.memory().read_exact_at(&mut completion, at).unwrap();
        assert_eq!(completion[..8], MARK.to_ne_bytes(), "operation {operation}");
        i32::from_ne_bytes(completion[8..12].try_into().unwrap())
    }
}

#[test]
fn rings_of_a_machine_that_runs_take_what_is_used_and_nothing_else() {
    let name = "rings_of_a_machine_that_runs_take_what_is_used_and_nothing_else";
    let Some(offsets) = Offsets::new() else {
        skipped(name, "io_uring is forbidden here");
        return;
    };
    if !possible(name) {
        return;
    }
    let vm = machine();
    let _turn = turn();
    let started = Started::new(&vm);
    let process = started.running.child.id();
    let rings = descriptors(process, |name| name == "anon_inode:[io_uring]");
    for io in ["io-scsi0", "io-raid0"] {
        let (thread, _) = threads(process).into_iter().find(|(_, name)| name == io).unwrap();
        let mut seized = Seized::new(process, thread).unwrap();
        // Since Linux 6.1 a ring is entered by its own thread alone.
        let look = |number: &i32| {
            let enter = Call::new("io_uring_enter", libc::SYS_io_uring_enter, [n(*number), n(0), n(0), n(1)]);
            seized.attempt(&enter).unwrap() == Outcome::Answered(0)
        };
        let own: Vec<i32> = rings.iter().copied().filter(look).collect();
        let [number] = own[..] else {
            skipped(name, "rings are entered by any thread here");
            return;
        };
        let mut ring = Ring::new(&mut seized, number, &offsets);
        // IORING_OP_NOP: entries get there.
        assert_eq!(ring.answer(0, 0), 0, "{io}");
        let used = [0, 1, 2, 3, 6, 11, 14, 17, 22, 23];
        for operation in (0..=48).filter(|operation| !used.contains(operation)) {
            let answer = ring.answer(operation, 0);
            // Linux 5.10 knows those up to 34.
            let unknown = operation > 34 && answer == -libc::EINVAL;
            assert!(answer == -libc::EACCES || unknown, "{io}: operation {operation}: {answer}");
        }
        // IOSQE_FIXED_FILE, IOSQE_IO_DRAIN.
        for flags in [1, 2] {
            assert_eq!(ring.answer(0, flags), -libc::EACCES, "{io}: flags {flags}");
        }
        // IORING_REGISTER_FILES.
        let register = Call::new("io_uring_register", libc::SYS_io_uring_register, [n(number), n(2)]);
        assert_eq!(seized.attempt(&register).unwrap(), Outcome::Trapped, "{io}");
    }
    // It has completions now of what it has not asked for.
    drop(started);
}
