"""Slide identity: from manifests, names and pixels, each id with the reason for it."""

from splits.identity.folder import FolderNames, parse_folder
from splits.identity.grammar import Name, parse
from splits.identity.identify import identify

__all__ = ["FolderNames", "Name", "identify", "parse", "parse_folder"]
