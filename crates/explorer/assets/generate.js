// The text goes on, as the model is and with the edits, drawn by the same seed.

import { latest, Refused } from "./api.js";
import { h, problem, shown } from "./elements.js";
import { textField } from "./text.js";

export function createGenerate(root, store, model) {
  const sides = { original: latest(), edited: latest() };
  const field = textField(store, "generate-text", "Text to continue");
  const failure = problem();
  const number = (key, label, attributes, hint) => {
    const input = h("input", {
      type: "number", id: `generate-${key}`, ...attributes, title: hint,
      onchange: () => Number.isFinite(input.valueAsNumber) && store.set({ [key]: input.valueAsNumber }),
    });
    return { key, input, element: h("div", { class: "setting" }, h("label", { for: `generate-${key}` }, label), input) };
  };
  const numbers = [
    number("length", "New tokens", { min: 1, max: model.limits.new_tokens, step: 1 }, "how many tokens are added"),
    number("temperature", "Temperature", { min: 0.05, max: 5, step: 0.05 }, "logits are divided by it"),
    number("top_k", "Top k", { min: 1, max: model.vocab_size, step: 1 }, "only the k most probable tokens are drawn"),
    number("top_p", "Top p", { min: 0.01, max: 1, step: 0.01 }, "only the most probable tokens that together reach this probability"),
    number("seed", "Seed", { min: 0, max: Number.MAX_SAFE_INTEGER, step: 1 }, "the same seed draws the same text"),
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
      h("div", { class: "panel", id: "original" }, h("header", {}, h("h2", {}, "As the model is")), texts.original),
      h("div", { class: "panel", id: "edited" }, h("header", {}, h("h2", {}, "With the edits")), texts.edited),
    ),
    difference,
  );

  function question() {
    const { text, length, greedy: most, temperature, top_k, top_p, seed } = store.state;
    return { text, max_new_tokens: length, ...(most ? { greedy: true } : { temperature, top_k, top_p, seed }) };
  }

  async function run() {
    button.disabled = true;
    difference.textContent = "The model writes.";
    root.setAttribute("aria-busy", "true");
    const asked = question();
    const { edits } = store.state;
    try {
      const [original, edited] = await Promise.all([
        sides.original("generate", asked),
        edits.length > 0 ? sides.edited("generate", { ...asked, edits }) : null,
      ]);
      if (original !== undefined && edited !== undefined) {
        failure.show();
        show(asked.text, original, edited);
      }
    } catch (error) {
      if (!(error instanceof Refused)) throw error;
      failure.show(error.message);
      difference.textContent = "";
    }
    button.disabled = false;
    root.removeAttribute("aria-busy");
  }

  /** A token may be part of a character: only whole texts are shown, which part where their characters do. */
  function show(prompt, original, edited) {
    const other = edited?.new ?? original.new;
    const same = original.new.findIndex((token, i) => token.token !== other[i]?.token);
    const characters = Array.from(original.text);
    const others = Array.from(edited?.text ?? original.text);
    const given = Array.from(prompt).length;
    const parted = characters.findIndex((character, i) => character !== others[i]);
    const until = Math.max(given, parted < 0 ? Math.min(characters.length, others.length) : parted);
    const fill = (element, { text }) => {
      const all = Array.from(text);
      const part = (from, to) => all.slice(from, to).join("");
      element.replaceChildren(h("span", { class: "prompt" }, part(0, given)), part(given, until), h("mark", {}, part(until)));
    };
    fill(texts.original, original);
    if (edited) fill(texts.edited, edited);
    else texts.edited.replaceChildren("There are no edits: make some in the view Edit.");
    if (!edited) difference.textContent = "";
    else if (same < 0) difference.textContent = "Both texts are the same.";
    else difference.textContent = `The texts part at new token ${same + 1}: "${shown(original.new[same])}" there, "${shown(other[same])}" with the edits.`;
  }

  return () => {
    field.update();
    numbers.forEach(({ key, input }) => {
      if (document.activeElement !== input) input.value = store.state[key];
      input.disabled = store.state.greedy && key !== "length";
    });
    greedy.checked = store.state.greedy;
    const { length } = store.state.edits;
    note.textContent = length === 0 ? "No edits." : `${length} edit${length === 1 ? "" : "s"} of the view Edit. Both sides draw with the same seed.`;
  };
}
