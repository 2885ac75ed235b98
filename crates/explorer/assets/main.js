// The page: four views of one state.

import { ask } from "./api.js";
import { createEdit } from "./edit.js";
import { createGenerate } from "./generate.js";
import { createSentence } from "./sentence.js";
import { Store } from "./state.js";
import { createWords } from "./words.js";

const create = { words: createWords, sentence: createSentence, edit: createEdit, generate: createGenerate };

const store = new Store();
const views = {};

function showView() {
  const chosen = create[store.state.view] ? store.state.view : "words";
  for (const link of document.querySelectorAll("nav a")) {
    const own = link.dataset.view;
    if (own === chosen) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
    document.getElementById(own).hidden = own !== chosen;
  }
  // A view is made when it is first looked at, and hears of changes only while it is.
  if (!views[chosen]) views[chosen] = create[chosen](document.getElementById(chosen), store, model);
  views[chosen]();
}

for (const link of document.querySelectorAll("nav a")) {
  link.addEventListener("click", (event) => {
    event.preventDefault();
    store.set({ view: link.dataset.view }, { step: true });
  });
}

let model;
const description = document.getElementById("model");
try {
  model = await ask("model");
  const millions = (model.parameters / 1e6).toFixed(1);
  description.textContent = `${model.name}: ${millions} million parameters, ${model.num_senses} senses a word, context of ${model.n_positions} tokens`;
  if (model.edited.length > 0) description.textContent += `, ${model.edited.length} words edited already`;
  document.title = `Sense explorer: ${model.name}`;
  store.hear(showView);
  showView();
} catch (error) {
  description.textContent = error.message;
  description.className = "error";
}
