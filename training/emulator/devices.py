"""The machines of the emulated platform: what a snapshot says, under the name of the machine it was taken from."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from hqtl_common.backends.snapshots import snapshot, snapshot_class

__all__ = ["Device"]


@dataclass(frozen=True, slots=True)
class _Calibration:
    since: float  # time.time() of the change
    date: str
    factor: float


class Device:
    """One machine.

    Args:
        name: For example ``ibm_kolkata``, which stands for the snapshot ``fake_kolkata``.

    Raises:
        UnknownBackendError: There is no such snapshot.
    """

    def __init__(self, name: str) -> None:
        short = name.removeprefix("ibm_").removeprefix("fake_")
        self.name = f"ibm_{short}"
        self._snapshot_name = f"fake_{short}"
        source = snapshot_class(self._snapshot_name)
        folder = Path(source.dirname)
        self.configuration: dict[str, Any] = {**json.loads((folder / source.conf_filename).read_text("utf-8")), "backend_name": self.name}
        self._properties = _in_utc({**json.loads((folder / source.props_filename).read_text("utf-8")), "backend_name": self.name})
        self._calibrations = [_Calibration(0.0, self._properties["last_update_date"], 1.0)]

    @property
    def target(self) -> Any:
        """Qiskit's description of the machine on the day of the snapshot; the noise of every job comes from it."""
        return snapshot(self._snapshot_name).target

    @property
    def num_qubits(self) -> int:
        """Qubits of the machine."""
        return int(self.configuration["n_qubits"])

    @property
    def calibrated(self) -> str:
        """Date of the calibration in force (ISO 8601)."""
        return self._calibrations[-1].date

    def properties(self, at: float | None = None) -> dict[str, Any]:
        """The calibration in force at a time (seconds since 1970), or now."""
        known = [entry for entry in self._calibrations if at is None or entry.since <= at] or self._calibrations[:1]
        changed = {**self._properties, "last_update_date": known[-1].date}
        return changed if known[-1].factor == 1.0 else _with_errors(changed, known[-1].factor)

    def recalibrate(self, now: float, factor: float = 1.0) -> None:
        """A new calibration, dated a day after the last; reported errors are ``factor`` times the snapshot's.

        The noise of the simulation stays that of the snapshot, so that a job's result depends on its content alone.
        """
        date = datetime.fromisoformat(self.calibrated) + timedelta(days=1)
        self._calibrations.append(_Calibration(now, date.isoformat(), factor))


def _in_utc(properties: dict[str, Any]) -> dict[str, Any]:
    """Dates as the platform sends them: the client drops their offset and takes the rest for UTC."""
    properties["last_update_date"] = _utc(properties["last_update_date"])
    for parameter in (*_parameters(properties), *properties["general"]):
        parameter["date"] = _utc(parameter["date"])
    return properties


def _utc(date: str) -> str:
    return datetime.fromisoformat(date).astimezone(UTC).isoformat()


def _with_errors(properties: dict[str, Any], factor: float) -> dict[str, Any]:
    """A copy with every gate and readout error multiplied."""
    copied: dict[str, Any] = json.loads(json.dumps(properties))
    for parameter in _parameters(copied):
        if parameter["name"] in {"gate_error", "readout_error", "prob_meas0_prep1", "prob_meas1_prep0"}:
            parameter["value"] = min(1.0, parameter["value"] * factor)
    return copied


def _parameters(properties: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for gate in properties["gates"]:
        yield from gate["parameters"]
    for qubit in properties["qubits"]:
        yield from qubit
