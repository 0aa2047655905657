"""The folders of a sweep's runs. What a folder holds is told by the recipe in it, and not by the trial's number.

The numbers are those of a study. Where it is gone, and another one is made for the same directory, the same number may
be of another strength: its folder then holds a run that is finished, and is not this trial's.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from strongreg.differences import describe_difference
from strongreg.experiments.engine.checkpoint import FILE_NAME as CHECKPOINT_FILE
from strongreg.experiments.engine.record import RECIPE_FILE, RESULT_FILE, load_result
from strongreg.experiments.errors import UserError
from strongreg.experiments.recipe import Method, Recipe, build_recipe, read_recipe
from strongreg.experiments.runnable import outcome

_NAME = re.compile(r"(?P<method>\w+)-trial\d+-seed\d+(-before\d+)?")


class RunFolders:
    """The folders below ``runs`` of a sweep's directory: METHOD-trialN-seedS.

    Args:
        directory: of the sweep.
        recipe: what its runs share but the strength.
        method: of its runs.
    """

    def __init__(self, directory: Path, recipe: Recipe, method: Method) -> None:
        self.directory, self._sweep, self._method = directory, recipe.for_method(method), method
        self._runs = directory / "runs"
        self._were_there = any(self._runs.glob("*"))  # of a study before, perhaps: else there is nothing to look for

    def check(self) -> int:
        """Check that the runs that are there are of this sweep, whatever their strengths.

        Returns:
            How many there are.

        Raises:
            UserError: one is of another recipe or method, or cannot be read.
        """
        now = self._of_every_strength(self._method, self._sweep)
        found = [(match["method"], path) for path in sorted(self._runs.glob("*")) if (match := _match(path))]
        begun = [(method, path / RECIPE_FILE) for method, path in found if (path / RECIPE_FILE).exists()]
        for method, file in begun:
            try:
                before = self._of_every_strength(method, build_recipe({}, read_recipe(file)))
            except UserError as error:
                raise UserError(f"{file} tells of no run of this sweep ({error}): choose another --out") from error
            if before != now:
                raise UserError(
                    f"{self.directory} holds runs of another recipe{describe_difference(before, now)}: choose another "
                    f"--out, or delete {self._runs} if they are of no use"
                )
        return len(begun)

    def take(self, recipe: Recipe, seed: int, number: int, earlier: Iterable[int]) -> Path:
        """The folder for a run, with what has been trained of it, under whatever number that was.

        What lies there under this number and is another run is kept beside it, as NAME-before1.

        Args:
            recipe: of the run, with its strength.
            seed: of the run.
            number: of its trial.
            earlier: numbers of failed trials of the same strength, the last first.

        Returns:
            A folder that exists; a result.json or a checkpoint in it is this run's.

        Raises:
            UserError: a finished run's files are damaged.
            OSError: the folder cannot be made.
        """
        own = recipe.for_method(self._method)
        folder = self._folder(number, seed)
        if not self._holds(folder, own, seed):
            before = [self._folder(n, seed) for n in earlier]
            others = [path for path in before if _is_blank(path) or self._holds(path, own, seed)]
            if not others and self._were_there:
                found = sorted(self._runs.glob(f"{self._method}-trial*-seed{seed}*"))
                others = [path for path in found if _match(path) and self._holds(path, own, seed)]
            self._set_aside(folder)
            for path in others[:1]:
                with contextlib.suppress(OSError):  # another command has renamed it
                    path.rename(folder)
        folder.mkdir(exist_ok=True)
        return folder

    def _folder(self, number: int, seed: int) -> Path:
        return self._runs / f"{self._method}-trial{number}-seed{seed}"

    def _holds(self, folder: Path, own: Recipe, seed: int) -> bool:
        """Whether a folder holds this run, finished or begun."""
        file = folder / RECIPE_FILE
        if not file.exists():
            return False
        try:
            values = read_recipe(file)
            if values.get("penalty", {}).get("strength") != own.penalty.strength:
                return False
            is_same = _decisive(build_recipe({}, values)) == _decisive(own)
        except UserError:  # no recipe at all
            return False
        if not is_same or not (folder / RESULT_FILE).exists():
            return is_same
        result = load_result(folder / RESULT_FILE)
        return (result.method, result.seed) == (self._method, seed)

    def _set_aside(self, folder: Path) -> None:
        """Give the name of a folder free, and lose nothing that was trained."""
        if not folder.exists() or _is_blank(folder):
            return
        count = 1
        while (target := folder.with_name(f"{folder.name}-before{count}")).exists():
            count += 1
        with contextlib.suppress(FileNotFoundError):  # another command has found its own run in it
            folder.rename(target)

    def _of_every_strength(self, method: str, recipe: Recipe) -> dict[str, Any]:
        content = _decisive(recipe)
        return {"method": method, **content, "penalty": {**content["penalty"], "strength": None}}


def _match(folder: Path) -> re.Match[str] | None:
    return _NAME.fullmatch(folder.name)


def _is_blank(folder: Path) -> bool:
    """Whether nothing was trained in a folder that is there."""
    return folder.exists() and not any((folder / name).exists() for name in (RECIPE_FILE, RESULT_FILE, CHECKPOINT_FILE))


def _decisive(recipe: Recipe) -> dict[str, Any]:
    """What decides a run's numbers; the machines of a sweep may differ in their devices."""
    content: dict[str, Any] = outcome(recipe.model_dump(mode="json"))
    del content["training"]["device"]
    return content
