// === Set up ===

const CLIENTS = { docker: "Docker", containerd: "containerd, Kubernetes", k3s: "k3s", podman: "podman", crio: "CRI-O", buildkit: "BuildKit", kaniko: "kaniko" };
let guide = null;
let client = "docker";

async function askSetup(url) {
  const note = byId("setup-note");
  try {
    guide = await ask(`/api/setup${url ? `?${new URLSearchParams({ url })}` : ""}`);
    byId("setup-url").value = guide.url || "";
    note.hidden = !guide.note;
    say(note, guide.note || "");
  } catch (error) {
    guide = null;
    note.hidden = false;
    say(note, error.message);
  }
  showSetup();
}

function showSetup() {
  const clients = guide?.clients || [];
  show(byId("setup-clients"), [clients.map(({ client }) => client), client], () => clients.map(({ client: word }) =>
    el("button", { type: "button", "aria-pressed": String(word === client), onclick: () => choose(word) }, CLIENTS[word] || word)));
  const chosen = clients.find(({ client: word }) => word === client);
  byId("setup-shown").hidden = !chosen;
  show(byId("setup-shown"), chosen || null, () => (chosen ? guideOf(chosen) : []));
}

function choose(word) {
  client = word;
  showSetup();
  announce(`What ${CLIENTS[word] || word} needs is shown below.`);
  byId("setup-clients").querySelector("[aria-pressed=true]")?.focus();
}

function guideOf({ client: word, files, words, then, notes }) {
  return [
    el("h2", {}, CLIENTS[word] || word),
    ...files.map(({ path, text }) => piece(path, text)),
    ...(words.length ? [piece("Arguments", words.join("\n"))] : []),
    ...(then ? [el("p", { class: "then" }, "Then: ", el("code", {}, then))] : []),
    ...(notes.length ? [el("ul", {}, notes.map((note) => el("li", {}, note)))] : []),
  ];
}

function piece(title, text) {
  const said = el("span", { class: "figure", role: "status" });
  const shown = el("pre", { tabindex: "0", "aria-label": title }, text);
  const button = el("button", { type: "button", "aria-label": `Copy ${title}`, onclick: () => copy(text, shown, said) }, "Copy");
  return el("div", { class: "file" }, el("div", { class: "line" }, el("code", {}, title), el("span", {}, said, " ", button)), shown);
}

// Where a page comes by plain HTTP from another machine, browsers have no clipboard but the old one.
async function copy(text, shown, said) {
  let done = true;
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    getSelection().selectAllChildren(shown);
    done = document.execCommand("copy");
  }
  say(said, done ? "copied" : "selected: copy it by hand");
  setTimeout(() => say(said, ""), 4000);
}

byId("setup-form").addEventListener("submit", (event) => {
  event.preventDefault();
  askSetup(byId("setup-url").value.trim());
});
