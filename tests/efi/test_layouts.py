"""Each layout twice: as construct reads its declaration, and as the compiled form that the program uses."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from varstore_companion.efi import layouts
from varstore_companion.efi.layouts import Layout

LAYOUTS = {name: value for name, value in vars(layouts).items() if isinstance(value, Layout)}
SIZES = {
    "EFI_TIME": 16,
    "STORE_HEADER": 24,
    "ANCILLARY": 8 + 0x104,
    "LENGTH": 8,
    "VARIABLE_TAIL": 68,
    "SIGNATURE_LIST_HEADER": 28,
    "AUTHENTICATION_2_HEADER": 40,
}


def test_the_sizes_are_those_of_the_specifications() -> None:
    assert {name: layout.size for name, layout in LAYOUTS.items()} == SIZES
    assert {name: layout.declared.sizeof() for name, layout in LAYOUTS.items()} == SIZES


@pytest.mark.parametrize("name", LAYOUTS)
@settings(max_examples=40)
@given(st.data())
def test_the_declaration_and_the_compiled_form_agree_both_ways(name: str, data: st.DataObject) -> None:
    layout = LAYOUTS[name]
    before = data.draw(st.binary(max_size=9))
    raw = data.draw(st.binary(min_size=layout.size, max_size=layout.size))
    blob = before + raw + data.draw(st.binary(max_size=9))
    declared = layout.declared.parse(raw)
    compiled = layout.parse(blob, len(before))
    names = [field.name for field in layout.declared.subcons]
    assert list(compiled._fields) == names
    assert list(compiled) == [declared[each] for each in names]
    assert layout.unpack_from(blob, len(before)) == tuple(compiled)
    assert layout.build(*compiled) == raw
    assert layout.declared.build(dict(zip(names, compiled, strict=True))) == raw
