//! Tests of skipped steps, loss spikes and the loss scale.

use super::*;

fn config(spike_window: usize, skip_spikes: bool) -> StepGuardConfig {
    StepGuardConfig { max_consecutive_bad_steps: 3, spike_window, skip_spikes, ..StepGuardConfig::default() }
}

/// Runs one step with this loss, and with or without an overflow of the gradient. Returns whether
/// it was skipped.
fn step(step_guard: &mut StepGuard, loss: f32, overflow: bool) -> bool {
    let decision = step_guard.decide(&Tensor::from(loss)).unwrap();
    let before = step_guard.state().unwrap().skipped;
    let update = UpdateStats { grad_norm: Tensor::from(1f32), overflow: Tensor::from(overflow) };
    step_guard.record(&decision, &update).unwrap();
    step_guard.state().unwrap().skipped > before
}

#[test]
fn bad_steps_are_counted_until_the_next_update() {
    let mut step_guard = StepGuard::new(&config(0, false), false, Device::Cpu).unwrap();
    assert!(!step(&mut step_guard, 3.0, false));
    assert!(step(&mut step_guard, f32::NAN, true) && step(&mut step_guard, 3.0, true));
    assert_eq!(step_guard.state().unwrap().consecutive_bad_steps, 2);
    assert!(!step(&mut step_guard, 3.0, false));
    for loss in [f32::INFINITY, f32::NEG_INFINITY, f32::NAN] {
        assert!(step(&mut step_guard, loss, false));
    }
    // Three is the limit, so later steps are skipped until the host reads the counts.
    assert!(step(&mut step_guard, 3.0, false));
    let state = step_guard.state().unwrap();
    assert_eq!((state.skipped, state.consecutive_bad_steps, state.steps_since_update), (6, 4, 4));
}

#[test]
fn spike_is_far_above_a_full_window_of_finite_losses() {
    for skip in [false, true] {
        let mut step_guard = StepGuard::new(&config(4, skip), false, Device::Cpu).unwrap();
        // The window is not full yet.
        assert!(!step(&mut step_guard, 4.0, false) && !step(&mut step_guard, 9.0, false));
        for loss in [2.0, 2.1, f32::NAN, 1.9, 2.0, 2.1] {
            step(&mut step_guard, loss, false);
        }
        assert_eq!(step_guard.state().unwrap().stats.spikes, 0);
        assert_eq!(step(&mut step_guard, 4.0, false), skip);
        assert_eq!(step_guard.state().unwrap().stats.spikes, 1);
        // The spike is in the window now, so the same loss is no longer one.
        assert!(!step(&mut step_guard, 4.0, false));
        assert_eq!(step_guard.state().unwrap().stats.losses, [2.0f32, 2.1, 4.0, 4.0].map(f64::from));
    }
}

#[test]
fn steps_that_lower_the_loss_scale_are_skipped_but_not_bad() {
    let tiny = StepGuardConfig { initial_loss_scale: 4.0, ..config(0, false) };
    let mut step_guard = StepGuard::new(&tiny, true, Device::Cpu).unwrap();
    let scale = |step_guard: &StepGuard| step_guard.state().unwrap().stats.loss_scale.unwrap().scale;
    assert!(step(&mut step_guard, 3.0, true) && step(&mut step_guard, 3.0, true));
    assert_eq!((scale(&step_guard), step_guard.state().unwrap().consecutive_bad_steps), (1.0, 0));
    assert!(step(&mut step_guard, 3.0, true));
    let state = step_guard.state().unwrap();
    assert_eq!(
        (state.consecutive_bad_steps, state.steps_since_update, state.skipped, state.stats.scale_search_skips),
        (1, 3, 3, 2)
    );
}

#[test]
fn state_before_a_streak_of_skipped_steps_is_kept() {
    let config = config(3, true);
    let mut whole = StepGuard::new(&config, true, Device::Cpu).unwrap();
    assert_eq!(whole.state().unwrap().stats_before_streak, None);
    for loss in [2.0, 2.1, 1.9] {
        step(&mut whole, loss, false);
    }
    let before = whole.state().unwrap();
    // A spike, an overflow and a NaN. One guard is restored from a checkpoint after the spike.
    assert!(step(&mut whole, 9.0, false));
    let text = serde_json::to_string(&whole.state().unwrap()).unwrap();
    let read = serde_json::from_str(&text).unwrap();
    let mut resumed = StepGuard::from_state(&config, true, Device::Cpu, &read).unwrap();
    for step_guard in [&mut whole, &mut resumed] {
        assert!(step(step_guard, 2.0, true) && step(step_guard, f32::NAN, false));
        let after = step_guard.state().unwrap();
        assert_eq!(
            (after.steps_since_update, after.stats.spikes, after.stats.loss_scale.unwrap().scale),
            (3, 1, 32_768.0)
        );
        assert_eq!(after.before_streak(), before);
        assert!(!step(step_guard, 2.0, false));
        assert_eq!(step_guard.state().unwrap().stats_before_streak, None);
    }
}

#[test]
fn resumed_state_equals_saved() {
    let mut whole = StepGuard::new(&config(5, true), true, Device::Cpu).unwrap();
    for i in 0..7 {
        step(&mut whole, 2.0 + 0.1 * i as f32, i == 3);
    }
    let text = serde_json::to_string(&whole.state().unwrap()).unwrap();
    // The statistics are flattened in the file.
    assert!(text.contains("\"spikes\":") && !text.contains("stats"), "{text}");
    let read: StepGuardState = serde_json::from_str(&text).unwrap();
    let mut resumed = StepGuard::from_state(&config(5, true), true, Device::Cpu, &read).unwrap();
    for loss in [2.5, 9.0, f32::NAN, 2.4] {
        assert_eq!(step(&mut whole, loss, false), step(&mut resumed, loss, false));
        assert_eq!(whole.state().unwrap(), resumed.state().unwrap());
    }
    // A smaller window keeps the newest losses.
    let narrow = StepGuard::from_state(&config(2, true), true, Device::Cpu, &read).unwrap();
    assert_eq!(narrow.state().unwrap().stats.losses, read.stats.losses[3..]);
}
