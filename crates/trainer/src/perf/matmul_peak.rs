//! Peak throughput of matrix products, the reference for utilization.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tch::{Device, Kind, Tensor};

/// Rows, inner length and columns of the products, in ascending order of cost: the MLP of the small
/// model, a block of the micro model's output layer, and a large square.
const SHAPES: [[i64; 3]; 3] = [[2048, 768, 3072], [2048, 384, 50264], [4096, 4096, 4096]];
/// Measurements of each product. The fastest one counts.
const REPEATS: usize = 3;

/// Time limit of the measurement before a training. On two Zen 4 cores it is enough for each
/// product once in fp32, which is slower than bf16 there.
const TRAIN_BUDGET: Duration = Duration::from_millis(1_500);
/// Time limit of the measurement in a benchmark. It is enough for every repetition on any machine
/// that can train.
pub(crate) const BENCH_BUDGET: Duration = Duration::from_secs(60);

/// How the products of one shape are timed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct ProductTiming {
    /// Whether one product runs untimed before the measurements.
    warm_up: bool,
    /// Products per measurement.
    products: u32,
}

impl ProductTiming {
    /// Returns the timing for a device.
    fn on(device: Device) -> Self {
        if device.is_cuda() {
            // The first product of a shape creates the handle and the workspace of cuBLAS and loads
            // a kernel, which takes longer than many products. One of the large products takes 0.2
            // ms on an H100, and a synchronization 10 us, so 20 products keep its share below 1%.
            ProductTiming { warm_up: true, products: 20 }
        } else {
            ProductTiming { warm_up: false, products: 1 }
        }
    }
}

/// Measures the peak throughput in FLOP/s that a training run relates its speed to, for products of
/// type `kind` on `device`.
pub fn matmul_peak(kind: Kind, device: Device) -> Result<f64> {
    measure_matmul_peak(kind, device, TRAIN_BUDGET, product)
}

/// Measures the highest throughput of `multiply` in FLOP/s over a few shapes, with the threads of
/// this process.
///
/// Products that would exceed `budget` are skipped: repetitions first, then the large products. The
/// first product is always measured. On a GPU, each shape has a warm-up, which does not count toward
/// the budget. `multiply(a, b, out)` writes a times b to `out`, as [`product`] does. The function
/// does not use a random generator.
pub(crate) fn measure_matmul_peak(
    kind: Kind,
    device: Device,
    budget: Duration,
    multiply: impl Fn(&Tensor, &Tensor, &Tensor) -> Result<()>,
) -> Result<f64> {
    measure_with_timing(kind, device, budget, ProductTiming::on(device), multiply)
}

/// The function [`measure_matmul_peak`] with the given timing.
fn measure_with_timing(
    kind: Kind,
    device: Device,
    budget: Duration,
    timing: ProductTiming,
    multiply: impl Fn(&Tensor, &Tensor, &Tensor) -> Result<()>,
) -> Result<f64> {
    // A CPU without fp16 instructions multiplies fp16 in a slow scalar loop, so fp32 is measured
    // instead.
    let kind = if kind == Kind::Half && device == Device::Cpu { Kind::Float } else { kind };
    let start = Instant::now();
    let mut warm_up_time = Duration::ZERO;
    let products = f64::from(timing.products);
    let affordable = |flops: f64, best: f64, warm_up_time: Duration| {
        let elapsed = start.elapsed().saturating_sub(warm_up_time).as_secs_f64();
        best == 0.0 || elapsed + products * flops / best <= budget.as_secs_f64()
    };
    let mut best = 0.0_f64;
    for (i, shape) in SHAPES.iter().enumerate() {
        if !affordable(flops(shape), best, warm_up_time) {
            continue;
        }
        let [rows, inner, columns] = *shape;
        let (a, b) = (operand(rows, inner, kind, device)?, operand(inner, columns, kind, device)?);
        // Zeros are written, so that no page faults occur during the measurement.
        let out = Tensor::f_zeros([rows, columns], (kind, device))?;
        let multiply_once = || {
            multiply(&a, &b, &out).with_context(|| format!("cannot multiply [{rows}, {inner}] x [{inner}, {columns}]"))
        };
        if timing.warm_up {
            let warm_up_start = Instant::now();
            multiply_once()?;
            torch_ext::profiler::synchronize()?;
            warm_up_time += warm_up_start.elapsed();
        }
        // A repetition must leave time for one measurement of each remaining shape.
        let with_remaining: f64 = SHAPES[i..].iter().map(flops).sum();
        for repeat in 0..REPEATS {
            if repeat > 0 && !affordable(with_remaining, best, warm_up_time) {
                break;
            }
            torch_ext::profiler::synchronize()?;
            let products_start = Instant::now();
            for _ in 0..timing.products {
                multiply_once()?;
            }
            torch_ext::profiler::synchronize()?;
            best = best.max(products * flops(shape) / products_start.elapsed().as_secs_f64());
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

    #[test]
    fn only_a_gpu_has_a_warm_up_and_several_products_per_measurement() {
        assert_eq!(ProductTiming::on(Device::Cpu), ProductTiming { warm_up: false, products: 1 });
        let ProductTiming { warm_up, products } = ProductTiming::on(Device::Cuda(0));
        assert!(warm_up && products > 1);
    }

    /// The first product takes 300 ms, as the start of cuBLAS does, and the others 2 ms.
    #[test]
    fn a_slow_first_product_does_not_lower_the_peak_after_a_warm_up() {
        let measure = |warm_up: bool| {
            let products = Cell::new(0);
            let slow_first = |_: &Tensor, _: &Tensor, _: &Tensor| {
                std::thread::sleep(Duration::from_millis(if products.get() == 0 { 300 } else { 2 }));
                products.set(products.get() + 1);
                Ok(())
            };
            let timing = ProductTiming { warm_up, products: 4 };
            let budget = Duration::ZERO;
            let peak = measure_with_timing(Kind::Float, Device::Cpu, budget, timing, slow_first).unwrap();
            (peak, products.get())
        };
        let first_shape = flops(&SHAPES[0]);
        let (peak, products) = measure(false);
        assert!(peak < 4.0 * first_shape / 0.3, "{peak}");
        assert_eq!(products, 4);
        let (peak, products) = measure(true);
        // Far above the throughput with the first product, even if this thread sleeps too long.
        assert!(peak > 4.0 * first_shape / 0.15 && peak < first_shape / 0.002, "{peak}");
        assert_eq!(products, 5);
    }

    #[test]
    fn the_warm_up_does_not_count_toward_the_budget() {
        let products = Cell::new(0);
        let slow_first = |_: &Tensor, _: &Tensor, _: &Tensor| {
            if products.get() == 0 {
                std::thread::sleep(Duration::from_millis(4_100));
            }
            products.set(products.get() + 1);
            Ok(())
        };
        let timing = ProductTiming { warm_up: true, products: 2 };
        measure_with_timing(Kind::Float, Device::Cpu, Duration::from_secs(4), timing, slow_first).unwrap();
        assert_eq!(products.get(), SHAPES.len() * (1 + 2 * REPEATS));
    }
}
