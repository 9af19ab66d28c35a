/** Artifacts as their users see them, and listing them. */

import { timestampDate } from "@bufbuild/protobuf/wkt";

import type { Connection } from "./connection.js";
import { present } from "./errors.js";
import {
  type Artifact as ArtifactMessage,
  ArtifactService,
} from "./gen/headrace/v1/artifact_service_pb.js";

/** A file of a run. */
export interface Artifact {
  readonly runId: string;
  readonly path: string;
  /** In bytes. */
  readonly size: number;
  /** The SHA-256 tree of the content, 32 bytes. */
  readonly digest: Uint8Array;
  readonly contentType: string;
  readonly createTime: Date | undefined;
}

/** An artifact, or a folder of them. */
export type ArtifactEntry =
  | { readonly kind: "artifact"; readonly artifact: Artifact }
  /** Without a `/` at its end. */
  | { readonly kind: "folder"; readonly folder: string };

/** What to list. */
export interface ListArtifactsOptions {
  /** Default: the run's top. */
  folder?: string;
  /** All artifacts below the folder, and no folders. */
  recursive?: boolean;
  /** Of one call to the gateway. */
  pageSize?: number;
}

/** Lists artifacts and folders, ordered by the bytes of their paths; all pages. */
export async function listArtifacts(
  connection: Connection,
  runId: string,
  options: ListArtifactsOptions,
  signal: AbortSignal,
): Promise<ArtifactEntry[]> {
  const entries: ArtifactEntry[] = [];
  let pageToken = "";
  do {
    const request = { ...options, runId, pageToken };
    const page = await connection.unary(ArtifactService.method.listArtifacts, request, signal);
    for (const { entry } of page.entries) {
      if (entry.case === "artifact") {
        entries.push({ kind: "artifact", artifact: artifactOf(entry.value) });
      } else if (entry.case === "folder") {
        entries.push({ kind: "folder", folder: entry.value });
      }
    }
    pageToken = page.nextPageToken;
  } while (pageToken !== "");
  return entries;
}

/** What the gateway says of an artifact. */
export function artifactOf(message: ArtifactMessage | undefined): Artifact {
  const artifact = present(message, "artifact");
  return {
    runId: artifact.runId,
    path: artifact.path,
    size: Number(artifact.size),
    digest: artifact.digest,
    contentType: artifact.contentType,
    createTime: artifact.createTime && timestampDate(artifact.createTime),
  };
}
