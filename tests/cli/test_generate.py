"""`justright generate` on a tiny model gives the engine's tokens for every form of input."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cli_helpers import Run
from justright.cli.output import Terminal
from justright.cli.prepare import prepare
from justright.engine.llm import LLM
from tiny import save_tiny, tokenizer_with


def objects(out: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in out.splitlines()]


@pytest.fixture(scope="module")
def engine(tiny_llama: Path) -> LLM:
    return LLM(str(tiny_llama))


def test_text_is_the_engines(run: Run, tiny_llama: Path, engine: LLM) -> None:
    prompt = engine.chat_prompt([{"role": "user", "content": "hello"}])
    expected = engine.generate_request(prompt, max_tokens=24)
    result = run("generate", tiny_llama, "-p", "hello", "--max-tokens", 24)
    assert result.code == 0
    assert result.out.removesuffix("\n") == expected.text.removesuffix("\n")
    assert f"answer {len(expected.token_ids)} tokens" in result.err


def test_raw_and_system_change_the_prompt(run: Run, tiny_llama: Path, engine: LLM) -> None:
    [raw] = objects(run("generate", tiny_llama, "-p", "hello", "--raw", "--json").out)
    assert raw["stats"]["prompt_tokens"] == len(engine.encode("hello"))  # type: ignore[index]
    [told] = objects(run("generate", tiny_llama, "-p", "hello", "--system", "be kind", "--json").out)
    messages = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hello"}]
    assert told["stats"]["prompt_tokens"] == len(engine.chat_prompt(messages))  # type: ignore[index]


def test_prompts_come_from_options_stdin_and_files_in_order(
    run: Run, tiny_llama: Path, tmp_path: Path
) -> None:
    file = tmp_path / "prompt.txt"
    file.write_text("\ufeffthird", encoding="utf-8")  # a byte order mark is no part of the prompt
    argv = ["generate", tiny_llama, "-p", "first", "-p", "-", "-f", file, "--max-tokens", 8]
    found = objects(run(*argv, "--batch", 2, "--json", stdin="second").out)
    assert [one["prompt"] for one in found] == ["first", "second", "third"]
    assert [one["index"] for one in found] == [0, 1, 2]
    alone = [objects(run(*argv[:2], "-p", p, "--max-tokens", 8, "--json").out)[0] for p in ("first", "third")]
    assert [found[0]["token_ids"], found[2]["token_ids"]] == [one["token_ids"] for one in alone]
    text = run(*argv, stdin="second").out
    assert [line for line in text.splitlines() if line.startswith("==>")] == [
        f"==> {number} of 3 <==" for number in (1, 2, 3)
    ]


def test_the_line_break_at_the_end_is_no_part_of_a_prompt(run: Run, tiny_llama: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"one\r\n")
    (tmp_path / "b.txt").write_bytes(b"one\n\n")
    files = ("-f", tmp_path / "a.txt", "-f", tmp_path / "b.txt")
    found = objects(
        run("generate", tiny_llama, "-p", "-", *files, "--json", "--max-tokens", 1, stdin="one\n").out
    )
    assert [one["prompt"] for one in found] == ["one", "one", "one\n"]


def test_json_has_all_of_it(run: Run, tiny_llama: Path) -> None:
    result = run(
        "generate", tiny_llama, "-p", "hello", "--json", "--max-tokens", 6, "--temperature", 1, "--seed", 3
    )
    [found] = objects(result.out)
    assert result.err == ""
    assert set(found) == {
        *(
            "index",
            "prompt",
            "reasoning",
            "text",
            "token_ids",
            "finish_reason",
            "stopped_by",
            "stats",
            "model",
            "options",
            "decoded_plainly",
        )
    }
    assert found["model"] == str(tiny_llama)
    assert found["options"]["seed"] == 3  # type: ignore[index]
    assert found["stats"]["output_tokens"] == len(found["token_ids"])  # type: ignore[arg-type, index]
    again = run(
        "generate", tiny_llama, "-p", "hello", "--json", "--max-tokens", 6, "--temperature", 1, "--seed", 3
    )
    assert objects(again.out)[0]["token_ids"] == found["token_ids"]


def test_drafts_kernels_caches_and_streaming_do_not_change_the_text(run: Run, tiny_llama: Path) -> None:
    base = ["generate", tiny_llama, "-p", "the quick brown fox the quick brown fox", "--max-tokens", 32]
    texts = {
        run(*base, *more).out
        for more in (
            ["--draft", "none"],
            ["--draft", "suffix"],
            ["--draft", "suffix", "--no-stream"],
            ["--draft", "suffix", "--cpu-kernels", "plain", "--cache", "static"],
        )
    }
    assert len(texts) == 1


def test_stop_ends_before_the_text(run: Run, tiny_llama: Path) -> None:
    whole = run("generate", tiny_llama, "-p", "hello", "--max-tokens", 24, "--quiet")
    assert whole.err == ""
    stop = whole.out[5:7]
    [cut] = objects(
        run("generate", tiny_llama, "-p", "hello", "--max-tokens", 24, "--json", "--stop", stop).out
    )
    assert cut["text"] == whole.out[: whole.out.index(stop)]
    assert cut["stopped_by"] == stop
    assert cut["finish_reason"] == "stop"


def test_stop_searches_reasoning_only_on_request(run: Run, tmp_path: Path) -> None:
    model = save_tiny("llama", tmp_path / "model")
    tokenizer_with(
        "{% for m in messages %}{{ m['content'] }}{% endfor %}<think>{# </think> #}"
    ).save_pretrained(model)
    argv = ["generate", model, "-p", "hello", "--max-tokens", 24, "--json", "--draft", "none"]
    [whole] = objects(run(*argv).out)
    thought = str(whole["reasoning"])
    stop = thought[5:7]
    for more, text in (([], thought), (["--stop-in-reasoning"], thought.partition(stop)[0].rstrip())):
        [cut] = objects(run(*argv, "--stop", stop, *more).out)
        assert (cut["reasoning"], cut["text"]) == (text, whole["text"])
        assert cut["finish_reason"] == ("stop" if more else whole["finish_reason"])


def test_a_model_without_template_takes_the_prompt_as_it_is(run: Run, broken: Path, engine: LLM) -> None:
    (broken / "chat_template.jinja").unlink()
    result = run("generate", broken, "-p", "hello", "--json", "--max-tokens", 4)
    assert "no chat template" in result.err
    [found] = objects(result.out)
    assert found["stats"]["prompt_tokens"] == len(engine.encode("hello"))  # type: ignore[index]


def test_prepared_tokens_are_the_engines(tiny_llama: Path, engine: LLM) -> None:
    ready = prepare(str(tiny_llama), Terminal(quiet=True), {})
    messages = [{"role": "user", "content": "hello"}]
    assert ready.tokens(messages) == engine.chat_prompt(messages)
    assert ready.tokens("hello") == engine.encode("hello")
    assert ready.context == engine.verifier.max_tokens


def test_drafter_options_reach_the_drafter(run: Run, tiny_llama: Path) -> None:
    argv = ["generate", tiny_llama, "-p", "a b a b a b", "--max-tokens", 24, "--json"]
    tree = run(*argv, "--draft-option", "tree=true", "--draft-option", "backend=python")
    assert objects(tree.out)[0]["options"]["draft_options"] == {"tree": True, "backend": "python"}  # type: ignore[index]
    assert objects(tree.out)[0]["token_ids"] == objects(run(*argv, "--draft", "none").out)[0]["token_ids"]
    for pair, word in (("tree", "KEY=VALUE"), ("tree=3", "tree is 3"), ("color=red", "does not take")):
        refused = run(*argv, "--draft-option", pair)
        assert refused.code == 2
        assert word in refused.err


def test_the_models_file_sets_what_the_user_does_not(run: Run, tmp_path: Path) -> None:
    model = save_tiny("llama", tmp_path / "model")
    file = model / "generation_config.json"
    file.write_text('{"temperature": 0.7, "top_p": 0.8, "top_k": 20, "typical_p": 0.9}')
    names = ("temperature", "top_p", "top_k")
    for more, expected, line in (
        ((), (0.0, 1.0, 0), f"greedy decoding: the sampling settings in {file} do not apply"),
        (
            ("--temperature", 0.5),
            (0.5, 0.8, 20),
            f"from {file}: top_k 20, top_p 0.8; not supported and ignored: typical_p 0.9",
        ),
        (("--temperature", 0.5, "--top-k", 3), (0.5, 0.8, 3), f"from {file}: top_p 0.8;"),
        (("--temperature", 0.5, "--generation-config", "none"), (0.5, 1.0, 0), ""),
    ):
        result = run("generate", model, "-p", "hello", "--max-tokens", 2, "--draft", "none", "--json", *more)
        assert result.code == 0, result.err
        [found] = objects(result.out)
        assert tuple(found["options"][name] for name in names) == expected  # type: ignore[index]
        assert line in result.err
        assert ("sampling" in result.err) == bool(line)
    chatted = run("chat", model, "--max-tokens", 2, "--draft", "none", "--temperature", 0.5, stdin="hello\n")
    assert f"from {file}: top_k 20" in chatted.err
    file.write_text('{"temperature": "hot"}')
    result = run("generate", model, "-p", "hello")
    assert result.code == 3
    assert "temperature is 'hot'" in result.err


def test_kernels_that_are_missing_are_a_note(
    run: Run, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("packed", "quantised"):
        monkeypatch.setattr(f"justright.kernels.{module}.missing", lambda: "no C++ compiler is here")
    argv = ("generate", tiny_llama, "-p", "hello", "--max-tokens", 2, "--weights", "int8")
    found = run(*argv)
    assert found.code == 0
    assert "note: The weights are quantised, but run as float32" in found.err
    assert "no C++ compiler is here. The kernels need" in found.err
    assert "note:" not in run(*argv, "--quiet").err
