"""The method on a torch optimizer: measures the coherence before a step, imposes the penalty where the gate is open."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch._compile import _disable_dynamo
from torch.optim import LBFGS, Optimizer

from strongreg.attachment import Attachment, check_key, check_neighbours
from strongreg.checkpoint import Progress, read_progress, warn_of_changes
from strongreg.collapse import CollapseWatch
from strongreg.counts import StepCounts
from strongreg.decision import BeforeStep, Decision, decide, nothing_decided
from strongreg.devices import Constants, reading_is_free
from strongreg.gates import CoherenceGate, Gate
from strongreg.gpu.fast_path import FastPath
from strongreg.gpu.step import GpuStep
from strongreg.groups import PenaltySpec, Target, relative_strengths, select_targets
from strongreg.history import History
from strongreg.imposition import add_gradients, check_strengths, warn_of_lost_shrinkage, weighted_value
from strongreg.kernels import Passes
from strongreg.optimizers import (
    GroupIndex,
    StepArguments,
    effective_step_size,
    gradient_sign,
    held_targets,
    loss_scale,
    of_groups,
    unwrap,
    warn_of_weight_decay,
    with_closure,
)
from strongreg.pull import compares_with_step, look_before_step, products_of_step
from strongreg.refit import ZeroMasks
from strongreg.scalars import as_scalars, as_tensor, namespace, per_tensor
from strongreg.schedules import Constant, Schedule
from strongreg.settings import CoherenceOf, Mode, Settings, StrengthScale
from strongreg.strength_control import build_control
from strongreg.summary import Summary

_NONFINITE_CHECK_STEPS = 256


class Regularizer:
    r"""Imposes a penalty on a network's weights at the optimizer's steps, only while the gradients stay coherent.

    In proximal mode, after each step of the optimizer, for every penalized tensor whose gate is open,

    .. math:: w \leftarrow \mathrm{prox}_{s\,\lambda\,\Omega}(w)

    with the effective step size :math:`s` (:func:`strongreg.effective_step_size`). In gradient mode :math:`\lambda r`,
    with :math:`r \in \partial\Omega(w)`, is added to ``.grad`` before the step, as if the penalty were part of the
    loss (docs/theory.md, equations 4 to 6).

    Whose parameters are penalized is settled when it is built, and with ``attach``: a frozen parameter that the
    optimizer does not hold then, or one unfrozen later, is not penalized. For that, build a new one.

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
        mode: "proximal" (exact zeros) or "gradient" (docs/theory.md has a limit of it with float16 weights).
        strength_scale: "uniform", or "inverse_std": the strength of a tensor is proportional to 1 / standard deviation
            of its weights when first attached, with weighted mean 1.
        coherence_of: what the penalty must be coherent with: "gradient", the loss gradient; "step", the step that the
            optimizer takes; "auto", the default, the step in proximal mode with optimizers that rescale the gradient
            (Adam and its kin, docs/theory.md, equation 7), otherwise the gradient. "step" keeps a copy of the penalized
            weights during each step, but for Adam and AdamW on the CPU.
        target_compression: weights to nonzero weights, over all penalized parameters, that the run is to end at. The
            strength, at first the penalty's, adapts until the start of the ``Refit`` that the schedule must be
            (docs/theory.md, equations 8 and 9).
        history_every: record every n-th step in ``history``; 0 for none.
        warn_of_collapse: warn once when the recorded steps show that the penalty has taken over.

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
        target_compression: float | None = None,
        history_every: int = 1,
        warn_of_collapse: bool = True,
    ) -> None:
        gate = CoherenceGate() if gate is None else gate
        schedule = Constant() if schedule is None else schedule
        self._set_settings(Settings(gate, schedule, mode, strength_scale, coherence_of, target_compression))
        self._attachment: Attachment | None = None
        self._before: BeforeStep | None = None
        self._decision: Decision | None = None
        self._marked: list[Any] | None = None
        self._on_gpu: GpuStep | None = None
        self._num_calls = 0  # on the host: the number of steps, or more if a GradScaler made the device skip some
        self._set_targets(select_targets(model, penalty))
        self.history = History([t.name for t in self.targets], history_every)
        self._scales: list[float] | None = None
        self._counts = StepCounts(len(self.targets))
        self._zero_masks = ZeroMasks(len(self.targets))
        self._constant = Constants()
        self._watch = CollapseWatch(enabled=warn_of_collapse)
        self._control = build_control(self._settings(), self.targets)

    def _set_settings(self, settings: Settings) -> None:
        self.gate, self.schedule, self.mode = settings.gate, settings.schedule, settings.mode
        self.strength_scale, self.coherence_of = settings.strength_scale, settings.coherence_of
        self.target_compression = settings.target_compression

    def _set_targets(self, targets: list[Target]) -> None:
        self.targets = targets
        self._index, self._passes, self._fast_path = GroupIndex(targets), Passes(targets), FastPath(targets)

    def _keep(self, rows: list[int]) -> None:
        """Leave out the targets that an optimizer does not hold; what is known of the others stays."""
        if len(rows) < len(self.targets):
            control = build_control(self._settings(), [self.targets[i] for i in rows])
            control.load_state_dict(self._control.state_of(rows))
            self._set_targets([self.targets[i] for i in rows])
            self.history, self._counts = self.history.select(rows), self._counts.select(rows)
            self._zero_masks, self._control = self._zero_masks.select(rows), control

    def __repr__(self) -> str:
        """The parts, and where it is attached."""
        penalties = list(dict.fromkeys(repr(t.penalty) for t in self.targets))
        held = self._attachment
        attached = "not attached" if held is None else f"attached to {type(held.optimizer).__name__}"
        target = "" if self.target_compression is None else f"target_compression={self.target_compression!r}, "
        return (
            f"Regularizer({', '.join(penalties)} on {len(self.targets)} parameters, gate={self.gate!r}, "
            f"schedule={self.schedule!r}, mode={self.mode!r}, {target}{attached})"
        )

    # ------------------------------------------------------------------ life cycle

    def attach(self, optimizer: Optimizer, key: str = "strongreg") -> Regularizer:
        """Register on an optimizer; the training loop stays as it is.

        Attach before ``optimizer.load_state_dict(...)``: torch drops what nobody has asked for, and a state of this
        object that is loaded before is lost without a word.

        Args:
            optimizer: any ``torch.optim`` optimizer that holds the penalized parameters; of a wrapper that keeps the
                real one in ``.optimizer`` (Accelerate) the real one is taken.
            key: the entry of ``optimizer.state_dict()`` that carries this object's state.

        Returns:
            This object.

        Raises:
            TypeError: it is not a torch optimizer, its parameter groups have no learning rate, or the key is no string.
            ValueError: the optimizer does not hold a penalized parameter, another Regularizer on it penalizes the same
                parameter or has the same key, torch uses the key itself, SGD's momentum is not below 1, or a strength
                is infinite in the precision of its parameter.
            RuntimeError: this object is attached already.
        """
        optimizer = unwrap(optimizer)
        if self._attachment is not None:
            name = type(self._attachment.optimizer).__name__
            raise RuntimeError(f"this Regularizer is attached to {name}: call detach() first")
        check_key(key)
        targets = held_targets(self.targets, optimizer)
        check_neighbours(targets, key, optimizer)
        step_sizes = [effective_step_size(optimizer, group) for group in GroupIndex(targets).groups(optimizer)]
        warn_of_weight_decay(targets, optimizer)
        rows = [i for i, t in enumerate(self.targets) if any(t is held for held in targets)]
        scales = [self._scales[i] for i in rows] if self._scales else relative_strengths(targets, self.strength_scale)
        check_strengths(targets, scales)
        self._keep(rows)
        self._scales = scales
        if self.mode == "proximal":
            warn_of_lost_shrinkage(self._passes.shards.targets(), scales, step_sizes)
        self._attachment = Attachment(
            optimizer,
            key,
            lambda: self.targets,
            before_step=self._before_step,
            after_step=self._after_step,
            save=self.state_dict,
            read=self._read,
            resume=self._continue_from,
        )
        return self

    def detach(self) -> None:
        """Remove every hook; the optimizer is as it was before ``attach``. History and counts stay readable."""
        if self._attachment is not None:
            self._attachment.remove()
            self._fast_path.release()
        self._attachment = None

    # ------------------------------------------------------------------ what to read

    @property
    def num_steps(self) -> int:
        """Optimizer steps done while attached."""
        return int(self._counts.step)

    @property
    def num_nonfinite(self) -> int:
        """Steps with NaN or infinity in the loss gradient; the gate stayed closed."""
        return int(self._counts.num_nonfinite)

    @property
    def strength_factor(self) -> float:
        """What ``target_compression`` makes of the strength now, a factor; 1 without it."""
        return self._control.factor

    @torch.no_grad()
    def penalty_value(self) -> Tensor:
        r"""The penalty :math:`\lambda\,\Omega(w)` of the whole network at full strength, per-tensor scales included.

        Returns:
            0-d tensor on the device of the first penalized parameter, in units of the loss.
        """
        return weighted_value(self._passes.shards, self._scales or [1.0] * len(self.targets))

    @torch.no_grad()
    def summary(self) -> Summary:
        """Weights, zeros, compression and share of open steps, per layer and in total.

        Returns:
            A :class:`strongreg.Summary`; ``print`` it. Processes that hold parts of the network must all ask.
        """
        makes_zeros = self.mode == "proximal" and self.num_steps <= self.schedule.refit_start
        return self._counts.summary(self.targets, self._passes.shards.num_zeros(), makes_zeros=makes_zeros)

    # ------------------------------------------------------------------ checkpoints

    def state_dict(self) -> dict[str, Any]:
        """Everything a resumed run needs, as tensors and plain data (it loads with ``weights_only=True``).

        ``optimizer.state_dict()`` carries it already; this is for checkpointers that rebuild the optimizer's
        dictionary and drop what they do not know (``torch.distributed.checkpoint``).

        Returns:
            A dictionary for :meth:`load_state_dict`.
        """
        return self._progress().state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where ``state_dict`` was taken.

        As with a torch optimizer, saved hyper-parameters replace those of this object; a difference is a warning. Where
        both are loaded by themselves, call this after the optimizer's: with ``torch.distributed.checkpoint`` after
        ``set_optimizer_state_dict``, which takes a step of the optimizer to make it create its state. (Such a step, of
        learning rate 0 and with gradients of 0 everywhere, does not count as one of ours.)

        Args:
            state: what :meth:`state_dict` returned.

        Raises:
            ValueError: the state is damaged, of another version, for other parameters, or for parts of other classes;
                nothing is changed then.
        """
        self._continue_from(self._read(state))

    def _progress(self) -> Progress:
        return Progress(
            self._settings(),
            self.targets,
            self._scales,
            self._counts,
            self._num_calls,
            self._zero_masks,
            self.history,
            self._control,
        )

    def _settings(self) -> Settings:
        return Settings(
            self.gate, self.schedule, self.mode, self.strength_scale, self.coherence_of, self.target_compression
        )

    def _read(self, state: dict[str, Any]) -> Progress:
        """Read a saved state without changing anything."""
        progress = read_progress(state, self._settings(), self.targets, attached=self._attachment is not None)
        if self._attachment is not None:
            check_strengths(progress.targets, progress.scales or [1.0] * len(progress.targets))
        return progress

    def _continue_from(self, progress: Progress) -> None:
        kept = {t.name for t in progress.targets}
        scales_fit = len(kept) == len(self.targets) and progress.settings.strength_scale == self.strength_scale
        self.targets = [t for t in self.targets if t.name in kept]
        before = self._progress().hyperparameters()
        self._set_settings(progress.settings)
        self._set_targets(progress.targets)
        self.history = progress.history
        if progress.scales is not None or self._scales is None:
            self._scales = progress.scales
        elif not scales_fit:  # saved before the first attachment, while this object has had its own
            self._scales = relative_strengths(progress.targets, self.strength_scale)
        self._counts, self._num_calls, self._control = progress.counts, progress.num_calls, progress.control
        self._zero_masks = progress.zero_masks
        warn_of_changes(before, progress.hyperparameters())

    def __getstate__(self) -> dict[str, Any]:
        """Pickle and deepcopy keep everything but the attachment."""
        return {
            **self.__dict__,
            "_attachment": None,
            "_before": None,
            "_decision": None,
            "_marked": None,
            "_on_gpu": None,
            "_passes": Passes(self.targets),
            "_fast_path": FastPath(self.targets),
        }

    # ------------------------------------------------------------------ one step

    @_disable_dynamo
    def _before_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> StepArguments | None:
        if self._attachment is None or not self._attachment.nesting.enter():
            return None
        self._before, self._decision, self._marked, self._on_gpu = None, None, None, None

        def measured(closure: Any) -> Any:
            def closure_then_measure() -> Any:
                loss = closure()
                added = self._on_gradients_of_closure(optimizer)
                return loss if added is None else loss + added

            return closure_then_measure

        changed = with_closure(args, kwargs, measured)
        if changed is None:
            self._on_gradients(optimizer)
        return changed

    @_disable_dynamo
    def _on_gradients_of_closure(self, optimizer: Optimizer) -> Tensor | None:
        return self._on_gradients(optimizer)

    @torch.no_grad()
    def _on_gradients(self, optimizer: Optimizer) -> Tensor | None:
        """Look at the gradients of the first evaluation; in gradient mode add the penalty's gradient at each one.

        Returns what LBFGS has to add to the loss in gradient mode, otherwise None.
        """
        if self._before is None and self._on_gpu is None:
            parts = self.gate, self.schedule, self.mode, self.coherence_of, self._control, self._scales or ()
            self._on_gpu = self._fast_path.begin(optimizer, (self._counts, self._zero_masks, self._num_calls), *parts)
        if self._on_gpu is not None:
            return None
        if self._before is None:
            in_refit = self._reading_is_free and self.num_steps >= self.schedule.refit_start
            self._before = look_before_step(
                self.targets,
                self._passes,
                optimizer,
                self._index.groups(optimizer),
                self.targets[0].param.device,
                products=(self._is_penalized and not in_refit) or self.history.wants(self._num_calls_or_steps),
                of_step=self._is_penalized and compares_with_step(self.coherence_of, self.mode, optimizer),
            )
            if not self._before.after:
                self._decision = self._decide(optimizer, self._before)
        if self.mode == "proximal" or self._decision is None:
            return None
        multipliers, shards = per_tensor(self._decision.multipliers, self._devices), self._passes.shards
        signs = [gradient_sign(group) for group in self._before.groups]
        add_gradients(self.targets, shards.targets(), multipliers, signs, loss_scale(optimizer))
        return weighted_value(shards, multipliers) if isinstance(optimizer, LBFGS) else None

    @_disable_dynamo
    @torch.no_grad()
    def _after_step(self, optimizer: Optimizer, _args: tuple[Any, ...], _kwargs: dict[str, Any]) -> None:
        if self._attachment is None or not self._attachment.nesting.leave():
            return
        on_gpu, self._on_gpu = self._on_gpu, None
        if on_gpu is not None:
            on_gpu.after_step(optimizer, self._counts, self.history, records=self.history.wants(self._num_calls))
            self._look()
            return
        before, decision, self._before, self._decision = self._before, self._decision, None, None
        if before is None:
            return
        decision = self._decide(optimizer, before) if decision is None else decision
        if self.mode == "proximal":
            sizes = of_groups(before.groups, lambda group: effective_step_size(optimizer, group))
            steps = [size if has else 0.0 for size, has in zip(sizes, before.has_gradient, strict=True)]
            multipliers = per_tensor(decision.multipliers, self._devices)
            self._control.shrink(self._passes, multipliers, steps, decision, self._counts, self._num_calls)
        marked, self._marked = self._marked, None
        if marked is not None:
            self._passes.set_zeros(marked)
        self._count(decision)

    @property
    def _is_penalized(self) -> bool:
        return any(target.penalty.strength > 0 for target in self.targets)

    def _decide(self, optimizer: Optimizer, before: BeforeStep) -> Decision:
        """Measure and decide; the weights are still those before the step, or ``before`` holds a copy of them."""
        device = self.targets[0].param.device
        self._counts.to(device)
        step = self._counts.step
        has_gradient = as_scalars(self._constant(before.has_gradient, torch.bool, device))
        allowed = has_gradient & (as_scalars(step) < self.schedule.refit_start)
        products = before.products
        if before.after:
            products = products_of_step(self._passes, optimizer, before, device)
        if products is None:
            decision = nothing_decided(before, allowed)
        else:
            factors = self._control.factors(self.targets, self._scales or (), device)
            multipliers = as_scalars(self.schedule.factor(step)) * factors
            sizes = self._constant(self._passes.shards.sizes, torch.int64, device)
            recorded = as_scalars(sizes) if self.history.wants(self._num_calls_or_steps) else None
            decision = decide(before, products, multipliers, self.gate, step, allowed, recorded)
        start, num_steps = self.schedule.refit_start, self._num_calls_or_steps
        frozen = self._zero_masks.look(self.targets, before, decision, self._counts, start, num_steps)
        if frozen is not None:
            self._marked = self._passes.mark_zeros(before.weights, self._zero_masks.hidden, frozen)
        return decision

    def _count(self, decision: Decision) -> None:
        if decision.record is not None:
            step = as_scalars(self._counts.step)
            number = namespace(step).where(decision.skipped, -1, step)
            self.history.append(as_tensor(decision.record), as_tensor(number))
        self._counts.count(decision)
        self._look()

    def _look(self) -> None:
        """Look back at a step that is done."""
        self._watch.look(self.history)
        self._num_calls += 1
        self._control.look(self._passes.shards, self._counts, self._num_calls)
        if self._reading_is_free or self._num_calls % _NONFINITE_CHECK_STEPS == 0:
            self._counts.warn_once_of_nonfinite()

    @property
    def _devices(self) -> list[torch.device]:
        return [target.param.device for target in self.targets]

    @property
    def _num_calls_or_steps(self) -> int:
        """Steps done; on an accelerator calls, all that the host knows, of which a GradScaler may have skipped some."""
        return self.num_steps if self._reading_is_free else self._num_calls

    @property
    def _reading_is_free(self) -> bool:
        """Whether the host can look at a tensor without waiting for an accelerator."""
        return reading_is_free(self.targets[0].param.device)
