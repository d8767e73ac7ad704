// For measuring under valgrind, which (3.19) lets no other thread run while one sleeps in io_uring_enter(2): this sleeps
// in nanosleep(2) instead, and looks in between. To be preloaded, see docs/performance.md:
//
//     cc -O2 -shared -fPIC -o target/enter.so tests/preload/enter.c
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <linux/io_uring.h>
#include <stdarg.h>
#include <sys/syscall.h>
#include <time.h>
long syscall(long nr, ...) {
  static long (*real)(long, ...);
  if (!real) real = dlsym(RTLD_NEXT, "syscall");
  va_list v; va_start(v, nr);
  long a = va_arg(v, long), b = va_arg(v, long), c = va_arg(v, long), d = va_arg(v, long), e = va_arg(v, long), f = va_arg(v, long);
  va_end(v);
  if (nr == SYS_io_uring_enter && c > 0) {
    struct __kernel_timespec none = {0, 1000};
    struct io_uring_getevents_arg arg = {.ts = (unsigned long)&none};
    for (;;) {
      long r = real(nr, a, b, c, IORING_ENTER_GETEVENTS | IORING_ENTER_EXT_ARG, &arg, sizeof arg);
      if (r >= 0 || errno != ETIME) return r;
      b = 0;
      struct timespec t = {0, 100000};
      nanosleep(&t, 0);
    }
  }
  return real(nr, a, b, c, d, e, f);
}
