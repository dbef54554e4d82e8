"""The figure of PEFT methods states the share of parameters each one trains."""

from jaxnlp.figures.tuning import draw_trained


def test_a_bar_and_a_number_for_each_method():
    shares = {"BitFit": 0.08, "LoRA": 0.375, "all": 100.0}
    axis = draw_trained(shares, "MiniLM").axes[0]
    assert [label.get_text() for label in axis.get_yticklabels()] == list(shares)
    assert [bar.get_width() for bar in axis.patches] == list(shares.values())
    assert [text.get_text() for text in axis.texts] == ["0.08%", "0.375%", "100%"]
    low, high = axis.get_xlim()
    assert low < 0.08 and high > 100
