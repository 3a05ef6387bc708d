"""The other end of sd_notify: a datagram socket that keeps what it is told, and the descriptors that came with it."""

import os
import socket
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class News:
    """One datagram: its assignments, and the descriptors beside them."""

    fields: dict[str, str]
    descriptors: tuple[int, ...]


@dataclass
class Manager:
    """What systemd is to a service. `take` blocks; `store` has what was kept under which name, in order."""

    address: str
    datagrams: socket.socket
    news: list[News] = field(default_factory=list)
    store: list[tuple[str, int]] = field(default_factory=list)

    @classmethod
    def at(cls, address: Path | str) -> "Manager":
        """A manager whose NOTIFY_SOCKET is `address`; `@` begins an abstract one."""
        text = os.fspath(address)
        datagrams = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        datagrams.bind("\0" + text[1:] if text.startswith("@") else text)
        return cls(text, datagrams)

    def take(self) -> News:
        """The next datagram, carried out as systemd does."""
        data, descriptors, _, _ = socket.recv_fds(self.datagrams, 65_536, 8)
        fields = dict(line.split("=", 1) for line in data.decode().splitlines())
        news = News(fields, tuple(descriptors))
        self.news.append(news)
        name = fields.get("FDNAME", "stored")
        if "FDSTORE" in fields:
            assert name.isascii()
            assert name.isprintable()
            assert ":" not in name
            assert len(name) <= 255
            self.store += [(name, each) for each in descriptors]
        if "FDSTOREREMOVE" in fields:
            for each in [entry for entry in self.store if entry[0] == name]:
                self.store.remove(each)
                os.close(each[1])
        return news

    def said(self, key: str) -> list[str]:
        """The values that a field has had, in order."""
        return [news.fields[key] for news in self.news if key in news.fields]

    def close(self) -> None:
        """Close everything; what is kept goes with it."""
        self.datagrams.close()
        for _, descriptor in self.store:
            os.close(descriptor)
        self.store.clear()
