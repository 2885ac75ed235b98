// The view Word: the senses of a word as clouds or as ranked bars.

import { ApiError, latestOnly } from "./api.js";
import { placeWords } from "./cloud.js";
import { choice, describeToken, displayText, errorMessage, h, isPiece, signed, tokenButton } from "./elements.js";
import { nameOf, wordRequest } from "./state.js";

const TOP = 12; // words raised and words lowered, per sense
const IN_BARS = 8; // of these, shown as bars
const CLOUD_HEIGHT = 170; // pixels, as in style.css
const LOWERED_IN_CLOUDS = 6; // few: the raised words describe a sense better
const [MIN_SIZE, MAX_SIZE, MAX_SIZE_LOWERED] = [13, 30, 15]; // font sizes in pixels

export function createWords(root, store) {
  const request = latestOnly();
  const input = h("input", { type: "text", id: "word", autocomplete: "off", spellcheck: "false", required: true });
  const shape = choice("Display", { clouds: "Clouds", bars: "Bars" }, (show) => store.set({ show }));
  const failure = errorMessage();
  const about = h("p", { class: "about", "aria-live": "polite" });
  const cards = h("div", { class: "cards" });
  const go = (word, view = "words") => store.set({ word, view }, { step: true });
  const form = h(
    "form",
    {
      class: "row",
      onsubmit: (event) => {
        event.preventDefault();
        go(input.value.trim());
      },
    },
    h("label", { for: "word" }, "Word"),
    input,
    h("button", { type: "submit" }, "Show senses"),
    shape.element,
    h("button", { type: "button", class: "quiet", onclick: () => go(store.state.word, "edit") }, "Edit senses"),
  );
  root.append(form, failure.element, about, cards);
  let response;

  function draw() {
    shape.set(store.state.show);
    if (!response) return;
    const longest = Math.max(...response.senses.map((sense) => sense.norm));
    const pick = (token) => go(nameOf(token));
    const body = store.state.show === "bars" ? bars : cloud;
    const card = (sense) =>
      h(
        "article",
        { class: "card", "aria-label": `Sense ${sense.sense}` },
        h(
          "header",
          {},
          h("h2", {}, `Sense ${sense.sense}`),
          h("meter", { min: 0, max: longest, value: sense.norm, title: "norm of the sense vector, relative to the largest" }),
          h("span", { class: "norm" }, `norm ${sense.norm.toFixed(2)}`),
        ),
        body(sense, pick),
      );
    cards.replaceChildren(...response.senses.map(card));
    if (store.state.show === "clouds") cards.querySelectorAll(".cloud").forEach(arrange);
  }

  async function load(word) {
    input.value = word;
    root.setAttribute("aria-busy", "true");
    try {
      const got = await request("senses", { ...wordRequest(word), top: TOP });
      if (!got) return;
      response = got;
      failure.show();
      about.replaceChildren(
        h("strong", {}, displayText(got)),
        ` is token ${got.token}. Wherever the word occurs, each sense raises the logits of some next words and lowers others: `,
        h("span", { class: "raised key" }, "raised"),
        " ",
        h("span", { class: "lowered key" }, "lowered"),
      );
      draw();
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      response = undefined;
      cards.replaceChildren();
      failure.show(error.message);
      const pieces = error.pieces.map((piece) => tokenButton(piece, () => go(`#${piece.token}`)));
      about.replaceChildren(...(pieces.length ? ["Each of its tokens has senses: ", ...pieces] : []));
    }
    root.removeAttribute("aria-busy");
  }

  let loaded;
  window.addEventListener("resize", () => {
    if (!root.hidden) draw();
  });
  return () => {
    if (loaded !== store.state.word) load((loaded = store.state.word));
    else draw();
  };
}

/** A word cloud: font size by logit, raised words in the middle. `arrange` places the words when the width is known. */
function cloud(sense, pick) {
  const element = h("div", { class: "cloud" });
  element.items = [...sized(sense.raises, MAX_SIZE), ...sized(sense.lowers.slice(0, LOWERED_IN_CLOUDS), MAX_SIZE_LOWERED)];
  element.items.forEach((item) => (item.pick = () => pick(item.word)));
  return element;
}

/** Adds font sizes in pixels. The scale starts at 0.8 of the weakest logit, since logits of one side are similar. */
function sized(words, largest) {
  const strengths = words.map((word) => Math.abs(word.logit));
  const [strongest, floor] = [Math.max(...strengths), 0.8 * Math.min(...strengths)];
  const size = (word) => MIN_SIZE + ((largest - MIN_SIZE) * (Math.abs(word.logit) - floor)) / (strongest - floor || 1);
  return words.map((word) => ({ word, text: displayText(word), slanted: isPiece(word), size: size(word) }));
}

/** Places the words of a cloud. */
function arrange(element) {
  const px = (number) => `${number.toFixed(1)}px`;
  const button = ({ x, y, item: { word, text, slanted, size, pick } }) =>
    h(
      "button",
      {
        type: "button",
        class: `${word.logit < 0 ? "lowered" : "raised"} ${slanted ? "piece" : ""}`,
        title: `${describeToken(word)}: ${signed(word.logit)}`,
        style: { left: px(x), top: px(y), "font-size": px(size) },
        onclick: pick,
      },
      text,
    );
  element.replaceChildren(...placeWords(element.items, element.clientWidth, CLOUD_HEIGHT).map(button));
}

/** Ranked words as bars, raised and lowered in two columns. */
function bars(sense, pick) {
  const all = [...sense.raises, ...sense.lowers];
  const strongest = Math.max(...all.map((word) => Math.abs(word.logit)), Number.MIN_VALUE);
  const side = (label, words) =>
    h(
      "ol",
      { class: `bars ${label}`, "aria-label": `words ${label}` },
      words.slice(0, IN_BARS).map((word) =>
        h(
          "li",
          {},
          h("span", { class: "bar", style: { width: `${(100 * Math.abs(word.logit)) / strongest}%` } }),
          tokenButton(word, () => pick(word), { note: `: ${signed(word.logit)}` }),
          h("span", { class: "number" }, signed(word.logit)),
        ),
      ),
    );
  return h("div", { class: "sides" }, side("raised", sense.raises), side("lowered", sense.lowers));
}
