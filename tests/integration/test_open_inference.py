"""The Open Inference Protocol without its client: what goes in, what comes out, and what is refused with which words."""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest

from hqtl_common import HybridClassifier, ModelBundle, get_backend
from serving.app import create_app, open_ring
from serving.inference import OUTPUTS
from serving.keys import Grants, edit_keys, new_key
from serving.predictor import Predictor
from serving.settings import ServiceSettings
from serving.tensors import InputHead, OutputTensor, read_numbers, render
from tests.asgi import Client
from tests.integration.test_service import photo

INFER = "/v2/models/walls/infer"
PHOTOS = [photo(k) for k in range(3)]


@pytest.fixture(scope="module")
def app(bundle: ModelBundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    keys_file = tmp_path_factory.mktemp("keys") / "keys.json"
    token, key = new_key("tester", Grants(max_shots=1000))
    with edit_keys(keys_file) as keys:
        keys.append(key)
    settings = ServiceSettings(
        bundle=bundle.path,
        threads=1,
        decoders=1,
        keys=keys_file,
        max_images=4,
        max_bytes=100_000,
        max_body_bytes=5_000_000,
        model_name="walls",
    )
    predictor = Predictor(settings)
    app = create_app(predictor, open_ring(settings))
    app.state.token = token
    yield app
    predictor.close()


@pytest.fixture(scope="module")
def client(app: Any) -> Client:
    return Client(app, app.state.token)


def image_input(*photos: bytes, **changes: Any) -> dict[str, Any]:
    texts = [base64.b64encode(photo).decode() for photo in photos]
    return {"name": "image", "datatype": "BYTES", "shape": [len(photos)], "data": texts, **changes}


def infer(client: Client, *inputs: dict[str, Any], outputs: Any = None, headers: Any = None, **parameters: Any) -> httpx.Response:
    asked = {"id": "mine", "inputs": inputs, "outputs": outputs, "parameters": parameters}
    return client.post(INFER, json=asked, headers=headers)


def tensors(answer: httpx.Response) -> dict[str, Any]:
    assert answer.status_code == 200, answer.text
    return {output["name"]: np.array(output["data"]).reshape(output["shape"]) for output in answer.json()["outputs"]}


def said(answer: httpx.Response, status: int) -> str:
    """The text of an error, which is all that there is in it."""
    assert (answer.status_code, list(answer.json())) == (status, ["error"]), answer.text
    assert answer.headers["x-request-id"]
    text: str = answer.json()["error"]
    return text


class TestDescription:
    def test_of_the_server_and_of_the_model(self, client: Client, bundle: ModelBundle) -> None:
        server, model = client.get("/v2").json(), client.get("/v2/models/walls").json()
        assert server["extensions"] == ["binary_tensor_data", "parameters"]
        assert {tensor["name"]: tensor["shape"] for tensor in model["inputs"]} == {"image": [-1], "pixels": [-1, 3, 224, 224]}
        assert [tensor["name"] for tensor in model["outputs"]] == list(OUTPUTS)
        assert json.loads(model["parameters"]["classes"]) == list(bundle.labels)
        assert client.get(f"/v2/models/walls/versions/{model['versions'][0]}").json() == model
        assert client.get("/v2/models/walls/ready").json() == {"name": "walls", "ready": True}

    @pytest.mark.parametrize("path", ["/v2/models/other", "/v2/models/walls/versions/1", "/v2/models/other/ready", "/v2/nowhere"])
    def test_there_is_one_model_in_one_version(self, client: Client, path: str) -> None:
        assert "walls" in said(client.get(path), 404) or path == "/v2/nowhere"

    def test_health_is_open_and_nothing_else(self, app: Any) -> None:
        closed = Client(app)
        assert closed.get("/v2/health/live").json() == {"live": True}
        assert closed.get("/v2/health/ready").json() == {"ready": True}
        for path in ("/v2", "/v2/models/walls", "/v2/models/walls/ready", "/v2/x"):
            assert "a key is needed" in said(closed.get(path), 401)
        assert "a key is needed" in said(closed.post(INFER, content=b"{}"), 401)


class TestAnswers:
    @pytest.mark.parametrize("options", [{}, {"shots": 300, "seed": 5}, {"backend": "aer", "shots": 200, "seed": 1}])
    def test_they_are_the_librarys(self, client: Client, bundle: ModelBundle, options: dict[str, Any]) -> None:
        answer = infer(client, image_input(*PHOTOS), **options)
        found, about = tensors(answer), answer.json()["parameters"]
        chosen = {"backend": "statevector", **options}
        with HybridClassifier(bundle, get_backend(chosen.pop("backend"), **chosen), threads=1) as classifier:
            batch = classifier.run(classifier.preprocess(PHOTOS))
        assert answer.json()["id"] == "mine"
        assert found["labels"].tolist() == [p.label for p in batch.predictions()]
        np.testing.assert_allclose(found["probabilities"], batch.probabilities, atol=1e-12)
        np.testing.assert_allclose(found["logits"], batch.logits, atol=1e-12)
        np.testing.assert_allclose(found["expvals"], batch.expvals, atol=1e-12)
        assert ("expval_stds" in found) == ("intervals" in found) == (about.get("shots") is not None) == bool(options)
        if options:
            np.testing.assert_allclose(found["expval_stds"], batch.expval_stds, atol=1e-12)
            np.testing.assert_allclose(found["intervals"], [p.interval for p in batch.predictions()], atol=1e-12)
        assert about["backend_used"] == options.get("backend", "statevector")

    @pytest.mark.parametrize("nested", [True, False])
    def test_pixels_are_what_preprocessing_makes_of_an_image(self, client: Client, bundle: ModelBundle, nested: bool) -> None:
        with HybridClassifier(bundle, threads=1) as classifier:
            pixels = classifier.preprocess(PHOTOS[:1]).pixels
        assert pixels is not None
        values = pixels if nested else pixels.ravel()
        sent = {"name": "pixels", "datatype": "FP32", "shape": list(pixels.shape), "data": values.round(9).tolist()}
        ours, theirs = tensors(infer(client, sent)), tensors(infer(client, image_input(PHOTOS[0])))
        np.testing.assert_allclose(ours["expvals"], theirs["expvals"], atol=1e-6)

    def test_only_the_outputs_asked_for_in_their_order(self, client: Client) -> None:
        answer = infer(client, image_input(PHOTOS[0]), outputs=[{"name": "expvals"}, {"name": "labels"}])
        assert [output["name"] for output in answer.json()["outputs"]] == ["expvals", "labels"]

    def test_each_output_in_the_form_asked_for(self, client: Client) -> None:
        wanted = [
            {"name": "labels", "parameters": {"binary_data": True}},
            {"name": "logits"},
            {"name": "expvals", "parameters": {"binary_data": True}},
        ]
        answer = infer(client, image_input(*PHOTOS), outputs=wanted)
        length = int(answer.headers["inference-header-content-length"])
        head, rest = json.loads(answer.content[:length]), answer.content[length:]
        sizes = [output.get("parameters", {}).get("binary_data_size") for output in head["outputs"]]
        assert sizes[1] is None
        assert sizes[0] + sizes[2] == len(rest)
        (first,) = struct.unpack("<I", rest[:4])
        labels = tensors(infer(client, image_input(*PHOTOS), outputs=[{"name": "labels"}]))["labels"]
        assert rest[4 : 4 + first].decode() == labels[0]
        expvals = tensors(infer(client, image_input(*PHOTOS)))["expvals"]
        assert np.frombuffer(rest[sizes[0] :], "<f8").reshape(3, 4).tolist() == expvals.tolist()


GOOD = image_input(PHOTOS[0])
PIXELS = {"name": "pixels", "datatype": "FP32", "shape": [1, 3, 224, 224]}


class TestRefusals:
    @pytest.mark.parametrize(
        ("inputs", "extra", "status", "words"),
        [
            ([], {}, 422, "inputs"),
            ([GOOD, GOOD], {}, 422, "must be one tensor"),
            ([{**GOOD, "name": "x"}], {}, 422, "must be image or pixels"),
            ([{**GOOD, "datatype": "FP32"}], {}, 422, "must be BYTES of the shape"),
            ([{**GOOD, "shape": [1, 1]}], {}, 422, "must be BYTES of the shape"),
            ([{**GOOD, "shape": [2]}], {}, 422, "list of 2 texts"),
            ([{**GOOD, "data": [5]}], {}, 422, "list of 1 texts"),
            ([{**GOOD, "data": ["é"]}], {}, 422, "base64"),
            ([{**GOOD, "data": None}], {}, 422, "either data or the parameter"),
            ([{**GOOD, "parameters": {"binary_data_size": 3}}], {}, 422, "either data or the parameter"),
            ([{**GOOD, "data": None, "parameters": {"binary_data_size": True}}], {}, 422, "whole number of bytes"),
            ([image_input(b"text")], {}, 415, "image 0"),
            ([image_input(PHOTOS[0], PHOTOS[1][:200])], {}, 422, "image 1"),
            ([image_input(*[PHOTOS[0]] * 5)], {}, 413, "more than 4 images"),
            ([image_input(bytes(100_001))], {}, 413, "100,000 bytes"),
            ([{**PIXELS, "data": [0.0] * 7}], {}, 422, "must be 150,528 numbers"),
            ([{**PIXELS, "data": ["0"] * 150_528}], {}, 422, "must be 150,528 numbers"),
            ([{**PIXELS, "data": [[1.0], [2.0, 3.0]]}], {}, 422, "must be numbers"),
            ([{**PIXELS, "data": [128.0] * 150_528}], {}, 422, "must be normalised"),
            ([{**PIXELS, "shape": [1, 3, 32, 32]}], {}, 422, "must be FP32 of the shape"),
            ([{**PIXELS, "shape": [0, 3, 224, 224], "data": []}], {}, 422, "B ≥ 1"),
            ([GOOD], {"outputs": [{"name": "magic"}]}, 422, "different ones of"),
            ([GOOD], {"outputs": [{"name": "labels"}] * 2}, 422, "different ones of"),
            ([GOOD], {"outputs": [{"name": "labels", "parameters": {"classification": 2}}]}, 422, "unknown parameter 'classification'"),
            ([GOOD], {"outputs": [{"name": "expval_stds"}]}, 422, "ask for shots"),
            ([GOOD], {"shots": 0}, 422, "'shots'"),
            ([GOOD], {"shots": True}, 422, "'shots'"),
            ([GOOD], {"shots": 10.5}, 422, "'shots'"),
            ([GOOD], {"shots": 1001}, 403, "at most 1,000 shots"),
            ([GOOD], {"backend": "magic"}, 422, "unknown backend"),
            ([GOOD], {"backend": "ibm:ibm_fez"}, 403, "not allowed here"),
            ([GOOD], {"explain": True}, 422, "'parameters.explain'"),
            ([GOOD], {"seed": [1]}, 422, "parameters.seed"),
            ([{**GOOD, "more": 1}], {}, 422, "inputs.0.more"),
        ],
    )
    def test_what_is_wrong_is_said(
        self, client: Client, inputs: list[dict[str, Any]], extra: dict[str, Any], status: int, words: str
    ) -> None:
        assert words in said(infer(client, *inputs, **extra), status)

    @pytest.mark.parametrize(
        ("content", "headers", "status", "words"),
        [
            (b"{", {}, 400, "not JSON"),
            (b"[" * 100_000, {}, 400, "not JSON"),
            (b'{"inputs": NaN}', {}, 422, "'inputs'"),
            (b"\xff", {}, 400, "not JSON"),
            (b"[]", {}, 422, "body"),
            (b" " * (4 * 2**20), {"content-encoding": "gzip"}, 415, "compressed"),
            (b"{}", {"content-type": "text/plain"}, 415, "application/json"),
            (b"{}", {"content-type": "application/octet-stream"}, 400, "inference-header-content-length"),
            (b"{}", {"inference-header-content-length": "-1"}, 400, "number of bytes"),
            (b"{}", {"inference-header-content-length": "99999999999"}, 413, "JSON has more"),
            (b"{}", {"inference-header-content-length": "3"}, 400, "ends 1 bytes before"),
            (b" " * 6_000_000, {}, 413, "more bytes than"),
        ],
    )
    def test_what_is_not_the_protocol(self, client: Client, content: bytes, headers: dict[str, str], status: int, words: str) -> None:
        assert words in said(client.post(INFER, content=content, headers=headers), status)

    @pytest.mark.parametrize(
        ("declared", "sent", "status", "words"),
        [
            (20, struct.pack("<I", 16) + b"abcd", 400, "ends 12 bytes before"),
            (20, struct.pack("<I", 4) + b"abcd", 400, "do not fill"),
            (8, struct.pack("<I", 5) + b"abcde", 400, "do not fill"),
            (12, struct.pack("<I", len(PHOTOS[0])) + PHOTOS[0], 400, "do not fill"),
            (4 + len(PHOTOS[0]), struct.pack("<I", len(PHOTOS[0])) + PHOTOS[0] + b"x", 400, "goes on after"),
            (2**32, struct.pack("<I", 2**32 - 9), 413, "100,000 bytes"),
        ],
    )
    def test_bytes_that_do_not_fit_their_lengths(self, client: Client, declared: int, sent: bytes, status: int, words: str) -> None:
        tensor = {"name": "image", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": declared}}
        answer = self.send(client, tensor, sent)
        assert words in said(answer, status)

    @pytest.mark.parametrize(
        "values", [np.full((1, 3, 224, 224), np.nan, "<f4"), np.full((1, 3, 224, 224), np.inf, "<f4"), np.zeros(3, "<f4")]
    )
    def test_pixels_that_are_none(self, client: Client, values: np.ndarray) -> None:
        answer = self.send(client, {**PIXELS, "parameters": {"binary_data_size": values.nbytes}}, values.tobytes())
        assert "'pixels'" in said(answer, 422)

    def send(self, client: Client, tensor: dict[str, Any], data: bytes) -> httpx.Response:
        head = json.dumps({"inputs": [tensor]}).encode()
        return client.post(INFER, content=head + data, headers={"inference-header-content-length": str(len(head))})


def test_a_paid_backend_needs_a_job(bundle: ModelBundle, tmp_path: Any) -> None:
    with edit_keys(tmp_path / "keys.json") as keys:
        token, key = new_key("payer", Grants(qpu_seconds_per_day=100, jobs_per_day=2))
        keys.append(key)
    settings = ServiceSettings(
        bundle=bundle.path, threads=1, decoders=1, keys=tmp_path / "keys.json", jobs=tmp_path / "jobs.db", backends=("ibm:ibm_fez",)
    )
    predictor = Predictor(settings)
    try:
        client = Client(create_app(predictor, open_ring(settings)), token)
        asked = {"inputs": [image_input(PHOTOS[0])]}
        assert "POST /v1/jobs" in said(client.post("/v2/models/hqtl/infer", json=asked), 422)
    finally:
        predictor.close()


def test_numbers_and_texts_survive_the_binary_form() -> None:
    numbers = np.arange(6, dtype=np.float64).reshape(2, 3)
    tensors = [
        (OutputTensor("a", "FP64", numbers), True),
        (OutputTensor("b", "BYTES", ["Riß", ""]), True),
        (OutputTensor("c", "FP32", numbers), False),
    ]
    body, length = render({}, tensors)
    assert length is not None
    assert body[length:] == numbers.tobytes() + b"\x04\0\0\0" + "Riß".encode() + b"\0\0\0\0"
    assert json.loads(body[:length])["outputs"][2] == {"name": "c", "datatype": "FP32", "shape": [2, 3], "data": [0, 1, 2, 3, 4, 5]}
    head = InputHead(name="a", shape=[2, 3], datatype="FP32")
    assert read_numbers(head, numbers.astype("<f4").tobytes()).tolist() == numbers.tolist()
