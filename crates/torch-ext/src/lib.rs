//! What tch lacks, behind a small C++ shim over the same libtorch.
//!
//! The only crate with `unsafe` code that touches tensors. Every function gives an `Err`
//! with libtorch's own sentence instead of a C++ exception.
#![allow(unsafe_code)]

pub mod parts;

use std::ffi::{CStr, c_char};
use std::fmt;

use tch::Tensor;
use torch_sys::C_tensor;

unsafe extern "C" {
    fn bpx_fused_adamw(
        params: *const *mut C_tensor,
        grads: *const *mut C_tensor,
        exp_avgs: *const *mut C_tensor,
        exp_avg_sqs: *const *mut C_tensor,
        n: usize,
        step: f64,
        lr: f64,
        beta1: f64,
        beta2: f64,
        weight_decay: f64,
        eps: f64,
    ) -> *mut c_char;
    fn bpx_clip_grad_norm(
        grads: *const *mut C_tensor,
        n: usize,
        max_norm: f64,
        norm: *mut *mut C_tensor,
    ) -> *mut c_char;
    fn bpx_linear_cross_entropy(
        hidden: *mut C_tensor,
        weight: *mut C_tensor,
        targets: *mut C_tensor,
        chunk: i64,
        loss: *mut *mut C_tensor,
    ) -> *mut c_char;
    fn bpx_keep_freed_memory() -> i32;
    fn bpx_load_cuda() -> *mut c_char;
    fn bpx_describe(text: *mut *mut c_char) -> *mut c_char;
    fn free(pointer: *mut std::ffi::c_void);
}

/// What libtorch said when a call failed, in one line and without its backtrace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error(String);

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "libtorch: {}", self.0)
    }
}

impl std::error::Error for Error {}

/// The first line of a libtorch message: the rest is a C++ backtrace.
pub fn first_line(message: &str) -> &str {
    message.lines().next().unwrap_or_default().trim()
}

/// Takes a C string that the shim allocated.
fn take(text: *mut c_char) -> String {
    // SAFETY: the shim returns strings made by strdup: NUL-terminated, ours to free, once.
    unsafe {
        let owned = CStr::from_ptr(text).to_string_lossy().into_owned();
        free(text.cast());
        owned
    }
}

fn check(message: *mut c_char) -> Result<(), Error> {
    if message.is_null() {
        return Ok(());
    }
    Err(Error(first_line(&take(message)).to_owned()))
}

/// Borrowed C++ handles; valid while the tensors are.
fn handles(tensors: &[Tensor]) -> Vec<*mut C_tensor> {
    tensors.iter().map(|t| t.as_ptr().cast_mut()).collect()
}

/// The hyper-parameters of one AdamW update.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamW {
    /// Learning rate of this step.
    pub lr: f64,
    /// Decay rates of the first and second moment.
    pub betas: (f64, f64),
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay (multiplied by `lr`).
    pub weight_decay: f64,
}

/// Updates `params` in place by AdamW in one kernel per tensor list.
///
/// The four lists run in parallel: parameter, its gradient, first and second moment, all
/// fp32 and of one shape. `step` counts from 1 and enters the bias correction.
///
/// # Errors
/// When lengths or shapes disagree.
pub fn fused_adamw(
    params: &[Tensor],
    grads: &[Tensor],
    exp_avgs: &[Tensor],
    exp_avg_sqs: &[Tensor],
    step: u64,
    options: AdamW,
) -> Result<(), Error> {
    let n = params.len();
    if [grads.len(), exp_avgs.len(), exp_avg_sqs.len()] != [n; 3] {
        return Err(Error(format!(
            "fused_adamw: lists of {n}, {}, {} and {} tensors",
            grads.len(),
            exp_avgs.len(),
            exp_avg_sqs.len()
        )));
    }
    // SAFETY: four lists of n live handles each; the shim writes only through them.
    check(unsafe {
        bpx_fused_adamw(
            handles(params).as_ptr(),
            handles(grads).as_ptr(),
            handles(exp_avgs).as_ptr(),
            handles(exp_avg_sqs).as_ptr(),
            n,
            step as f64,
            options.lr,
            options.betas.0,
            options.betas.1,
            options.weight_decay,
            options.eps,
        )
    })
}

/// Scales `grads` in place to a global L2 norm of at most `max_norm`; gives the norm before
/// that as a scalar tensor on their device, so that the host does not wait for it.
///
/// # Errors
/// When `grads` is empty or on several devices.
pub fn clip_grad_norm(grads: &[Tensor], max_norm: f64) -> Result<Tensor, Error> {
    let mut norm = std::ptr::null_mut();
    // SAFETY: live handles; on success the shim stored a tensor that is now ours.
    unsafe {
        check(bpx_clip_grad_norm(handles(grads).as_ptr(), grads.len(), max_norm, &mut norm))?;
        Ok(Tensor::from_ptr(norm))
    }
}

/// Mean cross-entropy, an fp32 scalar, of the logits `hidden [N, D] x weight [V, D]^T`
/// against `targets [N]` (int64), never holding more than `chunk` rows of logits.
///
/// Products are in `hidden`'s type, softmax and loss in fp32. Differentiable once in
/// `hidden` and `weight` (whose gradient is fp32).
///
/// # Errors
/// When shapes disagree or memory runs out.
pub fn linear_cross_entropy(hidden: &Tensor, weight: &Tensor, targets: &Tensor, chunk: i64) -> Result<Tensor, Error> {
    let mut loss = std::ptr::null_mut();
    // SAFETY: live handles; on success the shim stored a tensor that is now ours.
    unsafe {
        check(bpx_linear_cross_entropy(
            hidden.as_ptr().cast_mut(),
            weight.as_ptr().cast_mut(),
            targets.as_ptr().cast_mut(),
            chunk,
            &mut loss,
        ))?;
        Ok(Tensor::from_ptr(loss))
    }
}

/// Keeps large freed blocks in the process instead of handing each back to the kernel: a
/// training step frees and takes the same gigabytes over and over, and faulting them in
/// again costs up to a third of it. Raises the resident memory to its peak. Gives whether
/// malloc agreed (glibc does). Call it first, before threads start.
pub fn keep_freed_memory() -> bool {
    // SAFETY: mallopt only changes thresholds of the allocator.
    unsafe { bpx_keep_freed_memory() == 1 }
}

/// Loads libtorch's CUDA libraries into this process, which links only the CPU ones.
///
/// # Errors
/// With the loader's sentence when `libtorch_cuda.so` or something it needs is missing.
pub fn load_cuda() -> Result<(), Error> {
    // SAFETY: dlopen runs library constructors; libtorch's are made to be loaded this way.
    check(unsafe { bpx_load_cuda() })
}

/// What libtorch says of itself.
#[derive(Debug, Clone)]
pub struct Description {
    /// libtorch's version, for instance `2.13.0`.
    pub version: String,
    /// The vector instructions its kernels use on this machine.
    pub cpu_capability: String,
    /// The matrix-product library for bf16 and convolutions.
    pub onednn: String,
    /// The BLAS.
    pub mkl: String,
}

/// Asks libtorch for its version and what it was built with.
///
/// # Errors
/// When libtorch throws.
pub fn describe() -> Result<Description, Error> {
    let mut text = std::ptr::null_mut();
    // SAFETY: on success the shim stored a string that is now ours.
    let text = unsafe {
        check(bpx_describe(&mut text))?;
        take(text)
    };
    let mut lines = text.lines().map(|line| line.trim().to_owned());
    let mut next = || lines.next().unwrap_or_default();
    Ok(Description { version: next(), cpu_capability: next(), onednn: next(), mkl: next() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind};

    fn random(shape: &[i64]) -> Tensor {
        Tensor::randn(shape, (Kind::Float, Device::Cpu))
    }

    fn max_difference(a: &Tensor, b: &Tensor) -> f64 {
        (a - b).abs().max().double_value(&[])
    }

    #[test]
    fn fused_adamw_follows_the_formula() {
        tch::manual_seed(1);
        let options = AdamW { lr: 0.01, betas: (0.9, 0.999), eps: 1e-8, weight_decay: 0.1 };
        let p = random(&[7, 5]);
        let (m, v) = (p.zeros_like(), p.zeros_like());
        let (mut want_p, mut want_m, mut want_v) = (p.copy(), p.zeros_like(), p.zeros_like());
        for step in 1..=5 {
            let g = random(&[7, 5]);
            want_m = &want_m * 0.9 + &g * 0.1;
            want_v = &want_v * 0.999 + &g * &g * 0.001;
            let m_hat = &want_m / (1.0 - 0.9_f64.powi(step));
            let v_hat = &want_v / (1.0 - 0.999_f64.powi(step));
            want_p = &want_p * (1.0 - 0.01 * 0.1) - m_hat * 0.01 / (v_hat.sqrt() + 1e-8);
            let lists = [&p, &g, &m, &v].map(|t| [t.shallow_clone()]);
            let [ps, gs, ms, vs] = &lists;
            fused_adamw(ps, gs, ms, vs, step as u64, options).unwrap();
        }
        assert!(max_difference(&p, &want_p) < 1e-6);
        assert!(max_difference(&v, &want_v) < 1e-6);
    }

    #[test]
    fn fused_adamw_refuses_lists_of_different_lengths() {
        let t = [random(&[2])];
        let options = AdamW { lr: 0.01, betas: (0.9, 0.999), eps: 1e-8, weight_decay: 0.0 };
        let error = fused_adamw(&t, &[], &t, &t, 1, options).unwrap_err();
        assert!(error.to_string().contains("lists of 1, 0, 1 and 1"), "{error}");
    }

    #[test]
    fn clipping_gives_the_norm_before_and_leaves_small_gradients_alone() {
        let grads = [Tensor::from_slice(&[3f32, 0.0]), Tensor::from_slice(&[4f32])];
        let norm = clip_grad_norm(&grads, 10.0).unwrap();
        assert!((norm.double_value(&[]) - 5.0).abs() < 1e-6);
        assert_eq!(grads[1].double_value(&[0]), 4.0);
        let norm = clip_grad_norm(&grads, 1.0).unwrap();
        assert!((norm.double_value(&[]) - 5.0).abs() < 1e-6);
        assert!((grads[0].double_value(&[0]) - 0.6).abs() < 1e-6);
        assert!((grads[1].double_value(&[0]) - 0.8).abs() < 1e-6);
    }

    /// The oracle: whole logits, libtorch's own cross-entropy and autograd.
    fn plain(hidden: &Tensor, weight: &Tensor, targets: &Tensor) -> Tensor {
        hidden.linear::<Tensor>(weight, None).to_kind(Kind::Float).cross_entropy_for_logits(targets)
    }

    #[test]
    fn linear_cross_entropy_equals_whole_logits_for_every_chunk() {
        tch::manual_seed(2);
        let targets = Tensor::randint(13, [10], (Kind::Int64, Device::Cpu));
        for chunk in [1, 3, 10, 64] {
            let (h, w) = (random(&[10, 6]), random(&[13, 6]));
            let leaves = |t: &Tensor| t.copy().set_requires_grad(true);
            let (h1, w1, h2, w2) = (leaves(&h), leaves(&w), leaves(&h), leaves(&w));
            let want = plain(&h1, &w1, &targets);
            let got = linear_cross_entropy(&h2, &w2, &targets, chunk).unwrap();
            (&want * 0.25).backward();
            (&got * 0.25).backward();
            assert!(max_difference(&want, &got) < 1e-6);
            assert!(max_difference(&h1.grad(), &h2.grad()) < 1e-6);
            assert!(max_difference(&w1.grad(), &w2.grad()) < 1e-6);
            let without = tch::no_grad(|| linear_cross_entropy(&h2, &w2, &targets, chunk)).unwrap();
            assert!(!without.requires_grad());
            assert!(max_difference(&want, &without) < 1e-6);
        }
    }

    #[test]
    fn linear_cross_entropy_in_bf16_stays_near_fp32() {
        tch::manual_seed(3);
        let targets = Tensor::randint(50, [32], (Kind::Int64, Device::Cpu));
        let (h, w) = (random(&[32, 16]), random(&[50, 16]).set_requires_grad(true));
        let h16 = h.to_kind(Kind::BFloat16).set_requires_grad(true);
        let loss = linear_cross_entropy(&h16, &w, &targets, 8).unwrap();
        loss.backward();
        assert_eq!((loss.kind(), w.grad().kind(), h16.grad().kind()), (Kind::Float, Kind::Float, Kind::BFloat16));
        let want = plain(&h, &w, &targets);
        assert!((loss.double_value(&[]) - want.double_value(&[])).abs() < 0.03);
    }

    #[test]
    fn a_wrong_shape_is_an_error_in_one_line() {
        let targets = Tensor::from_slice(&[1i64]);
        let error = linear_cross_entropy(&random(&[2, 3]), &random(&[4, 3]), &targets, 8).unwrap_err();
        let text = error.to_string();
        assert!(text.starts_with("libtorch: linear_cross_entropy wants") && !text.contains('\n'), "{text}");
    }

    #[test]
    fn libtorch_describes_itself() {
        assert!(describe().unwrap().version.starts_with("2.13.0"));
    }

    #[test]
    fn loading_cuda_works_or_says_what_is_missing() {
        if let Err(error) = load_cuda() {
            assert!(error.to_string().contains(".so"), "{error}");
        }
    }
}
