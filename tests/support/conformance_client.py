"""The commands' client as the conformance suite drives one: `conformance_client.py SOCKET UUID`, calls on standard input."""

import sys
from pathlib import Path
from uuid import UUID

from varstore_companion.cli.client import Client, ConnectError, RequestFailedError
from varstore_companion.wire.messages import (
    AnswerMessage,
    ClientKind,
    GetStore,
    GetStoreAnswer,
    Ping,
    PutStore,
    PutStoreAnswer,
    Reason,
    RequestMessage,
    SbFailure,
)


def request(line: str) -> RequestMessage | None:
    """The request that a line asks for; None for nothing but HELLO."""
    word, given, argument = line.partition(" ")
    match word:
        case "hello":
            return None
        case "get":
            return GetStore(Reason[argument.upper()])
        case "put":
            return PutStore(bytes.fromhex(argument))
        case "ping":
            return Ping(bytes.fromhex(argument) if given else None)
        case _:
            return SbFailure(bytes.fromhex(argument).decode() if given else None)


def said(answer: AnswerMessage) -> str:
    """An answer as the suite wants it."""
    match answer:
        case GetStoreAnswer():
            words = [f"presence={answer.presence.name.lower()}", f"generation={answer.generation}"]
            words.append(f"outcome={answer.outcome.name.lower()}")
            words += [f"store={answer.store.hex()}"] if answer.store is not None else []
            words += [f"detail={answer.detail.encode().hex()}"] if answer.detail is not None else []
            return " ".join(["answer", *words])
        case PutStoreAnswer():
            words = [f"verdict={answer.verdict.name.lower()}", f"durable={answer.durable.name.lower()}"]
            return " ".join(["answer", *words, f"generation={answer.generation}"])
        case _:
            return "answer"


def main(path: str, vm: str) -> None:
    client: Client | None = None
    for line in sys.stdin:
        try:
            if client is None:
                client = Client(Path(path), ClientKind.TOOL, vm=UUID(vm), seconds=10)
            asked = request(line.rstrip("\n"))
            print("answer" if asked is None else said(client.call(asked)), flush=True)
        except RequestFailedError as error:
            print(f"error {error.code} {int(error.try_again)}", flush=True)
        except ConnectError as error:
            if client is not None:
                client.close()
            client = None
            print("broken" if "no daemon of ours" in str(error) else "unavailable", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
