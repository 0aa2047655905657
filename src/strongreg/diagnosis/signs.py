"""The signs in a run's record that a verdict rests on."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from strongreg.collapse import NUM_SMOOTHED, SHRUNK
from strongreg.diagnosis.record import Array, RunRecord, is_above_chance

FAINT = 1e-3
"""Of a norm's own largest value: as good as 0."""
RARELY = 0.01
"""As good as never, and of a penalty as good as none."""
_GROWN = 10.0
_SMALL = 1.0  # a norm that grows from below it has not exploded
_LOSS_GROWN = 3.0
_LOSS_LEARNED = 0.25
_FALLEN = 0.75
_JUMPED = 1.1
_SOON = 3  # epochs
_FEWEST = 2  # of layers, for one to lie behind another


class Signs:
    """What the verdict rests on.

    Args:
        record: of at least one step and one epoch.
    """

    def __init__(self, record: RunRecord) -> None:
        history = record.history
        self.record = record
        self.steps = history.steps
        self.gradient = history["gradient_norm"].astype(np.float64)
        self.penalty = history["penalty_norm"].astype(np.float64)
        self.weight = history["weight_norm"].astype(np.float64)
        self.opened = history["open"].astype(np.float64)
        self.layers = history.layers
        self.weight_by_layer = history.per_layer("weight_norm").astype(np.float64)
        self.gradient_by_layer = history.per_layer("gradient_norm").astype(np.float64)
        alive = np.array([is_above_chance(accuracy, record.chance) for accuracy in record.accuracy])
        self.is_at_chance = not alive[-1]
        self.dead_epoch = int(np.flatnonzero(alive)[-1]) + 1 if alive.any() else 0
        """Number of epochs after the last of which it was above chance."""
        self.open_share = self._open_share()
        self.has_diverged, self.diverged_at = self._divergence()
        self.fell_at_death = self._fell_at_death()
        self.took_over = self._take_over()
        self.is_gone = bool(_is_faint(self.gradient)[-1])
        """Whether the gradient is gone in the end."""

    # ------------------------------------------------------------------ what happened

    def _open_share(self) -> float:
        """Of the steps before the refit: as the run counted them, or else of those that were recorded."""
        record = self.record
        num_possible = min(record.refit_start, record.num_steps)
        if math.isfinite(record.open_fraction) and num_possible > 0:
            return min(record.open_fraction * record.num_steps / num_possible, 1.0)
        recorded = self.opened[self.steps < record.refit_start]
        return float(recorded.mean()) if len(recorded) else 0.0

    def _divergence(self) -> tuple[bool, int | None]:
        record = self.record
        bad = ~np.isfinite(self.gradient) | ~np.isfinite(self.weight)
        if bad.any():
            return True, int(self.steps[bad.argmax()])
        grown = self.weight > _GROWN * max(float(self.weight[0]), _SMALL)
        loss = np.where(np.isfinite(record.train_loss), record.train_loss, np.inf)
        if loss.max() > _LOSS_GROWN * self.untrained_loss and self.is_at_chance:
            return True, int(loss.argmax()) * record.steps_per_epoch
        if grown.any() and self.is_at_chance:
            return True, int(self.steps[grown.argmax()])
        return False, None

    def _fell_at_death(self) -> bool:
        """Whether the weights were falling when it came to chance; a step that was too large makes them jump."""
        per_epoch = self.record.steps_per_epoch
        first = min(self.at(max(self.dead_epoch - 1, 0) * per_epoch), len(self.steps) - 1)
        after = max(self.at((self.dead_epoch + 1) * per_epoch), first + 2)
        meanwhile = self.weight[first:after]
        return bool(meanwhile[-1] < _FALLEN * self.weight[0] and meanwhile.max() <= _JUMPED * meanwhile[0])

    def _take_over(self) -> int | None:
        """The first step from which the penalty acted with a larger gradient than the loss until the weights fell."""
        shrunk = self.weight < SHRUNK * self.weight[0]
        acting = self.opened > 0
        if not shrunk.any() or not acting.any():
            return None
        end = int(shrunk.argmax())
        ahead = smooth(self.penalty * acting) > smooth(self.gradient)
        if not ahead[: max(end, NUM_SMOOTHED) + 1].any():
            return self._late_take_over(ahead & shrunk)
        behind = np.flatnonzero(~ahead[: end + 1])
        begin = int(behind[-1] + 1 if len(behind) and behind[-1] < end else ahead.argmax())
        before = self.weight[max(begin - 2 * NUM_SMOOTHED, 0) : begin + 1]
        if self.is_at_chance and before.max() > _JUMPED * before[0]:
            return None  # a step that was too large had killed it, and the penalty shrank what was left
        return int(self.steps[begin])

    def _late_take_over(self, ahead: npt.NDArray[np.bool_]) -> int | None:
        """The same of weights that the network had already lived with at half their size: they halved again."""
        if not self.fell_at_death:
            return None
        edges = np.flatnonzero(np.diff(np.concatenate([[False], ahead, [False]]).astype(int)))
        for begin, end in zip(edges[::2], edges[1::2], strict=True):
            if (self.weight[begin:end] < SHRUNK * self.weight[begin]).any():
                return int(self.steps[begin])
        return None

    @property
    def has_jumped(self) -> bool:
        """Whether the weights had grown by a tenth when it came to chance: at usual steps they hardly grow so fast."""
        return bool(
            self.weight[: self.at((self.dead_epoch + 1) * self.record.steps_per_epoch)].max() > _JUMPED * self.weight[0]
        )

    @property
    def was_switched_off(self) -> bool:
        """Whether it lived under a penalty that held its weights small, and was at chance soon after its end."""
        record = self.record
        end = record.refit_start
        if not self.is_at_chance or not NUM_SMOOTHED <= end < record.num_steps:
            return False
        epoch = int(end) // record.steps_per_epoch
        i = self.at(int(end))
        if i == 0 or not epoch <= self.dead_epoch <= epoch + _SOON:
            return False
        acting = float((self.penalty * self.opened)[max(i - NUM_SMOOTHED, 0) : i].mean())
        is_small = self.weight[i - 1] < SHRUNK * self.weight[0]
        return bool(is_small and acting > RARELY * self.penalty[:i].max())

    @property
    def was_decayed(self) -> bool:
        """Whether weight decay took the weights away: no step was too large, and they were falling when it died."""
        return self.record.weight_decay > 0 and self.fell_at_death and self.weight[-1] < SHRUNK * self.weight[0]

    @property
    def has_memorized(self) -> bool:
        """Whether the loss says that it learned the training images."""
        return bool(self.record.train_loss[-1] < _LOSS_LEARNED * self.chance_loss)

    @property
    def blocked_by_zeros(self) -> list[str]:
        """The layers that began at 0 one behind the other; one alone does not keep a network from learning."""
        zero = self.weight_by_layer[0] == 0
        behind = np.zeros_like(zero)
        behind[1:] = zero[1:] & zero[:-1]
        behind[:-1] |= behind[1:]
        return [layer for layer, is_blocked in zip(self.layers, behind, strict=True) if is_blocked]

    @property
    def num_never(self) -> int:
        """How many layers, from the input on, had a gradient of exactly 0 at every record; 0 if only one had."""
        return _leading((self.gradient_by_layer == 0).all(axis=0))

    @property
    def first_gets_nothing(self) -> bool:
        """Whether the gradient of the first layer was exactly 0 at every record."""
        return bool(len(self.layers) and not self.gradient_by_layer[:, 0].any())

    @property
    def num_gone(self) -> int:
        """How many layers, from the input on, have no gradient in the end; 0 if only one has none."""
        return _leading(_is_faint(self.gradient_by_layer)[-1])

    # ------------------------------------------------------------------ where, and in words

    @property
    def chance_loss(self) -> float:
        """The loss of the best constant answer, where all classes are as frequent as the largest."""
        return -math.log(self.record.chance)

    @property
    def untrained_loss(self) -> float:
        """The loss of a network that gives every answer the same probability; not below that of a constant answer."""
        return max(self.chance_loss, math.log(self.record.num_classes))

    def first_layer(self) -> str | None:
        """The layer whose weights fell to half their size first."""
        shrunk = self.weight_by_layer < SHRUNK * self.weight_by_layer[0]
        if not shrunk.any():
            return None
        first = np.where(shrunk.any(axis=0), shrunk.argmax(axis=0), len(self.steps))
        return self.layers[int(first.argmin())]

    def gone_since(self) -> int:
        """The step from which on the gradient was gone, in the layers from the input on or in all."""
        norms = self.gradient_by_layer[:, : self.num_gone] if self.num_gone else self.gradient[:, np.newaxis]
        smoothed = smooth(norms)
        faint = FAINT * smoothed.max(axis=0)
        for values in (norms, smoothed):
            since = np.logical_and.accumulate((values <= faint).all(axis=1)[::-1])[::-1]
            if since.any():
                return int(self.steps[since.argmax()])
        return int(self.steps[0])

    def at(self, step: int) -> int:
        """Which record is the first of this step or a later one.

        Args:
            step: number of an optimizer step.

        Returns:
            Its position; the number of records if there is none.
        """
        return int(np.searchsorted(self.steps, step))

    def growth(self) -> str:
        """How the weights' norm went where the steps were too large."""
        finite = np.isfinite(self.weight)
        step = self.steps[finite.argmin()]
        if not finite.any():
            return f"the weights were not finite at step {step}"
        first, largest = (f"{norm:.3g}" for norm in (self.weight[finite][0], self.weight[finite].max()))
        if finite.all():
            return f"the weights kept the norm {first}" if first == largest else _grew(first, largest)
        began = f"the weights began with norm {first}" if first == largest else _grew(first, largest)
        return f"{began} and were not finite at step {step}"

    def fall(self) -> str:
        """How far the weights' norm fell."""
        return f"the weights fell from norm {self.weight[0]:.3g} to {self.weight[-1]:.3g}"

    def sizes(self, step: int | None = None, *, smoothed: bool = True) -> str:
        """The norms of gradient, penalty and weights.

        Args:
            step: at which; None for the last one recorded.
            smoothed: whether those of gradient and penalty are means over the last records.

        Returns:
            A sentence.
        """
        i = len(self.steps) - 1 if step is None else self.at(step)
        gradient, penalty = (smooth(norms) if smoothed else norms for norms in (self.gradient, self.penalty))
        return (
            f"at step {self.steps[i]} the loss gradient has norm {gradient[i]:.2g}, the penalty's "
            f"{penalty[i]:.2g}, the weights {self.weight[i]:.3g}"
        )


def _grew(first: str, largest: str) -> str:
    return f"the weights grew from norm {first} to {largest}"


def _is_faint(norms: Array) -> npt.NDArray[np.bool_]:
    smoothed = smooth(norms)
    return np.asarray(smoothed <= FAINT * np.nanmax(np.nan_to_num(smoothed), axis=0))


def _leading(flags: npt.NDArray[np.bool_]) -> int:
    """How many of them hold before the first that does not; 0 for a single one of several."""
    num = len(flags) if flags.all() else int(flags.argmin())
    return num if num >= min(_FEWEST, len(flags)) else 0


def smooth(values: Array) -> Array:
    """The mean over the last few records.

    Args:
        values: shape (num_records,) or (num_records, num_layers).

    Returns:
        Of the same shape.
    """
    sums = np.cumsum(np.concatenate([np.zeros_like(values[:1]), values]), axis=0)
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - NUM_SMOOTHED, 0)
    counts = (ends - starts).reshape(-1, *(1 for _ in values.shape[1:]))
    with np.errstate(invalid="ignore"):  # after a norm that was infinite none is known
        return np.asarray((sums[ends] - sums[starts]) / counts)
