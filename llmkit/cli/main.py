"""The command line. Every verb is thin, and imports what it needs inside: `--help` and `validate` never load torch."""

import gc
import os
import sys
from pathlib import Path
from types import TracebackType

from llmkit.cli.app import app
from llmkit.errors import Interrupted, LlmkitError

# Each registers its commands, in the order that `--help` lists them.
# isort: off
from llmkit.cli import training, rows, runs, about  # noqa: F401
# isort: on

LEAN_HEAP = "glibc.malloc.mxfast=0:glibc.malloc.tcache_count=0"
"""Has glibc join small chunks with their neighbours when they are freed, at once."""


def main() -> None:
    """Run the command line; llmkit's own errors end it with a sentence and their exit code."""
    if sys.argv[1:2] == ["run"]:
        _keep_heap_whole()
    # Nobody is told that llmkit runs: not by it, and not by the libraries that would.
    os.environ.update(HF_HUB_DISABLE_TELEMETRY="1", DO_NOT_TRACK="1", GRADIO_ANALYTICS_ENABLED="False")
    # Set before torch starts its threads: spinning ones make each other several times slower on a busy machine.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # pydantic would search every installed package for plugins, which takes as long as reading a recipe.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "1")
    # Imports make many objects that stay: looking for garbage between them is a tenth of the time of `--help`.
    gc.set_threshold(200_000, 20, 20)
    debug = "--debug" in sys.argv
    sys.argv = [argument for argument in sys.argv if argument != "--debug"]
    try:
        app()
    except LlmkitError as error:
        if debug:
            raise
        _print_error(error)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    finally:
        # typer has put its own there.
        sys.excepthook = _print_traceback


def _keep_heap_whole() -> None:
    """Start anew with `LEAN_HEAP`, which counts only when a process starts: on Linux with glibc, without a GPU.

    Small chunks that are kept for reuse leave holes between tensors on a CPU: 30 to 75% of the activations instead of
    17 to 30%. Whoever has set glibc's tunables is left alone.
    """
    has_gpu = any(Path(device).exists() for device in ("/dev/nvidiactl", "/dev/kfd"))
    # Where another program calls `main`, it is not llmkit's to start anew.
    own = sys.orig_argv[-len(sys.argv) + 1 :] == sys.argv[1:]
    if not own or not sys.platform.startswith("linux") or "GLIBC_TUNABLES" in os.environ or has_gpu:
        return
    import platform

    if platform.libc_ver()[0] == "glibc":
        os.environ["GLIBC_TUNABLES"] = LEAN_HEAP
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _print_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print what Python would, without secrets: errors quote addresses and headers."""
    import traceback

    from llmkit.recipe.secrets import redact

    sys.stderr.write(redact("".join(traceback.format_exception(kind, error, trace))))


def _print_error(error: LlmkitError) -> None:
    from rich.console import Console
    from rich.markup import escape

    from llmkit.recipe.secrets import redact

    text = redact(f"{error.where}: {error.what}" if error.where else error.what)
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    label = "" if isinstance(error, Interrupted) else "[bold red]error:[/bold red] "
    console.print(f"{label}{escape(text)}")
    if error.remedy:
        console.print(escape(redact(error.remedy)))
