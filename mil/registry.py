"""Names for components: one registry a kind, arguments bound before any work starts."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Generic, TypeVar

from splits.errors import InputError, unknown

__all__ = ["Registry"]

T = TypeVar("T")


class Registry(Generic[T]):
    """Maps a name to a function or class that builds a component.

    Args:
        kind: What the entries are, for error messages: ``"aggregator"``.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, Callable[..., T]] = {}

    def register(self, name: str) -> Callable[[Callable[..., T]], Callable[..., T]]:
        """Decorator that enters a builder under ``name``."""

        def enter(builder: Callable[..., T]) -> Callable[..., T]:
            if name in self._entries:
                message = f"{self.kind} {name!r} is registered twice"
                raise ValueError(message)
            self._entries[name] = builder
            return builder

        return enter

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._entries))

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def get(self, name: str) -> Callable[..., T]:
        """The builder called ``name``.

        Raises:
            InputError: No such entry; the message names the nearest.
        """
        if name not in self._entries:
            raise unknown(self.kind, name, self._entries)
        return self._entries[name]

    def bind(self, name: str, args: Mapping[str, Any]) -> None:
        """Check that every given argument exists, without building anything.

        Raises:
            InputError: The name or an argument is unknown.
        """
        allowed = inspect.signature(self.get(name)).parameters
        if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in allowed.values()):
            return
        kind = f"argument of {self.kind} {name!r}"
        for argument in args:
            if argument not in allowed:
                raise unknown(kind, argument, allowed)

    def create(self, name: str, **args: Any) -> T:
        """Build the entry.

        Raises:
            InputError: The name or an argument is unknown, or a needed one is missing.
        """
        self.bind(name, args)
        builder = self.get(name)
        try:
            inspect.signature(builder).bind(**args)
        except TypeError as error:
            message = f"{self.kind} {name!r}: {error}"
            raise InputError(message) from error
        return builder(**args)
