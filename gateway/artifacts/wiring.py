"""From settings to the parts of the artifact service: one open bucket a process."""

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Final

from gateway.artifacts.cleanup import Cleanup
from gateway.artifacts.downloads import Downloads
from gateway.artifacts.slots import Admission, Slots
from gateway.artifacts.uploads import Uploads
from gateway.blobs.bucket import Bucket
from gateway.blobs.clients import BucketSettings
from gateway.config import Settings
from gateway.store.artifact_leftovers import ArtifactLeftovers
from gateway.store.artifacts import ArtifactStore
from gateway.store.connections import Database
from gateway.telemetry import METRICS

_OPEN_PER_SLOT: Final = 8
"""Transfers that may be open for each that may move: a waiting one costs what HTTP/2
buffers of it (`lookahead_bytes`) and about 60 kB, so 512 of them less than 100 MB."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifacts:
    """What the artifact service stands on."""

    admission: Admission
    store: ArtifactStore
    bucket: Bucket
    uploads: Uploads
    downloads: Downloads
    cleanup: Cleanup


def bucket_settings(settings: Settings) -> BucketSettings:
    """Return the bucket that the settings name; `s3_bucket` must be set."""
    style = settings.s3_addressing_style
    if style == "auto":
        # Servers other than AWS understand paths without DNS of their own. Of AWS, botocore's
        # own "auto" signs URLs of the global endpoint, which redirects what it cannot serve.
        style = "virtual" if settings.s3_endpoint_url is None else "path"
    return BucketSettings(
        bucket=settings.s3_bucket,
        endpoint_url=settings.s3_endpoint_url,
        public_endpoint_url=settings.s3_public_endpoint_url,
        region=settings.s3_region,
        addressing_style=style,
        access_key_id=settings.s3_access_key_id,
        secret_access_key=settings.s3_secret_access_key,
        key_prefix=settings.s3_key_prefix,
        server_side_encryption=settings.s3_server_side_encryption or None,
        kms_key_id=settings.s3_kms_key_id or None,
        storage_class=settings.s3_storage_class or None,
        connections_max=2 * settings.artifact_parts_in_flight_max,
        stall_timeout_s=settings.artifact_stall_timeout_s,
    )


@contextlib.asynccontextmanager
async def open_artifacts(settings: Settings, database: Database) -> AsyncIterator[Artifacts | None]:
    """Open the bucket; None when the settings name none. S3 itself is not asked."""
    if not settings.s3_bucket:
        yield None
        return
    store = ArtifactStore(database)
    namespace = await store.namespace()
    total, one = settings.artifact_parts_in_flight_max, settings.artifact_parts_per_upload_max
    async with Bucket(bucket_settings(settings)) as bucket:
        yield Artifacts(
            admission=Admission(_OPEN_PER_SLOT * total),
            store=store,
            bucket=bucket,
            uploads=Uploads(
                store,
                bucket,
                namespace=namespace,
                slots=Slots(
                    total,
                    owner_max=one,
                    active=METRICS.artifact_parts_active,
                    waiting=METRICS.artifact_parts_waiting,
                ),
                direct=settings.artifact_direct,
                signed_expiry_s=settings.artifact_signed_expiry_s,
            ),
            downloads=Downloads(
                store,
                bucket,
                slots=Slots(
                    total,
                    owner_max=total,  # every rank of a job may load one checkpoint
                    active=METRICS.artifact_reads_active,
                    waiting=METRICS.artifact_reads_waiting,
                ),
                stall_timeout_s=settings.artifact_stall_timeout_s,
                direct=settings.artifact_direct,
                signed_expiry_s=settings.artifact_signed_expiry_s,
            ),
            cleanup=Cleanup(
                store,
                ArtifactLeftovers(database),
                bucket,
                namespace=namespace,
                upload_expiry_s=settings.artifact_upload_expiry_s,
            ),
        )
