"""The trace context: fields are replaced and restored; tracing a sharded model outside it is an error."""

import threading

import pytest

from jaxnlp.nn import trace_context
from jaxnlp.nn.interceptors import intercept_calls
from jaxnlp.nn.partitioning import axis_rules
from jaxnlp.nn.stack import override_stack
from jaxnlp.nn.trace_context import TraceContext


def test_fields_are_replaced_within_the_block_and_restored_after_an_error():
    interceptor = lambda call, fn, args, kwargs: fn(*args, **kwargs)
    with axis_rules({"batch": "data"}), intercept_calls(interceptor), override_stack(lambda x, layers: x):
        inner = trace_context.current()
        assert inner.layout is not None and inner.layout.activations == {"batch": "data"}
        assert inner.interceptors == (interceptor,) and inner.stack_override is not None
        with pytest.raises(ZeroDivisionError), trace_context.replaced(module_path=("block_0",)):
            assert trace_context.current().module_path == ("block_0",)
            _ = 1 / 0
        assert trace_context.current() is inner
    assert trace_context.current() == TraceContext()


def test_a_new_thread_begins_with_the_defaults():
    seen = []
    with axis_rules({"batch": "data"}):
        thread = threading.Thread(target=lambda: seen.append(trace_context.current()))
        thread.start()
        thread.join()
    assert seen == [TraceContext()]


def test_a_misspelt_field_is_an_error():
    with pytest.raises(TypeError, match="layouts"), trace_context.replaced(layouts=None):
        pass
