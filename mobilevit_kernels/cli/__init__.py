"""The command line: ``mobilevit-kernels …`` and ``python -m mobilevit_kernels …``.

Exit codes: 0 success, 1 a check failed, 2 a wrong argument or input (one line on stderr, no traceback).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import click

from mobilevit_kernels import __version__
from mobilevit_kernels.cli.bench import bench
from mobilevit_kernels.cli.classify import classify
from mobilevit_kernels.cli.counters import counters
from mobilevit_kernels.cli.demo import demo
from mobilevit_kernels.cli.evaluate import evaluate
from mobilevit_kernels.cli.info import info
from mobilevit_kernels.cli.tune import tune
from mobilevit_kernels.cli.verify import verify

__all__ = ["main"]


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="mobilevit-kernels")
def cli() -> None:
    """Fused kernels for MobileViT inference.

    Start with `demo` (a photograph through a stock and a fused model), `info` (what can run here) and `verify` (every
    stage against float64).
    """


for _command in (info, verify, bench, counters, tune, classify, evaluate, demo):
    cli.add_command(_command)


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Runs the command line and exits.

    Args:
        argv: arguments; None: the process's own.
    """
    try:
        code: Any = cli.main(
            args=None if argv is None else list(argv), prog_name="mobilevit-kernels", standalone_mode=False
        )
    except click.exceptions.NoArgsIsHelpError as shown:
        shown.show()
        code = 2
    except click.ClickException as error:
        _complain(error.format_message())
        code = 2
    except click.exceptions.Abort:
        _complain("interrupted")
        code = 130
    except (ValueError, TypeError, OSError, RuntimeError, ImportError) as error:
        if "MVK_TRACEBACK" in os.environ:
            raise
        _complain(str(error) or type(error).__name__)
        code = 2
    sys.exit(code if isinstance(code, int) else 0)


def _complain(message: str) -> None:
    click.echo("mobilevit-kernels: error: " + " ".join(message.split()), err=True)
