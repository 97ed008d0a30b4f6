"""The dashboard in a real browser: live figures, a chat with coloured drafts, API keys, labels, light and dark."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import httpx
import pytest

from justright.serve.server_settings import ServeSettings

from .conftest import MODEL, Running, running

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="no playwright (pip install playwright)")
    if BROWSER is None:
        pytest.skip("no Chromium on this machine (apt install chromium)")
    with sync_api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    context = browser.new_context()
    found = context.new_page()
    found.faults = []
    found.on("pageerror", lambda error: found.faults.append(str(error)))
    found.on("console", lambda message: message.type == "error" and found.faults.append(message.text))
    yield found
    context.close()


def ask(page: Any, text: str) -> Any:
    page.get_by_label("Message").fill(text)
    page.get_by_label("Message").press("Enter")
    page.wait_for_selector("#send:not([disabled])")
    return page.locator("#talk article").last


def settles(page: Any, selector: str, pattern: str) -> None:
    """Wait for a text; scripts cannot be evaluated in a page with this policy."""
    from playwright.sync_api import expect

    expect(page.locator(selector)).to_have_text(re.compile(pattern), timeout=10_000)


def test_the_parts_are_served_and_nothing_else(plain: Running) -> None:
    with plain.http() as client:
        found = client.get("/")
        assert found.headers["content-security-policy"].startswith("default-src 'self'")
        names = re.findall(r'(?:src|href)="(dashboard/[^"]+)"', found.text)
        assert names
        assert [client.get(f"/{name}").status_code for name in names] == [200] * len(names)
        for wrong in ("__init__.py", "..%2fapp.py", "nothing.js"):
            assert client.get(f"/dashboard/{wrong}").status_code == 404


def test_the_chat_streams_and_the_figures_move(page: Any, plain: Running) -> None:
    hosts: set[str] = set()
    page.on("request", lambda request: hosts.add(httpx.URL(request.url).netloc.decode()))
    page.goto(plain.address)
    page.get_by_label("At most").fill("150")
    page.get_by_label("Temperature").fill("0")
    answer = ask(page, "a b c d a b c d a b c d")
    whole = answer.locator("pre").last.inner_text()
    assert whole.strip()
    assert answer.locator(".token.guessed").count(), "accepted tokens of suffix drafts are in colour"
    assert "tokens a verification" in answer.locator(".small").inner_text()
    settles(page, "#accepted", r"\d%")
    settles(page, "#lengths", r"\d\.\d\d")
    settles(page, "#rate", r"\d")
    assert "slow" in page.locator("#modes-text").inner_text()
    assert hosts == {httpx.URL(plain.address).netloc.decode()}, "no other host is contacted"
    assert not page.faults


def test_model_output_is_shown_as_text_and_never_as_markup(page: Any, plain: Running) -> None:
    page.goto(plain.address)
    page.get_by_label("At most").fill("1")
    ask(page, "<img src=x onerror=alert(1)>")
    assert "<img" in page.locator("#talk article").first.inner_text()
    assert page.locator("#talk img").count() == 0


def test_thoughts_are_folded_and_efforts_are_offered(page: Any, thinking: Running) -> None:
    page.goto(thinking.address)
    settles(page, "#effort", "minimal")
    offered = page.locator("#effort option").all_inner_texts()
    page.get_by_label("At most").fill("8")
    answer = ask(page, "hello")
    thought = answer.locator("details")
    assert thought.count() == 1
    assert not thought.evaluate("element => element.open")
    thought.locator("summary").focus()
    page.keyboard.press("Enter")
    assert thought.evaluate("element => element.open")
    fast = next(name for name in offered if name in ("none", "fast"))
    page.get_by_label("Effort").select_option(fast)
    answer = ask(page, "hello again")
    assert answer.locator(".small").inner_text().startswith("fast")
    assert not page.faults


def test_the_limit_is_the_servers_and_the_chat_comes_first_on_a_phone(page: Any, plain: Running) -> None:
    page.set_viewport_size({"width": 390, "height": 800})
    page.goto(plain.address)
    assert page.locator("#chat").bounding_box()["y"] < page.locator("#figures").bounding_box()["y"]
    with page.expect_request("**/v1/chat/completions") as sent:
        ask(page, "hello")
    assert "max_completion_tokens" not in sent.value.post_data_json
    page.get_by_label("At most").fill("3")
    with page.expect_request("**/v1/chat/completions") as sent:
        ask(page, "hello")
    assert sent.value.post_data_json["max_completion_tokens"] == 3


def test_it_works_by_keyboard_and_everything_has_a_name(page: Any, plain: Running) -> None:
    page.goto(plain.address)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "To the chat"
    page.keyboard.press("Enter")
    reached = []
    for _ in range(9):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id"))
    assert {"effort", "limit", "send"} <= set(reached) | {page.evaluate("document.activeElement.id")}
    unnamed = page.evaluate(
        "[...document.querySelectorAll('input, select, textarea')].filter(e => !e.labels.length).map(e => e.id)"
    )
    assert unnamed == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_and_dark_can_be_read(page: Any, plain: Running, scheme: str) -> None:
    """The contrast of text and background is at least 4.5 (WCAG AA)."""
    page.emulate_media(color_scheme=scheme)
    page.goto(plain.address)
    for selector in ("h2", "dt", "#modes-text", "#send", ".token.guessed"):
        assert page.locator(selector).first.evaluate(_CONTRAST) >= 4.5, selector


_CONTRAST = """element => {
  const parse = (c) => c.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => {
    const f = (v) => { v /= 255; return v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; };
    return 0.2126 * f(r) + 0.7152 * f(g) + 0.0722 * f(b);
  };
  let ground = element;
  while (ground && (parse(getComputedStyle(ground).backgroundColor)[3] ?? 1) === 0) ground = ground.parentElement;
  const a = light(parse(getComputedStyle(element).color));
  const b = light(parse(getComputedStyle(ground).backgroundColor));
  return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
}"""


def test_a_key_is_requested_where_one_is_needed(page: Any, plain: Running) -> None:
    with running(
        plain.engine.with_draft("none"), replace(ServeSettings(MODEL), api_keys=("secret",))
    ) as found:
        page.goto(found.address)
        page.wait_for_selector("#access:not([hidden])")
        page.get_by_label("API key").fill("secret")
        page.get_by_role("button", name="Use it").click()
        settles(page, "#state", f"^{MODEL}$")
