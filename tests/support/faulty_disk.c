/* A file system with faults, put between a process and the C library by LD_PRELOAD.

   FAULTY_DISK holds rules with a semicolon between them, each `CALL ERRNO FIRST LAST EVERY PART`:
   of the calls whose path contains PART, number FIRST to LAST (0: all from there on), and of
   those every EVERY-th, fail with ERRNO. Below the folder FAULTY_DISK_FOLD upper and lower case
   (and, with FAULTY_DISK_COMPOSE, a composed and a decomposed e acute) are one name. */
#define _GNU_SOURCE
#include <ctype.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#define ROOM (2 * PATH_MAX)
#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

struct rule { char call[16], part[256]; int number; long first, last, every, seen; };
static struct rule rules[16];
static int num_rules;

/* From now on these rules and no others; a process may call it by ctypes. */
void set_faults(const char *text) {
    num_rules = 0;
    while (text && num_rules < 16) {
        struct rule *r = &rules[num_rules];
        memset(r, 0, sizeof *r);
        if (sscanf(text, " %15s %d %ld %ld %ld %255[^;]", r->call, &r->number, &r->first,
                   &r->last, &r->every, r->part) >= 5) num_rules++;
        text = strchr(text, ';');
        if (text) text++;
    }
}

/* Asked once: getenv beside a thread that sets a variable reads freed memory. A process that was
   forked to be another one calls it again. */
static const char *folded, *composes;
__attribute__((constructor)) void read_environment(void) {
    set_faults(getenv("FAULTY_DISK"));
    if ((folded = getenv("FAULTY_DISK_FOLD"))) folded = strdup(folded);
    composes = getenv("FAULTY_DISK_COMPOSE");
}

/* 1 where this call is to fail; errno says how. */
static int fails(const char *call, const char *path) {
    for (int i = 0; i < num_rules; i++) {
        struct rule *r = &rules[i];
        if (strcmp(r->call, call) || !strstr(path, r->part)) continue;
        long n = __sync_add_and_fetch(&r->seen, 1);
        if (n >= r->first && (!r->last || n <= r->last) && (n - r->first) % r->every == 0) {
            errno = r->number;
            return 1;
        }
    }
    return 0;
}

static const char *path_of(int fd, char *room) {
    char link[40];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, room, ROOM - 1);
    room[n < 0 ? 0 : n] = 0;
    return room;
}

/* The whole path, as this disk spells it; what does not lie below FAULTY_DISK_FOLD stays. */
static const char *spelled(int folder, const char *path, char *room) {
    if (path[0] == '/') snprintf(room, ROOM, "%s", path);
    else {
        if (folder == AT_FDCWD) { if (!getcwd(room, PATH_MAX)) return path; }
        else path_of(folder, room);
        size_t n = strlen(room);
        snprintf(room + n, ROOM - n, "/%s", path);
    }
    const char *below = folded;
    if (!below || strncmp(room, below, strlen(below))) return room;
    char *to = room + strlen(below);
    for (char *from = to; *from; from++, to++) {
        if (composes && !strncmp(from, "e\xCC\x81", 3)) {
            *to++ = '\xC3', *to = '\xA9', from += 2;
        } else *to = tolower((unsigned char)*from);
    }
    *to = 0;
    return room;
}

#define HERE char room[ROOM]; const char *whole = spelled(AT_FDCWD, path, room);
#define THERE char room[ROOM]; const char *whole = spelled(folder, path, room);
#define MODE int mode = 0; \
    if (flags & (O_CREAT | O_TMPFILE)) { va_list l; va_start(l, flags); mode = va_arg(l, int); va_end(l); }

int open(const char *path, int flags, ...) { MODE HERE
    return fails("open", whole) ? -1 : REAL(open)(whole, flags, mode); }
int open64(const char *path, int flags, ...) { MODE HERE
    return fails("open", whole) ? -1 : REAL(open64)(whole, flags, mode); }
int openat(int folder, const char *path, int flags, ...) { MODE THERE
    return fails("open", whole) ? -1 : REAL(openat)(AT_FDCWD, whole, flags, mode); }
int openat64(int folder, const char *path, int flags, ...) { MODE THERE
    return fails("open", whole) ? -1 : REAL(openat64)(AT_FDCWD, whole, flags, mode); }
int mkdir(const char *path, mode_t mode) { HERE
    return fails("mkdir", whole) ? -1 : REAL(mkdir)(whole, mode); }
int mkdirat(int folder, const char *path, mode_t mode) { THERE
    return fails("mkdir", whole) ? -1 : REAL(mkdirat)(AT_FDCWD, whole, mode); }
int unlink(const char *path) { HERE
    return fails("unlink", whole) ? -1 : REAL(unlink)(whole); }
int unlinkat(int folder, const char *path, int flags) { THERE
    return fails("unlink", whole) ? -1 : REAL(unlinkat)(AT_FDCWD, whole, flags); }
int stat64(const char *path, struct stat64 *found) { HERE
    return fails("stat", whole) ? -1 : REAL(stat64)(whole, found); }
int lstat64(const char *path, struct stat64 *found) { HERE
    return fails("stat", whole) ? -1 : REAL(lstat64)(whole, found); }
int fstatat64(int folder, const char *path, struct stat64 *found, int flags) { THERE
    return fails("stat", whole) ? -1 : REAL(fstatat64)(AT_FDCWD, whole, found, flags); }
int renameat(int from, const char *path, int to, const char *target) {
    char room[ROOM], other[ROOM];
    const char *whole = spelled(from, path, room), *there = spelled(to, target, other);
    return fails("rename", there) ? -1 : REAL(renameat)(AT_FDCWD, whole, AT_FDCWD, there); }
int rename(const char *path, const char *target) {
    return renameat(AT_FDCWD, path, AT_FDCWD, target); }
ssize_t write(int fd, const void *bytes, size_t count) { char room[ROOM];
    return fails("write", path_of(fd, room)) ? -1 : REAL(write)(fd, bytes, count); }
int ftruncate64(int fd, off64_t size) { char room[ROOM];
    return fails("ftruncate", path_of(fd, room)) ? -1 : REAL(ftruncate64)(fd, size); }
int fsync(int fd) { char room[ROOM];
    return fails("fsync", path_of(fd, room)) ? -1 : REAL(fsync)(fd); }
int syncfs(int fd) { char room[ROOM];
    return fails("syncfs", path_of(fd, room)) ? -1 : REAL(syncfs)(fd); }
int flock(int fd, int how) { char room[ROOM]; int (*real)(int, int) = dlsym(RTLD_NEXT, "flock");
    return fails("flock", path_of(fd, room)) ? -1 : real(fd, how); }
/* A disk that does not say how large it is, where a rule names the call. */
int statvfs64(const char *path, struct statvfs64 *found) { HERE
    int done = REAL(statvfs64)(whole, found);
    if (!done && fails("statvfs", whole)) memset(found, 0, sizeof *found);
    return done; }
