// Sends a command that reads, and prints what came of it: sense NODE LENGTH BYTE... sg_raw has room for 32 bytes of sense data, this for all that
// there can be (SPC-5, 4.4.1).
#include <fcntl.h>
#include <scsi/sg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>

static uint8_t data[1 << 16], sense[252], cdb[32];

static void print(const char *what, const uint8_t *bytes, int count) {
    printf("%s", what);
    for (int at = 0; at < count; at++) printf(" %02x", bytes[at]);
    printf("\n");
}

int main(int count, char **words) {
    if (count < 4 || count - 3 > (int)sizeof(cdb)) return 2;
    int length = atoi(words[2]), file = open(words[1], O_RDWR);
    if (file < 0 || length < 0 || length > (int)sizeof(data)) return 2;
    for (int at = 3; at < count; at++) cdb[at - 3] = strtoul(words[at], NULL, 16);
    struct sg_io_hdr header = {.interface_id = 'S', .timeout = 60000};
    header.cmdp = cdb;
    header.cmd_len = count - 3;
    header.sbp = sense;
    header.mx_sb_len = sizeof(sense);
    header.dxferp = data;
    header.dxfer_len = length;
    header.dxfer_direction = length ? SG_DXFER_FROM_DEV : SG_DXFER_NONE;
    if (ioctl(file, SG_IO, &header) < 0) return 3;
    printf("status %02x host %02x\n", header.status, header.host_status);
    print("sense", sense, header.sb_len_wr);
    print("data", data, length - header.resid);
    return 0;
}
