"""Pure: the framed protocol of protocol/README.md, without sockets or clocks."""
