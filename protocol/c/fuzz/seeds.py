"""Makes the inputs that fuzzing begins with, from the vectors: `python3 seeds.py FOLDER`. Each harness tells their form."""

import struct
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

# The line above makes it importable.
from conformance.client import client_cases
from conformance.frames import vectors, with_id

CALLS = {"GET_STORE": 0, "PUT_STORE": 1, "PING": 3, "SB_FAILURE": 4, "HELLO": 5}
RAW_HELLO, SLOW, INTERRUPTS, STAYS_OPEN, BREAKS_SEND, SMALL_PIECES = 4, 8, 16, 32, 64, 128
MANNERS = (0, STAYS_OPEN, SLOW | SMALL_PIECES, INTERRUPTS | STAYS_OPEN | SMALL_PIECES, BREAKS_SEND | SMALL_PIECES)
MOST_CALLS = 4


def seeds() -> dict[str, bytes]:
    """One input a case and manner of the server, for harness.c."""
    made = {}
    for number, (name, turns) in enumerate(client_cases()):
        asked = turns[:MOST_CALLS]
        calls = bytes(CALLS[turn.asked.message] + 6 * (128 // 6) * ("data" in turn.asked.fields) for turn in asked)
        raw = RAW_HELLO if turns[0].asked.message == "HELLO" else 0
        # The client counts its requests from 1, HELLO among them; an id that is another's stays another's.
        stream = b"".join(
            with_id(turn.reply, at - turn.asked_id + int.from_bytes(turn.reply[8:12], "little"))
            if turn.reply[8:12] != bytes(4)
            else turn.reply
            for at, turn in enumerate(asked, 1 if raw else 2)
        )
        # More than a length of two bytes tells is cut there: the answer then ends in its store.
        stream = stream[:0xFFFF]
        connection = len(stream).to_bytes(2, "little") + stream
        manner = MANNERS[number % len(MANNERS)]
        for server in {0, manner}:
            made[f"{name.replace(' ', '-')}-{server}"] = (
                bytes([len(asked) - 1 | raw | server]) + calls + b"\7\1" + 2 * connection
            )
    return made


def stores() -> dict[str, bytes]:
    """The stores of the vectors, for store_harness.c."""
    fields = {case["name"]: case["fields"] for case in vectors("messages") if "store" in case["fields"]}
    return {
        **{name: bytes.fromhex(each["store"]) for name, each in fields.items()},
        **{f"version-{version}": several(version) for version in range(3)},
    }


def several(version: int) -> bytes:
    """A store with four variables, two of them of one name."""
    held = b"".join(
        struct.pack("<Q", 2 * len(name)) + name.encode("utf-16-le") + struct.pack("<Q", len(data)) + data + bytes([number]) * 68
        for number, (name, data) in enumerate([("A", b"1"), ("BootOrder", bytes(4)), ("A", b"2"), ("db", bytes(100))])
    )
    ancillary = bytes(8 + 0x104) if version == 2 else b""
    return struct.pack("<4sIQQ", b"VARS", version, 4, len(held)) + ancillary + held


def main(folder: Path) -> None:
    """Write each kind into a folder of its own."""
    for kind, made in (("client", seeds()), ("store", stores())):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        for name, data in made.items():
            (folder / kind / name).write_bytes(data)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
