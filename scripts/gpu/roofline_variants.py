"""Counts the kernels, bytes and FLOPs of the parts of a training step, for roofline.py. A variant is
a class with one method per part. The methods run on tensors without memory, and a dispatch mode
counts their operations."""

from dataclasses import dataclass

import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import reference

BF16 = torch.bfloat16
# Operations that return a view, or only allocate.
WITHOUT_KERNEL = {
    "view", "t", "transpose", "permute", "expand", "slice", "select", "unsqueeze", "squeeze",
    "detach", "empty", "empty_like", "split", "unbind", "alias", "as_strided", "_unsafe_view",
    "empty_strided", "new_empty", "lift_fresh", "narrow", "new_empty_strided",
}  # fmt: skip
# Operations that only write their output.
ONLY_WRITES = {"zeros", "zeros_like", "full", "full_like", "ones", "fill_", "zero_", "arange"}
# Kernels per operation on CUDA, if there are several.
KERNELS = {
    "native_layer_norm_backward": 3,
    "masked_fill": 2,
    "logsumexp": 7,
    "embedding_dense_backward": 9,
    "select_backward": 2,
    "slice_backward": 2,
}
# logsumexp reads or writes each element of an fp32 input in four kernels: maximum, difference,
# exponential, sum.
LOGSUMEXP_BYTES = 24


@dataclass
class Operation:
    name: str
    kernels: float
    bytes: float
    flops: float = 0.0


def size(x: torch.Tensor) -> int:
    """Returns the bytes of a tensor. An expanded dimension counts once."""
    n = x.element_size()
    for length, stride in zip(x.shape, x.stride()):
        n *= length if stride or length == 1 else 1
    return n


def tensors(tree) -> list:
    return [x for x in tree_leaves(tree) if isinstance(x, torch.Tensor)]


class Counter(TorchDispatchMode):
    """Records the operations that run while it is active."""

    active: "Counter"

    def __init__(self):
        super().__init__()
        self.operations = []

    def __enter__(self):
        Counter.active = self
        return super().__enter__()

    def add(self, name: str, kernels: float, moved: float, flops: float = 0.0):
        self.operations.append(Operation(name, kernels, moved, flops))

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        name = function.overloadpacket.__name__
        if name in WITHOUT_KERNEL:
            return out
        inputs, outputs = tensors((args, kwargs)), tensors(out)
        flops = 0.0
        if name in ("mm", "addmm", "bmm"):
            a, b = [x for x in inputs if x.dim() >= 2][-2:]
            flops = 2.0 * a.numel() * b.shape[-1]
        self.add(name, KERNELS.get(name, 1), moved_bytes(name, inputs, outputs), flops)
        return out


def moved_bytes(name: str, inputs: list, outputs: list) -> float:
    """Returns the bytes that an operation reads and writes."""
    if name in ONLY_WRITES:
        return sum(map(size, outputs))
    if name == "logsumexp":
        return LOGSUMEXP_BYTES * max(x.numel() for x in inputs)
    if name == "gather":
        return 3 * size(outputs[0])
    # An operation in place reads and writes its first input.
    moved = sum(map(size, inputs)) + sum(map(size, outputs))
    if name == "masked_fill":
        moved += 2 * size(outputs[0])  # copies its input first
    if name == "select_backward":
        moved += size(inputs[0])  # fills the gradient with zeros first
    return moved


def count(name: str, kernels: float, moved: float, flops: float = 0.0) -> None:
    """Records an operation that has no counterpart on the meta device."""
    Counter.active.add(name, kernels, moved, flops)


class CausalAttention(torch.autograd.Function):
    """Flash attention: reads its inputs and writes its output once, and computes half of the scores.
    The backward pass has 2.5 times the FLOPs."""

    @staticmethod
    def forward(ctx, q, k, v):
        ctx.save_for_backward(q, k, v)
        b, h, t, d = q.shape
        count("attention", 1, 4 * size(q), 2 * 2 * b * h * t * t * d / 2)
        return transposed_like(q)

    @staticmethod
    def backward(ctx, grad):
        q, k, v = ctx.saved_tensors
        b, h, t, d = q.shape
        count("attention backward", 3, 10 * size(q), 2.5 * 2 * 2 * b * h * t * t * d / 2)
        return transposed_like(q), transposed_like(k), transposed_like(v)


def transposed_like(x: torch.Tensor) -> torch.Tensor:
    """Returns an empty tensor [B, H, T, D] whose memory has the order [B, T, H, D]."""
    return x.transpose(1, 2).new_empty(x.transpose(1, 2).shape).transpose(1, 2)


class OwnKernel(torch.autograd.Function):
    """A kernel and its backward pass, by the bytes that they move."""

    @staticmethod
    def forward(ctx, name, forward_bytes, backward_bytes, backward_kernels, *inputs):
        ctx.name, ctx.bytes, ctx.kernels = name, backward_bytes, backward_kernels
        ctx.save_for_backward(*inputs)
        count(name, 1, forward_bytes)
        return tuple(x.new_empty(x.shape) for x in inputs)

    @staticmethod
    def backward(ctx, *grads):
        count(f"{ctx.name} backward", ctx.kernels, ctx.bytes)
        return (None, None, None, None, *(x.new_empty(x.shape) for x in ctx.saved_tensors))


def leaf(*shape, dtype=torch.float32) -> torch.Tensor:
    return torch.empty(*shape, device="meta", dtype=dtype, requires_grad=True)


def ids(*shape) -> torch.Tensor:
    return torch.empty(*shape, dtype=torch.int64, device="meta")


class Eager:
    """Operations of libtorch, as the program uses them on a CPU without fused kernels for bf16."""

    LOGIT_ROWS = 512

    def __init__(self, c: reference.Shape, batch: int, length: int):
        self.c, self.b, self.t, self.n, self.d = c, batch, length, batch * length, c.n_embd
        self.wte = leaf(c.vocab_size, c.n_embd)
        with torch.device("meta"):
            self.parameter_sizes = [x.numel() for x in reference.build(c).parameters()]

    def dropout(self, x):
        return torch.native_dropout(x, self.c.dropout, True)[0] if self.c.dropout else x

    def linear(self, x, outputs: int):
        w, bias = leaf(x.shape[1], outputs), leaf(outputs)
        return F.linear(x.to(BF16), w.to(BF16).t(), bias.to(BF16))

    def norm(self, x):
        return F.layer_norm(x, (self.d,), leaf(self.d), leaf(self.d))

    def embedding(self):
        x = F.embedding(ids(self.b, self.t), self.wte) + leaf(self.t, self.d)
        return self.dropout(x).flatten(0, 1)

    def queries_keys_values(self, x):
        packed = self.linear(x, 3 * self.d).view(self.b, self.t, 3, self.c.n_head, -1)
        packed = packed.permute(2, 0, 3, 1, 4)
        return packed[0], packed[1], packed[2]

    def attention(self, x):
        y = CausalAttention.apply(*self.queries_keys_values(x))
        return self.linear(y.transpose(1, 2).flatten(2, 3).flatten(0, 1), self.d)

    def mlp(self, x, inner: int, outputs: int):
        return self.linear(F.gelu(self.linear(x, inner), approximate="tanh"), outputs)

    def block(self, x):
        x = x + self.dropout(self.attention(self.norm(x)))
        return x + self.dropout(self.mlp(self.norm(x), 4 * self.d, self.d))

    def senses(self):
        x = self.dropout(F.embedding(ids(self.n), self.wte))
        x = x + self.dropout(self.norm(x))
        x = x + self.dropout(self.mlp(self.norm(x), 4 * self.d, self.d))
        inner = self.c.sense_intermediate_scale * self.d
        return self.mlp(self.norm(x), inner, self.c.num_senses * self.d)

    def weights(self, hidden):
        """Returns the contextualization weights [B, L, T, T] in bf16."""
        qk = self.linear(self.norm(hidden), 2 * self.d).view(self.b, self.t, 2, self.c.num_senses, -1)
        qk = qk.permute(2, 0, 3, 1, 4)
        scores = (qk[0] @ qk[1].transpose(2, 3)).float() * 0.1
        future = torch.ones(self.t, self.t, dtype=torch.bool, device="meta").triu(1)
        return scores.masked_fill(future, float("-inf")).softmax(-1).to(BF16)

    def mixing(self, hidden, senses):
        pairs = self.t * self.c.num_senses
        weights = self.weights(hidden).permute(0, 2, 3, 1).reshape(self.b, self.t, pairs)
        return (weights @ senses.view(self.b, pairs, self.d)).flatten(0, 1)

    def head(self):
        """Logits, loss and both gradients, in the forward pass."""
        hidden = torch.empty(self.n, self.d, device="meta", dtype=BF16)
        w = self.wte.detach().to(BF16)
        grad_weight = torch.zeros(self.c.vocab_size, self.d, device="meta")
        rows = min(self.LOGIT_ROWS, self.n)
        for i in range(0, self.n, rows):
            h = hidden[i : i + rows]
            self.loss_and_gradient(torch.mm(h, w.t()))
            grad_logits = torch.empty(rows, self.c.vocab_size, device="meta", dtype=BF16)
            torch.mm(grad_logits, w)
            self.add_to_gradient(grad_weight, grad_logits, h)
        self.scale_gradients(hidden, grad_weight)

    def loss_and_gradient(self, logits):
        z, targets = logits.float(), ids(len(logits), 1)
        log_sum = z.logsumexp(1, keepdim=True)
        (log_sum - z.gather(1, targets)).sum(dtype=torch.float64)
        z.sub_(log_sum).exp_()
        count("scatter_add_", 1, 16 * len(logits))
        z.mul_(0.1)
        z.to(BF16)

    def add_to_gradient(self, grad_weight, grad_logits, h):
        grad_weight.add_(torch.mm(grad_logits.t(), h))

    def scale_gradients(self, hidden, grad_weight):
        hidden.mul_(0.5)
        grad_weight.mul_(0.5)
        # The trunk and the sense network add their gradients of the embedding.
        for _ in range(2):
            grad_weight.add_(torch.empty_like(grad_weight))

    def update(self):
        n, num_tensors = sum(self.parameter_sizes), len(self.parameter_sizes)
        # Kernels handle 40 and 36 tensors each.
        count("gradient norm", 2 + num_tensors / 40, 4 * n)
        # Reads weights, gradients and both moments. Writes them, including the scaled gradients.
        count("AdamW", 2 + num_tensors / 36, 4 * n * (4 + 4))
        count("scalars", 45, 0)


class Libtorch(Eager):
    """Operations of libtorch that are chosen for a GPU: queries, keys and values are split instead of
    selected, 4,096 rows of logits have one softmax, scores are scaled and masked in bf16, and weights
    have a copy in bf16."""

    LOGIT_ROWS = 4096

    def linear(self, x, outputs: int):
        w, bias = leaf(x.shape[1], outputs, dtype=BF16), leaf(outputs)
        return F.linear(x.to(BF16), w.t(), bias.to(BF16))

    def split(self, x, parts: int, heads: int):
        packed = self.linear(x, parts * self.d).view(self.b, self.t, parts * self.d)
        return [p.view(self.b, self.t, heads, -1).transpose(1, 2) for p in packed.split(self.d, 2)]

    def queries_keys_values(self, x):
        return self.split(x, 3, self.c.n_head)

    def weights(self, hidden):
        query, key = self.split(self.norm(hidden), 2, self.c.num_senses)
        mask = torch.zeros(self.t, self.t, device="meta", dtype=BF16)
        scores = (query * 0.1) @ key.transpose(2, 3) + mask
        return scores.softmax(-1, dtype=torch.float32).to(BF16)

    def loss_and_gradient(self, logits):
        z = torch.log_softmax(logits, 1, dtype=torch.float32)
        count("gather, scatter_add_", 3, 32 * len(logits))
        z.exp_()
        count("mul, to bf16", 1, 6 * z.numel())

    def scale_gradients(self, hidden, grad_weight):
        grad_weight.mul_(0.5)
        for _ in range(2):
            grad_weight.add_(torch.empty_like(grad_weight))


class Own(Libtorch):
    """The kernels of crates/torch-ext/cuda, each of which reads and writes its tensors once: residual
    sum with dropout and LayerNorm, bias with GELU, contextualization weights, and the loss with its
    gradient. Products add to fp32 gradients."""

    def linear(self, x, outputs: int):
        # The next kernel adds the bias and sums its gradient.
        return torch.mm(x.to(BF16), leaf(x.shape[1], outputs, dtype=BF16))

    def add_norm(self, stream, output):
        """Takes an fp32 stream and a bf16 output of a layer. Returns the fp32 sum and the bf16
        normalized rows."""
        n = stream.numel()
        return OwnKernel.apply("add_layer_norm", 12 * n, 16 * n, 2, stream, output)

    def norm(self, x):
        return self.add_norm(x, leaf(*x.shape, dtype=BF16))[1]

    def gelu(self, x):
        return OwnKernel.apply("bias_gelu", 4 * x.numel(), 8 * x.numel(), 2, x)[0]

    def mlp(self, x, inner: int, outputs: int):
        return self.linear(self.gelu(self.linear(x, inner)), outputs)

    def block(self, x):
        x, normed = self.add_norm(x, leaf(self.n, self.d, dtype=BF16))
        x, normed = self.add_norm(x, self.attention(normed))
        return self.mlp(normed, 4 * self.d, self.d)

    def senses(self):
        x = F.embedding(ids(self.n), self.wte)
        x, normed = self.add_norm(x, leaf(self.n, self.d, dtype=BF16))
        x, normed = self.add_norm(x, normed)
        x, normed = self.add_norm(x, self.mlp(normed, 4 * self.d, self.d))
        inner = self.c.sense_intermediate_scale * self.d
        return self.mlp(normed, inner, self.c.num_senses * self.d)

    def mixing(self, hidden, senses):
        query, key = self.split(self.norm(hidden), 2, self.c.num_senses)
        scores = query @ key.transpose(2, 3)
        n, pairs = scores.numel(), self.t * self.c.num_senses
        # Reads half of the scores and writes all weights. Backward reads half of both and writes all.
        weights = OwnKernel.apply("sense_weights", 3 * n, 4 * n, 1, scores)[0]
        weights = weights.view(self.b, self.t, pairs)
        return (weights @ senses.view(self.b, pairs, self.d)).flatten(0, 1)

    def loss_and_gradient(self, logits):
        count("cross_entropy", 1, 4 * logits.numel())

    def add_to_gradient(self, grad_weight, grad_logits, h):
        moved = size(grad_logits) + size(h) + 2 * size(grad_weight)
        count("mm into fp32", 1, moved, 2.0 * grad_logits.numel() * h.shape[1])

    def scale_gradients(self, hidden, grad_weight):
        count("rows added to the embedding's gradient", 6, 2 * 2 * 4 * self.n * self.d)


VARIANTS = {"eager": Eager, "libtorch": Libtorch, "own": Own}


def count_parts(variant: str, c: reference.Shape, batch: int, length: int) -> dict:
    """Returns, per part, how often it occurs per micro-batch, and the operations of one forward and
    backward pass."""
    model = VARIANTS[variant](c, batch, length)
    parts = {}

    def run(name: str, times: int, work):
        with Counter() as counter:
            out = work()
            if isinstance(out, torch.Tensor) and out.requires_grad:
                out.backward(torch.empty_like(out))
        parts[name] = (times, counter.operations)

    run("embedding", 1, model.embedding)
    run("trunk", c.n_layer, lambda: model.block(leaf(model.n, model.d)))
    if c.architecture == "backpack":
        senses = (model.n, c.num_senses * model.d)
        run("senses", 1, model.senses)
        run("mixing", 1, lambda: model.mixing(leaf(model.n, model.d), leaf(*senses, dtype=BF16)))
    run("head and loss", 1, model.head)
    run("clip and AdamW", 1, model.update)
    return parts
