"""What updates and verdicts are decided with: one immutable value, so that a reload changes all of it at once or nothing."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from varstore_companion.daemon.config import Blame, Settings, by_key
from varstore_companion.daemon.limits import Limits
from varstore_companion.errors import ConfigurationError
from varstore_companion.files import load_manifest
from varstore_companion.sources import Loaded, load_bodies
from varstore_companion.trust.certificates import Bodies
from varstore_companion.trust.check import Report
from varstore_companion.trust.manifest import Certificate, Manifest
from varstore_companion.trust.plan import Plan, plan


@dataclass(frozen=True, slots=True)
class Rules:
    """The manifest, the certificate bodies that were found for it, `headroom` as for `trust.plan.plan`, and the limits."""

    manifest: Manifest
    loaded: Loaded
    headroom: int | None = None
    limits: Limits = field(default_factory=Limits)

    @property
    def bodies(self) -> Bodies:
        """The certificate bodies by their fingerprint."""
        return self.loaded.bodies

    @property
    def required(self) -> tuple[Certificate, ...]:
        """Every certificate that an update may have to add, once."""
        return tuple({certificate: None for rule in self.manifest.rules for certificate in rule.required})

    def plan(self, store: bytes, before: Report | None = None) -> Plan:
        """The update of a store by these rules, as `trust.plan.plan`. `before`: the report on it by them, if there is one."""
        return plan(store, self.manifest, self.bodies, headroom=self.headroom, before=before)

    def warnings(self) -> Iterator[str]:
        """What an operator should know of them, as lines for the log."""
        for problem in self.loaded.problems:
            yield f"certificate file {problem}"
        for certificate in self.required:
            if certificate.sha256 not in self.bodies:
                yield f"no source has the body of {certificate.subject}: updates that need it are refused"

    def describe(self) -> str:
        """Them in a few words."""
        found = sum(certificate.sha256 in self.bodies for certificate in self.required)
        room = self.manifest.headroom if self.headroom is None else self.headroom
        return f"manifest {self.name}, {found} of {len(self.required)} certificates, headroom {room}"

    @property
    def name(self) -> str:
        """The manifest's name and revision."""
        return f"{self.manifest.name} {self.manifest.revision}"

    def origins(self) -> dict[str, str | None]:
        """For each certificate's name in the manifest the file that its body came from; None where no source has it."""
        return {certificate.name: self.loaded.origins.get(certificate.sha256) for certificate in self.required}


def load(settings: Settings, blame: Blame = by_key) -> Rules:
    """Read the files that the settings name. Raises what `blame` makes, a `ConfigurationError`."""
    try:
        manifest = load_manifest(settings.manifest)
    except ConfigurationError as error:
        raise (error if settings.manifest is None else blame("manifest", str(error))) from None
    try:
        loaded = load_bodies(manifest, auth_folder=settings.auth_dir, folder=settings.certificates)
    except ConfigurationError as error:
        raise blame("certificates", str(error)) from None
    return Rules(manifest, loaded, settings.headroom, settings.limits)
