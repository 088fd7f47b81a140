"""A bundle and a backend together."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from hqtl_common import HybridClassifier, InferenceBatch, ModelBundle, Prediction, get_backend
from hqtl_common.classifier import decide, softmax
from hqtl_common.errors import BundleFormatError, ConfigError, ImageDecodeError, ShapeError
from tests.tiny import FEATURES, onnx_bytes, tiny_bundle

RNG = np.random.default_rng(11)


def photograph(seed: int) -> bytes:
    grid = np.random.default_rng(seed).integers(0, 256, size=(4, 4, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(np.kron(grid, np.ones((56, 56, 1), np.uint8))).save(buffer, "PNG")
    return buffer.getvalue()


PHOTOGRAPHS = [photograph(seed) for seed in range(5)]


@pytest.fixture(scope="module")
def clf(bundle: ModelBundle) -> HybridClassifier:
    return HybridClassifier(bundle, threads=1)


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> ModelBundle:
    """A bundle of three classes."""
    return tiny_bundle(tmp_path_factory.mktemp("three") / "bundle", seed=11, labels=("a", "b", "c"))


def changed(bundle: ModelBundle, path: Path, files: dict[str, bytes] | None = None, **fields: Any) -> ModelBundle:
    names = ("backbone.onnx", "pre_net.onnx", "post_net.onnx", "MODEL_CARD.md")
    manifest = bundle.manifest.model_copy(update=fields)
    return ModelBundle.save(path, manifest, bundle.weights, {name: bundle.read(name) for name in names} | (files or {}))


def same(one: Prediction, other: Prediction) -> None:
    assert one.label == other.label
    for name in ("probability", "angles", "expvals", "logits"):
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), atol=1e-6)


# ---------------------------------------------------------------- the chain of stages


def parameters(bundle: ModelBundle, name: str) -> dict[str, np.ndarray]:
    model = onnx.load_model_from_string(bundle.read(name))
    return {tensor.name: numpy_helper.to_array(tensor).astype(np.float64) for tensor in model.graph.initializer}


def test_every_stage_computed_by_hand(bundle: ModelBundle, clf: HybridClassifier) -> None:
    batch = clf.run(clf.preprocess(PHOTOGRAPHS))
    assert batch.pixels is not None
    pooled = batch.pixels.astype(np.float64).reshape(5, 3, 4, 56, 4, 56).mean(axis=(3, 5))
    np.testing.assert_allclose(batch.features, pooled.reshape(5, FEATURES), atol=3e-4)  # ONNX Runtime adds 3136 float32 one by one
    pre, post = parameters(bundle, "pre_net.onnx"), parameters(bundle, "post_net.onnx")
    angles = np.tanh(np.asarray(batch.features, dtype=np.float64) @ pre["w"] + pre["b"]) * np.pi / 2
    np.testing.assert_allclose(batch.angles, angles, atol=1e-5)
    expvals = get_backend("statevector").run(bundle.head, bundle.weights, angles).expvals
    np.testing.assert_allclose(batch.expvals, expvals, atol=1e-5)
    logits = expvals @ post["w"] + post["b"]
    np.testing.assert_allclose(batch.logits, logits, atol=1e-5)
    odds = np.exp(logits[:, 0] - logits[:, 1])
    np.testing.assert_allclose(batch.probabilities, np.stack([odds, np.ones(5)], axis=1) / (1 + odds)[:, None], atol=1e-5)
    assert [p.label for p in batch.predictions()] == ["crack" if o >= 1 else "no_crack" for o in odds]
    assert len({p.label for p in batch.predictions()}) == 2  # else the line above would show little


def test_predict_is_run_of_preprocess(clf: HybridClassifier) -> None:
    for one, other in zip(clf.predict_many(PHOTOGRAPHS), clf.run(clf.preprocess(PHOTOGRAPHS)).predictions(), strict=True):
        same(one, other)


def test_batch_is_the_single_images_in_order(clf: HybridClassifier) -> None:
    for data, together in zip(PHOTOGRAPHS, clf.predict_many(PHOTOGRAPHS), strict=True):
        same(clf.predict(data), together)


def test_bytes_and_paths_may_be_given(clf: HybridClassifier, tmp_path: Path) -> None:
    path = tmp_path / "wall.png"
    path.write_bytes(PHOTOGRAPHS[0])
    for source in (PHOTOGRAPHS[0], path, str(path)):
        same(clf.predict(source), clf.predict_many([source])[0])
    assert clf.predict_many([]) == []


def test_given_stages_do_not_run_again(clf: HybridClassifier, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = clf.run(clf.preprocess(PHOTOGRAPHS))
    monkeypatch.setattr(clf, "_backbone", None)
    from_features = clf.run(InferenceBatch(features=whole.features))
    monkeypatch.setattr(clf, "_pre_net", None)
    from_angles = clf.run(InferenceBatch(angles=whole.angles))
    for batch in (from_features, from_angles):
        np.testing.assert_array_equal(batch.logits, whole.logits)


def test_empty_batch_has_every_field_with_its_shape(clf: HybridClassifier) -> None:
    batch = clf.run(clf.preprocess([]), backend=get_backend("statevector", shots=10))
    assert batch.predictions() == []
    shapes = {"features": (0, FEATURES), "angles": (0, 4), "expvals": (0, 4), "expval_covs": (0, 4, 4), "logits": (0, 2)}
    shapes |= {"probabilities": (0, 2), "intervals": (0, 2, 2), "label_indices": (0,), "expval_stds": (0, 4)}
    assert {name: getattr(batch, name).shape for name in shapes} == shapes


def test_wrong_arrays_are_refused(clf: HybridClassifier) -> None:
    for batch in (
        InferenceBatch(),
        InferenceBatch(pixels=np.zeros((1, 3, 8, 8), np.float32)),
        InferenceBatch(features=np.zeros((2, 3), np.float32)),
        InferenceBatch(angles=np.zeros((1, 5), np.float32)),
        InferenceBatch(features=np.full((1, FEATURES), np.nan, np.float32)),
    ):
        with pytest.raises(ShapeError):
            clf.run(batch)
    with pytest.raises(ShapeError, match="run"):
        clf.preprocess(PHOTOGRAPHS).predictions()


def test_unusable_image_is_named(clf: HybridClassifier) -> None:
    with pytest.raises(ImageDecodeError, match="image 1"):
        clf.predict_many([PHOTOGRAPHS[0], b"no image"])


# ---------------------------------------------------------------- the decision


def test_threshold_is_inclusive_and_of_the_positive_label() -> None:
    probabilities = np.array([[0.3, 0.7], [0.5, 0.5], [0.7, 0.3]])
    assert decide(probabilities, 0, 0.5).tolist() == [1, 0, 0]
    assert decide(probabilities, 1, 0.5).tolist() == [1, 1, 0]
    assert decide(probabilities, 0, 0.7).tolist() == [1, 1, 0]
    assert decide(probabilities, 1, 0.05).tolist() == [1, 1, 1]


@pytest.mark.parametrize("positive", ["crack", "no_crack"])
def test_threshold_of_bundle_object_and_call(bundle: ModelBundle, tmp_path: Path, positive: str) -> None:
    careful = changed(bundle, tmp_path / "b", threshold=1e-9, positive_label=positive)
    clf = HybridClassifier(careful)
    batch = clf.preprocess(PHOTOGRAPHS)
    assert {p.label for p in clf.run(batch).predictions()} == {positive}
    assert positive not in {p.label for p in clf.run(batch, threshold=1 - 1e-9).predictions()}
    assert positive not in {p.label for p in HybridClassifier(careful, threshold=1 - 1e-9).run(batch).predictions()}
    for prediction in clf.run(batch).predictions():  # the probability is that of the label given, also when it is below one half
        assert prediction.probability == prediction.probabilities[positive]


@pytest.mark.parametrize("threshold", [0.0, 1.0, -1.0, 1.5, float("nan")])
def test_illegal_threshold(bundle: ModelBundle, clf: HybridClassifier, threshold: float) -> None:
    with pytest.raises(ConfigError, match="threshold"):
        HybridClassifier(bundle, threshold=threshold)
    with pytest.raises(ConfigError, match="threshold"):
        clf.run(InferenceBatch(angles=np.zeros((1, 4))), threshold=threshold)


def test_several_classes_take_the_most_probable(three: ModelBundle) -> None:
    clf = HybridClassifier(three)
    batch = clf.run(InferenceBatch(angles=RNG.uniform(-1.5, 1.5, size=(50, 4))))
    predictions = batch.predictions()
    assert {p.label for p in predictions} == {"a", "b", "c"}
    for prediction in predictions:
        assert list(prediction.probabilities) == ["a", "b", "c"]
        assert prediction.probability == max(prediction.probabilities.values())
        assert sum(prediction.probabilities.values()) == pytest.approx(1)
    with pytest.raises(ConfigError, match="two classes"):
        HybridClassifier(three, threshold=0.5)


def test_temperature_is_the_backends(bundle: ModelBundle, tmp_path: Path) -> None:
    warm = HybridClassifier(changed(bundle, tmp_path / "b", temperature={"default": 3.0, "statevector": 2.0}))
    batch = InferenceBatch(angles=RNG.uniform(-1.5, 1.5, size=(6, 4)))
    for backend, temperature in ((get_backend("statevector"), 2), (get_backend("aer", shots=50, seed=1), 3)):
        answer = warm.run(batch, backend=backend)
        assert answer.logits is not None
        np.testing.assert_allclose(answer.probabilities, softmax(answer.logits / temperature), atol=1e-12)


@given(st.lists(st.lists(st.floats(-1e6, 1e6), min_size=3, max_size=3), min_size=1, max_size=4))
def test_softmax_is_a_distribution_without_overflow(rows: list[list[float]]) -> None:
    logits = np.array(rows)
    got = softmax(logits)
    np.testing.assert_allclose(got.sum(axis=1), 1, atol=1e-12)
    assert got.min() >= 0
    np.testing.assert_array_equal(got.max(axis=1), np.take_along_axis(got, logits.argmax(axis=1)[:, None], 1)[:, 0])


# ---------------------------------------------------------------- shot noise


def test_exact_answers_have_no_interval(clf: HybridClassifier) -> None:
    prediction = clf.predict(PHOTOGRAPHS[0])
    assert (prediction.interval, prediction.expval_stds, prediction.execution.shots) == (None, None, None)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_binary_interval_is_the_one_of_the_logit_difference(bundle: ModelBundle, tmp_path: Path, temperature: float) -> None:
    clf = HybridClassifier(changed(bundle, tmp_path / "b", temperature={"default": temperature}))
    batch = clf.run(InferenceBatch(angles=RNG.uniform(-1.5, 1.5, size=(20, 4))), backend=get_backend("statevector", shots=500, seed=1))
    assert batch.logits is not None
    assert batch.expval_covs is not None
    assert batch.intervals is not None
    weight = parameters(bundle, "post_net.onnx")["w"]
    direction = (weight[:, 0] - weight[:, 1]) / temperature
    difference = (batch.logits[:, 0] - batch.logits[:, 1]) / temperature
    deviation = np.sqrt(np.einsum("i,bij,j->b", direction, batch.expval_covs, direction))
    for bound, sign in ((0, -1), (1, 1)):
        expected = 1 / (1 + np.exp(-(difference + sign * 1.959964 * deviation)))
        np.testing.assert_allclose(batch.intervals[:, 0, bound], expected, rtol=1e-6)
        np.testing.assert_allclose(batch.intervals[:, 1, 1 - bound], 1 - expected, rtol=1e-6)


@pytest.mark.parametrize("classes", [2, 3])
def test_intervals_cover_the_exact_probability_as_often_as_they_say(bundle: ModelBundle, three: ModelBundle, classes: int) -> None:
    clf = HybridClassifier(bundle if classes == 2 else three)
    angles, repeats = RNG.uniform(-1.5, 1.5, size=(6, 4)), 1000
    exact = clf.run(InferenceBatch(angles=np.repeat(angles, repeats, axis=0)))
    sampled = clf.run(InferenceBatch(angles=exact.angles), backend=get_backend("statevector", shots=1000, seed=6))
    assert exact.probabilities is not None
    assert sampled.intervals is not None
    inside = (sampled.intervals[:, :, 0] <= exact.probabilities) & (exact.probabilities <= sampled.intervals[:, :, 1])
    coverage = inside.reshape(6, repeats, classes).mean(axis=1)
    assert np.abs(coverage - 0.95).max() < 0.035  # five standard errors of 1000 trials
    assert abs(coverage.mean() - 0.95) < 0.012


@settings(max_examples=50)
@given(st.integers(1, 30), st.integers(0, 1000))
def test_interval_holds_the_estimate_at_any_number_of_shots(clf: HybridClassifier, shots: int, seed: int) -> None:
    batch = clf.run(InferenceBatch(angles=np.full((3, 4), 1.5)), backend=get_backend("statevector", shots=shots, seed=seed))
    for prediction in batch.predictions():
        assert prediction.interval is not None
        low, high = prediction.interval
        assert 0 <= low < prediction.probability < high <= 1


def test_extreme_logits_give_finite_intervals(bundle: ModelBundle, tmp_path: Path) -> None:
    nodes, weight = [helper.make_node("MatMul", ["x", "w"], ["y"])], np.zeros((4, 2))
    weight[:, 0] = 5000
    steep = {"post_net.onnx": onnx_bytes(nodes, {"w": weight}, [4], [2], TensorProto.DOUBLE)}
    clf = HybridClassifier(changed(bundle, tmp_path / "b", steep), get_backend("statevector", shots=100, seed=0))
    batch = clf.run(InferenceBatch(angles=RNG.uniform(-1.5, 1.5, size=(20, 4))))
    assert batch.intervals is not None
    assert np.isfinite(batch.intervals).all()
    assert ((batch.intervals >= 0) & (batch.intervals <= 1)).all()


def test_seed_and_stream_decide_the_draw(bundle: ModelBundle) -> None:
    batch = InferenceBatch(angles=np.zeros((3, 4)))
    first, again = (HybridClassifier(bundle, get_backend("statevector", shots=100, seed=5)) for _ in range(2))
    draws = [clf.run(batch, stream=stream).expvals for clf, stream in ((first, 0), (again, 0), (first, 0), (first, 1))]
    np.testing.assert_array_equal(draws[0], draws[1])
    np.testing.assert_array_equal(draws[0], draws[2])
    assert not np.array_equal(draws[0], draws[3])


# ---------------------------------------------------------------- answers and life cycle


@pytest.mark.parametrize("shots", [None, 20])
def test_answer_is_json_ready(bundle: ModelBundle, shots: int | None) -> None:
    prediction = HybridClassifier(bundle, get_backend("statevector", shots=shots)).predict(PHOTOGRAPHS[0])
    values = json.loads(json.dumps(prediction.to_dict(), allow_nan=False))
    assert values["label"] == prediction.label
    assert values["probabilities"][values["label"]] == values["probability"] == prediction.probability
    assert (values["interval"] is None) == (values["expval_stds"] is None) == (shots is None)
    assert [len(values[name]) for name in ("angles", "expvals", "logits")] == [4, 4, 2]


class CountingBackend:
    """``statevector`` that counts what is done with it."""

    OPTIONS = frozenset[str]()
    name, shots, seed = "counting", None, None

    def __init__(self) -> None:
        self.rows: list[int] = []
        self.closed = 0

    def run(self, spec: Any, weights: Any, angles: Any, *, stream: int = 0) -> Any:
        self.rows.append(len(angles))
        return get_backend("statevector").run(spec, weights, angles)

    def close(self) -> None:
        self.closed += 1


def test_a_batch_is_one_execution_and_the_backend_stays_open(bundle: ModelBundle) -> None:
    backend = CountingBackend()
    with HybridClassifier(bundle, backend) as clf:
        clf.predict_many(PHOTOGRAPHS)
        clf.close()
    clf.close()
    assert (backend.rows, backend.closed) == ([5], 0)


@pytest.mark.parametrize(
    ("name", "inputs", "width"),
    [("backbone.onnx", [3, 224, 224], FEATURES + 1), ("pre_net.onnx", [FEATURES], 3), ("post_net.onnx", [4], 3), ("post_net.onnx", [5], 2)],
)
def test_stages_that_do_not_fit_the_manifest_are_refused_at_once(
    bundle: ModelBundle, tmp_path: Path, name: str, inputs: Sequence[int], width: int
) -> None:
    nodes = [helper.make_node("Flatten", ["x"], ["f"]), helper.make_node("MatMul", ["f", "w"], ["y"])]
    model = onnx_bytes(nodes, {"w": np.zeros((int(np.prod(inputs)), width), np.float32)}, list(inputs), [width], TensorProto.FLOAT)
    with pytest.raises(BundleFormatError, match=name):
        HybridClassifier(changed(bundle, tmp_path / "b", {name: model}))
