"""Drafting with the LSTM: a tree or a chain from the verifier's last state, independent of the context length.

Source: OWL, arXiv:2510.07535.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from justright.errors import UsageError
from justright.kernels.cpu import has_bfloat16
from justright.kernels.product import Product
from justright.speculative.base import EMPTY_DRAFT, Draft, check_number
from justright.speculative.lstm_network import LstmModel
from justright.speculative.sampled import sample_tree
from justright.speculative.store import verifier_matrices
from justright.speculative.trained import TrainedDrafter, TrainedOptions
from justright.speculative.tree import TreeShape, grow
from justright.speculative.tuning import TreeTable, best_shape, measure_drafting


@dataclass(frozen=True, slots=True)
class LstmOptions(TrainedOptions):
    """Options of the LSTM drafter: those of every trained drafter, and these.

    Attributes:
        spec: run [SPEC]; None: if the drafter was trained with it and it pays on this machine.
        temperature: 0: the most probable draft tokens; above: tokens *drawn* from the drafter's distribution at that
            temperature, in trees of a fixed shape.
        seed: of drawn tokens.
    """

    spec: bool | None = None
    temperature: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        TrainedOptions.__post_init__(self)
        if self.spec is not None and not isinstance(self.spec, bool):
            raise UsageError(f"LSTM drafts: spec is {self.spec!r}; allowed: true, false")
        if not isinstance(self.seed, int):
            raise UsageError(f"LSTM drafts: seed is {self.seed!r}; allowed: a whole number")
        check_number(self, "LSTM drafts", "temperature", 0, 100)


@dataclass(slots=True)
class _Request:
    token: int | None = None
    hidden: Tensor | None = None


class LstmDrafter(TrainedDrafter):
    """Drafts from the verifier's last state.

    Args:
        options: see `LstmOptions`.
    """

    name = "lstm"
    kind = "lstm"
    options_type = LstmOptions
    untuned = TreeShape(30, 8, 10)  # the paper's: the best 30 nodes besides 30 [SPEC], 8 levels, 10 per level
    needs_hidden = True

    def __init__(self, options: LstmOptions | None = None) -> None:
        super().__init__(options)
        self._network: FastLstm | None = None
        self._requests: dict[Hashable, _Request] = {}
        self._generator = torch.Generator().manual_seed(self.options.seed)
        self._trees: dict[bool, TreeTable] = {}

    def bind(self, model: PreTrainedModel, path: Path | None) -> None:
        """Read the drafter and connect it to the verifier; called once, before any request.

        Args:
            model: the verifier, loaded.
            path: its checkpoint; None: it has none, and the drafter is not checked against it.

        Raises:
            SourceError: no such drafter, or none for this model.
            CheckpointError: it is damaged.
            UsageError: it was made for another model.
        """
        folder, about = self.find(path)
        network = LstmModel.load(folder, *verifier_matrices(model, path))
        self._network = FastLstm(network, model.device)
        tables = about.get("trees") or {}
        found = {
            spec: TreeTable.from_dict(tables.get(name)) for spec, name in ((False, "plain"), (True, "spec"))
        }
        self._trees = {spec: table for spec, table in found.items() if table is not None}
        if self.options.spec and network.spec is None:
            raise UsageError(
                f"the drafter in {folder} was trained without [SPEC]: leave spec out, or set spec=false"
            )
        if self.options.spec is not False and network.spec is not None:
            self.spec_embedding = network.spec.detach().to(model.device)

    def tune(self, verify_s: Callable[[int], float], max_nodes: int) -> None:
        """Choose the best tree shape on this machine, among those that the options allow.

        Args:
            verify_s: seconds of a verification, by its rows.
            max_nodes: the maximum number of nodes of a draft, [SPEC] included.

        Also decides, unless the options do, whether [SPEC] is worth its rows. A drafter without a table of its trees,
        trained elsewhere, keeps the paper's shape.
        """
        allowed = [spec for spec in self._trees if not spec or self.spec_embedding is not None]
        if self.options.spec is not None:
            allowed = [spec for spec in allowed if spec == self.options.spec]
        if not allowed or self._network is None:
            return
        draft_s = self._network.draft_seconds()
        found = {
            spec: best_shape(
                self._trees[spec].among(
                    max_nodes=max_nodes // 2 if spec else max_nodes, **self.options.shape
                ),
                verify_s,
                draft_s,
                spec=spec,
                min_prob=self.options.min_prob,
            )
            for spec in allowed
        }
        best = max(found, key=lambda spec: found[spec][1])
        self.shape = self._settled(found[best][0])
        if not best:
            self.spec_embedding = None

    def start(self, request_id: Hashable, prompt_ids: Sequence[int]) -> None:
        """Begin a request; ignores its prompt."""
        if request_id in self._requests:
            raise UsageError(f"LSTM drafts: request {request_id!r} was started twice; stop it first")
        self._requests[request_id] = _Request()

    def observe(self, request_id: Hashable, token_ids: Sequence[int], hidden: Tensor | None = None) -> None:
        """Keep the last token and the state that predicted it."""
        request = self._active(request_id)
        request.token = token_ids[-1]
        request.hidden = hidden

    def propose(self, request_id: Hashable, max_nodes: int) -> Draft:
        """Draft from the last state; empty before there is one."""
        request = self._active(request_id)
        options, network = self.options, self._network
        assert network is not None, "bind the drafter before use"
        spec = self.spec_embedding is not None
        nodes = min(self.shape.nodes, max_nodes // 2 if spec else max_nodes)
        if request.hidden is None or request.token is None or nodes < 1:
            return EMPTY_DRAFT
        shape = replace(self.shape, nodes=nodes)
        if options.temperature:
            network.begin(request.hidden, request.token)
            made = sample_tree(network.distribution, shape, options.temperature, self._generator)
        else:
            made = network.grow(request.hidden, request.token, shape)
        return Draft(made.token_ids, made.parents, made.probs, made.proposal, spec, self.kind)

    def stop(self, request_id: Hashable) -> None:
        """Forget the request."""
        self._active(request_id)
        del self._requests[request_id]

    def _active(self, request_id: Hashable) -> _Request:
        if request_id not in self._requests:
            raise UsageError(f"LSTM drafts: request {request_id!r} is not active; start it first")
        return self._requests[request_id]


class FastLstm:
    """`LstmModel` for drafting: fused projections, packed products, and half precision where that is fast.

    A step is two products: state and embedding together give the gates; the new state gives the logits (a shared head
    and its projection are multiplied once, at construction). Draft tokens need no high precision.

    Args:
        network: as read; the reference (``tests/speculative/test_lstm_drafter.py``).
        device: the verifier's.
    """

    def __init__(self, network: LstmModel, device: torch.device) -> None:
        self.network = network.to(device)
        config = network.config
        half = device.type != "cpu" or has_bfloat16()
        self.dtype = torch.bfloat16 if half else torch.float32
        self._own = network.shared_embedding is None
        if self._own:
            gates = network.first.out_features // config.width
            embed = torch.eye(config.width).repeat(gates, 1) * config.embedding_scale
        else:
            embed = network.get_parameter("embedding.weight").detach()
        embed = embed.to(device)
        self._first = Product(torch.cat([network.first.weight.detach(), embed], dim=1), self.dtype)
        self._later = Product(torch.cat([network.later.weight.detach(), embed], dim=1), self.dtype)
        head = network.head.weight.detach()
        if network.shared_head is not None:
            head = network.shared_head.to(device).float() @ head
        self._head = Product(head, self.dtype)
        self._vocab = network.vocab.to(device)
        self._state: Tensor = torch.zeros(0)
        self._cell: Tensor | None = None
        self._token = 0

    def grow(self, hidden: Tensor, token: int, shape: TreeShape) -> Draft:
        """The most probable tree after ``token``, which the verifier chose in state ``hidden [hidden_size]``."""
        self.begin(hidden, token)
        return grow(partial(self.expand, top_k=shape.top_k), shape)

    @torch.inference_mode()
    def begin(self, hidden: Tensor, token: int) -> None:
        """Set the position after ``token``, which the verifier chose in state ``hidden [hidden_size]``."""
        self._state = self.network.start(hidden[None])
        self._cell = None
        self._token = token

    @torch.inference_mode()
    def expand(self, rows: Tensor | None, tokens: Tensor | None, top_k: int) -> tuple[Tensor, Tensor]:
        """See `justright.speculative.tree.Expand`; both results on the CPU."""
        logits = self._advance(rows, tokens)
        best = torch.log_softmax(logits, dim=-1).topk(min(top_k, logits.shape[-1]), dim=-1)
        return best.values.cpu(), self._vocab[best.indices].cpu()

    @torch.inference_mode()
    def distribution(self, rows: Tensor | None, tokens: Tensor | None, temperature: float) -> Tensor:
        """Probabilities of all tokens of the verifier's vocabulary, ``[frontier, vocab]`` float32 on the CPU."""
        logits = self._advance(rows, tokens)
        known = torch.softmax(logits / temperature, dim=-1)
        full = torch.zeros(len(known), self.network.config.vocab_size, device=known.device)
        full[:, self._vocab] = known
        return full.cpu()

    def draft_seconds(self) -> Callable[[int, int], float]:
        """Drafting seconds by ``(width, depth)``: measured for one row and for the widest level."""
        state = torch.ones(self.network.config.hidden_size, device=self._vocab.device)
        return measure_drafting(lambda shape: self.grow(state, 0, shape))

    def _advance(self, rows: Tensor | None, tokens: Tensor | None) -> Tensor:
        """One step from the states at ``rows``; logits ``[frontier, head_size]`` float32."""
        device = self._vocab.device
        if rows is None or tokens is None:
            state, cell, product = self._state, None, self._first
            ids = torch.tensor([self._token], device=device)
        else:
            assert self._cell is not None
            index = rows.to(device)
            state, cell, product = self._state[index], self._cell[index], self._later
            ids = tokens.to(device)
        if self._own:
            vectors = self.network.embedding(ids)
        else:
            vectors = F.normalize(F.embedding(ids, self.network.shared_embedding).float(), dim=-1)  # type: ignore[arg-type]
        sums = product(torch.cat([state.float(), vectors.float()], dim=-1))
        self._state, self._cell = self.network.gate(sums, cell)
        return self._head(self._state)
