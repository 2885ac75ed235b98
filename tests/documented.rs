// The commands of README.md and docs/*.md: blocks that are indented by four blanks or fenced as
// `sh`. Before a block that is not run by tests/documentation.rs stands a comment that says why:
// `<!-- not run here: needs a GPU -->`.

use std::fs;
use std::path::{Path, PathBuf};

/// A block with at least one command.
pub(crate) struct Block {
    /// Its file, from the project's root.
    pub(crate) file: PathBuf,
    /// The line that it begins at, from 1.
    pub(crate) line: usize,
    /// Why it is not run here.
    pub(crate) not_run: Option<String>,
    /// As it stands, without its indentation.
    pub(crate) text: String,
}

/// What the lines of a block that holds commands begin with, after variables that they set.
const COMMANDS: [&str; 9] =
    ["backpack ", "target/release/backpack ", "cargo ", "scripts/", "sbatch ", "nsys ", "export ", "mkdir ", "#"];

/// All blocks, file by file.
pub(crate) fn blocks(root: &Path) -> Vec<Block> {
    let mut files: Vec<PathBuf> = fs::read_dir(root.join("docs")).unwrap().map(|file| file.unwrap().path()).collect();
    files.retain(|file| file.extension().is_some_and(|ending| ending == "md"));
    files.sort();
    files.insert(0, root.join("README.md"));
    files.iter().flat_map(|file| of(file, root)).collect()
}

fn of(file: &Path, root: &Path) -> Vec<Block> {
    let text = fs::read_to_string(file).unwrap();
    let (mut blocks, mut not_run, mut fence): (Vec<Block>, Option<String>, Option<bool>) = (Vec::new(), None, None);
    let mut current: Option<(usize, String)> = None;
    let mut finish = |current: &mut Option<(usize, String)>, not_run: &mut Option<String>| {
        let Some((line, text)) = current.take() else { return };
        let first = text.lines().next().unwrap_or_default();
        let set = first
            .split(' ')
            .take_while(|word| word.contains('=') && !word.starts_with('-'))
            .map(|word| word.len() + 1)
            .sum();
        if COMMANDS.iter().any(|command| first.get(set..).unwrap_or_default().starts_with(command)) {
            let file = file.strip_prefix(root).unwrap().to_owned();
            blocks.push(Block { file, line, not_run: not_run.clone(), text });
        }
        *not_run = None;
    };
    for (number, line) in text.lines().enumerate() {
        let is_fence = line.starts_with("```");
        let in_block = !is_fence && fence.unwrap_or_else(|| line.starts_with("    "));
        if in_block {
            let text = if fence.is_some() { line } else { &line[4..] };
            let (_, all) = current.get_or_insert((number + 1, String::new()));
            all.push_str(text);
            all.push('\n');
            continue;
        }
        finish(&mut current, &mut not_run);
        if is_fence {
            let is_shell = ["sh", "bash"].contains(&line.trim_start_matches('`'));
            fence = if fence.is_some() { None } else { Some(is_shell) };
        }
        if let Some(reason) = line.strip_prefix("<!-- not run here: ") {
            not_run = Some(reason.trim_end_matches(" -->").to_owned());
        }
    }
    finish(&mut current, &mut not_run);
    blocks
}
