"""`demo`: the whole story on the embedded toolstack, in a temporary folder, step by step; each step is checked."""

import os
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from uuid import UUID, uuid4

from varstore_companion.cli import demo_scene as scene
from varstore_companion.cli import output
from varstore_companion.cli.arguments import add_json, parser
from varstore_companion.cli.client import Client
from varstore_companion.cli.demo_scene import Host, StepError
from varstore_companion.cli.exit_code import ExitCode
from varstore_companion.efi import siglist
from varstore_companion.efi import store as stores
from varstore_companion.efi.store import Store
from varstore_companion.errors import CompanionError
from varstore_companion.files import load_manifest
from varstore_companion.toolstack.database import FILE_NAME, Database
from varstore_companion.trust.manifest import Manifest
from varstore_companion.wire import messages
from varstore_companion.wire.limits import MAX_PATH
from varstore_companion.wire.messages import Outcome, Reason, Verdict

PREFIX = "varstore-companion-demo-"

EXAMPLES = """\
  varstore-companion demo
  varstore-companion demo --json | jq .ok

Everything happens in a temporary folder, which is removed. The exit code is 0 when every step went as it should, else 1."""


class Step:
    """One step of the story: what was seen, and whether it is what should be."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.facts: dict[str, object] = {}
        self.problem: str | None = None

    def saw(self, name: str, value: object) -> None:
        """Something worth telling."""
        self.facts[name] = value

    def expect(self, name: str, found: object, expected: object) -> None:
        """Something that has to be so. Raises `StepError` otherwise."""
        self.facts[name] = found
        if found != expected:
            raise StepError(f"{name}: expected {expected}, found {found}")

    def describe(self) -> dict[str, object]:
        """As plain values for JSON."""
        return {"title": self.title, "ok": self.problem is None, "problem": self.problem, "facts": self.facts}


class Story:
    """The steps so far; those after one that went wrong are not tried."""

    def __init__(self, *, quiet: bool) -> None:
        self.steps: list[Step] = []
        self._quiet = quiet

    @property
    def ok(self) -> bool:
        """Whether every step went as it should."""
        return all(step.problem is None for step in self.steps)

    @contextmanager
    def step(self, title: str) -> Iterator[Step]:
        """Tell one step. Errors of ours become its problem and end the story."""
        step = Step(title)
        self.steps.append(step)
        if not self._quiet:
            output.line(output.coloured(f"{len(self.steps)}. {title}", "bold"))
            output.flush()
        try:
            yield step
        except CompanionError as error:
            step.problem = str(error)
            raise
        finally:
            if not self._quiet:
                self._show(step)

    @staticmethod
    def _show(step: Step) -> None:
        width = max(map(len, step.facts), default=0)
        for name, value in step.facts.items():
            lines = value if isinstance(value, list) else [value]
            for number, text in enumerate(lines):
                output.line(f"   {name if number == 0 else '':<{width}}  {text}")
        if step.problem is not None:
            output.line(output.coloured(f"   went wrong: {step.problem}", "bad"))
        output.line()


def main(arguments: list[str]) -> ExitCode:
    """Run the command."""
    parse = parser("demo", "Tell the whole story of an update on the embedded toolstack.", EXAMPLES)
    add_json(parse)
    options = parse.parse_args(arguments)
    story = Story(quiet=options.json)
    with tempfile.TemporaryDirectory(prefix=PREFIX, dir=_place()) as folder:
        try:
            _tell(story, Host(Path(folder)), load_manifest())
        except CompanionError as error:
            if story.ok:
                raise
            problem: str | None = str(error)
        else:
            problem = None
    if options.json:
        output.print_json({"ok": story.ok, "problem": problem, "steps": [step.describe() for step in story.steps]})
    elif story.ok:
        output.line(output.coloured(f"All {len(story.steps)} steps went as they should.", "good"))
    return ExitCode.FINE if story.ok else ExitCode.NO


def _place() -> str | None:
    """Where the demo makes its folder: not where other temporary files go when that leaves no room for a socket's name."""
    longest = f"{tempfile.gettempdir()}/{PREFIX}12345678/{UUID(int=0)}.sock"
    return None if len(os.fsencode(longest)) <= MAX_PATH else "/tmp"  # noqa: S108  mkdtemp makes a name of its own there


def _tell(story: Story, host: Host, manifest: Manifest) -> None:
    old = scene.store_of_2019(manifest, scene.own_certificate("A platform key"))
    with scene.daemon(host):
        web, mail, fresh = uuid4(), uuid4(), uuid4()
        _create_and_attach(story, host, web, old)
        _mark(story, host, web)
        updated = _boot(story, host, web, old, manifest)
        _write_boot_entry(story, host, web, updated)
        _change_db(story, host, web, updated)
        _fail_at_boot(story, host, mail, old)
        _first_boot(story, host, fresh, old)
        _count(story, host)


def _create_and_attach(story: Story, host: Host, vm: UUID, old: Store) -> None:
    with story.step("A VM made in 2019 is created, and the daemon serves its socket") as step:
        created = _add(host, vm, "web", old)
        step.expect("field", created["secureboot_certificates_state"], "update_available")
        planned = host.run("plan", "--vm", str(vm), "--control", str(host.control))
        step.expect("report", planned["state_before"], "update_available")
        step.saw("missing", [f"{each['subject']} in {each['variable']}" for each in planned["changes"]])


def _mark(story: Story, host: Host, vm: UUID) -> None:
    with story.step("Its administrator marks it for an update at its next boot") as step:
        marked = host.run("vm", "mark", str(vm), "--state-dir", str(host.state_dir))
        step.expect("field", marked["secureboot_certificates_state"], "update_on_boot")


def _boot(story: Story, host: Host, vm: UUID, old: Store, manifest: Manifest) -> Store:
    with story.step("It boots: its varstored asks for the store and gets the updated one") as step:
        before = old.build()
        with _varstored(host, vm) as client:
            answer = _get(client)
        _expect_updated(step, answer)
        after = answer.store or b""
        planned = host.run("plan", "--vm", str(vm), "--control", str(host.control))
        step.expect("report", planned["state_before"], "ok")
        step.saw("bytes", f"{len(before):,} before, {len(after):,} after")
        step.saw("came", _added(old, stores.parse(after), manifest))
        step.saw("changed otherwise", "nothing: the rest is the same, byte for byte")
        status = host.run("status", "--vm", str(vm), "--control", str(host.control))
        step.expect("told the toolstack update=", status["last_verdict"], "yes")
        step.expect("field", status["field"], "ok")
        return stores.parse(after)


def _write_boot_entry(story: Story, host: Host, vm: UUID, updated: Store) -> None:
    with story.step("Its guest changes a boot entry: nothing that certificates depend on") as step:
        with _varstored(host, vm) as client:
            verdict = _put(client, scene.with_boot_order(updated, b"\x01\x00\x00\x00"))
        step.expect("told the toolstack update=", verdict.name.lower(), Verdict.NO.name.lower())
        step.expect("certcheck runs", _counters(host)["certcheck_runs"], 0)


def _change_db(story: Story, host: Host, vm: UUID, updated: Store) -> None:
    with story.step("Its guest adds a certificate of its own to db") as step:
        changed = scene.with_own_db_certificate(updated, scene.own_certificate("A tenant's own certificate"))
        with _varstored(host, vm) as client:
            verdict = _put(client, changed)
        step.expect("told the toolstack update=", verdict.name.lower(), Verdict.YES.name.lower())
        step.expect("certcheck runs", _counters(host)["certcheck_runs"], 0)


def _fail_at_boot(story: Story, host: Host, vm: UUID, old: Store) -> None:
    with story.step("Another VM is marked, and the toolstack takes no writes when it boots") as step:
        _add(host, vm, "mail", old)
        host.run("vm", "mark", str(vm), "--state-dir", str(host.state_dir))
        with _varstored(host, vm) as client, _locked(host.state_dir / FILE_NAME):
            answer = _get(client)
        step.expect("outcome", answer.outcome.name.lower(), Outcome.FAILED.name.lower())
        step.saw("reason", answer.detail)
        step.expect("store", "the old one, byte for byte" if answer.store == old.build() else "changed", _OLD)
        shown = host.run("vm", "show", str(vm), "--state-dir", str(host.state_dir))
        step.expect("field", shown["secureboot_certificates_state"], "update_on_boot")
    with story.step("It boots again with the toolstack back: the mark was kept, and the update is made") as step:
        with _varstored(host, vm) as client:
            answer = _get(client)
        _expect_updated(step, answer)
        shown = host.run("vm", "show", str(vm), "--state-dir", str(host.state_dir))
        step.expect("field", shown["secureboot_certificates_state"], "ok")


_OLD = "the old one, byte for byte"


def _first_boot(story: Story, host: Host, vm: UUID, old: Store) -> None:
    with story.step("A new VM boots for the first time on a host whose .auth files are still those of 2011") as step:
        _add(host, vm, "fresh", None)
        with _varstored(host, vm) as client:
            answer = _get(client)
            step.expect("store", answer.presence.name.lower(), messages.Presence.ABSENT.name.lower())
            verdict = _put(client, old)
        step.expect("told the toolstack update=", verdict.name.lower(), Verdict.UNSPECIFIED.name.lower())
        step.expect("certcheck runs", _counters(host)["certcheck_runs"], 1)
        shown = host.run("vm", "show", str(vm), "--state-dir", str(host.state_dir))
        step.expect("field", shown["secureboot_certificates_state"], "update_available")


def _count(story: Story, host: Host) -> None:
    with story.step("What the toolstack was spared") as step:
        counters = _counters(host)
        writes = {each: counters[f"writes_{each}"] for each in ("yes", "no", "unspecified")}
        step.saw("writes", ", ".join(f"{count} with update={each}" for each, count in writes.items()))
        step.expect("certcheck runs", counters["certcheck_runs"], writes["unspecified"])
        saved = host.run("status", "--control", str(host.control))["certcheck_saved"]
        step.expect("certcheck runs saved", saved, writes["yes"] + writes["no"])


def _add(host: Host, vm: UUID, name: str, store: Store | None) -> dict[str, object]:
    """Create a VM and attach its socket, with the commands that a person would use."""
    store_options = []
    if store is not None:
        path = host.folder / f"{name}.bin"
        path.write_bytes(store.build())
        store_options = ["--store", str(path)]
    created = host.run("vm", "create", "--uuid", str(vm), "--name", name, "--state-dir", str(host.state_dir), *store_options)
    host.run("attach", "--vm", str(vm), "--socket", str(_socket(host, vm)), "--control", str(host.control))
    return created


def _socket(host: Host, vm: UUID) -> Path:
    return host.folder / f"{vm}.sock"


def _varstored(host: Host, vm: UUID) -> Client:
    return Client(_socket(host, vm), messages.ClientKind.VARSTORED, vm=vm)


def _get(client: Client) -> messages.GetStoreAnswer:
    answer = client.call(messages.GetStore(Reason.BOOT))
    if not isinstance(answer, messages.GetStoreAnswer):
        raise StepError(f"GET_STORE was answered with {type(answer).__name__}")
    return answer


def _expect_updated(step: Step, answer: messages.GetStoreAnswer) -> None:
    if answer.detail is not None:
        step.saw("reason", answer.detail)
    step.expect("outcome", answer.outcome.name.lower(), Outcome.UPDATED.name.lower())


def _put(client: Client, store: Store) -> Verdict:
    answer = client.call(messages.PutStore(store.build()))
    if not isinstance(answer, messages.PutStoreAnswer):
        raise StepError(f"PUT_STORE was answered with {type(answer).__name__}")
    return answer.verdict


def _added(old: Store, new: Store, manifest: Manifest) -> list[str]:
    """The certificates that came; raises `StepError` when anything else changed (invariant 3)."""
    subjects = {certificate.sha256: certificate.subject for certificate in manifest.certificates.values()}
    came = []
    if [replace(variable, data=b"") for variable in old.variables] != [replace(each, data=b"") for each in new.variables]:
        raise StepError("something else than the data of variables changed")
    for before, after in zip(old.variables, new.variables, strict=True):
        if not after.data.startswith(before.data):
            raise StepError(f"variable {after.text} changed otherwise than by what was added at its end")
        for added in siglist.parse(after.data[len(before.data) :]):
            size = len(added.build())
            came += [f"{subjects[sha256(each.data).digest()]} in {after.text}, {size:,} bytes" for each in added.signatures]
    return came


def _counters(host: Host) -> dict[str, int]:
    with Database(host.state_dir / FILE_NAME) as database:
        return database.counters()


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the toolstack's database as a transaction that does not end would: reads go on, writes do not."""
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        connection.execute("BEGIN IMMEDIATE")
        yield
    finally:
        connection.close()
