"""Times OpenFlamingo's models in plain PyTorch on one graphics card.

The peer of this crate's benches on such a card: the same shapes, random
weights and random data, nothing but torch. Every measurement is a line of
JSON, followed by a line for people that begins with "#".

  gemm       one square product
  attention  scaled dot product attention by itself, by its implementations
  step       forward, backward, clipping and AdamW of the trained parts
  generate   greedy tokens after prompts of many images, images included
  score      log-probabilities of continuations of such prompts, likewise
  check      tests of the modules, in f32; give --tiny

The modules are open_flamingo's: frozen CLIP ViT-L/14, perceiver resampler,
gated cross-attention before layers of a frozen MPT whose tokens see the last
image before them. What PyTorch could do slowly there, it does fast here:

- attention is F.scaled_dot_product_attention everywhere, also where
  open_flamingo multiplies and masks by hand;
- frozen weights are bf16; norms and the residual are bf16 too, unless
  `--types autocast` is given, which leaves both to autocast (f32 norms of
  the trained parts, and an f32 residual from the first gate on);
- the rows of added tokens are trained by themselves, where open_flamingo
  makes the gradient of the whole table and masks it;
- text attention is causal without bias, unless `--alibi yes` is given: MPT's
  bias must be passed as a mask, which the fastest implementations refuse;
- when tokens are written, keys and values of images are made once, and a
  written token attends to the last image alone.

Floating point operations of a step, N being the parameters of a part:

  frozen language model          4 N a token (its table counts as the head)
  cross-attention, added rows    6 N a token
  resampler                      6 N a latent
  vision tower                   2 N a visual token, the class token too

Attention itself, and work that `--checkpoint` repeats, are not counted.
"""
import argparse
import contextlib
import dataclasses
import functools
import json
import statistics
import sys
import time

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

EXAMPLE = """\
examples:
  python model/benches/torch_flamingo.py gemm
  python model/benches/torch_flamingo.py attention
  python model/benches/torch_flamingo.py step --preset openflamingo-3b \\
      --batch 64 --tokens 256 --images 3 --steps 10 --alibi both
  python model/benches/torch_flamingo.py generate --preset openflamingo-3b
  python model/benches/torch_flamingo.py step --tiny --device cpu
"""
DTYPES = {"bf16": torch.bfloat16, "f32": torch.float32}
BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}
EPSILON = 1e-5
# Rows after the language model's own: <|endofchunk|>, <image>, <PAD>.
EXTRA_ROWS = 3


@dataclasses.dataclass(frozen=True)
class Preset:
    """Sizes, as in model/src/presets.rs."""

    text_width: int
    text_layers: int
    text_heads: int
    qk_norm: bool
    every: int
    vocabulary: int = 50280
    image_size: int = 224
    patch: int = 14
    vision_width: int = 1024
    vision_layers: int = 24
    vision_heads: int = 16
    latents: int = 64
    resampler_layers: int = 6
    heads: int = 8
    head_dim: int = 64

    @property
    def patches(self):
        return (self.image_size // self.patch) ** 2

    def tiny(self):
        return dataclasses.replace(
            self, text_width=64, text_layers=2 * self.every, text_heads=4,
            vocabulary=504, image_size=28, vision_width=48, vision_layers=2,
            vision_heads=4, latents=8, resampler_layers=2, heads=2,
            head_dim=16)


PRESETS = {
    "openflamingo-3b": Preset(2048, 24, 16, True, 1),
    "openflamingo-9b": Preset(4096, 32, 32, False, 4),
}


def linear(inputs, outputs):
    return nn.Linear(inputs, outputs, bias=False)


def split(x, heads):
    return x.unflatten(-1, (heads, -1)).transpose(-3, -2)


def join(x):
    return x.transpose(-3, -2).flatten(-2)


class Norm(nn.Module):
    """A layer norm in `dtype`; None leaves the type to autocast."""

    def __init__(self, width, dtype, bias=True):
        super().__init__()
        self.dtype = dtype
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width)) if bias else None

    def forward(self, x):
        shape, weight, bias = self.weight.shape, self.weight, self.bias
        if self.dtype is None:
            return F.layer_norm(x, shape, weight, bias, EPSILON)
        with torch.autocast(x.device.type, enabled=False):
            weight = weight.to(self.dtype)
            bias = None if bias is None else bias.to(self.dtype)
            return F.layer_norm(
                x.to(self.dtype), shape, weight, bias, EPSILON)


class VisionBlock(nn.Module):
    """A block of CLIP's ViT, with quick GELU."""

    def __init__(self, width, heads, dtype):
        super().__init__()
        self.heads = heads
        self.norm_1, self.norm_2 = Norm(width, dtype), Norm(width, dtype)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(
            width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(
            4 * width, width)

    def forward(self, x):
        q, k, v = self.qkv(self.norm_1(x)).chunk(3, -1)
        read = F.scaled_dot_product_attention(
            *(split(part, self.heads) for part in (q, k, v)))
        x = x + self.out(join(read))
        y = self.up(self.norm_2(x))
        return x + self.down(y * torch.sigmoid(1.702 * y))


class Vision(nn.Module):
    """CLIP's ViT without last norm: states of the patches."""

    def __init__(self, preset, dtype):
        super().__init__()
        width = preset.vision_width
        self.patches = nn.Conv2d(
            3, width, preset.patch, preset.patch, bias=False)
        self.start = nn.Parameter(0.02 * torch.randn(width))
        self.positions = nn.Parameter(
            0.02 * torch.randn(preset.patches + 1, width))
        self.norm = Norm(width, dtype)
        self.blocks = nn.ModuleList(
            VisionBlock(width, preset.vision_heads, dtype)
            for _ in range(preset.vision_layers))

    @torch.no_grad()
    def forward(self, pixels):
        x = self.patches(pixels.to(self.patches.weight.dtype))
        x = x.flatten(2).transpose(1, 2)
        start = self.start.to(x.dtype).expand(len(x), 1, -1)
        x = self.norm(torch.cat([start, x], 1) + self.positions)
        for block in self.blocks:
            x = block(x)
        return x[:, 1:]


class FeedForward(nn.Sequential):
    """Norm, up, GELU, down."""

    def __init__(self, width, dtype):
        super().__init__(
            Norm(width, dtype), linear(width, 4 * width), nn.GELU(),
            linear(4 * width, width))


class ResamplerLayer(nn.Module):
    """Latents attend to features and latents, then a feed-forward."""

    def __init__(self, width, heads, head_dim, dtype):
        super().__init__()
        self.heads, inner = heads, heads * head_dim
        self.norm_media = Norm(width, dtype)
        self.norm_latents = Norm(width, dtype)
        self.to_q, self.to_kv = linear(width, inner), linear(width, 2 * inner)
        self.to_out = linear(inner, width)
        self.feed_forward = FeedForward(width, dtype)

    def forward(self, features, x):
        latents = self.norm_latents(x)
        both = torch.cat([self.norm_media(features), latents], 1)
        q, (k, v) = self.to_q(latents), self.to_kv(both).chunk(2, -1)
        read = F.scaled_dot_product_attention(
            *(split(part, self.heads) for part in (q, k, v)))
        x = x + self.to_out(join(read))
        return x + self.feed_forward(x)


class Resampler(nn.Module):
    """Perceiver resampler of single images."""

    def __init__(self, preset, dtype):
        super().__init__()
        width, self.dtype = preset.vision_width, dtype
        self.latents = nn.Parameter(torch.randn(preset.latents, width))
        self.layers = nn.ModuleList(
            ResamplerLayer(width, preset.heads, preset.head_dim, dtype)
            for _ in range(preset.resampler_layers))
        self.norm = Norm(width, dtype)

    def forward(self, features):
        x = self.latents.to(self.dtype or self.latents.dtype)
        x = x.expand(len(features), -1, -1)
        for layer in self.layers:
            x = layer(features, x)
        return self.norm(x)


class CrossBlock(nn.Module):
    """Gated cross-attention and feed-forward."""

    def __init__(self, preset, dtype):
        super().__init__()
        width, inner = preset.text_width, preset.heads * preset.head_dim
        self.heads, self.dtype = preset.heads, dtype
        self.norm = Norm(width, dtype)
        self.to_q = linear(width, inner)
        self.to_kv = linear(preset.vision_width, 2 * inner)
        self.to_out = linear(inner, width)
        self.feed_forward = FeedForward(width, dtype)
        self.attn_gate = nn.Parameter(torch.full((1,), 0.5))
        self.ffw_gate = nn.Parameter(torch.full((1,), 0.5))

    def gated(self, x, y, gate):
        gate = gate.tanh()
        return x + y * (gate if self.dtype is None else gate.to(self.dtype))

    def keys(self, media):
        """Keys and values of media [B, images * latents, width]."""
        return [split(part, self.heads)
                for part in self.to_kv(media).chunk(2, -1)]

    def forward(self, x, keys, mask, before):
        """`before`: tokens before the first image, which read nothing."""
        q = split(self.to_q(self.norm(x)), self.heads)
        read = F.scaled_dot_product_attention(q, *keys, attn_mask=mask)
        if before is not None:
            read = read.masked_fill(before, 0)
        x = self.gated(x, self.to_out(join(read)), self.attn_gate)
        return self.gated(x, self.feed_forward(x), self.ffw_gate)


class TextBlock(nn.Module):
    """A block of MPT: no biases; MPT-1B normalises queries and keys."""

    def __init__(self, preset, dtype):
        super().__init__()
        width, self.heads = preset.text_width, preset.text_heads

        def norm():
            return Norm(width, dtype, bias=False)
        self.norm_1, self.norm_2 = norm(), norm()
        self.qkv, self.out = linear(width, 3 * width), linear(width, width)
        self.up, self.down = linear(width, 4 * width), linear(4 * width, width)
        self.q_norm = norm() if preset.qk_norm else nn.Identity()
        self.k_norm = norm() if preset.qk_norm else nn.Identity()

    def forward(self, x, bias, cache=None, at=0):
        """`cache`: room for keys and values, of which `at` are there."""
        q, k, v = self.qkv(self.norm_1(x)).chunk(3, -1)
        q, k, v = (split(part, self.heads)
                   for part in (self.q_norm(q), self.k_norm(k), v))
        if cache is not None:
            end = at + q.shape[2]
            for room, part in zip(cache, (k, v)):
                room[:, :, at:end] = part
            k, v = (room[:, :, :end] for room in cache)
        causal = bias is None and q.shape[2] > 1
        read = F.scaled_dot_product_attention(
            q, k, v, attn_mask=bias, is_causal=causal)
        x = x + self.out(join(read))
        return x + self.down(F.gelu(self.up(self.norm_2(x))))


class TiedHead(torch.autograd.Function):
    """Logits of [rows, width]; of the table only added rows are trained.

    The table has zeros at the added rows.
    """

    @staticmethod
    def forward(ctx, x, table, added, first):
        ctx.save_for_backward(x, table, added)
        ctx.columns = slice(first, first + len(added))
        logits = x @ table.t()
        logits[:, ctx.columns] = x @ added.t()
        return logits

    @staticmethod
    def backward(ctx, gradient):
        x, table, added = ctx.saved_tensors
        columns = gradient[:, ctx.columns]
        return (gradient @ table).addmm_(columns, added), None, \
            columns.t() @ x, None


class Flamingo(nn.Module):
    """The whole; `fast` makes norms and residual of one narrow type."""

    def __init__(self, preset, device, dtype, trained_dtype, added, fast):
        super().__init__()
        self.preset, self.dtype = preset, dtype
        self.alibi = self.checkpoint = False
        self.first_added = preset.vocabulary - EXTRA_ROWS
        self.image_token = self.first_added + 1
        kind = dtype if fast else None
        width = preset.text_width
        with torch.device(device), default_dtype(dtype):
            self.vision = Vision(preset, kind)
            self.text = nn.ModuleList(
                TextBlock(preset, dtype) for _ in range(preset.text_layers))
            self.text_norm = Norm(width, dtype, bias=False)
            table = torch.randn(preset.vocabulary, width).mul_(0.02)
            table[self.first_added:self.first_added + added] = 0
            self.table = nn.Parameter(table)
        self.requires_grad_(False)
        with torch.device(device), default_dtype(trained_dtype):
            self.resampler = Resampler(preset, kind)
            self.cross = nn.ModuleList(
                CrossBlock(preset, kind)
                for _ in range(preset.text_layers // preset.every))
            self.added = nn.Parameter(0.02 * torch.randn(added, width)) \
                if added else None

    def groups(self):
        """Parameters by part."""
        def count(*parts):
            return sum(p.numel() for part in parts for p in part.parameters())
        added = 0 if self.added is None else self.added.numel()
        # The added rows have a place in the frozen table, too.
        table = self.table.numel() - added
        groups = {
            "vision": count(self.vision),
            "resampler": count(self.resampler),
            "cross_attention": count(self.cross),
            "language": count(self.text, self.text_norm) + table,
            "added_rows": added,
        }
        return {
            **groups,
            "trained": groups["resampler"] + groups["cross_attention"] + added,
            "total": sum(groups.values()),
        }

    def cross_at(self, layer):
        """The cross-attention before this layer, if any."""
        every = self.preset.every
        return self.cross[layer // every] if (layer + 1) % every == 0 else None

    def media(self, pixels):
        """[B, images, 3, side, side] to [B, images * latents, width]."""
        media = self.resampler(self.vision(pixels.flatten(0, 1)))
        return media.unflatten(0, pixels.shape[:2]).flatten(1, 2)

    def embed(self, tokens):
        x = F.embedding(tokens, self.table)
        if self.added is None:
            return x
        rows = torch.arange(len(self.added), device=tokens.device)
        chosen = tokens[..., None] == rows + self.first_added
        return x + chosen.to(self.dtype) @ self.added.to(self.dtype)

    def logits(self, x):
        """Of [rows, width]."""
        if self.added is None:
            return F.linear(x, self.table)
        return TiedHead.apply(
            x, self.table, self.added.to(self.dtype), self.first_added)

    def seen(self, tokens, n_media):
        """Mask [B, 1, L, media]: a token sees the last image before it.

        One that has none sees all, and what it read is thrown away:
        the second result, [B, 1, L, 1].
        """
        time = (tokens == self.image_token).cumsum(-1)[:, None, :, None]
        image = torch.arange(n_media, device=tokens.device)
        image = image // self.preset.latents + 1
        before = time == 0
        seen = (time == image) | before
        mask = torch.zeros(seen.shape, dtype=self.dtype, device=seen.device)
        return mask.masked_fill_(~seen, float("-inf")), before

    def bias(self, length):
        """ALiBi and the causal mask [1, heads, L, L], if asked for."""
        if not self.alibi:
            return None
        return alibi(self.preset.text_heads, length, self.dtype,
                     self.table.device)

    def layer(self, i, x, bias, keys, mask, before, cache=None, at=0):
        cross = self.cross_at(i)
        if cross is not None:
            x = cross(x, keys(cross), mask, before)
        return self.text[i](x, bias, cache, at)

    def hidden(self, tokens, media, caches=None):
        """States of whole sequences."""
        x = self.embed(tokens)
        mask, before = self.seen(tokens, media.shape[1])
        bias = self.bias(tokens.shape[1])

        def keys(cross):
            return cross.keys(media)
        for i in range(len(self.text)):
            if self.checkpoint:
                x = checkpoint(self.layer, i, x, bias, keys, mask, before,
                               use_reentrant=False)
            else:
                cache = None if caches is None else caches[i]
                x = self.layer(i, x, bias, keys, mask, before, cache)
        return self.text_norm(x)

    def loss(self, tokens, pixels):
        """Mean over all targets but images."""
        x = self.hidden(tokens, self.media(pixels))
        x = x[:, :-1].flatten(0, 1)
        targets = tokens[:, 1:].flatten()
        targets = targets.masked_fill(targets == self.image_token, -100)
        return F.cross_entropy(self.logits(x).float(), targets)

    def write(self, tokens, pixels, n):
        """`n` greedy tokens [B, n]."""
        media = self.media(pixels)
        batch, length = tokens.shape
        size = self.preset.text_width // self.preset.text_heads
        room = (2, batch, self.preset.text_heads, length + n, size)
        caches = [torch.empty(room, dtype=self.dtype, device=media.device)
                  for _ in self.text]
        # What the prompt's keys are made for is the last image's of later.
        last = {id(cross): None for cross in self.cross}

        def keys(cross):
            parts = cross.keys(media)
            last[id(cross)] = [part[:, :, -self.preset.latents:]
                               for part in parts]
            return parts

        x = self.embed(tokens)
        mask, before = self.seen(tokens, media.shape[1])
        bias = self.bias(length + n)
        causal = None if bias is None else bias[:, :, :length, :length]
        for i, cache in enumerate(caches):
            x = self.layer(i, x, causal, keys, mask, before, cache)
        written = []
        for at in range(length, length + n):
            x = self.text_norm(x[:, -1])
            written.append(self.logits(x).argmax(-1, keepdim=True))
            if len(written) == n:
                return torch.cat(written, 1)
            x = self.embed(written[-1])
            row = None if bias is None else bias[:, :, at:at + 1, :at + 1]
            for i, cache in enumerate(caches):
                x = self.layer(i, x, row, lambda cross: last[id(cross)],
                               None, None, cache, at)

    def score(self, tokens, pixels, n):
        """Log-probabilities [B] of the last `n` tokens of each sequence."""
        x = self.hidden(tokens, self.media(pixels))[:, -n - 1:-1]
        logits = self.logits(x.flatten(0, 1)).float()
        values = -F.cross_entropy(
            logits, tokens[:, -n:].flatten(), reduction="none")
        return values.view(len(tokens), n).sum(1)


@contextlib.contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@functools.lru_cache(maxsize=2)
def alibi(heads, length, dtype, device):
    """MPT's bias, slopes 2^(-8 i / heads), with the causal mask in it."""
    # Rows are as far apart as the kernels want them.
    room = -(-length // 16) * 16
    places = torch.arange(room, device=device)
    distance = places[None] - places[:, None]
    slopes = 2 ** (-8 * (torch.arange(heads, device=device) + 1) / heads)
    bias = slopes[:, None, None] * distance
    bias = bias.masked_fill(distance > 0, float("-inf")).to(dtype)
    return bias[None, :, :length, :length]


def measure(device, work, runs, warm, wait=True):
    """Seconds of each run; `wait`: the device is idle before each."""
    cuda = device.type == "cuda"
    for _ in range(warm):
        work()
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    marks = []
    for _ in range(runs):
        if cuda:
            if wait:
                torch.cuda.synchronize()
            start, end = (torch.cuda.Event(enable_timing=True)
                          for _ in range(2))
            start.record()
            work()
            end.record()
        else:
            start = time.perf_counter()
            work()
            end = time.perf_counter()
        marks.append((start, end))
    if not cuda:
        return [end - start for start, end in marks]
    torch.cuda.synchronize()
    return [start.elapsed_time(end) / 1e3 for start, end in marks]


def peak_bytes(device):
    """The most that tensors took at once; none where it is not known."""
    if device.type != "cuda":
        return None
    return torch.cuda.max_memory_allocated()


def report(args, text, **values):
    device = torch.device(args.device)
    name = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    line = {"bench": args.job, **values, "dtype": args.dtype, "device": name,
            "torch": torch.__version__, "tiny": args.tiny}
    print(json.dumps(line))
    print(f"# {args.job}: {text}", flush=True)


def numbers(seconds, flop, peak):
    median = statistics.median(seconds)
    return {
        "seconds": median,
        "seconds_min": min(seconds),
        "seconds_max": max(seconds),
        "flop": flop,
        "tflops": flop / median / 1e12,
        "of_peak": flop / median / peak,
    }


def run_gemm(args):
    device, dtype = torch.device(args.device), DTYPES[args.dtype]
    n = args.size
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    out = torch.empty_like(a)
    seconds = measure(
        device, lambda: torch.matmul(a, b, out=out), args.runs, 5, wait=False)
    values = numbers(seconds, 2 * n ** 3, args.peak)
    report(args, f"{n}^3: {1e3 * values['seconds']:.3f} ms, "
           f"{values['tflops']:.1f} TFLOP/s", size=n, **values)


def chosen_backend(q, k, v, causal):
    """What PyTorch takes if it is not told."""
    try:
        number = torch._fused_sdp_choice(q, k, v, is_causal=causal)
        return SDPBackend(number).name.lower()
    except (AttributeError, RuntimeError, TypeError, ValueError):
        return None


def run_attention(args):
    device, dtype = torch.device(args.device), DTYPES[args.dtype]
    shapes = [("text", (8, 16, 2048, 128), True),
              ("vision", (192, 16, 257, 64), False)]
    if args.tiny:
        shapes = [("text", (2, 2, 64, 32), True),
                  ("vision", (3, 2, 17, 16), False)]
    for name, shape, causal in shapes:
        batch, heads, length, size = shape
        forward_flop = 4 * batch * heads * length ** 2 * size
        forward_flop //= 2 if causal else 1
        q, k, v = (torch.randn(shape, device=device, dtype=dtype)
                   .requires_grad_() for _ in range(3))
        out_gradient = torch.randn_like(q)
        by_itself = chosen_backend(q, k, v, causal)

        def forward():
            return F.scaled_dot_product_attention(q, k, v, is_causal=causal)

        def alone():
            with torch.no_grad():
                forward()

        def both():
            torch.autograd.grad(forward(), (q, k, v), out_gradient)
        jobs = [("forward", alone, 1)]
        if causal:
            jobs.append(("forward+backward", both, 3.5))
        for backend in ["default", *BACKENDS]:
            for job, work, factor in jobs:
                about = {"what": name, "shape": shape, "causal": causal,
                         "job": job, "backend": backend}
                if backend == "default":
                    about["chosen"] = by_itself
                text = f"{name}, {job}, {backend}"
                try:
                    with only_backend(backend, False):
                        seconds = measure(
                            device, work, args.runs, 5, wait=False)
                except RuntimeError as error:
                    reason = str(error).splitlines()[0]
                    report(args, f"{text}: cannot, {reason}", **about,
                           error=reason)
                    continue
                values = numbers(seconds, factor * forward_flop, args.peak)
                if backend == "default":
                    text += f" ({by_itself})"
                report(args, f"{text}: {1e3 * values['seconds']:.3f} ms, "
                       f"{values['tflops']:.1f} TFLOP/s", **about, **values)


def only_backend(name, others):
    """Attention of this implementation, `others` where it cannot."""
    if name == "default":
        return contextlib.nullcontext()
    if not others:
        return sdpa_kernel(BACKENDS[name])
    rest = [backend for key, backend in BACKENDS.items() if key != name]
    return sdpa_kernel(
        [BACKENDS[name], *rest, SDPBackend.MATH], set_priority=True)


def make(args, training):
    """The model and its sizes."""
    preset = PRESETS[args.preset]
    preset = preset.tiny() if args.tiny else preset
    dtype = DTYPES[args.dtype]
    trained = torch.float32 if training else dtype
    # Without training everything is of one type, and autocast is off.
    fast = not training or args.types == "narrow"
    torch.manual_seed(args.seed)
    return Flamingo(
        preset, args.device, dtype, trained, args.added_tokens, fast)


def make_inputs(args, model, batch, length, images):
    """Tokens with an image at the start of each part, and pixels."""
    preset, device = model.preset, torch.device(args.device)
    tokens = torch.randint(model.first_added, (batch, length), device=device)
    places = [i * length // images for i in range(images)]
    tokens[:, places] = model.image_token
    pixels = torch.randn(
        batch, images, 3, preset.image_size, preset.image_size, device=device)
    return tokens, pixels.to(DTYPES[args.dtype])


def step_flop(model, batch, length, images):
    """See the head of this file."""
    groups, preset = model.groups(), model.preset
    tokens, images = batch * length, batch * images
    parts = {
        "language": 4 * groups["language"] * tokens,
        "cross_attention": 6 * tokens * (
            groups["cross_attention"] + groups["added_rows"]),
        "resampler": 6 * groups["resampler"] * images * preset.latents,
        "vision": 2 * groups["vision"] * images * (preset.patches + 1),
    }
    return parts, sum(parts.values())


def choices(alibi):
    return {"no": [False], "yes": [True], "both": [False, True]}[alibi]


def run_step(args):
    device = torch.device(args.device)
    model = make(args, True)
    model.checkpoint = args.checkpoint
    tokens, pixels = make_inputs(
        args, model, args.batch, args.tokens, args.images)
    cross = list(model.cross.parameters())
    others = [p for p in model.parameters() if p.requires_grad]
    known = {id(p) for p in cross}
    others = [p for p in others if id(p) not in known]
    optimizer = torch.optim.AdamW(
        [{"params": cross, "weight_decay": 0.1},
         {"params": others, "weight_decay": 0.0}], lr=1e-4, fused=True)
    trained = cross + others
    loss_of = torch.compile(model.loss) if args.compile else model.loss
    last = {}

    def step():
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, torch.bfloat16,
                            enabled=args.dtype == "bf16"):
            loss = loss_of(tokens, pixels)
        loss.backward()
        last["norm"] = torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        last["loss"] = loss.detach()

    parts, flop = step_flop(model, args.batch, args.tokens, args.images)
    for with_alibi in choices(args.alibi):
        model.alibi = with_alibi
        with only_backend(args.sdpa, True):
            seconds = measure(device, step, args.steps, args.warm)
            memory = peak_bytes(device)
            profile = by_class(device, step) if args.profile else None
        values = numbers(seconds, flop, args.peak)
        median = values["seconds"]
        text = f"{args.preset}, {args.batch} x {args.tokens} tokens, " \
            f"{args.images} images, alibi {with_alibi}: {median:.4f} s, " \
            f"{args.batch / median:.1f} samples/s, " \
            f"{values['tflops']:.1f} TFLOP/s, MFU {values['of_peak']:.3f}"
        if memory:
            text += f", {memory / 2 ** 30:.1f} GiB"
        report(
            args, text, preset=args.preset, batch=args.batch,
            tokens=args.tokens, images=args.images, alibi=with_alibi,
            types=args.types, sdpa=args.sdpa, compile=args.compile,
            checkpoint=args.checkpoint, **values, mfu=values["of_peak"],
            samples_per_second=args.batch / median,
            tokens_per_second=args.batch * args.tokens / median,
            peak_bytes=memory, parameters=model.groups(), flop_parts=parts,
            loss=last["loss"].item(), gradient_norm=last["norm"].item())
        if profile:
            total = sum(profile.values())
            lines = ", ".join(f"{name} {1e3 * value:.2f} ms"
                              for name, value in profile.items())
            report(args, f"profile: {lines}; together {1e3 * total:.2f} ms",
                   profile=profile, alibi=with_alibi)


# The first class, one of whose words is in a kernel's name, has it.
CLASSES = {
    "attention": ["fmha", "flash", "sdpa", "attention", "softmax_warp"],
    "loss": ["softmax", "nll_loss", "cross_entropy"],
    "matmul": ["gemm", "nvjet", "cublas", "cutlass", "xmma", "addmm", "::mm",
               "::bmm", "splitk", "mkldnn", "onednn"],
    "convolution": ["conv"],
    "norm": ["layer_norm", "layernorm", "gammabeta"],
    "optimizer": ["adam", "multi_tensor", "foreach", "lpnorm"],
    "embedding": ["embedding", "index"],
    "copy and cast": ["copy", "memcpy", "memset", "fillfunctor", "catarray",
                      "::cat"],
    "reduce": ["reduce", "::sum"],
    "elementwise": ["elementwise", "triton", "::add", "::mul", "::gelu",
                    "::sigmoid", "::masked"],
}


def by_class(device, step, steps=2):
    """Seconds a step of what ran on the device, by class, most first."""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile
    cuda = device.type == "cuda"
    activities = [ProfilerActivity.CPU]
    if cuda:
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities, acc_events=True) as profiler:
        for _ in range(steps):
            step()
        if cuda:
            torch.cuda.synchronize()
    classes = {}
    for event in profiler.key_averages():
        if cuda:
            # Spans that the optimizer marks hold kernels counted already.
            if event.device_type != DeviceType.CUDA or getattr(
                    event, "is_user_annotation", False) \
                    or event.key.startswith("Optimizer."):
                continue
            seconds = event.self_device_time_total
        else:
            seconds = event.self_cpu_time_total
        key = event.key.lower()
        name = next((name for name, words in CLASSES.items()
                     if any(word in key for word in words)), "other")
        classes[name] = classes.get(name, 0) + seconds / 1e6 / steps
    return dict(sorted(classes.items(), key=lambda item: -item[1]))


def run_prompts(args):
    """`generate` and `score`."""
    device = torch.device(args.device)
    model = make(args, False)
    images = args.shots + 1
    length = images * args.tokens_per_shot
    tokens, pixels = make_inputs(args, model, args.prompts, length, images)
    ahead = torch.randint(
        model.first_added, (args.prompts, args.new_tokens), device=device)
    scored = torch.cat([tokens, ahead], 1)
    last = {}

    def work():
        if args.job == "generate":
            last["out"] = model.write(tokens, pixels, args.new_tokens)
        else:
            last["out"] = model.score(scored, pixels, args.new_tokens)

    def see():
        model.media(pixels)

    for with_alibi in choices(args.alibi):
        model.alibi = with_alibi
        with torch.inference_mode(), only_backend(args.sdpa, True):
            seconds = measure(device, work, args.runs, args.warm)
            memory = peak_bytes(device)
            seeing = statistics.median(
                measure(device, see, args.runs, args.warm))
        median = statistics.median(seconds)
        text = f"{args.preset}, {args.prompts} prompts of {images} images " \
            f"and {length} tokens, {args.new_tokens} tokens, alibi " \
            f"{with_alibi}: {median:.4f} s, of it images {seeing:.4f} s, " \
            f"{args.prompts / median:.2f} samples/s"
        out = last["out"]
        report(
            args, text, preset=args.preset, prompts=args.prompts,
            images=images, prompt_tokens=length, new_tokens=args.new_tokens,
            alibi=with_alibi, sdpa=args.sdpa, seconds=median,
            seconds_min=min(seconds), seconds_max=max(seconds),
            images_seconds=seeing, samples_per_second=args.prompts / median,
            tokens_per_second=args.prompts * args.new_tokens / median,
            peak_bytes=memory, parameters=model.groups(),
            first=out[0].tolist())


def check(args):
    """What the benches rely on.

    Written tokens are those of the whole sequence run again, no token sees
    an image after it, what is trained has gradients and nothing else, and
    running layers again changes none.
    """
    args.job, args.dtype = "check", "f32"
    torch.manual_seed(args.seed)
    model = make(args, True)
    tokens, pixels = make_inputs(args, model, 2, 21, 3)
    tokens[:, 0] = 7
    tokens[:, 2] = model.image_token
    for with_alibi in (False, True):
        model.alibi = with_alibi
        with torch.no_grad():
            media = model.media(pixels)
            written = model.write(tokens, pixels, 4)
            whole = torch.cat([tokens, written], 1)
            states = model.hidden(whole, media)[:, -5:-1]
            again = model.logits(states.flatten(0, 1)).argmax(-1)
            assert torch.equal(again, written.flatten()), "writing"
            changed = pixels.clone()
            changed[:, 1] += 1
            a, b = (model.hidden(tokens, model.media(part))
                    for part in (pixels, changed))
            differs = ((a - b).abs() > 1e-4).any(-1).any(0).tolist()
            assert differs.index(True) == 7, "masking"
        model.loss(tokens, pixels).backward()
        for name, value in model.named_parameters():
            assert (value.grad is not None) == value.requires_grad, name
        assert model.added.grad.abs().sum() > 0
        checked = model.added.grad.clone()
        model.zero_grad()
        model.checkpoint = True
        model.loss(tokens, pixels).backward()
        assert torch.allclose(checked, model.added.grad, atol=1e-6)
        model.checkpoint = False
        model.zero_grad()
    report(args, "all well")


def parse(arguments):
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--device", default="cuda")
    common.add_argument("--dtype", default="bf16", choices=DTYPES)
    common.add_argument("--seed", type=int, default=1)
    common.add_argument("--peak", type=float, default=989e12, metavar="FLOP/S",
                        help="of the device (989e12)")
    common.add_argument("--tiny", action="store_true",
                        help="small sizes where none are given, for a check")

    def size(parser, name, usual, tiny, text):
        parser.add_argument(name, type=int, metavar="N",
                            help=f"{text} ({usual}; with --tiny {tiny})")
        name = name[2:].replace("-", "_")
        parser.set_defaults(
            sizes={**(parser.get_default("sizes") or {}),
                   name: (usual, tiny)})

    model = argparse.ArgumentParser(add_help=False)
    model.add_argument("--preset", default="openflamingo-3b", choices=PRESETS)
    model.add_argument("--added-tokens", type=int, default=2, metavar="N",
                       choices=range(EXTRA_ROWS + 1),
                       help="trained rows of the table, 0 to 3 (2)")
    model.add_argument("--alibi", nargs="?", default="no", const="yes",
                       choices=["no", "yes", "both"],
                       help="MPT's bias as a mask; both: one after the other")
    model.add_argument("--sdpa", default="default",
                       choices=["default", *BACKENDS],
                       help="implementation of attention to prefer")
    model.add_argument("--warm", type=int, default=3, metavar="N",
                       help="runs before those that are timed (3)")

    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    jobs = parser.add_subparsers(dest="job", required=True)

    def job(name, text, *parents):
        return jobs.add_parser(
            name, help=text, description=text, parents=[common, *parents],
            epilog=EXAMPLE,
            formatter_class=argparse.RawDescriptionHelpFormatter)

    gemm = job("gemm", "one square product")
    size(gemm, "--size", 8192, 128, "rows and columns")
    size(gemm, "--runs", 20, 3, "timed runs")
    attention = job("attention", "attention by itself")
    size(attention, "--runs", 20, 3, "timed runs")
    step = job("step", "a training step", model)
    size(step, "--batch", 64, 2, "sequences")
    size(step, "--tokens", 256, 24, "tokens of a sequence")
    size(step, "--images", 3, 2, "images of a sequence")
    size(step, "--steps", 10, 3, "timed steps")
    step.add_argument("--types", default="narrow",
                      choices=["narrow", "autocast"],
                      help="of norms and residual; narrow: bf16")
    step.add_argument("--compile", action="store_true",
                      help="the loss through torch.compile")
    step.add_argument("--checkpoint", action="store_true",
                      help="text layers run again in the backward pass")
    step.add_argument("--profile", action="store_true",
                      help="time by class of kernel, too")
    for name, text, new in [
            ("generate", "greedy tokens after prompts", 20),
            ("score", "log-probabilities of continuations", 10)]:
        prompts = job(name, text, model)
        size(prompts, "--prompts", 8, 2, "prompts at once")
        size(prompts, "--shots", 32, 2, "images before the last")
        size(prompts, "--tokens-per-shot", 16, 6, "tokens from each image on")
        size(prompts, "--new-tokens", new, 4, "tokens after the prompt")
        size(prompts, "--runs", 5, 2, "timed runs")
    checks = job("check", "tests of the modules, in f32", model)
    checks.set_defaults(types="narrow")
    args = parser.parse_args(arguments)
    for name, (usual, tiny) in getattr(args, "sizes", {}).items():
        if getattr(args, name) is None:
            setattr(args, name, tiny if args.tiny else usual)
        if getattr(args, name) < 1 and name != "shots":
            parser.error(f"--{name} must be at least 1")
    return args


def main():
    args = parse(sys.argv[1:])
    torch.manual_seed(args.seed)
    jobs = {"gemm": run_gemm, "attention": run_attention, "step": run_step,
            "generate": run_prompts, "score": run_prompts, "check": check}
    try:
        jobs[args.job](args)
    except torch.OutOfMemoryError as error:
        reason = str(error).splitlines()[0]
        report(args, f"out of memory: {reason}", error="out of memory",
               command=sys.argv[1:])
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
