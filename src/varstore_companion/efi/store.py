"""The store blob "VARS" (varstored, xapidb-lib.c) as values: bytes to values and back, byte for byte."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from varstore_companion.efi import layouts
from varstore_companion.efi.outline import ANCILLARY_SIZE, FIXED_SIZE, HEADER_SIZE, MAGIC, Outline, outline
from varstore_companion.efi.variable import Variable, parse_tail


@dataclass(frozen=True, slots=True)
class Ancillary:
    """The block that version 2 has between header and variables: 8 and 0x104 opaque bytes."""

    mor_key: bytes
    ppi: bytes

    def build(self) -> bytes:
        """The block's 268 bytes."""
        return layouts.ANCILLARY.build(self.mor_key, self.ppi)


@dataclass(frozen=True, slots=True)
class Store:
    """A parsed store.

    `recorded_length` is the header's data length as it was found: varstored ignores it on load, so it may be anything.
    """

    version: int
    recorded_length: int
    ancillary: Ancillary | None
    variables: tuple[Variable, ...]

    def build(self) -> bytes:
        """The store's bytes; `parse(b).build() == b` for every store that parses."""
        return b"".join(
            (
                layouts.STORE_HEADER.build(
                    MAGIC,
                    self.version,
                    len(self.variables),
                    self.recorded_length,
                ),
                b"" if self.ancillary is None else self.ancillary.build(),
                *(variable.build() for variable in self.variables),
            )
        )

    def with_data(self, data: Mapping[int, bytes]) -> "Store":
        """The store with the data of some variables, by their index, replaced; the data length is recorded anew."""
        variables = tuple(
            replace(variable, data=data[index]) if index in data else variable for index, variable in enumerate(self.variables)
        )
        length = sum(len(variable.name) + len(variable.data) + FIXED_SIZE for variable in variables)
        return replace(self, recorded_length=length, variables=variables)


def parse(blob: bytes) -> Store:
    """Parse a whole store.

    Raises `MalformedError` where a length does not fit into what encloses it, something has no bytes, or bytes follow the
    last variable; `UnknownVersionError` for a version above 2. Limits are not checked here: see `Outline.excesses`.
    """
    found = outline(blob)
    if found.damage is not None:
        raise found.damage
    return parse_outline(found)


def parse_outline(found: Outline) -> Store:
    """Parse what an outline found: for a damaged store the variables before the damage."""
    blob = found.blob
    header = layouts.STORE_HEADER.parse(blob, 0)
    ancillary = None
    if found.version >= 2 and len(blob) >= HEADER_SIZE + ANCILLARY_SIZE:
        block = layouts.ANCILLARY.parse(blob, HEADER_SIZE)
        ancillary = Ancillary(mor_key=block.mor_key, ppi=block.ppi)
    variables = tuple(
        parse_tail(blob[name:name_end], blob[data:data_end], blob, data_end) for name, name_end, data, data_end in found.places
    )
    return Store(header.version, header.data_length, ancillary, variables)
