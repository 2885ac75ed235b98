// The senses of a word, as clouds or as ranked bars.

import { latest, Refused } from "./api.js";
import { placeWords } from "./cloud.js";
import { choice, h, isPiece, named, problem, shown, signed, tokenButton } from "./elements.js";
import { nameOf, wordQuestion } from "./state.js";

const TOP = 12; // words at either end of a sense
const IN_BARS = 8;
const CLOUD_HEIGHT = 170; // pixels, as in style.css
const LOWERED_IN_CLOUDS = 6; // a few, around those that say what the sense means
const [SMALLEST, LARGEST, LARGEST_LOWERED] = [13, 30, 15]; // pixels of a word

export function createWords(root, store) {
  const ask = latest();
  const input = h("input", { type: "text", id: "word", autocomplete: "off", spellcheck: "false", required: true });
  const shape = choice("How senses are shown", { clouds: "Clouds", bars: "Bars" }, (show) => store.set({ show }));
  const failure = problem();
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
    h("button", { type: "button", class: "quiet", onclick: () => go(store.state.word, "edit") }, "Edit its senses"),
  );
  root.append(form, failure.element, about, cards);
  let answer;

  function draw() {
    shape.set(store.state.show);
    if (!answer) return;
    const longest = Math.max(...answer.senses.map((sense) => sense.norm));
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
          h("meter", { min: 0, max: longest, value: sense.norm, title: "length of the sense vector, against the longest" }),
          h("span", { class: "norm" }, `norm ${sense.norm.toFixed(2)}`),
        ),
        body(sense, pick),
      );
    cards.replaceChildren(...answer.senses.map(card));
    if (store.state.show === "clouds") cards.querySelectorAll(".cloud").forEach(arrange);
  }

  async function load(word) {
    input.value = word;
    root.setAttribute("aria-busy", "true");
    try {
      const got = await ask("senses", { ...wordQuestion(word), top: TOP });
      if (!got) return;
      answer = got;
      failure.show();
      about.replaceChildren(
        h("strong", {}, shown(got)),
        ` is token ${got.token}. Each sense adds to the logits of the words it raises, and takes from those it lowers, `,
        "wherever the word stands before. ",
        h("span", { class: "raised key" }, "Raised"),
        " ",
        h("span", { class: "lowered key" }, "lowered"),
      );
      draw();
    } catch (error) {
      if (!(error instanceof Refused)) throw error;
      answer = undefined;
      cards.replaceChildren();
      failure.show(error.message);
      const pieces = error.pieces.map((piece) => tokenButton(piece, () => go(`#${piece.token}`)));
      about.replaceChildren(...(pieces.length ? ["Its pieces have senses of their own: ", ...pieces] : []));
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

/** Words by size, raised ones in the middle; where they go is known once the card has a width. */
function cloud(sense, pick) {
  const element = h("div", { class: "cloud" });
  element.items = [...sized(sense.raises, LARGEST), ...sized(sense.lowers.slice(0, LOWERED_IN_CLOUDS), LARGEST_LOWERED)];
  element.items.forEach((item) => (item.pick = () => pick(item.word)));
  return element;
}

/** Sizes in pixels: logits of one side are near each other, so they count from a little below the weakest. */
function sized(words, largest) {
  const strengths = words.map((word) => Math.abs(word.logit));
  const [strongest, floor] = [Math.max(...strengths), 0.8 * Math.min(...strengths)];
  const size = (word) => SMALLEST + ((largest - SMALLEST) * (Math.abs(word.logit) - floor)) / (strongest - floor || 1);
  return words.map((word) => ({ word, text: shown(word), slanted: isPiece(word), size: size(word) }));
}

function arrange(element) {
  const px = (number) => `${number.toFixed(1)}px`;
  const button = ({ x, y, item: { word, text, slanted, size, pick } }) =>
    h(
      "button",
      {
        type: "button",
        class: `${word.logit < 0 ? "lowered" : "raised"} ${slanted ? "piece" : ""}`,
        title: `${named(word)}: ${signed(word.logit)}`,
        style: { left: px(x), top: px(y), "font-size": px(size) },
        onclick: pick,
      },
      text,
    );
  element.replaceChildren(...placeWords(element.items, element.clientWidth, CLOUD_HEIGHT).map(button));
}

/** Words by rank, raised and lowered side by side. */
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
