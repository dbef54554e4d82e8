"""Labels that are classes: by name, in a fixed order."""

from typing import Any

from jaxnlp.config import did_you_mean
from jaxnlp.data.records import field
from jaxnlp.data.source import Record, Source
from jaxnlp.errors import FieldError


def name_of(value: Any, record: Record, setting: str, name: str) -> str:
    """A label as text: a string, a whole number or a truth value."""
    if isinstance(value, (str, int)) and value != "":
        return str(value)
    raise FieldError(setting, name, f"{record.where} holds {value!r} there, expected a label: a text or a whole number")


def classes_of(source: Source, name: str, setting: str = "data.task.label") -> tuple[str, ...]:
    """The labels of the train split, sorted: by value where all are whole numbers.

    name: the field that holds a label, or a list of them.
    """
    names = set()
    for record in source.records("train"):
        value = field(record, name, setting)
        for one in value if isinstance(value, (list, tuple)) else [value]:
            names.add(name_of(one, record, setting, name))
    if len(names) < 2:
        raise FieldError(setting, name, f"the train split has the one label {', '.join(names)}; expected two or more")
    return tuple(sorted(names, key=lambda n: (int(n), "") if all(map(_is_whole, names)) else (0, n)))


def class_index(value: Any, record: Record, setting: str, name: str, classes: tuple[str, ...]) -> int:
    """The number of a record's label. Raises FieldError for one that is none of the classes."""
    if not classes:
        raise FieldError("data.task.classes", classes, "not known yet; call data.pipeline.resolved(config) first")
    label = name_of(value, record, setting, name)
    if label not in classes:
        near = did_you_mean(label, [*classes])
        raise FieldError(setting, name, f"{record.where} has the label {label!r}, none of the classes{near}")
    return classes.index(label)


def check_classes(classes: tuple[str, ...]) -> None:
    """Raises FieldError for fewer than two, or one twice. () is none given yet."""
    if classes and (len(classes) < 2 or len(set(classes)) < len(classes)):
        raise FieldError("classes", classes, "expected two or more different names, or () for the train split's")


def _is_whole(text: str) -> bool:
    return text.removeprefix("-").isdecimal()
