"""The report of a finished run: its metrics beside baselines, a sample, and commands for the next steps."""

import math
import pathlib
import statistics

import jax

from jaxnlp.data.pipeline import eval_batches
from jaxnlp.data.text.store import TokenStore
from jaxnlp.evals.baselines import compressed_bits_per_byte, unigram_bits_per_byte, unigram_of_targets
from jaxnlp.runtime import python
from jaxnlp.training.loops.supervised import Result
from jaxnlp.training.run_folder.metric_log import LOG, plot, read_log
from jaxnlp.training.samples.samples import sample
from jaxnlp.training.samples.tasks import task_table


def report(result: Result, workdir: pathlib.Path) -> str:
    """The report of a run that ended. Also plots its curves.

    With several processes all must call it: the sample is generated on the full mesh.
    """
    assert result.validation is not None
    e, step, store = result.experiment, int(result.state.step), result.stores["validation"]
    if e.data.task.output == "logits":
        lines, table = task_table(result.validation, store, result.tokenizer, e.data)
    else:
        lines, table = text_table(result) if "bits_per_byte" in result.validation else target_table(result)
    picture = plot(workdir, lines) if jax.process_index() == 0 else None
    shown = sample(result.program, result.state.model, result.tokenizer, store)
    out = ["", *table, "", speed_line(workdir, result.peak), *shown, "", "written:"]
    written = [
        ("checkpoint", workdir / "checkpoints" / str(step)),
        ("log", workdir / LOG),
        ("loss curve", picture),
        ("TensorBoard", workdir / "tensorboard"),
        ("config", workdir / "config.json"),
    ]
    out += [f"  {name:12}{path}" for name, path in written if path is not None]
    prompt = e.sample_prompt or "TEXT"
    run, change = f"{python()} -m experiments", "--config.optim.learning_rate=3e-3"
    if e.model.num_layers:
        change = f"--config.model.num_layers={e.model.num_layers + 2}"
    out += ["", "next:"]
    out.append(f"  train on     {run}.train --workdir={workdir} --config.num_steps={2 * e.num_steps}")
    if e.model.can_generate:
        out.append(f'  generate     {run}.generate --workdir={workdir} --prompt="{prompt}"')
    else:
        if e.data.task.output == "logits":
            out.append(f"  predict      {run}.predict --workdir={workdir} --input=new.jsonl")
        out.append(f"  evaluate     {run}.evaluate --workdir={workdir} --split=test")
    if "masked_lm" in e.model.heads:
        mask = e.data.task.mask or "[MASK]"
        out.append(f'  fill in      {run}.fill_mask --workdir={workdir} --text="{mask} {prompt}"')
    if e.model.body.attention is not None:
        target = f' --target="{prompt}"' if e.model.kind == "encoder-decoder" else ""
        out.append(f'  look inside  {run}.attention_map --workdir={workdir} --text="{prompt}"{target}')
    out.append(f"  change it    {run}.train --config_json={workdir / 'config.json'} --workdir={workdir}-2 {change}")
    return "\n".join(out)


def text_table(result: Result) -> tuple[dict[str, float], list[str]]:
    """(baselines in nats per token, lines of a table) for a model that predicts every token of a text."""
    assert result.validation is not None
    store, found = result.stores["validation"], result.validation
    assert isinstance(store, TokenStore)
    unigram = unigram_bits_per_byte(store)
    packed = compressed_bits_per_byte(store, result.tokenizer)
    nats = math.log(2) * store.bytes_per_token
    lines = {"unigram entropy": unigram * nats, "gzip -9": packed["gzip"] * nats, "xz -9e": packed["xz"] * nats}
    rows = [
        ("this model", found["loss"], found["bits_per_byte"]),
        ("unigram entropy of the split", unigram * nats, unigram),
        ("gzip -9", packed["gzip"] * nats, packed["gzip"]),
        ("xz -9e", packed["xz"] * nats, packed["xz"]),
    ]
    size = f"{store.meta.num_bytes:,} bytes in {store.meta.num_documents:,} documents"
    out = [f"validation split, {size}, {found['tokens']:,.0f} tokens:", ""]
    out.append(f"  {'':30}{'nats/token':>12}{'bits/byte':>12}")
    out += [f"  {name:30}{loss:>12.4f}{bits:>12.4f}" for name, loss, bits in rows]
    if "forward_nll" in found:
        ways = (f"{way} {found[f'{way}_nll']:.4f}" for way in ("forward", "backward"))
        out += ["", f"  the mean of two directions: {', '.join(ways)} nats/token"]
    return lines, out


def target_table(result: Result) -> tuple[dict[str, float], list[str]]:
    """As `text_table`, for a model that predicts some targets. The baseline always predicts the most frequent one."""
    assert result.validation is not None
    found, store = result.validation, result.stores["validation"]
    batches = eval_batches(store, result.experiment.data, tokenizer=result.tokenizer)
    entropy, share = unigram_of_targets(batches, result.tokenizer.vocab_size)
    rows = [("this model", found["loss"], found.get("accuracy")), ("unigram of the targets", entropy, share)]
    out = [f"validation split, {found['tokens']:,.0f} predicted tokens:", ""]
    out.append(f"  {'':30}{'nats/token':>12}{'accuracy':>12}")
    out += [f"  {name:30}{loss:>12.4f}{'-' if right is None else f'{right:.2%}':>12}" for name, loss, right in rows]
    if "next_sentence_accuracy" in found:
        out += ["", f"  next sentence: {found['next_sentence_accuracy']:.2%} right (chance: 50%)"]
    return {"unigram entropy of the targets": entropy}, out


def speed_line(workdir: pathlib.Path, peak: str) -> str:
    """The median speed of the logged steps, and its share of the peak."""
    rows = [row for row in read_log(workdir / LOG) if "tokens_per_second" in row]
    if not rows:
        return "speed: too few steps to tell"
    rate = statistics.median(row["tokens_per_second"] for row in rows)
    shares = [row["mfu"] for row in rows if "mfu" in row]
    share = f"{statistics.median(shares):.0%} of the peak" if shares else "peak"
    return f"speed: {rate:,.0f} tokens/s, {share} ({peak})"
