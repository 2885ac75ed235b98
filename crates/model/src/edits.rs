//! Edits of sense vectors: the model changes in every context, nothing else does.

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use crate::backpack::Backpack;
use crate::layers::Pass;

/// Multiplies one sense of one token, wherever the token occurs.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SenseEdit {
    /// The token's id.
    pub token: i64,
    /// Which of its senses, from 0.
    pub sense: i64,
    /// What it is multiplied by: 0 removes it.
    pub factor: f64,
}

impl Backpack {
    /// `[B, T]` int64 -> `[B, T, D]` under edits; embeddings and head stay untouched.
    ///
    /// # Errors
    /// When an edit names a sense that the model lacks.
    pub fn forward_edited(&self, ids: &Tensor, edits: &[SenseEdit], pass: Pass) -> Result<Tensor> {
        let senses = self.senses(ids, pass);
        let size = senses.size();
        let factors = Tensor::ones(&size[..3], (Kind::Float, ids.device()));
        for edit in edits {
            ensure!(
                (0..size[2]).contains(&edit.sense),
                "an edit names sense {} of token {}, but the model has senses 0 to {}",
                edit.sense,
                edit.token,
                size[2] - 1
            );
            let mut of_sense = factors.select(2, edit.sense);
            let change = ids.eq(edit.token).to_kind(Kind::Float) * (edit.factor - 1.0) + 1.0;
            of_sense *= change;
        }
        let senses = senses * factors.to_kind(pass.kind).unsqueeze(-1);
        Ok(self.combine(&self.contextualization(ids, pass), &senses, pass))
    }
}
