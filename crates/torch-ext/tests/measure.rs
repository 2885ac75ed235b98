use std::time::{Duration, Instant};
use tch::{Device, Kind, Tensor};
use torch_ext::distributed::*;
fn rss() -> (u64, u64) {
    let s = std::fs::read_to_string("/proc/self/status").unwrap();
    let f = |k: &str| {
        s.lines().find(|l| l.starts_with(k)).unwrap().split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
    };
    (f("VmRSS"), f("VmHWM"))
}
#[test]
fn measure() {
    let Ok(rank) = std::env::var("RANK") else { return };
    let rank: usize = rank.parse().unwrap();
    if std::env::var("KEEP").is_ok() {
        torch_ext::keep_freed_memory();
    }
    tch::set_num_threads(1);
    let at = Rendezvous {
        host: "127.0.0.1",
        port: std::env::var("MASTER_PORT").unwrap().parse().unwrap(),
        rank,
        world_size: 2,
        timeout: Duration::from_secs(60),
        interface: None,
        name: "m",
    };
    let group = ProcessGroup::join(&at, Device::Cpu).unwrap();
    let opt = (Kind::Float, Device::Cpu);
    let parameters: Vec<Tensor> = (0..80).map(|_| Tensor::randn([500_000], opt).set_requires_grad(true)).collect();
    let names: Vec<String> = (0..80).map(|i| format!("p{i}")).collect();
    let forget = std::env::var("HOW").unwrap() == "forget";
    let passes: usize = std::env::var("PASSES").unwrap().parse().unwrap();
    let reducer = Reducer::new(&group, &names, &parameters, 25 << 20).unwrap();
    let x = Tensor::randn([500_000], opt);
    let mut times = vec![];
    let mut zeros = vec![];
    for _ in 0..8 {
        group.barrier().unwrap();
        let t = Instant::now();
        for p in &parameters {
            if forget {
                torch_ext::forget_grad(p).unwrap();
            } else if p.grad().defined() {
                let _ = p.grad().zero_();
            }
        }
        zeros.push(t.elapsed().as_secs_f64());
        for pass in 0..passes {
            let r = pass + 1 == passes;
            reducer.before_forward(r).unwrap();
            let mut loss = Tensor::zeros([], opt);
            for p in &parameters {
                loss = loss + (p * &x).sum(Kind::Float);
            }
            reducer.before_backward(r).unwrap();
            loss.f_backward().unwrap();
            reducer.after_backward(r).unwrap();
        }
        times.push(t.elapsed().as_secs_f64());
    }
    reducer.before_forward(true).unwrap();
    let round = |v: &[f64]| v.iter().map(|t| format!("{t:.3}")).collect::<Vec<_>>().join(" ");
    if rank == 0 {
        println!(
            "forget {forget} passes {passes}: steps {} | zeroing {} | rss,peak MB {:?} | {:?}",
            round(&times),
            round(&zeros),
            rss(),
            reducer.statistics().unwrap()
        );
    }
}
