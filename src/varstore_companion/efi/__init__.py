"""Pure: bytes to frozen values and back, lossless. UEFI's and varstored's formats and limits, no rules of trust."""
