"""A Regularizer in the networks of skorch, which are estimators of scikit-learn."""

from __future__ import annotations

from typing import Any

from strongreg.extras import how_to_install
from strongreg.gates import Gate
from strongreg.groups import PenaltySpec
from strongreg.integrations.metrics import Metrics
from strongreg.regularizer import Regularizer
from strongreg.schedules import Schedule
from strongreg.settings import CoherenceOf, Mode, StrengthScale

try:
    from skorch.callbacks import Callback
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"strongreg.integrations.skorch needs the package {error.name}: {how_to_install('skorch')}", name=error.name
    ) from error


class RegularizerCallback(Callback):
    """Regularizes ``net.module_`` at the steps of ``net.optimizer_``, and writes into ``net.history``.

    ``fit`` begins with a new Regularizer; ``partial_fit``, ``fit`` with ``warm_start=True`` and an unpickled network go
    on with the one they have. Each epoch gets the entries of :meth:`strongreg.integrations.metrics.Metrics.read`.

    All arguments are parameters in scikit-learn's sense, ``callbacks__NAME__penalty`` and so on, to be cloned and
    searched over. Checkpoints of the optimizer (``save_params(f_optimizer=...)``, skorch's Checkpoint) carry the
    Regularizer's state; with LoadInitState this callback must come first in the list.

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
        # skorch takes for parameters what does not end with an underscore
        self.regularizer_: Regularizer | None = None
        self.trained_: tuple[Any, Any] = (None, None)
        self.saved_: dict[str, Any] | None = None
        self.metrics_: Metrics | None = None

    def initialize(self) -> RegularizerCallback:
        """Forget what has been trained: skorch does this where a network begins anew.

        Returns:
            This object.
        """
        if self.regularizer_ is not None:
            self.regularizer_.detach()
        self.regularizer_, self.trained_, self.saved_, self.metrics_ = None, (None, None), None, None
        return self

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
        if optimizer is net.optimizer_ and module is net.module_:
            return
        saved = self.saved_
        if self.regularizer_ is not None:
            self.regularizer_.detach()
            saved = self.regularizer_.state_dict() if module is net.module_ else None
        self.regularizer_ = Regularizer(net.module_, **self.get_params(deep=False)).attach(net.optimizer_)
        if saved is not None:
            self.regularizer_.load_state_dict(saved)
        self.trained_, self.saved_, self.metrics_ = (net.module_, net.optimizer_), None, None

    def on_epoch_begin(self, net: Any, dataset_train: Any = None, dataset_valid: Any = None, **kwargs: Any) -> None:
        """Begin to count what is logged; a checkpoint has been loaded.

        Args:
            net: the network of skorch.
            dataset_train: what it is trained with.
            dataset_valid: what it is validated with.
            **kwargs: more from skorch.
        """
        if self.metrics_ is None and self.regularizer_ is not None:
            self.metrics_ = Metrics(self.regularizer_)

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
        return {**state, "regularizer_": None, "trained_": (None, None), "metrics_": None}
