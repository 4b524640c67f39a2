"""Runs one Flamingo of 190 million parameters, f32, on two threads, in this crate and in PyTorch.

  python3 -m venv target/pytorch
  # The package for graphics cards is 5 GB; the one for processors alone is enough.
  target/pytorch/bin/pip install torch==2.15.0 numpy safetensors
  cargo build --release -p flamingo-model --examples
  target/pytorch/bin/python model/benches/pytorch.py [ROUNDS [JOB ...]]

model/examples/hundred_million.rs makes the model and its inputs, tells its sizes, and is timed beside the plain PyTorch below, which
reads the same weights. First both must agree: loss, logits of the last positions and two gradients to a relative 1e-4, the tokens
written exactly. Then, ROUNDS (5) times in turn, each in a process of its own:

  step         forward, backward and AdamW of the trained parts; 4 sequences of 256 tokens with 3 images each; median of 3 after one
               that is not timed
  step-keeping the same, but that here frozen blocks keep what they make for the backward pass, too, as PyTorch does, instead of making
               it again (`recompute = "nothing"`)
  forward      the loss alone, likewise
  generate     32 tokens, greedy, after 64 tokens with 3 images that are read, too; keys and values are kept; likewise
  first-token  from the start of the process, with all that is loaded, to a token after a prompt with one image

Medians over the rounds; memory is the largest of a process, median too. CARGO_TARGET_DIR says where cargo builds, as ever.
"""
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TARGET = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
WORK = TARGET / "bench-pytorch"
OURS = TARGET / "release/examples/hundred_million"
THREADS = 2
BATCH, LENGTH, IMAGES, WRITTEN = 4, 256, 3, 32
RUNS = {"step": 4, "step-keeping": 4, "forward": 4, "generate": 4}


def load(name):
    from safetensors.torch import load_file
    return load_file(WORK / name)


def phi(length, images):
    return [position * images // length for position in range(length)]


def make_model():
    """The model as functions on the weights `w`; frozen towers ask for no gradient."""
    import torch
    import torch.nn.functional as F
    torch.set_num_threads(THREADS)
    config = json.loads((WORK / "config.json").read_text())
    w = load("model.safetensors")
    trained = {name: value.requires_grad_() for name, value in w.items() if name.startswith(("resampler.", "cross_attention."))}
    language_layers, width = config["language"]["layers"], config["language"]["width"]

    def linear(x, name):
        return F.linear(x, w[name + ".weight"], w.get(name + ".bias"))

    def norm(x, name):
        return F.layer_norm(x, x.shape[-1:], w[name + ".weight"], w[name + ".bias"], 1e-5)

    def split(x, heads):
        return x.unflatten(-1, (heads, -1)).transpose(-3, -2)

    def join(x):
        return x.transpose(-3, -2).flatten(-2)

    def block(x, name, heads, activate, past=None, causal=False):
        q, k, v = (split(part, heads) for part in linear(norm(x, name + "norm_1"), name + "attn.qkv").chunk(3, -1))
        if past is not None:
            if past:
                k, v = torch.cat([past[0], k], -2), torch.cat([past[1], v], -2)
            past[:] = [k, v]
        x = x + linear(join(F.scaled_dot_product_attention(q, k, v, is_causal=causal)), name + "attn.out")
        return x + linear(activate(linear(norm(x, name + "norm_2"), name + "mlp.up")), name + "mlp.down")

    def quick_gelu(x):
        return x * torch.sigmoid(1.702 * x)

    def gelu_tanh(x):
        return F.gelu(x, approximate="tanh")

    def squared_relu(x):
        return F.relu(x).square()

    @torch.no_grad()
    def see(pixels):
        vision = config["vision"]
        kernel = w["vision.patch_embedding.weight"].unflatten(1, (3, vision["patch_size"], vision["patch_size"]))
        x = F.conv2d(pixels, kernel, stride=vision["patch_size"]).flatten(2).transpose(1, 2)
        x = torch.cat([w["vision.class_embedding"].expand(len(x), 1, -1), x], 1) + w["vision.position_embedding"]
        x = norm(x, "vision.ln_pre")
        for i in range(vision["layers"]):
            x = block(x, f"vision.blocks.{i}.", vision["heads"], quick_gelu)
        return x[:, 1:]

    def feed_forward(x, name):
        return linear(squared_relu(linear(norm(x, name + "norm"), name + "up")), name + "down")

    def resample(pixels):
        resampler = config["resampler"]
        features = see(pixels) + w["resampler.time"][0]
        x = w["resampler.latents"].expand(len(features), -1, -1)
        for i in range(resampler["layers"]):
            name = f"resampler.layers.{i}."
            latents = norm(x, name + "q_norm")
            both = torch.cat([norm(features, name + "kv_norm"), latents], 1)
            q, k, v = linear(latents, name + "attn.q"), linear(both, name + "attn.k"), linear(both, name + "attn.v")
            read = F.scaled_dot_product_attention(*(split(part, resampler["heads"]) for part in (q, k, v)))
            x = x + linear(join(read), name + "attn.o")
            x = x + feed_forward(x, name + "ffw.")
        return norm(x, "resampler.norm")

    def media_keys(latents):
        """Keys and values of each block, one batch entry for each image."""
        heads, all = config["cross_attention"]["heads"], []
        for i in range(language_layers):
            media = norm(latents, f"cross_attention.{i}.kv_norm")
            all.append([split(linear(media, f"cross_attention.{i}.attn.{part}"), heads) for part in "kv"])
        return all

    def cross(x, name, keys, runs):
        """`runs`: lengths of the stretches of each sequence that see one image."""
        q = split(linear(norm(x, name + "norm"), name + "attn.q"), config["cross_attention"]["heads"])
        k, v = (part.unflatten(0, (len(x), -1)) for part in keys)
        # A stretch attends to its own image alone, so that no work is thrown away by a mask.
        parts = q.split(runs, 2)
        images = range(len(runs)) if len(runs) > 1 else [-1]
        read = [F.scaled_dot_product_attention(part, k[:, i], v[:, i]) for part, i in zip(parts, images)]
        read = read[0] if len(read) == 1 else torch.cat(read, 2)
        x = x + w[name + "attn_gate"].tanh() * linear(join(read), name + "attn.o")
        return x + w[name + "ffw_gate"].tanh() * feed_forward(x, name + "ffw.")

    def decode(tokens, keys, runs, pasts=None, first=0):
        x = F.embedding(tokens, w["language.tokens.weight"]) + w["language.positions.weight"][first:first + tokens.shape[1]]
        for i in range(language_layers):
            x = cross(x, f"cross_attention.{i}.", keys[i], runs)
            past = None if pasts is None else pasts[i]
            x = block(x, f"language.blocks.{i}.", config["language"]["heads"], gelu_tanh, past, causal=tokens.shape[1] > 1)
        return norm(x, "language.norm")

    def lengths(length, images):
        return [phi(length, images).count(i) for i in range(images)]

    def logits(x):
        return F.linear(x, w["language.tokens.weight"])

    def hidden(tokens, pixels):
        return decode(tokens, media_keys(resample(pixels)), lengths(LENGTH, IMAGES))

    def loss(tokens, pixels):
        states = hidden(tokens, pixels)[:, :-1].reshape(-1, width)
        return F.cross_entropy(logits(states), tokens[:, 1:].reshape(-1))

    @torch.inference_mode()
    def write(prompt, pixels, n):
        keys, pasts = media_keys(resample(pixels)), [[] for _ in range(language_layers)]
        states = decode(prompt[None], keys, lengths(len(prompt), len(pixels)), pasts)
        written = []
        while True:
            written.append(logits(states[:, -1]).argmax(-1))
            if len(written) == n:
                return torch.cat(written).tolist()
            states = decode(written[-1][None], keys, [1], pasts, len(prompt) + len(written) - 1)

    return w, trained, hidden, logits, loss, write


def inputs():
    import torch
    parts = load("inputs.safetensors")
    return parts["tokens"].to(torch.int64), parts["pixels"], parts["prompt"].to(torch.int64)


def times(n, work):
    for _ in range(n):
        start = time.perf_counter()
        for name, value in work().items():
            print(name, value)
        print("seconds", time.perf_counter() - start)


def run_job(job, n):
    import torch
    _, trained, _, _, loss, write = make_model()
    tokens, pixels, prompt = inputs()

    if job.startswith("step"):
        optimizer = torch.optim.AdamW(trained.values(), lr=1e-4, weight_decay=0.01, fused=True)

        def step():
            optimizer.zero_grad()
            value = loss(tokens, pixels)
            value.backward()
            optimizer.step()
            return {"loss": value.item()}
        times(n, step)
    elif job == "forward":
        with torch.inference_mode():
            times(n, lambda: {"loss": loss(tokens, pixels).item()})
    elif job == "generate":
        times(n, lambda: {"tokens": write(prompt, pixels[:IMAGES], WRITTEN)})
    else:
        print("tokens", write(prompt, pixels[:1], 1))
    status = Path("/proc/self/status").read_text()
    print("peak_mib", int(status.split("VmHWM:")[1].split()[0]) // 1024)


def check():
    """Stops unless both implementations agree."""
    import torch
    subprocess.run([OURS, "check", WORK], check=True, stdout=subprocess.DEVNULL)
    ours = load("outputs.safetensors")
    _, trained, hidden, logits, loss, write = make_model()
    tokens, pixels, prompt = inputs()
    with torch.no_grad():
        theirs = {"logits": logits(hidden(tokens, pixels)[:, -1])}
    value = loss(tokens, pixels)
    value.backward()
    theirs["loss"] = value.detach()[None]
    for name in ours:
        if name.startswith("gradient."):
            theirs[name] = trained[name.removeprefix("gradient.")].grad.flatten()
    for name, value in theirs.items():
        error = ((ours[name] - value).abs().max() / value.abs().max()).item()
        print(f"{name}: largest difference {error:.1e} of the largest value", file=sys.stderr)
        assert error < 1e-4, name
    written = write(prompt, pixels[:IMAGES], WRITTEN)
    assert written == ours["written"].to(torch.int64).tolist(), written
    print(f"tokens are equal: {written}", file=sys.stderr)


def run(command, seconds_from_start):
    """Median seconds and the largest memory of one process."""
    environment = {**os.environ, "RAYON_NUM_THREADS": str(THREADS)}
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    seconds, peak, answered = [], None, None
    for line in process.stdout:
        name, value = line.split(maxsplit=1)
        if name == "tokens":
            answered = time.perf_counter() - start
        if name == "seconds":
            seconds.append(float(value))
        if name == "peak_mib":
            peak = int(value)
    assert process.wait() == 0, command
    return (answered if seconds_from_start else statistics.median(seconds[1:])), peak


def main():
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    WORK.mkdir(parents=True, exist_ok=True)
    subprocess.run([OURS, "weights", WORK], check=True, stdout=sys.stderr)
    check()
    print("| job | flamingo-model | PyTorch | ratio |\n|---|---|---|---|")
    for job in sys.argv[2:] or ["step", "step-keeping", "forward", "generate", "first-token"]:
        cold = job == "first-token"
        times = [] if cold else [str(RUNS[job])]
        commands = [[OURS, job, WORK, *times], [sys.executable, "-u", __file__, "--job", job, *times]]
        runs = [[run(command, cold) for command in commands] for _ in range(rounds)]
        ours, theirs = ([statistics.median(part) for part in zip(*side)] for side in zip(*runs))
        print(f"| {job}, s | {ours[0]:.3f} | {theirs[0]:.3f} | {theirs[0] / ours[0]:.2f} times as fast |")
        print(f"| {job}, MiB | {ours[1]:.0f} | {theirs[1]:.0f} | {ours[1] / theirs[1]:.2f} of the memory |", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--job"]:
        run_job(sys.argv[2], int(sys.argv[3]) if len(sys.argv) > 3 else 1)
    else:
        main()
