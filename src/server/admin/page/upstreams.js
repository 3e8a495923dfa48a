// === Upstreams ===

function healthOf({ offline, left_alone: alone }) {
  if (offline) return ["wait", "not asked", "larder is sealed: it asks nobody."];
  if (!alone) return ["good", "asked as usual", ""];
  const until = Date.parse(alone.until);
  return ["warn", "left alone", `${alone.why}. It is asked again ${until - now() < 10e3 ? "in a moment" : `at ${when(until)}, in ${duration(until - now())}`}.`];
}

function showUpstreams(upstreams) {
  show(byId("upstreams"), [upstreams, Math.floor(now() / 5e3)], () => upstreams.map((upstream) => {
    const [state, word, why] = healthOf(upstream);
    const budgets = upstream.accounts.map(({ account, remaining, limit, seen }) =>
      el("p", {}, `${count(remaining)} of ${count(limit)} pulls left as ${account === "anonymous" ? "nobody" : account}, told ${ago(Date.parse(seen))}.`));
    return el("li", { class: "card" },
      el("div", { class: "line" }, el("h2", {}, upstream.name), el("span", { class: "pill", "data-state": state }, word)),
      why ? el("p", {}, why) : null, budgets);
  }));
}
