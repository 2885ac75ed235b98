//! Tests of reading rank, world size and address from flags and variables.

use super::*;
use crate::distributed::env::test_variables;

fn read_with(flags: &WorldFlags, pairs: &str) -> Result<World, String> {
    World::read(flags, &Environment::new(&test_variables(pairs)), false).map_err(|error| format!("{error:#}"))
}

fn read(pairs: &str) -> Result<World, String> {
    read_with(&WorldFlags::default(), pairs)
}

/// Formats rank, size, local rank, number of local ranks, address of rank 0, source and launch
/// identifier.
fn short(world: &World) -> String {
    let local = world.local.rank.map_or("?".to_owned(), |rank| rank.to_string());
    let master = world.master.as_ref().map_or("-".to_owned(), |(host, port)| format!("{host}:{port}"));
    format!(
        "{}/{} {local}/{} {master} {:?} {}",
        world.rank, world.size, world.local.count, world.source, world.launch_id
    )
}

const TASK: &str = "SLURM_JOB_ID=12345 SLURM_STEP_ID=0 SLURM_PROCID=3 SLURM_STEP_NUM_TASKS=4 SLURM_NTASKS=4 \
    SLURM_NODEID=1 SLURM_LOCALID=1 SLURM_STEP_TASKS_PER_NODE=2(x2) SLURM_STEP_NODELIST=n[07-08] \
    SLURM_JOB_NODELIST=n[01-08] SLURMD_NODENAME=n08";

const RANK: &str = "RANK=1 WORLD_SIZE=2 MASTER_ADDR=head MASTER_PORT=29500";

#[test]
fn variables_of_launchers_are_read() {
    for (pairs, expected) in [
        ("", "0/1 0/1 - Alone "),
        // Processes that share a host but are separate runs.
        ("LOCAL_WORLD_SIZE=2 LOCAL_RANK=1", "0/1 1/2 - Alone "),
        // A command that a batch script starts without srun.
        ("MASTER_ADDR=n1 MASTER_PORT=29500 SLURM_JOB_ID=1 SLURM_NTASKS=4 SLURM_PROCID=0", "0/1 0/1 - Alone "),
        ("RANK=0 WORLD_SIZE=1", "0/1 0/1 - Environment "),
        (RANK, "1/2 0/1 head:29500 Environment "),
        (
            "RANK=5 WORLD_SIZE=8 LOCAL_RANK=1 LOCAL_WORLD_SIZE=4 MASTER_ADDR=head MASTER_PORT=29500 TORCHELASTIC_RUN_ID=x TORCHELASTIC_RESTART_COUNT=2",
            "5/8 1/4 head:29500 Environment torchrun.x.2",
        ),
        (
            "RANK=1 WORLD_SIZE=2 LOCAL_RANK=1 LOCAL_WORLD_SIZE=2 MASTER_ADDR=127.0.0.1 MASTER_PORT=5 BACKPACK_LAUNCHER=77",
            "1/2 1/2 127.0.0.1:5 Environment launch.77",
        ),
        // Started by hand on one host.
        ("RANK=1 WORLD_SIZE=2 MASTER_ADDR=localhost MASTER_PORT=5", "1/2 1/2 localhost:5 Environment "),
        ("RANK=1 WORLD_SIZE=2 LOCAL_RANK=0 MASTER_ADDR=::1 MASTER_PORT=5", "1/2 0/2 ::1:5 Environment "),
        (&format!("{RANK} LOCAL_RANK=0"), "1/2 0/1 head:29500 Environment "),
        (&format!("{RANK} LOCAL_WORLD_SIZE=2"), "1/2 1/2 head:29500 Environment "),
        (TASK, "3/4 1/2 n07:22345 Slurm slurm.12345.0.0"),
        (&format!("{TASK} SLURM_RESTART_COUNT=1 MASTER_PORT=1"), "3/4 1/2 n07:1 Slurm slurm.12345.0.1"),
        (&format!("{TASK} MASTER_ADDR=127.0.0.1"), "3/4 1/2 127.0.0.1:22345 Slurm slurm.12345.0.0"),
        // Scripts for PyTorch export these variables in a batch script or in each task.
        (&format!("{TASK} WORLD_SIZE=4 MASTER_ADDR=n07"), "3/4 1/2 n07:22345 Slurm slurm.12345.0.0"),
        (&format!("{TASK} WORLD_SIZE=4 RANK=3"), "3/4 1/2 n07:22345 Environment slurm.12345.0.0"),
        // torchrun, started once per node by srun.
        (
            &format!(
                "{TASK} RANK=6 WORLD_SIZE=8 LOCAL_RANK=0 LOCAL_WORLD_SIZE=2 MASTER_ADDR=n07 MASTER_PORT=5 TORCHELASTIC_RUN_ID=9"
            ),
            "6/8 0/2 n07:5 Environment torchrun.9.",
        ),
        (
            &format!("{TASK} RANK=2 WORLD_SIZE=4 LOCAL_RANK=0 LOCAL_WORLD_SIZE=1 MASTER_ADDR=n07 MASTER_PORT=5"),
            "2/4 0/1 n07:5 Environment ",
        ),
        ("SLURM_STEP_ID=0 SLURM_PROCID=0 SLURM_STEP_NUM_TASKS=1", "0/1 0/1 - Slurm slurm..0.0"),
    ] {
        assert_eq!(read(pairs).map(|world| short(&world)).as_deref(), Ok(expected), "{pairs}");
    }
}

#[test]
fn host_name_is_the_one_of_slurm() {
    assert_eq!(read(TASK).unwrap().host, "n08");
    assert_eq!(read("SLURMD_NODENAME=n08").unwrap().host, World::alone().host);
    assert_eq!(read(TASK).unwrap().to_string(), "rank 3 of 4 on n08, rank 0 at n07:22345 (from Slurm)");
    assert!(World::alone().to_string().starts_with("rank 0 of 1 on "));
}

fn flags(rank: usize, size: usize) -> WorldFlags {
    WorldFlags { rank: Some(rank), world_size: Some(size), ..WorldFlags::default() }
}

#[test]
fn flags_take_precedence() {
    let given =
        WorldFlags { master_addr: Some("head".to_owned()), master_port: Some(7), local_rank: Some(0), ..flags(1, 2) };
    for pairs in ["", TASK, RANK, "WORLD_SIZE=3", "LOCAL_RANK=5"] {
        assert_eq!(short(&read_with(&given, pairs).unwrap()), "1/2 0/1 head:7 Flags ", "{pairs}");
    }
    // Values without a flag come from the environment.
    let world = read_with(&flags(1, 2), "MASTER_ADDR=127.0.0.1 MASTER_PORT=9").unwrap();
    assert_eq!(short(&world), "1/2 1/2 127.0.0.1:9 Flags ");
    assert_eq!(short(&read_with(&flags(0, 1), "").unwrap()), "0/1 0/1 - Flags ");
    // The address of rank 0 can also be given to tasks of Slurm.
    let master = WorldFlags { master_addr: Some("10.0.0.1".to_owned()), ..WorldFlags::default() };
    assert_eq!(short(&read_with(&master, TASK).unwrap()), "3/4 1/2 10.0.0.1:22345 Slurm slurm.12345.0.0");
}

#[test]
fn incomplete_and_contradicting_settings_are_refused() {
    let none = WorldFlags::default();
    for (flags, pairs, expected) in [
        (WorldFlags { rank: Some(1), ..none.clone() }, "WORLD_SIZE=2", "--rank is given without --world-size"),
        (WorldFlags { world_size: Some(1), ..none.clone() }, "RANK=0", "--world-size is given without --rank"),
        (WorldFlags { local_rank: Some(0), ..none.clone() }, "", "--local-rank is given, but the rank is unknown"),
        (
            WorldFlags { master_addr: Some("n".to_owned()), ..none.clone() },
            "",
            "--master-addr is given, but the rank is unknown: add --rank and --world-size",
        ),
        (WorldFlags { master_port: Some(1), ..none.clone() }, "", "--master-port is given, but the rank"),
        (flags(2, 2), "", "--rank is 2, but --world-size is 2: ranks run from 0 to 1"),
        (flags(0, 0), "", "--world-size is 0"),
        (flags(0, 2), "", "rank 0 of 2 cannot determine the address of rank 0: MASTER_ADDR is not set"),
        (flags(0, 2), TASK, "MASTER_ADDR is not set: set it to the host of rank 0"),
        (none.clone(), "RANK=1", "RANK is 1, but WORLD_SIZE is not set"),
        (none.clone(), "WORLD_SIZE=2", "WORLD_SIZE is 2, but RANK is not set"),
        (none.clone(), "RANK=2 WORLD_SIZE=2", "RANK is 2, but WORLD_SIZE is 2: ranks run from 0 to 1"),
        (none.clone(), "RANK=x WORLD_SIZE=2", "RANK is \"x\": it must be a whole number"),
        (none.clone(), "RANK=0 WORLD_SIZE=0", "WORLD_SIZE is 0"),
        (none.clone(), "RANK=1 WORLD_SIZE=2 MASTER_PORT=1", "MASTER_ADDR is not set"),
        (
            none.clone(),
            "RANK=1 WORLD_SIZE=2 MASTER_ADDR=n",
            "rank 1 of 2 cannot determine the address of rank 0: MASTER_PORT is not set: set it to a free port",
        ),
        (
            none.clone(),
            "RANK=1 WORLD_SIZE=2 MASTER_ADDR=n MASTER_PORT=70000",
            "MASTER_PORT must be a port number of at most 65535",
        ),
        (none.clone(), "RANK=1 WORLD_SIZE=2 MASTER_ADDR=n MASTER_PORT=0", "MASTER_PORT is 0"),
        (
            none.clone(),
            &format!("{RANK} LOCAL_WORLD_SIZE=3 LOCAL_RANK=0"),
            "LOCAL_WORLD_SIZE is 3, but the world size is 2: set LOCAL_WORLD_SIZE to the number of ranks on this host",
        ),
        (
            none.clone(),
            &format!("{RANK} LOCAL_RANK=1"),
            "the number of ranks on this host is 1 (LOCAL_WORLD_SIZE is not set)",
        ),
        (
            none.clone(),
            "RANK=1 WORLD_SIZE=4 LOCAL_WORLD_SIZE=2 MASTER_ADDR=n MASTER_PORT=1",
            "2 ranks are on this host, but the local rank of this one is unknown: set LOCAL_RANK",
        ),
        (none.clone(), &format!("{TASK} RANK=0"), "WORLD_SIZE is not set"),
        (
            none.clone(),
            &format!("{TASK} RANK=0 WORLD_SIZE=4"),
            "RANK is 0, but SLURM_PROCID is 3: unset RANK, or set it to SLURM_PROCID",
        ),
        (none.clone(), &format!("{TASK} WORLD_SIZE=8"), "WORLD_SIZE is 8, but srun started 4 tasks"),
        (
            WorldFlags { local_rank: Some(2), ..none.clone() },
            TASK,
            "the local rank is 2, but the number of ranks on this host is 2 (from the launcher): set LOCAL_WORLD_SIZE",
        ),
    ] {
        let error = read_with(&flags, pairs).unwrap_err();
        assert!(error.contains(expected), "{flags:?} {pairs}: {error}");
    }
}
