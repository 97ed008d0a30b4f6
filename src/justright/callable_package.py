"""Make a package callable, so that ``justright.prune`` is both a package and a function."""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import Any


def make_callable(package: str, function: str) -> None:
    """Let calls of ``package`` call its ``function`` ("module.name"), which is imported at the first call."""
    module, name = f"{package}.{function}".rsplit(".", 1)

    class CallablePackage(ModuleType):
        def __call__(self, *args: Any, **options: Any) -> Any:
            return getattr(import_module(module), name)(*args, **options)

    sys.modules[package].__class__ = CallablePackage
