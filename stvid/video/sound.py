"""Takes the sound tracks of a source over into an mp4 file: unchanged, or encoded to AAC where players need that."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from fractions import Fraction

import av
from av.audio.frame import AudioFrame
from av.container import OutputContainer
from av.filter import Graph

logger = logging.getLogger(__name__)
# FFmpeg puts more into mp4 files (PCM, Vorbis, TrueHD), but many players expect only these there
_COPIED = frozenset(("aac", "mp3", "mp2", "ac3", "eac3", "alac", "flac", "opus"))
_LAYOUTS = frozenset(("mono", "stereo", "3.0", "4.0", "5.0", "5.1"))  # of AAC; others become stereo
_BITS_PER_CHANNEL = 80_000  # a second


class Clock:
    """Moves packets of one track to the clock of the target. Where that of the source jumps back, the sound goes on.

    Args:
        origin: seconds; this time of the source is 0 in the target.
    """

    def __init__(self, origin: Fraction):
        self.origin = origin
        self.back = 0  # ticks by which the source has jumped back
        self.latest: int | None = None
        self.following = 0  # behind the latest packet

    def move(self, packet: av.Packet) -> bool:
        """Changes the times of a packet; False if it has none."""
        if packet.dts is None or packet.pts is None:
            return False
        shift = self.back - round(self.origin / packet.time_base)
        if self.latest is not None and packet.dts + shift <= self.latest:
            self.back += self.following - packet.dts - shift
            shift = self.following - packet.dts
        packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
        self.latest, self.following = packet.dts, packet.dts + max(packet.duration or 0, 1)
        return True


class CopiedSound:
    """A track of the target that gets the packets of the source unchanged.

    Args:
        container: the target, without a packet yet.
        source: the track of the source.
        origin: see `Clock`.
    """

    def __init__(self, container: OutputContainer, source: av.AudioStream, *, origin: Fraction):
        self.stream = container.add_stream_from_template(source)
        self.clock = Clock(origin)

    def convert(self, packet: av.Packet | None) -> Iterator[av.Packet]:
        """Yields the packets of the target for one of the source; None behind the last of the source."""
        # an edit list hides packets: those before its start are needed to decode the first ones, those behind are not
        if packet is None or (packet.is_discard and (packet.pts or 0) >= 0) or not self.clock.move(packet):
            return
        packet.stream = self.stream
        yield packet


class EncodedSound:
    """A track of the target that gets the sound of the source as AAC; silence where the source has none or is damaged.

    The arguments and the method are those of `CopiedSound`.
    """

    def __init__(self, container: OutputContainer, source: av.AudioStream, *, origin: Fraction):
        context = source.codec_context
        rates = av.Codec("aac", "w").audio_rates or []
        self.rate = context.sample_rate if context.sample_rate in rates else 48_000
        self.layout = context.layout.name if context.layout.name in _LAYOUTS else "stereo"
        self.stream = container.add_stream("aac", rate=self.rate, layout=self.layout)
        self.stream.codec_context.bit_rate = _BITS_PER_CHANNEL * self.stream.codec_context.layout.nb_channels
        self.source, self.clock = source, Clock(origin)
        self.graph: Graph | None = None

    def convert(self, packet: av.Packet | None) -> Iterator[av.Packet]:
        if packet is not None and not self.clock.move(packet):
            return
        frames: list[AudioFrame] = []
        with suppress(av.FFmpegError):  # a damaged packet: the filter fills the gap
            frames = self.source.codec_context.decode(packet)
        for frame in frames:
            if frame.pts is not None:
                self.graph = self.graph or self._filter(frame)
                self.graph.push(frame)
                yield from self._encoded()
        if packet is None and self.graph is not None:
            self.graph.push(None)
            yield from self._encoded()
            yield from self.stream.encode(None)

    def _filter(self, first: AudioFrame) -> Graph:
        """A filter that fills gaps and gives the encoder the samples that it takes."""
        graph = Graph()
        source = graph.add_abuffer(
            sample_rate=first.sample_rate, format=first.format, layout=first.layout, time_base=first.time_base
        )
        taken = f"sample_fmts=fltp:sample_rates={self.rate}:channel_layouts={self.layout}"
        graph.link_nodes(
            source, graph.add("aresample", "async=1"), graph.add("aformat", taken), graph.add("abuffersink")
        )
        graph.configure()
        graph.set_audio_frame_size(self.stream.codec_context.frame_size or 1024)
        return graph

    def _encoded(self) -> Iterator[av.Packet]:
        assert self.graph is not None
        with suppress(av.BlockingIOError, av.EOFError):
            while True:
                frame = self.graph.pull()
                assert isinstance(frame, AudioFrame)
                yield from self.stream.encode(frame)


def add_sound(
    container: OutputContainer, path: str | os.PathLike[str], sources: Sequence[av.AudioStream], *, origin: Fraction
) -> dict[int, CopiedSound | EncodedSound]:
    """Adds a track for each sound track of the source; returns them by the number of the source's track.

    A track for which FFmpeg has no decoder is left out, with a warning.

    Args:
        container: an mp4 file without a packet yet.
        path: of the source, for the warning.
        sources: its sound tracks.
        origin: see `Clock`.
    """
    tracks: dict[int, CopiedSound | EncodedSound] = {}
    for source in sources:
        if source.codec_context is None or not source.codec_context.sample_rate:
            logger.warning("%s: sound track %d is left out: FFmpeg has no decoder for it", path, source.index)
            continue
        kind = CopiedSound if source.codec_context.codec.canonical_name in _COPIED else EncodedSound
        track = tracks[source.index] = kind(container, source, origin=origin)
        track.stream.metadata.update({key: text for key, text in source.metadata.items() if key == "language"})
        track.stream.disposition = source.disposition
    return tracks
