/* What a hostile tool tries, as one static program: probe shm|memfd|sysv|private MIB, calls NUMBERS…,
 * connect PATH. */
#define _GNU_SOURCE
#include <errno.h>
#include <stddef.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

static void say(const char *what, long result) { printf("%s %d\n", what, result < 0 ? errno : 0); }

static void calls(int argc, char **argv) {
    char name[32];
    for (int i = 2; i < argc; i++) {
        errno = 0;
        syscall(atoi(argv[i]), 0, 0, 0, 0, 0);
        printf("%s %d\n", argv[i], errno);
    }
    int families[] = {AF_UNIX, AF_INET, AF_INET6, AF_NETLINK, AF_ALG, AF_VSOCK, AF_PACKET};
    for (unsigned i = 0; i < sizeof families / sizeof *families; i++) {
        snprintf(name, sizeof name, "socket-%d", families[i]);
        say(name, socket(families[i], families[i] == AF_ALG ? SOCK_SEQPACKET : SOCK_DGRAM, 0));
    }
    errno = 0;
    syscall(SYS_clone, CLONE_NEWUSER | 17, 0, 0, 0, 0);
    printf("clone-newuser %d\n", errno);
    say("clone3", syscall(SYS_clone3, 0, 0));
    say("unknown", syscall(4000));
}

int main(int argc, char **argv) {
    static char block[1 << 20];
    size_t size = argc > 2 ? (size_t)atol(argv[2]) << 20 : 0;
    char *p = NULL;
    if (argc < 2) return 2;
    if (!strcmp(argv[1], "calls")) return calls(argc, argv), 0;
    if (!strcmp(argv[1], "connect")) {
        struct sockaddr_un there = {.sun_family = AF_UNIX};
        strncpy(there.sun_path, argv[2], sizeof there.sun_path - 1);
        if (*argv[2] == '@') there.sun_path[0] = 0;
        socklen_t length = offsetof(struct sockaddr_un, sun_path) + strlen(argv[2]);
        int fd = socket(AF_UNIX, SOCK_STREAM, 0);
        return connect(fd, (struct sockaddr *)&there, length) ? errno : 0;
    }
    if (!strcmp(argv[1], "private")) p = mmap(0, size, 3, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (!strcmp(argv[1], "shm")) p = mmap(0, size, 3, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (!strcmp(argv[1], "sysv")) p = shmat(shmget(IPC_PRIVATE, size, IPC_CREAT | 0600), NULL, 0);
    if (!strcmp(argv[1], "memfd")) {
        int fd = syscall(SYS_memfd_create, "x", 0);
        memset(block, 1, sizeof block);
        for (size_t done = 0; done < size; done += sizeof block)
            if (write(fd, block, sizeof block) != sizeof block) return perror("memfd"), 1;
    } else {
        if (!p || p == MAP_FAILED) return perror("no memory"), 1;
        memset(p, 1, size);
    }
    printf("held %s MiB\n", argv[2]);
    fflush(stdout);
    sleep(1);
    puts("kept");
}
