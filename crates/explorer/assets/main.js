// The page: four views that share one state.

import { callApi } from "./api.js";
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
  // A view is created when it is first shown, and updated only while it is visible.
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
  model = await callApi("model");
  const millions = (model.parameters / 1e6).toFixed(1);
  description.textContent = `${model.name}: ${millions} million parameters, ${model.num_senses} senses per word, context of ${model.n_positions} tokens`;
  if (model.edited.length > 0) description.textContent += `, ${model.edited.length} edited words`;
  document.title = `Sense explorer: ${model.name}`;
  store.subscribe(showView);
  showView();
} catch (error) {
  description.textContent = error.message;
  description.className = "error";
}
