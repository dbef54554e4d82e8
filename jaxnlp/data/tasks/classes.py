"""Class labels: their names, in a fixed order, and their indices."""

from typing import Any

from jaxnlp.config import did_you_mean
from jaxnlp.data.records import field
from jaxnlp.data.source import Record, Source
from jaxnlp.errors import FieldError


def name_of(value: Any, record: Record, setting: str, name: str) -> str:
    """The label as a string. Raises FieldError if it is not a non-empty string, an integer or a boolean."""
    if isinstance(value, (str, int)) and value != "":
        return str(value)
    raise FieldError(setting, name, f"{record.where} holds {value!r}; expected a label: a text or an integer")


def classes_of(source: Source, name: str, setting: str = "data.task.label") -> tuple[str, ...]:
    """The labels of the train split, sorted: by value if all are integers, else as strings.

    name: the field that holds a label, or a list of labels.

    Raises:
        FieldError: the split has fewer than two different labels, or a record lacks the field.
    """
    names = set()
    for record in source.records("train"):
        value = field(record, name, setting)
        for label in value if isinstance(value, (list, tuple)) else [value]:
            names.add(name_of(label, record, setting, name))
    if len(names) < 2:
        raise FieldError(
            setting, name, f"the train split has only the label {', '.join(names)}; expected 2 or more labels"
        )
    return tuple(sorted(names, key=lambda n: (int(n), "") if all(map(_is_whole, names)) else (0, n)))


def class_index(value: Any, record: Record, setting: str, name: str, classes: tuple[str, ...]) -> int:
    """The index of a record's label in `classes`. Raises FieldError if it is not one of them."""
    if not classes:
        raise FieldError("data.task.classes", classes, "not resolved; call data.pipeline.resolved(config) first")
    label = name_of(value, record, setting, name)
    if label not in classes:
        near = did_you_mean(label, [*classes])
        raise FieldError(
            setting, name, f"{record.where} has the label {label!r}, which is not one of the classes{near}"
        )
    return classes.index(label)


def check_classes(classes: tuple[str, ...]) -> None:
    """Raises FieldError for fewer than two classes, or for duplicates. () means not resolved yet and is accepted."""
    if classes and (len(classes) < 2 or len(set(classes)) < len(classes)):
        raise FieldError("classes", classes, "expected two or more different names, or () for the train split's")


def _is_whole(text: str) -> bool:
    return text.removeprefix("-").isdecimal()
