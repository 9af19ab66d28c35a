"""How long to wait before trying again."""

import random

_DELAY_MAX_S = 1.0


def retry_delay_s(failures: int) -> float:
    """Return the wait after `failures` (from 1) failures: doubling from 0.1 s, at most 1 s.

    Half of it is random, so that those who failed together do not return together.
    """
    return min(_DELAY_MAX_S, 0.05 * 2.0 ** min(failures, 6)) * (0.5 + random.random() / 2)
