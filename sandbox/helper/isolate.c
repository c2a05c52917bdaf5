/* The isolation of local processes: an empty root, namespaces, limits, a list of system calls.
 *
 * The root begins as an empty tmpfs. The host's programs (/usr and what links into it) and a few
 * public files of /etc and /dev are bound into it, read-only; everything else of the host is not there.
 * Each step is checked: what fails is added to `isolation.lacking`, with the kernel's reason.
 */
#define _GNU_SOURCE
#include "isolate.h"

#include <errno.h>
#include <fcntl.h>
#include <glob.h>
#include <grp.h>
#include <linux/audit.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/mount.h>
#include <linux/seccomp.h>
#include <net/if.h>
#include <netinet/in.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "calls.h" /* made of seccomp.py: allowed_calls, FAMILIES, PERSONALITIES, NAMESPACES */

#if defined(__x86_64__)
#define MACHINE AUDIT_ARCH_X86_64
#elif defined(__aarch64__)
#define MACHINE AUDIT_ARCH_AARCH64
#endif

#define ROOT_SIZE "size=16m,nr_inodes=4096,mode=0755"
#define ATTRS (MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID)

struct isolation isolation = {.folder = "/", .children = -1};

static int lack(const char *what) {
    size_t used = strlen(isolation.lacking);
    snprintf(isolation.lacking + used, sizeof isolation.lacking - used, "%s%s: %s", used ? "\n" : "",
             what, strerror(errno));
    return -1;
}

int put_text(const char *path, const char *text) {
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    int ok = fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text);
    int error = errno;
    if (fd >= 0) close(fd);
    errno = error;
    return ok;
}

void make_parents(char *path) {
    for (char *p = path + 1; (p = strchr(p, '/')); p++) *p = 0, mkdir(path, 0777), *p = '/';
}

/* --- the empty root: paths without a leading / are in the new one, which is the working folder --- */

/* Bind a tree of mounts to a place, with more restrictions. */
static int bind_tree(const char *from, const char *to, unsigned long long attributes) {
    int tree = syscall(SYS_open_tree, AT_FDCWD, from, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_RECURSIVE);
    if (tree < 0) return -1;
    struct mount_attr attr = {.attr_set = attributes};
    int bad = syscall(SYS_mount_setattr, tree, "", AT_EMPTY_PATH | AT_RECURSIVE, &attr, sizeof attr) ||
              syscall(SYS_move_mount, tree, "", AT_FDCWD, to, MOVE_MOUNT_F_EMPTY_PATH);
    int error = errno;
    close(tree);
    errno = error;
    return -bad;
}

/* Show a file, folder or link of the host at the same place. What is not there is left out. */
static int show(const char *path, unsigned long long attributes) {
    char place[512], link[512];
    struct stat s;
    if (lstat(path, &s)) return errno == ENOENT ? 0 : -1;
    snprintf(place, sizeof place, "%s", path + 1);
    make_parents(place);
    if (S_ISLNK(s.st_mode)) {
        ssize_t n = readlink(path, link, sizeof link - 1);
        if (n < 0) return -1;
        link[n] = 0;
        return symlink(link, place);
    }
    if (S_ISDIR(s.st_mode) ? mkdir(place, 0755) : mknod(place, S_IFREG | 0444, 0)) return -1;
    return bind_tree(path, place, attributes);
}

static void show_public_files(void) {
    const char *patterns[] = {
        "alternatives", "bash.bashrc", "ca-certificates*", "crypto-policies", "debian_version", "fonts",
        "gai.conf", "host.conf", "inputrc", "java-*", "ld.so.*", "locale.alias", "localtime", "lsb-release",
        "magic*", "mime.types", "networks", "nsswitch.conf", "os-release", "perl", "pki/ca-trust",
        "pki/tls/certs", "protocols", "python3*", "*-release", "rpc", "services", "shells", "ssl/certs",
        "ssl/openssl.cnf", "terminfo", "timezone", NULL};
    glob_t found = {0};
    for (int i = 0; patterns[i]; i++) {
        char pattern[64];
        snprintf(pattern, sizeof pattern, "/etc/%s", patterns[i]);
        glob(pattern, GLOB_NOSORT | (i ? GLOB_APPEND : 0), NULL, &found);
    }
    for (size_t i = 0; i < found.gl_pathc; i++) show(found.gl_pathv[i], ATTRS | MOUNT_ATTR_NODEV);
    globfree(&found);
}

static int make_file(const char *path, const char *text) {
    return mknod(path, S_IFREG | 0644, 0) || !put_text(path, text);
}

static int fill_etc(void) {
    show_public_files();
    return make_file("etc/passwd", "root:x:0:0:root:/work:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n") ||
           make_file("etc/group", "root:x:0:\nnogroup:x:65534:\n") ||
           make_file("etc/hosts", "127.0.0.1 localhost\n::1 localhost\n");
}

static int fill_dev(void) {
    const char *nodes[] = {"/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty", NULL};
    for (int i = 0; nodes[i]; i++)
        if (show(nodes[i], MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC)) return -1;
    mkdir("dev/pts", 0755); /* terminals of its own; without them programs only have none */
    mount("devpts", "dev/pts", "devpts", MS_NOSUID | MS_NOEXEC, "newinstance,ptmxmode=0666,mode=620");
    return symlink("pts/ptmx", "dev/ptmx") || symlink("/proc/self/fd", "dev/fd") ||
           symlink("/proc/self/fd/0", "dev/stdin") || symlink("/proc/self/fd/1", "dev/stdout") ||
           symlink("/proc/self/fd/2", "dev/stderr");
}

/* One tmpfs for all temporary folders: together they hold no more than half of the memory. */
static int make_scratch(void) {
    const char *places[] = {"tmp", "var/tmp", "dev/shm", NULL}, *parts[] = {"tmp", "var", "shm"};
    char options[96], part[64];
    snprintf(options, sizeof options, "size=%lld,nr_inodes=65536,mode=0700", isolation.memory / 2);
    if (mkdir(".scratch", 0700) || mkdir("var", 0755) ||
        mount("tmpfs", ".scratch", "tmpfs", MS_NOSUID | MS_NODEV, options))
        return -1;
    for (int i = 0; places[i]; i++) {
        snprintf(part, sizeof part, ".scratch/%s", parts[i]);
        if (mkdir(part, 0777) || chmod(part, 01777) || mkdir(places[i], 0777) ||
            bind_tree(part, places[i], MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV))
            return -1;
    }
    return 0;
}

/* A /proc of our own. Where the kernel refuses one (the host's is masked) its place stays empty. */
static void make_proc(void) {
    isolation.children = open("/proc/thread-self/children", O_RDONLY | O_CLOEXEC);
    mkdir("proc", 0555);
    if (mount("proc", "proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL)) {
        lack("a private /proc, so there is none");
        return;
    }
    if (isolation.children >= 0) close(isolation.children);
    isolation.children = -1, isolation.proc = 1;
    put_text("proc/sys/kernel/shm_rmid_forced", "1"); /* shared memory ends with its processes */
    if (!put_text("proc/sys/user/max_user_namespaces", "0")) lack("a limit of nested user namespaces");
    if (bind_tree("proc/sys", "proc/sys", ATTRS | MOUNT_ATTR_NODEV)) lack("a read-only /proc/sys");
}

/* Build the new root over the environment's folder, and step into it. */
static int empty_root(void) {
    struct mount_attr sealed = {.attr_set = ATTRS | MOUNT_ATTR_NODEV};
    const char *programs[] = {"/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/nix/store", NULL};
    if (mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL)) return lack("mounts of its own");
    int work = syscall(SYS_open_tree, AT_FDCWD, isolation.folder, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC);
    struct mount_attr own = {.attr_set = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV};
    if (work < 0 || syscall(SYS_mount_setattr, work, "", AT_EMPTY_PATH, &own, sizeof own) ||
        mount("tmpfs", isolation.folder, "tmpfs", MS_NOSUID, ROOT_SIZE))
        return lack("an empty root");
    if (chdir(isolation.folder)) return lack("an empty root");
    for (int i = 0; programs[i]; i++)
        if (show(programs[i], ATTRS | MOUNT_ATTR_NODEV)) return lack(programs[i]);
    mkdir("etc", 0755), mkdir("dev", 0755), mkdir("work", 0755);
    if (fill_etc()) return lack("/etc");
    if (fill_dev()) return lack("/dev");
    if (make_scratch()) return lack("temporary folders");
    make_proc();
    if (syscall(SYS_move_mount, work, "", AT_FDCWD, "work", MOVE_MOUNT_F_EMPTY_PATH)) return lack("its folder");
    close(work);
    if (syscall(SYS_pivot_root, ".", ".") || umount2(".", MNT_DETACH) || chdir("/"))
        return lack("a change of the root");
    isolation.folder = "/work";
    if (umount2("/.scratch", MNT_DETACH) || rmdir("/.scratch") ||
        syscall(SYS_mount_setattr, AT_FDCWD, "/", 0, &sealed, sizeof sealed))
        lack("a read-only root");
    return 0;
}

/* --- namespaces --------------------------------------------------------------------------- */

static int become_nobody(void) {
    return chown(isolation.folder, NOBODY, NOBODY) || setgroups(0, NULL) ||
           setresgid(NOBODY, NOBODY, NOBODY) || setresuid(NOBODY, NOBODY, NOBODY) ||
           prctl(PR_SET_DUMPABLE, 1, 0, 0, 0);
}

static int make_namespaces(void) {
    uid_t uid = getuid();
    gid_t gid = getgid();
    char map[64];
    if (unshare(CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWNET)) return -1;
    put_text("/proc/self/setgroups", "deny");
    snprintf(map, sizeof map, "0 %d 1", uid);
    if (!put_text("/proc/self/uid_map", map)) return -1;
    snprintf(map, sizeof map, "0 %d 1", gid);
    if (!put_text("/proc/self/gid_map", map)) return -1;
    return 0;
}

static int raise_loopback(void) {
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    struct ifreq lo = {.ifr_name = "lo", .ifr_flags = IFF_UP};
    int bad = fd < 0 || ioctl(fd, SIOCSIFFLAGS, &lo);
    if (fd >= 0) close(fd);
    return bad;
}

/* The first process of the new process namespace goes on; the other waits for its end. */
static int enter_process_namespace(void) {
    pid_t pid = fork();
    if (pid < 0) return -1;
    if (pid > 0) {
        int status;
        close(0), close(1);
        waitpid(pid, &status, 0);
        _exit(WIFEXITED(status) ? WEXITSTATUS(status) : 1);
    }
    return prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
}

void isolate(void) {
    isolation.wanted = 1;
    if (!isolation.cgroups[0]) errno = EACCES, lack("a memory limit by cgroup, so that memory is only watched");
    for (int i = 0; i < MOST_CGROUPS && isolation.cgroups[i]; i++)
        if (!put_text(isolation.cgroups[i], "0")) lack(isolation.cgroups[i]), isolation.cgroups[0] = NULL;
    if (getuid() == 0 && become_nobody()) lack("another user than root");
    if (make_namespaces()) {
        lack("namespaces, so that files, processes and network are the host's");
        return;
    }
    if (raise_loopback()) lack("loopback");
    if (enter_process_namespace()) {
        lack("a process namespace");
        return;
    }
    isolation.namespaces = 1;
    sethostname("sandbox", 7);
#ifndef MACHINE
    errno = ENOSYS, lack("a list of system calls for this processor");
#endif
    if (empty_root()) umount2(isolation.folder, MNT_DETACH);
}

/* --- system calls ------------------------------------------------------------------------- */

#ifdef MACHINE
enum { MOST_STEPS = 2048 };
static struct sock_filter steps[MOST_STEPS];
static unsigned short count;

static void step(unsigned short code, unsigned jt, unsigned jf, unsigned k) {
    steps[count++] = (struct sock_filter){code, jt, jf, k};
}

static void answer(unsigned k) { step(BPF_RET | BPF_K, 0, 0, k); }
static void load(size_t at) { step(BPF_LD | BPF_W | BPF_ABS, 0, 0, at); }

/* A call that is allowed when its first argument is one of these. */
static void allow_values(int call, const unsigned *values, int many) {
    step(BPF_JMP | BPF_JEQ | BPF_K, 0, 2 * many + 2, call);
    load(offsetof(struct seccomp_data, args[0]));
    for (int i = 0; i < many; i++) step(BPF_JMP | BPF_JEQ | BPF_K, 0, 1, values[i]), answer(SECCOMP_RET_ALLOW);
    answer(SECCOMP_RET_ERRNO | EPERM);
}

static int by_number(const void *a, const void *b) { return *(const int *)a - *(const int *)b; }

/* The same list as containers have (seccomp.py); numbers above all that it knows do not exist. */
static void build_filter(void) {
    static const unsigned families[] = {FAMILIES}, personalities[] = {PERSONALITIES};
    int *calls = allowed_calls, many = sizeof allowed_calls / sizeof *allowed_calls;
    qsort(calls, many, sizeof *calls, by_number);
    load(offsetof(struct seccomp_data, arch));
    step(BPF_JMP | BPF_JEQ | BPF_K, 1, 0, MACHINE), answer(SECCOMP_RET_ERRNO | EPERM);
    load(offsetof(struct seccomp_data, nr));
    allow_values(__NR_socket, families, sizeof families / sizeof *families);
    allow_values(__NR_personality, personalities, sizeof personalities / sizeof *personalities);
    step(BPF_JMP | BPF_JEQ | BPF_K, 0, 4, __NR_clone), load(offsetof(struct seccomp_data, args[0]));
    step(BPF_JMP | BPF_JSET | BPF_K, 0, 1, NAMESPACES), answer(SECCOMP_RET_ERRNO | EPERM);
    answer(SECCOMP_RET_ALLOW);
    step(BPF_JMP | BPF_JEQ | BPF_K, 0, 1, __NR_clone3), answer(SECCOMP_RET_ERRNO | ENOSYS);
    for (int i = 0, last; i < many; i = last + 1) { /* neighbouring numbers are one range */
        for (last = i; last + 1 < many && calls[last + 1] <= calls[last] + 1; last++) {
        }
        step(BPF_JMP | BPF_JGT | BPF_K, 3, 0, calls[last]);
        step(BPF_JMP | BPF_JGE | BPF_K, 0, 1, calls[i]), answer(SECCOMP_RET_ALLOW);
        answer(SECCOMP_RET_ERRNO | EPERM);
    }
    answer(SECCOMP_RET_ERRNO | ENOSYS);
}

static int filter_calls(void) {
    if (!count) build_filter();
    struct sock_fprog program = {count, steps};
    return prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program, 0, 0);
}
#else
static int filter_calls(void) { return 0; } /* isolate() says so */
#endif

/* --- a command's own process -------------------------------------------------------------- */

void drop_capabilities(void) {
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct none[2] = {{0}};
    for (int c = 0; c < 64; c++) prctl(PR_CAPBSET_DROP, c, 0, 0, 0);
    prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
    syscall(SYS_capset, &header, none);
}

static int limit(int what, rlim_t value) {
    struct rlimit l;
    if (getrlimit(what, &l)) return -1;
    if (l.rlim_max == RLIM_INFINITY || l.rlim_max > value) l.rlim_max = value;
    l.rlim_cur = l.rlim_max;
    return setrlimit(what, &l);
}

void confine(void) {
    struct rlimit no_core = {0, 0};
    setrlimit(RLIMIT_CORE, &no_core);
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    if (!isolation.wanted) return; /* a container has the rest */
    /* What no cgroup counts is watched, by way of /proc; without that, addresses are limited. Without
     * namespaces the processes and the memory of all that the user runs would count. */
    int memory = isolation.namespaces && !isolation.proc ? RLIMIT_AS : RLIMIT_DATA;
    if ((isolation.namespaces && limit(RLIMIT_NPROC, isolation.pids)) || limit(RLIMIT_NOFILE, 1024) || limit(RLIMIT_FSIZE, isolation.disk) ||
        (!isolation.cgroups[0] && limit(memory, isolation.memory)))
        _exit(126);
    drop_capabilities();
    if (filter_calls()) _exit(126);
}
