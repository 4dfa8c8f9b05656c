"""Slide identity: from manifests, names and pixels, each id with the reason for it."""
