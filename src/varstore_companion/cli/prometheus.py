"""Pure: metrics in Prometheus' text format, version 0.0.4, as node_exporter's textfile collector reads it."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

UP = "varstore_companion_up"
_IN_HELP = str.maketrans({"\\": r"\\", "\n": r"\n"})
_IN_LABEL = _IN_HELP | str.maketrans({'"': r"\""})


def text(metrics: Sequence[Mapping[str, Any]]) -> str:
    """The metrics of STATS, with one more that says that the daemon answered."""
    return "".join(f"{line}\n" for line in (*up(answered=True), *(line for metric in metrics for line in _metric(metric))))


def up(*, answered: bool) -> Iterator[str]:
    """The lines that say whether the daemon answered."""
    yield f"# HELP {UP} Whether the daemon answered on its control socket."
    yield f"# TYPE {UP} gauge"
    yield f"{UP} {int(answered)}"


def _metric(metric: Mapping[str, Any]) -> Iterator[str]:
    name = metric["name"]
    yield f"# HELP {name} {metric['help'].translate(_IN_HELP)}"
    yield f"# TYPE {name} {metric['type']}"
    for sample in metric["samples"]:
        labels: dict[str, str] = sample["labels"]
        if metric["type"] != "histogram":
            yield f"{name}{_labels(labels)} {sample['value']}"
            continue
        for bound, count in (*sample["buckets"], ("+Inf", sample["count"])):
            yield f"{name}_bucket{_labels({**labels, 'le': str(bound)})} {count}"
        yield f"{name}_sum{_labels(labels)} {sample['sum']}"
        yield f"{name}_count{_labels(labels)} {sample['count']}"


def _labels(labels: Mapping[str, str]) -> str:
    return "{" + ",".join(f'{name}="{value.translate(_IN_LABEL)}"' for name, value in labels.items()) + "}" if labels else ""
