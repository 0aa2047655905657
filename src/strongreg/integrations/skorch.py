"""A Regularizer in the networks of skorch, which are estimators of scikit-learn."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import nn

from strongreg.extras import how_to_install
from strongreg.gates import Gate
from strongreg.groups import PenaltySpec
from strongreg.integrations.group_entry import carry, take
from strongreg.integrations.metrics import Metrics
from strongreg.integrations.options import KEY, Builder
from strongreg.regularizer import Regularizer
from strongreg.schedules import Schedule
from strongreg.settings import CoherenceOf, Mode, StrengthScale
from strongreg.warning import warn

try:
    from skorch.callbacks import Callback
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"strongreg.integrations.skorch needs the package {error.name}: {how_to_install('skorch')}", name=error.name
    ) from error


_WEIGHTS = "weights"


class RegularizerCallback(Callback):
    """Regularizes ``net.module_`` at the steps of ``net.optimizer_``, and writes into ``net.history``.

    ``fit`` begins with a new Regularizer; ``partial_fit``, ``fit`` with ``warm_start=True`` and an unpickled network go
    on with the one they have. Each epoch gets the entries of :meth:`strongreg.integrations.metrics.Metrics.read`.

    All arguments are parameters in scikit-learn's sense, ``callbacks__NAME__penalty`` and so on, to be cloned and
    searched over. Where ``set_params`` of the network sets one of a callback, skorch makes all callbacks anew: a
    ``partial_fit`` after that begins with step 0 of the schedule, and a warning. A search fits clones, without one.

    Checkpoints of the optimizer (``save_params(f_optimizer=...)``, skorch's Checkpoint) carry the Regularizer's state,
    also into a network that is only initialized, for ``load_params`` and ``partial_fit``, and with LoadInitState before
    or after this callback. Where the weights are not those that the state was saved with (there was training without
    this callback since, or they were not loaded), a new one begins, with a warning.

    Args:
        penalty: as for :class:`strongreg.Regularizer`, as all others.
        gate: when the penalty acts; None for the default.
        schedule: factor on the strength over the optimizer steps; None for the default.
        mode: "proximal" or "gradient".
        strength_scale: "uniform" or "inverse_std".
        coherence_of: "auto", "gradient" or "step".
        target_compression: weights to nonzero weights to end at; None to leave the strength alone.
        history_every: record every n-th step; 0 for none.
        warn_of_collapse: whether to warn.
        key: the entry of ``optimizer.state_dict()`` with the state, and how the names of the metrics begin; each of
            several callbacks needs its own.

    Attributes:
        regularizer_: the Regularizer; None before the first training and after unpickling, until the next one.

    Example:
        >>> import strongreg
        >>> from strongreg.integrations.skorch import RegularizerCallback
        >>> callback = RegularizerCallback(strongreg.L1(1e-3), gate=strongreg.CoherenceGate(0.7))
        >>> callback.get_params()["penalty"]
        L1(strength=0.001)
        >>> # skorch.NeuralNetClassifier(module, callbacks=[("strongreg", callback)]).fit(X, y)
    """

    def __init__(
        self,
        penalty: PenaltySpec,
        gate: Gate | None = None,
        schedule: Schedule | None = None,
        mode: Mode = "proximal",
        strength_scale: StrengthScale = "uniform",
        coherence_of: CoherenceOf = "auto",
        target_compression: float | None = None,
        history_every: int = 1,
        warn_of_collapse: bool = True,
        key: str = KEY,
    ) -> None:
        self.penalty = penalty
        self.gate = gate
        self.schedule = schedule
        self.mode = mode
        self.strength_scale = strength_scale
        self.coherence_of = coherence_of
        self.target_compression = target_compression
        self.history_every = history_every
        self.warn_of_collapse = warn_of_collapse
        self.key = key
        # skorch takes for parameters what does not end with an underscore
        self.regularizer_: Regularizer | None = None
        self.trained_: tuple[Any, Any] = (None, None)
        self.saved_: dict[str, Any] | None = None
        self.metrics_: Metrics | None = None
        self.handle_: Any = None

    def initialize(self) -> RegularizerCallback:
        """Forget what has been trained: skorch does this where a network begins anew.

        Returns:
            This object.
        """
        self._detach()
        self.regularizer_, self.trained_, self.saved_, self.metrics_ = None, (None, None), None, None
        return self

    def _detach(self) -> None:
        if self.regularizer_ is not None:
            self.regularizer_.detach()
            self.handle_.remove()

    def on_train_begin(self, net: Any, X: Any = None, y: Any = None, **kwargs: Any) -> None:  # noqa: N803
        """Attach to the optimizer, if it is another one than the last time.

        Args:
            net: the network of skorch.
            X: the inputs.
            y: the targets.
            **kwargs: more from skorch.

        Raises:
            TypeError: a part is of the wrong type.
            ValueError: the Regularizer does not fit the network or the optimizer.
        """
        module, optimizer = self.trained_
        loaded = take(net.optimizer_, self.key)
        if optimizer is net.optimizer_ and module is net.module_:
            return  # what has been loaded was loaded into the Regularizer, too
        is_new, saved = module is None and self.saved_ is None, self.saved_
        if self.regularizer_ is not None:
            saved = self.regularizer_.state_dict() if module is net.module_ else None
        if loaded is not None:
            saved = loaded if loaded.get(_WEIGHTS) == _digest(net.module_) else None
        if saved is None and (loaded is not None or (is_new and len(net.history))):
            warn(_why_anew(loaded is not None, len(net.history)))
        self._detach()
        module, optimizer = net.module_, net.optimizer_
        self.regularizer_ = Builder(**self.get_params(deep=False)).attach(module, optimizer)
        self.handle_ = carry(optimizer, self.key, lambda: {_WEIGHTS: _digest(module)})
        if saved is not None:
            self.regularizer_.load_state_dict(saved)
        self.trained_, self.saved_, self.metrics_ = (module, optimizer), None, None

    def on_epoch_begin(self, net: Any, dataset_train: Any = None, dataset_valid: Any = None, **kwargs: Any) -> None:
        """Begin to count what is logged; a checkpoint has been loaded.

        Args:
            net: the network of skorch.
            dataset_train: what it is trained with.
            dataset_valid: what it is validated with.
            **kwargs: more from skorch.
        """
        take(net.optimizer_, self.key)  # loaded while attached: soon out of date
        if self.metrics_ is None and self.regularizer_ is not None:
            self.metrics_ = Metrics(self.regularizer_, self.key)

    def on_epoch_end(self, net: Any, dataset_train: Any = None, dataset_valid: Any = None, **kwargs: Any) -> None:
        """Write into the history.

        Args:
            net: the network of skorch.
            dataset_train: what it is trained with.
            dataset_valid: what it is validated with.
            **kwargs: more from skorch.
        """
        if self.metrics_ is not None:
            for name, value in self.metrics_.read().items():
                net.history.record(name, value)

    def __getstate__(self) -> dict[str, Any]:
        """Pickle and deepcopy keep the state of the Regularizer, without the weights that skorch keeps."""
        state = dict(self.__dict__)
        if self.regularizer_ is not None:
            state["saved_"] = self.regularizer_.state_dict()
        return {**state, "regularizer_": None, "trained_": (None, None), "metrics_": None, "handle_": None}


def _digest(module: nn.Module) -> str:
    """Which weights they are, bit for bit."""
    digest = hashlib.sha256()
    for parameter in module.parameters():
        digest.update(parameter.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _why_anew(is_stale: bool, num_epochs: int) -> str:
    if is_stale:
        why = "the loaded optimizer holds a Regularizer's state for other weights than the network has (it was trained "
        why += "on without this callback, or its weights were not loaded)"
    else:
        why = f"the network has been trained for {num_epochs} epochs, and there is no state of a Regularizer from then "
        why += "(trained without this callback, or set_params of a callback has made them all anew)"
    return f"{why}: this one begins anew, with step 0 of its schedule"
