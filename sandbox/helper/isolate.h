/* What helper.c, isolate.c and memory.c share. */
#ifndef DRAWLOOM_ISOLATE_H
#define DRAWLOOM_ISOLATE_H

#include <stddef.h>

enum { NOBODY = 65534, MOST_CGROUPS = 4 };

struct isolation {
    const char *folder; /* the environment's own; becomes "/work" once the root is empty */
    long long memory, pids, disk;
    const char *cgroups[MOST_CGROUPS]; /* files that take the id of a process; the kernel limits memory there */
    int wanted, namespaces, proc;      /* whether namespaces, and a /proc of its own, were made */
    int children;                      /* where the kernel lists our children, if /proc does not; else -1 */
    char lacking[2048];                /* what could not be had, one reason a line; empty: all of it */
};

extern struct isolation isolation;

/* Leave the host as far as the kernel allows; the reasons for what is missing are in `lacking`. */
void isolate(void);

/* In the child that becomes a command: limits, no capabilities, the list of system calls. */
void confine(void);

void drop_capabilities(void);
void make_parents(char *path);
int put_text(const char *path, const char *text);

/* Bytes that the environment holds: what a cgroup would count, where there is none. */
long long memory_used(void);

/* Remove shared memory that outlives processes. */
void drop_segments(void);

#endif
