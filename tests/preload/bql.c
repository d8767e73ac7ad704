/*
 * Lets QEMU's TCG run nested SVM guests that write CR8 while a virtual interrupt is pending.
 *
 * TCG's CR8 helper reaches tcg_handle_interrupt(), in some versions through cpu_interrupt(), without the
 * big QEMU lock, and one of the two starts with `g_assert(bql_locked())`. The code behind the assertion only ORs a bit and kicks the
 * same CPU, so the test bed skips the assertion: this library, preloaded into QEMU alone, finds
 * `call bql_locked; test %al,%al; jcc` in these two functions and makes the branch never abort.
 * The call's target is compared with the exported bql_locked, because another call in cpu_interrupt
 * has the same shape and must stay. When a pattern is absent nothing is changed, and the library says so.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { SCAN_BYTES = 256, CALL = 0xe8, JE8 = 0x74, JNE8 = 0x75, JMP8 = 0xeb, NOP = 0x90, JMP32 = 0xe9 };

static int writable(uint8_t *at, int prot)
{
    long page = sysconf(_SC_PAGESIZE);
    uintptr_t start = (uintptr_t)at & ~(uintptr_t)(page - 1);
    return mprotect((void *)start, 2 * (size_t)page, prot);
}

/* Changes the branch at `jump`; returns 0 if it is not one of the four known forms. */
static int skip_abort(uint8_t *jump)
{
    int known = jump[0] == JE8 || jump[0] == JNE8 || (jump[0] == 0x0f && (jump[1] == 0x84 || jump[1] == 0x85));
    if (!known || writable(jump, PROT_READ | PROT_WRITE | PROT_EXEC))
        return 0;
    if (jump[0] == JE8)
        memset(jump, NOP, 2);
    else if (jump[0] == JNE8)
        jump[0] = JMP8;
    else if (jump[1] == 0x84)
        memset(jump, NOP, 6);
    else {
        jump[0] = NOP;
        jump[1] = JMP32;
    }
    writable(jump, PROT_READ | PROT_EXEC);
    return 1;
}

static int patch(const char *name, const uint8_t *locked)
{
    uint8_t *function = dlsym(RTLD_DEFAULT, name);
    if (!function)
        return 0;
    for (uint8_t *at = function; at < function + SCAN_BYTES; at++) {
        int32_t offset;
        if (at[0] != CALL)
            continue;
        memcpy(&offset, at + 1, sizeof offset);
        if (at + 5 + offset == locked && at[5] == 0x84 && at[6] == 0xc0)
            return skip_abort(at + 7);
    }
    return 0;
}

__attribute__((constructor)) static void start(void)
{
    static const char *const names[] = { "tcg_handle_interrupt", "cpu_interrupt" };
    const uint8_t *locked = dlsym(RTLD_DEFAULT, "bql_locked");

    int changed = 0;

    for (size_t i = 0; locked && i < sizeof names / sizeof *names; i++)
        changed += patch(names[i], locked);
    if (!changed)
        fprintf(stderr, "bql: found no assertion to skip; guests that write CR8 may abort this QEMU\n");
}
