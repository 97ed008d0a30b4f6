"""Measure what 8- and 4-bit weights gain and lose: time per token, prompt speed, memory of the matrices, perplexity.

python benchmarks/weights.py [MODEL]        some ten minutes on two cores

All ways take turns in one process. Perplexity is that of the zoo's long texts.
"""

from __future__ import annotations

import argparse
import math
import statistics

import torch
import torch.nn.functional as F

from justright.bench.decode import describe_machine
from justright.bench.longtexts import zoo_texts
from justright.bench.running import numbers
from justright.bench.tables import machine_line, markdown_table
from justright.engine.llm import LLM
from justright.engine.step import StepInput
from justright.kernels.packed import FusedMember, PackedLinear
from justright.kernels.quantised import QuantisedLinear

WAYS = (None, "int8", "int4")
_CHARACTERS = 8192  # of each text: encoding a whole one takes longer than the measurement


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", nargs="?", default="packaged:smollm2-135m-instruct")
    parser.add_argument("--contexts", default="64,1024,4096", help="prompt tokens, separated by commas")
    parser.add_argument("--tokens", type=int, default=32, help="output tokens of each measurement")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--texts", type=int, default=6, help="texts for the perplexity, 512 tokens of each")
    chosen = parser.parse_args()
    engines = {way or "float32": LLM(chosen.model, weights=way) for way in WAYS}
    texts = [one.text[:_CHARACTERS] for one in zoo_texts()][: chosen.texts]
    rows = [["matrices, MiB"] + [f"{matrix_bytes(one) / 2**20:.0f}" for one in engines.values()]]
    rows.append(["perplexity"] + [f"{perplexity(one, texts):.3f}" for one in engines.values()])
    ids = engines["float32"].encode("\n\n".join(texts))
    for context in numbers(chosen.contexts):
        rows += timed(engines, ids[:context], chosen.tokens, chosen.repeats)
    print(markdown_table(["", *engines], rows))
    print(machine_line(describe_machine()))
    return 0


def timed(engines: dict[str, LLM], prompt: list[int], tokens: int, repeats: int) -> list[list[str]]:
    """Medians of the time of a token and of the prompt speed; the engines take turns."""
    decode: dict[str, list[float]] = {name: [] for name in engines}
    prefill: dict[str, list[float]] = {name: [] for name in engines}
    for _ in range(repeats):
        for name, engine in engines.items():
            stats = engine.generate_request(prompt, max_tokens=tokens + 1, ignore_eos=True).stats
            decode[name].append(1000 * stats.decode_s / tokens)
            prefill[name].append(len(prompt) / stats.prefill_s)
    return [
        [f"ms a token at {len(prompt)}"] + [f"{statistics.median(all_):.1f}" for all_ in decode.values()],
        [f"prompt tokens/s at {len(prompt)}"]
        + [f"{statistics.median(all_):.0f}" for all_ in prefill.values()],
    ]


@torch.inference_mode()
def perplexity(engine: LLM, texts: list[str]) -> float:
    """Of the tokens of each text after its first, in a context of at most 512."""
    losses: list[float] = []
    for text in texts:
        ids = engine.encode(text)[:512]
        logits = logits_of(engine, ids)
        losses += F.cross_entropy(logits[:-1].float(), torch.tensor(ids[1:]), reduction="none").tolist()
    return math.exp(statistics.fmean(losses))


def logits_of(engine: LLM, ids: list[int]) -> torch.Tensor:
    """``[tokens, vocabulary]``, by one step of the engine."""
    engine.verifier.resize(1)
    plan = [StepInput(0, ids)]
    return engine.verifier.step(plan)[0].logits


def matrix_bytes(engine: LLM) -> int:
    """Bytes of the packed and the quantised matrices."""
    found = [*engine.verifier.model.modules()]
    found += {id(one.group): one.group.linear for one in found if isinstance(one, FusedMember)}.values()
    total = 0
    for module in found:
        if isinstance(module, QuantisedLinear):
            total += module.blocks.data.nbytes
        elif isinstance(module, PackedLinear):
            total += 4 * module.in_features * module.out_features
    return total


if __name__ == "__main__":
    raise SystemExit(main())
