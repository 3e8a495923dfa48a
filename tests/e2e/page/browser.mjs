// Chromium without a screen, spoken to by a pipe (https://chromedevtools.github.io/devtools-protocol/).

import { spawn } from "node:child_process";
import { setTimeout as sleep } from "node:timers/promises";

const FLAGS = ["--headless=new", "--no-sandbox", "--remote-debugging-pipe", "--no-first-run", "--disable-gpu", "--hide-scrollbars",
  "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--mute-audio",
  "--force-color-profile=srgb", "--disable-features=Translate,OptimizationHints,MediaRouter"];
const KEYS = { Tab: 9, Enter: 13, Escape: 27, " ": 32 };
const PATIENCE = 20e3;

export class Browser {
  constructor(dir) {
    this.child = spawn(process.env.CHROMIUM || "chromium", [...FLAGS, `--user-data-dir=${dir}`, "about:blank"], { stdio: ["ignore", "ignore", "ignore", "pipe", "pipe"] });
    this.number = 0;
    this.waiting = new Map();
    this.heard = [];
    let text = "";
    this.child.stdio[4].on("data", (data) => {
      const parts = (text + data).split("\0");
      text = parts.pop();
      for (const part of parts) this.take(JSON.parse(part));
    });
  }

  take(message) {
    if (!message.id) { for (const hear of this.heard) hear(message.method, message.params); return; }
    const { done, failed } = this.waiting.get(message.id);
    this.waiting.delete(message.id);
    if (message.error) failed(new Error(message.error.message)); else done(message.result);
  }

  send(method, params = {}, sessionId = this.session) {
    const id = ++this.number;
    this.child.stdio[3].write(`${JSON.stringify({ id, method, params, sessionId })}\0`);
    return new Promise((done, failed) => this.waiting.set(id, { done, failed }));
  }

  async open() {
    const { targetId } = await this.send("Target.createTarget", { url: "about:blank" }, undefined);
    const { sessionId } = await this.send("Target.attachToTarget", { targetId, flatten: true }, undefined);
    this.session = sessionId;
    this.errors = [];
    this.requests = [];
    this.heard.push((method, params) => {
      if (method === "Network.requestWillBeSent") this.requests.push(params.request.url);
      if (method === "Runtime.exceptionThrown") this.errors.push(params.exceptionDetails.exception?.description || params.exceptionDetails.text);
      if (method === "Runtime.consoleAPICalled" && ["error", "warning"].includes(params.type)) this.errors.push(JSON.stringify(params.args));
      if (method === "Log.entryAdded" && params.entry.level === "error") this.errors.push(`${params.entry.text} ${params.entry.url || ""}`);
    });
    for (const domain of ["Page", "Runtime", "Log", "Network", "DOM", "Accessibility"]) await this.send(`${domain}.enable`);
    await this.send("Emulation.setFocusEmulationEnabled", { enabled: true });
  }

  async go(url) {
    await this.send("Page.navigate", { url });
    await this.until("the document is there", "document.readyState === 'complete'");
  }

  // What an expression gives, in the page.
  async eval(expression) {
    const { result, exceptionDetails } = await this.send("Runtime.evaluate", { expression, returnByValue: true, awaitPromise: true });
    if (exceptionDetails) throw new Error(`${expression}: ${exceptionDetails.exception?.description || exceptionDetails.text}`);
    return result.value;
  }

  async until(what, expression, patience = PATIENCE) {
    const end = Date.now() + patience;
    for (;;) {
      const value = await this.eval(expression);
      if (value) return value;
      if (Date.now() > end) throw new Error(`never: ${what}`);
      await sleep(50);
    }
  }

  async size(width, height) {
    await this.send("Emulation.setDeviceMetricsOverride", { width, height, deviceScaleFactor: 1, mobile: width < 500 });
  }

  async scheme(value) {
    await this.send("Emulation.setEmulatedMedia", { features: [{ name: "prefers-color-scheme", value }] });
  }

  async press(key, modifiers = 0) {
    const code = { key, code: key === " " ? "Space" : key, windowsVirtualKeyCode: KEYS[key], modifiers };
    const text = { Enter: "\r", " ": " " }[key];
    await this.send("Input.dispatchKeyEvent", { type: "keyDown", ...code, text });
    await this.send("Input.dispatchKeyEvent", { type: "keyUp", ...code });
  }

  async type(text) {
    await this.send("Input.insertText", { text });
  }

  async screenshot(full = false) {
    const { cssContentSize } = full ? await this.send("Page.getLayoutMetrics") : {};
    const clip = full ? { x: 0, y: 0, width: cssContentSize.width, height: cssContentSize.height, scale: 1 } : undefined;
    const { data } = await this.send("Page.captureScreenshot", { format: "png", clip, captureBeyondViewport: full });
    return Buffer.from(data, "base64");
  }

  async tree() {
    const { nodes } = await this.send("Accessibility.getFullAXTree");
    return nodes.filter((node) => !node.ignored).map((node) => ({
      role: node.role?.value, name: node.name?.value || "",
      level: node.properties?.find(({ name }) => name === "level")?.value.value,
    }));
  }

  end() {
    this.child.kill("SIGKILL");
  }
}
