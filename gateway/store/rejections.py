"""Samples of what was rejected, as the column writers.rejections has them."""

import json
from collections.abc import Sequence

from gateway.domain.errors import Reason
from gateway.domain.flush import RejectionSample


def samples_to_json(samples: Sequence[RejectionSample]) -> str:
    """Return the column."""
    return json.dumps(
        [
            {
                "reason": int(sample.reason),
                "key": sample.key,
                "step": sample.step,
                "sequence": sample.sequence,
                "field": sample.field,
                "detail": sample.detail,
                "points": sample.points,
            }
            for sample in samples
        ]
    )


def samples_from_json(text: str) -> tuple[RejectionSample, ...]:
    """Return what the column has."""
    return tuple(
        RejectionSample(**{**sample, "reason": Reason(sample["reason"])})
        for sample in json.loads(text)
    )
