// Helpers that create the elements of the page, without a framework.

/**
 * Creates an element. Attributes are given by name, listeners as `onclick` etc., and `style` as an object. Children are
 * elements or strings.
 */
export function h(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (key === "style") for (const [property, to] of Object.entries(value)) element.style.setProperty(property, to);
    else element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

/** The displayed text of a token: without its leading space, and with escapes for invisible characters. */
export function displayText({ token, word }) {
  const escapes = { "\n": "\\n", "\t": "\\t", "\r": "\\r" };
  const bare = word.startsWith(" ") && word.length > 1 ? word.slice(1) : word;
  const text = bare.replace(/[\n\t\r]/g, (character) => escapes[character]);
  if (/^ +$/.test(text)) return "(space)";
  return text === "" || text.includes("\uFFFD") ? `#${token}` : text;
}

/** Whether a token is a word, or part of one, without a leading space. */
export const isPiece = ({ word }) => /^[\p{L}\p{N}]/u.test(word);

/** The description of a token in tooltips and for screen readers. */
export const describeToken = (token) => `"${displayText(token)}", token ${token.token}${isPiece(token) ? ", no leading space" : ""}`;

/** The text of a token, slanted if it has no leading space. */
export const tokenText = (token) => h("span", { class: isPiece(token) ? "piece" : null }, displayText(token));

/** A token as a button. */
export function tokenButton(token, onclick, attributes = {}) {
  const title = `${describeToken(token)}${attributes.note ?? ""}`;
  const { note, class: classes = "", ...rest } = attributes;
  return h("button", { type: "button", class: `token ${classes}`, title, onclick, ...rest }, tokenText(token));
}

/** A group of buttons, one of which is pressed. */
export function choice(label, options, onchoose) {
  const buttons = Object.entries(options).map(([value, text]) =>
    h("button", { type: "button", "data-value": value, "aria-pressed": "false", onclick: () => onchoose(value) }, text));
  const element = h("div", { class: "choice", role: "group", "aria-label": label }, buttons);
  const set = (chosen) =>
    buttons.forEach((button) => button.setAttribute("aria-pressed", String(button.dataset.value === chosen)));
  return { element, set };
}

/** The error message of a view. */
export function errorMessage() {
  const element = h("p", { class: "error", role: "alert", hidden: true });
  const show = (message) => {
    element.textContent = message ?? "";
    element.hidden = !message;
  };
  return { element, show };
}

/** Returns a function that calls `f` once it has not been called for `milliseconds`. */
export function debounce(f, milliseconds) {
  let timer;
  return (...values) => {
    clearTimeout(timer);
    timer = setTimeout(() => f(...values), milliseconds);
  };
}

export const percent = (share) => (share >= 0.0995 ? `${(100 * share).toFixed(1)}%` : `${(100 * share).toFixed(2)}%`);
export const signed = (number, digits = 2) => `${number < 0 ? "\u2212" : "+"}${Math.abs(number).toFixed(digits)}`;
