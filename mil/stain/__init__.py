"""Stain vectors a slide, and the separation of RGB into hematoxylin and eosin."""
