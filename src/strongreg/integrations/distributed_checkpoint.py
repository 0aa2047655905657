"""A Regularizer in ``torch.distributed.checkpoint``, which writes one checkpoint from many processes."""

from __future__ import annotations

import io
from typing import Any

import torch

from strongreg.dtensors import whole
from strongreg.regularizer import Regularizer

_ENTRY = "strongreg"


class StatefulRegularizer:
    """A Regularizer's state as ``torch.distributed.checkpoint`` can keep it, whatever the number of processes.

    That package reads tensors into tensors of the same shape, and drops what the one that reads does not have yet; a
    history grows, and the zeros that a refit holds come and go. Here the state is one entry of bytes, with all tensors
    whole: it is read by any number of processes, one too.

    Args:
        regularizer: the Regularizer, attached.

    Example:
        Save, in all processes::

            model_state, optimizer_state = get_state_dict(model, optimizer)
            state = {"model": model_state, "optimizer": optimizer_state, "strongreg": StatefulRegularizer(reg)}
            dcp.save(state, checkpoint_id=folder)

        Load into a new model, optimizer and Regularizer, this one last, for ``set_state_dict`` may take a step::

            dcp.load({"model": model_state, "optimizer": optimizer_state}, checkpoint_id=folder)
            set_state_dict(model, optimizer, model_state_dict=model_state, optim_state_dict=optimizer_state)
            dcp.load({"strongreg": StatefulRegularizer(reg)}, checkpoint_id=folder)
    """

    def __init__(self, regularizer: Regularizer) -> None:
        self.regularizer = regularizer

    def state_dict(self) -> dict[str, Any]:
        """The state; all processes must ask, as they do in ``dcp.save`` and ``dcp.load``.

        Returns:
            A dictionary of one entry of bytes.
        """
        state = self.regularizer.state_dict()
        state["zero_masks"] = {name: whole(mask).cpu() for name, mask in state["zero_masks"].items()}
        stream = io.BytesIO()
        torch.save(state, stream)
        return {_ENTRY: stream.getvalue()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where ``state_dict`` was taken.

        Args:
            state: what it returned, in these or in more or fewer processes.

        Raises:
            ValueError: the state is damaged, of another version, or for another network.
        """
        saved = state.get(_ENTRY)
        if not isinstance(saved, bytes):
            raise ValueError(f"the checkpoint holds no state of a Regularizer: {_ENTRY!r} is {type(saved).__name__}")
        self.regularizer.load_state_dict(torch.load(io.BytesIO(saved), weights_only=True))
