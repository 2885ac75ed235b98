//! The flight recorder of libtorch: a buffer with the last collectives of NCCL on each rank, which
//! is written to a file when a collective times out. docs/cluster.md explains how to read the files.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::distributed::env::{self, Environment};

/// Number of recorded collectives. A step of the published model has about 20: one per bucket of
/// gradients (16), and a few others. These are the last 100 steps. An entry takes a few hundred
/// bytes.
const RECORDED_COLLECTIVES: &str = "2000";

/// Maximum number of ranks for which libtorch also compares the ranks itself and logs which one is
/// behind. For this, every rank sends the start and the end of each collective to the store of rank
/// 0. With 16 ranks and 20 steps/s these are 20,000 small messages per second. The dumps name that
/// rank, too, with any number of ranks.
const MAX_RANKS_FOR_DESYNC_LOG: usize = 16;

/// Names of a setting. The first is the current one in libtorch 2.13, which also accepts the second.
const BUFFER_SIZE: [&str; 2] = ["TORCH_FR_BUFFER_SIZE", "TORCH_NCCL_TRACE_BUFFER_SIZE"];
const DUMP_FILE: [&str; 2] = ["TORCH_FR_DUMP_TEMP_FILE", "TORCH_NCCL_DEBUG_INFO_TEMP_FILE"];

/// Returns the environment variables that make NCCL's backend dump the flight recorder of rank r to
/// `run_dir/nccl/rank-r` after a timeout. A setting that the environment contains under any of its
/// names is skipped.
fn variables(environment: &Environment<'_>, run_dir: &Path, world_size: usize) -> Vec<(&'static str, String)> {
    let prefix = run_dir.join("nccl/rank-").to_string_lossy().into_owned();
    // The names of a setting, how many of them are set, and the value. libtorch warns about second
    // names, so that only the first one is set. The size of the buffer is an exception, because two
    // parts of libtorch read it, each under a different name.
    let mut settings: Vec<(&[&'static str], usize, &str)> = vec![
        (&BUFFER_SIZE, 2, RECORDED_COLLECTIVES),
        (&DUMP_FILE, 1, &prefix),
        (&["TORCH_NCCL_DUMP_ON_TIMEOUT"], 1, "1"),
    ];
    if world_size <= MAX_RANKS_FOR_DESYNC_LOG {
        settings.push((&["TORCH_NCCL_DESYNC_DEBUG", "NCCL_DESYNC_DEBUG"], 1, "1"));
    }
    let missing =
        settings.into_iter().filter(|(names, _, _)| names.iter().all(|name| environment.text(name).is_none()));
    missing.flat_map(|(names, n, value)| names[..n].iter().map(move |&name| (name, value.to_owned()))).collect()
}

/// Sets the variables of the flight recorder in this process. They have an effect only with NCCL.
/// Call it before the process starts threads.
///
/// # Errors
/// Returns an error if the process has several threads, or if its working directory does not exist.
pub fn enable_flight_recorder(run_dir: &Path, world_size: usize) -> Result<()> {
    let run_dir = std::path::absolute(run_dir).context("the working directory does not exist")?;
    let variables = variables(&Environment::new(&env::process_variable), &run_dir, world_size);
    Ok(torch_ext::set_environment_variables(variables.iter().map(|(name, value)| (*name, value.as_str())))?)
}

/// Creates the directory for the dumps, because libtorch does not create it.
///
/// # Errors
/// Returns an error if the directory cannot be created.
pub(crate) fn create_dump_directory() -> Result<()> {
    let environment = Environment::new(&env::process_variable);
    let prefix = DUMP_FILE.iter().find_map(|name| environment.text(name)).map(PathBuf::from);
    let Some(directory) = prefix.as_deref().and_then(Path::parent) else { return Ok(()) };
    fs::create_dir_all(directory)
        .with_context(|| format!("cannot create {}, the directory for dumps of NCCL", directory.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::distributed::env::test_variables;

    fn variables_with(pairs: &str, world_size: usize) -> Vec<(&'static str, String)> {
        variables(&Environment::new(&test_variables(pairs)), Path::new("/runs/a b"), world_size)
    }

    #[test]
    fn all_variables_are_set_in_an_empty_environment() {
        let expected = [
            ("TORCH_FR_BUFFER_SIZE", "2000"),
            ("TORCH_NCCL_TRACE_BUFFER_SIZE", "2000"),
            ("TORCH_FR_DUMP_TEMP_FILE", "/runs/a b/nccl/rank-"),
            ("TORCH_NCCL_DUMP_ON_TIMEOUT", "1"),
            ("TORCH_NCCL_DESYNC_DEBUG", "1"),
        ];
        assert_eq!(variables_with("", 16), expected.map(|(name, value)| (name, value.to_owned())));
    }

    #[test]
    fn settings_of_the_user_are_kept_under_any_of_their_names() {
        let names = |pairs: &str| variables_with(pairs, 2).into_iter().map(|(name, _)| name).collect::<Vec<_>>();
        for (pairs, absent) in [
            ("TORCH_NCCL_TRACE_BUFFER_SIZE=0", &BUFFER_SIZE[..]),
            ("TORCH_FR_BUFFER_SIZE=50000", &BUFFER_SIZE),
            ("TORCH_NCCL_DEBUG_INFO_TEMP_FILE=dumps/trace", &DUMP_FILE),
            ("TORCH_NCCL_DUMP_ON_TIMEOUT=0", &["TORCH_NCCL_DUMP_ON_TIMEOUT"]),
            ("NCCL_DESYNC_DEBUG=0", &["TORCH_NCCL_DESYNC_DEBUG"]),
        ] {
            let expected: Vec<&str> = names("").into_iter().filter(|name| !absent.contains(name)).collect();
            assert!(expected.len() < names("").len());
            assert_eq!(names(pairs), expected, "{pairs}");
        }
    }

    #[test]
    fn many_ranks_do_not_report_each_collective_to_rank_0() {
        let without: Vec<_> = variables_with("", 17).into_iter().map(|(name, _)| name).collect();
        assert!(!without.contains(&"TORCH_NCCL_DESYNC_DEBUG") && without.len() == 4, "{without:?}");
    }
}
