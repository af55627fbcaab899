/* A disk on which each new file costs FILE_COST_US microseconds more, put before the C library by
   LD_PRELOAD: of waiting, as for a server, or, with FILE_COST_KIND=spin, of the processor's time,
   as in the kernel of this machine. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static long cost_ns;
static int spins;

__attribute__((constructor)) static void begin(void) {
    const char *cost = getenv("FILE_COST_US"), *kind = getenv("FILE_COST_KIND");
    cost_ns = cost ? 1000 * atol(cost) : 0;
    spins = kind && !strcmp(kind, "spin");
}

static long now_ns(clockid_t clock) {
    struct timespec now;
    clock_gettime(clock, &now);
    return 1000000000 * now.tv_sec + now.tv_nsec;
}

static void pay(int flags) {
    if (!cost_ns || !(flags & O_CREAT)) return;
    if (spins) {
        for (long began = now_ns(CLOCK_THREAD_CPUTIME_ID); now_ns(CLOCK_THREAD_CPUTIME_ID) - began < cost_ns;) {}
        return;
    }
    static _Thread_local long late_ns; /* how much longer than asked a sleep takes: 70 us on some virtual machines */
    long began = now_ns(CLOCK_MONOTONIC), rest_ns = cost_ns - late_ns;
    struct timespec rest = {0, rest_ns > 1000 ? rest_ns : 1000};
    nanosleep(&rest, NULL);
    late_ns += (now_ns(CLOCK_MONOTONIC) - began - cost_ns) / 16;
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define MODE int mode = 0; \
    if (flags & (O_CREAT | O_TMPFILE)) { va_list l; va_start(l, flags); mode = va_arg(l, int); va_end(l); } \
    pay(flags);

int open(const char *path, int flags, ...) { MODE return REAL(open)(path, flags, mode); }
int open64(const char *path, int flags, ...) { MODE return REAL(open64)(path, flags, mode); }
int openat(int at, const char *path, int flags, ...) { MODE return REAL(openat)(at, path, flags, mode); }
int openat64(int at, const char *path, int flags, ...) { MODE return REAL(openat64)(at, path, flags, mode); }
