"""``verify``: every stage and model on every available backend against float64."""

from __future__ import annotations

import click

from mobilevit_kernels import registry
from mobilevit_kernels import verify as contract
from mobilevit_kernels.cli import _common
from mobilevit_kernels.config import CONFIGS

__all__ = ["verify"]


@click.command()
@click.option(
    "--model",
    "models",
    type=click.Choice(list(CONFIGS)),
    multiple=True,
    help="Only these networks [default: all three]. May be given more than once.",
)
@click.option(
    "--backend",
    "backend_names",
    type=click.Choice(registry.BACKENDS),
    multiple=True,
    help="Only these backends [default: all available].",
)
@click.option(
    "--dtype",
    "dtype_names",
    type=click.Choice(list(_common.DTYPES)),
    multiple=True,
    help="Only these dtypes [default: all].",
)
@click.option("--size", type=click.IntRange(1, 4096), default=64, show_default=True, help="Image height and width.")
@click.option("--batch", type=click.IntRange(1, 4096), default=1, show_default=True, help="Images a batch.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of weights and inputs.")
@_common.device_option
@_common.json_option
def verify(
    models: tuple[str, ...],
    backend_names: tuple[str, ...],
    dtype_names: tuple[str, ...],
    size: int,
    batch: int,
    seed: int,
    device: str | None,
    as_json: bool,
) -> None:
    """Check every stage and whole network on every available backend against float64.

    Weights, BatchNorm statistics and inputs are random. A row passes where its relative L2 error against float64 is at
    most 2 times (whole networks: 1.3 times) that of the stock PyTorch computation in the same dtype; in float32, at
    most 1e-5. Exits 1 where a row fails.
    """
    where = _common.pick_device(device)
    available = contract.available(where)
    for name in backend_names:
        if name not in available:
            reason = registry.backends()[name].reason
            raise registry.BackendUnavailable(f"--backend: {name} cannot run on {where}: {reason}")
    dtypes = [_common.DTYPES[name] for name in dtype_names or _common.DTYPES]
    plan = contract.plan(models or tuple(CONFIGS), backend_names or tuple(available), dtypes, batch, size, where)
    results = [
        contract.check(job, where, seed) for job in _common.track(plan, f"verifying on {where}", total=len(plan))
    ]
    failed = [result for result in results if not result.passed]
    if as_json:
        _common.print_json({"device": str(where), "passed": not failed, "rows": [r.to_dict() for r in results]})
    else:
        _common.print_table(
            f"relative L2 error against float64 on {where}, {size}×{size}, batch {batch}",
            ["what", "backend", "dtype", "error", "stock", "ratio", "result"],
            [
                (
                    result.name,
                    result.backend,
                    str(result.dtype).removeprefix("torch."),
                    f"{result.error:.1e}",
                    f"{result.stock_error:.1e}",
                    f"{result.ratio:.2f}",
                    "ok" if result.passed else "FAILED",
                )
                for result in results
            ],
        )
        click.echo(f"{len(results) - len(failed)} passed, {len(failed)} failed")
    if failed:
        raise SystemExit(1)
