"""Reading, overriding and writing a configuration; every mistake is named with the nearest key.

A YAML file names what differs from the defaults; ``--set section.key=value`` overrides one value.
Relative paths are taken from the working directory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from mil.config import Config
from splits.artifacts import atomic
from splits.errors import InputError, unknown

__all__ = ["changed", "load", "override", "parse", "save", "stored"]


def load(path: Path, settings: Sequence[str] = ()) -> Config:
    """Read a YAML file and apply ``key=value`` settings.

    Raises:
        InputError: The file is missing or broken, a key is unknown (the nearest is named), or a
            value is not allowed.
    """
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        message = f"config {str(path)!r} does not exist"
        raise InputError(message) from error
    except (yaml.YAMLError, UnicodeDecodeError, IsADirectoryError) as error:
        message = f"config {str(path)!r} is not readable YAML: " + " ".join(str(error).split())
        raise InputError(message) from error
    if not isinstance(document, dict):
        message = f"config {str(path)!r} holds no sections (allowed: {', '.join(_keys(Config))})"
        raise InputError(message)
    return _build(document, settings, str(path))


def override(config: Config, settings: Sequence[str]) -> Config:
    """A copy with ``key=value`` settings applied; errors as in :func:`load`."""
    return _build(config.model_dump(mode="json", exclude_unset=True), settings, "settings")


def save(config: Config, path: Path) -> None:
    """Write every value, defaults included, as YAML."""
    text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def stored(run: Path) -> Config:
    """The config of a run folder.

    Raises:
        InputError: It is no run folder, or as in :func:`load`.
    """
    path = run / "config.yaml"
    if not path.exists():
        message = f"{run} is not a run folder: `slidewise scan ROOT --out {run}` makes one"
        raise InputError(message)
    return load(path)


def changed(config: Config | None, **sections: dict[str, Any]) -> Config:
    """A config with some values of some sections replaced; None starts from the defaults."""
    document = {} if config is None else config.model_dump(mode="json")
    for name, values in sections.items():
        document[name] = {**document.get(name, {}), **values}
    return parse(document, "command line")


def _build(document: dict[str, Any], settings: Sequence[str], source: str) -> Config:
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals:
            message = f"--set {setting!r}: key=value is needed, as in --set train.lr=3e-4"
            raise InputError(message)
        *path, last = key.strip().split(".")
        section = document
        for name in path:
            if not isinstance(section.get(name), dict):
                section[name] = {}
            section = section[name]
        section[last] = _value(text)
    return parse(document, source)


def parse(document: Mapping[str, Any], source: str) -> Config:
    """Validate a document of sections; ``source`` names it in errors, as in :func:`load`."""
    try:
        return Config.model_validate(document)
    except ValidationError as error:
        raise _explain(error, source) from error


def _value(text: str) -> Any:
    value = yaml.safe_load(text)
    if isinstance(value, str):
        # YAML 1.1 reads 3e-4 as text: a number was meant.
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _explain(error: ValidationError, source: str) -> InputError:
    first = error.errors()[0]
    place = [str(part) for part in first["loc"]]
    if first["type"] == "extra_forbidden":
        key = ".".join(place)
        return unknown(f"key in {source}:", key, _siblings(place[:-1]))
    text = str(first["msg"]).removeprefix("Value error, ")
    given = "" if first["type"] == "value_error" else f" (given: {first.get('input')!r})"
    return InputError(f"{source}: {'.'.join(place) or 'config'}: {text}{given}")


def _siblings(place: Sequence[str]) -> list[str]:
    model: type[BaseModel] = Config
    for name in place:
        field = model.model_fields.get(name)
        inner = [t for t in _types(field.annotation) if field] if field else []
        model = next((t for t in inner if issubclass(t, BaseModel)), model)
    return [".".join([*place, name]) for name in _keys(model)]


def _types(annotation: Any) -> list[type]:
    found = [annotation] if isinstance(annotation, type) else []
    for inner in getattr(annotation, "__args__", ()):
        found += _types(inner)
    return [t for t in found if isinstance(t, type)]


def _keys(model: type[BaseModel]) -> list[str]:
    return list(model.model_fields)
