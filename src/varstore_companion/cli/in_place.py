"""What is kept of a file before it is changed in place: its exact bytes, with report and plan beside them."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

from varstore_companion.cli import out_file
from varstore_companion.cli.named import InputError


def refuse_unless_file(name: str) -> None:
    """Raise `InputError` for what cannot be replaced by a file: a link, a device, a pipe. A missing one is the reader's."""
    path = Path(name)
    if path.is_symlink():
        raise InputError(f"{path}: is a symbolic link to {path.readlink()}: name the file itself")
    if path.exists() and not path.is_file():
        raise InputError(f"{path}: is not a file that can be changed in place")


def keep(name: str, data: bytes, about: Mapping[str, object], folder: Path | None, now: float) -> Path:
    """Write the file's bytes, durably, to `NAME.TIME-DIGEST.bak` and `about` to `.json`, beside it unless `folder` is given.

    Both have the file's mode, less what the umask takes. Raises `InputError`.
    """
    path = Path(name)
    digest = sha256(data).hexdigest()
    kept = (folder or path.parent) / f"{path.name}.{datetime.fromtimestamp(now, UTC):%Y%m%dT%H%M%SZ}-{digest[:12]}.bak"
    mode = path.stat().st_mode & 0o777
    described = {"file": str(path.absolute()), "at": now, "why": "apply", "sha256": digest, "bytes": len(data), **about}
    out_file.write(str(kept.with_suffix(".json")), (json.dumps(described, indent=1) + "\n").encode(), mode=mode)
    out_file.write(str(kept), data, mode=mode)
    return kept
