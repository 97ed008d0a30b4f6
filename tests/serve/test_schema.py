"""The OpenAPI document is correct: requests that it allows succeed as described, others are rejected."""

from __future__ import annotations

import random
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
)

from serve_helpers import MODEL, Running

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    negative_data_rejection,
]
_DEPEND = (  # depends on other parameters, the model, or whether the schema can be satisfied
    *("stream_options", "top_logprobs", "response_format", "chat_template_kwargs"),
    *("reasoning", "reasoning_effort", "thinking_budget"),
)
PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/models", "/v1/models/{model}", "/health", "/metrics")


@pytest.fixture(scope="module")
def document(plain: Running) -> Any:
    return plain.client.get("/openapi.json").json()


def test_it_names_every_path_and_error(document: dict[str, Any]) -> None:
    assert set(document["paths"]) == {*PATHS, "/health/live"}
    answers = document["paths"]["/v1/chat/completions"]["post"]["responses"]
    assert set(answers) == {"200", "400", "403", "404", "408", "413", "415", "429", "500", "503", "504"}
    assert set(answers["200"]["content"]) == {"application/json", "text/event-stream"}
    assert "422" not in str(document)


@pytest.mark.parametrize("mode", list(GenerationMode))
@pytest.mark.parametrize("path", PATHS)
def test_answers_match_the_openapi_document(
    plain: Running, document: dict[str, Any], path: str, mode: GenerationMode
) -> None:
    schema = schemathesis.openapi.from_dict(document)
    schema.config.update(base_url=plain.address)
    operation = schema[path]["POST" if path.endswith("completions") else "GET"]
    if mode is GenerationMode.NEGATIVE and not path.endswith("completions"):
        pytest.skip("nothing to say wrongly")
    rng, statuses = random.Random(0), list[int]()

    @given(operation.as_strategy(generation_mode=mode))
    @settings(
        max_examples=40 if path.endswith("completions") else 5,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
        derandomize=True,
    )
    def check(case: Any) -> None:
        if isinstance(case.body, dict) and mode is GenerationMode.POSITIVE:
            # A random model name would always fail the first check.
            case.body |= {"model": MODEL, "max_tokens": rng.randrange(1, 4)}
            for name in ("max_completion_tokens", *(_DEPEND if rng.random() < 0.7 else ())):
                case.body.pop(name, None)
        statuses.append(case.call_and_validate(checks=CHECKS).status_code)

    check()
    if mode is GenerationMode.POSITIVE and path.endswith("completions"):
        assert statuses.count(200) >= 10, "most valid requests are answered"


@given(
    st.binary(max_size=200),
    st.sampled_from(["application/json", "text/plain"]),
)
@settings(max_examples=60, suppress_health_check=list(HealthCheck))
def test_any_bytes_get_an_answer(plain: Running, content: bytes, kind: str) -> None:
    for path in PATHS[:2]:
        answer = plain.client.post(path, content=content, headers={"content-type": kind})
        assert answer.status_code == 400
        assert answer.json()["error"]["message"]
