//! Edits of sense vectors: the word changes in every context, nothing else does. Embeddings and
//! head stay untouched.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use tch::{Device, Kind, Tensor};

use crate::config::ModelConfig;
use crate::tensor::is_finite;

/// A change of one token's senses, wherever the token occurs.
#[derive(Debug, Clone, PartialEq)]
pub struct SenseEdit {
    /// The token's id.
    pub token: i64,
    /// Which of its senses.
    pub sense: SenseChoice,
    /// What is done to each of them.
    pub op: SenseOp,
}

/// Which senses of a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SenseChoice {
    /// This one, from 0.
    One(i64),
    /// Every one.
    All,
}

/// What is done to a sense vector `[D]`.
#[derive(Debug, Clone, PartialEq)]
pub enum SenseOp {
    /// Multiplied: 0 removes it.
    Scale(f64),
    /// This vector, of length D, is added.
    Add(Vec<f32>),
    /// This vector, of length D, takes its place.
    Replace(Vec<f32>),
}

/// Names of the tensors by which an edited model says so in its folder: ids `[E]` int64, and all their senses
/// `[E, L, D]`.
pub(crate) const EDITED_TOKENS: &str = "backpack.edited_senses.tokens";
pub(crate) const EDITED_VECTORS: &str = "backpack.edited_senses.vectors";

/// The senses of edited tokens, which stand where the sense network's would.
#[derive(Debug)]
pub struct EditedSenses {
    /// Their ids.
    tokens: Vec<i64>,
    /// All their senses `[E, L, D]` fp32.
    vectors: Tensor,
    /// The row of each id of the vocabulary, `[V]` int64; -1 for those that are not edited.
    rows: Tensor,
}

impl EditedSenses {
    /// The ids of edited tokens, and all their senses `[E, L, D]` fp32.
    pub fn parts(&self) -> (&[i64], &Tensor) {
        (&self.tokens, &self.vectors)
    }

    pub(crate) fn shallow_clone(&self) -> Self {
        EditedSenses {
            tokens: self.tokens.clone(),
            vectors: self.vectors.shallow_clone(),
            rows: self.rows.shallow_clone(),
        }
    }

    fn new(tokens: Vec<i64>, vectors: &Tensor, config: &ModelConfig) -> Self {
        let mut rows = vec![-1i64; config.vocab_size as usize];
        for (row, &token) in tokens.iter().enumerate() {
            rows[token as usize] = row as i64;
        }
        let rows = Tensor::from_slice(&rows).to_device(vectors.device());
        EditedSenses { tokens, vectors: vectors.shallow_clone(), rows }
    }

    /// Takes them out of the tensors of a model's file, where they are there.
    ///
    /// # Errors
    /// Naming the tensor that is missing, of the wrong shape, or holds what no edit does.
    pub(crate) fn take(
        config: &ModelConfig,
        tensors: &mut BTreeMap<String, Tensor>,
        device: Device,
    ) -> Result<Option<Self>> {
        let (tokens, vectors) = (tensors.remove(EDITED_TOKENS), tensors.remove(EDITED_VECTORS));
        let (tokens, vectors) = match (tokens, vectors) {
            (None, None) => return Ok(None),
            (tokens, vectors) => (
                tokens.with_context(|| format!("tensor {EDITED_TOKENS} is missing"))?,
                vectors.with_context(|| format!("tensor {EDITED_VECTORS} is missing"))?,
            ),
        };
        let ids: Vec<i64> = Vec::try_from(&tokens.f_to_kind(Kind::Int64)?.f_flatten(0, -1)?)?;
        let shape = [ids.len() as i64, config.num_senses, config.n_embd];
        ensure!(
            vectors.size() == shape && vectors.is_floating_point(),
            "tensor {EDITED_VECTORS} is {:?} of {:?}, but {} edited tokens have floating-point senses of {shape:?}",
            vectors.kind(),
            vectors.size(),
            ids.len()
        );
        for &id in &ids {
            check_token(id, config)?;
        }
        let vectors = vectors.f_to_device(device)?.f_to_kind(Kind::Float)?;
        ensure!(is_finite(&vectors), "tensor {EDITED_VECTORS} holds NaN or infinity");
        Ok(Some(EditedSenses::new(ids, &vectors, config)))
    }

    /// The tensors of a model's file.
    pub(crate) fn tensors(&self) -> [(&'static str, Tensor); 2] {
        [(EDITED_TOKENS, Tensor::from_slice(&self.tokens)), (EDITED_VECTORS, self.vectors.shallow_clone())]
    }

    /// Puts them where `words [U]` are edited ones: `senses [U, L D]`.
    pub(crate) fn put(&self, words: &Tensor, senses: Tensor) -> Tensor {
        let rows = self.rows.index_select(0, words);
        let places = rows.ge(0).nonzero().squeeze_dim(1);
        if places.size()[0] == 0 {
            return senses;
        }
        let own = self.vectors.flatten(1, 2).index_select(0, &rows.index_select(0, &places));
        senses.index_copy(0, &places, &own.to_kind(senses.kind()))
    }

    /// `edits` done in their order to what `senses` gives for token ids `[E]`: `[E, L, D]` fp32. Tokens that `before`
    /// had edited stay so.
    ///
    /// # Errors
    /// When an edit names a token or a sense that the model lacks, its vector has another length, or a sense
    /// becomes infinite.
    pub(crate) fn compile(
        config: &ModelConfig,
        edits: &[SenseEdit],
        before: Option<&EditedSenses>,
        senses: impl FnOnce(&Tensor) -> Tensor,
        device: Device,
    ) -> Result<Self> {
        let mut tokens: Vec<i64> = before.map(|b| b.tokens.clone()).unwrap_or_default();
        for edit in edits {
            check(edit, config)?;
            tokens.push(edit.token);
        }
        tokens.sort_unstable();
        tokens.dedup();
        let vectors = if tokens.is_empty() {
            Tensor::zeros([0, config.num_senses, config.n_embd], (Kind::Float, device))
        } else {
            senses(&Tensor::from_slice(&tokens).to_device(device)).copy()
        };
        for SenseEdit { token, sense, op } in edits {
            let row = tokens.binary_search(token).unwrap_or_default() as i64; // it was put in above
            let mut chosen = match sense {
                SenseChoice::One(sense) => vectors.get(row).narrow(0, *sense, 1),
                SenseChoice::All => vectors.get(row),
            };
            match op {
                SenseOp::Scale(factor) => chosen *= *factor,
                SenseOp::Add(vector) => chosen += Tensor::from_slice(vector).to_device(device),
                SenseOp::Replace(vector) => chosen.copy_(&Tensor::from_slice(vector).expand_as(&chosen)),
            }
        }
        ensure!(
            is_finite(&vectors),
            "the edits together make a sense larger than a number can be: give smaller factors"
        );
        Ok(EditedSenses::new(tokens, &vectors, config))
    }
}

fn check_token(token: i64, config: &ModelConfig) -> Result<()> {
    ensure!(
        (0..config.vocab_size).contains(&token),
        "an edit names token {token}, but the model's ids are 0 to {}",
        config.vocab_size - 1
    );
    Ok(())
}

fn check(edit: &SenseEdit, config: &ModelConfig) -> Result<()> {
    let SenseEdit { token, sense, op } = edit;
    check_token(*token, config)?;
    if let SenseChoice::One(sense) = sense {
        ensure!(
            (0..config.num_senses).contains(sense),
            "an edit names sense {sense} of token {token}, but the model has senses 0 to {}",
            config.num_senses - 1
        );
    }
    match op {
        SenseOp::Scale(factor) => {
            ensure!(factor.is_finite(), "an edit of token {token} has the factor {factor}: it must be a finite number");
        }
        SenseOp::Add(vector) | SenseOp::Replace(vector) => {
            ensure!(
                vector.len() as i64 == config.n_embd,
                "an edit of token {token} has a vector of {} numbers, but the model's senses have {}",
                vector.len(),
                config.n_embd
            );
            ensure!(vector.iter().all(|x| x.is_finite()), "an edit of token {token} has a vector that is not finite");
        }
    }
    Ok(())
}
