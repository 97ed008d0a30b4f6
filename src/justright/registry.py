"""Registries of classes by name: each class registers itself, and other packages can add classes."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar

from justright.errors import UsageError

T = TypeVar("T")


class Registry(Generic[T]):
    """Classes of one kind, each with a unique class attribute ``name`` and a line of ``help``.

    Args:
        kind: what an entry is, for messages: "criterion".
        package: the package whose modules register the built-in classes; imported at the first use.
        group: the entry point group for other packages. An entry point has the name of its class, and loading it
            imports the module that registers the class.
    """

    def __init__(self, kind: str, package: str, group: str) -> None:
        self.kind, self.package, self.group = kind, package, group
        self._found: dict[str, T] = {}
        self._loaded = False

    def register(self, cls: Any) -> Any:
        """Class decorator: add an instance of ``cls`` under ``cls.name``.

        Raises:
            UsageError: another class has this name.
        """
        held = self._found.get(cls.name)
        if held is not None and f"{type(held).__module__}.{type(held).__qualname__}" != (
            f"{cls.__module__}.{cls.__qualname__}"
        ):
            raise UsageError(
                f"{self.kind} {cls.name!r} exists already ({type(held).__module__}); choose another name"
            )
        self._found[cls.name] = cls()
        return cls

    def known(self) -> dict[str, T]:
        """Name -> instance of the built-in classes, and of other classes that are already imported."""
        if not self._loaded:
            self._loaded = True
            folder = importlib.import_module(self.package).__path__
            for module in pkgutil.iter_modules(folder):
                importlib.import_module(f"{self.package}.{module.name}")
        return dict(sorted(self._found.items()))

    def names(self) -> list[str]:
        """All names that `get` accepts, without importing other packages."""
        return sorted({*self.known(), *self._entry_points})

    def get(self, name: str) -> T:
        """The instance registered under ``name``.

        Raises:
            UsageError: an unknown name, or its package cannot be imported.
        """
        known = self.known()
        if name in known:
            return known[name]
        point = self._entry_points.get(name)
        if point is None:
            raise UsageError(f"there is no {self.kind} {name!r}; allowed: {', '.join(self.names())}")
        try:
            point.load()
        except (ImportError, AttributeError) as error:
            raise UsageError(f"{self.kind} {name!r} ({point.value}) cannot be loaded: {error}") from error
        if name not in self._found:
            raise UsageError(
                f"{point.value} registers no {self.kind} {name!r}; give its entry point the name of its class"
            )
        return self._found[name]

    def help(self) -> str:
        """The names with their descriptions, for an option's help text."""
        known: dict[str, Any] = self.known()
        return "; ".join(f"{name}: {known[name].help}" if name in known else name for name in self.names())

    @cached_property
    def _entry_points(self) -> dict[str, EntryPoint]:
        return {point.name: point for point in entry_points(group=self.group)}
