/*
 * Mends four faults of QEMU's TCG that show only with nested SVM guests. Preloaded into QEMU alone.
 *
 * A processor's interrupt requests are bits of one word. Threads that hold the big QEMU lock change it with plain
 * read-modify-write instructions, but VMRUN and #VMEXIT change it without the lock. Now and then one of two
 * concurrent changes is lost: level 1 misses an interrupt and stands still, or takes one that is not there; the guest
 * does not learn that it may be interrupted. Here all these instructions get a lock prefix.
 *
 * A CR8 write with a virtual interrupt pending reaches tcg_handle_interrupt(), which starts with
 * `g_assert(bql_locked())`, without the lock. Here the lock is taken when the caller does not hold it.
 *
 * VMRUN with an interrupt to inject delivers it at once, but also notes its vector as an exception that is yet to come,
 * and nothing takes the note away until the guest exits. When the thread is asked to look around before that, the vector is
 * delivered once more, whether or not the guest has interrupts enabled: it deadlocks or crashes, now and then, the
 * sooner the more interrupts it takes. Here the note is not written.
 *
 * FPU instructions of all processors clear a bit of the first processor's second word of flags (IGNNE), and do so without
 * a lock, while that one changes the same word at VMRUN and #VMEXIT. Now and then one of two changes is lost: then a guest
 * runs without nested paging and triple-faults, or level 1 runs with it, exits once more, and its own state takes the place of
 * the guest's, which then faults for ever. Here that bit, which only DOS programs need, is left alone.
 *
 * All places are found by the form of their code in functions that QEMU exports. When something is not
 * as expected, nothing is changed, and a line says so.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <link.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { LONGEST_START = 48, JUMP_BYTES = 5, CALL_BYTES = 5, CALL = 0xe8, JUMP = 0xe9, LOCK = 0xf0, NOP = 0x90 };
enum { OR_REGISTER = 0x09, AND_REGISTER = 0x21, WITH_LONG = 0x81, WITH_BYTE = 0x83, OR = 1, AND = 4 };
enum { STORE = 0x89, STORE_NUMBER = 0xc7, STORE_BYTES = 6, VMEXIT = 0x100, NOTE_AHEAD = 80 };
enum { RETURN = 0xc3 };
enum { VIRQ = 0x100, ROOM = 1 << 16, STEP = 1 << 20, MOST_PLACES = 32 };

struct code {
    uint8_t *start;
    size_t size;
};

struct places {
    uint8_t *at[MOST_PLACES];
    size_t count;
};

static bool (*locked)(void);
static void (*lock)(const char *file, int line);
static void (*unlock)(void);
static void (*original)(void *cpu, int mask);

/* Where code that was moved goes on, and how much of it is used. */
static uint8_t *room;
static size_t used;

static void with_lock(void *cpu, int mask)
{
    bool mine = !locked();

    if (mine)
        lock(__FILE__, __LINE__);
    original(cpu, mask);
    if (mine)
        unlock();
}

static struct code find(const char *name)
{
    struct code code = { dlsym(RTLD_DEFAULT, name), 0 };
    ElfW(Sym) *symbol;
    Dl_info info;

    if (code.start && dladdr1(code.start, &info, (void **)&symbol, RTLD_DL_SYMENT) && symbol)
        code.size = symbol->st_size;
    return code;
}

/* Memory that a short jump from `near` reaches. */
static uint8_t *memory_near(const uint8_t *near)
{
    uintptr_t middle = (uintptr_t)near & ~(uintptr_t)(STEP - 1);

    for (uintptr_t step = 1; step < 1500; step++)
        for (int side = 0; side < 2; side++) {
            void *wish = (void *)(side ? middle - step * STEP : middle + step * STEP);
            void *got = mmap(wish, ROOM, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
            if (got == wish)
                return got;
            if (got != MAP_FAILED)
                munmap(got, ROOM);
        }
    return NULL;
}

static void put_jump(uint8_t *at, const uint8_t *to)
{
    int32_t distance = (int32_t)(to - (at + JUMP_BYTES));

    at[0] = JUMP;
    memcpy(at + 1, &distance, sizeof distance);
}

static bool protect(struct code code, int protection)
{
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), first = (uintptr_t)code.start & ~(page - 1);

    return !mprotect((void *)first, (uintptr_t)code.start + code.size - first, protection);
}

/* Bytes of a read-modify-write OR or AND of the double word at a register plus 32 bits; 0 if it is another. */
static size_t change_bytes(const uint8_t *at)
{
    unsigned mode = at[1] >> 6, operation = (at[1] >> 3) & 7, base = at[1] & 7;

    if (mode != 2 || base == 4)
        return 0;
    if (at[0] == OR_REGISTER || at[0] == AND_REGISTER)
        return 6;
    if (operation != OR && operation != AND)
        return 0;
    return at[0] == WITH_LONG ? 10 : at[0] == WITH_BYTE ? 7 : 0;
}

static int32_t number(const uint8_t *at)
{
    int32_t value;

    memcpy(&value, at, sizeof value);
    return value;
}

/* Collects the instructions of a function that change the word `offset` behind a register. */
static bool collect(const char *name, int32_t offset, struct places *places)
{
    struct code code = find(name);
    size_t before = places->count, bytes;

    for (size_t at = 0; at + 10 < code.size; at++) {
        bytes = change_bytes(code.start + at);
        if (!bytes || number(code.start + at + 2) != offset || places->count == MOST_PLACES)
            continue;
        places->at[places->count++] = code.start + at;
        at += bytes - 1;
    }
    return places->count > before;
}

/* Collects the only instruction of a function that sets or clears the virtual interrupt in memory. */
static bool collect_virtual(const char *name, unsigned operation, struct places *places)
{
    struct code code = find(name);
    int32_t value = operation == OR ? VIRQ : ~VIRQ;
    size_t before = places->count;

    for (size_t at = 0; at + 10 < code.size; at++) {
        const uint8_t *here = code.start + at;
        if (here[0] != WITH_LONG || change_bytes(here) != 10 || ((here[1] >> 3) & 7) != operation)
            continue;
        if (number(here + 6) == value && number(here + 2) < 0 && places->count < MOST_PLACES)
            places->at[places->count++] = code.start + at;
    }
    return places->count == before + 1;
}

/* Moves an instruction elsewhere, with a lock prefix. */
static bool add_lock(uint8_t *at)
{
    size_t bytes = change_bytes(at);
    struct code code = { at, bytes };
    uint8_t *moved = room + used;

    if (!protect(code, PROT_READ | PROT_WRITE | PROT_EXEC))
        return false;
    moved[0] = LOCK;
    memcpy(moved + 1, at, bytes);
    put_jump(moved + 1 + bytes, at + bytes);
    used += 1 + bytes + JUMP_BYTES;
    memset(at, NOP, bytes);
    put_jump(at, moved);
    return protect(code, PROT_READ | PROT_EXEC);
}

/* Bytes of an instruction that only saves or copies registers or makes room on the stack; 0 if it is another. */
static size_t harmless(const uint8_t *at)
{
    static const uint8_t endbr64[] = { 0xf3, 0x0f, 0x1e, 0xfa };
    size_t prefix = (at[0] & 0xf0) == 0x40;
    const uint8_t *code = at + prefix;

    if (!memcmp(at, endbr64, sizeof endbr64))
        return sizeof endbr64;
    if ((code[0] & 0xf8) == 0x50)
        return prefix + 1; /* push */
    if (code[0] == 0x89 && code[1] >= 0xc0)
        return prefix + 2; /* mov between registers */
    if (code[0] == 0x83 && code[1] == 0xec)
        return prefix + 3; /* sub from the stack pointer */
    return 0;
}

/* The code of tcg_handle_interrupt() behind its assertion; `start` is the size of what is before it. */
static uint8_t *behind_assertion(struct code code, size_t *start)
{
    size_t step;

    *start = 0;
    while (*start < LONGEST_START && (step = harmless(code.start + *start)))
        *start += step;
    uint8_t *call = code.start + *start, *rest = call + CALL_BYTES;
    if (*start < JUMP_BYTES || call[0] != CALL || rest + number(call + 1) != (uint8_t *)locked)
        return NULL;
    /* test %al,%al, then a jump to the abort if that says zero: short or long. */
    if (rest[0] != 0x84 || rest[1] != 0xc0)
        return NULL;
    if (rest[2] == 0x74)
        return rest + 4;
    return rest[2] == 0x0f && rest[3] == 0x84 ? rest + 8 : NULL;
}

/* Where the exception to come is noted, behind the registers: #VMEXIT notes itself by a number of its own. */
static int32_t exception_offset(void)
{
    struct code code = find("cpu_vmexit");

    for (size_t at = 0; at + 10 < code.size; at++) {
        const uint8_t *here = code.start + at;
        if (here[0] == STORE_NUMBER && (here[1] & 0xf8) == 0x80 && number(here + 6) == VMEXIT && number(here + 2) < 0)
            return number(here + 2);
    }
    return 0;
}

/* VMRUN's note of a vector, ahead of the call that delivers it; NULL if there is not exactly one. */
static uint8_t *injected_vector_note(void)
{
    struct code code = find("helper_vmrun");
    const uint8_t *deliver = dlsym(RTLD_DEFAULT, "do_interrupt_x86_hardirq");
    int32_t offset = exception_offset();
    uint8_t *call = NULL, *note = NULL;

    if (!deliver || !offset)
        return NULL;
    for (size_t at = NOTE_AHEAD; at + CALL_BYTES < code.size; at++) {
        uint8_t *here = code.start + at;
        if (here[0] != CALL || here + CALL_BYTES + number(here + 1) != deliver)
            continue;
        if (call)
            return NULL;
        call = here;
    }
    if (!call)
        return NULL;
    for (uint8_t *here = call - NOTE_AHEAD; here + STORE_BYTES <= call; here++) {
        /* A register to memory behind another, neither of the upper eight. */
        if (here[0] != STORE || here[1] >> 6 != 2 || (here[1] & 7) == 4 || number(here + 2) != offset)
            continue;
        if (note || (here[-1] & 0xf0) == 0x40)
            return NULL;
        note = here;
    }
    return note;
}

static bool remove_code(uint8_t *at, size_t bytes)
{
    struct code code = { at, bytes };

    if (!protect(code, PROT_READ | PROT_WRITE | PROT_EXEC))
        return false;
    memset(at, NOP, bytes);
    return protect(code, PROT_READ | PROT_EXEC);
}

/* Makes a function, which returns nothing, return at once. */
static bool leave_out(struct code code)
{
    if (!protect(code, PROT_READ | PROT_WRITE | PROT_EXEC))
        return false;
    code.start[0] = RETURN;
    return protect(code, PROT_READ | PROT_EXEC);
}

static bool hook(struct code code, size_t start, const uint8_t *rest)
{
    uint8_t *moved = room + used;

    memcpy(moved, code.start, start);
    put_jump(moved + start, rest);
    used += start + JUMP_BYTES;
    original = (void (*)(void *, int))moved;
    /* This library may be far away. */
    static const uint8_t far_jump[] = { 0xff, 0x25, 0, 0, 0, 0 };
    void *target = with_lock;
    uint8_t *far = room + used;
    memcpy(far, far_jump, sizeof far_jump);
    memcpy(far + sizeof far_jump, &target, sizeof target);
    used += sizeof far_jump + sizeof target;
    if (!protect(code, PROT_READ | PROT_WRITE | PROT_EXEC))
        return false;
    put_jump(code.start, far);
    return protect(code, PROT_READ | PROT_EXEC);
}

static const char *mend(void)
{
    struct code handle = find("tcg_handle_interrupt");
    struct code clear_ignne = find("cpu_clear_ignne"), set_ignne = find("cpu_set_ignne");
    struct places places = { .count = 0 };
    size_t start;

    locked = (bool (*)(void))dlsym(RTLD_DEFAULT, "bql_locked");
    lock = (void (*)(const char *, int))dlsym(RTLD_DEFAULT, "bql_lock_impl");
    unlock = (void (*)(void))dlsym(RTLD_DEFAULT, "bql_unlock");
    if (!handle.size || !clear_ignne.size || !set_ignne.size || !locked || !lock || !unlock)
        return "a function is missing";
    uint8_t *rest = behind_assertion(handle, &start);
    if (!rest || rest[0] != OR_REGISTER || !change_bytes(rest))
        return "tcg_handle_interrupt() has another form";
    int32_t offset = number(rest + 2);
    if (!collect("tcg_handle_interrupt", offset, &places) || !collect("cpu_reset_interrupt", offset, &places) ||
        !collect("x86_cpu_exec_interrupt", offset, &places) || !collect("cpu_interrupt", offset, &places))
        return "a change of the interrupt requests is not found";
    if (!collect_virtual("helper_vmrun", OR, &places) || !collect_virtual("do_vmexit", AND, &places))
        return "VMRUN or #VMEXIT has another form";
    uint8_t *note = injected_vector_note();
    if (!note)
        return "VMRUN injects interrupts in another way";
    room = memory_near(handle.start);
    if (!room)
        return "there is no memory near its code";
    for (size_t at = 0; at < places.count; at++)
        if (!add_lock(places.at[at]))
            return "its code cannot be changed";
    if (!leave_out(clear_ignne) || !leave_out(set_ignne))
        return "its code cannot be changed";
    if (!remove_code(note, STORE_BYTES) || !hook(handle, start, rest) || mprotect(room, ROOM, PROT_READ | PROT_EXEC))
        return "its code cannot be changed";
    return NULL;
}

__attribute__((constructor)) static void start(void)
{
    const char *trouble = mend();

    if (trouble)
        fprintf(stderr, "nested: this QEMU stays as it is, and its nested guests may stall or crash: %s\n", trouble);
}
