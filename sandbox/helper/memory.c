/* The memory of an environment that has no cgroup, looked at from its first process. */
#define _GNU_SOURCE
#include "isolate.h"

#include <ctype.h>
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/shm.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

enum { MOST_FILES = 4096 };

static ino_t counted[MOST_FILES];
static int files;

/* The sum of the numbers that follow a word in a file of /proc. */
static long long numbers_after(const char *path, const char *word) {
    char line[256];
    long long sum = 0;
    FILE *file = fopen(path, "re");
    while (file && fgets(line, sizeof line, file))
        if (!strncmp(line, word, strlen(word))) sum += atoll(line + strlen(word));
    if (file) fclose(file);
    return sum;
}

/* Files that only a descriptor holds: no process need have them mapped. */
static long long unlinked_files(const char *process) {
    char path[64], link[32];
    long long sum = 0;
    struct stat s;
    snprintf(path, sizeof path, "/proc/%.16s/fd", process);
    DIR *folder = opendir(path);
    if (!folder) return 0;
    for (struct dirent *entry; (entry = readdir(folder));) {
        ssize_t n = readlinkat(dirfd(folder), entry->d_name, link, sizeof link);
        if (n < 7 || strncmp(link, "/memfd:", 7) || fstatat(dirfd(folder), entry->d_name, &s, 0)) continue;
        int known = 0;
        for (int i = 0; i < files && !known; i++) known = counted[i] == s.st_ino;
        if (known || files == MOST_FILES) continue;
        counted[files++] = s.st_ino;
        sum += s.st_blocks * 512LL;
    }
    closedir(folder);
    return sum;
}

/* Shared memory of System V, attached or not; removed as well if asked for. */
static long long segments(int removed) {
    char line[512];
    long long sum = 0, held;
    int id;
    FILE *file = fopen("/proc/sysvipc/shm", "re");
    while (file && fgets(line, sizeof line, file)) {
        if (sscanf(line, "%*d %d %*o %*u %*u %*u %*u %*u %*u %*u %*u %*u %*u %*u %lld", &id, &held) != 2) continue;
        sum += held;
        if (removed) shmctl(id, IPC_RMID, NULL);
    }
    if (file) fclose(file);
    return sum;
}

void drop_segments(void) { segments(1); }

/* Private pages of all processes, and shared ones: those in mappings, or those in files and segments,
 * whichever are more, because most are both. */
long long memory_used(void) {
    struct statvfs scratch;
    long long private = 0, mapped = 0, named = segments(0);
    char path[64], own[16];
    DIR *processes = opendir("/proc");
    files = 0;
    snprintf(own, sizeof own, "%d", (int)getpid());
    if (!statvfs("/tmp", &scratch)) named += (long long)(scratch.f_blocks - scratch.f_bfree) * scratch.f_frsize;
    for (struct dirent *entry; processes && (entry = readdir(processes));) {
        if (!isdigit((unsigned char)*entry->d_name) || !strcmp(entry->d_name, own)) continue;
        snprintf(path, sizeof path, "/proc/%.16s/smaps_rollup", entry->d_name);
        private += numbers_after(path, "Pss_Anon:") * 1024;
        mapped += numbers_after(path, "Pss_Shmem:") * 1024;
        named += unlinked_files(entry->d_name);
    }
    if (processes) closedir(processes);
    return private + (mapped > named ? mapped : named);
}
