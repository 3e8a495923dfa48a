// === Images ===

const ROWS = 25;
const wanted = { search: "", sort: "name", order: "asc", offset: 0 };
const ORDERS = {
  name: { asc: "A to Z", desc: "Z to A" }, size: { asc: "smallest first", desc: "largest first" }, used: { asc: "oldest first", desc: "newest first" },
  pulls: { asc: "fewest first", desc: "most first" }, pinned: { asc: "pinned last", desc: "pinned first" },
};
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
    askImages().catch(lost);
    return;
  }
  say(byId("images-sum"), `${many(all, "image is", "images are")} here.`);
  showRows(images);
  for (const head of document.querySelectorAll("[data-sort]")) {
    if (head.dataset.sort === wanted.sort) head.setAttribute("aria-sort", wanted.order === "asc" ? "ascending" : "descending");
    else head.removeAttribute("aria-sort");
  }
  byId("sort-by").value = wanted.sort;
  say(byId("sort-turn"), ORDERS[wanted.sort][wanted.order]);
  byId("images").hidden = !images.length;
  const empty = byId("images-empty");
  empty.hidden = images.length > 0;
  say(empty, all ? `No image is called “${wanted.search}”.` : "No image is here yet. Pull one above, or point your clients here and let them pull.");
  say(byId("page-at"), matching ? `${count(offset + 1)}–${count(offset + images.length)} of ${count(matching)}` : "");
  byId("page-before").disabled = offset === 0;
  byId("page-after").disabled = offset + images.length >= matching;
}

// The rows that are there, by their images. A row stays while its image does, so that neither the focus nor a selection goes with it.
const rows = new Map();

function showRows(images) {
  const body = byId("rows");
  const focused = document.activeElement;
  const at = [...body.children].indexOf(focused?.closest("tr"));
  const names = new Set(images.map(({ image }) => image));
  for (const [image, row] of rows) if (!names.has(image)) { row.node.remove(); rows.delete(image); }
  images.forEach((image, place) => {
    let row = rows.get(image.image);
    if (!row) rows.set(image.image, row = rowOf(image.image));
    row.show(image);
    if (body.children[place] !== row.node) body.insertBefore(row.node, body.children[place] || null);
  });
  if (at < 0 || document.activeElement === focused) return;
  // It has moved, or its image has gone: then what has taken its place is as near as can be.
  if (focused.isConnected) focused.focus();
  else (body.children[Math.min(at, body.children.length - 1)]?.querySelector(`[data-order=${focused.dataset.order}]`) || byId("search")).focus();
}

function rowOf(image) {
  const at = image.includes("@") ? image.indexOf("@") : image.lastIndexOf(":");
  const cell = (className, label, ...children) => el("td", { role: "cell", class: className, "data-label": label }, ...children);
  const digest = el("span", { class: "mono" });
  const name = cell("image", null, el("b", {}, image.slice(0, at)), image[at] === "@" ? null : image.slice(at), digest);
  const [platforms, size, used, pulls] = [cell("platforms"), cell("number", "Size"), cell("used", "Used"), cell("number", "Pulls")];
  const [tag, pin, todo] = [el("span"), cell("pin"), cell("do")];
  pin.append(tag);
  const buttons = [
    ["Pin", "pin", () => (row.pinned ? does("unpin", image, "can be evicted again") : does("pin", image, "is pinned: it stays"))],
    ["Verify", "verify", () => does("verify", image, "is being verified")],
    ["Pull", "pull", () => does("pull", image, "is being pulled")],
    ["Remove", "remove", () => remove(image), "danger"],
  ].map(([word, order, onclick, className]) => el("button", { type: "button", class: className, "aria-label": `${word} ${image}`, "data-order": order, onclick }, word));
  const row = {
    node: el("tr", { role: "row" }, name, platforms, size, used, pulls, pin, todo),
    show(told) {
      say(digest, short(told.digest));
      say(platforms, told.platforms.length > 4 ? `${told.platforms.slice(0, 3).join(", ")} and ${told.platforms.length - 3} more` : told.platforms.join(", "));
      say(size, bytes(told.bytes));
      say(used, told.used === null ? "not here" : ago(told.used));
      say(pulls, count(told.pulls));
      row.pinned = told.pinned;
      pin.className = told.pinned ? "pin" : "pin unpinned";
      tag.className = told.pinned ? "tag" : "";
      say(tag, told.pinned ? "pinned" : "no");
      const word = told.pinned ? "Unpin" : "Pin";
      say(buttons[0], word);
      buttons[0].setAttribute("aria-label", `${word} ${image}`);
      if (mayChange !== todo.hasChildNodes()) todo.replaceChildren(...(mayChange ? buttons : []));
    },
  };
  return row;
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
byId("sort-turn").addEventListener("click", () => sortBy(wanted.sort));

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
