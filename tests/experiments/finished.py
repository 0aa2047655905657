"""Finished runs on digits, trained within the test's own process, and what may befall their files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from strongreg.experiments.compare import Comparison
from strongreg.experiments.data import load_data
from strongreg.experiments.engine import train
from strongreg.experiments.recipe import Method, Recipe

RUN_FILES = [
    "history.safetensors",
    "metrics.jsonl",
    "model.packed",
    "recipe.toml",
    "result.json",
    "weights.safetensors",
]


def train_runs(directory: Path, recipe: Recipe, methods: Sequence[Method], seeds: Sequence[int] = (0,)) -> Path:
    """A comparison's directory with every run finished."""
    data = load_data(recipe.data.name)
    for job in Comparison(recipe, methods, seeds, directory).jobs:
        train(recipe, job.method, job.seed, data, directory / "runs" / job.directory_name)
    return directory


def change(folder: Path, **changes: object) -> None:
    """Change fields of a run's result, and of every epoch."""
    file = folder / "metrics.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    metrics = [line | {k: v for k, v in changes.items() if k in line} for line in lines]
    file.write_text("".join(json.dumps(line) + "\n" for line in metrics))
    result = json.loads((folder / "result.json").read_text())
    (folder / "result.json").write_text(json.dumps(result | {k: v for k, v in changes.items() if k in result}))


def damage(file: Path, how: str) -> None:
    """Remove a file, cut it off, empty it, or put something else in its place."""
    content = file.read_bytes()
    if how == "missing":
        file.unlink()
    elif how == "a directory":
        file.unlink()
        file.mkdir()
    else:
        damaged = {
            "empty": b"",
            "half": content[: len(content) // 2],
            "one byte": content[:1],
            "foreign": b"\xff\xfe[]",
        }
        file.write_bytes(damaged[how])


DAMAGES = ["missing", "empty", "half", "one byte", "foreign", "a directory"]
