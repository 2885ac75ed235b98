"""The parts of a training step from operations of libtorch, for parts.py. Each function allocates
the inputs of a part and returns them with the ways to compute it."""

from dataclasses import dataclass
from types import SimpleNamespace

import torch
from torch.nn import functional as F

BF16 = torch.bfloat16


@dataclass
class Sizes:
    """A micro-batch of small."""

    batch: int = 64
    length: int = 512
    width: int = 768
    num_senses: int = 16
    vocab_size: int = 50264
    heads: int = 12
    logit_rows: int = 512

    @classmethod
    def quick(cls):
        """Returns sizes for CPUs."""
        return cls(2, 64, 128, 16, 1024, 2, 32)

    @property
    def rows(self) -> int:
        return self.batch * self.length


def part(ways: dict, **inputs) -> SimpleNamespace:
    """Returns a part: `ways` maps the name of a way to a function that computes both passes."""
    return SimpleNamespace(ways=ways, **inputs)


def head(s: Sizes, device: str) -> SimpleNamespace:
    """Logits, loss and both gradients, as in torch-ext/cpp/ops/linear_cross_entropy.cpp."""
    hidden = torch.randn(s.rows, s.width, device=device, dtype=BF16)
    weight = (0.02 * torch.randn(s.vocab_size, s.width, device=device)).to(BF16)
    targets = torch.randint(s.vocab_size, (s.rows,), device=device)
    grad_hidden = torch.empty_like(hidden)

    def in_chunks(chunk: int):
        total = torch.zeros((), dtype=torch.float64, device=device)
        grad_weight = torch.zeros(s.vocab_size, s.width, device=device)
        for i in range(0, s.rows, chunk):
            h, y = hidden[i : i + chunk], targets[i : i + chunk, None]
            z = (h @ weight.t()).float()
            log_sum = z.logsumexp(1, keepdim=True)
            total += (log_sum - z.gather(1, y)).sum(dtype=torch.float64)
            z.sub_(log_sum).exp_()
            z.scatter_add_(1, y, torch.full_like(y, -1.0, dtype=torch.float32))
            z.mul_(1 / s.rows)
            grad_logits = z.to(BF16)
            torch.mm(grad_logits, weight, out=grad_hidden[i : i + chunk])
            grad_weight.add_(grad_logits.t() @ h)
        return total / s.rows, grad_weight

    def with_autograd():
        h, w = hidden.detach().requires_grad_(), weight.detach().requires_grad_()
        F.cross_entropy(F.linear(h, w).float(), targets).backward()

    small, large = s.logit_rows, min(8 * s.logit_rows, s.rows)
    ways = {
        f"libtorch, {small} rows": lambda: in_chunks(small),
        f"libtorch, {large} rows": lambda: in_chunks(large),
        "autograd, all rows": with_autograd,
    }
    return part(
        ways, hidden=hidden, weight=weight, targets=targets, grad_hidden=grad_hidden, in_chunks=in_chunks
    )


def mixing(s: Sizes, device: str) -> SimpleNamespace:
    """Contextualization weights and the weighted sum of senses, as in model/src/backpack.rs."""
    qk = torch.randn(s.batch, s.length, 2 * s.width, device=device, dtype=BF16, requires_grad=True)
    shape = (s.batch, s.length, s.num_senses * s.width)
    senses = torch.randn(shape, device=device, dtype=BF16, requires_grad=True)
    grad = torch.randn(s.batch, s.length, s.width, device=device, dtype=BF16)
    scale = (s.width // s.num_senses) ** -0.5

    def queries_and_keys():
        return (x.view(s.batch, s.length, s.num_senses, -1).transpose(1, 2) for x in qk.split(s.width, 2))

    def causal_weights(query, key, first: int):
        """Returns the weights [B, R, W L] of R positions from `first` on and of W words."""
        rows, words = query.shape[2], key.shape[2]
        scores = (query @ key.transpose(2, 3)).float() * scale
        future = torch.ones(rows, words, dtype=torch.bool, device=device).triu(first + 1)
        weights = scores.masked_fill(future, float("-inf")).softmax(-1).to(BF16)
        return weights.permute(0, 2, 3, 1).reshape(s.batch, rows, words * s.num_senses)

    def finish(output):
        output.backward(grad)
        grads = qk.grad, senses.grad
        qk.grad = senses.grad = None
        return output.detach(), *grads

    def whole():
        query, key = queries_and_keys()
        pairs = senses.view(s.batch, s.length * s.num_senses, s.width)
        return finish(causal_weights(query, key, 0) @ pairs)

    def in_blocks(rows: int):
        """Omits the words after the last position of each block."""
        query, key = queries_and_keys()
        pairs = senses.view(s.batch, s.length * s.num_senses, s.width)
        outputs = []
        for first in range(0, s.length, rows):
            end = first + rows
            weights = causal_weights(query[:, :, first:end], key[:, :, :end], first)
            outputs.append(weights @ pairs[:, : end * s.num_senses])
        return finish(torch.cat(outputs, 1))

    block = min(128, s.length // 2)
    ways = {"libtorch": whole, f"libtorch, blocks of {block}": lambda: in_blocks(block)}
    return part(ways, qk=qk, senses=senses, grad=grad, scale=scale, block=block, whole=whole)


def norm(s: Sizes, device: str) -> SimpleNamespace:
    """Residual sum, dropout and LayerNorm. The output of a layer is bf16, the sum is fp32."""
    stream = torch.randn(s.rows, s.width, device=device, requires_grad=True)
    output = torch.randn(s.rows, s.width, device=device, dtype=BF16, requires_grad=True)
    weight, bias = (torch.randn(s.width, device=device, requires_grad=True) for _ in range(2))
    d_normed = torch.randn(s.rows, s.width, device=device, dtype=BF16)
    d_sum = torch.randn(s.rows, s.width, device=device)

    def libtorch(dropout: float):
        total = stream + F.dropout(output, dropout)
        normed = F.layer_norm(total, (s.width,), weight, bias).to(BF16)
        torch.autograd.backward([normed, total], [d_normed, d_sum])
        grads = stream.grad, output.grad, weight.grad
        stream.grad = output.grad = weight.grad = bias.grad = None
        return normed.detach(), *grads

    ways = {"libtorch": lambda: libtorch(0.1)}
    return part(
        ways,
        stream=stream,
        output=output,
        weight=weight,
        bias=bias,
        d_normed=d_normed,
        d_sum=d_sum,
        libtorch=libtorch,
    )


def gelu(s: Sizes, device: str) -> SimpleNamespace:
    """The bias and the GELU of an MLP of width 4 D, and their gradients."""
    x = torch.randn(s.rows, 4 * s.width, device=device, dtype=BF16, requires_grad=True)
    bias = torch.randn(4 * s.width, device=device, requires_grad=True)
    grad = torch.randn_like(x)

    def libtorch():
        y = F.gelu(x + bias.to(BF16), approximate="tanh")
        y.backward(grad)
        grads = x.grad, bias.grad
        x.grad = bias.grad = None
        return y.detach(), *grads

    return part({"libtorch": libtorch}, x=x, bias=bias, grad=grad, libtorch=libtorch)


def attention(s: Sizes, device: str, dropout: float) -> SimpleNamespace:
    """Attention from queries, keys and values that one product computes."""
    qkv = torch.randn(s.batch, s.length, 3 * s.width, device=device, dtype=BF16, requires_grad=True)
    grad = torch.randn(s.batch, s.heads, s.length, s.width // s.heads, device=device, dtype=BF16)

    def finish(q, k, v):
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True)
        y.backward(grad)
        qkv.grad = None

    def select():
        """Each of the three gradients has the size of all three."""
        packed = qkv.view(s.batch, s.length, 3, s.heads, -1).permute(2, 0, 3, 1, 4)
        finish(packed[0], packed[1], packed[2])

    def split():
        finish(*(x.view(s.batch, s.length, s.heads, -1).transpose(1, 2) for x in qkv.split(s.width, 2)))

    return part({"select": select, "split": split})


def adamw(s: Sizes, device: str) -> SimpleNamespace:
    """Gradient norm and fused AdamW over parameters with the sizes of the model."""
    d = s.width
    block = [(d, 3 * d), (d, d), (d, 4 * d), (4 * d, d), (d,), (4 * d,)]
    shapes = [(s.vocab_size, d), *(12 * block), (4 * d, s.num_senses * d)]
    parameters, grads, first, second = (
        [torch.randn(shape, device=device).abs() for shape in shapes] for _ in range(4)
    )
    count = torch.ones((), device=device)

    def grad_norm():
        return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)))

    def clipped_adamw():
        torch._fused_adamw_(
            parameters,
            grads,
            first,
            second,
            [],
            [count] * len(parameters),
            lr=1e-4,
            beta1=0.9,
            beta2=0.999,
            weight_decay=0.1,
            eps=1e-8,
            amsgrad=False,
            maximize=False,
            grad_scale=(grad_norm() + 1e-6).clamp_min(1.0),
            found_inf=torch.zeros((), device=device),
        )

    return part({"norm only": grad_norm, "norm and AdamW": clipped_adamw})
