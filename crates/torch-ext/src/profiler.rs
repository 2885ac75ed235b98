//! What a step takes: its time by part, and its device's memory.
//!
//! One stop watch for the process, since the parts of a step lie in several crates. A lap
//! gives the time since the last one to a part. In the forward pass the parts follow one
//! another in the code; in the backward pass, which autograd walks by itself, [`mark`]s in
//! the graph say where it is.

use std::ffi::c_char;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tch::{Device, Tensor};
use torch_sys::C_tensor;

use crate::error::{Error, check};

unsafe extern "C" {
    fn bpx_mark(
        x: *mut C_tensor,
        reached: extern "C" fn(*const c_char, usize),
        part: *const c_char,
        length: usize,
        out: *mut *mut C_tensor,
    ) -> *mut c_char;
    fn bpx_synchronise() -> *mut c_char;
    fn bpx_peak_gpu_memory(index: i64, bytes: *mut i64) -> *mut c_char;
    fn bpx_gpu_memory(index: i64, free: *mut i64, total: *mut i64) -> *mut c_char;
}

struct SectionTimer {
    /// When the running lap began.
    since: Option<Instant>,
    /// Seconds by part, in order of first appearance.
    parts: Vec<(&'static str, f64)>,
    /// Each lap by itself, where they are asked for.
    laps: Option<Vec<Lap>>,
}

/// A stretch of a step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Lap {
    /// Whose time it was.
    pub part: &'static str,
    /// When it began.
    pub begun: Instant,
    /// How long it took.
    pub seconds: f64,
}

static RUNNING: AtomicBool = AtomicBool::new(false);
static WATCH: Mutex<SectionTimer> = Mutex::new(SectionTimer { since: None, parts: Vec::new(), laps: None });

fn watch() -> MutexGuard<'static, SectionTimer> {
    // A panic elsewhere leaves whole numbers behind.
    WATCH.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Forgets what was measured and begins a lap.
pub fn start() {
    begin(None);
}

/// The same, and each lap is kept by itself for [`take_laps`].
pub fn start_with_laps() {
    begin(Some(Vec::new()));
}

fn begin(laps: Option<Vec<Lap>>) {
    *watch() = SectionTimer { since: Some(now()), parts: Vec::new(), laps };
    RUNNING.store(true, Ordering::Relaxed);
}

/// Goes on after [`stop`]; the time between belongs to no part.
pub fn resume() {
    watch().since = Some(now());
    RUNNING.store(true, Ordering::Relaxed);
}

/// Measures no more; what was measured stays.
pub fn stop() {
    RUNNING.store(false, Ordering::Relaxed);
}

/// Seconds by part since [`start`], in order of first appearance; forgets them.
pub fn take() -> Vec<(String, f64)> {
    std::mem::take(&mut watch().parts).into_iter().map(|(part, seconds)| (part.to_owned(), seconds)).collect()
}

/// The laps since [`start_with_laps`], in order; forgets them.
pub fn take_laps() -> Vec<Lap> {
    watch().laps.take().unwrap_or_default()
}

/// Gives the time since the last lap to `part`, a GPU's work included. Nothing, and at no
/// cost, while the watch is stopped.
pub fn lap(part: &'static str) {
    if !RUNNING.load(Ordering::Relaxed) {
        return;
    }
    let now = now();
    let mut watch = watch();
    let begun = watch.since.replace(now).unwrap_or(now);
    let seconds = now.duration_since(begun).as_secs_f64();
    if let Some(laps) = &mut watch.laps {
        laps.push(Lap { part, begun, seconds });
    }
    match watch.parts.iter_mut().find(|(name, _)| *name == part) {
        Some((_, sum)) => *sum += seconds,
        None => watch.parts.push((part, seconds)),
    }
}

/// The clock once the device has done what was asked of it.
fn now() -> Instant {
    // A device that cannot be waited for will say so itself, at the next thing asked of it.
    let _ = synchronise();
    Instant::now()
}

/// A lap for `forward`, and `x` with a mark: when the backward pass comes to it, that is a
/// lap for `backward`, the gradient of all that stands after `x`. The values and the
/// gradient stay the same. While the watch is stopped: `x`, and nothing in the graph.
///
/// # Panics
/// When libtorch refuses, as tch's own methods do.
pub fn mark(x: &Tensor, forward: &'static str, backward: &'static str) -> Tensor {
    if !RUNNING.load(Ordering::Relaxed) {
        return x.shallow_clone();
    }
    lap(forward);
    if !x.requires_grad() {
        return x.shallow_clone();
    }
    let mut out = std::ptr::null_mut();
    // SAFETY: a live handle and a name that lives as long as the process; on success the
    // shim stored a tensor that is now ours.
    unsafe {
        let said = bpx_mark(x.as_ptr().cast_mut(), reached, backward.as_ptr().cast(), backward.len(), &mut out);
        check(said).expect("libtorch makes a view");
        Tensor::from_ptr(out)
    }
}

/// What the backward pass calls at a mark.
extern "C" fn reached(part: *const c_char, length: usize) {
    // SAFETY: the pointer and length of the `&'static str` that `mark` gave.
    let part: &'static str =
        unsafe { std::str::from_utf8_unchecked(std::slice::from_raw_parts(part.cast::<u8>(), length)) };
    lap(part);
}

/// Waits until the GPU in use has done what was asked of it; returns at once without one.
///
/// # Errors
/// When the GPU has failed.
pub fn synchronise() -> Result<(), Error> {
    // SAFETY: takes nothing.
    check(unsafe { bpx_synchronise() })
}

/// The most bytes that tensors have held at once on a GPU; `None` for the CPU.
///
/// # Errors
/// When CUDA is not loaded.
pub fn peak_device_memory(device: Device) -> Result<Option<u64>, Error> {
    let Device::Cuda(index) = device else { return Ok(None) };
    let mut bytes = 0;
    // SAFETY: the shim writes one number.
    check(unsafe { bpx_peak_gpu_memory(index as i64, &mut bytes) })?;
    Ok(u64::try_from(bytes).ok())
}

/// A GPU's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceMemory {
    /// Bytes that no process has taken.
    pub free: u64,
    /// Bytes that there are.
    pub total: u64,
}

/// The memory of a GPU; `None` for the CPU.
///
/// # Errors
/// When CUDA is not loaded, or there is no such GPU.
pub fn device_memory(device: Device) -> Result<Option<DeviceMemory>, Error> {
    let Device::Cuda(index) = device else { return Ok(None) };
    let (mut free, mut total) = (0, 0);
    // SAFETY: the shim writes two numbers.
    check(unsafe { bpx_gpu_memory(index as i64, &mut free, &mut total) })?;
    Ok(Some(DeviceMemory { free: free as u64, total: total as u64 }))
}

#[cfg(test)]
mod tests {
    use std::thread::sleep;
    use std::time::Duration;

    use tch::Kind;

    use super::*;

    fn leaf() -> Tensor {
        Tensor::ones([3], (Kind::Float, Device::Cpu)).set_requires_grad(true)
    }

    /// One test, since there is one watch.
    #[test]
    fn laps_go_to_their_parts_in_order_and_change_nothing() {
        // Stopped: the same tensor, nothing in the graph, nothing measured.
        let x = leaf();
        let same = mark(&x, "a", "b");
        lap("c");
        assert!(same.is_leaf() && same.data_ptr() == x.data_ptr());
        assert_eq!(take(), []);

        let begun = Instant::now();
        start();
        sleep(Duration::from_millis(20));
        let x = mark(&x, "one", "two backward");
        assert!(!x.is_leaf() && x.requires_grad());
        let squared = &x * &x;
        sleep(Duration::from_millis(40));
        let squared = mark(&squared, "two", "three backward");
        let loss = (&squared * 3.0).sum(Kind::Float);
        lap("three");
        sleep(Duration::from_millis(10));
        loss.backward();
        lap("one backward");
        sleep(Duration::from_millis(5));
        lap("three");
        let wall = begun.elapsed().as_secs_f64();
        stop();
        lap("late");
        let parts = take();
        let names: Vec<&str> = parts.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["one", "two", "three", "three backward", "two backward", "one backward"]);
        let least = [0.020, 0.040, 0.005, 0.010, 0.0, 0.0];
        for ((name, seconds), least) in parts.iter().zip(least) {
            assert!(*seconds >= least, "{name}: {seconds}");
        }
        let sum: f64 = parts.iter().map(|(_, seconds)| seconds).sum();
        assert!((0.075..=wall).contains(&sum), "{sum} of {wall}");
        assert_eq!(take(), []);

        // d/dx 3 x^2 at 1.
        let leaf = leaf();
        start_with_laps();
        let marked = mark(&mark(&leaf, "a", "b"), "c", "d");
        (&marked * &marked * 3.0).sum(Kind::Float).backward();
        assert_eq!(Vec::<f32>::try_from(leaf.grad()).unwrap(), [6.0; 3]);
        // What needs no gradient gets a lap and no mark.
        let without = mark(&Tensor::zeros([2], (Kind::Float, Device::Cpu)), "e", "f");
        assert!(!without.requires_grad());
        let evaluated = tch::no_grad(|| mark(&leaf, "g", "h"));
        assert_eq!(evaluated.data_ptr(), leaf.data_ptr());
        stop();
        lap("between");
        resume();
        lap("g");
        stop();
        let names: Vec<String> = take().into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["a", "c", "d", "b", "e", "g"]);
        let laps = take_laps();
        let names: Vec<&str> = laps.iter().map(|lap| lap.part).collect();
        assert_eq!(names, ["a", "c", "d", "b", "e", "g", "g"]);
        assert!(laps.is_sorted_by_key(|lap| lap.begun) && take_laps().is_empty());
    }

    #[test]
    fn a_cpu_has_no_device_memory_and_is_never_waited_for() {
        assert_eq!(peak_device_memory(Device::Cpu), Ok(None));
        assert_eq!(device_memory(Device::Cpu), Ok(None));
        assert_eq!(synchronise(), Ok(()));
    }

    #[test]
    fn device_memory_without_a_device_is_an_error() {
        if !tch::Cuda::is_available() {
            peak_device_memory(Device::Cuda(0)).unwrap_err();
            device_memory(Device::Cuda(0)).unwrap_err();
            crate::set_cuda_device(0).unwrap_err();
        }
    }
}
