"""The units: sound to systemd, hardly exposed, and each of their exceptions needed."""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
import trio

from support.daemon import updated, written
from support.guards import behind_guard
from support.processes import python_environment
from support.serve import SECONDS, Home, Serve, varstored
from support.stock import Varstored
from support.storemaker import scene
from varstore_companion.cli.client import control as control_client
from varstore_companion.daemon.interpose import is_left
from varstore_companion.daemon.kept import LONGEST_NAME
from varstore_companion.trust.state import CertificatesState
from varstore_companion.wire.messages import (
    Attach,
    Detach,
    GetStore,
    GetStoreAnswer,
    Outcome,
    PutStore,
    PutStoreAnswer,
    Reason,
    Verdict,
)

SYSTEMD = Path(__file__).parents[1] / "systemd"
SERVICE = SYSTEMD / "varstore-companion.service"
GROUP = 65_543
"""A group that a deprivileged varstored may have."""

pytestmark = pytest.mark.skipif(not SYSTEMD.is_dir(), reason=f"the units are not at {SYSTEMD}")

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may do without root's powers one by one")


def tool(name: str) -> str:
    """The path of a program; the calling test is skipped where it is absent."""
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"needs {name}")
    return found


def works(*prefix: str) -> bool:
    """Whether a command that runs another can be used here."""
    return subprocess.run([*prefix, "true"], capture_output=True, timeout=SECONDS, check=False).returncode == 0


def setting(key: str) -> list[str]:
    """The values that the service gives to a key."""
    return re.findall(rf"^{key}=(.*)$", SERVICE.read_text(), re.MULTILINE)


@pytest.fixture
def units(tmp_path: Path) -> list[Path]:
    """The units with a program that is there."""
    found = []
    for unit in sorted(SYSTEMD.glob("varstore-companion.s*")):
        path = tmp_path / unit.name
        path.write_text(unit.read_text().replace("/usr/local/bin/varstore-companion", sys.executable))
        found.append(path)
    assert [path.suffix for path in found] == [".service", ".socket"]
    return found


def test_systemd_finds_them_sound(units: list[Path]) -> None:
    version = subprocess.run(
        [tool("systemd-analyze"), "--version"], capture_output=True, text=True, timeout=SECONDS, check=True
    )
    if int(version.stdout.split()[1]) < 247:
        pytest.skip("this systemd-analyze is older than some of the settings, which are ignored then")
    done = subprocess.run(
        [tool("systemd-analyze"), "verify", "--man=no", *units], capture_output=True, text=True, timeout=SECONDS, check=False
    )
    said = [line for line in (done.stdout + done.stderr).splitlines() if "varstore-companion" in line]
    assert (done.returncode, said) == (0, [])


def test_its_exposure_is_small(units: list[Path]) -> None:
    done = subprocess.run(
        [tool("systemd-analyze"), "security", "--no-pager", "--offline=true", "--threshold=15", units[0]],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    if "unrecognized option" in done.stderr:
        pytest.skip("this systemd-analyze cannot look at a unit's file")
    assert done.returncode == 0, done.stdout[-300:]
    assert re.search(r"Overall exposure level for \S+: (0\.\d|1\.[0-5]) ", done.stdout), done.stdout[-300:]


def test_the_folder_of_the_tmpfiles_is_the_one_that_it_writes_to() -> None:
    (line,) = [line for line in (SYSTEMD / "varstore-companion.conf").read_text().splitlines() if not line.startswith("#")]
    assert line.split() == ["d", *setting("ReadWritePaths"), "-", "-", "-", "-"]


def test_the_names_of_all_that_is_kept_fit_into_one_variable() -> None:
    """MAX_ARG_STRLEN of execve(2): with more the next daemon could not be started."""
    (most,) = setting("FileDescriptorStoreMax")
    names = len("LISTEN_FDNAMES=") + int(most) * (LONGEST_NAME + len(":"))
    assert names < 131_072


# Each exception: without it, what the daemon does for a VM's socket fails

BIND = (
    "import sys; from pathlib import Path; from varstore_companion.daemon import listen\n"
    f"bound = listen.bind(Path(sys.argv[1]), mode=0o660, gid={GROUP})\n"
    "print(bound.path.lstat().st_gid); bound.unlink()"
)


def bind(path: Path, *prefix: str) -> str:
    """What comes of making a VM's socket in a process that `prefix` starts: its group, or the last line of the error."""
    command = [*prefix, sys.executable, "-c", BIND, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, env=python_environment(), timeout=SECONDS, check=False)
    lines = (done.stdout + done.stderr).splitlines()
    return lines[-1] if lines else ""


@needs_root
def test_one_of_root_s_powers_is_needed_and_no_other(tmp_path: Path) -> None:
    (power,) = setting("CapabilityBoundingSet")
    assert power == "CAP_CHOWN"
    setpriv = tool("setpriv")
    assert bind(tmp_path / "a.sock", setpriv, "--bounding-set=-all,+chown", "--no-new-privs") == str(GROUP)
    assert "Operation not permitted" in bind(tmp_path / "a.sock", setpriv, "--bounding-set=-all", "--no-new-privs")


@needs_root
def test_private_users_would_leave_no_group_to_give(tmp_path: Path) -> None:
    unshare = [tool("unshare"), "--user", "--map-root-user"]
    if not works(*unshare):
        pytest.skip("this system lets nobody make a user namespace")
    assert not setting("PrivateUsers")
    assert "Invalid argument" in bind(tmp_path / "a.sock", *unshare)


@needs_root
def test_another_user_than_root_could_not_make_a_socket_in_a_varstored_s_root(tmp_path: Path) -> None:
    """xenopsd makes the folder: root's, of its varstored's group, 0750."""
    assert not setting("User")
    root = tmp_path / "varstored-root-7"
    root.mkdir()
    root.chmod(0o750)
    os.chown(root, 0, GROUP)
    for folder in [tmp_path, *tmp_path.parents][:-2]:
        folder.chmod(0o755)
    assert bind(root / "a.sock") == str(GROUP)
    other = [tool("setpriv"), "--reuid=65534", f"--regid={GROUP}", "--clear-groups"]
    check = [*other, sys.executable, "-c", "import varstore_companion"]
    if subprocess.run(check, capture_output=True, env=python_environment(), timeout=SECONDS, check=False).returncode != 0:
        pytest.skip(f"another user may not run {sys.executable} with this program")
    assert "Permission denied" in bind(root / "a.sock", *other)


@needs_root
def test_the_folder_of_the_sockets_has_to_be_writable(tmp_path: Path) -> None:
    script = 'mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" && exec "$@"'
    prefix = [tool("unshare"), "--mount", tool("sh"), "-c", script, str(tmp_path)]
    if not works(*prefix):
        pytest.skip("this system lets nobody mount")
    assert "Read-only file system" in bind(tmp_path / "a.sock", *prefix)


# What the unit leaves it is enough

SANDBOX = """
import ctypes
PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN = 65, 1
ctypes.CDLL(None).prctl(PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN, 0, 0, 0)
"""


Start = Callable[[], AbstractContextManager[Serve]]


def allowed_calls(*groups: str) -> set[str]:
    """The system calls that the unit's filter leaves, or those of `groups`, as systemd resolves them."""
    analyze = tool("systemd-analyze")

    def of(name: str) -> set[str]:
        if not name.startswith("@"):
            return {name}
        done = subprocess.run([analyze, "syscall-filter", name], capture_output=True, text=True, timeout=SECONDS, check=True)
        lines = [line.strip() for line in done.stdout.splitlines()[1:]]
        return {call for line in lines if line and not line.startswith("#") for call in of(line)}

    if groups:
        return {call for group in groups for call in of(group)}
    found: set[str] = of("@default")
    for line in setting("SystemCallFilter"):
        names = {call for name in line.removeprefix("~").split() for call in of(name)}
        found = found - names if line.startswith("~") else found | names
    return found


async def live(home: Home, start: Start) -> None:
    """A VM's life on the embedded toolstack: attached for a varstored's group, updated at its boot, written, detached."""
    old = scene("ms2011").blob
    vm = home.create(old, CertificatesState.UPDATE_ON_BOOT)
    path = home.folder / "vm.sock"
    with start(), control_client(home.control) as control:
        control.call(Attach(vm, bytes(path), GROUP))
        assert path.lstat().st_gid == GROUP
        with varstored(path, vm) as client:
            boot = client.call(GetStore(Reason.BOOT))
            assert isinstance(boot, GetStoreAnswer)
            assert (boot.outcome, boot.store) == (Outcome.UPDATED, updated(old))
            for store, verdict in [
                (written("ms2011", 1), Verdict.UNSPECIFIED),  # for which certcheck is run
                (written("ms2011", 2), Verdict.NO),
                (scene("all2023").blob, Verdict.YES),
            ]:
                put = client.call(PutStore(store))
                assert isinstance(put, PutStoreAnswer)
                assert put.verdict is verdict
        control.call(Detach(bytes(path)))
    with home.database() as database:
        assert database.counters()["certcheck_runs"] == 1
        assert database.read(vm).state is CertificatesState.OK


async def live_before_a_guard(home: Home, start: Start) -> None:
    """A VM's life on the guard toolstack: its guard's socket taken over, updated, written, by one daemon that is killed and by
    the next, and given back."""
    old = scene("ms2011").blob
    async with trio.open_nursery() as nursery:
        guard, server = behind_guard(home.folder, nursery, old, CertificatesState.UPDATE_ON_BOOT)
        vm, path = guard.model.uuid, server.path
        os.chown(path, 0, GROUP)
        guards = path.lstat().st_ino
        stock = Varstored(path, vm)
        with start(), control_client(home.control) as control:
            control.call(Attach(vm, bytes(path), interpose=True))
            assert (path.lstat().st_gid, path.lstat().st_ino != guards) == (GROUP, True)
            assert await stock.read() == updated(old)
            await stock.write(written("ms2011", 1))
        with start() as serve, control_client(home.control) as control:
            await stock.write(written("ms2011", 2))
            assert guard.model.store == written("ms2011", 2)
            # It came back, since it is of this start of the host, and so is what was noted of its writes.
            control.call(Detach(bytes(path)))
            assert not is_left(path)
            assert path.lstat().st_ino == guards
        assert [line for line in serve.lines if line.startswith(("WARNING", "ERROR"))] == []
        nursery.cancel_scope.cancel()


LIVES: dict[str, Callable[[Home, Start], Awaitable[None]]] = {"embedded": live, "guard": live_before_a_guard}


@needs_root
@pytest.mark.parametrize("toolstack", LIVES)
async def test_the_daemon_makes_no_call_that_the_filter_refuses(tmp_path: Path, toolstack: str) -> None:
    strace = tool("strace")
    trace = tmp_path / "trace"
    home = Home(tmp_path)
    prefix = [strace, "-f", "-qq", "-A", "-o", str(trace), "-e", "trace=all", "-e", "signal=none"]
    if not works(*prefix):
        pytest.skip("this system lets nobody trace")

    @contextmanager
    def start() -> Iterator[Serve]:
        with home.serve("--toolstack", toolstack, prefix=prefix) as serve:
            yield serve
            tracer = serve.process.pid
            (daemon,) = Path(f"/proc/{tracer}/task/{tracer}/children").read_text().split()
            os.kill(int(daemon), signal.SIGTERM)
            assert serve.wait() == 0

    await LIVES[toolstack](home, start)
    made = {match[1] for line in trace.read_text().splitlines() if (match := re.match(r"\d+ +(?:<\.\.\. )?(\w+)", line))}
    made -= {"exit", "resumed"}
    assert {"fsync", "accept4"} <= made
    allowed = allowed_calls()
    assert made - allowed == set()
    # Of the privileged ones it makes only these: for the group of a VM's socket, and SQLite for its files.
    theirs = {"chown", "fchown"} if toolstack == "embedded" else {"chown"}
    assert made & allowed_calls("@privileged") == theirs <= allowed_calls("@chown")


# Its folder is what StateDirectory= and ReadWritePaths= leave it.
FILES = """
mount -t proc -o "$0" proc /proc && mount --bind "$1" "$1" && mount -o remount,ro,bind / && shift && exec "$@"
"""


@needs_root
@pytest.mark.parametrize("toolstack", LIVES)
async def test_it_works_in_what_the_unit_leaves_it(tmp_path: Path, toolstack: str) -> None:
    options = f"hidepid={setting('ProtectProc')[0]}" + "".join(f",subset={each}" for each in setting("ProcSubset"))
    files = [tool("sh"), "-c", FILES, options, str(tmp_path)]
    unshare = [tool("unshare"), "--net", "--ipc", "--mount", *files]
    if not works(*unshare):
        pytest.skip("this system lets nobody make namespaces, or mount")
    home = Home(tmp_path)
    powers = [tool("setpriv"), "--bounding-set=-all,+chown", "--no-new-privs"]
    await LIVES[toolstack](home, lambda: home.serve("--toolstack", toolstack, prefix=[*unshare, *powers], before=SANDBOX))
