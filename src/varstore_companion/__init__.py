"""Keeps the Secure Boot certificates in the UEFI variable stores of a Xen host's VMs up to date."""

__version__ = "0.1.0"
