"""Clients that send slowly, never finish or go on sending after they were answered, on real sockets: they keep nobody else out."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from hqtl_common import ModelBundle
from serving.connections import TimedProtocol
from tests.e2e.test_bentoml import Served, photo, wait_until

AT_ONCE = 4


@pytest.fixture(scope="module")
def service(bundle: ModelBundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    limits = {"HQTL_HEADER_TIMEOUT_S": "4", "HQTL_MAX_REQUESTS": str(AT_ONCE), "HQTL_DECODERS": "1"}
    served = Served(tmp_path_factory.mktemp("serve"), HQTL_BUNDLE=str(bundle.path), **limits)
    try:
        served.wait_ready()
        yield served
    finally:
        served.stop()


class Slow:
    """A connection that is fed byte by byte."""

    def __init__(self, service: Served, head: bytes) -> None:
        self.socket = socket.create_connection(("127.0.0.1", service.port), timeout=30)
        self.socket.sendall(head)
        self.socket.setblocking(False)
        self.received = b""
        self.closed = False

    def feed(self, data: bytes = b"x") -> None:
        """Take what has come, and send a little."""
        try:
            while got := self.socket.recv(65536):
                self.received += got
            self.closed = True
        except BlockingIOError:
            with suppress(BlockingIOError, BrokenPipeError, ConnectionResetError):  # the next look sees that it is closed
                self.socket.send(data)
        except ConnectionResetError:
            self.closed = True


@contextmanager
def many(count: int, service: Served, head: bytes) -> Iterator[list[Slow]]:
    with ExitStack() as stack:
        found = [Slow(service, head) for _ in range(count)]
        for one in found:
            stack.callback(one.socket.close)
        yield found


def feed_until(slow: list[Slow], condition: Callable[[], bool], data: bytes = b"x") -> None:
    limit = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < limit
        for one in slow:
            if not one.closed:
                one.feed(data)
        time.sleep(0.05)


def head_of(service: Served, token: str | None = None, length: int = 100_000) -> bytes:
    lines = [
        "POST /v1/predict HTTP/1.1",
        "Host: x",
        f"Authorization: Bearer {token or service.token}",
        "Content-Type: application/octet-stream",
        f"Content-Length: {length}",
    ]
    return "\r\n".join([*lines, "", ""]).encode()


def test_heads_that_never_end(service: Served) -> None:
    with many(100, service, b"GET /v1/model HTTP/1.1\r\nX-Slow: ") as slow:
        assert service.predict(photo(0)).status_code == 200
        feed_until(slow, lambda: all(one.closed for one in slow))
    assert service.predict(photo(0)).status_code == 200


def test_connections_that_say_nothing(service: Served) -> None:
    with many(20, service, b"") as slow:
        feed_until(slow, lambda: all(one.closed for one in slow), data=b"")
        assert not any(one.received for one in slow)


def test_bodies_that_never_end_give_way(service: Served) -> None:
    with many(AT_ONCE, service, head_of(service)) as slow:
        answers: list[int] = []

        def others_are_answered() -> bool:
            answers.append(service.predict(photo(1)).status_code)
            return answers[-1] == 200

        feed_until(slow, others_are_answered)
        feed_until(slow, lambda: any(b"408" in one.received[:20] and one.received.endswith(b"}") for one in slow))
        assert set(answers) <= {200, 429}
        (gave_way, *_) = [one for one in slow if one.received.endswith(b"}")]
        error = json.loads(gave_way.received.partition(b"\r\n\r\n")[2])["error"]
        assert (error["code"], error["message"]) == ("slow_client", "the body did not arrive while others waited")


def test_a_body_that_goes_on_after_its_answer(service: Served) -> None:
    with many(5, service, head_of(service, token="none")) as slow:
        feed_until(slow, lambda: all(one.closed for one in slow))
        assert all(b" 401 " in one.received for one in slow)


def test_a_slow_body_is_taken_while_there_is_room(service: Served) -> None:
    """Slower than a head may be."""
    image = photo(2)
    with socket.create_connection(("127.0.0.1", service.port), timeout=60) as connection:
        connection.sendall(head_of(service, length=len(image)))
        for start in range(0, len(image), -(-len(image) // 3)):
            time.sleep(1.5)
            connection.sendall(image[start : start + -(-len(image) // 3)])
        assert connection.recv(100).split()[1] == b"200"


class Stuck(asyncio.Transport):
    """A transport whose client takes so many bytes each time it is looked at."""

    def __init__(self, unsent: int, taken: int) -> None:
        super().__init__()
        self.unsent, self.taken, self.looks, self.aborted = unsent, taken, 0, False

    def get_write_buffer_size(self) -> int:
        self.looks += 1
        self.unsent = max(0, self.unsent - self.taken)
        return self.unsent

    def abort(self) -> None:
        self.aborted = True


@pytest.mark.parametrize(("taken", "looks"), [(0, 2), (5, 2), (30_000, 18)])
def test_a_client_that_does_not_read_its_answer_is_left(taken: int, looks: int) -> None:
    """One that reads keeps its connection until all is sent, and then for as long as any other."""

    async def run() -> Stuck:
        protocol: Any = TimedProtocol.__new__(TimedProtocol)
        protocol.transport, protocol.loop, protocol.patience_s = Stuck(500_000, taken), asyncio.get_running_loop(), 0.01
        protocol._wait()
        while not protocol.transport.aborted:
            await asyncio.sleep(0.005)
        return protocol.transport  # type: ignore[no-any-return]

    found = asyncio.run(run())
    assert found.looks >= looks
    assert (found.unsent == 0) == (taken > 10_000)


def test_the_worker_may_hold_many_connections(service: Served) -> None:
    limits = Path(f"/proc/{service.worker().pid}/limits").read_text()
    (line,) = [line for line in limits.splitlines() if line.startswith("Max open files")]
    soft, hard = line.split()[3:5]
    assert soft == hard or int(soft) >= 65_536


def test_it_is_all_over(service: Served) -> None:
    wait_until(lambda: service.ask("GET", "/readyz").status_code == 200)
    worker = service.worker()
    wait_until(lambda: len([one for one in worker.net_connections("inet") if one.status == "ESTABLISHED"]) <= 1)
    assert "Traceback" not in service.log.read_text()
