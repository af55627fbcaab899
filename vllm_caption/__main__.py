"""``python -m vllm_caption``."""

import signal

if __name__ == "__main__":
    # While modules are loaded, Ctrl+C ends the process without a traceback.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    from vllm_caption.cli import command

    command()
