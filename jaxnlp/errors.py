"""The one exception type that a user can cause."""


class UserError(ValueError):
    """Something a user can cause and mend: a wrong value, a missing file, a full disk.

    The message names the field or file, its value, what was expected and what to do.
    Entry points print it as one line and exit with status 2, without a stack trace.
    """


class FieldError(UserError):
    """A configuration field holds a value that cannot work.

    Raised by a config object's `check()` with the field's own name; `jaxnlp.config.check`
    puts the path of the object that holds it in front.
    """

    def __init__(self, field: str, value: object, expected: str):
        self.field, self.value, self.expected = field, value, expected
        super().__init__(f"{field}={value!r}: {expected}")
