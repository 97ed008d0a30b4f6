"""Apply an adapter to a running model with a separate adapter scale per token, and at no cost while it is off.

Each row computes ``W_slow x + factor * B (A x)``. Rows of scale 0 equal the slow model's bit for bit if all rows have
scale 0, and in dense models in every batch. In mixtures, whose experts get slow and fast rows separately, they agree
within 1e-5 of the largest logit (tested in float32 on the CPU; measured: 5.1e-7 at most). The model has hooks only
inside `AppliedSwitch.rows`, and only if the forward has rows to change.

Source: arXiv:2510.06750, hard (0 or 1) and soft switching.
Differs: the paper switches a whole model. Here requests of both kinds share one forward, like adapters in serving
engines (arXiv:2311.03285), and norms, biases and routers may be switched exactly.
"""

from __future__ import annotations

import contextlib
import copy
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from justright.adapter.adapter import Adapter, LowRank
from justright.architectures.schema import Moe
from justright.architectures.spec import architecture_of
from justright.errors import UsageError

Hook = Callable[[nn.Module, tuple[Any, ...], Any], Any]


@dataclass(frozen=True, slots=True)
class Rows:
    """The tokens of a forward that the adapter changes, and their adapter scales.

    Attributes:
        tokens: Number of tokens in the forward.
        index: Indices of the changed tokens, ``[rows]``; None: all tokens.
        factors: Adapter scales, ``[rows, 1]``; None: all are 1.
        groups: ``(factor, token positions)`` for each distinct scale.
    """

    tokens: int
    index: Tensor | None
    factors: Tensor | None
    groups: tuple[tuple[float, Tensor], ...]

    @classmethod
    def of(cls, factors: Sequence[float], device: torch.device, dtype: torch.dtype) -> Rows | None:
        """Build from one scale per token; return None if all are 0."""
        changed = [i for i, factor in enumerate(factors) if factor != 0]
        if not changed:
            return None
        values = [factors[i] for i in changed]
        groups = tuple(
            (value, torch.tensor([i for i in changed if factors[i] == value], device=device))
            for value in dict.fromkeys(values)
        )
        index = None if len(changed) == len(factors) else torch.tensor(changed, device=device)
        scale = torch.tensor(values, device=device, dtype=dtype)[:, None]
        return cls(len(factors), index, None if set(values) == {1.0} else scale, groups)

    def unchanged(self, device: torch.device) -> Tensor:
        """Positions of the unchanged tokens, ``[rest]``."""
        mask = torch.ones(self.tokens, dtype=torch.bool, device=device)
        for _, positions in self.groups:
            mask[positions] = False
        return mask.nonzero().flatten()


class AppliedSwitch:
    """An adapter prepared for a model.

    Args:
        model: The slow model; it is unchanged between forwards.
        adapter: An adapter for this model.

    Raises:
        UsageError: The model lacks a module that the adapter names, or its shape differs.
    """

    def __init__(self, model: PreTrainedModel, adapter: Adapter) -> None:
        self.adapter = adapter
        self.device, self.dtype = model.device, model.dtype
        self._rows: Rows | None = None
        self._handles: list[Any] = []
        self._hooks: list[tuple[nn.Module, Hook]] = []
        self._experts: list[_Experts] = []
        moe = architecture_of(model.config).moe
        experts = {} if moe is None else self._expert_changes(moe, adapter)
        own = {name for found in experts.values() for name in found}
        for name, change in adapter.low_rank.items():
            if name not in own:
                self._hooks.append((self._linear(model, name, change), self._low_rank_hook(change)))
        exact: dict[str, dict[str, Tensor]] = {}
        for name, delta in adapter.exact.items():
            if name not in own:
                owner, _, leaf = name.rpartition(".")
                exact.setdefault(owner, {})[leaf] = delta.to(self.device)
        for path, deltas in exact.items():
            module = _module(model, path, adapter)
            linear = hasattr(module, "in_features") and set(deltas) == {"bias"}
            hook = self._bias_hook(deltas["bias"]) if linear else self._exact_hook(module, deltas)
            self._hooks.append((module, hook))
        transposed = moe is not None and moe.memory.transposed
        for path, found in experts.items():
            self._experts.append(_Experts(_module(model, path, adapter), found, self, transposed))

    @contextlib.contextmanager
    def rows(self, factors: Sequence[float]) -> Iterator[None]:
        """Context manager for one forward: token ``i`` of its flat batch uses adapter scale ``factors[i]``.

        If all scales are 0, the hooks are removed and only the model's own code runs.
        """
        self._rows = Rows.of(factors, self.device, self.dtype)
        self._stand(self._rows is not None)
        try:
            yield
        finally:
            self._rows = None

    @property
    def active(self) -> Rows:
        """The rows of the current forward."""
        assert self._rows is not None
        return self._rows

    def _stand(self, on: bool) -> None:
        """Add the hooks to the model, or remove them."""
        if on == bool(self._handles):
            return
        if on:
            self._handles = [module.register_forward_hook(hook) for module, hook in self._hooks]
        for expert in self._experts:
            expert.stand(on)
        if not on:
            for handle in self._handles:
                handle.remove()
            self._handles = []

    def _low_rank_hook(self, change: LowRank) -> Hook:
        a, b = (tensor.to(self.device, self.dtype).T for tensor in (change.a, change.b))

        def hook(_module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            rows = self.active
            x = args[0].reshape(-1, args[0].shape[-1])
            low = torch.mm(x if rows.index is None else x[rows.index], a)
            if rows.factors is not None:
                low *= rows.factors
            out = output.view(-1, output.shape[-1])
            if rows.index is None:
                out.addmm_(low, b)
            else:
                out.index_add_(0, rows.index, torch.mm(low, b))

        return hook

    def _bias_hook(self, delta: Tensor) -> Hook:
        def hook(_module: nn.Module, _args: tuple[Any, ...], output: Tensor) -> None:
            flat = output.view(-1, output.shape[-1])
            for factor, positions in self.active.groups:
                flat.index_add_(
                    0, positions, (factor * delta.float()).to(flat.dtype).expand(len(positions), -1)
                )

        return hook

    def _exact_hook(self, module: nn.Module, deltas: dict[str, Tensor]) -> Hook:
        """Run a copy of the module with changed parameters on the rows of each scale."""
        copies: dict[float, nn.Module] = {}

        def hook(_module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
            rows = self.active
            axis = _token_axis(args[0], rows.tokens)
            for factor, positions in rows.groups:
                if factor not in copies:
                    copies[factor] = _changed_copy(module, deltas, factor)
                if len(positions) == rows.tokens:
                    return copies[factor](*args)
                new = copies[factor](args[0].index_select(axis, positions), *args[1:])
                for old, part in zip(_tensors(output), _tensors(new), strict=True):
                    old.index_copy_(_token_axis(old, rows.tokens), positions, part)
            return None

        return hook

    def _linear(self, model: PreTrainedModel, name: str, change: LowRank) -> nn.Module:
        module = _module(model, name, self.adapter)
        found = getattr(module, "in_features", None), getattr(module, "out_features", None)
        expected = change.a.shape[-1], change.b.shape[-2]
        if found != expected:
            raise UsageError(
                f"{self.adapter.path} was made for another model: its {name} has {expected[0]} inputs and "
                f"{expected[1]} outputs, this model's has {found[0]} and {found[1]}"
            )
        return module

    @staticmethod
    def _expert_changes(moe: Moe, adapter: Adapter) -> dict[str, dict[str, LowRank | Tensor]]:
        """Group the changes of stacked experts by module path: full parameter path -> change."""
        found: dict[str, dict[str, LowRank | Tensor]] = {}
        leaves = {f".{name}" for name in (*moe.memory.matrices, *moe.memory.biases)}
        changes: dict[str, LowRank | Tensor] = {**adapter.low_rank, **adapter.exact}
        for name, change in changes.items():
            if any(name.endswith(leaf) for leaf in leaves):
                found.setdefault(name.rpartition(".")[0], {})[name] = change
        return found


class _Experts:
    """A module of stacked experts: slow rows run through it, fast rows through a changed copy."""

    def __init__(
        self, module: nn.Module, changes: dict[str, LowRank | Tensor], switch: AppliedSwitch, transposed: bool
    ) -> None:
        self.module, self.switch, self.transposed = module, switch, transposed
        self.changes: dict[str, LowRank | Tensor] = {}
        for name, change in changes.items():
            to = {"device": switch.device, "dtype": switch.dtype}
            moved: LowRank | Tensor
            if isinstance(change, LowRank):
                a, b = change.a.to(**to), change.b.to(**to)
                exchanged = transposed and not getattr(module, "is_transposed", False)  # see `LowRank`
                moved = LowRank(b.mT, a.mT) if exchanged else LowRank(a, b)
            else:
                moved = change.to(**to)
            self.changes[name.rpartition(".")[2]] = moved
        self._copies: dict[float, nn.Module] = {}

    def stand(self, on: bool) -> None:
        """Replace the module's forward, or restore it."""
        if on:
            self.module.forward = self._forward  # overrides the class method on this instance
        elif "forward" in self.module.__dict__:
            del self.module.__dict__["forward"]

    def _forward(self, hidden: Tensor, *others: Any, **named: Any) -> Tensor:
        rows = self.switch.active
        repeats = hidden.shape[0] // rows.tokens  # Llama 4 passes all tokens to each expert, expert by expert
        out: Tensor | None = None
        slow = rows.unchanged(hidden.device)
        parts: list[tuple[Callable[..., Tensor], Tensor]] = [
            (type(self.module).forward.__get__(self.module), slow)
        ]
        parts += [(self._copy(factor), positions) for factor, positions in rows.groups]
        for run, positions in parts:
            if len(positions) == 0:
                continue
            where = torch.cat([positions + i * rows.tokens for i in range(repeats)])
            new = run(
                *(_take(x, where) for x in (hidden, *others)),
                **{k: _take(x, where) for k, x in named.items()},
            )
            out = new.new_empty((hidden.shape[0], *new.shape[1:])) if out is None else out
            out[where] = new.reshape(len(where), *new.shape[1:])
        assert out is not None
        return out

    def _copy(self, factor: float) -> nn.Module:
        if factor not in self._copies:
            changed = _plain_copy(self.module)
            for name, change in self.changes.items():
                weight = changed._parameters.pop(name)
                assert weight is not None
                new: Any = (
                    ChangedWeight(weight, change.a, change.b, factor, self.transposed)
                    if isinstance(change, LowRank)
                    else weight + factor * change
                )
                object.__setattr__(changed, name, new)
            if (config := getattr(changed, "config", None)) is not None:
                # The grouped kernels need whole stacks; the plain loop reads one expert at a time.
                plain: Any = copy.copy(config)
                plain._experts_implementation_internal = "eager"
                object.__setattr__(changed, "config", plain)
            self._copies[factor] = changed
        return self._copies[factor]


class ChangedWeight:
    """Represents ``weight + factor * B A`` in products without materialising the sum.

    Args:
        weight: ``[(experts,) out, in]``, or ``[(experts,) in, out]`` if transposed.
        a: ``[(experts,) rank, in]``.
        b: ``[(experts,) out, rank]``.
        factor: Adapter scale.
        transposed: Whether the weight is transposed.
    """

    def __init__(self, weight: Tensor, a: Tensor, b: Tensor, factor: float, transposed: bool) -> None:
        self.weight, self.a, self.b, self.factor, self.transposed = weight, a, b, factor, transposed

    @property
    def shape(self) -> torch.Size:
        """Shape of the weight."""
        return self.weight.shape

    def __getitem__(self, expert: Any) -> ChangedWeight:
        return ChangedWeight(
            self.weight[expert], self.a[expert], self.b[expert], self.factor, self.transposed
        )

    @classmethod
    def __torch_function__(
        cls, func: Any, _types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Tensor:
        """Implement products of activations with the changed weight, the only use in expert modules."""
        x, other = args[0], args[1]
        if func not in _PRODUCTS or not isinstance(other, cls):
            raise NotImplementedError(f"{func} on a weight that differs by row")
        plain: Tensor = func(x, other.weight, *args[2:], **(kwargs or {}))
        changed: Tensor = plain + other.factor * ((x @ other.a.mT) @ other.b.mT)
        return changed


_PRODUCTS = {nn.functional.linear, torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm}


def _module(model: PreTrainedModel, path: str, adapter: Adapter) -> nn.Module:
    try:
        found: nn.Module = model.get_submodule(path)
        return found
    except AttributeError:
        raise UsageError(
            f"{adapter.path} was made for another model: it changes {path}, which this {model.config.model_type} "
            "model does not have"
        ) from None


def _plain_copy(module: nn.Module) -> nn.Module:
    """Copy a module without its hooks; the copy shares the tensors, and they can be replaced."""
    made: nn.Module = copy.copy(module)
    for name in ("_parameters", "_buffers", "_modules"):
        made.__dict__[name] = dict(module.__dict__[name])
    made.__dict__["_forward_hooks"] = OrderedDict()
    made.__dict__.pop("forward", None)
    return made


def _changed_copy(module: nn.Module, deltas: dict[str, Tensor], factor: float) -> nn.Module:
    """Copy a module with ``parameter + factor * delta``, computed in float32."""
    made = _plain_copy(module)
    for name, delta in deltas.items():
        old = getattr(made, name)
        new = (old.float() + factor * delta.float()).to(old.dtype)
        if name in made._parameters:
            made._parameters[name] = nn.Parameter(new, requires_grad=False)
        else:
            made._buffers[name] = new
    return made


def _token_axis(tensor: Tensor, tokens: int) -> int:
    """Find the token axis of a tensor."""
    axis = next(
        (i for i in (1, 0) if i < tensor.ndim and tensor.shape[i] == tokens and (i or tensor.ndim == 2)), None
    )
    if axis is None:
        axis = next(i for i in range(tensor.ndim) if tensor.shape[i] == tokens)
    return axis


def _tensors(found: Any) -> list[Tensor]:
    return [one for one in (found if isinstance(found, tuple) else (found,)) if isinstance(one, Tensor)]


def _take(x: Any, rows: Tensor) -> Any:
    return x[rows] if isinstance(x, Tensor) else x
