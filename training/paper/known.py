"""What the paper gives: the figures that ours are set beside, all from Geng et al. 2023 (arXiv:2307.16723v1).

The text from which this protocol was taken has lost its formulas and the numbers set as formulas (accuracies, shots, epochs of
section 5.3, sums of equation 9). What is here is what is left; what had to be derived is marked so where it is used.
"""

from __future__ import annotations

__all__ = [
    "LIMA",
    "PAPER_IMAGES",
    "PAPER_SPLITS",
    "TABLE5_SECONDS",
    "TABLE6_SECONDS",
]

PAPER_IMAGES = (723, 500)  # patches with and without cracks, section 5.1
# table 4: (cracks, no cracks) of training, validation and test
PAPER_SPLITS: dict[str, tuple[tuple[int, int], tuple[int, int], tuple[int, int]]] = {
    "70/15/15": ((506, 350), (109, 75), (108, 75)),
    "4/4/92": ((29, 20), (29, 20), (665, 460)),
}
# table 5: training times
TABLE5_SECONDS: dict[str, float] = {
    "PennyLane simulator": 2 * 60 + 26,
    "qasm_simulator": 12 * 60 + 5,
    "ibmq_kolkata": (17 * 60 + 1) * 60 + 30,
    "ibmq_ehningen": (16 * 60 + 45) * 60 + 28,
}
# table 6: mean training times for L = 1 … 6
TABLE6_SECONDS: dict[str, tuple[float, ...]] = {
    "resnet18": (36 * 60 + 20, 44 * 60 + 28, 55 * 60 + 22, 65 * 60 + 55, 77 * 60 + 28, 83 * 60 + 8),
    "vgg16": (37 * 60 + 53, 49 * 60 + 39, 60 * 60 + 10, 68 * 60 + 34, 82 * 60 + 16, 90 * 60 + 22),
}
# section 5.4: one epoch at 70/15/15 on ibmq_lima
LIMA: dict[str, float] = {
    "total_seconds": ((4 * 24 + 6) * 60 + 30) * 60,
    "execution_seconds": 4 * 3600,
    "false_positives": 4,
}
