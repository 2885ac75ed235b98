// The text that three views share: its input field, its tokens, and the selected position.

import { debounce, describeToken, displayText, h, isPiece, tokenText } from "./elements.js";

/** The input field of the text. Changes apply 350 ms after the last key, or at once with Enter. */
export function textField(store, id, label) {
  const take = () => store.set({ text: area.value, at: null, next: null });
  const takeSoon = debounce(take, 350);
  const area = h("textarea", {
    id,
    rows: 2,
    spellcheck: "false",
    oninput: takeSoon,
    onkeydown: (event) => {
      if (event.key !== "Enter" || event.shiftKey) return;
      event.preventDefault();
      take();
    },
  });
  const element = h("div", { class: "field" }, h("label", { for: id }, label), area);
  const update = () => {
    if (area.value !== store.state.text && document.activeElement !== area) area.value = store.state.text;
  };
  return { element, update };
}

/** The tokens of the text as buttons. The selected token is the position after which a word is predicted. */
export function tokenStrip(store) {
  const element = h("div", { class: "strip", role: "group", "aria-label": "Positions in the text", onkeydown: keys });
  let buttons = [];

  function choose(position) {
    store.set({ at: position === buttons.length - 1 ? null : position, next: null }, { step: false });
    buttons[position]?.focus();
  }

  function keys(event) {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    const at = buttons.indexOf(document.activeElement);
    if (!step || !buttons[at + step]) return;
    event.preventDefault();
    choose(at + step);
  }

  /** Shows the tokens. `edited` has the ids of tokens to underline. */
  function show(tokens, position, edited = new Set()) {
    const same = buttons.length === tokens.length && buttons.every((button, i) => button.token === tokens[i].token);
    if (!same) {
      buttons = tokens.map((token, i) => {
        const classes = `token ${isPiece(token) && i > 0 ? "joined" : ""}`;
        const title = `position ${i}: ${describeToken(token)}`;
        const button = h("button", { type: "button", class: classes, title, onclick: () => choose(i) }, i > 0 ? tokenText(token) : displayText(token));
        button.token = token.token;
        return button;
      });
      element.replaceChildren(...buttons);
    }
    buttons.forEach((button, i) => {
      button.setAttribute("aria-pressed", String(i === position));
      button.classList.toggle("later", i > position);
      button.classList.toggle("edited", edited.has(button.token));
    });
  }
  return { element, show };
}

/** The API parameter for the selected position. */
export const positionRequest = ({ at }) => (at === null ? {} : { position: at });

/** A position as text. */
export const afterWord = (tokens, position) => `after "${displayText(tokens[position])}"`;
