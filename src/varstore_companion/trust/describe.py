"""Reports and plans as plain values for JSON: the one form that commands, control socket and backups share."""

from varstore_companion.efi.attributes import describe as describe_attributes
from varstore_companion.efi.store import parse_outline
from varstore_companion.trust.check import Report
from varstore_companion.trust.findings import findings
from varstore_companion.trust.manifest import Manifest
from varstore_companion.trust.plan import Plan


def describe_report(report: Report, manifest: Manifest, size: int, *, with_variables: bool = True) -> dict[str, object]:
    """What `inspect --json` prints. `size`: bytes of the store as it was read; `with_variables`: whether it lists them."""
    about: dict[str, object] = {
        "state": report.state,
        "certcheck": report.certcheck,
        "version": None if report.outline is None else report.outline.version,
        "missing": [
            {
                "variable": str(variable),
                "sha256": certificate.sha256.hex(),
                "name": certificate.name,
                "subject": certificate.subject,
            }
            for variable, certificate in report.missing
        ],
        "rules": [
            {"variable": str(rule.rule.variable), "present": rule.rule.present.name, "state": rule.state}
            for rule in report.rules
        ],
        "findings": [{"code": finding.code, "detail": finding.detail} for finding in findings(report, manifest)],
    }
    if with_variables:
        about["variables"] = _describe_variables(report)
    return about | {"size": size, "manifest": f"{manifest.name} {manifest.revision}"}


def _describe_variables(report: Report) -> list[dict[str, object]]:
    return [
        {
            "name": variable.text,
            "guid": str(variable.guid),
            "attributes": variable.attributes,
            "attribute_names": describe_attributes(variable.attributes),
            "bytes": len(variable.data),
            "time": str(variable.timestamp),
        }
        for variable in (() if report.outline is None else parse_outline(report.outline).variables)
    ]


def describe_plan(plan: Plan) -> dict[str, object]:
    """What `plan --json` prints."""
    return {
        "state_before": plan.before.state,
        "state_after": plan.after.state,
        "changes": [
            {
                "variable": str(change.variable),
                "action": change.action,
                "sha256": change.certificate.sha256.hex(),
                "name": change.certificate.name,
                "subject": change.certificate.subject,
                "bytes": change.size,
            }
            for change in plan.changes
        ],
        "bytes_before": plan.bytes_before,
        "bytes_after": plan.bytes_after,
        "headroom": plan.headroom,
        "pcr7_changes": bool(plan.changes) and plan.refused is None,
        "refused": plan.refused,
    }
