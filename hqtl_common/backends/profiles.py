"""Machines made from a few averages: the paper's own (``paper:NAME``) and a user's file (``profile:PATH``).

Every qubit and every coupling gets the same errors, so the layout does not matter: what stays of the machine is its
average noise. The paper's kolkata and ehningen (Falcon r5, 27 qubits) are a line of 16 qubits, which the 27-qubit lattice
contains (its longest has 21); lima (Falcon r4T) is its five qubits in the form of a T. Both directions of a CX exist.
"""

from __future__ import annotations

import datetime
import json
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from qiskit.circuit import Measure, Parameter
from qiskit.circuit.library import CXGate, RZGate, SXGate, XGate
from qiskit.transpiler import InstructionProperties, QubitProperties, Target

from hqtl_common.backends.machine import Machine
from hqtl_common.errors import ConfigError, UnknownBackendError

__all__ = ["LINE", "PAPER_PROFILES", "Profile", "load_profile", "paper_machine", "profile_machine"]

Couplings = tuple[tuple[int, int], ...]

LINE: Couplings = tuple((qubit, qubit + 1) for qubit in range(15))
_LIMA: Couplings = ((0, 1), (1, 2), (1, 3), (3, 4))
_PAPER_DATE = "2023-07"  # the month of the paper; it gives no date for its averages
_GATE_NS = 35.56  # 160 samples of 2/9 ns, as in the snapshots fake_kolkata, fake_lima, fake_auckland and fake_algiers

Error = Annotated[float, Field(ge=0, le=0.5, description="a probability, not percent")]
Microseconds = Annotated[float, Field(gt=0)]
Nanoseconds = Annotated[float, Field(ge=0)]


class Profile(BaseModel):
    """Average errors of a machine; the schema of a ``profile:PATH`` file.

    Args:
        cx_error: Average gate infidelity of a CX, relaxation included; a probability from 0 to 0.5, not percent.
        single_qubit_error: The same of SX and X. RZ is virtual: no error, no duration.
        readout_error: Probability of reading the other bit, equal for 0 and 1.
        t1_us: Relaxation time in µs, None for no relaxation.
        t2_us: Dephasing time in µs, at most 2·T1; None for 2·T1.
        gate_ns: Duration of SX and X in ns.
        cx_ns: Duration of a CX in ns. Where relaxation during a gate exceeds the gate's error, relaxation stands.
        stand_in_for: The machine that is imitated.
        date: Day of the figures.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    cx_error: Error
    single_qubit_error: Error
    readout_error: Error
    t1_us: Microseconds | None
    t2_us: Microseconds | None
    gate_ns: Nanoseconds
    cx_ns: Nanoseconds
    stand_in_for: str | None = None
    date: datetime.date | None = None

    @model_validator(mode="after")
    def _dephasing_is_possible(self) -> Self:
        if self.t1_us is not None and self.t2_us is not None and self.t2_us > 2 * self.t1_us:
            raise ValueError(f"T2 can be at most 2·T1 = {2 * self.t1_us:g} µs; got t2_us = {self.t2_us:g}")
        return self


# Geng et al. 2023, table 2. It has no durations: these are the mean CX of the snapshots fake_kolkata and fake_lima and,
# for ehningen, of three of its family (fake_algiers, fake_auckland, fake_kolkata).
PAPER_PROFILES: dict[str, Profile] = {
    "kolkata": Profile(
        cx_error=0.00835,
        single_qubit_error=0.00021,
        readout_error=0.01,
        t1_us=122.23,
        t2_us=64.40,
        gate_ns=_GATE_NS,
        cx_ns=415,
        stand_in_for="ibmq_kolkata",
    ),
    "ehningen": Profile(
        cx_error=0.0074,
        single_qubit_error=0.00024,
        readout_error=0.0088,
        t1_us=172.28,
        t2_us=172.45,
        gate_ns=_GATE_NS,
        cx_ns=428,
        stand_in_for="ibmq_ehningen",
    ),
    "lima": Profile(
        cx_error=0.01097,
        single_qubit_error=0.00048,
        readout_error=0.0258,
        t1_us=75.00,
        t2_us=103.41,
        gate_ns=_GATE_NS,
        cx_ns=405,
        stand_in_for="ibmq_lima",
    ),
}


def load_profile(path: Path) -> Profile:
    """Read a ``profile:PATH`` file.

    Raises:
        ConfigError: It cannot be read, or a field is missing, unknown or out of range.
    """
    try:
        return Profile.model_validate(json.loads(path.read_bytes()))
    except OSError as error:
        raise ConfigError(f"the noise profile {str(path)!r} cannot be read: {error.strerror}") from error
    except ValidationError as error:
        found = (f"{'.'.join(map(str, problem['loc'])) or 'fields'}: {problem['msg']}" for problem in error.errors())
        problems = "; ".join(found)
    except (ValueError, RecursionError):
        problems = "it is not JSON"
    raise ConfigError(f"the noise profile {str(path)!r} cannot be used: {problems}; the fields are {', '.join(Profile.model_fields)}")


def paper_machine(name: str) -> Machine:
    """The stand-in of one of the paper's machines.

    Raises:
        UnknownBackendError: The paper has no such machine.
    """
    machine = name.partition(":")[2]
    if machine not in PAPER_PROFILES:
        known = ", ".join(f"paper:{known}" for known in PAPER_PROFILES)
        raise UnknownBackendError(f"unknown backend {name!r}: the paper's machines are {known}")
    return profile_machine(name, PAPER_PROFILES[machine], _PAPER_DATE, _LIMA if machine == "lima" else LINE)


@lru_cache(maxsize=16)
def profile_machine(name: str, profile: Profile, calibration: str | None = None, couplings: Couplings = LINE) -> Machine:
    """A machine with the same errors everywhere.

    Args:
        name: The backend's name.
        profile: The errors.
        calibration: Date for the records; None takes the profile's own.
        couplings: Pairs of qubits that a CX can join, in either direction.
    """
    date = calibration or (None if profile.date is None else profile.date.isoformat())
    stand_in = profile.stand_in_for or name.partition(":")[2]
    values = profile.model_dump(mode="json", exclude={"stand_in_for", "date"})
    return Machine(name, _target(profile, couplings), date, options={"stand_in_for": stand_in, "profile": values})


def _target(profile: Profile, couplings: Couplings) -> Target:
    num_qubits = 1 + max(max(pair) for pair in couplings)
    t1, t2 = (None if time is None else time * 1e-6 for time in (profile.t1_us, profile.t2_us))
    target = Target(num_qubits=num_qubits, qubit_properties=[QubitProperties(t1=t1, t2=t2) for _ in range(num_qubits)])
    single = InstructionProperties(duration=profile.gate_ns * 1e-9, error=profile.single_qubit_error)
    pair = InstructionProperties(duration=profile.cx_ns * 1e-9, error=profile.cx_error)
    virtual, readout = InstructionProperties(duration=0.0, error=0.0), InstructionProperties(error=profile.readout_error)
    for gate, properties in ((RZGate(Parameter("angle")), virtual), (SXGate(), single), (XGate(), single), (Measure(), readout)):
        target.add_instruction(gate, {(qubit,): properties for qubit in range(num_qubits)})
    target.add_instruction(CXGate(), {edge: pair for a, b in couplings for edge in ((a, b), (b, a))})
    return target
