//! The command `verify-data`.

use std::io::{self, Write};
use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use data_prep::OpenWebTextRevision;
use evals::Tokenizer;

/// Verify token shards against their manifest
///
/// Checks the hash of every shard, every token id and all counts. Prints the most frequent tokens
/// and the beginning of each split. Recognizes OpenWebText by its counts.
///
/// Example: backpack verify-data runs/quickstart-data
#[derive(Debug, Args)]
pub(crate) struct VerifyData {
    /// Directory written by prepare-data
    #[arg(value_name = "DIR")]
    directory: PathBuf,
    /// Tokenizer file to display the most frequent tokens with; without one, ids are displayed
    #[arg(long, value_name = "FILE", default_value = Tokenizer::DEFAULT)]
    tokenizer: PathBuf,
}

impl VerifyData {
    /// Verifies the shards and prints the report.
    pub(crate) fn run(self) -> Result<()> {
        let report = data_prep::verify(&self.directory)?;
        // Without a tokenizer, ids are displayed.
        let tokenizer = Tokenizer::open(&self.tokenizer).ok();
        let manifest = &report.manifest;
        let mut out = io::stdout().lock();
        for (name, split, found) in [("train", &manifest.train, &report.train), ("val", &manifest.val, &report.val)] {
            writeln!(
                out,
                "{name:<6} {} documents, {} tokens, {} end-of-text tokens, {} shard(s)",
                split.documents,
                split.tokens,
                found.ends_of_text,
                split.shards.len()
            )?;
            let show = |id: u16| match tokenizer.as_ref().and_then(|t| t.decode(&[i64::from(id)]).ok()) {
                Some(text) => format!("{text:?}"),
                None => id.to_string(),
            };
            let frequent: Vec<String> =
                found.most_frequent.iter().map(|&(id, n)| format!("{} {n}", show(id))).collect();
            writeln!(out, "       most frequent: {}", frequent.join(", "))?;
            let sample: Vec<i64> = found.sample.iter().map(|&id| i64::from(id)).collect();
            let sample = match tokenizer.as_ref().and_then(|t| t.decode(&sample).ok()) {
                Some(text) => format!("{text:?}"),
                None => format!("{sample:?}"),
            };
            writeln!(out, "       beginning: {sample}")?;
        }
        if let Some(which) = OpenWebTextRevision::recognize(manifest) {
            let revision = match which {
                OpenWebTextRevision::First => "with the published token counts",
                OpenWebTextRevision::Later => "in the later revision (by its number of validation tokens)",
                OpenWebTextRevision::Neither => {
                    "by its number of documents, but the token counts are of neither known revision"
                }
            };
            writeln!(out, "this is OpenWebText {revision}")?;
        }
        writeln!(out, "{} agrees with its manifest", self.directory.display())?;
        Ok(())
    }
}
