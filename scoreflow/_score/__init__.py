"""The score: networks read as any prediction, and exact scores."""
