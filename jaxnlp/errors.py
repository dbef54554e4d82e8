"""Exceptions for errors that a user can cause and fix, and the boundary that turns those of libraries into them."""

import contextlib
from collections.abc import Iterable, Iterator

LONGEST = 300  # characters of a library's message


class UserError(ValueError):
    """An error that a user can cause and fix: an invalid value, a missing file, a full disk.

    The message names the field or file, its value, what was expected and what to do.
    Entry points print it as one line and exit with status 2, without a stack trace.
    """


class FieldError(UserError):
    """A configuration field has an invalid value.

    A config object's `check()` raises it with the field's own name; `jaxnlp.config.check` prepends the path of the
    object that holds the field.
    """

    def __init__(self, field: str, value: object, expected: str):
        self.field, self.value, self.expected = field, value, expected
        super().__init__(f"{field}={value!r}: {expected}")


@contextlib.contextmanager
def reading(source: object, expected: str) -> Iterator[None]:
    """The boundary of every reader: any exception of the block becomes a UserError "source: expected (reason)".

    A damaged file reaches libraries and conversions at any point, and they document few of their exceptions. A panic
    of a library in Rust is not even an Exception. The original exception stays the cause.

    Args:
        source: the file or folder that is read. expected: what is wrong and what was expected, as "not a Parquet file".
    """
    try:
        yield
    except (UserError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as e:
        if isinstance(e, Exception) or is_panic(e):
            raise UserError(f"{source}: {expected} ({reason(e)})") from e
        raise


def is_panic(error: BaseException) -> bool:
    """Whether a library in Rust has panicked. The type has no public name."""
    return type(error).__name__ == "PanicException"


def reason(error: BaseException) -> str:
    """An exception as one short line. Its type is named if its message says too little without it."""
    text = " ".join(str(error).split())
    if isinstance(error, OSError):
        text = error.strerror or text
    elif isinstance(error, UnicodeDecodeError):
        text = f"not UTF-8 text, byte 0x{error.object[error.start]:02x}"
    elif not text or isinstance(error, (LookupError, AttributeError, TypeError, AssertionError, MemoryError)):
        text = f"{type(error).__name__}: {text}".rstrip(": ")
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def check_text(name: str, text: str) -> None:
    """Raises UserError if a text, such as the flag or field `name`, cannot be written as UTF-8.

    Python keeps bytes of the command line that are not UTF-8, as of a Latin-1 terminal, as surrogates.
    """
    try:
        text.encode()
    except UnicodeEncodeError as e:
        code = ord(text[e.start])
        what = f"byte 0x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else "an unpaired surrogate"
        place = f"{what} at character {e.start} is not UTF-8"
        raise UserError(f"{name}={text!a}: not valid text ({place}); expected text in UTF-8") from None


@contextlib.contextmanager
def encoding(texts: Iterable[str], name: str = "text") -> Iterator[None]:
    """Context in which a library encodes texts. What it raises for text that is not valid becomes a UserError."""
    try:
        yield
    except Exception:
        for text in texts:
            check_text(name, text)
        raise
