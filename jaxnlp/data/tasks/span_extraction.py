"""Extractive question answering: the answer to a question is a span of a context, or does not exist.

The input is [CLS] question [SEP] context [SEP]. The target is the position of the first and of the last token of the
answer, both 0 (the [CLS]) if there is no answer (Devlin et al. 2019, arXiv:1810.04805, sections 4.2 and 4.3). A context
that does not fit is read in overlapping windows.

Metrics: cross-entropy and the accuracy of start, end and both (`objectives/span_extraction.py`); exact match and F1 of
the answer texts (`metrics/question_answering.py`).
Shape legend: B batch, T length, S tokens of the context.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import numpy as np

from jaxnlp.data.records import text_field
from jaxnlp.data.source import Record
from jaxnlp.data.task import Batch
from jaxnlp.data.tasks.encoding import CHUNK, Example, Logger, Truncator, chunks, stack_examples
from jaxnlp.data.tasks.labelled_task import LabelledTask, Prediction
from jaxnlp.data.tasks.layout import EncoderLayout, Layout
from jaxnlp.data.tasks.offsets import Offsets, Pieces
from jaxnlp.data.tokenizer import Tokenizer
from jaxnlp.errors import FieldError
from jaxnlp.metrics.metric import Scores
from jaxnlp.metrics.question_answering import squad

ANSWERS = "data.task.answers"
REMEDY = "read contexts in overlapping windows with data.task.stride=64"


@dataclasses.dataclass(frozen=True)
class AnswerSpan:
    """Location of an answer in a sequence.

    start, end: positions of its first and last token, 0 if there is no answer.
    first: position of the context's first token.
    starts, stops: character offsets in the context of each of its tokens, (S,).
    """

    start: int
    end: int
    first: int
    starts: np.ndarray
    stops: np.ndarray

    def characters(self, start: int, end: int) -> tuple[int, int]:
        """Character offsets of the span from position `start` to `end`, inclusive; (0, 0) if either is 0."""
        if not start or not end:
            return 0, 0
        return int(self.starts[start - self.first]), int(self.stops[end - self.first])


@dataclasses.dataclass(kw_only=True)
class SpanExtractionTask(LabelledTask):
    """Examples for `objectives.span_extraction`. A record has one example for each window of its context.

    question, context: the fields that hold the texts.
    answers: the field that holds {"text": [...], "answer_start": [...]}, or a list of objects with one text and one
        answer_start each. answer_start is the character of the context at which the answer begins. The field is empty,
        null or absent if there is no answer. Training uses the first answer.
    stride: number of tokens between the starts of consecutive windows. A window that does not contain the complete
        answer has the target "no answer". With 0, a context that does not fit is an error.
    longest_answer: maximum length of a predicted answer, in tokens. Training accepts answers of any length.
    layout: EncoderLayout() or RobertaLayout().
    """

    unit: ClassVar[str] = "questions"
    question: str = "question"
    context: str = "context"
    answers: str = "answers"
    stride: int = 0
    longest_answer: int = 30
    layout: Layout = dataclasses.field(default_factory=EncoderLayout)

    def check(self) -> None:
        if self.stride < 0:
            raise FieldError("stride", self.stride, "expected a positive number of tokens, or 0 for no windows")
        if self.longest_answer < 1:
            raise FieldError(
                "longest_answer", self.longest_answer, "expected a positive number of tokens, for example 30"
            )
        if self.layout.language_model:
            raise FieldError("layout", type(self.layout).__name__, "a decoder has no [CLS]; expected EncoderLayout()")

    def encode(
        self, records: Sequence[Record], tokenizer: Tokenizer, length: int, log: Logger, labelled: bool = True
    ) -> list[Example]:
        special_ids, offsets = self.layout.special_ids(tokenizer), Offsets(tokenizer)
        overhead = self.layout.overhead(2, special_ids)
        truncator = Truncator(length, truncate=False, remedy=REMEDY)
        examples: list[Example] = []
        for number, part in enumerate(chunks(records, log)):
            questions = tokenizer.encode_batch([text_field(r, self.question, "data.task.question") for r in part])
            contexts = offsets([self.context_of(record) for record in part])
            for i, (record, question, context) in enumerate(zip(part, questions, contexts, strict=True)):
                room = length - overhead - len(question)
                if not self.stride or room < 1:
                    truncator(record, [question, context.ids], length - overhead)
                if self.stride > room > 0:
                    expected = f"{record.where} leaves {room} tokens for the context; expected at most that"
                    raise FieldError("data.task.stride", self.stride, expected)
                span = self._tokens(record, context) if labelled else None
                for begin, end in _windows(len(context.ids), max(room, 1), self.stride):
                    sequence = self.layout.sequence([question, context.ids[begin:end]], special_ids)
                    place = _answer_span(span, context, begin, end, sequence.begins[1])
                    examples.append(Example(number * CHUNK + i, (sequence,), place))
        truncator.report(log)
        return examples

    def context_of(self, record: Record) -> str:
        return text_field(record, self.context, "data.task.context")

    def reference_answers(self, record: Record) -> list[tuple[int, str]]:
        """A record's answers, each as (start character, text).

        Raises:
            FieldError: a malformed answer, or one whose text is not in the context at its start.
        """
        value = record.fields.get(self.answers) or ()
        if isinstance(value, dict):
            texts, starts = value.get("text"), value.get("answer_start")
            if not isinstance(texts, list) or not isinstance(starts, list) or len(texts) != len(starts):
                raise self._malformed(record, value)
            value = [{"text": t, "answer_start": s} for t, s in zip(texts, starts, strict=True)]
        if not isinstance(value, (list, tuple)):
            raise self._malformed(record, value)
        answers, context = [], self.context_of(record)
        for answer in value:
            text, start = (answer.get("text"), answer.get("answer_start")) if isinstance(answer, dict) else (None, None)
            if not isinstance(text, str) or not text or not isinstance(start, int):
                raise self._malformed(record, answer)
            if start < 0 or context[start : start + len(text)] != text:
                actual = context[max(start, 0) : max(start, 0) + len(text)]
                raise FieldError(
                    ANSWERS, self.answers, f"{record.where}: the context has {actual!r} at {start}; expected {text!r}"
                )
            answers.append((start, text))
        return answers

    def decode(self, record: Record, examples: Sequence[Example], outputs: np.ndarray) -> Prediction:
        """The best span over all windows, its start character, and its score minus the no-answer score.

        The answer is "" and its start None if no span scores higher than the lowest no-answer score of the windows.
        """
        no_answer_score, best_score, characters = np.inf, -np.inf, (0, 0)
        for example, logits_T2 in zip(examples, outputs, strict=True):
            place = example.label
            no_answer_score = min(no_answer_score, float(logits_T2[0].sum()))
            answer_mask = np.zeros(len(logits_T2))
            answer_mask[place.first : place.first + len(place.starts)] = 1
            start, end, score = best_span(logits_T2, answer_mask, self.longest_answer)
            if score > best_score:
                best_score, characters = score, place.characters(start, end)
        text = self.context_of(record)[characters[0] : characters[1]] if best_score > no_answer_score else ""
        start = characters[0] + len(text) - len(text.lstrip())
        return {"answer": text.strip(), "start": start if text else None, "score": best_score - no_answer_score}

    def reference(self, record: Record) -> Prediction:
        """The first answer, its start character, and the texts of all answers."""
        answers = self.reference_answers(record)
        start, text = answers[0] if answers else (None, "")
        return {"answer": text, "start": start, "answers": [text for _, text in answers]}

    def metrics(self, predictions: Sequence[Prediction], references: Sequence[Prediction]) -> Scores:
        return squad([p["answer"] for p in predictions], [r["answers"] for r in references])

    def prompt(self, record: Record) -> str:
        return f"{record.fields.get(self.question)} | {self.context_of(record)}"

    def label_keys(self, examples: Sequence[Example]) -> list[Any]:
        return [(example.label.start, example.label.end) for example in examples]

    def _malformed(self, record: Record, value: Any) -> FieldError:
        expected = 'expected {"text": [...], "answer_start": [...]}'
        return FieldError(ANSWERS, self.answers, f"{record.where} holds {str(value)[:80]}; {expected}")

    def _tokens(self, record: Record, context: Pieces) -> tuple[int, int] | None:
        """Indices of the first and last context token that overlap the first answer, or None if there is no answer."""
        answers = self.reference_answers(record)
        if not answers:
            return None
        start, text = answers[0]
        overlap = np.flatnonzero((context.stops > start) & (context.starts < start + len(text)))
        return (int(overlap[0]), int(overlap[-1])) if len(overlap) else None

    def collate(self, examples: Sequence[Example | None], length: int, fill: int) -> Batch:
        """Collates examples.

        Returns:
            `tokens`, `segment_ids`, `token_type_ids` (B, T) and `starts`, `ends` (B,), int32; `weights` (B,) and
            `answer_mask` (B, T), float32. `answer_mask` is 1 at [CLS] and at the context's tokens.
        """
        rows = stack_examples(examples, 1, length, fill, language_model=False)
        batch = {name: rows[name][:, 0] for name in ("tokens", "segment_ids", "token_type_ids")}
        batch["starts"] = np.asarray([e.label.start if e else 0 for e in examples], np.int32)
        batch["ends"] = np.asarray([e.label.end if e else 0 for e in examples], np.int32)
        batch["answer_mask"] = np.zeros((len(examples), length), np.float32)
        batch["answer_mask"][:, 0] = 1.0  # also in padding rows, as at least one position must be allowed
        for i, example in enumerate(examples):
            if example is not None:
                place = example.label
                batch["answer_mask"][i, place.first : place.first + len(place.starts)] = 1.0
        return {**batch, "weights": rows["weights"]}


def _windows(size: int, room: int, stride: int) -> Iterator[tuple[int, int]]:
    """The windows of a context of `size` tokens, as (begin, end) indices. With stride 0 there is one window."""
    yield 0, min(size, room)
    if stride:
        for begin in range(stride, size, stride):
            if begin - stride + room >= size:
                return
            yield begin, min(size, begin + room)


def _answer_span(span: tuple[int, int] | None, context: Pieces, begin: int, end: int, first: int) -> AnswerSpan:
    starts, stops = context.starts[begin:end], context.stops[begin:end]
    if span is None or span[0] < begin or span[1] >= end:
        return AnswerSpan(0, 0, first, starts, stops)
    return AnswerSpan(span[0] - begin + first, span[1] - begin + first, first, starts, stops)


def best_span(logits_T2: np.ndarray, answer_mask_T: np.ndarray, longest: int) -> tuple[int, int, float]:
    """The highest-scoring (start, end) of at most `longest` tokens, and its score, the sum of the two logits."""
    may = answer_mask_T > 0
    starts_T, ends_T = (np.where(may, logits_T2[:, k].astype(np.float64), -np.inf) for k in range(2))
    scores_TT = starts_T[:, None] + ends_T[None]
    allowed = np.triu(np.ones_like(scores_TT, bool)) & ~np.triu(np.ones_like(scores_TT, bool), longest)
    scores_TT = np.where(allowed, scores_TT, -np.inf)
    start, end = np.unravel_index(int(np.argmax(scores_TT)), scores_TT.shape)
    return int(start), int(end), float(scores_TT[start, end])
