"""Shut a program in before it begins: run as a script of its own, which then becomes the program.

::

    python -I -S confine.py [--read FD] [--write FD] [--limit NAME=N] --parent PID -- PROGRAM ARG...

PROGRAM keeps its inherited descriptors and may open again, as ``/proc/self/fd/N``, the files that
``--read`` and ``--write`` name; beside them it may read and run what the system has installed.
It gets no network, no sockets, no privileges, and dies with the thread that started it.

What the kernel cannot do is told on the standard error, one line beginning with `LACKING` for each;
the program is started nevertheless, unless not even its privileges could be taken away. It imports
the standard library only, nothing of storaged: it starts in a few milliseconds, and is no fork of a
process that has threads.

Sources: the kernel's documentation of landlock, seccomp, capabilities and namespaces.
"""

from __future__ import annotations

import ctypes
import os
import resource
import stat
import struct
import sys

# the imports of this script are most of its time
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

#: Begins each line that tells of a protection that the kernel does not give.
LACKING = "confined without "
#: The exit status when the program could not be shut in or not be started.
REFUSED = 125

_SIGKILL = 9
_PR_SET_PDEATHSIG = 1
_PR_SET_KEEPCAPS = 8
_PR_SET_SECCOMP = 22
_PR_CAPBSET_DROP = 24
_PR_SET_NO_NEW_PRIVS = 38
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_CLEAR_ALL = 4

#: A file is opened again through its descriptor: root needs it for other people's files.
_CAP_DAC_OVERRIDE = 1
_CAP_SETPCAP = 8
_CAP_MAX = 63
_CAPABILITY_VERSION_3 = 0x20080522

_CLONE_NEWUSER = 0x10000000
_CLONE_NEWNET = 0x40000000
_CLONE_NEWIPC = 0x08000000

# Landlock has the same three numbers on every architecture.
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_RULE_PATH_BENEATH = 1
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_TRUNCATE, _IOCTL_DEV = 1 << 14, 1 << 15
#: How many rights for files each version of landlock knows.
_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
_BOTH_NET_RIGHTS = _BOTH_SCOPES = 0b11

_OPTIONS = ("--parent", "--read", "--write", "--limit")

#: What is installed: programs, libraries, and where to find them.
_SYSTEM = (
    *("/usr", "/bin", "/lib", "/lib32", "/lib64", "/nix/store", "/gnu/store"),
    *("/etc/ld.so.cache", "/etc/ld.so.preload", "/etc/ld.so.conf", "/etc/ld.so.conf.d"),
)

#: machine: its number for seccomp, and those of the calls that make and connect sockets.
_SOCKET_CALLS: dict[str, tuple[int, tuple[int, ...]]] = {
    "x86_64": (0xC000003E, (41, 42)),
    "aarch64": (0xC00000B7, (198, 203)),
    "riscv64": (0xC00000F3, (198, 203)),
    "ppc64le": (0xC0000015, (102, 326, 328)),
    "s390x": (0x80000016, (102, 359, 362)),
}
#: Makes sockets behind the filter's back; QEMU goes on without. One number everywhere.
_IO_URING_SETUP = 425
#: 32-bit calls on an x86_64 kernel begin here.
_X32 = 0x40000000
_EPERM_RETURN, _ALLOW_RETURN = 0x00050001, 0x7FFF0000

_libc = ctypes.CDLL(None, use_errno=True)


class Order:
    """What is asked for on the command line.

    :raise ValueError: it is not complete.
    """

    def __init__(self, arguments: list[str]) -> None:
        border = arguments.index("--")
        given = list(zip(arguments[:border:2], arguments[1:border:2], strict=True))
        values = [[value for name, value in given if name == option] for option in _OPTIONS]
        (parent,), reads, writes, limits = values
        self.parent = int(parent)
        self.reads = [int(fd) for fd in reads]
        self.writes = [int(fd) for fd in writes]
        self.limits = [limit.split("=") for limit in limits]
        self.program = arguments[border + 1 :]


def main(arguments: list[str]) -> int:
    """Shut this process in and become the program; return only if that failed."""
    order = Order(arguments)
    _set_limits(order.limits)
    _try("its own network", _leave_the_network)
    try:
        _prctl(_PR_SET_NO_NEW_PRIVS, 1)
        _drop_capabilities()
    except OSError as err:
        return _refuse(f"cannot give up privileges: {err.strerror}")
    _try("a choice of files", lambda: _restrict_files(order))
    _try("a ban on sockets", _ban_sockets)
    # after all that changes credentials, which would clear it
    _prctl(_PR_SET_PDEATHSIG, _SIGKILL)
    if os.getppid() != order.parent:
        return _refuse("who started it has gone")
    try:
        os.execv(order.program[0], order.program)  # noqa: S606 -- no shell is what we want
    except OSError as err:
        return _refuse(f"cannot run {order.program[0]}: {err.strerror}")


def _set_limits(limits: list[list[str]]) -> None:
    for name, value in limits:
        kind, number = getattr(resource, f"RLIMIT_{name}"), int(value)
        hard = resource.getrlimit(kind)[1]
        if hard != resource.RLIM_INFINITY:
            number = min(number, hard)
        resource.setrlimit(kind, (number, number))


def _leave_the_network() -> None:
    """Enter a network of our own, which has nothing in it, not even a loopback that is up."""
    user, group = os.geteuid(), os.getegid()
    if not user:
        # in a user namespace root may no longer open other people's files
        _called(_libc.unshare(_CLONE_NEWNET | _CLONE_NEWIPC))
        return
    _called(_libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET | _CLONE_NEWIPC))
    for name, text in (
        ("setgroups", "deny"),
        ("gid_map", f"{group} {group} 1"),
        ("uid_map", f"{user} {user} 1"),
    ):
        with open(f"/proc/self/{name}", "w") as file:  # noqa: PTH123 -- pathlib is slow to import
            file.write(text)


def _drop_capabilities() -> None:
    """Keep what root needs to open other people's files, and nothing more for anybody."""
    kept = 0 if os.geteuid() else 1 << _CAP_DAC_OVERRIDE
    header = struct.pack("Ii", _CAPABILITY_VERSION_3, 0)
    sets = ctypes.create_string_buffer(24)
    _called(_libc.capget(header, sets))
    permitted = struct.unpack("6I", sets)[1]
    if permitted & 1 << _CAP_SETPCAP:
        for number in range(_CAP_MAX + 1):
            # a number that the kernel does not know is EINVAL
            if not kept >> number & 1:
                _called(_libc.prctl(_PR_CAPBSET_DROP, number, 0, 0, 0), wanted=False)
    _called(_libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0), wanted=False)
    kept &= permitted
    _called(_libc.capset(header, struct.pack("6I", kept, kept, 0, 0, 0, 0)))


def _restrict_files(order: Order) -> None:
    abi = _called(_libc.syscall(_CREATE_RULESET, None, 0, 1))
    handled = (1 << _RIGHTS.get(abi, 16)) - 1
    net = _BOTH_NET_RIGHTS if abi >= 4 else 0
    scopes = _BOTH_SCOPES if abi >= 6 else 0
    length = 8 if abi < 4 else 16 if abi < 6 else 24
    rules = struct.pack("QQQ", handled, net, scopes)[:length]
    ruleset = _called(_libc.syscall(_CREATE_RULESET, rules, length, 0))

    def allow(fd: int, rights: int) -> None:
        _add_rule(ruleset, fd, rights & handled)

    for path in (*_SYSTEM, *_beside(order.program[0])):
        _allow_path(path, allow)
    # QEMU finds out on it which locks the kernel has
    null = os.open("/dev/null", os.O_PATH | os.O_CLOEXEC)
    allow(null, _READ_FILE | _WRITE_FILE)
    os.close(null)
    for fd in order.reads:
        allow(fd, _READ_FILE | _IOCTL_DEV)
    for fd in order.writes:
        allow(fd, _READ_FILE | _WRITE_FILE | _TRUNCATE | _IOCTL_DEV)
    _called(_libc.syscall(_RESTRICT_SELF, ruleset, 0))
    os.close(ruleset)


def _beside(program: str) -> Iterator[str]:
    """Yield a program that is installed elsewhere, and where its libraries and modules lie."""
    yield program
    prefix = os.path.dirname(os.path.dirname(os.path.realpath(program)))  # noqa: PTH120
    for name in ("lib", "lib64", "libexec"):
        yield f"{prefix}/{name}"


def _allow_path(path: str, allow: Callable[[int, int], None]) -> None:
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    rights = _EXECUTE | _READ_FILE
    if stat.S_ISDIR(os.fstat(fd).st_mode):
        rights |= _READ_DIR
    allow(fd, rights)
    os.close(fd)


def _add_rule(ruleset: int, fd: int, rights: int) -> None:
    """Allow *rights* on what *fd* stands for; what has no path needs no rule."""
    rule = struct.pack("=Qi", rights, fd)
    added = _libc.syscall(_ADD_RULE, ruleset, _RULE_PATH_BENEATH, rule, 0)
    if added and ctypes.get_errno() != 77:  # EBADFD: a memory file, a pipe
        _called(added)


def _ban_sockets() -> None:
    """Make the calls that make and connect sockets fail with EPERM, whatever their family."""
    machine = os.uname().machine
    if machine not in _SOCKET_CALLS:
        raise OSError(0, f"the numbers of the calls of {machine}")
    number, calls = _SOCKET_CALLS[machine]
    calls = (*calls, _IO_URING_SETUP)
    refused = len(calls) + 1
    steps = [
        (0x20, 0, 0, 4),  # load the architecture
        (0x15, 0, refused + 2, number),  # another one: refuse
        (0x20, 0, 0, 0),  # load the call's number
        (0x35, refused, 0, _X32 if machine == "x86_64" else 0xFFFFFFFF),
        *((0x15, refused - 1 - nth, 0, call) for nth, call in enumerate(calls)),
        (0x06, 0, 0, _ALLOW_RETURN),
        (0x06, 0, 0, _EPERM_RETURN),
    ]
    program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
    filters = struct.pack("HxxxxxxP", len(steps), ctypes.addressof(program))
    _called(_libc.prctl(_PR_SET_SECCOMP, 2, filters, 0, 0))


def _prctl(option: int, value: int) -> None:
    _called(_libc.prctl(option, value, 0, 0, 0))


def _called(result: int, *, wanted: bool = True) -> int:
    """Look at what a system call returned.

    :param wanted: False returns 1 for a success and 0 for a failure.
    :raise OSError: it failed.
    """
    if not wanted:
        return int(result == 0)
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def _try(protection: str, protect: Callable[[], object]) -> None:
    try:
        protect()
    except OSError as err:
        print(f"{LACKING}{protection}: {err.strerror}", file=sys.stderr, flush=True)


def _refuse(why: str) -> int:
    print(why, file=sys.stderr, flush=True)
    return REFUSED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
