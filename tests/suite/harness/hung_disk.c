/* A disk that hangs while a file exists: loaded into the gate before the C library, so that
 * reads, writes and syncs of files below HUNG_DISK come back when HUNG_DISK_WHILE is gone.
 * In C and by itself because it stands in for system calls, which no safe code can do; the
 * test builds it, with the compiler that the program's own dependencies need.
 */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

static void ask_the_disk(int fd)
{
    const char *disk = getenv("HUNG_DISK"), *hung_while = getenv("HUNG_DISK_WHILE");
    char name[64], path[4096];
    if (!disk || !hung_while)
        return;
    snprintf(name, sizeof name, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(name, path, sizeof path - 1);
    if (length < 0)
        return;
    path[length] = 0;
    if (strncmp(path, disk, strlen(disk)) != 0)
        return;
    while (access(hung_while, F_OK) == 0)
        usleep(5000);
}

int fsync(int fd)
{
    ask_the_disk(fd);
    return syscall(SYS_fsync, fd);
}

int fdatasync(int fd)
{
    ask_the_disk(fd);
    return syscall(SYS_fdatasync, fd);
}

int ftruncate64(int fd, off64_t length)
{
    ask_the_disk(fd);
    return syscall(SYS_ftruncate, fd, length);
}

ssize_t pread64(int fd, void *bytes, size_t count, off64_t offset)
{
    ask_the_disk(fd);
    return syscall(SYS_pread64, fd, bytes, count, offset);
}

ssize_t pwrite64(int fd, const void *bytes, size_t count, off64_t offset)
{
    ask_the_disk(fd);
    return syscall(SYS_pwrite64, fd, bytes, count, offset);
}
