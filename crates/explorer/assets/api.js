// The JSON API of this server.

/** A sentence that the server, or the lack of one, answers with. */
export class Refused extends Error {
  constructor(sentence, answer = {}) {
    super(sentence);
    this.pieces = answer.pieces ?? [];
  }
}

const wait = (seconds) => new Promise((resolve) => setTimeout(resolve, 1000 * seconds));

/** The answer to a question; a busy server is asked again, three times. */
export async function ask(path, question, signal) {
  const request = question === undefined
    ? { signal }
    : { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(question), signal };
  for (let tries = 1; ; tries += 1) {
    let response;
    try {
      response = await fetch(`/api/v1/${path}`, request);
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Refused("The server does not answer: is backpack serve still running?");
    }
    if (response.status === 503 && tries < 4) {
      await wait(Number(response.headers.get("retry-after") ?? 1));
      continue;
    }
    const answer = await response.json().catch(() => ({}));
    if (response.ok) return answer;
    throw new Refused(answer.error ?? `The server answered with status ${response.status}.`, answer);
  }
}

/** Asks one question at a time: a new one takes back the last, whose answer never comes. */
export function latest() {
  let running;
  return async (path, question) => {
    running?.abort();
    const mine = (running = new AbortController());
    try {
      const answer = await ask(path, question, mine.signal);
      return mine === running ? answer : undefined;
    } catch (error) {
      if (mine !== running || error.name === "AbortError") return undefined;
      throw error;
    }
  };
}
