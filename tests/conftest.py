"""What holds for every test."""

import os

from hypothesis import settings

# A machine under load is not a fault of the code: what takes too long is found by counting, not by the clock.
settings.register_profile("varstore-companion", deadline=None)
# For a night: HYPOTHESIS_PROFILE=nightly.
settings.register_profile("nightly", deadline=None, max_examples=5_000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "varstore-companion"))
