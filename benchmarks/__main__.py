"""``python -m benchmarks …`` is ``mobilevit-kernels bench …``."""

import sys

from mobilevit_kernels.cli import main

main(["bench", *sys.argv[1:]])
