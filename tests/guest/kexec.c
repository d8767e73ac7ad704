/* Loads a kernel for kexec and starts it: `kexec now|crash KERNEL INITRD CMDLINE`. For a crash it is only loaded. */
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#define FILE_ON_CRASH 2
#define MAGIC1 0xfee1dead
#define MAGIC2 672274793
#define CMD_KEXEC 0x45584543

int main(int argc, char **argv)
{
	if (argc != 5)
		return 2;
	int crash = !strcmp(argv[1], "crash");
	int kernel = open(argv[2], O_RDONLY), initrd = open(argv[3], O_RDONLY);
	if (kernel < 0 || initrd < 0) {
		perror("open");
		return 1;
	}
	if (syscall(SYS_kexec_file_load, kernel, initrd, strlen(argv[4]) + 1, argv[4], crash ? FILE_ON_CRASH : 0)) {
		perror("kexec_file_load");
		return 1;
	}
	if (crash)
		return 0;
	syscall(SYS_reboot, MAGIC1, MAGIC2, CMD_KEXEC, 0);
	perror("reboot");
	return 1;
}
