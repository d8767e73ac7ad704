// Direct I/O with memory that begins anywhere and is in small pieces, as far as the queue of the disk lets programs do so (open(2),
// O_DIRECT; in whole blocks, as Linux before 6.18 wants): odd DISK. Writes and reads back parts of the first MiB, from other places in
// memory; prints ODD and how many requests it were.
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

#define ROOM (1 << 20)

// `len` bytes at `place` of the disk, in memory from `from` on, in pieces of `piece` with as much room between them.
static void request(int fd, int write, char *from, unsigned len, unsigned piece, off_t place) {
    struct iovec parts[256];
    int count = 0;
    for (unsigned done = 0; done < len; done += piece, count++) {
        parts[count].iov_base = from + 2 * done;
        parts[count].iov_len = len - done < piece ? len - done : piece;
    }
    ssize_t moved = write ? pwritev(fd, parts, count, place) : preadv(fd, parts, count, place);
    if (moved == len) return;
    fprintf(stderr, "%s of %u bytes in pieces of %u at %p: %zd ", write ? "write" : "read", len, piece, (void *)from, moved);
    perror("");
    exit(1);
}

int main(int count, char **words) {
    static const unsigned offsets[] = {4, 12, 100, 508, 516, 2044, 4092}, lengths[] = {512, 1024, 4608, 16384, 65536};
    static const unsigned pieces[] = {1 << 20, 4096, 1536, 1024, 512};
    int fd = count == 2 ? open(words[1], O_RDWR | O_DIRECT) : -1;
    if (fd < 0) return perror("odd DISK"), 2;
    char *out = aligned_alloc(4096, ROOM), *in = aligned_alloc(4096, ROOM);
    unsigned done = 0, seed = 1;
    for (unsigned o = 0; o < 7; o++)
        for (unsigned l = 0; l < 5; l++)
            for (unsigned p = 0; p < 5; p++, done += 2) {
                unsigned len = lengths[l], piece = pieces[p];
                if (len / piece > 200) continue;
                off_t place = (done * 1536ul) % (ROOM - len) / 512 * 512;
                char *from = out + offsets[o], *to = in + offsets[6 - o];
                for (unsigned n = 0; n < ROOM; n += 4) seed = seed * 1664525 + 1013904223, memcpy(out + n, &seed, 4);
                memset(in, 0, ROOM);
                request(fd, 1, from, len, piece, place);
                request(fd, 0, to, len, piece, place);
                for (unsigned n = 0; n < len; n += piece)
                    if (memcmp(from + 2 * n, to + 2 * n, len - n < piece ? len - n : piece)) {
                        fprintf(stderr, "%u bytes in pieces of %u at %u: not what was written\n", len, piece, offsets[o]);
                        return 1;
                    }
            }
    printf("ODD %u\n", done);
    return 0;
}
