/*
 * Looks for memory that something else writes: the first process of an initramfs that has nothing else.
 * Takes all memory that is free, fills it, says so, and waits for a line on the console. Then it says how many
 * pages are not as it left them, and powers the machine off.
 */
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/reboot.h>
#include <sys/sysinfo.h>
#include <unistd.h>

#define CHUNK (1 << 20)
#define PAGE 4096
/* For the kernel, which would end this process else. */
#define SPARED (24ul << 20)
#define MAX 4096

int main(void)
{
	static unsigned char *chunks[MAX], own[PAGE];
	struct sysinfo info;
	char line[64];
	int count = 0, changed = 0;

	memset(own, 0x55, PAGE);
	while (count < MAX && !sysinfo(&info) && info.freeram * info.mem_unit > SPARED) {
		unsigned char *chunk = mmap(0, CHUNK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		if (chunk == MAP_FAILED)
			break;
		memset(chunk, 0x55, CHUNK);
		chunks[count++] = chunk;
	}
	printf("FILLED %d MiB\n", count);
	fflush(stdout);
	if (!fgets(line, sizeof line, stdin))
		printf("no line\n");
	for (int i = 0; i < count; i++)
		for (int at = 0; at < CHUNK; at += PAGE)
			if (memcmp(chunks[i] + at, own, PAGE) && !changed++)
				printf("the first one begins with %02x\n", chunks[i][at]);
	printf("CHANGED %d PAGES\n", changed);
	fflush(stdout);
	sleep(1);
	return reboot(RB_POWER_OFF);
}
