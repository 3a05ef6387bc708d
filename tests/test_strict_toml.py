"""Each reader of a strict table: what it takes, and that it takes nothing else."""

from uuid import UUID

import pytest

from varstore_companion import strict_toml
from varstore_companion.errors import ConfigurationError

GUID = "77fa9abd-0359-4d32-bd60-28f4e78f784b"


def table(text: str) -> strict_toml.Table:
    return strict_toml.load(text, "f.toml")


def test_each_reader_takes_its_kind_and_its_key() -> None:
    document = f"""
text = "t"
integer = 7
texts = ["a", "b"]
guid = "{GUID.upper()}"
guids = ["{GUID}"]
sha256 = "{"0f" * 32}"
choice = "on"
choices = ["off", "on"]
[tables.x]
y = 1
[[array]]
z = 2
"""
    read = table(document)
    allowed = {"on": True, "off": False}
    assert "text" in read
    assert read.text("text") == "t"
    assert "text" not in read
    assert read.integer("integer") == 7
    assert read.texts("texts") == ["a", "b"]
    assert read.guid("guid") == UUID(GUID)
    assert read.guids("guids") == [UUID(GUID)]
    assert read.sha256("sha256") == bytes([0x0F] * 32)
    assert read.choice("choice", allowed) is True
    assert read.choices("choices", allowed) == [False, True]
    ((name, inner),) = read.tables("tables")
    assert (name, inner.integer("y")) == ("x", 1)
    (item,) = read.array("array")
    assert item.integer("z") == 2
    assert list(read.array("absent")) == []
    read.finish()


@pytest.mark.parametrize(
    ("reader", "text", "message"),
    [
        ("text", "", "a string, found nothing"),
        ("text", "key = 1", "a string, found '1'"),
        ("text", 'key = ""', "a string that is not empty"),
        ("integer", 'key = "1"', "a whole number, found '1'"),
        ("integer", "key = false", "a whole number from 0, found 'False'"),
        ("integer", "key = -1", "a whole number from 0, found '-1'"),
        ("texts", 'key = "a"', "a list of strings, found 'a'"),
        ("texts", 'key = ["a", 1]', "a list of strings, found '1'"),
        ("guid", 'key = "no"', "a GUID, found 'no'"),
        ("guid", f'key = "{{{GUID}}}"', "a GUID in its usual form"),
        ("guid", f'key = "urn:uuid:{GUID}"', "a GUID in its usual form"),
        ("guid", f'key = "{GUID.replace("-", "")}"', "a GUID in its usual form"),
        ("guid", f'key = "{GUID.replace("77", "７７")}"', "a GUID in its usual form"),  # noqa: RUF001  full-width digits
        ("guids", 'key = ["no"]', "a GUID, found 'no'"),
        ("sha256", f'key = "{"g" * 64}"', "a SHA-256 as 64 lower-case hexadecimal digits"),
        ("sha256", f'key = "{"a" * 66}"', "a SHA-256 as 64 lower-case hexadecimal digits"),
        ("sha256", f'key = "{"٣" * 64}"', "a SHA-256 as 64 lower-case hexadecimal digits"),
    ],
)
def test_each_reader_refuses_the_rest(reader: str, text: str, message: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        getattr(table(text), reader)("key")
    assert str(caught.value).startswith(f"f.toml: key: expected {message}")


def test_errors_name_the_whole_path() -> None:
    read = table('[a.b]\nc = [{d = "x"}, 7]\n')
    ((_, inner),) = read.tables("a")
    items = inner.array("c")
    with pytest.raises(ConfigurationError, match=r"^f\.toml: a\.b\.c\[1\]\.d: expected one of on, found 'x'$"):
        next(items).choice("d", {"on": 1})
    with pytest.raises(ConfigurationError, match=r"^f\.toml: a\.b\.c\[2\]: expected a table, found '7'$"):
        next(items)
    with pytest.raises(ConfigurationError, match=r"^f\.toml: x\.y: expected a table, found '1'$"):
        list(table("x = {y = 1}").tables("x"))
    with pytest.raises(ConfigurationError, match=r"^f\.toml: x: expected an array of tables, found '1' \(at line 1\)$"):
        list(table("x = 1").array("x"))


def test_a_key_that_nobody_asked_for_is_refused() -> None:
    read = table("known = 1\nunknown = 2\n")
    read.integer("known")
    with pytest.raises(ConfigurationError, match=r"^f\.toml: unknown: unknown key: expected one of known \(at line 2\)$"):
        read.finish()


def test_a_long_value_is_shortened() -> None:
    with pytest.raises(ConfigurationError) as caught:
        table(f'key = "{"x" * 10_000}"').integer("key")
    assert len(str(caught.value)) < 200
