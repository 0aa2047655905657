"""The method on a torch optimizer: measures the coherence before a step, imposes the penalty where the gate is open."""

from __future__ import annotations

import dataclasses
import math
import warnings
import weakref
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer

from strongreg.counts import StepCounts
from strongreg.decision import BeforeStep, Decision, decide, history_record, measure
from strongreg.devices import reading_is_free
from strongreg.gates import CoherenceGate, Gate
from strongreg.groups import PenaltySpec, Target, inverse_std_scales, select_targets
from strongreg.history import History
from strongreg.hyperparameters import describe, restore
from strongreg.imposition import add_gradients, shrink
from strongreg.optimizers import (
    GroupIndex,
    effective_step_size,
    follows_gradient,
    gradient_sign,
    held_targets,
    loss_scale,
    unwrap,
    warn_of_weight_decay,
)
from strongreg.precision import scalar_dtype
from strongreg.pull import gradient_pulls, look_before_step, step_pulls
from strongreg.refit import ZeroMasks
from strongreg.schedules import Constant, Schedule
from strongreg.summary import Summary, SummaryRow
from strongreg.validation import check_choice, check_type

Mode = Literal["proximal", "gradient"]
StrengthScale = Literal["uniform", "inverse_std"]
CoherenceOf = Literal["auto", "gradient", "step"]
_MODES = ("proximal", "gradient")
_STRENGTH_SCALES = ("uniform", "inverse_std")
_COHERENCE_OF = ("auto", "gradient", "step")
_STATE_VERSION = 1
_NONFINITE_CHECK_STEPS = 256

_attached: weakref.WeakKeyDictionary[Optimizer, weakref.WeakSet[Regularizer]] = weakref.WeakKeyDictionary()


class Regularizer:
    r"""Imposes a penalty on a network's weights at the optimizer's steps, only while the gradients stay coherent.

    In proximal mode, after each step of the optimizer, for every penalized tensor whose gate is open,

    .. math:: w \leftarrow \mathrm{prox}_{s\,\lambda\,\Omega}(w)

    with the effective step size :math:`s` (:func:`strongreg.effective_step_size`). In gradient mode :math:`\lambda r`,
    with :math:`r \in \partial\Omega(w)`, is added to ``.grad`` before the step, as if the penalty were part of the
    loss (docs/theory.md, equations 4 to 6).

    A tensor without gradient at a step is left alone, as torch's optimizers do. When ``step`` is given a closure, the
    gradient of its *first* evaluation is the one that is measured: LBFGS evaluates it many times at trial points, and
    the first is at the weights the step starts from. In gradient mode with LBFGS every evaluation carries the penalty,
    in the gradient and in the loss, so that the line search sees one consistent function.

    Args:
        model: the network. Its parameters are looked up once, here.
        penalty: one penalty for all weights of two or more dimensions outside normalization and embedding modules, or a
            mapping from name pattern to penalty or None (:func:`strongreg.groups.select_targets`).
        gate: when the penalty acts; ``CoherenceGate(0.7)`` by default.
        schedule: factor on the strength over the optimizer steps; ``Constant()`` by default. ``Refit`` turns the
            penalty off and freezes the zeros from a step on.
        mode: "proximal" (exact zeros) or "gradient".
        strength_scale: "uniform", or "inverse_std": the strength of a tensor is proportional to 1 / standard deviation
            of its weights when attached, with weighted mean 1.
        coherence_of: what the penalty must be coherent with: "gradient", the loss gradient; "step", the step that the
            optimizer takes; "auto", the default, the step in proximal mode with optimizers that rescale the gradient
            (Adam and its kin, docs/theory.md, equation 7), otherwise the gradient. "step" keeps a copy of the penalized
            weights during each step.
        history_every: record every n-th step in ``history``; 0 for none.

    Raises:
        TypeError: a part is of the wrong type.
        ValueError: an option is unknown, or nothing can be penalized.

    References:
        D. Park, C. Ho, Y. Chang, H. Zhang, *Gradient-Coherent Strong Regularization for Deep Neural Networks*, arXiv
        1811.08056.

    Example:
        >>> import torch, strongreg
        >>> model = torch.nn.Linear(4, 2)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        >>> reg = strongreg.Regularizer(model, strongreg.L1(0.5)).attach(optimizer)
        >>> model(torch.ones(1, 4)).sum().backward()
        >>> optimizer.step()
        >>> reg.summary().total.num_weights
        8
    """

    def __init__(
        self,
        model: nn.Module,
        penalty: PenaltySpec,
        *,
        gate: Gate | None = None,
        schedule: Schedule | None = None,
        mode: Mode = "proximal",
        strength_scale: StrengthScale = "uniform",
        coherence_of: CoherenceOf = "auto",
        history_every: int = 1,
    ) -> None:
        self.gate: Gate = check_type("gate", CoherenceGate() if gate is None else gate, Gate)
        self.schedule: Schedule = check_type("schedule", Constant() if schedule is None else schedule, Schedule)
        self.mode: Mode = check_choice("mode", mode, _MODES)
        self.strength_scale: StrengthScale = check_choice("strength_scale", strength_scale, _STRENGTH_SCALES)
        self.coherence_of: CoherenceOf = check_choice("coherence_of", coherence_of, _COHERENCE_OF)
        if mode == "gradient" and coherence_of == "step":
            raise ValueError(
                "coherence_of='step' needs mode='proximal': in gradient mode the penalty enters before the step"
            )
        self.targets: list[Target] = []
        self.history = History([], history_every)
        self._optimizer: Optimizer | None = None
        self._key = ""
        self._handles: list[Any] = []
        self._before: BeforeStep | None = None
        self._decision: Decision | None = None
        self._frozen: list[Tensor] = []
        self._num_calls = 0  # on the host: the number of steps, or more if a GradScaler made the device skip some
        self._set_targets(select_targets(model, penalty))

    def _set_targets(self, targets: list[Target]) -> None:
        if [t.param for t in self.targets] == [t.param for t in targets]:
            return
        self.targets = targets
        self.history = History([t.name for t in targets], self.history.every)
        self._index = GroupIndex(targets)
        self._scales = [1.0] * len(targets)
        self._counts = StepCounts(len(targets))
        self._zero_masks = ZeroMasks(len(targets))
        self._constants: dict[tuple[Any, ...], Tensor] = {}

    # ------------------------------------------------------------------ life cycle

    def attach(self, optimizer: Optimizer, key: str = "strongreg") -> Regularizer:
        """Register on an optimizer; the training loop stays as it is.

        Args:
            optimizer: any ``torch.optim`` optimizer that holds the penalized parameters; of a wrapper that keeps the
                real one in ``.optimizer`` (Accelerate) the real one is taken.
            key: the entry of ``optimizer.state_dict()`` that carries this object's state.

        Returns:
            This object.

        Raises:
            TypeError: it is not a torch optimizer, or its parameter groups have no learning rate.
            ValueError: the optimizer does not hold a penalized parameter, another Regularizer on it penalizes the same
                parameter or has the same key, or SGD's momentum is not below 1.
            RuntimeError: this object is attached already.
        """
        optimizer = unwrap(optimizer)
        if self._optimizer is not None:
            raise RuntimeError(f"this Regularizer is attached to {type(self._optimizer).__name__}: call detach() first")
        targets = held_targets(self.targets, optimizer)
        neighbours = _attached.setdefault(optimizer, weakref.WeakSet())
        for other in neighbours:
            other._check_compatible(targets, key)
        for group in optimizer.param_groups:
            effective_step_size(optimizer, group)
        warn_of_weight_decay(targets, optimizer)
        self._set_targets(targets)
        if self.strength_scale == "inverse_std" and self._num_calls == 0:
            self._scales = inverse_std_scales(targets)
        neighbours.add(self)
        self._optimizer, self._key = optimizer, key
        self._handles = [
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
            optimizer.register_state_dict_post_hook(self._save_into),
            optimizer.register_load_state_dict_pre_hook(self._load_from),
        ]
        return self

    def detach(self) -> None:
        """Remove every hook; the optimizer is as it was before ``attach``. History and counts stay readable."""
        for handle in self._handles:
            handle.remove()
        if self._optimizer is not None:
            _attached.get(self._optimizer, weakref.WeakSet()).discard(self)
        self._handles, self._optimizer = [], None

    def _check_compatible(self, targets: list[Target], key: str) -> None:
        mine = {id(t.param) for t in self.targets}
        shared = [t.name for t in targets if id(t.param) in mine]
        if shared:
            raise ValueError(
                f"another Regularizer on this optimizer penalizes {shared} already: detach it, or exclude them from one"
            )
        if key == self._key:
            raise ValueError(
                f"another Regularizer on this optimizer has the key {key!r}: pass another attach(..., key=)"
            )

    # ------------------------------------------------------------------ what to read

    @property
    def num_steps(self) -> int:
        """Optimizer steps done while attached."""
        return int(self._counts.step)

    @property
    def num_nonfinite(self) -> int:
        """Steps with NaN or infinity in the loss gradient; the gate stayed closed."""
        return int(self._counts.num_nonfinite)

    @torch.no_grad()
    def penalty_value(self) -> Tensor:
        r"""The penalty :math:`\lambda\,\Omega(w)` of the whole network at full strength, per-tensor scales included.

        Returns:
            0-d tensor on the device of the first penalized parameter, in units of the loss.
        """
        return self._weighted_value(self._scales)

    @torch.no_grad()
    def summary(self) -> Summary:
        """Weights, zeros, compression and share of open steps, per layer and in total.

        Returns:
            A :class:`strongreg.Summary`; ``print`` it for a table.
        """
        steps = self.num_steps
        shares = [count / steps if steps else math.nan for count in self._counts.num_open.tolist()]
        rows = tuple(
            SummaryRow(t.name, tuple(t.param.shape), t.param.numel(), int((t.param == 0).sum()), share)
            for t, share in zip(self.targets, shares, strict=True)
        )
        makes_zeros = self.mode == "proximal" and any(t.penalty.has_exact_zeros for t in self.targets)
        zeros_moved = makes_zeros and steps <= self.schedule.refit_start and not bool(self._counts.last_open.all())
        return Summary(rows, steps, self.num_nonfinite, zeros_moved)

    def _weighted_value(self, multipliers: Sequence[float | Tensor]) -> Tensor:
        device = self.targets[0].param.device
        values = [m * t.penalty.value(t.param).to(device) for t, m in zip(self.targets, multipliers, strict=True)]
        return torch.stack(values).sum()

    # ------------------------------------------------------------------ checkpoints

    def state_dict(self) -> dict[str, Any]:
        """Everything a resumed run needs, as tensors and plain data (it loads with ``weights_only=True``).

        ``optimizer.state_dict()`` carries it already; this is for checkpointers that rebuild the optimizer's
        dictionary.

        Returns:
            A dictionary for :meth:`load_state_dict`.
        """
        return {
            "version": _STATE_VERSION,
            **self._hyperparameters(),
            "scales": list(self._scales),
            "counts": self._counts.state_dict(),
            "zero_masks": self._zero_masks.state_dict(self.targets),
            "history": self.history.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where ``state_dict`` was taken.

        As with a torch optimizer, saved hyper-parameters replace those of this object; a difference is a warning.

        Args:
            state: what :meth:`state_dict` returned.

        Raises:
            ValueError: the state is of another version, for other parameters, or for parts of other classes; nothing is
                changed then.
        """
        if state.get("version") != _STATE_VERSION:
            raise ValueError(
                f"the saved state has version {state.get('version')!r}, this strongreg reads {_STATE_VERSION}"
            )
        names = [t.name for t in self.targets]
        if list(state["penalties"]) != names:
            different = sorted(set(state["penalties"]) ^ set(names)) or "the same names in another order"
            raise ValueError(
                f"the saved state is for other parameters ({different}): build the Regularizer on the same network "
                "with the same patterns"
            )
        mode = check_choice("mode", state["mode"], _MODES)
        strength_scale = check_choice("strength_scale", state["strength_scale"], _STRENGTH_SCALES)
        coherence_of = check_choice("coherence_of", state["coherence_of"], _COHERENCE_OF)
        gate, schedule = restore(self.gate, state["gate"]), restore(self.schedule, state["schedule"])
        saved = state["penalties"]
        targets = [dataclasses.replace(t, penalty=restore(t.penalty, saved[t.name])) for t in self.targets]
        history = History(names, state["history_every"])
        history.load_state_dict(state["history"])
        counts = StepCounts(len(targets))
        counts.load_state_dict(state["counts"])
        zero_masks = ZeroMasks(len(targets))
        zero_masks.load_state_dict(targets, state["zero_masks"])

        before = self._hyperparameters()
        self.mode, self.strength_scale, self.coherence_of = mode, strength_scale, coherence_of
        self.gate, self.schedule = gate, schedule
        self.targets, self._index, self.history = targets, GroupIndex(targets), history
        self._scales = list(state["scales"])
        self._counts, self._zero_masks, self._num_calls = counts, zero_masks, int(counts.step)
        changed = [f"{k} was {v}, is now {state[k]}" for k, v in before.items() if v != state[k]]
        if changed:
            warnings.warn(
                f"the saved hyper-parameters replace those of this Regularizer: {'; '.join(changed)}", stacklevel=2
            )

    def _hyperparameters(self) -> dict[str, Any]:
        return {
            "mode": self.mode,
            "strength_scale": self.strength_scale,
            "coherence_of": self.coherence_of,
            "history_every": self.history.every,
            "gate": describe(self.gate),
            "schedule": describe(self.schedule),
            "penalties": {t.name: describe(t.penalty) for t in self.targets},
        }

    def __getstate__(self) -> dict[str, Any]:
        """Pickle and deepcopy keep everything but the attachment."""
        return {
            **self.__dict__,
            "_optimizer": None,
            "_key": "",
            "_handles": [],
            "_before": None,
            "_decision": None,
            "_frozen": [],
        }

    def _save_into(self, _optimizer: Optimizer, state_dict: dict[str, Any]) -> None:
        state_dict[self._key] = self.state_dict()

    def _load_from(self, _optimizer: Optimizer, state_dict: dict[str, Any]) -> None:
        if self._key in state_dict:
            self.load_state_dict(state_dict.pop(self._key))
            return
        warnings.warn(
            f"the loaded optimizer state has no entry {self._key!r}: step count, open counts and history of the "
            "Regularizer stay as they are; if its state was saved elsewhere, call its load_state_dict()",
            stacklevel=3,
        )

    # ------------------------------------------------------------------ one step

    def _before_step(
        self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        self._before, self._decision, self._frozen = None, None, []
        closure = args[1] if len(args) > 1 else kwargs.get("closure")  # torch passes the optimizer itself first
        if closure is None:
            self._on_gradients(optimizer)
            return None

        def closure_then_measure() -> Any:
            loss = closure()
            added = self._on_gradients(optimizer)
            return loss if added is None else loss + added

        if len(args) > 1:
            return (args[0], closure_then_measure, *args[2:]), kwargs
        return args, {**kwargs, "closure": closure_then_measure}

    @torch.no_grad()
    def _on_gradients(self, optimizer: Optimizer) -> Tensor | None:
        """Look at the gradients of the first evaluation; in gradient mode add the penalty's gradient at each one.

        Returns what LBFGS has to add to the loss in gradient mode, otherwise None.
        """
        if self._before is None:
            device, copy = self.targets[0].param.device, self._decides_after_step(optimizer)
            self._before = look_before_step(self.targets, optimizer, device, copy=copy)
            if not self._decides_after_step(optimizer):
                self._decision = self._decide(optimizer, self._before)
        if self.mode == "proximal" or self._decision is None:
            return None
        multipliers = self._per_target(self._decision.multipliers)
        signs = [gradient_sign(group) for group in self._index.groups(optimizer)]
        add_gradients(self.targets, multipliers, signs, loss_scale(optimizer))
        return self._weighted_value(multipliers) if isinstance(optimizer, LBFGS) else None

    @torch.no_grad()
    def _after_step(self, optimizer: Optimizer, _args: tuple[Any, ...], _kwargs: dict[str, Any]) -> None:
        before, decision, self._before, self._decision = self._before, self._decision, None, None
        if before is None:
            return
        if decision is None:
            decision = self._decide(optimizer, before)
        if self.mode == "proximal":
            parts = zip(
                self.targets, self._per_target(decision.multipliers), self._index.groups(optimizer), strict=True
            )
            for (target, multiplier, group), has_gradient in zip(parts, before.has_gradient, strict=True):
                if has_gradient:
                    shrink(target, multiplier, effective_step_size(optimizer, group))
        for target, mask in zip(self.targets, self._frozen, strict=bool(self._frozen)):
            target.param.masked_fill_(mask, 0.0)
        self._frozen = []
        self._count(decision)

    def _decides_after_step(self, optimizer: Optimizer) -> bool:
        if self.coherence_of == "auto":
            return self.mode == "proximal" and not follows_gradient(optimizer)
        return self.coherence_of == "step"

    def _decide(self, optimizer: Optimizer, before: BeforeStep) -> Decision:
        """Measure and decide; the weights are still those before the step, or ``before`` holds a copy of them."""
        groups = self._index.groups(optimizer)
        if self._decides_after_step(optimizer):
            (pulls, factors), pull_sq = step_pulls(self.targets, optimizer, groups, before), None
        else:
            (pulls, factors), pull_sq = gradient_pulls(self.targets, optimizer, groups), before.gradient_sq
        device = before.gradient_sq.device
        measured = measure(self.targets, pulls, factors, before.weights, device, pull_sq)
        self._counts.to(device)
        step = self._counts.step
        multipliers = self.schedule.factor(step) * self._constant(self._scales, scalar_dtype(device), device)
        allowed = self._constant(before.has_gradient, torch.bool, device) & (step < self.schedule.refit_start)
        decision, by_layer, overall = decide(before, measured, multipliers, self.gate, step, allowed)
        if self.history.wants(self._num_calls):
            num_weights = self._constant([t.param.numel() for t in self.targets], torch.int64, device)
            record = history_record(before, measured, multipliers, decision.opened, (by_layer, overall), num_weights)
            decision = dataclasses.replace(decision, record=record)
        self._note_zeros(before, decision)
        return decision

    def _note_zeros(self, before: BeforeStep, decision: Decision) -> None:
        """Remember the zeros for a refit to come, or freeze them in one."""
        start = self.schedule.refit_start
        if start == math.inf:
            return
        step, last_open = self._counts.step, self._counts.last_open
        # on an accelerator the host knows only the number of calls, of which a GradScaler may have skipped some
        has_begun = (self.num_steps if self._reading_is_free else self._num_calls) >= start
        if has_begun:
            in_refit = self._per_target((step >= start).expand(len(self.targets)))
            masks = self._zero_masks.frozen(before.weights)
            self._frozen = [mask & flag for mask, flag in zip(masks, in_refit, strict=True)]
        if not has_begun or not self._reading_is_free:
            # a step that a GradScaler skips on the device moves no zeros: count it as another open one
            opened = torch.where(decision.skipped | (step >= start), last_open, decision.opened)
            self._zero_masks.before_step(before.weights, self._per_target(last_open), self._per_target(opened))

    def _per_target(self, values: Tensor) -> Sequence[Any]:
        """The values as numbers on the CPU, where reading them is free, and as tensors elsewhere."""
        if self._reading_is_free:
            return list(values.tolist())
        return [value.to(t.param.device) for t, value in zip(self.targets, values.unbind(), strict=True)]

    def _count(self, decision: Decision) -> None:
        if decision.record is not None:
            self.history.append(decision.record, torch.where(decision.skipped, -1, self._counts.step))
        self._counts.count(decision, in_refit=self._counts.step >= self.schedule.refit_start)
        self._num_calls += 1
        if self._reading_is_free or self._num_calls % _NONFINITE_CHECK_STEPS == 0:
            self._counts.warn_once_of_nonfinite()

    def _constant(self, values: Sequence[float], dtype: torch.dtype, device: torch.device) -> Tensor:
        """A tensor of host numbers, kept: to send it to an accelerator at each step would wait for the accelerator."""
        key = (tuple(values), dtype, device)
        if key not in self._constants:
            self._constants[key] = torch.tensor(values, dtype=dtype, device=device)
        return self._constants[key]

    @property
    def _reading_is_free(self) -> bool:
        """Whether the host can look at a tensor without waiting for an accelerator."""
        return reading_is_free(self.targets[0].param.device)
