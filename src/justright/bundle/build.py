"""From a recipe to a bundle: prune both models, extract the switch, train the drafter, bundle; each stage resumable.

OUT.partial/stages/        exists during the build; delete it to start again
    slow/ fast/ switch/ draft/
        stage.json         the settings of the stage
        out/               its result; complete if it exists
OUT.partial/bundle/        becomes OUT
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from justright.adapter.adapter import Adapter
from justright.adapter.extract import check_svd, extract
from justright.adapter.extract import estimate as estimate_switch
from justright.adapter.pair import Pair
from justright.architectures.spec import ModelSpec
from justright.bundle.alike import prune_alike
from justright.bundle.contents import KIND_OF, check_contents, check_defaults, check_verifier
from justright.bundle.recipe import DraftRecipe, Recipe
from justright.calibration.texts import notes
from justright.checkpoint.bundle_manifest import Bundle, bundled_files
from justright.checkpoint.fingerprint import weights_identity
from justright.checkpoint.mode_files import read_special_tokens
from justright.checkpoint.sources import resolve
from justright.checkpoint.tokenizer import load_tokenizer
from justright.checkpoint.writer import take_lock
from justright.engine.chat_modes import RequestBuilder
from justright.engine.options import EngineOptions
from justright.errors import UsageError
from justright.files import check_new, local_path, write_whole
from justright.progress import ProgressCallback
from justright.provenance import shown_path
from justright.prune.pipeline import Pruning
from justright.prune.preflight import every_device
from justright.prune.settings import Settings
from justright.readable import differences
from justright.training.pipeline import DetailedProgress, Job, TrainingJob
from justright.training.prompts import Prompts

_ABOUT = "stage.json"


@dataclass(frozen=True, slots=True)
class StageEstimate:
    """Estimated time and disk space of a stage.

    Attributes:
        stage: slow, fast, switch, draft or bundle.
        done: whether it is complete, with these settings.
        seconds: estimate, measured on the unpruned models; None: little more than reading and writing.
        size_bytes: of ``held``.
        held: what takes this space.
        changed: settings that differ from those of the existing stage, which then needs ``redo``.
    """

    stage: str
    done: bool
    seconds: float | None
    size_bytes: int
    held: str
    changed: tuple[str, ...] = ()


class BundleBuild:
    """A validated recipe: all cheap work is done, nothing is written yet.

    Args:
        recipe: of the bundle.
        out: the directory to create.

    Raises:
        JustrightError: ``out`` exists, the models are no pair, the texts are too short, and others.
    """

    def __init__(self, recipe: Recipe, out: Path) -> None:
        self.recipe, self.out = recipe, Path(os.path.abspath(local_path(out)))
        check_new(self.out)
        self.work = self.out.with_name(self.out.name + ".partial") / "stages"
        self.device = EngineOptions(device=recipe.device).torch_device
        self.model = resolve(recipe.model).path
        self.fast = None if recipe.fast is None else resolve(recipe.fast).path
        spec, tokenizer = check_verifier(self.model)
        self.context = spec.context
        self._check_defaults(spec, tokenizer)
        if recipe.switch is not None:
            check_svd(recipe.switch.svd, recipe.switch.ranks, recipe.switch.workers)
        self.pair = None if self.fast is None else Pair(self.model, self.fast)
        self.notes = [] if self.pair is None else self.pair.notes()
        """Notes for the user; `run` adds to them."""
        self.pruning = None if recipe.prune is None else self._pruning(recipe.prune)
        self.prompts: list[Prompts] = []
        self.training = None if recipe.draft is None else self._training(recipe.draft)
        pruning = self.pruning
        texts = set(
            pruning.settings.calibration if pruning is not None and pruning.calibration is not None else ()
        )
        texts |= set(recipe.draft.texts if recipe.draft is not None else ())
        self.notes += notes(sorted(texts))
        self.keys = self._keys()
        """Stage -> what its result depends on: settings, identities of the models, earlier stages."""

    def estimate(self) -> list[StageEstimate]:
        """Estimate every stage; what depends on the machine is measured."""
        size = sum(bundled_files(self.model, {}).values())
        steps: list[StageEstimate] = []
        for stage in self.keys:
            steps.append(self._estimated(stage, size))
            size = steps[-1].size_bytes if stage == "slow" else size
        return [*steps, StageEstimate("bundle", False, None, size, "the model, without its parts")]

    def _estimated(self, stage: str, model_bytes: int) -> StageEstimate:
        if self._is_made(stage):
            return StageEstimate(stage, True, None, _size(self._out(stage)), "the result")
        seconds: float | None = None
        size, held = model_bytes, "the pruned model"
        if stage == "slow" and self.pruning is not None:
            seconds, size = self.pruning.seconds(), self.pruning.estimate().size_bytes
        elif stage == "switch" and self.pair is not None and self.recipe.switch is not None:
            how = self.recipe.switch
            found = estimate_switch(self.pair, how.max_rank, how.svd, self.device)
            seconds, size, held = found.seconds, found.spectra_bytes, "decompositions, temporary"
        elif stage == "draft" and self.training is not None:
            about = self.training.estimate()
            seconds = about["data"]["seconds"] + about["train_seconds"] + about["spec_seconds"]
            size, held = about["data"]["bytes"], "training data, temporary"
        return StageEstimate(stage, False, seconds, size, held, tuple(self._changed(stage)))

    def run(self, progress: DetailedProgress = lambda *_: None, *, redo: bool = False) -> Bundle:
        """Build the bundle; the same call resumes an interrupted build.

        Args:
            progress: called with progress.
            redo: repeat stages whose settings have changed, and the stages that depend on them.

        Raises:
            UsageError: a stage has other settings and ``redo`` is False; or another process builds the same bundle.
            JustrightError: see the stages.
        """
        self.work.mkdir(parents=True, exist_ok=True)
        lock = take_lock(self.work)
        try:
            self._settle(redo=redo)
            model, fast = self.model, self.fast
            if self.pruning is not None:
                pruning, source = self.pruning, self.fast
                model = self._stage("slow", lambda out: pruning.run(out, _named("slow", progress)))
                if source is not None:
                    tick, how = _named("fast", progress), pruning.settings
                    fast = self._stage("fast", lambda out: prune_alike(source, model, out, how, tick))
            switch = None if fast is None else self._extracted(model, fast, progress)
            draft = None if self.recipe.draft is None else self._trained(model, switch, progress)
            defaults = self.recipe.defaults
            contents = check_contents(
                str(model),
                switch=None if switch is None else str(switch),
                draft=None if draft is None else str(draft),
                draft_options=defaults.draft_options,
                defaults=defaults.named(),
            )
            self.notes += contents.notes
            sources = {"model": self.model} | ({} if self.fast is None else {"fast": self.fast})
            content = dict(self.recipe.content)
            bundle = contents.write(self.out, tick=_named("bundle", progress), inputs=sources, recipe=content)
            for stage in self.keys:
                _remove(self.work / stage)
            shutil.rmtree(self.work, ignore_errors=True)
            return bundle
        finally:
            lock.release()
            with contextlib.suppress(OSError):  # other files may be there
                self.work.parent.rmdir()

    def _check_defaults(self, spec: ModelSpec, tokenizer: PreTrainedTokenizerFast) -> None:
        """Validate now what bundling would only find after hours.

        Raises:
            UsageError: an effort without a switch or a probe, a drafter without a training, too much context.
        """
        recipe, defaults, kind = self.recipe, self.recipe.defaults, None
        if defaults.effort == "auto":
            raise UsageError(
                "defaults.effort is auto, which needs a calibrated switch. Omit it, run `justright switch calibrate` "
                "on the new switch, and bundle again"
            )
        if recipe.draft is not None:
            kind = "attention" if recipe.draft.shape.cell == "attention" else "lstm"
        elif defaults.draft in KIND_OF:
            raise UsageError(f"defaults.draft {defaults.draft} needs a trained drafter; add a section draft")
        switch = None  # stands for the switch that will be extracted
        if self.fast is not None:
            switch = Adapter(self.work / "switch", {}, {}, None, load_tokenizer(self.fast).chat_template, {})
        try:
            check_defaults(defaults, spec, RequestBuilder(tokenizer, switch), kind)
        except UsageError as error:
            made = "" if self.fast else " (add the key fast to the recipe to make a switch)"
            raise UsageError(f"defaults: {error}{made * (defaults.effort is not None)}") from error

    def _pruning(self, settings: Settings) -> Pruning:
        given = (self.recipe.content.get("prune") or {}).get("length")
        settled = settings if given else replace(settings, length=min(settings.length, self.context))
        device = str(self.device)
        if self.recipe.device == "auto":
            device = every_device(device)
        return Pruning(self.model, settled, device=device)

    def _training(self, how: DraftRecipe) -> TrainingJob:
        """The training, validated as far as possible without the switch; fast mode's prompts are included."""
        work = TrainingJob(self._job(self.model, None, self.work / "unwritten"))
        self.prompts = list(work.prompts)
        if self.fast is not None and (template := load_tokenizer(self.fast).chat_template) is not None:
            options = {"chat_template": template, **read_special_tokens(self.fast)}
            length, chat = how.data.prompt_tokens, how.data.chat
            self.prompts += [Prompts(work.tokenizer, how.texts, length=length, chat=chat, template=options)]
        return work

    def _job(self, model: Path, switch: Path | None, out: Path) -> Job:
        how = self.recipe.draft
        assert how is not None
        training = how.training if how.shape.spec else replace(how.training, spec_steps=0)
        device = None if self.recipe.device == "auto" else self.recipe.device
        adapter = None if switch is None else str(switch)
        return Job(model, out, how.texts, how.shape, how.data, training, adapter, device=device)

    def _extracted(self, model: Path, fast: Path, progress: DetailedProgress) -> Path:
        how = self.recipe.switch
        assert how is not None

        def make(out: Path) -> None:
            extract(
                Pair(model, fast), out, how.ranks, budget=how.budget, max_rank=how.max_rank, exact=how.exact,
                svd=how.svd, workers=how.workers, device=self.device, tick=_named("switch", progress),
            )  # fmt: skip

        return self._stage("switch", make)

    def _trained(self, model: Path, switch: Path | None, progress: DetailedProgress) -> Path:
        def make(out: Path) -> None:
            TrainingJob(self._job(model, switch, out)).run(
                lambda stage, done, total, detail: progress(f"draft: {stage}", done, total, detail)
            )

        return self._stage("draft", make)

    # --- stages

    def _keys(self) -> dict[str, dict[str, Any]]:
        keys: dict[str, dict[str, Any]] = {}
        recipe, pruning = self.recipe, self.pruning
        model, fast = (None if path is None else weights_identity(path) for path in (self.model, self.fast))
        if pruning is not None:
            texts = None if pruning.calibration is None else pruning.calibration.fingerprint
            keys["slow"] = {"model": model, "texts": texts, **pruning.settings.to_dict()}
            model = _digest(keys["slow"])
            if fast is not None:
                keys["fast"] = {"model": fast, "like": model}
                fast = _digest(keys["fast"])
        if recipe.switch is not None:
            keys["switch"] = {"model": model, "fast": fast, **asdict(recipe.switch)}
            del keys["switch"]["workers"]  # changes only the time
        if recipe.draft is not None:
            switch = _digest(keys["switch"]) if "switch" in keys else None
            prompts = [one.fingerprint for one in self.prompts]
            keys["draft"] = {
                "model": model,
                "switch": switch,
                **_flat(asdict(recipe.draft)),
                "prompts": prompts,
            }
        return {stage: json.loads(json.dumps(key)) for stage, key in keys.items()}

    def _out(self, stage: str) -> Path:
        return self.work / stage / "out"

    def _changed(self, stage: str) -> list[str]:
        """Settings in which an existing stage differs from the recipe."""
        held, key = _read(self.work / stage / _ABOUT), self.keys[stage]
        return [] if held is None else list(differences(held, key))

    def _is_made(self, stage: str) -> bool:
        return self._out(stage).exists() and _read(self.work / stage / _ABOUT) == self.keys[stage]

    def _settle(self, *, redo: bool) -> None:
        """Remove stages with other settings; create the folders of missing stages, with their settings.

        Raises:
            UsageError: a stage has other settings, and ``redo`` is False.
        """
        for stage, key in self.keys.items():
            folder = self.work / stage
            if (old := _old(folder)).exists():  # a killed run was removing it
                shutil.rmtree(old)
            if _read(folder / _ABOUT) == key:
                continue
            if (changed := self._changed(stage)) and not redo:
                raise UsageError(
                    f"{folder} was made with other settings ({', '.join(changed)}). Give --redo to repeat this stage "
                    "and those that depend on it, restore the recipe, or give another output"
                )
            if folder.exists():  # also one without settings, whose origin is unknown
                _remove(folder)
            folder.mkdir()
            write_whole(folder / _ABOUT, json.dumps(key, indent=1) + "\n")

    def _stage(self, stage: str, make: Callable[[Path], object]) -> Path:
        """The result of a stage; runs it if the result is missing."""
        out = self._out(stage)
        if not out.exists():
            make(out)
        _rename_folders(out, self._lasting_folders())
        return out

    def _lasting_folders(self) -> dict[str, str]:
        """Map each stage's folder, which is temporary, to the folder that has its content afterwards."""
        places = {"slow": self.out, "fast": self.fast or self.out}
        places |= {part: self.out / part for part in ("switch", "draft")}
        outs = {self._out(stage): place for stage, place in places.items()}
        shown = {shown_path(out): shown_path(place) for out, place in outs.items()}
        return shown | {str(out): str(place) for out, place in outs.items()}


def _named(stage: str, progress: DetailedProgress) -> ProgressCallback:
    """A callback that prefixes progress with the name of its stage."""
    return lambda what, done, total: progress(f"{stage}: {what}", done, total, "")


def _flat(data: Mapping[str, Any]) -> dict[str, Any]:
    """``{"data": {"batch": 8}}`` to ``{"data.batch": 8}``."""
    found: dict[str, Any] = {}
    for name, value in data.items():
        inner = value if isinstance(value, dict) else {}
        found |= {f"{name}.{key}": one for key, one in inner.items()} if inner else {name: value}
    return found


def _old(folder: Path) -> Path:
    return folder.with_name(folder.name + ".old")


def _remove(folder: Path) -> None:
    """Rename the folder before deleting it, so that a half-deleted one is never taken for complete."""
    folder.rename(_old(folder))
    shutil.rmtree(_old(folder))


def _read(file: Path) -> dict[str, Any] | None:
    """A JSON object, or None if the file is missing or damaged."""
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return None


def _digest(key: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _rename_folders(folder: Path, names: Mapping[str, str]) -> None:
    """Replace folder names in the JSON files of ``folder``."""
    for file in folder.glob("*.json"):
        text = renamed = file.read_text(encoding="utf-8")
        for old, new in names.items():
            for ascii_only in (True, False):
                was, now = (json.dumps(name, ensure_ascii=ascii_only)[1:-1] for name in (old, new))
                renamed = renamed.replace(was, now)
        if renamed != text:
            write_whole(file, renamed)
