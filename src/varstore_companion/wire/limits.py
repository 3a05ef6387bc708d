"""The protocol's numbers, each with its reason. protocol/messages.toml has the same ones; a test compares them."""

from typing import Final

MAGIC: Final = b"VSCP"
"""How every frame begins. Its first byte already tells it from varstored's XML-RPC, which begins with `POST`."""

VERSION: Final = 1
"""The only version this program speaks."""

HEADER_BYTES: Final = 16
FIELD_HEADER_BYTES: Final = 8

MAX_PAYLOAD: Final = 262_144
"""Bytes. Twice the largest store, so that no answer needs more than one frame, and no peer can ask for more memory."""

MIN_MAX_PAYLOAD: Final = 135_168
"""Bytes. The least that a server may announce: the largest store, its fields, and room for fields to come."""

MAX_FIELDS: Final = 64
"""A payload of empty fields would otherwise cost its reader 32,768 steps. No message of version 1 has more than 7."""

MAX_STORE: Final = 131_072
"""Bytes. varstored's limit of a saved store file."""

MAX_REQUESTS: Final = 16
"""Requests not yet answered on a connection. varstored has one at a time; 16 leave room for a tool that pipelines."""

MAX_REQUESTS_BOUND: Final = 1_024
"""The most that a server may announce, so that a client can size its table."""

MAX_TEXT: Final = 1_024
"""Bytes of UTF-8. A reason for the log: longer ones would be a body, and bodies are not logged."""

MAX_NAME: Final = 64
"""Bytes of UTF-8. The name and version of a program, or a state's name."""

MAX_PING: Final = 64
"""Bytes. Enough to tell one echo from another."""

MAX_PATH: Final = 107
"""Bytes. Linux's `sun_path` (unix(7)) without its closing NUL."""

MAX_CURSOR: Final = 256
"""Bytes. A page's last key, opaque to the client; a socket's path fits."""

MAX_JSON: Final = 245_760
"""Bytes of UTF-8. What is left of a payload when its other fields have what they may need."""

MAX_LIST: Final = 1_000
"""Entries of one page, as attachments."""

MAX_MODE: Final = 0o777
MAX_GID: Final = 0xFFFF_FFFE
"""chown(2) reads the next number as "leave it"."""

HELLO_SECONDS: Final = 10
"""From the connection to the end of HELLO."""

FRAME_SECONDS: Final = 30
"""From a frame's first byte to its last."""

BOOT_ANSWER_SECONDS: Final = 20
"""From GET_STORE with reason boot to its answer: varstored's starter gives up at 30 s."""
