"""Programs a model wrote: hostile ones reach nothing, end in time, give one line; most do harm without a sandbox."""

import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from didact.errors import UserError
from didact.tools import sandbox
from didact.tools.sandbox import Limits, Sandbox

here = pytest.mark.skipif(bool(sandbox.lacks()), reason=sandbox.lacks())
BRIEF = Limits(seconds=1, memory_mb=256, file_mb=2)
SECRET = "a secret of the user's"

# name: (program, whether it succeeds without a sandbox). Success is printed, or visible on the host.
HOSTILE = {
    "reads the home": ("print(open('{home}/diary').read())", True),
    "looks for homes": ("import glob; [print(open(p).read()) for p in glob.glob('{home}/d*')]", True),
    "reads shadow": ("print('SECRET' if open('/etc/shadow').read() else '')", False),
    "reads passwords": ("print('SECRET' if open('/etc/passwd').read() else '')", True),
    "by a symlink": ("import os\nos.symlink('{home}/diary', 'here')\nprint(open('here').read())", True),
    "through proc": (
        "import glob\nfor p in ['/proc/1/root{home}/diary', *glob.glob('/proc/*/cwd{home}/diary')]:\n"
        "    print(open(p).read())",
        False,
    ),
    "environment": ("import os; print(os.environ.get('DIDACT_SECRET'), os.environ.get('HOME'))", False),
    "another's environment": ("print(open('/proc/{victim}/environ').read())", True),
    "connects": (
        "import socket\ns = socket.create_connection(('127.0.0.1', {port}), 1)\nprint(s.recv(100).decode())",
        True,
    ),
    "abstract socket": (
        "import socket\ns = socket.socket(socket.AF_UNIX)\ns.connect('\\0{abstract}')\nprint(s.recv(100).decode())",
        True,
    ),
    "writes outside": ("open('{home}/left', 'w').write('x')", True),
    "appends to itself and others": ("open('/usr/bin/env', 'ab').write(b'x')", None),
    "deletes": ("import shutil; shutil.rmtree('{home}/folder')", True),
    "kills its parent": ("import os, signal\nos.kill({victim}, signal.SIGKILL)", True),
    "fork bomb": ("import os, time\nwhile True:\n    os.fork()", None),
    "thread bomb": ("import threading as t\nwhile True:\n    t.Thread(target=t.Event().wait).start()", None),
    "leaves a daemon": (
        "import os, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n        time.sleep(0.5)\n"
        "        open('{home}/left', 'w').write('x')",
        True,
    ),
    "10 GB": ("print(len(bytearray(10**10)))", None),
    "shared memory": (
        "import ctypes\nc = ctypes.CDLL(None)\nn = 1 << 30\nassert c.shmget(0, n, 0o1600) < 0\n"
        "assert c.memfd_create(b'x', 0) < 0",
        None,
    ),
    "endless output": ("import sys\nwhile True:\n    print('y' * 10**5)", None),
    "output whatever happens": (
        "import os\nwhile True:\n    try:\n        os.write(1, b'y' * 10**5)\n    except OSError:\n        pass",
        None,
    ),
    "a huge file": ("f = open('big', 'wb', 0)\nf.seek(10**10)\nf.write(b'x')", None),
    "many files": ("for i in range(1000):\n    open(f'f{{i}}', 'wb').write(bytes(10**5))", None),
    "ignores signals": (
        "import signal\nfor s in range(1, 64):\n    try:\n        signal.signal(s, signal.SIG_IGN)\n"
        "    except (OSError, ValueError):\n        pass\nwhile True:\n    pass",
        None,
    ),
    "one long computation": ("print(len(str(10**10**9)))", None),
    "waits for input": ("import sys; print('SECRET' if sys.stdin.read() else '')", False),
    "raises its limits": (
        "import resource\nn = resource.RLIM_INFINITY\nresource.setrlimit(resource.RLIMIT_AS, (n, n))",
        None,
    ),
    "namespaces of its own": (
        "import ctypes\nc = ctypes.CDLL(None)\nassert c.unshare(0x10000000) < 0\n"
        "assert c.syscall(56, 0x10000011, 0, 0, 0, 0) < 0\nassert c.mount(b'x', b'/tmp', b'tmpfs', 0, 0) < 0",
        None,
    ),
    "becomes root": ("import os\nos.setuid(0)\nprint('SECRET')", None),
    "breaks the interpreter": ("import ctypes; ctypes.string_at(0)", None),
    "speaks to the terminal": ("raise SystemExit('\\x1b]0;SECRET'[:5] + 'x\\nsecond line\\x1b[2J')", None),
    "is no text": ("print('\ud800')", None),
    "is empty and has a NUL": ("\x00", None),
}  # fmt: skip


@pytest.fixture
def host(tmp_path, monkeypatch):
    """A secret in a home folder, in the environment and on two servers, and a process to kill."""
    home = tmp_path / "home"
    (home / "folder").mkdir(parents=True)
    (home / "diary").write_text(SECRET)
    monkeypatch.setenv("DIDACT_SECRET", SECRET)
    abstract = f"didact-{os.getpid()}-{time.time_ns()}"
    servers = [socket.create_server(("127.0.0.1", 0)), socket.socket(socket.AF_UNIX)]
    servers[1].bind("\0" + abstract)
    servers[1].listen()
    victim = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(60)"])

    def tell(server):
        while True:
            try:
                server.accept()[0].sendall(SECRET.encode())
            except OSError:
                return

    for server in servers:
        threading.Thread(target=tell, args=(server,), daemon=True).start()
    yield {
        "home": home, "port": servers[0].getsockname()[1], "abstract": abstract, "victim": victim.pid,
        "process": victim,
    }  # fmt: skip
    victim.kill()
    victim.wait()
    for server in servers:
        server.close()


def harm(outcome, host):
    """Return what a program reached."""
    home = host["home"]
    output = outcome.stdout + outcome.stderr
    return [
        name
        for name, visible in {
            "told": SECRET in output or "SECRET\n" in outcome.stdout,
            "wrote": (home / "left").exists(),
            "deleted": not (home / "folder").exists(),
            "killed": host["process"].poll() is not None,
        }.items()
        if visible
    ]


def run(box, name, host):
    program = HOSTILE[name][0]
    return box.run(program.format(**{k: v for k, v in host.items() if k != "process"}))


@here
def test_hostile_programs_reach_nothing_and_end_with_one_line(host):
    before = time.monotonic()
    box = Sandbox(BRIEF)
    with ThreadPoolExecutor(4) as pool:
        outcomes = dict(zip(HOSTILE, pool.map(lambda name: run(box, name, host), HOSTILE), strict=True))
    time.sleep(1)  # long enough for leftover processes to do harm
    for name, outcome in outcomes.items():
        assert not harm(outcome, host), name
        assert "\n" not in outcome.failure and "\x1b" not in outcome.failure and len(outcome.failure) <= 200, name
        assert len(outcome.stdout) + len(outcome.stderr) <= 2 * sandbox.SHOWN, name
    ended_well = {name for name, outcome in outcomes.items() if not outcome.failure}
    assert ended_well == {
        "shared memory", "namespaces of its own", "environment", "waits for input", "looks for homes",
        "leaves a daemon", "is no text",
    }  # fmt: skip
    for name in ("ignores signals", "one long computation", "output whatever happens"):
        assert outcomes[name].late or "SIG" in outcomes[name].failure, name
    assert "MemoryError" in outcomes["10 GB"].failure and "too large" in outcomes["a huge file"].failure
    assert time.monotonic() - before < 30


@pytest.mark.parametrize("name", [name for name, (_, plainly) in HOSTILE.items() if plainly])
def test_the_same_programs_succeed_without_the_sandbox(name, host):
    outcome = run(Sandbox(BRIEF, plain=True), name, host)
    deadline = time.monotonic() + 5
    while not harm(outcome, host) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert harm(outcome, host), outcome


@here
def test_an_ordinary_program_runs_with_the_standard_library_and_files_of_its_own():
    outcome = Sandbox().run(
        "import itertools, json, fractions, re\nopen('a.txt', 'w').write('7')\n"
        "print(json.dumps([open('a.txt').read(), str(fractions.Fraction(1, 3)), 'ä']))"
    )
    assert outcome == sandbox.Outcome('["7", "1/3", "\\u00e4"]\n', "", 0, False)
    assert Sandbox().run("print('ä')").stdout == "ä\n"
    assert Sandbox().run("import os; print(os.listdir('.'))").stdout == "[]\n"


@here
def test_a_program_gives_the_same_in_every_run():
    program = "print(set('abcdefghij'))"
    assert Sandbox().run(program) == Sandbox().run(program)


@pytest.mark.parametrize("plain", [pytest.param(False, marks=here), True])
def test_what_a_program_says_on_its_way_is_kept(plain):
    outcome = Sandbox(BRIEF, plain=plain).run("print('so far', flush=True)\nwhile True: pass")
    assert outcome.stdout == "so far\n" and outcome.failure
    outcome = Sandbox(BRIEF, plain=plain).run("import sys\nprint('one')\nsys.exit('no\\nway')")
    assert (outcome.stdout, outcome.failure, outcome.late) == ("one\n", "way", False)


def test_plain_programs_have_limits_too():
    box = Sandbox(BRIEF, plain=True)
    assert "MemoryError" in box.run("bytearray(10**10)").failure
    assert "too large" in box.run("open('x', 'wb').write(bytes(10**7))").failure
    assert box.run("import time\ntime.sleep(9)").late
    assert box.run("import os; print(sorted(os.environ))").stdout == "['LC_CTYPE', 'PYTHONHASHSEED']\n"


def test_without_bubblewrap_it_is_refused_in_one_line_unless_allowed(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    sandbox.lacks.cache_clear()
    try:
        with pytest.raises(UserError, match=r"apt-get install bubblewrap\); --allow-code") as error:
            sandbox.opened()
        assert "\n" not in str(error.value)
        allowed = sandbox.opened(allow_code=True)
        assert allowed.plain and "not in a sandbox" in allowed.warnings[0]
        fake = tmp_path / "bwrap"
        fake.write_text("#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2\nexit 1\n")
        fake.chmod(0o755)
        sandbox.lacks.cache_clear()
        with pytest.raises(UserError, match=r"cannot work here \(bwrap: No permissions to create new namespace\)"):
            sandbox.opened()
    finally:
        monkeypatch.undo()
        sandbox.lacks.cache_clear()


@here
def test_with_bubblewrap_it_is_used_even_where_plain_is_allowed():
    assert sandbox.opened(allow_code=True) == Sandbox() and not Sandbox().warnings


@here
@pytest.mark.skipif(os.geteuid() != 0 or not Path("/usr/bin/python3").exists(), reason="root and the system's Python")
def test_a_user_without_rights_has_the_same_sandbox():
    """Root's sandbox has no user namespace, other users' have; here the system's Python runs it as `nobody`."""
    import annotated_types

    import didact

    mounts = {Path(didact.__file__).parents[1]: "didact", Path(annotated_types.__file__).parents[1]: "annotated_types"}
    program = (
        "import os\nn = 0\ntry:\n    while n < 99:\n        n += 1\n        if os.fork() == 0:\n"
        "            import time; time.sleep(9)\nexcept OSError:\n    print(n, os.getuid(), sorted(os.listdir('/etc')))"
    )
    words = (
        f"from didact.tools import sandbox as s\nprint(repr(s.lacks()))\n"
        f"print(s.Sandbox(s.Limits(seconds=9)).run({program!r}).stdout)"
    )
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        for path, name in mounts.items():
            subprocess.run(["cp", "-r", path / name, folder], check=True)
        process = subprocess.run(
            ["/usr/bin/python3", "-c", words], env={"PYTHONPATH": folder, "PATH": os.environ["PATH"]}, cwd="/",
            user=65534, group=65534, extra_groups=[], capture_output=True, text=True, check=False,
        )  # fmt: skip
    assert process.stdout.split("\n")[:2] == ["''", f"{Limits().processes} 65534 ['ld.so.cache']"], process


@here
def test_what_is_killed_leaves_no_process():
    """When the parent dies, the program dies with it."""
    mark = f"{os.getpid()}{time.time_ns()}"
    program = f"import os, time\\nos.execv(os.sys.executable, ['{mark}', '-c', 'import time; time.sleep(60)'])"
    code = f"from didact.tools.sandbox import *\nSandbox(Limits(seconds=60)).run({program!r})".replace("\\\\", "\\")
    parent = subprocess.Popen([sys.executable, "-c", code])

    def running():
        out = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
        return any(line.startswith(mark) for line in out.splitlines())

    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and not running():
        time.sleep(0.05)
    assert running()
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline and running():
        time.sleep(0.05)
    assert not running()
