"""``python -m mobilevit_kernels``: the command line."""

from mobilevit_kernels.cli import main

if __name__ == "__main__":
    main()
