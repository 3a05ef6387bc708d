"""The toolstack that the settings name, composed."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial

from varstore_companion import threads
from varstore_companion.daemon.config import Settings, confirmed
from varstore_companion.daemon.rules import Rules
from varstore_companion.daemon.xapi_calls import Calls
from varstore_companion.toolstack.certcheck import Certcheck
from varstore_companion.toolstack.database import FILE_NAME
from varstore_companion.toolstack.embedded import EmbeddedToolstack
from varstore_companion.toolstack.interface import Toolstack, Upstreams
from varstore_companion.toolstack.operations import Operations
from varstore_companion.trust.check import derived_state
from varstore_companion.trust.manifest import Manifest
from varstore_companion.trust.state import CertificatesState

log = logging.getLogger(__name__)

LOGGED_EACH = 2_000
"""VMs to a line of the log while the embedded toolstack's file is upgraded."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """`upstreams`: the toolstack, where each VM has a socket of its own; `calls`: what it can answer xapi's clients with.

    `derive`: what it computes its fields with, where it does that itself.
    """

    toolstack: Toolstack
    upstreams: Upstreams | None = None
    calls: Calls | None = None
    derive: "Derive | None" = None


class Derive:
    """The field that fits a store, by the rules in force."""

    __slots__ = ("_manifest",)

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest

    def follow(self, rules: Rules) -> None:
        """Other rules are in force from now on."""
        self._manifest = rules.manifest

    def __call__(self, store: bytes) -> CertificatesState:
        """The field."""
        return derived_state(store, self._manifest)


@asynccontextmanager
async def opened(settings: Settings, manifest: Manifest) -> AsyncIterator[Chosen]:
    """The toolstack, closed at the end. Raises `ConfigurationError`."""
    confirmed(settings)
    chosen = await _chosen(settings, manifest)
    try:
        yield chosen
    finally:
        await chosen.toolstack.aclose()


async def _chosen(settings: Settings, manifest: Manifest) -> Chosen:
    # Each loads what only it needs, before the daemon is ready and never later.
    match settings.toolstack:
        case "guard":
            from varstore_companion.toolstack.guard import GuardToolstack  # noqa: PLC0415  see above

            guard = GuardToolstack(late_seconds=settings.late_seconds)
            return Chosen(guard, upstreams=guard)
        case "xapi":
            from varstore_companion.toolstack.xapi import XapiToolstack  # noqa: PLC0415  see above

            return Chosen(XapiToolstack(settings.xapi, late_seconds=settings.late_seconds))
    derive = Derive(manifest)
    operations = partial(Operations, settings.state_dir / FILE_NAME, derive, progress=_log_progress)
    # An upgrade of the file can take seconds.
    database = await threads.run_sync(operations)
    embedded = EmbeddedToolstack(database, Certcheck())
    return Chosen(embedded, calls=Calls(database, embedded), derive=derive)


def _log_progress(done: int, total: int) -> None:
    if done == total or done % LOGGED_EACH == 0:
        log.info("upgrade of the toolstack's file: the field of %d of %d VMs is computed", done, total)
