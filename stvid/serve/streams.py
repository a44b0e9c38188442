"""The socket `/stream`: a client sends frames and reads an answer after each; several clients share forward passes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from fastapi import FastAPI
from starlette.websockets import WebSocket, WebSocketDisconnect
from torch import Tensor

from stvid.deploy.live import live_hop
from stvid.deploy.pace import Pace
from stvid.deploy.segments import UNKNOWN
from stvid.deploy.steady_label import SteadyLabel
from stvid.deploy.stream import WINDOWS, step_together
from stvid.errors import InputError
from stvid.serve.batching import BatchFailed, ServiceStopping
from stvid.serve.service import Service
from stvid.serve.stream_protocol import (
    CLOSE_GOING_AWAY,
    CLOSE_INTERNAL_ERROR,
    CLOSE_TOO_LARGE,
    CLOSE_TRY_AGAIN_LATER,
    StreamError,
    StreamSettings,
    decode_frame,
    read_settings,
)
from stvid.serve.threads import in_thread

T = TypeVar("T")
log = logging.getLogger(__name__)
MAX_SETTINGS = 64 * 1024  # characters of the first message
MAX_WAITING = 64 * 2**20  # bytes of the frames of a client that wait for the model
SEND_SECONDS = 10.0  # a client that reads nothing for so long is given up


def add_streams(app: FastAPI, service: Service) -> None:
    """Adds the socket to the application."""
    open_sockets = service.open_sockets
    service.metrics.streams.set_function(lambda: len(open_sockets))

    @app.websocket("/stream")
    async def stream(socket: WebSocket) -> None:
        await socket.accept()
        try:
            with contextlib.suppress(WebSocketDisconnect):
                await _serve_socket(socket, service, open_sockets)
        finally:
            open_sockets.discard(socket)


async def _serve_socket(socket: WebSocket, service: Service, open_sockets: set[object]) -> None:
    """Answers a client until it goes; mistakes and failures are told before the socket is closed."""
    try:
        limit = service.options.max_streams
        if len(open_sockets) >= limit:
            raise StreamError(
                f"{limit} streams are open, and this service takes no more; try again later", CLOSE_TRY_AGAIN_LATER
            )
        open_sockets.add(socket)
        await _Connection(socket, service, await _first_message(socket, service)).run()
        return
    except StreamError as error:
        closing = error
    except InputError as error:  # the model cannot read streams
        closing = StreamError(str(error))
    except BatchFailed as error:
        closing = StreamError(str(error), CLOSE_INTERNAL_ERROR)
    except (WebSocketDisconnect, asyncio.CancelledError):
        raise
    except asyncio.TimeoutError:  # of `_send`: another message would wait, too
        log.info("a client of /stream reads no answers; its socket is given up")
        return
    except Exception:
        log.exception("a stream failed")
        closing = StreamError("the service failed; its log has the traceback", CLOSE_INTERNAL_ERROR)
    with contextlib.suppress(asyncio.TimeoutError):
        await _send(socket, {"event": "error", "detail": closing.detail})
        await asyncio.wait_for(socket.close(closing.code), SEND_SECONDS)


async def _send(socket: WebSocket, message: dict[str, Any]) -> None:
    text = json.dumps(message, allow_nan=False)  # in ASCII: names may hold bytes that are not UTF-8
    await asyncio.wait_for(socket.send_text(text), SEND_SECONDS)


async def _receive(socket: WebSocket, service: Service) -> str | bytes:
    """The next message; StreamError if none comes for a while."""
    seconds = service.options.idle_seconds
    try:
        message = await asyncio.wait_for(socket.receive(), seconds)
    except asyncio.TimeoutError as error:
        raise StreamError(f"no message for {seconds:g} s") from error
    if message["type"] == "websocket.disconnect":
        raise WebSocketDisconnect(message.get("code", 1005))
    content = message.get("bytes")
    return message["text"] if content is None else content


async def _first_message(socket: WebSocket, service: Service) -> StreamSettings:
    text = await _receive(socket, service)
    if not isinstance(text, str):
        raise StreamError("the first message must be text with the settings, before any frame")
    if len(text) > MAX_SETTINGS:
        raise StreamError(f"the first message has more than {MAX_SETTINGS} characters", CLOSE_TOO_LARGE)
    return read_settings(text, service.recognizer.trained, max_frame=service.options.max_frame)


@dataclass(frozen=True)
class _Frame:
    number: int  # counted from 0
    content: bytes
    arrived: float  # time.monotonic()


class _Inbox:
    """Frames that have arrived and wait for the model.

    Args:
        capacity: frames that may wait.
        drops: the oldest are dropped if there are more; else `put` waits, so that the client must.
    """

    def __init__(self, capacity: int, *, drops: bool):
        self.capacity, self.drops = capacity, drops
        self.dropped = 0
        self._frames: deque[_Frame] = deque()
        self._num_bytes = 0
        self._end: Exception | None = None
        self._changed = asyncio.Condition()

    async def put(self, frame: _Frame) -> None:
        async with self._changed:
            while self._frames and self._is_full(len(frame.content)):
                if self.drops:
                    self._num_bytes -= len(self._frames.popleft().content)
                    self.dropped += 1
                else:
                    await self._changed.wait()
            self._frames.append(frame)
            self._num_bytes += len(frame.content)
            self._changed.notify_all()

    def _is_full(self, num_bytes: int) -> bool:
        return len(self._frames) >= self.capacity or self._num_bytes + num_bytes > MAX_WAITING

    async def end(self, error: Exception) -> None:
        """No frame comes any more, for this reason."""
        async with self._changed:
            self._end = error
            self._changed.notify_all()

    async def take(self) -> list[_Frame]:
        """All frames that wait, at least one, oldest first; raises the error of `end` after the last ones."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._frames or self._end)
            if not self._frames:
                assert self._end is not None
                raise self._end
            frames = list(self._frames)
            self._frames.clear()
            self._num_bytes = 0
            self._changed.notify_all()
            return frames


class _Connection:
    """One client: its stream, its label, and the frames that wait.

    With `realtime`, the time of a frame is that of its arrival, and `Pace` chooses the frames that the model gets, as
    for a camera. Else frame `i` has the time `i / fps`, and the model gets each of them.
    """

    def __init__(self, socket: WebSocket, service: Service, settings: StreamSettings):
        self.socket, self.service, self.settings = socket, service, settings
        trained, fps = service.recognizer.trained, settings.fps
        self.stream = service.recognizer.stream(fps, hop=live_hop(trained, fps))
        self.label = SteadyLabel(
            trained.class_names,
            threshold=settings.threshold,
            min_duration=settings.min_duration,
            background=settings.background,
        )
        self.pace = Pace(fps, period=self.stream.hop or 1)
        capacity = 1
        if (
            self.stream.mode == WINDOWS and settings.realtime
        ):  # keeping frames takes no time, also while one is computed
            capacity, self.pace.load = self.stream.first, 0.0
        self.inbox = _Inbox(capacity, drops=settings.realtime)
        self.began = time.monotonic()
        self.latest: tuple[str | None, float] = (None, 0.0)  # class and its probability

    async def run(self) -> None:
        """Answers frames until the client goes (WebSocketDisconnect) or makes a mistake (StreamError)."""
        stream = self.stream
        names = list(stream.trained.class_names)
        start = {"class_names": names, "mode": stream.mode, "first": stream.first, "threshold": self.settings.threshold}
        await _send(self.socket, {"event": "start", **start})
        receiver = asyncio.create_task(self._receive_frames())
        try:
            while True:
                await self._answer(await self.inbox.take())
        finally:
            receiver.cancel()
            await asyncio.wait([receiver])

    async def _receive_frames(self) -> None:
        number, limit = 0, self.service.options.max_frame
        try:
            while True:
                content = await _receive(self.socket, self.service)
                if isinstance(content, str):
                    raise StreamError("text in the middle of the frames; other settings need a new socket")
                if len(content) > limit:
                    raise StreamError(
                        f"frame {number} has {len(content)} bytes; at most {limit} are taken", CLOSE_TOO_LARGE
                    )
                await self.inbox.put(_Frame(number, content, time.monotonic()))
                number += 1
        except Exception as error:  # raised by `take`
            await self.inbox.end(error)

    async def _answer(self, frames: list[_Frame]) -> None:
        """Gives frames to the model, and answers each of them; only for the last one it computes."""
        inputs: list[Tensor] = []
        for frame in frames:
            began = time.monotonic()
            seconds, times = self._time_of(frame)
            if times is None:  # after a gap
                self._restart()
                inputs, times = [], 1
            inputs += await in_thread(self.service.pools.frames, partial(self._add, frame, times))
            if inputs and frame is frames[-1]:
                await self._run_model(inputs)
                if (probabilities_K := self.stream.probabilities_K) is not None:
                    self.latest = self.label.update(probabilities_K, seconds)
            if self.settings.realtime and self.stream.mode != WINDOWS:
                self.pace.measure(time.monotonic() - began, times)
            await self._send_answer(frame)

    def _time_of(self, frame: _Frame) -> tuple[float, int | None]:
        """Seconds of a frame since the start, and how often the model gets it; None: once, after a new start."""
        if not self.settings.realtime:
            return frame.number / self.settings.fps, 1
        seconds = frame.arrived - self.began
        return seconds, self.pace.repetitions(seconds)

    def _restart(self) -> None:
        self.stream.restart()
        self.label.reset()
        if self.latest[0] is not None:
            self.latest = (UNKNOWN, 0.0)

    def _add(self, frame: _Frame, times: int) -> list[Tensor]:
        """What the model gets with this frame; called in another thread, because decoding takes milliseconds."""
        max_pixels = self.stream.trained.max_pixels
        picture_HWC = decode_frame(frame.content, frame.number, self.settings, max_pixels=max_pixels)
        prepared_1CHW = self.stream.prepare(picture_HWC)
        return [model_input for _ in range(times) for model_input in self.stream.add(prepared_1CHW)]

    async def _run_model(self, inputs: list[Tensor]) -> None:
        """Waits for the model's answer, which it computes together with those for other clients."""
        service, stream = self.service, self.stream
        if stream.mode == WINDOWS:  # the latest one; they go with the clips of files
            logits_VK = await self._batched(lambda: service.submit_clips(inputs[-1][None]))
            stream.probabilities_K = logits_VK[0].softmax(dim=0)
        else:
            step = (stream, inputs)
            await self._batched(lambda: service.batcher.submit(step_together, step, key=stream.key))

    async def _batched(self, submit: Callable[[], Future[T]]) -> T:
        """The result of a job of the batcher."""
        try:
            return await asyncio.wrap_future(submit())
        except ServiceStopping:
            raise StreamError("the service stops", CLOSE_GOING_AWAY) from None

    async def _send_answer(self, frame: _Frame) -> None:
        probabilities_K, (label, probability) = self.stream.probabilities_K, self.latest
        answer = {
            "event": "answer",
            "frame": frame.number,
            "class": label,
            "probability": probability,
            "probabilities": None if probabilities_K is None else probabilities_K.tolist(),
            "dropped": self.inbox.dropped,
            "latency_ms": round(1000 * (time.monotonic() - frame.arrived), 2),
        }
        self.service.metrics.frames.inc()
        await _send(self.socket, answer)
