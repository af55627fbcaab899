"""Everything that crosses a process border, one frozen struct per message.

Driver → worker: Lease, Cancel, Stop.  Worker → driver: Ready, Beat, ImageRead, Cancelled,
Captioned, Failed, EngineDown.
Preflight → driver: FlagsChecked or Refused.
Run → `vllm_caption.caption`, which waits for it in another process: RunEnded, RunFailed or Refused.
Invariants: no pixels (a worker reads its own images), no exception objects (errors travel as
text), and every answer carries the lease it answers, so a late or doubled one is recognised.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from vllm_caption.errors import ItemKind, UsageError
from vllm_caption.formatting import encodable

Backdrop = Literal["none", "white", "black", "gray"]
"""What transparent parts were composited onto; "none": the image had no transparency."""


class CaptionRequest(msgspec.Struct, frozen=True, gc=False):
    """One attempt at one item. ``temperature`` and ``seed`` replace those of the run in a retry."""

    lease: int
    file: str
    user: str
    system: str | None = None
    temperature: float | None = None
    seed: int | None = None


class Lease(msgspec.Struct, frozen=True, tag=True):
    """Requests that the worker must answer, each one."""

    requests: tuple[CaptionRequest, ...]


class Stop(msgspec.Struct, frozen=True, tag=True):
    """No more requests will come: shut the engine down and exit."""


class Cancel(msgspec.Struct, frozen=True, tag=True):
    """The answer to this lease is no longer needed."""

    lease: int


class Ready(msgspec.Struct, frozen=True, tag=True):
    """The engine can take requests."""

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
    """The worker is alive, and its engine makes progress or has nothing to do."""


class Cancelled(msgspec.Struct, frozen=True, tag=True):
    """A cancelled lease has left the engine, without an answer."""

    lease: int


class Timings(msgspec.Struct, frozen=True, gc=False):
    """Seconds an attempt waited for a thread that prepares, was prepared, waited for the one thread
    that renders, was rendered, and was generated."""

    queue_s: float = 0.0
    prepare_s: float = 0.0
    render_queue_s: float = 0.0
    render_s: float = 0.0
    generate_s: float = 0.0


class Captioned(msgspec.Struct, frozen=True, tag=True):
    """The engine answered. The driver decides which part of the answer is the caption, and whether
    it is good; ``structured``: the fields that it found in the answer, as JSON."""

    lease: int
    caption: str
    finish_reason: str | None
    prompt_tokens: int
    output_tokens: int
    image: ImageFacts
    timings: Timings
    structured: str | None = None


class Failed(msgspec.Struct, frozen=True, tag=True):
    """This attempt failed, but the engine is fine. ``retryable``: another try may succeed;
    ``root_gone``: this worker can see no image at all any more."""

    lease: int
    kind: ItemKind
    reason: str
    retryable: bool = False
    image: ImageFacts | None = None
    timings: Timings = Timings()
    root_gone: bool = False


class EngineDown(msgspec.Struct, frozen=True, tag=True):
    """The engine did not start, or has died; the worker exits after this."""

    error: str


class FlagsChecked(msgspec.Struct, frozen=True, tag=True):
    """vLLM takes the flags. ``engine_args``: what every engine is started with, pickled.

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
        """What is sent in place of the exception."""
        value = None if error.value is None else encodable(str(error.value))
        return Refused(error.field, value, encodable(error.remedy))

    def as_error(self) -> UsageError:
        """The exception again."""
        return UsageError(self.field, self.value, self.remedy)


class RunEnded(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A run has ended by itself or was interrupted; its counts are those of `api.run.RunResult`."""

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
