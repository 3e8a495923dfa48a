// === Charts ===

const HEIGHT = 190;
const LEFT = 62;
const BELOW = 22;

// The next round number above, by tens or by powers of two.
function roof(number, base) {
  if (number <= 0) return 1;
  const power = base === 1024 ? 2 ** Math.floor(Math.log2(number)) : 10 ** Math.floor(Math.log10(number));
  const steps = base === 1024 ? [1, 1.5, 2] : [1, 1.6, 2, 3, 4, 6, 8, 10];
  return steps.map((step) => step * power).find((step) => step >= number);
}

// Columns over time, each made of parts that stand on each other. `series`: name, class, values.
function columns(host, { series, labels, ticks, unit, base, summary }) {
  const width = Math.max(host.clientWidth, 240);
  const height = Math.max(host.clientHeight, 120) || HEIGHT;
  const slots = labels.length;
  const sums = labels.map((_, at) => series.reduce((sum, { values }) => sum + values[at], 0));
  const highest = Math.max(...sums);
  const top = roof(highest, base);
  const bottom = height - BELOW;
  const y = (value) => bottom - (value / top) * (bottom - 8);
  const step = (width - LEFT) / slots;
  const chart = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": summary, preserveAspectRatio: "none" });
  const lines = highest > 0 ? (base === 10 && top < 2 ? [0, top] : [0, top / 2, top]) : [0];
  for (const value of lines) {
    chart.append(svg("line", { class: "axis", x1: LEFT, x2: width, y1: y(value), y2: y(value) }));
    chart.append(svg("text", { x: LEFT - 8, y: y(value) + 4, "text-anchor": "end" }, unit(value)));
  }
  for (let at = 0; at < slots; at += 1) {
    if (!sums[at]) continue;
    const left = LEFT + at * step;
    const parts = series.filter(({ values }) => values[at]);
    const told = parts.map(({ name, values }) => `${name} ${unit(values[at])}`).join(", ");
    const column = svg("g", { class: "column" }, svg("title", {}, `${labels[at]}: ${told}`));
    column.append(svg("rect", { class: "hit", x: left, y: 8, width: step, height: bottom - 8 }));
    let from = 0;
    for (const { className, values } of parts) {
      // What is there is seen, however little it is.
      const size = Math.max(y(from) - y(from + values[at]), from ? 0 : 1.5);
      column.append(svg("rect", { class: className, x: left + step * 0.12, y: y(from) - size, width: step * 0.76, height: size }));
      from += values[at];
    }
    chart.append(column);
  }
  for (const [at, text, anchor] of ticks) {
    chart.append(svg("text", { x: LEFT + at * (width - LEFT), y: height - 4, "text-anchor": anchor }, text));
  }
  host.replaceChildren(chart);
}

// The same in figures, without what is empty.
function figures(host, { series, labels, unit }, caption) {
  const rows = labels.map((label, at) => [label, series.map(({ values }) => values[at])]).filter(([, values]) => values.some(Boolean));
  show(host, [caption, rows], () => el("table", { class: "figures" },
    el("caption", { class: "hidden" }, caption),
    el("thead", {}, el("tr", {}, ["from", ...series.map(({ name }) => name)].map((name) => el("th", { scope: "col" }, name)))),
    el("tbody", {}, rows.map(([label, values]) =>
      el("tr", {}, el("th", { scope: "row" }, label), values.map((value) => el("td", {}, unit(value))))))));
}

function legend(series, unit) {
  return el("ul", { class: "legend" }, series.map(({ name, className, values }) =>
    el("li", {}, el("span", { class: `key ${className}`, "aria-hidden": "true" }), `${name} `, el("b", {}, unit(values.reduce((a, b) => a + b, 0))))));
}

// Half a circle of which a part is left.
function gauge({ value, of, text }) {
  const share = of ? Math.min(1, value / of) : 0;
  const at = (part) => {
    const angle = Math.PI * (1 - part);
    return `${(110 + 92 * Math.cos(angle)).toFixed(2)} ${(110 - 92 * Math.sin(angle)).toFixed(2)}`;
  };
  const arc = (part) => `M ${at(0)} A 92 92 0 0 1 ${at(part)}`;
  return svg("svg", { viewBox: "0 0 220 128", role: "img", "aria-label": text },
    svg("path", { class: "track", d: arc(1) }),
    share > 0 ? svg("path", { class: "arc", d: arc(Math.max(share, 0.005)) }) : null,
    svg("text", { class: "value", x: 110, y: 96 }, count(value)),
    svg("text", { class: "unit", x: 110, y: 118 }, `of ${count(of)} pulls left`));
}
