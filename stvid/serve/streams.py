"""The socket `/stream`: a client sends frames and reads an answer after each; several clients share forward passes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from functools import partial
from typing import Any

from fastapi import FastAPI
from starlette.websockets import WebSocket, WebSocketDisconnect
from torch import Tensor

from stvid.deploy.live_stream import LiveStream
from stvid.deploy.steady_label import SteadyLabel
from stvid.deploy.stream import WINDOWS, step_together
from stvid.errors import InputError
from stvid.serve.batching import BatchFailed, ServiceStopping
from stvid.serve.inbox import Inbox, SentFrame
from stvid.serve.service import QueueFull, Service
from stvid.serve.stream_protocol import (
    CLOSE_GOING_AWAY,
    CLOSE_INTERNAL_ERROR,
    CLOSE_TOO_LARGE,
    CLOSE_TRY_AGAIN_LATER,
    StreamError,
    StreamSettings,
    check_cost,
    decode_frame,
    read_settings,
)
from stvid.serve.threads import in_thread

log = logging.getLogger(__name__)
MAX_SETTINGS = 64 * 1024  # characters of the first message
SEND_SECONDS = 10.0  # after which a client that reads nothing is cut off


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
    """Answers a client until it goes. It learns of mistakes and failures before its socket is closed."""
    try:
        limit = service.options.max_streams
        if len(open_sockets) >= limit:
            detail = f"{limit} streams are open, and this service takes no more; try again later"
            raise StreamError(detail, CLOSE_TRY_AGAIN_LATER)
        open_sockets.add(socket)
        connection = _Connection(socket, service, await _first_message(socket, service))
        with service.reserved(connection.num_pixels):
            await connection.run()
        return
    except StreamError as error:
        closing = error
    except InputError as error:  # the model cannot read streams
        closing = StreamError(str(error))
    except BatchFailed as error:
        closing = StreamError(str(error), CLOSE_INTERNAL_ERROR)
    except QueueFull as error:
        closing = StreamError(f"too much to do: {error}; try again later", CLOSE_TRY_AGAIN_LATER)
    except ServiceStopping:
        closing = StreamError("the service stops", CLOSE_GOING_AWAY)
    except (WebSocketDisconnect, asyncio.CancelledError):
        raise
    except asyncio.TimeoutError:  # of `_send`: another message would wait, too
        log.info("a client of /stream reads no answers; its socket is closed")
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


class _Connection:
    """One client: its stream, its label, and the frames that wait.

    With `realtime`, the time of a frame is that of its arrival, and `Pace` chooses the frames that the model gets, as
    for a camera. A model that reads windows gets all frames, but a window only of the newest ones: the inbox keeps the
    others while one is computed. Without `realtime`, frame `i` has the time `i / fps`, and the model gets each of them.
    """

    def __init__(self, socket: WebSocket, service: Service, settings: StreamSettings):
        self.socket, self.service, self.settings = socket, service, settings
        label = SteadyLabel(
            service.recognizer.trained.class_names,
            threshold=settings.threshold,
            min_duration=settings.min_duration,
            background=settings.background,
        )
        self.live = LiveStream(
            service.recognizer.trained,
            fps=settings.fps,
            label=label,
            runner=service.recognizer.runner,
            waits=not settings.realtime,
            start=service.stream_start,
        )
        self.num_pixels = check_cost(self.live.stream)
        self.keeps_all = settings.realtime and self.live.stream.mode == WINDOWS
        if self.keeps_all:
            self.live.pace.load = 0.0  # to keep a frame takes no time, also while a window is computed
        capacity = self.live.stream.first if self.keeps_all else 1
        self.inbox = Inbox(capacity, drops=settings.realtime)
        self.began = time.monotonic()

    async def run(self) -> None:
        """Answers frames until the client goes (WebSocketDisconnect) or makes a mistake (StreamError)."""
        stream = self.live.stream
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
                    detail = f"frame {number} has {len(content)} bytes; at most {limit} are taken"
                    raise StreamError(detail, CLOSE_TOO_LARGE)
                await self.inbox.put(SentFrame(number, content, time.monotonic()))
                number += 1
        except Exception as error:  # raised by `take`
            await self.inbox.end(error)

    async def _answer(self, frames: list[SentFrame]) -> None:
        """Gives frames to the model, and answers each of them; only for the last one it computes."""
        inputs: list[Tensor] = []
        for frame in frames:
            began = time.monotonic()
            seconds = frame.arrived - self.began if self.settings.realtime else frame.number / self.settings.fps
            num_restarts = self.live.restarts
            times = self.live.repetitions(seconds)
            if self.live.restarts > num_restarts:
                inputs = []
            inputs += await in_thread(self.service.pools.frames, partial(self._add, frame, times))
            if inputs and frame is frames[-1]:
                await self._run_model(inputs)
                if (probabilities_K := self.live.stream.probabilities_K) is not None:
                    self.live.answer(probabilities_K, seconds)
            if self.settings.realtime and not self.keeps_all:
                self.live.pace.measure(time.monotonic() - began, times)
            await self._send_answer(frame)

    def _add(self, frame: SentFrame, times: int) -> list[Tensor]:
        """What the model gets with this frame; called in another thread, because decoding takes milliseconds."""
        stream = self.live.stream
        max_pixels = stream.trained.max_pixels
        picture_HWC = decode_frame(frame.content, frame.number, self.settings, max_pixels=max_pixels)
        prepared_1CHW = stream.prepare(picture_HWC)
        inputs: list[Tensor] = []
        for _ in range(times):
            inputs += stream.add(prepared_1CHW)
            if stream.mode == WINDOWS:
                inputs = inputs[-1:]  # the latest window
        return inputs

    async def _run_model(self, inputs: list[Tensor]) -> None:
        """Waits for the model's answer, which it computes together with those for other clients."""
        service, stream = self.service, self.live.stream
        if stream.mode == WINDOWS:  # the latest one; they go with the clips of files
            logits_VK = await asyncio.wrap_future(service.submit_clips(inputs[-1][None]))
            stream.probabilities_K = logits_VK[0].softmax(dim=0)
            return
        for frame_CHW in inputs:  # one after the other: steps of other clients come in between
            step = (stream, [frame_CHW])
            await asyncio.wrap_future(service.batcher.submit(step_together, step, key=stream.key))

    async def _send_answer(self, frame: SentFrame) -> None:
        probabilities_K, (label, probability) = self.live.stream.probabilities_K, self.live.latest
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
