/*
 * Talks to a MegaRAID SAS controller the way management tools do: through the driver's ioctl node, and, to make the
 * firmware fail, through the controller's ports. Built statically with the host's compiler, runs in guests.
 *
 *   mfi info | pds | lds | config | events     what direct commands answer, as "key value" lines
 *   mfi dcmd OPCODE LENGTH                     any other one: its status and the first bytes
 *   mfi wait COMMAND...                        registers for the next event, runs COMMAND, waits for it, prints it
 *   mfi out OFFSET VALUE / mfi in OFFSET       one register through the port BAR
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/uio.h>
#include <unistd.h>

#define NODE "/dev/megaraid_sas_ioctl_node"

struct dcmd {
    uint8_t cmd, reserved, status, reserved2[4], sge_count;
    uint32_t context, pad;
    uint16_t flags, timeout;
    uint32_t length, opcode;
    uint8_t mailbox[12];
} __attribute__((packed));

struct packet {
    uint16_t host, pad;
    uint32_t sgl_off, sge_count, sense_off, sense_len;
    union {
        uint8_t raw[128];
        struct dcmd dcmd;
    } frame;
    struct iovec sgl[16];
} __attribute__((packed));

struct aen {
    uint16_t host, pad;
    uint32_t seq, class_locale;
} __attribute__((packed));

#define IOC_FIRMWARE _IOWR('M', 1, struct packet)
#define IOC_GET_AEN _IOW('M', 3, struct aen)

static uint8_t buffer[65536];

static void die(const char *what) {
    fprintf(stderr, "mfi: %s: %s\n", what, strerror(errno));
    exit(1);
}

static uint16_t host(void) {
    char path[128], name[32];
    for (int i = 0; i < 64; i++) {
        snprintf(path, sizeof path, "/sys/class/scsi_host/host%d/proc_name", i);
        FILE *file = fopen(path, "r");
        if (!file) continue;
        int found = fscanf(file, "%31s", name) == 1 && !strcmp(name, "megaraid_sas");
        fclose(file);
        if (found) return i;
    }
    errno = ENODEV;
    die("no host");
    return 0;
}

static int node(void) {
    char line[128], name[64];
    int number = -1, candidate;
    FILE *file = fopen("/proc/devices", "r");
    while (file && fgets(line, sizeof line, file))
        if (sscanf(line, "%d %63s", &candidate, name) == 2 && !strcmp(name, "megaraid_sas_ioctl")) number = candidate;
    if (number < 0) die("the driver has no node");
    unlink(NODE);
    if (mknod(NODE, S_IFCHR | 0600, makedev(number, 0))) die(NODE);
    int fd = open(NODE, O_RDWR);
    if (fd < 0) die(NODE);
    return fd;
}

/* Returns the status of the frame. */
static int dcmd(int fd, uint32_t opcode, const uint8_t *mailbox, uint32_t length) {
    struct packet packet;
    memset(&packet, 0, sizeof packet);
    memset(buffer, 0, sizeof buffer);
    packet.host = host();
    packet.frame.dcmd.cmd = 5;
    packet.frame.dcmd.status = 0xff;
    packet.frame.dcmd.opcode = opcode;
    packet.frame.dcmd.flags = 0x18;
    packet.frame.dcmd.length = length;
    if (mailbox) memcpy(packet.frame.dcmd.mailbox, mailbox, 12);
    if (length) {
        packet.frame.dcmd.sge_count = 1;
        packet.sgl_off = sizeof(struct dcmd);
        packet.sge_count = 1;
        packet.sgl[0].iov_base = buffer;
        packet.sgl[0].iov_len = length;
    }
    if (ioctl(fd, IOC_FIRMWARE, &packet)) die("ioctl");
    return packet.frame.dcmd.status;
}

static void need(int status) {
    if (status) {
        fprintf(stderr, "mfi: status %#x\n", status);
        exit(2);
    }
}

static uint16_t u16(int at) { uint16_t v; memcpy(&v, buffer + at, 2); return v; }
static uint32_t u32(int at) { uint32_t v; memcpy(&v, buffer + at, 4); return v; }
static uint64_t u64(int at) { uint64_t v; memcpy(&v, buffer + at, 8); return v; }

static void info(int fd) {
    need(dcmd(fd, 0x01010000, 0, 2048));
    printf("id %04x:%04x:%04x:%04x\n", u16(0), u16(2), u16(4), u16(6));
    printf("product %s\nserial %s\npackage %s\n", buffer + 0x540, buffer + 0x590, buffer + 0x640);
    printf("address %016llx\n", (unsigned long long)u64(0x70));
    printf("limits %u commands %u elements %u sectors\n", u16(0x5b8), u16(0x5ba), u32(0x5bc));
    printf("drives %u logical %u physical %u disks\n", u16(0x5c0), u16(0x5c6), u16(0x5c8));
}

static void pds(int fd) {
    need(dcmd(fd, 0x02010000, 0, 8192));
    uint32_t count = u32(4);
    uint16_t ids[256];
    uint64_t addresses[256];
    for (uint32_t i = 0; i < count && i < 256; i++) {
        ids[i] = u16(8 + 24 * i);
        addresses[i] = u64(8 + 24 * i + 8);
    }
    for (uint32_t i = 0; i < count && i < 256; i++) {
        uint8_t mailbox[12] = { ids[i] & 0xff, ids[i] >> 8 };
        need(dcmd(fd, 0x02020000, mailbox, 512));
        printf("pd %u state %#x slot %u sectors %llu block %u product %.16s address %016llx %s\n", ids[i], u16(0xb8),
               buffer[0x103], (unsigned long long)u64(0xf8), u16(0x194), buffer + 4 + 16,
               (unsigned long long)u64(0xc8), u64(0xc8) == addresses[i] ? "as listed" : "not as listed");
    }
}

static void lds(int fd) {
    need(dcmd(fd, 0x03010000, 0, 8 + 64 * 16));
    uint32_t count = u32(0);
    uint8_t ids[64];
    for (uint32_t i = 0; i < count && i < 64; i++) ids[i] = buffer[8 + 16 * i];
    for (uint32_t i = 0; i < count && i < 64; i++) {
        uint8_t mailbox[12] = { ids[i] };
        need(dcmd(fd, 0x03020000, mailbox, 384));
        printf("ld %u state %u sectors %llu level %u drives %u cache %#x\n", buffer[0], buffer[0x26],
               (unsigned long long)u64(0x100), buffer[0x20], buffer[0x24], buffer[0x17]);
    }
}

static void config(int fd) {
    need(dcmd(fd, 0x04010000, 0, sizeof buffer));
    printf("config %u bytes %u arrays of %u %u volumes of %u\n", u32(0), u16(4), u16(6), u16(8), u16(10));
}

static void show(const uint8_t *event) {
    uint32_t seq, code;
    memcpy(&seq, event, 4);
    memcpy(&code, event + 8, 4);
    printf("event %u code %#x %.127s\n", seq, code, event + 0x80);
}

static uint32_t events(int fd, uint32_t from, int quiet) {
    uint32_t words[3] = { from, 0xfe00ffff, 0 };
    int status = dcmd(fd, 0x01040300, (uint8_t *)words, 8 + 256 * 100);
    if (status == 0x23) return 0;
    need(status);
    uint32_t count = u32(0);
    for (uint32_t i = 0; i < count && !quiet; i++) show(buffer + 8 + 256 * i);
    return count;
}

static volatile sig_atomic_t signals;
static void on_signal(int number) { (void)number; signals++; }

static void wait_event(int fd, char *const *command) {
    need(dcmd(fd, 0x01040100, 0, 20));
    struct aen aen = { host(), 0, u32(0) + 1, 0xfe00ffff };
    signal(SIGIO, on_signal);
    if (fcntl(fd, F_SETOWN, getpid()) || fcntl(fd, F_SETFL, O_RDWR | O_ASYNC)) die("fcntl");
    if (ioctl(fd, IOC_GET_AEN, &aen)) die("registering for events");
    char line[512] = "";
    for (; *command; command++) strcat(strcat(line, *command), " ");
    if (system(line)) die(line);
    for (int i = 0; !signals && i < 600; i++) usleep(50000);
    if (!signals) {
        errno = ETIMEDOUT;
        die("no event");
    }
    events(fd, aen.seq, 0);
}

static int board(const char *file, int flags) {
    DIR *dir = opendir("/sys/bus/pci/drivers/megaraid_sas");
    struct dirent *entry;
    char path[384];
    while (dir && (entry = readdir(dir))) {
        if (!strchr(entry->d_name, ':')) continue;
        snprintf(path, sizeof path, "/sys/bus/pci/drivers/megaraid_sas/%s/%s", entry->d_name, file);
        return open(path, flags);
    }
    return -1;
}

/* The ports of gen2 are BAR 0, those of the 1078 BAR 2. The driver leaves port decoding off. */
static int ports(void) {
    int fd = board("config", O_RDWR);
    uint16_t command;
    uint32_t bar;
    if (fd < 0 || pread(fd, &command, 2, 4) != 2 || pread(fd, &bar, 4, 0x10) != 4) die("config");
    command |= 1;
    if (pwrite(fd, &command, 2, 4) != 2) die("config");
    close(fd);
    fd = board(bar & 1 ? "resource0" : "resource2", O_RDWR);
    if (fd < 0) die("ports");
    return fd;
}

int main(int argc, char **argv) {
    const char *what = argc > 1 ? argv[1] : "";
    if (argc == 4 && !strcmp(what, "out")) {
        uint32_t value = strtoul(argv[3], 0, 0);
        if (pwrite(ports(), &value, 4, strtoul(argv[2], 0, 0)) != 4) die("write");
        return 0;
    }
    if (argc == 3 && !strcmp(what, "in")) {
        uint32_t value;
        if (pread(ports(), &value, 4, strtoul(argv[2], 0, 0)) != 4) die("read");
        printf("%#010x\n", value);
        return 0;
    }
    int fd = node();
    if (!strcmp(what, "info")) info(fd);
    else if (!strcmp(what, "pds")) pds(fd);
    else if (!strcmp(what, "lds")) lds(fd);
    else if (!strcmp(what, "config")) config(fd);
    else if (!strcmp(what, "events")) events(fd, 0, 0);
    else if (argc == 4 && !strcmp(what, "dcmd")) {
        uint32_t length = strtoul(argv[3], 0, 0);
        printf("status %#x", dcmd(fd, strtoul(argv[2], 0, 0), 0, length));
        for (uint32_t i = 0; i < length && i < 16; i++) printf(" %02x", buffer[i]);
        printf("\n");
    } else if (argc > 2 && !strcmp(what, "wait")) wait_event(fd, argv + 2);
    else {
        fprintf(stderr, "mfi: what?\n");
        return 1;
    }
    return 0;
}
