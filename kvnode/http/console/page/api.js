// The public API, as any other client uses it: same origin, the session's cookie, JSON.

/** What the node said instead of doing it; `message` is its own sentence. */
export class Refused extends Error {
  constructor(status, document, etag) {
    super(document.message ?? `The node answered with status ${status}.`);
    this.status = status;
    this.code = document.error ?? "";
    this.etag = etag;
  }
}

/** No node has answered: the connection failed, took too long, or a balancer answered for nobody. */
export class Silent extends Error {}

const TIMEOUT_MS = 10_000; // longer than a node takes for anything

export const heard = {
  nodes: new Set(), // that have answered this page: more than one where a balancer stands between
  onUnauthorized: () => {},
};

async function send(method, path, { body, headers = {}, timeout_ms = TIMEOUT_MS } = {}) {
  let response;
  try {
    response = await fetch(path, {
      method, body, headers, cache: "no-store", credentials: "same-origin", redirect: "error",
      signal: AbortSignal.timeout(timeout_ms),
    });
  } catch {
    throw new Silent("No answer came; it is not known whether the node has got the request.");
  }
  const node = response.headers.get("Kvnode-Node");
  if (node === null) throw new Silent("No node has answered.");
  heard.nodes.add(node);
  return response;
}

async function refusal(response) {
  let document = {};
  try {
    document = await response.json();
  } catch {
    // The status alone has to do.
  }
  if (response.status === 401 && document.error === "unauthorized") heard.onUnauthorized(document.message);
  return new Refused(response.status, document, response.headers.get("ETag"));
}

/** The JSON of a 200. Raises Refused or Silent. */
export async function ask(method, path, options = {}) {
  const { json, ...rest } = options;
  if (json !== undefined) {
    rest.body = JSON.stringify(json);
    rest.headers = { ...rest.headers, "Content-Type": "application/json" };
  }
  const response = await send(method, path, rest);
  if (!response.ok) throw await refusal(response);
  try {
    return await response.json();
  } catch {
    throw new Silent("The answer has not come whole.");
  }
}

export function get(path, parameters = {}, options = {}) {
  const given = Object.entries(parameters).filter(([, value]) => value !== undefined && value !== null);
  const query = new URLSearchParams(given).toString();
  return ask("GET", query ? `${path}?${query}` : path, options);
}

/** The path of a key. Slashes are encoded too, so that no browser takes `..` in a key for a step up. */
export function keyPath(key) {
  return `/v1/kv/${encodeURIComponent(key)}`;
}

/** A browser goes up with these even where they are encoded: such a key is written by a transaction. */
export function hasNoPath(key) {
  return key === "." || key === "..";
}
