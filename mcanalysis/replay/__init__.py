"""Memories of examples that strategies rehearse."""
