"""`make install`: what comes where, that it starts, and that it goes again."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import construct
import pytest

import varstore_companion

SOURCES = Path(varstore_companion.__file__).parents[1]
PROJECT = Path(__file__).parents[1]
SECONDS = 300

pytestmark = pytest.mark.skipif(
    shutil.which("make") is None or not (PROJECT / "Makefile").exists(),
    reason="needs make, and the project's folder",
)


def wheel(folder: Path) -> Path:
    """The package as pip takes it without a network, which the building of one needs."""
    path = folder / "varstore_companion-0.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for each in sorted((SOURCES / "varstore_companion").rglob("*")):
            if each.suffix in (".py", ".toml", ".typed"):
                archive.write(each, each.relative_to(SOURCES))
        info = "varstore_companion-0.0.dist-info"
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: varstore-companion\nVersion: 0.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return path


def make(*arguments: str) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    command = ["make", "-s", *arguments]
    done = subprocess.run(command, env=environment, cwd=PROJECT, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def files(folder: Path) -> set[str]:
    """Every file but those of the virtual environment."""
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()}
    return {name for name in found if "/lib/varstore-companion/" not in name}


def test_a_package_is_put_together_starts_and_goes_again(tmp_path: Path) -> None:
    stage = tmp_path / "stage"
    to = f"DESTDIR={stage}", "PREFIX=/opt/vc"
    install = "install", *to, "PIPFLAGS=--no-index --no-deps", f"PACKAGE={wheel(tmp_path)}", f"PYTHON={sys.executable}"
    make(*install)
    installed = {
        "opt/vc/bin/varstore-companion",
        "opt/vc/bin/varstore-nvram-certcheck",
        "opt/vc/lib/systemd/system/varstore-companion.service",
        "opt/vc/lib/systemd/system/varstore-companion.socket",
        "opt/vc/lib/tmpfiles.d/varstore-companion.conf",
        "opt/vc/share/doc/varstore-companion/LICENSE",
        "opt/vc/share/doc/varstore-companion/README.md",
    }
    config = "etc/varstore-companion/config.toml"
    has_example = (PROJECT / "systemd" / "config.toml").exists()
    assert files(stage) == installed | ({config, "opt/vc/share/doc/varstore-companion/config.toml"} if has_example else set())
    unit = (stage / "opt/vc/lib/systemd/system/varstore-companion.service").read_text()
    assert "\nExecStart=/opt/vc/bin/varstore-companion serve\n" in unit
    assert "/usr/local" not in unit
    for name in installed:
        found = stage / name
        assert str(stage) not in found.read_text()
        assert found.stat().st_mode & 0o777 == (0o755 if "/bin/" in name else 0o644)

    # The virtual environment can be moved to where its package will be; what it depends on is not part of this test.
    home = stage / "opt/vc/lib/varstore-companion"
    (site,) = home.glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text(f"{Path(construct.__file__).parents[1]}\n")
    store = tmp_path / "store"
    store.write_bytes(b"")
    for name, arguments, said in [
        ("varstore-companion", ["--version"], f"varstore-companion {varstore_companion.__version__}\n"),
        ("varstore-nvram-certcheck", [str(store)], "unknown\n"),
    ]:
        program = stage / "opt/vc/bin" / name
        first, _ = program.read_text().split("\n", 1)
        assert first == "#!/opt/vc/lib/varstore-companion/bin/python -I"
        command = [str(home / "bin/python"), "-I", str(program), *arguments]
        done = subprocess.run(command, env={}, cwd="/", capture_output=True, text=True, timeout=SECONDS, check=False)
        assert (done.returncode, done.stdout) == (0, said), done.stderr

    if has_example:
        # A configuration that somebody has changed stays.
        (stage / config).write_text("# mine\n")
        make(*install)
        assert (stage / config).read_text() == "# mine\n"
    make("uninstall", *to)
    assert files(stage) == ({config} if has_example else set())
    assert not home.exists()


def test_nothing_of_an_earlier_build_is_installed(tmp_path: Path) -> None:
    """setuptools would take a module from it that is gone by now, or that is older here, as after a downgrade in place."""
    project = tmp_path / "project"
    shutil.copytree(PROJECT / "systemd", project / "systemd")
    for name in ("Makefile", "README.md", "LICENSE"):
        shutil.copy(PROJECT / name, project)
    (project / "build" / "lib").mkdir(parents=True)
    # In the places of Python, which makes the virtual environment, and of its pip.
    python, pip = tmp_path / "python", tmp_path / "pip"
    python.write_text(f'#!/bin/sh\nmkdir -p "$3/bin" && cp "{pip}" "$3/bin"\n')
    pip.write_text(f'#!/bin/sh\nls >"{tmp_path / "seen"}"\n')
    for program in (python, pip):
        program.chmod(0o755)
    make("-C", str(project), "install", f"PYTHON={python}", f"DESTDIR={tmp_path / 'stage'}")
    assert (tmp_path / "seen").read_text().split() == ["LICENSE", "Makefile", "README.md", "systemd"]
