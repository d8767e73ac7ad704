// A tape, an enclosure or a changer that is a process: Linux hands it the commands of a SCSI device through target_core_user
// (linux/target_core_user.h). unit tape|enclosure|changer NAME; it says READY once it serves the device user_*/NAME.
// A record may be up to 1 MiB, and all that is written stays in memory. Commands: SSC-4 and SES-3; sense data: SPC-5, 4.4.
#include <dirent.h>
#include <fcntl.h>
#include <linux/target_core_user.h>
#include <poll.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define RECORDS 100000
#define LONGEST (1 << 20)
#define MARK UINT32_MAX
#define GOOD 0
#define CHECK 2

static enum kind { TAPE, ENCLOSURE, CHANGER } kind;
static struct record {
    uint32_t len; // or MARK
    uint8_t *data;
} tape[RECORDS];
static uint32_t end, at, block;
static uint8_t buffered = 0x10, ident;

// What a command gets and gives.
static uint8_t data[4 << 20];
static uint32_t room, given;
static uint8_t sense[18];

static uint32_t get24(const uint8_t *p) { return p[0] << 16 | p[1] << 8 | p[2]; }
static uint32_t get32(const uint8_t *p) { return (uint32_t)p[0] << 24 | get24(p + 1); }
static void put32(uint8_t *p, uint32_t value) {
    for (int byte = 0; byte < 4; byte++) p[byte] = value >> (24 - 8 * byte);
}

static int fail(uint8_t flags_and_key, uint16_t code, int32_t information) {
    memset(sense, 0, sizeof sense);
    sense[0] = 0xf0;
    sense[2] = flags_and_key;
    put32(sense + 3, information);
    sense[7] = 10;
    sense[12] = code >> 8;
    sense[13] = code;
    return CHECK;
}

static int invalid_field(void) { return fail(5, 0x2400, 0); }
static int beyond(int32_t left) { return fail(8, 0x0005, left); }
static int filemark(int32_t left) { return fail(0x80, 0x0001, left); }

static int answer(const void *bytes, uint32_t len, uint32_t allocation) {
    given = len < allocation ? len : allocation;
    given = given < room ? given : room;
    memcpy(data, bytes, given);
    return GOOD;
}

#include "changer.h"

static int inquiry(const uint8_t *cdb) {
    static const uint8_t types[] = {1, 0x0d, 8};
    static const char *const names[] = {"TAPE", "SES ", "SMC "};
    uint32_t allocation = cdb[3] << 8 | cdb[4];
    uint8_t type = types[kind];
    uint8_t standard[36] = {type, 0x80, 6, 2, 31};
    if (kind == ENCLOSURE) standard[1] = 0, standard[6] = 0x40;
    memcpy(standard + 8, "BED     PROCESS SES     0001", 28);
    memcpy(standard + 24, names[kind], 4);
    if (!(cdb[1] & 1)) return cdb[2] ? invalid_field() : answer(standard, 36, allocation);
    switch (cdb[2]) {
    case 0: return answer((uint8_t[]){type, 0, 0, 3, 0, 0x80, 0x83}, 7, allocation);
    case 0x80: {
        uint8_t serial[12] = {type, 0x80, 0, 8};
        memcpy(serial + 4, "BED00001", 8);
        return answer(serial, 12, allocation);
    }
    case 0x83: {
        uint8_t name[16] = {type, 0x83, 0, 12, 1, 3, 0, 8, 0x53, 0x33, 0x33, 0x30, 0, 0, 0, type};
        return answer(name, 16, allocation);
    }
    }
    return invalid_field();
}

// Reads records, or as many blocks of the same length; SSC-4, 6.4.
static int read_records(const uint8_t *cdb) {
    bool fixed = cdb[1] & 1, sili = cdb[1] & 2;
    uint32_t want = get24(cdb + 2), size = fixed ? block : want, count = fixed ? want : 1;
    if ((fixed && (!block || sili)) || size > LONGEST || (uint64_t)size * count > sizeof data) return invalid_field();
    for (; want && count; count--) {
        int32_t left = fixed ? count : want;
        if (at >= end) return beyond(left);
        struct record record = tape[at++];
        if (record.len == MARK) return filemark(left);
        uint32_t len = record.len < size ? record.len : size;
        memcpy(data + given, record.data, len);
        given += len;
        if (record.len != size && !(sili && (record.len < size || !block)))
            return fail(0x20, 0, fixed ? left : left - (int32_t)record.len);
    }
    return GOOD;
}

// What was written before stays, what was behind it goes.
static int add(uint32_t len, const uint8_t *bytes) {
    if (at + 1 >= RECORDS) return fail(0x4d, 0x0002, 0);
    for (; end > at; end--) free(tape[end - 1].data), tape[end - 1].data = NULL;
    tape[at].len = len;
    if (len != MARK) {
        tape[at].data = malloc(len);
        memcpy(tape[at].data, bytes, len);
    }
    end = ++at;
    return GOOD;
}

static int write_records(const uint8_t *cdb) {
    bool fixed = cdb[1] & 1;
    uint32_t want = get24(cdb + 2), size = fixed ? block : want, count = fixed ? want : 1;
    if ((fixed && !block) || size > LONGEST || (uint64_t)size * count > room) return invalid_field();
    for (uint32_t n = 0; want && n < count; n++) {
        int status = add(size, data + (uint64_t)n * size);
        if (status) return status;
    }
    return GOOD;
}

// SSC-4, 6.12: blocks, filemarks, and the end of what is recorded.
static int space(const uint8_t *cdb) {
    int32_t count = (int32_t)(get24(cdb + 2) << 8) >> 8;
    uint8_t what = cdb[1] & 15;
    if (what == 3) return at = end, GOOD;
    if (what > 1) return invalid_field();
    for (; count > 0; count--) {
        if (what == 0) {
            if (at >= end) return beyond(count);
            if (tape[at++].len == MARK) return filemark(count);
        } else {
            while (at < end && tape[at].len != MARK) at++;
            if (at++ >= end) return at = end, beyond(count);
        }
    }
    for (; count < 0; count++) {
        if (what == 1) while (at && tape[at - 1].len != MARK) at--;
        if (!at) return fail(0x40, 0x0004, -count); // EOM: the beginning
        if (tape[--at].len == MARK && what == 0) return filemark(-count);
    }
    return GOOD;
}

static int mode_sense(const uint8_t *cdb) {
    uint8_t page = cdb[2] & 63, reply[28] = {11, 0, buffered, 8, 0x42};
    uint32_t len = 12;
    reply[9] = block >> 16, reply[10] = block >> 8, reply[11] = block;
    if (cdb[1] & 8) len = 4, reply[3] = 0;
    if (page == 0x0f || page == 0x3f) { // data compression: none
        reply[len] = 0x0f, reply[len + 1] = 14;
        len += 16;
    } else if (page) return invalid_field();
    reply[0] = len - 1;
    return answer(reply, len, cdb[4]);
}

static int mode_select(const uint8_t *cdb) {
    if (cdb[4] < 4 || room < cdb[4]) return cdb[4] ? fail(5, 0x1a00, 0) : GOOD;
    buffered = data[2] & 0x70;
    if (data[3] == 8 && cdb[4] >= 12) {
        if (get24(data + 9) > LONGEST) return fail(5, 0x2600, 0);
        block = get24(data + 9);
    }
    return GOOD;
}

static int tape_command(const uint8_t *cdb) {
    uint8_t position[20] = {at ? 0 : 0x80};
    switch (cdb[0]) {
    case 0x01: return at = 0, GOOD;
    case 0x05: return answer((uint8_t[]){0, LONGEST >> 16, 0, 0, 0, 1}, 6, 6);
    case 0x08: return read_records(cdb);
    case 0x0a: return write_records(cdb);
    case 0x10:
        for (uint32_t count = get24(cdb + 2); count; count--)
            if (add(MARK, NULL)) return CHECK;
        return GOOD;
    case 0x11: return space(cdb);
    case 0x15: return mode_select(cdb);
    case 0x19: // all that follows
        for (; end > at; end--) free(tape[end - 1].data), tape[end - 1].data = NULL;
        return GOOD;
    case 0x1a: return mode_sense(cdb);
    case 0x1b: return at = 0, GOOD;
    case 0x1e: return GOOD;
    case 0x2b: return at = get32(cdb + 3) < end ? get32(cdb + 3) : end, at == get32(cdb + 3) ? GOOD : beyond(0);
    case 0x34:
        put32(position + 4, at), put32(position + 8, at);
        return cdb[1] & 0x1e ? invalid_field() : answer(position, 20, 20);
    }
    return fail(5, 0x2000, 0);
}

// SES-3, 6.1: one subenclosure with two array device slots, whose lamps can be lit.
static int enclosure_command(const uint8_t *cdb) {
    uint8_t pages[] = {0, 0, 0, 3, 0, 1, 2};
    uint8_t configuration[64] = {1, 0, 0, 60};
    uint8_t status[20] = {2, 0, 0, 16};
    switch (cdb[0]) {
    case 0x1c:
        if (!(cdb[1] & 1)) return invalid_field();
        configuration[8] = 0x11, configuration[10] = 1, configuration[11] = 36;
        memcpy(configuration + 12, "\x53\x33\x33\x30\0\0\0\x0d" "BED     PROCESS SES     0001", 36);
        configuration[48] = 0x17, configuration[49] = 2;
        for (int slot = 0; slot < 3; slot++) status[8 + 4 * slot] = 1, status[10 + 4 * slot] = slot ? ident >> slot << 1 & 2 : 0;
        switch (cdb[2]) {
        case 0: return answer(pages, 7, cdb[3] << 8 | cdb[4]);
        case 1: return answer(configuration, 64, cdb[3] << 8 | cdb[4]);
        case 2: return answer(status, 20, cdb[3] << 8 | cdb[4]);
        }
        return invalid_field();
    case 0x1d:
        if (room >= 20 && cdb[1] & 0x10 && data[0] == 2) {
            for (int slot = 1; slot < 3; slot++)
                if (data[8 + 4 * slot] & 0x80) ident = (ident & ~(1 << slot)) | (data[10 + 4 * slot] & 2) >> 1 << slot;
        } else if (room) return fail(5, 0x2600, 0);
        return GOOD;
    }
    return fail(5, 0x2000, 0);
}

static int command(const uint8_t *cdb) {
    switch (cdb[0]) {
    case 0x00: return GOOD;
    case 0x03: return answer((uint8_t[18]){0x70, 0, 0, 0, 0, 0, 0, 10}, 18, cdb[4]);
    case 0x12: return inquiry(cdb);
    }
    return kind == ENCLOSURE ? enclosure_command(cdb) : kind == CHANGER ? changer_command(cdb) : tape_command(cdb);
}

// The number of the user space I/O device that has commands for `name`, and the size of its memory.
static int find(const char *name, size_t *size) {
    char wanted[64], path[320], text[256];
    snprintf(wanted, sizeof wanted, "/%s/", name);
    for (int turn = 0; turn < 100; turn++, usleep(100000)) {
        DIR *dir = opendir("/sys/class/uio");
        for (struct dirent *entry; dir && (entry = readdir(dir));) {
            snprintf(path, sizeof path, "/sys/class/uio/%.200s/name", entry->d_name);
            FILE *file = fopen(path, "r");
            bool mine = file && fgets(text, sizeof text, file) && strstr(text, wanted);
            if (file) fclose(file);
            if (!mine) continue;
            snprintf(path, sizeof path, "/sys/class/uio/%.200s/maps/map0/size", entry->d_name);
            unsigned long bytes = 0;
            if (!(file = fopen(path, "r")) || fscanf(file, "%lx", &bytes) != 1) exit(3);
            *size = bytes;
            return atoi(entry->d_name + 3);
        }
        if (dir) closedir(dir);
    }
    fprintf(stderr, "there is no %s\n", name);
    exit(2);
}

static uint32_t move(struct tcmu_cmd_entry *entry, uint8_t *area, bool out) {
    uint32_t done = 0;
    for (uint32_t n = 0; n < entry->req.iov_cnt; n++) {
        uint32_t len = entry->req.iov[n].iov_len;
        uint8_t *there = area + (uintptr_t)entry->req.iov[n].iov_base;
        if (len > sizeof data - done) len = sizeof data - done;
        if (out && len > given - done) len = given - done;
        memcpy(out ? there : data + done, out ? data + done : there, len);
        done += len;
    }
    return done;
}

int main(int count, char **words) {
    if (count != 3) return 1;
    kind = !strcmp(words[1], "enclosure") ? ENCLOSURE : !strcmp(words[1], "changer") ? CHANGER : TAPE;
    size_t size;
    char path[32];
    snprintf(path, sizeof path, "/dev/uio%d", find(words[2], &size));
    int fd = open(path, O_RDWR);
    uint8_t *area = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (fd < 0 || area == MAP_FAILED) return perror(path), 3;
    volatile struct tcmu_mailbox *mailbox = (void *)area;
    puts("READY");
    fflush(stdout);
    for (uint32_t number; read(fd, &number, 4) == 4 || true;) {
        while (mailbox->cmd_tail != __atomic_load_n(&mailbox->cmd_head, __ATOMIC_ACQUIRE)) {
            struct tcmu_cmd_entry *entry = (void *)(area + mailbox->cmdr_off + mailbox->cmd_tail);
            if (tcmu_hdr_get_op(entry->hdr.len_op) == TCMU_OP_CMD) {
                uint8_t cdb[16];
                memcpy(cdb, area + entry->req.cdb_off, 16);
                bool in = cdb[0] == 0x08 || cdb[0] == 0x12 || cdb[0] == 0x03 || cdb[0] == 0x05 || cdb[0] == 0x1a ||
                          cdb[0] == 0x1c || cdb[0] == 0x34 || cdb[0] == 0xb8;
                given = 0;
                room = 0;
                for (uint32_t n = 0; n < entry->req.iov_cnt; n++) room += entry->req.iov[n].iov_len;
                if (!in) room = move(entry, area, false);
                int status = command(cdb);
                if (in) move(entry, area, true);
                memset(&entry->rsp, 0, sizeof entry->rsp);
                entry->rsp.scsi_status = status;
                if (status == CHECK) memcpy(entry->rsp.sense_buffer, sense, sizeof sense);
                if (in) entry->hdr.uflags |= TCMU_UFLAG_READ_LEN, entry->rsp.read_len = given;
            } else if (tcmu_hdr_get_op(entry->hdr.len_op) != TCMU_OP_PAD) {
                entry->hdr.uflags |= TCMU_UFLAG_UNKNOWN_OP;
            }
            uint32_t tail = (mailbox->cmd_tail + tcmu_hdr_get_len(entry->hdr.len_op)) % mailbox->cmdr_size;
            __atomic_store_n(&mailbox->cmd_tail, tail, __ATOMIC_RELEASE);
            number = 0;
            if (write(fd, &number, 4) != 4) return perror("write"), 4;
        }
    }
}
