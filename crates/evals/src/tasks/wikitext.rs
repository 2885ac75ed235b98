//! WikiText (Merity et al., 2016) page by page: perplexity by word and byte of the text as it was
//! tokenised, of a model that reads it as people write it.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, anyhow, ensure};
use serde::Serialize;

use crate::scoring::Scorer;
use crate::scoring::input_files::{ends_in, read_jsonl, text, the_file};
use crate::scoring::requests::{PromptTokenizer, ScoringRequest, is_white_space};
use crate::tasks::detokenize::detokenise;

/// The pages, cut into windows of the model's context.
#[derive(Debug)]
pub(crate) struct Pages {
    windows: Vec<ScoringRequest>,
    pages: u64,
    words: u64,
    bytes: u64,
    /// Words that were replaced by `<unk>`.
    unknown: usize,
}

/// How a model does on WikiText.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct WikitextResult {
    /// Mean cross-entropy, in nats per token of the model.
    pub loss: f64,
    /// Its exponential.
    pub perplexity: f64,
    /// Exponential of the cross-entropy per word of WikiText.
    pub word_perplexity: f64,
    /// The same per byte.
    pub byte_perplexity: f64,
    /// Cross-entropy per byte, in bits.
    pub bits_per_byte: f64,
    /// Tokens of the model that were predicted.
    pub tokens: u64,
    /// Words of WikiText, as the harness counts them: two more a page than there are.
    pub words: u64,
    /// UTF-8 bytes of WikiText.
    pub bytes: u64,
    /// Pages that were read.
    pub pages: u64,
}

impl Pages {
    /// Reads the first `most` pages of a file, or of the one in a folder: `.jsonl` with `page`, or
    /// WikiText's own text with titles between equality signs.
    ///
    /// # Errors
    /// Naming the file, and the line that is not so.
    pub(crate) fn open(path: &Path, most: usize, framing: &PromptTokenizer) -> Result<Self> {
        let file = the_file(path, &["jsonl", "raw", "tokens", "txt"])?;
        let texts = if ends_in(&file, "jsonl") {
            read_jsonl(&file, most, |object| text(object, "page").map(str::to_owned))?
        } else {
            read_raw(&file, most)?
        };
        let mut pages = Pages { windows: Vec::new(), pages: texts.len() as u64, words: 0, bytes: 0, unknown: 0 };
        for text in texts {
            pages.windows.extend(framing.windows(&detokenise(&text))?);
            pages.words += words(&text);
            pages.bytes += text.len() as u64;
            pages.unknown += text.matches("<unk>").count();
        }
        ensure!(!pages.windows.is_empty(), "{} holds no text", file.display());
        Ok(pages)
    }

    /// That this is not the raw text.
    pub(crate) fn warning(&self) -> Option<String> {
        let unknown = self.unknown;
        (unknown > 0).then(|| {
            format!("{unknown} words of the text are <unk>: perplexities are comparable with those of WikiText's raw version only where it has none")
        })
    }

    /// # Errors
    /// Those of scoring.
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

/// The first `most` pages of WikiText's own text.
fn read_raw(file: &Path, most: usize) -> Result<Vec<String>> {
    let bytes = fs::read(file).with_context(|| format!("{} cannot be read", file.display()))?;
    let text = String::from_utf8(bytes)
        .map_err(|e| anyhow!("{} is not UTF-8 at byte {}", file.display(), e.utf8_error().valid_up_to()))?;
    if let Some((number, line)) = text.lines().enumerate().find(|(_, line)| !line.trim().is_empty()) {
        ensure!(
            !line.starts_with('"'),
            "{} line {} begins with a quotation mark, as in a CSV file, where WikiText begins with a title: undo the quoting first",
            file.display(),
            number + 1
        );
    }
    // As Python opens a text.
    let text = text.replace("\r\n", "\n").replace('\r', "\n");
    ensure!(
        text.split('\n').any(is_title),
        "{} has no line like \" = Title = \", with which a page of WikiText begins",
        file.display()
    );
    let mut pages = pages(&text);
    pages.truncate(most);
    Ok(pages)
}

/// Whether a line begins a page; headings within it have more equality signs.
fn is_title(line: &str) -> bool {
    let line = line.replace("= = =", "===").replace("= =", "==");
    let line = line.trim_matches(is_white_space);
    line.starts_with("= ") && line.ends_with(" =")
}

/// Pages as the dataset EleutherAI/wikitext_document_level has them: what is before the first
/// title is one where it is not blank; line ends between pages belong to none.
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

/// `len(re.split(r"\s+", page))`: the parts between runs of white space, empty ones at the ends too.
fn words(page: &str) -> u64 {
    let mut before = false;
    let runs = page.chars().map(is_white_space).filter(|&blank| {
        let begins = blank && !before;
        before = blank;
        begins
    });
    runs.count() as u64 + 1
}

#[cfg(test)]
mod tests {
    use model::Architecture;

    use super::*;
    use crate::testing;

    /// The loop of the loading script of EleutherAI/wikitext_document_level, run in Python 3.11 on these texts.
    #[test]
    fn pages_are_cut_at_titles() {
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
    fn words_are_counted_as_python_splits() {
        for (page, want) in [("", 1), (" a b\n", 4), ("a", 1), (" \n = T = \n\u{a0}x\x1cy ", 7), ("a\u{200b}b", 1)] {
            assert_eq!(words(page), want, "{page:?}");
        }
    }

    #[test]
    fn both_forms_are_the_same_pages() {
        let (folder, tokenizer, model) =
            (tempfile::tempdir().unwrap(), testing::tokenizer(), testing::model(Architecture::Backpack));
        let framing = PromptTokenizer::new(model.config(), &tokenizer).unwrap();
        let raw = " \r\n = A = \r\n It was 5 @-@ 4 , then . \r\n = B = \r\n Caf\u{e9} ( a <unk> ) is closed on most days . \r\n";
        let jsonl = r#"{"page": " = A = \n It was 5 @-@ 4 , then . "}
{"page": " = B = \n Caf\u00e9 ( a <unk> ) is closed on most days . \n"}"#;
        let open =
            |name: &str, text: &str| Pages::open(&testing::write(folder.path(), name, text), 9, &framing).unwrap();
        let (raw, jsonl) = (open("a.raw", raw), open("b.jsonl", jsonl));
        let got = testing::scored(&model, |scorer| raw.measure(scorer)).unwrap();
        assert_eq!(testing::scored(&model, |scorer| jsonl.measure(scorer)).unwrap(), got);
        assert_eq!((got.pages, got.words, got.bytes), (2, 29, 86));
        let per = |count: u64| got.loss * got.tokens as f64 / count as f64;
        assert!((got.word_perplexity.ln() - per(got.words)).abs() < 1e-9);
        assert!((got.bits_per_byte - got.byte_perplexity.log2()).abs() < 1e-9);
        assert!(raw.warning().is_some_and(|warning| warning.starts_with("1 words of the text are <unk>")));
        assert!(Pages::open(&folder.path().join("a.raw"), 1, &framing).unwrap().warning().is_none());
    }

    #[test]
    fn what_is_not_wikitext_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let error = |text: &[u8]| {
            let path = folder.path().join("x.txt");
            fs::write(&path, text).unwrap();
            format!("{:#}", read_raw(&path, 9).unwrap_err())
        };
        assert!(error(b"\n\"\"\n\" = A = \n\"\n").contains("x.txt line 2 begins with a quotation mark"));
        assert!(error(b"Once upon a time.\n").contains("has no line like \" = Title = \""));
        assert!(error(b" = A = \n\xff").contains("x.txt is not UTF-8 at byte 8"));
    }
}
