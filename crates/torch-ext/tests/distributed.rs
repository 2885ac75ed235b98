//! Tests of the process group and the Reducer with real processes. The test program starts itself
//! once per rank, with the name of a role in an environment variable.
#![allow(clippy::unwrap_used)] // helpers of tests; clippy exempts only test functions

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use tch::{Device, Kind, Tensor};
use torch_ext::distributed::{CollectiveFailure, ProcessGroup, ReduceOp, Reducer, Rendezvous, exit_now};

const ROLE: &str = "BACKPACK_TEST_ROLE";
const FLOAT: (Kind, Device) = (Kind::Float, Device::Cpu);

fn free_port() -> u16 {
    TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port()
}

/// Starts a rank, which runs the test [`rank_process`].
fn start(role: &str, rank: usize, world_size: usize, port: u16) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["rank_process", "--exact", "--nocapture", "--test-threads=1"]);
    command.env(ROLE, role).env("RANK", rank.to_string()).env("WORLD_SIZE", world_size.to_string());
    command.env("MASTER_PORT", port.to_string()).env("OMP_NUM_THREADS", "1");
    for unset in ["TORCH_CPP_LOG_LEVEL", "TORCH_DISTRIBUTED_DEBUG", "GLOO_SOCKET_IFNAME"] {
        command.env_remove(unset);
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// The exit code and stderr of a rank.
struct RankExit {
    code: Option<i32>,
    stderr: String,
    /// Seconds from the start of the test to the exit.
    seconds: f64,
}

fn wait(child: Child, since: Instant) -> RankExit {
    let Output { status, stderr, .. } = child.wait_with_output().unwrap();
    RankExit {
        code: status.code(),
        stderr: String::from_utf8_lossy(&stderr).trim().to_owned(),
        seconds: since.elapsed().as_secs_f64(),
    }
}

fn run(role: &str, world_size: usize) -> Vec<RankExit> {
    let (port, since) = (free_port(), Instant::now());
    let ranks: Vec<Child> = (0..world_size).map(|rank| start(role, rank, world_size, port)).collect();
    ranks.into_iter().map(|rank| wait(rank, since)).collect()
}

/// Asserts that each rank exits with 0 and writes nothing to stderr. The log of libtorch is disabled.
fn assert_succeeds(role: &str, world_size: usize) {
    for (rank, exit) in run(role, world_size).iter().enumerate() {
        assert_eq!((exit.code, exit.stderr.as_str()), (Some(0), ""), "rank {rank} of {world_size}");
    }
}

#[test]
fn tensors_are_reduced_over_ranks() {
    assert_succeeds("reduce", 2);
    assert_succeeds("reduce", 3);
}

#[test]
fn tensors_of_root_reach_all_ranks() {
    assert_succeeds("broadcast", 3);
}

#[test]
fn texts_are_gathered_by_rank() {
    assert_succeeds("text", 1);
    assert_succeeds("text", 3);
}

#[test]
fn barrier_waits_for_the_last_rank() {
    assert_succeeds("barrier", 3);
}

#[test]
fn gradients_are_the_mean_of_the_ranks() {
    assert_succeeds("gradients", 1);
    assert_succeeds("gradients", 2);
    assert_succeeds("gradients", 3);
}

#[test]
fn sparse_and_dense_gradients_of_an_embedding_are_reduced() {
    assert_succeeds("tied", 2);
}

#[test]
fn parameter_without_gradient_is_named() {
    let ranks = run("unused", 2);
    for (rank, exit) in ranks.iter().enumerate() {
        assert_eq!(exit.code, Some(1));
        assert_eq!(
            exit.stderr,
            format!(
                "parameters got no gradient in the backward pass on rank {rank}: body.unused.weight; every trained parameter must take part in the loss"
            )
        );
    }
}

#[test]
fn duplicate_parameter_is_named() {
    for exit in run("twice", 2) {
        assert_eq!(exit.code, Some(1));
        assert_eq!(exit.stderr, "the parameters wte and head are one tensor: give it to the reducer once");
    }
}

#[test]
fn different_parameters_are_an_error_on_all_ranks() {
    for exit in run("shapes", 3) {
        assert_eq!(exit.code, Some(1));
        assert_eq!(
            exit.stderr,
            "the ranks train different parameters: rank 0 has h.weight Float [4, 5] [5, 1], rank 2 has h.weight Float [4, 6] [6, 1]"
        );
    }
}

/// Kills one of two running ranks and asserts that the other exits with an error within a second.
fn assert_kill_is_detected(role: &str, killed: usize) {
    let port = free_port();
    let mut ranks: Vec<Child> = (0..2).map(|rank| start(role, rank, 2, port)).collect();
    for rank in &mut ranks {
        let mut lines = BufReader::new(rank.stdout.as_mut().unwrap()).lines();
        assert!(lines.any(|line| line.unwrap().contains("exchanging tensors")), "{role}");
    }
    let since = Instant::now();
    ranks[killed].kill().unwrap();
    let other = wait(ranks.swap_remove(1 - killed), since);
    assert_eq!(other.code, Some(3), "{role}: PeerGone: {}", other.stderr);
    assert!(other.seconds < 1.0, "{role}: after {} s: {}", other.seconds, other.stderr);
    let is_one_line =
        other.stderr.lines().count() == 1 && other.stderr.starts_with("the connection to another rank broke (");
    assert!(is_one_line, "{role}: {}", other.stderr);
    assert_eq!(wait(ranks.remove(0), since).code, None);
}

#[test]
fn killed_rank_is_detected_at_once() {
    assert_kill_is_detected("endless", 0);
    assert_kill_is_detected("endless", 1);
}

#[test]
fn rank_killed_in_the_backward_pass_is_detected_at_once() {
    assert_kill_is_detected("endless gradients", 0);
    assert_kill_is_detected("endless gradients", 1);
}

#[test]
fn hanging_rank_is_detected_after_the_timeout() {
    let ranks = run("hang", 2);
    assert_eq!(ranks[0].code, Some(4), "TimedOut: {}", ranks[0].stderr);
    let (message, waited) = ranks[0].stderr.split_once('\n').unwrap();
    assert!(message.starts_with("another rank did not respond (Timed out waiting 1500ms"), "{message}");
    let waited: f64 = waited.parse().unwrap();
    assert!((1.4..3.0).contains(&waited), "{waited}");
}

#[test]
fn missing_ranks_are_named() {
    let (port, since) = (free_port(), Instant::now());
    let ranks = [0, 2].map(|rank| start("joins", rank, 4, port));
    let [first, third] = ranks.map(|rank| wait(rank, since));
    assert_eq!(first.code, Some(1));
    assert_eq!(
        first.stderr,
        format!(
            "2 of 4 ranks joined at 127.0.0.1:{port} within 2 s; missing: 1, 3: check their logs, and that all ranks have this address and world size"
        )
    );
    // Rank 2 reports the missing ranks or the loss of rank 0.
    assert_eq!(third.code, Some(1));
    assert!(third.stderr.contains("2 of 4 ranks joined") || third.stderr.contains("lost rank 0"), "{}", third.stderr);
    assert!(first.seconds > 1.9, "{}", first.seconds);
}

#[test]
fn unreachable_store_is_named() {
    let (port, since) = (free_port(), Instant::now());
    let exit = wait(start("joins", 1, 2, port), since);
    assert_eq!(exit.code, Some(1));
    let expected = format!("could not reach rank 0 at 127.0.0.1:{port} within 2 s (Connection refused)");
    assert!(exit.stderr.starts_with("rank 1 on ") && exit.stderr.contains(&expected), "{}", exit.stderr);
    assert!(exit.stderr.ends_with("check that rank 0 runs, and the address and port (MASTER_ADDR, MASTER_PORT)"));
}

#[test]
fn port_in_use_is_named() {
    let taken = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = taken.local_addr().unwrap().port();
    let exit = wait(start("joins", 0, 2, port), Instant::now());
    assert_eq!(exit.code, Some(1));
    assert!(exit.stderr.starts_with(&format!("rank 0 cannot listen at port {port} of ")), "{}", exit.stderr);
    assert!(exit.stderr.contains("(Address already in use)"), "{}", exit.stderr);
}

#[test]
fn unknown_interface_is_named_with_the_existing_ones() {
    let exit = wait(start("interface", 0, 1, free_port()), Instant::now());
    assert_eq!(exit.code, Some(1));
    assert!(
        exit.stderr.contains("has no network interface \"nosuch0\" with an address: it has ")
            && exit.stderr.contains("lo")
    );
}

#[test]
fn interface_can_be_selected() {
    assert_succeeds("loopback", 2);
}

#[test]
fn rank_of_another_launch_does_not_join() {
    let (port, since) = (free_port(), Instant::now());
    let ranks = [start("joins", 0, 2, port), start("other launch", 1, 2, port)];
    for exit in ranks.map(|rank| wait(rank, since)) {
        assert_eq!(exit.code, Some(1), "{}", exit.stderr);
    }
}

/// scripts/test-cuda.sh reads the output of this test.
#[test]
fn nccl_without_a_gpu_names_the_missing_part() {
    let exit = wait(start("nccl", 0, 1, free_port()), Instant::now());
    if torch_ext::usable_gpus().is_ok_and(|gpus| gpus > 0) {
        assert_eq!((exit.code, exit.stderr.as_str()), (Some(0), ""));
        return;
    }
    println!("{}", exit.stderr);
    assert_eq!(exit.code, Some(1));
    let missing = ["the NCCL plug-in is not built: run `scripts/setup.sh --cuda`", "NCCL cannot start on rank 0: "];
    assert!(missing.iter().any(|message| exit.stderr.starts_with(message)), "{}", exit.stderr);
    assert_eq!(exit.stderr.lines().count(), 1, "{}", exit.stderr);
}

/// The process of a rank, which [`start`] starts. Without a role it does nothing.
#[test]
fn rank_process() {
    let Ok(role) = std::env::var(ROLE) else { return };
    let number = |name: &str| std::env::var(name).unwrap().parse().unwrap();
    let (rank, world_size) = (number("RANK"), number("WORLD_SIZE"));
    tch::set_num_threads(1);
    let rendezvous = Rendezvous {
        host: "127.0.0.1",
        port: number("MASTER_PORT") as u16,
        rank,
        world_size,
        timeout: Duration::from_secs(if ["joins", "other launch"].contains(&role.as_str()) { 2 } else { 20 }),
        interface: match role.as_str() {
            "interface" => Some("nosuch0"),
            "loopback" => Some("lo"),
            _ => None,
        },
        name: if role == "other launch" { "attempt 2" } else { "attempt 1" },
    };
    let device = if role == "nccl" { Device::Cuda(0) } else { Device::Cpu };
    let result = ProcessGroup::join(&rendezvous, device).and_then(|group| {
        run_role(&role, &group)?;
        group.shutdown()
    });
    if let Err(error) = result {
        let text = error.to_string();
        eprintln!("{}", text.trim_start_matches("libtorch: "));
        let code = match CollectiveFailure::from_message(&text) {
            CollectiveFailure::PeerGone if role.starts_with("endless") => 3,
            CollectiveFailure::TimedOut if role == "hang" => 4,
            _ => 1,
        };
        exit_now(code);
    }
}

fn run_role(role: &str, group: &ProcessGroup) -> Result<(), torch_ext::Error> {
    match role {
        "reduce" => reduce(group),
        "broadcast" => broadcast(group),
        "text" => text(group),
        "barrier" => barrier(group),
        "loopback" => group.barrier(),
        "gradients" => gradients(group),
        "tied" => tied(group),
        "unused" => unused(group),
        "twice" => {
            let p = Tensor::zeros([3], FLOAT).set_requires_grad(true);
            let names = ["wte", "ln", "head"].map(str::to_owned);
            let other = Tensor::zeros([3], FLOAT).set_requires_grad(true);
            Reducer::new(group, &names, &[p.shallow_clone(), other, p], 1 << 20).map(drop)
        }
        "shapes" => {
            let width = if group.rank() == 2 { 6 } else { 5 };
            let p = [[3, 3], [4, width]].map(|size| Tensor::zeros(size, FLOAT).set_requires_grad(true));
            Reducer::new(group, &["wte".to_owned(), "h.weight".to_owned()], &p, 1 << 20).map(drop)
        }
        "endless" => {
            for step in 0.. {
                group.all_reduce(&Tensor::ones([1000], FLOAT), ReduceOp::Sum)?;
                report_exchange(step);
            }
            Ok(())
        }
        "endless gradients" => {
            let model = TiedModel::new();
            let reducer = Reducer::new(group, &model.names, &model.parameters, 4096)?;
            for step in 0.. {
                model.step(&reducer, step, group.rank(), 2, true)?;
                report_exchange(step);
            }
            Ok(())
        }
        "hang" => hang(group),
        "nccl" => nccl(group),
        _ => Ok(()),
    }
}

/// Reports to the test that the ranks have started to exchange tensors.
fn report_exchange(step: i64) {
    if step == 10 {
        println!("\nexchanging tensors");
    }
}

fn reduce(group: &ProcessGroup) -> Result<(), torch_ext::Error> {
    let (rank, size) = (group.rank() as i64, group.world_size() as i64);
    let sum = size * (size - 1) / 2;
    for kind in [Kind::Float, Kind::Double, Kind::BFloat16, Kind::Int64] {
        let value = |value: f64| Tensor::from(value).to_kind(kind).expand([3, 5], false).contiguous();
        let mine = || value(rank as f64);
        let t = mine();
        group.all_reduce(&t, ReduceOp::Sum)?;
        assert_eq!(t, value(sum as f64), "sum of {kind:?}");
        let t = mine();
        group.all_reduce(&t, ReduceOp::Max)?;
        assert_eq!(t, value((size - 1) as f64), "max of {kind:?}");
        let t = mine();
        let mean = group.all_reduce(&t, ReduceOp::Mean);
        if kind == Kind::Int64 {
            assert!(mean.unwrap_err().to_string().contains("of type Int64: give floating-point numbers"));
        } else {
            mean?;
            assert_eq!(t, value(sum as f64 / size as f64), "mean of {kind:?}");
        }
    }
    // A scalar parameter and a transposed view.
    let parameter = Tensor::from(rank as f32).set_requires_grad(true);
    group.all_reduce(&parameter, ReduceOp::Sum)?;
    assert_eq!(parameter.double_value(&[]), sum as f64);
    let wide = (Tensor::arange(6, FLOAT).view([2, 3]) + rank as f64).tr();
    group.all_reduce(&wide, ReduceOp::Sum)?;
    assert_eq!(wide, (Tensor::arange(6, FLOAT).view([2, 3]) * size as f64 + sum as f64).tr());
    Ok(())
}

fn broadcast(group: &ProcessGroup) -> Result<(), torch_ext::Error> {
    let make = |rank: usize| {
        let value = rank as f64 + 0.5;
        [
            Tensor::full([4, 3], value, FLOAT).set_requires_grad(true),
            Tensor::full([70_000], 2.0 * value, FLOAT),
            Tensor::full([7], 4.0 * value, (Kind::BFloat16, Device::Cpu)),
            Tensor::full([2], rank as i64, (Kind::Int64, Device::Cpu)),
        ]
    };
    for root in [2, 0] {
        let mine = make(group.rank());
        group.broadcast(&mine, root)?;
        assert_eq!(mine, make(root));
    }
    assert!(group.broadcast(&[], 3).unwrap_err().to_string().contains("rank 3 cannot broadcast to 3 ranks"));
    Ok(())
}

fn text(group: &ProcessGroup) -> Result<(), torch_ext::Error> {
    let make = |rank: usize| match rank {
        0 => "Gr\u{fc}\u{df}e, \u{4e16}\u{754c}\nand a second line".to_owned(),
        1 => String::new(),
        _ => "long ".repeat(50_000),
    };
    let all: Vec<String> = (0..group.world_size()).map(make).collect();
    assert_eq!(group.all_gather_text(&make(group.rank()))?, all);
    assert_eq!(group.all_gather_text("")?, vec![""; all.len()]);
    Ok(())
}

fn barrier(group: &ProcessGroup) -> Result<(), torch_ext::Error> {
    group.barrier()?;
    let since = Instant::now();
    if group.rank() == 1 {
        std::thread::sleep(Duration::from_millis(300));
    }
    group.barrier()?;
    assert!(since.elapsed() >= Duration::from_millis(280), "{:?}", since.elapsed());
    Ok(())
}

/// A model with one layer between an embedding and a head that share their weights.
struct TiedModel {
    names: Vec<String>,
    parameters: Vec<Tensor>,
}

impl TiedModel {
    fn new() -> Self {
        tch::manual_seed(1);
        let names = ["wte", "h.weight", "h.bias"].map(str::to_owned).to_vec();
        let sizes: [&[i64]; 3] = [&[50, 24], &[24, 24], &[24]];
        let parameters = sizes.map(|size| Tensor::randn(size, FLOAT).set_requires_grad(true)).into();
        TiedModel { names, parameters }
    }

    fn loss(&self, step: i64, rank: usize) -> Tensor {
        let [wte, weight, bias] = &self.parameters[..] else { unreachable!() };
        let ids = (Tensor::arange(8, (Kind::Int64, Device::Cpu)) * (step + 3) + 7 * rank as i64).remainder(50);
        let hidden = (Tensor::embedding(wte, &ids, -1, false, false).matmul(weight) + bias).tanh();
        hidden.matmul(&wte.tr()).cross_entropy_for_logits(&((ids + 1).remainder(50)))
    }

    /// Computes the mean gradients over micro-batches. The gradients are reduced in the last one.
    fn step(
        &self,
        reducer: &Reducer,
        step: i64,
        rank: usize,
        micro_batches: i64,
        clear: bool,
    ) -> Result<(), torch_ext::Error> {
        for p in &self.parameters {
            if clear {
                torch_ext::clear_grad(p)?;
            } else if p.grad().defined() {
                let _ = p.grad().zero_();
            }
        }
        for micro_batch in 0..micro_batches {
            let reduces = micro_batch + 1 == micro_batches;
            reducer.before_forward(reduces)?;
            let loss = self.loss(step * micro_batches + micro_batch, rank) / micro_batches as f64;
            reducer.before_backward(reduces)?;
            loss.f_backward()?;
            reducer.after_backward(reduces)?;
        }
        Ok(())
    }

    /// Returns the expected gradients of a step, computed without a process group.
    fn expected(&self, step: i64, world_size: usize, micro_batches: i64) -> Vec<Tensor> {
        let mut sums: Vec<Tensor> = self.parameters.iter().map(Tensor::zeros_like).collect();
        for rank in 0..world_size {
            let copy = TiedModel {
                names: Vec::new(),
                parameters: self.parameters.iter().map(|p| p.detach().copy().set_requires_grad(true)).collect(),
            };
            for micro_batch in 0..micro_batches {
                (copy.loss(step * micro_batches + micro_batch, rank) / micro_batches as f64).backward();
            }
            for (sum, p) in sums.iter_mut().zip(&copy.parameters) {
                *sum += p.grad();
            }
        }
        sums.into_iter().map(|sum| sum / world_size as f64).collect()
    }
}

/// Hashes the bits of tensors.
fn hash_bits(tensors: impl Iterator<Item = Tensor>) -> String {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for tensor in tensors {
        for value in Vec::<f32>::try_from(tensor.flatten(0, -1)).unwrap() {
            hash = (hash ^ u64::from(value.to_bits())).wrapping_mul(0x0100_0000_01b3);
        }
    }
    format!("{hash:x}")
}

fn gradients(group: &ProcessGroup) -> Result<(), torch_ext::Error> {
    let (rank, size) = (group.rank(), group.world_size());
    for clear in [true, false] {
        let model = TiedModel::new();
        // One bucket has the bias and the weight of the layer, the other has the embedding.
        let reducer = Reducer::new(group, &model.names, &model.parameters, 2000)?;
        for step in 0..4 {
            model.step(&reducer, step, rank, 3, clear)?;
            for (p, expected) in model.parameters.iter().zip(model.expected(step, size, 3)) {
                let distance = (p.grad() - &expected).abs().max().double_value(&[]);
                // With up to two ranks there is one sum and an exact division.
                let bound = if size <= 2 { 0.0 } else { 1e-6 };
                assert!(distance <= bound, "{distance} at step {step}");
            }
            let all = group.all_gather_text(&hash_bits(model.parameters.iter().map(Tensor::grad)))?;
            assert!(all.iter().all(|hash| *hash == all[0]), "step {step}: {all:?}");
        }
        reducer.before_forward(true)?;
        let statistics = reducer.statistics()?;
        let bytes: usize = statistics.bucket_bytes.iter().sum();
        assert_eq!(bytes, 4 * (50 * 24 + 24 * 24 + 24));
        assert!(statistics.rebuilt && statistics.bucket_bytes.len() == 2, "{statistics:?}");
        assert!(statistics.steps > 0 && statistics.backward_seconds > 0.0, "{statistics:?}");
        assert!(statistics.communication_seconds > 0.0 && statistics.overlap_seconds >= 0.0, "{statistics:?}");
    }
    Ok(())
}

/// The fused kernels of the model: the gradient of the embedding is sparse, that of the head dense.
fn tied(group: &ProcessGroup) -> Result<(), torch_ext::Error> {
    let (rank, size) = (group.rank(), group.world_size());
    let loss = |wte: &Tensor, step: i64, rank: usize| {
        let ids = (Tensor::arange(6, (Kind::Int64, Device::Cpu)) * (step + 1) + rank as i64).remainder(20);
        let x = Tensor::embedding(wte, &ids, -1, false, true).tanh();
        x.matmul(&wte.tr()).cross_entropy_for_logits(&ids)
    };
    let fresh = || Tensor::arange(100, FLOAT).sin().view([20, 5]).set_requires_grad(true);
    let wte = fresh();
    let reducer = Reducer::new(group, &["wte".to_owned()], &[wte.shallow_clone()], 1 << 20)?;
    for step in 0..4 {
        torch_ext::clear_grad(&wte)?;
        let mut expected = Tensor::zeros([20, 5], FLOAT);
        for micro_batch in 0..2 {
            reducer.before_forward(micro_batch == 1)?;
            let loss = loss(&wte, 2 * step + micro_batch, rank);
            reducer.before_backward(micro_batch == 1)?;
            loss.f_backward()?;
            reducer.after_backward(micro_batch == 1)?;
        }
        for rank in 0..size {
            let copy = fresh();
            for micro_batch in 0..2 {
                loss(&copy, 2 * step + micro_batch, rank).backward();
            }
            expected += copy.grad();
        }
        assert!(!wte.grad().is_sparse());
        let distance = (wte.grad() - expected / size as f64).abs().max().double_value(&[]);
        assert!(distance < 1e-6, "{distance} at step {step}");
    }
    Ok(())
}

fn unused(group: &ProcessGroup) -> Result<(), torch_ext::Error> {
    let used = Tensor::ones([4], FLOAT).set_requires_grad(true);
    let unused = Tensor::ones([4], FLOAT).set_requires_grad(true);
    let names = ["wte", "body.unused.weight"].map(str::to_owned);
    let reducer = Reducer::new(group, &names, &[used.shallow_clone(), unused], 1 << 20)?;
    reducer.before_forward(true)?;
    let loss = (&used * &used).sum(Kind::Float);
    reducer.before_backward(true)?;
    loss.f_backward()?;
    reducer.after_backward(true)
}

/// Runs only with a GPU.
fn nccl(group: &ProcessGroup) -> Result<(), torch_ext::Error> {
    torch_ext::set_cuda_device(0)?;
    let t = Tensor::ones([100], (Kind::Float, Device::Cuda(0)));
    for op in [ReduceOp::Sum, ReduceOp::Mean, ReduceOp::Max] {
        group.all_reduce(&t, op)?;
    }
    assert_eq!(t.sum(Kind::Float).double_value(&[]), 100.0);
    Ok(())
}

fn hang(group: &ProcessGroup) -> Result<(), torch_ext::Error> {
    group.set_timeout(Duration::from_millis(1500))?;
    group.barrier()?;
    if group.rank() == 1 {
        std::thread::sleep(Duration::from_secs(4));
        exit_now(0);
    }
    let since = Instant::now();
    let result = group.all_reduce(&Tensor::ones([10], FLOAT), ReduceOp::Sum);
    if let Err(error) = result {
        eprintln!("{error}\n{}", since.elapsed().as_secs_f64());
        exit_now(if CollectiveFailure::from_message(&error.to_string()) == CollectiveFailure::TimedOut {
            4
        } else {
            1
        });
    }
    Ok(())
}
