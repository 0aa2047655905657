"""The keys of a recipe: how one is set, and what is said of one that is wrong."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import tomli_w
from pydantic import BaseModel, ValidationError

from strongreg.experiments.errors import unknown

_METHODS = "methods"


@dataclass(frozen=True)
class Keys:
    """The keys that there are.

    Args:
        sections: the keys of every section.
        methods: the methods that may have overrides.
    """

    sections: Mapping[str, tuple[str, ...]]
    methods: tuple[str, ...]

    @property
    def dotted(self) -> list[str]:
        """Every key with its section."""
        return [f"{section}.{key}" for section, keys in self.sections.items() for key in keys]

    def set(self, values: dict[str, Any], name: str, value: Any, where: str = "") -> None:
        """Set one key.

        Args:
            values: nested values, which are changed; tables in them are replaced, not changed.
            name: dotted, such as penalty.strength or methods.dense.optimizer.lr.
            value: of any type; types are checked later.
            where: what is in front of the message, where the key is an override.

        Raises:
            ValueError: there is no such key, or what should be a table is none.
        """
        section, _, key = name.partition(".")
        known = self.dotted
        if section == _METHODS:
            method, _, inner = key.partition(".")
            if where or inner not in known:
                hint = _nearest(inner, known) if inner else ""
                raise ValueError(f"{where}{name}={value!r}: write methods.METHOD.section.key{hint}")
            methods = _table(values, _METHODS, where)
            methods[method] = {**_table(methods, method, f"{where}methods."), inner: value}
            values[_METHODS] = methods
            return
        if name in self.sections:
            raise ValueError(f"{where}{name}={value!r}: {self._one_of_section(name, value, where)}")
        if name not in known:
            raise ValueError(f"{where}{name}={value!r}: unknown key{_nearest(name, known)}")
        values[section] = {**_table(values, section, where), key: value}

    def _one_of_section(self, section: str, value: Any, where: str) -> str:
        """What to write instead of a section."""
        keys = ", ".join(self.sections[section])
        if not where:
            return f"a section is no key; write {section}.KEY=VALUE with one of {keys}"
        if isinstance(value, Mapping) and value:
            key, inner = next(iter(value.items()))
            line = tomli_w.dumps({f"{section}.{key}": inner}).strip()
            return f"an override is one line, its whole key in quotes; write {line}"
        return f'an override is one line, its whole key in quotes; write "{section}.KEY" = VALUE with one of {keys}'

    def explain(self, error: ValidationError) -> str:
        """The first thing wrong, in one line: the name, the value, the remedy.

        Args:
            error: of building a recipe.

        Returns:
            What to tell the user.
        """
        first = error.errors()[0]
        loc, value = first["loc"], first["input"]
        name = ".".join(str(part) for part in loc)
        message = first["msg"].removeprefix("Value error, ")
        if loc[:1] == (_METHODS,) and loc[2:] == ("[key]",):
            return f"methods.{loc[1]}: {unknown('method', str(loc[1]), self.methods)}"
        if first["type"] == "extra_forbidden":
            tables = len(loc) == 1 and isinstance(value, Mapping)
            return f"{name}={value!r}: unknown key{_nearest(name, self.sections if tables else self.dotted)}"
        if first["type"] in ("model_type", "dict_type"):
            return f"{name}={value!r}: {_no_table(name)}"
        if not loc or isinstance(value, dict | BaseModel):  # several fields that do not go together
            return f"{name}: {message}" if name else message
        return f"{name}={value!r}: {message[0].lower()}{message[1:].replace('nput should', 'ust')}".replace(
            ": iust", ": must"
        )


def _table(values: Mapping[str, Any], name: str, where: str) -> dict[str, Any]:
    """A copy of the table of this name, empty where there is none."""
    table = values.get(name, {})
    if not isinstance(table, Mapping):
        raise ValueError(f"{where}{name}={table!r}: {_no_table(where + name)}")
    return dict(table)


def _no_table(name: str) -> str:
    return f"must be a table; write [{name}], and its keys below it"


def _nearest(name: str, known: Iterable[str]) -> str:
    """A question: those of the same last part, or else the most similar one; where no key is near, the sections."""
    names = list(known)
    last = name.rpartition(".")[2]
    near = [key for key in names if key.rpartition(".")[2] == last]
    near = near or difflib.get_close_matches(name, sorted(names), n=1, cutoff=0.4)
    if near:
        return f"; did you mean {' or '.join(near)}?"
    sections = dict.fromkeys(key.partition(".")[0] for key in names)
    return f"; there are the sections {', '.join(sections)}"
