"""Benchmark the speed against nanoGPT, nanodo and Hugging Face, in one interleaved run on the same cores.

  python -m experiments.bench                          every suite: about ten minutes on two cores
  python -m experiments.bench --suites=train-baby,decode-baby
  NANOGPT=../nanoGPT NANODO=../nanodo python -m experiments.bench      with checkouts of your own

Suites: train-baby, train-baby-one (the same on one core, by CPU time), train-mid, bf16-baby, bf16-mid, decode-baby,
decode-gpt2, bert-forward, bert-forward-bf16, bert-mlm, bert-mlm-bf16, beam-gpt2, beam-baby, loop, start.

Peers are installed in .bench/. Results are written to docs/measurements/performance.json and to the tables of
docs/measurements/performance_tables.md.
"""

import os
import pathlib
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from typing import Any

from absl import flags

from experiments.bench import page, peers
from experiments.bench.harness import Contender, measure, row
from experiments.bench.shapes import PREDICTED, SHAPES, masked_lm_flops, train_flops, trunk_flops
from jaxnlp import cli, distributed, runtime
from jaxnlp.errors import UserError

SUITES = flags.DEFINE_list("suites", None, "Suites to run. Default: all.")
ROUNDS = flags.DEFINE_integer("rounds", 9, "Number of rounds; each times every contender once.")
SECONDS = flags.DEFINE_float("seconds", 1.0, "Seconds per turn of a contender; at least one step.")
SAVE = flags.DEFINE_bool("save", True, "Write performance.json and performance_tables.md in docs/measurements.")

TUNABLES = "glibc.malloc.hugetlb=1"  # as in the Makefile
SYSTEM = {"JAXNLP_ALLOCATOR": "system", "JAX_CPU_ENABLE_ASYNC_DISPATCH": "true", "GLIBC_TUNABLES": ""}

HERE = pathlib.Path(__file__).resolve().parent
LOGS = peers.FOLDER / "logs"


def main() -> None:
    names = SUITES.value or list(ALL)
    for name in names:
        if name not in ALL:
            raise UserError(f"--suites={name}: no such suite; expected one or more of {', '.join(ALL)}")
    if ROUNDS.value < 1 or SECONDS.value <= 0:
        raise UserError(f"--rounds={ROUNDS.value} --seconds={SECONDS.value}: expected positive numbers")
    results = {}
    for name in names:
        results[name] = ALL[name]()
        print(page.text(results[name]), flush=True)
        if SAVE.value:
            page.save({name: results[name]})


def say(text: str) -> None:
    print(
        f"\r\033[K{text}" if sys.stderr.isatty() else text,
        end="" if sys.stderr.isatty() else "\n",
        file=sys.stderr,
        flush=True,
    )


def ours(name: str, *args: str, env: dict[str, str] | None = None, **fields: Any) -> Contender:
    """A contender that runs jaxnlp with the environment of `make train`."""
    command = [sys.executable, "-m", "experiments.bench.ours", *args]
    return Contender(name, command, env={"GLIBC_TUNABLES": TUNABLES, **(env or {})}, **fields)


def torch_peer(name: str, *args: str, **fields: Any) -> Contender:
    return peer(name, [peers.environment("torch", peers.TORCH), str(HERE / "torch_peer.py"), *args], **fields)


def peer(name: str, command: list[str], **fields: Any) -> Contender:
    """A contender that runs another library with its defaults, or with jaxnlp's allocator settings (`--keep`)."""
    return Contender(name, command, env={"GLIBC_TUNABLES": TUNABLES if "--keep" in command else ""}, **fields)


def gemm_limit(dtype: str = "float32") -> float:
    """FLOP/s of XLA's matrix product on this machine, measured in a process like the contenders'."""
    program = (
        "from jaxnlp import runtime; runtime.configure_jax()\n"
        "from jaxnlp.hardware import measure_matmul_flops\n"
        f"print(max(measure_matmul_flops({dtype!r}, size) for size in (1024, 2048)))"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return float(result.stdout)


def machine() -> str:
    name = platform.processor() or platform.machine()
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    if cpuinfo.exists():
        match = re.search(r"model name\s*: (.*)", cpuinfo.read_text())
        name = match.group(1) if match else name
        flags_ = cpuinfo.read_text()
        name += "".join(f", {f}" for f in ("avx512f", "avx512_bf16", "amx_bf16") if f in flags_)
    return f"{name}; {len(os.sched_getaffinity(0))} cores"


def run(
    title: str,
    unit: str,
    contenders: list[Contender],
    bases: dict[str, str],
    limit: float | None,
    note: str,
    one_core: bool = False,
) -> dict[str, Any]:
    """Measures contenders in interleaved rounds. With `one_core` they share one core and are compared by CPU time."""
    if one_core:
        for c in contenders:
            c.command = ["taskset", "-c", str(min(os.sched_getaffinity(0))), *c.command]
    measure(contenders, ROUNDS.value, SECONDS.value, LOGS, say)
    by_name = {c.name: c for c in contenders}
    peers = {short: by_name[name] for short, name in bases.items()}
    stamp = f"{time.strftime('%Y-%m-%d')}, {machine()}, {ROUNDS.value} rounds"
    if limit:
        stamp += f"; the machine's own GEMM limit (XLA, float32 unless the title says else): {limit / 1e9:,.0f} GFLOP/s"
    if one_core:
        for c in contenders:
            c.walls = c.cpus
    rows = [row(c, peers, limit) for c in contenders]
    return {"title": title, "unit": unit, "note": f"{note} {stamp}.", "rows": rows}


def train(shape: str, one_core: bool = False) -> dict[str, Any]:
    """The float32 training step, with default and with equal allocator settings."""
    s = SHAPES[shape]
    size: dict[str, Any] = {"units": s["batch"] * s["length"], "flops": train_flops(s)}
    source, args = peers.checkout("nanogpt"), [f"--shape={shape}"]
    nanogpt = ["train", *args, f"--nanogpt={source}"]
    nanodo = [
        peers.environment("nanodo", peers.NANODO),
        str(HERE / "nanodo_peer.py"),
        *args,
        f"--nanodo={peers.checkout('nanodo')}",
    ]
    contenders = [
        torch_peer("nanoGPT eager", *nanogpt, **size),
        torch_peer("nanoGPT eager, our allocator settings", *nanogpt, "--keep", **size),
        torch_peer("nanoGPT torch.compile", *nanogpt, "--compile", **size),
        torch_peer("HF GPT2LMHeadModel", "train", "--impl=hf", *args, **size),
        peer("nanodo", nanodo, **size),
        peer("nanodo, our allocator settings", [*nanodo, "--keep"], **size),
        ours("jaxnlp", "train", *args, **size),
        ours(
            "jaxnlp, system allocator",
            "train",
            *args,
            env=SYSTEM,
            **size,
        ),
    ]
    bases = {
        "nanoGPT": "nanoGPT eager",
        "nanoGPT, same allocator": "nanoGPT eager, our allocator settings",
        "torch.compile": "nanoGPT torch.compile",
        "nanodo": "nanodo",
    }
    text = (
        f"{s['layers']} layers, {s['heads']} heads, d {s['dim']}, context {s['length']}, batch {s['batch']}, "
        f"vocabulary {s['vocab']}."
    )
    if one_core:
        title = f"Training step, float32, {shape}, one core, CPU time"
        return run(title, "tokens/CPU-s", contenders, bases, None, text, one_core=True)
    return run(f"Training step, float32, {shape}", "tokens/s", contenders, bases, gemm_limit(), text)


def bf16(shape: str) -> dict[str, Any]:
    """The training step with bfloat16 matrix products and float32 parameters, against `torch.autocast`."""
    s = SHAPES[shape]
    size: dict[str, Any] = {"units": s["batch"] * s["length"], "flops": train_flops(s)}
    args = [f"--shape={shape}", "--bf16"]
    nanogpt = ["train", *args, f"--nanogpt={peers.checkout('nanogpt')}"]
    contenders = [
        torch_peer("nanoGPT bf16 autocast", *nanogpt, **size),
        torch_peer("nanoGPT bf16 autocast, our allocator settings", *nanogpt, "--keep", **size),
        ours("jaxnlp, bf16 products", "train", *args, **size),
    ]
    bases = {
        "nanoGPT": "nanoGPT bf16 autocast",
        "nanoGPT, same allocator": "nanoGPT bf16 autocast, our allocator settings",
    }
    note = "`policy.matmul_dtype='bfloat16'` beside `torch.autocast`."
    return run(f"Training step, bfloat16, {shape}", "tokens/s", contenders, bases, gemm_limit("bfloat16"), note)


def bert(task: str, bf16: bool) -> dict[str, Any]:
    """BERT-base: the forward pass, or a training step of masked-language modelling, against transformers.

    All contenders have the same tokens, token types and full attention mask, and no dropout. transformers applies the
    output layer to every position; the row "all positions" does the same work here.
    """
    s, forward = SHAPES["bert"], task == "forward"
    flops = trunk_flops(s) if forward else masked_lm_flops(s, s["length"])
    size: dict[str, Any] = {"units": s["batch"] * s["length"], "flops": flops}
    args = [task, "--shape=bert", *(["--bf16"] if bf16 else [])]
    kind = " bf16 autocast" if bf16 else ""
    hf = f"HF {'BertModel' if forward else 'BertForMaskedLM'}{kind}"
    contenders = [
        torch_peer(f"{hf}, {attention}{suffix}", *args, "--impl=bert", f"--attention={attention}", *allocator, **size)
        for attention in ("eager", "sdpa")
        for suffix, allocator in (("", []), (", our allocator settings", ["--keep"]))
    ]
    our_name = "jaxnlp, bf16 products" if bf16 else "jaxnlp"
    if forward:
        contenders.append(ours(our_name, *args, **size))
    else:
        predicted_size = {**size, "flops": masked_lm_flops(s, PREDICTED)}
        contenders.append(ours(f"{our_name}, the {PREDICTED} masked positions", *args, **predicted_size))
        contenders.append(ours(f"{our_name}, all positions", *args, f"--predict={s['length']}", **size))
    if not bf16 and forward:
        contenders.append(ours("jaxnlp, system allocator", *args, env=SYSTEM, **size))
    bases = {
        "HF eager": f"{hf}, eager",
        "HF eager, same allocator": f"{hf}, eager, our allocator settings",
        "HF sdpa, same allocator": f"{hf}, sdpa, our allocator settings",
    }
    title = "BERT-base forward pass" if forward else "BERT-base masked-word training step"
    text = f"Batch {s['batch']} x {s['length']}, no dropout."
    if not forward:
        text += f" transformers puts all {s['length']} positions of a row through the output map."
    dtype = "bfloat16" if bf16 else "float32"
    return run(f"{title}, {dtype}", "tokens/s", contenders, bases, gemm_limit(dtype), text)


def decode(shape: str, cases: list[tuple[int, int, int]], beams: int = 1) -> dict[str, Any]:
    """Generation with a KV cache, including prefill, against transformers' `generate`: greedy or beam search."""
    rows: list[dict[str, Any]] = []
    note = ""
    for batch, prompt, new in cases:
        args = ["decode", f"--shape={shape}", f"--batch={batch}", f"--prompt={prompt}", f"--new={new}"]
        args.append(f"--beams={beams}")
        name = f"batch {batch}, {prompt}+{new}"
        hf, our_name = f"HF generate, {name}", f"jaxnlp, {name}"
        hf_same_allocator = f"HF generate, our allocator settings, {name}"
        contenders = [torch_peer(hf, *args, units=batch * new), ours(our_name, *args, units=batch * new)]
        bases = {"HF": hf}
        if beams > 1:
            contenders.insert(1, torch_peer(hf_same_allocator, *args, "--keep", units=batch * new))
            bases["HF, same allocator"] = hf_same_allocator
        section = run("", "", contenders, bases, None, "")
        rows += section["rows"]
        note = section["note"]
    title = f"{f'Beam search, {beams} beams' if beams > 1 else 'Greedy generation'}, float32, {shape} shape"
    return {"title": title, "unit": "new tokens/s", "note": f"Whole calls, prefill included. {note}", "rows": rows}


def loop() -> dict[str, Any]:
    """The overhead of the training loop over the bare step, and the speed of the input pipeline alone."""
    size = {"units": SHAPES["baby"]["batch"] * SHAPES["baby"]["length"]}
    with tempfile.TemporaryDirectory() as cache:
        env = {"JAXNLP_CACHE": cache}
        # The loop's vocabulary is bytes, so the bare step uses the same vocabulary.
        contenders = [
            ours("bare step", "loop-step", "--shape=baby", env=env, **size),
            ours("experiments.train loop", "loop", "--shape=baby", env=env, **size),
            ours("input pipeline alone", "input", "--shape=baby", env=env, **size),
        ]
        note = "The whole loop (reading, packing, logging, progress, checks) beside its own step on fixed batches."
        return run("The loop, baby", "tokens/s", contenders, {"bare step": "bare step"}, None, note)


def start() -> dict[str, Any]:
    """Seconds from the command to the first step, with empty and with filled caches."""
    cache = tempfile.mkdtemp()
    times = []
    for _ in range(3):
        workdir = tempfile.mkdtemp()
        command = [
            sys.executable,
            "-m",
            "experiments.train",
            "--config=configs/gpt/tiny.py",
            f"--workdir={workdir}",
            "--config.log_every=1",
        ]
        start_time = time.monotonic()
        env = {**os.environ, "JAXNLP_CACHE": cache}
        process = subprocess.Popen(command, env=env, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("step "):
                break
        times.append(time.monotonic() - start_time)
        process.kill()
        process.wait()
        shutil.rmtree(workdir)
    shutil.rmtree(cache)
    note = (
        "`experiments.train --config=configs/gpt/tiny.py` from the command to the first step's loss: "
        f"{times[0]:.1f} s with empty caches (tokenizer trained, corpus tokenized, step compiled), "
        f"then {times[1]:.1f} s and {times[2]:.1f} s. "
        f"{time.strftime('%Y-%m-%d')}, {machine()}."
    )
    return {"title": "Start-up", "note": note}


ALL = {
    "train-baby": lambda: train("baby"),
    "train-baby-one": lambda: train("baby", one_core=True),
    "train-mid": lambda: train("mid"),
    "bf16-baby": lambda: bf16("baby"),
    "bf16-mid": lambda: bf16("mid"),
    "decode-baby": lambda: decode("baby", [(1, 32, 128), (16, 32, 128)]),
    "decode-gpt2": lambda: decode("gpt2", [(1, 32, 32), (16, 32, 16)]),
    "bert-forward": lambda: bert("forward", bf16=False),
    "bert-forward-bf16": lambda: bert("forward", bf16=True),
    "bert-mlm": lambda: bert("train", bf16=False),
    "bert-mlm-bf16": lambda: bert("train", bf16=True),
    "beam-gpt2": lambda: decode("gpt2", [(1, 32, 32)], beams=4),
    "beam-baby": lambda: decode("baby", [(4, 32, 128)], beams=4),
    "loop": loop,
    "start": start,
}

if __name__ == "__main__":
    runtime.configure_jax()
    cli.run(main, __doc__, by=distributed.ONE)
