//! The hidden folder beside the output's final place, which it takes in one move when all
//! is done: held by one process, and taken up again by the next.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use crate::prepare::journal::{self, Commit};
use crate::prepare::spool::{self, BAD_FILE};
use crate::shards::manifest::{MANIFEST_FILE, Manifest};
use crate::sources::SourceFile;
use crate::tokenizer::recipe::Recipe;

/// All that decides what comes out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct PrepareSpec {
    pub settings: PrepareSettings,
    /// In order.
    pub files: Vec<SourceFile>,
}

/// The arguments that decide what comes out, the inputs aside.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct PrepareSettings {
    pub recipe: Recipe,
    pub tokenizer_sha256: String,
    pub text_column: String,
    pub val_fraction: f64,
    pub split_seed: u64,
    pub shard_tokens: u64,
    pub skip_bad_documents: bool,
}

impl PrepareSettings {
    /// The first setting that differs, in words.
    pub(crate) fn difference(&self, other: &PrepareSettings) -> Result<Option<String>> {
        let (ours, theirs) = (serde_json::to_value(self)?, serde_json::to_value(other)?);
        let differing = ours.as_object().into_iter().flatten().find(|(key, value)| theirs.get(key) != Some(value));
        Ok(differing.map(|(key, value)| format!("{key} is {value} now and was {}", theirs[key])))
    }
}

pub(crate) const COMMITS_FILE: &str = "commits.jsonl";
pub(crate) const SHARDS_FILE: &str = "shards.jsonl";
const PLAN_FILE: &str = "plan.json";

/// The folder.
pub(crate) struct StagingDir {
    pub folder: PathBuf,
    output: PathBuf,
    /// On the folder itself; the kernel drops it with the process.
    _lock: File,
}

impl StagingDir {
    /// Makes or takes up the folder of an output that is not there yet.
    ///
    /// # Errors
    /// When another process holds it, or it cannot be made.
    pub(crate) fn open(output: &Path) -> Result<Self> {
        let cannot = || format!("the output folder {} cannot be made", output.display());
        let name = output
            .file_name()
            .with_context(|| format!("the output {} has no name of its own: name a new folder", output.display()))?;
        let folder = output.with_file_name(format!(".{}.partial", name.to_string_lossy()));
        fs::create_dir_all(&folder).with_context(cannot)?;
        let lock = File::open(&folder).with_context(cannot)?;
        match lock.try_lock() {
            Ok(()) => Ok(StagingDir { folder, output: output.to_owned(), _lock: lock }),
            Err(TryLockError::WouldBlock) => {
                bail!("another process is preparing {} at this moment: wait for it", output.display())
            }
            Err(TryLockError::Error(e)) => Err(e).with_context(cannot),
        }
    }

    /// Where to go on from, with the hashes of all files finished before; `None` for a new
    /// preparation. Leaves the folder holding the plan.
    ///
    /// # Errors
    /// When an unfinished preparation was started with other arguments or inputs, or a file
    /// that it has read has changed.
    pub(crate) fn take_up(&self, plan: &PrepareSpec) -> Result<Option<Commit>> {
        let commit = match self.unfinished()? {
            Some(before) if !plan.files.iter().any(SourceFile::is_standard_input) => self.go_on(plan, &before)?,
            _ => None,
        };
        if commit.is_none() {
            self.clear()?;
        }
        let path = self.folder.join(PLAN_FILE);
        let temporary = self.folder.join("plan.new");
        let write = || -> Result<()> {
            fs::write(&temporary, serde_json::to_string(plan)?)?;
            File::open(&temporary)?.sync_all()?;
            fs::rename(&temporary, &path)?;
            Ok(File::open(&self.folder)?.sync_all()?)
        };
        write().with_context(|| format!("{} cannot be written", path.display()))?;
        Ok(commit)
    }

    /// The plan of a preparation that was not finished.
    fn unfinished(&self) -> Result<Option<PrepareSpec>> {
        let path = self.folder.join(PLAN_FILE);
        match fs::read_to_string(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e).with_context(|| format!("{} cannot be read", path.display())),
            Ok(text) => serde_json::from_str(&text).map(Some).with_context(|| {
                format!("{} is not usable: remove {} to start afresh", path.display(), self.folder.display())
            }),
        }
    }

    fn go_on(&self, plan: &PrepareSpec, before: &PrepareSpec) -> Result<Option<Commit>> {
        let otherwise = |what: &str| {
            format!(
                "an unfinished preparation of {} was started otherwise ({what}): run it with the same arguments, or remove {} to start afresh",
                self.output.display(),
                self.folder.display()
            )
        };
        if let Some(difference) = plan.settings.difference(&before.settings)? {
            bail!(otherwise(&difference));
        }
        let paths = |plan: &PrepareSpec| plan.files.iter().map(|f| f.path.clone()).collect::<Vec<_>>();
        ensure!(
            paths(plan) == paths(before),
            otherwise(&format!("other inputs: {} files now, {} then", plan.files.len(), before.files.len()))
        );
        let mut commits: Vec<Commit> = journal::read(&self.folder.join(COMMITS_FILE));
        commits.retain(|commit| spool::holds(&self.folder, commit.position.spooled));
        let hashes = commits.iter().flat_map(|c| c.hashes.clone()).collect();
        let Some(last) = commits.last() else { return Ok(None) };
        let mut commit = Commit { position: last.position, file_start: last.file_start, hashes };
        let changed = plan.files.iter().zip(&before.files).position(|(now, then)| now != then);
        if let Some(changed) = changed.filter(|&file| file <= commit.position.file) {
            ensure!(
                changed == commit.position.file,
                otherwise(&format!("{} has changed since it was read", plan.files[changed].path.display()))
            );
            // It was being read: from its start again.
            commit.position = commit.file_start;
        }
        Ok(Some(commit))
    }

    /// Whether there is work here to go on from.
    pub(crate) fn holds_work(&self) -> bool {
        let commits: Vec<Commit> = journal::read(&self.folder.join(COMMITS_FILE));
        commits.last().is_some_and(|commit| commit.position.spooled.tokens > 0)
    }

    /// Removes every file.
    fn clear(&self) -> Result<()> {
        let cannot = || format!("{} cannot be cleared", self.folder.display());
        for entry in fs::read_dir(&self.folder).with_context(cannot)? {
            fs::remove_file(entry.with_context(cannot)?.path()).with_context(cannot)?;
        }
        Ok(())
    }

    /// Ends a publication that was cut off after the manifest was written.
    ///
    /// # Errors
    /// When files cannot be removed or moved.
    pub(crate) fn publish_if_complete(&self) -> Result<()> {
        if self.folder.join(MANIFEST_FILE).is_file() { self.publish_files() } else { Ok(()) }
    }

    /// Makes the folder complete and gives it its name.
    ///
    /// # Errors
    /// When something cannot be written.
    pub(crate) fn publish(&self, manifest: &Manifest) -> Result<()> {
        let path = self.folder.join(MANIFEST_FILE);
        let temporary = self.folder.join("manifest.new");
        let write = || -> Result<()> {
            fs::write(&temporary, serde_json::to_string_pretty(manifest)? + "\n")?;
            File::open(&temporary)?.sync_all()?;
            Ok(fs::rename(&temporary, &path)?)
        };
        write().with_context(|| format!("{} cannot be written", path.display()))?;
        self.publish_files()
    }

    fn publish_files(&self) -> Result<()> {
        let publish = || -> std::io::Result<()> {
            // First, so that what follows can be done again after a kill.
            File::open(&self.folder)?.sync_all()?;
            let bad = self.folder.join(BAD_FILE);
            let no_bad = fs::metadata(&bad).is_ok_and(|m| m.len() == 0).then_some(BAD_FILE);
            for name in spool::FILES.into_iter().chain([COMMITS_FILE, SHARDS_FILE, PLAN_FILE]).chain(no_bad) {
                match fs::remove_file(self.folder.join(name)) {
                    Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e),
                    _ => {}
                }
            }
            File::open(&self.folder)?.sync_all()?;
            fs::rename(&self.folder, &self.output)?;
            let parent = self.output.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
            File::open(parent)?.sync_all()
        };
        publish().with_context(|| format!("{} cannot be written", self.output.display()))
    }

    /// Nothing in it can be used.
    pub(crate) fn discard(&self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}
