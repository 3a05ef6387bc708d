"""Variable attributes (UEFI 2.10, section 8.2.1): a u32 of which unknown bits are kept.

Plain numbers: an `IntFlag` remembers every combination it ever saw, and a guest chooses the combinations.
"""

NAMES = {
    0x01: "NON_VOLATILE",
    0x02: "BOOTSERVICE_ACCESS",
    0x04: "RUNTIME_ACCESS",
    0x08: "HARDWARE_ERROR_RECORD",
    0x10: "AUTHENTICATED_WRITE_ACCESS",
    0x20: "TIME_BASED_AUTHENTICATED_WRITE_ACCESS",
    0x40: "APPEND_WRITE",
    0x80: "ENHANCED_AUTHENTICATED_ACCESS",
}


def describe(attributes: int) -> list[str]:
    """The names of the attributes that are set, without EFI_VARIABLE_; bits without a name as one number, last."""
    names = [name for bit, name in NAMES.items() if attributes & bit]
    unnamed = attributes & ~sum(NAMES)
    return [*names, f"{unnamed:#x}"] if unnamed else names
