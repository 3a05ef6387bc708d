"""Imports go one way, and the pure layers touch nothing outside: read from the syntax trees of the sources."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import varstore_companion

PACKAGE = "varstore_companion"
ROOT = Path(varstore_companion.__file__).parent
SOURCES = ROOT.parent

MAY_IMPORT: dict[str, set[str]] = {
    "__init__": set(),
    "errors": set(),
    "strict_toml": {"errors"},
    "efi": {"errors"},
    "trust": {"errors", "strict_toml", "efi"},
    "wire": {"errors", "trust.state"},
    "unix_stream": set(),
    "threads": set(),
    "toolstack": {"errors", "strict_toml", "efi", "trust.state", "unix_stream", "threads"},
    "journal": {"errors", "strict_toml", "efi", "trust.state", "threads"},
    "paths": set(),
    "files": {"errors", "efi", "trust"},
    "sources": {"errors", "paths", "files", "efi", "trust"},
    "cli": {"errors", "strict_toml", "paths", "efi", "trust", "wire", "files", "sources"},
    "daemon": {
        "errors",
        "strict_toml",
        "paths",
        "efi",
        "trust",
        "wire",
        "files",
        "sources",
        "unix_stream",
        "threads",
        "toolstack",
        "journal",
    },
}
"""What each room may import besides itself and the version in the package."""

EXCEPTIONS: dict[str, set[str]] = {
    "cli/serve.py": {"daemon.main", "daemon.config", "daemon.log"},  # it starts the daemon
    "cli/config.py": {"daemon.config", "daemon.foresee", "daemon.rules"},  # it reads the files as the daemon does
    "cli/out_file.py": {"journal.files"},  # it writes a file so that a crash leaves the old or the new one
    "cli/demo.py": {"toolstack.database"},  # it shows the embedded toolstack's side, too
    # The embedded toolstack's command line.
    "cli/vm/common.py": {"toolstack.database", "toolstack.operations", "toolstack.records"},
    "cli/vm/create.py": {"toolstack.nvram", "toolstack.records"},
    "cli/vm/export.py": {"toolstack.metadata"},
    "cli/vm/importing.py": {"toolstack.metadata"},
}
"""What single commands may import besides, each with its reason."""

PURE = ("efi", "trust", "wire", "strict_toml", "errors")
STANDARD = {
    "__future__", "abc", "binascii", "bisect", "collections", "dataclasses", "enum", "functools", "hashlib", "itertools",
    "math", "re", "string", "struct", "tomllib", "types", "typing", "uuid", "warnings",
}  # fmt: skip
"""The standard library's modules without I/O, clock, randomness or threads."""
LIBRARIES = {"efi": {"construct"}, "trust": {"cryptography"}}
BUILT_IN_IO = {"open", "print", "input", "exec", "eval", "breakpoint", "__import__"}


def modules(room: str) -> list[Path]:
    """The files of a room: a package's, or a module's one."""
    single = ROOT / f"{room}.py"
    return [single] if single.exists() else sorted((ROOT / room).rglob("*.py"))


def imported(path: Path) -> Iterator[str]:
    """The full names of all modules that a file imports, wherever in it; a name taken from a package as its module."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: a relative import"
            for alias in node.names:
                inside = Path(SOURCES, *str(node.module).split("."), f"{alias.name}.py")
                folder = Path(SOURCES, *str(node.module).split("."), alias.name)
                whole = inside.exists() or folder.is_dir()
                yield f"{node.module}.{alias.name}" if whole else str(node.module)


def rooms_imported(path: Path) -> Iterator[str]:
    """The parts of the project that a file imports, as `efi.store` or `trust.state`."""
    for name in imported(path):
        if name == PACKAGE or name.startswith(f"{PACKAGE}."):
            yield name.removeprefix(PACKAGE).lstrip(".")


def allowed(room: str, name: str) -> bool:
    own = {room, *MAY_IMPORT[room]} | (set() if room in PURE else {""})
    return name in own or any(name.startswith(f"{each}.") for each in own if each)


def test_every_room_is_known() -> None:
    found = {path.stem for path in ROOT.glob("*.py")} | {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert found == set(MAY_IMPORT)


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_imports_go_one_way(room: str) -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in modules(room)
        for name in rooms_imported(path)
        if not allowed(room, name) and name not in EXCEPTIONS.get(str(path.relative_to(ROOT)), ())
    ]
    assert wrong == []


def test_no_exception_is_left_over() -> None:
    for file, names in EXCEPTIONS.items():
        assert names <= set(rooms_imported(ROOT / file)), file


@pytest.mark.parametrize("room", PURE)
def test_the_pure_layers_import_nothing_that_touches_the_outside(room: str) -> None:
    """No trio, no system calls, no sockets, no clock, no log."""
    may = STANDARD | LIBRARIES.get(room, set()) | {PACKAGE}
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in modules(room)
        for name in imported(path)
        if name.partition(".")[0] not in may
    ]
    assert wrong == []


@pytest.mark.parametrize("room", PURE)
def test_the_pure_layers_call_nothing_that_touches_the_outside(room: str) -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{node.lineno} uses {node.id}"
        for path in modules(room)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Name) and node.id in BUILT_IN_IO
    ]
    assert wrong == []


@pytest.mark.parametrize("room", [room for room in MAY_IMPORT if room != "daemon"])
def test_only_the_daemon_has_nurseries(room: str) -> None:
    wrong = [path for path in modules(room) if "open_nursery" in path.read_text(encoding="utf-8")]
    assert wrong == []


def test_certificates_are_read_with_cryptography_in_one_place() -> None:
    """certcheck has to answer without it; the demo makes a tenant's keys."""
    users = {
        str(path.relative_to(ROOT))
        for path in ROOT.rglob("*.py")
        for name in imported(path)
        if name.partition(".")[0] == "cryptography"
    }
    assert users == {"trust/certificates.py", "cli/demo_scene.py"}


def test_construct_declares_in_one_place() -> None:
    users = {
        str(path.relative_to(ROOT))
        for path in ROOT.rglob("*.py")
        for name in imported(path)
        if name.partition(".")[0] == "construct"
    }
    assert users == {"efi/layouts.py"}


def test_files_are_short() -> None:
    """One idea a file."""
    long = [
        str(path.relative_to(ROOT)) for path in ROOT.rglob("*.py") if len(path.read_text(encoding="utf-8").splitlines()) >= 450
    ]
    assert long == []


def test_the_judge_of_the_rules_sees_what_it_has_to(tmp_path: Path) -> None:
    """An import inside a function counts, and a name that is a module is told from one that is not."""
    path = tmp_path / "example.py"
    path.write_text(
        "def f():\n    import trio.lowlevel\n"
        "from varstore_companion.trust import plan\n"
        "from varstore_companion.trust.state import Update\n"
        "from varstore_companion import efi\n",
        encoding="utf-8",
    )
    assert set(imported(path)) == {
        "trio.lowlevel",
        "varstore_companion.trust.plan",
        "varstore_companion.trust.state",
        "varstore_companion.efi",
    }
    assert [name for name in rooms_imported(path) if not allowed("toolstack", name)] == ["trust.plan"]
