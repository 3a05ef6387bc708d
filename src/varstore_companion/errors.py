"""The exceptions of the project, one class for each reaction of the caller.

Everything raised on purpose derives from `CompanionError`; any other exception that leaves a public function is a
bug.
"""


class CompanionError(Exception):
    """Something that the caller can name to a person: what, where, and what was expected."""


class MalformedError(CompanionError):
    """Bytes that are not what they claim to be. The reaction: refuse them, keep what was there before.

    `offset` counts bytes from the start of the outermost input that the caller handed in.
    """

    def __init__(self, what: str, *, offset: int, expected: str) -> None:
        super().__init__(what, offset, expected)
        self.what = what
        self.offset = offset
        self.expected = expected

    def __str__(self) -> str:
        return f"{self.what} at offset {self.offset}: expected {self.expected}"

    def within(self, what: str, offset: int) -> "MalformedError":
        """The same error, seen from an enclosing input in which this one starts at `offset`."""
        return type(self)(f"{what}: {self.what}", offset=self.offset + offset, expected=self.expected)


class UnknownVersionError(MalformedError):
    """A store of a version newer than this program knows. The reaction: pass it through untouched."""


class OverLimitError(CompanionError):
    """A well-formed store that varstored would refuse to load. The reaction: refuse it, keep what was there before."""


class ConfigurationError(CompanionError):
    """A file or option of the operator's that cannot be used: names the file, the key and what is allowed."""


class RefusedBySystemError(ConfigurationError):
    """The system refused what the operator asked for, as it has no room or right for it now. The reaction: also try again."""


class ToolstackError(CompanionError):
    """The toolstack did not do what was asked. Its subclasses say what the caller should do about it."""


class ToolstackUnavailableError(ToolstackError):
    """Not now, and certainly nothing was changed. The reaction: try again."""


class ToolstackRefusedError(ToolstackError):
    """No, and it will stay no; `code` is xapi's error name, as `HANDLE_INVALID`. The reaction: do not try again.

    `parameters`: what xapi sends after the name, in its order; the text where nobody named any.
    """

    def __init__(self, code: str, text: str, parameters: tuple[str, ...] = ()) -> None:
        super().__init__(code, text, parameters)
        self.code = code
        self.text = text
        self.parameters = parameters or (text,)

    def __str__(self) -> str:
        return f"{self.code}: {self.text}"


class ToolstackUnclearError(ToolstackError):
    """The answer was lost: the request may have been carried out. The reaction: read back, never guess."""


class ToolstackConflictError(ToolstackError):
    """The store is no longer the one the caller decided on; nothing was changed. The reaction: read, decide anew."""


class JournalError(CompanionError):
    """The journal's disk refused, or what it holds is not what was written. The reaction: what was asked is not done.

    `where`: the path of the file or folder; `reason`: the system's words for it, or what was found there.
    """

    def __init__(self, what: str, *, where: str, reason: str) -> None:
        super().__init__(what, where, reason)
        self.what = what
        self.where = where
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.what}: {self.where}: {self.reason}"


class JournalFullError(CompanionError):
    """The journal's bound, `total` bytes, leaves no room for a store; nothing was written. The reaction: refuse it.

    `live`: bytes of all stores that the toolstack has not taken; `more`: bytes that this one would add to them.
    """

    def __init__(self, *, more: int, live: int, total: int) -> None:
        super().__init__(more, live, total)
        self.more = more
        self.live = live
        self.total = total

    def __str__(self) -> str:
        return f"the journal is full: {self.live} bytes wait for the toolstack, {self.more} more would pass {self.total}"
