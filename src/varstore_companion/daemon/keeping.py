"""What stands beside a store that is kept: the report on it, and the plan of its update."""

from collections.abc import Mapping
from uuid import UUID

from varstore_companion.daemon.host import Host
from varstore_companion.daemon.rules import Rules
from varstore_companion.journal.backups import Why
from varstore_companion.trust.describe import describe_plan, describe_report
from varstore_companion.trust.plan import Plan


async def back_up(
    host: Host, vm: UUID, store: bytes, planned: Plan, rules: Rules, *, why: Why, spare: str | None = None
) -> str:
    """Keep a store with the report on it and the plan of it, made by `rules`; return the backup's id.

    Raises as `Backups.keep`.
    """

    def describe() -> Mapping[str, object]:
        # Without its variables: they are in the store itself, and a guest chooses their names.
        report = describe_report(planned.before, rules.manifest, len(store), with_variables=False)
        return {"report": report, "plan": describe_plan(planned)}

    return await host.backups.keep(vm, store, why, host.now(), describe, spare=spare)
