//! Tests of plans: the published run, small runs and warnings.

use super::*;
use crate::config::Precision;
use model::Architecture;

fn plan_with(config: &Config, options: PlanOptions) -> RunPlan {
    let tokens = TokenCount { training: options.train_tokens, validation: Some(4_434_897) };
    RunPlan::with_machine(config, &options, true, tokens, None, None).unwrap()
}

fn published_plan() -> RunPlan {
    let options = PlanOptions {
        train_tokens: Some(9_035_582_198),
        processes: 4,
        tokens_per_second: Some(168_000.0),
        rates: CostRates { watts: Some(400.0), price_per_hour: Some(2.0) },
        ..PlanOptions::default()
    };
    plan_with(&Config::example(), options)
}

/// The expected values are those of the paper and the published checkpoint.
#[test]
fn plan_of_the_published_run_has_its_values() {
    let plan = published_plan();
    assert_eq!((plan.parameters, plan.tokens), (170_083_584, 52_428_800_000));
    assert_eq!(plan.parameters_by_part.iter().map(|part| part.parameters).sum::<i64>(), plan.parameters);
    let by_part: Vec<i64> = plan.parameters_by_part.iter().map(|part| part.parameters).collect();
    // 50,264 x 768; 512 x 768; GPT-2 small's 124,051,968 without them; the sense network's MLPs
    // 768-3072-768 and 768-3072-12288 with three norms; 768 x 1536 and its bias.
    assert_eq!(by_part, [38_602_752, 393_216, 85_056_000, 44_850_432, 1_181_184]);
    assert!((plan.flops_per_token / 1.115e9 - 1.0).abs() < 1e-3 && (plan.flops / 5.85e19 - 1.0).abs() < 2e-3);
    assert!((plan.epochs.unwrap() - 5.80).abs() < 0.005);
    assert_eq!((plan.sequences_per_step, plan.micro_batch, plan.accumulation), (1_024, 16, 16));
    assert_eq!((plan.validations, plan.warnings.len()), (100, 0));
    // docs/gpu.md estimates 87 h (3.6 days) on four A100 at 15% of their peak.
    let days = plan.seconds.unwrap() / 86_400.0;
    assert!((3.6..3.7).contains(&days), "{days}");
    let cost = plan.cost.unwrap();
    assert!((cost.process_hours - 96.0 * days).abs() < 1e-6 && (cost.price.unwrap() - 192.0 * days).abs() < 1e-6);
    assert!((cost.kilowatt_hours.unwrap() - 38.4 * days).abs() < 1e-6);
    // The newest two, the best three, two permanent ones, one of `every_minutes`, and one that is
    // being written.
    assert_eq!((plan.disk.max_checkpoints, plan.disk.bytes_each), (9, 12 * 170_083_584));
}

#[test]
fn gpt2_has_no_senses() {
    let mut config = Config::example();
    config.model = ModelConfig { architecture: Architecture::Gpt2, ..ModelConfig::default() };
    let plan = plan_with(&config, PlanOptions { processes: 1, ..PlanOptions::default() });
    assert_eq!((plan.parameters, plan.parameters_by_part.len()), (124_051_968, 3));
    assert_eq!(plan.parameters_by_part.iter().map(|part| part.parameters).sum::<i64>(), plan.parameters);
    assert!((plan.flops_per_token / 0.799e9 - 1.0).abs() < 1e-3);
    assert!(plan.to_string().contains("time        unknown: use --tokens-per-second"));
}

fn warnings_of(change: impl FnOnce(&mut Config)) -> Vec<String> {
    let mut config = Config::example();
    change(&mut config);
    let options = PlanOptions { processes: 1, tokens_per_second: Some(40_000.0), ..PlanOptions::default() };
    plan_with(&config, options).warnings
}

#[test]
fn probable_mistakes_cause_warnings_and_the_published_run_has_none() {
    let one = |change: fn(&mut Config)| {
        let found = warnings_of(change);
        assert_eq!(found.len(), 1, "{found:?}");
        found.into_iter().next().unwrap()
    };
    assert_eq!(warnings_of(|c| c.checkpoint.every_steps = 500), [""; 0]);
    assert!(
        one(|c| {
            c.schedule.warmup_steps = 60_000;
            c.checkpoint.every_steps = 500
        })
        .contains("is 60% of schedule.max_steps")
    );
    assert!(one(|c| { c.batch.tokens_per_step = 65_536 }).starts_with("batch.tokens_per_step is 65536"));
    assert!(
        one(|c| {
            c.validation.every_steps = 1;
            c.checkpoint.every_steps = 500
        })
        .starts_with("validation takes 74% of the computation, more than training")
    );
    assert!(
        one(|c| {
            c.validation.every_steps = 200_000;
            c.checkpoint.every_steps = 500
        })
        .contains("only the last step is validated")
    );
    assert!(
        one(|c| {
            c.validation.every_steps = 10_007;
            c.checkpoint.every_steps = 500
        })
        .contains("keep_best keeps only the last checkpoint")
    );
    assert!(
        one(|c| c.checkpoint.every_minutes = 0)
            .starts_with("the interval between checkpoints is 1000 steps, and a failure loses up to 3.6 hours")
    );
}

#[test]
fn lack_of_data_memory_and_disk_causes_warnings() {
    let options = PlanOptions { processes: 2, train_tokens: Some(1_000_000), ..PlanOptions::default() };
    let tokens = TokenCount { training: Some(1_000_000), validation: None };
    let plan =
        RunPlan::with_machine(&Config::example(), &options, false, tokens, Some(1 << 30), Some(1 << 30)).unwrap();
    let starts = ["the run has 52432 epochs", "", "checkpoints need 18.4 GB, but 1.1 GB are free"];
    assert_eq!(plan.warnings.len(), 3, "{:?}", plan.warnings);
    for (warning, start) in plan.warnings.iter().zip(starts) {
        assert!(warning.starts_with(start), "{warning}");
    }
    assert!(plan.warnings[1].contains("GB of memory on this machine, which has 1.1 GB"));
}

#[test]
fn throughput_is_read_from_an_output_of_bench() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("bench.json");
    std::fs::write(&file, r#"{"tokens_per_s": 1500.0, "world_size": 2}"#).unwrap();
    assert_eq!(measured_throughput(&file, 8).unwrap(), 6_000.0);
    std::fs::write(&file, "{}").unwrap();
    assert!(
        measured_throughput(&file, 8).unwrap_err().to_string().contains("is not an output of `backpack bench --json`")
    );
}

/// The fused layers do not compute in fp16.
#[test]
fn fp16_on_a_cpu_keeps_as_much_as_on_a_gpu() {
    let activations = |precision: Precision, for_gpu: bool| {
        let mut config = Config::example();
        config.run.precision = precision;
        MemoryEstimate::new(&config, 4, 1, for_gpu).activations
    };
    assert_eq!(activations(Precision::Fp16, false), activations(Precision::Fp16, true));
    assert!(activations(Precision::Bf16, false) < activations(Precision::Fp16, false));
}
