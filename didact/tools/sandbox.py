"""Run Python that a model wrote: under bubblewrap, without network, home or environment, within limits.

The program sees the system's libraries (read-only), four devices and an empty `/tmp` of its own, nothing else; it is
another user in namespaces of its own, which end with it. Where bubblewrap cannot do that the program is refused, unless
the user allows it to run as a plain process with the same limits on what it uses but with the user's rights.
"""

from __future__ import annotations

import contextlib
import functools
import os
import platform
import random
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from didact import untrusted
from didact.bounds import Count, Positive
from didact.errors import UserError

MIB = 1 << 20
SHOWN = 1 << 16  # bytes of each output that are read
FILES = 32  # open at once
INSIDE = "/tmp"
PROGRAM = "/program.py"
SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib64", "/nix/store", "/etc/ld.so.cache")
DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")
APART = (
    "--unshare-ipc --unshare-pid --unshare-net --unshare-uts --unshare-cgroup-try --die-with-parent --new-session"
    " --clearenv --hostname sandbox --cap-drop ALL"
).split()
AS_USER = "--unshare-user --disable-userns --uid 65534 --gid 65534".split()
# Root needs no user namespace, has Python perhaps where nobody else may look, and becomes another user before the
# program starts: no limit on processes holds for root.
AS_ROOT = "--cap-add CAP_SETUID --cap-add CAP_SETGID".split()
OTHERS = range(20_000, 60_000)  # ids, of which one drawn at random is nobody's
# Limits hold from the program's first line on and no earlier: bubblewrap needs more than they leave. PYTHONHASHSEED
# makes the order of sets the same in every run.
START = """import os, resource, sys
for pair in sys.argv[3:]:
    name, most = pair.split("=")
    resource.setrlimit(getattr(resource, name), (int(most), int(most)))
if other := int(sys.argv[2]):
    os.setgroups([])
    os.setresgid(other, other, other)
    os.setresuid(other, other, other)
os.execve(sys.executable, [sys.executable, "-s", "-P", "-B", "-X", "utf8", sys.argv[1]], {"PYTHONHASHSEED": "0"})
"""
# Memory that no limit on a process counts (System V segments, memfd), and doors to the kernel no program needs.
DENIED = {
    "x86_64": (0xC000003E, 56, (29, 30, 101, 165, 248, 250, 272, 298, 308, 319, 321, 323, 425, 435)),
    "aarch64": (0xC00000B7, 220, (194, 196, 117, 40, 217, 219, 97, 241, 268, 279, 280, 282, 425, 435)),
}  # its name to the kernel; clone; shmget shmat ptrace mount add_key keyctl unshare perf_event_open setns memfd_create
# bpf userfaultfd io_uring_setup clone3


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a program may use.

    Args:
        seconds: from its start to its end, and of the processor for each of its processes.
        memory_mb: of each process (MiB).
        file_mb: of a file, and of all its files (MiB).
        processes: at once, threads among them.
    """

    seconds: Positive = 3.0
    memory_mb: Count = 512
    file_mb: Count = 16
    processes: Count = 4


@dataclass(frozen=True)
class Outcome:
    """What a program printed (the first 64 KiB of each output), its exit code, and whether its time ran out."""

    stdout: str
    stderr: str
    code: int
    late: bool

    @property
    def failure(self) -> str:
        """Why it did not end well, in a line; empty where it did."""
        if self.late:
            return "stopped: its time ran out"
        if not self.code:
            return ""
        said = [line for line in self.stderr.split("\n") if line.strip()]
        if said:
            return untrusted.shown(" ".join(said[-1].split()))[:200]
        ended = self.code - 128 if self.code > 128 else -self.code
        return f"stopped by {signal.Signals(ended).name}" if ended in set(signal.Signals) else f"exit code {self.code}"


@dataclass(frozen=True)
class Sandbox:
    """Runs programs within limits; `plain` without bubblewrap, which the user allowed."""

    limits: Limits = Limits()
    plain: bool = False

    @property
    def warnings(self) -> list[str]:
        """One line where programs ran with the user's rights."""
        if not self.plain:
            return []
        return ["code of the model ran with your rights (--allow-code), not in a sandbox"]

    def run(self, program: str) -> Outcome:
        """Run a program to its end or to that of its time; none of its processes outlives it under bubblewrap."""
        with contextlib.ExitStack() as stack:
            out, err, source = (stack.enter_context(tempfile.TemporaryFile()) for _ in range(3))
            source.write(program.encode("utf-8", "replace"))
            source.seek(0)
            opened = _plainly if self.plain else _wrapped
            words, how = stack.enter_context(opened(source, self.limits))
            process = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=out, stderr=err, env={}, start_new_session=True, **how
            )
            try:
                late = _late(process, self.limits.seconds)
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            return Outcome(_said(out), _said(err), process.returncode, late)


def opened(limits: Limits = Limits(), allow_code: bool = False) -> Sandbox:
    """A sandbox, where there can be one; else what the user allows.

    Raises:
        UserError: bubblewrap is missing or can make no namespaces, and the user does not allow to go without.
    """
    why = lacks()
    if why and not allow_code:
        raise UserError(
            f"a model's programs run under bubblewrap only, and {why}; --allow-code runs them with your rights"
        )
    return Sandbox(limits, plain=bool(why))


@functools.cache
def lacks() -> str:
    """Why there can be no sandbox here, with the mend; empty where there can. A tiny program is tried once."""
    if platform.machine() not in DENIED:
        return f"its filter of system calls is not written for {platform.machine()}"
    if shutil.which("bwrap") is None:
        return "it is not installed (apt-get install bubblewrap)"
    try:
        tried = Sandbox(Limits(seconds=30)).run("print(6 * 7)")
    except OSError as error:
        return f"it cannot be started ({error.strerror})"
    if tried.stdout == "42\n":
        return ""
    return f"it cannot work here ({tried.failure}); it needs version 0.8 and user namespaces"


def _late(process: subprocess.Popen[bytes], seconds: float) -> bool:
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return True
    return False


def _said(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read(SHOWN).decode(errors="replace")


def _start(program: str, limits: Limits, other: int = 0, **more: int) -> list[str]:
    """Python with limits in place, as `other` where that is a user; what the caller's own limits forbid stays so."""
    most = {
        "RLIMIT_AS": limits.memory_mb * MIB, "RLIMIT_FSIZE": limits.file_mb * MIB, "RLIMIT_NOFILE": FILES,
        "RLIMIT_CPU": max(1, round(limits.seconds)), "RLIMIT_CORE": 0, **more,
    }  # fmt: skip
    hard = {name: resource.getrlimit(getattr(resource, name))[1] for name in most}
    pairs = [f"{n}={m if hard[n] == resource.RLIM_INFINITY else min(m, hard[n])}" for n, m in most.items()]
    return [_python(), "-I", "-S", "-c", START, program, str(other), *pairs]


def _python() -> str:
    """The interpreter below any virtual environment."""
    return os.path.realpath(getattr(sys, "_base_executable", sys.executable))


@contextlib.contextmanager
def _plainly(source: IO[bytes], limits: Limits) -> Iterator[tuple[list[str], dict[str, Any]]]:
    """In an empty folder; no limit on processes, which would count all of the user's."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        program = Path(folder) / "program.py"
        program.write_bytes(source.read())
        yield _start(str(program), limits), {"cwd": folder}


@contextlib.contextmanager
def _wrapped(source: IO[bytes], limits: Limits) -> Iterator[tuple[list[str], dict[str, Any]]]:
    """Under bubblewrap; without root one process of the user inside is bubblewrap's."""
    own = [] if sys.base_prefix.startswith("/usr") else [sys.base_prefix]
    places = [place for place in (*SYSTEM, *own) if os.path.exists(place)]
    above = dict.fromkeys(str(folder) for place in places for folder in [*reversed(Path(place).parents)][1:])
    mounts = [word for folder in above for word in ("--perms", "0755", "--dir", folder)]  # else nobody else may pass
    mounts += [word for place in places for word in ("--ro-bind", place, place)]
    mounts += [word for device in DEVICES for word in ("--dev-bind", device, device)]
    mounts += ["--perms", "0444", "--ro-bind-data", str(source.fileno()), PROGRAM]
    mounts += ["--perms", "1777", "--size", str(limits.file_mb * MIB), "--tmpfs", INSIDE]
    other = random.SystemRandom().choice(OTHERS) if os.geteuid() == 0 else 0
    with tempfile.TemporaryFile() as rules:
        rules.write(_filter())
        rules.seek(0)
        end = ["--remount-ro", "/", "--chdir", INSIDE, "--seccomp", str(rules.fileno())]
        start = _start(PROGRAM, limits, other, RLIMIT_NPROC=limits.processes + (not other))
        words = [shutil.which("bwrap") or "bwrap", *APART, *(AS_ROOT if other else AS_USER), *mounts, *end, *start]
        yield words, {"cwd": "/", "pass_fds": (source.fileno(), rules.fileno())}


def _filter() -> bytes:
    """The denied system calls, and new user namespaces, as a seccomp filter: they fail as if the kernel had none."""
    architecture, clone, denied = DENIED[platform.machine()]
    load, equal, least, any_of, give = 0x20, 0x15, 0x35, 0x45, 0x06
    refuse, allow, end = 0x00050026, 0x7FFF0000, 0x80000000  # not implemented; as usual; kill the process
    number, of, first = 0, 4, 16  # where the kernel tells the call, the architecture and the first argument
    last = len(denied)
    rules: Sequence[tuple[int, int, int, int]] = [
        (load, 0, 0, of),
        (equal, 1, 0, architecture),
        (give, 0, 0, end),
        (load, 0, 0, number),
        (least, last + 4, 0, 0x40000000),  # the x32 calls: the same by other numbers
        *((equal, last + 3 - i, 0, call) for i, call in enumerate(denied)),
        (equal, 0, 1, clone),
        (load, 0, 0, first),
        (any_of, 1, 0, 0x10000000),  # after clone its flags, of which this is a user namespace; else a number below it
        (give, 0, 0, allow),
        (give, 0, 0, refuse),
    ]
    return b"".join(struct.pack("=HBBI", *rule) for rule in rules)
