"""For all tests: histories and models take the time they take; only what is wrong fails."""

import pytest
from hypothesis import settings

pytest.register_assert_rewrite("client_suite")
settings.register_profile("justright", deadline=None)
settings.load_profile("justright")
