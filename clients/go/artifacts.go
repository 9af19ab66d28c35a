package headrace

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"google.golang.org/grpc/codes"

	pb "headrace.dev/headrace/v1"
)

const (
	singleBytesMax   = 16 << 20 // larger files go in parts
	smallPartBytes   = 16 << 20
	largePartBytes   = 64 << 20
	smallPartsUpTo   = 1 << 30
	partsMax         = 10_000
	chunkBytes       = 256 << 10
	partsInFlight    = 4
	contentChangeMax = 3
)

// Artifact is a file of a run.
type Artifact struct {
	RunID       string
	Path        string
	Size        uint64
	Digest      []byte // the SHA-256 tree of the content, 32 bytes
	ContentType string
	CreateTime  time.Time
	// Deduplicated tells, after an upload, that the content was there already.
	Deduplicated bool
}

// UploadOptions describe an upload; the zero value has defaults.
type UploadOptions struct {
	ContentType string // default application/octet-stream
}

// UploadArtifact stores a file under a path of the run, replacing what is there
// when all of it has arrived. It resumes after any disconnect, for as long as
// ctx lets it; calling it again after a crash resumes too.
func (c *Client) UploadArtifact(
	ctx context.Context, runID, path, file string, options UploadOptions,
) (*Artifact, error) {
	var retries backoff
	for {
		artifact, err := c.uploadOnce(ctx, runID, path, file, options, &retries)
		if err == nil {
			return artifact, nil
		}
		if err := retries.after(ctx, err); err != nil {
			return nil, err
		}
	}
}

// after waits for the next attempt; it returns err when there is to be none.
func (b *backoff) after(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	var failure *Error
	if !errors.As(err, &failure) {
		return err // of the file, not of the gateway
	}
	wait, again := b.next(failure)
	if !again {
		return err
	}
	return sleep(ctx, wait)
}

func (c *Client) uploadOnce(
	ctx context.Context, runID, path, file string, options UploadOptions, retries *backoff,
) (*Artifact, error) {
	content, err := os.Open(file)
	if err != nil {
		return nil, fmt.Errorf("headrace: %w", err)
	}
	defer content.Close()
	info, err := content.Stat()
	if err != nil {
		return nil, fmt.Errorf("headrace: %w", err)
	}
	size := uint64(info.Size())
	if size <= singleBytesMax {
		return c.uploadSingle(ctx, runID, path, content, size, options)
	}
	return c.uploadParts(ctx, runID, path, content, size, options, retries)
}

func (c *Client) uploadSingle(
	ctx context.Context, runID, path string, content io.Reader, size uint64, options UploadOptions,
) (*Artifact, error) {
	data := make([]byte, size)
	if _, err := io.ReadFull(content, data); err != nil {
		return nil, fmt.Errorf("headrace: the file changed while it was read: %w", err)
	}
	digest := sha256.Sum256(data)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := c.artifacts.UploadArtifact(c.authorized(ctx))
	if err != nil {
		return nil, errorOf(ctx, err)
	}
	err = stream.Send(&pb.UploadArtifactRequest{Message: &pb.UploadArtifactRequest_Header{
		Header: &pb.UploadArtifactHeader{
			RunId: runID, Path: path, Size: size, Digest: digest[:],
			ContentType: options.ContentType,
		},
	}})
	for err == nil && len(data) > 0 {
		count := min(len(data), chunkBytes)
		err = stream.Send(&pb.UploadArtifactRequest{
			Message: &pb.UploadArtifactRequest_Chunk{Chunk: data[:count]},
		})
		data = data[count:]
	}
	response, err := stream.CloseAndRecv() // tells why a Send failed, also when all is well
	if err != nil {
		return nil, errorOf(ctx, err)
	}
	artifact := artifactOf(response.GetArtifact())
	artifact.Deduplicated = response.GetDeduplicated()
	return artifact, nil
}

func (c *Client) uploadParts(
	ctx context.Context,
	runID, path string,
	content *os.File,
	size uint64,
	options UploadOptions,
	retries *backoff,
) (*Artifact, error) {
	digests, err := partDigests(content, size)
	if err != nil {
		return nil, err
	}
	begun, err := unary(ctx, c, c.artifacts.BeginUpload, &pb.BeginUploadRequest{
		RunId: runID, Path: path, Size: size, PartSha256S: digests,
		ContentType: options.ContentType,
	})
	if err != nil {
		return nil, err
	}
	if there := begun.GetArtifact(); there != nil {
		artifact := artifactOf(there)
		artifact.Deduplicated = retries.failures == 0 // else it may be our own
		return artifact, nil
	}
	upload := begun.GetUpload()
	stored := make(map[uint32]bool)
	for _, number := range upload.GetStoredParts() {
		stored[number] = true
	}
	if err := c.sendParts(ctx, runID, upload, stored, content, size, retries); err != nil {
		return nil, err
	}
	completing, cancel := context.WithTimeout(ctx, time.Hour) // it may read the object back
	defer cancel()
	completed, err := unary(completing, c, c.artifacts.CompleteUpload, &pb.CompleteUploadRequest{
		RunId: runID, UploadId: upload.GetUploadId(),
	})
	if err != nil {
		return nil, err
	}
	return artifactOf(completed.GetArtifact()), nil
}

// sendParts sends the parts that are not stored, several at a time; the first
// failure ends it.
func (c *Client) sendParts(
	ctx context.Context,
	runID string,
	upload *pb.Upload,
	stored map[uint32]bool,
	content *os.File,
	size uint64,
	retries *backoff,
) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var (
		workers  sync.WaitGroup
		mutex    sync.Mutex
		progress bool
		numbers  = make(chan uint32)
	)
	for range partsInFlight {
		workers.Go(func() {
			for number := range numbers {
				offset := uint64(number-1) * upload.GetPartSize()
				length := min(upload.GetPartSize(), size-offset)
				part := io.NewSectionReader(content, int64(offset), int64(length))
				if err := c.sendPart(ctx, runID, upload.GetUploadId(), number, part); err != nil {
					cancel(err)
					return
				}
				mutex.Lock()
				progress = true
				mutex.Unlock()
			}
		})
	}
	for number := uint32(1); number <= upload.GetPartCount() && ctx.Err() == nil; number++ {
		if !stored[number] {
			select {
			case numbers <- number:
			case <-ctx.Done():
			}
		}
	}
	close(numbers)
	workers.Wait()
	if progress {
		retries.progress()
	}
	return context.Cause(ctx)
}

func (c *Client) sendPart(
	ctx context.Context, runID, uploadID string, number uint32, part io.Reader,
) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := c.artifacts.UploadPart(c.authorized(ctx))
	if err != nil {
		return errorOf(ctx, err)
	}
	err = stream.Send(&pb.UploadPartRequest{Message: &pb.UploadPartRequest_Header{
		Header: &pb.UploadPartHeader{RunId: runID, UploadId: uploadID, PartNumber: number},
	}})
	buffer := make([]byte, chunkBytes)
	for err == nil {
		count, readErr := io.ReadFull(part, buffer)
		if count > 0 {
			err = stream.Send(&pb.UploadPartRequest{
				Message: &pb.UploadPartRequest_Chunk{Chunk: buffer[:count]},
			})
		}
		if errors.Is(readErr, io.EOF) || errors.Is(readErr, io.ErrUnexpectedEOF) {
			break
		}
		if readErr != nil {
			return fmt.Errorf("headrace: %w", readErr)
		}
	}
	_, err = stream.CloseAndRecv()
	return errorOf(ctx, err)
}

// partSize is the rule of the contract: it follows from the file's size alone.
func partSize(size uint64) uint64 {
	if size <= smallPartsUpTo {
		return smallPartBytes
	}
	part := uint64(largePartBytes)
	for (size+part-1)/part > partsMax {
		part *= 2
	}
	return part
}

// partDigests returns the SHA-256 of each part, one after another.
func partDigests(content io.Reader, size uint64) ([]byte, error) {
	var digests []byte
	part := partSize(size)
	for rest := size; rest > 0; {
		hash := sha256.New()
		count := min(part, rest)
		if _, err := io.CopyN(hash, content, int64(count)); err != nil {
			return nil, fmt.Errorf("headrace: the file changed while it was read: %w", err)
		}
		digests = hash.Sum(digests)
		rest -= count
	}
	return digests, nil
}

// DownloadArtifact reads an artifact into a file, verified part by part. What
// has arrived is kept in `<file>.part`, so that it resumes after any disconnect,
// for as long as ctx lets it, and after a crash when it is called again.
func (c *Client) DownloadArtifact(
	ctx context.Context, runID, path, file string,
) (*Artifact, error) {
	draft, err := os.OpenFile(file+".part", os.O_RDWR|os.O_CREATE, 0o666)
	if err != nil {
		return nil, fmt.Errorf("headrace: %w", err)
	}
	defer draft.Close()
	artifact, err := c.downloadInto(ctx, runID, path, draft)
	if err != nil {
		if info, statErr := draft.Stat(); statErr == nil && info.Size() == 0 {
			_ = os.Remove(draft.Name())
		}
		return nil, err
	}
	if err := errors.Join(draft.Sync(), draft.Close(), os.Rename(draft.Name(), file)); err != nil {
		return nil, fmt.Errorf("headrace: %w", err)
	}
	return artifactOf(artifact), nil
}

func (c *Client) downloadInto(
	ctx context.Context, runID, path string, draft *os.File,
) (*pb.Artifact, error) {
	var (
		retries  backoff
		artifact *pb.Artifact
		verified uint64 // bytes at the draft's beginning
		changes  int
	)
	for {
		if artifact == nil {
			response, err := unary(ctx, c, c.artifacts.StatArtifact,
				&pb.StatArtifactRequest{RunId: runID, Path: path})
			if err != nil {
				if err := retries.after(ctx, err); err != nil {
					return nil, err
				}
				continue
			}
			artifact = response.GetArtifact()
			if verified, err = verifiedBytes(draft, artifact); err != nil {
				return nil, err
			}
		}
		before := verified
		err := c.downloadRest(ctx, artifact, draft, &verified)
		if err == nil {
			return artifact, nil
		}
		if verified > before {
			retries.progress()
		}
		if ReasonOf(err) == ReasonArtifactChanged && changes < contentChangeMax {
			artifact = nil
			changes++
			continue
		}
		if err := retries.after(ctx, err); err != nil {
			return nil, err
		}
	}
}

// downloadRest appends what follows the verified bytes, and counts each part
// as verified when it is.
func (c *Client) downloadRest(
	ctx context.Context, artifact *pb.Artifact, draft *os.File, verified *uint64,
) error {
	if err := draft.Truncate(int64(*verified)); err != nil {
		return fmt.Errorf("headrace: %w", err)
	}
	if _, err := draft.Seek(int64(*verified), io.SeekStart); err != nil {
		return fmt.Errorf("headrace: %w", err)
	}
	if *verified == artifact.GetSize() {
		return nil
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := c.artifacts.DownloadArtifact(c.authorized(ctx), &pb.DownloadArtifactRequest{
		RunId: artifact.GetRunId(), Path: artifact.GetPath(),
		Offset: *verified, Digest: artifact.GetDigest(),
	})
	if err != nil {
		return errorOf(ctx, err)
	}
	hash, inPart := sha256.New(), uint64(0)
	for {
		response, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			if *verified < artifact.GetSize() {
				return &Error{Code: codes.Unavailable, Message: "the download ended early"}
			}
			return nil
		}
		if err != nil {
			return errorOf(ctx, err)
		}
		for chunk := response.GetChunk(); len(chunk) > 0; {
			length := min(artifact.GetPartSize(), artifact.GetSize()-*verified) // of this part
			piece := chunk[:min(uint64(len(chunk)), length-inPart)]
			if len(piece) == 0 {
				return &Error{Code: codes.DataLoss, Message: "the download has too many bytes"}
			}
			if _, err := draft.Write(piece); err != nil {
				return fmt.Errorf("headrace: %w", err)
			}
			hash.Write(piece)
			inPart += uint64(len(piece))
			chunk = chunk[len(piece):]
			if inPart == length {
				if !bytes.Equal(hash.Sum(nil), digestOfPart(artifact, *verified)) {
					return &Error{
						Reason: ReasonDigestMismatch, Code: codes.DataLoss,
						Message: fmt.Sprintf("the part at byte %d was damaged on the way", *verified),
					}
				}
				*verified += length
				hash.Reset()
				inPart = 0
			}
		}
	}
}

// verifiedBytes returns how many bytes at the draft's beginning are whole parts
// of the artifact.
func verifiedBytes(draft *os.File, artifact *pb.Artifact) (uint64, error) {
	if _, err := draft.Seek(0, io.SeekStart); err != nil {
		return 0, fmt.Errorf("headrace: %w", err)
	}
	verified := uint64(0)
	for verified < artifact.GetSize() {
		hash := sha256.New()
		length := min(artifact.GetPartSize(), artifact.GetSize()-verified)
		if _, err := io.CopyN(hash, draft, int64(length)); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return 0, fmt.Errorf("headrace: %w", err)
		}
		if !bytes.Equal(hash.Sum(nil), digestOfPart(artifact, verified)) {
			break
		}
		verified += length
	}
	return verified, nil
}

// digestOfPart returns the SHA-256 of the part that begins at offset.
func digestOfPart(artifact *pb.Artifact, offset uint64) []byte {
	start := offset / artifact.GetPartSize() * sha256.Size
	digests := artifact.GetPartSha256S()
	if start+sha256.Size > uint64(len(digests)) {
		return nil
	}
	return digests[start : start+sha256.Size]
}

// ArtifactEntry is an artifact, or a folder when Artifact is nil.
type ArtifactEntry struct {
	Artifact *Artifact
	Folder   string // without a / at its end
}

// ListArtifactsOptions choose what ListArtifacts returns; the zero value is the
// run's top.
type ListArtifactsOptions struct {
	Folder    string
	Recursive bool  // all artifacts below the folder, and no folders
	PageSize  int32 // of one call to the gateway; 0: its default
}

// ListArtifacts lists artifacts and folders, ordered by the bytes of their
// paths; all pages.
func (c *Client) ListArtifacts(
	ctx context.Context, runID string, options ListArtifactsOptions,
) ([]ArtifactEntry, error) {
	var entries []ArtifactEntry
	request := &pb.ListArtifactsRequest{
		RunId: runID, Folder: options.Folder, Recursive: options.Recursive,
		PageSize: options.PageSize,
	}
	for {
		page, err := unary(ctx, c, c.artifacts.ListArtifacts, request)
		if err != nil {
			return nil, err
		}
		for _, entry := range page.GetEntries() {
			if artifact := entry.GetArtifact(); artifact != nil {
				entries = append(entries, ArtifactEntry{Artifact: artifactOf(artifact)})
			} else {
				entries = append(entries, ArtifactEntry{Folder: entry.GetFolder()})
			}
		}
		if page.GetNextPageToken() == "" {
			return entries, nil
		}
		request.PageToken = page.GetNextPageToken()
	}
}

func artifactOf(artifact *pb.Artifact) *Artifact {
	return &Artifact{
		RunID:       artifact.GetRunId(),
		Path:        artifact.GetPath(),
		Size:        artifact.GetSize(),
		Digest:      artifact.GetDigest(),
		ContentType: artifact.GetContentType(),
		CreateTime:  timeOf(artifact.GetCreateTime()),
	}
}
