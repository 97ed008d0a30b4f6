// The dashboard: reads /metrics every second and uses /v1/chat/completions like any other client.
import { fraction, histogram, parse, quantile, total } from "./metrics.js";
import { events } from "./events.js";

const at = (id) => document.getElementById(id);
const number = new Intl.NumberFormat("en", { maximumFractionDigits: 1 });
const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const POINTS = 60;
let model = null;
let last = null;
const rates = [];

function headers(more = {}) {
  const key = sessionStorage.getItem("justright-key");
  return key ? { Authorization: `Bearer ${key}`, ...more } : more;
}

at("access").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("justright-key", at("key").value);
  at("key").value = "";
  at("access").hidden = true;
  start();
});

async function get(path) {
  const answer = await fetch(path, { headers: headers() });
  if (answer.status === 401) {
    at("access").hidden = false;
    throw new Error("an API key is needed");
  }
  if (!answer.ok) throw new Error(`${path}: ${answer.status}`);
  return answer;
}

// --- metrics

function seconds(value) {
  if (value === null) return "–";
  return value < 1 ? `${number.format(value * 1000)} ms` : `${number.format(value)} s`;
}

function percentiles(samples, name) {
  const found = histogram(samples, name);
  return found.count ? [0.5, 0.95, 0.99].map((q) => seconds(quantile(found, q))).join(" / ") : "–";
}

function show(samples, now) {
  const tokens = total(samples, "justright_emitted_tokens_total");
  if (last !== null && now > last.now) {
    rates.push(Math.max(0, (tokens - last.tokens) / ((now - last.now) / 1000)));
    if (rates.length > POINTS) rates.shift();
    at("rate").textContent = number.format(rates.at(-1));
    const most = Math.max(...rates, 1);
    const points = rates.map((rate, i) => `${(i * 120) / (POINTS - 1)},${27 - (26 * rate) / most}`);
    at("rate-line").querySelector("polyline").setAttribute("points", points.join(" "));
  }
  last = { tokens, now };
  const running = total(samples, "justright_requests_running");
  at("running").textContent = `${running} of ${total(samples, "justright_slots")}`;
  at("waiting").textContent = `${total(samples, "justright_requests_waiting")} waiting`;
  at("cache").textContent = `${whole.format(total(samples, "justright_cache_tokens"))} tokens`;
  const limit = total(samples, "justright_cache_limit_tokens");
  const bytes = `${number.format(total(samples, "justright_cache_bytes") / 2 ** 20)} MiB`;
  at("cache-limit").textContent = Number.isFinite(limit) ? `of ${whole.format(limit)}; ${bytes}` : bytes;
  at("first").textContent = percentiles(samples, "justright_time_to_first_token_seconds");
  at("each").textContent = percentiles(samples, "justright_time_per_output_token_seconds");
  const drafted = total(samples, "justright_drafted_tokens_total");
  at("accepted").textContent = fraction(total(samples, "justright_accepted_tokens_total"), drafted);
  const out = total(samples, "justright_output_tokens_total");
  at("reasoning").textContent = fraction(total(samples, "justright_reasoning_tokens_total"), out);
  at("saved").textContent = whole.format(total(samples, "justright_saved_tokens"));
  showLengths(samples);
  showModes(samples);
}

function showLengths(samples) {
  const classes = [...new Set(samples.filter((s) => s.name === "justright_acceptance_length_tokens_count").map((s) => s.labels.context))];
  classes.sort((a, b) => (a === "inf" ? Infinity : +a) - (b === "inf" ? Infinity : +b));
  if (!classes.length) return;
  at("lengths").replaceChildren(
    ...classes.map((context) => {
      const found = histogram(samples, "justright_acceptance_length_tokens", { context });
      const mean = found.sum / Math.max(found.count, 1);
      const row = document.createElement("tr");
      const bar = document.createElement("span");
      bar.className = "bar";
      bar.style.width = `${Math.min(100, (mean / 8) * 100)}%`;
      const cells = [context === "inf" ? "longer" : whole.format(context), whole.format(found.count), mean.toFixed(2)];
      for (const text of cells) row.insertCell().textContent = text;
      const last = row.insertCell();
      last.setAttribute("aria-hidden", "true");
      last.append(bar);
      return row;
    }),
  );
}

function showModes(samples) {
  const of = (mode) => total(samples, "justright_decisions_total", { mode });
  const fast = of("fast");
  const slow = of("slow");
  if (!(fast + slow)) return;
  at("fast-bar").style.width = `${(100 * fast) / (fast + slow)}%`;
  at("slow-bar").style.width = `${(100 * slow) / (fast + slow)}%`;
  at("modes-text").textContent = `${fast} answers fast, ${slow} slow (${fraction(fast, fast + slow)} fast)`;
}

async function poll() {
  try {
    const samples = parse(await (await get("metrics")).text());
    show(samples, performance.now());
    const draining = total(samples, "justright_draining") ? "; draining" : "";
    at("state").textContent = model === null ? "connected" : `${model}${draining}`;
  } catch (fault) {
    at("state").textContent = `not connected (${fault.message})`;
  }
}

async function start() {
  try {
    const listed = await (await get("v1/models")).json();
    model = listed.data[0].id;
    const efforts = listed.data[0].justright?.efforts ?? [];
    at("effort").replaceChildren(new Option("the server's default", ""), ...efforts.map((effort) => new Option(effort, effort)));
  } catch (fault) {
    at("state").textContent = `not connected (${fault.message})`;
  }
  await poll();
}

// --- chat

let messages = [];
let running = null;

function turn(name) {
  const article = document.createElement("article");
  const title = document.createElement("h4");
  title.textContent = name;
  article.append(title);
  at("talk").append(article);
  return article;
}

function said(article, text, className = "") {
  const body = document.createElement("pre");
  body.className = className;
  body.textContent = text;
  article.append(body);
  return body;
}

class Answer {
  constructor() {
    this.article = turn("model");
    this.thought = document.createElement("details");
    const summary = document.createElement("summary");
    summary.textContent = "thinking";
    this.thinking = document.createElement("pre");
    this.thought.append(summary, this.thinking);
    this.body = document.createElement("pre");
    this.article.append(this.body);
    this.text = "";
  }

  add(choice) {
    const { content, reasoning_content: reasoning } = choice.delta;
    if (reasoning) {
      if (!this.thought.isConnected) this.body.before(this.thought);
      this.put(this.thinking, reasoning, choice.justright, !content);
    }
    if (content) {
      this.text += content;
      this.put(this.body, content, choice.justright, !reasoning);
    }
    at("talk").scrollTop = at("talk").scrollHeight;
  }

  // Tokens can be coloured one by one only if their texts add up to the text of the chunk.
  put(target, text, trace, alone) {
    const texts = alone && trace?.texts?.join("") === text ? trace.texts : [text];
    texts.forEach((piece, i) => {
      const span = document.createElement("span");
      const guessed = texts.length > 1 || trace?.tokens === 1 ? i < (trace?.drafted ?? 0) : (trace?.drafted ?? 0) > 0;
      span.className = guessed ? "token guessed" : "token";
      span.textContent = piece;
      target.append(span);
    });
  }

  end(told) {
    if (!told) return;
    const line = document.createElement("p");
    line.className = "small";
    const rate = told.acceptance_length ? `, ${told.acceptance_length.toFixed(2)} tokens a verification` : "";
    line.textContent = `${told.mode}${told.decision ? ` (${told.decision.reason})` : ""}${rate}, ended by ${told.ended_by}`;
    this.article.append(line);
  }
}

async function ask(event) {
  event.preventDefault();
  if (running !== null) return;
  const text = at("prompt").value.trim();
  if (!text) return;
  const own = messages; // a new chat may begin before this answer ends
  own.push({ role: "user", content: text });
  said(turn("you"), text);
  at("prompt").value = "";
  const answer = new Answer();
  running = new AbortController();
  busy(true);
  try {
    const body = {
      model: model ?? "",
      messages: own,
      stream: true,
      justright: { trace: true },
    };
    if (at("limit").value !== "") body.max_completion_tokens = Number(at("limit").value);
    if (at("temperature").value !== "") body.temperature = Number(at("temperature").value);
    if (at("effort").value) body.reasoning_effort = at("effort").value;
    const response = await fetch("v1/chat/completions", {
      method: "POST",
      headers: headers({ "Content-Type": "application/json" }),
      body: JSON.stringify(body),
      signal: running.signal,
    });
    if (!response.ok) throw new Error((await response.json()).error.message);
    for await (const chunk of events(response.body)) {
      if (chunk.error) throw new Error(chunk.error.message);
      for (const choice of chunk.choices) {
        answer.add(choice);
        if (choice.finish_reason) answer.end(choice.justright);
      }
    }
  } catch (fault) {
    if (fault.name !== "AbortError") said(answer.article, fault.message, "fault");
  } finally {
    if (answer.text) own.push({ role: "assistant", content: answer.text });
    else own.pop(); // drop an unanswered question, so that the next request does not repeat it
    running = null;
    busy(false);
    at("prompt").focus();
  }
}

function busy(yes) {
  at("talk").setAttribute("aria-busy", String(yes));
  at("send").disabled = yes;
  at("stop").disabled = !yes;
}

at("ask").addEventListener("submit", ask);
at("stop").addEventListener("click", () => running?.abort());
at("clear").addEventListener("click", () => {
  running?.abort();
  messages = [];
  at("talk").replaceChildren();
});
at("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) at("ask").requestSubmit();
});
at("ask").addEventListener("keydown", (event) => {
  if (event.key === "Escape") running?.abort();
});

await start();
setInterval(() => document.hidden || poll(), 1000);
