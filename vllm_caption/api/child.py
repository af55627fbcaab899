"""The process in which `caption` runs the job: a command line that answers with a message.

Invariant: it ends with the thread that called `caption`.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import NoReturn

import msgspec

from vllm_caption.commands.run import caption, parse_run
from vllm_caption.engines.executors.lifetime import end_with_parent
from vllm_caption.errors import (
    EXIT_INTERRUPTED,
    EXIT_OK,
    EXIT_STOPPED,
    EXIT_USAGE,
    CaptionJobError,
    UsageError,
    of_system,
)
from vllm_caption.formatting import encodable
from vllm_caption.messages import Refused, RunEnded, RunFailed, RunMessage
from vllm_caption.process import leave, prepare_process, print_bug


def main(parent: str, descriptor: str, *arguments: str) -> NoReturn:
    """Run one command line, and write one message to ``descriptor``."""
    end_with_parent(int(parent))
    sys.excepthook = print_bug
    answer = int(descriptor)
    os.set_inheritable(answer, False)
    exit_code = EXIT_OK
    message: RunMessage
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # see `_start` in run.py
        prepare_process()
        message = _run(arguments)
    except UsageError as error:
        exit_code, message = EXIT_USAGE, Refused.of(error)
    except CaptionJobError as error:
        exit_code, message = EXIT_STOPPED, RunFailed(encodable(str(error)))
    except OSError as error:
        known = of_system(error)
        if isinstance(known, UsageError):
            exit_code, message = EXIT_USAGE, Refused.of(known)
        else:
            exit_code, message = EXIT_STOPPED, RunFailed(encodable(str(known)))
    except KeyboardInterrupt:  # before the job's own handlers were in place
        leave(EXIT_INTERRUPTED)
    with open(answer, "wb") as pipe:
        pipe.write(msgspec.msgpack.encode(message))
    leave(exit_code)


def _run(arguments: tuple[str, ...]) -> RunMessage:
    outcome = caption(parse_run(arguments))
    if outcome.stopped:
        return RunFailed(encodable(outcome.stopped))
    stats, read = outcome.stats, outcome.read
    captioned = stats.done_before + stats.adopted + stats.captioned
    return RunEnded(
        exit_code=outcome.exit_code,
        items=stats.total,
        captioned=captioned,
        captioned_now=stats.captioned,
        failed=stats.failed,
        not_tried=stats.total - captioned - stats.failed,
        documents=read.counts.documents,
        skipped_documents=read.counts.skipped,
        failures=dict(stats.failures),
        flags=dict(stats.flags),
        seconds=outcome.seconds,
        prompt_tokens=stats.prompt_tokens,
        output_tokens=stats.output_tokens,
    )
