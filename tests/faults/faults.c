/* A file system that fails: preloaded into a process, it gives the n-th call of chosen kinds, on files below a chosen
 * folder, the error that it is told to.
 *
 * It stands between a process and libc, so it sees what Python writes and what native code writes that calls libc
 * (TensorStore, under Orbax). It does not see: writes to mapped memory, system calls made without libc (programs in
 * Go, io_uring), other processes that were started with a clean environment, and errors that only `close` reports.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { OPEN = 1, WRITE = 2, SYNC = 4, RENAME = 8, MAKE = 16, CUT = 32, LOOK = 64, READ = 128, REMOVE = 256 };

static char below[PATH_MAX]; /* '' = nothing fails and nothing is noted */
static char part[PATH_MAX];  /* what a path must have in it to count; with a $ behind it, at its end */
static int kinds, error_number, stays, notes = -1;
static long first; /* which call fails, from 1; 0 = none */
static atomic_long calls;

/* notes: a descriptor to which each call that counts is written as a line 'kind path'; -1 = nowhere. */
void faults_arm(const char *folder, const char *name, int wanted, long which, int error, int for_good, int descriptor) {
    snprintf(below, sizeof below, "%s", folder);
    snprintf(part, sizeof part, "%s", name);
    kinds = wanted, first = which, error_number = error, stays = for_good, notes = descriptor;
    atomic_store(&calls, 0);
}

long faults_calls(void) { return atomic_load(&calls); }

static int is_below(const char *path) {
    size_t length = strlen(below);
    if (strncmp(path, below, length) || (path[length] && path[length] != '/')) return 0;
    size_t rest = strlen(path) - length, wanted = strlen(part);
    if (!wanted || part[wanted - 1] != '$') return !!strstr(path + length, part);
    return rest >= wanted - 1 && !strncmp(path + length + rest - (wanted - 1), part, wanted - 1);
}

static int fails(int kind, const char *path) {
    if (!below[0] || !(kinds & kind) || !is_below(path)) return 0;
    long number = atomic_fetch_add(&calls, 1) + 1;
    if (notes >= 0) dprintf(notes, "%d %s\n", kind, path);
    if (!first || number < first || (number > first && !stays)) return 0;
    errno = error_number;
    return 1;
}

static int fails_open(int kind, int descriptor) {
    char link[64], path[PATH_MAX];
    if (!below[0] || !(kinds & kind)) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return fails(kind, path);
}

static int fails_at(int kind, int folder, const char *name) {
    char link[64], path[PATH_MAX];
    ssize_t length;
    if (!below[0] || !(kinds & kind) || !name) return 0;
    if (name[0] == '/') return fails(kind, name);
    if (folder == AT_FDCWD) {
        if (!getcwd(path, sizeof path)) return 0;
        length = (ssize_t)strlen(path);
    } else {
        snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
        length = readlink(link, path, sizeof path - 1);
        if (length < 0) return 0;
    }
    snprintf(path + length, sizeof path - (size_t)length, "/%s", name);
    return fails(kind, path);
}

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static int kind_of(int flags) { return flags & (O_CREAT | O_WRONLY | O_RDWR | O_TRUNC) ? OPEN : LOOK; }

#define OPENING(name)                                        \
    int name(const char *path, int flags, ...) {             \
        va_list rest;                                        \
        va_start(rest, flags);                               \
        mode_t mode = va_arg(rest, mode_t);                  \
        va_end(rest);                                        \
        if (fails_at(kind_of(flags), AT_FDCWD, path)) return -1; \
        return NEXT(name)(path, flags, mode);                \
    }
OPENING(open)
OPENING(open64)

#define OPENING_AT(name)                                     \
    int name(int folder, const char *path, int flags, ...) { \
        va_list rest;                                        \
        va_start(rest, flags);                               \
        mode_t mode = va_arg(rest, mode_t);                  \
        va_end(rest);                                        \
        if (fails_at(kind_of(flags), folder, path)) return -1; \
        return NEXT(name)(folder, path, flags, mode);        \
    }
OPENING_AT(openat)
OPENING_AT(openat64)

#define STREAM(name)                                         \
    FILE *name(const char *path, const char *mode) {         \
        int kind = mode[0] == 'r' && !strchr(mode, '+') ? LOOK : OPEN; \
        return fails_at(kind, AT_FDCWD, path) ? NULL : NEXT(name)(path, mode); \
    }
STREAM(fopen)
STREAM(fopen64)

#define ON_OPEN(type, name, kind, taken, given)              \
    type name taken { return fails_open(kind, fd) ? -1 : NEXT(name) given; }
ON_OPEN(ssize_t, write, WRITE, (int fd, const void *b, size_t n), (fd, b, n))
ON_OPEN(ssize_t, pwrite, WRITE, (int fd, const void *b, size_t n, off_t at), (fd, b, n, at))
ON_OPEN(ssize_t, pwrite64, WRITE, (int fd, const void *b, size_t n, off64_t at), (fd, b, n, at))
ON_OPEN(ssize_t, writev, WRITE, (int fd, const struct iovec *v, int n), (fd, v, n))
ON_OPEN(ssize_t, pwritev, WRITE, (int fd, const struct iovec *v, int n, off_t at), (fd, v, n, at))
ON_OPEN(ssize_t, pwritev64, WRITE, (int fd, const struct iovec *v, int n, off64_t at), (fd, v, n, at))
ON_OPEN(ssize_t, sendfile, WRITE, (int fd, int in, off_t *at, size_t n), (fd, in, at, n))
ON_OPEN(ssize_t, sendfile64, WRITE, (int fd, int in, off64_t *at, size_t n), (fd, in, at, n))
ON_OPEN(ssize_t, read, READ, (int fd, void *b, size_t n), (fd, b, n))
ON_OPEN(ssize_t, pread, READ, (int fd, void *b, size_t n, off_t at), (fd, b, n, at))
ON_OPEN(ssize_t, pread64, READ, (int fd, void *b, size_t n, off64_t at), (fd, b, n, at))
ON_OPEN(int, fsync, SYNC, (int fd), (fd))
ON_OPEN(int, fdatasync, SYNC, (int fd), (fd))
ON_OPEN(int, ftruncate, CUT, (int fd, off_t n), (fd, n))
ON_OPEN(int, ftruncate64, CUT, (int fd, off64_t n), (fd, n))

ssize_t copy_file_range(int in, off64_t *from, int fd, off64_t *to, size_t n, unsigned flags) {
    return fails_open(WRITE, fd) ? -1 : NEXT(copy_file_range)(in, from, fd, to, n, flags);
}

int rename(const char *from, const char *to) { return fails_at(RENAME, AT_FDCWD, to) ? -1 : NEXT(rename)(from, to); }
int renameat(int a, const char *from, int b, const char *to) {
    return fails_at(RENAME, b, to) ? -1 : NEXT(renameat)(a, from, b, to);
}
int renameat2(int a, const char *from, int b, const char *to, unsigned flags) {
    return fails_at(RENAME, b, to) ? -1 : NEXT(renameat2)(a, from, b, to, flags);
}
int link(const char *from, const char *to) { return fails_at(RENAME, AT_FDCWD, to) ? -1 : NEXT(link)(from, to); }
int mkdir(const char *path, mode_t mode) { return fails_at(MAKE, AT_FDCWD, path) ? -1 : NEXT(mkdir)(path, mode); }
int mkdirat(int folder, const char *path, mode_t mode) {
    return fails_at(MAKE, folder, path) ? -1 : NEXT(mkdirat)(folder, path, mode);
}
int unlink(const char *path) { return fails_at(REMOVE, AT_FDCWD, path) ? -1 : NEXT(unlink)(path); }
int unlinkat(int folder, const char *path, int flags) {
    return fails_at(REMOVE, folder, path) ? -1 : NEXT(unlinkat)(folder, path, flags);
}
int rmdir(const char *path) { return fails_at(REMOVE, AT_FDCWD, path) ? -1 : NEXT(rmdir)(path); }
