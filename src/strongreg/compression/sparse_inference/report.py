"""What became of each layer when a network was made sparse for inference, and by which measurement."""

from __future__ import annotations

from dataclasses import dataclass

from strongreg.text_table import text_table


@dataclass(frozen=True)
class SparsifyRow:
    """One linear layer or convolution.

    Args:
        name: of the module; empty for a model that is this layer itself.
        shape: of its weight; empty where the weight is not a plain tensor.
        num_zeros: weights that are exactly 0.
        num_weights: all of them.
        inputs: shapes of the inputs it was measured with; empty if it was not measured.
        dense_seconds: time of the dense layer for these inputs, each as often as it came; 0 if it was not measured.
        sparse_seconds: time of the layer in CSR for the same.
        reason: why it was left dense; empty if it was converted.
    """

    name: str
    shape: tuple[int, ...]
    num_zeros: int
    num_weights: int
    inputs: tuple[tuple[int, ...], ...] = ()
    dense_seconds: float = 0.0
    sparse_seconds: float = 0.0
    reason: str = ""

    @property
    def converted(self) -> bool:
        """Whether the layer is in CSR now."""
        return not self.reason

    @property
    def sparsity(self) -> float:
        """Share of the weights that are 0, in [0, 1]; 0 if there are none."""
        return self.num_zeros / self.num_weights if self.num_weights else 0.0

    @property
    def speedup(self) -> float | None:
        """Time dense / time in CSR; None if it was not measured."""
        return self.dense_seconds / self.sparse_seconds if self.sparse_seconds else None

    @property
    def seconds(self) -> float:
        """Time of the layer as it is now."""
        return self.sparse_seconds if self.converted else self.dense_seconds


@dataclass(frozen=True)
class SparsifyReport:
    """What :func:`strongreg.sparsify_and_report` did; ``print`` shows it as a table.

    Args:
        layers: one row per linear layer and convolution.
        num_threads: threads that torch computed with when it was measured.
    """

    layers: tuple[SparsifyRow, ...]
    num_threads: int

    @property
    def converted(self) -> tuple[SparsifyRow, ...]:
        """The layers that are in CSR now."""
        return tuple(row for row in self.layers if row.converted)

    @property
    def left(self) -> tuple[SparsifyRow, ...]:
        """The layers that were left dense."""
        return tuple(row for row in self.layers if not row.converted)

    @property
    def speedup(self) -> float | None:
        """Time before / time after, of all measured layers together; None if none was measured."""
        after = sum(row.seconds for row in self.layers)
        return sum(row.dense_seconds for row in self.layers) / after if after else None

    def __str__(self) -> str:
        """The table as text, and below it why layers were left dense."""
        if not self.layers:
            return "nothing to convert: the model has no linear layer and no convolution"
        rows = [_cells(row) for row in self.layers]
        zeros, weights = sum(row.num_zeros for row in self.layers), sum(row.num_weights for row in self.layers)
        before, after = sum(row.dense_seconds for row in self.layers), sum(row.seconds for row in self.layers)
        total = ("total", "", "", "", _share(zeros, weights), _microseconds(before), _microseconds(after))
        header = ("layer", "weight", "kept as", "input", "zeros", "dense, us", "CSR, us", "times faster")
        table = text_table(header, rows, (*total, _times(self.speedup)), num_left=4)
        threads = "1 thread" if self.num_threads == 1 else f"{self.num_threads} threads"
        lines = [table, f"{len(self.converted)} of {len(self.layers)} in CSR, measured with {threads}; total: as kept"]
        reasons: dict[str, list[str]] = {}
        for row in self.left:
            reasons.setdefault(row.reason, []).append(_name(row))
        return "\n".join(lines + [f"dense, {reason}: {', '.join(names)}" for reason, names in reasons.items()])


def _cells(row: SparsifyRow) -> tuple[str, ...]:
    return (
        _name(row),
        _shape(row.shape),
        "CSR" if row.converted else "dense",
        " ".join(map(_shape, row.inputs)) or "-",
        _share(row.num_zeros, row.num_weights),
        _microseconds(row.dense_seconds),
        _microseconds(row.sparse_seconds),
        _times(row.speedup),
    )


def _name(row: SparsifyRow) -> str:
    return row.name or "(the model)"


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "-"


def _microseconds(seconds: float) -> str:
    return f"{1e6 * seconds:,.1f}" if seconds else "-"


def _times(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.2f}"
