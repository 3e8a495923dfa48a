// A registry with a budget of pulls, as Docker Hub has one, whose large layers come slowly.

import { createHash } from "node:crypto";
import { createServer } from "node:http";

const MANIFEST = "application/vnd.oci.image.manifest.v1+json";
const INDEX = "application/vnd.oci.image.index.v1+json";
const WINDOW = 21600;
const PIECE = 256 << 10;

export const digestOf = (bytes) => `sha256:${createHash("sha256").update(bytes).digest("hex")}`;

export class Registry {
  manifests = new Map();
  blobs = new Map();
  left = 87;
  asked = [];

  // An image of one layer for each of these platforms. `rate`: bytes a second of its layers.
  put(name, tag, size, platforms = ["linux/amd64"], rate = Infinity) {
    const children = platforms.map((text) => {
      const [os, architecture, variant] = text.split("/");
      const config = this.blob(Buffer.from(JSON.stringify({ os, architecture, variant, name, tag })));
      const bytes = Buffer.alloc(size, `${name}:${tag} for ${text}. `);
      const layer = this.blob(bytes, rate);
      const manifest = { schemaVersion: 2, mediaType: MANIFEST, config: { mediaType: "application/vnd.oci.image.config.v1+json", ...config }, layers: [{ mediaType: "application/vnd.oci.image.layer.v1.tar", ...layer }] };
      return { ...this.manifest(name, MANIFEST, manifest), mediaType: MANIFEST, platform: { os, architecture, variant }, layer };
    });
    const top = children.length === 1 ? children[0]
      : this.manifest(name, INDEX, { schemaVersion: 2, mediaType: INDEX, manifests: children.map(({ layer, ...child }) => child) });
    this.manifests.set(`${name} ${tag}`, this.manifests.get(`${name} ${top.digest}`));
    return { digest: top.digest, children };
  }

  blob(bytes, rate = Infinity) {
    const digest = digestOf(bytes);
    this.blobs.set(digest, { bytes, rate });
    return { digest, size: bytes.length };
  }

  manifest(name, type, content) {
    const bytes = Buffer.from(JSON.stringify(content));
    const digest = digestOf(bytes);
    this.manifests.set(`${name} ${digest}`, { bytes, type, digest });
    return { digest, size: bytes.length };
  }

  async listen() {
    this.server = createServer((request, response) => this.answer(request, response));
    await new Promise((done) => this.server.listen(0, "127.0.0.1", done));
    return `http://127.0.0.1:${this.server.address().port}`;
  }

  answer(request, response) {
    this.asked.push(`${request.method} ${request.url}`);
    const [, name, kind, reference] = request.url.match(/^\/v2\/(.+)\/(manifests|blobs)\/([^?]+)/) || [];
    if (name?.startsWith("secret/")) return response.writeHead(403).end();
    const found = kind === "manifests" ? this.manifests.get(`${name} ${reference}`) : this.blobs.get(reference);
    if (!found) return response.writeHead(request.url === "/v2/" ? 200 : 404).end("{}");
    const headers = { "content-length": found.bytes.length, "docker-content-digest": found.digest || reference };
    if (kind === "manifests") {
      if (request.method === "GET") this.left -= 1;
      headers["content-type"] = found.type;
      headers["ratelimit-limit"] = `100;w=${WINDOW}`;
      headers["ratelimit-remaining"] = `${this.left};w=${WINDOW}`;
    }
    let bytes = found.bytes;
    const [, from, to] = request.headers.range?.match(/^bytes=(\d+)-(\d*)$/) || [];
    if (kind === "blobs" && from !== undefined) {
      const end = to ? Math.min(Number(to) + 1, bytes.length) : bytes.length;
      headers["content-range"] = `bytes ${from}-${end - 1}/${bytes.length}`;
      bytes = bytes.subarray(Number(from), end);
      headers["content-length"] = bytes.length;
    }
    response.writeHead(headers["content-range"] ? 206 : 200, headers);
    if (request.method === "HEAD") return response.end();
    if (!Number.isFinite(found.rate)) return response.end(bytes);
    let at = 0;
    const next = () => {
      if (response.destroyed) return;
      if (at >= bytes.length) { response.end(); return; }
      response.write(bytes.subarray(at, at + PIECE));
      at += PIECE;
      setTimeout(next, (1000 * PIECE) / found.rate);
    };
    next();
  }
}
