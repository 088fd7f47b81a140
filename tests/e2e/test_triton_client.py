"""The public client of Triton against ``bentoml serve``: answers are the library's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from hqtl_common import HybridClassifier, ModelBundle, get_backend
from tests.e2e.test_bentoml import Served, photo

triton = pytest.importorskip("tritonclient.http", reason="needs the package tritonclient[http]")

PHOTOS = [photo(k) for k in range(3)]


@pytest.fixture(scope="module")
def service(bundle: ModelBundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    served = Served(tmp_path_factory.mktemp("serve"), HQTL_BUNDLE=str(bundle.path), HQTL_MODEL_NAME="cracks")
    try:
        served.wait_ready()
        yield served
    finally:
        served.stop()


@pytest.fixture
def client(service: Served) -> Iterator[Any]:
    with triton.InferenceServerClient(f"127.0.0.1:{service.port}") as client:
        yield client


@pytest.fixture
def key(service: Served) -> dict[str, str]:
    return {"Authorization": f"Bearer {service.token}"}


def images(binary: bool = True) -> Any:
    tensor = triton.InferInput("image", [len(PHOTOS)], "BYTES")
    return tensor.set_data_from_numpy(np.array(PHOTOS, dtype=object), binary_data=binary)


def test_what_is_open_and_what_is_not(client: Any, key: dict[str, str]) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    with pytest.raises(triton.InferenceServerException, match="a key is needed"):
        client.get_server_metadata()
    assert "binary_tensor_data" in client.get_server_metadata(headers=key)["extensions"]
    (version,) = client.get_model_metadata("cracks", headers=key)["versions"]
    assert client.is_model_ready("cracks", version, headers=key)
    assert not client.is_model_ready("other", headers=key)


@pytest.mark.parametrize("options", [{}, {"shots": 500, "seed": 3}, {"backend": "aer", "shots": 500, "seed": 3}])
def test_answers_are_those_of_the_library(client: Any, key: dict[str, str], bundle: ModelBundle, options: dict[str, Any]) -> None:
    answer = client.infer("cracks", [images()], parameters=options, headers=key, request_id="7")
    chosen = {"backend": "statevector", **options}
    with HybridClassifier(bundle, get_backend(chosen.pop("backend"), **chosen)) as classifier:
        batch = classifier.run(classifier.preprocess(PHOTOS))
    assert answer.get_response()["id"] == "7"
    assert [label.decode() for label in answer.as_numpy("labels")] == [prediction.label for prediction in batch.predictions()]
    for name in ("probabilities", "logits", "expvals", "angles", *(("expval_stds",) if options else ())):
        np.testing.assert_allclose(answer.as_numpy(name), getattr(batch, name), atol=1e-9)


@pytest.mark.parametrize("binary", [True, False])
def test_pixels_in_both_forms(client: Any, key: dict[str, str], bundle: ModelBundle, binary: bool) -> None:
    with HybridClassifier(bundle) as classifier:
        pixels = classifier.preprocess(PHOTOS[:1]).pixels
        assert pixels is not None
        batch = classifier.run(classifier.preprocess(PHOTOS[:1]))
    tensor = triton.InferInput("pixels", list(pixels.shape), "FP32").set_data_from_numpy(pixels, binary_data=binary)
    wanted = [
        triton.InferRequestedOutput("probabilities", binary_data=binary),
        triton.InferRequestedOutput("labels", binary_data=not binary),
    ]
    answer = client.infer("cracks", [tensor], outputs=wanted, headers=key)
    np.testing.assert_allclose(answer.as_numpy("probabilities"), batch.probabilities, atol=1e-9)
    assert answer.as_numpy("expvals") is None


def test_an_error_is_a_text_that_the_client_understands(client: Any, key: dict[str, str]) -> None:
    with pytest.raises(triton.InferenceServerException, match="unknown backend 'magic'") as caught:
        client.infer("cracks", [images()], parameters={"backend": "magic"}, headers=key)
    assert caught.value.status() == "422"
    with pytest.raises(triton.InferenceServerException, match="must not be compressed"):
        client.infer("cracks", [images()], request_compression_algorithm="gzip", headers=key)
