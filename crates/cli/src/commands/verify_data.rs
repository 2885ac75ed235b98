use std::io::{self, Write};
use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use data_prep::OpenWebTextRevision;
use evals::Tokenizer;

/// Check prepared shards against their manifest
///
/// Re-hashes every shard and checks every id and the counts; shows the most frequent tokens
/// and how each split begins; knows OpenWebText's counts. Example: backpack verify-data runs/quickstart-data
#[derive(Debug, Args)]
pub(crate) struct VerifyData {
    /// A folder that prepare-data wrote
    #[arg(value_name = "DIR")]
    folder: PathBuf,
    /// The tokenizer.json that the most frequent ids are shown with
    #[arg(long, value_name = "FILE", default_value = Tokenizer::DEFAULT)]
    tokenizer: PathBuf,
}

impl VerifyData {
    pub(crate) fn run(self) -> Result<()> {
        let report = data_prep::verify(&self.folder)?;
        // Only a convenience here: ids are shown where there is none.
        let tokenizer = Tokenizer::open(&self.tokenizer).ok();
        let manifest = &report.manifest;
        let mut out = io::stdout().lock();
        for (name, split, found) in [("train", &manifest.train, &report.train), ("val", &manifest.val, &report.val)] {
            writeln!(
                out,
                "{name:<6} {} documents, {} tokens, {} ends of text, {} shard(s)",
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
            writeln!(out, "       begins: {sample}")?;
        }
        if let Some(which) = OpenWebTextRevision::recognize(manifest) {
            let verdict = match which {
                OpenWebTextRevision::First => "with the published counts of tokens",
                OpenWebTextRevision::Later => "of the later revision, by its validation tokens",
                OpenWebTextRevision::Neither => "by its documents, but its tokens are neither revision's",
            };
            writeln!(out, "this is OpenWebText {verdict}")?;
        }
        writeln!(out, "{} is what its manifest says", self.folder.display())?;
        Ok(())
    }
}
