"""What holds for every test."""

from hypothesis import settings

# A machine under load is not a fault of the code: what takes too long is found by counting, not by the clock.
settings.register_profile("varstore-companion", deadline=None)
settings.load_profile("varstore-companion")
