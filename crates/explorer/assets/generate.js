// The view Generate: the same text continued without and with the edits, with the same seed.

import { ApiError, latestOnly } from "./api.js";
import { displayText, errorMessage, h } from "./elements.js";
import { textField } from "./text.js";

export function createGenerate(root, store, model) {
  const sides = { original: latestOnly(), edited: latestOnly() };
  const field = textField(store, "generate-text", "Text to continue");
  const failure = errorMessage();
  const number = (key, label, attributes, hint) => {
    const input = h("input", {
      type: "number", id: `generate-${key}`, ...attributes, title: hint,
      onchange: () => Number.isFinite(input.valueAsNumber) && store.set({ [key]: input.valueAsNumber }),
    });
    return { key, input, element: h("div", { class: "setting" }, h("label", { for: `generate-${key}` }, label), input) };
  };
  const numbers = [
    number("length", "New tokens", { min: 1, max: model.limits.new_tokens, step: 1 }, "number of tokens to generate"),
    number("temperature", "Temperature", { min: 0.05, max: 5, step: 0.05 }, "the logits are divided by this number"),
    number("top_k", "Top k", { min: 1, max: model.vocab_size, step: 1 }, "samples only from the k most probable tokens"),
    number("top_p", "Top p", { min: 0.01, max: 1, step: 0.01 }, "samples only from the most probable tokens whose total probability reaches this value"),
    number("seed", "Seed", { min: 0, max: Number.MAX_SAFE_INTEGER, step: 1 }, "the same seed generates the same text"),
  ];
  const greedy = h("input", { type: "checkbox", id: "generate-greedy", onchange: () => store.set({ greedy: greedy.checked }) });
  const button = h("button", { type: "submit", class: "main" }, "Generate");
  const form = h(
    "form",
    {
      class: "settings",
      onsubmit: (event) => {
        event.preventDefault();
        run();
      },
    },
    numbers.map(({ element }) => element),
    h("div", { class: "setting check" }, greedy, h("label", { for: "generate-greedy" }, "Greedy")),
    button,
    h("button", { type: "button", onclick: () => { store.set({ seed: store.state.seed + 1 }); run(); } }, "Next seed"),
  );
  const texts = { original: h("p", { class: "text" }), edited: h("p", { class: "text" }) };
  const note = h("p", { class: "hint" });
  const difference = h("p", { class: "hint", "aria-live": "polite" });
  root.append(
    field.element,
    failure.element,
    form,
    note,
    h(
      "div",
      { class: "columns even" },
      h("div", { class: "panel", id: "original" }, h("header", {}, h("h2", {}, "Without edits")), texts.original),
      h("div", { class: "panel", id: "edited" }, h("header", {}, h("h2", {}, "With edits")), texts.edited),
    ),
    difference,
  );

  function request() {
    const { text, length, greedy: most, temperature, top_k, top_p, seed } = store.state;
    return { text, max_new_tokens: length, ...(most ? { greedy: true } : { temperature, top_k, top_p, seed }) };
  }

  async function run() {
    button.disabled = true;
    difference.textContent = "Generating...";
    root.setAttribute("aria-busy", "true");
    const body = request();
    const { edits } = store.state;
    try {
      const [original, edited] = await Promise.all([
        sides.original("generate", body),
        edits.length > 0 ? sides.edited("generate", { ...body, edits }) : null,
      ]);
      if (original !== undefined && edited !== undefined) {
        failure.show();
        show(body.text, original, edited);
      }
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      failure.show(error.message);
      difference.textContent = "";
    }
    button.disabled = false;
    root.removeAttribute("aria-busy");
  }

  /** Shows both texts and marks where they differ. They are compared by character: a token can be part of a character. */
  function show(prompt, original, edited) {
    const other = edited?.new ?? original.new;
    const same = original.new.findIndex((token, i) => token.token !== other[i]?.token);
    const characters = Array.from(original.text);
    const otherCharacters = Array.from(edited?.text ?? original.text);
    const promptLength = Array.from(prompt).length;
    const firstDifference = characters.findIndex((character, i) => character !== otherCharacters[i]);
    const end = Math.min(characters.length, otherCharacters.length);
    const until = Math.max(promptLength, firstDifference < 0 ? end : firstDifference);
    const fill = (element, { text }) => {
      const all = Array.from(text);
      const part = (from, to) => all.slice(from, to).join("");
      element.replaceChildren(h("span", { class: "prompt" }, part(0, promptLength)), part(promptLength, until), h("mark", {}, part(until)));
    };
    fill(texts.original, original);
    if (edited) fill(texts.edited, edited);
    else texts.edited.replaceChildren("No edits. Add edits in the view Edit.");
    if (!edited) difference.textContent = "";
    else if (same < 0) difference.textContent = "Both texts are identical.";
    else difference.textContent = `First difference at new token ${same + 1}: "${displayText(original.new[same])}" without edits, "${displayText(other[same])}" with edits.`;
  }

  return () => {
    field.update();
    numbers.forEach(({ key, input }) => {
      if (document.activeElement !== input) input.value = store.state[key];
      input.disabled = store.state.greedy && key !== "length";
    });
    greedy.checked = store.state.greedy;
    const { length } = store.state.edits;
    note.textContent = length === 0 ? "No edits." : `${length} edit${length === 1 ? "" : "s"} from the view Edit. Both texts use the same seed.`;
  };
}
