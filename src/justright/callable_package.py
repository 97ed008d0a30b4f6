"""Lets a package be called by the name of its main function: ``justright.prune`` is a room and a function."""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import Any


def make_callable(package: str, function: str) -> None:
    """Make calls of ``package`` calls of ``function``, "module.name" in it, which is imported at the first call."""
    module, name = f"{package}.{function}".rsplit(".", 1)

    class CallablePackage(ModuleType):
        def __call__(self, *args: Any, **options: Any) -> Any:
            return getattr(import_module(module), name)(*args, **options)

    sys.modules[package].__class__ = CallablePackage
