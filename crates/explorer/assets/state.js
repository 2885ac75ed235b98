// The state of the page. It is stored in the URL fragment, so that links and the browser's history work.

const DEFAULTS = {
  view: "words",
  word: "time", // or #ID for the token with this id
  show: "clouds",
  text: "It is a truth universally acknowledged, that a single man in possession of a good fortune",
  at: null, // the position; null for the last one
  lens: "sense",
  sense: 0,
  next: null, // the id of the token whose logit is explained
  edits: [], // in the format of --edit
  length: 40,
  temperature: 1,
  top_k: 50,
  top_p: 1,
  seed: 0,
  greedy: false,
};

/** Whether a value has the form of an edit. The server checks the rest. */
export const isEdit = (value) =>
  value !== null && typeof value === "object" &&
  (typeof value.word === "string" || Number.isInteger(value.token)) &&
  (Number.isInteger(value.sense) || value.sense === "all");

/** Whether an edit is too long for the URL, because it has a vector. It stays on the page, but is not part of links. */
const isLong = (edit) => edit.vector !== undefined;

/** Parses a value of the URL; returns the default if it has the wrong type. */
function parse(text, fallback) {
  if (typeof fallback === "string") return text;
  try {
    const value = JSON.parse(text);
    // A URL can contain anything.
    if (Array.isArray(fallback)) return Array.isArray(value) && value.every(isEdit) ? value : fallback;
    if (typeof fallback === "boolean") return value === true;
    return typeof value === "number" ? value : fallback;
  } catch {
    return fallback;
  }
}

function fromAddress() {
  const given = new URLSearchParams(location.hash.slice(1));
  const state = {};
  for (const [key, fallback] of Object.entries(DEFAULTS)) {
    state[key] = given.has(key) ? parse(given.get(key), fallback) : fallback;
  }
  return state;
}

function toAddress(state) {
  const given = new URLSearchParams();
  const short = { ...state, edits: state.edits.filter((edit) => !isLong(edit)) };
  for (const [key, fallback] of Object.entries(DEFAULTS)) {
    const value = typeof fallback === "string" ? short[key] : JSON.stringify(short[key]);
    const byDefault = typeof fallback === "string" ? fallback : JSON.stringify(fallback);
    if (value !== byDefault || key === "view") given.set(key, value);
  }
  return `#${given}`;
}

const WRITE_INTERVAL = 300; // milliseconds: browsers limit how often the URL can change

/** The state and its listeners. */
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

  /** Changes part of the state. With `step`, the change is a new entry of the browser's history. */
  set(changes, { step = false } = {}) {
    if (step) this.write("replaceState"); // completes the current history entry
    this.take({ ...this.state, ...changes });
    const wait = step ? 0 : this.written + WRITE_INTERVAL - Date.now();
    clearTimeout(this.later);
    if (wait > 0) this.later = setTimeout(() => this.write("replaceState"), wait);
    else this.write(step ? "pushState" : "replaceState");
  }

  /** Writes the state to the URL. */
  write(how) {
    clearTimeout(this.later);
    const address = toAddress(this.state);
    if (address === location.hash) return;
    this.written = Date.now();
    try {
      history[how](null, "", address);
    } catch {
      // Some browsers reject the hundredth change within a few seconds. The next write contains the whole state.
    }
  }

  /** Sets the state and notifies the listeners if it changed. */
  take(next) {
    const before = this.state;
    this.state = next;
    const isChanged = (key) => JSON.stringify(before[key]) !== JSON.stringify(next[key]);
    if (Object.keys(DEFAULTS).some(isChanged)) this.listeners.forEach((listener) => listener());
  }

  subscribe(listener) {
    this.listeners.push(listener);
  }
}

/** The API parameters for a word as typed by the user. */
export const wordRequest = (word) => (/^#\d+$/.test(word.trim()) ? { token: Number(word.trim().slice(1)) } : { word });

/** The text that identifies a token in the state: its word, or #ID if the word is ambiguous. */
export const nameOf = ({ token, word }) => (/^ [^\s#\uFFFD]+$/u.test(word) ? word.slice(1) : `#${token}`);
