// Client of the server's JSON API.

/** An error that is shown to the user: the server's error message, or a failed connection. */
export class ApiError extends Error {
  constructor(message, response = {}) {
    super(message);
    this.pieces = response.pieces ?? []; // tokens of a word that is not a single token
  }
}

const wait = (seconds) => new Promise((resolve) => setTimeout(resolve, 1000 * seconds));

/** Calls the API and returns the JSON response. A request that gets status 503 is retried up to three times. */
export async function callApi(path, body, signal) {
  const request = body === undefined
    ? { signal }
    : { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body), signal };
  for (let attempt = 1; ; attempt += 1) {
    let response;
    try {
      response = await fetch(`/api/v1/${path}`, request);
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new ApiError("The server does not respond: is backpack serve still running?");
    }
    if (response.status === 503 && attempt < 4) {
      await wait(Number(response.headers.get("retry-after") ?? 1));
      continue;
    }
    const json = await response.json().catch(() => ({}));
    if (response.ok) return json;
    throw new ApiError(json.error ?? `The server responded with status ${response.status}.`, json);
  }
}

/** Returns a caller for one request at a time. A new call aborts the previous one, which then returns undefined. */
export function latestOnly() {
  let running;
  return async (path, body) => {
    running?.abort();
    const own = (running = new AbortController());
    try {
      const json = await callApi(path, body, own.signal);
      return own === running ? json : undefined;
    } catch (error) {
      if (own !== running || error.name === "AbortError") return undefined;
      throw error;
    }
  };
}
