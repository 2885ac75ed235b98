//! The `--data` arguments of `eval`.

use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Result, bail, ensure};
use evals::Task;

/// One `--data` argument: PATH, or TASK=PATH.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DataArg {
    task: Option<Task>,
    path: PathBuf,
}

impl FromStr for DataArg {
    type Err = Infallible;

    /// The text before an equals sign is a task only if it is the name of one, because paths may
    /// contain equals signs.
    fn from_str(text: &str) -> Result<Self, Infallible> {
        let named = text.split_once('=').and_then(|(name, path)| {
            let task = Task::ALL.into_iter().find(|task| task.name() == name)?;
            Some(DataArg { task: Some(task), path: path.into() })
        });
        Ok(named.unwrap_or_else(|| DataArg { task: None, path: text.into() }))
    }
}

/// The data of each task.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct DataArgs {
    /// Tasks with the path of their data, in the order of [`Task::ALL`].
    pub(crate) found: Vec<(Task, PathBuf)>,
    /// Tasks without data, with the reason.
    pub(crate) skipped: Vec<(Task, String)>,
}

impl DataArgs {
    /// Returns the data of a single task.
    ///
    /// # Errors
    /// If there is not exactly one `--data`, or if it names another task.
    pub(crate) fn for_task(task: Task, data: &[DataArg]) -> Result<Self> {
        let [given] = data else {
            bail!("--task {} takes one --data, not {}: use --task all for several", task.name(), data.len())
        };
        if let Some(other) = given.task.filter(|other| *other != task) {
            bail!("--data {}={} is not for --task {}", other.name(), given.path.display(), task.name());
        }
        Ok(DataArgs { found: vec![(task, given.path.clone())], skipped: Vec::new() })
    }

    /// Returns the data of all tasks: the path of TASK=PATH, or the subdirectory of PATH with the
    /// name of the task.
    ///
    /// # Errors
    /// If a path does not exist or is given twice, or if no task has data.
    pub(crate) fn for_all_tasks(data: &[DataArg]) -> Result<Self> {
        let mut directory: Option<&Path> = None;
        let mut args = DataArgs { found: Vec::new(), skipped: Vec::new() };
        for given in data.iter().filter(|given| given.task.is_none()) {
            ensure!(directory.is_none(), "--data is given twice without a task: write TASK=PATH for one of them");
            ensure!(
                given.path.is_dir(),
                "--data {} is not a directory: for --task all, give a directory with subdirectories like blimp, or TASK=PATH",
                given.path.display()
            );
            directory = Some(&given.path);
        }
        for task in Task::ALL {
            let named: Vec<&PathBuf> =
                data.iter().filter(|given| given.task == Some(task)).map(|given| &given.path).collect();
            let subdirectory = directory.map(|directory| directory.join(task.name()));
            match (&named[..], subdirectory) {
                ([path], _) => {
                    ensure!(path.exists(), "--data {}={} does not exist", task.name(), path.display());
                    args.found.push((task, path.to_path_buf()));
                }
                ([], Some(path)) if path.is_dir() => args.found.push((task, path)),
                ([], Some(path)) => args.skipped.push((task, format!("{} does not exist", path.display()))),
                ([], None) => args.skipped.push((task, format!("--data {}=PATH was not given", task.name()))),
                (_, _) => bail!("--data {}=PATH is given {} times, but may be given once", task.name(), named.len()),
            }
        }
        if args.found.is_empty() {
            let names = Task::ALL.map(Task::name).join(", ");
            bail!("no task has data: give --data TASK=PATH, or a directory with subdirectories named {names}");
        }
        Ok(args)
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
    fn text_before_an_equals_sign_is_a_task_only_if_it_names_one() {
        let given = arguments(&["blimp=a=b", "runs/x=y", "other=z"]);
        let want = [(Some(Task::Blimp), "a=b"), (None, "runs/x=y"), (None, "other=z")];
        assert_eq!(given, want.map(|(task, path)| DataArg { task, path: path.into() }));
    }

    #[test]
    fn a_single_task_takes_one_path() {
        let one = |given: &[&str]| DataArgs::for_task(Task::Lambada, &arguments(given)).map_err(|e| e.to_string());
        for given in ["x", "lambada=x"] {
            assert_eq!(one(&[given]).unwrap().found, [(Task::Lambada, PathBuf::from("x"))]);
        }
        assert!(one(&["x", "y"]).unwrap_err().contains("takes one --data, not 2"));
        assert_eq!(one(&["blimp=x"]).unwrap_err(), "--data blimp=x is not for --task lambada");
    }

    #[test]
    fn all_tasks_take_subdirectories_and_skip_missing_ones() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().to_str().unwrap();
        let all = |given: &[&str]| DataArgs::for_all_tasks(&arguments(given)).map_err(|e| e.to_string());
        assert!(all(&[root]).unwrap_err().starts_with("no task has data"));
        for task in ["val", "blimp", "other"] {
            fs::create_dir(directory.path().join(task)).unwrap();
        }
        let args = all(&[root, &format!("blimp={root}/other")]).unwrap();
        assert_eq!(
            args.found,
            [(Task::Val, directory.path().join("val")), (Task::Blimp, directory.path().join("other"))]
        );
        assert_eq!(args.skipped.len(), 3);
        assert_eq!(args.skipped[0], (Task::Lambada, format!("{root}/lambada does not exist")));
        let named = all(&[&format!("val={root}/val")]).unwrap();
        assert_eq!(named.skipped[0], (Task::Lambada, "--data lambada=PATH was not given".to_owned()));
        assert!(all(&[&format!("val={root}/none")]).unwrap_err().ends_with("does not exist"));
        assert!(all(&["val=x", "val=x"]).unwrap_err().contains("--data val=PATH is given 2 times"));
        assert!(all(&[root, root]).unwrap_err().contains("twice without a task"));
        assert!(all(&["nowhere"]).unwrap_err().contains("--data nowhere is not a directory"));
    }
}
