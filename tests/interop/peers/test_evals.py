"""Compares `backpack eval` with the tasks of lm-evaluation-harness on the same local files, and
with scipy."""

import json
import math
import re
from pathlib import Path

import lm_eval
import numpy as np
import pytest
from conftest import ROOT
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager
from models import PUBLISHED, config_json, random_weights, write_model
from scipy.stats import spearmanr
from tokenizers import Tokenizer

TOKENIZER = Tokenizer.from_file(str(ROOT / "data/gpt2/tokenizer.json"))
TASKS = Path(lm_eval.__file__).parent / "tasks"
# A context length that is shorter than most of these texts.
SHAPE = PUBLISHED | {"n_positions": 32}
PROSE = [json.loads(line)["text"] for line in (ROOT / "data/demo.jsonl").read_text().splitlines()[:6]]

PASSAGES = [
    "The cat sat on the mat",
    "a mat",
    "mat",  # no context
    "Antidisestablishmentarianism",
    'She said "no" and he said\n\n"mat',
    "two  blanks before the  mat",
    "a blank after the mat ",
    "white space\u00a0\u2003\x1f mat",
    " leads with a blank",
    "caf\u00e9 na\u00efve \u6771\u4eac \U0001f600",
    "an end <|endoftext|> within the mat",
    *[text[:300] for text in PROSE],
    *[text[:90].rstrip() + " mat" for text in PROSE],
]
SENTENCES = {
    "quotes": [
        ("\"Who's there?\" she asked.", "\"Who's there?\" she ask."),
        ("The cats' owners sleep.", "The cats' owners sleeps."),
        ("{ 'a': [1, \"b\"] } is \\ fine.", "{ 'a': [1, \"b\"] } are \\ fine."),
        ("Caf\u00e9s are open.", "Caf\u00e9s is open."),
        ("The same sentence.", "The same sentence."),
    ],
    "agreement": [(f"The {noun}s sleep.", f"The {noun}s sleeps.") for noun in ["cat", "dog", "king", "lamp", "child"]],
    "order": [(f"A {noun} of stone fell.", f"Of stone a {noun} fell.") for noun in ["wall", "house", "bridge"]],
}


def wikitext_style(text: str) -> str:
    """Returns the text with spaces and @-@ where WikiText has them."""
    text = re.sub(r"(\d),(\d)", r"\1 @,@ \2", re.sub(r"(\w)-(\w)", r"\1 @-@ \2", text))
    return re.sub(r"\s*([.,;:!?()\[\]\"]|'s\b|')\s*", r" \1 ", text).replace("\n", " \n ")


PAGES = [
    *[f" = Page {i} = \n \n {wikitext_style(text)} \n = = Part = = \n {i} @,@ 000 \n" for i, text in enumerate(PROSE)],
    " = Brackets = \n ( one ( two ) three ) [ four ] { five } \" six \" 's ' seven ' /' 8/ 20 \u00b0 N N \n",
    " = \u6771\u4eac = \n caf\u00e9\u00a0na\u00efve\x1c\x1f ( \u2003x\x1d ) \U0001f600 @.@ \n",
    " = One = ",
]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Writes the data of each task in the format of lm-evaluation-harness."""
    folder = tmp_path_factory.mktemp("files")

    def write(name, rows):
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    write("lambada/test.jsonl", [{"text": text} for text in PASSAGES])
    # A page without text counts as well; the raw format of WikiText cannot represent one.
    write("wikitext/pages.jsonl", [{"page": page} for page in [*PAGES, ""]])
    write("wikitext/cut.jsonl", [{"page": page} for page in PAGES])
    (folder / "wikitext/own.raw").write_text(" \n" + "\n".join(PAGES), newline="\r\n")
    for paradigm, pairs in SENTENCES.items():
        rows = [{"sentence_good": good, "sentence_bad": bad, "UID": paradigm} for good, bad in pairs]
        write(f"blimp/{paradigm}.jsonl", rows)
    return folder


@pytest.fixture(scope="module")
def harness(files, tmp_path_factory):
    """Returns a function that runs the task files of the harness on local data."""
    folder = tmp_path_factory.mktemp("tasks")

    def task(name, base, split, data):
        lines = [f"include: {TASKS / base}", f"task: {name}", "tag: []", "dataset_path: json", "dataset_name: null"]
        lines += [f"dataset_kwargs: {{data_files: {{{split}: {data}}}}}", f"{split}_split: {split}"]
        if split == "test":
            lines += ["training_split: null", "validation_split: null"]
        (folder / f"{name}.yaml").write_text("\n".join(lines) + "\n")

    task("our_lambada", "lambada/lambada_openai.yaml", "test", files / "lambada/test.jsonl")
    for pages in ["pages", "cut"]:
        task(f"our_{pages}", "wikitext/wikitext.yaml", "test", files / f"wikitext/{pages}.jsonl")
    for paradigm in SENTENCES:
        task(f"our_{paradigm}", "blimp/_template_yaml", "validation", files / f"blimp/{paradigm}.jsonl")
    members = "".join(f"  - our_{paradigm}\n" for paradigm in SENTENCES)
    how = "aggregate_metric_list:\n  - {metric: acc, aggregation: mean, weight_by_size: False}\n"
    (folder / "our_blimp.yaml").write_text(f"group: our_blimp\ntask:\n{members}{how}")

    def run(exported) -> dict:
        answer = simple_evaluate(
            model="hf",
            model_args={"pretrained": str(exported), "trust_remote_code": True, "dtype": "float32"},
            tasks=["our_lambada", "our_pages", "our_cut", "our_blimp"],
            task_manager=TaskManager(include_path=str(folder), include_defaults=False),
            device="cpu",
            batch_size=8,
            bootstrap_iters=0,
        )
        return answer["results"]

    return run


def weights_of(config) -> dict:
    """Returns random weights of a model that often predicts " mat": the last bias points to its
    embedding."""
    weights = random_weights(config)
    if config["architectures"] == ["BackpackGPT2LMHeadModel"]:
        trunk, last = "backpack.gpt2_model", "backpack.sense_network.final_mlp.c_proj"
        weights[f"{last}.weight"] *= 0.1
    else:
        trunk, last = "transformer", "transformer.ln_f"
    (mat,) = TOKENIZER.encode(" mat").ids
    weights[f"{last}.bias"][: config["n_embd"]] += 12 * weights[f"{trunk}.wte.weight"][mat]
    return weights


@pytest.mark.parametrize("architecture", ["BackpackGPT2LMHeadModel", "GPT2LMHeadModel"])
def test_lambada_wikitext_and_blimp_equal_the_harness(architecture, backpack, files, harness, tmp_path):
    config = config_json(SHAPE, architecture)
    exported = backpack.export(write_model(tmp_path / "model", config, weights_of(config)), tmp_path / "exported")
    theirs = harness(exported)

    def ours(task, data):
        # One thread, as in the harness: threads that wait for each other are slow on a busy
        # machine.
        arguments = ["--task", task, "--data", data, "--threads", 1, "--json"]
        answer = json.loads(backpack("eval", "--model", exported, *arguments))
        assert math.isclose(answer["perplexity"], math.exp(answer["loss"]), rel_tol=1e-9)
        return answer

    def assert_same(answer, results, keys):
        for key, name in keys.items():
            # To four decimals; perplexities are compared as their logarithms.
            read = math.log if "perplexity" in name else float
            assert abs(read(answer[key]) - read(results[f"{name},none"])) < 5e-5, (key, answer[key], results)

    lambada = ours("lambada", files / "lambada")
    assert_same(lambada, theirs["our_lambada"], {"perplexity": "perplexity", "accuracy": "acc"})
    assert 0.1 < lambada["accuracy"] < 0.9 and lambada["passages"] == len(PASSAGES)
    assert 0 < lambada["truncated"] < len(PASSAGES)

    per = {name: name for name in ["word_perplexity", "byte_perplexity", "bits_per_byte"]}
    for data, results in [("pages.jsonl", "our_pages"), ("cut.jsonl", "our_cut"), ("own.raw", "our_cut")]:
        wikitext = ours("wikitext", files / "wikitext" / data)
        assert_same(wikitext, theirs[results], per)
        assert wikitext["tokens"] > 20 * SHAPE["n_positions"]

    blimp = ours("blimp", files / "blimp")
    assert_same(blimp, theirs["our_blimp"], {"accuracy": "acc"})
    assert 0 < blimp["accuracy"] < 1 and blimp["pairs"] == sum(map(len, SENTENCES.values()))
    for paradigm in SENTENCES:
        assert_same(blimp["paradigms"], theirs[f"our_{paradigm}"], {paradigm: "acc"})


WORDS = """cat dog sun moon king queen car road tree stone house river mountain sea child man woman book
paper fire water bread wine horse bird fish night day time year hand head war peace""".split()


def test_similarity_equals_scipy(backpack, tmp_path):
    config = config_json(PUBLISHED)
    weights = random_weights(config)
    model = write_model(tmp_path / "model", config, weights)
    generator = np.random.default_rng(1)
    pairs = [tuple(generator.choice(WORDS, 2, replace=False)) for _ in range(60)]
    # Tied ratings, a word paired with itself, a repeated pair, and words of several tokens.
    pairs += [("king", "king"), pairs[0], ("Llanfair", "cat"), ("cat", "kingfisherish")]
    ratings = generator.integers(0, 20, len(pairs)) / 2
    lists = tmp_path / "lists"
    lists.mkdir()
    lines = [f"{a}\t{b}\tN\t{rating}\t1.5" for (a, b), rating in zip(pairs, ratings)]
    (lists / "SimLex-999.txt").write_text("\r\n".join(["word1\tword2\tPOS\tSimLex999\tconc(w1)", *lines]))
    (lists / "RG65.csv").write_text("".join(f"{a};{b};{-rating}  \n" for (a, b), rating in zip(pairs, ratings)))
    answer = json.loads(backpack("eval", "--model", model, "--task", "similarity", "--data", lists, "--json"))

    ids = [[TOKENIZER.encode(f" {word}").ids for word in pair] for pair in pairs]
    kept = [i for i, (a, b) in enumerate(ids) if len(a) == len(b) == 1]
    assert len(pairs) - 2 == len(kept)
    flat = [ids[i][side][0] for i in kept for side in (0, 1)]
    senses = backpack.dump(model, flat)["senses"].double().numpy()
    unit = senses / np.linalg.norm(senses, axis=-1, keepdims=True)
    cosines = np.einsum("nld,nmd->nlm", unit[::2], unit[1::2])
    matched = np.diagonal(cosines, axis1=1, axis2=2)
    wte = weights["backpack.gpt2_model.wte.weight"].double().numpy()[flat]
    wte /= np.linalg.norm(wte, axis=-1, keepdims=True)
    gold = ratings[kept]
    for name, sign in [("SimLex-999", 1), ("RG-65", -1)]:
        ours = answer["lists"][name]
        assert (ours["pairs"], ours["kept"]) == (len(pairs), len(kept))
        for key, values in [
            ("embedding", (wte[::2] * wte[1::2]).sum(-1)),
            ("min_matched", matched.min(1)),
            ("max_matched", matched.max(1)),
            ("min_all", cosines.min((1, 2))),
            ("max_all", cosines.max((1, 2))),
        ]:
            assert abs(ours[key] - spearmanr(values, sign * gold).statistic) < 1e-4, (name, key)
        assert len(ours["by_sense"]) == PUBLISHED["num_senses"]
        for sense, correlation in enumerate(ours["by_sense"]):
            assert abs(correlation - spearmanr(matched[:, sense], sign * gold).statistic) < 1e-4, (name, sense)
