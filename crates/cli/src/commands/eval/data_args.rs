//! Which data is measured on.

use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Result, bail, ensure};
use evals::Task;

/// A `--data`: PATH, or TASK=PATH.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DataArg {
    task: Option<Task>,
    path: PathBuf,
}

impl FromStr for DataArg {
    type Err = Infallible;

    /// What stands before an equality sign is a task only where it is the name of one: paths may hold such signs.
    fn from_str(text: &str) -> Result<Self, Infallible> {
        let named = text.split_once('=').and_then(|(name, path)| {
            let task = Task::ALL.into_iter().find(|task| task.name() == name)?;
            Some(DataArg { task: Some(task), path: path.into() })
        });
        Ok(named.unwrap_or_else(|| DataArg { task: None, path: text.into() }))
    }
}

/// What there is to measure on.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct DataArgs {
    /// In the order of [`Task::ALL`].
    pub(crate) found: Vec<(Task, PathBuf)>,
    /// Tasks without data, and why they have none.
    pub(crate) skipped: Vec<(Task, String)>,
}

impl DataArgs {
    /// The data of one task.
    ///
    /// # Errors
    /// When it is not given once, or is another task's.
    pub(crate) fn of_one(task: Task, data: &[DataArg]) -> Result<Self> {
        let [given] = data else {
            bail!("--task {} takes one --data, not {}: several are for --task all", task.name(), data.len())
        };
        if let Some(other) = given.task.filter(|other| *other != task) {
            bail!("--data {}={} is not for --task {}", other.name(), given.path.display(), task.name());
        }
        Ok(DataArgs { found: vec![(task, given.path.clone())], skipped: Vec::new() })
    }

    /// The data of all tasks: what TASK=PATH names, else the folder of the task's name below the lone PATH.
    ///
    /// # Errors
    /// When something that is named is not there, is named twice, or nothing is there.
    pub(crate) fn of_all(data: &[DataArg]) -> Result<Self> {
        let mut folder: Option<&Path> = None;
        let mut sources = DataArgs { found: Vec::new(), skipped: Vec::new() };
        for given in data.iter().filter(|given| given.task.is_none()) {
            ensure!(folder.is_none(), "--data names two folders without a task: write TASK=PATH for one of them");
            ensure!(
                given.path.is_dir(),
                "--data {} is not a folder: for --task all it holds folders like blimp, or write TASK=PATH",
                given.path.display()
            );
            folder = Some(&given.path);
        }
        for task in Task::ALL {
            let named: Vec<&PathBuf> =
                data.iter().filter(|given| given.task == Some(task)).map(|given| &given.path).collect();
            let below = folder.map(|folder| folder.join(task.name()));
            match (&named[..], below) {
                ([path], _) => {
                    ensure!(path.exists(), "--data {}={} is not there", task.name(), path.display());
                    sources.found.push((task, path.to_path_buf()));
                }
                ([], Some(path)) if path.is_dir() => sources.found.push((task, path)),
                ([], Some(path)) => sources.skipped.push((task, format!("there is no {}", path.display()))),
                ([], None) => sources.skipped.push((task, format!("no --data {}=PATH was given", task.name()))),
                (_, _) => bail!("--data {}=PATH is given {} times: give it once", task.name(), named.len()),
            }
        }
        if sources.found.is_empty() {
            let names = Task::ALL.map(Task::name).join(", ");
            bail!("there is nothing to measure on: --data takes TASK=PATH, or a folder that holds some of {names}");
        }
        Ok(sources)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn arguments(given: &[&str]) -> Vec<DataArg> {
        given.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn a_task_is_named_before_an_equality_sign() {
        let given = arguments(&["blimp=a=b", "runs/x=y", "other=z"]);
        let want = [(Some(Task::Blimp), "a=b"), (None, "runs/x=y"), (None, "other=z")];
        assert_eq!(given, want.map(|(task, path)| DataArg { task, path: path.into() }));
    }

    #[test]
    fn one_task_takes_one_path() {
        let one = |given: &[&str]| DataArgs::of_one(Task::Lambada, &arguments(given)).map_err(|e| e.to_string());
        for given in ["x", "lambada=x"] {
            assert_eq!(one(&[given]).unwrap().found, [(Task::Lambada, PathBuf::from("x"))]);
        }
        assert!(one(&["x", "y"]).unwrap_err().contains("takes one --data, not 2"));
        assert_eq!(one(&["blimp=x"]).unwrap_err(), "--data blimp=x is not for --task lambada");
    }

    #[test]
    fn all_takes_folders_by_name_and_says_what_is_not_there() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().to_str().unwrap();
        let all = |given: &[&str]| DataArgs::of_all(&arguments(given)).map_err(|e| e.to_string());
        assert!(all(&[root]).unwrap_err().starts_with("there is nothing to measure on"));
        for task in ["val", "blimp", "other"] {
            fs::create_dir(folder.path().join(task)).unwrap();
        }
        let sources = all(&[root, &format!("blimp={root}/other")]).unwrap();
        assert_eq!(sources.found, [(Task::Val, folder.path().join("val")), (Task::Blimp, folder.path().join("other"))]);
        assert_eq!(sources.skipped.len(), 3);
        assert_eq!(sources.skipped[0], (Task::Lambada, format!("there is no {root}/lambada")));
        let named = all(&[&format!("val={root}/val")]).unwrap();
        assert_eq!(named.skipped[0], (Task::Lambada, "no --data lambada=PATH was given".to_owned()));
        assert!(all(&[&format!("val={root}/none")]).unwrap_err().ends_with("is not there"));
        assert!(all(&["val=x", "val=x"]).unwrap_err().contains("--data val=PATH is given 2 times"));
        assert!(all(&[root, root]).unwrap_err().contains("two folders without a task"));
        assert!(all(&["nowhere"]).unwrap_err().contains("--data nowhere is not a folder"));
    }
}
