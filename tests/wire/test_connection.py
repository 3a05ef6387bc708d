"""What a connection allows, refuses and remembers, beyond what one frame can show."""

import tracemalloc

import pytest

from support.wire_vectors import PING_BEHIND, VM, chunks, feed, hello, open_pair
from varstore_companion.wire.codec import encode
from varstore_companion.wire.connection import Answer, BadRequest, Connection, Ended, Failure, Request
from varstore_companion.wire.errors import ErrorCode, LocalProtocolError, ProtocolError, RemoteProtocolError
from varstore_companion.wire.frames import build_frame
from varstore_companion.wire.limits import HEADER_BYTES, MAX_PAYLOAD, MAX_REQUESTS, MAX_STORE, MIN_MAX_PAYLOAD
from varstore_companion.wire.messages import (
    ClientKind,
    Durable,
    ErrorAnswer,
    GetStore,
    GetStoreAnswer,
    Hello,
    HelloAnswer,
    Outcome,
    Ping,
    PingAnswer,
    Presence,
    PutStore,
    PutStoreAnswer,
    Reason,
    Socket,
    Verdict,
)
from varstore_companion.wire.states import READING, RECEIVE, SEND, Role, Signal, State


def ping(request_id: int) -> bytes:
    return build_frame(Ping.TYPE, request_id, b"")


def pong(request_id: int) -> bytes:
    return build_frame(PingAnswer.TYPE, request_id, b"")


def greeted() -> Connection:
    """A server that has read HELLO, under id 1, and not answered it."""
    server = Connection(Role.SERVER)
    server.receive_data(build_frame(Hello.TYPE, 1, encode(hello(Socket.VM))))
    assert list(server.events()) == [Request(1, hello(Socket.VM))]
    return server


# ---- Greeting


def test_greeting() -> None:
    client, server = open_pair()
    assert (client.state, server.state) == (State.OPEN, State.OPEN)
    assert (client.outstanding, server.outstanding) == ((), ())


def test_a_server_reads_nothing_behind_hello_until_it_has_answered() -> None:
    server = Connection(Role.SERVER)
    server.receive_data(build_frame(Hello.TYPE, 1, encode(hello(Socket.VM))) + ping(2) + ping(3))
    server.receive_eof()
    assert list(server.events()) == [Request(1, hello(Socket.VM))]
    assert list(server.events()) == []
    assert server.state is State.GREETED
    server.answer(1, HelloAnswer.of("s"))
    assert list(server.events()) == [Request(2, Ping()), Request(3, Ping()), Ended()]


@pytest.mark.parametrize("code", ErrorCode)
def test_any_error_in_answer_to_hello_closes_both_sides(code: ErrorCode) -> None:
    server = greeted()
    client = Connection(Role.CLIENT)
    client.request(hello(Socket.VM))
    client.receive_data(server.answer_error(1, code, "no") + pong(2))
    assert list(client.events()) == [Failure(1, ErrorAnswer(code, code.try_again, "no"))]
    assert client.state is server.state is State.CLOSED


def test_hello_cannot_be_answered_otherwise() -> None:
    server = greeted()
    for wrong in (PingAnswer(), HelloAnswer(2, 0, MAX_PAYLOAD, 1), HelloAnswer(1, 0, MAX_PAYLOAD + 1, 1)):
        with pytest.raises(LocalProtocolError):
            server.answer(1, wrong)
    assert (server.state, server.outstanding) == (State.GREETED, (1,))


def test_the_server_keeps_to_what_it_announced() -> None:
    server = greeted()
    server.answer(1, HelloAnswer(1, 0, MIN_MAX_PAYLOAD, 2))
    server.receive_data(ping(2) + ping(3) + ping(4))
    seen = list(server.events())
    assert seen[:2] == [Request(2, Ping()), Request(3, Ping())]
    assert isinstance(seen[2], BadRequest)
    assert (seen[2].request_id, seen[2].code) == (4, ErrorCode.BUSY)
    server.receive_data(build_frame(Ping.TYPE, 5, bytes(MIN_MAX_PAYLOAD + 1)))
    with pytest.raises(RemoteProtocolError, match="BAD_FRAME: a payload of 135169 bytes at offset 12"):
        list(server.events())


def test_the_client_keeps_to_what_was_announced() -> None:
    client = Connection(Role.CLIENT)
    client.request(hello(Socket.VM))
    client.receive_data(build_frame(HelloAnswer.TYPE, 1, encode(HelloAnswer(1, 0, MAX_PAYLOAD, 2))))
    list(client.events())
    client.request(Ping())
    client.request(Ping())
    with pytest.raises(LocalProtocolError, match="2 requests at a time"):
        client.request(Ping())
    client.receive_data(pong(2))
    assert list(client.events()) == [Answer(2, PingAnswer())]
    assert client.request(Ping()) == (4, ping(4))


# ---- Requests and answers


def test_answers_are_matched_by_id_in_any_order() -> None:
    client, server = open_pair()
    first, data = client.request(GetStore(Reason.BOOT))
    second, more = client.request(PutStore(b"VARS"))
    server.receive_data(data + more)
    assert list(server.events()) == [Request(first, GetStore(Reason.BOOT)), Request(second, PutStore(b"VARS"))]
    stored = PutStoreAnswer(Verdict.YES, Durable.JOURNAL, 5)
    read = GetStoreAnswer(Presence.PRESENT, 4, Outcome.NOT_ASKED, b"VARS")
    client.receive_data(server.answer(second, stored) + server.answer(first, read))
    assert list(client.events()) == [Answer(second, stored), Answer(first, read)]
    assert client.outstanding == server.outstanding == ()


def test_an_id_is_free_again_after_its_answer() -> None:
    _client, server = open_pair()
    for _ in range(3):
        server.receive_data(ping(9))
        assert list(server.events()) == [Request(9, Ping())]
        assert server.answer(9, PingAnswer()) == pong(9)


def test_an_id_in_use_ends_the_connection() -> None:
    _client, server = open_pair()
    seen = feed(server, [ping(9) + ping(9) + ping(10)])
    assert seen[0] == Request(9, Ping())
    (error,) = seen[1:]
    assert isinstance(error, RemoteProtocolError)
    assert error.code is ErrorCode.BAD_FRAME
    # An error under id 9 would be taken for the first request's.
    assert error.reply[8:12] == bytes(4)


def test_the_id_of_a_request_that_could_not_be_read_is_in_use_too() -> None:
    _client, server = open_pair()
    server.receive_data(build_frame(0x7000, 9, b"") + ping(9))
    events = server.events()
    assert isinstance(next(events), BadRequest)
    with pytest.raises(RemoteProtocolError):
        next(events)


def test_busy_comes_beyond_the_bound_and_goes_with_an_answer() -> None:
    _client, server = open_pair()
    server.receive_data(b"".join(ping(number) for number in range(1, MAX_REQUESTS + 3)))
    *good, busy, busier = server.events()
    assert good == [Request(number, Ping()) for number in range(1, MAX_REQUESTS + 1)]
    for refused in (busy, busier):
        assert isinstance(refused, BadRequest)
        assert refused.code is ErrorCode.BUSY
        server.answer_error(refused.request_id, refused.code, refused.text)
    server.answer(7, PingAnswer())
    server.receive_data(ping(99))
    assert list(server.events()) == [Request(99, Ping())]


def test_a_request_is_answered_once_and_in_its_own_type() -> None:
    client, server = open_pair()
    request_id, data = client.request(GetStore(Reason.TOOL))
    server.receive_data(data)
    list(server.events())
    read = GetStoreAnswer(Presence.ABSENT, 0, Outcome.NOT_ASKED)
    with pytest.raises(LocalProtocolError, match="PingAnswer does not answer request 2"):
        server.answer(request_id, PingAnswer())
    with pytest.raises(LocalProtocolError, match="request 3 waits for no answer"):
        server.answer(request_id + 1, read)
    with pytest.raises(LocalProtocolError, match="presence present"):
        server.answer(request_id, GetStoreAnswer(Presence.PRESENT, 0, Outcome.NOT_ASKED))
    # None of these was counted as the answer.
    client.receive_data(server.answer(request_id, read))
    assert list(client.events()) == [Answer(request_id, read)]
    with pytest.raises(LocalProtocolError, match="request 2 waits for no answer"):
        server.answer(request_id, read)
    with pytest.raises(LocalProtocolError, match="request 2 waits for no answer"):
        server.answer_error(request_id, ErrorCode.INTERNAL, "late")


def test_a_bad_request_takes_no_answer_but_an_error() -> None:
    _client, server = open_pair()
    server.receive_data(build_frame(PutStore.TYPE, 5, b""))
    (bad,) = server.events()
    assert isinstance(bad, BadRequest)
    with pytest.raises(LocalProtocolError, match="PutStoreAnswer does not answer request 5"):
        server.answer(5, PutStoreAnswer(Verdict.YES, Durable.TOOLSTACK, 1))
    assert server.answer_error(5, bad.code, bad.text)
    assert server.outstanding == ()


@pytest.mark.parametrize("socket", Socket)
def test_a_store_over_the_limit_is_refused_and_the_connection_lives(socket: Socket) -> None:
    _client, server = open_pair(socket)
    too_large = bytes.fromhex("0100 0000 01000200") + bytes(MAX_STORE + 1)
    server.receive_data(build_frame(PutStore.TYPE, 5, too_large) + PING_BEHIND)
    bad, behind = server.events()
    assert isinstance(bad, BadRequest)
    assert bad.code is (ErrorCode.STORE_OVER_LIMIT if socket is Socket.VM else ErrorCode.NOT_HERE)
    assert behind == Request(0x7001, Ping())


@pytest.mark.parametrize("code", ErrorCode)
def test_an_error_lives_or_ends_by_its_code(code: ErrorCode) -> None:
    client, server = open_pair()
    request_id, data = client.request(Ping())
    server.receive_data(data)
    list(server.events())
    client.receive_data(server.answer_error(request_id, code, "why"))
    assert list(client.events()) == [Failure(request_id, ErrorAnswer(code, code.try_again, "why"))]
    assert client.state is server.state is (State.CLOSED if code.ends else State.OPEN)


def test_a_text_that_does_not_fit_an_error_is_cut() -> None:
    client, server = open_pair()
    request_id, data = client.request(Ping())
    server.receive_data(data)
    list(server.events())
    client.receive_data(server.answer_error(request_id, ErrorCode.INTERNAL, "\0\ud800" + "€" * 1000))
    (failure,) = client.events()
    assert isinstance(failure, Failure)
    assert failure.error.text == "??" + "€" * 340


def test_ids_wrap_past_zero_and_past_those_in_use() -> None:
    client, _server = open_pair()
    assert client.request(Ping())[0] == 2
    client._last_id = 0xFFFF_FFFE
    assert client.request(Ping())[0] == 0xFFFF_FFFF
    assert client.request(Ping())[0] == 1
    assert client.request(Ping())[0] == 3


# ---- Ends


def test_a_server_may_answer_after_the_client_has_ended_its_side() -> None:
    client, server = open_pair()
    request_id, data = client.request(Ping())
    server.receive_data(data)
    server.receive_eof()
    assert list(server.events()) == [Request(request_id, Ping()), Ended()]
    assert list(server.events()) == []
    assert (server.state, server.outstanding) == (State.DRAINING, (request_id,))
    client.receive_data(server.answer(request_id, PingAnswer()))
    client.receive_eof()
    assert list(client.events()) == [Answer(request_id, PingAnswer()), Ended()]
    assert client.state is State.CLOSED


def test_a_client_knows_which_requests_were_lost() -> None:
    client, _server = open_pair()
    lost = [client.request(Ping())[0], client.request(PutStore(b""))[0]]
    client.receive_eof()
    assert list(client.events()) == [Ended()]
    assert client.outstanding == tuple(lost)


@pytest.mark.parametrize("state", [State.NEW, State.GREETED, State.OPEN, State.DRAINING])
def test_a_server_can_end_any_connection(state: State) -> None:
    server = Connection(Role.SERVER) if state is State.NEW else greeted() if state is State.GREETED else open_pair()[1]
    if state is State.DRAINING:
        server.receive_eof()
        list(server.events())
    assert server.state is state
    client = Connection(Role.CLIENT)
    client.receive_data(server.fail(ErrorCode.SHUTTING_DOWN, "stopping") + pong(1))
    assert list(client.events()) == [Failure(0, ErrorAnswer(ErrorCode.SHUTTING_DOWN, try_again=True, text="stopping"))]
    assert client.state is server.state is State.CLOSED


def test_after_the_end_bytes_are_dropped_and_nothing_can_be_sent() -> None:
    client, server = open_pair()
    server.receive_data(ping(2)[:5])
    server.fail(ErrorCode.INTERNAL, "")
    server.receive_data(ping(2)[5:])
    assert list(server.events()) == []
    assert not server.partial
    with pytest.raises(LocalProtocolError, match="a server sends no last error in state closed"):
        server.fail(ErrorCode.INTERNAL, "")
    with pytest.raises(LocalProtocolError, match="a server sends no answer in state closed"):
        server.answer(2, PingAnswer())
    with pytest.raises(LocalProtocolError, match="a server sends no error in state closed"):
        server.answer_error(2, ErrorCode.INTERNAL, "")
    client.receive_eof()
    with pytest.raises(LocalProtocolError, match="after the end of the stream"):
        client.receive_data(b"V")


def test_each_side_keeps_to_its_part() -> None:
    client, server = Connection(Role.CLIENT), Connection(Role.SERVER)
    with pytest.raises(LocalProtocolError, match="a client sends no request in state new"):
        client.request(Ping())
    client.request(hello(Socket.VM))
    with pytest.raises(LocalProtocolError, match="a client sends no request in state greeted"):
        client.request(Ping())
    with pytest.raises(LocalProtocolError, match="a client sends no HELLO in state greeted"):
        client.request(hello(Socket.VM))
    with pytest.raises(LocalProtocolError, match="a client sends no last error"):
        client.fail(ErrorCode.INTERNAL, "")
    with pytest.raises(LocalProtocolError, match="a server sends no HELLO"):
        server.request(Hello.of(ClientKind.TOOL, vm=VM, name=""))
    with pytest.raises(LocalProtocolError, match="a server sends no answer in state new"):
        server.answer(1, PingAnswer())


def test_whose_fault_it_was_is_a_class() -> None:
    assert issubclass(LocalProtocolError, ProtocolError)
    assert issubclass(RemoteProtocolError, ProtocolError)
    assert not issubclass(LocalProtocolError, RemoteProtocolError)


# ---- What is held


def test_partial_is_true_from_the_first_byte_of_a_frame_to_its_last() -> None:
    _client, server = open_pair()
    data = build_frame(PutStore.TYPE, 2, encode(PutStore(b"VARS")))
    for byte in chunks(data[:-1], 1):
        server.receive_data(byte)
        assert list(server.events()) == []
        assert server.partial
    server.receive_data(data[-1:] + ping(3)[:1])
    assert list(server.events()) == [Request(2, PutStore(b"VARS"))]
    assert server.partial
    server.receive_data(ping(3)[1:])
    assert list(server.events()) == [Request(3, Ping())]
    assert not server.partial


def test_a_caller_that_does_not_take_its_events_is_stopped() -> None:
    _client, server = open_pair()
    server.receive_data(bytes(HEADER_BYTES + MAX_PAYLOAD))
    with pytest.raises(LocalProtocolError, match="before the events"):
        server.receive_data(b"\0")


def test_a_frame_of_the_largest_size_never_looks_like_that() -> None:
    _client, server = open_pair()
    frame = build_frame(0x7000, 2, bytes(MAX_PAYLOAD))
    server.receive_data(frame[:-1])
    assert list(server.events()) == []
    server.receive_data(frame[-1:])
    (bad,) = server.events()
    assert isinstance(bad, BadRequest)
    assert bad.code is ErrorCode.UNKNOWN_TYPE


def test_an_announced_length_sets_nothing_aside() -> None:
    servers = [open_pair()[1] for _ in range(50)]
    header = build_frame(PutStore.TYPE, 2, bytes(MAX_PAYLOAD))[:HEADER_BYTES]
    tracemalloc.start()
    try:
        for server in servers:
            server.receive_data(header)
            assert list(server.events()) == []
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 50_000


def test_a_store_is_copied_twice_at_most_while_it_is_read() -> None:
    store = bytes(MAX_STORE)
    data = build_frame(PutStore.TYPE, 2, encode(PutStore(store)))
    _client, server = open_pair()
    server.receive_data(data)
    tracemalloc.start()
    try:
        (event,) = server.events()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert event == Request(2, PutStore(store))
    assert peak < 2 * len(data) + 20_000


# ---- The tables


def test_no_table_leads_out_of_closed_and_every_state_is_reached() -> None:
    for role in Role:
        edges = {**RECEIVE[role], **SEND[role]}
        assert all(state is not State.CLOSED for state, _ in edges)
        reached = {State.NEW, *edges.values()}
        assert reached == (set(State) if role is Role.SERVER else set(State) - {State.DRAINING})
        assert State.CLOSED not in READING[role]


def test_what_one_side_may_send_the_other_may_receive() -> None:
    wire = set(Signal) - {Signal.END}
    for sender, reader in ((Role.CLIENT, Role.SERVER), (Role.SERVER, Role.CLIENT)):
        sent = {signal for _, signal in SEND[sender]}
        assert sent == {signal for _, signal in RECEIVE[reader]} & wire
