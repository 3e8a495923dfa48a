// === Images ===

const ROWS = 25;
const wanted = { search: "", sort: "name", order: "asc", offset: 0 };
let mayChange = false;

async function askImages() {
  const asked = { ...wanted, limit: ROWS };
  const answer = await ask(`/api/images?${new URLSearchParams(asked)}`);
  // An answer to what is not wanted any more is late.
  if (asked.search === wanted.search && asked.sort === wanted.sort && asked.order === wanted.order && asked.offset === wanted.offset) showImages(answer);
}

function showImages({ all, matching, offset, images }) {
  if (!images.length && offset && matching) {
    wanted.offset = Math.floor((matching - 1) / ROWS) * ROWS;
    askImages();
    return;
  }
  say(byId("images-sum"), `${many(all, "image is", "images are")} here.`);
  const rows = images.map((image) => ({ ...image, ago: image.used === null ? "not here" : ago(image.used) }));
  const focus = document.activeElement?.dataset?.key;
  show(byId("rows"), [rows, mayChange], () => rows.map(rowOf));
  if (focus) document.querySelector(`[data-key="${CSS.escape(focus)}"]`)?.focus();
  for (const head of document.querySelectorAll("[data-sort]")) {
    if (head.dataset.sort === wanted.sort) head.setAttribute("aria-sort", wanted.order === "asc" ? "ascending" : "descending");
    else head.removeAttribute("aria-sort");
  }
  byId("sort-by").value = wanted.sort;
  byId("images").hidden = !images.length;
  const empty = byId("images-empty");
  empty.hidden = images.length > 0;
  say(empty, all ? `No image is called “${wanted.search}”.` : "No image is here yet. Pull one above, or point your clients here and let them pull.");
  say(byId("page-at"), matching ? `${count(offset + 1)}–${count(offset + images.length)} of ${count(matching)}` : "");
  byId("page-before").disabled = offset === 0;
  byId("page-after").disabled = offset + images.length >= matching;
}

function rowOf({ image, digest, platforms, bytes: size, ago: used, pulls, pinned }) {
  const at = image.includes("@") ? image.indexOf("@") : image.lastIndexOf(":");
  const cell = (className, label, ...children) => el("td", { role: "cell", class: className, "data-label": label }, ...children);
  return el("tr", { role: "row" },
    cell("image", null, el("b", {}, image.slice(0, at)), image[at] === "@" ? null : image.slice(at), el("span", { class: "mono" }, short(digest))),
    cell("platforms", null, platforms.length > 4 ? `${platforms.slice(0, 3).join(", ")} and ${platforms.length - 3} more` : platforms.join(", ")),
    cell("number", "Size", bytes(size)), cell("used", "Used", used), cell("number", "Pulls", count(pulls)),
    cell(pinned ? "pin" : "pin unpinned", null, pinned ? el("span", { class: "tag" }, "pinned") : "no"),
    cell("do", null, mayChange ? doable(image, pinned) : null));
}

function doable(image, pinned) {
  const button = (word, order, run, className) => el("button", { type: "button", class: className, "aria-label": `${word} ${image}`, "data-key": `${order} ${image}`, onclick: run }, word);
  return [
    pinned ? button("Unpin", "pin", () => does("unpin", image, "can be evicted again")) : button("Pin", "pin", () => does("pin", image, "is pinned: it stays")),
    button("Verify", "verify", () => does("verify", image, "is being verified")),
    button("Pull", "pull", () => does("pull", image, "is being pulled")),
    button("Remove", "remove", () => remove(image), "danger"),
  ];
}

async function does(order, image, done) {
  try {
    const told = await tell(order, { image });
    if (told.errand) awaited.add(told.errand);
    announce(`${image} ${done}.`);
  } catch (error) {
    complain(`${image}: ${error.message}`);
  }
  poll();
}

function remove(image) {
  const dialog = byId("ask");
  say(byId("ask-what"), `Remove ${image}?`);
  say(byId("ask-why"), "It goes from this cache with all that no other image needs. Who asks for it again has it fetched anew, where an upstream can be asked.");
  byId("ask-yes").onclick = () => { dialog.close(); does("remove", image, "has been removed"); };
  byId("ask-no").onclick = () => dialog.close();
  dialog.showModal();
  byId("ask-no").focus();
}

// --- pulls and verifications ---

let complaint = "";
function complain(text) {
  complaint = text;
  announce(text);
  showErrands();
  setTimeout(() => { if (complaint === text) { complaint = ""; showErrands(); } }, 15e3);
}

// Those of whose end nobody has been told.
const awaited = new Set();
function showErrands() {
  const errands = (state.now?.errands || []).slice(0, 5).map(({ order, image, state, bytes: here, of, said, id }) => ({ order, image, state, here, of, said, id }));
  for (const { id, image, state, said } of errands) {
    if (state !== "running" && awaited.has(id)) { awaited.delete(id); announce(`${image}: ${said}.`); askImages().catch(lost); }
    if (state === "running") awaited.add(id);
  }
  show(byId("errands"), [complaint, errands], () => [
    ...(complaint ? [el("li", { "data-state": "failed" }, el("span", { class: "figure" }, complaint))] : []),
    ...errands.map(({ order, image, state, here, of, said }) => el("li", { "data-state": state },
      el("div", { class: "line" }, el("span", { class: "what" }, `${order === "pull" ? "Pull" : "Verify"} ${image}`),
        el("span", { class: "figure" }, state === "running" ? (of ? `${bytes(here)} of ${bytes(of)}` : "under way") : said)),
      state === "running" ? el("progress", { "aria-label": `${order} ${image}`, max: of || 1, value: of ? here : null }) : null)),
  ]);
}

// --- what the operator does ---

let typing;
byId("search").addEventListener("input", (event) => {
  clearTimeout(typing);
  typing = setTimeout(() => {
    Object.assign(wanted, { search: event.target.value.trim(), offset: 0 });
    askImages().catch(lost);
  }, 150);
});

function sortBy(sort) {
  const same = wanted.sort === sort;
  // Of numbers and dates the largest comes first.
  const first = sort === "name" ? "asc" : "desc";
  Object.assign(wanted, { sort, offset: 0, order: same ? (wanted.order === "asc" ? "desc" : "asc") : first });
  askImages().catch(lost);
}

for (const head of document.querySelectorAll("[data-sort]")) head.firstElementChild.addEventListener("click", () => sortBy(head.dataset.sort));
byId("sort-by").addEventListener("change", (event) => sortBy(event.target.value));

function turn(by) {
  wanted.offset = Math.max(0, wanted.offset + by * ROWS);
  askImages().catch(lost);
}
byId("page-before").addEventListener("click", () => turn(-1));
byId("page-after").addEventListener("click", () => turn(1));

byId("pull-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const image = byId("pull-name").value.trim();
  if (image) does("pull", image, "is being pulled");
});
