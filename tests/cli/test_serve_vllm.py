"""A bundle's drafter on vLLM: its options, the user's overrides, options that vLLM lacks; needs no vLLM."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import justright_vllm
from bundle_helpers import Parts, tiny_parts
from cli_helpers import Run
from justright.bundle.contents import check_contents
from justright.checkpoint.bundle_manifest import MANIFEST
from justright.errors import MissingExtraError, UsageError
from justright.serve.vllm import launch, plugin
from justright_vllm import drafter


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Parts:
    return tiny_parts(tmp_path_factory.mktemp("parts"))


@pytest.fixture
def bundle(parts: Parts, tmp_path: Path) -> Path:
    options = {"nodes": 3, "spec": False, "min_prob": 0.1}
    contents = check_contents(str(parts.slow), draft=str(parts.draft), draft_options=options)
    contents.write(tmp_path / "bundle")
    return tmp_path / "bundle"


def asked(run: Run, bundle: Path, *words: str) -> tuple[dict[str, Any] | None, str]:
    """The plugin's settings, and the messages for the user."""
    done = run("serve", bundle, "--engine", "vllm", "--dry-run", "--json", *words)
    assert done.code == 0, done.err
    variables = json.loads(done.out)["environment"]
    return json.loads(variables[plugin.VARIABLE]) if plugin.VARIABLE in variables else None, done.err


def test_its_options_go_with_its_drafter(run: Run, bundle: Path) -> None:
    told, notes = asked(run, bundle)
    assert told == {"draft": "hybrid", "options": {"min_prob": 0.1}, "model": str(bundle)}
    assert "options nodes, spec of hybrid drafts are left out" in notes
    assert asked(run, bundle, "--draft", "hybrid")[0] == told
    lstm, notes = asked(run, bundle, "--draft", "lstm")
    assert lstm is not None
    assert lstm["options"] == {}
    assert "left out" not in notes


def test_the_users_options_go_before_them(run: Run, bundle: Path) -> None:
    told, _ = asked(run, bundle, "--draft-option", "min_prob=0.2")
    assert told is not None
    assert told["options"] == {"min_prob": 0.2}
    refused = run("serve", bundle, "--engine", "vllm", "--dry-run", "--draft-option", "nodes=9")
    assert refused.code == 2
    assert "vLLM verifies chains without [SPEC]: leave nodes out" in refused.err
    plain = run(
        "serve", bundle, "--engine", "vllm", "--dry-run", "--draft", "none", "--draft-option", "nodes=9"
    )
    assert plain.code == 2
    assert "none drafts have no options with vLLM" in plain.err


def test_options_of_vllms_own_suffix_drafts_are_left_out(run: Run, parts: Parts, tmp_path: Path) -> None:
    contents = check_contents(str(parts.slow), draft="suffix", draft_options={"tree": True})
    contents.write(tmp_path / "bundle")
    assert (
        "options tree of suffix drafts are left out"
        in asked(run, tmp_path / "bundle", "--draft", "suffix")[1]
    )


def test_a_missing_drafter_is_reported(run: Run, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(draft: str) -> None:
        if draft == "hybrid":
            raise MissingExtraError("no plugin")

    with monkeypatch.context() as patch:
        patch.setattr(launch, "check_drafter", missing)
        told, notes = asked(run, bundle)
        assert (told, "hybrid cannot run on vLLM here" in notes) == (None, True)
    data = json.loads((bundle / MANIFEST).read_text())
    data["defaults"] = {"draft": "magic"}
    (bundle / MANIFEST).write_text(json.dumps(data))
    assert "drafter magic cannot run on vLLM here" in asked(run, bundle)[1]
    assert asked(run, bundle, "--draft", "lstm")[0] is not None


def test_the_plugin_repeats_nothing() -> None:
    source = Path(justright_vllm.__file__).parent
    words = (plugin.TRIED, plugin.VARIABLE, plugin.DRAFTER, plugin.DISTRIBUTIONS[1])
    assert [(f.name, w) for f in source.glob("*.py") for w in words if w in f.read_text()] == []
    module, _, name = plugin.DRAFTER.rpartition(".")
    assert (module, hasattr(drafter, name)) == (drafter.__name__, True)
    with pytest.raises(UsageError, match="min_prob"):
        drafter.chain_drafter("lstm", {"min_prob": 3}, 4)
    for name in ("lstm", "hybrid"):
        assert drafter.chain_drafter(name, {"min_prob": 0.5}, 4).options.nodes == 4
