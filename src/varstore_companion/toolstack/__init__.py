"""Adapters to what keeps the VMs' NVRAM, behind one interface; they hold no rules."""
