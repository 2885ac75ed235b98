//! Edits of sense vectors. An edit changes a token in every context and nothing else: embeddings
//! and output head stay the same.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use tch::{Device, Kind, Tensor};

use crate::config::ModelConfig;
use crate::tensor::is_finite;

/// A change of senses of one token, in every context.
#[derive(Debug, Clone, PartialEq)]
pub struct SenseEdit {
    /// The id of the token.
    pub token: i64,
    /// The senses that change.
    pub sense: SenseChoice,
    /// The change of each of these senses.
    pub op: SenseOp,
}

/// A choice of senses of a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SenseChoice {
    /// One sense, numbered from 0.
    One(i64),
    /// All senses.
    All,
}

/// A change of a sense vector `[D]`.
#[derive(Debug, Clone, PartialEq)]
pub enum SenseOp {
    /// Multiplies the vector; 0 removes the sense.
    Scale(f64),
    /// Adds this vector of length D.
    Add(Vec<f32>),
    /// Replaces the vector by this vector of length D.
    Replace(Vec<f32>),
}

/// Name of the tensor that holds the ids of the edited tokens in a model file, `[E]` int64.
const EDITED_TOKENS: &str = "backpack.edited_senses.tokens";
/// Name of the tensor that holds all senses of the edited tokens in a model file, `[E, L, D]`.
const EDITED_VECTORS: &str = "backpack.edited_senses.vectors";

/// The senses of edited tokens, which replace those of the sense network.
#[derive(Debug)]
pub(crate) struct EditedSenses {
    /// The ids of the edited tokens.
    tokens: Vec<i64>,
    /// All senses of the edited tokens, `[E, L, D]` fp32.
    vectors: Tensor,
    /// The row in `vectors` of each id of the vocabulary, `[V]` int64; -1 for tokens without edits.
    rows: Tensor,
}

impl EditedSenses {
    /// The ids of the edited tokens.
    pub(crate) fn tokens(&self) -> &[i64] {
        &self.tokens
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

    /// Removes the edited senses from the tensors of a model file; `None` if it has none.
    ///
    /// # Errors
    /// Names the tensor that is missing, has the wrong shape, or holds an invalid value.
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

    /// Returns the tensors that a model file holds.
    pub(crate) fn tensors(&self) -> [(&'static str, Tensor); 2] {
        [(EDITED_TOKENS, Tensor::from_slice(&self.tokens)), (EDITED_VECTORS, self.vectors.shallow_clone())]
    }

    /// Replaces the senses of the edited tokens among tokens `[U]` in their senses `[U, L D]`.
    pub(crate) fn apply(&self, tokens: &Tensor, senses: Tensor) -> Tensor {
        let rows = self.rows.index_select(0, tokens);
        let positions = rows.ge(0).nonzero().squeeze_dim(1);
        if positions.size()[0] == 0 {
            return senses;
        }
        let edited = self.vectors.flatten(1, 2).index_select(0, &rows.index_select(0, &positions));
        senses.index_copy(0, &positions, &edited.to_kind(senses.kind()))
    }

    /// Applies `edits` in their order to the current senses, which `senses` returns as `[E, L, D]`
    /// fp32 for token ids `[E]`. Tokens that `before` contains stay edited.
    ///
    /// # Errors
    /// An edit has a token, sense or vector length that the model does not have, or a sense becomes
    /// infinite.
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
            let row = tokens.binary_search(token).unwrap_or_default() as i64; // inserted above
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
        ensure!(is_finite(&vectors), "the edits together make a sense infinite: give smaller factors");
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
