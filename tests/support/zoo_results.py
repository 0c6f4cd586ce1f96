"""Where test_zoo.py keeps what it found, for the table that conftest.py prints."""

from collections import Counter

import pytest

KEY = pytest.StashKey[dict[str, tuple[int, Counter]]]()
