//! Tests of checkpoint directories: saving, retention, recovery and archiving.

use std::fs;
use std::path::Path;

use model::WEIGHTS_FILE;

use super::verify;
use crate::checkpoint::checkpoint_dir::CheckpointDir;
use crate::checkpoint::config::CheckpointConfig;
use crate::checkpoint::retention::RetentionPolicy;
use crate::checkpoint::snapshot::HostSnapshot;
use crate::checkpoint::testing::{state, tiny_model};

fn tiny_snapshot() -> HostSnapshot {
    let (model, optimizer) = tiny_model();
    let mut snapshot = HostSnapshot::allocate(&model, &optimizer).unwrap();
    snapshot.copy_from(&model, &optimizer).unwrap();
    snapshot
}

fn checkpoint_dir(run_dir: &Path) -> CheckpointDir {
    CheckpointDir::new(
        run_dir,
        &CheckpointConfig { keep_last: 2, keep_best: 1, keep_every: 0, ..CheckpointConfig::default() },
    )
}

#[test]
fn saving_applies_retention_and_the_newest_valid_checkpoint_is_found() {
    let scratch = tempfile::tempdir().unwrap();
    let snapshot = tiny_snapshot();
    let checkpoints = checkpoint_dir(scratch.path());
    for (step, loss) in [(10, 2.0), (20, 3.0), (30, 4.0), (40, 5.0)] {
        checkpoints.save(&snapshot, state(step, Some(loss))).unwrap();
    }
    let steps: Vec<u64> = checkpoints.list().unwrap().iter().map(|(s, _)| *s).collect();
    assert_eq!(steps, [10, 30, 40]);
    let weights = scratch.path().join("checkpoints/step-00000040/model.safetensors");
    let mut bytes = fs::read(&weights).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(&weights, bytes).unwrap();
    let mut invalid = Vec::new();
    let (_, found) = checkpoints.newest(|_, error| invalid.push(error.to_string())).unwrap().unwrap();
    assert_eq!(found.step, 30);
    assert!(invalid.len() == 1 && invalid[0].contains("model.safetensors is damaged"), "{invalid:?}");
}

#[test]
fn partial_checkpoints_are_deleted_and_a_failed_save_changes_nothing() {
    let scratch = tempfile::tempdir().unwrap();
    let snapshot = tiny_snapshot();
    let checkpoints = checkpoint_dir(scratch.path());
    checkpoints.save(&snapshot, state(10, None)).unwrap();
    fs::create_dir(scratch.path().join("checkpoints/.step-00000020")).unwrap();
    fs::write(scratch.path().join("checkpoints/.step-00000030"), "a file").unwrap();
    checkpoints.delete_partial().unwrap();
    assert_eq!(fs::read_dir(scratch.path().join("checkpoints")).unwrap().count(), 1);
    // A file is in place of the directory, so nothing can be written.
    let blocked = CheckpointDir {
        path: scratch.path().join("checkpoints/step-00000010/state.json/x"),
        policy: checkpoints.policy,
    };
    assert!(blocked.save(&snapshot, state(20, None)).is_err());
    verify(&scratch.path().join("checkpoints/step-00000010")).unwrap();
}

#[test]
fn a_checkpoint_whose_replacement_was_killed_is_recovered() {
    let scratch = tempfile::tempdir().unwrap();
    let (snapshot, checkpoints) = (tiny_snapshot(), checkpoint_dir(scratch.path()));
    let path = checkpoints.save(&snapshot, state(10, Some(2.0))).unwrap().path;
    checkpoints.save(&snapshot, state(10, Some(3.0))).unwrap();
    assert_eq!(verify(&path).unwrap().val_loss, Some(3.0));
    assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    // The state after a kill between the two renames.
    fs::rename(&path, path.with_file_name(".step-00000010.replaced")).unwrap();
    fs::create_dir(path.with_file_name(".step-00000010")).unwrap();
    checkpoints.recover_replaced().unwrap();
    checkpoints.delete_partial().unwrap();
    assert_eq!(verify(&path).unwrap().val_loss, Some(3.0));
}

#[test]
fn checkpoints_of_an_abandoned_branch_are_archived() {
    let scratch = tempfile::tempdir().unwrap();
    let (snapshot, checkpoints) = (tiny_snapshot(), checkpoint_dir(scratch.path()));
    let checkpoints = CheckpointDir { policy: RetentionPolicy { last: 9, ..checkpoints.policy }, ..checkpoints };
    let save = |step| checkpoints.save(&snapshot, state(step, None)).unwrap().path;
    let [first, second, third] = [10, 20, 30].map(save);
    let steps = || checkpoints.list().unwrap().iter().map(|(step, _)| *step).collect::<Vec<u64>>();
    let archived = checkpoints.archive(Some((20, &second))).unwrap();
    assert_eq!((steps(), &archived), (vec![10, 20], &vec![third.with_file_name("aside-step-00000030")]));
    // Resumes from the archived checkpoint, while another one of the same step exists.
    save(30);
    let again = checkpoints.archive(Some((30, &archived[0]))).unwrap();
    assert_eq!((steps(), again), (vec![10, 20], vec![third.with_file_name("aside-step-00000030-again")]));
    verify(&archived[0]).unwrap();
    assert_eq!(checkpoints.archive(None).unwrap().len(), 2);
    assert!(steps().is_empty() && !first.exists());
}

#[test]
fn the_same_weights_give_the_same_bytes() {
    let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let snapshot = tiny_snapshot();
    let save = |run_dir: &Path, step| checkpoint_dir(run_dir).save(&snapshot, state(step, None)).unwrap().path;
    let (a, b) = (save(a.path(), 1), save(b.path(), 2));
    assert_eq!(fs::read(a.join(WEIGHTS_FILE)).unwrap(), fs::read(b.join(WEIGHTS_FILE)).unwrap());
}
