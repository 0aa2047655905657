"""A Regularizer in the Trainer of Lightning."""

from __future__ import annotations

from typing import Any, Unpack

from torch.optim import Optimizer

from strongreg.extras import how_to_install
from strongreg.groups import PenaltySpec
from strongreg.integrations.metrics import Metrics
from strongreg.integrations.options import KEY, Builder, RegularizerOptions
from strongreg.regularizer import Regularizer

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
    from lightning.pytorch.trainer.states import TrainerFn
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"strongreg.integrations.lightning needs the package {error.name}: {how_to_install('lightning')}",
        name=error.name,
    ) from error


class RegularizerCallback(Callback):
    """Regularizes what a Trainer fits, and writes into its logs.

    At the start of a fit a new Regularizer is attached to the optimizer of ``configure_optimizers``. A checkpoint is
    loaded after that, so that ``fit(ckpt_path=...)`` goes on with the Regularizer's state, too. Every
    ``log_every_n_steps`` the loggers get the entries of :meth:`strongreg.integrations.metrics.Metrics.read`.
    EarlyStopping and ModelCheckpoint can monitor them at the end of each epoch and of each validation, too.

    Args:
        penalty: as for :class:`strongreg.Regularizer`.
        optimizer: which one, where the module has several: its position in what ``configure_optimizers`` returns. It
            must hold all parameters that the penalty is for, which a mapping from name pattern to penalty can say.
        key: the entry of ``optimizer.state_dict()`` with the state, and how the names of the metrics begin; each of
            several callbacks needs its own.
        **options: the keyword arguments of Regularizer: gate, schedule and so on.

    Attributes:
        regularizer: the Regularizer; None before the first fit.

    Raises:
        TypeError: Regularizer has no such argument, or the key is no string.
        ValueError: torch uses the key itself.

    Example:
        >>> import strongreg
        >>> from strongreg.integrations.lightning import RegularizerCallback
        >>> callback = RegularizerCallback(strongreg.L1(1e-3), gate=strongreg.CoherenceGate(0.7))
        >>> # lightning.pytorch.Trainer(callbacks=[callback]).fit(module, loader)
    """

    def __init__(
        self,
        penalty: PenaltySpec,
        *,
        optimizer: int | None = None,
        key: str = KEY,
        **options: Unpack[RegularizerOptions],
    ) -> None:
        self._builder = Builder(penalty, key, **options)
        self._position = optimizer
        self.regularizer: Regularizer | None = None
        self._metrics: Metrics | None = None
        self._logged_at = 0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Attach: the optimizers exist, and no checkpoint has been loaded into them yet.

        Args:
            trainer: the Trainer.
            pl_module: the network.

        Raises:
            ValueError: there is no optimizer, not the one asked for, or there are several and none was asked for; or
                the Regularizer does not fit the network or the optimizer.
        """
        if self.regularizer is not None:
            self.regularizer.detach()
        optimizer = self._choose(trainer.optimizers)
        self.regularizer = self._builder.attach(pl_module, optimizer)

    def _choose(self, optimizers: list[Optimizer]) -> Optimizer:
        if self._position is None and len(optimizers) != 1:
            raise ValueError(
                f"configure_optimizers returned {len(optimizers)} optimizers: say which one to regularize by "
                "RegularizerCallback(..., optimizer=), its position; for several use several callbacks"
            )
        position = self._position or 0
        if not 0 <= position < len(optimizers):
            raise ValueError(
                f"RegularizerCallback(optimizer={position}): configure_optimizers returned {len(optimizers)} "
                f"optimizers, counted from 0"
            )
        return optimizers[position]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to count what is logged; a checkpoint has been loaded.

        Args:
            trainer: the Trainer.
            pl_module: the network.
        """
        if self.regularizer is not None:
            self._metrics, self._logged_at = Metrics(self.regularizer, self._builder.key), trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log, as often as the Trainer does, and at the last step of an epoch for who monitors.

        Args:
            trainer: the Trainer.
            pl_module: the network.
            outputs: what the training step returned.
            batch: the batch.
            batch_idx: its number.
        """
        every, step = trainer.log_every_n_steps, trainer.global_step
        is_due = every > 0 and step % every == 0
        is_last = trainer.is_last_batch or step == trainer.max_steps
        if self._metrics is None or not (is_due or is_last) or step == self._logged_at:
            return
        if is_due:
            self._logged_at = step
        # what no logger takes is told again by the next log
        pl_module.log_dict(self._metrics.read(keep=not is_due), on_step=True, on_epoch=False, batch_size=1)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show what holds now to who monitors at the end of this validation, but not to the loggers.

        Args:
            trainer: the Trainer.
            pl_module: the network.
        """
        if self._metrics is None or trainer.sanity_checking or trainer.state.fn != TrainerFn.FITTING:
            return
        values = self._metrics.read(keep=True)
        pl_module.log_dict(values, on_step=False, on_epoch=True, logger=False, batch_size=1, sync_dist=True)
