/* The helper: the one process drawloom keeps in an environment.
 *
 * It runs commands and moves files for its owner over stdin and stdout, so that a call costs a fork
 * and not a `docker exec` (2 ms against 65). Statically linked, it needs nothing from the image.
 *
 *   helper [--ttl S [--hard]] [--dir D] [--llm SOCKET]
 *          [--isolate --memory B --pids N --disk B [--cgroup FILE]…]
 *
 * Request: one header line, then its payloads.        Reply: one header line, then its payload.
 *   exec ID TIMEOUT_MS CAP ARGS_LEN STDIN_LEN STREAM     =DL ID exit CODE TIMED_OUT TOTAL MICROS LEN
 *   write ID PATH_LEN DATA_LEN APPEND                    =DL ID ok 0 0 SIZE 0 LEN
 *   read ID LIMIT PATH_LEN                               =DL ID error ERRNO 0 0 0 LEN
 *   piece ID LIMIT PATH_LEN OFFSET                       =DL ID part 0 0 0 0 LEN (of an exec)
 *   result ID | ack ID | cancel ID | drop ID | hello ID  =DL ID missing 0 0 0 0 0
 *   peek ASKED LEN, then the ID of an exec               =DL ASKED now RUNNING CODE TOTAL MICROS LEN
 *
 * Arguments are joined by NUL. stdout and stderr are one stream; of more than CAP bytes the first
 * and last halves are kept, here, so that a flood never leaves the environment; with STREAM the first
 * half is also told as it comes, in `part`s, because nothing can change it any more. A result is kept
 * until it is acknowledged (`drop` kills and wants none): an owner that died asks again with `result`. A command ends when its
 * own process does, even if a child of it still holds its output. After a timeout nothing of it is
 * left: its group at once, and whatever it detached as soon as no other command runs.
 * When nobody has spoken for --ttl seconds it ends with everything, once no command runs that somebody
 * may still ask for (a background process is none); with --hard whatever runs.
 * With --isolate the helper first leaves the host (isolate.c). The answer to `hello` is how much of
 * that it could: 2 all, 1 some, 0 none; its text has a line for each thing that is missing.
 * With --llm port 8000 of loopback leads to that socket, on which the owner serves its model; another
 * process of ours passes the bytes, so that whatever runs here finds it by OPENAI_BASE_URL.
 */
#define _GNU_SOURCE
#include "isolate.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <linux/magic.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/vfs.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { JOBS = 64, NAME = 64, PORT = 8000, CONNECTIONS = 32, MAX_PAYLOAD = 256 << 20, STALE_MS = 5000, LOOK_MS = 50 };
enum state { UNUSED, RUNNING, DONE, DRAINING };

struct job {
    enum state state;
    char id[NAME];
    pid_t pid;
    int out, timed_out, code, stream, unwanted;
    long long begun, deadline, took, total;
    size_t cap, head, tail, at; /* bytes kept in front, at the end, and where the end begins */
    char *data;
};

static struct job jobs[JOBS];
static int sweep, oom_score = -1;
static char own_score[16]; /* as we found it */
static const char *llm;   /* the owner's socket, if there is one */
static pid_t relay_pid;
static int listener = -1; /* where commands here find it */

static long long now_us(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000LL + t.tv_nsec / 1000;
}

static void send_all(const char *data, size_t size) {
    while (size) {
        ssize_t n = write(1, data, size);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) _exit(1);
        data += n, size -= n;
    }
}

static void reply(const char *id, const char *kind, long a, long b, long long c, long long d,
                  size_t size) {
    char line[256];
    int n = snprintf(line, sizeof line, "=DL %s %s %ld %ld %lld %lld %zu\n", id, kind, a, b, c, d, size);
    send_all(line, n);
}

static void refuse(const char *id, int error, const char *text) {
    reply(id, "error", error, 0, 0, 0, strlen(text));
    send_all(text, strlen(text));
}

static void fail(const char *id, int error) { refuse(id, error, strerror(error)); }

static struct job *find(const char *id) {
    for (int i = 0; i < JOBS; i++)
        if ((jobs[i].state == RUNNING || jobs[i].state == DONE) && !strcmp(jobs[i].id, id)) return &jobs[i];
    return NULL;
}

/* Whether a command runs whose result somebody may come for: not a service, which has no end. */
static int awaited(void) {
    for (int i = 0; i < JOBS; i++)
        if (jobs[i].state == RUNNING && strncmp(jobs[i].id, "service-", 8)) return 1;
    return 0;
}

static int running(void) {
    int n = 0;
    for (int i = 0; i < JOBS; i++) n += jobs[i].state == RUNNING;
    return n;
}

/* --- output ------------------------------------------------------------------------------- */

static void keep(struct job *j, const char *data, size_t size) {
    size_t half = j->cap / 2, rest = j->cap - half;
    j->total += size;
    if (j->head < half) {
        size_t n = size < half - j->head ? size : half - j->head;
        memcpy(j->data + j->head, data, n);
        if (j->stream) reply(j->id, "part", 0, 0, 0, 0, n), send_all(data, n);
        j->head += n, data += n, size -= n;
    }
    if (size > rest) data += size - rest, size = rest; /* only the last bytes can survive */
    while (size) {
        size_t n = rest - j->at < size ? rest - j->at : size;
        memcpy(j->data + half + j->at, data, n);
        j->at = (j->at + n) % rest, data += n, size -= n;
        j->tail = j->tail + n < rest ? j->tail + n : rest;
    }
}

/* Read what is there; 0 when the last writer is gone. */
static int drain(struct job *j) {
    char buffer[65536];
    for (int turns = 0; turns < 64; turns++) {
        ssize_t n = read(j->out, buffer, sizeof buffer);
        if (n > 0 && j->state == RUNNING) keep(j, buffer, n);
        if (n == 0) return 0;
        if (n < 0) return errno == EAGAIN || errno == EINTR;
    }
    return 1;
}

static void send_kept(struct job *j) {
    size_t half = j->cap / 2, rest = j->cap - half;
    send_all(j->data, j->head);
    if (j->tail < rest) {
        send_all(j->data + half, j->tail);
    } else {
        send_all(j->data + half + j->at, rest - j->at);
        send_all(j->data + half, j->at);
    }
}

static void report(struct job *j) {
    reply(j->id, "exit", j->code, j->timed_out, j->total, j->took, j->head + j->tail);
    send_kept(j);
}

static void peek(const char *asked, struct job *j) {
    int runs = j->state == RUNNING;
    reply(asked, "now", runs, j->code, j->total, runs ? now_us() - j->begun : j->took, j->head + j->tail);
    send_kept(j);
}

/* --- processes ---------------------------------------------------------------------------- */

/* Our children, orphans of commands among them; each gets the signal if there is one. */
static int children(int signal) {
    char buffer[4096];
    int known = isolation.children, found = 0;
    int fd = known >= 0 ? known : open("/proc/thread-self/children", O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? 0 : pread(fd, buffer, sizeof buffer - 1, 0);
    if (fd >= 0 && known < 0) close(fd);
    buffer[n > 0 ? n : 0] = 0;
    for (char *p = strtok(buffer, " "); p; p = strtok(NULL, " "), found++)
        if (signal) kill(atoi(p), signal);
    return found;
}

/* Kill all but ourselves, until a round finds nobody: a fork bomb loses that race. As process 1 we
 * own the whole process namespace; elsewhere only our descendants (orphans come to us) are ours. */
static void kill_everything(void) {
    for (int i = 0; i < 5000; i++) {
        if (getpid() == 1 ? kill(-1, SIGKILL) && errno == ESRCH : !children(SIGKILL)) return;
        while (waitpid(-1, NULL, WNOHANG) > 0) {
        }
        usleep(200);
    }
}

static void end_all(void) {
    kill_everything();
    relay_pid = 0;
}

/* Where no cgroup limits memory: kill what holds more than it may, as the kernel would. */
static void hold_memory(void) {
    if (memory_used() <= isolation.memory) return;
    kill(-1, SIGKILL); /* `reap` finishes their jobs */
    drop_segments();
    /* they hold their memory until they are gone: what starts next must not be killed for it */
    for (int i = 0; i < 1000 && memory_used() > isolation.memory; i++) usleep(1000);
}

static void forget(struct job *j) {
    free(j->data);
    j->data = NULL;
    j->state = j->out >= 0 ? DRAINING : UNUSED; /* a daemon may still hold its output: no SIGPIPE */
}

static void finish(struct job *j, int status) {
    int open = drain(j);
    j->code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    j->took = now_us() - j->begun;
    j->state = DONE;
    if (j->timed_out) sweep = 1;
    if (sweep && !running()) {
        end_all();
        sweep = 0, open = 0;
    }
    if (!j->unwanted) report(j);
    if (!open) close(j->out), j->out = -1;
    if (j->unwanted) forget(j);
}

static void reap(void) {
    int status;
    pid_t pid;
    while ((pid = waitpid(-1, &status, WNOHANG)) > 0) {
        if (pid == relay_pid) relay_pid = 0;
        for (int i = 0; i < JOBS; i++)
            if (jobs[i].state == RUNNING && jobs[i].pid == pid) finish(&jobs[i], status);
    }
}

static void child(char **argv, int input, int output) {
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    setsid();
    dup2(input, 0), dup2(output, 1), dup2(output, 2);
    syscall(SYS_close_range, 3, ~0U, 0);
    confine();
    execvp(argv[0], argv);
    dprintf(2, "%s: %s\n", argv[0], strerror(errno));
    _exit(errno == ENOENT ? 127 : 126);
}

/* Say how soon the kernel ends us for want of memory. */
static void first_to_go(const char *score) {
    if (oom_score >= 0) pwrite(oom_score, score, strlen(score), 0);
}

static struct job *new_job(void) {
    for (int i = 0; i < JOBS; i++)
        if (jobs[i].state == UNUSED) return &jobs[i];
    return NULL;
}

static void start(const char *id, long timeout_ms, size_t cap, char *args, size_t size,
                  const char *input, size_t input_size, int stream) {
    struct job *j = find(id) ? NULL : new_job();
    char *argv[1024];
    int argc = 0, pipes[2];
    if (!j) return fail(id, find(id) ? EEXIST : EAGAIN);
    for (char *p = args; p < args + size && argc < 1023; p += strlen(p) + 1) argv[argc++] = p;
    argv[argc] = NULL;
    if (!argc) return fail(id, EINVAL);
    int in = memfd_create("stdin", MFD_CLOEXEC);
    if (in < 0 || write(in, input, input_size) != (ssize_t)input_size || lseek(in, 0, SEEK_SET))
        return fail(id, errno ? errno : EIO);
    if (pipe2(pipes, O_CLOEXEC)) return close(in), fail(id, errno);
    *j = (struct job){.begun = now_us(), .cap = cap < 64 ? 64 : cap, .out = pipes[0],
                      .stream = stream};
    j->deadline = timeout_ms > 0 ? j->begun + timeout_ms * 1000LL : 0;
    j->data = malloc(j->cap);
    snprintf(j->id, NAME, "%s", id);
    fcntl(pipes[0], F_SETFL, O_NONBLOCK);
    first_to_go("1000"); /* a command has this from its birth: where memory runs out it ends, not we */
    j->pid = j->data ? fork() : -1;
    if (j->pid == 0) child(argv, in, pipes[1]);
    int error = errno;
    first_to_go(own_score);
    close(in), close(pipes[1]);
    if (j->pid < 0) {
        close(pipes[0]), free(j->data);
        j->state = UNUSED;
        return fail(id, error);
    }
    j->state = RUNNING;
}

static void stop(struct job *j) {
    j->timed_out = 1;
    j->deadline = 0;
    kill(-j->pid, SIGKILL);
    kill(j->pid, SIGKILL);
}

/* --- files -------------------------------------------------------------------------------- */

/* Open a file for its owner, whatever a command put in its place: never a pipe, device or socket, at
 * which we would wait, nor anything of /proc, where our own descriptors and memory lie. An error is
 * answered, then -1. */
static int open_regular(const char *id, const char *path, int flags) {
    struct open_how how = {.flags = flags | O_CLOEXEC | O_NONBLOCK | O_NOCTTY, .resolve = RESOLVE_NO_MAGICLINKS,
                           .mode = flags & O_CREAT ? 0666 : 0};
    struct stat s;
    struct statfs f;
    int fd = syscall(SYS_openat2, AT_FDCWD, path, &how, sizeof how);
    if (fd < 0 && errno == ENOSYS) fd = open(path, how.flags, 0666);
    if (fd < 0 && errno != ENXIO && errno != ELOOP) return fail(id, errno), -1;
    if (fd >= 0 && !fstat(fd, &s) && S_ISDIR(s.st_mode)) return close(fd), fail(id, EISDIR), -1;
    if (fd >= 0 && S_ISREG(s.st_mode) && !fstatfs(fd, &f) && f.f_type != PROC_SUPER_MAGIC) return fd;
    if (fd >= 0) close(fd);
    return refuse(id, EINVAL, "not a regular file, nor a link to one"), -1;
}

static void put(const char *id, char *path, const char *data, size_t size, int append) {
    make_parents(path);
    int fd = open_regular(id, path, O_WRONLY | O_CREAT | (append ? O_APPEND : 0));
    if (fd < 0) return;
    int bad = !append && ftruncate(fd, 0);
    for (size_t done = 0; !bad && done < size;) {
        ssize_t n = write(fd, data + done, size - done);
        bad = n <= 0;
        done += n;
    }
    int error = errno;
    close(fd);
    if (bad) fail(id, error);
    else reply(id, "ok", 0, 0, 0, 0, 0);
}

/* A file whole, or, from an offset on, at most so many bytes of it. */
static void get(const char *id, const char *path, size_t most, long long offset) {
    struct stat s;
    int fd = open_regular(id, path, O_RDONLY);
    if (fd < 0) return;
    if (fstat(fd, &s)) return close(fd), fail(id, errno);
    if (offset < 0 && (size_t)s.st_size > most) return close(fd), fail(id, EFBIG);
    if (offset > 0 && lseek(fd, offset, SEEK_SET) < 0) return close(fd), fail(id, errno);
    char *data = malloc(most + 1);
    size_t size = 0;
    ssize_t n = data ? 1 : -1;
    while (n > 0 && size < most && (n = read(fd, data + size, most - size)) > 0) size += n;
    close(fd);
    if (n < 0) fail(id, errno);
    else reply(id, "ok", 0, 0, s.st_size, 0, size), send_all(data, size);
    free(data);
}

/* --- the owner's model --------------------------------------------------------------------- */

/* What comes from one side to the other; 0 when that side has no more. */
static int pass(int from, int to) {
    char buffer[65536];
    ssize_t n = read(from, buffer, sizeof buffer);
    for (ssize_t done = 0, m; done < n; done += m)
        if ((m = write(to, buffer + done, n - done)) <= 0) _exit(0);
    if (n <= 0) shutdown(to, SHUT_WR);
    return n > 0;
}

static void connected(int client) {
    struct sockaddr_un there = {.sun_family = AF_UNIX};
    int model = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0), open[2] = {1, 1};
    snprintf(there.sun_path, sizeof there.sun_path, "%s", llm);
    if (model < 0 || connect(model, (struct sockaddr *)&there, sizeof there)) _exit(1);
    while (open[0] || open[1]) {
        struct pollfd polls[2] = {{open[0] ? client : -1, POLLIN, 0}, {open[1] ? model : -1, POLLIN, 0}};
        if (poll(polls, 2, -1) < 0) _exit(1);
        if (polls[0].revents) open[0] = pass(client, model);
        if (polls[1].revents) open[1] = pass(model, client);
    }
    _exit(0);
}

/* The port is opened here, not by the relay: who connects before it runs, or while another takes its
 * place, waits instead of being refused. */
static int open_port(void) {
    struct sockaddr_in here = {.sin_family = AF_INET, .sin_port = htons(PORT),
                               .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int on = 1, port = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    setsockopt(port, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (!bind(port, (struct sockaddr *)&here, sizeof here) && !listen(port, CONNECTIONS)) return port;
    close(port);
    return -1;
}

static void relay(int listener) {
    int running = 0;
    prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
    drop_capabilities();
    for (;;) {
        while (running && waitpid(-1, NULL, running < CONNECTIONS ? WNOHANG : 0) > 0) running--;
        struct pollfd waiting = {listener, POLLIN, 0};
        if (poll(&waiting, 1, running ? 100 : -1) < 1) continue;
        int client = accept(listener, NULL, NULL);
        pid_t pid = client < 0 ? -1 : fork();
        if (pid == 0) close(listener), connected(client);
        if (pid > 0) running++;
        if (client >= 0) close(client);
    }
}

static void start_relay(void) {
    sigset_t none;
    if (listener < 0 && (listener = open_port()) < 0) return; /* tried again when we wake */
    relay_pid = fork();
    if (relay_pid) return;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    signal(SIGPIPE, SIG_IGN);
    setsid();
    dup2(listener, 3); /* is 3 already, or takes the place of what is not the relay's */
    syscall(SYS_close_range, 4, ~0U, 0);
    int nowhere = open("/dev/null", O_RDWR);
    dup2(nowhere, 0), dup2(nowhere, 1), dup2(nowhere, 2), close(nowhere);
    relay(3);
}

/* --- requests ----------------------------------------------------------------------------- */

static void welcome(const char *id) {
    size_t size = strlen(isolation.lacking);
    int level = !isolation.wanted ? 1 : !isolation.namespaces ? 0 : size ? 1 : 2;
    reply(id, "ok", level, children(0) - (relay_pid > 0), 0, 0, size);
    send_all(isolation.lacking, size);
}

/* Carry out the request at the head of the buffer. Its length, 0 if incomplete, -1 if nonsense. */
static ssize_t serve(char *buffer, size_t size) {
    char *end = memchr(buffer, '\n', size < 512 ? size : 512);
    char op[16], id[NAME];
    long long a = 0, b = 0, c = 0, d = 0, e = 0;
    if (!end) return size >= 512 ? -1 : 0;
    *end = 0;
    int fields = sscanf(buffer, "%15s %63s %lld %lld %lld %lld %lld", op, id, &a, &b, &c, &d, &e);
    *end = '\n';
    if (fields < 2) return end - buffer + 1; /* an empty line: an owner finding its place */
    char *body = end + 1;
    size_t have = size - (body - buffer);
    int reads = !strcmp(op, "read") || !strcmp(op, "piece"), peeks = !strcmp(op, "peek");
    size_t first = !strcmp(op, "exec") ? c : !strcmp(op, "write") || peeks ? a : reads ? b : 0;
    size_t second = !strcmp(op, "exec") ? d : !strcmp(op, "write") ? b : 0;
    if (first > MAX_PAYLOAD || second > MAX_PAYLOAD) return -1;
    if (have < first + second) return 0;
    char *text = strndup(body, first); /* a path; exec keeps its NULs in the buffer */
    struct job *j = find(id);
    if (!strcmp(op, "exec")) {
        char *args = calloc(1, first + 1);
        memcpy(args, body, first);
        start(id, a, b, args, first, body + first, second, e != 0);
        free(args);
    } else if (!strcmp(op, "write")) put(id, text, body + first, second, c != 0);
    else if (reads) get(id, text, a, op[0] == 'p' ? c : -1);
    else if (peeks && find(text)) peek(id, find(text));
    else if (!strcmp(op, "hello")) welcome(id);
    else if (!j) reply(id, "missing", 0, 0, 0, 0, 0);
    else if (!strcmp(op, "result")) {
        if (j->state == DONE) report(j); /* a running one reports when it ends */
    } else if (!strcmp(op, "ack") && j->state == DONE) forget(j);
    else if (!strcmp(op, "cancel") && j->state == RUNNING) stop(j);
    else if (!strcmp(op, "drop")) {
        if (j->state == DONE) forget(j);
        else j->unwanted = 1, stop(j);
    }
    free(text);
    return body + first + second - buffer;
}

int main(int argc, char **argv) {
    long ttl = 0;
    int want = 0, hard = 0, cgroups = 0;
    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "--isolate")) want = 1;
        else if (!strcmp(argv[i], "--hard")) hard = 1;
        else if (i + 1 == argc) return 2;
        else if (!strcmp(argv[i], "--ttl")) ttl = atol(argv[++i]);
        else if (!strcmp(argv[i], "--dir")) isolation.folder = argv[++i];
        else if (!strcmp(argv[i], "--llm")) llm = argv[++i];
        else if (!strcmp(argv[i], "--memory")) isolation.memory = atoll(argv[++i]);
        else if (!strcmp(argv[i], "--pids")) isolation.pids = atoll(argv[++i]);
        else if (!strcmp(argv[i], "--disk")) isolation.disk = atoll(argv[++i]);
        else if (!strcmp(argv[i], "--cgroup") && cgroups < MOST_CGROUPS) isolation.cgroups[cgroups++] = argv[++i];
        else return 2;
    }
    if (want) isolate();
    oom_score = open("/proc/self/oom_score_adj", O_RDWR | O_CLOEXEC);
    if (oom_score >= 0 && read(oom_score, own_score, sizeof own_score - 1) <= 0) oom_score = -1;
    prctl(PR_SET_DUMPABLE, 0, 0, 0, 0); /* no command may look into us, or trace us */
    mkdir(isolation.folder, 0777);
    if (chdir(isolation.folder)) return 3;
    setenv("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", 0);
    setenv("HOME", isolation.folder, 1);
    if (want && !isolation.namespaces) llm = NULL; /* its port would be the host's */
    if (llm) setenv("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1", 1), setenv("OPENAI_API_KEY", "none", 1);
    prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0);
    signal(SIGPIPE, SIG_DFL);
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGCHLD);
    sigprocmask(SIG_BLOCK, &set, NULL);
    int ended = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    size_t size = 0, room = 1 << 16;
    char *buffer = malloc(room);
    long long heard = now_us(), looked = 0;
    int watched = isolation.proc && !isolation.cgroups[0];
    for (;;) {
        if (llm && relay_pid <= 0) start_relay(); /* at first, and after everything was killed */
        struct pollfd polls[JOBS + 2] = {{0, POLLIN, 0}, {ended, POLLIN, 0}};
        int which[JOBS + 2], n = 2;
        long long now = now_us(), next = size ? heard + STALE_MS * 1000LL : now + 3600000000LL;
        int ends = ttl && (hard || !awaited()); /* else the end of a command wakes us */
        if (ends && heard + ttl * 1000000LL < next) next = heard + ttl * 1000000LL;
        for (int i = 0; i < JOBS; i++) {
            struct job *j = &jobs[i];
            if (j->state == RUNNING && j->deadline && j->deadline < next) next = j->deadline;
            if (j->state != UNUSED && j->out >= 0) {
                polls[n] = (struct pollfd){j->out, POLLIN, 0};
                which[n++] = i;
            }
        }
        if (watched && running() && now + LOOK_MS * 1000LL < next) next = now + LOOK_MS * 1000LL;
        long long wait = (next - now + 999) / 1000;
        poll(polls, n, wait < 0 ? 0 : wait);
        for (int k = 2; k < n; k++)
            if (polls[k].revents && jobs[which[k]].out >= 0 && !drain(&jobs[which[k]])) {
                struct job *j = &jobs[which[k]];
                close(j->out), j->out = -1;
                if (j->state == DRAINING) j->state = UNUSED;
            }
        if (polls[1].revents) {
            struct signalfd_siginfo info;
            while (read(ended, &info, sizeof info) > 0) {
            }
            reap();
        }
        now = now_us();
        if (watched && running() && now - looked >= LOOK_MS * 1000LL) looked = now, hold_memory();
        for (int i = 0; i < JOBS; i++)
            if (jobs[i].state == RUNNING && jobs[i].deadline && jobs[i].deadline <= now) stop(&jobs[i]);
        if (polls[0].revents) {
            if (size == room && !(buffer = realloc(buffer, room *= 2))) return 4;
            ssize_t got = read(0, buffer + size, room - size);
            if (got == 0 || (got < 0 && errno != EINTR && errno != EAGAIN)) break;
            if (got > 0) size += got, heard = now;
            ssize_t used;
            while (size && (used = serve(buffer, size)) != 0) {
                size = used < 0 ? 0 : size - used;
                memmove(buffer, buffer + (used < 0 ? 0 : used), size);
            }
        } else if (size && now - heard > STALE_MS * 1000LL) {
            size = 0; /* the owner died in the middle of a request */
        }
        if (ttl && now - heard > ttl * 1000000LL && (hard || !awaited())) break;
    }
    kill_everything();
    return 0;
}
