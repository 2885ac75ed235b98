//! The control methods of the paper (Hewitt et al., ACL 2023, section 6), which change the
//! predictions of a trained Backpack through its senses: topic control, debiasing and fact edits.
//!
//! In formulas, C(w)[l] is sense l of word w, `[D]`, and E is the tied embedding, `[V, D]`.

mod debias;
mod fact_edit;
mod minimize;
mod steering;
mod texts;
mod topic;

pub use debias::{
    DebiasFit, GenderLogRatio, SenseTrial, bias, debias_edits, find_factor, gender_log_ratio, project_out,
};
pub use fact_edit::{SenseLogits, fact_edits, sense_logits};
pub use texts::{TextRequest, generate_text, mean_probabilities, perplexity, topic_words};
pub use topic::{TopicMultipliers, TopicScores, score_topics};
