"""EFI_TIME (UEFI 2.10, section 8.3), kept as stored: padding and impossible dates included."""

from dataclasses import dataclass

from varstore_companion.efi import layouts

SIZE = layouts.EFI_TIME.size
"""16 bytes."""


@dataclass(frozen=True, slots=True)
class EfiTime:
    """One EFI_TIME as its 16 bytes; the fields are read when they are asked for, as few readers ask."""

    raw: bytes

    def __str__(self) -> str:
        if not any(self.raw):
            return "unset"
        time = layouts.EFI_TIME.parse(self.raw, 0)
        return f"{time.Year:04}-{time.Month:02}-{time.Day:02}T{time.Hour:02}:{time.Minute:02}:{time.Second:02}"
