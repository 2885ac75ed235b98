//! Word similarity: the rank correlation of human similarity ratings with the cosines of embeddings
//! and of sense vectors.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::path::Path;

use anyhow::{Result, ensure};
use model::LanguageModel;
use serde::Serialize;
use tch::{Kind, Tensor};

use crate::scoring::input_files::find_files;
use crate::scoring::{NOT_FINITE, Scorer};
use crate::senses::inspect::sense_vectors;
use crate::tasks::spearman::spearman;
use crate::tasks::word_pairs::{list_name, read_word_pairs};
use crate::tokenizer::Tokenizer;

/// The word lists by name.
#[derive(Debug)]
pub(crate) struct WordLists(BTreeMap<String, WordList>);

/// The pairs of one list.
#[derive(Debug)]
struct WordList {
    /// The number of pairs in the list.
    pairs: u64,
    /// The pairs whose words are one token each, as tokens.
    kept: Vec<[i64; 2]>,
    /// The ratings of the kept pairs.
    ratings: Vec<f64>,
}

/// The result of a model on word similarity.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SimilarityResult {
    /// The number of distinct words in the kept pairs.
    pub tokens: u64,
    /// The correlations by name of the list.
    pub lists: BTreeMap<String, ListCorrelations>,
}

/// Spearman's correlations of the human ratings of one list with cosines of vectors. A correlation
/// is `None` if it is undefined, for example with fewer than two pairs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ListCorrelations {
    /// The number of pairs in the list.
    pub pairs: u64,
    /// The number of compared pairs, in which both words are one token with a leading space.
    pub kept: u64,
    /// The correlation with the cosine of the embeddings `wte`.
    pub embedding: Option<f64>,
    /// The correlations with cosines of senses; `None` for a GPT-2.
    #[serde(flatten)]
    pub senses: Option<SenseCorrelations>,
}

/// The correlations with different cosines of sense vectors.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SenseCorrelations {
    /// The cosine of sense l of one word and sense l of the other, for each l.
    pub by_sense: Vec<Option<f64>>,
    /// The minimum over all l of the cosine of sense l of one word and sense l of the other.
    pub min_matched: Option<f64>,
    /// The maximum over all l of the cosine of sense l of one word and sense l of the other.
    pub max_matched: Option<f64>,
    /// The minimum of the cosines of all L x L pairs of senses.
    pub min_all: Option<f64>,
    /// The maximum of the cosines of all L x L pairs of senses.
    pub max_all: Option<f64>,
}

impl WordLists {
    /// Reads the first `limit` pairs of each `.txt`, `.csv` or `.tsv` file of a directory except a
    /// README, or of one file.
    ///
    /// # Errors
    /// There is no list, or a line is malformed; the error names file and line.
    pub(crate) fn open(path: &Path, limit: usize, tokenizer: &Tokenizer) -> Result<Self> {
        let mut lists = BTreeMap::new();
        let mut files = find_files(path, &["txt", "csv", "tsv"])?;
        if path.is_dir() {
            files.retain(|file| !file.file_name().is_some_and(is_readme));
        }
        for file in &files {
            let pairs = read_word_pairs(file, limit)?;
            let mut list = WordList { pairs: pairs.len() as u64, kept: Vec::new(), ratings: Vec::new() };
            for pair in pairs {
                if let [Ok(a), Ok(b)] = pair.words.each_ref().map(|word| tokenizer.word_id(word)) {
                    list.kept.push([a, b]);
                    list.ratings.push(pair.rating);
                }
            }
            // If two files have the same list, each is named by its file.
            let name = list_name(file);
            let is_ambiguous = files.iter().filter(|other| list_name(other) == name).count() > 1;
            let file_name = file.file_name().unwrap_or_default().to_string_lossy();
            lists.insert(if is_ambiguous { file_name.into_owned() } else { name }, list);
        }
        ensure!(!lists.is_empty(), "{} has no list of word pairs", path.display());
        Ok(WordLists(lists))
    }

    /// Measures the model of `scorer`.
    ///
    /// # Errors
    /// The model's vectors are not finite, or a libtorch call fails.
    pub(crate) fn measure(&self, scorer: &mut Scorer) -> Result<SimilarityResult> {
        let total = self.0.values().map(|list| list.kept.len() as u64).sum();
        let (mut done, mut lists, mut words) = (0, BTreeMap::new(), BTreeSet::<i64>::new());
        for (name, list) in &self.0 {
            let mut cosines = vec![Vec::with_capacity(list.kept.len()); num_cosines(scorer.model)];
            for pairs in list.kept.chunks(PAIRS_PER_BATCH) {
                (scorer.progress)(done, total);
                for (series, values) in cosines.iter_mut().zip(cosines_of(scorer.model, pairs)?) {
                    let values = Vec::<f64>::try_from(&values)?;
                    ensure!(values.iter().all(|cosine| cosine.is_finite()), NOT_FINITE);
                    series.extend(values);
                }
                done += pairs.len() as u64;
            }
            words.extend(list.kept.as_flattened());
            lists.insert(name.clone(), list.correlations(&cosines));
        }
        Ok(SimilarityResult { tokens: words.len() as u64, lists })
    }
}

impl WordList {
    /// Returns the correlations of the ratings with the cosines of the kept pairs, which are in the
    /// order of [`cosines_of`].
    fn correlations(&self, cosines: &[Vec<f64>]) -> ListCorrelations {
        let mut correlations = cosines.iter().map(|cosines| spearman(cosines, &self.ratings));
        let embedding = correlations.next().flatten();
        let mut rest: Vec<Option<f64>> = correlations.collect();
        let by_sense = rest.split_off(rest.len().min(4));
        let senses = match rest[..] {
            [min_matched, max_matched, min_all, max_all] => {
                Some(SenseCorrelations { by_sense, min_matched, max_matched, min_all, max_all })
            }
            _ => None,
        };
        ListCorrelations { pairs: self.pairs, kept: self.kept.len() as u64, embedding, senses }
    }
}

fn is_readme(name: &OsStr) -> bool {
    name.to_string_lossy().to_lowercase().contains("readme")
}

/// The number of pairs that are computed at once. For the published model, the senses of 256 words
/// are 25 MB in fp64.
const PAIRS_PER_BATCH: usize = 128;

/// Returns the number of cosines per pair.
fn num_cosines(model: &LanguageModel) -> usize {
    if model.backpack().is_some() { 5 + model.config().num_senses as usize } else { 1 }
}

/// Returns the cosines of n pairs, each `[n]` fp64. The first is that of the embeddings. For a
/// Backpack follow the minimum and the maximum over matched senses, the same over all senses, and
/// the cosine of each matched sense.
fn cosines_of(model: &LanguageModel, pairs: &[[i64; 2]]) -> Result<Vec<Tensor>> {
    tch::no_grad(|| {
        let words = pairs.as_flattened();
        let ids = Tensor::f_from_slice(words)?.f_to_device(model.device())?;
        let wte = model.parameters().get(&format!("{}.wte.weight", model.config().body_prefix()));
        // Treat the embedding as a word with one sense.
        let mut cosines = vec![pair_cosines(&wte.f_index_select(0, &ids)?.f_unsqueeze(1)?)?.f_flatten(0, -1)?];
        if model.backpack().is_some() {
            let all = pair_cosines(&sense_vectors(model, words)?)?;
            let matched = all.f_diagonal(0, 1, 2)?;
            for of_pair in [&matched, &all.f_flatten(1, 2)?] {
                cosines.push(of_pair.f_amin([1i64].as_slice(), false)?);
                cosines.push(of_pair.f_amax([1i64].as_slice(), false)?);
            }
            cosines.extend(matched.f_unbind(1)?);
        }
        Ok(cosines)
    })
}

/// Returns the cosines `[n, L, L]` fp64 of n pairs of words with vectors `[2 n, L, D]`. Rows are
/// the vectors of the first word.
fn pair_cosines(vectors: &Tensor) -> Result<Tensor> {
    let vectors = vectors.f_to_kind(Kind::Double)?;
    // The cosines of a zero vector are 0.
    let norms = vectors.f_norm_scalaropt_dim(2.0, [-1i64].as_slice(), true)?.f_clamp_min(f64::MIN_POSITIVE)?;
    let size = vectors.size();
    let unit = vectors.f_div(&norms)?.f_view([-1, 2, size[1], size[2]])?;
    Ok(unit.f_select(1, 0)?.f_matmul(&unit.f_select(1, 1)?.f_transpose(1, 2)?)?)
}

#[cfg(test)]
mod tests {
    use model::Architecture;

    use super::*;
    use crate::senses::inspect::sense_cosines;
    use crate::testing;

    const LIST: &str = "cat dog 7.5\nsun moon 6\ncar Llanfairpwll 3\nking queen 8\ncar road 4\ntree stone 1.5\n";

    #[test]
    fn correlations_equal_those_of_single_pairs() {
        let (dir, tokenizer) = (tempfile::tempdir().unwrap(), testing::tokenizer());
        testing::write(dir.path(), "list.txt", LIST);
        testing::write(dir.path(), "README.txt", "Not a list.");
        let model = testing::model(Architecture::Backpack);
        let lists = WordLists::open(dir.path(), usize::MAX, &tokenizer).unwrap();
        let got = testing::with_scorer(&model, |scorer| lists.measure(scorer)).unwrap();
        assert_eq!((got.tokens, got.lists.len()), (10, 1));
        let correlations = &got.lists["list"];
        assert_eq!((correlations.pairs, correlations.kept), (6, 5));

        let kept = [("cat", "dog"), ("sun", "moon"), ("king", "queen"), ("car", "road"), ("tree", "stone")];
        let pairs = kept.map(|(a, b)| [tokenizer.word_id(a).unwrap(), tokenizer.word_id(b).unwrap()]);
        let cosines = pairs.map(|[a, b]| sense_cosines(&model, a, b).unwrap());
        let with =
            |of: &dyn Fn(&Vec<Vec<f64>>) -> f64| spearman(&cosines.each_ref().map(of), &[7.5, 6.0, 8.0, 4.0, 1.5]);
        let matched = |c: &Vec<Vec<f64>>| (0..4).map(|l| c[l][l]).collect::<Vec<f64>>();
        let min = |values: Vec<f64>| values.into_iter().fold(f64::INFINITY, f64::min);
        let max = |values: Vec<f64>| values.into_iter().fold(f64::NEG_INFINITY, f64::max);
        let want = SenseCorrelations {
            by_sense: (0..4).map(|l| with(&|c| c[l][l])).collect(),
            min_matched: with(&|c| min(matched(c))),
            max_matched: with(&|c| max(matched(c))),
            min_all: with(&|c| min(c.concat())),
            max_all: with(&|c| max(c.concat())),
        };
        assert_eq!(correlations.senses.as_ref(), Some(&want));

        let wte = model.backpack().unwrap().body().wte();
        let cosine = |[a, b]: [i64; 2]| Tensor::cosine_similarity(&wte.get(a), &wte.get(b), 0, 0.0).double_value(&[]);
        assert_eq!(correlations.embedding, spearman(&pairs.map(cosine), &[7.5, 6.0, 8.0, 4.0, 1.5]));
    }

    #[test]
    fn gpt2_has_no_sense_correlations() {
        let (dir, tokenizer) = (tempfile::tempdir().unwrap(), testing::tokenizer());
        let file = testing::write(dir.path(), "RG65.csv", LIST);
        let model = testing::model(Architecture::Gpt2);
        let measure = |limit| {
            let lists = WordLists::open(&file, limit, &tokenizer).unwrap();
            testing::with_scorer(&model, |scorer| lists.measure(scorer)).unwrap().lists["RG-65"].clone()
        };
        let all = measure(usize::MAX);
        assert!(all.embedding.is_some() && all.senses.is_none());
        assert_eq!((measure(1).kept, measure(1).embedding), (1, None));
    }

    #[test]
    fn copies_of_a_list_are_named_by_file() {
        let (dir, tokenizer) = (tempfile::tempdir().unwrap(), testing::tokenizer());
        for name in ["EN-SIMLEX-999.txt", "SimLex-999.txt", "WS353.csv"] {
            testing::write(dir.path(), name, "cat,dog,7.5\n");
        }
        let lists = WordLists::open(dir.path(), 9, &tokenizer).unwrap();
        let names: Vec<&str> = lists.0.keys().map(String::as_str).collect();
        assert_eq!(names, ["EN-SIMLEX-999.txt", "SimLex-999.txt", "WS-353"]);
    }
}
