"""The head with one layer as a trigonometric polynomial, by hand and for any entangler: an oracle without states or matrices.

CX maps a product of Z to a product of Z and one of X to one of X, and the embedding is a product state. So
⟨Z_i⟩ = cos w_i · Π⟨Z_j⟩ − sin w_i · Π⟨X_k⟩, over the qubits that the CX gates, taken backwards, spread Z_i and X_i to.
"""

from __future__ import annotations

import numpy as np

from hqtl_common.specs import HeadSpec

__all__ = ["one_layer", "papers_head"]


def papers_head(weights: np.ndarray, angles: np.ndarray) -> np.ndarray:
    """⟨Z_i⟩ (R, 4) of the paper's head, 4 qubits and L = 1, for weights (1, 4) and angles (R, 4) in radians."""
    cw, sw = np.cos(weights[0]), np.sin(weights[0])
    (c0, c1, c2, c3), (s0, s1, s2, s3) = np.cos(angles).T, np.sin(angles).T
    return np.stack(
        [
            -cw[0] * s0 - sw[0] * c0 * c1,
            cw[1] * s0 * s1 - sw[1] * c1 * c2 * c3,
            -cw[2] * s0 * s1 * s2 - sw[2] * c2 * c3,
            cw[3] * s2 * s3 - sw[3] * c3,
        ],
        axis=1,
    )


def one_layer(spec: HeadSpec, weights: np.ndarray, angles: np.ndarray) -> np.ndarray:
    """⟨Z_i⟩ (R, n) of any head of angles with L = 1 and the ansatz ``real_amplitudes``."""
    x, z = _bloch(spec, angles)
    values = []
    for qubit in range(spec.num_qubits):
        zs, xs = {qubit}, {qubit}
        for control, target in reversed(spec.cx_pairs):
            if target in zs:
                zs ^= {control}
            if control in xs:
                xs ^= {target}
        turn = weights[0, qubit]
        values.append(np.cos(turn) * z[:, sorted(zs)].prod(axis=1) - np.sin(turn) * x[:, sorted(xs)].prod(axis=1))
    return np.stack(values, axis=1)


def _bloch(spec: HeadSpec, angles: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """⟨X⟩ and ⟨Z⟩ of every qubit after the embedding."""
    cos, sin, nothing = np.cos(angles), np.sin(angles), np.zeros_like(angles)
    tables = {
        "angle": (cos, -sin),
        "reuploading": (cos, -sin),
        "angle_ry": (sin, cos),
        "angle_rx": (nothing, cos),
        "angle_rz": (cos, nothing),
    }
    return tables[spec.embedding]
