"""Reasoning settings of a request: the user's, else the bundle's if the model has conversations."""

from __future__ import annotations

import pytest

from justright.cli.thinking import settled_thinking
from justright.engine.chat_modes import Reasoning
from justright.engine.defaults import Defaults
from justright.errors import UsageError


def test_given_settings_override_the_bundles() -> None:
    own, said = Defaults(effort="none"), Reasoning("high")
    assert settled_thinking(said, own) == said
    assert settled_thinking(Reasoning(), own) == Reasoning("none")
    assert settled_thinking(Reasoning(), own, "leave --raw out") == Reasoning()
    with pytest.raises(UsageError, match="chat template: leave --raw out"):
        settled_thinking(said, own, "leave --raw out")
