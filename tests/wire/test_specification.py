"""protocol/README.md says what the table, the states and the vectors say."""

import re
from typing import Any

import pytest

from conformance.frames import parse
from support.wire_vectors import PROTOCOL, TABLE, vectors
from varstore_companion.wire.states import RECEIVE, SEND, Role

README = (PROTOCOL / "README.md").read_text()


def section(heading: str) -> str:
    """The text under a heading, up to the next of its rank or a higher one."""
    rank = heading.split(" ", 1)[0]
    start = README.index(f"\n{heading}\n") + len(heading) + 2
    end = re.compile(rf"^#{{1,{len(rank)}}} ", re.MULTILINE).search(README, start)
    return README[start : end.start() if end else len(README)]


def rows(text: str) -> list[list[str]]:
    """The cells of every table row in a text, without headings and rules."""
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    rules = [number for number, row in enumerate(cells) if set("".join(row)) <= {"-"}]
    return [row for number, row in enumerate(cells) if number not in rules and number + 1 not in rules]


def field_row(field: dict[str, Any]) -> list[str]:
    """How the specification shows a field of the table."""
    size = f"{field['min']:,}" if field["min"] == field["max"] else f"{field['min']:,} to {field['max']:,}"
    said = []
    if field["kind"] == "choice":
        said.append(", ".join(f"{value} {name}" for name, value in TABLE["enums"][field["enum"]].items()))
    bits = 8 * field["max"]
    if field["kind"] == "number" and (field["low"], field["high"]) != (0, 2**bits - 1):
        high = f"0{field['high']:o}" if field["name"] == "mode" else f"{field['high']:,}"
        said.append(f"{field['low']:,} to {high}")
    if "doc" in field:
        said.append(field["doc"])
    needed = "yes" if field["required"] else "no"
    return [f"{field['tag']}", f"`{field['name']}`", field["kind"], size, needed, "; ".join(said)]


@pytest.mark.parametrize("message", TABLE["messages"], ids=lambda message: str(message["name"]))
def test_messages(message: dict[str, Any]) -> None:
    text = section(f"### {message['name']} ({message['type']:#06x})")
    assert rows(text) == [field_row(field) for field in (*message["request"], *message["answer"])]
    sockets = {"vm": "On a VM's socket.", "control": "On the control socket."}
    where = "On both sockets." if len(message["sockets"]) == 2 else sockets[message["sockets"][0]]
    assert where in text


def test_no_message_beside_those_of_the_table() -> None:
    shown = re.findall(r"^### ([A-Z_]+) \((0x[0-9A-Fa-f]{4})\)$", README, re.MULTILINE)
    assert [(name, int(number, 16)) for name, number in shown] == [
        *((message["name"], message["type"]) for message in TABLE["messages"]),
        ("ERROR", 0xFFFF),
    ]


def test_errors() -> None:
    assert rows(section("### ERROR (0xffff)")) == [field_row(field) for field in TABLE["error"]["fields"]]
    assert rows(section("## Errors")) == [
        [
            str(error["code"]),
            f"`{error['name']}`",
            error["connection"],
            "yes" if error["try_again"] else "no",
            error["meaning"],
            f"`{error['guest']}`",
        ]
        for error in TABLE["errors"]
    ]


def test_layouts() -> None:
    for heading, layout in (("### Header", "header"), ("### Fields", "field_header")):
        shown = [row[:3] for row in rows(section(heading))]
        assert shown == [[str(f["offset"]), str(f["size"]), f["name"]] for f in TABLE[layout]]


def test_limits_and_times() -> None:
    def shown(name: str, value: int) -> str:
        return f"0{value:o}" if name == "max_mode" else f"{value:,}"

    limits = {row[0]: row[1] for row in rows(section("## Limits"))}
    assert limits == {f"`{name}`": shown(name, value) for name, value in TABLE["limits"].items()}
    times = {row[0]: row[1] for row in rows(section("## Time"))}
    assert times == {f"`{name}`": f"{value} s" for name, value in TABLE["seconds"].items()}


@pytest.mark.parametrize("role", Role)
def test_states(role: Role) -> None:
    expected = {
        (state.value, direction, signal.value, after.value)
        for direction, tables in (("receives", RECEIVE), ("sends", SEND))
        for (state, signal), after in tables[role].items()
    }
    shown = rows(section(f"### The {role.value}"))
    assert {tuple(row[:4]) for row in shown} == expected
    assert len(shown) == len(expected)


def hex_of(block: str) -> str:
    """The bytes of an example: pairs of digits; what follows a semicolon is for people."""
    return "".join("".join(line.split(";")[0].split()) for line in block.splitlines())


EXAMPLES = re.findall(r"^<!-- vector (\S+) -->\n```\n(.*?)\n```$", README, re.MULTILINE | re.DOTALL)
SESSIONS = re.findall(r"^<!-- exchange (\S+) -->\n```\n(.*?)\n```$", README, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize(("name", "block"), EXAMPLES)
def test_examples_are_the_vectors(name: str, block: str) -> None:
    by_name = {vector["name"]: vector for file in ("messages", "frames") for vector in vectors(file)}
    assert hex_of(block) == by_name[name]["hex"].replace(" ", "")


@pytest.mark.parametrize(("name", "block"), SESSIONS)
def test_the_session_is_the_exchange(name: str, block: str) -> None:
    exchange = next(vector for vector in vectors("exchanges") if vector["name"] == name)
    steps = re.split(r"^(client|server): .*$", block, flags=re.MULTILINE)[1:]
    shown = list(zip(steps[::2], (hex_of(part) for part in steps[1::2]), strict=True))
    assert shown == [(step["from"], step["hex"].replace(" ", "")) for step in exchange["steps"]]


def test_what_is_in_the_journal_has_no_verdict_yet() -> None:
    """As PUT_STORE's answer is described; the examples are read as what servers send."""
    whole = [bytes.fromhex(vector["hex"]) for vector in vectors("messages")]
    whole += [bytes.fromhex(step["hex"]) for vector in vectors("exchanges") for step in vector["steps"]]
    answers = [frame.fields for frame in map(parse, whole) if (frame.message, frame.form) == ("PUT_STORE", "answer")]
    assert {fields["verdict"] for fields in answers if fields["durable"] == "journal"} == {"unspecified"}


def test_there_are_examples() -> None:
    shown = {name for name, _ in EXAMPLES}
    assert shown >= {"hello-varstored", "hello-answer", "put-store", "put-store-answer-unspecified"}
    assert [name for name, _ in SESSIONS] == ["boot"]
