"""`stats`: what the daemon has counted and timed, for people and for Prometheus."""

import json
from collections.abc import Iterator
from typing import Any

from varstore_companion.cli import out_file, output, prometheus
from varstore_companion.cli.arguments import add_control, add_json, parser
from varstore_companion.cli.client import ConnectError, control
from varstore_companion.cli.exit_code import ExitCode
from varstore_companion.wire import observing

EXAMPLES = """\
  varstore-companion stats
  varstore-companion stats --prometheus -o /var/lib/node_exporter/textfile/varstore-companion.prom

With -o the file is replaced whole, so that a collector never reads half of it. When no daemon answers, it then says
varstore_companion_up 0 and nothing else, and the exit code is 2."""

_PREFIX = "varstore_companion_"


def main(arguments: list[str]) -> ExitCode:
    """Run the command."""
    parse = parser("stats", "Show what the daemon has counted and timed since it was started.", EXAMPLES)
    parse.add_argument("--prometheus", action="store_true", help="in Prometheus' text format")
    parse.add_argument("-o", "--output", metavar="FILE", help="write it there (- for standard output); with --prometheus")
    add_control(parse)
    add_json(parse)
    options = parse.parse_args(arguments)
    if options.prometheus and options.json:
        parse.error("expected --prometheus or --json, and not both")
    if options.output is not None and not options.prometheus:
        parse.error("-o goes with --prometheus")
    try:
        with control(options.control) as client:
            answer = client.call(observing.Stats())
    except ConnectError:
        if options.output is not None:
            out_file.write(options.output, "".join(f"{line}\n" for line in prometheus.up(answered=False)).encode())
        raise
    metrics = json.loads(answer.json)["metrics"] if isinstance(answer, observing.StatsAnswer) else []
    if options.prometheus:
        out_file.write(options.output or "-", prometheus.text(metrics).encode())
    elif options.json:
        output.print_json({"metrics": metrics})
    else:
        output.table([list(row) for metric in metrics for row in _rows(metric)], ["metric", "value"])
    return ExitCode.FINE


def _rows(metric: dict[str, Any]) -> Iterator[tuple[str, str]]:
    name = metric["name"].removeprefix(_PREFIX)
    for sample in metric["samples"]:
        if name == "toolstack_failures_total" and not sample["value"]:
            continue  # twenty kinds of failure, which nearly always have not happened
        labels = " ".join(f"{key}={value}" for key, value in sample["labels"].items())
        yield f"{name} {labels}".rstrip(), _times(sample) if metric["type"] == "histogram" else str(sample["value"])


def _times(sample: dict[str, Any]) -> str:
    """A histogram in a few words: how many, how long on average, and the bounds under which a half and 99 % of them are."""
    count = sample["count"]
    if not count:
        return "0"
    bounds = [f"{share} % within {_bound(sample, count * share / 100)}" for share in (50, 99)]
    return f"{count}, {sample['sum'] / count:.4f} s on average, {', '.join(bounds)}"


def _bound(sample: dict[str, Any], least: float) -> str:
    found = next((bound for bound, so_far in sample["buckets"] if so_far >= least), None)
    return f"{found:g} s" if found is not None else "more than all buckets"
