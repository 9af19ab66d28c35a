//! Uploading, downloading and listing artifacts: verified, and resumed after any
//! disconnect.

use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use tokio::fs::{self, File, OpenOptions};
use tokio::io::{AsyncReadExt, AsyncSeekExt, AsyncWriteExt, SeekFrom};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;

use crate::backoff::Backoff;
use crate::client::unary;
use crate::error::{Failure, Reason};
use crate::v1::artifact_entry::Entry;
use crate::v1::begin_upload_response::Outcome;
use crate::v1::download_artifact_response::Message as Downloaded;
use crate::v1::upload_artifact_request::Message as Uploading;
use crate::v1::upload_part_request::Message as Part;
use crate::v1::{
    Artifact as Stored, BeginUploadRequest, CompleteUploadRequest, DownloadArtifactRequest,
    ListArtifactsRequest, StatArtifactRequest, Upload, UploadArtifactHeader, UploadArtifactRequest,
    UploadPartHeader, UploadPartRequest,
};
use crate::{Client, Error};

const MIB: u64 = 1 << 20;
/// Larger files go in parts.
const SINGLE_BYTES_MAX: u64 = 16 * MIB;
const CHUNK_BYTES: usize = 256 << 10;
const CHUNKS_IN_FLIGHT: usize = 4;
const PARTS_IN_FLIGHT: usize = 4;
const CONTENT_CHANGES_MAX: u32 = 3;
const DIGEST_BYTES: usize = 32;

/// A file of a run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Artifact {
    /// The path.
    pub path: String,
    /// In bytes.
    pub size: u64,
    /// The SHA-256 tree of the content, 32 bytes.
    pub digest: Vec<u8>,
    /// The media type.
    pub content_type: String,
    /// After an upload: the content was there already.
    pub deduplicated: bool,
}

/// An artifact or a folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ArtifactEntry {
    /// A file.
    Artifact(Artifact),
    /// The path of a folder, without a `/` at its end.
    Folder(String),
}

/// What [`Client::list_artifacts`] returns; the default is the run's top.
#[derive(Clone, Debug, Default)]
pub struct ListArtifactsOptions {
    /// The folder to list.
    pub folder: String,
    /// All artifacts below the folder, and no folders.
    pub recursive: bool,
    /// Of one call to the gateway; 0: its default.
    pub page_size: i32,
}

impl Client {
    /// Stores a file under a path of the run, replacing what is there when all of it
    /// has arrived. Resumes after any disconnect, for as long as the future lives;
    /// calling it again after a crash resumes too. An empty `content_type` means
    /// `application/octet-stream`.
    pub async fn upload_artifact(
        &self,
        run_id: &str,
        path: &str,
        file: impl AsRef<Path>,
        content_type: &str,
    ) -> Result<Artifact, Error> {
        let target = Target { run_id, path, content_type };
        let mut retries = Backoff::default();
        loop {
            let size = fs::metadata(&file).await?.len();
            let attempt = if size <= SINGLE_BYTES_MAX {
                self.upload_single(&target, file.as_ref()).await
            } else {
                self.upload_parts(&target, file.as_ref(), size, &mut retries).await
            };
            match attempt {
                Ok(artifact) => return Ok(artifact),
                Err(error) => wait_or_fail(&mut retries, error).await?,
            }
        }
    }

    async fn upload_single(&self, target: &Target<'_>, file: &Path) -> Result<Artifact, Error> {
        let content = fs::read(file).await?;
        let header = UploadArtifactHeader {
            run_id: target.run_id.into(),
            path: target.path.into(),
            size: content.len() as u64,
            digest: Sha256::digest(&content).to_vec(),
            content_type: target.content_type.into(),
        };
        let mut messages = vec![Uploading::Header(header)];
        messages.extend(content.chunks(CHUNK_BYTES).map(|chunk| Uploading::Chunk(chunk.to_vec())));
        let requests =
            messages.into_iter().map(|message| UploadArtifactRequest { message: Some(message) });
        let call = self.streaming(tokio_stream::iter(requests));
        let response = unary(self.artifacts().upload_artifact(call)).await?;
        Ok(Artifact {
            deduplicated: response.deduplicated,
            ..response.artifact.unwrap_or_default().into()
        })
    }

    async fn upload_parts(
        &self,
        target: &Target<'_>,
        file: &Path,
        size: u64,
        retries: &mut Backoff,
    ) -> Result<Artifact, Error> {
        let request = BeginUploadRequest {
            run_id: target.run_id.into(),
            path: target.path.into(),
            size,
            part_sha256s: part_digests(file, size).await?,
            content_type: target.content_type.into(),
        };
        let begun = unary(self.artifacts().begin_upload(self.call(request))).await?;
        let upload = match begun.outcome {
            Some(Outcome::Artifact(stored)) => {
                // After a failure, it may be our own.
                let deduplicated = !retries.failed_before();
                return Ok(Artifact { deduplicated, ..stored.into() });
            }
            Some(Outcome::Upload(upload)) => upload,
            None => {
                return Err(Failure::new(Reason::Unspecified, Code::Unknown, "no outcome").into());
            }
        };
        self.send_parts(target.run_id, &upload, file, size, retries).await?;
        let request =
            CompleteUploadRequest { run_id: target.run_id.into(), upload_id: upload.upload_id };
        // No deadline: it may read the object back.
        let completed = unary(self.artifacts().complete_upload(self.streaming(request))).await?;
        Ok(completed.artifact.unwrap_or_default().into())
    }

    /// Sends the parts that are not stored, several at a time.
    async fn send_parts(
        &self,
        run_id: &str,
        upload: &Upload,
        file: &Path,
        size: u64,
        retries: &mut Backoff,
    ) -> Result<(), Error> {
        let mut missing =
            (1..=upload.part_count).filter(|number| !upload.stored_parts.contains(number));
        let mut sending = JoinSet::new();
        loop {
            while sending.len() < PARTS_IN_FLIGHT {
                let Some(part_number) = missing.next() else { break };
                let header = UploadPartHeader {
                    run_id: run_id.into(),
                    upload_id: upload.upload_id.clone(),
                    part_number,
                };
                let offset = u64::from(part_number - 1) * upload.part_size;
                let length = upload.part_size.min(size - offset);
                sending.spawn(send_part(self.clone(), header, file.to_owned(), offset, length));
            }
            match sending.join_next().await {
                None => return Ok(()),
                Some(Ok(sent)) => sent?,
                Some(Err(panic)) => std::panic::resume_unwind(panic.into_panic()),
            }
            retries.progress();
        }
    }

    /// Reads an artifact into a file, verified part by part. What has arrived is kept
    /// in `<file>.part`, so that it resumes after any disconnect, for as long as the
    /// future lives, and after a crash when it is called again.
    pub async fn download_artifact(
        &self,
        run_id: &str,
        path: &str,
        file: impl AsRef<Path>,
    ) -> Result<Artifact, Error> {
        let mut draft_path = file.as_ref().as_os_str().to_owned();
        draft_path.push(".part");
        let draft_path = PathBuf::from(draft_path);
        let mut draft = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&draft_path)
            .await?;
        let stored = match self.download_into(run_id, path, &mut draft).await {
            Ok(stored) => stored,
            Err(error) => {
                if draft.metadata().await.is_ok_and(|metadata| metadata.len() == 0) {
                    let _ = fs::remove_file(&draft_path).await;
                }
                return Err(error);
            }
        };
        draft.sync_all().await?;
        fs::rename(&draft_path, &file).await?;
        Ok(stored.into())
    }

    async fn download_into(
        &self,
        run_id: &str,
        path: &str,
        draft: &mut File,
    ) -> Result<Stored, Error> {
        let mut retries = Backoff::default();
        for _ in 0..=CONTENT_CHANGES_MAX {
            let request = StatArtifactRequest { run_id: run_id.into(), path: path.into() };
            let stored = loop {
                match unary(self.artifacts().stat_artifact(self.call(request.clone()))).await {
                    Ok(response) => break response.artifact.unwrap_or_default(),
                    Err(error) => wait_or_fail(&mut retries, error).await?,
                }
            };
            let mut verified = verified_bytes(draft, &stored).await?;
            loop {
                let before = verified;
                let Err(error) = self.download_rest(&stored, draft, &mut verified).await else {
                    return Ok(stored);
                };
                if verified > before {
                    retries.progress();
                }
                if error.reason() == Some(Reason::ArtifactChanged) {
                    break;
                }
                wait_or_fail(&mut retries, error).await?;
            }
        }
        let message = "the artifact keeps changing while it is read";
        Err(Failure::new(Reason::ArtifactChanged, Code::FailedPrecondition, message).into())
    }

    /// Appends what follows the verified bytes, and counts each part when it is.
    async fn download_rest(
        &self,
        stored: &Stored,
        draft: &mut File,
        verified: &mut u64,
    ) -> Result<(), Error> {
        draft.set_len(*verified).await?;
        draft.seek(SeekFrom::Start(*verified)).await?;
        if *verified == stored.size {
            return Ok(());
        }
        let request = DownloadArtifactRequest {
            run_id: stored.run_id.clone(),
            path: stored.path.clone(),
            offset: *verified,
            length: None,
            digest: stored.digest.clone(),
        };
        let mut stream = unary(self.artifacts().download_artifact(self.streaming(request))).await?;
        let (mut hash, mut in_part) = (Sha256::new(), 0);
        while let Some(response) = stream.message().await? {
            let Some(Downloaded::Chunk(chunk)) = response.message else { continue };
            let mut chunk = chunk.as_slice();
            while !chunk.is_empty() {
                let length = stored.part_size.min(stored.size - *verified);
                let (piece, after) = chunk.split_at(chunk.len().min((length - in_part) as usize));
                if piece.is_empty() {
                    let message = "the download has too many bytes";
                    return Err(
                        Failure::new(Reason::DigestMismatch, Code::DataLoss, message).into()
                    );
                }
                draft.write_all(piece).await?;
                hash.update(piece);
                in_part += piece.len() as u64;
                chunk = after;
                if in_part == length {
                    if hash.finalize_reset()[..] != *digest_of_part(stored, *verified) {
                        let message = format!("the part at byte {verified} was damaged on the way");
                        return Err(
                            Failure::new(Reason::DigestMismatch, Code::DataLoss, message).into()
                        );
                    }
                    draft.flush().await?;
                    *verified += length;
                    in_part = 0;
                }
            }
        }
        if *verified < stored.size {
            let message = "the download ended early";
            return Err(Failure::new(Reason::Unspecified, Code::Unavailable, message).into());
        }
        Ok(())
    }

    /// Lists artifacts and folders, ordered by the bytes of their paths; all pages.
    pub async fn list_artifacts(
        &self,
        run_id: &str,
        options: ListArtifactsOptions,
    ) -> Result<Vec<ArtifactEntry>, Error> {
        let mut request = ListArtifactsRequest {
            run_id: run_id.into(),
            folder: options.folder,
            recursive: options.recursive,
            page_size: options.page_size,
            page_token: String::new(),
        };
        let mut entries = Vec::new();
        loop {
            let page = unary(self.artifacts().list_artifacts(self.call(request.clone()))).await?;
            entries.extend(page.entries.into_iter().filter_map(|entry| match entry.entry? {
                Entry::Artifact(stored) => Some(ArtifactEntry::Artifact(stored.into())),
                Entry::Folder(folder) => Some(ArtifactEntry::Folder(folder)),
            }));
            if page.next_page_token.is_empty() {
                return Ok(entries);
            }
            request.page_token = page.next_page_token;
        }
    }
}

/// Where an upload goes.
struct Target<'a> {
    run_id: &'a str,
    path: &'a str,
    content_type: &'a str,
}

impl From<Stored> for Artifact {
    fn from(stored: Stored) -> Self {
        Self {
            path: stored.path,
            size: stored.size,
            digest: stored.digest,
            content_type: stored.content_type,
            deduplicated: false,
        }
    }
}

async fn wait_or_fail(retries: &mut Backoff, error: Error) -> Result<(), Error> {
    let Error::Gateway(failure) = &error else {
        return Err(error);
    };
    match retries.next(failure) {
        Some(wait) => {
            tokio::time::sleep(wait).await;
            Ok(())
        }
        None => Err(error),
    }
}

async fn send_part(
    client: Client,
    header: UploadPartHeader,
    file: PathBuf,
    offset: u64,
    length: u64,
) -> Result<(), Error> {
    let mut content = File::open(file).await?;
    content.seek(SeekFrom::Start(offset)).await?;
    let mut content = content.take(length);
    let (sender, receiver) = mpsc::channel(CHUNKS_IN_FLIGHT);
    let reading = async move {
        let mut message = Part::Header(header);
        loop {
            if sender.send(UploadPartRequest { message: Some(message) }).await.is_err() {
                return Ok(()); // the call has ended, and says why
            }
            let mut chunk = Vec::with_capacity(CHUNK_BYTES);
            (&mut content).take(CHUNK_BYTES as u64).read_to_end(&mut chunk).await?;
            if chunk.is_empty() {
                return Ok::<(), std::io::Error>(());
            }
            message = Part::Chunk(chunk);
        }
    };
    let call = client.streaming(ReceiverStream::new(receiver));
    let mut artifacts = client.artifacts();
    let (read, sent) = tokio::join!(reading, artifacts.upload_part(call));
    read?;
    sent?;
    Ok(())
}

/// The rule of the contract: it follows from the file's size alone.
fn part_size(size: u64) -> u64 {
    if size <= 1 << 30 {
        return 16 * MIB;
    }
    let mut part = 64 * MIB;
    while size.div_ceil(part) > 10_000 {
        part *= 2;
    }
    part
}

/// The SHA-256 of each part, one after another.
async fn part_digests(file: &Path, size: u64) -> Result<Vec<u8>, Error> {
    let mut content = File::open(file).await?;
    let mut digests = Vec::new();
    let mut rest = size;
    while rest > 0 {
        let length = part_size(size).min(rest);
        digests.extend(digest_of(&mut content, length).await?.ok_or_else(|| {
            std::io::Error::new(std::io::ErrorKind::UnexpectedEof, "the file shrank meanwhile")
        })?);
        rest -= length;
    }
    Ok(digests)
}

/// The SHA-256 of the next `length` bytes; `None` when there are fewer.
async fn digest_of(content: &mut File, length: u64) -> Result<Option<Vec<u8>>, Error> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; CHUNK_BYTES];
    let mut rest = length;
    while rest > 0 {
        let wanted = buffer.len().min(rest as usize);
        let count = content.read(&mut buffer[..wanted]).await?;
        if count == 0 {
            return Ok(None);
        }
        hash.update(&buffer[..count]);
        rest -= count as u64;
    }
    Ok(Some(hash.finalize().to_vec()))
}

/// How many bytes at the draft's beginning are whole parts of the artifact.
async fn verified_bytes(draft: &mut File, stored: &Stored) -> Result<u64, Error> {
    draft.seek(SeekFrom::Start(0)).await?;
    let mut verified = 0;
    while verified < stored.size {
        let length = stored.part_size.min(stored.size - verified);
        match digest_of(draft, length).await? {
            Some(digest) if digest == digest_of_part(stored, verified) => verified += length,
            _ => break,
        }
    }
    Ok(verified)
}

/// The SHA-256 of the part that begins at `offset`.
fn digest_of_part(stored: &Stored, offset: u64) -> &[u8] {
    let start = (offset / stored.part_size.max(1)) as usize * DIGEST_BYTES;
    stored.part_sha256s.get(start..start + DIGEST_BYTES).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_part_size_follows_from_the_size() {
        assert_eq!(part_size(17 * MIB), 16 * MIB);
        assert_eq!(part_size(1 << 30), 16 * MIB);
        assert_eq!(part_size((1 << 30) + 1), 64 * MIB);
        assert_eq!(part_size(5 << 40), 1 << 30);
    }
}
