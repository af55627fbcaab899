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
"""What lies behind the transparent parts; "none": the image had no transparency."""


class CaptionRequest(msgspec.Struct, frozen=True, gc=False):
    """One attempt at one item. ``temperature``/``seed`` replace the run's own for a new try."""

    lease: int
    file: str
    user: str
    system: str | None = None
    temperature: float | None = None
    seed: int | None = None


class Lease(msgspec.Struct, frozen=True, tag=True):
    """Requests that the worker now owes an answer for."""

    requests: tuple[CaptionRequest, ...]


class Stop(msgspec.Struct, frozen=True, tag=True):
    """Nothing more will come: shut the engine down and leave."""


class Cancel(msgspec.Struct, frozen=True, tag=True):
    """The answer to this lease is no longer wanted."""

    lease: int


class Ready(msgspec.Struct, frozen=True, tag=True):
    """The engine can take requests."""

    pid: int


class ImageFacts(msgspec.Struct, frozen=True, gc=False):
    """What was seen of the file: upright size in pixels before scaling, backdrop, content hash,
    and `duplicates.twin_key` of the hash and the prompt that went with it."""

    width: int
    height: int
    backdrop: Backdrop
    sha256: str
    twin_key: bytes


class ImageRead(msgspec.Struct, frozen=True, tag=True):
    """An image was read and goes on to the engine."""

    lease: int
    image: ImageFacts


class Beat(msgspec.Struct, frozen=True, tag=True):
    """The worker lives, and its engine has done something or has nothing to do."""


class Cancelled(msgspec.Struct, frozen=True, tag=True):
    """A lease that was to be cancelled is gone from the engine, without an answer."""

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
    """The engine answered. Whether the caption is good is the driver's decision, and so is what of
    the answer is the caption; ``structured``: the fields that the driver found in it, as JSON."""

    lease: int
    caption: str
    finish_reason: str | None
    prompt_tokens: int
    output_tokens: int
    image: ImageFacts
    timings: Timings
    structured: str | None = None


class Failed(msgspec.Struct, frozen=True, tag=True):
    """This attempt failed and the engine is well. ``retryable``: another try may end better;
    ``root_gone``: all images are away, as far as this worker can see."""

    lease: int
    kind: ItemKind
    reason: str
    retryable: bool = False
    image: ImageFacts | None = None
    timings: Timings = Timings()
    root_gone: bool = False


class EngineDown(msgspec.Struct, frozen=True, tag=True):
    """The engine did not start or has died; the worker leaves after this."""

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
    """The user has to change a setting; the parts of a `UsageError`."""

    field: str
    value: str | None
    remedy: str

    @staticmethod
    def of(error: UsageError) -> Refused:
        """What crosses the border in the place of an exception."""
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
