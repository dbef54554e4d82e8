"""The architecture figure shows every parameter once with correct counts, for any parameter tree."""

import dataclasses
import math

import jax
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from jaxnlp.figures.architecture import TIMES, draw_architecture, tree
from jaxnlp.models.bert import BertConfig
from jaxnlp.models.gpt import GPTConfig
from jaxnlp.models.transformer import TransformerConfig
from jaxnlp.nn import norms, positions
from jaxnlp.sharding.functional import abstract_params, parameter_table

SIZES = {"vocab_size": 65, "max_length": 24, "num_heads": 4, "embed_dim": 16}
MODELS = {
    "gpt": GPTConfig(**SIZES, num_layers=12, num_kv_heads=2, tie_embeddings=False),
    "scanned": GPTConfig(**SIZES, num_layers=12, scan_layers=True, remat="full", positions=positions.RelativeBuckets()),
    "bert": BertConfig(**SIZES, num_layers=2, norm=norms.RMSNorm()),
    "transformer": TransformerConfig(**SIZES, num_layers=3, num_decoder_layers=2, positions=positions.Learned()),
}


def table_of(config):
    return parameter_table(config.build(), *config.example_inputs(1, 8))


def leaves(box, path=()):
    """(path, sizes, repetitions) of every parameter in a tree of boxes, without the indices of folded boxes."""
    for parameter in box.parameters:
        yield (*path, parameter.name), parameter.sizes, box.times
    for inner in box.boxes:
        for inner_path, sizes, times in leaves(inner, (*path, inner.name)):
            yield inner_path, sizes, times * box.times


@pytest.mark.parametrize("name", MODELS)
def test_the_table_is_the_models_own_in_the_order_of_use(name):
    config = MODELS[name]
    shapes, axes = abstract_params(config.build(), *config.example_inputs(1, 8))
    wanted = {tuple(k.key for k in path): x.shape for path, x in jax.tree_util.tree_leaves_with_path(shapes)}
    table = table_of(config)
    assert {path: shape for path, shape, _ in table} == wanted and len(table) == len(wanted)
    for path, _, names in table:
        subtree = axes
        for part in path:
            subtree = subtree[part]
        assert subtree == names
    firsts = list(dict.fromkeys(path[0] for path, *_ in table))
    if name == "gpt":
        assert firsts == ["embed", "positions", *(f"block_{i}" for i in range(12)), "norm", "head"]
        assert list(dict.fromkeys(path[1] for path, *_ in table if path[0] == "block_3")) == [
            "attention_norm",
            "attention",
            "mlp_norm",
            "mlp",
        ]


@pytest.mark.parametrize("name", MODELS)
def test_every_parameter_is_in_the_figure_once_and_the_counts_add_up(name):
    table = table_of(MODELS[name])
    root = tree(name, table)
    assert root.count == sum(math.prod(shape) for _, shape, _ in table)
    assert root.count == sum(times * math.prod(s for s, _ in sizes) for _, sizes, times in leaves(root))
    figure = draw_architecture(root, "title")
    texts = [text.get_text() for text in figure.axes[0].texts]
    entries = list(leaves(root))
    for _, sizes, _ in entries:
        assert f" {TIMES} ".join(f"{size:,} {axis}" for size, axis in sizes) in texts
    drawn = [p for p in texts if p in {path[-1] for path, *_ in entries}]
    assert len(drawn) == len(entries)  # each parameter's line once
    assert f"total  {root.count:,}" in texts


def test_blocks_that_are_alike_are_drawn_once_and_only_those():
    root = tree("gpt", table_of(MODELS["gpt"]))
    assert [(box.name, box.times) for box in root.boxes] == [
        ("embed", 1),
        ("positions", 1),
        ("block_0 … block_11", 12),
        ("norm", 1),
        ("head", 1),
    ]
    odd = [((f"block_{i}", "mlp", "kernel"), (4, 8 if i == 2 else 6), ("embed", "mlp")) for i in range(5)]
    assert [(box.name, box.times) for box in tree("odd", odd).boxes] == [
        ("block_0 … block_1", 2),
        ("block_2", 1),
        ("block_3 … block_4", 2),
    ]


def test_scanned_layers_are_the_same_boxes_as_unrolled_ones():
    config = MODELS["scanned"]
    unrolled = tree("gpt", table_of(dataclasses.replace(config, scan_layers=False, remat="none")))
    scanned = tree("gpt", table_of(config))
    assert scanned.count == unrolled.count
    (a,), (b,) = ([box for box in root.boxes if box.times == 12] for root in (scanned, unrolled))
    assert sorted(leaves(dataclasses.replace(a, name=""))) == sorted(leaves(dataclasses.replace(b, name="")))


def test_a_tree_of_any_shape_is_drawn():
    table = [
        (("scale",), (), ()),
        (("cells_0", "kernel"), (3, 4), ("embed", None)),
        (("cells_1", "kernel"), (3, 4), ("embed", None)),
        (("mix", "weights"), (3,), ("layers",)),
    ]
    root = tree("mine", table)
    assert root.count == 1 + 24 + 3
    texts = [text.get_text() for text in draw_architecture(root, "mine").axes[0].texts]
    assert {"scale", "one number", f"3 embed {TIMES} 4", f"cells_0 … cells_1   {TIMES} 2", "3 layers"} <= set(texts)


def test_an_encoder_and_a_decoder_stand_side_by_side_within_the_page():
    figure = draw_architecture(tree("transformer", table_of(MODELS["transformer"])), "title")
    axis = figure.axes[0]
    boxes = {text.get_text(): text for text in axis.texts}
    assert boxes["encoder"].get_position()[1] == boxes["decoder"].get_position()[1]
    (width, height) = figure.get_size_inches()
    for patch in axis.patches:
        box = patch.get_extents().transformed(axis.transData.inverted())
        assert 0 <= box.x0 < box.x1 <= width and 0 <= box.y0 < box.y1 <= height
    renderer = FigureCanvasAgg(figure).get_renderer()
    for text in axis.texts:
        extent = text.get_window_extent(renderer)
        assert extent.x0 >= 0 and extent.x1 <= figure.bbox.x1


def test_longest_lines_do_not_run_into_each_other():
    figure = draw_architecture(tree("transformer", table_of(MODELS["transformer"])), "title")
    renderer = FigureCanvasAgg(figure).get_renderer()
    extents = [text.get_window_extent(renderer) for text in figure.axes[0].texts]
    for i, a in enumerate(extents):
        assert not any(a.overlaps(b) for b in extents[:i])


def test_it_reads_no_values():
    config = dataclasses.replace(MODELS["gpt"], vocab_size=50_000_000)  # would be 3 GB if allocated
    assert tree("huge", table_of(config)).count > 1_600_000_000
