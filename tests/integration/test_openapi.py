"""The OpenAPI document is true: schemathesis makes requests from it and holds every answer against it."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hqtl_common import ModelBundle
from serving.app import create_app, open_ring
from serving.auth import OPEN_PATHS
from serving.keys import Grants, edit_keys, new_key
from serving.predictor import Predictor
from serving.settings import ServiceSettings
from tests.asgi import Client
from tests.integration.test_service import body, photo

with warnings.catch_warnings():  # of the libraries behind it
    warnings.simplefilter("ignore")
    import schemathesis
    from schemathesis.checks import CHECKS, load_all_checks

load_all_checks()
IMAGES = [photo(k, kind) for k, kind in enumerate(("PNG", "JPEG", "BMP"))]
schemathesis.openapi.format("binary", st.sampled_from(IMAGES))  # no schema can say that bytes are a picture

# Too much is rejected as well, which schemathesis does not count by itself.
REJECTED = [400, 401, 403, 404, 405, 408, 413, 415, 422]
# Good data may still be in nobody's interest: see NOT_SAID.
ACCEPTED = ["2xx", "401", "403", "404", "409", "422", "429", "504"]
CHECKED = {"negative_data_rejection": {"expected-statuses": REJECTED}, "positive_data_acceptance": {"expected-statuses": ACCEPTED}}
CONFIG = schemathesis.Config.from_dict({"checks": CHECKED})
# Why what the document allows may be refused, by code of the error: what a schema of single values cannot say. That shots, the most
# shots and a mitigation fit each other and the backend (capability, config); that an Idempotency-Key was not used before (conflict);
# which key is good (unauthorized), which jobs there are (not_found).
NOT_SAID = {"capability", "config", "conflict", "not_found", "deadline", "unauthorized"}
EXCLUDED = {"not_a_server_error"}  # a millisecond is a legal deadline and not enough: 504, see below


@pytest.fixture(scope="module")
def token(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    path = tmp_path_factory.mktemp("keys") / "keys.json"
    token, key = new_key("tester", Grants())
    with edit_keys(path) as keys:
        keys.append(key)
    return path, token


@pytest.fixture(scope="module")
def app(bundle: ModelBundle, token: tuple[Path, str]) -> Iterator[Any]:
    limits = {"max_shots": 5000, "max_total_shots": 20_000, "max_images": 4}
    chosen = ServiceSettings(bundle=bundle.path, threads=1, decoders=1, keys=token[0], backends=("statevector", "aer"), **limits)
    predictor = Predictor(chosen)
    yield create_app(predictor, open_ring(chosen))
    predictor.close()


@pytest.fixture(scope="module")
def document(app: Any, token: tuple[Path, str]) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        document = schemathesis.openapi.from_asgi("/v1/openapi.json", app, config=CONFIG, headers={"Authorization": f"Bearer {token[1]}"})
        return document.exclude(path_regex="jobs|estimate|inspect")  # see test_jobs.py


def hold(document: Any, key: str, examples: int) -> Counter[tuple[str, int]]:
    """Let hypothesis make ``examples`` good and as many bad requests of every operation; what was answered how often."""
    seen: Counter[tuple[str, int]] = Counter()
    excluded = [function for function in CHECKS.get_all() if function.__name__ in EXCLUDED]
    for operation in (found.ok() for found in document.get_all_operations()):
        for mode in (schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE):
            if mode is schemathesis.GenerationMode.NEGATIVE and operation.method != "post":
                continue  # nothing can be wrong with a request that takes nothing

            @settings(max_examples=examples, suppress_health_check=list(HealthCheck), database=None)
            @given(case=operation.as_strategy(generation_mode=mode))
            def check(case: Any) -> None:
                answer = case.call_and_validate(headers={"Authorization": f"Bearer {key}"}, excluded_checks=excluded)
                seen[case.operation.label, answer.status_code] += 1
                good = case.meta.generation.mode.is_positive
                assert not good or answer.status_code < 400 or is_not_said(answer, case), answer.text
                assert answer.status_code < 500 or (answer.status_code == 504 and "deadline_s" in f"{case.query} {case.body}")

            check()
    return seen


def is_not_said(answer: Any, case: Any) -> bool:
    """True for a good request that is refused for a reason that its schema cannot name."""
    error = answer.json()["error"]
    if isinstance(error, str):  # the Open Inference Protocol: bytes in JSON, whose number follows from a shape
        return case.operation.path.endswith("/infer") or answer.status_code in (401, 404)
    field = (error["detail"] or {}).get("field")
    twice = set(case.query or ()) & set(case.body if isinstance(case.body, dict) else ())
    return (
        bool(twice)
        or error["code"] in NOT_SAID
        or (error["code"], field) in {("field", "stride"), ("field", "max_shots"), ("field", "explain")}
    )


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("examples", [60, pytest.param(250, marks=pytest.mark.slow)])
def test_every_answer_is_as_the_document_says(document: Any, token: tuple[Path, str], examples: int) -> None:
    seen = hold(document, token[1], examples)
    statuses = {status for label, status in seen if label == "POST /v1/predict"}
    assert statuses >= {200, 422}
    assert sum(count for (label, _), count in seen.items() if label == "POST /v1/predict") >= examples


class TestDocument:
    def test_every_route_stands_in_it(self, app: Any) -> None:
        shown = [route for route in app.routes if route.include_in_schema]
        routes = {(route.path, method.lower()) for route in shown for method in route.methods}
        assert routes == {(path, method) for path, operations in app.openapi()["paths"].items() for method in operations}

    def test_every_error_has_the_envelope_and_an_example(self, app: Any) -> None:
        for path, operations in app.openapi()["paths"].items():
            for operation in operations.values():
                for status, response in operation["responses"].items():
                    assert "X-Request-ID" in response["headers"]
                    if int(status) >= 400:
                        content, protocol = response["content"]["application/json"], path.startswith("/v2")
                        assert content["schema"] == {"$ref": f"#/components/schemas/{'ProtocolError' if protocol else 'ErrorAnswer'}"}
                        assert protocol or content["example"]["error"].keys() == {"code", "message", "detail", "request_id"}

    def test_every_good_answer_of_some_size_has_an_example_that_its_schema_takes(self, app: Any) -> None:
        document, small = app.openapi(), {"HealthAnswer", "LiveAnswer", "ReadyAnswer", "ModelReadyAnswer", "ServerAnswer"}
        small |= {"ModelMetadata", "ModelAnswer"}  # a manifest: hqtl-train inspect prints one
        held = set()
        for operations in document["paths"].values():
            for response in (found for operation in operations.values() for found in operation["responses"].items()):
                body = response[1].get("content", {}).get("application/json")
                if int(response[0]) >= 400 or body is None or body["schema"].get("$ref", "").rpartition("/")[2] in small:
                    continue
                schema = {**body["schema"], "components": document["components"]}
                jsonschema_rs.validator_for(schema).validate(body["example"])
                held.add(str(body["schema"]))
        assert len(held) >= 8

    def test_every_status_that_a_prediction_can_have_is_named(self, app: Any) -> None:
        named = set(app.openapi()["paths"]["/v1/predict"]["post"]["responses"])
        assert named == {"200", "202", *(str(status) for status in (400, 401, 403, 408, 409, 413, 415, 422, 429, 502, 503, 504))}

    def test_health_needs_no_key_and_all_else_does(self, app: Any) -> None:
        without = {
            path
            for path, operations in app.openapi()["paths"].items()
            if all(operation["security"] == [] for operation in operations.values())
        }
        assert without == OPEN_PATHS

    def test_an_answer_has_the_fields_that_are_named_and_no_others(self, app: Any, token: tuple[Path, str]) -> None:
        schemas = app.openapi()["components"]["schemas"]
        answer = Client(app, token[1]).post("/v1/predict", **body([("a.png", photo(0))], shots=50, max_shots=100, explain="true")).json()
        assert set(answer) == set(schemas["PredictAnswer"]["properties"])
        assert set(answer["predictions"][0]) == set(schemas["_Prediction"]["properties"])
        assert set(answer["explanation"]) == set(schemas["_Explanation"]["properties"])

    def test_options_in_the_query_of_a_form(self, app: Any, token: tuple[Path, str]) -> None:
        client, files = Client(app, token[1]), {"image": ("x", photo(3))}
        there = client.post("/v1/predict?shots=100&seed=4", files=files).json()["predictions"]
        assert there == client.post("/v1/predict", files=files, data={"shots": "100", "seed": "4"}).json()["predictions"]
        twice = client.post("/v1/predict?shots=100", files=files, data={"shots": "100"})
        assert (twice.status_code, twice.json()["error"]["detail"]) == (422, {"field": "shots"})

    def test_the_one_image_of_an_octet_stream(self, app: Any, token: tuple[Path, str]) -> None:
        client = Client(app, token[1])
        asked = {"content": photo(3), "headers": {"content-type": "application/octet-stream"}}
        answer = client.post("/v1/predict?shots=100&seed=4", **asked)
        form = client.post("/v1/predict", files={"image": ("x", photo(3))}, data={"shots": "100", "seed": "4"})
        ours, theirs = answer.json()["predictions"][0], form.json()["predictions"][0]
        assert ours.pop("filename") == ""
        assert theirs.pop("filename") == "x"
        assert ours == theirs
