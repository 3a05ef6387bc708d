"""Prometheus' text format: read back by rules of its own, as a collector reads it."""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trio

from support.daemon import Place
from support.storemaker import scene
from varstore_companion.cli import prometheus
from varstore_companion.daemon.histogram import BUCKETS
from varstore_companion.trust.state import CertificatesState

SAMPLE = re.compile(r'([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{((?:[a-zA-Z_][a-zA-Z0-9_]*="(?:[^"\\\n]|\\["\\n])*",?)*)\})? (\S+)')
LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\["\\n])*)"')
_UNESCAPED = {"\\\\": "\\", '\\"': '"', "\\n": "\n"}


@dataclass
class Family:
    """One metric as it was read."""

    type: str
    help: str
    samples: list[tuple[str, dict[str, str], float]] = field(default_factory=list)


def read(text: str) -> dict[str, Family]:
    """Read the format (Prometheus, exposition formats, version 0.0.4) and nothing else."""
    assert text.endswith("\n")
    families: dict[str, Family] = {}
    last_help = ("", "")
    for line in text[:-1].split("\n"):
        if line.startswith("# HELP "):
            _, _, name, text_of = line.split(" ", 3)
            last_help = (name, text_of)
        elif line.startswith("# TYPE "):
            _, _, name, kind = line.split(" ")
            assert last_help[0] == name
            assert name not in families, "a metric's lines stand together"
            families[name] = Family(kind, last_help[1])
        else:
            match = SAMPLE.fullmatch(line)
            assert match is not None, line
            labels = {key: re.sub(r"\\[\\\"n]", lambda each: _UNESCAPED[each[0]], value) for key, value in labels_of(match[2])}
            family = families[name]
            assert match[1] == name or (family.type == "histogram" and match[1].removeprefix(name) in ENDS)
            family.samples.append((match[1].removeprefix(name), labels, float(match[3])))
    return families


ENDS = ("_bucket", "_sum", "_count")


def labels_of(text: str | None) -> Iterator[tuple[str, str]]:
    return ((match[1], match[2]) for match in LABEL.finditer(text or ""))


async def test_what_the_daemon_tells_is_read_back(tmp_path: Path, nursery: trio.Nursery) -> None:
    place = Place(tmp_path)
    await nursery.start(place.daemon.run)
    machine = await place.machine(scene("ms2011").blob, CertificatesState.UPDATE_ON_BOOT)
    await machine.boot()
    place.host.stats.write_seconds.add(0.3)
    place.host.stats.write_seconds.add(100)
    families = read(prometheus.text(place.daemon.metrics()))
    assert families["varstore_companion_up"].samples == [("", {}, 1.0)]
    assert families["varstore_companion_updates_total"] == Family(
        "counter", "Updates of Secure Boot certificates made at boot.", [("", {}, 1.0)]
    )
    assert ("", {"update": "yes"}, 1.0) in families["varstore_companion_writes_total"].samples
    samples = families["varstore_companion_write_seconds"].samples
    counts = [(labels["le"], value) for end, labels, value in samples if end == "_bucket"]
    assert [float(bound) for bound, _ in counts] == [*BUCKETS, math.inf]
    assert [value for _, value in counts] == [0.0] * 7 + [0.0] + [1.0] * (len(BUCKETS) - 8) + [2.0]
    assert samples[-2:] == [("_sum", {}, 100.3), ("_count", {}, 2.0)]
    calls = families["varstore_companion_toolstack_call_seconds"].samples
    assert {labels["call"] for _, labels, _ in calls} == {"read", "write", "mark", "alert"}
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize("value", ['a"b', "a\\", "a\nb", "\\n", 'a",x="1', "ü{}"])
def test_labels_and_help_are_escaped(value: str) -> None:
    metrics = [{"name": "n", "type": "gauge", "help": value, "samples": [{"labels": {"a": value, "b": "1"}, "value": 2.5}]}]
    families = read(prometheus.text(metrics))
    assert families["n"].samples == [("", {"a": value, "b": "1"}, 2.5)]
    assert "\n" not in families["n"].help


def test_no_answer_is_one_metric() -> None:
    families = read("".join(f"{line}\n" for line in prometheus.up(answered=False)))
    assert {name: family.samples for name, family in families.items()} == {"varstore_companion_up": [("", {}, 0.0)]}
