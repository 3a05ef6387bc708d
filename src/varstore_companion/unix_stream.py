"""A connected Unix socket on trio's event loop, with a turn of the loop only where it has to wait.

Beside `trio.SocketStream`: a write of a guest makes four connections of one request each, and a turn costs as much as the
request's parsing. So bytes that the kernel takes at once are sent without one, and those that have come can be had without
one, too: whoever loops over that sees to it that the others get on.
"""

import select
import socket
from types import TracebackType
from typing import Self

import trio


class UnixStream:
    """Owns `socket`, which it makes non-blocking. One task uses it at a time; `async with` closes it, as `close` does.

    Every method raises `trio.BrokenResourceError` when the peer is gone or the socket is closed.
    """

    __slots__ = ("_patience", "_sending", "_unread", "socket")

    def __init__(self, connected: socket.socket) -> None:
        connected.setblocking(False)  # noqa: FBT003  the standard library takes it by position only
        self.socket = connected
        self._unread = b""
        self._sending: trio.CancelScope | None = None
        self._patience = float("inf")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the socket; harmless when repeated."""
        self.socket.close()

    def unread(self, data: bytes) -> None:
        """Have these bytes received next, at once."""
        self._unread = data

    def wake(self) -> None:
        """End another task's wait in `receive_some`, which raises `trio.ClosedResourceError`; the stream stays open."""
        trio.lowlevel.notify_closing(self.socket)

    async def receive_some(self, most: int) -> bytes:
        """The next bytes, nothing at the end of the stream. `most`: of one read from the kernel."""
        while not self._unread:
            try:
                await trio.lowlevel.wait_readable(self.socket)
            except (OSError, ValueError) as error:
                raise trio.BrokenResourceError(str(error)) from error
            data = self.receive_now(most)
            if data is not None:
                return data
        return self._given_back()

    def receive_now(self, most: int) -> bytes | None:
        """As `receive_some`, with no turn of the event loop; None when nothing has come. Not for a loop without end."""
        if self._unread:
            return self._given_back()
        try:
            return self.socket.recv(most)
        except BlockingIOError:
            return None
        except OSError as error:
            raise trio.BrokenResourceError(str(error)) from error

    async def send_all(self, data: bytes, *, seconds: float = float("inf")) -> bool:
        """Send all of it; False when the peer does not take it within `seconds`."""
        sent = self._send(data)
        if sent < len(data):
            scope = self._sending = trio.CancelScope(deadline=trio.current_time() + min(seconds, self._patience))
            try:
                with scope, memoryview(data) as view:
                    while sent < len(data):
                        try:
                            await trio.lowlevel.wait_writable(self.socket)
                        except OSError as error:  # the system has no watch or memory for it
                            raise trio.BrokenResourceError(str(error)) from error
                        sent += self._send(view[sent:])
            finally:
                self._sending = None
                if self._patience < float("inf"):
                    self._patience = min(self._patience, max(0.0, scope.deadline - trio.current_time()))
            return not scope.cancelled_caught
        return True

    def hurry(self, seconds: float) -> None:
        """Wait so long at most for the peer from now on, in all that is sent, also by a `send_all` that has begun."""
        self._patience = min(self._patience, seconds)
        if self._sending is not None:
            self._sending.deadline = min(self._sending.deadline, trio.current_time() + seconds)

    @property
    def peer_has_left(self) -> bool:
        """Whether the peer has closed its end, so that nobody waits for an answer. One that only sends no more has not."""
        poller = select.poll()
        poller.register(self.socket.fileno(), 0)
        return bool(poller.poll(0))

    def confirm_peer(self) -> None:
        """Raise `trio.BrokenResourceError` when the peer has closed its end: what it asked for and gave up is left undone."""
        if self.peer_has_left:
            raise trio.BrokenResourceError("the peer left before its call was carried out")

    def send_eof(self) -> None:
        """Send nothing more; the peer's bytes can still be received."""
        try:
            self.socket.shutdown(socket.SHUT_WR)
        except OSError as error:
            raise trio.BrokenResourceError(str(error)) from error

    def _given_back(self) -> bytes:
        data, self._unread = self._unread, b""
        return data

    def _send(self, data: bytes | memoryview) -> int:
        try:
            return self.socket.send(data)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise trio.BrokenResourceError(str(error)) from error
