"""For all tests: histories and models take the time they take; only what is wrong fails."""

from hypothesis import settings

settings.register_profile("justright", deadline=None)
settings.load_profile("justright")
