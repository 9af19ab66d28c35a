"""The limits of the wire contract that the client checks when logging.

The same numbers as the gateway's; they change only with the contract, and a
test holds the two equal.
"""

from typing import Final

BATCH_POINTS_MAX: Final = 8_192
"""Points in a batch, and so in a record: a larger log call becomes several."""

MESSAGE_BYTES_MAX: Final = 1_048_576
"""Bytes in any message."""

KEY_CHARACTERS_MAX: Final = 250
"""Characters in a metric's key."""

KEYS_MAX: Final = 100_000
"""Keys of one writer."""

RESUME_EXEMPT_KEYS_MAX: Final = 1_000
"""Keys that a resume step does not hide."""

STEP_MIN: Final = -(2**62)
STEP_MAX: Final = 2**62 - 1
"""Steps."""

ENTRIES_MAX: Final = 1_000
"""Entries of metadata in a message."""

PARAM_CHARACTERS_MAX: Final = 6_000
"""Characters in the value of a param, a fact or a summary text."""

TAG_CHARACTERS_MAX: Final = 8_000
"""Characters in the value of a tag."""

TEXT_CHARACTERS_MAX: Final = 65_535
"""Characters in notes, and in source, schema and profile of a dataset."""

DATASET_NAME_CHARACTERS_MAX: Final = 500
DATASET_DIGEST_CHARACTERS_MAX: Final = 64
DATASET_IDENTITY_BYTES_MAX: Final = 2_600
"""UTF-8 of a dataset's name, digest and context together."""

NAME_CHARACTERS_MAX: Final = 250
"""Characters in the name of a run or experiment."""

HEARTBEAT_INTERVAL_MS: Final = 15_000
"""Something is sent at least this often; the gateway may ask for another interval."""
