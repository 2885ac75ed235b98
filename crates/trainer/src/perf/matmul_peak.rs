//! Peak throughput of matrix products, the reference for utilization.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tch::{Device, Kind, Tensor};

/// Rows, inner length and columns of the products, in ascending order of cost: the MLP of the small
/// model, a block of the micro model's output layer, and a large square.
const SHAPES: [[i64; 3]; 3] = [[2048, 768, 3072], [2048, 384, 50264], [4096, 4096, 4096]];
/// Repetitions of each product. The fastest one counts.
const REPEATS: usize = 3;

/// Time limit of the measurement before a training. On two Zen 4 cores it is enough for each
/// product once in fp32, which is slower than bf16 there.
const TRAIN_BUDGET: Duration = Duration::from_millis(1_500);
/// Time limit of the measurement in a benchmark. It is enough for every repetition on any machine
/// that can train.
pub(crate) const BENCH_BUDGET: Duration = Duration::from_secs(60);

/// Measures the peak throughput in FLOP/s that a training run relates its speed to, for products of
/// type `kind` on `device`.
pub fn matmul_peak(kind: Kind, device: Device) -> Result<f64> {
    measure_matmul_peak(kind, device, TRAIN_BUDGET, product)
}

/// Measures the highest throughput of `multiply` in FLOP/s over a few shapes, with the threads of
/// this process.
///
/// Products that would exceed `budget` are skipped: repetitions first, then the large products. The
/// first product is always measured. `multiply(a, b, out)` writes a times b to `out`, as
/// [`product`] does. The function does not use a random generator.
pub(crate) fn measure_matmul_peak(
    kind: Kind,
    device: Device,
    budget: Duration,
    multiply: impl Fn(&Tensor, &Tensor, &Tensor) -> Result<()>,
) -> Result<f64> {
    // A CPU without fp16 instructions multiplies fp16 in a slow scalar loop, so fp32 is measured
    // instead.
    let kind = if kind == Kind::Half && device == Device::Cpu { Kind::Float } else { kind };
    let start = Instant::now();
    let affordable =
        |flops: f64, best: f64| best == 0.0 || start.elapsed().as_secs_f64() + flops / best <= budget.as_secs_f64();
    let mut best = 0.0_f64;
    for (i, shape) in SHAPES.iter().enumerate() {
        if !affordable(flops(shape), best) {
            continue;
        }
        let [rows, inner, columns] = *shape;
        let (a, b) = (operand(rows, inner, kind, device)?, operand(inner, columns, kind, device)?);
        // Zeros are written, so that no page faults occur during the measurement.
        let out = Tensor::f_zeros([rows, columns], (kind, device))?;
        // A repetition must leave time for one product of each remaining shape.
        let with_remaining: f64 = SHAPES[i..].iter().map(flops).sum();
        for repeat in 0..REPEATS {
            if repeat > 0 && !affordable(with_remaining, best) {
                break;
            }
            torch_ext::profiler::synchronize()?;
            let product_start = Instant::now();
            multiply(&a, &b, &out)
                .with_context(|| format!("cannot multiply [{rows}, {inner}] x [{inner}, {columns}]"))?;
            torch_ext::profiler::synchronize()?;
            best = best.max(flops(shape) / product_start.elapsed().as_secs_f64());
        }
    }
    Ok(best)
}

/// Returns the floating-point operations of a product.
fn flops([rows, inner, columns]: &[i64; 3]) -> f64 {
    2.0 * (rows * inner * columns) as f64
}

/// Multiplies as a training step does. On the CPU it uses oneDNN for every type, which on some
/// processors is faster than libtorch's default for fp32.
pub(crate) fn product(a: &Tensor, b: &Tensor, out: &Tensor) -> Result<()> {
    Ok(torch_ext::product(out, a, b)?)
}

/// Returns a matrix of the sines of 0, 1, 2 and so on. Products of constants would use less power,
/// and so run at a higher clock frequency, than those of a training step.
fn operand(rows: i64, columns: i64, kind: Kind, device: Device) -> Result<Tensor> {
    let values = Tensor::f_arange(rows * columns, (Kind::Float, device))?.f_sin_()?;
    Ok(values.f_view([rows, columns])?.f_to_kind(kind)?)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn zero_budget_measures_only_the_first_product() {
        tch::manual_seed(7);
        let state = Tensor::rand([4], (Kind::Float, Device::Cpu));
        tch::manual_seed(7);
        let products = Cell::new(0);
        let counted = |a: &Tensor, b: &Tensor, out: &Tensor| {
            products.set(products.get() + 1);
            assert!(a.size()[1] == b.size()[0] && a.double_value(&[0, 1]) != a.double_value(&[0, 2]));
            product(a, b, out)
        };
        let peak = measure_matmul_peak(Kind::Float, Device::Cpu, Duration::ZERO, counted).unwrap();
        assert!(peak > 1e8 && peak < 1e15, "{peak}");
        // The first product is measured with every budget.
        assert_eq!(products.get(), 1);
        assert_eq!(state, Tensor::rand([4], (Kind::Float, Device::Cpu)), "the random generator was used");
    }

    #[test]
    fn large_budget_measures_every_shape() {
        let shapes = Cell::new(Vec::new());
        let recorded = |a: &Tensor, _: &Tensor, out: &Tensor| {
            let mut all = shapes.take();
            all.push([a.size()[0], a.size()[1], out.size()[1]]);
            shapes.set(all);
            Ok(())
        };
        measure_matmul_peak(Kind::BFloat16, Device::Cpu, BENCH_BUDGET, recorded).unwrap();
        let expected: Vec<[i64; 3]> = SHAPES.iter().flat_map(|shape| [*shape; REPEATS]).collect();
        assert_eq!(shapes.take(), expected);
    }
}
