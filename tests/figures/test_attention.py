"""Attention heatmaps draw every weight once, under the right name, with its tokens."""

import numpy as np
import pytest

from jaxnlp.errors import UserError
from jaxnlp.figures.attention import draw_attention
from jaxnlp.figures.fonts import legible
from jaxnlp.inference.attention_maps import AttentionMap, collect, habits, select


def causal(layers=3, heads=2, length=6, seed=0):
    scores = np.random.default_rng(seed).normal(size=(layers, heads, length, length))
    weights = np.tril(np.exp(scores))
    weights = (weights / weights.sum(-1, keepdims=True)).astype(np.float32)
    tokens = ["<|endoftext|>", "a", "b", "␣c", "a", "b"][:length]
    return AttentionMap("attention", tuple(range(layers)), tuple(range(heads)), weights, tokens, tokens)


def panels(figure):
    return {axis.get_label(): axis for axis in figure.axes if axis.get_label().startswith(("attention", "decoder"))}


def test_one_panel_a_head_holds_its_weights():
    attention = causal()
    axes = panels(draw_attention([attention], "a run"))
    assert set(axes) == {f"attention, layer {i}, head {j}" for i in range(3) for j in range(2)}
    for i in range(3):
        for j in range(2):
            drawn = axes[f"attention, layer {i}, head {j}"].images[0].get_array()
            np.testing.assert_array_equal(drawn.filled(0), attention.weights_LHTS[i, j])
            np.testing.assert_array_equal(drawn.mask, np.triu(np.ones((6, 6), bool), 1))  # masked weights are grey


def test_labels_are_the_tokens_and_share_one_scale():
    attention = causal()
    figure = draw_attention([attention], "a run")
    axes = panels(figure)
    text = lambda labels: [label.get_text() for label in labels]
    assert text(axes["attention, layer 0, head 0"].get_yticklabels()) == list(attention.queries)
    assert text(axes["attention, layer 2, head 1"].get_xticklabels()) == list(attention.keys)
    assert text(axes["attention, layer 1, head 1"].get_xticklabels()) == []
    assert len(figure.axes) == 6 + 1  # one colour bar
    assert len({(a.images[0].norm.vmin, a.images[0].norm.vmax) for a in axes.values()}) == 1


def test_parts_of_an_encoder_decoder_do_not_overlap():
    weights = np.full((1, 2, 3, 5), 0.2, np.float32)
    cross = AttentionMap("decoder/cross_attention", (0,), (0, 1), weights, ["x", "y", "z"], list("abcde"))
    figure = draw_attention([causal(), cross], "a run")
    boxes = [axis.get_position() for axis in panels(figure).values()]
    assert len(boxes) == 8
    for i, a in enumerate(boxes):
        assert a.x0 > 0 and a.x1 < 1 and a.y0 > 0 and a.y1 < 1
        assert not any(a.overlaps(b) for b in boxes[:i])


def test_weights_are_collected_by_kind_from_unrolled_and_scanned_layers():
    random = np.random.default_rng(0)
    each = {i: random.random((1, 2, 3, 3)) for i in range(11)}
    unrolled = {f"block_{i}/attention/attention_weights": each[i] for i in sorted(each, key=str)}  # as JAX sorts paths
    unrolled["block_0/hidden"] = np.zeros((1, 3, 8))
    scanned = {"blocks/attention/attention_weights": np.stack([each[i] for i in range(11)])}
    (layers, a), (also, b) = collect(unrolled)["attention"], collect(scanned)["attention"]
    assert layers == also == tuple(range(11))  # in numerical order, not alphabetical
    np.testing.assert_array_equal(a, b)
    both = {
        "encoder/block_0/attention/attention_weights": each[0],
        "decoder/block_0/attention/attention_weights": each[1],
        "decoder/block_0/cross_attention/attention_weights": each[2],
    }
    assert list(collect(both)) == ["encoder/attention", "decoder/attention", "decoder/cross_attention"]


def test_some_layers_and_heads():
    selected = select(causal(), layers=[2, 0], heads=[1])
    assert (selected.layers, selected.heads) == ((2, 0), (1,))
    np.testing.assert_array_equal(selected.weights_LHTS, causal().weights_LHTS[[2, 0]][:, [1]])
    assert list(panels(draw_attention([selected], "a run"))) == [
        "attention, layer 2, head 1",
        "attention, layer 0, head 1",
    ]
    with pytest.raises(UserError, match="--heads=2: the model has 0 to 1"):
        select(causal(), heads=[2])


def test_a_picture_too_large_to_open_is_refused_with_the_way_out():
    with pytest.raises(UserError, match=r"--text: the figure would have .*attention: 40 layers, 2 heads, 40 x 40"):
        wide = np.full((40, 2, 40, 40), 1 / 40, np.float32)
        draw_attention([AttentionMap("attention", tuple(range(40)), (0, 1), wide, ["t"] * 40, ["t"] * 40)], "a run")


def test_habits_name_the_head_that_has_them():
    tokens = ["<|endoftext|>", "a", "b", "c", "a", "b", "c"]
    weights = np.zeros((2, 2, 7, 7), np.float32)
    for t in range(7):
        weights[0, 0, t, t] = 1
        weights[0, 1, t, max(t - 1, 0)] = 1
        weights[1, 0, t, 0] = 1
        weights[1, 1, t, t - 2 if t > 3 else 0] = 1  # after the earlier a, b and c
    weights += np.tril(np.full((7, 7), 1e-9, np.float32))  # what is not masked is never exactly 0
    by_habit = {
        place: rest for place, *rest in habits(AttentionMap("attention", (0, 1), (0, 1), weights, tokens, tokens))
    }
    assert by_habit["its own token"] == [0, 0, pytest.approx(1.0)]
    assert by_habit["the token before"] == [0, 1, pytest.approx(1.0)]
    assert by_habit["the first token"] == [1, 0, pytest.approx(1.0)]
    assert by_habit["the token after an earlier copy"] == [1, 1, pytest.approx(1.0)]
    assert "the token after" not in by_habit  # nothing looks ahead
    few = AttentionMap("attention", (0, 1), (0, 1), weights[..., :6, :6], tokens[:6], tokens[:6])
    assert "the token after an earlier copy" not in [place for place, *_ in habits(few)]  # two matches are not a habit


def test_characters_that_no_font_has_are_codes():
    labels, families = legible(["␣a", f"{chr(0x10FFFD)}x"])  # of private use
    assert labels == ["␣a", "<U+10FFFD>x"] and families == ["DejaVu Sans Mono"]
    double_struck = chr(0x1D54F)  # another font in matplotlib has it
    labels, families = legible([double_struck])
    assert labels == [double_struck] and len(families) == 2
