"""Triton's interpreter where there is no GPU; Hypothesis profiles, by HYPOTHESIS_PROFILE.

Without that variable the profile is `ci` where CI is set, else `dev`.
"""

import os
import signal
from importlib.util import find_spec

from hypothesis import settings

# Triton decides when it is imported, so this comes before any test module.
if find_spec("torch") and find_spec("triton"):
    import torch

    if not torch.cuda.is_available():
        os.environ.setdefault("TRITON_INTERPRET", "1")

# Whoever runs the suite in the background may have it ignore interrupts; some tests send them.
signal.signal(signal.SIGINT, signal.default_int_handler)

# No deadlines: a first call pays for imports and cold caches, and a shared machine stalls at will.
# Each profile says whether it is random, because Hypothesis's own default changes where CI is set.
settings.register_profile("ci", derandomize=True, max_examples=100, deadline=None)
settings.register_profile("dev", derandomize=False, max_examples=20, deadline=None)
settings.register_profile("large", derandomize=False, max_examples=500, deadline=None)
settings.register_profile("nightly", derandomize=False, max_examples=5000, deadline=None)

fallback = "ci" if os.environ.get("CI") else "dev"
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE") or fallback)
