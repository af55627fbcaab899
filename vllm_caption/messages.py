"""Everything that crosses a process boundary, one frozen struct per message.

Driver → worker: Lease, Cancel, Stop.  Worker → driver: Ready, Beat, ImageRead, Cancelled,
Captioned, Failed, EngineDown.
Preflight → driver: FlagsChecked or Refused.
Run → `vllm_caption.caption`, which waits in another process: RunEnded, RunFailed or Refused.
Invariants: no pixels (workers read the images), no exception objects (errors travel as text), and
every answer carries its lease, so that a late or duplicate answer is recognised.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from vllm_caption.errors import ItemKind, UsageError
from vllm_caption.formatting import encodable

Backdrop = Literal["none", "white", "black", "gray"]
"""What transparent parts were composited onto; "none": the image had no transparency."""


class CaptionRequest(msgspec.Struct, frozen=True, gc=False):
    """One attempt at one item. A retry overrides the run's ``temperature`` and ``seed``."""

    lease: int
    file: str
    user: str
    system: str | None = None
    temperature: float | None = None
    seed: int | None = None


class Lease(msgspec.Struct, frozen=True, tag=True):
    """Requests, each of which the worker must answer."""

    requests: tuple[CaptionRequest, ...]


class Stop(msgspec.Struct, frozen=True, tag=True):
    """No more requests will come: shut the engine down and exit."""


class Cancel(msgspec.Struct, frozen=True, tag=True):
    """The answer to this lease is no longer needed."""

    lease: int


class Ready(msgspec.Struct, frozen=True, tag=True):
    """The engine is ready for requests."""

    pid: int


class ImageFacts(msgspec.Struct, frozen=True, gc=False):
    """Facts about the file: upright size in pixels before scaling, backdrop, content hash, and
    `duplicates.twin_key` of the hash and the prompt."""

    width: int
    height: int
    backdrop: Backdrop
    sha256: str
    twin_key: bytes


class ImageRead(msgspec.Struct, frozen=True, tag=True):
    """An image was read and is on its way to the engine."""

    lease: int
    image: ImageFacts


class Beat(msgspec.Struct, frozen=True, tag=True):
    """The worker is alive, and its engine is making progress or idle."""


class Cancelled(msgspec.Struct, frozen=True, tag=True):
    """A cancelled lease has left the engine; no answer follows."""

    lease: int


class Timings(msgspec.Struct, frozen=True, gc=False):
    """Seconds that an attempt waited for a preparing thread, was prepared, waited for the rendering
    thread (decoded, or held back because it is behind), was rendered, and was generated."""

    queue_s: float = 0.0
    prepare_s: float = 0.0
    render_queue_s: float = 0.0
    render_s: float = 0.0
    generate_s: float = 0.0


class Captioned(msgspec.Struct, frozen=True, tag=True):
    """The engine answered. The driver decides which part of the answer is the caption, and whether
    to accept it; ``structured``: the fields found in the answer, as JSON."""

    lease: int
    caption: str
    finish_reason: str | None
    prompt_tokens: int
    output_tokens: int
    image: ImageFacts
    timings: Timings
    structured: str | None = None


class Failed(msgspec.Struct, frozen=True, tag=True):
    """This attempt failed, but the engine is fine. ``retryable``: a retry may succeed;
    ``root_gone``: this worker can no longer see any image."""

    lease: int
    kind: ItemKind
    reason: str
    retryable: bool = False
    image: ImageFacts | None = None
    timings: Timings = Timings()
    root_gone: bool = False


class EngineDown(msgspec.Struct, frozen=True, tag=True):
    """The engine did not start, or died; the worker exits after this message."""

    error: str


class FlagsChecked(msgspec.Struct, frozen=True, tag=True):
    """vLLM accepts the flags. ``engine_args``: what every engine is started with, pickled.

    ``bounds_pixels``: the model's processor scales by pixel count, within our bounds; ``note``:
    what the user should know before the run.
    """

    engine_args: bytes
    bounds_pixels: bool
    note: str = ""


class Refused(msgspec.Struct, frozen=True, tag=True):
    """The parts of a `UsageError`: the user has to change a setting."""

    field: str
    value: str | None
    remedy: str

    @staticmethod
    def of(error: UsageError) -> Refused:
        """The message to send instead of the exception."""
        value = None if error.value is None else encodable(str(error.value))
        return Refused(error.field, value, encodable(error.remedy))

    def as_error(self) -> UsageError:
        """The exception that it was made from."""
        return UsageError(self.field, self.value, self.remedy)


class RunEnded(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A run ended by itself or was interrupted; the counts are those of `api.run.RunResult`."""

    exit_code: int
    items: int
    captioned: int
    captioned_now: int
    failed: int
    not_tried: int
    documents: int
    skipped_documents: int
    failures: dict[str, int]
    flags: dict[str, int]
    seconds: float
    prompt_tokens: int
    output_tokens: int


class RunFailed(msgspec.Struct, frozen=True, tag=True):
    """A run could not continue."""

    error: str


DriverMessage = Lease | Cancel | Stop
WorkerMessage = Ready | Beat | ImageRead | Cancelled | Captioned | Failed | EngineDown
PreflightMessage = FlagsChecked | Refused
RunMessage = RunEnded | RunFailed | Refused
