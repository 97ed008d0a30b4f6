"""Bundles on disk: complete or absent, and errors name the files that differ from the manifest."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub.utils import filter_repo_objects

from checkpoint_helpers import content, make_model
from justright.checkpoint import bundle_manifest as module
from justright.checkpoint.bundle_manifest import MANIFEST, Bundle, bundled_part, is_bundle, write_bundle
from justright.checkpoint.sources import resolve
from justright.errors import CheckpointError, ResourceError, UsageError
from justright.provenance import collect


@pytest.fixture
def sources(tmp_path: Path) -> tuple[Path, dict[str, Path]]:
    model = make_model(tmp_path / "model")
    (model / "chat_template.jinja").write_text("{{ messages }}")
    (model / "pytorch_model.bin").write_bytes(b"a pickle")
    (model / "modeling.py").write_text("print()")
    (model / "adapter_config.json").write_text("{}")
    switch, draft = tmp_path / "an-adapter", tmp_path / "a-drafter"
    for folder in (switch, draft):
        folder.mkdir()
        (folder / "weights.safetensors").write_bytes(b"x" * 100)
        (folder / "config.json").write_text("{}")
        (folder / ".cache").write_text("hidden")
    (switch / "chat_template.jinja").write_text("{{ messages }}, fast")
    return model, {"switch": switch, "draft": draft}


def bundled(sources: tuple[Path, dict[str, Path]], out: Path, **changes: Any) -> Bundle:
    model, parts = sources
    options: dict[str, Any] = {
        "verifier": "0" * 16,
        "about": {name: {} for name in parts},
        "defaults": {"draft": "lstm"},
        "provenance": collect(),
    }
    return write_bundle(out, model, parts, **options | changes)


def test_what_is_written_is_read_again(sources: tuple[Path, dict[str, Path]], tmp_path: Path) -> None:
    made = bundled(sources, tmp_path / "out")
    found = Bundle.open(tmp_path / "out")
    assert found.to_dict() == json.loads(json.dumps(made.to_dict()))
    assert is_bundle(tmp_path / "out")
    assert not is_bundle(sources[0])
    assert sorted(content(tmp_path / "out")) == [
        *("chat_template.jinja", "config.json", "draft/config.json", "draft/weights.safetensors", MANIFEST),
        *(
            "model.safetensors",
            "switch/chat_template.jinja",
            "switch/config.json",
            "switch/weights.safetensors",
        ),
        "tokenizer.json",
    ]
    assert found.templates == {"chat": "chat_template.jinja", "fast": "switch/chat_template.jinja"}
    assert found.part("draft") == tmp_path / "out" / "draft"
    assert bundled_part(sources[0], "draft") is None
    assert found.verify() == module.BundleCheck()
    assert found.verify().whole
    assert not (tmp_path / "out.partial").exists()


def test_what_others_keep_beside_it_is_left(sources: tuple[Path, dict[str, Path]], tmp_path: Path) -> None:
    """The work of an interrupted `prune -o OUT` or `bundle build -o OUT` is kept."""
    kept = [tmp_path / "out.partial" / name for name in ("checkpoint/shard.safetensors", "stages/slow/x")]
    for file in kept:
        file.parent.mkdir(parents=True)
        file.write_text("hours")
    bundled(sources, tmp_path / "out")
    assert [file.read_text() for file in kept] == ["hours"] * 2
    assert sorted(file.name for file in (tmp_path / "out.partial").iterdir()) == ["checkpoint", "stages"]


def test_weights_are_linked_and_texts_are_not(sources: tuple[Path, dict[str, Path]], tmp_path: Path) -> None:
    model = sources[0]
    (model / "tokenizer.json").write_text(json.dumps({"tokens": "x" * (1 << 21)}))
    bundled(sources, tmp_path / "linked")
    bundled(sources, tmp_path / "copied", copy=True)
    assert (tmp_path / "linked" / "model.safetensors").samefile(model / "model.safetensors")
    assert not (tmp_path / "copied" / "model.safetensors").samefile(model / "model.safetensors")
    for name in ("config.json", "tokenizer.json"):
        assert not (tmp_path / "linked" / name).samefile(model / name)
    assert not any(file.is_symlink() for file in (tmp_path / "linked").rglob("*"))


def test_links_of_a_cache_are_followed(sources: tuple[Path, dict[str, Path]], tmp_path: Path) -> None:
    model, parts = sources
    blob = tmp_path / "blob"
    (model / "model.safetensors").rename(blob)
    (model / "model.safetensors").symlink_to(blob)
    bundled((model, parts), tmp_path / "out")
    assert not (tmp_path / "out" / "model.safetensors").is_symlink()
    assert (tmp_path / "out" / "model.safetensors").samefile(blob)


def test_where_nothing_can_be_linked_it_is_copied(
    sources: tuple[Path, dict[str, Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    assert bundled(sources, tmp_path / "out").verify().whole


def test_what_differs_is_named(sources: tuple[Path, dict[str, Path]], tmp_path: Path) -> None:
    found = bundled(sources, tmp_path / "out", copy=True)
    weights = tmp_path / "out" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    (tmp_path / "out" / "draft" / "weights.safetensors").write_bytes(b"x" * 99 + b"y")
    (tmp_path / "out" / "switch" / "config.json").unlink()
    (tmp_path / "out" / "switch" / "auto.json").write_text("{}")
    assert found.verify() == module.BundleCheck(
        ("switch/config.json",), ("draft/weights.safetensors", "model.safetensors"), ("switch/auto.json",)
    )
    assert not found.verify().whole


@pytest.mark.parametrize("place", ["_copy", "_hashed", "_templates"])
def test_killed_at_any_time_it_continues(
    place: str, sources: tuple[Path, dict[str, Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = getattr(module, place)
    calls: list[Any] = []

    def dying(*args: Any) -> Any:
        calls.append(args)
        if len(calls) == (3 if place == "_copy" else 1):
            raise KeyboardInterrupt
        return whole(*args)

    with monkeypatch.context() as patch:
        patch.setattr(module, place, dying)
        with pytest.raises(KeyboardInterrupt):
            bundled(sources, tmp_path / "out", copy=True)
    assert not (tmp_path / "out").exists()
    copied = {file: file.stat().st_ino for file in (tmp_path / "out.partial" / "bundle").rglob("*.json")}
    assert copied
    (tmp_path / "out.partial" / "bundle" / "stray.json").write_text("{}")
    made = bundled(sources, tmp_path / "out", copy=True)
    assert made.verify() == module.BundleCheck()
    kept = [tmp_path / "out" / file.relative_to(tmp_path / "out.partial" / "bundle") for file in copied]
    assert [file.stat().st_ino for file in kept] == list(copied.values())


def test_links_of_an_interrupted_run_become_copies_where_copies_are_wanted(
    sources: tuple[Path, dict[str, Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(module, "_hashed", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            bundled(sources, tmp_path / "out")
    bundled(sources, tmp_path / "out", copy=True)
    for name in ("model.safetensors", "tokenizer.json"):
        assert not (tmp_path / "out" / name).samefile(sources[0] / name)


def test_a_source_that_changed_meanwhile_is_taken_anew(
    sources: tuple[Path, dict[str, Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(module, "_hashed", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            bundled(sources, tmp_path / "out")
    (sources[0] / "tokenizer.json").write_text('{"a": 1}')
    bundled(sources, tmp_path / "out")
    assert (tmp_path / "out" / "tokenizer.json").read_text() == '{"a": 1}'


def test_no_room_and_no_place(
    sources: tuple[Path, dict[str, Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(module, "DISK_MARGIN_BYTES", 2**60)
        with pytest.raises(ResourceError, match=r"free, but .* are needed"):
            bundled(sources, tmp_path / "out")
    bundled(sources, tmp_path / "out")
    with pytest.raises(UsageError, match="exists already"):
        bundled(sources, tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "justright-bundle-9"}, "justright-bundle-9"),
        ({"files": {"../../secret": {"size_bytes": 1, "sha256": "0"}}}, "allowed: files inside the bundle"),
        ({"files": {"/etc/passwd": {"size_bytes": 1, "sha256": "0"}}}, "allowed: files inside the bundle"),
        ({"templates": {"chat": ".."}}, "allowed: files inside the bundle"),
        ({"files": {"config.json": 7}}, "its entry of config.json is 7"),
        ({"files": {"config.json": {"size_bytes": "9", "sha256": "0"}}}, "its entry of config.json is"),
        ({"files": {"config.json": {"size_bytes": True, "sha256": "0"}}}, "its entry of config.json is"),
        ({"files": {"config.json": {"size_bytes": 9, "sha256": None}}}, "its entry of config.json is"),
        ({"files": {"config.json": {"size_bytes": 9}}}, "its entry of config.json is"),
        ({"files": {"config.json": ["size_bytes", "sha256"]}}, "its entry of config.json is"),
        ({"parts": None}, "parts is None"),
    ],
)
def test_a_manifest_that_cannot_be_is_refused(
    change: dict[str, Any], message: str, sources: tuple[Path, dict[str, Path]], tmp_path: Path
) -> None:
    bundled(sources, tmp_path / "out")
    file = tmp_path / "out" / MANIFEST
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(CheckpointError, match=message):
        Bundle.open(tmp_path / "out")


def test_a_folder_that_is_not_a_bundle_raises(sources: tuple[Path, dict[str, Path]], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not a bundle"):
        Bundle.open(sources[0])
    found = bundled(sources, tmp_path / "out")
    for file in (tmp_path / "out" / "draft").iterdir():
        file.unlink()
    (tmp_path / "out" / "draft").rmdir()
    with pytest.raises(CheckpointError, match="has no draft folder"):
        found.part("draft")


def test_all_that_the_manifest_of_a_bundle_on_the_hub_names_is_fetched(
    sources: tuple[Path, dict[str, Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, parts = sources
    for name in ("NOTICE", "LICENCE", "CARD.md", "index.html", "score.png", "tokenizer.model.v3", "a[1].txt"):
        (model / name).write_text(name)
    (model / "additional_chat_templates").mkdir()
    (model / "additional_chat_templates" / "tools.jinja").write_text("{{ tools }}")
    (parts["switch"] / "NOTICE").write_text("mine")
    made = bundled(sources, tmp_path / "0123abcd")
    assert {"NOTICE", "a[1].txt", "switch/NOTICE", "additional_chat_templates/tools.jinja"} <= set(made.files)
    never = ["switch/adapter_model.bin", "draft/code.py", "pytorch_model.bin", "weights.pkl", "a1.txt"]
    hub = [*made.files, MANIFEST, *never]
    calls: list[dict[str, Any]] = []
    found = {"org/bundle": tmp_path / "0123abcd", "org/plain": model}

    def download(repo: str, **options: Any) -> str:
        calls.append(options)
        return str(found[repo])

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert resolve("org/bundle").path == tmp_path / "0123abcd"
    first, second = calls
    assert second["revision"] == "0123abcd"
    assert MANIFEST in filter_repo_objects(hub, **patterns(first))
    assert sorted(filter_repo_objects(hub, **patterns(second))) == sorted(made.files)
    assert not any(
        n.endswith(".safetensors") and "/" in n for n in filter_repo_objects(hub, **patterns(first))
    )
    calls.clear()
    resolve("org/plain")
    assert len(calls) == 1


def test_what_a_manifest_names_is_not_fetched_if_it_may_be_code(
    sources: tuple[Path, dict[str, Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundled(sources, tmp_path / "0123abcd")
    file = tmp_path / "0123abcd" / MANIFEST
    data = json.loads(file.read_text())
    names = ["switch/code.py", "weights.pkl", "adapter_model.bin", "draft/a.ckpt"]
    data["files"] |= {name: {"size_bytes": 1, "sha256": "0"} for name in names}
    file.write_text(json.dumps(data))
    calls: list[dict[str, Any]] = []
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download",
        lambda repo, **options: calls.append(options) or str(tmp_path / "0123abcd"),
    )
    resolve("org/bundle")
    assert [list(filter_repo_objects(names, **patterns(call))) for call in calls] == [[], []]


def patterns(call: dict[str, Any]) -> dict[str, Any]:
    return {name: call[name] for name in ("allow_patterns", "ignore_patterns")}
