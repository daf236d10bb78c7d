"""Tests: folders as the product's, one category marker per module, helpers in tests.support."""

import pytest

# Helpers that assert, so that their failures say as much as those of the tests.
pytest.register_assert_rewrite("tests.sip.contract", "tests.support.calls")
