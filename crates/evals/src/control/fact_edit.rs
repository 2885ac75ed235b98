//! Fact edits: make a word predict a new word where it predicted an old one, in every context.

use anyhow::{Result, ensure};
use model::{LanguageModel, SenseChoice, SenseEdit, SenseOp};
use tch::{Kind, Tensor};

use crate::senses::inspect::{backpack_of, sense_vectors};

/// Returns the edits that make `word` predict `new` where it predicted `old`. Each sense C of the
/// word becomes
/// C' = C - (C . E[old] / |E[old]|^2) E[old] + (C . E[old] / |E[new]|^2) E[new].
///
/// # Errors
/// The model is a GPT-2, a token is outside its vocabulary, `old` and `new` are the same token, or
/// the embedding of one of them is 0.
pub fn fact_edits(model: &LanguageModel, word: i64, old: i64, new: i64) -> Result<Vec<SenseEdit>> {
    ensure!(old != new, "the old and the new word are one token: give two different words");
    let [from, to] = embeddings(model, [old, new])?;
    let senses = senses(model, word)?;
    let (from_square, to_square) = (squared_norm(&from), squared_norm(&to));
    ensure!(
        from_square > 0.0 && to_square > 0.0,
        "the embedding of the old or the new word is 0: no sense can predict it"
    );
    let old_logits = senses.matmul(&from).unsqueeze(1); // [L, 1]
    let edited = &senses - &old_logits * (from / from_square) + &old_logits * (to / to_square);
    let replace = |sense: i64| {
        let vector = Vec::try_from(edited.get(sense).to_kind(Kind::Float))?;
        Ok(SenseEdit { token: word, sense: SenseChoice::One(sense), op: SenseOp::Replace(vector) })
    };
    (0..senses.size()[0]).map(replace).collect()
}

/// The contribution of one sense of a word, with weight 1, to the logits of the old and the new
/// word.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SenseLogits {
    /// C . E[old].
    pub old: f64,
    /// C . E[new].
    pub new: f64,
}

/// Returns the contribution of each sense of `word` to the logits of `old` and `new`.
///
/// # Errors
/// The model is a GPT-2, or a token is outside its vocabulary.
pub fn sense_logits(model: &LanguageModel, word: i64, old: i64, new: i64) -> Result<Vec<SenseLogits>> {
    let [from, to] = embeddings(model, [old, new])?;
    let senses = senses(model, word)?;
    let (old, new): (Vec<f64>, Vec<f64>) = (Vec::try_from(senses.matmul(&from))?, Vec::try_from(senses.matmul(&to))?);
    Ok(old.into_iter().zip(new).map(|(old, new)| SenseLogits { old, new }).collect())
}

/// Returns the embeddings of two tokens, `[D]` each, fp64.
fn embeddings(model: &LanguageModel, ids: [i64; 2]) -> Result<[Tensor; 2]> {
    let wte = backpack_of(model)?.body().wte();
    for id in ids {
        model.check_ids(&[id])?;
    }
    Ok(ids.map(|id| wte.get(id).detach().to_kind(Kind::Double)))
}

/// Returns the senses of a word, `[L, D]` fp64.
fn senses(model: &LanguageModel, word: i64) -> Result<Tensor> {
    model.check_ids(&[word])?;
    Ok(sense_vectors(model, &[word])?.squeeze_dim(0).to_kind(Kind::Double))
}

fn squared_norm(vector: &Tensor) -> f64 {
    vector.dot(vector).double_value(&[])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::TextAnalysis;
    use crate::testing::{fixture, senses_and_embeddings};

    const WORD: i64 = 90;
    const OLD: i64 = 5;
    const NEW: i64 = 17;

    /// Compares the edit with the formula in explicit loops, and the logits with its consequences:
    /// C' . E[old] is only the part that comes from E[new], and C' . E[new] gains C . E[old].
    #[test]
    fn logit_of_the_old_word_moves_to_the_new_word() {
        let mut model = fixture("inv_scale");
        let (senses, embedding) = senses_and_embeddings(&model, &[WORD]);
        let dot = |a: &[f64], b: &[f64]| -> f64 { a.iter().zip(b).map(|(a, b)| a * b).sum() };
        let (from, to) = (&embedding[OLD as usize], &embedding[NEW as usize]);
        let before = sense_logits(&model, WORD, OLD, NEW).unwrap();
        let edits = fact_edits(&model, WORD, OLD, NEW).unwrap();
        assert_eq!(edits.len(), 4);
        for (edit, sense) in edits.iter().zip(&senses[0]) {
            let SenseOp::Replace(vector) = &edit.op else { panic!("{edit:?}") };
            for (i, got) in vector.iter().enumerate() {
                let want =
                    sense[i] - dot(sense, from) / dot(from, from) * from[i] + dot(sense, from) / dot(to, to) * to[i];
                assert!((f64::from(*got) - want).abs() < 1e-5);
            }
        }
        model.edit(&edits).unwrap();
        let after = sense_logits(&model, WORD, OLD, NEW).unwrap();
        let from_dot_to = dot(from, to);
        for (before, after) in before.iter().zip(&after) {
            assert!((after.old - before.old * from_dot_to / dot(to, to)).abs() < 1e-4);
            let want = before.new - before.old * from_dot_to / dot(from, from) + before.old;
            assert!((after.new - want).abs() < 1e-4);
        }
    }

    /// If the embeddings of the two words are orthogonal, no part of the old word remains.
    #[test]
    fn orthogonal_embeddings_leave_nothing_of_the_old_word() {
        let model = fixture("inv_scale");
        let name = "backpack.gpt2_model.wte.weight";
        let wte = model.parameters().get(name).detach().copy();
        let [from, to] = embeddings(&model, [OLD, NEW]).unwrap();
        let orthogonal = &to - &from * (to.dot(&from).double_value(&[]) / squared_norm(&from));
        wte.get(NEW).copy_(&orthogonal.to_kind(Kind::Float));
        let mut model = model.with_parameter(name, wte).unwrap();
        let before = sense_logits(&model, WORD, OLD, NEW).unwrap();
        model.edit(&fact_edits(&model, WORD, OLD, NEW).unwrap()).unwrap();
        for (before, after) in before.iter().zip(sense_logits(&model, WORD, OLD, NEW).unwrap()) {
            assert!(before.old.abs() > 1e-3 && after.old.abs() < 1e-4, "{before:?} {after:?}");
            assert!((after.new - before.new - before.old).abs() < 1e-4);
        }
    }

    #[test]
    fn texts_without_the_word_are_bit_identical() {
        let mut model = fixture("inv_scale");
        let edits = fact_edits(&model, WORD, OLD, NEW).unwrap();
        let logits = |model: &LanguageModel, ids: &[i64]| TextAnalysis::new(model, ids).unwrap().logits;
        let (with, without) = ([7, WORD, 3], [7, 12, 3]);
        let before = (logits(&model, &with), logits(&model, &without));
        let after = model.with_edits(&edits, |model| Ok((logits(model, &with), logits(model, &without)))).unwrap();
        assert_eq!(before.1, after.1);
        assert_eq!(before.0.get(0), after.0.get(0));
        assert!(before.0.get(2) != after.0.get(2));
    }

    #[test]
    fn invalid_tokens_are_errors() {
        let model = fixture("inv_scale");
        assert!(fact_edits(&model, WORD, OLD, OLD).unwrap_err().to_string().contains("are one token"));
        assert!(fact_edits(&model, 311, OLD, NEW).is_err() && fact_edits(&model, WORD, 311, NEW).is_err());
    }
}
