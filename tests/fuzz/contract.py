"""What is asked of every parser: its one documented error and nothing else, in time and memory linear in the input."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from support.counting import calls, peak

HERE = Path(__file__).parent
CORPUS = HERE / "corpus"
"""A folder for each target: inputs that together reach what the fuzzer has reached, as small as they get."""
REGRESSIONS = HERE / "regressions"
"""A folder for each target: inputs that broke the contract once, each named after what was wrong."""

BASE_CALLS = 4_000
BASE_MEMORY = 192 * 1024
"""What an input may cost besides what it costs by its length: the reading of a certificate, a table of a manifest."""

BASE_NANOSECONDS = 60_000_000
NANOSECONDS_PER_BYTE = 30_000
"""Of one processor's time, while every branch is counted for the fuzzer. A quadratic reading of 4 KiB takes more."""
TRIES = 3


@dataclass(frozen=True, slots=True)
class Target:
    """A parser, called with any bytes.

    `run`: reads them, checks what has to hold of the result, and takes the one documented error for an answer; whatever it
    raises is a finding. `seeds`: inputs to begin with. `limit`: bytes of the largest input. `calls_per_byte`: how many
    functions may be called for a byte of the input, `memory_per_byte`: how many bytes may be held for one.
    """

    name: str
    run: Callable[[bytes], None]
    seeds: Callable[[], Iterable[bytes]]
    limit: int = 4_096
    calls_per_byte: int = 4
    memory_per_byte: int = 64

    def check_work(self, data: bytes) -> None:
        """Run, and see that the calls and the memory that it takes are in proportion to the input."""
        made = calls(lambda: self.run(data))
        assert made <= BASE_CALLS + self.calls_per_byte * len(data), f"{made:,} calls for {len(data):,} bytes"
        self.check_memory(data)

    def check_memory(self, data: bytes) -> None:
        """Run, and see that the memory that it takes is in proportion to the input."""
        held = peak(lambda: self.run(data))
        assert held <= BASE_MEMORY + self.memory_per_byte * len(data), f"{held:,} bytes held for {len(data):,}"

    def check_time(self, data: bytes) -> None:
        """Run, and see that the time is in proportion to the input: one slow run of several is the machine's doing."""
        allowed = BASE_NANOSECONDS + NANOSECONDS_PER_BYTE * len(data)
        for _ in range(TRIES):
            begun = time.thread_time_ns()
            self.run(data)
            taken = time.thread_time_ns() - begun
            if taken <= allowed:
                return
        raise AssertionError(f"{taken / 1e6:.0f} ms for {len(data):,} bytes, at most {allowed / 1e6:.0f}")


def piece(data: bytes, size: int) -> int:
    """The bytes of each piece when `data` comes in pieces of `size`, in not many more than a hundred of them."""
    return max(size, len(data) // 100, 1)


def files(folder: Path, name: str) -> list[Path]:
    """The inputs that are kept for a target."""
    return sorted(path for path in (folder / name).glob("*") if path.is_file())
