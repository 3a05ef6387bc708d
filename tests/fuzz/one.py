"""Fuzzes one target with Atheris: `python one.py NAME [libFuzzer's options and folders]`. Needs the extra `fuzz`."""

import hashlib
import shlex
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import atheris

# h11 stands between a guest and the daemon, too.
with atheris.instrument_imports(include=["varstore_companion", "h11"]):
    from fuzz.all import TARGETS
    from fuzz.contract import Target

MEMORY_EVERY = 2_000
"""Memory is traced in one run of so many: tracing makes a run several times slower."""


def main() -> None:
    """Run until libFuzzer's options say that it is enough, or something is found."""
    target = TARGETS[sys.argv[1]]
    options = [_seeded(target, each) for each in sys.argv[2:]]
    prefix = next((each.partition("=")[2] for each in options if each.startswith("-artifact_prefix=")), "")
    count = 0

    def test_one_input(data: bytes) -> None:
        nonlocal count
        count += 1
        try:
            target.check_time(data)
            if count % MEMORY_EVERY == 0:
                target.check_memory(data)
        except Exception:
            # libFuzzer does so itself, under the same name, unless the interpreter's end gets in its way.
            Path(f"{prefix}crash-{hashlib.sha1(data).hexdigest()}").write_bytes(data)
            raise

    # A merge runs this again, by the shell.
    itself = shlex.join([sys.executable, __file__, target.name])
    atheris.Setup([itself, f"-max_len={target.limit}", *options], test_one_input)
    atheris.Fuzz()


def _seeded(target: Target, option: str) -> str:
    """The option, or for `--seeds=FOLDER` the folder, with the target's seeds in it."""
    if not option.startswith("--seeds="):
        return option
    folder = Path(option.removeprefix("--seeds="))
    folder.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(target.seeds()):
        (folder / f"{number:03}").write_bytes(seed)
    return str(folder)


main()
