"""Fills in the field of every VM that has none yet: after a schema from before its digest, in one pass, in process."""

from collections.abc import Callable

from varstore_companion.toolstack import rows
from varstore_companion.toolstack.connection import Connection
from varstore_companion.toolstack.records import NOT_JUDGED, Firmware, with_mark
from varstore_companion.toolstack.rows import Derive, Row
from varstore_companion.trust.state import CertificatesState

BATCH = 200
"""VMs to one transaction, which then takes milliseconds: a boot meanwhile waits for one, and a kill loses one."""

_MISSING = f"vm.state_of IS NULL AND vm.firmware = '{Firmware.UEFI}' AND vm.kind NOT IN (" + (
    ", ".join(f"'{kind}'" for kind in sorted(NOT_JUDGED)) + ")"
)
_COUNT = f"SELECT count(*) FROM vm WHERE {_MISSING}"  # noqa: S608  constants
_NEXT = f"SELECT {rows.COLUMNS} FROM {rows.SOURCE} WHERE {_MISSING} AND vm.uuid > ? ORDER BY vm.uuid LIMIT ?"  # noqa: S608  constants
# Only a field that nobody computed meanwhile, for the store that was looked at; a mark stays where it is still right.
_FILL = """
    UPDATE vm SET state_of = :digest, secureboot_certificates_state =
        CASE WHEN secureboot_certificates_state = :marked THEN :if_marked ELSE :derived END
    WHERE uuid = :uuid AND state_of IS NULL AND generation = :generation
"""


def run(reader: Connection, writer: Connection, derive: Derive, progress: Callable[[int, int], None] | None = None) -> int:
    """Compute the missing fields; returns how many there were.

    Stores are read and judged outside of any transaction. Another process may do the same at the same time, write to
    the file, or be killed in it: what it has done is not done again. `progress` is called after each batch with how many
    are done and how many there are. Raises as the methods of `Database` do.
    """
    with reader.reading() as connection:
        (total,) = connection.execute(_COUNT).fetchone()
    done, after = 0, ""
    while done < total:
        with reader.reading() as connection:
            found = [_filled(Row.of(columns), derive) for columns in connection.execute(_NEXT, (after, BATCH))]
        if not found:
            break
        with writer.writing() as connection:
            connection.executemany(_FILL, found)
        done, after = min(done + len(found), total), str(found[-1]["uuid"])
        if progress is not None:
            progress(done, total)
    return int(total)


def _filled(row: Row, derive: Derive) -> dict[str, object]:
    derived = rows.derived_field(row.store, derive, judged=True, marked=False)
    return {
        "uuid": str(row.uuid),
        "generation": row.generation,
        "digest": rows.digest_of(row.store),
        "derived": derived,
        "marked": CertificatesState.UPDATE_ON_BOOT,
        "if_marked": with_mark(derived, marked=True),
    }
