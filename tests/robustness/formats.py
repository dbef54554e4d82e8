"""The form of an entry of the tables of formats (`data_formats.py`, `checkpoint_formats.py`)."""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any


@dataclasses.dataclass(frozen=True)
class Format:
    """write(folder): writes valid files. name: the file whose bytes are changed. read(folder): reads all of it.

    is_text: its words and numbers are changed as well as its bytes.
    """

    name: str
    write: Callable[[pathlib.Path], Any]
    read: Callable[[pathlib.Path], Any]
    is_text: bool = True
