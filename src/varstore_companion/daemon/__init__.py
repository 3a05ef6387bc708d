"""The trio daemon: composes the pure layers and the adapters, and has the only nurseries."""
