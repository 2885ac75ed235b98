// The view Sentence: contextualization weights by sense and by position, next words, and contributions to a logit.

import { ApiError, latestOnly } from "./api.js";
import { choice, displayText, errorMessage, h, percent, signed, tokenButton } from "./elements.js";
import { HeatMap, thumbnail } from "./heatmap.js";
import { nameOf } from "./state.js";
import { afterWord, positionRequest, textField, tokenStrip } from "./text.js";

const NEXT = 12; // next words shown
const PARTS = 8; // contributions listed
const MAX_TOKENS_FOR_THUMBNAILS = 64; // for longer texts, only the selected sense is loaded

export function createSentence(root, store, model) {
  const api = { reading: latestOnly(), weights: latestOnly(), parts: latestOnly() };
  const field = textField(store, "sentence-text", "Text");
  const strip = tokenStrip(store);
  const failure = errorMessage();
  let reading, weights, parts;

  // Contextualization weights.
  const lens = choice("Heat map", { sense: "By sense", word: "By position" }, (to) => store.set({ lens: to }));
  const label = (position) => displayText(reading.tokens[position]);
  const bySense = new HeatMap({
    label: "Weights of one sense",
    describe: (row, column) =>
      `After "${label(row)}": sense ${store.state.sense} of "${label(column)}" has weight ${weights.get(store.state.sense)[row][column].toFixed(4)}`,
    onpick: (row) => store.set({ at: row === reading.tokens.length - 1 ? null : row, next: null }),
  });
  const byWord = new HeatMap({
    label: "Weights at one position",
    describe: (row, column) =>
      `After "${label(reading.position)}": sense ${row} of "${label(column)}" has weight ${reading.weights[row][column].toFixed(4)}`,
    onpick: (row) => store.set({ sense: row, lens: "sense" }),
  });
  const thumbnails = h("div", { class: "thumbnails", role: "group", "aria-label": "Senses" });
  const explanation = h("p", { class: "hint" });
  const context = h(
    "div",
    { class: "panel" },
    h("header", {}, h("h2", {}, "Contextualization weights"), lens.element),
    explanation,
    thumbnails,
    bySense.element,
    byWord.element,
  );

  // Next words.
  const nextTitle = h("h2", {}, "Next word");
  const candidates = h("ol", { class: "bars next" });
  const other = h("input", { type: "text", id: "other-word", autocomplete: "off", placeholder: "another word" });
  const partsTitle = h("h2", {});
  const partsSum = h("p", { class: "sum" });
  const partsMap = new HeatMap({
    label: "Contributions to a logit",
    diverging: true,
    describe: (row, column) =>
      `Sense ${row} of "${label(column)}" contributes ${signed(parts.contributions[row][column], 4)}, with weight ${parts.weights[row][column].toFixed(4)}`,
    onpick: (row, column) => store.set({ word: nameOf(reading.tokens[column]), view: "words" }, { step: true }),
  });
  const partsList = h("ol", { class: "parts" });
  const attribution = h(
    "div",
    { class: "panel", hidden: true },
    h("header", {}, partsTitle),
    partsSum,
    partsMap.element,
    partsList,
  );
  const next = h(
    "div",
    { class: "panel" },
    h("header", {}, nextTitle),
    h("p", { class: "hint" }, "Choose a word to see the contributions to its logit."),
    candidates,
    h(
      "form",
      {
        class: "row",
        onsubmit: (event) => {
          event.preventDefault();
          if (other.value.trim()) explain({ word: other.value.trim() });
        },
      },
      h("label", { for: "other-word" }, "Explain"),
      other,
      h("button", { type: "submit" }, "Explain"),
    ),
  );
  root.append(
    field.element,
    failure.element,
    strip.element,
    h("div", { class: "columns" }, context, h("div", { class: "stack" }, next, attribution)),
  );

  const keyOf = ({ text, at, next }) => JSON.stringify([text, at, next]);
  const guarded = async (work) => {
    try {
      await work();
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      failure.show(error.message);
    }
  };

  const load = () =>
    guarded(async () => {
      const { text } = store.state;
      const got = await api.reading("reading", { text, top: NEXT, ...positionRequest(store.state) });
      if (!got) return;
      const isNew = reading === undefined || got.tokens.some((token, i) => token.token !== reading.tokens[i]?.token)
        || got.tokens.length !== reading.tokens.length;
      reading = got;
      if (isNew) weights = new Map();
      failure.show();
      draw();
      await loadWeights(text);
    });

  async function loadWeights(text) {
    const { sense } = store.state;
    if (weights.has(sense)) return;
    const all = reading.tokens.length <= MAX_TOKENS_FOR_THUMBNAILS;
    const got = await api.weights("weights", all ? { text } : { text, senses: [sense] });
    if (!got) return;
    got.senses.forEach((one) => weights.set(one.sense, one.weights));
    drawThumbnails();
    draw();
  }

  const explain = (target) =>
    guarded(async () => {
      const got = await api.parts("contributions", { text: store.state.text, ...target, ...positionRequest(store.state) });
      if (!got) return;
      parts = { ...got, key: keyOf({ ...store.state, next: got.next.token }) };
      failure.show();
      if (store.state.next === got.next.token) drawParts();
      else store.set({ next: got.next.token });
    });

  function drawThumbnails() {
    const hasThumbnails = reading.tokens.length <= MAX_TOKENS_FOR_THUMBNAILS;
    const button = (sense) =>
      h(
        "button",
        { type: "button", "data-sense": sense, "aria-label": `Sense ${sense}`, onclick: () => store.set({ sense }) },
        hasThumbnails && weights.has(sense) ? thumbnail(weights.get(sense), 56) : null,
        h("span", {}, String(sense)),
      );
    thumbnails.replaceChildren(...Array.from({ length: model.num_senses }, (_, sense) => button(sense)));
  }

  function drawContext() {
    const { lens: by, sense } = store.state;
    const bySenseNow = by !== "word";
    lens.set(bySenseNow ? "sense" : "word");
    thumbnails.hidden = bySense.element.hidden = !bySenseNow;
    byWord.element.hidden = bySenseNow;
    const labels = reading.tokens.map(displayText);
    if (bySenseNow) {
      explanation.textContent = `Sense ${sense}: its weight for each word (columns) at each position (rows). Each row sums to 1.`;
      thumbnails.querySelectorAll("button").forEach((button) =>
        button.setAttribute("aria-pressed", String(Number(button.dataset.sense) === sense)));
      const rows = weights.get(sense);
      if (rows) bySense.set({ rows, rowLabels: labels, columnLabels: labels, marked: reading.position });
    } else {
      explanation.textContent = `After "${label(reading.position)}": the weight of each sense (rows) of each word up to this position (columns). Choose a row to see that sense at all positions.`;
      byWord.set({
        rows: reading.weights,
        rowLabels: reading.weights.map((_, sense) => `sense ${sense}`),
        columnLabels: labels.slice(0, reading.position + 1),
        marked: sense,
      });
    }
  }

  function drawNext() {
    nextTitle.textContent = `Next word ${afterWord(reading.tokens, reading.position)}`;
    const most = reading.next[0].probability;
    candidates.replaceChildren(
      ...reading.next.map((word) =>
        h(
          "li",
          {},
          h("span", { class: "bar", style: { width: `${(100 * word.probability) / most}%` } }),
          tokenButton(word, () => store.set({ next: word.token }), {
            note: `: logit ${word.logit.toFixed(3)}`,
            "aria-pressed": String(word.token === store.state.next),
          }),
          h("span", { class: "number" }, percent(word.probability)),
        )),
    );
  }

  function drawParts() {
    attribution.hidden = parts?.key !== keyOf(store.state);
    if (attribution.hidden) return;
    const flat = parts.contributions.flatMap((row, sense) => row.map((value, at) => ({ value, sense, at })));
    const sum = flat.reduce((total, part) => total + part.value, 0);
    partsTitle.textContent = `Contributions to "${displayText(parts.next)}"`;
    partsSum.textContent = `${parts.contributions.length} senses of ${parts.position + 1} words contribute ${sum.toFixed(4)} in total. Logit: ${parts.next.logit.toFixed(4)}. Probability: ${percent(parts.next.probability)}.`;
    partsMap.set({
      rows: parts.contributions,
      rowLabels: parts.contributions.map((_, sense) => `sense ${sense}`),
      columnLabels: parts.tokens.slice(0, parts.position + 1).map(displayText),
    });
    flat.sort((a, b) => Math.abs(b.value) - Math.abs(a.value));
    partsList.replaceChildren(
      ...flat.slice(0, PARTS).map(({ value, sense, at }) =>
        h(
          "li",
          {},
          h("span", { class: `number ${value < 0 ? "lowered" : "raised"}` }, signed(value, 3)),
          ` sense ${sense} of `,
          tokenButton(parts.tokens[at], () => store.set({ word: nameOf(parts.tokens[at]), view: "words" }, { step: true })),
          h("span", { class: "hint" }, ` weight ${parts.weights[sense][at].toFixed(3)}`),
        )),
    );
  }

  function draw() {
    strip.show(reading.tokens, reading.position);
    drawContext();
    drawNext();
    drawParts();
  }

  let loaded, explained;
  return () => {
    field.update();
    const { text, at, next: chosen } = store.state;
    const [here, target] = [JSON.stringify([text, at]), keyOf(store.state)];
    if (loaded !== here) {
      loaded = here;
      load();
    } else if (reading && weights) {
      draw();
      guarded(() => loadWeights(text));
    }
    if (chosen !== null && explained !== target && parts?.key !== target) explain({ token: chosen });
    explained = target;
  };
}
