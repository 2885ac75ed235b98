//! The rate of matrix products that utilisation is measured against.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tch::{Device, Kind, Tensor};

/// Rows, inner length and columns: the small model's MLP, a block of the micro model's head,
/// and a large square. From the cheapest on.
const SHAPES: [[i64; 3]; 3] = [[2048, 768, 3072], [2048, 384, 50264], [4096, 4096, 4096]];
/// Of each product, the best of which counts.
const REPEATS: usize = 3;

/// What a training spends on it at most: on two cores of a Zen 4 in fp32, the slower of
/// its precisions, enough for each of the products once.
const BRIEF: Duration = Duration::from_millis(1_500);
/// Enough for every product on anything that can train.
pub(crate) const THOROUGH: Duration = Duration::from_secs(60);

/// What a training with this type of products on this device measures its utilisation
/// against, in FLOP/s.
///
/// # Errors
/// When libtorch refuses.
pub fn matmul_peak(kind: Kind, device: Device) -> Result<f64> {
    measure_matmul_peak(kind, device, BRIEF, product)
}

/// The best rate of `multiply`, in FLOP/s, over a few shapes of operands of type `kind` on
/// `device`, with this process's threads. What would not end within `budget` is left out:
/// repeats first, then the large products; the first one is always done.
///
/// `multiply(a, b, out)` writes a times b to `out`; see [`product`]. Draws from no random
/// generator.
///
/// # Errors
/// When libtorch refuses, for instance for lack of memory.
pub(crate) fn measure_matmul_peak(
    kind: Kind,
    device: Device,
    budget: Duration,
    multiply: impl Fn(&Tensor, &Tensor, &Tensor) -> Result<()>,
) -> Result<f64> {
    // A CPU without fp16 instructions multiplies fp16 in a plain loop, which is no measure of it.
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
        // Written to once, so that no page is faulted in while the clock runs.
        let out = Tensor::f_zeros([rows, columns], (kind, device))?;
        // A repeat must leave time for one of each that is still to come.
        let with_later: f64 = SHAPES[i..].iter().map(flops).sum();
        for repeat in 0..REPEATS {
            if repeat > 0 && !affordable(with_later, best) {
                break;
            }
            torch_ext::profiler::synchronize()?;
            let begun = Instant::now();
            multiply(&a, &b, &out).with_context(|| format!("a product of [{rows}, {inner}] x [{inner}, {columns}]"))?;
            torch_ext::profiler::synchronize()?;
            best = best.max(flops(shape) / begun.elapsed().as_secs_f64());
        }
    }
    Ok(best)
}

fn flops([rows, inner, columns]: &[i64; 3]) -> f64 {
    2.0 * (rows * inner * columns) as f64
}

/// The product as a training step does it: on the CPU by oneDNN in either type, which on some
/// processors is faster than libtorch's own choice for fp32.
///
/// # Errors
/// When libtorch refuses.
pub(crate) fn product(a: &Tensor, b: &Tensor, out: &Tensor) -> Result<()> {
    Ok(torch_ext::product(out, a, b)?)
}

/// Values between -1 and 1 in no order: the sines of whole numbers. Products of ones would
/// draw less power, and so run at a higher clock, than those of a training.
fn operand(rows: i64, columns: i64, kind: Kind, device: Device) -> Result<Tensor> {
    let values = Tensor::f_arange(rows * columns, (Kind::Float, device))?.f_sin_()?;
    Ok(values.f_view([rows, columns])?.f_to_kind(kind)?)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn the_rate_is_that_of_the_best_product() {
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
        // The first of them has to be measured, whatever the budget.
        assert_eq!(products.get(), 1);
        assert_eq!(state, Tensor::rand([4], (Kind::Float, Device::Cpu)), "the generator was drawn from");
    }

    #[test]
    fn a_long_budget_gets_every_shape() {
        let shapes = Cell::new(Vec::new());
        let noted = |a: &Tensor, _: &Tensor, out: &Tensor| {
            let mut all = shapes.take();
            all.push([a.size()[0], a.size()[1], out.size()[1]]);
            shapes.set(all);
            Ok(())
        };
        measure_matmul_peak(Kind::BFloat16, Device::Cpu, THOROUGH, noted).unwrap();
        let expected: Vec<[i64; 3]> = SHAPES.iter().flat_map(|shape| [*shape; REPEATS]).collect();
        assert_eq!(shapes.take(), expected);
    }
}
