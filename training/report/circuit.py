"""The head drawn as SVG from its list of operations."""

from __future__ import annotations

from collections.abc import Iterator

from hqtl_common.circuit import Operation, operations
from hqtl_common.specs import HeadSpec

__all__ = ["MAX_COLUMNS", "circuit_svg"]

MAX_COLUMNS = 60  # a wider drawing could not be read

_STEP, _ROW, _LEFT, _TOP, _BOX = 46, 44, 52, 26, 32
_FILL = {"h": "#f2f2f2", "angles": "#d6e9f8", "weights": "#fde3cf"}


def circuit_svg(spec: HeadSpec) -> bytes | None:
    """The circuit, embedding in blue and trained rotations in orange; None if it would be too wide to read."""
    placed = list(_columns(spec))
    columns = 1 + max(column for column, _ in placed)
    if columns > MAX_COLUMNS:
        return None
    width, height = _LEFT + (columns + 1) * _STEP + 40, 2 * _TOP + (spec.num_qubits - 1) * _ROW
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="Helvetica, Arial, sans-serif" font-size="12" text-anchor="middle">'
    ]
    for qubit in range(spec.num_qubits):
        y = _y(qubit)
        parts.append(f'<text x="24" y="{y + 4}">q{qubit} |0⟩</text>')
        parts.append(f'<line x1="{_LEFT}" y1="{y}" x2="{width - 44}" y2="{y}" stroke="#555"/>')
        parts.append(f'<text x="{width - 24}" y="{y + 4}">⟨Z⟩</text>')
    parts += [_gate(column, operation) for column, operation in placed]
    return "".join([*parts, "</svg>"]).encode()


def _columns(spec: HeadSpec) -> Iterator[tuple[int, Operation]]:
    """Each operation in the first column in which its qubits, and those between them, are free."""
    free = [0] * spec.num_qubits
    for operation in operations(spec):
        covered = range(min(operation.qubits), max(operation.qubits) + 1)
        column = max(free[qubit] for qubit in covered)
        for qubit in covered:
            free[qubit] = column + 1
        yield column, operation


def _gate(column: int, operation: Operation) -> str:
    x = _LEFT + (column + 0.75) * _STEP
    if operation.gate == "cx":
        control, target = (_y(qubit) for qubit in operation.qubits)
        return (
            f'<line x1="{x}" y1="{control}" x2="{x}" y2="{target}" stroke="#333"/><circle cx="{x}" cy="{control}" r="4" fill="#333"/>'
            f'<circle cx="{x}" cy="{target}" r="9" fill="#fff" stroke="#333"/>'
            f'<path d="M{x - 9} {target}H{x + 9}M{x} {target - 9}V{target + 9}" stroke="#333"/>'
        )
    y = _y(operation.qubits[0])
    half = _BOX / 2
    box = (
        f'<rect x="{x - half}" y="{y - half}" width="{_BOX}" height="{_BOX}" rx="4" fill="{_FILL[operation.source or "h"]}" stroke="#777"/>'
    )
    if operation.source is None:
        return f'{box}<text x="{x}" y="{y + 4}">{operation.gate.upper()}</text>'
    letter = "a" if operation.source == "angles" else "w"
    return (
        f'{box}<text x="{x}" y="{y - 2}" font-size="11">{operation.gate.upper()}</text>'
        f'<text x="{x}" y="{y + 11}" font-size="10">{letter}{operation.index}</text>'
    )


def _y(qubit: int) -> int:
    return _TOP + qubit * _ROW
