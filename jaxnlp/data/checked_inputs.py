"""Checks of the texts and records that the Python API is called with."""

from collections.abc import Iterable, Sequence
from typing import Any

from jaxnlp.data.tasks.labelled_task import LabelledTask
from jaxnlp.errors import UserError


def list_of_texts(method: str, argument: str, texts: Sequence[str]) -> list[str]:
    """The texts as a list. Raises UserError for a single text, or if an item is not a string."""
    if isinstance(texts, str):
        raise UserError(f"{method}: {argument}={texts!r}: expected a list of texts, as [{texts!r}]")
    if not isinstance(texts, Iterable):
        raise UserError(f"{method}: {argument}={texts!r}: expected texts, got {type(texts).__name__}")
    texts = list(texts)
    for text in texts:
        if not isinstance(text, str):
            raise UserError(f"{method}: {argument}: {text!r}: expected a text, got {type(text).__name__}")
    return texts


def record_fields(task: LabelledTask, record: dict[str, Any] | str) -> dict[str, Any]:
    """The fields of a record. Raises UserError for a text if the task reads several fields."""
    if isinstance(record, dict):
        return record
    if not isinstance(record, str):
        raise UserError(f"predict: {record!r}: expected a dict of fields, or a text, got {type(record).__name__}")
    if (field := task.text_field) is None:
        raise UserError(f"predict: {type(task).__name__}() reads several fields; expected dicts with these fields")
    return {field: record}
