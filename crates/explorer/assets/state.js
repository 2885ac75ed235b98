// What the page shows, kept in the address after the #: a link opens the same, and "back" goes back.

const DEFAULTS = {
  view: "words",
  word: "time", // or #ID, a token by its id
  show: "clouds",
  text: "It is a truth universally acknowledged, that a single man in possession of a good fortune",
  at: null, // the position; the last without one
  lens: "sense",
  sense: 0,
  next: null, // the id of the word whose logit is explained
  edits: [], // as --edit has them
  length: 40,
  temperature: 1,
  top_k: 50,
  top_p: 1,
  seed: 0,
  greedy: false,
};

function parse(text, like) {
  if (typeof like === "string") return text;
  try {
    const value = JSON.parse(text);
    // An address is anybody's to write: what does not fit is left at its default.
    if (Array.isArray(like)) return Array.isArray(value) ? value : like;
    if (typeof like === "boolean") return value === true;
    return typeof value === "number" ? value : like;
  } catch {
    return like;
  }
}

function fromAddress() {
  const given = new URLSearchParams(location.hash.slice(1));
  const state = {};
  for (const [key, like] of Object.entries(DEFAULTS)) {
    state[key] = given.has(key) ? parse(given.get(key), like) : like;
  }
  return state;
}

function toAddress(state) {
  const given = new URLSearchParams();
  for (const [key, like] of Object.entries(DEFAULTS)) {
    const value = typeof like === "string" ? state[key] : JSON.stringify(state[key]);
    const usual = typeof like === "string" ? like : JSON.stringify(like);
    if (value !== usual || key === "view") given.set(key, value);
  }
  return `#${given}`;
}

/** The state, and who hears of its changes. */
export class Store {
  constructor() {
    this.state = fromAddress();
    this.listeners = [];
    window.addEventListener("hashchange", () => this.take(fromAddress()));
  }

  /** Changes part of the state; with `step`, "back" undoes it. */
  set(changes, { step = false } = {}) {
    const next = { ...this.state, ...changes };
    const address = toAddress(next);
    if (address !== location.hash) history[step ? "pushState" : "replaceState"](null, "", address);
    this.take(next);
  }

  take(next) {
    const before = this.state;
    this.state = next;
    const changed = (key) => JSON.stringify(before[key]) !== JSON.stringify(next[key]);
    const keys = new Set(Object.keys(DEFAULTS).filter(changed));
    if (keys.size > 0) this.listeners.forEach((listener) => listener(keys));
  }

  hear(listener) {
    this.listeners.push(listener);
  }
}

/** What the API is asked for a word as it was typed. */
export const wordQuestion = (word) => (/^#\d+$/.test(word.trim()) ? { token: Number(word.trim().slice(1)) } : { word });

/** How a token is written so that it is found again: the word, where that is what it is. */
export const nameOf = ({ token, word }) => (/^ [^\s#]+$/u.test(word) ? word.slice(1) : `#${token}`);
