"""Run Python that a model wrote: under bubblewrap, without network, home or environment, within limits.

The program sees the system's libraries (read-only), four devices and an empty private `/tmp`, nothing else; it runs as
another user in its own namespaces, which end with it. Where bubblewrap cannot do that the program is refused, unless
the user allows it to run as a plain process with the same resource limits but with the user's rights.
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
FILES = 32  # most open files
INSIDE = "/tmp"
PROGRAM = "/program.py"
SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib64", "/nix/store", "/etc/ld.so.cache")
DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")
APART = (
    "--unshare-ipc --unshare-pid --unshare-net --unshare-uts --unshare-cgroup-try --die-with-parent --new-session"
    " --clearenv --hostname sandbox --cap-drop ALL"
).split()
AS_USER = "--unshare-user --disable-userns --uid 65534 --gid 65534".split()
# Root needs no user namespace, may have Python in a folder that others cannot read, and becomes another user before
# the program starts: process limits do not apply to root.
AS_ROOT = "--cap-add CAP_SETUID --cap-add CAP_SETGID".split()
OTHERS = range(20_000, 60_000)  # user ids; one drawn at random is very likely unused
# Limits are set just before the program starts: bubblewrap itself needs more than they allow. PYTHONHASHSEED makes
# the order of sets the same in every run.
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
# Calls for memory that no process limit counts (System V segments, memfd), and kernel interfaces no program needs.
DENIED = {
    "x86_64": (0xC000003E, 56, (29, 30, 101, 165, 248, 250, 272, 298, 308, 319, 321, 323, 425, 435)),
    "aarch64": (0xC00000B7, 220, (194, 196, 117, 40, 217, 219, 97, 241, 268, 279, 280, 282, 425, 435)),
}  # architecture id; clone; shmget shmat ptrace mount add_key keyctl unshare perf_event_open setns memfd_create
# bpf userfaultfd io_uring_setup clone3


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a program may use.

    Args:
        seconds: wall-clock time, and processor time of each of its processes.
        memory_mb: memory of each process (MiB).
        file_mb: size of a file, and of all files together (MiB).
        processes: most processes at once, threads included.
    """

    seconds: Positive = 3.0
    memory_mb: Count = 512
    file_mb: Count = 16
    processes: Count = 4


@dataclass(frozen=True)
class Outcome:
    """What a program printed (the first 64 KiB of each output), its exit code, and whether it timed out."""

    stdout: str
    stderr: str
    code: int
    late: bool

    @property
    def failure(self) -> str:
        """Why it failed, in one line; empty where it succeeded."""
        if self.late:
            return "stopped: its time ran out"
        if not self.code:
            return ""
        lines = [line for line in self.stderr.split("\n") if line.strip()]
        if lines:
            return untrusted.printable(" ".join(lines[-1].split()))[:200]
        number = self.code - 128 if self.code > 128 else -self.code
        return (
            f"stopped by {signal.Signals(number).name}" if number in set(signal.Signals) else f"exit code {self.code}"
        )


@dataclass(frozen=True)
class Sandbox:
    """Runs programs within limits; `plain`: without bubblewrap, with the user's consent."""

    limits: Limits = Limits()
    plain: bool = False

    @property
    def warnings(self) -> list[str]:
        """One line where programs ran with the user's rights."""
        if not self.plain:
            return []
        return ["code of the model ran with your rights (--allow-code), not in a sandbox"]

    def run(self, program: str) -> Outcome:
        """Run a program until it ends or times out; under bubblewrap none of its processes outlives it."""
        with contextlib.ExitStack() as stack:
            out, err, source = (stack.enter_context(tempfile.TemporaryFile()) for _ in range(3))
            source.write(program.encode("utf-8", "replace"))
            source.seek(0)
            enter = _plain_process if self.plain else _in_bubblewrap
            command, options = stack.enter_context(enter(source, self.limits))
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, env={}, start_new_session=True, **options
            )
            try:
                late = _timed_out(process, self.limits.seconds)
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            return Outcome(_read_output(out), _read_output(err), process.returncode, late)


def opened(limits: Limits = Limits(), allow_code: bool = False) -> Sandbox:
    """A bubblewrap sandbox where that works; else a plain process if the user allows it.

    Raises:
        UserError: bubblewrap is missing or cannot create namespaces, and `allow_code` is off.
    """
    reason = lacks()
    if reason and not allow_code:
        raise UserError(
            f"a model's programs run under bubblewrap only, and {reason}; --allow-code runs them with your rights"
        )
    return Sandbox(limits, plain=bool(reason))


@functools.cache
def lacks() -> str:
    """Why bubblewrap cannot be used here and how to fix it; empty where it can. Runs a tiny program once."""
    if platform.machine() not in DENIED:
        return f"its filter of system calls is not written for {platform.machine()}"
    if shutil.which("bwrap") is None:
        return "it is not installed (apt-get install bubblewrap)"
    try:
        outcome = Sandbox(Limits(seconds=30)).run("print(6 * 7)")
    except OSError as error:
        return f"it cannot be started ({error.strerror})"
    if outcome.stdout == "42\n":
        return ""
    return f"it cannot work here ({outcome.failure}); it needs version 0.8 and user namespaces"


def _timed_out(process: subprocess.Popen[bytes], seconds: float) -> bool:
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return True
    return False


def _read_output(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read(SHOWN).decode(errors="replace")


def _python_command(program: str, limits: Limits, uid: int = 0, **extra: int) -> list[str]:
    """The command that runs Python within limits, as user `uid` unless 0; never above the caller's own hard limits."""
    limits_by_name = {
        "RLIMIT_AS": limits.memory_mb * MIB, "RLIMIT_FSIZE": limits.file_mb * MIB, "RLIMIT_NOFILE": FILES,
        "RLIMIT_CPU": max(1, round(limits.seconds)), "RLIMIT_CORE": 0, **extra,
    }  # fmt: skip
    hard = {name: resource.getrlimit(getattr(resource, name))[1] for name in limits_by_name}
    pairs = [f"{n}={m if hard[n] == resource.RLIM_INFINITY else min(m, hard[n])}" for n, m in limits_by_name.items()]
    return [_interpreter(), "-I", "-S", "-c", START, program, str(uid), *pairs]


def _interpreter() -> str:
    """The interpreter below any virtual environment."""
    return os.path.realpath(getattr(sys, "_base_executable", sys.executable))


@contextlib.contextmanager
def _plain_process(source: IO[bytes], limits: Limits) -> Iterator[tuple[list[str], dict[str, Any]]]:
    """A plain process in an empty folder; no limit on processes, since it would count all of the user's."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        program = Path(folder) / "program.py"
        program.write_bytes(source.read())
        yield _python_command(str(program), limits), {"cwd": folder}


@contextlib.contextmanager
def _in_bubblewrap(source: IO[bytes], limits: Limits) -> Iterator[tuple[list[str], dict[str, Any]]]:
    """A process under bubblewrap; without root, one of the processes inside is bubblewrap's own."""
    extra = [] if sys.base_prefix.startswith("/usr") else [sys.base_prefix]
    places = [place for place in (*SYSTEM, *extra) if os.path.exists(place)]
    parents = dict.fromkeys(str(folder) for place in places for folder in [*reversed(Path(place).parents)][1:])
    mounts = [word for folder in parents for word in ("--perms", "0755", "--dir", folder)]  # else others cannot enter
    mounts += [word for place in places for word in ("--ro-bind", place, place)]
    mounts += [word for device in DEVICES for word in ("--dev-bind", device, device)]
    mounts += ["--perms", "0444", "--ro-bind-data", str(source.fileno()), PROGRAM]
    mounts += ["--perms", "1777", "--size", str(limits.file_mb * MIB), "--tmpfs", INSIDE]
    uid = random.SystemRandom().choice(OTHERS) if os.geteuid() == 0 else 0
    with tempfile.TemporaryFile() as rules:
        rules.write(_filter())
        rules.seek(0)
        end = ["--remount-ro", "/", "--chdir", INSIDE, "--seccomp", str(rules.fileno())]
        start = _python_command(PROGRAM, limits, uid, RLIMIT_NPROC=limits.processes + (not uid))
        command = [shutil.which("bwrap") or "bwrap", *APART, *(AS_ROOT if uid else AS_USER), *mounts, *end, *start]
        yield command, {"cwd": "/", "pass_fds": (source.fileno(), rules.fileno())}


def _filter() -> bytes:
    """A seccomp filter that denies system calls and new user namespaces: they fail as if not implemented."""
    architecture, clone, denied = DENIED[platform.machine()]
    load, jump_equal, jump_at_least, jump_any_bit, ret = 0x20, 0x15, 0x35, 0x45, 0x06
    refuse, allow, kill = 0x00050026, 0x7FFF0000, 0x80000000  # not implemented; as usual; kill the process
    call_at, arch_at, argument_at = 0, 4, 16  # offsets of call, architecture, argument
    last = len(denied)
    rules: Sequence[tuple[int, int, int, int]] = [
        (load, 0, 0, arch_at),
        (jump_equal, 1, 0, architecture),
        (ret, 0, 0, kill),
        (load, 0, 0, call_at),
        (jump_at_least, last + 4, 0, 0x40000000),  # x32 calls: the same calls under other numbers
        *((jump_equal, last + 3 - i, 0, call) for i, call in enumerate(denied)),
        (jump_equal, 0, 1, clone),
        (load, 0, 0, argument_at),
        # After clone its flags, with this bit for a user namespace; after any other call its number, which is smaller.
        (jump_any_bit, 1, 0, 0x10000000),
        (ret, 0, 0, allow),
        (ret, 0, 0, refuse),
    ]
    return b"".join(struct.pack("=HBBI", *rule) for rule in rules)
