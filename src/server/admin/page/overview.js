// === Overview ===

const SPANS = {
  hour: { words: "in the last hour", bins: 60, tick: (at) => when(at) },
  day: { words: "in the last day", bins: 48, tick: (at) => when(at) },
  month: { words: "in the last month", bins: 31, tick: (at) => new Date(at).toLocaleDateString([], { day: "numeric", month: "short" }) },
};
let span = "hour";
const histories = {};

const answersOf = (served) => served.here_answers + served.fetched_answers + served.past_answers;

// Is it working for me, and what does it save?
function headline({ served, cache, sealed }) {
  const [words, of] = [["in the last hour", served.hour], ["in the last day", served.day], ["in the last month", served.month]]
    .find(([, of]) => answersOf(of)) || [];
  if (!of) {
    if (served.month.refused_answers) return "Clients have asked, and every one was refused: see below what went wrong.";
    return cache.blobs ? "No client has asked for anything in the last month." : "This mirror is new: no client has asked it for anything yet.";
  }
  const all = answersOf(of);
  const share = `${percent(of.here_answers, all)} of ${many(all, "answer", "answers")} ${words} came from here`;
  const { here_bytes: here, fetched_bytes: fetched, past_bytes: past, upstream_bytes: upstream } = served.month;
  const saved = here + fetched + past - upstream;
  if (saved <= 0) return `${share}.`;
  return sealed ? `${share}; ${bytes(saved)} were given out in the last month, and no upstream was asked.`
    : `${share}; ${bytes(saved)} not fetched from upstreams in the last month.`;
}

// How larder fares, in a word and in sentences.
function wellbeing({ disk, counting, sealed, left_alone: alone, started, connections, version }) {
  const troubles = [];
  if (disk) troubles.push(`The disk fails (${disk}); what is missing is passed on and not kept.`);
  if (counting) troubles.push("The cache is still being counted; nothing new is kept until then.");
  if (alone.length && !sealed) troubles.push(`${alone.join(", ")} ${alone.length === 1 ? "does" : "do"} not answer, or not now; what is here is served.`);
  const word = disk ? ["bad", "disk fails"] : alone.length && !sealed ? ["warn", "upstream trouble"]
    : counting ? ["warn", "counting"] : sealed ? ["good", "sealed"] : ["good", "all is well"];
  if (sealed) troubles.unshift("Sealed: larder asks no upstream, serves what is here whatever its age, and lets nothing go.");
  const facts = `Up for ${duration(now() - started)}, ${many(connections, "connection", "connections")} of clients open, version ${version}.`;
  return { word, text: `${troubles.join(" ") || "All is well."} ${facts}` };
}

function showOverview(told) {
  say(byId("headline"), headline(told));
  say(byId("wellbeing"), wellbeing(told).text);
  byId("first-steps").hidden = answersOf(told.served.month) > 0;
  showSums();
  showFills(told);
  showDisk(told.cache, told.sealed);
}

// What the charts come to, by the same numbers as the headline.
function showSums() {
  const of = state.now?.served[span];
  if (!of) return;
  const { words } = SPANS[span];
  const all = answersOf(of);
  const sent = of.here_bytes + of.fetched_bytes + of.past_bytes;
  const empty = `Nothing was served ${words}`;
  say(byId("ratio"), all ? percent(of.here_answers, all) : "");
  say(byId("ratio-of"), all ? `of ${many(all, "answer", "answers")} ${words} came from here` : empty);
  say(byId("saved"), sent ? bytes(Math.max(0, sent - of.upstream_bytes)) : "");
  say(byId("saved-of"), sent ? `of ${bytes(sent)} ${words} not fetched from upstreams` : empty);
}

// --- what is being fetched ---

const bars = new Map();

function showFills({ fills, more_fills: more, now: at }) {
  const list = byId("fills");
  const before = new Map((state.before?.fills || []).map((fill) => [fill.repository + fill.digest, fill.bytes]));
  const passed = state.before ? (at - state.before.now) / 1000 : 0;
  const seen = new Set();
  for (const { repository, digest, bytes: here, size, clients } of fills) {
    const key = repository + digest;
    seen.add(key);
    let bar = bars.get(key);
    if (!bar) {
      bar = { progress: el("progress", { "aria-label": `Fetching ${repository} ${short(digest)}` }), amount: el("span", { class: "figure" }), speed: el("span", { class: "figure" }) };
      bar.item = el("li", {}, el("div", { class: "line" }, el("span", { class: "what" }, `${repository} `, el("span", { class: "mono" }, short(digest))), bar.speed), bar.progress, bar.amount);
      bars.set(key, bar);
      list.append(bar.item);
    }
    if (size) { bar.progress.max = size; bar.progress.value = here; } else bar.progress.removeAttribute("value");
    const speed = before.has(key) && passed > 0.2 ? Math.max(0, here - before.get(key)) / passed : null;
    if (speed !== null) bar.rate = speed;
    const waiting = clients ? `for ${many(clients, "client", "clients")}` : "for nobody who waits";
    say(bar.speed, `${bar.rate === undefined ? "" : `${bytes(bar.rate)}/s, `}${waiting}`);
    say(bar.amount, size ? `${bytes(here)} of ${bytes(size)} (${percent(here, size)})` : `${bytes(here)}, size not told`);
  }
  for (const [key, bar] of bars) if (!seen.has(key)) { bar.item.remove(); bars.delete(key); }
  byId("fills-empty").hidden = fills.length > 0;
  say(byId("fills-count"), more ? `${count(fills.length + more)}, the largest ${fills.length} of them here` : fills.length ? count(fills.length) : "");
}

// --- disk ---

function showDisk({ limit, used, pinned, evictable, partial, quarantined, leaving, next_to_leave: next }, sealed) {
  say(byId("disk-count"), `${bytes(used)} of ${bytes(limit)}, ${percent(used, limit)}`);
  const parts = [["may be evicted", evictable, "fill-here"], ["pinned", pinned, "fill-past"], ["on its way in", partial, "fill-fetched"],
    ["found damaged", quarantined, "fill-refused"], ["on its way out", leaving, "fill-past"], ["free", Math.max(0, limit - used), "fill-free"]].filter(([, size]) => size);
  const bar = byId("disk-bar");
  show(bar, parts, () => parts.map(([, size, className]) => {
    const part = el("span", { class: className });
    part.style.width = `${(100 * size) / Math.max(limit, used)}%`;
    return part;
  }));
  bar.setAttribute("aria-label", parts.map(([name, size]) => `${name} ${bytes(size)}`).join(", "));
  show(byId("disk-legend"), parts, () => parts.map(([name, size, className]) =>
    el("li", {}, el("span", { class: `key ${className}`, "aria-hidden": "true" }), `${name} `, el("b", {}, bytes(size)))));
  const rows = next.map(({ of, digest, manifest, bytes: size, used: at }) => [of || "of no image any more", manifest ? "manifest" : "layer", short(digest), bytes(size), ago(Date.parse(at))]);
  show(byId("leaving"), [rows, sealed], () => rows.length ? rows.map(([of, kind, digest, size, used]) =>
    el("li", {}, el("span", { class: "what" }, `${of} `, el("span", { class: "mono" }, `${kind} ${digest}`)), el("span", { class: "figure" }, `${size}, used ${used}`)))
    : el("li", { class: "empty" }, sealed ? "Nothing: a sealed larder lets nothing go." : "Nothing that could go is here."));
}

// --- budget ---

function showBudget(upstreams) {
  const hub = upstreams.find(({ name }) => name === "docker.io");
  const accounts = hub?.accounts || [];
  show(byId("budget"), [hub?.offline, accounts, Math.floor(now() / 60e3)], () => {
    if (!hub) return el("p", { class: "empty" }, "larder does not stand before Docker Hub.");
    if (hub.offline) return el("p", { class: "empty" }, "Nothing is asked of Docker Hub.");
    if (!accounts.length) return el("p", { class: "empty" }, "Docker Hub has not told one yet. It does with the first image that is pulled from it; some accounts have no limit.");
    return accounts.map(budgetOf);
  });
}

function budgetOf({ account, limit, remaining, window_seconds: length, seen, resets }) {
  const text = `${remaining} of ${limit} pulls left`;
  const told = Date.parse(seen);
  const back = resets ? `None before ${when(Date.parse(resets))}, in ${duration(Date.parse(resets) - now())}; what is here is served.`
    : remaining < limit ? `All ${count(limit)} are back by ${when(told + length * 1000)} if nothing more is pulled.` : "None was used lately.";
  return el("div", { class: "gauge", "data-level": remaining > limit / 2 ? "fine" : remaining > limit / 10 ? "low" : "out" },
    gauge({ value: remaining, of: limit, text }),
    el("p", {}, account === "anonymous" ? "As nobody: give larder an account to have more." : `As ${account}.`),
    el("p", {}, `${back} Told ${ago(told)}.`));
}

// --- errors ---

function showErrors(errors) {
  byId("errors-empty").hidden = errors.length > 0;
  const rows = errors.slice(0, 12).map(({ what, why, to_do: todo, of, times, last }) => [what, why, todo, of, times, ago(last)]);
  show(byId("errors"), rows, () => rows.map(([what, why, todo, of, times, last]) => el("li", {},
    el("div", { class: "line" }, el("h3", {}, what), el("span", { class: "figure" }, times > 1 ? `${count(times)} times, the last ${last}` : last)),
    el("p", { class: "why" }, of ? `${of}: ${why}` : why), el("p", { class: "todo" }, todo.split("`").map((part, at) => (at % 2 ? el("code", {}, part) : part))))));
}

// --- charts ---

// Sums by bins of the same length, the last of which is now.
function binned(history, bins) {
  const end = (Math.floor(history.now / 1000 / history.step_seconds) + 1) * history.step_seconds * 1000;
  const each = (history.steps * history.step_seconds * 1000) / bins;
  const start = end - bins * each;
  const sums = Array.from({ length: bins }, () => ({}));
  for (const { at, ...amounts } of history.pieces) {
    const sum = sums[Math.min(bins - 1, Math.max(0, Math.floor((at - start) / each)))];
    for (const [name, value] of Object.entries(amounts)) sum[name] = (sum[name] || 0) + value;
  }
  return { start, end, each, of: (name) => sums.map((sum) => sum[name] || 0) };
}

function showCharts() {
  const history = histories[span];
  if (!history || byId("view-overview").hidden) return;
  const { words, bins, tick } = SPANS[span];
  const { start, end, each, of } = binned(history, bins);
  const labels = Array.from({ length: bins }, (_, at) => tick(start + at * each));
  const ticks = [[0, tick(start), "start"], [0.5, tick((start + end) / 2), "middle"], [1, "now", "end"]];
  const sum = (values) => values.reduce((a, b) => a + b, 0);
  const answers = [
    { name: "from here", className: "fill-here", values: of("here_answers") },
    { name: "fetched", className: "fill-fetched", values: of("fetched_answers") },
    { name: "past the cache", className: "fill-past", values: of("past_answers") },
    { name: "refused", className: "fill-refused", values: of("refused_answers") },
  ];
  const sent = [of("here_bytes"), of("fetched_bytes"), of("past_bytes")].reduce((a, b) => a.map((value, at) => value + b[at]));
  // What is fetched ahead comes before it goes out.
  const upstream = of("upstream_bytes");
  let ahead = 0;
  const saved = sent.map((all, at) => {
    ahead += upstream[at];
    const fetched = Math.min(all, ahead);
    ahead -= fetched;
    return all - fetched;
  });
  const traffic = [
    { name: "saved", className: "fill-here", values: saved },
    { name: "fetched", className: "fill-fetched", values: sent.map((all, at) => all - saved[at]) },
  ];
  const all = answers.slice(0, 3).reduce((a, { values }) => a + sum(values), 0);
  const here = sum(answers[0].values);
  const empty = `Nothing was served ${words}`;
  const ratio = all ? `${percent(here, all)} of ${many(all, "answer", "answers")} ${words} came from here` : empty;
  const spared = sum(sent) ? `${bytes(sum(saved))} of ${bytes(sum(sent))} to clients ${words} were not fetched from upstreams` : empty;
  const charts = [
    ["answers", { series: answers, unit: count, base: 10, summary: ratio }],
    ["bytes", { series: traffic, unit: bytes, base: 1024, summary: spared }],
  ];
  for (const [name, chart] of charts) {
    const host = byId(`chart-${name}`);
    columns(host, { ...chart, labels, ticks });
    figures(byId(`table-${name}`), { ...chart, labels }, `${name} ${words}`);
    const seen = chart.series.filter(({ values }, at) => at < 2 || sum(values));
    host.nextElementSibling.classList.contains("legend") && host.nextElementSibling.remove();
    if (sum(chart.series.flatMap(({ values }) => values))) host.after(legend(seen, chart.unit));
  }
}

for (const button of document.querySelectorAll("[data-span]")) {
  button.addEventListener("click", () => {
    span = button.dataset.span;
    for (const other of document.querySelectorAll("[data-span]")) other.setAttribute("aria-pressed", String(other === button));
    showSums();
    showCharts();
    poll();
  });
}
new ResizeObserver(() => showCharts()).observe(byId("chart-answers"));
