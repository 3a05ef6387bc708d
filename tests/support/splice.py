"""Changes to a store with plain bytes: what an update should have done, told without parsing or building anything."""

from support.storebytes import ANCILLARY_SIZE, HEADER_SIZE, Variable


def _with_length(blob: bytes) -> bytes:
    """The store with its data length recorded anew."""
    start = HEADER_SIZE + (ANCILLARY_SIZE if blob[4] == 2 else 0)
    return blob[:16] + (len(blob) - start).to_bytes(8, "little") + blob[24:]


def appended(blob: bytes, variable: Variable, added: bytes) -> bytes:
    """The store with bytes added at the end of one of its variables."""
    encoded = variable.encode()
    assert blob.count(encoded) == 1
    length = blob.index(encoded) + 8 + len(variable.raw_name)
    end = length + 8 + len(variable.data)
    size = (len(variable.data) + len(added)).to_bytes(8, "little")
    return _with_length(blob[:length] + size + blob[length + 8 : end] + added + blob[end:])


def reowned(blob: bytes, body: bytes, owner: bytes) -> bytes:
    """The store with another owner before a certificate that stands in it once."""
    assert blob.count(body) == 1
    at = blob.index(body)
    return _with_length(blob[: at - 16] + owner + blob[at:])
