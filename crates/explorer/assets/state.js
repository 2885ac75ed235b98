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

/** Whether this may be an edit; the server says what else is wrong with one. */
export const isEdit = (value) =>
  value !== null && typeof value === "object" &&
  (typeof value.word === "string" || Number.isInteger(value.token)) &&
  (Number.isInteger(value.sense) || value.sense === "all");

/** Vectors are too long for an address: such an edit stays until it is removed, and no link has it. */
const isLong = (edit) => edit.vector !== undefined;

function parse(text, like) {
  if (typeof like === "string") return text;
  try {
    const value = JSON.parse(text);
    // An address is anybody's to write: what does not fit is left at its default.
    if (Array.isArray(like)) return Array.isArray(value) && value.every(isEdit) ? value : like;
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
  const short = { ...state, edits: state.edits.filter((edit) => !isLong(edit)) };
  for (const [key, like] of Object.entries(DEFAULTS)) {
    const value = typeof like === "string" ? short[key] : JSON.stringify(short[key]);
    const usual = typeof like === "string" ? like : JSON.stringify(like);
    if (value !== usual || key === "view") given.set(key, value);
  }
  return `#${given}`;
}

const BETWEEN_WRITES = 300; // milliseconds: a slider moves more often than browsers let an address change

/** The state, and who hears of its changes. */
export class Store {
  constructor() {
    this.state = fromAddress();
    this.listeners = [];
    this.written = 0;
    window.addEventListener("hashchange", () => {
      clearTimeout(this.later);
      const state = fromAddress();
      this.take({ ...state, edits: [...this.state.edits.filter(isLong), ...state.edits] });
    });
  }

  /** Changes part of the state; with `step`, "back" undoes it. */
  set(changes, { step = false } = {}) {
    if (step) this.write("replaceState"); // what "back" goes back to
    this.take({ ...this.state, ...changes });
    const wait = step ? 0 : this.written + BETWEEN_WRITES - Date.now();
    clearTimeout(this.later);
    if (wait > 0) this.later = setTimeout(() => this.write("replaceState"), wait);
    else this.write(step ? "pushState" : "replaceState");
  }

  /** The state into the address. */
  write(how) {
    clearTimeout(this.later);
    const address = toAddress(this.state);
    if (address === location.hash) return;
    this.written = Date.now();
    try {
      history[how](null, "", address);
    } catch {
      // Some browsers refuse the hundredth change of a few seconds: the next one has it all.
    }
  }

  take(next) {
    const before = this.state;
    this.state = next;
    const isChanged = (key) => JSON.stringify(before[key]) !== JSON.stringify(next[key]);
    if (Object.keys(DEFAULTS).some(isChanged)) this.listeners.forEach((listener) => listener());
  }

  hear(listener) {
    this.listeners.push(listener);
  }
}

/** What the API is asked for a word as it was typed. */
export const wordQuestion = (word) => (/^#\d+$/.test(word.trim()) ? { token: Number(word.trim().slice(1)) } : { word });

/** How a token is written so that it is found again: the word, where that is what it is. */
export const nameOf = ({ token, word }) => (/^ [^\s#\uFFFD]+$/u.test(word) ? word.slice(1) : `#${token}`);
