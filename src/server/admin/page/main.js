// === What is looked at, and how often it is asked for ===

const VIEWS = ["overview", "images", "upstreams", "setup"];
const view = () => (VIEWS.includes(location.hash.slice(1)) ? location.hash.slice(1) : "overview");
const OFTEN = 2000;
const FETCHING = 1000;
const SELDOM = 10e3;

// What is asked for beside `/api/now`, and in which view.
const also = [
  ["overview", SELDOM, async () => { const asked = span; histories[asked] = await ask(`/api/history?span=${asked}`); showCharts(); }],
  ["overview", SELDOM, async () => showErrors((await ask("/api/errors")).errors_seen)],
  ["overview", SELDOM, async () => showBudget((await ask("/api/upstreams")).upstreams)],
  ["upstreams", OFTEN, async () => showUpstreams((await ask("/api/upstreams")).upstreams)],
  ["images", SELDOM, askImages],
].map(([where, every, run]) => ({ where, every, run, due: 0 }));

let timer;
let asking = false;
let again = false;
let failures = 0;

async function look() {
  clearTimeout(timer);
  if (document.hidden) return;
  if (asking) { again = true; return; }
  asking = true;
  try {
    const told = await ask("/api/now");
    ahead = told.now - Date.now();
    [state.before, state.now] = [state.now, told];
    mayChange = told.may_change;
    showState(told);
    const here = also.filter(({ where, due }) => where === view() && Date.now() >= due);
    await Promise.all(here.map(async (one) => { one.due = Date.now() + one.every - 100; await one.run(); }));
    failures = 0;
    byId("lost").hidden = true;
    byId("wellbeing").hidden = false;
  } catch (error) {
    lost(error);
  }
  asking = false;
  const pause = failures ? Math.min(OFTEN * failures, SELDOM) : state.now?.fills.length || runs() ? FETCHING : OFTEN;
  timer = setTimeout(look, again ? 0 : pause);
  again = false;
}

const runs = () => state.now?.errands.some(({ state }) => state === "running");

// At once, and all that is shown.
function poll() {
  for (const one of also) one.due = 0;
  look();
}

function lost(error) {
  failures += 1;
  const since = `${state.now ? ` What is shown is of ${when(state.now.now)}.` : ""} It is asked again and again.`;
  byId("lost").hidden = false;
  byId("wellbeing").hidden = true;
  say(byId("lost"), error instanceof TypeError || error.name === "TimeoutError" ? `larder does not answer.${since}` : `${error.message}.${since}`);
  byId("state").dataset.state = "bad";
  say(byId("state"), "no answer");
}

function showState(told) {
  const [word, text] = wellbeing(told).word;
  byId("state").dataset.state = word;
  say(byId("state"), text);
  byId("read-only").hidden = mayChange;
  byId("images").classList.toggle("read-only", !mayChange);
  byId("pull-form").hidden = !mayChange;
  showErrands();
  if (view() === "overview") showOverview(told);
}

function showView(focus) {
  const chosen = view();
  for (const name of VIEWS) byId(`view-${name}`).hidden = name !== chosen;
  for (const link of document.querySelectorAll("header nav a")) {
    if (link.hash === `#${chosen}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  const title = { overview: "larder", images: "Images – larder", upstreams: "Upstreams – larder", setup: "Set up – larder" }[chosen];
  document.title = title;
  if (chosen === "setup" && !guide) askSetup();
  if (state.now) showState(state.now);
  showCharts();
  poll();
  if (focus) { byId("main").focus({ preventScroll: true }); scrollTo(0, 0); }
}

say(byId("at"), location.host);
document.querySelector(".skip").addEventListener("click", (event) => { event.preventDefault(); byId("main").focus(); });
addEventListener("hashchange", () => showView(true));
document.addEventListener("visibilitychange", () => (document.hidden ? clearTimeout(timer) : poll()));
showView(false);
