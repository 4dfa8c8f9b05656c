"""A map from site codes to institutions: several codes can be one place.

In TCGA the site of a barcode is the tissue source site, and an institution that sent several
cancers has several codes (https://gdc.cancer.gov/resources-tcga-users/tcga-code-tables).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import pandas as pd

from splits.errors import InputError
from splits.identity.table import read_cells

__all__ = ["merge", "read"]

_CODES: Final = ("tss", "tsscode", "code", "sitecode", "tissuesourcesite", "tissuesourcesitecode")
_INSTITUTIONS: Final = (
    *("institution", "sourcesite", "site", "siteid", "hospital", "center", "centre"),
    "submittingsite",
)


def read(path: Path) -> dict[str, str]:
    """Read a site map: a table with a column of codes and a column of institutions.

    The columns are recognised by name (``TSS, site`` as slideflow has it, ``TSS Code, Source Site``
    as the archive has it); a table of two columns is otherwise read as code, institution.

    Returns:
        Code to institution, both as text.

    Raises:
        InputError: The file is no such table, or a code has two institutions.
    """
    table = read_cells(path)
    keys = {re.sub(r"[\W_]", "", name.lower()): name for name in table.columns}
    code = next((keys[key] for key in _CODES if key in keys), None)
    place = next((keys[key] for key in _INSTITUTIONS if key in keys), None)
    if (code is None or place is None) and len(table.columns) == 2:
        code, place = table.columns
    if code is None or place is None:
        message = (
            f"site map {path} has the columns {', '.join(table.columns)}: one for the code (tss, "
            "code) and one for the institution (institution, site) are needed"
        )
        raise InputError(message)
    pairs = table[[code, place]].apply(lambda column: column.str.strip())
    pairs = pairs[(pairs != "").all(axis=1)].drop_duplicates()
    repeated = sorted(pairs.loc[pairs[code].duplicated(), code].unique())
    if repeated:
        message = (
            f"site map {path} gives {len(repeated)} code(s) two institutions, the first is "
            f"{repeated[0]!r}"
        )
        raise InputError(message)
    if pairs.empty:
        message = f"site map {path} has no code with an institution"
        raise InputError(message)
    return dict(zip(pairs[code], pairs[place], strict=True))


def merge(site_ids: pd.Series, institutions: Mapping[str, str]) -> tuple[pd.Series, dict[str, Any]]:
    """Replace site codes by their institutions; a code that the map lacks stays.

    Args:
        site_ids: Site of every tile, null where unknown.
        institutions: What `read` returned.

    Returns:
        The sites, and a report: ``codes`` and ``institutions`` (how many sites before and after),
        ``mapped`` (codes with an institution) and ``unmapped`` (those without, sorted). A site that
        is an institution of the map already counts as mapped.
    """
    merged = site_ids.map(institutions).astype(site_ids.dtype).fillna(site_ids)
    found = {str(site) for site in site_ids.dropna().unique()}
    unmapped = sorted(found - set(institutions) - set(institutions.values()))
    return merged, {
        "codes": len(found),
        "institutions": int(merged.nunique()),
        "mapped": len(found) - len(unmapped),
        "unmapped": unmapped,
    }
