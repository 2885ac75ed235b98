// Elements of the page, made by hand: no framework.

/** An element: attributes by name, listeners as `onclick`, `style` as an object; children are elements or texts. */
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

/** A token's text as it is shown: without its space, and with signs for what has no look of its own. */
export function shown({ token, word }) {
  const signs = { "\n": "\\n", "\t": "\\t", "\r": "\\r" };
  const bare = word.startsWith(" ") && word.length > 1 ? word.slice(1) : word;
  const text = bare.replace(/[\n\t\r]/g, (sign) => signs[sign]);
  if (/^ +$/.test(text)) return "(space)";
  return text === "" || text.includes("\uFFFD") ? `#${token}` : text;
}

/** Whether a token joins what stands before it, as the pieces of a longer word do. */
export const isPiece = ({ word }) => /^[\p{L}\p{N}]/u.test(word);

/** What screen readers and tooltips say of a token. */
export const named = (token) => `"${shown(token)}", token ${token.token}${isPiece(token) ? ", joins what is before it" : ""}`;

/** A token as text, slanted where it joins what is before it. */
export const tokenText = (token) => h("span", { class: isPiece(token) ? "piece" : null }, shown(token));

/** A token to click on. */
export function tokenButton(token, onclick, attributes = {}) {
  const title = `${named(token)}${attributes.note ?? ""}`;
  const { note, class: classes = "", ...rest } = attributes;
  return h("button", { type: "button", class: `token ${classes}`, title, onclick, ...rest }, tokenText(token));
}

/** Buttons of which one is pressed. */
export function choice(label, options, onchoose) {
  const buttons = Object.entries(options).map(([value, text]) =>
    h("button", { type: "button", "data-value": value, "aria-pressed": "false", onclick: () => onchoose(value) }, text));
  const element = h("div", { class: "choice", role: "group", "aria-label": label }, buttons);
  const set = (chosen) =>
    buttons.forEach((button) => button.setAttribute("aria-pressed", String(button.dataset.value === chosen)));
  return { element, set };
}

/** Where a view says what went wrong. */
export function problem() {
  const element = h("p", { class: "error", role: "alert", hidden: true });
  const show = (sentence) => {
    element.textContent = sentence ?? "";
    element.hidden = !sentence;
  };
  return { element, show };
}

/** Calls `f` when nothing has come for so many milliseconds. */
export function calm(f, milliseconds) {
  let timer;
  return (...values) => {
    clearTimeout(timer);
    timer = setTimeout(() => f(...values), milliseconds);
  };
}

export const percent = (share) => (share >= 0.0995 ? `${(100 * share).toFixed(1)}%` : `${(100 * share).toFixed(2)}%`);
export const signed = (number, digits = 2) => `${number < 0 ? "\u2212" : "+"}${Math.abs(number).toFixed(digits)}`;
