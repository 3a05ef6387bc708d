"""`make fuzz`: runs each fuzzer of `fuzzers.txt` for a given time and prints a table; `--minimise` renews the corpora."""

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
WORK = ROOT / "build" / "fuzzing"
CORPUS = HERE / "corpus"
LIST = HERE / "fuzzers.txt"

EXECUTED = re.compile(rb"stat::number_of_executed_units: (\d+)|(\d+) executions in ")
"""How libFuzzer counts, and how a fuzzer of our own does; one may run several in a row."""
FINDINGS = ("found-", "crash-", "timeout-", "oom-", "leak-", "slow-unit-")
"""How fuzzers name what they find; the second and the others are libFuzzer's."""
LIBFUZZER = "-max_total_time={seconds} -print_final_stats=1 -rss_limit_mb=1024 -timeout=20 -artifact_prefix={work}/"
"""Bounds on what one input may take, beside the target's own: those find what hangs for good."""
FOLDERS = "{work}/corpus {corpus} --seeds={work}/seeds"
HEADINGS = ("target", "executions", "seconds", "a second", "corpus", "bytes", "findings")


@dataclass(frozen=True, slots=True)
class Fuzzer:
    """One line of the list."""

    name: str
    command: str

    @property
    def work(self) -> Path:
        """Where it keeps what it found its way with, and what it found."""
        return WORK / self.name

    @property
    def is_libfuzzer(self) -> bool:
        """Whether it takes libFuzzer's options, a corpus among them."""
        return "{options}" in self.command

    @property
    def corpus(self) -> Path:
        """Its inputs in the tree."""
        return CORPUS / self.name

    def filled_in(self, options: str, seconds: int = 0) -> list[str]:
        """The command with its places filled in."""
        filled = self.command.replace("{options}", options)
        for place, value in (
            ("{python}", sys.executable),
            ("{seconds}", str(seconds)),
            ("{work}", str(self.work)),
            ("{corpus}", str(self.corpus)),
        ):
            filled = filled.replace(place, shlex.quote(value))
        return shlex.split(filled)


def fuzzers() -> list[Fuzzer]:
    """The list, in its order."""
    lines = LIST.read_text(encoding="utf-8").splitlines()
    pairs = [line.split(maxsplit=1) for line in lines if line.strip() and not line.startswith("#")]
    return [Fuzzer(name, command) for name, command in pairs]


def fuzz(fuzzer: Fuzzer, seconds: int) -> tuple[tuple[str, ...], bool]:
    """Run one; its row of the table, and whether it ended without a finding."""
    before = set(_found(fuzzer))
    for folder in (fuzzer.work, *((fuzzer.work / "corpus", fuzzer.corpus) if fuzzer.is_libfuzzer else ())):
        folder.mkdir(parents=True, exist_ok=True)
    begun = time.monotonic()
    command = fuzzer.filled_in(f"{LIBFUZZER} {FOLDERS}", seconds)
    with (fuzzer.work / "log").open("wb") as log:
        status = _call(command, log)
    taken = time.monotonic() - begun
    output = (fuzzer.work / "log").read_bytes()
    counts = [int(count or other) for count, other in EXECUTED.findall(output)]
    found = sorted(set(_found(fuzzer)) - before)
    if status or not counts:
        sys.stderr.write(f"{fuzzer.name}: status {status}; {fuzzer.work / 'log'} ends with\n")
        sys.stderr.write(output[-2_000:].decode(errors="replace") + "\n")
    for path in found:
        sys.stderr.write(f"{fuzzer.name}: found {path}\n")
    executed = sum(counts)
    inputs = [path.stat().st_size for path in fuzzer.corpus.glob("*")]
    row = (
        fuzzer.name,
        f"{executed:,}",
        f"{taken:.0f}",
        f"{executed / taken:,.0f}",
        f"{len(inputs)}",
        f"{sum(inputs):,}",
        f"{len(found)}",
    )
    return row, not (status or found) and bool(counts)


def minimise(fuzzer: Fuzzer) -> None:
    """Make the corpus in the tree the smallest that reaches what the old one and this machine's work reach."""
    new = fuzzer.work / "minimised"
    shutil.rmtree(new, ignore_errors=True)
    for folder in (new, fuzzer.work / "corpus", fuzzer.corpus):
        folder.mkdir(parents=True, exist_ok=True)
    with (fuzzer.work / "log").open("wb") as log:
        status = _call(fuzzer.filled_in(f"-merge=1 {{work}}/minimised {FOLDERS}"), log)
    if status or not any(new.iterdir()):
        raise SystemExit(f"{fuzzer.name}: the merge failed, see {fuzzer.work / 'log'}")
    for path in fuzzer.corpus.iterdir():
        path.unlink()
    for path in new.iterdir():
        path.replace(fuzzer.corpus / path.name)


def table(rows: Sequence[Sequence[str]]) -> str:
    """The rows in columns."""
    widths = [max(len(row[column]) for row in (HEADINGS, *rows)) for column in range(len(HEADINGS))]
    lines = [
        row[0].ljust(widths[0]) + "".join("  " + cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))
        for row in (HEADINGS, *rows)
    ]
    return "\n".join(lines)


def _found(fuzzer: Fuzzer) -> list[Path]:
    return [path for path in fuzzer.work.glob("*") if path.name.startswith(FINDINGS)]


def _call(command: Sequence[str], log: BinaryIO) -> int:
    """Run from the root."""
    environment = {**os.environ, "PYTHON": sys.executable, "PYTHONWARNINGS": "ignore"}
    return subprocess.run(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, env=environment, check=False).returncode


def main() -> int:
    """Run the fuzzers that are named, or all of them."""
    known = {fuzzer.name: fuzzer for fuzzer in fuzzers()}
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="TARGET", help=f"one of {', '.join(known)}; all without any")
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument("--minimise", action="store_true", help="renew the corpora in the tree from what was found here")
    given = parser.parse_args()
    if unknown := set(given.names) - set(known):
        parser.error(f"no target {', '.join(sorted(unknown))}")
    chosen = [known[name] for name in given.names or known]
    rows = []
    all_fine = True
    for fuzzer in chosen:
        if given.minimise:
            if fuzzer.is_libfuzzer:
                minimise(fuzzer)
            continue
        row, is_fine = fuzz(fuzzer, given.seconds)
        rows.append(row)
        all_fine = all_fine and is_fine
        print(f"{fuzzer.name}: {row[1]} executions", flush=True)
    if rows:
        print(table(rows))
    return 0 if all_fine else 1


if __name__ == "__main__":
    sys.exit(main())
