"""The manifest: which certificates must be where, by fingerprint. Data: microsoft-2023.toml or the operator's."""

from collections.abc import Mapping
from dataclasses import dataclass
from uuid import UUID

from varstore_companion import strict_toml
from varstore_companion.efi.names import KeyVariable
from varstore_companion.strict_toml import Table

FORMAT = 1
_VARIABLES = {variable.text: variable for variable in (KeyVariable.KEK, KeyVariable.DB)}


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate by its fingerprint. `sha256`: of its DER; `tbs_sha256`: of its TBSCertificate, None where not needed."""

    name: str
    subject: str
    sha256: bytes
    tbs_sha256: bytes | None


@dataclass(frozen=True, slots=True)
class Rule:
    """When `present` is in `variable`, each of `required` must be there too."""

    variable: KeyVariable
    present: Certificate
    required: tuple[Certificate, ...]


@dataclass(frozen=True, slots=True)
class Revocation:
    """A dbx that revokes `revoked` while db lacks `successor` cannot boot what it used to."""

    revoked: Certificate
    successor: Certificate


@dataclass(frozen=True, slots=True)
class Manifest:
    """A parsed manifest. `headroom`: bytes that an update must leave free for the guest's next append to dbx."""

    name: str
    revision: int
    signature_owner: UUID
    wrong_owners: frozenset[UUID]
    headroom: int
    certificates: Mapping[str, Certificate]
    rules: tuple[Rule, ...]
    revocations: tuple[Revocation, ...]


def parse(text: str, source: str) -> Manifest:
    """Parse a manifest. Raises `ConfigurationError`, which names `source`, the key and what is allowed."""
    table = strict_toml.load(text, source)
    if (found := table.integer("format")) != FORMAT:
        raise table.error("format", f"{FORMAT}, which this version reads", found)
    certificates = {name: _certificate(name, entry) for name, entry in table.tables("certificate")}
    manifest = Manifest(
        name=table.text("name"),
        revision=table.integer("revision"),
        signature_owner=table.guid("signature_owner"),
        wrong_owners=frozenset(table.guids("wrong_owners")),
        headroom=table.integer("headroom"),
        certificates=certificates,
        rules=tuple(_rule(entry, certificates) for entry in table.array("rule")),
        revocations=tuple(_revocation(entry, certificates) for entry in table.array("revocation")),
    )
    table.finish()
    if not manifest.rules:
        raise table.error("rule", "at least one")
    if manifest.signature_owner in manifest.wrong_owners:
        raise table.error("wrong_owners", "owners other than signature_owner")
    if len({certificate.sha256 for certificate in certificates.values()}) < len(certificates):
        raise table.error("certificate", "each sha256 once")
    _refuse_chains(manifest.rules, table)
    return manifest


def _refuse_chains(rules: tuple[Rule, ...], table: Table) -> None:
    """Refuse rules whose update would make another rule apply that it does not meet: one update has to be enough."""
    for number, rule in enumerate(rules, 1):
        for other in rules:
            if other.variable is rule.variable and other.present in rule.required:
                for lacking in other.required:
                    if lacking != rule.present and lacking not in rule.required:
                        expected = f"{lacking.name} too, which another rule requires beside {other.present.name}"
                        raise table.error(f"rule[{number}].required", expected)


def _certificate(name: str, table: Table) -> Certificate:
    tbs_sha256 = table.sha256("tbs_sha256") if "tbs_sha256" in table else None
    certificate = Certificate(name, table.text("subject"), table.sha256("sha256"), tbs_sha256)
    table.finish()
    return certificate


def _rule(table: Table, certificates: Mapping[str, Certificate]) -> Rule:
    rule = Rule(
        table.choice("variable", _VARIABLES),
        table.choice("present", certificates),
        tuple(table.choices("required", certificates)),
    )
    table.finish()
    if not rule.required:
        raise table.error("required", "at least one certificate")
    return rule


def _revocation(table: Table, certificates: Mapping[str, Certificate]) -> Revocation:
    revocation = Revocation(table.choice("revoked", certificates), table.choice("successor", certificates))
    table.finish()
    return revocation
