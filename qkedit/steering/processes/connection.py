"""Connections between the first of several processes and each of the others: JSON, and bytes of a known length.

The processes find each other through torch's store, as with any launcher. The tensors then go through plain sockets,
which report at once that a process has died; and Ctrl-C interrupts a wait for them.
"""

from __future__ import annotations

import hmac
import json
import os
import secrets
import select
import socket
import struct
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from qkedit.checkpoint.io.interrupts import interrupts_deferred
from qkedit.errors import QkeditError, UsageError, counted, first_sentence
from qkedit.steering.processes.launch import Launch
from qkedit.strict_text import parse_json

if TYPE_CHECKING:
    from torch.distributed import Store

# Seconds until all processes have connected: the first start on a machine may import torch from a slow file system.
MEETING = 300
# Seconds until a connected process sends its next layer. It may be reading from a slow hub.
PATIENCE = 1800
_GREETING = 10
_PAUSE = 0.05
_LENGTH = struct.Struct(">Q")
_LONGEST_MESSAGE = 64 << 20
# A machine that is switched off sends nothing; after a minute without an answer to these probes it counts as lost.
_KEEP_ALIVE = {"TCP_KEEPIDLE": 20, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 4}


class LostConnectionError(Exception):
    """The other process has ended, or stopped responding; the text says which."""


class Connection:
    """The connection to one other process."""

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected
        connected.settimeout(PATIENCE)
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _KEEP_ALIVE.items():
            if hasattr(socket, name):
                connected.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)

    def send(self, message: dict[str, Any], contents: Sequence[memoryview] = ()) -> None:
        """Send a message and the bytes that follow it. Raises LostConnectionError."""
        text = json.dumps(message).encode()
        with _losses():
            self._socket.sendall(_LENGTH.pack(len(text)) + text)
            for content in contents:
                self._socket.sendall(content)

    def receive(self, patience: float | None = None) -> dict[str, Any]:
        """Return the next message. Raises LostConnectionError if none arrives within `patience` seconds."""
        self._socket.settimeout(patience or PATIENCE)
        (length,) = _LENGTH.unpack(self.read(_LENGTH.size))
        if length > _LONGEST_MESSAGE:
            raise LostConnectionError("sent something that is not a message")
        try:
            message = parse_json(bytes(self.read(length)))
        except ValueError:
            message = None
        if not isinstance(message, dict):
            raise LostConnectionError("sent something that is not a message")
        return message

    def read(self, length: int) -> bytearray:
        """Return `length` of the bytes that follow a message. Raises LostConnectionError."""
        content = bytearray(length)
        rest = memoryview(content)
        while rest:
            with _losses():
                received = self._socket.recv_into(rest)
            if not received:
                raise LostConnectionError("ended before its layers were edited")
            rest = rest[received:]
        return content

    def has_ended(self) -> bool:
        """Return at once whether the other process has closed the connection, even if bytes are left to read."""
        poll = select.poll()
        closed = select.POLLHUP | select.POLLERR | getattr(select, "POLLRDHUP", 0)  # the last one on Linux
        poll.register(self._socket, closed)
        return bool(poll.poll(0))

    def close(self) -> None:
        """Close the connection; the other process notices."""
        self._socket.close()


@contextmanager
def _losses() -> Iterator[None]:
    try:
        yield
    except TimeoutError:
        raise LostConnectionError("has not answered for too long") from None
    except OSError:
        raise LostConnectionError("ended before its layers were edited") from None


@contextmanager
def others_of(launch: Launch) -> Iterator[dict[int, Connection]]:
    """Wait for all other processes, in the first one, and yield their connections by rank; close them after the block.

    Raises:
        QkeditError: a process did not connect in time, or the address is unusable.
    """
    deadline = time.monotonic() + MEETING
    address, port = _meeting_place()
    with ExitStack() as stack:
        try:
            family, _, _, _, place = socket.getaddrinfo(address, 0, type=socket.SOCK_STREAM)[0]
            listener = stack.enter_context(socket.create_server(place[:2], family=family, backlog=launch.size))
        except OSError as error:
            raise _no_meeting(address, error) from error
        token = secrets.token_hex(16)
        # Kept until all have connected: without a launcher, the store lives in this process.
        store = _store(address, port, launch, deadline)
        store.set(_key(), f"{listener.getsockname()[1]} {token}")
        found: dict[int, Connection] = {}
        while len(found) < launch.size - 1:
            listener.settimeout(max(deadline - time.monotonic(), _PAUSE))
            try:
                coming = stack.enter_context(listener.accept()[0])
            except TimeoutError:
                missing = counted(launch.size - 1 - len(found), "process", "processes")
                raise QkeditError(
                    f"{missing} of {launch.size} did not connect within {MEETING} s",
                    remedy="read the launcher's messages about them, and run again",
                ) from None
            greeted = _greeted(coming, token, launch)
            if greeted is not None:
                found[greeted[0]] = greeted[1]
        yield found


def _greeted(coming: socket.socket, token: str, launch: Launch) -> tuple[int, Connection] | None:
    """Return the rank of the connecting process; None for a stranger, whose connection is closed."""
    connection = Connection(coming)
    with suppress(LostConnectionError):
        greeting = connection.receive(_GREETING)
        rank = greeting.get("rank")
        known = hmac.compare_digest(str(greeting.get("token")).encode(), token.encode())
        if known and isinstance(rank, int) and 0 < rank < launch.size:
            return rank, connection
    connection.close()
    return None


@contextmanager
def first_of(launch: Launch) -> Iterator[Connection]:
    """Connect to the first process; close after the block. Raises QkeditError if it does not answer."""
    deadline = time.monotonic() + MEETING
    address, port = _meeting_place()
    store = _store(address, port, launch, deadline)
    while not store.check([_key()]):  # torch's own wait ignores Ctrl-C
        _wait(deadline, launch)
    number, token = store.get(_key()).decode().split()
    try:
        connected = socket.create_connection((address, int(number)), timeout=_GREETING)
    except OSError as error:
        raise _no_meeting(address, error) from error
    with connected:
        connection = Connection(connected)
        connection.send({"token": token, "rank": launch.rank})
        yield connection


def _meeting_place() -> tuple[str, int]:
    address, port = os.environ.get("MASTER_ADDR", ""), os.environ.get("MASTER_PORT", "")
    if not address or not (port.isascii() and port.isdecimal() and int(port[:10]) < 1 << 16):
        raise UsageError(
            "are not set, so the processes cannot connect",
            where="MASTER_ADDR and MASTER_PORT",
            remedy="start them with torchrun or accelerate launch",
        )
    return address, int(port)


def _store(address: str, port: int, launch: Launch, deadline: float) -> Store:
    """Return the launcher's store, or the one that the first process opens if the launcher has none."""
    # All of torch: while another thread imports it, a submodule could run before the rest. Without interrupts: in the
    # middle of torch's own initialisation, one would abort the process.
    with interrupts_deferred():
        import torch

    hosts = launch.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    while not hosts:  # a failed request would make torch print pages
        with suppress(OSError), socket.create_connection((address, port), timeout=1):
            break
        _wait(deadline, launch)
    try:
        limit = timedelta(seconds=max(deadline - time.monotonic(), 1))
        return torch.distributed.TCPStore(address, port, is_master=hosts, wait_for_workers=False, timeout=limit)
    except RuntimeError as error:
        raise _no_meeting(address, error) from error


def _key() -> str:
    """Return the key of the first process's address: a launcher may keep one store for several attempts and runs."""
    return "/".join(["qkedit", *(os.environ.get(f"TORCHELASTIC_{name}", "") for name in ("RUN_ID", "RESTART_COUNT"))])


def _wait(deadline: float, launch: Launch) -> None:
    if time.monotonic() > deadline:
        raise QkeditError(
            f"{launch.name_of(0)} did not connect within {MEETING} s", remedy="read the launcher's messages about it"
        )
    time.sleep(_PAUSE)


def _no_meeting(address: str, error: BaseException) -> QkeditError:
    return QkeditError(
        f"the processes cannot connect there ({first_sentence(error)})",
        where=f"MASTER_ADDR {address}",
        remedy="give the launcher an address and a port of the first machine that all of them can reach",
    )
