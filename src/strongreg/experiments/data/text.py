"""Text, read byte by byte: a passage, and after each of its bytes the one that follows."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from strongreg.experiments.data.examples import InputShape, digest_of, moved
from strongreg.experiments.data.locate import DATA_VARIABLE, data_folder
from strongreg.experiments.errors import UserError

NUM_BYTES = 256
DEFAULT_CONTEXT = 128
TEXTS = ("python_stdlib", "tiny_shakespeare")
"""The names there are, besides the path of a file."""

_TEST_SHARE = 0.1
_SHAKESPEARE = Path("tiny_shakespeare") / "input.txt"
_SHAKESPEARE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
_SHAKESPEARE_SOURCE = "data/tinyshakespeare/input.txt of https://github.com/karpathy/char-rnn"
_NOT_OF_THE_LIBRARY = {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "__pycache__"}


@dataclass(frozen=True)
class Passages:
    """Passages of text of one length, each with the byte that follows it.

    Args:
        tokens: shape (num_passages, context + 1), uint8; the last column is the byte that follows.

    Raises:
        ValueError: the shape or type is another one.
    """

    tokens: Tensor

    def __post_init__(self) -> None:
        """Check the tensor."""
        if self.tokens.dtype != torch.uint8 or self.tokens.dim() != 2 or self.tokens.shape[1] < 2:
            raise ValueError(
                f"tokens={self.tokens.dtype} of shape {tuple(self.tokens.shape)}: "
                "give uint8 of shape (num_passages, context + 1)"
            )

    @property
    def inputs(self) -> Tensor:
        """The passages, shape (num_passages, context), uint8."""
        return self.tokens[:, :-1]

    @property
    def labels(self) -> Tensor:
        """The byte that follows each of their bytes, shape (num_passages, context), int64."""
        return self.tokens[:, 1:].to(torch.int64)

    def __len__(self) -> int:
        """Number of passages."""
        return len(self.tokens)

    def select(self, indices: Tensor) -> Passages:
        """Some of the passages.

        Args:
            indices: shape (num_selected,), int64.

        Returns:
            Copies of them, in this order.
        """
        return Passages(self.tokens[indices])

    def to(self, device: torch.device) -> Passages:
        """The same passages on a device.

        Args:
            device: where to put the tensor.

        Returns:
            A new object.
        """
        return Passages(self.tokens.to(device))


@dataclass(frozen=True)
class TextData:
    """A text, divided into training, validation and test passages of one length.

    Args:
        name: the text's name.
        train: what the weights are fitted to.
        validation: held out from the training passages, for every choice; may hold none.
        test: never used for a choice.
        num_classes: number of bytes that there are.

    Raises:
        ValueError: the passages differ in length.
    """

    name: str
    train: Passages
    validation: Passages
    test: Passages
    num_classes: int = NUM_BYTES

    def __post_init__(self) -> None:
        """Check that the parts fit."""
        lengths = {split.tokens.shape[1] for split in (self.train, self.validation, self.test)}
        if len(lengths) != 1:
            raise ValueError(f"the splits hold passages of different lengths {sorted(lengths)}: give one")

    @property
    def input_shape(self) -> InputShape:
        """The bytes of a passage."""
        return (self.train.tokens.shape[1] - 1,)

    def digest(self) -> str:
        """What tells this text from others.

        Returns:
            Eight hexadecimal digits.
        """
        return digest_of((split.tokens,) for split in (self.train, self.validation, self.test))

    def to(self, device: torch.device) -> TextData:
        """The same data on a device.

        Args:
            device: where to put the tensors.

        Returns:
            A new object.
        """
        return moved(self, device)

    def normalize(self, inputs: Tensor) -> Tensor:
        """What a network reads.

        Args:
            inputs: shape (num_passages, context), uint8.

        Returns:
            The same as int64.
        """
        return inputs.to(torch.int64)


def load_text(
    name: str,
    data_dir: Path | None = None,
    *,
    context: int = DEFAULT_CONTEXT,
    validation_share: float = 0.0,
    num_train: int | None = None,
) -> TextData:
    """Read a text and divide it.

    The last tenth is the test text, and what is held out for validation is the end of what is before it. Passages do
    not overlap; bytes that fill no passage are left out.

    Args:
        name: python_stdlib (the sources of the standard library of this Python, about 10 MB, module after module in an
            order that is random but always the same), tiny_shakespeare, or the path of a file.
        data_dir: where tiny_shakespeare/input.txt lies; None for $STRONGREG_DATA.
        context: bytes of a passage, >= 1.
        validation_share: share of the text before the test text, in [0, 1).
        num_train: passages to train on, the first ones; None for all.

    Returns:
        The data set, on the CPU.

    Raises:
        UserError: the text is missing or too short, or there are fewer passages than ``num_train``.
        OSError: a file cannot be read.
    """
    text = _read(name, data_dir)
    num_test = round(len(text) * _TEST_SHARE)
    num_validation = round((len(text) - num_test) * validation_share)
    ends = (len(text) - num_test - num_validation, len(text) - num_test, len(text))
    every = torch.frombuffer(bytearray(text), dtype=torch.uint8) if text else torch.empty(0, dtype=torch.uint8)
    train, validation, test = (
        _passages(every[start:end], context) for start, end in zip((0, *ends), ends, strict=False)
    )
    wanted = {"training": train, "test": test} | ({"validation": validation} if validation_share > 0 else {})
    for part, passages in wanted.items():
        if len(passages) == 0:
            raise UserError(
                f"the {part} text of {name} ({len(text):,} bytes in all) holds no passage of context={context} bytes "
                "and one more: choose a smaller context, or a longer text"
            )
    if num_train is not None:
        if num_train > len(train):
            raise UserError(f"num_train={num_train}: {name} has {len(train)} passages to train on")
        train = Passages(train.tokens[:num_train].clone())
    return TextData(name, train, validation, test)


def is_text(name: str) -> bool:
    """Whether a name is that of a text.

    Args:
        name: of a data set.

    Returns:
        Whether it is one of ``TEXTS``, or the path of a file.
    """
    return name in TEXTS or (name != "" and Path(name).expanduser().is_file())


def _passages(text: Tensor, context: int) -> Passages:
    if len(text) <= context:
        return Passages(torch.empty(0, context + 1, dtype=torch.uint8))
    return Passages(text.unfold(0, context + 1, context).contiguous())


def _read(name: str, data_dir: Path | None) -> bytes:
    if name == "python_stdlib":
        return _standard_library(Path(os.__file__).parent)
    if name == "tiny_shakespeare":
        return _shakespeare(data_folder(data_dir))
    return Path(name).expanduser().read_bytes()


def _standard_library(folder: Path) -> bytes:
    """The modules in the order of the digests of their names, which mixes what they are about."""
    files = {
        file.relative_to(folder).as_posix(): file
        for file in folder.rglob("*.py")
        if _NOT_OF_THE_LIBRARY.isdisjoint(file.relative_to(folder).parts)
    }
    if not files:
        raise UserError(f"python_stdlib: there are no sources of the standard library in {folder}; name a text file")
    order = sorted(files, key=lambda name: hashlib.sha256(name.encode()).digest())
    return b"\n".join(files[name].read_bytes() for name in order)


def _shakespeare(place: Path | None) -> bytes:
    root = place or Path("data")
    remedy = (
        f"put {_SHAKESPEARE_SOURCE} into {(root / _SHAKESPEARE).absolute()} and give --data-dir {root}, or set "
        f"{DATA_VARIABLE} to {root.absolute()}"
    )
    for file in () if place is None else (place / _SHAKESPEARE, place / _SHAKESPEARE.name):
        if file.is_file():
            text = file.read_bytes()
            if hashlib.sha256(text).hexdigest() != _SHAKESPEARE_SHA256:
                raise UserError(f"{file} is another text than tiny_shakespeare: {remedy}; or give its path as --data")
            return text
    raise UserError(f"tiny_shakespeare is not here: {remedy}")
