"""What holds for all tests: properties explore at random on a developer's machine, and are the same in every CI run."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

# Tests come two at a time and bring up clusters besides: threads of torch and BLAS that spin for each other would take the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# No deadline for an example, nor for drawing it: on a busy machine it would be red for no reason.
settings.register_profile("explore", deadline=None, suppress_health_check=[HealthCheck.too_slow])
# A CI run that fails must fail again when looked into.
settings.register_profile("ci", settings.get_profile("explore"), derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "explore")
