"""Tests, in folders like the product's: one category marker a module, helpers in tests.support."""

import pytest

# These helpers assert. Rewriting makes their failures as detailed as those of the tests.
pytest.register_assert_rewrite("tests.sip.contract", "tests.support.calls")
