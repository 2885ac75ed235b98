//! Tests of `clipped_adamw`: the AdamW formula, clipping by the norm, and skipped updates.

use tch::{Device, Kind, Tensor};
use torch_ext::{AdamW, AdamWTensors, UpdateGuard, clipped_adamw};

/// Performs one update of a parameter and its moments, and returns the gradient norm.
fn update([p, g, m, v]: [&Tensor; 4], copy: Option<&Tensor>, step: u64, o: AdamW, decay: f64) -> f64 {
    let list = |t: &Tensor| [t.shallow_clone()];
    let lists = AdamWTensors {
        parameters: &list(p),
        grads: &list(g),
        exp_avgs: &list(m),
        exp_avg_sqs: &list(v),
        low_precision_copies: &[copy.map(Tensor::shallow_clone)],
        weight_decays: &[decay],
        updates: &Tensor::from((step - 1) as f32),
    };
    clipped_adamw(lists, UpdateGuard::default(), o).expect("the lists fit").grad_norm.double_value(&[])
}

const OPTIONS: AdamW = AdamW { lr: 0.01, betas: (0.9, 0.999), eps: 1e-8, max_norm: f64::INFINITY };

#[test]
fn adamw_follows_the_formula() {
    let options = (Kind::Float, Device::Cpu);
    let p = Tensor::arange(35, options).sin().view([7, 5]);
    let copy = p.to_kind(Kind::BFloat16);
    let (m, v) = (p.zeros_like(), p.zeros_like());
    let (mut want_p, mut want_m, mut want_v) = (p.copy(), p.zeros_like(), p.zeros_like());
    for step in 1..=5 {
        let g = (Tensor::arange(35, options) * step).cos().view([7, 5]);
        want_m = &want_m * 0.9 + &g * 0.1;
        want_v = &want_v * 0.999 + &g * &g * 0.001;
        let m_hat = &want_m / (1.0 - 0.9_f64.powi(step as i32));
        let v_hat = &want_v / (1.0 - 0.999_f64.powi(step as i32));
        want_p = &want_p * (1.0 - 0.01 * 0.1) - m_hat * 0.01 / (v_hat.sqrt() + 1e-8);
        let norm = update([&p, &g, &m, &v], Some(&copy), step as u64, OPTIONS, 0.1);
        assert!((norm - g.norm().double_value(&[])).abs() < 1e-5);
    }
    let distance = |a: &Tensor, b: &Tensor| (a - b).abs().max().double_value(&[]);
    assert!(distance(&p, &want_p) < 1e-6);
    assert!(distance(&m, &want_m) < 1e-6);
    assert!(distance(&v, &want_v) < 1e-8);
    assert!(copy == p.to_kind(Kind::BFloat16));
}

#[test]
fn clipping_scales_the_gradient_of_the_moments() {
    let g = Tensor::from_slice(&[3f32, 4.0]);
    let fresh = || [g.zeros_like(), g.zeros_like(), g.zeros_like()];
    let [p, m, v] = fresh();
    assert!((update([&p, &g, &m, &v], None, 1, AdamW { max_norm: 10.0, ..OPTIONS }, 0.0) - 5.0).abs() < 1e-6);
    assert!((m.double_value(&[1]) - 0.4).abs() < 1e-6);
    let [p, m, v] = fresh();
    assert!((update([&p, &g, &m, &v], None, 1, AdamW { max_norm: 1.0, ..OPTIONS }, 0.0) - 5.0).abs() < 1e-6);
    assert!((m.double_value(&[1]) - 0.08).abs() < 1e-6);
    assert_eq!(g.double_value(&[1]), 4.0);
}

/// With fp32 the update uses the CPU kernels, with fp64 libtorch's fused AdamW as on a GPU.
#[test]
fn skipped_update_changes_nothing_and_loss_scale_is_removed() {
    for kind in [Kind::Float, Kind::Double] {
        let options = (kind, Device::Cpu);
        let values = Tensor::arange(35, options).sin();
        let grad = Tensor::arange(35, options).cos();
        // Performs one update. Returns the state (parameter, moments, copy, count), the norm and
        // whether the gradient overflowed.
        let update = |grad: &Tensor, loss_scale: Option<f32>, skip: bool| {
            let (p, m, v) = (values.copy(), &values * 0.1, (&values * 0.1).square());
            let (copy, updates) = (values.to_kind(Kind::BFloat16), Tensor::from(4f32));
            let (scale, skip) = (loss_scale.map(Tensor::from), Tensor::from(skip));
            let list = |t: &Tensor| [t.shallow_clone()];
            let lists = AdamWTensors {
                parameters: &list(&p),
                grads: &[grad.copy()],
                exp_avgs: &list(&m),
                exp_avg_sqs: &list(&v),
                low_precision_copies: &[Some(copy.shallow_clone())],
                weight_decays: &[0.1],
                updates: &updates,
            };
            let guard = UpdateGuard { loss_scale: scale.as_ref(), skip: Some(&skip) };
            let stats = clipped_adamw(lists, guard, AdamW { max_norm: 1.0, ..OPTIONS }).expect("the lists fit");
            let overflow = stats.overflow.int64_value(&[]) != 0;
            ([p, m, v, copy, updates], stats.grad_norm.double_value(&[]), overflow)
        };
        let (unscaled, norm, overflow) = update(&grad, None, false);
        assert!(!overflow && unscaled[0] != values && unscaled[4].double_value(&[]) == 5.0);
        let initial = [values.copy(), &values * 0.1, (&values * 0.1).square()];
        let is_unchanged = |state: &[Tensor; 5]| {
            state.iter().zip(&initial).all(|(now, before)| now == before)
                && state[3] == values.to_kind(Kind::BFloat16)
                && state[4].double_value(&[]) == 4.0
        };
        let (skipped, skipped_norm, overflow) = update(&grad, None, true);
        assert!(is_unchanged(&skipped) && skipped_norm == norm && !overflow, "{kind:?}");
        for bad in [f64::NAN, f64::INFINITY] {
            let bad_grad = grad.copy();
            let _ = bad_grad.narrow(0, 3, 1).fill_(bad);
            let (overflowed, norm, overflow) = update(&bad_grad, None, false);
            assert!(is_unchanged(&overflowed) && !norm.is_finite() && overflow, "{kind:?}");
        }
        // A loss scale that is a power of two causes no rounding.
        let (scaled, scaled_norm, overflow) = update(&(&grad * 1024.0), Some(1024.0), false);
        let distance = (&scaled[0] - &unscaled[0]).abs().max().double_value(&[]);
        assert!(!overflow && (scaled_norm - norm).abs() < 1e-6 && distance < 1e-7, "{kind:?}: {distance}");
    }
}

#[test]
fn lists_of_different_lengths_are_an_error() {
    let t = [Tensor::from_slice(&[1f32])];
    let lists = AdamWTensors {
        parameters: &t,
        grads: &[],
        exp_avgs: &t,
        exp_avg_sqs: &t,
        low_precision_copies: &[None],
        weight_decays: &[0.0],
        updates: &t[0],
    };
    let error = clipped_adamw(lists, UpdateGuard::default(), OPTIONS).unwrap_err();
    assert!(error.to_string().contains("1 parameters, but lists of lengths [0, 1, 1, 1, 1]"), "{error}");
}
