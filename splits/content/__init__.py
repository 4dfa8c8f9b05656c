"""What the pixels of tiles say about which tiles belong together."""
