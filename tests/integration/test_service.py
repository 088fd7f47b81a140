"""The routes with a real bundle and real backends: answers are the library's, and whatever comes in is answered for."""

from __future__ import annotations

import asyncio
import dataclasses
import io
import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import httpx
import numpy as np
import pytest
from onnx import TensorProto, helper
from PIL import Image

import serving.predictor as predictor_module
from hqtl_common import HeadSpec, HybridClassifier, ModelBundle, backend_capabilities, get_backend
from hqtl_common.errors import BackendUnavailableError, BundleFormatError, BundleIntegrityError, ConfigError
from serving.app import create_app
from serving.errors import OverloadedError
from serving.forms import PredictOptions
from serving.predictor import Predictor
from serving.settings import ServiceSettings
from tests.asgi import Client
from tests.tiny import FEATURES, onnx_bytes, tiny_bundle

File = tuple[str, bytes]


def photo(seed: int, kind: str = "PNG", size: tuple[int, int] = (60, 40)) -> bytes:
    """A picture with large patches, so that answers differ between seeds."""
    values = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(values).resize(size).save(buffer, kind)
    return buffer.getvalue()


PHOTOS: list[File] = [(f"wall {k}.png", photo(k)) for k in range(5)]


@pytest.fixture(scope="module")
def predictor(bundle: ModelBundle) -> Iterator[Predictor]:
    predictor = Predictor(ServiceSettings(bundle=bundle.path, threads=1, max_images=8, max_pixels=1_000_000))
    yield predictor
    predictor.close()


@pytest.fixture(scope="module")
def client(predictor: Predictor) -> Client:
    return Client(create_app(predictor, None))


@pytest.fixture
def make_client(bundle: ModelBundle) -> Iterator[Callable[..., Client]]:
    made: list[Predictor] = []

    def make(path: Path = bundle.path, **settings: Any) -> Client:
        made.append(Predictor(ServiceSettings(bundle=path, threads=1, **settings)))
        return Client(create_app(made[-1], None))

    yield make
    for predictor in made:
        predictor.close()


def body(files: list[File], **fields: Any) -> dict[str, Any]:
    return {
        "files": [("image", (name, data, "application/x-wrong")) for name, data in files],
        "data": {k: str(v) for k, v in fields.items()},
    }


def predict(client: Client, files: list[File], **fields: Any) -> dict[str, Any]:
    answer = client.post("/v1/predict", **body(files, **fields))
    assert answer.status_code == 200, answer.text
    result: dict[str, Any] = answer.json()
    return result


def library(bundle: ModelBundle, files: list[File], backend: str, threshold: float | None = None, **options: Any) -> list[dict[str, Any]]:
    """What the Python interface answers, through JSON."""
    with HybridClassifier(bundle, get_backend(backend, **options), threshold=threshold, threads=1) as classifier:
        predictions = classifier.predict_many([data for _, data in files])
    return [{"filename": name, **json.loads(json.dumps(p.to_dict()))} for (name, _), p in zip(files, predictions, strict=True)]


RUNS: list[tuple[str, dict[str, int]]] = [
    ("statevector", {}),
    ("statevector", {"shots": 300, "seed": 4}),
    ("pennylane:default.qubit", {}),
    ("pennylane:default.qubit", {"shots": 200, "seed": 0}),
    ("aer", {"shots": 500, "seed": 11}),
    ("aer", {"seed": 2**63 - 1}),
]


class TestAnswers:
    @pytest.mark.parametrize(("backend", "options"), RUNS)
    def test_they_are_those_of_the_library(self, client: Client, bundle: ModelBundle, backend: str, options: dict[str, int]) -> None:
        answer = predict(client, PHOTOS, backend=backend, **options)
        assert answer["predictions"] == library(bundle, PHOTOS, backend, **options)
        assert len({str(p["probabilities"]) for p in answer["predictions"]}) > 1
        execution = answer["execution"]
        assert execution["backend_requested"] == execution["backend_used"] == backend
        assert execution["shots"] == options.get("shots", 1024 if backend == "aer" else None)
        assert execution["seed"] == options.get("seed")
        assert execution["num_rows"] == len(PHOTOS)
        assert execution["reason"] is None

    def test_the_form_of_an_answer(self, client: Client) -> None:
        answer = predict(client, PHOTOS[:1], shots=100)
        (one,) = answer["predictions"]
        assert answer.keys() == {"predictions", "execution", "runtime"}
        assert answer["runtime"] == {"precision": "fp32", "providers": ["cpu"]}
        names = ["filename", "label", "probability", "probabilities", "interval", "angles", "expvals", "expval_stds", "logits"]
        names += ["calibration", "familiarity", "review"]
        assert list(one) == names
        assert one["probability"] == one["probabilities"][one["label"]]
        assert list(one["probabilities"]) == ["crack", "no_crack"]
        assert one["interval"][0] < one["probability"] < one["interval"][1]
        assert [len(one[name]) for name in names[5:9]] == [4, 4, 4, 2]
        assert predict(client, PHOTOS[:1])["predictions"][0]["expval_stds"] is None

    def test_statevector_is_the_default(self, client: Client) -> None:
        assert predict(client, PHOTOS[:1])["execution"]["backend_used"] == "statevector"

    def test_a_seed_repeats_an_answer_and_a_fresh_one_is_recorded(self, client: Client) -> None:
        def run(**fields: Any) -> tuple[Any, Any]:
            answer = predict(client, PHOTOS, shots=50, **fields)
            return answer["predictions"], answer["execution"]["seed"]

        assert run(seed=1) == run(seed=1)
        assert run(seed=1)[0] != run(seed=2)[0]
        first, fresh = run()
        assert run(seed=fresh)[0] == first
        assert run()[1] != fresh

    def test_the_threshold_decides_the_label_alone(self, client: Client) -> None:
        labels = {}
        for threshold in (0.001, 0.999):
            predictions = predict(client, PHOTOS, threshold=threshold)["predictions"]
            labels[threshold] = {p["label"] for p in predictions}
            assert [p["probabilities"] for p in predictions] == [p["probabilities"] for p in predict(client, PHOTOS)["predictions"]]
        assert labels == {0.001: {"crack"}, 0.999: {"no_crack"}}

    def test_an_explanation_holds_what_stands_between(self, client: Client, bundle: ModelBundle) -> None:
        answer = predict(client, PHOTOS[:2], explain="true")
        explanation = answer.pop("explanation")
        with HybridClassifier(bundle, threads=1) as classifier:
            features = classifier.featurize(classifier.preprocess([data for _, data in PHOTOS[:2]])).features
        np.testing.assert_allclose(explanation["features"], features, rtol=1e-6)
        assert explanation["weights"] == bundle.weights.tolist()
        assert explanation["circuit"].startswith("OPENQASM 3")
        assert answer == {**predict(client, PHOTOS[:2]), "execution": answer["execution"]}

    def test_only_doubtful_images_get_more_shots(self, client: Client) -> None:
        used = [p["shots_used"] for p in predict(client, PHOTOS, shots=100, max_shots=1600, seed=1)["predictions"]]
        assert min(used) >= 100
        assert max(used) <= 1600
        answer = client.post("/v1/predict", **body(PHOTOS, max_shots=1600))
        assert (answer.status_code, answer.json()["error"]["code"]) == (422, "capability")

    @pytest.mark.parametrize(
        ("mitigation", "recorded"), [("readout", {"mitigation": "readout"}), ("none", {"mitigation": None}), ("zne", {"zne": [1, 3]})]
    )
    def test_mitigation_is_what_the_backend_records(
        self, make_client: Callable[..., Client], mitigation: str, recorded: dict[str, Any]
    ) -> None:
        answer = predict(make_client(backends=("fake_lima",)), PHOTOS[:1], mitigation=mitigation, shots=100, seed=1)
        options = json.loads(json.dumps(answer["execution"]["options"]))
        assert recorded.items() <= {"mitigation": None, **options}.items()

    @pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "BMP", "WEBP"])
    def test_formats_are_told_by_content(self, client: Client, bundle: ModelBundle, kind: str) -> None:
        files = [("no.extension", photo(3, kind))]
        assert predict(client, files)["predictions"] == library(bundle, files, "statevector")

    def test_names_of_files_come_back(self, client: Client) -> None:
        names = ["Riß 1.png", "../a/b.png", "x" * 200]
        assert [p["filename"] for p in predict(client, [(name, photo(1)) for name in names])["predictions"]] == names

    def test_more_than_two_classes(self, make_client: Callable[..., Client], tmp_path: Path) -> None:
        labels = ("crack", "joint", "sound")
        bundle = tiny_bundle(tmp_path / "three", spec=HeadSpec(num_qubits=5, num_layers=2), labels=labels)
        client = make_client(bundle.path)
        assert predict(client, PHOTOS)["predictions"] == library(bundle, PHOTOS, "statevector")
        answer = client.post("/v1/predict", **body(PHOTOS, threshold=0.5))
        assert (answer.status_code, answer.json()["error"]["code"]) == (422, "config")
        assert "two classes" in answer.json()["error"]["message"]


PNG = photo(0)

REFUSALS: list[tuple[list[File], dict[str, Any], int, str, str]] = [
    ([("a.png", b"hello")], {}, 415, "unknown_image_format", "image 0 ('a.png'): not a PNG"),
    ([("a.png", photo(0, "GIF"))], {}, 415, "unknown_image_format", "not a PNG"),
    ([("a.png", b"")], {}, 422, "image_decode", "is empty"),
    ([("a.png", PNG[:70])], {}, 422, "image_decode", "damaged"),
    ([("a.jpg", photo(0, "JPEG")[:200])], {}, 422, "image_decode", "damaged"),
    ([("a.png", PNG), ("b.png", b"text"), ("c.png", b"")], {}, 415, "unknown_image_format", "image 1 ('b.png')"),
    ([("a.png", photo(0, size=(1001, 1000)))], {}, 413, "too_large", "1001 × 1000"),
    ([("a.png", PNG)] * 9, {}, 413, "too_large", "more than 8 images"),
    ([("a.png", b"x" * (16 * 2**20 + 1))], {}, 413, "too_large", "16,777,216 bytes"),
    ([], {"seed": 1}, 415, "media_type", "multipart"),
    ([("a.png", PNG)], {"backend": "statevectr"}, 422, "unknown_backend", "offers statevector, pennylane:default.qubit, aer"),
    ([("a.png", PNG)], {"backend": "pennylane:lightning.qubit"}, 403, "forbidden_backend", "offers statevector, "),
    ([("a.png", PNG)], {"backend": "pennylane:"}, 422, "unknown_backend", "offers"),
    ([("a.png", PNG)], {"backend": "statevector\n"}, 422, "unknown_backend", r"'statevector\n'"),
    ([("a.png", PNG)], {"backend": ""}, 422, "field", "'backend': must be the name"),
    ([("a.png", PNG)], {"shots": 0}, 422, "field", "'shots': must be"),
    ([("a.png", PNG)], {"shots": "many"}, 422, "field", "got 'many'"),
    ([("a.png", PNG)], {"shots": 1_000_001}, 422, "field", "at most 1,000,000"),
    ([("a.png", PNG)], {"shots": 10**18}, 422, "field", "at most 1,000,000"),
    ([("a.png", PNG)], {"seed": -1}, 422, "field", "'seed': must be"),
    ([("a.png", PNG)], {"seed": 2**63}, 422, "field", "'seed': must be"),
    ([("a.png", PNG)], {"threshold": 1}, 422, "field", "'threshold': must be"),
    ([("a.png", PNG)], {"threshold": "nan"}, 422, "field", "got 'nan'"),
    ([("a.png", PNG)], {"max_shots": 1_000_001}, 422, "field", "'max_shots': must be at most 1,000,000"),
    ([("a.png", PNG)], {"mitigation": "hope"}, 422, "field", "one of none, readout, zne and readout+zne"),
    ([("a.png", PNG)], {"mitigation": "readout"}, 422, "config", "no option mitigation"),
    ([("a.png", PNG)], {"deadline_s": 51}, 422, "field", "'deadline_s': must be at most 50"),
    ([("a.png", PNG)], {"deadline_s": 0}, 422, "field", "'deadline_s': must be"),
    ([("a.png", PNG)], {"explain": "perhaps"}, 422, "field", "true or false"),
    ([("a.png", PNG)], {"url": "http://127.0.0.1/a.png"}, 422, "field", "'url': is unknown; known are image"),
]


class TestRefusals:
    @pytest.mark.parametrize(("files", "fields", "status", "code", "message"), REFUSALS)
    def test_requests(self, client: Client, files: list[File], fields: dict[str, Any], status: int, code: str, message: str) -> None:
        answer = client.post("/v1/predict", **body(files, **fields))
        error = answer.json()["error"]
        assert (answer.status_code, error["code"]) == (status, code)
        assert message in error["message"]
        assert error["request_id"] == answer.headers["x-request-id"]

    def test_the_bad_image_is_named(self, client: Client) -> None:
        answer = client.post("/v1/predict", **body([("a", PNG), ("Riß.png", PNG[:60])]))
        assert answer.json()["error"]["detail"] == {"index": 1, "filename": "Riß.png"}

    @pytest.mark.parametrize(
        ("options", "status"),
        [
            ({}, 415),
            ({"json": {"image": "http://127.0.0.1/a.png"}}, 415),
            ({"content": PNG, "headers": {"content-type": "image/png"}}, 415),
            ({"data": {"image": "abc"}}, 415),
            ({"files": {"image": (None, "http://127.0.0.1/a.png")}}, 422),
            ({"files": {"image": (None, b'{"a": 1}', "application/json")}}, 422),
            ({"files": {"seed": (None, "1")}}, 422),
            ({"content": b"x", "headers": {"content-type": "multipart/form-data; boundary=b"}}, 400),
            ({"content": b"", "headers": {"content-type": "multipart/form-data; boundary=b"}}, 400),
        ],
    )
    def test_bodies(self, client: Client, options: dict[str, Any], status: int) -> None:
        answer = client.post("/v1/predict", **options)
        assert (answer.status_code, list(answer.json())) == (status, ["error"])

    @pytest.mark.parametrize(
        ("method", "path", "status"),
        [
            ("GET", "/v1/predict", 405),
            ("PUT", "/v1/model", 405),
            ("GET", "/v1/predict/", 404),
            ("GET", "/docs", 404),
            ("GET", "/%2e%2e/x", 404),
        ],
    )
    def test_routes(self, client: Client, method: str, path: str, status: int) -> None:
        answer = client.request(method, path)
        assert (answer.status_code, list(answer.json())) == (status, ["error"])

    def test_total_shots(self, make_client: Callable[..., Client]) -> None:
        client = make_client(max_total_shots=100)
        assert predict(client, PHOTOS[:2], shots=50)
        answer = client.post("/v1/predict", **body(PHOTOS[:3], shots=50))
        assert (answer.status_code, "50 × 3" in answer.text) == (422, True)

    def test_body_limit(self, make_client: Callable[..., Client]) -> None:
        answer = make_client(max_body_bytes=1000).post("/v1/predict", **body([("a", b"x" * 1000)]))
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too_large")

    def test_a_missing_package_is_a_503(self, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
        def missing(*_: object, **__: object) -> None:
            raise BackendUnavailableError("needs a package")

        monkeypatch.setattr(predictor_module, "get_backend", missing)
        answer = client.post("/v1/predict", **body(PHOTOS, backend="aer"))
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "backend_unavailable")


class TestDescriptions:
    def test_model(self, client: Client, bundle: ModelBundle) -> None:
        manifest = json.loads((bundle.path / "manifest.json").read_text())
        answer = client.get("/v1/model").json()
        limits, runtime = answer.pop("limits"), answer.pop("runtime")
        assert answer == manifest
        assert runtime == {"precision": "fp32", "providers": ["cpu"]}
        assert 'hqtl_backbone_info{precision="fp32",providers="cpu"} 1.0' in client.get("/metrics").text
        assert (limits["max_images"], limits["max_bytes"], limits["deadline_s"]) == (8, 16 * 2**20, 50)

    def test_backends(self, client: Client) -> None:
        answer = client.get("/v1/backends").json()
        assert answer["default"] == "statevector"
        assert [entry["name"] for entry in answer["backends"]] == ["statevector", "pennylane:default.qubit", "aer"]
        for entry in answer["backends"]:
            expected = json.loads(json.dumps(dataclasses.asdict(backend_capabilities(entry["name"]))))
            here = {"available": True, "allowed": True, "price_class": "free", "calibration": None, "calibration_age_days": None}
            here |= dict.fromkeys(("queue", "operational", "unknown_because", "checked"))  # those of machines
            assert entry == {"name": entry["name"], **here, **expected}
        assert answer["limits"]["max_images"] == 8
        assert answer["key"]["id"] == "local"

    def test_the_age_of_the_noise_data_is_known_once_a_backend_has_run(self, make_client: Callable[..., Client]) -> None:
        client = make_client(backends=("fake_lima",))
        predict(client, PHOTOS[:1], backend="fake_lima")
        (entry,) = client.get("/v1/backends").json()["backends"]
        assert entry["calibration"].startswith("2021-03-15")
        assert entry["calibration_age_days"] > 1000

    def test_a_backend_that_cannot_be_used_spoils_no_other(self, make_client: Callable[..., Client]) -> None:
        client = make_client(backends=("aer", "pennylane:qiskit.remote"))
        answer = client.get("/v1/backends").json()
        assert (answer["default"], [entry["available"] for entry in answer["backends"]]) == ("aer", [True, True])
        assert predict(client, PHOTOS[:1])["execution"]["backend_used"] == "aer"
        assert client.post("/v1/predict", **body(PHOTOS, backend="pennylane:qiskit.remote")).status_code == 503
        assert client.post("/v1/predict", **body(PHOTOS, backend="statevector")).status_code == 403

    def test_index_and_openapi(self, client: Client) -> None:
        paths = client.get("/v1/openapi.json").json()["paths"]
        fields = paths["/v1/predict"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]["properties"]
        assert list(fields) == ["image", *(name for name in PredictOptions.model_fields if name != "webhook")]  # nobody may be told here
        routes = {f"{method.upper()} {path}" for path, methods in paths.items() for method in methods}
        assert routes - {"GET /"} <= set(client.get("/").json()["routes"])


async def at_once(client: Client, *requests: dict[str, Any]) -> list[httpx.Response]:
    async with client.connect() as connection:
        return await asyncio.gather(*(connection.post("/v1/predict", **request) for request in requests))


class TestTogether:
    def test_neighbours_do_not_disturb_each_other(self, client: Client, bundle: ModelBundle) -> None:
        runs = [(PHOTOS[k % 5 : k % 5 + 1 + k % 3] or PHOTOS[:1], *RUNS[k % len(RUNS)]) for k in range(30)]
        bad = [body([("a.png", PNG), ("bad.png", b"no")]), body(PHOTOS, backend="x"), body(PHOTOS, seed="x")]
        requests = [body(files, backend=backend, **options) for files, backend, options in runs]
        responses = asyncio.run(at_once(client, *[r for k, good in enumerate(requests) for r in (good, bad[k % 3])][:32]))
        for (files, backend, options), response in zip(runs, responses[::2], strict=False):
            assert response.json()["predictions"] == library(bundle, files, backend, **options)
        assert {response.status_code for response in responses[1::2]} == {415, 422}

    def test_a_slow_backend_does_not_hold_up_a_fast_one(self, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
        gate, original = threading.Event(), get_backend

        def slow(name: str, **options: Any) -> Any:
            assert name != "aer" or gate.wait(300)
            return original(name, **options)

        monkeypatch.setattr(predictor_module, "get_backend", slow)

        async def main() -> None:
            held = asyncio.create_task(at_once(client, *[body(PHOTOS, backend="aer")] * 3))
            (fast,) = await at_once(client, body(PHOTOS))
            assert fast.status_code == 200
            assert not held.done()
            gate.set()
            assert [response.status_code for response in await held] == [200] * 3

        asyncio.run(main())

    def test_overload_is_a_429_and_passes(self, make_client: Callable[..., Client], monkeypatch: pytest.MonkeyPatch) -> None:
        client, gate, original = make_client(max_requests=2), threading.Event(), get_backend
        monkeypatch.setattr(predictor_module, "get_backend", lambda *a, **o: gate.wait(300) and original(*a, **o))

        async def main() -> None:
            held = asyncio.create_task(at_once(client, *[body(PHOTOS)] * 2))
            while client.app.state.desk._in_work < 2:
                await asyncio.sleep(0.01)
            (third,) = await at_once(client, body(PHOTOS))
            assert (third.status_code, third.json()["error"]["code"], third.headers["retry-after"]) == (429, "overloaded", "1")
            gate.set()
            assert [response.status_code for response in await held] == [200] * 2

        asyncio.run(main())
        assert predict(client, PHOTOS)

    def test_the_deadline_is_a_504_and_frees_the_place(self, make_client: Callable[..., Client], monkeypatch: pytest.MonkeyPatch) -> None:
        client, gate, original = make_client(max_requests=1, deadline_s=0.5), threading.Event(), get_backend
        monkeypatch.setattr(predictor_module, "get_backend", lambda *a, **o: gate.wait(300) and original(*a, **o))
        for _ in range(2):
            answer = client.post("/v1/predict", **body(PHOTOS))
            assert (answer.status_code, answer.json()["error"]["code"]) == (504, "deadline")
        gate.set()
        while (answer := client.post("/v1/predict", **body(PHOTOS))).status_code != 200:
            assert answer.status_code == 504, "half a second is not enough on a busy machine, but the place is free"

    def test_a_client_may_ask_for_an_earlier_deadline(self, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
        gate, original = threading.Event(), get_backend
        monkeypatch.setattr(predictor_module, "get_backend", lambda *a, **o: gate.wait(300) and original(*a, **o))
        answer = client.post("/v1/predict", **body(PHOTOS, deadline_s=0.3))
        gate.set()
        assert (answer.status_code, answer.json()["error"]["code"]) == (504, "deadline")

    def test_who_closes_takes_nothing_more(self, make_client: Callable[..., Client]) -> None:
        client = make_client()
        client.app.state.desk.close()
        for answer in (client.get("/readyz"), client.post("/v1/predict", **body(PHOTOS))):
            assert (answer.status_code, answer.json()["error"]["code"], answer.headers["retry-after"]) == (503, "not_ready", "1")
        assert client.get("/livez").status_code == 200

    def test_a_slow_client_is_a_408(self, make_client: Callable[..., Client]) -> None:
        async def trickle() -> AsyncIterator[bytes]:
            yield b"--b\r\n"
            await asyncio.sleep(60)

        headers = {"content-type": "multipart/form-data; boundary=b"}
        answer = make_client(deadline_s=0.3).post("/v1/predict", content=trickle(), headers=headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (408, "slow_client")

    def test_a_client_whose_time_is_over_has_no_place_to_give(self, make_client: Callable[..., Client]) -> None:
        desk = make_client().app.state.desk

        async def ask() -> None:
            with suppress(TimeoutError):
                async with asyncio.timeout(0) as over:
                    await asyncio.sleep(60)
            desk._arriving[Mock(waiting=True, waited=60.0)] = over
            desk._make_room()

        with pytest.raises(OverloadedError):
            asyncio.run(ask())


class TestStart:
    def test_a_changed_bundle_is_refused(self, tmp_path: Path) -> None:
        bundle = tiny_bundle(tmp_path / "bundle")
        (bundle.path / "MODEL_CARD.md").write_text("other")
        with pytest.raises(BundleIntegrityError, match=r"MODEL_CARD\.md"):
            Predictor(ServiceSettings(bundle=bundle.path))

    def test_a_bundle_that_cannot_classify_is_refused(self, tmp_path: Path, bundle: ModelBundle) -> None:
        files = {name: bundle.read(name) for name in ("backbone.onnx", "post_net.onnx", "MODEL_CARD.md")}
        weights = {"w": np.full((FEATURES, 4), np.nan, np.float32)}
        nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
        files["pre_net.onnx"] = onnx_bytes(nodes, weights, [FEATURES], [4], TensorProto.FLOAT)
        wrong = ModelBundle.save(tmp_path / "wrong", bundle.manifest, bundle.weights, files)
        with pytest.raises(BundleFormatError, match="cannot classify an image"):
            Predictor(ServiceSettings(bundle=wrong.path))


class TestStartWithSettings:
    def test_backends_are_loaded_ahead_where_that_is_wanted(self, bundle: ModelBundle, monkeypatch: pytest.MonkeyPatch) -> None:
        loaded: list[str] = []
        monkeypatch.setattr(predictor_module, "import_backend", loaded.append)
        for preload, expected in (((), []), (("aer",), ["aer"])):
            Predictor(ServiceSettings(bundle=bundle.path, threads=1, decoders=1, preload=preload)).close()
            assert loaded == expected

    def test_a_provider_that_is_not_there_ends_the_start(self, bundle: ModelBundle) -> None:
        with pytest.raises(ConfigError, match=r"has no CUDAExecutionProvider .*onnxruntime-gpu"):
            Predictor(ServiceSettings(bundle=bundle.path, threads=1, decoders=1, providers=("cuda", "cpu")))


def test_answers_that_are_found_together_are_those_of_the_library(make_client: Callable[..., Client], bundle: ModelBundle) -> None:
    client = make_client(max_requests=64)

    async def all_at_once() -> list[httpx.Response]:
        asked = [(photo, {"backend": "statevector"}) for photo in PHOTOS * 3] + [(photo, {"shots": 50, "seed": 3}) for photo in PHOTOS]
        async with client.connect() as http:
            return await asyncio.gather(*(http.post("/v1/predict", **body([photo], **options)) for photo, options in asked))

    answers = [answer.json() for answer in asyncio.run(all_at_once())]
    exact, alone = library(bundle, PHOTOS, "statevector"), [library(bundle, [p], "statevector", shots=50, seed=3)[0] for p in PHOTOS]
    assert all(answer["execution"]["num_rows"] == 1 for answer in answers)
    for answer, expected in zip(answers, [*exact * 3, *alone], strict=True):
        (one,) = answer["predictions"]
        assert (one["filename"], one["label"]) == (expected["filename"], expected["label"])
        assert one["expvals"] == pytest.approx(expected["expvals"], abs=1e-6)
        assert one["logits"] == pytest.approx(expected["logits"], abs=1e-5)
