"""The corpora through the same functions, without the fuzzer: each parser keeps its contract on all that was found."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from fuzz import contract
from fuzz.all import TARGETS
from fuzz.contract import CORPUS, REGRESSIONS, Target, files
from fuzz.fingerprints import digests_in
from fuzz.run import fuzzers
from support.certificates import FINGERPRINTS, identity
from support.storebytes import db_variable, x509_list
from support.storemaker import make_store

REGRESSION_FILES = [path for name in TARGETS for path in files(REGRESSIONS, name)]
SOME_HUNDRED_KIB = 512 * 1024


def keeps_the_contract(target: Target, data: bytes, where: object) -> None:
    try:
        target.check_work(data)
    except Exception as error:
        error.add_note(f"{target.name}: {where}")
        raise


@pytest.mark.parametrize("name", TARGETS)
def test_the_seeds_keep_the_contract(name: str) -> None:
    target = TARGETS[name]
    seeds = list(target.seeds())
    assert seeds
    for number, data in enumerate(seeds):
        assert len(data) <= target.limit, "the fuzzer would cut it"
        keeps_the_contract(target, data, f"seed {number}")


@pytest.mark.parametrize("name", TARGETS)
def test_the_corpus_keeps_the_contract(name: str) -> None:
    target = TARGETS[name]
    for path in files(CORPUS, name):
        data = path.read_bytes()
        assert len(data) <= target.limit, path
        keeps_the_contract(target, data, path)


@pytest.mark.parametrize("path", REGRESSION_FILES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_what_was_found_once_keeps_the_contract(path: Path) -> None:
    keeps_the_contract(TARGETS[path.parent.name], path.read_bytes(), path)


@pytest.mark.parametrize("name", TARGETS)
def test_nothing_at_all_keeps_the_contract(name: str) -> None:
    for data in (b"", b"\0", b"\xff"):
        keeps_the_contract(TARGETS[name], data, data)


# The corpora


def test_every_target_is_fuzzed_and_has_a_corpus() -> None:
    listed = {fuzzer.name: fuzzer.command for fuzzer in fuzzers()}
    own = {name for name, command in listed.items() if "tests/fuzz/one.py" in command}
    assert own == set(TARGETS)
    for name in own:
        assert listed[name] == f"{{python}} tests/fuzz/one.py {name} {{options}}"
        assert files(CORPUS, name), name


def test_no_folder_is_left_over() -> None:
    known = {fuzzer.name for fuzzer in fuzzers()}
    for folder in (CORPUS, REGRESSIONS):
        assert {path.name for path in folder.iterdir()} <= known


def test_the_corpora_are_small() -> None:
    assert sum(path.stat().st_size for path in CORPUS.rglob("*") if path.is_file()) < SOME_HUNDRED_KIB


def test_no_certificate_of_microsofts_is_in_the_tree() -> None:
    for folder in (CORPUS, REGRESSIONS):
        for path in folder.rglob("*"):
            if path.is_file():
                assert set(FINGERPRINTS.values()).isdisjoint(digests_in(path.read_bytes())), path


def _in_pem(der: bytes) -> bytes:
    return x509.load_der_x509_certificate(der).public_bytes(Encoding.PEM)


@pytest.mark.parametrize(
    "wrap",
    [
        bytes,
        _in_pem,
        lambda der: b"\xff\x30\x82" + der + b"behind",
        lambda der: make_store([db_variable(x509_list(b"first") + x509_list(der))]),
    ],
    ids=["alone", "PEM", "inside", "store"],
)
def test_a_certificate_in_a_corpus_would_be_seen(wrap: Callable[[bytes], bytes]) -> None:
    der = identity("A tenant's own", key_of="fuzz").der
    assert hashlib.sha256(der).hexdigest() in set(digests_in(wrap(der)))
    assert hashlib.sha256(b"first").hexdigest() in set(digests_in(x509_list(b"first")))


# The judge


def _quadratic(data: bytes) -> None:
    for _ in data:
        for byte in data:
            abs(byte)


def _greedy(data: bytes) -> None:
    bytes(300_000 + 100 * len(data))


def _broken(data: bytes) -> None:
    raise IndexError(len(data))


def _slow(data: bytes) -> None:
    sorted(range(100_000 * len(data)), key=str)


@pytest.mark.parametrize("work", [_quadratic, _greedy, _broken])
def test_a_parser_that_breaks_the_contract_is_caught(work: Callable[[bytes], None]) -> None:
    target = Target("bad", work, lambda: [b""])
    with pytest.raises((AssertionError, IndexError)):
        target.check_work(bytes(500))


def test_a_parser_that_takes_its_time_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contract, "BASE_NANOSECONDS", 1_000_000)
    target = Target("slow", _slow, lambda: [b""])
    with pytest.raises(AssertionError, match=r"^\d+ ms for 1 bytes, at most 1$"):
        target.check_time(b"x")
    Target("quick", lambda _: None, lambda: [b""]).check_time(b"x")
