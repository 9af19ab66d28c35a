"""The one interceptor that every call passes, whatever its shape.

It refuses methods without an entry in the permission table, authenticates,
sets the identity, verifies again while a stream is open, bounds and parses
messages, and turns every failure into a status with one ErrorInfo. Services
raise HeadraceError and never see gRPC statuses; anything else they raise
reaches the client as INTERNAL with an id to find in the log, nothing more.
"""

import asyncio
import contextlib
import inspect
import traceback
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

import grpc
import structlog
from google.protobuf.message import DecodeError

from gateway.domain.errors import HeadraceError, Reason, StoreUnavailableError
from gateway.domain.identity import ANONYMOUS, Identity, set_identity
from gateway.domain.limits import MESSAGE_BYTES_MAX
from gateway.rpc.authentication import Authenticator
from gateway.rpc.open_call import OpenCall
from gateway.rpc.permissions import METHOD_PERMISSIONS, Permission, check_permission
from gateway.rpc.status import status_of
from gateway.rpc.workspaces import WorkspaceChoice
from gateway.telemetry import METRICS

_LOG = structlog.get_logger(__name__)

RECEIVE_BYTES_MAX: Final = 2 * MESSAGE_BYTES_MAX
"""Where gRPC itself cuts a message off, without an ErrorInfo. Above the
contract's limit, so that the common mistake gets the clear error."""

_REFUSAL_PATIENCE_S: Final = 0.2

_REFUSALS: Final = frozenset(
    {
        Reason.UNAUTHENTICATED,
        Reason.PERMISSION_DENIED,
        Reason.WORKSPACE_NOT_FOUND,
        Reason.WORKSPACE_ARCHIVED,
    }
)
"""What a caller can be told who was let in before."""

_Parse = Callable[[bytes], Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Call:
    method: str
    permission: Permission
    authorization: str | None
    workspace: str | None
    streaming: bool


class CallInterceptor(grpc.aio.ServerInterceptor):
    """See the module."""

    def __init__(
        self, authenticator: Authenticator, workspaces: WorkspaceChoice, *, recheck_s: float
    ) -> None:
        """Prepare; `recheck_s` is how often an open stream's caller is verified again."""
        self._authenticator = authenticator
        self._workspaces = workspaces
        self._recheck_s = recheck_s

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Return the method's handler, guarded; or one that refuses."""
        method = handler_call_details.method
        permission = METHOD_PERMISSIONS.get(method)
        handler = await continuation(handler_call_details)
        if permission is None or handler is None:
            return grpc.stream_stream_rpc_method_handler(_refuse_unknown)
        metadata = handler_call_details.invocation_metadata or ()
        call = _Call(
            method=method,
            permission=permission,
            authorization=_text_of(metadata, "authorization"),
            workspace=_text_of(metadata, "headrace-workspace"),
            streaming=handler.request_streaming or handler.response_streaming,
        )
        return self._guard(handler, call)

    def _guard(self, handler: Any, call: _Call) -> Any:
        parse = _bounded(handler.request_deserializer)
        inner = (
            handler.unary_unary
            or handler.unary_stream
            or handler.stream_unary
            or handler.stream_stream
        )
        yields = inspect.isasyncgenfunction(inner)

        async def answer(request: Any, context: Any) -> Any:
            async with self._guarded(call, context):
                if not handler.request_streaming:
                    request = parse(request)
                if not yields:
                    return await inner(request, context)
                await _write_all(inner(request, context), context)
            return None

        # gRPC would answer an unreadable unary request by itself, without an
        # ErrorInfo: it hands us the bytes. In a stream, what the parser raises
        # comes out of the handler's read, and through `_guarded`.
        make, deserializer = {
            (False, False): (grpc.unary_unary_rpc_method_handler, None),
            (False, True): (grpc.unary_stream_rpc_method_handler, None),
            (True, False): (grpc.stream_unary_rpc_method_handler, parse),
            (True, True): (grpc.stream_stream_rpc_method_handler, parse),
        }[handler.request_streaming, handler.response_streaming]
        return make(answer, deserializer, handler.response_serializer)

    @contextlib.asynccontextmanager
    async def _guarded(self, call: _Call, context: Any) -> AsyncIterator[None]:
        code = "OK"
        open_call = OpenCall()
        try:
            set_identity(await self._identified(call))
            async with self._verified_again(call, open_call):
                yield
        except asyncio.CancelledError as cancelled:
            failure = open_call.failed()
            if failure is None:
                code = "CANCELLED"
                raise
            # What the handler holds goes now: the abort below waits for as long as the reader
            # reads nothing.
            status = status_of(_known_error(failure, call))
            _let_go(failure, cancelled)
            code = status.code.name
            try:
                await context.abort(status.code, status.message, status.trailers)
            except grpc.aio.AbortError:
                raise
            except Exception:  # the reader went, and will never know why
                raise cancelled from None
        except grpc.aio.AbortError:
            # Only the health service aborts by itself.
            code = _code_name(context.code())
            raise
        except Exception as error:  # nothing leaves untranslated
            status = status_of(_known_error(error, call))
            code = status.code.name
            await context.abort(status.code, status.message, status.trailers)
        finally:
            METRICS.calls.labels(call.method, code).inc()
            open_call.close()

    async def _identified(self, call: _Call) -> Identity:
        """Return who calls, if they may.

        Raises:
            HeadraceError: one of _REFUSALS; STORE_UNAVAILABLE when it cannot be known.
        """
        identity = ANONYMOUS
        if call.permission is not Permission.PUBLIC:
            identity = await self._authenticator.identify(call.authorization)
            if call.workspace is not None:
                identity = await self._workspaces.choose(
                    identity, call.workspace, bound=self._authenticator.required
                )
        check_permission(identity, call.permission, call.method)
        return identity

    @contextlib.asynccontextmanager
    async def _verified_again(self, call: _Call, open_call: OpenCall) -> AsyncIterator[None]:
        """End an open stream when its token expires or is revoked, or its workspace is archived."""
        # Without tokens and a named workspace it is `default`, which is never archived.
        revocable = self._authenticator.required or call.workspace is not None
        if not call.streaming or call.permission is Permission.PUBLIC or not revocable:
            yield
            return

        async def verify() -> None:
            while open_call.failure is None:
                await asyncio.sleep(self._recheck_s)
                # While the database is away, nobody can be said to be revoked.
                with contextlib.suppress(StoreUnavailableError):
                    try:
                        await self._identified(call)
                    except HeadraceError as error:
                        if error.reason not in _REFUSALS:
                            raise
                        open_call.fail(error)

        watcher = asyncio.create_task(verify())
        try:
            yield
        finally:
            watcher.cancel()


async def _write_all(responses: Any, context: Any) -> None:
    async with contextlib.aclosing(responses):
        async for response in responses:
            await context.write(response)


def _text_of(metadata: Any, name: str) -> str | None:
    return next((value for key, value in metadata if key == name and isinstance(value, str)), None)


async def _refuse_unknown(_: Any, context: Any) -> None:
    METRICS.calls.labels("unknown", "UNIMPLEMENTED").inc()
    # Let the request arrive: a stream that ends while its client still sends can
    # reach the client as an error of its own. The read is left to end with the call.
    await asyncio.wait({asyncio.ensure_future(context.read())}, timeout=_REFUSAL_PATIENCE_S)
    status = status_of(
        HeadraceError(Reason.METHOD_UNKNOWN, "the gateway has no such method open to callers")
    )
    await context.abort(status.code, status.message, status.trailers)


def _bounded(parse: _Parse | None) -> _Parse:
    def parse_bounded(raw: bytes) -> Any:
        if len(raw) > MESSAGE_BYTES_MAX:
            raise HeadraceError(
                Reason.LIMIT_EXCEEDED,
                f"a message of {len(raw)} bytes is larger than {MESSAGE_BYTES_MAX}",
                field="message",
                value=len(raw),
                limit=MESSAGE_BYTES_MAX,
            )
        return raw if parse is None else parse(raw)

    return parse_bounded


def _let_go(*errors: BaseException) -> None:
    """Let go of what the frames hold that errors, and those behind them, have passed."""
    pending: list[BaseException | None] = [*errors]
    seen: list[BaseException] = []
    while pending:
        error = pending.pop()
        if error is None or any(error is other for other in seen):
            continue
        seen.append(error)
        traceback.clear_frames(error.__traceback__)
        error.__traceback__ = None
        pending += (error.__context__, error.__cause__)
        if isinstance(error, BaseExceptionGroup):
            pending += error.exceptions


def _known_error(error: BaseException, call: _Call) -> HeadraceError:
    """Return the error to report; a group is reported by its first known member."""
    if isinstance(error, HeadraceError):
        if error.reason is Reason.INTERNAL:
            _LOG.error("call failed", method=call.method, exc_info=error)
        return error
    if isinstance(error, DecodeError):
        return HeadraceError(
            Reason.MALFORMED_MESSAGE,
            f"the bytes are not a message of {call.method}, or a string in it is not UTF-8",
            method=call.method,
        )
    if isinstance(error, BaseExceptionGroup):
        known = error.subgroup((HeadraceError, DecodeError))
        if known is not None:
            return _known_error(_first_leaf(known), call)
    log_id = uuid.uuid4().hex
    _LOG.error("call failed", method=call.method, log_id=log_id, exc_info=error)
    return HeadraceError(
        Reason.INTERNAL,
        f"a defect of the gateway; its log has the details under {log_id}",
        log_id=log_id,
    )


def _first_leaf(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _code_name(code: Any) -> str:
    # grpc.aio keeps a plain number or a StatusCode, depending on who set it.
    if isinstance(code, grpc.StatusCode):
        return code.name
    return next((known.name for known in grpc.StatusCode if known.value[0] == code), "UNKNOWN")
