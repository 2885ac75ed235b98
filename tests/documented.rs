// The commands of README.md and of the Markdown files in docs: blocks that are indented by four
// spaces or fenced as `sh`. tests/documentation.rs does not run a block after a comment with a
// reason: `<!-- not run here: needs a GPU -->`.

use std::fs;
use std::path::{Path, PathBuf};

/// A block with at least one command.
pub(crate) struct CodeBlock {
    /// Path of the file, relative to the repository root.
    pub(crate) file: PathBuf,
    /// Number of the first line, from 1.
    pub(crate) line: usize,
    /// Reason why the block is not run, if it is not.
    pub(crate) not_run: Option<String>,
    /// The commands, without indentation.
    pub(crate) text: String,
}

/// Beginnings of the first line of a block of commands, after assignments of variables.
const COMMANDS: [&str; 9] =
    ["backpack ", "target/release/backpack ", "cargo ", "scripts/", "sbatch ", "nsys ", "export ", "mkdir ", "#"];

/// README.md and the Markdown files of these directories, sorted by directory and name.
pub(crate) fn files(root: &Path, directories: &[&str]) -> Vec<PathBuf> {
    let mut files = vec![root.join("README.md")];
    for directory in directories {
        let entries = fs::read_dir(root.join(directory)).unwrap().map(|entry| entry.unwrap().path());
        let mut found: Vec<PathBuf> =
            entries.filter(|file| file.extension().is_some_and(|extension| extension == "md")).collect();
        found.sort();
        files.append(&mut found);
    }
    files
}

/// All blocks of README.md and of the Markdown files of these directories.
pub(crate) fn blocks(root: &Path, directories: &[&str]) -> Vec<CodeBlock> {
    files(root, directories).iter().flat_map(|file| blocks_of_file(file, root)).collect()
}

fn blocks_of_file(file: &Path, root: &Path) -> Vec<CodeBlock> {
    let text = fs::read_to_string(file).unwrap();
    let (mut blocks, mut not_run, mut fence): (Vec<CodeBlock>, Option<String>, Option<bool>) = (Vec::new(), None, None);
    let mut current: Option<(usize, String)> = None;
    let mut finish = |current: &mut Option<(usize, String)>, not_run: &mut Option<String>| {
        let Some((line, text)) = current.take() else { return };
        let first = text.lines().next().unwrap_or_default();
        let assignments = first
            .split(' ')
            .take_while(|word| word.contains('=') && !word.starts_with('-'))
            .map(|word| word.len() + 1)
            .sum();
        if COMMANDS.iter().any(|command| first.get(assignments..).unwrap_or_default().starts_with(command)) {
            let file = file.strip_prefix(root).unwrap().to_owned();
            blocks.push(CodeBlock { file, line, not_run: not_run.clone(), text });
        }
        *not_run = None;
    };
    for (number, line) in text.lines().enumerate() {
        let is_fence = line.starts_with("```");
        let in_block = !is_fence && fence.unwrap_or_else(|| line.starts_with("    "));
        if in_block {
            let text = if fence.is_some() { line } else { &line[4..] };
            let (_, block) = current.get_or_insert((number + 1, String::new()));
            block.push_str(text);
            block.push('\n');
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
