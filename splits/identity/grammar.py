"""What a single file name says: a registry of small grammars, each naming its source.

A grammar returns a `Name` only where the identity is really in the name. A false identity is worse
than none, so that every pattern is anchored and refuses what merely looks like one.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from splits.identity import exporter
from splits.identity.name import Name, barcode, clean, split_fragment, whole

__all__ = ["ARCHIVE", "GRAMMARS", "STRONG", "WEAK", "Grammar", "Name", "describe", "parse"]

ARCHIVE: Final = 0.99
"""Confidence of ids that an archive issues and that nothing else looks like."""
STRONG: Final = 0.95
"""Confidence of ids that other names could look like."""
WEAK: Final = 0.8
"""Confidence of names that are believed only after a folder-wide test."""


def parse(name: str) -> Name | None:
    """What ``name`` (a path or a file name) says; ``None`` where it says nothing.

    A result of grammar ``"none"`` carries coordinates and no slide. Weak grammars answer too: they
    are to be believed only for a folder that passes the test of `splits.identity.folder`.
    """
    path = clean(split_fragment(name)[0])
    for grammar in GRAMMARS.values():
        found = grammar.read(path)
        if found is not None:
            return found
    return exporter.histolab(path)


def describe(name: str) -> dict[str, str]:
    """``name`` and what it says as text, with grammar ``none`` where it says nothing."""
    return {"name": name, **(parse(name) or Name("none")).printed()}


@dataclass(frozen=True)
class Grammar:
    """A registered grammar: its name, how far its ids are believed, and the function."""

    name: str
    confidence: float
    function: Callable[[str], Name | None]

    def read(self, path: str) -> Name | None:
        """What a cleaned path says under this grammar."""
        found = self.function(path)
        if found is None:
            return None
        return replace(found, grammar=self.name, confidence=self.confidence)


_X, _Y = r"(?P<x>\d{1,9})", r"(?P<y>\d{1,9})"
# An augmentation script's digit or an encoded slash may stand before an id, a letter may not.
_START = r"(?:(?<![A-Za-z])|(?<=%2F)|(?<=%5C))"
_TCGA = re.compile(
    rf"{_START}(?P<patient>TCGA(?P<dash>[-_ ])(?P<site>[A-Z0-9]{{2}})(?P=dash)[A-Z0-9]{{4}})"
    r"(?P<section>(?:(?P=dash)\d\d[A-Z]?(?:(?P=dash)\d\d[A-Z]?)?)?(?P=dash)(?:DX|TS|BS|MS)[A-Z0-9]{1,2}"
    r"|(?P=dash)\d\d[A-Z](?:(?P=dash)\d\d[A-Z]?)?)?(?![A-Za-z0-9])",
    re.I | re.ASCII,
)
_CPTAC = re.compile(
    rf"{_START}(?P<patient>C3[LN](?P<dash>[-_])\d{{5}})(?P<section>(?P=dash)\d\d)?(?![A-Za-z0-9])",
    re.I | re.ASCII,
)
_GTEX = re.compile(
    rf"{_START}(?P<patient>GTEX(?P<dash>-)[A-Z0-9]{{4,5}})(?P<section>-\d{{4}})?(?![A-Za-z0-9])",
    re.I | re.ASCII,
)
_CAMELYON17 = re.compile(
    r"(?<![A-Za-z0-9])(?P<patient>patient_\d{3})(?P<section>_node_\d)(?![A-Za-z0-9])",
    re.I | re.ASCII,
)
_CAMELYON16 = re.compile(
    r"(?<![A-Za-z0-9])(?P<patient>(?:tumor|normal|test)_\d{3})(?P<section>)(?![A-Za-z0-9])",
    re.I | re.ASCII,
)
_BRACS = re.compile(
    r"(?<![A-Za-z0-9])(?P<patient>BRACS_\d{1,6})(?P<section>)(?:_(?P<region>[A-Z]+_\d+))?"
    r"(?![A-Za-z0-9])",
    re.ASCII,
)
_BREAKHIS = re.compile(
    r"\d{0,3}SOB_[BM]_[A-Z]+[-_](?P<slide>\d\d-\d{3,6}[A-Z]*)-\d{2,3}-\d{3}(?:_\d{1,3})?"
)
_IDC = re.compile(rf"(?P<slide>\d+)_idx\d+_x{_X}_y{_Y}_class[01]")
_KATHER = re.compile(
    r"[0-9A-F]+_(?P<slide>CRC-Prim-HE-\d\d)(?:_?(?P<region>[0-9A-Za-z]+))?"
    rf"\.tif_Row_{_Y}_Col_{_X}"
)
_SICAP = re.compile(
    rf"(?P<slide>[0-9A-Za-z]+)_Block_Region_(?P<region>\d+)_\d+_\d+_xini_{_X}_yini_{_Y}"
)
_PANDA = re.compile(r"(?P<slide>[0-9a-f]{32})_\d{1,4}")
_OSTEOSARCOMA = re.compile(r"(?P<patient>Case-\d+)-(?P<slide>(?:[A-Z]\d+-)+\d+)-\d+")
_UNITOPATHO = re.compile(
    r"(?P<slide>(?P<patient>\d+)-[A-Z]\d+)-[A-Z.]+\.ndpi_ROI__mpp(?P<mpp>\d\.\d+)"
    rf"_reg(?P<region>\d+)_crop_sk\d+_\({_X},{_Y},\d+,\d+\)"
)
_UCSB = re.compile(r"(?P<slide>(?P<batch>ytma\d+_\d{6})_(?:benign|malignant)\d+)(?:_ccd)?")


def _tcga(path: str) -> Name | None:
    """TCGA slide barcode (https://docs.gdc.cancer.gov/Encyclopedia/pages/TCGA_Barcode/).

    The site is the tissue source site; a short barcode stands for the patient.
    """
    return barcode(_TCGA, path)


def _cptac(path: str) -> Name | None:
    """CPTAC-3 case and slide ids (The Cancer Imaging Archive), such as ``C3L-00189-21``."""
    return barcode(_CPTAC, path)


def _gtex(path: str) -> Name | None:
    """GTEx donor and tissue ids (https://gtexportal.org), such as ``GTEX-1117F-0126``."""
    return barcode(_GTEX, path)


def _camelyon17(path: str) -> Name | None:
    """CAMELYON17 (Bandi et al. 2019): ``patient_004_node_4``."""
    return _lower(barcode(_CAMELYON17, path))


def _camelyon16(path: str) -> Name | None:
    """CAMELYON16 (Ehteshami Bejnordi et al. 2017): ``tumor_076``, ``normal_001``, ``test_001``."""
    return _lower(barcode(_CAMELYON16, path))


def _lower(name: Name | None) -> Name | None:
    """Ids that the first release of a set wrote with capitals."""
    if name is None or name.slide is None:
        return None
    slide = name.slide.lower()
    patient = name.patient.lower() if name.patient is not None else slide
    return replace(name, patient=patient, slide=slide)


def _bracs(path: str) -> Name | None:
    """BRACS (Brancati et al. 2022): ``BRACS_<slide>_<class>_<roi>``; the class is no identity."""
    return barcode(_BRACS, path)


def _breakhis(path: str) -> Name | None:
    """BreaKHis (Spanhol et al. 2016): ``SOB_<B|M>_<type>-<year>-<slide>-<magnification>-<n>``."""
    return whole(_BREAKHIS, path)


def _idc(path: str) -> Name | None:
    """IDC patches (Janowczyk and Madabhushi 2016): ``<patient>_idx5_x<x>_y<y>_class<c>``."""
    return whole(_IDC, path)


def _kather2016(path: str) -> Name | None:
    """Colorectal textures (Kather et al. 2016); a letter or number after the slide is a region."""
    return whole(_KATHER, path)


def _sicap(path: str) -> Name | None:
    """SICAPv2 (Silva-Rodriguez et al. 2020): ``<slide>_Block_Region_<r>_<i>_<j>_xini_<x>_…``."""
    return whole(_SICAP, path)


def _panda(path: str) -> Name | None:
    """PANDA (Bulten et al. 2022): 32 hexadecimal digits and a running number."""
    return whole(_PANDA, path)


def _osteosarcoma(path: str) -> Name | None:
    """Osteosarcoma-Tumor-Assessment (Leavey et al. 2019, TCIA): ``Case-3-A15-25441-4885``."""
    return whole(_OSTEOSARCOMA, path)


def _unitopatho(path: str) -> Name | None:
    """UniToPatho (Barbano et al. 2021): patient, block, class, mpp, region and position."""
    return whole(_UNITOPATHO, path)


def _ucsb(path: str) -> Name | None:
    """UCSB/Bisque breast benchmark (Gelasca et al. 2008); the array and date are the scan batch."""
    return whole(_UCSB, path)


GRAMMARS: Final[dict[str, Grammar]] = {
    grammar.name: grammar
    for grammar in (
        Grammar("tcga", ARCHIVE, _tcga),
        Grammar("cptac", ARCHIVE, _cptac),
        Grammar("gtex", ARCHIVE, _gtex),
        Grammar("camelyon17", ARCHIVE, _camelyon17),
        Grammar("bracs", ARCHIVE, _bracs),
        Grammar("breakhis", ARCHIVE, _breakhis),
        Grammar("idc", ARCHIVE, _idc),
        Grammar("kather2016", ARCHIVE, _kather2016),
        Grammar("osteosarcoma", ARCHIVE, _osteosarcoma),
        Grammar("unitopatho", ARCHIVE, _unitopatho),
        Grammar("ucsb", ARCHIVE, _ucsb),
        Grammar("camelyon16", STRONG, _camelyon16),
        Grammar("sicap", STRONG, _sicap),
        Grammar("panda", STRONG, _panda),
        Grammar("qupath", STRONG, exporter.qupath),
        Grammar("deepzoom", STRONG, exporter.deep_zoom),
        Grammar("slide_folder", WEAK, exporter.slide_folder),
        Grammar("weak", WEAK, exporter.common),
    )
}
"""All grammars in the order in which they are tried: archives first, weak ones last."""
