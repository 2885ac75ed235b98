// The view Edit: sliders for the senses of a word, and their effect on the next word of a text.

import { ApiError, latestOnly } from "./api.js";
import { debounce, displayText, errorMessage, h, percent, tokenButton } from "./elements.js";
import { isEdit, nameOf, wordRequest } from "./state.js";
import { afterWord, positionRequest, textField, tokenStrip } from "./text.js";

const NEXT = 14; // next words shown with probabilities before and after
const HINTS = 5; // words shown next to a slider
const MAX_FACTOR = 3; // of a slider; the number field takes any factor
const DEBOUNCE = 40; // milliseconds after the last movement of a slider

/** Formats edits as a file for --edit. */
const editFile = (edits) => `{"edits": [\n${edits.map((edit) => `  ${JSON.stringify(edit)}`).join(",\n")}\n]}\n`;

/** Whether an edit can be made with a slider. */
const isSliderEdit = (edit) => ["scale", "zero"].includes(edit.op ?? "scale") && Number.isInteger(edit.sense);

/** The factor of such an edit. */
const scaleOf = (edit) => (edit.op === "zero" ? 0 : edit.factor);

/** The token of an edit: its word, or its id if the word is ambiguous. */
const subject = (token) => (nameOf(token).startsWith("#") ? { token: token.token } : { word: nameOf(token) });

/** Whether an edit applies to a token. */
const appliesTo = (edit, token) => edit.token === token.token || (edit.word !== undefined && ` ${edit.word.trim()}` === token.word);

export function createEdit(root, store) {
  const api = { senses: latestOnly(), next: latestOnly() };
  const failure = errorMessage();
  const field = textField(store, "edit-text", "Text");
  const strip = tokenStrip(store);
  const input = h("input", { type: "text", id: "edit-word", autocomplete: "off", spellcheck: "false", required: true });
  const form = h(
    "form",
    {
      class: "row",
      onsubmit: (event) => {
        event.preventDefault();
        store.set({ word: input.value.trim() }, { step: true });
      },
    },
    h("label", { for: "edit-word" }, "Word"),
    input,
    h("button", { type: "submit" }, "Show sliders"),
  );
  const slidersTitle = h("h2", {}, "Senses");
  const sliders = h("div", { class: "sliders" });
  const effectTitle = h("h2", {}, "Next word");
  const effect = h("p", { class: "hint", "aria-live": "polite" });
  const table = h("tbody");
  const list = h("ul", { class: "edits" });
  const json = h("textarea", { id: "edit-json", class: "json", rows: 6, spellcheck: "false", readonly: true });
  const command = h("p", { class: "hint" });
  const fileStatus = h("span", { class: "hint", role: "status" });
  const file = h("input", { type: "file", id: "edit-file", accept: "application/json,.json", onchange: open });
  root.append(
    field.element,
    failure.element,
    strip.element,
    h(
      "div",
      { class: "columns" },
      h("div", { class: "panel" }, h("header", {}, slidersTitle, form),
        h("p", { class: "hint" }, "Factor 1: unchanged. Factor 0: removed. Double-click a slider to reset it."), sliders),
      h(
        "div",
        { class: "stack" },
        h("div", { class: "panel" }, h("header", {}, effectTitle), effect,
          h("table", { class: "effect" },
            h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "word"), h("th", { scope: "col" }, "before"), h("th", { scope: "col" }, "after"))),
            table)),
        h("div", { class: "panel" }, h("header", {}, h("h2", {}, "Edits")), list,
          h("label", { for: "edit-json" }, "JSON for --edit"), json,
          h("div", { class: "row" },
            h("button", { type: "button", onclick: copy }, "Copy"),
            h("button", { type: "button", onclick: download }, "Download"),
            h("button", { type: "button", class: "quiet", onclick: () => change([]) }, "Remove all"),
            h("label", { class: "file", for: "edit-file" }, "Open a file ", file),
            fileStatus),
          command),
      ),
    ),
  );
  let senses;

  const change = (edits) => store.set({ edits });

  async function copy() {
    try {
      await navigator.clipboard.writeText(json.value);
      fileStatus.textContent = "copied";
    } catch {
      json.select();
      fileStatus.textContent = "selected: copy it with the keyboard";
    }
  }

  function download() {
    const url = URL.createObjectURL(new Blob([json.value], { type: "application/json" }));
    h("a", { href: url, download: "edits.json" }).click();
    setTimeout(() => URL.revokeObjectURL(url), 1000);
  }

  async function open() {
    try {
      const value = JSON.parse(await file.files[0].text());
      const edits = Array.isArray(value) ? value : value.edits;
      if (!Array.isArray(edits) || !edits.every(isEdit)) throw new SyntaxError();
      change(edits);
    } catch {
      failure.show(`${file.files[0].name} is not a file of edits: the file must be JSON in the format of --edit.`);
    }
    file.value = "";
  }

  /** Sets the factor of a sense of the selected word. */
  function scale(sense, factor) {
    const rest = store.state.edits.filter((edit) => !(isSliderEdit(edit) && edit.sense === sense && appliesTo(edit, senses)));
    change(factor === 1 ? rest : [...rest, { ...subject(senses), sense, op: "scale", factor }]);
  }

  const factorOf = (sense) =>
    store.state.edits
      .filter((edit) => isSliderEdit(edit) && edit.sense === sense && appliesTo(edit, senses))
      .reduce((product, edit) => product * scaleOf(edit), 1);

  /** Whether the sense has an edit of another kind. Its slider is disabled, since it would not show the real effect. */
  const isLocked = (sense) =>
    store.state.edits.some((edit) => !isSliderEdit(edit) && appliesTo(edit, senses) && (edit.sense === sense || edit.sense === "all"));

  function slider({ sense, raises }) {
    const id = `sense-${sense}`;
    const range = h("input", {
      type: "range", id, min: 0, max: MAX_FACTOR, step: 0.05,
      oninput: () => scale(sense, Number(range.value)),
      ondblclick: () => scale(sense, 1),
    });
    const number = h("input", {
      type: "number", step: 0.05, "aria-label": `factor of sense ${sense}`,
      onchange: () => Number.isFinite(number.valueAsNumber) && scale(sense, number.valueAsNumber),
    });
    const hints = raises.slice(0, HINTS).map(displayText).join(" \u00b7 ");
    const row = h("div", { class: "slider" }, h("label", { for: id }, `Sense ${sense}`), range, number,
      h("span", { class: "hint", title: "the words whose logits this sense raises most" }, hints));
    row.update = () => {
      const factor = factorOf(sense);
      if (document.activeElement !== number) number.value = factor;
      if (Number(range.value) !== factor) range.value = factor;
      row.classList.toggle("changed", factor !== 1);
      range.disabled = number.disabled = isLocked(sense);
      range.title = range.disabled ? "Another edit in the list changes this sense. Remove that edit to use the slider." : "";
    };
    return row;
  }

  async function loadSenses(word) {
    input.value = word;
    try {
      const got = await api.senses("senses", { ...wordRequest(word), top: HINTS });
      if (!got) return;
      senses = got;
      failure.show();
      slidersTitle.replaceChildren("Senses of ", h("strong", {}, displayText(got)));
      sliders.replaceChildren(...got.senses.map(slider));
      draw();
      loadNext();
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      failure.show(error.message);
    }
  }

  async function loadNext() {
    const { text, edits } = store.state;
    try {
      const got = await api.next("next", { text, edits, top: NEXT, ...positionRequest(store.state) });
      if (!got) return;
      failure.show();
      drawEffect(got, edits);
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      failure.show(error.message);
    }
  }

  function drawEffect(got, edits) {
    const isEdited = (token) => edits.some((edit) => appliesTo(edit, token));
    strip.show(got.tokens, got.position, new Set(got.tokens.filter(isEdited).map((token) => token.token)));
    effectTitle.textContent = `Next word ${afterWord(got.tokens, got.position)}`;
    const seen = got.tokens.slice(0, got.position + 1);
    if (edits.length === 0) effect.textContent = "No edits. Move a slider to add one.";
    else if (!seen.some(isEdited)) effect.textContent = "The text up to this position has no edited word: the prediction does not change.";
    else effect.textContent = `Kullback-Leibler divergence between before and after: ${got.divergence.toFixed(4)} nats.`;
    const rows = got.words.sort((a, b) => Math.max(b.before.probability, b.after.probability) - Math.max(a.before.probability, a.after.probability));
    const most = Math.max(rows[0].before.probability, rows[0].after.probability);
    const cell = (side, { probability, logit }) =>
      h("td", { title: `logit ${logit.toFixed(3)}` },
        h("span", { class: `bar ${side}`, style: { width: `${(70 * probability) / most}%` } }),
        h("span", { class: "number" }, percent(probability)));
    table.replaceChildren(
      ...rows.slice(0, NEXT).map((word) =>
        h("tr", { class: word.after.probability > word.before.probability ? "up" : word.after.probability < word.before.probability ? "down" : null },
          h("th", { scope: "row" }, tokenButton(word, () => store.set({ word: nameOf(word), view: "words" }, { step: true }))),
          cell("before", word.before),
          cell("after", word.after))));
  }

  function drawEdits() {
    const { edits } = store.state;
    const name = (edit) => edit.word ?? `#${edit.token}`;
    const what = (edit) => ((edit.op ?? "scale") === "scale" ? `\u00d7 ${edit.factor}` : edit.op);
    list.replaceChildren(
      ...edits.map((edit, i) =>
        h("li", {},
          h("button", { type: "button", class: "token", onclick: () => store.set({ word: name(edit) }, { step: true }) }, name(edit)),
          ` sense ${edit.sense} ${what(edit)} `,
          h("button", { type: "button", class: "quiet", "aria-label": `remove the edit of ${name(edit)}, sense ${edit.sense}`,
            onclick: () => change(edits.filter((_, at) => at !== i)) }, "remove"))));
    json.value = editFile(edits);
    command.replaceChildren("Use the file with: ", h("code", {}, "backpack generate --model DIR --edit edits.json --prompt TEXT"));
    fileStatus.textContent = "";
  }

  function draw() {
    if (senses) [...sliders.children].forEach((row) => row.update());
    drawEdits();
  }

  const loadNextSoon = debounce(loadNext, DEBOUNCE);
  let loadedWord, lastRequest;
  return () => {
    field.update();
    const { word, text, at, edits } = store.state;
    draw();
    const request = JSON.stringify([text, at, edits]);
    if (loadedWord !== word) loadSenses((loadedWord = word));
    else if (lastRequest !== request) loadNextSoon();
    lastRequest = request;
  };
}
