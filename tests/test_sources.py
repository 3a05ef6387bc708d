"""Certificate bodies from the host's files: in which order, and what is said of files that cannot be used."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from support import storebytes as sb
from support.certificates import elliptic_certificate, identity, microsoft_folder
from support.processes import python_environment
from support.shipped import microsoft_bodies, own, own_bodies, own_manifest, shipped
from support.varstored_model import sign_update
from varstore_companion import sources
from varstore_companion.errors import ConfigurationError
from varstore_companion.sources import FILE_LIMIT, FILES_LIMIT, Loaded, load_bodies

NEW_DB = hashlib.sha256(own("new-db")).digest()


def auth(*bodies: bytes) -> bytes:
    """As varstored's `.auth` files are."""
    signer = identity("A tenant's platform key")
    time = sb.efi_time(2024, 5, 6)
    payload = sb.x509_lists(bodies)
    return sign_update("db", sb.IMAGE_SECURITY, sb.ATTRIBUTES_KEYS, time, payload, key=signer.key, cert=signer.certificate)


def pem(der: bytes) -> bytes:
    return x509.load_der_x509_certificate(der).public_bytes(Encoding.PEM)


def load(auth_folder: Path | None = None, folder: Path | None = None) -> Loaded:
    return load_bodies(own_manifest(), auth_folder=auth_folder, folder=folder, virt_firmware=False)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("db.auth", auth(own("old-db"), own("new-db"))),
        ("update.bin", auth(own("new-db"))),
        ("ca.der", own("new-db")),
        ("ca.cer", own("new-db")),
        ("CA.CRT", own("new-db")),
        ("ca.pem", pem(own("old-db")) + pem(own("new-db"))),
        ("der.pem", own("new-db")),
        ("pem.der", pem(own("new-db"))),
    ],
)
def test_a_file_of_each_kind_is_told_by_its_content(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    for loaded in (load(tmp_path), load(None, tmp_path)):
        assert loaded.bodies == {NEW_DB: own("new-db")}
        assert loaded.origins == {NEW_DB: str(tmp_path / name)}
        assert loaded.problems == ()


def test_virt_firmware_has_what_the_shipped_manifest_requires() -> None:
    folder = microsoft_folder()
    loaded = load_bodies(shipped(), auth_folder=None)
    assert loaded.bodies == microsoft_bodies()
    assert folder is not None
    assert {Path(origin).parent for origin in loaded.origins.values()} == {folder}
    assert loaded.problems == ()


def test_of_virt_firmware_no_code_is_run() -> None:
    script = (
        "import sys\nfrom varstore_companion import files, sources\n"
        "sources.load_bodies(files.load_manifest(), auth_folder=None)\n"
        "print([name for name in sys.modules if name.partition('.')[0] == 'virt'])"
    )
    done = subprocess.run([sys.executable, "-c", script], env=python_environment(), capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_without_virt_firmware_its_bodies_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "virt", None)
    assert load_bodies(shipped(), auth_folder=None) == Loaded({}, {}, ())


def test_a_package_virt_without_certificates_is_no_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "virt").mkdir()
    (tmp_path / "virt" / "__init__.py").touch()
    monkeypatch.delitem(sys.modules, "virt", raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert load_bodies(shipped(), auth_folder=None) == Loaded({}, {}, ())


def test_the_first_source_of_a_body_counts(tmp_path: Path) -> None:
    host, operator = tmp_path / "host", tmp_path / "operator"
    for folder in (host, operator):
        folder.mkdir()
        (folder / "b.der").write_bytes(own("new-db"))
    (operator / "a.pem").write_bytes(pem(own("new-rom")))
    loaded = load(host, operator)
    assert sorted(loaded.origins.values()) == [str(host / "b.der"), str(operator / "a.pem")]
    (host / "a.auth").write_bytes(auth(*own_bodies().values()))
    assert set(load(host, operator).origins.values()) == {str(host / "a.auth")}
    (host / "a.auth").write_bytes(auth(own("new-rom")))
    both = load(host, operator)
    assert both.bodies == {NEW_DB: own("new-db"), hashlib.sha256(own("new-rom")).digest(): own("new-rom")}


def test_virt_firmware_comes_last(tmp_path: Path) -> None:
    name, body = next(iter(microsoft_bodies().items()))
    (tmp_path / "kek.der").write_bytes(body)
    loaded = load_bodies(shipped(), auth_folder=None, folder=tmp_path)
    assert loaded.origins[name] == str(tmp_path / "kek.der")
    assert loaded.bodies == microsoft_bodies()


def test_what_does_not_count_is_passed_over_without_a_word(tmp_path: Path) -> None:
    """A folder of certificates may hold others than those that are needed."""
    impostor = identity("An operator's new-db", key_of="A tenant's db").der
    (tmp_path / "impostor.der").write_bytes(impostor)
    (tmp_path / "elliptic.der").write_bytes(elliptic_certificate())
    (tmp_path / "old.der").write_bytes(own("old-db"))
    (tmp_path / "README.txt").write_bytes(own("new-db"))
    (tmp_path / "folder.der").mkdir()
    (tmp_path / "dangling.der").symlink_to("nowhere")
    assert load(tmp_path) == Loaded({}, {}, ())


def test_a_file_that_cannot_be_used_is_a_problem_and_the_others_count(tmp_path: Path) -> None:
    (tmp_path / "a.auth").write_bytes(b"garbage " * 100)
    (tmp_path / "b.pem").write_bytes(b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    (tmp_path / "c.der").write_bytes(b"\x30\x82" + bytes(FILE_LIMIT))
    (tmp_path / "d.der").write_bytes(own("new-db"))
    (tmp_path / "e.bin").write_bytes(b"")
    loaded = load(tmp_path)
    assert loaded.bodies == {NEW_DB: own("new-db")}
    named = [Path(problem.split(":")[0]).name for problem in loaded.problems]
    assert named == ["a.auth", "b.pem", "c.der", "e.bin"]
    assert all(": not used: " in problem for problem in loaded.problems)
    assert "at most 262,144 bytes" in loaded.problems[2]


def test_a_folder_of_certificates_may_be_a_link(tmp_path: Path) -> None:
    real = tmp_path / "share"
    real.mkdir()
    (real / "db.auth").write_bytes(auth(own("new-db")))
    link = tmp_path / "lib"
    link.symlink_to(real)
    assert load(link).origins == {NEW_DB: str(link / "db.auth")}


def test_a_host_without_auth_files_is_no_problem(tmp_path: Path) -> None:
    assert load(tmp_path / "absent") == Loaded({}, {}, ())


def test_a_folder_that_an_operator_names_must_be_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"absent: expected a folder with certificates \(No such file"):
        load(None, tmp_path / "absent")
    file = tmp_path / "file"
    file.write_bytes(b"")
    with pytest.raises(ConfigurationError, match=r"file: expected a folder with certificates \(Not a directory\)"):
        load(None, file)
    (problem,) = load(file).problems
    assert problem.startswith(f"{file}: not used: ")


def test_a_folder_that_cannot_be_listed_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may list everything, so the refusal is put in here."""

    def refuse(self: Path) -> list[Path]:
        raise PermissionError(13, os.strerror(13), str(self))

    monkeypatch.setattr(Path, "iterdir", refuse)
    (problem,) = load(tmp_path).problems
    assert problem == f"{tmp_path}: not used: [Errno 13] Permission denied: '{tmp_path}'"
    with pytest.raises(ConfigurationError, match="Permission denied"):
        load(None, tmp_path)


def test_a_wrong_path_does_not_read_a_whole_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert FILES_LIMIT == 1_000
    monkeypatch.setattr(sources, "FILES_LIMIT", 3)
    for number in range(5):
        (tmp_path / f"{number}.der").write_bytes(b"x")
    assert len(load(tmp_path).problems) == 3
