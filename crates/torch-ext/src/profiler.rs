//! The time of each section of a training step.
//!
//! A step consists of [`Section`]s, which follow one another. In code that runs forward,
//! [`end_section`] ends one. In the backward pass, which autograd runs, a [`mark`] in the graph
//! ends one.
//!
//! The timer is global state of the process. Its sections end in several crates, and libtorch calls
//! the hooks of the marks from its own threads, with nothing but the number that the mark stored in
//! the graph. A reference to a timer stored there would have to outlive every graph.

use std::ffi::c_char;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tch::Tensor;
use torch_sys::C_tensor;

use crate::error::{Error, check, handle, new_tensor};

unsafe extern "C" {
    fn bpx_mark(
        x: *mut C_tensor,
        reached: extern "C" fn(section: i64),
        section: i64,
        out: *mut *mut C_tensor,
    ) -> *mut c_char;
    fn bpx_synchronize() -> *mut c_char;
}

/// A section of a training step. It displays as the name that logs and reports print.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Section {
    /// Waiting for a micro-batch and copying it to the device.
    Data,
    /// Token and position embeddings.
    Embedding,
    /// The GPT-2 trunk.
    Body,
    /// The sense vectors.
    Senses,
    /// The weighted sum of the senses.
    Mixing,
    /// The output head and the loss, with their gradients where one kernel computes both.
    HeadAndLoss,
    /// The backward pass of [`Section::HeadAndLoss`].
    HeadAndLossBackward,
    /// The backward pass of [`Section::Mixing`].
    MixingBackward,
    /// The backward pass of [`Section::Senses`].
    SensesBackward,
    /// The backward pass of [`Section::Body`].
    BodyBackward,
    /// The backward pass of [`Section::Embedding`].
    EmbeddingBackward,
    /// Clearing the gradients, averaging the loss, clipping and the AdamW update.
    ClipAndOptimizer,
}

impl Section {
    /// All sections, each at the index of its number.
    const ALL: [Section; Section::ClipAndOptimizer as usize + 1] = [
        Section::Data,
        Section::Embedding,
        Section::Body,
        Section::Senses,
        Section::Mixing,
        Section::HeadAndLoss,
        Section::HeadAndLossBackward,
        Section::MixingBackward,
        Section::SensesBackward,
        Section::BodyBackward,
        Section::EmbeddingBackward,
        Section::ClipAndOptimizer,
    ];

    /// Returns the name that logs and reports print.
    pub fn name(self) -> &'static str {
        match self {
            Section::Data => "data",
            Section::Embedding => "embedding",
            Section::Body => "body",
            Section::Senses => "senses",
            Section::Mixing => "mixing",
            Section::HeadAndLoss => "head and loss",
            Section::HeadAndLossBackward => "head and loss backward",
            Section::MixingBackward => "mixing backward",
            Section::SensesBackward => "senses backward",
            Section::BodyBackward => "body backward",
            Section::EmbeddingBackward => "embedding backward",
            Section::ClipAndOptimizer => "clip and optimizer",
        }
    }
}

impl fmt::Display for Section {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// One execution of a section.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SectionSpan {
    /// The section.
    pub section: Section,
    /// When the execution started.
    pub start: Instant,
    /// Duration of the execution in seconds.
    pub seconds: f64,
}

struct SectionTimer {
    /// When the current section started.
    section_start: Option<Instant>,
    /// Total seconds per section, in order of first appearance.
    totals: Vec<(Section, f64)>,
    /// Every execution of a section, if requested.
    spans: Option<Vec<SectionSpan>>,
}

static RUNNING: AtomicBool = AtomicBool::new(false);
static TIMER: Mutex<SectionTimer> = Mutex::new(SectionTimer { section_start: None, totals: Vec::new(), spans: None });

fn timer() -> MutexGuard<'static, SectionTimer> {
    // A panic in another thread leaves the numbers valid.
    TIMER.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Discards all measurements and starts the timer.
pub fn start() {
    restart(None);
}

/// Discards all measurements and starts the timer, which also keeps each [`SectionSpan`] for
/// [`take_spans`].
pub fn start_with_spans() {
    restart(Some(Vec::new()));
}

fn restart(spans: Option<Vec<SectionSpan>>) {
    *timer() = SectionTimer { section_start: Some(now()), totals: Vec::new(), spans };
    RUNNING.store(true, Ordering::Relaxed);
}

/// Starts the timer again after [`stop`]. The time between the two calls counts for no section.
pub fn resume() {
    timer().section_start = Some(now());
    RUNNING.store(true, Ordering::Relaxed);
}

/// Stops the timer and keeps the measurements.
pub fn stop() {
    RUNNING.store(false, Ordering::Relaxed);
}

/// Returns and discards the seconds per section since [`start`], in order of first appearance.
pub fn take_totals() -> Vec<(Section, f64)> {
    std::mem::take(&mut timer().totals)
}

/// Returns and discards the executions of sections since [`start_with_spans`], in order.
pub fn take_spans() -> Vec<SectionSpan> {
    timer().spans.take().unwrap_or_default()
}

/// Ends `section`: adds to it the time since the end of the section before, including queued work
/// of the GPU. Does nothing while the timer is stopped.
pub fn end_section(section: Section) {
    if !RUNNING.load(Ordering::Relaxed) {
        return;
    }
    let now = now();
    let mut timer = timer();
    let start = timer.section_start.replace(now).unwrap_or(now);
    let seconds = now.duration_since(start).as_secs_f64();
    if let Some(spans) = &mut timer.spans {
        spans.push(SectionSpan { section, start, seconds });
    }
    match timer.totals.iter_mut().find(|(other, _)| *other == section) {
        Some((_, total)) => *total += seconds,
        None => timer.totals.push((section, seconds)),
    }
}

/// Reads the clock after the device has finished its queued work.
fn now() -> Instant {
    // If the device has failed, the next operation on it reports the error.
    let _ = synchronize();
    Instant::now()
}

/// Ends the section `forward` and returns `x` with a mark in the graph. The mark ends the section
/// `backward` when the gradient of all later operations has been computed. Values and gradients do
/// not change. While the timer is stopped, returns `x` without a mark.
///
/// # Panics
/// Panics if a libtorch call fails, as the methods of tch do.
pub fn mark(x: &Tensor, forward: Section, backward: Section) -> Tensor {
    if !RUNNING.load(Ordering::Relaxed) {
        return x.shallow_clone();
    }
    end_section(forward);
    if !x.requires_grad() {
        return x.shallow_clone();
    }
    // SAFETY: a live handle, and a function that lives as long as the process.
    new_tensor(|out| unsafe { bpx_mark(handle(x), reached, backward as i64, out) }).expect("libtorch makes a view")
}

/// Called by the backward pass at a mark, with the section that ends there.
extern "C" fn reached(section: i64) {
    let known = usize::try_from(section).ok().and_then(|index| Section::ALL.get(index));
    debug_assert!(known.is_some(), "no section has the number {section}");
    if let Some(section) = known {
        end_section(*section);
    }
}

/// Waits until the current GPU has finished its queued work. Returns at once if there is no GPU.
///
/// # Errors
/// Returns an error if the GPU has failed.
pub fn synchronize() -> Result<(), Error> {
    // SAFETY: no arguments.
    check(unsafe { bpx_synchronize() })
}

#[cfg(test)]
mod tests {
    use std::thread::sleep;
    use std::time::Duration;

    use tch::{Device, Kind};

    use super::Section::{
        Body, BodyBackward, ClipAndOptimizer, Data, Embedding, EmbeddingBackward, Mixing, MixingBackward, Senses,
        SensesBackward,
    };
    use super::*;

    fn leaf() -> Tensor {
        Tensor::ones([3], (Kind::Float, Device::Cpu)).set_requires_grad(true)
    }

    fn sections(totals: &[(Section, f64)]) -> Vec<Section> {
        totals.iter().map(|(section, _)| *section).collect()
    }

    /// A single test, because the timer is global.
    #[test]
    fn sections_are_timed_in_order_and_marks_change_no_values() {
        // While stopped: the same tensor, no mark in the graph, no measurement.
        let x = leaf();
        let same = mark(&x, Embedding, EmbeddingBackward);
        end_section(Data);
        assert!(same.is_leaf() && same.data_ptr() == x.data_ptr());
        assert_eq!(take_totals(), []);

        let begin = Instant::now();
        start();
        sleep(Duration::from_millis(20));
        let x = mark(&x, Embedding, BodyBackward);
        assert!(!x.is_leaf() && x.requires_grad());
        let squared = &x * &x;
        sleep(Duration::from_millis(40));
        let squared = mark(&squared, Body, MixingBackward);
        let loss = (&squared * 3.0).sum(Kind::Float);
        end_section(Mixing);
        sleep(Duration::from_millis(10));
        loss.backward();
        end_section(EmbeddingBackward);
        sleep(Duration::from_millis(5));
        end_section(Mixing);
        let wall = begin.elapsed().as_secs_f64();
        stop();
        end_section(ClipAndOptimizer);
        let totals = take_totals();
        assert_eq!(sections(&totals), [Embedding, Body, Mixing, MixingBackward, BodyBackward, EmbeddingBackward]);
        let minimum = [0.020, 0.040, 0.005, 0.010, 0.0, 0.0];
        for ((section, seconds), minimum) in totals.iter().zip(minimum) {
            assert!(*seconds >= minimum, "{section}: {seconds}");
        }
        let sum: f64 = totals.iter().map(|(_, seconds)| seconds).sum();
        assert!((0.075..=wall).contains(&sum), "{sum} of {wall}");
        assert_eq!(take_totals(), []);

        // d/dx 3 x^2 at 1.
        let leaf = leaf();
        start_with_spans();
        let marked = mark(&mark(&leaf, Embedding, EmbeddingBackward), Body, BodyBackward);
        (&marked * &marked * 3.0).sum(Kind::Float).backward();
        assert_eq!(Vec::<f32>::try_from(leaf.grad()).unwrap(), [6.0; 3]);
        // A tensor that needs no gradient ends a section and gets no mark.
        let without = mark(&Tensor::zeros([2], (Kind::Float, Device::Cpu)), Senses, SensesBackward);
        assert!(!without.requires_grad());
        let evaluated = tch::no_grad(|| mark(&leaf, Mixing, MixingBackward));
        assert_eq!(evaluated.data_ptr(), leaf.data_ptr());
        stop();
        end_section(Data);
        resume();
        end_section(Mixing);
        stop();
        assert_eq!(sections(&take_totals()), [Embedding, Body, BodyBackward, EmbeddingBackward, Senses, Mixing]);
        let spans = take_spans();
        let of_spans: Vec<Section> = spans.iter().map(|span| span.section).collect();
        assert_eq!(of_spans, [Embedding, Body, BodyBackward, EmbeddingBackward, Senses, Mixing, Mixing]);
        assert!(spans.is_sorted_by_key(|span| span.start) && take_spans().is_empty());
    }

    #[test]
    fn numbers_and_names_of_sections_are_unique() {
        for (i, section) in Section::ALL.iter().enumerate() {
            assert_eq!(*section as usize, i);
            assert!(Section::ALL[..i].iter().all(|other| other.name() != section.name()));
        }
        assert_eq!(format!("{:<7}|", Section::Data), "data   |");
    }

    #[test]
    fn synchronizing_a_cpu_does_nothing() {
        assert_eq!(synchronize(), Ok(()));
    }
}
