"""The texts of JSON values: all of them, and nothing else."""

from __future__ import annotations

import pytest

from worker.privacy.values import texts_in, with_each_text

pytestmark = pytest.mark.unit

VALUE = {"a": ["x1", 1, 2.5, True, None, {"b1": "y"}], "c": {}}


def test_each_text_is_changed_at_any_depth() -> None:
    changed = with_each_text(VALUE, lambda text: text.replace("1", "[one]"))
    assert changed == {"a": ["x[one]", "[one]", 2.5, True, None, {"b[one]": "y"}], "c": {}}
    assert with_each_text(VALUE, str) == VALUE


def test_they_are_found_in_order() -> None:
    assert texts_in(VALUE) == ["a", "x1", "1", "2.5", "b1", "y", "c"]
