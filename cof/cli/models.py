"""`cof models`: what is supported."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.table import Table

from cof.cli.common import sentences

_SITES = {
    "decoder": "decoder",
    "qformer": "Q-Former",
    "mllama": "cross-attention",
    "kosmos2": "latent queries",
}
_SCALES = {
    "unit": "0..1",
    "percent": "0..100",
    "thousand": "0..1000",
    "loc1024": "0..1024",
    "cells32": "32 x 32 cells",
    "pixels": "pixels",
}


@sentences
def models() -> None:
    """List the supported model families, and the paper's settings."""
    from cof.families import FAMILIES
    from cof.settings import PRESETS

    console = Console()
    families = Table(
        title="Supported models", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0)
    )
    families.add_column("family", no_wrap=True)
    families.add_column("model_type", no_wrap=True)
    families.add_column("bias goes to", no_wrap=True)
    families.add_column("boxes", no_wrap=True)
    families.add_column("asked as", no_wrap=True)
    for family in FAMILIES:
        dialect = family.dialect
        families.add_row(
            family.name,
            "\n".join(family.model_types),
            _SITES[family.adapter],
            _SCALES[dialect.units] + (", yx" if dialect.order == "yxyx" else ""),
            dialect.name,
        )
    console.print(families)
    console.print(
        "Models of other types are tried as they load, where image tokens are a raster over the "
        "processed image: a warning says what is assumed of them, or a sentence what is missing."
    )
    presets = Table("preset", "model", "expand (alpha)", "strength (lambda)", title="Presets")
    for name, rows in PRESETS.items():
        for row in rows:
            presets.add_row(
                name, row.model, f"{row.settings.expand:g}", f"{row.settings.strength:g}"
            )
    console.print(presets)
