"""Layers whose weight is stored as CSR: linear ones and 1x1 convolutions, for inference."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

_FEW_ROWS = 3  # up to here MKL is faster by columns than by rows (benchmarks/README.md, Sparse inference)
_LARGEST_INT32 = 2**31 - 1
_HAS_MKL = torch.backends.mkl.is_available()


class _SparseLayer(nn.Module):
    """A weight of shape (out, in) as CSR, in buffers: it moves, copies, pickles and saves as any buffer does.

    Small layers take some microseconds, which is why what is done at every call is written to be short.
    """

    crow_indices: Tensor
    col_indices: Tensor
    values: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self._shape = (weight.shape[0], weight.shape[1])
        weight = weight.detach()
        kept = weight != 0
        # int32 is what MKL takes: indices of int64 would be converted at every call
        index = torch.int32 if weight.numel() <= _LARGEST_INT32 else torch.int64
        self.register_buffer("crow_indices", functional.pad(kept.sum(dim=1).cumsum(dim=0), (1, 0)).to(index))
        self.register_buffer("col_indices", kept.nonzero()[:, 1].to(index))
        self.register_buffer("values", weight[kept])
        self.register_buffer("bias", None if bias is None else bias.detach().clone())
        self._built: tuple[Tensor | None, Tensor | None, Tensor | None, Tensor] | None = None

    @property
    def weight(self) -> Tensor:
        """The dense weight, built anew at every access, in the shape that the dense layer has."""
        return self._csr().to_dense()

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the name that the dense layers give it
        """What the dense layer returns, within rounding.

        Where the input requires a gradient, the dense weight is built and used. Under autocast the layer computes in
        the dtype of its weight and returns autocast's.

        Args:
            input: as the dense layer takes it, in the dtype of the weight.

        Returns:
            Tensor of the shape that the dense layer returns, and contiguous as there (unless ``contiguous`` is False).

        Raises:
            ValueError: the input has another number of features or channels.
            TypeError: the input is of another dtype.
        """
        csr, kind = self._csr(), input.device.type
        if torch.is_autocast_enabled(kind) and csr.dtype == torch.float32 and input.dtype != torch.float64:
            with torch.autocast(kind, enabled=False):
                return self.forward(input.to(csr.dtype)).to(torch.get_autocast_dtype(kind))
        if input.dtype != csr.dtype:
            name = type(self).__name__
            raise TypeError(f"{name}: input is {input.dtype}, the weight {csr.dtype}: convert one, x.to({csr.dtype})")
        if not self._fits(input.shape):
            raise ValueError(f"{type(self).__name__}: input of shape {tuple(input.shape)} must be {self._wanted()}")
        if input.requires_grad and torch.is_grad_enabled():
            return self._dense(input)
        return self._sparse(input, csr, self._buffers["bias"])

    def extra_repr(self) -> str:
        """See :meth:`torch.nn.Module.extra_repr`."""
        out, size = self._shape
        return f"{size}, {out}, bias={self.bias is not None}, nonzeros={len(self.values):,} of {out * size:,}"

    def __getstate__(self) -> dict[str, Any]:
        """Without the built tensor: torch neither copies nor pickles one of this layout."""
        return {**super().__getstate__(), "_built": None}  # type: ignore[no-untyped-call]

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        """Build the tensor anew afterwards, which checks the indices that were read."""
        super()._load_from_state_dict(*args, **kwargs)
        self._built = None

    def _csr(self) -> Tensor:
        """The weight, built where a buffer is another tensor than before: after ``.to()``, unpickling and the like."""
        own, built = self._buffers, self._built
        crow, col, values = own["crow_indices"], own["col_indices"], own["values"]
        if built is not None and built[0] is crow and built[1] is col and built[2] is values:
            return built[3]
        with warnings.catch_warnings(), torch.inference_mode(False):  # else no gradient could ever pass it
            warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
            csr = torch.sparse_csr_tensor(
                self.crow_indices, self.col_indices, self.values, self._shape, check_invariants=True
            )
        self._built = (crow, col, values, csr)
        return csr

    @abstractmethod
    def _fits(self, shape: torch.Size) -> bool: ...

    @abstractmethod
    def _wanted(self) -> str: ...

    @abstractmethod
    def _dense(self, input: Tensor) -> Tensor: ...  # noqa: A002

    @abstractmethod
    def _sparse(self, input: Tensor, csr: Tensor, bias: Tensor | None) -> Tensor: ...  # noqa: A002


class SparseLinear(_SparseLayer):
    """``torch.nn.Linear`` with a weight in CSR. It has no parameters: it computes, and is not trained.

    Zeros of the weight are left out, so that an input that is infinite or NaN does not become NaN where it meets one.
    The kernel takes and gives columns, so that a matrix is transposed twice. Where the attribute ``contiguous`` is
    False it comes back without the second, and the next layer of this kind spares the first.

    Args:
        weight: (out_features, in_features), dense.
        bias: (out_features,), or None.

    Example:
        >>> import torch
        >>> from strongreg.compression import SparseLinear
        >>> layer = SparseLinear(torch.tensor([[0.0, 2.0], [0.0, 0.0]]), torch.tensor([1.0, 1.0]))
        >>> layer(torch.tensor([[3.0, 4.0]]))
        tensor([[9., 1.]])
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__(weight, bias)
        self.out_features, self.in_features = self._shape
        self.contiguous = True

    def _fits(self, shape: torch.Size) -> bool:
        return len(shape) > 0 and shape[-1] == self.in_features

    def _wanted(self) -> str:
        return f"(..., {self.in_features})"

    def _dense(self, input: Tensor) -> Tensor:  # noqa: A002
        return functional.linear(input, self.weight, self.bias)

    def _sparse(self, input: Tensor, csr: Tensor, bias: Tensor | None) -> Tensor:  # noqa: A002
        if input.dim() == 2:
            return _rows_times(input, csr, bias, contiguous=self.contiguous)
        rows = _rows_times(input.reshape(-1, self.in_features), csr, bias)
        return rows.view(*input.shape[:-1], self.out_features)


class SparseConv1x1(_SparseLayer):
    """``torch.nn.Conv2d`` of kernel size 1 (stride 1, no padding, one group) with a weight in CSR; not trained either.

    Zeros of the weight are left out, so that an input that is infinite or NaN does not become NaN where it meets one.

    Args:
        weight: (out_channels, in_channels, 1, 1), dense.
        bias: (out_channels,), or None.

    Example:
        >>> import torch
        >>> from strongreg.compression import SparseConv1x1
        >>> layer = SparseConv1x1(torch.tensor([0.0, 2.0]).reshape(1, 2, 1, 1), None)
        >>> layer(torch.tensor([3.0, 4.0]).reshape(1, 2, 1, 1)).flatten()
        tensor([8.])
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__(weight.flatten(1), bias)
        self.out_channels, self.in_channels = self._shape

    @property
    def weight(self) -> Tensor:
        """See :attr:`SparseLinear.weight`."""
        return self._csr().to_dense()[:, :, None, None]

    def _fits(self, shape: torch.Size) -> bool:
        return len(shape) in (3, 4) and shape[-3] == self.in_channels

    def _wanted(self) -> str:
        return f"(n, {self.in_channels}, height, width), or without n"

    def _dense(self, input: Tensor) -> Tensor:  # noqa: A002
        return functional.conv2d(input, self.weight, self.bias)

    def _sparse(self, input: Tensor, csr: Tensor, bias: Tensor | None) -> Tensor:  # noqa: A002
        if input.dim() == 3:
            return self._sparse(input[None], csr, bias)[0]
        num, _, height, width = input.shape
        channels_last = not input.is_contiguous() and input.is_contiguous(memory_format=torch.channels_last)
        if channels_last or height * width == 1:
            pixels = input.permute(0, 2, 3, 1).reshape(-1, self.in_channels)
            rows = _rows_times(pixels, csr, bias)
            return rows.view(num, height, width, self.out_channels).permute(0, 3, 1, 2)
        output = input.new_empty(num, self.out_channels, height * width)
        for image, place in zip(input.reshape(num, self.in_channels, height * width), output, strict=True):
            _times_columns(csr, image, bias, place)
        return output.view(num, self.out_channels, height, width)


def _rows_times(rows: Tensor, csr: Tensor, bias: Tensor | None, *, contiguous: bool = True) -> Tensor:
    r"""The product :math:`X W^\top + b`, by what was fastest for so many rows (benchmarks/README.md, Sparse inference).

    Args:
        rows: X, (n, in).
        csr: W, (out, in).
        bias: b, (out,).
        contiguous: whether the output must be.

    Returns:
        Tensor of shape (n, out).
    """
    num = rows.shape[0]
    if num > _FEW_ROWS or not _HAS_MKL:  # torch without MKL has only this way
        output = _times_columns(csr, rows.t(), bias).t()
        return output.contiguous() if contiguous else output
    if num == 1:
        row = rows[0]
        return (torch.mv(csr, row) if bias is None else torch.addmv(bias, csr, row)).unsqueeze(0)
    output = rows.new_empty(num, csr.shape[0])
    _times_columns(csr, rows.t(), bias, output.t())
    return output


def _times_columns(csr: Tensor, columns: Tensor, bias: Tensor | None, out: Tensor | None = None) -> Tensor:
    r"""The product :math:`W C + b`.

    Args:
        csr: W, (out, in).
        columns: C, (in, n).
        bias: b, (out,).
        out: where to write it, or None.

    Returns:
        Tensor of shape (out, n).
    """
    if bias is None:
        return torch.mm(csr, columns, out=out)
    return torch.addmm(bias.unsqueeze(1), csr, columns, out=out)
