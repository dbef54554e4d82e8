"""jaxnlp: a JAX research codebase for natural language processing, made to be read and forked."""

__version__ = "0.1.0"
