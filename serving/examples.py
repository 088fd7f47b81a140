"""Examples of answers for the OpenAPI document, by name of their schema; a test holds each against it."""

from __future__ import annotations

from typing import Any

__all__ = ["EXAMPLES"]

_MACHINE = "ibm:ibm_fez"
_EXECUTION: dict[str, Any] = {
    "backend_requested": _MACHINE,
    "backend_used": _MACHINE,
    "shots": 2000,
    "seed": 7,
    "num_rows": 1,
    "num_jobs": 1,
    "reason": None,
    "job_ids": ["d1k2m3n4p5q6"],
    "options": {},
    "layout": [12, 13, 14, 15],
    "depth": 21,
    "two_qubit_gates": 3,
    "calibration": "2026-11-22T05:10:00+00:00",
    "versions": {"qiskit": "2.3.0"},
    "qpu_seconds": 2.5,
    "wall_seconds": 41.2,
}
_PREDICTION: dict[str, Any] = {
    "filename": "wall.jpg",
    "label": "crack",
    "probability": 0.93,
    "probabilities": {"crack": 0.93, "no_crack": 0.07},
    "interval": [0.91, 0.95],
    "angles": [-1.5, 0.6, 1.4, -0.4],
    "expvals": [0.87, -0.61, -0.53, 0.47],
    "expval_stds": [0.011, 0.018, 0.019, 0.02],
    "logits": [1.6, -0.98],
    "calibration": "uncalibrated",
    "familiarity": 0.42,
    "review": [],
}
_RUNTIME = {"precision": "fp32", "providers": ["cpu"]}
_ANSWER: dict[str, Any] = {"predictions": [_PREDICTION], "execution": _EXECUTION, "runtime": _RUNTIME}
_NEEDS = {"jobs": 1, "executions": 2000, "qpu_seconds": 2.5}
_JOB: dict[str, Any] = {
    "id": "f95861c1e7b342da89735d50ce2e2c0b",
    "state": "done",
    "backend_requested": _MACHINE,
    "backend_used": _MACHINE,
    "reason": None,
    "images": 1,
    "options": {"backend": _MACHINE, "shots": 2000, "seed": 7},
    "estimate": _NEEDS,
    "qpu_seconds": 2.5,
    "job_ids": ["d1k2m3n4p5q6"],
    "position": None,
    "created": "2026-11-22T10:00:00.000+00:00",
    "started": "2026-11-22T10:00:00.400+00:00",
    "submitted": "2026-11-22T10:00:02.100+00:00",
    "finished": "2026-11-22T10:00:43.300+00:00",
    "cancelling": False,
    "answer": _ANSWER,
    "fallback": None,
    "error": None,
    "webhook": None,
}
_BACKEND: dict[str, Any] = {
    "name": _MACHINE,
    "available": True,
    "allowed": True,
    "price_class": "paid",
    "calibration": "2026-11-22T05:10:00+00:00",
    "calibration_age_days": 0.2,
    "queue": 12,
    "operational": True,
    "unknown_because": None,
    "checked": "2026-11-22T10:00:00+00:00",
    "summary": "IBM's machines, recorded before they are paid",
    "exact": False,
    "shots": True,
    "noise": "real",
    "paid": True,
    "diff_methods": ["parameter-shift"],
}
_GRANTS = {"backends": ["*"], "max_shots": None, "qpu_seconds_per_day": 120.0, "jobs_per_day": 20, "requests_per_minute": 600}
_TILE = {"x": 0, "y": 0, "width": 224, "height": 224, **{name: _PREDICTION[name] for name in ("label", "probability", "probabilities")}}

EXAMPLES: dict[str, dict[str, Any]] = {
    "IndexAnswer": {"service": "hqtl", "version": "0.1.0", "routes": ["POST /v1/predict", "GET /v1/model"]},
    "PredictAnswer": _ANSWER,
    "JobAnswer": _JOB,
    "JobsAnswer": {"jobs": [{**_JOB, "answer": None}], "next": None},
    "EstimateAnswer": {
        "backend": _MACHINE,
        "images": 1,
        "shots": 2000,
        "needs": _NEEDS,
        "qpu_seconds_left": 117.5,
        "jobs_left": 19,
        "service_qpu_seconds_left": None,
        "service_jobs_left": None,
        "allowed": True,
    },
    "BackendsAnswer": {
        "default": "statevector",
        "backends": [_BACKEND],
        "limits": {"max_images": 64, "max_shots": 1_000_000, "deadline_s": 50.0},
        "key": {"id": "ca604123", "name": "bridge 12", "grants": _GRANTS},
    },
    "InspectAnswer": {
        "width": 224,
        "height": 224,
        "label": "crack",
        "tiles": [{**_TILE, "interval": None, "familiarity": 0.42, "review": []}],
        "execution": {**_EXECUTION, "backend_requested": "statevector", "backend_used": "statevector", "shots": None, "job_ids": []},
        "runtime": _RUNTIME,
    },
    "InferAnswer": {
        "model_name": "hqtl",
        "model_version": "39c7281aeb02",
        "parameters": {"backend_used": "statevector", "classes": '["crack", "no_crack"]'},
        "outputs": [
            {"name": "labels", "datatype": "BYTES", "shape": [1], "data": ["crack"]},
            {"name": "probabilities", "datatype": "FP64", "shape": [1, 2], "data": [0.93, 0.07]},
        ],
    },
}
