"""The report on a store: which rules apply, what is missing, what certcheck answers. By hash: it needs no X.509."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from hashlib import sha256

from varstore_companion.efi import guid, siglist_outline
from varstore_companion.efi.names import KeyVariable
from varstore_companion.efi.outline import Excess, Outline, outline
from varstore_companion.efi.siglist_outline import OWNER_SIZE
from varstore_companion.errors import MalformedError, UnknownVersionError
from varstore_companion.trust.manifest import Certificate, Manifest, Rule
from varstore_companion.trust.state import CertificatesState

_KEYS = {key.key: key for key in KeyVariable}
_LONGEST_NAME = max(len(name) for name, _ in _KEYS)
_X509 = guid.EFI_CERT_X509.bytes_le

MOST_REASONS = 16
"""A hostile store can be wrong in thousands of places, and its reasons go into logs and messages."""


class State(StrEnum):
    """What a report says overall. The first that holds, in this order."""

    DAMAGED = "damaged"
    UNKNOWN = "unknown"
    UPDATE_AVAILABLE = "update_available"
    OK = "ok"
    SETUP_MODE = "setup_mode"
    CUSTOM = "custom"


class CertCheck(StrEnum):
    """What `varstore-nvram-certcheck` prints."""

    UPDATE_OK = "update_ok"
    UPDATE_REQUIRED = "update_required"
    UNKNOWN = "unknown"


class RuleState(StrEnum):
    """How a store stands to one rule."""

    MET = "met"
    MISSING = "missing"
    NOT_APPLICABLE = "not_applicable"


@dataclass(frozen=True, slots=True)
class RuleReport:
    """One rule with the certificates that it requires and that are not in its variable."""

    rule: Rule
    state: RuleState
    missing: tuple[Certificate, ...]


@dataclass(frozen=True, slots=True)
class Lists:
    """The signature lists of one key variable: its data and where the lists lie in it."""

    data: bytes
    places: tuple[siglist_outline.Place, ...]

    def of_type(self, kind: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Each signature of a type as (owner, data), both GUIDs as stored."""
        for place in self.places:
            if place.type == kind:
                for entry in place.entries(self.data):
                    yield entry[:OWNER_SIZE], entry[OWNER_SIZE:]

    def certificates(self) -> frozenset[bytes]:
        """The SHA-256 of each X.509 entry."""
        return frozenset(sha256(data).digest() for _, data in self.of_type(_X509))

    def repeated(self) -> list[tuple[bytes, int]]:
        """The data of each signature, whoever owns it, that stands there more than once, and how often."""
        # A dbx has hundreds and nearly none has one twice: they are counted with their types only where any are alike.
        data = [
            self.data[at + OWNER_SIZE : at + place.signature_size]
            for place in self.places
            for at in range(place.body, place.end, place.signature_size)
        ]
        if len(set(data)) == len(data):
            return []
        counts = Counter((place.type, entry[OWNER_SIZE:]) for place in self.places for entry in place.entries(self.data))
        return [(data, count) for (_, data), count in counts.items() if count > 1]


_NO_LISTS = Lists(b"", ())


@dataclass(frozen=True, slots=True)
class Report:
    """What is to be said about one store.

    `outline`: what could be read, None when not even the header could. `lists`: the key variables that are there and can
    be read. `damage`: why the store or a key variable cannot be read; `excesses`: the limits that it breaks;
    `violations`: what else varstored would not accept in a key variable. Any of the three makes it `damaged`.
    """

    state: State
    certcheck: CertCheck
    outline: Outline | None
    lists: Mapping[KeyVariable, Lists]
    rules: tuple[RuleReport, ...]
    damage: tuple[MalformedError, ...]
    excesses: tuple[Excess, ...]
    violations: tuple[str, ...]

    @property
    def missing(self) -> tuple[tuple[KeyVariable, Certificate], ...]:
        """Every certificate that an update would add, with its variable."""
        return tuple(dict.fromkeys((rule.rule.variable, absent) for rule in self.rules for absent in rule.missing))

    @property
    def complete(self) -> bool:
        """At least one rule applies and all that apply are met, in a store that varstored loads."""
        return self.state is State.OK

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why the store is `damaged` or `unknown`, a line each; the first `MOST_REASONS`, and how many more."""
        every = (*map(str, self.damage), *map(str, self.excesses), *self.violations)
        more = len(every) - MOST_REASONS
        return every if more <= 0 else (*every[:MOST_REASONS], f"and {more:,} more")


def check(blob: bytes, manifest: Manifest) -> Report:
    """Report on a store, as far as it can be read. Raises nothing: what cannot be read is in the report."""
    try:
        found = outline(blob)
    except UnknownVersionError as newer:
        return Report(State.UNKNOWN, CertCheck.UNKNOWN, None, {}, (), (newer,), (), ())
    except MalformedError as malformed:
        return Report(State.DAMAGED, CertCheck.UNKNOWN, None, {}, (), (malformed,), (), ())
    return check_outline(found, manifest)


def derived_state(blob: bytes, manifest: Manifest) -> CertificatesState:
    """What xapi's field becomes for a store: what certcheck's answer leads to there, without a process. Raises nothing."""
    required = check(blob, manifest).certcheck is CertCheck.UPDATE_REQUIRED
    return CertificatesState.UPDATE_AVAILABLE if required else CertificatesState.OK


def check_outline(found: Outline, manifest: Manifest) -> Report:
    """Report on a store whose variables have been found."""
    damage = [] if found.damage is None else [found.damage]
    # Which of two varstored finds depends on their order, and the order turns at each load.
    twice = [str(_KEYS[key]) for key in found.duplicated() if key in _KEYS]
    violations = [f"variable {name} stands in the store more than once" for name in twice]
    lists: dict[KeyVariable, Lists] = {}
    has_platform_key = False
    for place in found.places:
        name, name_end, start, end = place
        # Most names are longer: nothing of those variables need be cut out.
        if name_end - name > _LONGEST_NAME or (key := _KEYS.get(found.key(place))) is None:
            continue
        has_platform_key = has_platform_key or key is KeyVariable.PK
        data = found.blob[start:end]
        try:
            lists[key] = Lists(data, tuple(siglist_outline.walk(data)))
        except MalformedError as malformed:
            damage.append(malformed.within(f"variable {key}", start))
            continue
        broken = siglist_outline.violations(lists[key].places, platform_key=key is KeyVariable.PK)
        violations += [f"variable {key}: {violation}" for violation in broken]
    rules = tuple(_check_rules(lists, manifest))
    excesses = found.excesses()
    state, certcheck = _overall(rules, has_platform_key=has_platform_key)
    if damage or violations:
        state, certcheck = State.DAMAGED, CertCheck.UNKNOWN
    elif excesses:
        state = State.DAMAGED
    return Report(state, certcheck, found, lists, rules, tuple(damage), excesses, tuple(violations))


def _check_rules(lists: Mapping[KeyVariable, Lists], manifest: Manifest) -> Iterator[RuleReport]:
    present = {
        variable: lists.get(variable, _NO_LISTS).certificates() for variable in {rule.variable for rule in manifest.rules}
    }
    for rule in manifest.rules:
        there = present[rule.variable]
        if rule.present.sha256 not in there:
            yield RuleReport(rule, RuleState.NOT_APPLICABLE, ())
            continue
        missing = tuple(required for required in rule.required if required.sha256 not in there)
        yield RuleReport(rule, RuleState.MISSING if missing else RuleState.MET, missing)


def _overall(rules: tuple[RuleReport, ...], *, has_platform_key: bool) -> tuple[State, CertCheck]:
    states = {rule.state for rule in rules}
    if RuleState.MISSING in states:
        return State.UPDATE_AVAILABLE, CertCheck.UPDATE_REQUIRED
    if RuleState.MET in states:
        return State.OK, CertCheck.UPDATE_OK
    return (State.CUSTOM if has_platform_key else State.SETUP_MODE), CertCheck.UPDATE_OK
