//! Documents to ids. The `tokenizers` crate is the definition; what runs is the faster
//! `bpe` wherever the tokenizer is built as GPT-2's.

pub(crate) mod bpe;
pub(crate) mod recipe;

use std::fs;
use std::path::Path;
use std::sync::Mutex;

use anyhow::{Context, Result, anyhow, ensure};
use memchr::memmem;
use rayon::prelude::*;
use serde_json::Value;
use sha2::{Digest, Sha256};
use tokenizers::Tokenizer;

use crate::hash::hex;
use crate::tokenizer::bpe::{ByteLevelBpe, MergeBuffers, TokenizerFile};
use crate::tokenizer::recipe::Recipe;

const END_OF_TEXT: &str = "<|endoftext|>";

/// What makes ids of text without its special token.
enum Engine {
    Fast(Box<ByteLevelBpe>),
    /// Any other tokenizer, at a thirtieth of the speed. Under the recipe `backpack` it
    /// recognises the special token itself.
    Definition(Box<Tokenizer>),
}

/// A tokenizer under a recipe.
pub(crate) struct Encoder {
    engine: Engine,
    recipe: Recipe,
    /// Buffers, one a thread of the pool; locked by that thread alone.
    scratch: Vec<Mutex<MergeBuffers>>,
    end_marker: memmem::Finder<'static>,
    /// Why the fast path is not taken, where it is not.
    pub slow_because: Option<String>,
    /// The id between documents.
    pub end_of_text: u32,
    /// Every id is below this.
    pub vocab_size: u32,
    /// Of the tokenizer file.
    pub sha256: String,
}

impl Encoder {
    /// Reads a `tokenizer.json`, for a pool of `threads`.
    ///
    /// # Errors
    /// When it cannot be read, lacks the end-of-text token, or has ids past uint16.
    pub(crate) fn load(path: &Path, recipe: Recipe, threads: usize) -> Result<Self> {
        let broken = || format!("the tokenizer {} is not usable", path.display());
        let bytes = fs::read(path).with_context(|| format!("the tokenizer {} cannot be read", path.display()))?;
        let file: TokenizerFile = serde_json::from_slice(&bytes).with_context(broken)?;
        let highest = file.highest_id();
        ensure!(highest <= u32::from(u16::MAX), "{}: its ids go up to {highest}, and shards hold uint16", broken());
        let end_of_text = file.id_of(END_OF_TEXT).with_context(|| format!("{}: it has no {END_OF_TEXT}", broken()))?;
        let (engine, slow_because) = match fast(&file) {
            Ok(bpe) => (Engine::Fast(Box::new(bpe)), None),
            Err(why) => {
                let mut json: Value = serde_json::from_slice(&bytes).with_context(broken)?;
                if recipe == Recipe::Nanogpt {
                    // Without the added token a literal one is ordinary text.
                    json["added_tokens"] = Value::Array(Vec::new());
                }
                // Cutting and padding are of some batch before, not of documents.
                let read = || {
                    let mut tokenizer = Tokenizer::from_bytes(json.to_string())?;
                    tokenizer.with_truncation(None)?.with_padding(None);
                    Ok(tokenizer)
                };
                let definition = read().map_err(|e: tokenizers::Error| anyhow!("{e}")).with_context(broken)?;
                (Engine::Definition(Box::new(definition)), Some(format!("{why:#}")))
            }
        };
        Ok(Encoder {
            engine,
            recipe,
            scratch: (0..threads.max(1)).map(|_| Mutex::new(MergeBuffers::new())).collect(),
            end_marker: memmem::Finder::new(END_OF_TEXT).into_owned(),
            slow_because,
            end_of_text,
            vocab_size: highest + 1,
            sha256: hex(&Sha256::digest(&bytes)),
        })
    }

    /// Appends the ids of one document, its end included.
    pub(crate) fn encode(&self, text: &str, out: &mut Vec<u16>) -> Result<()> {
        // No id is past uint16: `load` refuses such a tokenizer.
        let end = self.end_of_text as u16;
        if self.recipe == Recipe::Backpack && text.is_empty() {
            return Ok(());
        }
        match &self.engine {
            Engine::Fast(bpe) => {
                let thread = rayon::current_thread_index().unwrap_or(0) % self.scratch.len();
                let mut scratch = self.scratch[thread].lock().map_err(|_| anyhow!("a tokenising thread failed"))?;
                match self.recipe {
                    Recipe::Backpack => {
                        let mut start = 0;
                        for at in self.end_marker.find_iter(text.as_bytes()) {
                            bpe.encode(&text[start..at], &mut scratch, out);
                            out.push(end);
                            start = at + END_OF_TEXT.len();
                        }
                        bpe.encode(&text[start..], &mut scratch, out);
                    }
                    Recipe::Nanogpt => bpe.encode(text, &mut scratch, out),
                }
            }
            Engine::Definition(tokenizer) => {
                let encoding =
                    tokenizer.encode_fast(text, false).map_err(|e| anyhow!("a document cannot be tokenised: {e}"))?;
                out.extend(encoding.get_ids().iter().map(|&id| id as u16));
            }
        }
        out.push(end);
        Ok(())
    }

    /// Ids of many documents, in their order, on the current rayon pool.
    pub(crate) fn encode_all(&self, texts: &[String]) -> Result<Vec<Encoded>> {
        let encode = |texts: &[String]| -> Result<Encoded> {
            // English has a token for about 4.5 bytes.
            let text_bytes: usize = texts.iter().map(String::len).sum();
            let mut ids = Vec::with_capacity(text_bytes / 4 + texts.len());
            let mut lengths = Vec::with_capacity(texts.len());
            for text in texts {
                let before = ids.len();
                self.encode(text, &mut ids)?;
                lengths.push(u32::try_from(ids.len() - before).context("a document has more than 2^32 tokens")?);
            }
            Ok(Encoded { bytes: ids.iter().flat_map(|id| id.to_le_bytes()).collect(), lengths })
        };
        texts.par_chunks(GROUP).map(encode).collect()
    }
}

/// Documents that one thread takes at a time.
const GROUP: usize = 16;

/// Ids of some documents.
pub(crate) struct Encoded {
    /// uint16 little-endian.
    pub bytes: Vec<u8>,
    /// Tokens of each document.
    pub lengths: Vec<u32>,
}

/// The fast path, where the whole tokenizer is built as GPT-2's.
fn fast(file: &TokenizerFile) -> Result<ByteLevelBpe> {
    ensure!(
        matches!(&file.added_tokens[..], [one] if one.content == END_OF_TEXT),
        "it has other added tokens than {END_OF_TEXT}"
    );
    let one = &file.added_tokens[0];
    ensure!(!(one.single_word || one.lstrip || one.rstrip), "its {END_OF_TEXT} takes more or less than itself");
    ByteLevelBpe::new(file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::path::PathBuf;
    use std::sync::Arc;

    fn encoder(recipe: Recipe) -> Encoder {
        let encoder = Encoder::load(&tokenizer_file(), recipe, 1).unwrap();
        assert_eq!(encoder.slow_because, None);
        encoder
    }

    fn tokenizer_file() -> PathBuf {
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../data/gpt2/tokenizer.json")
    }

    fn ids(encoder: &Encoder, text: &str) -> Vec<u16> {
        let mut ids = Vec::new();
        encoder.encode(text, &mut ids).unwrap();
        ids
    }

    /// The same tokenizer by its definition: an added token that no text holds keeps it
    /// from the fast path.
    fn definition(recipe: Recipe) -> Encoder {
        let mut json: Value = serde_json::from_slice(&fs::read(tokenizer_file()).unwrap()).unwrap();
        let mut other = json["added_tokens"][0].clone();
        (other["id"], other["content"]) = (50_257.into(), "<|never|>".into());
        json["added_tokens"].as_array_mut().unwrap().push(other);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokenizer.json");
        fs::write(&path, json.to_string()).unwrap();
        let encoder = Encoder::load(&path, recipe, 1).unwrap();
        assert!(encoder.slow_because.as_ref().is_some_and(|why| why.contains("other added tokens")));
        encoder
    }

    /// python3 -c "from tokenizers import Tokenizer; t = Tokenizer.from_file('data/gpt2/tokenizer.json');
    /// print(t.encode('Hello  world<|endoftext|>it\'s').ids)"; for nanogpt with added_tokens removed.
    #[test]
    fn recipes_differ_in_the_end_of_text() {
        let text = "Hello  world<|endoftext|>it's";
        let (backpack, nanogpt) = (encoder(Recipe::Backpack), encoder(Recipe::Nanogpt));
        assert_eq!(ids(&backpack, text), [15496, 220, 995, 50256, 270, 338, 50256]);
        assert_eq!(ids(&nanogpt, text), [15496, 220, 995, 27, 91, 437, 1659, 5239, 91, 29, 270, 338, 50256]);
        assert_eq!((ids(&backpack, ""), ids(&nanogpt, "")), (vec![], vec![50256]));
        assert_eq!((backpack.vocab_size, backpack.end_of_text), (50257, 50256));
    }

    #[test]
    fn an_unusable_tokenizer_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokenizer.json");
        let error = |path: &Path| Encoder::load(path, Recipe::Backpack, 1).err().map(|e| format!("{e:#}")).unwrap();
        assert!(error(&path).contains("cannot be read"));
        fs::write(&path, "{}").unwrap();
        assert!(error(&path).contains("is not usable"));
    }

    fn require_equal(fast: &Encoder, slow: &Encoder, text: &str) {
        let (got, want) = (ids(fast, text), ids(slow, text));
        if got != want {
            let at = got.iter().zip(&want).take_while(|(a, b)| a == b).count();
            let around = |ids: &[u16]| ids[at.saturating_sub(3)..ids.len().min(at + 5)].to_vec();
            panic!(
                "{:?}... from token {at}: {:?}, expected {:?}",
                text.chars().take(40).collect::<String>(),
                around(&got),
                around(&want)
            );
        }
    }

    /// Every Unicode scalar value: alone among letters, after a space, before one, in a run,
    /// after a digit, between spaces, after an apostrophe, doubled.
    #[test]
    fn every_character_is_tokenised_as_by_the_definition() {
        let (fast, slow) = (encoder(Recipe::Nanogpt), definition(Recipe::Nanogpt));
        // All sixteen planes; the empty ones (4 to 13) by a sample, since their characters
        // are all alike.
        let sampled = |c: &char| !(0x4_0000..0xE_0000).contains(&u32::from(*c)) || u32::from(*c).is_multiple_of(251);
        let all: Vec<char> = ('\0'..=char::MAX).filter(sampled).collect();
        all.par_chunks(256).for_each(|characters| {
            let mut text = String::new();
            for c in characters {
                text.extend(format!("a{c}b {c}x{c} {c}{c}1{c} \n{c}  {c}'{c}'s.{c}!\u{20}{c}").chars());
            }
            require_equal(&fast, &slow, &text);
            for c in characters.iter().filter(|c| c.is_whitespace()) {
                require_equal(&fast, &slow, &format!("end{c}"));
                require_equal(&fast, &slow, &format!("end{c} {c}"));
            }
        });
    }

    #[test]
    fn long_runs_take_seconds_and_equal_the_definition() {
        let (fast, slow) = (encoder(Recipe::Nanogpt), definition(Recipe::Nanogpt));
        for unit in ["x", " ", "ab", "=", "\n", "1", "\u{4e2d}", "antidisestablishment"] {
            for length in [1, 2, 15, 16, 17, 63, 64, 65, 66, 300, 3_000] {
                let text = unit.repeat(length);
                require_equal(&fast, &slow, &text);
                require_equal(&fast, &slow, &format!("{text}a"));
            }
        }
        for unit in ["a", " "] {
            let start = std::time::Instant::now();
            assert!(!ids(&fast, &unit.repeat(10_000_000)).is_empty());
            assert!(start.elapsed().as_secs() < 20, "{:?}", start.elapsed());
        }
    }

    /// Text with the marker, its halves, and whatever a file may hold.
    #[test]
    fn markers_and_corpora_equal_the_definition() {
        let demo = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../data/demo.jsonl");
        let demo = fs::read_to_string(demo).unwrap();
        for recipe in [Recipe::Backpack, Recipe::Nanogpt] {
            let (fast, slow) = (encoder(recipe), definition(recipe));
            for text in [
                "",
                "<|endoftext|>",
                "a <|endoftext|><|endoftext|> b",
                "<|endoftext",
                "x<|<|endoftext|>|>",
                " <|endoftext|> ",
            ] {
                require_equal(&fast, &slow, text);
            }
            let texts: Vec<String> = demo
                .lines()
                .map(|line| serde_json::from_str::<Value>(line).unwrap()["text"].as_str().unwrap().to_owned())
                .collect();
            texts.par_iter().for_each(|text| require_equal(&fast, &slow, text));
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]
        #[test]
        fn random_strings_equal_the_definition(
            texts in proptest::collection::vec(
                prop_oneof![
                    ".{0,80}",
                    "[a-zA-Z' ]{0,200}",
                    "[ \\n\\t\u{a0}a1'.]{0,60}",
                    "([a-z]{1,12}( |'s|'ll|, |\\. |\\n\\n|[0-9]{1,5})){0,40}",
                    "[\\p{L}\\p{N}\\s]{0,60}",
                    "(<\\|endoftext\\|>|<|a| ){0,12}",
                ],
                20,
            )
        ) {
            for recipe in [Recipe::Backpack, Recipe::Nanogpt] {
                let (fast, slow) = ENCODERS.with(|e| e[recipe as usize].clone());
                for text in &texts {
                    prop_assert_eq!(ids(&fast, text), ids(&slow, text), "{:?}", text);
                }
            }
        }
    }

    thread_local! {
        /// Made once: loading takes longer than a case.
        static ENCODERS: [(Arc<Encoder>, Arc<Encoder>); 2] =
            [Recipe::Backpack, Recipe::Nanogpt].map(|r| (Arc::new(encoder(r)), Arc::new(definition(r))));
    }
}
