use super::*;

#[test]
fn device_and_options_decide_the_implementation() {
    let choose = |kernels, device, kind| {
        Implementation::choose(device, ForwardOptions { kernels, kind, ..ForwardOptions::evaluation() })
    };
    for kind in [Kind::Float, Kind::BFloat16, Kind::Half] {
        assert_eq!(choose(Kernels::Reference, Device::Cpu, kind), Implementation::Reference);
        assert_eq!(choose(Kernels::Reference, Device::Cuda(0), kind), Implementation::Reference);
    }
    assert_eq!(choose(Kernels::Fused, Device::Cuda(0), Kind::BFloat16), Implementation::FusedCuda);
    assert_eq!(choose(Kernels::Fused, Device::Cuda(0), Kind::Float), Implementation::Composite);
    assert_eq!(choose(Kernels::Fused, Device::Cuda(0), Kind::Half), Implementation::Composite);
    assert_eq!(choose(Kernels::Fused, Device::Cpu, Kind::Float), Implementation::FusedCpu);
    assert_eq!(choose(Kernels::Fused, Device::Cpu, Kind::BFloat16), Implementation::FusedCpu);
    assert_eq!(choose(Kernels::Fused, Device::Cpu, Kind::Half), Implementation::Composite);
}

#[test]
fn senses_are_shared_unless_dropout_differs_per_position() {
    let shares = |kernels, dropout, share_sense_dropout| {
        let options = ForwardOptions { kernels, dropout, share_sense_dropout, ..ForwardOptions::evaluation() };
        Ops::new(Device::Cpu, options).shares_senses()
    };
    assert!(shares(Kernels::Fused, 0.0, false) && shares(Kernels::Fused, 0.1, true));
    assert!(!shares(Kernels::Fused, 0.1, false) && !shares(Kernels::Reference, 0.0, true));
}

#[test]
fn fused_kernels_depend_on_the_type_and_the_number_of_senses() {
    let ops = |kernels, kind| Ops::new(Device::Cpu, ForwardOptions { kernels, kind, ..ForwardOptions::evaluation() });
    for (kernels, kind, is_fused) in [
        (Kernels::Fused, Kind::Float, true),
        (Kernels::Fused, Kind::BFloat16, true),
        (Kernels::Fused, Kind::Half, false),
        (Kernels::Reference, Kind::Float, false),
        (Kernels::Reference, Kind::BFloat16, false),
    ] {
        let is_fused_on_gpu = (kernels, kind) == (Kernels::Fused, Kind::BFloat16);
        let ops = ops(kernels, kind);
        assert_eq!(ops.options.has_fused_layers(Device::Cpu), is_fused, "{kernels:?}, {kind:?}");
        assert_eq!(ops.options.has_fused_layers(Device::Cuda(0)), is_fused_on_gpu, "{kernels:?}, {kind:?}");
        assert_eq!(ops.fuses_sum_of_senses(torch_ext::MAX_SENSES, 8), is_fused, "{kernels:?}, {kind:?}");
        assert!(!ops.fuses_sum_of_senses(torch_ext::MAX_SENSES + 1, 8));
        assert_eq!(ops.reads_low_precision_copies(), is_fused && kind == Kind::BFloat16, "{kernels:?}, {kind:?}");
    }
}
