//! AdamW against its formula and clipping against the norm.

use tch::{Device, Kind, Tensor};
use torch_ext::{AdamW, AdamWTensors, UpdateGuard, clipped_adamw};

/// Updates parameter, gradient and moments once; gives the norm.
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
fn clipping_scales_what_the_moments_see() {
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

/// fp32 takes the CPU's way, fp64 the one of a GPU, which is libtorch's fused AdamW.
#[test]
fn what_is_vetoed_or_overflows_changes_nothing_and_a_loss_scale_is_taken_out() {
    for kind in [Kind::Float, Kind::Double] {
        let options = (kind, Device::Cpu);
        let values = Tensor::arange(35, options).sin();
        let grad = Tensor::arange(35, options).cos();
        // One update with all this; gives parameter, moments, copy, count, norm and overflow.
        let update = |grad: &Tensor, loss_scale: Option<f32>, veto: bool| {
            let (p, m, v) = (values.copy(), &values * 0.1, (&values * 0.1).square());
            let (copy, updates) = (values.to_kind(Kind::BFloat16), Tensor::from(4f32));
            let (scale, veto) = (loss_scale.map(Tensor::from), Tensor::from(veto));
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
            let conditions = UpdateGuard { loss_scale: scale.as_ref(), skip: Some(&veto) };
            let done = clipped_adamw(lists, conditions, AdamW { max_norm: 1.0, ..OPTIONS }).expect("the lists fit");
            let overflow = done.overflow.int64_value(&[]) != 0;
            ([p, m, v, copy, updates], done.grad_norm.double_value(&[]), overflow)
        };
        let (plain, norm, overflow) = update(&grad, None, false);
        assert!(!overflow && plain[0] != values && plain[4].double_value(&[]) == 5.0);
        let unchanged = [values.copy(), &values * 0.1, (&values * 0.1).square()];
        let stays = |state: &[Tensor; 5]| {
            state.iter().zip(&unchanged).all(|(now, before)| now == before)
                && state[3] == values.to_kind(Kind::BFloat16)
                && state[4].double_value(&[]) == 4.0
        };
        let (vetoed, vetoed_norm, overflow) = update(&grad, None, true);
        assert!(stays(&vetoed) && vetoed_norm == norm && !overflow, "{kind:?}");
        for bad in [f64::NAN, f64::INFINITY] {
            let broken = grad.copy();
            let _ = broken.narrow(0, 3, 1).fill_(bad);
            let (skipped, norm, overflow) = update(&broken, None, false);
            assert!(stays(&skipped) && !norm.is_finite() && overflow, "{kind:?}");
        }
        // A power of two scales without rounding.
        let (scaled, scaled_norm, overflow) = update(&(&grad * 1024.0), Some(1024.0), false);
        let distance = (&scaled[0] - &plain[0]).abs().max().double_value(&[]);
        assert!(!overflow && (scaled_norm - norm).abs() < 1e-6 && distance < 1e-7, "{kind:?}: {distance}");
    }
}

#[test]
fn lists_of_different_lengths_are_refused() {
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
    assert!(error.to_string().contains("1 parameters, but lists of [0, 1, 1, 1, 1]"), "{error}");
}
