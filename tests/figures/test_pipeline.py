"""The timeline of a pipeline schedule draws every work item in its slot and states the bubble."""

import re

import pytest
from matplotlib.colors import to_hex
from PIL import Image

from jaxnlp.figures.pipeline import BACKWARD, FORWARD, IDLE, draw_schedule
from jaxnlp.sharding.pipeline import SCHEDULES
from tests.entry import run


def test_every_cell_is_drawn_in_its_place():
    table = [[(0, True, 0), None], [None, (0, True, 1)], [None, (0, False, 1)], [(11, False, 0), None]]
    (axis,) = draw_schedule(table, "title").axes
    drawn = {(patch.get_x(), patch.get_y()): to_hex(patch.get_facecolor()) for patch in axis.patches}
    assert drawn == {
        (0, 0): FORWARD[0],
        (1, 1): FORWARD[1],
        (2, 1): BACKWARD[1],
        (3, 0): BACKWARD[0],
        **dict.fromkeys([(0, 1), (1, 0), (2, 0), (3, 1)], IDLE),
    }
    assert [(t.get_text(), int(t.get_position()[0])) for t in axis.texts] == [("1", 0), ("1", 1), ("1", 2), ("12", 3)]


BUBBLES = {"naive": 0.75, "gpipe": 3 / 11, "1f1b": 6 / 14, "circular": 3 / 19}


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_entry_point_prints_the_bubble_beside_the_formula(name, tmp_path):
    out = tmp_path / "new" / "x.png"
    done = run("experiments.figures.pipeline", f"--schedule={name}", "--stages=4", "--microbatches=8", f"--out={out}")
    assert done.code == 0, done.err
    counted, formula, wanted = (float(x) for x in re.findall(r"(?<=  )0\.\d{4}", done.out))
    assert counted == formula == pytest.approx(BUBBLES[name], abs=1e-4)
    assert wanted == pytest.approx(3 / 11, abs=1e-4)
    assert Image.open(out).size[0] > 400


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--schedule=zero"], "--schedule=zero: expected one of naive, gpipe, 1f1b, circular"),
        (["--stages=0"], "--stages=0: expected a positive number"),
        (
            ["--schedule=circular", "--microbatches=6"],
            "--microbatches=6: virtual stages need a multiple of --stages=4; use 8",
        ),
        (["--out=x.pdf"], "--out=x.pdf: expected a file name that ends in .png"),
    ],
)
def test_bad_input_is_one_line(args, message):
    done = run("experiments.figures.pipeline", *args)
    assert done.code == 2 and message in done.err and "Traceback" not in done.err
