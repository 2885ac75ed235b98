//! Word similarity: whether words that people find alike have vectors that point alike, sense
//! by sense.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::path::Path;

use anyhow::{Result, ensure};
use model::LanguageModel;
use serde::Serialize;
use tch::{Kind, Tensor};

use crate::scoring::input_files::files;
use crate::scoring::{NO_NUMBERS, Scorer};
use crate::senses::inspect::sense_vectors;
use crate::tasks::spearman::spearman;
use crate::tasks::word_pairs::{list_name, read_word_pairs};
use crate::tokenizer::Tokenizer;

/// The lists, their words as tokens.
#[derive(Debug)]
pub(crate) struct WordLists(BTreeMap<String, WordList>);

/// Pairs of one list.
#[derive(Debug)]
struct WordList {
    /// All that were read.
    pairs: u64,
    /// Tokens of those whose words are one token each, and their ratings.
    kept: Vec<[i64; 2]>,
    ratings: Vec<f64>,
}

/// How a model's vectors agree with people.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SimilarityResult {
    /// Distinct words that were compared, a token each.
    pub tokens: u64,
    /// By list.
    pub lists: BTreeMap<String, ListCorrelations>,
}

/// Spearman's correlations of people's ratings with cosines of vectors; none where it is undefined,
/// of fewer than two pairs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ListCorrelations {
    /// Pairs in the list.
    pub pairs: u64,
    /// Those that were compared: both words are one token after a blank.
    pub kept: u64,
    /// Of the embeddings `wte`.
    pub embedding: Option<f64>,
    /// Of the senses; a GPT-2 has none.
    #[serde(flatten)]
    pub senses: Option<SenseCorrelations>,
}

/// Correlations with cosines of sense vectors.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SenseCorrelations {
    /// Sense l of one word with sense l of the other.
    pub by_sense: Vec<Option<f64>>,
    /// The least of these L cosines.
    pub min_matched: Option<f64>,
    /// The greatest of them.
    pub max_matched: Option<f64>,
    /// The least cosine of any sense of one word with any of the other, L x L of them.
    pub min_all: Option<f64>,
    /// The greatest of them.
    pub max_all: Option<f64>,
}

impl WordLists {
    /// Reads the first `most` pairs of each `.txt`, `.csv` or `.tsv` file of a folder, or of one file; a
    /// README is none.
    ///
    /// # Errors
    /// Naming the file and the line that is not two words and a rating.
    pub(crate) fn open(path: &Path, most: usize, tokenizer: &Tokenizer) -> Result<Self> {
        let mut lists = BTreeMap::new();
        let mut files = files(path, &["txt", "csv", "tsv"])?;
        if path.is_dir() {
            files.retain(|file| !file.file_name().is_some_and(is_readme));
        }
        for file in &files {
            let pairs = read_word_pairs(file, most)?;
            let mut list = WordList { pairs: pairs.len() as u64, kept: Vec::new(), ratings: Vec::new() };
            for pair in pairs {
                if let [Ok(a), Ok(b)] = pair.words.each_ref().map(|word| tokenizer.word_id(word)) {
                    list.kept.push([a, b]);
                    list.ratings.push(pair.rating);
                }
            }
            // Of the same list from two publishers each goes by its file.
            let name = list_name(file);
            let is_one_of_several = files.iter().filter(|other| list_name(other) == name).count() > 1;
            let file_name = file.file_name().unwrap_or_default().to_string_lossy();
            lists.insert(if is_one_of_several { file_name.into_owned() } else { name }, list);
        }
        ensure!(!lists.is_empty(), "{} holds no list of word pairs", path.display());
        Ok(WordLists(lists))
    }

    /// # Errors
    /// When libtorch refuses.
    pub(crate) fn measure(&self, scorer: &mut Scorer) -> Result<SimilarityResult> {
        let all = self.0.values().map(|list| list.kept.len() as u64).sum();
        let (mut done, mut lists, mut words) = (0, BTreeMap::new(), BTreeSet::<i64>::new());
        for (name, list) in &self.0 {
            let mut cosines = vec![Vec::with_capacity(list.kept.len()); num_cosines(scorer.model)];
            for pairs in list.kept.chunks(PAIRS) {
                (scorer.progress)(done, all);
                for (kind, values) in cosines.iter_mut().zip(cosines_of(scorer.model, pairs)?) {
                    let values = Vec::<f64>::try_from(&values)?;
                    ensure!(values.iter().all(|cosine| cosine.is_finite()), NO_NUMBERS);
                    kind.extend(values);
                }
                done += pairs.len() as u64;
            }
            words.extend(list.kept.as_flattened());
            lists.insert(name.clone(), list.agreement(&cosines));
        }
        Ok(SimilarityResult { tokens: words.len() as u64, lists })
    }
}

impl WordList {
    /// With the cosines of the kept pairs, in the order of [`cosines_of`].
    fn agreement(&self, cosines: &[Vec<f64>]) -> ListCorrelations {
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

/// Pairs whose vectors exist at once: the senses of 256 words of the published model are 25 MB in fp64.
const PAIRS: usize = 128;

/// How many cosines a pair has.
fn num_cosines(model: &LanguageModel) -> usize {
    if model.backpack().is_some() { 5 + model.config().num_senses as usize } else { 1 }
}

/// Cosines of n pairs, each `[n]` fp64: of the embeddings; of a Backpack the least and greatest of the matched
/// senses, of all, and those of each matched sense.
fn cosines_of(model: &LanguageModel, pairs: &[[i64; 2]]) -> Result<Vec<Tensor>> {
    tch::no_grad(|| {
        let words = pairs.as_flattened();
        let ids = Tensor::f_from_slice(words)?.f_to_device(model.device())?;
        let wte = model.parameters().get(&format!("{}.wte.weight", model.config().body_prefix()));
        // An embedding is a word with one vector.
        let mut cosines = vec![between(&wte.f_index_select(0, &ids)?.f_unsqueeze(1)?)?.f_flatten(0, -1)?];
        if model.backpack().is_some() {
            let all = between(&sense_vectors(model, words)?)?;
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

/// Vectors `[2 n, L, D]` of n pairs of words -> cosines `[n, L, L]` fp64, of the first word's with the second's.
fn between(vectors: &Tensor) -> Result<Tensor> {
    let vectors = vectors.f_to_kind(Kind::Double)?;
    // A vector of zeros points nowhere: its cosines are 0.
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
    fn correlations_are_those_of_the_cosines_of_each_pair() {
        let (folder, tokenizer) = (tempfile::tempdir().unwrap(), testing::tokenizer());
        testing::write(folder.path(), "list.txt", LIST);
        testing::write(folder.path(), "README.txt", "No list.");
        let model = testing::model(Architecture::Backpack);
        let lists = WordLists::open(folder.path(), usize::MAX, &tokenizer).unwrap();
        let got = testing::scored(&model, |scorer| lists.measure(scorer)).unwrap();
        assert_eq!((got.tokens, got.lists.len()), (10, 1));
        let agreement = &got.lists["list"];
        assert_eq!((agreement.pairs, agreement.kept), (6, 5));

        let kept = [("cat", "dog"), ("sun", "moon"), ("king", "queen"), ("car", "road"), ("tree", "stone")];
        let pairs = kept.map(|(a, b)| [tokenizer.word_id(a).unwrap(), tokenizer.word_id(b).unwrap()]);
        let cosines = pairs.map(|[a, b]| sense_cosines(&model, a, b).unwrap());
        let with =
            |of: &dyn Fn(&Vec<Vec<f64>>) -> f64| spearman(&cosines.each_ref().map(of), &[7.5, 6.0, 8.0, 4.0, 1.5]);
        let matched = |c: &Vec<Vec<f64>>| (0..4).map(|l| c[l][l]).collect::<Vec<f64>>();
        let least = |values: Vec<f64>| values.into_iter().fold(f64::INFINITY, f64::min);
        let most = |values: Vec<f64>| values.into_iter().fold(f64::NEG_INFINITY, f64::max);
        let want = SenseCorrelations {
            by_sense: (0..4).map(|l| with(&|c| c[l][l])).collect(),
            min_matched: with(&|c| least(matched(c))),
            max_matched: with(&|c| most(matched(c))),
            min_all: with(&|c| least(c.concat())),
            max_all: with(&|c| most(c.concat())),
        };
        assert_eq!(agreement.senses.as_ref(), Some(&want));

        let wte = model.backpack().unwrap().body().wte();
        let cosine = |[a, b]: [i64; 2]| Tensor::cosine_similarity(&wte.get(a), &wte.get(b), 0, 0.0).double_value(&[]);
        assert_eq!(agreement.embedding, spearman(&pairs.map(cosine), &[7.5, 6.0, 8.0, 4.0, 1.5]));
    }

    #[test]
    fn a_gpt2_has_embeddings_alone_and_one_pair_no_correlation() {
        let (folder, tokenizer) = (tempfile::tempdir().unwrap(), testing::tokenizer());
        let file = testing::write(folder.path(), "RG65.csv", LIST);
        let model = testing::model(Architecture::Gpt2);
        let measure = |most| {
            let lists = WordLists::open(&file, most, &tokenizer).unwrap();
            testing::scored(&model, |scorer| lists.measure(scorer)).unwrap().lists["RG-65"].clone()
        };
        let all = measure(usize::MAX);
        assert!(all.embedding.is_some() && all.senses.is_none());
        assert_eq!((measure(1).kept, measure(1).embedding), (1, None));
    }

    #[test]
    fn one_list_from_two_publishers_is_two() {
        let (folder, tokenizer) = (tempfile::tempdir().unwrap(), testing::tokenizer());
        for name in ["EN-SIMLEX-999.txt", "SimLex-999.txt", "WS353.csv"] {
            testing::write(folder.path(), name, "cat,dog,7.5\n");
        }
        let lists = WordLists::open(folder.path(), 9, &tokenizer).unwrap();
        let names: Vec<&str> = lists.0.keys().map(String::as_str).collect();
        assert_eq!(names, ["EN-SIMLEX-999.txt", "SimLex-999.txt", "WS-353"]);
    }
}
