"""Each reader of a strict table: what it takes, and that it takes nothing else."""

from uuid import UUID

import pytest

from support import counting
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


DOCUMENT = """\
# key = 0
a = "b"
"quoted" = 1
 spaced  = 2
dotted.inner = 3
lines = \'\'\'
key = "inside a text"
hidden = 1
\'\'\'
list = [
  1,
]
key = 4

[table]
key = 5
late = 6
[[array]]
late = 7
"""


@pytest.mark.parametrize(
    ("key", "line"),
    [
        ("a", 2),
        ("quoted", 3),
        ("spaced", 4),
        ("dotted", 5),
        ("lines", 6),
        ("list", 10),
        ("table", 15),
        ("array", 18),
        ("absent", None),
        ("late", None),
        ("inner", None),
        # Which of them it is cannot be told from the lines alone: none is better than a wrong one.
        ("key", None),
        ("hidden", None),
        (".*", None),
    ],
)
def test_the_line_of_a_key(key: str, line: int | None) -> None:
    assert strict_toml.line_of(DOCUMENT, key) == line
    assert strict_toml.line_of(DOCUMENT.replace("\n", "\r\n"), key) == line


def test_a_key_that_is_missing_has_no_line() -> None:
    with pytest.raises(ConfigurationError, match=r"^f\.toml: key: expected a string, found nothing$"):
        table("[t]\nkey = 1\n").text("key")


def test_only_line_feeds_count_as_lines() -> None:
    assert strict_toml.line_of("# \u2028 \x85\nkey = 1\n", "key") == 2


def test_the_work_is_linear_in_the_document() -> None:
    def work(size: int) -> int:
        text = "x = '''\n" + "key = 1\n" * size + "'''\nkey = 2\n"
        return counting.calls(lambda: strict_toml.line_of(text, "key"))

    assert work(4_000) < 5 * work(1_000)


@pytest.mark.parametrize(
    ("text", "allowed"), [("key = 0", True), ("key = 9", True), ("key = 10", False), (f"key = {10**40}", False)]
)
def test_a_number_has_a_most(text: str, allowed: bool) -> None:
    if allowed:
        assert table(text).integer("key", 9) in (0, 9)
        return
    with pytest.raises(
        ConfigurationError, match=r"^f\.toml: key: expected a whole number from 0 to 9, found '10+' \(at line 1\)$"
    ):
        table(text).integer("key", 9)


@pytest.mark.parametrize("value", ["relative", "./x", "~/x", "", "/a\\u0000b"])
def test_a_path_is_absolute_and_can_be_opened(value: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^f\.toml: key: expected a"):
        table(f'key = "{value}"').absolute_path("key")
    assert table('key = "/a b/ü"').absolute_path("key") == "/a b/ü"


def test_an_unknown_key_is_told_what_there_is() -> None:
    read = table("[t.u]\nx = 1\nwrong = 2\n")
    ((_, inner),) = read.tables("t")
    assert "y" not in inner
    inner.integer("x")
    with pytest.raises(ConfigurationError, match=r"^f\.toml: t\.u\.wrong: unknown key: expected one of y, x$"):
        inner.finish()
