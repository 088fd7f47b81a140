"""Hostile input: answered, never obeyed. A trip-wire in this process notices every socket, program, file and unpickling."""

from __future__ import annotations

import asyncio
import gc
import pickle
import struct
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from hqtl_common import ModelBundle
from serving.app import create_app
from serving.predictor import Predictor
from serving.settings import ServiceSettings
from tests.asgi import Client
from tests.hostile import KINDS, TRAPS, endless, hostile_images
from tests.integration.test_service import photo

OCTETS = {"content-type": "application/octet-stream"}
FORM = {"content-type": "multipart/form-data; boundary=b"}
WIRED = ("socket.connect", "socket.bind", "socket.sendto", "socket.getaddrinfo", "socket.gethostby", "subprocess.")
WIRED += (
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.spawn",
    "os.fork",
    "pickle.",
    "marshal.",
    "exec",
    "compile",
    "import",
    "open",
    "ctypes.",
    "shutil.",
    "os.remove",
)
WIRED += ("os.rename", "os.mkdir", "os.chmod", "os.listdir", "tempfile.", "urllib.")


NAMES = [b"../../etc/passwd", b"/etc/passwd", b"..\\..\\x", b"a\x00b", b"http://127.0.0.1/", b"\xff\xfe", b"CON", b"x" * 900]
PATHS = ["/v1/../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/v1/model/..%2f..%2fmanifest.json", "/%00", "/%ff%fe", "/v1/%0d%0aX: y"]
QUERIES = [b"%ff=%fe", b"seed=%00", b"&" * 100, b"a=b&" * 100, b"seed=1&seed=2", b"\xff\xfe", b"explain=" + b"x" * 9000, b"shots=1e3"]


class TripWire:
    """Audit events while it is armed; a hook can never be taken away again, so there is one.

    Threads that were there before, of other tests, are none of its business.
    """

    def __init__(self) -> None:
        self.armed = False
        self.strangers = {thread for thread in threading.enumerate() if thread is not threading.current_thread()}
        self.touched: list[str] = []
        gc.collect()  # what other tests have left must not end, and touch files, while this is armed
        sys.addaudithook(self.notice)

    def notice(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.armed or not event.startswith(WIRED) or threading.current_thread() in self.strangers:
            return
        if "sniffio" not in repr(arguments):  # httpx, our client, looks for it each time
            self.touched.append(f"{event} {arguments!r:.200}")

    @contextmanager
    def watch(self) -> Iterator[None]:
        self.touched.clear()
        self.armed = True
        try:
            yield
        finally:
            self.armed = False
        assert self.touched == []


@pytest.fixture(scope="module")
def wire() -> TripWire:
    return TripWire()


@pytest.fixture(scope="module")
def predictor(wire: TripWire, bundle: ModelBundle) -> Iterator[Predictor]:
    predictor = Predictor(ServiceSettings(bundle=bundle.path, threads=1, decoders=2, insecure_no_auth=True, max_images=8))
    yield predictor
    predictor.close()


@pytest.fixture(scope="module")
def client(predictor: Predictor) -> Client:
    client = Client(create_app(predictor, None))
    for warm in ({"content": photo(0), "headers": OCTETS}, {"content": b"x", "headers": OCTETS}, {"files": {"image": ("a", photo(0))}}):
        client.post("/v1/predict", **warm)
    client.get("/v1/predict")  # what is imported late is imported now
    return client


def part(data: bytes, disposition: bytes = b'form-data; name="image"; filename="a.png"', more: bytes = b"") -> bytes:
    return b"--b\r\nContent-Disposition: " + disposition + b"\r\n" + more + b"\r\n" + data + b"\r\n--b--\r\n"


def answered(answer: httpx.Response) -> int:
    if answer.status_code >= 400:
        assert answer.json()["error"].keys() == {"code", "message", "detail", "request_id"}
    assert answer.status_code < 500, answer.text
    return answer.status_code


class TestTraps:
    def test_the_wire_notices(self, wire: TripWire, tmp_path: Path) -> None:
        (tmp_path / "x").touch()
        for act in (lambda: (tmp_path / "x").read_bytes(), lambda: eval("1"), lambda: pickle.loads(pickle.dumps(Path()))):
            with pytest.raises(AssertionError), wire.watch():
                act()

    @pytest.mark.parametrize("number", range(len(TRAPS)))
    def test_as_an_image_and_wherever_text_is_taken(self, client: Client, wire: TripWire, number: int) -> None:
        trap, text = TRAPS[number], TRAPS[number].decode("latin-1")
        bodies = [trap, part(trap), part(trap, b'form-data; name="image"'), part(trap, more=b"Content-Type: application/x-pickle\r\n")]
        bodies += [
            part(trap, b'form-data; name="backend"'),
            part(photo(0), b'form-data; name="image"; filename="%b"' % trap.hex().encode()),
        ]
        with wire.watch():
            statuses = [answered(client.post("/v1/predict", content=data, headers=FORM)) for data in bodies]
            statuses.append(answered(client.post("/v1/predict", content=trap, headers=OCTETS)))
            fields = ("backend", "url", "seed", "explain", "mitigation")
            asked = [client.post("/v1/predict", params={field: text}, content=photo(0), headers=OCTETS) for field in fields]
        statuses += [answered(answer) for answer in asked]
        assert set(statuses) <= {200, 400, 403, 415, 422}
        assert statuses[5:6] == [200]
        assert not Path("/tmp/hqtl-was-unpickled").exists()

    @pytest.mark.parametrize(
        "name",
        [
            b"../../etc/passwd",
            b"/etc/passwd",
            b"..\\..\\x",
            b"a\x00b",
            b"http://127.0.0.1/",
            b"\xff\xfe",
            b"CON",
            b"x" * 900,
            "Riß.png".encode(),
        ],
    )
    def test_names_of_files_are_text_and_nothing_else(self, client: Client, wire: TripWire, name: bytes) -> None:
        with wire.watch():
            answer = client.post("/v1/predict", content=part(photo(0), b'form-data; name="image"; filename="' + name + b'"'), headers=FORM)
        assert answered(answer) in (200, 400)

    @pytest.mark.parametrize("where", PATHS)
    def test_paths_lead_nowhere(self, client: Client, wire: TripWire, where: str) -> None:
        with wire.watch():
            answer = client.get(where)
        assert answered(answer) == 404
        assert "root:" not in answer.text


ODD: list[tuple[dict[str, str], bytes]] = [
    ({}, b""),
    ({"content-type": ""}, b"x"),
    ({"content-type": "multipart/form-data"}, part(photo(0))),
    ({"content-type": "multipart/form-data; boundary="}, part(photo(0))),
    ({"content-type": 'multipart/form-data; boundary="'}, part(photo(0))),
    ({"content-type": "multipart/form-data; boundary=" + "b" * 5000}, part(photo(0))),
    ({"content-type": "multipart/mixed; boundary=b"}, part(photo(0))),
    ({"content-type": "multipart/form-data; boundary=\xe9".encode().decode("latin-1")}, part(photo(0))),
    ({**FORM, "content-encoding": "gzip"}, part(photo(0))),
    ({**OCTETS, "content-encoding": "br"}, photo(0)),
    ({**FORM, "content-length": "99999999999999999999999"}, part(photo(0))),
    ({**FORM, "content-length": "-1"}, part(photo(0))),
    ({**FORM, "transfer-encoding": "chunked"}, part(photo(0))),
    (FORM, part(photo(0))[:-20]),
    (FORM, b"--b\r\n\r\n\r\n--b--\r\n"),
    (FORM, b"--b--\r\n"),
    (FORM, b"--b" * 5000),
    (FORM, part(photo(0), b"form-data; name=\xff\xfe")),
    (FORM, part(photo(0), b"form-data; name=\"image\"; filename*=utf-8''%ff%fe")),
    (FORM, part(photo(0), b'form-data; name="image"; filename="' + b"\\" * 500)),
    (FORM, part(b"\xff\xfe\x00", b'form-data; name="seed"')),
    (FORM, part(b"1", b'form-data; name=""')),
    (FORM, b"--b\r\n" + b"X: y\r\n" * 10_000),
    ({**OCTETS, "x-request-id": "a\tb", "x-" + "n" * 2000: "v" * 20_000}, photo(0)),
    ({"content-type": "application/json"}, b'{"image": NaN}'),
    ({"content-type": "application/x-www-form-urlencoded"}, b"image=http://127.0.0.1/"),
    ({"content-type": "application/octet-stream; charset=\x80"}, photo(0)),
]


@pytest.mark.parametrize("number", range(len(ODD)))
@pytest.mark.parametrize("pieces", [1, 7])
def test_odd_bodies_are_the_clients_fault(client: Client, wire: TripWire, number: int, pieces: int) -> None:
    headers, data = ODD[number]
    size = -(-len(data) // pieces) or 1
    chunks = [data[at : at + size] for at in range(0, len(data), size)]
    with wire.watch():
        status, body = asyncio.run(raw(client.app, headers, chunks))
    assert status in (200, 400, 413, 415, 422)
    assert status == 200 or body.startswith(b'{"error":{"code":')


async def raw(app: Any, headers: dict[str, str], chunks: list[bytes], query: bytes = b"") -> tuple[int, bytes]:
    """A request that no client library would send."""
    messages = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks] + [{"type": "http.request", "body": b""}]
    waiting, sent = iter(messages), []

    async def receive() -> Any:
        return next(waiting)

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "http_version": "1.1", "method": "POST", "scheme": "http", "path": "/v1/predict", "raw_path": b"/v1/predict"}
    scope |= {"query_string": query, "root_path": "", "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 3000), "state": {}}
    scope["headers"] = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
    await app(scope, receive, send)
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent[1:])


@pytest.mark.parametrize("query", QUERIES)
def test_odd_queries_are_the_clients_fault(client: Client, wire: TripWire, query: bytes) -> None:
    with wire.watch():
        status, _ = asyncio.run(raw(client.app, OCTETS, [photo(0)], query))
    assert status in (200, 400, 422)


def memory(predictor: Predictor) -> int:
    nursery = psutil.Process(predictor.intake.pool.process_id)
    return sum(process.memory_info().rss for process in (psutil.Process(), nursery, *nursery.children()))


async def send_all(client: Client, images: Iterator[bytes]) -> Counter[int]:
    found: Counter[int] = Counter()
    async with client.connect() as http:

        async def one_after_the_other() -> None:
            for number, data in enumerate(images):
                options: dict[str, Any] = {"files": {"image": ("x.png", data)}} if number % 2 else {"content": data, "headers": OCTETS}
                found[answered(await http.post("/v1/predict", **options))] += 1

        await asyncio.gather(*(one_after_the_other() for _ in range(4)))
    return found


@pytest.mark.parametrize("count", [297, pytest.param(3000, marks=pytest.mark.slow)])
def test_a_corpus_of_malformed_images(client: Client, predictor: Predictor, wire: TripWire, count: int) -> None:
    """No 5xx, no death of a worker, no growth; and a good image among them is answered as ever."""
    asyncio.run(send_all(client, hostile_images(len(KINDS) * 10, seed=1)))
    good = client.post("/v1/predict", content=photo(1), headers=OCTETS).json()["predictions"]
    nursery, before = predictor.intake.pool.process_id, memory(predictor)
    with wire.watch():
        found = asyncio.run(send_all(client, hostile_images(count)))
    assert sum(found.values()) == count
    assert set(found) <= {200, 413, 415, 422}
    assert min(found[413], found[415], found[422]) > count / 50
    assert client.post("/v1/predict", content=photo(1), headers=OCTETS).json()["predictions"] == good
    assert predictor.intake.pool.process_id == nursery
    assert memory(predictor) - before < 40 * 2**20
    assert b"hqtl_decoder_deaths_total{" not in predictor.metrics.render()


@pytest.fixture
def deadly(monkeypatch: pytest.MonkeyPatch, bundle: ModelBundle) -> Iterator[Callable[[], tuple[Client, Predictor]]]:
    """A service whose decoders may take so little time that an endless image is soon over."""
    made: list[Predictor] = []

    def make() -> tuple[Client, Predictor]:
        settings = ServiceSettings(bundle=bundle.path, threads=1, decoders=1, insecure_no_auth=True, decode_timeout_s=2)
        made.append(Predictor(settings))
        return Client(create_app(made[0], None)), made[0]

    yield make
    made[0].close()


def test_an_image_that_ends_its_decoder_is_a_422_and_its_neighbours_are_answered(
    deadly: Callable[[], tuple[Client, Predictor]], wire: TripWire
) -> None:
    client, predictor = deadly()
    slow = endless()

    async def at_once() -> list[httpx.Response]:
        async with client.connect() as http:
            return await asyncio.gather(
                *(http.post("/v1/predict", content=data, headers=OCTETS) for data in [photo(0), slow, photo(1), slow, photo(2)])
            )

    client.post("/v1/predict", content=photo(0), headers=OCTETS)
    with wire.watch():
        answers = asyncio.run(at_once())
    assert [answer.status_code for answer in answers] == [200, 422, 200, 422, 200]
    assert answers[1].json()["error"]["code"] == "image_decode"
    assert "took more than 2 s" in answers[1].json()["error"]["message"]
    assert b'hqtl_decoder_deaths_total{cause="SIGALRM"} 2.0' in predictor.metrics.render()


def test_a_tiff_that_points_at_itself_is_answered(client: Client) -> None:
    loop = b"II*\0" + struct.pack("<IH", 8, 0) + struct.pack("<I", 8)
    assert answered(client.post("/v1/predict", content=loop, headers=OCTETS)) in (415, 422)
