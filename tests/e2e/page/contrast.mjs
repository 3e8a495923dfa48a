// The contrast of every text that is seen, as WCAG 2 computes it, to be run in the page: the least, and how many there are.

export const contrasts = `(() => {
  const parse = (text) => { const [r, g, b, a = 1] = text.match(/[\\d.]+/g).map(Number); return { r, g, b, a }; };
  const over = (top, below) => ({ r: top.r * top.a + below.r * (1 - top.a), g: top.g * top.a + below.g * (1 - top.a), b: top.b * top.a + below.b * (1 - top.a), a: 1 });
  const part = (value) => { const s = value / 255; return s <= 0.03928 ? s / 12.92 : ((s + 0.055) / 1.055) ** 2.4; };
  const light = ({ r, g, b }) => 0.2126 * part(r) + 0.7152 * part(g) + 0.0722 * part(b);
  const ground = (node) => {
    const layers = [];
    for (let at = node; at; at = at.parentElement) {
      const colour = parse(getComputedStyle(at).backgroundColor);
      if (colour.a > 0) layers.push(colour);
      if (colour.a === 1) break;
    }
    return layers.reverse().reduce((below, top) => over(top, below), { r: 255, g: 255, b: 255, a: 1 });
  };
  let seen = 0, least = { contrast: 99 };
  const look = (node, text, pseudo) => {
    const box = node.getBoundingClientRect();
    const style = getComputedStyle(node, pseudo);
    if (!text.trim() || box.width < 2 || box.height < 2 || style.visibility !== "visible" || node.closest(".skip, [hidden]")) return;
    const below = ground(node);
    const own = parse(node instanceof SVGElement ? style.fill : style.color);
    for (let at = node; at; at = at.parentElement) own.a *= Number(getComputedStyle(at).opacity);
    const colour = over(own, below);
    const [a, b] = [light(colour), light(below)];
    const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    seen += 1;
    if (contrast < least.contrast) least = { contrast, text: text.trim().slice(0, 40), colour: JSON.stringify(colour), ground: JSON.stringify(below) };
  };
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const node = walk.currentNode.parentElement;
    if (!["SCRIPT", "STYLE", "TITLE", "NOSCRIPT", "title"].includes(node.tagName)) look(node, walk.currentNode.data);
  }
  for (const input of document.querySelectorAll("input")) look(input, input.placeholder, "::placeholder");
  return { least, seen };
})()`;
