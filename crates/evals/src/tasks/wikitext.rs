//! WikiText (Merity et al., 2016): perplexity per word and per byte of each page. The model reads
//! the page after WikiText's tokenization has been undone; words and bytes are counted before that.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, anyhow, ensure};
use serde::Serialize;

use crate::scoring::Scorer;
use crate::scoring::input_files::{find_one_file, has_suffix, read_jsonl, text_field};
use crate::scoring::requests::{PromptTokenizer, ScoringRequest, is_white_space};
use crate::tasks::detokenize::detokenize;

/// The pages of a file, split into windows of the length of the model's context.
#[derive(Debug)]
pub(crate) struct Pages {
    windows: Vec<ScoringRequest>,
    pages: u64,
    words: u64,
    bytes: u64,
    /// The number of words that WikiText has replaced by `<unk>`.
    unknown: usize,
}

/// The result of a model on WikiText.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct WikitextResult {
    /// The mean cross-entropy, in nats per token of the model.
    pub loss: f64,
    /// The exponential of `loss`.
    pub perplexity: f64,
    /// The exponential of the cross-entropy per word of WikiText.
    pub word_perplexity: f64,
    /// The exponential of the cross-entropy per byte of WikiText.
    pub byte_perplexity: f64,
    /// The cross-entropy per byte of WikiText, in bits.
    pub bits_per_byte: f64,
    /// The number of predicted tokens of the model.
    pub tokens: u64,
    /// The number of words of WikiText as the harness counts them, which is two too many per page.
    pub words: u64,
    /// The number of UTF-8 bytes of WikiText.
    pub bytes: u64,
    /// The number of pages.
    pub pages: u64,
}

impl Pages {
    /// Reads the first `limit` pages of a file, or of the one in a directory. The file is a
    /// `.jsonl` file with the key `page`, or WikiText's own text with titles between equals signs.
    ///
    /// # Errors
    /// The file is not of these formats; the error names the file and the line.
    pub(crate) fn open(path: &Path, limit: usize, prompt_tokenizer: &PromptTokenizer) -> Result<Self> {
        let file = find_one_file(path, &["jsonl", "raw", "tokens", "txt"])?;
        let texts = if has_suffix(&file, "jsonl") {
            read_jsonl(&file, limit, |object| text_field(object, "page").map(str::to_owned))?
        } else {
            read_raw(&file, limit)?
        };
        let mut pages = Pages { windows: Vec::new(), pages: texts.len() as u64, words: 0, bytes: 0, unknown: 0 };
        for text in texts {
            pages.windows.extend(prompt_tokenizer.windows(&detokenize(&text))?);
            pages.words += words(&text);
            pages.bytes += text.len() as u64;
            pages.unknown += text.matches("<unk>").count();
        }
        ensure!(!pages.windows.is_empty(), "{} has no text", file.display());
        Ok(pages)
    }

    /// Returns a warning if the text is not the raw version.
    pub(crate) fn warning(&self) -> Option<String> {
        let unknown = self.unknown;
        (unknown > 0).then(|| {
            format!("{unknown} words of the text are <unk>: the results are not comparable with those of the raw version of WikiText")
        })
    }

    /// Measures the model of `scorer`.
    ///
    /// # Errors
    /// The model's outputs are not finite.
    pub(crate) fn measure(&self, scorer: &mut Scorer) -> Result<WikitextResult> {
        let sum: f64 = scorer.score(&self.windows)?.iter().map(|score| -score.log_probability).sum();
        let tokens: u64 = self.windows.iter().map(|window| window.targets().len() as u64).sum();
        let per = |count: u64| sum / count as f64;
        Ok(WikitextResult {
            loss: per(tokens),
            perplexity: per(tokens).exp(),
            word_perplexity: per(self.words).exp(),
            byte_perplexity: per(self.bytes).exp(),
            bits_per_byte: per(self.bytes) / std::f64::consts::LN_2,
            tokens,
            words: self.words,
            bytes: self.bytes,
            pages: self.pages,
        })
    }
}

/// Reads the first `limit` pages of WikiText's own text.
fn read_raw(file: &Path, limit: usize) -> Result<Vec<String>> {
    let bytes = fs::read(file).with_context(|| format!("{} cannot be read", file.display()))?;
    let text = String::from_utf8(bytes)
        .map_err(|e| anyhow!("{} is not UTF-8 at byte {}", file.display(), e.utf8_error().valid_up_to()))?;
    if let Some((number, line)) = text.lines().enumerate().find(|(_, line)| !line.trim().is_empty()) {
        ensure!(
            !line.starts_with('"'),
            "{} line {} starts with a quotation mark instead of a title: if this is a CSV file, remove its quoting",
            file.display(),
            number + 1
        );
    }
    // Python converts line ends like this when it opens a text file.
    let text = text.replace("\r\n", "\n").replace('\r', "\n");
    ensure!(
        text.split('\n').any(is_title),
        "{} has no line like \" = Title = \", which starts a page of WikiText",
        file.display()
    );
    let mut pages = pages(&text);
    pages.truncate(limit);
    Ok(pages)
}

/// Reports whether a line is the title of a page. Headings within a page have more equals signs.
fn is_title(line: &str) -> bool {
    let line = line.replace("= = =", "===").replace("= =", "==");
    let line = line.trim_matches(is_white_space);
    line.starts_with("= ") && line.ends_with(" =")
}

/// Splits a text into pages like the dataset EleutherAI/wikitext_document_level. Text before the
/// first title is a page unless it is blank. The line end between two pages belongs to neither.
fn pages(text: &str) -> Vec<String> {
    let lines: Vec<&str> = text.split('\n').collect();
    let mut starts: Vec<usize> = (0..lines.len()).filter(|&i| i > 0 && is_title(lines[i])).collect();
    starts.insert(0, 0);
    starts.push(lines.len());
    let mut pages: Vec<String> = starts.windows(2).map(|range| lines[range[0]..range[1]].join("\n")).collect();
    let last = pages.pop();
    pages.retain(|page| !page.chars().all(is_white_space));
    pages.extend(last);
    pages
}

/// Returns `len(re.split(r"\s+", page))`: the number of parts between runs of white space,
/// including empty parts at both ends.
fn words(page: &str) -> u64 {
    let mut previous_blank = false;
    let runs = page.chars().map(is_white_space).filter(|&blank| {
        let starts_run = blank && !previous_blank;
        previous_blank = blank;
        starts_run
    });
    runs.count() as u64 + 1
}

#[cfg(test)]
mod tests {
    use model::Architecture;

    use super::*;
    use crate::testing;

    /// The expected pages come from the loop in the loading script of
    /// EleutherAI/wikitext_document_level, run in Python 3.11 on these texts.
    #[test]
    fn pages_are_split_at_titles() {
        for (text, want) in [
            (
                " \n = A = \n \n text \n = = H = = \n more \n \n = B = \n b \n",
                &[" = A = \n \n text \n = = H = = \n more \n ", " = B = \n b \n"][..],
            ),
            ("before\n = A = \n", &["before", " = A = \n"]),
            (
                " = A = \n = B = = C = \n x = \n= = = = \n=  =\n",
                &[" = A = ", " = B = = C = \n x = \n= = = = ", "=  =\n"],
            ),
            ("\n\n = A =\n", &[" = A =\n"]),
        ] {
            assert_eq!(pages(text), want);
        }
    }

    #[test]
    fn words_are_counted_like_in_python() {
        for (page, want) in [("", 1), (" a b\n", 4), ("a", 1), (" \n = T = \n\u{a0}x\x1cy ", 7), ("a\u{200b}b", 1)] {
            assert_eq!(words(page), want, "{page:?}");
        }
    }

    #[test]
    fn both_formats_give_the_same_result() {
        let (dir, tokenizer, model) =
            (tempfile::tempdir().unwrap(), testing::tokenizer(), testing::model(Architecture::Backpack));
        let prompt_tokenizer = PromptTokenizer::new(model.config(), &tokenizer).unwrap();
        let raw = " \r\n = A = \r\n It was 5 @-@ 4 , then . \r\n = B = \r\n Caf\u{e9} ( a <unk> ) is closed on most days . \r\n";
        let jsonl = r#"{"page": " = A = \n It was 5 @-@ 4 , then . "}
{"page": " = B = \n Caf\u00e9 ( a <unk> ) is closed on most days . \n"}"#;
        let open = |name: &str, text: &str| {
            Pages::open(&testing::write(dir.path(), name, text), 9, &prompt_tokenizer).unwrap()
        };
        let (raw, jsonl) = (open("a.raw", raw), open("b.jsonl", jsonl));
        let got = testing::with_scorer(&model, |scorer| raw.measure(scorer)).unwrap();
        assert_eq!(testing::with_scorer(&model, |scorer| jsonl.measure(scorer)).unwrap(), got);
        assert_eq!((got.pages, got.words, got.bytes), (2, 29, 86));
        let per = |count: u64| got.loss * got.tokens as f64 / count as f64;
        assert!((got.word_perplexity.ln() - per(got.words)).abs() < 1e-9);
        assert!((got.bits_per_byte - got.byte_perplexity.log2()).abs() < 1e-9);
        assert!(raw.warning().is_some_and(|warning| warning.starts_with("1 words of the text are <unk>")));
        assert!(Pages::open(&dir.path().join("a.raw"), 1, &prompt_tokenizer).unwrap().warning().is_none());
    }

    #[test]
    fn other_formats_are_errors() {
        let dir = tempfile::tempdir().unwrap();
        let error = |text: &[u8]| {
            let path = dir.path().join("x.txt");
            fs::write(&path, text).unwrap();
            format!("{:#}", read_raw(&path, 9).unwrap_err())
        };
        assert!(error(b"\n\"\"\n\" = A = \n\"\n").contains("x.txt line 2 starts with a quotation mark"));
        assert!(error(b"Once upon a time.\n").contains("has no line like \" = Title = \""));
        assert!(error(b" = A = \n\xff").contains("x.txt is not UTF-8 at byte 8"));
    }
}
