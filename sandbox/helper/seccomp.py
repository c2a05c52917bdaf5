"""Seccomp filters: the system calls that a command may make.

Calls that programs need are listed; all others are refused. Not listed, though Docker's own list
of the tested engine (20.10) has it: `io_uring_*` (moby #46762).
Not listed in either: mounts, namespaces, modules, keys, `bpf`, `perf_event_open`, `ptrace`, clocks,
`userfaultfd`, `kexec`. Sockets only of Unix, IPv4, IPv6 and netlink. `clone3` answers ENOSYS, as
its flags cannot be looked at; libraries then use `clone`, without namespace flags.
"""

import errno
import json
from typing import Any

_PLAIN = """
accept accept4 access alarm arch_prctl bind brk capget capset chdir chmod chown chown32
clock_getres clock_gettime clock_nanosleep close close_range connect copy_file_range creat dup
dup2 dup3 epoll_create epoll_create1 epoll_ctl epoll_pwait epoll_pwait2 epoll_wait eventfd
eventfd2 execve execveat exit exit_group faccessat faccessat2 fadvise64 fallocate fchdir fchmod
fchmodat fchmodat2 fchown fchownat fcntl fdatasync fgetxattr flistxattr flock fork fremovexattr
fsetxattr fstat fstatfs fsync ftruncate futex futex_requeue futex_wait futex_waitv futex_wake
futimesat getcpu getcwd getdents getdents64 getegid geteuid getgid getgroups getitimer getpeername
getpgid getpgrp getpid getppid getpriority getrandom getresgid getresuid getrlimit get_robust_list
getrusage getsid getsockname getsockopt get_thread_area gettid gettimeofday getuid getxattr
inotify_add_watch inotify_init inotify_init1 inotify_rm_watch io_cancel ioctl io_destroy
io_getevents io_pgetevents ioprio_get ioprio_set io_setup io_submit kill landlock_add_rule
landlock_create_ruleset landlock_restrict_self lchown lgetxattr link linkat listen listxattr
llistxattr lremovexattr lseek lsetxattr lstat madvise membarrier memfd_create mincore mkdir
mkdirat mknod mknodat mlock mlock2 mlockall mmap mprotect mq_getsetattr mq_notify mq_open
mq_timedreceive mq_timedsend mq_unlink mremap msgctl msgget msgrcv msgsnd msync munlock munlockall
munmap nanosleep newfstatat open openat openat2 pause pidfd_open pidfd_send_signal pipe pipe2
pkey_alloc pkey_free pkey_mprotect poll ppoll prctl pread64 preadv preadv2 prlimit64
process_mrelease pselect6 pwrite64 pwritev pwritev2 read readahead readlink readlinkat readv
recvfrom recvmmsg recvmsg remap_file_pages removexattr rename renameat renameat2 restart_syscall
rmdir rseq rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend
rt_sigtimedwait rt_tgsigqueueinfo sched_getaffinity sched_getattr sched_getparam
sched_get_priority_max sched_get_priority_min sched_getscheduler sched_rr_get_interval
sched_setaffinity sched_setattr sched_setparam sched_setscheduler sched_yield seccomp select
semctl semget semop semtimedop sendfile sendmmsg sendmsg sendto setfsgid setfsuid setgid setgroups
setitimer setpgid setpriority setregid setresgid setresuid setreuid setrlimit set_robust_list
setsid setsockopt set_thread_area set_tid_address setuid setxattr shmat shmctl shmdt shmget
shutdown sigaltstack signalfd signalfd4 socketpair splice stat statfs statx symlink symlinkat sync
sync_file_range syncfs sysinfo tee tgkill time timer_create timer_delete timerfd_create
timerfd_gettime timerfd_settime timer_getoverrun timer_gettime timer_settime times tkill truncate
umask uname unlink unlinkat utime utimensat utimes vfork vmsplice wait4 waitid write writev
""".split()
_FAMILIES = (1, 2, 10, 16)  # AF_UNIX, AF_INET, AF_INET6, AF_NETLINK
_PERSONALITIES = (0, 0x8, 0x20000, 0x20008, 0xFFFFFFFF)
_NAMESPACES = 0x7E020000  # every CLONE_NEW… but time, which clone cannot make
_MACHINES = {
    "x86_64": "SCMP_ARCH_X86_64",
    "amd64": "SCMP_ARCH_X86_64",
    "aarch64": "SCMP_ARCH_AARCH64",
    "arm64": "SCMP_ARCH_AARCH64",
}


def _rule(names: list[str], action: str = "SCMP_ACT_ALLOW", **more: Any) -> dict[str, Any]:
    return {"names": names, "action": action, **more}


def _argument(value: int, op: str = "SCMP_CMP_EQ", second: int = 0) -> list[dict[str, Any]]:
    return [{"index": 0, "value": value, "valueTwo": second, "op": op}]


def seccomp(machine: str) -> str | None:
    """Return the profile as Docker takes it; 32-bit programs do not run under it.

    Args:
        machine: the processor, as `uname -m` names it.

    Returns:
        None for processors other than x86-64 and arm64: use the engine's own profile.
    """
    if machine not in _MACHINES:
        return None
    rules = [
        _rule(_PLAIN),
        *(_rule(["socket"], args=_argument(family)) for family in _FAMILIES),
        *(_rule(["personality"], args=_argument(kind)) for kind in _PERSONALITIES),
        _rule(["clone"], args=_argument(_NAMESPACES, "SCMP_CMP_MASKED_EQ")),
        _rule(["clone3"], "SCMP_ACT_ERRNO", errnoRet=errno.ENOSYS),
    ]
    profile = {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": errno.EPERM,
        "architectures": [_MACHINES[machine]],
        "syscalls": rules,
    }
    return json.dumps(profile)


def call_header() -> str:
    """Return the allowed calls as a C header, for the helper's filter.

    Their numbers are those of the processor that it is compiled for; a call that its headers do not
    know is refused.
    """
    numbers = "".join(f"#ifdef __NR_{name}\n__NR_{name},\n#endif\n" for name in _PLAIN)
    values = {
        "FAMILIES": ", ".join(map(str, _FAMILIES)),
        "PERSONALITIES": ", ".join(map(hex, _PERSONALITIES)),
        "NAMESPACES": hex(_NAMESPACES),
    }
    defines = "".join(f"#define {name} {value}\n" for name, value in values.items())
    return f"{defines}static int allowed_calls[] = {{\n{numbers}}};\n"


__all__ = ["call_header", "seccomp"]
