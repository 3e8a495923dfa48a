// === Elements ===

const byId = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";

// What others have named gets into the page as text, never as markup: children are elements or text.
function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
}

const el = (tag, attributes = {}, ...children) => fill(document.createElement(tag), attributes, children);
const svg = (tag, attributes = {}, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);

function say(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

// Makes the children of a node anew if what they show has changed: what stays can be read and selected undisturbed.
const shown = new WeakMap();
function show(node, what, make) {
  const text = JSON.stringify(what);
  if (shown.get(node) === text) return;
  shown.set(node, text);
  node.replaceChildren(...[make(what)].flat());
}

const announce = (text) => { byId("said").textContent = text; };

// === Words ===

const LANGUAGE = "en";
const UNITS = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];

function bytes(number) {
  let at = 0;
  while (number >= 999.5 && at < UNITS.length - 1) { number /= 1024; at += 1; }
  return `${at && number < 99.95 ? number.toFixed(1).replace(".0", "") : Math.round(number)} ${UNITS[at]}`;
}

const count = (number) => number.toLocaleString(LANGUAGE);
const many = (number, one, more) => `${count(number)} ${number === 1 ? one : more}`;

// Neither all nor nothing is said where it is not so.
function percent(part, of) {
  if (!of) return "–";
  const share = (100 * part) / of;
  if (part && share < 1) return "<1 %";
  if (part < of && share > 99) return share > 99.9 ? ">99.9 %" : `${(Math.floor(share * 10) / 10).toFixed(1)} %`;
  return `${Math.round(share)} %`;
}

const LENGTHS = [[86400, "day", "days"], [3600, "hour", "hours"], [60, "minute", "minutes"], [1, "second", "seconds"]];

function duration(ms) {
  const seconds = Math.max(0, Math.round(ms / 1000));
  const [length, one, more] = LENGTHS.find(([length]) => seconds >= length) || LENGTHS[3];
  return many(Math.floor(seconds / length), one, more);
}

// The clock of the machine that larder runs on is the one that counts.
let ahead = 0;
const now = () => Date.now() + ahead;
const ago = (at) => (now() - at < 5000 ? "just now" : `${duration(now() - at)} ago`);

function when(at) {
  const date = new Date(at);
  const time = date.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
  if (Math.abs(at - now()) < 12 * 3600e3 || date.toDateString() === new Date(now()).toDateString()) return time;
  return `${date.toLocaleDateString([], { day: "numeric", month: "short" })}, ${time}`;
}

const short = (digest) => digest.replace(/^sha(256|512):/, "").slice(0, 12);

// === larder ===

async function answerOf(response) {
  const body = await response.json().catch(() => null);
  if (response.ok) return body;
  throw new Error(body?.errors?.[0]?.message || `larder answers ${response.status}`);
}

// Who does not answer is not there.
const PATIENCE = 10_000;

const ask = async (path) => answerOf(await fetch(path, { signal: AbortSignal.timeout(PATIENCE) }));
const tell = async (order, parameters) =>
  answerOf(await fetch(`/api/${order}?${new URLSearchParams(parameters)}`, { method: "POST", headers: { "X-Larder": "1" } }));

// What `/api/now` said last, and what it said before: of two answers there is a speed.
const state = { now: null, before: null };
