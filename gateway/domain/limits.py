"""The limits of the wire contract, as constants.

Clients check the same numbers when logging, so they change only with the
contract. Limits that an operator may choose stand in `gateway.config`.
"""

from typing import Final

BATCH_POINTS_MAX: Final = 8_192
"""Points in a batch. 28 bytes each on the wire: 224 KiB, so that a thousand
stalled streams that each hold one received batch stay below 256 MiB."""

MESSAGE_BYTES_MAX: Final = 1_048_576
"""Bytes in any message."""

KEY_CHARACTERS_MAX: Final = 250
"""Characters in a metric's key; MLflow's limit."""

KEYS_MAX: Final = 100_000
"""Key indexes of a writer, and series of a run and rank."""

KEY_BYTES_MAX: Final = 33_554_432
"""Bytes of UTF-8 in all keys that one stream defines: 100,000 keys of 250 characters
of ASCII, and a third more."""

RESUME_EXEMPT_KEYS_MAX: Final = 1_000
"""Keys that a resume step does not hide."""

SEQUENCE_MAX: Final = 2**63 - 1
"""The number of a writer's last record: PostgreSQL's greatest bigint."""

STEP_MIN: Final = -(2**62)
STEP_MAX: Final = 2**62 - 1
"""Steps. The difference of any two fits int64."""

TIME_US_MIN: Final = 0
TIME_US_MAX: Final = 253_402_300_799_999_999
"""Times in µs since 1970: up to the year 9999, what PostgreSQL, Python and
JavaScript can all print."""

REJECTION_SAMPLES_MAX: Final = 16
"""Samples of rejections kept with a writer and sent in one ack."""

NAME_CHARACTERS_MAX: Final = 250
"""Characters in the name of a run or experiment."""

HEARTBEAT_INTERVAL_MS: Final = 15_000
"""A client sends something at least this often."""

READ_KEYS_MAX: Final = 10_000
"""Keys named in one read."""

READ_POINTS_PER_MESSAGE_MAX: Final = 32_768
"""Points in one message of a read: 24 bytes each, 768 KiB."""

CHUNK_POINTS_MAX: Final = 158
"""Points in a stored chunk with regular steps. A row of 158 is 158 x (8 value + 4 time)
+ 124 = 2,020 bytes: under the 2,032 at which PostgreSQL compresses a row (TOAST), which
costs eight times the insert, and four to a page of 8 KiB with next to nothing left over."""

CHUNK_POINTS_MAX_IRREGULAR: Final = 119
"""Points in a stored chunk that lists its steps: 119 x 16 + 120 = 2,024 bytes."""

SUMMARY_BLOCK_SERIES: Final = 24
"""Series in one row of writer_summaries: 24 x 7 x 8 + 7 x 24 + 60 = 1,572 bytes."""
