"""Initialisation from a pretrained model: bit-exact parameters, reported as loaded, missing or unexpected."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from jaxnlp import config as configs
from jaxnlp.data.huggingface_tokenizer import HuggingFaceTokenizer, wrap
from jaxnlp.data.pipeline import DataConfig
from jaxnlp.data.pretrained_tokenizer import PretrainedTokenizer, extended
from jaxnlp.data.tasks.layout import DecoderLayout
from jaxnlp.data.tasks.sequence_classification import SequenceClassificationTask
from jaxnlp.data.tokenizer import ByteTokenizer
from jaxnlp.errors import UserError
from jaxnlp.interop import huggingface
from jaxnlp.models.bert import BertConfig
from jaxnlp.models.gpt import GPTConfig
from jaxnlp.models.heads import ModelWithHead, SequenceClassificationHead
from jaxnlp.nn.positions import Rotary
from jaxnlp.sharding.mesh import MeshConfig, make_mesh
from jaxnlp.sharding.rules import FSDP, TENSOR, Sharding, path_name
from jaxnlp.training.experiment import Experiment
from jaxnlp.training.init import pretrained
from jaxnlp.training.init.pretrained import Pretrained, by_path, modules
from jaxnlp.training.run_folder.checkpoint import Writer
from jaxnlp.training.step.program import build
from jaxnlp.training.step.state import TrainState, saved_trees

BYTES = ByteTokenizer(("[CLS]", "[SEP]"))
MORE = extended(BYTES, ("<start>", "<delimiter>", "<extract>"))
BERT = BertConfig(
    vocab_size=259, num_layers=2, num_heads=2, embed_dim=8, max_length=16, heads=("masked_lm", "next_sentence")
)
GPT = GPTConfig(vocab_size=259, num_layers=2, num_heads=2, embed_dim=8, max_length=16)
CLASSES = SequenceClassificationTask(classes=("x", "y", "z"))
LAYER = ("attention/key", "attention/out", "attention/query", "attention/value", "mlp/down", "mlp/up")


def program(model, sharding=None, examples=CLASSES):
    data = DataConfig(seq_len=8, batch_size=4, task=examples)
    rules = sharding or Sharding(mesh=MeshConfig(data=1))
    devices = jax.devices()[: 4 if sharding else 1]
    return build(Experiment(model=model, data=data, sharding=rules, num_steps=1), devices)


def run(folder, model, tokenizer=BYTES, steps=(5,), examples=CLASSES):
    """The folder of a run with checkpoints, and its newest parameters by path."""
    made = program(model, examples=examples)
    state = fresh(made, seed=1)
    writer = Writer(folder, keep_last=3, keep_best=1)
    for step in steps:
        params = jax.tree.map(lambda x, n=step: x + n, state.params)
        params = jax.tree.map(lambda x, like: jax.device_put(x, like.sharding), params, state.params)
        now = dataclasses.replace(state, step=jax.device_put(np.int32(step)), params=params)
        records = {"data": {"position": 0, "corpus": "none"}, "config": configs.to_dict(made.experiment)}
        writer.save(int(now.step), saved_trees(now), {**records, "tokenizer": tokenizer.to_json()})
        writer.wait()
    writer.close()
    return str(folder), flat(params)


def fresh(made, seed=0):
    """A state with random parameters, drawn with NumPy, which compiles nothing."""
    random = np.random.default_rng(seed)
    draw = lambda x: jax.device_put(random.normal(size=x.shape).astype(x.dtype), x.sharding)
    scalar = jax.device_put(np.int32(0))
    params = jax.tree.map(draw, made.abstract.params)
    return TrainState(step=scalar, params=params, opt_state=(), key=scalar, skipped=scalar, loss_scale=None)


def flat(tree):
    return {path_name(path): np.asarray(x) for path, x in jax.tree_util.tree_leaves_with_path(tree)}


def begin(made, path, tokenizer=BYTES, **fields):
    """(parameters by path, the initial parameters, the load report)."""
    state, messages = fresh(made), []
    first = flat(state.params)
    state, report = Pretrained(path=path, **fields).begin(made, state, tokenizer, messages.append)
    for leaf, wanted in zip(jax.tree.leaves(state.params), jax.tree.leaves(made.abstract.params), strict=True):
        assert leaf.sharding == wanted.sharding and leaf.dtype == wanted.dtype
    return flat(state.params), first, report


def assert_equal(actual, wanted, names):
    """The arrays that `names` maps to each other are bit-identical."""
    for name, other in names.items():
        assert actual[name].tobytes() == wanted[other].tobytes() and actual[name].any(), name


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return run(tmp_path_factory.mktemp("pretrained") / "bert", BERT, steps=(3, 5))


@pytest.fixture(scope="module")
def gpt(tmp_path_factory):
    return run(tmp_path_factory.mktemp("pretrained") / "gpt", GPT)


def test_a_bert_as_a_trunk(bert):
    path, theirs = bert
    trunk = pretrained.model(path, heads=("pooler",), dropout_rate=0.0)
    assert trunk == dataclasses.replace(BERT, vocab_size=None, heads=("pooler",), dropout_rate=0.0)
    trunk = dataclasses.replace(trunk, vocab_size=259)
    made = program(ModelWithHead(body=trunk, head=SequenceClassificationHead(num_classes=3)))
    ours, first, report = begin(made, path)
    blocks = [
        f"block_{i}/{part}"
        for i in range(2)
        for part in (*(f"{x}/bias" for x in LAYER), *(f"{x}/kernel" for x in LAYER))
    ]
    norms = [f"block_{i}/{norm}_norm/{x}" for i in range(2) for norm in ("attention", "mlp") for x in ("bias", "scale")]
    body = ["embed/embedding", "types/embedding", "positions/embedding", "embed_norm/bias", "embed_norm/scale"]
    loaded = sorted(f"trunk/{x}" for x in [*blocks, *norms, *body, "pooler/bias", "pooler/kernel"])
    assert report.loaded == loaded and report.missing == ["head/bias", "head/kernel"] and not report.more_rows
    heads = ("dense/bias", "dense/kernel", "norm/bias", "norm/scale")
    assert report.unexpected == [
        *("masked_lm/bias", *(f"masked_lm/{x}" for x in heads)),
        *("next_sentence/bias", "next_sentence/kernel"),
    ]
    assert_equal(ours, theirs, {name: name.removeprefix("trunk/") for name in loaded})
    assert_equal(ours, first, {"head/kernel": "head/kernel"})
    text = "\n".join(report.lines())
    assert "initialised from" in text and "step 5" in text
    assert "missing    2: head/bias, head/kernel" in text and "unexpected 7: masked_lm/bias" in text
    assert "trunk/block_0 to block_1, trunk/embed, trunk/embed_norm, trunk/pooler" in text
    total = sum(x.size for x in ours.values())
    assert report.numbers == (total - 8 * 3 - 3, total)


def test_a_checkpoint_can_be_chosen(bert):
    path, theirs = bert
    made = program(BERT)
    params, _, report = begin(made, path, checkpoint="3")
    assert "step 3" in report.source
    np.testing.assert_allclose(params["types/embedding"], theirs["types/embedding"] - 2, atol=1e-6)
    with pytest.raises(
        UserError, match="init_from.checkpoint='4': .* has no such checkpoint; expected latest, or a step of 3, 5"
    ):
        begin(made, path, checkpoint="4")


@pytest.mark.parametrize("split", [False, True])
def test_scanned_layers_become_single_ones_and_back(tmp_path, bert, split):
    path, theirs = bert
    rules = Sharding(mesh=MeshConfig(data=2, fsdp=2), params=FSDP) if split else None
    scanned = dataclasses.replace(BERT, scan_layers=True)
    made = program(scanned, sharding=rules)
    ours, _, report = begin(made, path)
    assert not report.missing and not report.unexpected
    for name in ("attention/key/kernel", "mlp_norm/scale"):
        stacked = np.stack([theirs[f"block_{i}/{name}"] for i in range(2)])
        assert ours[f"blocks/{name}"].tobytes() == stacked.tobytes()
    if split:
        return
    other, whole = run(tmp_path / "scanned", scanned)
    back, _, report = begin(program(BERT), other)
    assert not report.missing and not report.unexpected and len(back) > len(whole)
    assert back["block_1/attention/key/kernel"].tobytes() == whole["blocks/attention/key/kernel"][1].tobytes()


@pytest.mark.parametrize("tied", [True, False])
def test_a_gpt_with_three_tokens_more(tmp_path, tied):
    model = dataclasses.replace(GPT, tie_embeddings=tied, positions=Rotary(), head_dim=4)
    path, theirs = run(tmp_path / "gpt", model)
    trunk = dataclasses.replace(pretrained.model(path), vocab_size=262)
    examples = SequenceClassificationTask(classes=("x", "y"), layout=DecoderLayout())
    made = program(ModelWithHead(body=trunk, head=SequenceClassificationHead(num_classes=2)), examples=examples)
    ours, first, report = begin(made, path, MORE)
    rows = {"trunk/embed/embedding": (259, 262)} | ({} if tied else {"trunk/head/kernel": (259, 262)})
    assert report.more_rows == rows and report.missing == ["head/bias", "head/kernel"] and report.unexpected == []
    assert ours["trunk/embed/embedding"][:259].tobytes() == theirs["embed/embedding"].tobytes()
    assert ours["trunk/embed/embedding"][259:].tobytes() == first["trunk/embed/embedding"][259:].tobytes()
    if not tied:
        assert (ours["trunk/head/kernel"][:, :259] == theirs["head/kernel"]).all()
        assert (ours["trunk/head/kernel"][:, 259:] == first["trunk/head/kernel"][:, 259:]).all()
    assert "259 of its 262 rows; the last 3 are new" in "\n".join(report.lines())
    total = sum(x.size for x in ours.values())
    assert report.numbers == (total - 18 - (3 if tied else 6) * 8, total)


def test_training_on_loads_all_and_more_layers_are_an_error(gpt):
    path, theirs = gpt
    ours, _, report = begin(program(GPT), path)
    assert_equal(ours, theirs, {name: name for name in theirs})
    assert not report.missing and not report.unexpected
    for layers, words in (
        (3, r"block_2/attention/key/bias \(and 15 more\) is not in"),
        (1, "block_1/attention/key/bias"),
    ):
        with pytest.raises(UserError, match=words):
            begin(program(dataclasses.replace(GPT, num_layers=layers)), path)
    scanned = dataclasses.replace(GPT, num_layers=1, scan_layers=True)
    with pytest.raises(
        UserError, match=r"block_1/attention/key/bias \(and 15 more\) of .*gpt, step 5 is not in this model"
    ):
        begin(program(scanned), path)


def test_what_the_patterns_allow_may_be_fresh_or_left_over(gpt):
    path, theirs = gpt
    made = program(dataclasses.replace(GPT, num_layers=3))
    ours, first, report = begin(made, path, missing_ok=("block_2/*",))
    assert len(report.missing) == 16 and all(name.startswith("block_2/") for name in report.missing)
    assert_equal(ours, first, {"block_2/mlp/up/kernel": "block_2/mlp/up/kernel"})
    _, _, report = begin(program(dataclasses.replace(GPT, num_layers=1)), path, unexpected_ok=("block_1/*",))
    assert len(report.unexpected) == 16 and len(report.loaded) == len(theirs) - 16


@pytest.mark.parametrize(
    "change, words",
    [
        ({"embed_dim": 16}, "block_0/attention/key/bias: its shape in .*gpt, step 5 is 2x4 and in this model 2x8"),
        (
            {"max_length": 32},
            "positions/embedding: its shape in .* is 16x8 and in this model 32x8; take the config of that model",
        ),
    ],
)
def test_another_shape_names_both(gpt, change, words):
    with pytest.raises(UserError, match=words):
        begin(program(dataclasses.replace(GPT, **change)), gpt[0])


def test_another_tokenizers_ids_are_an_error(gpt):
    words = (
        r"data.tokenizer: its ids are not those of .*gpt, step 5 \(ByteTokenizer, 259 tokens; this run has .*, 259\)"
    )
    with pytest.raises(UserError, match=words):
        begin(program(GPT), gpt[0], ByteTokenizer(("[SEP]", "[CLS]")))


def test_a_head_is_taken_over_only_where_it_means_the_same(tmp_path):
    model = ModelWithHead(body=dataclasses.replace(BERT, heads=()), head=SequenceClassificationHead(num_classes=3))
    path, theirs = run(tmp_path / "tuned", model)
    ours, _, report = begin(program(model), path)
    assert not report.missing and not report.unexpected
    assert_equal(ours, theirs, {name: name for name in theirs})
    other = program(model, examples=SequenceClassificationTask(classes=("a", "b", "c")))
    _, _, report = begin(other, path)
    assert report.missing == report.unexpected == ["head/bias", "head/kernel"]
    _, _, report = begin(program(dataclasses.replace(BERT, heads=("masked_lm",))), path)
    assert report.unexpected == ["head/bias", "head/kernel"] and report.missing[0] == "masked_lm/bias"
    assert pretrained.model(path) == dataclasses.replace(BERT, heads=(), vocab_size=None)


def library():
    import tokenizers

    model = tokenizers.Tokenizer(tokenizers.models.WordPiece({"[UNK]": 0, "[SEP]": 1, "a": 2}, unk_token="[UNK]"))
    model.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    model.add_special_tokens(["[SEP]"])
    return model


def test_a_folder_in_hugging_faces_layout(tmp_path):
    model = dataclasses.replace(BERT, vocab_size=3)
    params = fresh(program(model), seed=3).params
    huggingface.save(tmp_path, model, params, library())
    tokenizer = PretrainedTokenizer(path=str(tmp_path), special_tokens=("[NEW]",)).build(None, tmp_path)
    assert isinstance(tokenizer, HuggingFaceTokenizer) and tokenizer.special_id("[NEW]") == 3
    trunk = pretrained.model(str(tmp_path), heads=("pooler",))
    assert trunk.vocab_size is None and trunk.num_layers == 2
    trunk = dataclasses.replace(trunk, vocab_size=4)
    made = program(ModelWithHead(body=trunk, head=SequenceClassificationHead(num_classes=3)))
    ours, _, report = begin(made, str(tmp_path), tokenizer)
    assert report.missing == ["head/bias", "head/kernel"] and len(report.unexpected) == 7
    assert report.more_rows == {"trunk/embed/embedding": (3, 4)}
    theirs = flat(params)
    assert_equal(ours, theirs, {f"trunk/{name}": name for name in ("pooler/kernel", "block_1/mlp/up/kernel")})
    with pytest.raises(UserError, match="its ids are not those"):
        begin(made, str(tmp_path), BYTES)
    assert wrap(library()).vocab_size == 3


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda path: pretrained.model("runs/none"), "init_from.path='runs/none': no such folder; train one with"),
        (
            lambda path: pretrained.model(str(path)),
            "no checkpoint of a run and no model|neither a checkpoint of a run nor",
        ),
        (lambda path: configs.check(Pretrained()), "path='': expected the folder of a trained run"),
    ],
)
def test_nothing_to_begin_from(tmp_path, make, words):
    with pytest.raises(UserError, match=words):
        make(tmp_path)


def test_a_misspelt_change_is_named(bert):
    with pytest.raises(UserError, match="its model, BertConfig, has no field 'head' .*; did you mean 'heads'"):
        pretrained.model(bert[0], head=())


def test_paths_by_module():
    paths = ["trunk/block_0/a", "trunk/block_11/a", "trunk/embed/b", "head/kernel", "trunk/block_0/c"]
    assert modules(paths) == ["head", "trunk/block_0 to block_11", "trunk/embed"]
    assert json.loads(json.dumps(modules(["block_0/a"]))) == ["block_0"]


@pytest.mark.parametrize("layout", ["run", "hugging face"])
def test_only_a_size_that_does_not_divide_is_read_whole_and_that_is_told(gpt, tmp_path, layout):
    path = gpt[0]
    if layout == "hugging face":
        path = str(tmp_path)
        huggingface.save(tmp_path, GPT, fresh(program(GPT)).params)
    mesh, messages = make_mesh(MeshConfig(data=2, tensor=2), jax.devices()[:4]), []
    source = pretrained.open_source(path, "latest", messages.append)
    params = by_path(source.read(mesh, TENSOR, ()))
    assert len(messages) == 1 and "embed/embedding: vocab=259 does not divide over mesh axes tensor=2" in messages[0]
    assert params["embed/embedding"].sharding.is_fully_replicated
    lacking = {name: axes for name, axes in TENSOR.items() if name != "embed"}
    for rules, words in ((lacking, "'embed' has no rule"), ({**FSDP, "mlp": "fsdp"}, "mesh axis 'fsdp' splits both")):
        with pytest.raises(UserError, match=words):
            source.read(mesh, rules, ())
    assert len(messages) == 1
