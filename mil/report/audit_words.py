"""Findings and tests of an audit in the words of a reader."""

from __future__ import annotations

from typing import Final

__all__ = ["BATTERY", "KINDS", "TWINS"]

KINDS: Final = {
    "shared_tile": (
        "One tile in two parts",
        "The model is tested on a tile that it was trained or chosen on.",
    ),
    "shared_slide": (
        "One slide in two parts",
        "Tiles of one slide share stain, scanner and tissue: a model can know the slide again.",
    ),
    "shared_patient": (
        "One patient in two parts",
        "Slides of one patient share tissue and history: a score on them is no score on new "
        "patients.",
    ),
    "shared_group": (
        "One group in two parts",
        "The groups say what may not be cut, and this split cuts them.",
    ),
    "shared_site": (
        "One site in several parts",
        "A leak only where the split claims to keep sites apart; else test is from known sites.",
    ),
    "spelled_twice": (
        "One slide under two spellings",
        "The ids differ in white space, extension or case only: most likely one slide.",
    ),
    "identical_pixels": (
        "The same pixels in two parts",
        "The decoded images are equal, whatever their names say.",
    ),
    "turned": (
        "A copy in another part",
        "The same tile by quarter turns or mirror images, or saved again.",
    ),
    "duplicate": (
        "An altered copy in another part",
        "The same tissue after a rotation, a crop or a flip, as augmentation scripts leave behind.",
    ),
    "overlap": (
        "Overlapping tiles in two parts",
        "Two tiles share a part of their area, as their pixels say.",
    ),
    "seam": (
        "Neighbours in two parts",
        "The edge of one tile goes on in the edge of the other: both were cut from one slide.",
    ),
    "overlapping_coordinates": (
        "Overlapping coordinates in two parts",
        "Two tiles of one slide share a part of their area, as their coordinates say.",
    ),
    "encoder_saw_test": (
        "The encoder was trained on test slides",
        "Its features know these slides; a score on them is no score on new slides.",
    ),
    "encoder_saw_val": (
        "The encoder was trained on validation slides",
        "The choice of a model on them is too sure of itself.",
    ),
    "class_missing": (
        "A class is missing from a part",
        "Nothing can be learned, chosen or measured about it there.",
    ),
    "label_conflict": (
        "One id, two labels",
        "One of them is wrong, or the label is not that of the slide.",
    ),
    "class_of_one_site": (
        "A class from one site alone",
        "A model may learn the site in its place, and no split of these slides could tell.",
    ),
    "site_of_one_class": (
        "A site of one class alone",
        "Where the site can be read off the tiles, it gives the class away.",
    ),
    "empty_part": (
        "A part is missing",
        "Nothing can be on both sides where there is one side: a clean verdict says nothing here.",
    ),
    "tested_twice": (
        "Tested more than once",
        "Folds that claim k-fold test every slide once; intervals over such folds are too narrow.",
    ),
    "never_tested": (
        "Never tested",
        "The score says nothing about these slides.",
    ),
    "not_in_table": ("Not in the slide table", "Nothing could be looked up about these."),
    "not_in_split": ("Not in the split", "Left out, and not said why."),
    "id_hygiene": ("How ids are written", "Ids that a spreadsheet or an export may have changed."),
}
"""By kind of finding: a title, and what it means."""

BATTERY: Final = {
    "slide_probe": "Can the slide be read off a tile?",
    "site_probe": "Can the site be read off a tile?",
    "train_against_test": "Can test be told from train?",
    "nearest_across": "Do look-alikes of test tiles lie outside test?",
    "header_part": "Do file headers go along with the part?",
    "header_class": "Do file headers go along with the class?",
    "site_class": "Does the site go along with the class?",
    "preparation_class": "Does the preparation go along with the class?",
}
TWINS: Final = {
    "turned": "turned and saved again",
    "duplicate": "rotated, cropped, saved again",
    "seam": "cut into two neighbours",
}
