"""Tests: flat, one category marker per module; helpers without ``test_`` in their names."""

import pytest

# Helpers that assert, so that their failures say as much as those of the tests.
pytest.register_assert_rewrite("tests.sip.contract", "tests.support.calls")
