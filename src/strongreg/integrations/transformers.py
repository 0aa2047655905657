"""A Regularizer in the Trainer of Hugging Face Transformers."""

from __future__ import annotations

from typing import Any, Unpack

from strongreg.extras import how_to_install
from strongreg.groups import PenaltySpec
from strongreg.integrations.group_entry import carry, take
from strongreg.integrations.metrics import Metrics
from strongreg.integrations.options import KEY, Builder, RegularizerOptions
from strongreg.optimizers import unwrap
from strongreg.regularizer import Regularizer
from strongreg.warning import warn

try:
    from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"strongreg.integrations.transformers needs the package {error.name}: {how_to_install('transformers')}",
        name=error.name,
    ) from error

_SAVED_AT = "global_step"


class RegularizerCallback(TrainerCallback):
    """Regularizes what a Trainer trains, writes into its logs, and goes on from its checkpoints.

    Training begins with a new Regularizer on the Trainer's optimizer, or with the one of the checkpoint that
    ``train(resume_from_checkpoint=...)`` goes on from. The training logs (those with a loss) get the entries of
    :meth:`strongreg.integrations.metrics.Metrics.read`, in ``trainer.state.log_history``, and for the callbacks that
    come after this one.

    The Trainer loads its optimizer before any callback sees it, and torch drops what nobody has asked for, except in a
    parameter group; so the state lies in the checkpoint's first parameter group, too, with the Trainer's step. A
    checkpoint of another step, for there was training without this callback in between, begins anew with a warning, as
    does one without a state. FSDP and DeepSpeed write the optimizer in their own way: the state is not carried there.

    Args:
        penalty: as for :class:`strongreg.Regularizer`.
        key: the entry of ``optimizer.state_dict()`` with the state, and how the names of the metrics begin; each of
            several callbacks needs its own.
        **options: the keyword arguments of Regularizer: gate, schedule and so on.

    Attributes:
        regularizer: the Regularizer; None before the first training.

    Raises:
        TypeError: Regularizer has no such argument, or the key is no string.
        ValueError: torch uses the key itself.

    Example:
        >>> import strongreg
        >>> from strongreg.integrations.transformers import RegularizerCallback
        >>> callback = RegularizerCallback(strongreg.L1(1e-3), gate=strongreg.CoherenceGate(0.7))
        >>> # trainer = Trainer(model, args, train_dataset=..., callbacks=[callback]); trainer.train()
    """

    def __init__(self, penalty: PenaltySpec, *, key: str = KEY, **options: Unpack[RegularizerOptions]) -> None:
        self._builder = Builder(penalty, key, **options)
        self.regularizer: Regularizer | None = None
        self._metrics: Metrics | None = None
        self._handle: Any = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Attach; the optimizer exists, and is loaded where a run goes on.

        Args:
            args: the Trainer's arguments.
            state: where the run is.
            control: what the Trainer does next.
            **kwargs: the network, the optimizer and more.

        Raises:
            TypeError: the optimizer is none of torch.
            ValueError: the Regularizer does not fit the network, the optimizer or the checkpoint.
        """
        optimizer, key = unwrap(kwargs["optimizer"]), self._builder.key
        saved = take(optimizer, key)
        if self.regularizer is not None:
            self.regularizer.detach()
            self._handle.remove()
        self.regularizer = self._builder.attach(kwargs["model"], optimizer)
        self._handle = carry(optimizer, key, lambda: {_SAVED_AT: state.global_step})
        saved_at = None if saved is None else saved.get(_SAVED_AT)
        if saved is not None and saved_at == state.global_step:
            self.regularizer.load_state_dict(saved)
        elif state.global_step > 0:
            what = "no state of a Regularizer" if saved is None else f"a Regularizer's state of step {saved_at}"
            warn(
                f"the checkpoint of step {state.global_step} has {what}, since it was trained without: this one begins "
                "anew, with step 0 of its schedule"
            )
        self._metrics = Metrics(self.regularizer, key)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Add the metrics to a training log.

        Args:
            args: the Trainer's arguments.
            state: where the run is; its last log is completed.
            control: what the Trainer does next.
            logs: what the callbacks after this one see; completed.
            **kwargs: the network, the optimizer and more.
        """
        if self._metrics is None or logs is None or "loss" not in logs:
            return
        values = self._metrics.read()
        logs.update(values)
        if state.log_history:
            state.log_history[-1].update(values)
