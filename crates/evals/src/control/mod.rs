//! The paper's interventions (its section 6): a trained Backpack is steered, made fairer or taught otherwise through
//! its senses, without training. C(w)[l] is sense l of word w, `[D]`; E the tied embedding, `[V, D]`.

mod debias;
pub(crate) mod fact_edit;
pub(crate) mod minimize;
mod steering;
mod texts;
mod topic;

pub use debias::{
    FitResult, GenderLogRatio, SenseTrial, bias, debias_edits, find_factor, gender_log_ratio, project_out,
};
pub use fact_edit::{SenseLogits, fact_edits, sense_logits};
pub use steering::Steering;
pub use texts::{TextRequest, generate_text, mean_probabilities, perplexity, topic_words};
pub use topic::{Multipliers, PairScores, score_pairs};

#[cfg(test)]
mod tests {
    use std::path::Path;

    use model::LanguageModel;
    use tch::{Device, Kind, Tensor};

    use crate::senses::inspect::sense_vectors;

    #[allow(clippy::unwrap_used)] // a helper of tests; clippy exempts only test functions
    pub(super) fn fixture(set: &str) -> LanguageModel {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/backpack").join(set);
        model::load_folder(&folder, Device::Cpu).unwrap()
    }

    /// C of words as `[word][sense][D]`, and E as `[id][D]`, for explicit loops.
    #[allow(clippy::unwrap_used, clippy::type_complexity)] // as above; the shape is the type
    pub(super) fn senses_and_embedding(model: &LanguageModel, words: &[i64]) -> (Vec<Vec<Vec<f64>>>, Vec<Vec<f64>>) {
        let rows = |matrix: &Tensor| -> Vec<Vec<f64>> {
            (0..matrix.size()[0]).map(|row| Vec::try_from(matrix.get(row).to_kind(Kind::Double)).unwrap()).collect()
        };
        let senses = |word: &i64| rows(&sense_vectors(model, &[*word]).unwrap().squeeze_dim(0));
        (words.iter().map(senses).collect(), rows(model.backpack().unwrap().body().wte()))
    }
}
