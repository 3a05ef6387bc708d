"""Where things are on a host unless somebody says otherwise."""

from pathlib import Path

CONFIG = Path("/etc/varstore-companion/config.toml")
"""The daemon's settings, where nobody names another file."""
CONTROL = Path("/run/varstore-companion/control.sock")
"""The daemon's control socket."""
STATE_DIR = Path("/var/lib/varstore-companion")
"""What the daemon keeps over a restart."""
XAPI = Path("/var/lib/xcp/xapi")
"""xapi's own socket."""
VARSTORED_AUTH = Path("/var/lib/varstored")
"""varstored's `.auth` files; often a link to /usr/share/varstored."""
