/* PRETEND_TRACE: a file to which each process that initialises CUDA appends one line: its id and its
   CUDA_VISIBLE_DEVICES, "-" without one. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void trace(void) {
    static int traced_by;
    const char *path = getenv("PRETEND_TRACE"), *visible = getenv("CUDA_VISIBLE_DEVICES");
    char line[512];
    int file;
    if (!path || traced_by == getpid()) return;
    traced_by = getpid(); /* a forked child is another process */
    file = open(path, O_WRONLY | O_CREAT | O_APPEND, 0644);
    snprintf(line, sizeof line, "%d %s\n", traced_by, visible ? visible : "-");
    if (file < 0 || write(file, line, strlen(line)) < 0) perror(path);
    close(file);
}
