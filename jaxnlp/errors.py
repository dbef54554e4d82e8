"""Exceptions for errors that a user can cause and fix."""


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
