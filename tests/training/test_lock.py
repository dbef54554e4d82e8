"""A run's folder has one writer."""

import pytest

from jaxnlp.errors import UserError
from jaxnlp.training.run_folder.lock import lock


def test_a_second_writer_is_refused_until_the_first_has_ended(tmp_path):
    first = lock(tmp_path)
    with pytest.raises(UserError, match="another process is training here"):
        lock(tmp_path)
    first.close()
    lock(tmp_path).close()
