//! Compares the speed of the fused operations with compositions of libtorch's operations, at the
//! shapes of the micro model. Takes about a minute.
//!
//!     cargo bench --workspace --bench operations -- [NAME]...
//!
//! Arguments select the operations whose names contain one of them. `--workspace` keeps the features
//! that tch is built with. The two implementations are measured alternately, and the table has the
//! medians in milliseconds.
//!
//! Run nothing else on the machine, or set OMP_NUM_THREADS below the number of cores. If a thread
//! has to wait for a core, every parallel loop waits some milliseconds for it. An operation of many
//! short loops then appears slower than it is.
//!
//! libtorch's side is the reference of tests/operations.rs in the style of autocast. With bf16 it
//! multiplies cast weights, and norms, softmax and loss are fp32. Attention is
//! `scaled_dot_product_attention`, weighted_sum_of_senses follows the reference kernels of the model
//! (one product), and AdamW is that of libtorch's C++ interface. The fused operations read bf16
//! copies of the weights. The fused AdamW updates these copies, so the row of AdamW includes that
//! work.

use std::time::{Duration, Instant};

use tch::nn::{self, OptimizerConfig};
use tch::{Device, Kind, Tensor};
use torch_ext::{AdamW, AdamWTensors, LayerOutput, MatmulWeight, UpdateGuard, clear_grad, clipped_adamw};

/// The batch is 4 x 512 tokens of the micro model.
const SEQUENCES: i64 = 4;
const LENGTH: i64 = 512;
const TOKENS: i64 = SEQUENCES * LENGTH;
const WIDTH: i64 = 384;
const INNER: i64 = 4 * WIDTH;
const HEADS: i64 = 6;
const LAYERS: i64 = 6;
const SENSES: i64 = 16;
const VOCABULARY: i64 = 50_264;
/// Approximate number of distinct tokens in that many tokens of OpenWebText.
const NUM_DISTINCT: i64 = 1_088;
/// Number of rows of logits that are computed together, as in the model.
const CHUNK: i64 = 512;

/// A comparison ends after this time and at least `MIN_REPEATS` repeats.
const TIME_BUDGET: Duration = Duration::from_millis(700);
const MIN_REPEATS: usize = 3;

/// The inputs of both implementations.
struct Inputs {
    kind: Kind,
    /// Activations of type `kind`, fp32 parameters, and indices. All but the indices get gradients.
    tensors: Vec<Tensor>,
    /// Copies of the tensors in `kind`, without gradients.
    copies: Vec<Tensor>,
}

impl Inputs {
    fn new(kind: Kind, tensors: Vec<Tensor>) -> Self {
        let copies = tensors.iter().map(|t| if is_float(t) { t.detach().to_kind(kind) } else { t.shallow_clone() });
        Inputs { kind, copies: copies.collect(), tensors }
    }

    /// Returns a weight with the copy that the fused operations read.
    fn weight(&self, i: usize) -> MatmulWeight<'_> {
        MatmulWeight { master: &self.tensors[i], operand: &self.copies[i] }
    }

    /// Casts a parameter to `kind` with a gradient, as autocast does.
    fn cast(&self, i: usize) -> Tensor {
        self.tensors[i].to_kind(self.kind)
    }

    fn clear_grads(&self) {
        for t in self.tensors.iter().filter(|t| is_float(t)) {
            clear_grad(t).expect("a leaf has a gradient to clear");
        }
    }
}

fn is_float(t: &Tensor) -> bool {
    matches!(t.kind(), Kind::Float | Kind::BFloat16)
}

struct Operation {
    name: &'static str,
    inputs: fn(Kind) -> Vec<Tensor>,
    fused: fn(&Inputs) -> Vec<Tensor>,
    libtorch: fn(&Inputs) -> Vec<Tensor>,
}

fn random(shape: &[i64], kind: Kind, scale: f64) -> Tensor {
    let values = tch::no_grad(|| Tensor::randn(shape, (Kind::Float, Device::Cpu)) * scale);
    values.to_kind(kind).set_requires_grad(true)
}

fn activation(shape: &[i64], kind: Kind) -> Tensor {
    random(shape, kind, 1.0)
}

fn parameter(shape: &[i64]) -> Tensor {
    random(shape, Kind::Float, 0.02)
}

/// Returns one index below `limit` per token, in a mixed order. If there are enough tokens, every
/// index occurs.
fn indices(limit: i64) -> Tensor {
    (Tensor::arange(TOKENS, (Kind::Int64, Device::Cpu)) * 7_919).remainder(limit)
}

fn none() -> Option<Tensor> {
    None
}

fn single(result: Result<Tensor, torch_ext::Error>) -> Vec<Tensor> {
    vec![result.expect("the shapes fit")]
}

fn libtorch_mlp(i: &Inputs) -> Vec<Tensor> {
    let inner = i.tensors[0].linear(&i.cast(1).tr(), Some(i.cast(2))).gelu("tanh");
    vec![inner.linear(&i.cast(3).tr(), none())]
}

fn fused_mlp(i: &Inputs) -> Vec<Tensor> {
    single(torch_ext::mlp(&i.tensors[0], i.weight(1), &i.tensors[2], i.weight(3)))
}

const OPERATIONS: [Operation; 8] = [
    Operation {
        name: "linear",
        inputs: |kind| vec![activation(&[TOKENS, WIDTH], kind), parameter(&[WIDTH, 3 * WIDTH])],
        fused: |i| single(torch_ext::linear(&i.tensors[0], i.weight(1), false, None)),
        libtorch: |i| vec![i.tensors[0].matmul(&i.cast(1))],
    },
    Operation {
        name: "linear (transposed)",
        inputs: |kind| vec![activation(&[TOKENS, WIDTH], kind), parameter(&[2 * WIDTH, WIDTH])],
        fused: |i| single(torch_ext::linear(&i.tensors[0], i.weight(1), true, None)),
        libtorch: |i| vec![i.tensors[0].linear(&i.cast(1), none())],
    },
    Operation {
        name: "mlp",
        inputs: |kind| {
            let x = activation(&[TOKENS, WIDTH], kind);
            vec![x, parameter(&[WIDTH, INNER]), parameter(&[INNER]), parameter(&[INNER, WIDTH])]
        },
        fused: fused_mlp,
        libtorch: libtorch_mlp,
    },
    Operation {
        name: "mlp (of senses)",
        inputs: |kind| {
            let x = activation(&[NUM_DISTINCT, WIDTH], kind);
            vec![x, parameter(&[WIDTH, INNER]), parameter(&[INNER]), parameter(&[INNER, SENSES * WIDTH])]
        },
        fused: fused_mlp,
        libtorch: libtorch_mlp,
    },
    Operation {
        name: "attention",
        inputs: |kind| vec![activation(&[TOKENS, 3 * WIDTH], kind), parameter(&[3 * WIDTH])],
        fused: |i| single(torch_ext::attention(&i.tensors[0], &i.tensors[1], SEQUENCES, HEADS, 0.125, 0.0)),
        libtorch: |i| {
            let shape = [SEQUENCES, LENGTH, 3, HEADS, WIDTH / HEADS];
            let qkv = (&i.tensors[0] + i.cast(1)).view(shape).permute([2, 0, 3, 1, 4]);
            let (query, key, value) = (qkv.get(0), qkv.get(1), qkv.get(2));
            let mixed = Tensor::scaled_dot_product_attention(&query, &key, &value, none(), 0.0, true, 0.125, false);
            vec![mixed.transpose(1, 2).reshape([TOKENS, WIDTH])]
        },
    },
    Operation {
        name: "add_layer_norm",
        inputs: |kind| {
            let (stream, output) = (activation(&[TOKENS, WIDTH], Kind::Float), activation(&[TOKENS, WIDTH], kind));
            vec![stream, output, parameter(&[WIDTH]), parameter(&[WIDTH]), parameter(&[WIDTH])]
        },
        fused: |i| {
            let [stream, output, output_bias, weight, bias] = &i.tensors[..] else { unreachable!() };
            let output = LayerOutput { value: output.shallow_clone(), bias: Some(output_bias.shallow_clone()) };
            let outputs = torch_ext::add_layer_norm(stream, Some(&output), weight, bias, 1e-5, 0.0, i.kind);
            let (sum, normed) = outputs.expect("the shapes fit");
            vec![sum, normed]
        },
        libtorch: |i| {
            let sum = &i.tensors[0] + (&i.tensors[1] + i.cast(2));
            let normed = sum.layer_norm([WIDTH], Some(&i.tensors[3]), Some(&i.tensors[4]), 1e-5, false);
            vec![sum, normed.to_kind(i.kind)]
        },
    },
    Operation {
        name: "weighted_sum_of_senses",
        inputs: |kind| {
            let (qk, senses) =
                (activation(&[TOKENS, 2 * WIDTH], kind), activation(&[NUM_DISTINCT, SENSES * WIDTH], kind));
            vec![qk, parameter(&[2 * WIDTH]), senses, parameter(&[SENSES * WIDTH]), indices(NUM_DISTINCT)]
        },
        fused: |i| {
            let [qk, qk_bias, senses, bias, rows] = &i.tensors[..] else { unreachable!() };
            single(torch_ext::weighted_sum_of_senses(qk, qk_bias, senses, bias, rows, SEQUENCES, SENSES))
        },
        libtorch: |i| {
            let channels = WIDTH / SENSES;
            let qk = (&i.tensors[0] + i.cast(1)).view([SEQUENCES, LENGTH, 2, SENSES, channels]);
            let qk = qk.permute([2, 0, 3, 1, 4]);
            let scores = qk.get(0).matmul(&qk.get(1).transpose(2, 3)).to_kind(Kind::Float);
            let future = Tensor::ones([LENGTH, LENGTH], (Kind::Bool, Device::Cpu)).triu(1);
            let scores = (scores * (channels as f64).powf(-0.5)).masked_fill(&future, f64::NEG_INFINITY);
            let weights = scores.softmax(-1, Kind::Float).to_kind(i.kind).permute([0, 2, 3, 1]);
            let senses = (&i.tensors[2] + i.cast(3)).index_select(0, &i.tensors[4]);
            let senses = senses.view([SEQUENCES, LENGTH * SENSES, WIDTH]);
            let mixed = weights.reshape([SEQUENCES, LENGTH, LENGTH * SENSES]).matmul(&senses);
            vec![mixed.view([TOKENS, WIDTH])]
        },
    },
    Operation {
        name: "linear_cross_entropy",
        inputs: |kind| vec![activation(&[TOKENS, WIDTH], kind), parameter(&[VOCABULARY, WIDTH]), indices(VOCABULARY)],
        fused: |i| single(torch_ext::linear_cross_entropy(&i.tensors[0], i.weight(1), &i.tensors[2], CHUNK)),
        libtorch: |i| {
            let logits = i.tensors[0].linear(&i.cast(1), none()).to_kind(Kind::Float);
            vec![logits.cross_entropy_for_logits(&i.tensors[2])]
        },
    },
];

fn main() {
    let names: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let is_selected = |name: &str| names.is_empty() || names.iter().any(|part| name.contains(part.as_str()));
    // The program `backpack` also calls this, so memory is allocated as in training.
    torch_ext::keep_freed_memory();
    tch::manual_seed(1);
    let kernels = torch_ext::build_info().map_or_else(|error| error.to_string(), |d| d.kernels);
    println!("{TOKENS} tokens of the micro model, {} threads, {kernels} kernels\n", tch::get_num_threads());
    println!("| operation | pass | type | fused ms | libtorch ms | ratio |\n|---|---|---|---|---|---|");
    for operation in OPERATIONS.iter().filter(|operation| is_selected(operation.name)) {
        for kind in [Kind::Float, Kind::BFloat16] {
            let inputs = Inputs::new(kind, (operation.inputs)(kind));
            let output_grads = check_and_make_output_grads(operation, &inputs);
            let forward = |f: fn(&Inputs) -> Vec<Tensor>| tch::no_grad(|| timed(|| f(&inputs)).0);
            let medians = compare(|| forward(operation.fused), || forward(operation.libtorch));
            print_row(operation.name, "forward", kind, medians);
            let both = |f| forward_and_backward(f, &inputs, &output_grads);
            let medians = compare(|| both(operation.fused), || both(operation.libtorch));
            print_row(operation.name, "forward + backward", kind, medians);
        }
    }
    if is_selected("clipped_adamw") {
        for kind in [Kind::Float, Kind::BFloat16] {
            print_row("clipped_adamw", "update", kind, compare_adamw(kind));
        }
    }
}

/// Prints a row of the table with the medians in milliseconds.
fn print_row(name: &str, pass: &str, kind: Kind, (fused, libtorch): (f64, f64)) {
    let kind = if kind == Kind::Float { "fp32" } else { "bf16" };
    println!("| {name} | {pass} | {kind} | {fused:.2} | {libtorch:.2} | {:.2} |", libtorch / fused);
}

/// Returns the seconds that `f` took, and its result.
fn timed<R>(f: impl FnOnce() -> R) -> (f64, R) {
    let start = Instant::now();
    let result = f();
    (start.elapsed().as_secs_f64(), result)
}

/// Asserts that both implementations give the same results. Returns a random gradient for each
/// result.
fn check_and_make_output_grads(operation: &Operation, inputs: &Inputs) -> Vec<Tensor> {
    let (fused, libtorch) = tch::no_grad(|| ((operation.fused)(inputs), (operation.libtorch)(inputs)));
    let tolerance = if inputs.kind == Kind::Float { 1e-4 } else { 5e-2 };
    for (got, want) in fused.iter().zip(&libtorch) {
        let (got, want) = (got.to_kind(Kind::Double), want.to_kind(Kind::Double));
        let error = (got - &want).abs().max().double_value(&[]) / want.abs().max().double_value(&[]);
        assert!(error < tolerance, "{}: the results differ by {error:.1e}", operation.name);
    }
    fused.iter().map(|y| tch::no_grad(|| y.randn_like())).collect()
}

/// Returns the seconds of the forward and the backward pass. The scalar from which autograd starts is
/// computed between them and not timed. The backward pass includes one product with it.
fn forward_and_backward(f: fn(&Inputs) -> Vec<Tensor>, inputs: &Inputs, output_grads: &[Tensor]) -> f64 {
    inputs.clear_grads();
    let (forward, results) = timed(|| f(inputs));
    let scalar = if results[0].dim() == 0 {
        results[0].shallow_clone() // a loss is a scalar
    } else {
        results.iter().zip(output_grads).map(|(y, grad)| (y * grad).sum(Kind::Float)).sum()
    };
    drop(results);
    forward + timed(|| scalar.backward()).0
}

/// Measures two functions alternately, after one call of each. Returns the medians in milliseconds.
fn compare(fused: impl Fn() -> f64, libtorch: impl Fn() -> f64) -> (f64, f64) {
    let (_, _) = (fused(), libtorch());
    let (mut a, mut b) = (Vec::new(), Vec::new());
    let start = Instant::now();
    while a.len() < MIN_REPEATS || start.elapsed() < TIME_BUDGET {
        a.push(1e3 * fused());
        b.push(1e3 * libtorch());
    }
    (median(a), median(b))
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Returns the shapes of the parameters of the micro model.
fn parameter_shapes() -> Vec<Vec<i64>> {
    let linear = |inputs: i64, outputs: i64| [vec![inputs, outputs], vec![outputs]];
    let norm = || [vec![WIDTH], vec![WIDTH]];
    let mlp = |outputs: i64| [linear(WIDTH, INNER), linear(INNER, outputs)].concat();
    let block = [&norm()[..], &linear(WIDTH, 3 * WIDTH), &linear(WIDTH, WIDTH), &norm(), &mlp(WIDTH)].concat();
    let mut shapes = vec![vec![VOCABULARY, WIDTH], vec![LENGTH, WIDTH]];
    for _ in 0..LAYERS {
        shapes.extend_from_slice(&block);
    }
    shapes.extend([norm(), norm(), norm(), norm()].concat());
    shapes.extend([mlp(WIDTH), mlp(SENSES * WIDTH), linear(WIDTH, 2 * WIDTH).to_vec()].concat());
    shapes
}

/// Compares an update of the whole model with clipping. With bf16 it includes the copies of the
/// weights.
fn compare_adamw(kind: Kind) -> (f64, f64) {
    const OPTIONS: AdamW = AdamW { lr: 1e-4, betas: (0.9, 0.999), eps: 1e-8, max_norm: 1.0 };
    let store = nn::VarStore::new(Device::Cpu);
    for (i, shape) in parameter_shapes().iter().enumerate() {
        let _ = store.root().var_copy(&format!("parameter_{i}"), &parameter(shape));
    }
    let libtorch_parameters = store.trainable_variables();
    let copy = |p: &Tensor| (kind == Kind::BFloat16 && p.dim() == 2).then(|| p.detach().to_kind(kind));
    let (copies, libtorch_copies): (Vec<_>, Vec<_>) = libtorch_parameters.iter().map(|p| (copy(p), copy(p))).unzip();
    let settings =
        nn::AdamW { beta1: OPTIONS.betas.0, beta2: OPTIONS.betas.1, wd: 0.1, eps: OPTIONS.eps, amsgrad: false };
    let mut optimizer = settings.build(&store, OPTIONS.lr).expect("libtorch has an AdamW");
    // The gradient norm is well above 1, so the gradients are clipped.
    libtorch_parameters.iter().map(|p| (p * p).sum(Kind::Float)).sum::<Tensor>().backward();

    let parameters: Vec<Tensor> = libtorch_parameters.iter().map(|p| p.detach().copy()).collect();
    let grads: Vec<Tensor> = libtorch_parameters.iter().map(|p| p.grad().copy()).collect();
    let zeros = || parameters.iter().map(Tensor::zeros_like).collect::<Vec<Tensor>>();
    let (exp_avgs, exp_avg_sqs, weight_decays) = (zeros(), zeros(), vec![0.1; parameters.len()]);
    let lists = AdamWTensors {
        parameters: &parameters,
        grads: &grads,
        exp_avgs: &exp_avgs,
        exp_avg_sqs: &exp_avg_sqs,
        low_precision_copies: &copies,
        weight_decays: &weight_decays,
        updates: &Tensor::from(0f32),
    };
    let fused = || timed(|| clipped_adamw(lists, UpdateGuard::default(), OPTIONS).expect("the lists fit")).0;
    let optimizer = std::cell::RefCell::new(&mut optimizer);
    let libtorch = || {
        let update = || {
            optimizer.borrow_mut().clip_grad_norm(OPTIONS.max_norm);
            optimizer.borrow_mut().step();
            for (copy, p) in libtorch_copies.iter().zip(&libtorch_parameters) {
                if let Some(copy) = copy {
                    tch::no_grad(|| copy.shallow_clone().copy_(p));
                }
            }
        };
        timed(update).0
    };
    compare(fused, libtorch)
}
