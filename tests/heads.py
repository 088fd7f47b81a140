"""Random heads of every kind, for property tests."""

from __future__ import annotations

from typing import get_args

from hypothesis import strategies as st

from hqtl_common.specs import Embedding, Entangler, HeadSpec

__all__ = ["EMBEDDINGS", "ENTANGLERS", "commuting_heads", "heads", "layered_heads", "most_layers"]

EMBEDDINGS: tuple[Embedding, ...] = get_args(Embedding)
ENTANGLERS: tuple[Entangler, ...] = get_args(Entangler)


def layered_heads(most_qubits: int) -> st.SearchStrategy[HeadSpec]:
    """Heads of the paper's ansatz: every embedding and entangler, L = 1 to 3."""
    qubits = st.integers(2, most_qubits)
    return st.builds(HeadSpec, qubits, st.sampled_from(EMBEDDINGS), st.sampled_from(ENTANGLERS), st.integers(1, 3))


def commuting_heads(most_qubits: int) -> st.SearchStrategy[HeadSpec]:
    """Heads of commuting generators, with as many layers as they have, up to 3."""

    def of(num_qubits: int) -> st.SearchStrategy[HeadSpec]:
        layers = st.integers(1, min(3, most_layers(num_qubits)))
        kinds = st.sampled_from(("angle", "angle_ry"))
        return st.builds(HeadSpec, st.just(num_qubits), kinds, num_layers=layers, ansatz=st.just("commuting"))

    return st.integers(2, most_qubits).flatmap(of)


def heads(most_qubits: int) -> st.SearchStrategy[HeadSpec]:
    """All of them."""
    return layered_heads(most_qubits) | commuting_heads(most_qubits)


def most_layers(num_qubits: int) -> int:
    """Layers for which the ansatz ``commuting`` has different generators: T·2^C of them, with C controls and T targets."""
    controls = num_qubits // 2
    return (num_qubits - controls) * 2**controls // num_qubits
